//! `podpath diff`: which flows open and close, who decides about them, and what scripts are told.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// Two replicas that serve, a client, a stranger, and a host outside.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: diff}
spec: {nodes: 2}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: 203.0.113.7}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: c, image: x, ports: [{name: http, containerPort: 9000}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shell, namespace: stranger, labels: {app: shell}}
spec: {containers: [{name: c, image: x}]}
"#;

/// Lets `who` reach `api` at `port`.
fn policy(name: &str, who: &str, port: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{podSelector: {{matchLabels: {{app: api}}}}, ingress: [{{from: [{who}], ports: [{port}]}}]}}\n"
    )
}

const WEB: &str = "{podSelector: {matchLabels: {app: web}}}";
const SHELL: &str = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: stranger}}}";

fn podpath(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podpath"));
    command.args(arguments).stdin(Stdio::null()).output().expect("it was built")
}

/// What diff says of two texts.
fn diff(old: &str, new: &str, arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("there is room");
    let [old, new] = [("old.yaml", old), ("new.yaml", new)].map(|(name, text)| {
        let file = directory.path().join(name);
        std::fs::write(&file, text).expect("there is room");
        file.display().to_string()
    });
    podpath(&[&["diff", "-f", &old, "-f", &new], arguments].concat())
}

#[track_caller]
fn document(old: &str, new: &str) -> Value {
    let output = diff(old, new, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn names(sides: &Value) -> Vec<&str> {
    sides.as_array().expect("a list").iter().map(|side| side["name"].as_str().expect("text")).collect()
}

#[test]
fn what_stays_as_it_is_is_no_difference() {
    let same = CLUSTER.to_owned() + &policy("a", WEB, "{port: http}");
    let said = document(&same, &same);
    assert_eq!((&said["opened"], &said["closed"]), (&json!([]), &json!([])));
    // Said in other words.
    let other = CLUSTER.to_owned() + &policy("a", WEB, "{port: 9000}");
    let said = document(&same, &other);
    assert_eq!((&said["opened"], &said["closed"]), (&json!([]), &json!([])));
}

#[test]
fn a_peer_more_opens_flows_to_each_replica_and_both_deciders_are_named() {
    let old = CLUSTER.to_owned() + &policy("a", WEB, "{port: http}");
    let new = CLUSTER.to_owned() + &policy("a", &format!("{WEB}, {SHELL}"), "{port: http}");
    let said = document(&old, &new);
    let [change] = said["opened"].as_array().expect("a list").as_slice() else { panic!("{said}") };
    assert_eq!((names(&change["from"]), names(&change["to"])), (vec!["stranger/shell"], vec!["shop/api"]));
    assert_eq!(change["to"][0]["members"].as_array().map(Vec::len), Some(2), "{said}");
    assert_eq!((&change["ports"], &change["pairs"]), (&json!(["9000/tcp"]), &json!(2)));
    assert_eq!(change["before"], "denied: ingress isolated by shop/a");
    assert_eq!(change["after"], "allowed by shop/a ingress[0]");
    assert_eq!(change["after_policies"], json!(["shop/a"]));
    assert_eq!(said["closed"], json!([]));
}

#[test]
fn a_first_policy_closes_what_nobody_had_a_say_about() {
    let said = document(CLUSTER, &(CLUSTER.to_owned() + &policy("a", WEB, "{port: http}")));
    assert_eq!(said["opened"], json!([]));
    let closed = said["closed"].as_array().expect("a list");
    let from_web = closed.iter().find(|change| names(&change["from"]) == ["shop/web"]).expect("it closes");
    assert_eq!(from_web["ports"], json!(["other ports/tcp", "other ports/udp"]));
    assert_eq!(from_web["before"], "no policy has a say");
    let others =
        closed.iter().find(|change| names(&change["from"]).contains(&"ext:world")).expect("it closes");
    assert_eq!(others["ports"], json!(["every port"]));
    // Replicas among themselves, the stranger, the world, and the nodes that are not a replica's own.
    assert_eq!(names(&others["from"]), ["shop/api", "stranger/shell", "nodes", "ext:world"], "{said}");
}

#[test]
fn a_range_that_shrinks_in_the_middle_is_seen() {
    let old = CLUSTER.to_owned() + &policy("a", WEB, "{port: 8000, endPort: 9000}");
    let new =
        CLUSTER.to_owned() + &policy("a", WEB, "{port: 8000, endPort: 8100}, {port: 8900, endPort: 9000}");
    let said = document(&old, &new);
    assert_eq!(said["closed"][0]["ports"], json!(["8101-8899/tcp"]), "{said}");
}

#[test]
fn pods_that_come_and_go_are_named_and_replicas_stand_for_replicas() {
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: cache, namespace: shop}\nspec: {containers: [{name: c, image: x}]}\n";
    let old = CLUSTER.to_owned() + &policy("a", WEB, "{port: http}");
    let new = old.replace("replicas: 2", "replicas: 3").replace("name: web,", "name: front,") + pod;
    let said = document(&old, &new);
    assert_eq!(said["added"], json!(["shop/front", "shop/cache"]));
    assert_eq!(said["removed"], json!(["shop/web"]));
    assert_eq!(said["renamed"], 1, "{said}");
    assert_eq!((&said["opened"], &said["closed"]), (&json!([]), &json!([])));
    // Another template: every replica has another name.
    let labelled =
        old.replace("metadata: {labels: {app: api}}", "metadata: {labels: {app: api, version: b}}");
    let said = document(&old, &labelled);
    assert_eq!((&said["added"], &said["renamed"]), (&json!([]), &json!(2)), "{said}");
}

#[test]
fn scripts_are_told_by_the_exit_code() {
    let old = CLUSTER.to_owned() + &policy("a", WEB, "{port: http}");
    let new = CLUSTER.to_owned() + &policy("a", &format!("{WEB}, {SHELL}"), "{port: http}");
    for (from, to, arguments, code) in [
        (&old, &new, &[] as &[&str], 0),
        (&old, &new, &["--fail-on-open"], 1),
        (&old, &new, &["--fail-on-close"], 0),
        (&new, &old, &["--fail-on-open"], 0),
        (&new, &old, &["--fail-on-close"], 1),
    ] {
        let output = diff(from, to, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    }
}

#[test]
fn a_rule_of_the_whole_cluster_that_denies_is_named() {
    let deny = "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: lock}\nspec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: stranger}}}]}]}\n";
    let said = document(CLUSTER, &(CLUSTER.to_owned() + deny));
    let [change] = said["closed"].as_array().expect("a list").as_slice() else { panic!("{said}") };
    assert_eq!(
        (names(&change["from"]), names(&change["to"])),
        (vec!["stranger/shell"], vec!["shop/api", "shop/web"])
    );
    assert_eq!(change["after"], "denied by ClusterNetworkPolicy lock ingress[0]");
    assert_eq!(
        (&change["after_policies"], &said["opened"]),
        (&json!(["ClusterNetworkPolicy lock"]), &json!([]))
    );
}

#[test]
fn people_read_who_opens_what_and_who_decides() {
    let old = CLUSTER.to_owned() + &policy("a", WEB, "{port: http}");
    let new = CLUSTER.to_owned() + &policy("a", &format!("{WEB}, {SHELL}"), "{port: http}");
    let output = diff(&old, &new, &[]);
    let expected = "opens: stranger/shell -> shop/api (2) at 9000/tcp
  before: denied: ingress isolated by shop/a
  after:  allowed by shop/a ingress[0]

2 pairs open, 0 pairs close
";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

#[test]
fn two_sets_are_asked_for() {
    for (arguments, why) in [
        (&["diff"] as &[&str], "--filename"),
        (&["diff", "-f", "/nowhere.yaml"], "give -f twice"),
        (&["diff", "-f", "/a", "-f", "/b", "-f", "/c"], "give -f twice"),
        (&["diff", "-f", "/nowhere.yaml", "-f", "/b"], "cannot read /nowhere.yaml"),
    ] {
        let output = podpath(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(why), "{arguments:?}: {said}");
    }
}
