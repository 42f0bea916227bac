//! The command line as users meet it: words, exit codes, what goes where.

mod command;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use command::{Stage, command, exits, json, kill_agent, podpath, stderr, stdout};
use serde_json::Value;
use testbed::interrupt::Interrupt;
use testbed::netns::Netns;
use testbed::probe::Verdict;
use testbed::probe::sockets::{Dial, dial_all};
use testbed::topology::pod_netns;
use userspace::model::Protocol;

const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec: {nodes: 2}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: 203.0.113.7}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, labels: {app: db}}
spec: {nodeName: n2, containers: [{name: c, image: x, ports: [{containerPort: 5432}]}]}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
"#;

/// Lets `web` reach `db`, and nobody else.
const POLICY: &str = r#"
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
"#;

#[test]
fn a_check_that_agrees_exits_with_0_and_prints_the_grid() {
    let stage = Stage::new("agrees");
    let file = stage.file("cluster.yaml", &[CLUSTER, POLICY].concat());
    let output = podpath(&["check", "--dataplane", "emulator", "-f", file.to_str().expect("UTF-8")]);
    exits(&output, 0);
    let lines: Vec<&str> = stdout(&output).lines().collect();
    let expected = [
        "80/TCP       1",
        "default/web  .",
        "default/db   .",
        "ext:world    .",
        "  1 default/web",
        "",
        "5432/TCP     1",
        "default/web  .",
        "default/db   .",
        "ext:world    X",
        "  1 default/db",
        "  X ingress of default/db: isolated by default/db, and no rule allows it: ext:world",
        "",
        "  . reaches   X denied   R rejected at once   ! differs from expected",
        "",
        "6 flows on emulator, 0 differences",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_check_at_stated_ports_asks_every_pair_there_and_says_what_the_nearest_rule_lacks() {
    let stage = Stage::new("ports");
    let file = stage.file("cluster.yaml", &[CLUSTER, POLICY].concat());
    let (file, page) = (file.to_str().expect("UTF-8"), stage.path("grid.html"));
    let page = page.to_str().expect("UTF-8");
    let arguments =
        ["check", "--dataplane", "emulator", "-f", file, "--port", "9/udp,80", "--why", "--html", page];
    let output = podpath(&arguments);
    exits(&output, 0);
    let table = |head: &'static str| {
        [
            head,
            "default/web  . . .",
            "default/db   . . .",
            "ext:world    . X",
            "  1 default/web",
            "  2 default/db",
            "  3 ext:world",
            "  X ingress of default/db: isolated by default/db, and no rule allows it: ext:world",
            "      nearest: default/db ingress[0] would allow it, but ext:world is no pod",
            "",
        ]
    };
    let mut expected = [table("9/UDP        1 2 3"), table("80/TCP       1 2 3")].concat();
    expected.extend(["  . reaches   X denied   R rejected at once   ! differs from expected", ""]);
    expected.push("16 flows on emulator, 0 differences");
    assert_eq!(stdout(&output).lines().collect::<Vec<_>>(), expected);
    let written = std::fs::read_to_string(page).expect("it was written");
    assert!(written.starts_with("<!doctype html>") && written.contains("default/db"), "{written}");
    let wrong = podpath(&["check", "-f", file, "--port", "80/icmp"]);
    exits(&wrong, 2);
    assert!(stderr(&wrong).contains("none of tcp, udp and sctp"), "{wrong:?}");
    let nowhere = podpath(&["check", "--dataplane", "emulator", "-f", file, "--html", "/nowhere/grid.html"]);
    exits(&nowhere, 2);
    assert!(stderr(&nowhere).contains("cannot write the page to /nowhere/grid.html: "), "{nowhere:?}");
}

#[test]
fn json_rows_come_back_in_the_order_of_the_flows_file() {
    let stage = Stage::new("json");
    let file = stage.file("cluster.yaml", &[CLUSTER, POLICY].concat());
    let flows = stage.file(
        "flows.json",
        r#"[["ext:world", "default/db", 5432, "TCP"], ["default/web", "default/db", 9, "UDP"],
            ["ext:world", "default/db", 5432, "TCP"], ["default/db", "ext:world", 443, "TCP"]]"#,
    );
    let (file, flows) = (file.to_str().expect("UTF-8"), flows.to_str().expect("UTF-8"));
    let arguments = ["check", "--dataplane", "emulator", "-f", file, "--flows", flows, "-o", "json"];
    let output = podpath(&arguments);
    exits(&output, 0);
    let grid = json(&output);
    assert_eq!(grid["cluster"], stage.name.as_str());
    assert_eq!((&grid["dataplane"], &grid["differences"]), (&"emulator".into(), &0.into()));
    let denied = serde_json::json!({
        "from": "ext:world", "to": "default/db", "port": 5432, "protocol": "TCP", "verdict": "deny",
        "reason": "policy-denied", "decided_by": "default/db", "expected": "deny",
    });
    let rows = grid["flows"].as_array().expect("an array");
    assert_eq!((rows.len(), &rows[0], &rows[2]), (4, &denied, &denied));
    assert_eq!((&rows[1]["verdict"], &rows[1]["protocol"]), (&"allow".into(), &"UDP".into()));
    assert_eq!((&rows[3]["to"], &rows[3]["verdict"]), (&"ext:world".into(), &"allow".into()));
    let yaml = podpath(&[&arguments[..8], &["yaml"]].concat());
    assert!(stdout(&yaml).contains("verdict: allow"), "{yaml:?}");
}

#[test]
fn what_could_not_be_done_exits_with_2_and_says_why_on_stderr() {
    let stage = Stage::new("errors");
    let cluster = stage.file("cluster.yaml", CLUSTER);
    let cluster = cluster.to_str().expect("UTF-8");
    let flows = stage.file("flows.json", r#"[["default/wbe", "default/db", 80, "TCP"]]"#);
    let flows = flows.to_str().expect("UTF-8");
    let missing = "/nowhere/cluster.yaml";
    let cases: [(&[&str], &str); 7] = [
        (&["check", "-f", missing], "error: cannot read /nowhere/cluster.yaml: "),
        (
            &["check", "-f", cluster, "--flows", flows],
            r#"row 1: from: unknown pod "default/wbe", did you mean "default/web"?"#,
        ),
        (
            &["check", "-f", cluster, "--dataplane", "wire"],
            "error: cannot check with --dataplane wire: choose ",
        ),
        (
            &["up", "-f", cluster, "--dataplane", "emulator"],
            "error: cannot bring up a cluster with --dataplane",
        ),
        (&["check", "--cluster", "test-nowhere"], "error: cannot find cluster test-nowhere: it is not up"),
        (&["explain", "-f", cluster, "default/web", "default/dbb"], "error: unknown pod"),
        (&["check", "-f", cluster, "--dataplane", "none"], "invalid value 'none'"),
    ];
    for (arguments, why) in cases {
        let output = podpath(arguments);
        exits(&output, 2);
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert!(stderr(&output).contains(why), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn get_shows_what_files_describe() {
    let stage = Stage::new("get");
    let file = stage.file("cluster.yaml", &[CLUSTER, POLICY].concat());
    let file = file.to_str().expect("UTF-8");
    let pods = podpath(&["get", "pods", "-f", file]);
    exits(&pods, 0);
    let lines: Vec<Vec<&str>> = stdout(&pods).lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAMESPACE", "NAME", "READY", "ADDRESS", "NODE"]);
    assert_eq!((lines[1][1], lines[1][4], lines[2][1], lines[2][4]), ("web", "n1", "db", "n2"));
    let nodes = json(&podpath(&["get", "node", "-f", file, "-o", "json"]));
    assert_eq!(nodes.as_array().map(Vec::len), Some(2));
    let wide = podpath(&["get", "netpol", "-f", file, "-o", "wide"]);
    assert!(stdout(&wide).contains("default/db"), "{wide:?}");
    let none = podpath(&["get", "pods", "-f", file, "-n", "elsewhere"]);
    assert_eq!(stdout(&none).lines().count(), 1, "{none:?}");
}

#[test]
fn get_shows_policies_of_the_whole_cluster_in_the_order_in_which_they_are_asked() {
    const TIERS: &str = "
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec: {subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: web}
spec: {tier: Admin, priority: 7, subject: {pods: {podSelector: {matchLabels: {app: web}}}}}
";
    let stage = Stage::new("tiers");
    let file = stage.file("cluster.yaml", &[CLUSTER, TIERS].concat());
    let file = file.to_str().expect("UTF-8");
    let cells = |output: &Output| -> Vec<String> {
        stdout(output).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(
        cells(&podpath(&["get", "cnp", "-f", file])),
        [
            "KIND NAME TIER PRIORITY PODS INGRESS RULES EGRESS RULES",
            "ClusterNetworkPolicy web Admin 7 1 0 0",
            "BaselineAdminNetworkPolicy default Baseline 1000 2 1 0",
        ]
    );
    let wide = cells(&podpath(&["get", "cluster-policies", "-f", file, "-o", "wide"]));
    assert_eq!(wide[2], "BaselineAdminNetworkPolicy default Baseline 1000 default/web,default/db 1 0");
    let rows = json(&podpath(&["get", "banp", "-f", file, "-o", "json"]));
    assert_eq!((&rows[0]["name"], &rows[1]["ingress"][0]["action"]), (&"web".into(), &"Deny".into()));
}

/// Three Services, and one endpoint in each condition.
const SERVICES: &str = r#"
---
apiVersion: v1
kind: Service
metadata: {name: front}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  externalIPs: [20.0.0.9]
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: [203.0.113.0/24]
  trafficDistribution: PreferSameNode
  selector: {app: web}
  ports: [{port: 80, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: plain}
spec: {clusterIP: 10.96.0.77, ports: [{name: a, port: 53, protocol: UDP}, {name: b, port: 54}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: plain-1, labels: {kubernetes.io/service-name: plain}}
addressType: IPv4
ports: [{name: a, port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.9.0.1], nodeName: n1, zone: z1}
- {addresses: [10.9.0.2], conditions: {ready: false}}
- {addresses: [10.9.0.3], conditions: {ready: false, serving: true, terminating: true}}
"#;

#[test]
fn get_shows_services_as_kubectl_does_and_every_endpoint() {
    let stage = Stage::new("services");
    let file = stage.file("cluster.yaml", &[CLUSTER, SERVICES].concat());
    let file = file.to_str().expect("UTF-8");
    let table = |arguments: &[&str]| -> Vec<String> {
        let output = podpath(&[&["get"], arguments, &["-f", file]].concat());
        exits(&output, 0);
        stdout(&output).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    assert_eq!(
        table(&["svc"]),
        [
            "NAMESPACE NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S)",
            "default front LoadBalancer 10.96.0.2 198.51.100.1,20.0.0.9 80:30080/TCP",
            "default plain ClusterIP 10.96.0.77 - 53/UDP,54/TCP",
        ]
    );
    let wide = table(&["services", "-o", "wide"]);
    assert!(wide[0].ends_with("READY EXTERNAL INTERNAL AFFINITY HEALTH-CHECK SOURCE-RANGES"), "{}", wide[0]);
    assert!(
        wide[1].ends_with(" 1/1 Local Cluster,PreferSameNode 10800s 32000 203.0.113.0/24"),
        "{}",
        wide[1]
    );
    assert!(wide[2].ends_with(" 1/3 Cluster Cluster - - -"), "{}", wide[2]);
    assert_eq!(
        table(&["endpoints"]),
        ["NAMESPACE NAME ENDPOINTS", "default front 10.244.0.2:80", "default plain 10.9.0.1:53"]
    );
    assert_eq!(
        table(&["ep", "-o", "wide"]),
        [
            "NAMESPACE SERVICE PORT ENDPOINT NODE ZONE CONDITIONS WEIGHT USED",
            "default front 80/TCP 10.244.0.2:80 n1 - ready,serving 1 yes: for clients of nodes n1, outside for clients that come in at its node",
            "default plain 53/UDP 10.9.0.1:53 n1 z1 ready,serving 1 yes",
            "default plain 53/UDP 10.9.0.2:53 - - - 1 no: not ready",
            "default plain 53/UDP 10.9.0.3:53 - - serving,terminating 1 no: terminating",
        ]
    );
    let rows = json(&podpath(&["get", "endpoints", "-f", file, "-o", "json"]));
    assert_eq!((&rows[3]["address"], &rows[3]["used"]), (&"10.9.0.3".into(), &"no: terminating".into()));
    assert_eq!((&rows[0]["service"], &rows[0]["node"]), (&"front".into(), &"n1".into()));
    let service = &json(&podpath(&["get", "services", "-f", file, "-o", "json"]))[0];
    assert_eq!(service["load_balancer_addresses"][0], "198.51.100.1");
    assert_eq!(service["ports"][0]["node_port"], 30080);
}

#[test]
fn plan_says_what_fits_before_anything_is_made() {
    let stage = Stage::new("plan");
    let file = stage.file("a.yaml", CLUSTER);
    let file = file.to_str().expect("a readable path");
    let output = podpath(&["plan", "-f", file]);
    exits(&output, 0);
    let text = stdout(&output);
    assert!(
        text.contains("\nnodeSubnet    10.240.0.0/16   65536   65531    2          2      65529\n"),
        "{text}"
    );
    assert!(
        text.contains("\n* overlay        250        256         254        500        yes    podCIDR"),
        "{text}"
    );
    assert!(text.ends_with("ok: it fits, upgrades included\n"), "{text}");
    let output = podpath(&["plan", "-f", file, "--nodes", "256", "--max-surge", "1%", "-o", "json"]);
    exits(&output, 1);
    let plan = json(&output);
    assert_eq!((plan["fits"].as_bool(), plan["surge"].as_u64()), (Some(false), Some(3)));
    assert_eq!(plan["models"][0]["model"], "overlay");
    assert!(plan["problems"][0].as_str().is_some_and(|why| why.contains("256 fit in overlay")), "{plan}");
    exits(&podpath(&["plan", "-f", file, "--peered", "10.244.3.0/24"]), 1);
    exits(&podpath(&["plan", "-f", file, "--peered", "nowhere"]), 2);
    let bad =
        stage.file("b.yaml", &CLUSTER.replace("nodes: 2", "podCIDR: 10.0.0.0/16, serviceCIDR: 10.0.0.0/24"));
    let output = podpath(&["plan", "-f", bad.to_str().expect("a readable path")]);
    exits(&output, 2);
    assert!(stderr(&output).contains("spec.serviceCIDR: 10.0.0.0/24 overlaps podCIDR 10.0.0.0/16"));
}

#[test]
fn explain_tells_the_walk_and_asks_for_a_port_where_it_is_open_which() {
    let stage = Stage::new("explain");
    let file = stage.file("cluster.yaml", &[CLUSTER, POLICY].concat());
    let file = file.to_str().expect("UTF-8");
    let walk = podpath(&["explain", "-f", file, "default/web", "default/db"]);
    exits(&walk, 0);
    for stage in ["from_pod", "conntrack", "policy", "overlay", "to_pod"] {
        assert!(stdout(&walk).contains(stage), "{walk:?}");
    }
    assert_eq!(stdout(&walk).matches("to_pod").count(), 2, "there and back: {walk:?}");
    let document = json(&podpath(&["explain", "-f", file, "ext:world", "default/db", "-o", "json"]));
    assert_eq!((&document["verdict"], &document["reason"]), (&"deny".into(), &"policy-denied".into()));
    assert_eq!(document["packets"].as_array().map(Vec::len), Some(1));
    let ruling = &document["ruling"];
    let said = "ingress of default/db: isolated by default/db, and no rule allows it";
    assert_eq!(ruling["said"], serde_json::json!([said]));
    let nearest = "nearest: default/db ingress[0] would allow it, but ext:world is no pod";
    assert_eq!(ruling["nearest"], nearest);
    let denied = podpath(&["explain", "-f", file, "ext:world", "default/db"]);
    assert!(
        stdout(&denied).ends_with(&format!("\npolicies       {said}\n               {nearest}\n")),
        "{denied:?}"
    );
    assert!(
        stdout(&walk).ends_with("\npolicies       ingress of default/db: allowed by default/db ingress[0]\n")
    );
    let open = podpath(&["explain", "-f", file, "default/web", "ext:world"]);
    exits(&open, 2);
    assert!(stderr(&open).contains("it declares no port; say which, as ext:world:8080/tcp"), "{open:?}");
}

/// A client, and a Service with an endpoint on each of two nodes and one that is not ready.
const SPREAD: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec: {nodes: 2}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: 203.0.113.7}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: api}}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: slow, labels: {app: api}}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
status: {phase: Running, conditions: [{type: Ready, status: "False"}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec: {type: NodePort, selector: {app: api}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: none}
spec: {selector: {app: none}, ports: [{port: 80}]}
"#;

#[test]
fn where_tells_how_flows_spread_and_where_one_goes() {
    let stage = Stage::new("where");
    let file = stage.file("spread.yaml", SPREAD);
    let file = file.to_str().expect("UTF-8");
    let ask = |client: &str, service: &str, more: &[&str]| {
        podpath(&[&["where", "-f", file, client, service], more].concat())
    };
    let spread = json(&ask("default/web", "svc:default/api", &["-n", "400", "-o", "json"]));
    let backends = spread["backends"].as_array().expect("a list");
    let flows = |pod: &str| {
        let found = backends.iter().find(|one| one["pod"] == format!("default/{pod}"));
        found.expect("it is listed")["flows"].as_u64().expect("a number")
    };
    assert_eq!((spread["node"].as_str(), flows("near") + flows("far"), flows("slow")), (Some("n1"), 400, 0));
    assert!(flows("near") > 140 && flows("far") > 140, "{spread}");
    assert_eq!(spread["choice"]["left_out"]["not-ready"], 1, "{spread}");

    let one = ask("default/web", "svc:default/api:80", &["--port", "40000"]);
    exits(&one, 0);
    assert!(
        stdout(&one).contains("because    2 of 3 endpoints may answer (1 not ready): by the flow's hash")
    );
    let again = ask("default/web", "svc:default/api:80", &["--port", "40000"]);
    assert_eq!(stdout(&one), stdout(&again));

    let walk = podpath(&["explain", "-f", file, "default/web", "svc:default/api:80", "--all"]);
    let (chosen, kept) = ("2 of 3 endpoints may answer", "kept: its flow was given to it before");
    let times = |what| stdout(&walk).matches(what).count();
    assert!(times(chosen) == 1 && times(kept) >= 1, "{walk:?}");

    let none = ask("default/web", "svc:default/none", &["-n", "3"]);
    exits(&none, 1);
    assert!(stdout(&none).contains("3 dropped: no-backend"), "{none:?}");
    for (client, service, why) in [
        ("svc:default/api", "svc:default/api", "a Service is only an address to dial"),
        ("default/web:80", "svc:default/api", "name the source port with --port"),
        ("default/web", "svc:default/apo", "did you mean"),
    ] {
        let refused = ask(client, service, &[]);
        exits(&refused, 2);
        assert!(stderr(&refused).contains(why), "{refused:?}");
    }
}

#[test]
fn doctor_reports_each_requirement_with_a_remedy_for_what_is_missing() {
    let output = podpath(&["doctor", "-o", "json"]);
    let report = json(&output);
    let ebpf =
        report["dataplanes"].as_array().expect("an array").iter().find(|one| one["dataplane"] == "ebpf");
    let works = ebpf.expect("it is reported")["works"].as_bool().expect("a boolean");
    exits(&output, if works { 0 } else { 1 });
    for one in report["requirements"].as_array().expect("an array") {
        assert_eq!(one["found"].as_bool(), Some(one["remedy"].is_null()), "{one}");
    }
}

#[test]
fn editors_and_shells_are_told_what_may_be_written() {
    let output = podpath(&["schema"]);
    exits(&output, 0);
    let models = &json(&output)["$defs"]["TestbedSpec"]["properties"]["model"]["enum"];
    assert_eq!(*models, serde_json::json!(["overlay", "flat", "flat-dynamic", "kubenet", null]));
    let output = podpath(&["completion", "bash"]);
    exits(&output, 0);
    let script = stdout(&output);
    assert!(["complete -F _podpath", "--dataplane", "explain"].iter().all(|word| script.contains(word)));
    assert!(!script.contains(" serve "), "what is hidden is not offered");
}

/// A Service that remembers its clients.
const REMEMBERED: &str = r#"
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80}]}
"#;

#[test]
#[ignore = "needs root: make test"]
fn a_kernel_that_lacks_what_some_clusters_need_takes_the_others() {
    let stage = Stage::new("lacks");
    // In the place of a kernel that does not know the match.
    let tools = stage.path("tools");
    std::fs::create_dir(&tools).expect("there is room");
    for tool in ["iptables-restore", "ip6tables-restore"] {
        let script = format!(
            "#!/bin/sh\nrules=$(cat)\ncase $rules in *'-m recent'*)\n\
             echo 'RULE_APPEND failed (No such file or directory): rule in chain OUTPUT' >&2; exit 4;; esac\n\
             printf '%s\\n' \"$rules\" | /usr/sbin/{tool} \"$@\"\n"
        );
        let path = tools.join(tool);
        std::fs::write(&path, script).expect("there is room");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("there is one"));
    let run = |arguments: &[&str]| command(arguments).env("PATH", &path).output().expect("it was built");
    let plain = stage.file("plain.yaml", CLUSTER);
    let remembered = stage.file("remembered.yaml", &format!("{CLUSTER}{REMEMBERED}"));
    let (plain, remembered) = (plain.to_str().expect("UTF-8"), remembered.to_str().expect("UTF-8"));
    let lacks = "IPv4: the kernel lacks -m recent for sessionAffinity (module xt_recent)";

    let findings = json(&run(&["doctor", "-o", "json"]));
    let finding = |name: &str| {
        let all = findings["requirements"].as_array().expect("an array");
        all.iter().find(|one| one["requirement"] == name).expect("it is tried").clone()
    };
    assert_eq!(finding("iptables")["found"], true);
    let some = finding("iptables, what some clusters need");
    assert_eq!((some["found"].as_bool(), some["detail"].as_str()), (Some(false), Some(lacks)), "{some}");

    let up = run(&["up", "-f", plain, "--dataplane", "iptables"]);
    exits(&up, 0);
    exits(&podpath(&["down", &stage.name]), 0);
    let refused = run(&["up", "-f", remembered, "--dataplane", "iptables"]);
    exits(&refused, 2);
    assert!(stderr(&refused).contains(lacks), "{refused:?}");
    let checked = run(&["check", "-f", remembered, "--dataplane", "all", "--port", "80/tcp"]);
    exits(&checked, 0);
    assert!(stderr(&checked).contains(&format!("left out iptables: {lacks}")), "{checked:?}");
}

#[test]
#[ignore = "needs root: make test"]
fn a_cluster_goes_up_is_asked_changed_and_goes_down() {
    let stage = Stage::new("up");
    let file = stage.file("cluster.yaml", CLUSTER);
    let file = file.to_str().expect("UTF-8");
    let name = stage.name.as_str();
    exits(&podpath(&["up", "-f", file, "--dataplane", "routed"]), 0);
    let again = podpath(&["up", "-f", file, "--dataplane", "routed"]);
    exits(&again, 2);
    assert!(stderr(&again).contains("it is up already"), "{again:?}");

    let check = podpath(&["check", "--cluster", name, "-o", "json"]);
    exits(&check, 0);
    assert_eq!(
        (&json(&check)["dataplane"], json(&check)["flows"].as_array().map(Vec::len)),
        (&"routed".into(), Some(6))
    );

    let late = "apiVersion: v1\nkind: Pod\nmetadata: {name: late}\nspec: {nodeName: n2, containers: [{name: c, image: x, ports: [{containerPort: 81}]}]}\n";
    let late = stage.file("late.yaml", late);
    let late = late.to_str().expect("UTF-8");
    let applied = podpath(&["apply", "--cluster", name, "-f", late]);
    exits(&applied, 0);
    assert_eq!(stdout(&applied), "pod/late created\n");
    assert_eq!(stdout(&podpath(&["apply", "--cluster", name, "-f", late])), "pod/late unchanged\n");
    let check = podpath(&["check", "--cluster", name, "-o", "json"]);
    exits(&check, 0);
    // Three pods and the world, each to three pods at one port.
    assert_eq!(json(&check)["flows"].as_array().map(Vec::len), Some(12));

    let ran = podpath(&[
        "exec",
        "default/late",
        "--cluster",
        name,
        "--",
        "sh",
        "-c",
        "cat /sys/class/net/eth0/carrier; exit 7",
    ]);
    exits(&ran, 7);
    assert_eq!(stdout(&ran), "1\n");
    exits(&podpath(&["exec", "default/late", "--cluster", name, "--", "no-such-program"]), 127);

    assert_eq!(stdout(&podpath(&["delete", "--cluster", name, "-f", late])), "pod/late deleted\n");
    exits(&podpath(&["delete", "--cluster", name, "-f", late]), 1);
    exits(&podpath(&["down", name]), 0);
    assert_eq!(stage.namespaces(), Vec::<String>::new());
}

#[test]
#[ignore = "needs root: make test"]
fn a_policy_that_nobody_keeps_is_a_difference_and_exits_with_1() {
    let stage = Stage::new("no");
    let file = stage.file("cluster.yaml", &[CLUSTER, POLICY].concat());
    // Plain routing knows no policies.
    let output =
        podpath(&["check", "-f", file.to_str().expect("UTF-8"), "--dataplane", "routed", "-o", "json"]);
    exits(&output, 1);
    assert_eq!(
        (&json(&output)["differences"], &json(&output)["cluster"]),
        (&1.into(), &stage.name.as_str().into())
    );
    assert_eq!(stage.namespaces(), Vec::<String>::new());
}

#[test]
#[ignore = "needs root: make test"]
fn a_cluster_that_cannot_be_built_is_taken_back() {
    let stage = Stage::new("undo");
    let file = stage.file("cluster.yaml", CLUSTER);
    // The last thing to be built is there already, as if a killed command had left it.
    let left = format!("podpath-{}-pod-default.db", stage.name);
    Netns::create(left.as_str()).expect("nobody else has it");
    let output = podpath(&["up", "-f", file.to_str().expect("UTF-8"), "--dataplane", "routed"]);
    exits(&output, 2);
    assert!(stderr(&output).contains(&left), "{output:?}");
    assert_eq!(stage.namespaces(), Vec::<String>::new());
    let gone = podpath(&["down", &stage.name]);
    assert!(stderr(&gone).contains("it is not up"), "{gone:?}");
}

#[test]
#[ignore = "needs root: make test"]
fn policies_put_into_a_cluster_that_is_up_hold_at_once() {
    let stage = Stage::new("live");
    let file = stage.file("cluster.yaml", CLUSTER);
    let policy = stage.file("policy.yaml", POLICY);
    let (file, policy) = (file.to_str().expect("UTF-8"), policy.to_str().expect("UTF-8"));
    let flows = stage.file("flows.json", r#"[["ext:world", "default/db", 5432, "TCP"]]"#);
    let flows = flows.to_str().expect("UTF-8");
    let name = stage.name.as_str();
    let ask = || {
        let output = podpath(&["check", "--cluster", name, "--flows", flows, "-o", "json"]);
        exits(&output, 0);
        let row = json(&output)["flows"][0].clone();
        [row["verdict"].clone(), row["reason"].clone(), row["decided_by"].clone()]
    };
    exits(&podpath(&["up", "-f", file, "--dataplane", "ebpf"]), 0);
    assert_eq!(ask(), ["allow".into(), Value::Null, Value::Null]);
    exits(&podpath(&["apply", "--cluster", name, "-f", policy]), 0);
    assert_eq!(ask(), ["deny", "policy-denied", "default/db"].map(Value::from));
    let counted = json(&podpath(&["get", "dataplane", "--cluster", name, "-o", "json"]));
    let of_all = |what: &dyn Fn(&Value) -> u64| -> u64 {
        counted.as_object().expect("nodes by name").values().map(what).sum()
    };
    assert!(of_all(&|node| node["verdicts"]["policy-denied"][0].as_u64().unwrap_or(0)) > 0, "{counted}");
    let flows = |node: &Value| {
        let [rows, capacity] = [0, 1].map(|at| node["tables"]["conntrack"][at].as_u64().expect("a number"));
        assert_eq!(capacity, 131_072, "{counted}");
        rows
    };
    assert!(of_all(&flows) > 0, "{counted}");
    exits(&podpath(&["delete", "--cluster", name, "-f", policy]), 0);
    assert_eq!(ask(), ["allow".into(), Value::Null, Value::Null]);
    exits(&podpath(&["down", name]), 0);
    assert_eq!(stage.namespaces(), Vec::<String>::new());
    assert!(!std::path::Path::new("/sys/fs/bpf/podpath").join(name).exists());
}

#[test]
#[ignore = "needs root: make test"]
fn a_node_goes_on_without_its_agent_and_the_next_apply_gives_it_another() {
    let stage = Stage::new("kill");
    let file = stage.file("cluster.yaml", CLUSTER);
    let file = file.to_str().expect("UTF-8");
    let name = stage.name.as_str();
    exits(&podpath(&["up", "-f", file, "--dataplane", "ebpf"]), 0);
    let state = testbed::state::load(name).expect("a state").expect("it is up");
    kill_agent(name, "n1");
    // Packets pass, but nobody tells why, until somebody starts it again.
    let (web, db) = (&state.cluster.pods[0], &state.cluster.pods[1]);
    let dial = Dial {
        netns: pod_netns(name, web),
        source: web.address(),
        target: SocketAddr::new(db.address(), 5432),
        protocol: Protocol::Tcp,
    };
    let dialled = dial_all(&[dial], &Interrupt::default()).expect("a socket");
    assert_eq!(dialled[0].verdict, Verdict::Allow);
    let asked = podpath(&["check", "--cluster", name]);
    exits(&asked, 2);
    assert!(stderr(&asked).contains("the agent of node n1"), "{asked:?}");
    exits(&podpath(&["apply", "--cluster", name, "-f", file]), 0);
    exits(&podpath(&["check", "--cluster", name]), 0);
    exits(&podpath(&["down", name]), 0);
    assert_eq!(stage.namespaces(), Vec::<String>::new());
    assert!(!std::path::Path::new("/sys/fs/bpf/podpath").join(name).exists());
}

#[test]
#[ignore = "needs root: make test"]
fn all_dataplanes_that_keep_policies_agree() {
    let stage = Stage::new("all");
    let file = stage.file("cluster.yaml", &[CLUSTER, POLICY].concat());
    let output = podpath(&["check", "-f", file.to_str().expect("UTF-8"), "--dataplane", "all", "-o", "json"]);
    exits(&output, 0);
    let grids = json(&output);
    let grids = grids.as_array().expect("an array, of a grid for each");
    assert!(grids.iter().any(|grid| grid["dataplane"] == "emulator") && grids.len() > 1);
    for grid in grids {
        assert_eq!((&grid["differences"], grid["flows"].as_array().map(Vec::len)), (&0.into(), Some(6)));
    }
    assert_eq!(stage.namespaces(), Vec::<String>::new());
}

/// Waits for the process, or kills it.
fn ended(child: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("it is ours") {
            return status.code();
        }
        std::thread::yield_now();
    }
    let _ = child.kill();
    panic!("it does not end");
}

#[test]
#[ignore = "needs root: make test"]
fn an_interrupted_check_leaves_nothing_behind() {
    let stage = Stage::new("stop");
    let file = stage.file("cluster.yaml", CLUSTER);
    let mut child = command(&["check", "-f", file.to_str().expect("UTF-8"), "--dataplane", "routed"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it was built");
    let deadline = Instant::now() + Duration::from_secs(20);
    while stage.namespaces().is_empty() {
        // One that is waited for has no number any more.
        assert_eq!(child.try_wait().expect("it is ours"), None, "nothing was built");
        assert!(Instant::now() < deadline, "nothing is built");
        std::thread::yield_now();
    }
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().expect("a process number"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is ours");
    let code = ended(&mut child);
    // It may have been through before the signal came.
    assert!(matches!(code, Some(0 | 2)), "{code:?}");
    assert_eq!(stage.namespaces(), Vec::<String>::new());
}
