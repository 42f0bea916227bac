//! What can change while a cluster is up, on the command line: nodes, hosts outside, pods, settings; and what
//! cannot.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use serde_json::Value;
use testbed::netns::{Netns, Part};
use testbed::state;
use testbed::topology::pod_netns;

/// Longer than any answer takes here.
const PATIENCE: Duration = Duration::from_secs(5);

/// A cluster name and a folder of this test alone; whatever is left goes with it.
struct Stage {
    directory: tempfile::TempDir,
    name: String,
}

impl Stage {
    fn new(test: &str) -> Self {
        let directory = tempfile::tempdir().expect("there is room");
        Self { directory, name: format!("test-{}-{test}", std::process::id()) }
    }

    /// Writes a file; `NAME` in it becomes the cluster's name.
    fn file(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.directory.path().join(name);
        std::fs::write(&path, text.replace("NAME", &self.name)).expect("there is room");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Runs a command on the cluster, with a file.
    fn on(&self, verb: &str, file: &str) -> Output {
        podpath(&[verb, "--cluster", &self.name, "-f", file])
    }

    /// Namespaces of the cluster.
    fn namespaces(&self) -> Vec<String> {
        let all = Netns::list("podpath-").expect("they can be listed");
        let ours = all.iter().filter(|netns| netns.cluster() == Some(&self.name));
        ours.map(|netns| netns.name().to_owned()).collect()
    }

    /// What `get` shows, as JSON.
    fn shown(&self, kind: &str) -> Vec<Value> {
        let output = podpath(&["get", kind, "--cluster", &self.name, "-o", "json"]);
        exits(&output, 0);
        serde_json::from_slice(&output.stdout).expect("an array")
    }

    /// The names of what `get` shows.
    fn names(&self, kind: &str) -> Vec<String> {
        let name = |one: &Value| one["name"].as_str().expect("it has a name").to_owned();
        self.shown(kind).iter().map(name).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = podpath(&["down", &self.name]);
    }
}

fn podpath(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podpath"));
    command.args(arguments).stdin(Stdio::null()).output().expect("it was built")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("it writes UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("it writes UTF-8")
}

#[track_caller]
fn exits(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
}

/// Two assumed nodes, a pod that nobody makes anew on each, and a Deployment of two.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec: {nodes: 2}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: 203.0.113.7, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db}
spec: {nodeName: n2, containers: [{name: c, image: x, ports: [{containerPort: 5432}]}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  replicas: 2
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec: {containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec: {selector: {app: api}, ports: [{port: 80, targetPort: 8080}]}
"#;

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n3}\n";
const OTHER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: other}
spec: {address: 198.51.100.9, ports: [{port: 443}]}
"#;

#[test]
#[ignore = "needs root: make test"]
fn nodes_and_hosts_outside_come_and_go_and_pods_with_them() {
    let stage = Stage::new("nodes");
    let (file, node) = (stage.file("cluster.yaml", CLUSTER), stage.file("node.yaml", NODE));
    let other = stage.file("other.yaml", OTHER);
    exits(&podpath(&["up", "-f", &file, "--dataplane", "ebpf"]), 0);

    exits(&stage.on("apply", &node), 0);
    exits(&stage.on("apply", &other), 0);
    assert_eq!(stage.names("nodes"), ["n1", "n2", "n3"]);
    let late = stage.file(
        "late.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: late}\nspec: {nodeName: n3, containers: [{name: c, image: x, ports: [{containerPort: 81}]}]}\n",
    );
    exits(&stage.on("apply", &late), 0);
    // Old and new ones reach one another, and the new host outside.
    exits(&podpath(&["check", "--cluster", &stage.name]), 0);

    let first = stage.file("first.yaml", &NODE.replace("n3", "n1"));
    let deleted = stage.on("delete", &first);
    exits(&deleted, 0);
    assert!(stdout(&deleted).contains("pod/web deleted with its node"), "{deleted:?}");
    assert_eq!(stage.names("nodes"), ["n2", "n3"]);
    let pods = stage.names("pods");
    assert!(!pods.contains(&"web".to_owned()) && pods.len() == 4, "{pods:?}");
    assert!(!Netns::of(&stage.name, Part::Node("n1")).exists());
    exits(&stage.on("delete", &other), 0);
    exits(&podpath(&["check", "--cluster", &stage.name]), 0);
    exits(&podpath(&["down", &stage.name]), 0);
    assert_eq!(stage.namespaces(), [""; 0]);
}

#[test]
#[ignore = "needs root: make test"]
fn an_upgrade_replaces_every_node_and_moves_what_workloads_make_anew() {
    let stage = Stage::new("upgrade");
    let file = stage.file("cluster.yaml", CLUSTER);
    exits(&podpath(&["up", "-f", &file, "--dataplane", "ebpf"]), 0);
    let upgraded = podpath(&["upgrade", &stage.name, "--max-surge", "50%"]);
    exits(&upgraded, 0);
    let steps: Vec<&str> = stdout(&upgraded).lines().collect();
    for step in ["node n3 joined: 10.240.0.6", "pod default/web went with n1", "node n1 left", "node n2 left"]
    {
        assert!(steps.contains(&step), "{step}: {steps:?}");
    }
    assert!(steps.iter().any(|step| step.starts_with("pod default/api-") && step.contains(" moved from ")));
    assert_eq!(stage.names("nodes"), ["n3", "n4"]);
    exits(&podpath(&["check", "--cluster", &stage.name]), 0);
    exits(&podpath(&["down", &stage.name]), 0);
    assert_eq!(stage.namespaces(), [""; 0]);
}

/// A subnet of 251 addresses, of which each node reserves 31.
const FLAT: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec: {model: flat, nodeSubnet: 10.240.0.0/24, nodes: 8}
"#;

#[test]
#[ignore = "needs root: make test"]
fn the_ninth_flat_node_of_a_slash_24_does_not_join_and_leaves_nothing() {
    let stage = Stage::new("ninth");
    let (file, node) = (stage.file("flat.yaml", FLAT), stage.file("node.yaml", &NODE.replace("n3", "n9")));
    exits(&podpath(&["up", "-f", &file, "--dataplane", "routed"]), 0);
    let before = (stage.namespaces(), stage.names("nodes"));
    assert_eq!(before.1.len(), 8);
    for refused in [stage.on("apply", &node), podpath(&["upgrade", &stage.name])] {
        exits(&refused, 2);
        assert!(stderr(&refused).contains("251 usable, 248 reserved"), "{refused:?}");
        assert_eq!(stdout(&refused), "");
    }
    assert_eq!((stage.namespaces(), stage.names("nodes")), before);
    exits(&podpath(&["down", &stage.name]), 0);
}

#[test]
#[ignore = "needs root: make test"]
fn timeouts_change_under_a_connection_that_goes_on_and_the_model_does_not() {
    let stage = Stage::new("settings");
    let file = stage.file("cluster.yaml", CLUSTER);
    exits(&podpath(&["up", "-f", &file, "--dataplane", "ebpf"]), 0);
    let cluster = state::load(&stage.name).expect("it can be read").expect("it is up").cluster;
    let (web, db) = (&cluster.pods[0], &cluster.pods[1]);
    let target = SocketAddr::new(db.address(), 7777);
    let server = pod_netns(&stage.name, db).run(|| TcpListener::bind(target)).expect("it is there");
    let server = server.expect("the port is free");
    // It holds for accept(2) as well (socket(7)).
    setsockopt(&server, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE.as_secs() as i64, 0))
        .expect("it can");
    let client = pod_netns(&stage.name, web).run(|| TcpStream::connect_timeout(&target, PATIENCE));
    let mut client = client.expect("it is there").expect("it is reached");
    let (mut served, _) = server.accept().expect("it came");
    served.set_read_timeout(Some(PATIENCE)).expect("it is not zero");

    let spec = |spec: &str| CLUSTER.split("---").next().expect("a Testbed").replace("{nodes: 2}", spec);
    let changed = "{nodes: 2, timeouts: {tcpEstablished: 1h}, nonMasqueradeCIDRs: [198.51.100.0/24]}";
    exits(&stage.on("apply", &stage.file("changed.yaml", &spec(changed))), 0);
    client.write_all(b"still").expect("it goes on");
    let mut word = [0; 5];
    served.read_exact(&mut word).expect("it goes on");
    assert_eq!(&word, b"still");

    let refused = stage.on("apply", &stage.file("model.yaml", &spec("{nodes: 2, model: kubenet}")));
    exits(&refused, 2);
    assert!(stderr(&refused).contains("cannot change spec.model of its Testbed"), "{refused:?}");
    exits(&podpath(&["check", "--cluster", &stage.name]), 0);
    exits(&podpath(&["down", &stage.name]), 0);
    assert_eq!(stage.namespaces(), [""; 0]);
}
