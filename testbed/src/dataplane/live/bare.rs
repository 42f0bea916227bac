//! A loop that only moves frames: what input and output cost before any packet path. It is no dataplane of a cluster,
//! but what `emulator` and `chains` are measured against.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dataplane::wire::{Mac, V4, V6};
use userspace::model::Cluster;

use super::{Out, Path, Refusal, Wire};
use crate::topology::Layout;

/// Where frames go, by the address they are for: the cluster's nodes and pods, and nobody else.
#[derive(Debug)]
pub struct Loop {
    ways: HashMap<IpAddr, Way>,
}

/// A link, and the two hardware addresses with which a frame leaves by it.
#[derive(Debug)]
struct Way {
    link: Wire,
    macs: [u8; 12],
}

impl Path for Loop {
    const LAYOUT: Layout = Layout { answers_arp: false, ..Layout::USERSPACE };

    fn new(cluster: &Cluster, node: &str) -> Result<Self, Refusal> {
        let mut ways = HashMap::new();
        let own = cluster.node(node).map_or(Mac::default(), |own| mac(own.address()));
        for other in &cluster.nodes {
            let way = |link, from| Way { link, macs: macs(mac(other.address()), from) };
            for address in &other.addresses {
                let here = other.name == node;
                let way = if here { way(Wire::Host, Mac::GATEWAY) } else { way(Wire::Uplink, own) };
                ways.insert(*address, way);
            }
        }
        for pod in cluster.pods.iter().filter(|pod| !pod.host_network) {
            for address in &pod.addresses {
                let way = if pod.node == node {
                    Way { link: Wire::Pod(pod.address()), macs: macs(mac(pod.address()), Mac::GATEWAY) }
                } else {
                    let node = cluster.node(&pod.node).ok_or("a pod is on no node of the cluster")?;
                    Way { link: Wire::Uplink, macs: macs(mac(node.address()), own) }
                };
                ways.insert(*address, way);
            }
        }
        Ok(Self { ways })
    }

    fn apply(&mut self, cluster: &Cluster, node: &str) -> Result<(), Refusal> {
        *self = Self::new(cluster, node)?;
        Ok(())
    }

    fn pass(&mut self, _at: Wire, frame: &[u8], _now: Duration, out: &mut Out) {
        if let Some(way) = target(frame).and_then(|target| self.ways.get(&target)) {
            out.send(way.link, frame)[..12].copy_from_slice(&way.macs);
        }
    }
}

/// Who a packet is for.
fn target(frame: &[u8]) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x00] => frame.get(30..34).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(to_v4),
        [0x86, 0xdd] => frame.get(38..54).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(to_v6),
        _ => None,
    }
}

fn to_v4(bytes: [u8; 4]) -> IpAddr {
    Ipv4Addr::from(bytes).into()
}

fn to_v6(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).into()
}

fn mac(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(address) => Mac::of(V4(address.octets())),
        IpAddr::V6(address) => Mac::of(V6(address.octets())),
    }
}

/// As they stand in a frame.
fn macs(to: Mac, from: Mac) -> [u8; 12] {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&to.0);
    macs[6..].copy_from_slice(&from.0);
    macs
}
