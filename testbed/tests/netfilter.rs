//! The kernel's packet filter as a dataplane: real sockets meet what the oracle says, while rules change too.

#[expect(dead_code, reason = "the other tests use the rest")]
mod command;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use command::{Stage, exits, json, podpath, stderr, stdout};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use serde_json::Value;
use testbed::dataplane::netfilter::{self, change};
use testbed::dataplane::{Name, Up};
use testbed::netns::Netns;
use userspace::model::{self, Cluster, Protocol};

const BOTH: [Name; 2] = [Name::Iptables, Name::Nftables];

/// Longer than any answer takes here, a lost first packet included.
const PATIENCE: Duration = Duration::from_secs(5);

/// Every kind of Service and port: behind the first node alone, behind both, behind nobody; two policies in the way.
const SERVICES: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec: {nodes: 3, model: MODEL, nodeSubnets: NODES, serviceCIDRs: SERVICES RANGES}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: near}
spec: {address: 203.0.113.7}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: far}
spec: {address: 198.51.100.9, ports: [{port: 443}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: api, set: first}}
spec:
  nodeName: n1
  containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080, hostPort: 8000}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: api}}
spec:
  nodeName: n2
  containers:
  - {name: c, image: x, ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shut, labels: {app: shut}}
spec: {nodeName: n2, containers: [{name: c, image: x, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: agent, labels: {app: agent}}
spec: {nodeName: n3, hostNetwork: true, containers: [{name: c, image: x, ports: [{containerPort: 9100}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec: {type: NodePort, sessionAffinity: ClientIP, selector: {app: api}, ports: [{port: 80, targetPort: http, nodePort: 32080}]}
---
apiVersion: v1
kind: Service
metadata: {name: first}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {set: first}
  externalIPs: [192.0.2.10]
  ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: ranged}
spec:
  type: LoadBalancer
  loadBalancerSourceRanges: [203.0.113.0/24]
  selector: {app: api}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: here}
spec: {internalTrafficPolicy: Local, selector: {set: first}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {type: NodePort, externalIPs: [192.0.2.11], selector: {app: none}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: names}
spec: {selector: {app: api}, ports: [{port: 53, protocol: UDP, targetPort: dns}]}
---
apiVersion: v1
kind: Service
metadata: {name: host}
spec: {type: NodePort, selector: {app: agent}, ports: [{port: 9100}]}
---
apiVersion: v1
kind: Service
metadata: {name: shut}
spec: {type: NodePort, selector: {app: shut}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shut}
spec: {podSelector: {matchLabels: {app: shut}}, ingress: [{from: [{podSelector: {matchLabels: {set: first}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: one-egress}
spec:
  podSelector: {matchLabels: {set: first}}
  policyTypes: [Egress]
  egress:
  - {to: [{podSelector: {matchLabels: {app: shut}}}], ports: [{port: http}]}
  - {to: [{ipBlock: {cidr: 198.51.100.0/24}}]}
"#;

/// What one of the tests takes away again.
const GONE: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: x}
spec: {podSelector: {}}
"#;

/// The services above in a model, with IPv4 alone or both families.
fn services(model: &str, dual: bool) -> String {
    let list = |v4: &str, v6: &str| if dual { format!("[{v4}, \"{v6}\"]") } else { format!("[{v4}]") };
    let ranges = match model {
        "overlay" | "kubenet" => format!(", podCIDRs: {}", list("10.244.0.0/16", "fd00:10:244::/48")),
        _ => String::new(),
    };
    let text = SERVICES.replace("MODEL", model).replace("RANGES", &ranges);
    let text = text.replace("NODES", &list("10.240.0.0/16", "fd00:10:240::/64"));
    text.replace("SERVICES", &list("10.96.0.0/16", "fd00:10:96::/112"))
}

/// What differs from the oracle, told by `podpath check`, and how many flows it asked.
#[track_caller]
fn differing(stage: &Stage, text: &str, dataplane: Name) -> (Vec<String>, usize) {
    let objects = stage.file("objects.yaml", text);
    let path = objects.to_str().expect("a name of our own");
    let told = podpath(&["check", "-f", path, "--dataplane", &dataplane.to_string(), "--all", "-o", "json"]);
    assert!(told.status.code().is_some_and(|code| code < 2), "{}{}", stdout(&told), stderr(&told));
    let document = json(&told);
    let rows = document["flows"].as_array().expect("it has flows");
    let differ = |row: &&Value| row["expected"] != Value::Null && row["expected"] != row["verdict"];
    let differing = rows.iter().filter(differ).map(Value::to_string).collect();
    (differing, rows.len())
}

#[test]
#[ignore = "needs root: make test"]
fn every_kind_of_service_is_as_the_oracle_says_in_every_model() {
    for (model, dual) in [("overlay", false), ("overlay", true), ("kubenet", false), ("flat", false)] {
        // `chains` walks the very rules that `iptables` loads.
        for dataplane in BOTH.into_iter().chain([Name::Chains]) {
            let stage = Stage::new(&format!("kinds-{model}-{dual}-{dataplane}"));
            let (told, asked) = differing(&stage, &services(model, dual), dataplane);
            assert!(told.is_empty(), "{dataplane} {model}:\n{}", told.join("\n"));
            assert!(asked > 100, "{asked} flows");
            assert_eq!(stage.namespaces(), Vec::<String>::new(), "nothing is left");
        }
    }
}

/// A cluster of which only the Service `api` changes.
fn changing(name: &str, endpoint: &str) -> Cluster {
    let text = format!(
        r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {{name: test-{}-{name}}}
spec: {{nodes: 2}}
---
apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec: {{nodeName: n1, containers: [{{name: c, image: x}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: one, labels: {{app: one}}}}
spec: {{nodeName: n2, containers: [{{name: c, image: x}}]}}
---
apiVersion: v1
kind: Pod
metadata: {{name: two, labels: {{app: two}}}}
spec: {{nodeName: n2, containers: [{{name: c, image: x}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: api}}
spec: {{clusterIP: 10.96.0.10, selector: {{app: {endpoint}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: other}}
spec: {{clusterIP: 10.96.0.11, selector: {{app: one}}, ports: [{{port: 80, targetPort: 8080}}]}}
"#,
        std::process::id()
    );
    model::load_text("changing.yaml", &text).unwrap_or_else(|error| panic!("{error}"))
}

/// Listens in a pod's namespace, and gives up in time.
fn listening(up: &Up, pod: &str) -> TcpListener {
    let listener = netns(up, pod).run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)));
    let listener = listener.expect("it runs").expect("the port is free");
    // It holds for accept(2) as well (socket(7)): who was led elsewhere does not come.
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0))
        .expect("it can");
    listener
}

fn netns(up: &Up, pod: &str) -> Netns {
    let topology = up.topology();
    topology.pod(topology.cluster().pods.iter().find(|it| it.name == pod).expect("the cluster has it"))
}

/// A connection from `web` to the Service `api`.
fn dialled(up: &Up) -> TcpStream {
    let dialled = SocketAddr::from(([10, 96, 0, 10], 80));
    let stream = netns(up, "web").run(|| TcpStream::connect_timeout(&dialled, PATIENCE)).expect("it runs");
    let stream = stream.unwrap_or_else(|error| panic!("{}: {error}", up.name()));
    stream.set_read_timeout(Some(PATIENCE)).expect("a time is no zero");
    stream
}

/// The other end of a connection answers what was said.
fn answered(client: &mut TcpStream, server: &mut TcpStream) {
    server.set_read_timeout(Some(PATIENCE)).expect("a time is no zero");
    client.write_all(b"ping").expect("it is open");
    let mut said = [0; 4];
    server.read_exact(&mut said).expect("it is heard");
    server.write_all(&said).expect("it is open");
    client.read_exact(&mut said).expect("the answer comes back");
}

#[test]
#[ignore = "needs root: make test"]
fn a_service_that_changes_is_another_for_new_connections_and_the_same_for_old_ones() {
    for dataplane in BOTH {
        let name = format!("changing-{dataplane}");
        let mut up = Up::new(&changing(&name, "one"), dataplane).unwrap_or_else(|error| panic!("{error}"));
        let (one, two) = (listening(&up, "one"), listening(&up, "two"));
        let mut old = dialled(&up);
        let (mut before, _) = one.accept().expect("it was dialled");
        answered(&mut old, &mut before);
        up.change_services(&changing(&name, "two")).unwrap_or_else(|error| panic!("{error}"));
        let mut new = dialled(&up);
        let (mut after, _) = two.accept().expect("it was dialled");
        answered(&mut new, &mut after);
        answered(&mut old, &mut before);
        // And back again: what was loaded in between is gone.
        up.change_services(&changing(&name, "one")).unwrap_or_else(|error| panic!("{error}"));
        let mut back = dialled(&up);
        answered(&mut back, &mut one.accept().expect("it was dialled").0);
        up.down().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_node_s_own_socket_is_led_by_its_own_node_port_as_long_as_there_is_one() {
    for dataplane in BOTH.into_iter().chain([Name::Chains]) {
        let without = changing(&format!("own-{dataplane}"), "one");
        let mut with = without.clone();
        with.services[0].ports[0].node_port = Some(32_080);
        let mut up = Up::new(&without, dataplane).unwrap_or_else(|error| panic!("{error}"));
        let one = listening(&up, "one");
        let node = without.node("n1").expect("the cluster has it");
        let dialled = SocketAddr::new(node.address(), 32_080);
        let netns = up.topology().node("n1");
        let dial = || netns.run(|| TcpStream::connect_timeout(&dialled, PATIENCE)).expect("it runs");
        let refused = |dial: std::io::Result<TcpStream>| {
            assert_eq!(dial.expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused, "{dataplane}");
        };
        refused(dial());
        up.change_services(&with).unwrap_or_else(|error| panic!("{error}"));
        let mut client = dial().unwrap_or_else(|error| panic!("{dataplane}: {error}"));
        client.set_read_timeout(Some(PATIENCE)).expect("a time is no zero");
        answered(&mut client, &mut one.accept().expect("it was dialled").0);
        up.change_services(&without).unwrap_or_else(|error| panic!("{error}"));
        refused(dial());
        up.down().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_client_over_udp_that_keeps_its_port_is_led_to_who_is_there_now() {
    for dataplane in BOTH {
        let over_udp = |endpoint| {
            let mut cluster = changing(&format!("udp-{dataplane}"), endpoint);
            cluster
                .services
                .iter_mut()
                .flat_map(|it| &mut it.ports)
                .for_each(|it| it.protocol = Protocol::Udp);
            cluster
        };
        let mut up = Up::new(&over_udp("one"), dataplane).unwrap_or_else(|error| panic!("{error}"));
        let bound = |pod: &str, port| {
            let socket = netns(&up, pod).run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)));
            let socket = socket.expect("it runs").expect("the port is free");
            socket.set_read_timeout(Some(PATIENCE)).expect("a time is no zero");
            socket
        };
        let (web, one, two) = (bound("web", 20_000), bound("one", 8080), bound("two", 8080));
        let asks = |address: [u8; 4], who: &UdpSocket| {
            web.send_to(b"ping", SocketAddr::from((address, 80))).expect("it has a way");
            let mut said = [0; 4];
            let (_, client) = who.recv_from(&mut said).expect("it is heard");
            who.send_to(&said, client).expect("it has a way");
            let (_, from) = web.recv_from(&mut said).expect("the answer comes back");
            assert_eq!(from, SocketAddr::from((address, 80)), "{dataplane}");
        };
        asks([10, 96, 0, 10], &one);
        asks([10, 96, 0, 11], &one);
        let changed = up.change_services(&over_udp("two"));
        changed.unwrap_or_else(|error| panic!("{error}"));
        asks([10, 96, 0, 10], &two);
        // Who is where he was is not asked anew.
        asks([10, 96, 0, 11], &one);
        up.down().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_change_of_one_service_speaks_of_no_other() {
    for dataplane in BOTH {
        let (before, after) = (changing("text", "one"), changing("text", "two"));
        let told = change(dataplane, Some(&before), &after, "n1").expect("the node is there");
        let text: String = told.into_iter().map(|(_, text)| text).collect();
        let address =
            |pod: &str| after.pod(&format!("default/{pod}")).expect("it is there").address().to_string();
        assert!(text.contains(&address("two")) && !text.contains("10.96.0.11"), "{dataplane}: {text}");
        assert!(text.lines().count() < 16, "{dataplane}: {text}");
        assert_eq!(change(dataplane, Some(&after), &after, "n1").expect("it is there"), [], "{dataplane}");
    }
}

/// A cluster of so many nodes, with one pod or several.
fn of_nodes(nodes: usize) -> Cluster {
    let pods = (1..=nodes).map(|node| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{node}}}\n\
             spec: {{nodeName: n{node}, containers: [{{name: c, image: x}}]}}\n"
        )
    });
    let text = format!(
        "apiVersion: podpath.dev/v1alpha1\nkind: Testbed\nmetadata: {{name: nodes}}\nspec: {{nodes: {nodes}}}\n{}",
        pods.collect::<String>()
    );
    model::load_text("nodes.yaml", &text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
#[ignore = "needs root: make test"]
fn nodes_come_and_go_whoever_their_neighbours_are() {
    for dataplane in BOTH {
        let name = format!("podpath-test-{}-nodes-{dataplane}", std::process::id());
        let netns = Netns::create(name).unwrap_or_else(|error| panic!("{error}")).guarded();
        let load = |before: Option<&Cluster>, after: &Cluster| {
            for (tool, rules) in change(dataplane, before, after, "n1").expect("the node is there") {
                tool.load(&netns, &rules).unwrap_or_else(|error| panic!("{error}\n{rules}"));
            }
        };
        let mut before = of_nodes(5);
        load(None, &before);
        for nodes in [4, 3, 2, 5, 1, 3] {
            let after = of_nodes(nodes);
            load(Some(&before), &after);
            before = after;
        }
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_node_with_other_rules_than_thought_gets_all_of_them_anew() {
    for dataplane in BOTH {
        let name = format!("thought-{dataplane}");
        let up = Up::new(&changing(&name, "one"), dataplane).unwrap_or_else(|error| panic!("{error}"));
        let one = listening(&up, "one");
        // That there was a Service more is not so: what is to be taken away is not there.
        let mut thought = changing(&name, "two");
        let mut more = thought.services[0].clone();
        more.name = "more".to_owned();
        more.addresses = vec![Ipv4Addr::new(10, 96, 0, 99).into()];
        thought.services.push(more);
        netfilter::apply(dataplane, Some(&thought), up.topology()).unwrap_or_else(|error| panic!("{error}"));
        let mut dialled = dialled(&up);
        answered(&mut dialled, &mut one.accept().expect("it was dialled").0);
        up.down().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
#[ignore = "needs root: make test"]
fn rules_that_could_not_be_loaded_are_loaded_by_the_next_change() {
    for (dataplane, list) in
        [("iptables", &["iptables-save"] as &[&str]), ("nftables", &["nft", "-s", "list", "ruleset"])]
    {
        let stage = Stage::new(&format!("stale-{dataplane}"));
        let text = services("overlay", false);
        let objects = stage.file("objects.yaml", &text);
        let first = stage.file("less.yaml", &text.replace("{name: one-egress}", "{name: x}"));
        let path = |path: &std::path::Path| path.to_str().expect("a name of our own").to_owned();
        exits(&podpath(&["up", "-f", &path(&objects), "--dataplane", dataplane]), 0);
        let anew = saved(&stage.name, list);
        exits(&podpath(&["down", &stage.name]), 0);
        exits(&podpath(&["up", "-f", &path(&first), "--dataplane", dataplane]), 0);
        let gone = stage.file("gone.yaml", GONE);
        exits(&podpath(&["delete", "-f", &path(&gone), "--cluster", &stage.name]), 0);
        let apply = ["apply", "-f", &path(&objects), "--cluster", &stage.name];
        // Where its tools are not found, the state is the new one and the rules are the old ones.
        let failed = std::process::Command::new(env!("CARGO_BIN_EXE_podpath"))
            .args(apply)
            .env("PATH", "/nowhere")
            .output()
            .expect("it is there");
        assert!(stderr(&failed).contains("it is not installed"), "{}", stderr(&failed));
        assert_ne!(saved(&stage.name, list), anew, "{dataplane}");
        exits(&podpath(&apply), 0);
        let changed = saved(&stage.name, list);
        let differ: Vec<&String> = changed.symmetric_difference(&anew).collect();
        assert!(differ.is_empty(), "{dataplane}: {differ:#?}");
        exits(&podpath(&["down", &stage.name]), 0);
    }
}

/// What the kernel says its rules are, in a node's namespace.
fn saved(cluster: &str, command: &[&str]) -> BTreeSet<String> {
    let netns = format!("podpath-{cluster}-node-n1");
    let arguments = ["netns", "exec", &netns].into_iter().chain(command.iter().copied());
    let output = std::process::Command::new("ip").args(arguments).output().expect("it is there");
    assert!(output.status.success(), "{}", stderr(&output));
    let lines = stdout(&output).lines().map(str::trim);
    lines.filter(|line| !line.starts_with('#') && !line.starts_with(':')).map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root: make test"]
fn a_cluster_that_is_up_changes_with_its_objects_and_its_rules_are_those_of_one_brought_up_anew() {
    for (dataplane, list) in
        [("iptables", &["iptables-save"] as &[&str]), ("nftables", &["nft", "-s", "list", "ruleset"])]
    {
        let stage = Stage::new(&format!("up-{dataplane}"));
        let text = services("overlay", false);
        let objects = stage.file("objects.yaml", &text);
        let less = text
            .replace("type: NodePort, sessionAffinity: ClientIP, ", "")
            .replace(", nodePort: 32080", "")
            .replace("{name: one-egress}", "{name: x}");
        let first = stage.file("less.yaml", &less);
        let path = |path: &std::path::Path| path.to_str().expect("a name of our own").to_owned();
        exits(&podpath(&["up", "-f", &path(&objects), "--dataplane", dataplane]), 0);
        let anew = saved(&stage.name, list);
        exits(&podpath(&["down", &stage.name]), 0);
        exits(&podpath(&["up", "-f", &path(&first), "--dataplane", dataplane]), 0);
        assert_ne!(saved(&stage.name, list), anew, "{dataplane}");
        exits(&podpath(&["apply", "-f", &path(&objects), "--cluster", &stage.name]), 0);
        let gone = stage.file("gone.yaml", GONE);
        exits(&podpath(&["delete", "-f", &path(&gone), "--cluster", &stage.name]), 0);
        let changed = saved(&stage.name, list);
        let differ: Vec<&String> = changed.symmetric_difference(&anew).collect();
        assert!(differ.is_empty(), "{dataplane}: {differ:#?}");
        exits(&podpath(&["check", "--cluster", &stage.name]), 0);
        exits(&podpath(&["down", &stage.name]), 0);
        assert_eq!(stage.namespaces(), Vec::<String>::new());
    }
}
