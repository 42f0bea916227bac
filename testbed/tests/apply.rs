//! Services of a cluster that is up, while `podpath apply` changes them: real sockets in its namespaces.

#[expect(dead_code, reason = "the tests of the command line use the rest")]
mod command;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use command::{Stage, exits, podpath};
use testbed::netns::Netns;
use testbed::topology::pod_netns;
use userspace::model::Cluster;

/// Longer than any answer takes here.
const PATIENCE: Duration = Duration::from_secs(5);
/// The Service.
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);
/// `web` and `near` on the first node, `far` on the second; the last two answer the Service.
const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: NAME}
spec: {nodes: 2}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {nodeName: n1, containers: [{name: c, image: x}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: api}}
spec: {nodeName: n1, containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: api}}
spec: {nodeName: n2, containers: [{name: c, image: x, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  clusterIP: 10.96.0.10
  selector: {app: api}
  ports: [{port: 80, targetPort: 8080}]
"#;

/// A cluster that is up.
struct Lab {
    stage: Stage,
    cluster: Cluster,
}

impl Lab {
    fn up(test: &str) -> Self {
        let stage = Stage::new(test);
        let file = stage.file("cluster.yaml", CLUSTER);
        exits(&podpath(&["up", "-f", file.to_str().expect("UTF-8"), "--dataplane", "ebpf"]), 0);
        let state = testbed::state::load(&stage.name).expect("a state").expect("it is up");
        Self { stage, cluster: state.cluster }
    }

    /// `podpath apply`, or another word.
    fn tell(&self, word: &str, objects: &str) {
        let file = self.stage.file("more.yaml", objects);
        exits(&podpath(&[word, "--cluster", &self.stage.name, "-f", file.to_str().expect("UTF-8")]), 0);
    }

    /// The objects of the cluster whose text holds this, as they were given.
    fn object(&self, holding: &str) -> &'static str {
        CLUSTER.split("---\n").find(|text| text.contains(holding)).expect("it is one of them")
    }

    /// The namespace of a pod.
    fn place(&self, name: &str) -> Netns {
        let pod = self.cluster.pod(&format!("default/{name}")).expect("the cluster has it");
        pod_netns(&self.stage.name, pod)
    }

    /// A new connection that is answered.
    fn talk(&self, from: &str, to: SocketAddr) -> TcpStream {
        let mut stream = inside(&self.place(from), || TcpStream::connect_timeout(&to, PATIENCE))
            .unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        say(&mut stream).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        stream
    }

    fn down(self) {
        exits(&podpath(&["down", &self.stage.name]), 0);
        assert_eq!(self.stage.namespaces(), Vec::<String>::new());
    }
}

fn inside<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> T {
    netns.run(work).unwrap_or_else(|error| panic!("{error}"))
}

/// Says a word, and hears it again.
fn say(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"word")?;
    let mut heard = [0; 4];
    stream.read_exact(&mut heard)?;
    assert_eq!(&heard, b"word");
    Ok(())
}

#[test]
#[ignore = "needs root: make test"]
fn a_pod_that_terminates_keeps_its_connections_and_no_request_is_lost() {
    let lab = Lab::up("drain");
    let mut all: Vec<_> = (0..32).map(|_| lab.talk("web", SERVICE)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                drop(lab.talk("web", SERVICE));
                answered += 1;
            }
            answered
        });
        let near = lab.object("metadata: {name: near");
        let leaving =
            near.replace("{name: near,", "{name: near, deletionTimestamp: \"2026-01-01T00:00:00Z\",");
        lab.tell("apply", &leaving);
        all.iter_mut().try_for_each(say).expect("a connection goes on while its pod terminates");
        all.clear();
        lab.tell("delete", near);
        (0..32).for_each(|_| drop(lab.talk("web", SERVICE)));
        over.store(true, Ordering::Relaxed);
        let answered = requests.join().expect("every request is answered");
        assert!(answered > 0, "somebody asked all the while");
    });
    lab.down();
}
