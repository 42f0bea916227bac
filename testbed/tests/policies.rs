//! Policies of a cluster that is up, while `podpath apply` changes them, labels and pods: real sockets in its
//! namespaces.

#[expect(dead_code, reason = "the tests of the command line use the rest")]
mod command;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use command::{Stage, exits, podpath};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use testbed::netns::Netns;
use testbed::topology::pod_netns;
use userspace::model::Cluster;

/// Longer than it takes to say again what got lost for a while.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any answer takes that comes.
const SILENCE: Duration = Duration::from_millis(700);
const PORT: u16 = 7777;

/// `near` and `db` on the first node, `far` on the second.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec: {nodes: 2}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{containerPort: 5432}]}]}
"#;

/// Nobody may reach `db`.
const DENY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}}
"#;

/// Friends may reach `db`, by their own label or their namespace's.
const FRIENDS: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: friends, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from:
        - podSelector: {matchLabels: {role: friend}}
        - namespaceSelector: {matchLabels: {team: friends}}
"#;

/// A cluster that is up.
struct Lab {
    stage: Stage,
}

impl Lab {
    fn up(test: &str) -> Self {
        let stage = Stage::new(test);
        let file = stage.file("cluster.yaml", CLUSTER);
        exits(&podpath(&["up", "-f", file.to_str().expect("UTF-8"), "--dataplane", "ebpf"]), 0);
        Self { stage }
    }

    /// `podpath apply`, or another word.
    fn tell(&self, word: &str, objects: &str) {
        let file = self.stage.file("more.yaml", objects);
        exits(&podpath(&[word, "--cluster", &self.stage.name, "-f", file.to_str().expect("UTF-8")]), 0);
    }

    fn cluster(&self) -> Cluster {
        testbed::state::load(&self.stage.name).expect("a state").expect("it is up").cluster
    }

    /// The namespace and the address of a pod of `shop`.
    fn pod(&self, name: &str) -> (Netns, SocketAddr) {
        let cluster = self.cluster();
        let pod = cluster.pod(&format!("shop/{name}")).expect("the cluster has it");
        (pod_netns(&self.stage.name, pod), SocketAddr::new(pod.address(), PORT))
    }

    /// Who listens at a pod, and gives up in time.
    fn listener(&self, name: &str) -> TcpListener {
        let (netns, address) = self.pod(name);
        let listener = inside(&netns, || TcpListener::bind(address)).expect("the port is free");
        // It holds for accept(2) as well (socket(7)).
        let patience = TimeVal::new(PATIENCE.as_secs() as i64, 0);
        setsockopt(&listener, sockopt::ReceiveTimeout, &patience).expect("any socket can wait");
        listener
    }

    /// A new connection, if it is made in time.
    fn dial(&self, from: &str, to: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
        inside(&self.pod(from).0, || TcpStream::connect_timeout(&to, patience))
    }

    #[track_caller]
    fn reaches(&self, from: &str, to: SocketAddr, may: bool) {
        match self.dial(from, to, if may { PATIENCE } else { SILENCE }) {
            Ok(_) => assert!(may, "{from}: it is let in"),
            Err(error) => assert!(!may && error.kind() == ErrorKind::TimedOut, "{from}: {error}"),
        }
    }

    fn check(&self) {
        exits(&podpath(&["check", "--cluster", &self.stage.name]), 0);
    }

    fn down(self) {
        exits(&podpath(&["down", &self.stage.name]), 0);
        assert_eq!(self.stage.namespaces(), Vec::<String>::new());
    }
}

fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> T {
    netns.run(work).unwrap_or_else(|error| panic!("{error}"))
}

/// Both ends of a connection.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn of(lab: &Lab, from: &str, listener: &TcpListener) -> Self {
        let to = listener.local_addr().expect("it is bound");
        let client = lab.dial(from, to, PATIENCE).unwrap_or_else(|error| panic!("{from}: {error}"));
        let (server, _) = listener.accept().expect("it came");
        Self { client, server }
    }

    /// What one end says, the other hears: or neither hears anything.
    #[track_caller]
    fn talks(&self, may: bool) {
        for (mut one, mut other) in [(&self.client, &self.server), (&self.server, &self.client)] {
            one.write_all(b"word").expect("its own end takes it");
            other.set_read_timeout(Some(if may { PATIENCE } else { SILENCE })).expect("it is not zero");
            let heard = other.read_exact(&mut [0; 4]);
            match may {
                true => heard.expect("it is heard"),
                false => assert_eq!(heard.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock)),
            }
        }
    }

    /// What was said and not heard is said again until it is.
    #[track_caller]
    fn goes_on(&self) {
        for mut end in [&self.client, &self.server] {
            end.set_read_timeout(Some(PATIENCE)).expect("it is not zero");
            end.read_exact(&mut [0; 4]).expect("it is heard in the end");
        }
        self.talks(true);
    }
}

#[test]
#[ignore = "needs root: make test"]
fn a_revoked_connection_goes_on_where_flows_are_kept_and_stops_both_ways_where_they_are_cut() {
    let lab = Lab::up("revoked");
    let listener = lab.listener("db");
    let db = listener.local_addr().expect("it is bound");
    let open = ["near", "far"].map(|from| Connection::of(&lab, from, &listener));
    lab.tell("apply", DENY);
    for from in ["near", "far"] {
        lab.reaches(from, db, false);
    }
    open.iter().for_each(|connection| connection.talks(true));

    let testbed = CLUSTER.split("---\n").next().expect("a Testbed");
    lab.tell("apply", &testbed.replace("{nodes: 2}", "{nodes: 2, policies: {established: cut}}"));
    open.iter().for_each(|connection| connection.talks(false));
    lab.tell("delete", DENY);
    open.iter().for_each(Connection::goes_on);
    // No setting has to change for the next revocation.
    lab.tell("apply", DENY);
    open.iter().for_each(|connection| connection.talks(false));
    lab.down();
}

#[test]
#[ignore = "needs root: make test"]
fn labels_of_pods_and_of_namespaces_open_and_close_on_both_nodes() {
    let lab = Lab::up("labels");
    let listener = lab.listener("db");
    let db = listener.local_addr().expect("it is bound");
    lab.tell("apply", FRIENDS);
    let far = CLUSTER.split("---\n").find(|text| text.contains("{name: far")).expect("it is one of them");
    let shop = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    let friend = far.replace("{app: web}", "{app: web, role: friend}");
    let friends = shop.replace("{name: shop}", "{name: shop, labels: {team: friends}}");
    for (objects, near, far) in [
        (shop, false, false),
        (friend.as_str(), false, true),
        (far, false, false),
        (friends.as_str(), true, true),
        (friend.as_str(), true, true),
        (shop, false, true),
        (far, false, false),
    ] {
        lab.tell("apply", objects);
        lab.reaches("near", db, near);
        lab.reaches("far", db, far);
    }
    lab.tell("apply", &friend);
    lab.check();
    lab.down();
}

#[test]
#[ignore = "needs root: make test"]
fn a_pod_that_gets_the_address_of_one_that_is_gone_is_judged_as_itself() {
    let lab = Lab::up("again");
    let listener = lab.listener("db");
    let db = listener.local_addr().expect("it is bound");
    lab.tell("apply", FRIENDS);
    let pod = |name: &str, node: &str, labels: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {labels}}}\n\
             spec: {{nodeName: {node}, containers: [{{name: c, image: x}}]}}\n\
             status: {{phase: Running, podIP: 10.244.0.77, conditions: [{{type: Ready, status: \"True\"}}]}}\n"
        )
    };
    let lives = [
        ("one", "n1", true),
        ("two", "n1", false),
        ("three", "n2", true),
        ("four", "n2", false),
        ("five", "n1", true),
    ];
    for (name, node, friend) in lives {
        let pod = pod(name, node, if friend { "{role: friend}" } else { "{role: stranger}" });
        lab.tell("apply", &pod);
        assert_eq!(lab.pod(name).1.ip().to_string(), "10.244.0.77");
        lab.reaches(name, db, friend);
        lab.tell("delete", &pod);
    }
    lab.check();
    lab.down();
}
