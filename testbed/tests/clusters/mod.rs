//! The clusters of the tests, and how they come up and go.

pub(crate) mod capture;
pub(crate) mod sockets;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use testbed::dataplane::{Name, Up};
use testbed::link::Links;
use testbed::netns::Netns;
use testbed::topology::{HOST, HOST_PEER, UPLINK, host_side};
use testbed::witness::{Seen, Watch, Witness};
use userspace::model::{
    Backend, Cluster, Encapsulation, External, Model, Node, Pod, Protocol, Service, ServicePort, Settings,
};

/// A host outside of everything.
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// The same in IPv6.
pub(crate) const WORLD_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
/// A host of the virtual network, but not of the cluster.
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 242, 0, 9);

/// The families of addresses that a cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    /// IPv4 alone.
    V4,
    /// Both, IPv4 first: it is the underlay's.
    Both,
    /// Both, IPv6 first.
    V6First,
}

impl Families {
    /// One of each that there are, in order.
    fn pick<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            Self::V4 => vec![v4],
            Self::Both => vec![v4, v6],
            Self::V6First => vec![v6, v4],
        }
    }
}

fn range(text: &str) -> IpNet {
    text.parse().expect("it is a range")
}

fn address(text: String) -> IpAddr {
    text.parse().expect("it is an address")
}

/// Two nodes: `web` and `near` on the first, `api` on the second; the Service `api`; and two hosts outside.
pub(crate) fn cluster(name: &str, model: Model, encapsulation: Encapsulation, families: Families) -> Cluster {
    let own_ranges = matches!(model, Model::Overlay | Model::Kubenet);
    let node = |number: u8| {
        let v4 = address(format!("10.240.0.{}", 3 + number));
        let v6 = address(format!("fd00:240::{}", 3 + number));
        let ranges =
            [format!("10.244.{number}.0/24"), format!("fd00:244:0:{number}::/64")].map(|it| range(&it));
        let pod_cidrs = if own_ranges { families.pick(ranges[0], ranges[1]) } else { Vec::new() };
        Node {
            name: format!("n{number}"),
            labels: BTreeMap::new(),
            addresses: families.pick(v4, v6),
            pod_cidrs,
        }
    };
    let pod = |name: &str, node: u8, last: u8| {
        let v4 = match model {
            Model::Overlay | Model::Kubenet => address(format!("10.244.{node}.{last}")),
            Model::Flat => address(format!("10.240.0.{}", node * 32 + last)),
            Model::FlatDynamic => address(format!("10.241.0.{}", node * 16 + last)),
        };
        let v6 = address(format!("fd00:244:0:{node}::{last}"));
        Pod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            node: format!("n{node}"),
            addresses: families.pick(v4, v6),
            host_network: false,
            ports: Vec::new(),
            ready: true,
            ..Pod::default()
        }
    };
    let pods = vec![pod("web", 1, 5), pod("near", 1, 6), pod("api", 2, 7)];
    let backends = pods[2].addresses.iter().map(|address| Backend::new(*address, 8080));
    let port = |protocol| ServicePort {
        port: 80,
        protocol,
        backends: backends.clone().collect(),
        ..ServicePort::default()
    };
    let service = Service {
        namespace: "default".to_owned(),
        name: "api".to_owned(),
        addresses: families.pick(address("10.96.0.10".to_owned()), address("fd00:96::10".to_owned())),
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        ..Service::default()
    };
    let external =
        |name: &str, address: IpAddr| External { name: name.to_owned(), address, ports: Vec::new() };
    let mut externals = vec![external("world", WORLD.into()), external("peer", PEER.into())];
    if families != Families::V4 {
        externals.push(external("world6", WORLD_V6.into()));
    }
    Cluster {
        name: format!("test-{}-{name}", std::process::id()),
        settings: settings(model, encapsulation, families),
        nodes: vec![node(1), node(2)],
        pods,
        services: vec![service],
        externals,
        ..Cluster::default()
    }
}

fn settings(model: Model, encapsulation: Encapsulation, families: Families) -> Settings {
    let pick = |v4: &str, v6: &str| families.pick(range(v4), range(v6));
    Settings {
        model,
        encapsulation,
        node_subnets: pick("10.240.0.0/16", "fd00:240::/64"),
        pod_cidrs: match model {
            Model::Overlay | Model::Kubenet => pick("10.244.0.0/16", "fd00:244::/56"),
            Model::FlatDynamic => vec![range("10.241.0.0/16")],
            Model::Flat => Vec::new(),
        },
        service_cidrs: pick("10.96.0.0/16", "fd00:96::/108"),
        vnet_cidrs: vec![range("10.240.0.0/15"), range("10.242.0.0/16")],
        ..Settings::default()
    }
}

/// A cluster that is up, watched from the world, and gone when this is.
pub(crate) struct Site {
    up: Up,
    /// Where nobody translates addresses, everybody shows his own.
    witness: Option<Witness>,
}

impl Site {
    /// Brings it up.
    pub(crate) fn up(cluster: Cluster, dataplane: Name) -> Self {
        let up = Up::new(&cluster, dataplane).unwrap_or_else(|error| panic!("{dataplane}: {error}"));
        let translates = !matches!(dataplane, Name::Routed | Name::Wire);
        let witness = translates.then(|| Witness::open(Watch::over(&cluster)));
        let witness = witness.transpose().unwrap_or_else(|error| panic!("{error}"));
        Self { up, witness }
    }

    fn cluster(&self) -> &Cluster {
        self.up.topology().cluster()
    }

    /// Whether each family that it has is IPv6.
    pub(crate) fn families(&self) -> Vec<bool> {
        self.cluster().nodes[0].addresses.iter().map(IpAddr::is_ipv6).collect()
    }

    pub(crate) fn is_flat(&self) -> bool {
        matches!(self.cluster().settings.model, Model::Flat | Model::FlatDynamic)
    }

    /// A pod's namespace, and its address of a family.
    pub(crate) fn pod(&self, name: &str, v6: bool) -> (Netns, IpAddr) {
        let pod = self.cluster().pods.iter().find(|pod| pod.name == name).expect("the cluster has it");
        (self.up.topology().pod(pod), one_of(&pod.addresses, v6))
    }

    /// A node's namespace, and its address of a family.
    pub(crate) fn node(&self, name: &str, v6: bool) -> (Netns, IpAddr) {
        let node = self.cluster().node(name).expect("the cluster has it");
        (self.up.topology().node(name), one_of(&node.addresses, v6))
    }

    /// The Service's address of a family.
    pub(crate) fn service(&self, v6: bool) -> IpAddr {
        one_of(&self.cluster().services[0].addresses, v6)
    }

    /// The world's namespace.
    pub(crate) fn world(&self) -> Netns {
        self.up.topology().world()
    }

    /// Every frame is what would stand on a real wire, from here on.
    pub(crate) fn turn_offload_off(&self) {
        let off = |netns: &Netns, link: &str| {
            let turned = Links::open(netns).and_then(|mut links| links.offload(link, false));
            turned.unwrap_or_else(|error| panic!("{error}"));
        };
        let topology = self.up.topology();
        off(&topology.world(), UPLINK);
        for node in &self.cluster().nodes {
            for link in [UPLINK, HOST, HOST_PEER] {
                off(&topology.node(&node.name), link);
            }
        }
        for pod in &self.cluster().pods {
            off(&topology.pod(pod), UPLINK);
            off(&topology.node(&pod.node), &host_side(pod));
        }
    }
}

fn one_of(addresses: &[IpAddr], v6: bool) -> IpAddr {
    *addresses.iter().find(|address| address.is_ipv6() == v6).expect("the cluster has the family")
}

impl Drop for Site {
    fn drop(&mut self) {
        // What fails already need not fail twice.
        if let (Some(witness), false) = (&mut self.witness, std::thread::panicking()) {
            let seen = witness.look().expect("it hears");
            assert_eq!(*seen, Seen::default(), "nothing leaves with a pod's address");
        }
    }
}
