//! Namespaces and links as they really come out, and whether they really go away.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use testbed::link::Links;
use testbed::netns::Netns;
use testbed::topology::{HOST, HOST_PEER, Layout, Topology, delete_namespaces, host_side};
use userspace::model::{Cluster, External, Model, Node, Pod, Settings};

/// Longer than any answer on this machine takes, a lost first packet included.
const PATIENCE: Duration = Duration::from_secs(5);

/// A cluster of this test process, removed when it goes out of scope.
struct Lab(Cluster);

impl Drop for Lab {
    fn drop(&mut self) {
        delete_namespaces(&self.0.name).expect("the test's namespaces can be deleted");
    }
}

/// Two nodes with a pod each, a pod out of the range, a host-network pod, and one host outside.
fn two_nodes(name: &str) -> Lab {
    let node = |name: &str, last: u8| Node {
        name: name.to_owned(),
        labels: BTreeMap::new(),
        address: IpAddr::from([10, 240, 0, last]),
        pod_cidr: Some(
            format!("10.244.{}.0/24", last - 3)
                .parse()
                .expect("it is a range"),
        ),
    };
    let web = Pod {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        labels: BTreeMap::new(),
        node: "n1".to_owned(),
        address: IpAddr::from([10, 244, 1, 5]),
        host_network: false,
        ports: Vec::new(),
        ready: true,
    };
    let pod = |name: &str, node: &str, address: [u8; 4]| Pod {
        name: name.to_owned(),
        node: node.to_owned(),
        address: address.into(),
        ..web.clone()
    };
    let agent = Pod {
        host_network: true,
        ..pod("agent", "n1", [10, 240, 0, 4])
    };
    let pods = vec![
        web.clone(),
        pod("api", "n2", [10, 244, 2, 7]),
        pod("stray", "n2", [172, 16, 9, 9]),
        agent,
    ];
    let range = |text: &str| text.parse().expect("it is a range");
    Lab(Cluster {
        name: format!("test-{}-{name}", std::process::id()),
        settings: Settings {
            model: Model::Overlay,
            node_subnet: range("10.240.0.0/16"),
            pod_cidr: range("10.244.0.0/16"),
            service_cidr: range("10.96.0.0/16"),
            max_pods: 250,
            mtu: 1500,
            non_masquerade_cidrs: Vec::new(),
        },
        namespaces: BTreeMap::new(),
        nodes: vec![node("n1", 4), node("n2", 5)],
        pods,
        services: Vec::new(),
        policies: Vec::new(),
        externals: vec![External {
            name: "world".to_owned(),
            address: IpAddr::from([203, 0, 113, 7]),
            ports: Vec::new(),
        }],
        notes: Vec::new(),
    })
}

/// Sends a word over a connection from one namespace to an address in another, and gives the address
/// that the server saw.
fn reaches(from: &Netns, to: &Netns, address: IpAddr) -> IpAddr {
    let listener = to
        .run(|| TcpListener::bind((address, 0)))
        .expect("it is there")
        .expect("it has the address");
    let port = listener.local_addr().expect("it is bound").port();
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().expect("somebody comes");
        let mut word = [0; 4];
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("it is not zero");
        stream.read_exact(&mut word).expect("a word comes");
        stream.write_all(&word).expect("it is still there");
        peer.ip()
    });
    let target = SocketAddr::from((address, port));
    let answer = from
        .run(|| -> std::io::Result<[u8; 4]> {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"ping")?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer)?;
            Ok(answer)
        })
        .expect("it is there");
    match answer {
        Ok(answer) => assert_eq!(&answer, b"ping"),
        Err(error) => panic!("{} to {target} in {}: {error}", from.name(), to.name()),
    }
    server.join().expect("the server is through")
}

#[test]
#[ignore = "needs root: make test"]
fn with_kernel_routes_everybody_reaches_everybody_with_their_own_address() {
    let lab = two_nodes("routed");
    let topology = Topology::build(&lab.0, Layout::ROUTED).expect("the cluster is built");
    let [web, api, stray, agent] = &lab.0.pods[..] else {
        unreachable!("there are four")
    };
    let external = lab.0.externals[0].address;
    let places = [
        (topology.pod(web), web.address),
        (topology.pod(api), api.address),
        (topology.pod(stray), stray.address),
        (topology.pod(agent), agent.address),
        (topology.node("n2"), lab.0.nodes[1].address),
        (topology.world(), external),
    ];
    for (from, source) in &places {
        for (to, address) in &places {
            if from != to {
                assert_eq!(
                    reaches(from, to, *address),
                    *source,
                    "{} to {}",
                    from.name(),
                    to.name()
                );
            }
        }
    }
}
