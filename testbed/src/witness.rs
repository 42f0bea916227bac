//! A witness in the world: whether any packet came there with a pod's address that must not.
//!
//! Outside of the cluster nobody can answer a pod: its address is private, or nobody's. So what a pod sends
//! to the world comes with its node's address, but for three kinds of packets:
//!
//! 1. to where the cluster says that pods show their own (`nonMasqueradeCIDRs`, and in `flat` and
//!    `flat-dynamic` the virtual network);
//! 2. answers to whoever dialled the pod from outside, errors about its packets among them;
//! 3. later fragments of these.
//!
//! The witness hears every packet on the world's link, both ways and in order: who dials is heard before the
//! answer. What it could not hear because its queue was full, it counts.
//!
//! Source: packet(7); RFC 792 and RFC 4443 for what errors quote.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use etherparse::{LaxNetSlice, LaxSlicedPacket};
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use userspace::model::{Cluster, Model};

use crate::netns::{self, Netns, Part};
use crate::topology::UPLINK;

/// Bytes of a packet that are looked at: two IP headers with options, and what follows them.
const LOOKED_AT: usize = 256;
/// Flows from outside that are remembered, twice: the newer ones and those before.
const FLOWS: usize = 65_536;
/// Packets that are described, of all that came wrongly.
const DESCRIBED: usize = 8;

/// Why there is no witness.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The world cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// No packet socket.
    #[error("cannot {tried} {link} in network namespace {netns}: {source}")]
    Socket {
        /// What was tried.
        tried: &'static str,
        /// The link's name.
        link: String,
        /// Its namespace.
        netns: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// What is to be watched, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The world's namespace.
    pub netns: String,
    /// Its link to the fabric.
    pub link: String,
    /// The addresses of all pods that have their own.
    pub pods: HashSet<IpAddr>,
    /// Where pods may show them.
    pub shown: Vec<IpNet>,
}

impl Watch {
    /// Over a cluster.
    pub fn over(cluster: &Cluster) -> Self {
        let settings = &cluster.settings;
        let network: &[IpNet] = match settings.model {
            Model::Flat | Model::FlatDynamic => &settings.vnet_cidrs,
            Model::Overlay | Model::Kubenet => &[],
        };
        let pods = cluster.pods.iter().filter(|pod| !pod.host_network);
        Self {
            netns: Netns::of(&cluster.name, Part::World).name().to_owned(),
            link: UPLINK.to_owned(),
            pods: pods.flat_map(|pod| pod.addresses.iter().copied()).collect(),
            shown: settings.non_masquerade_cidrs.iter().chain(network).copied().collect(),
        }
    }
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Packets that came with a pod's address and must not have.
    pub leaked: u64,
    /// The first of them, a sentence each.
    pub leaks: Vec<String>,
    /// Packets that were not heard.
    pub missed: u64,
}

/// The witness.
#[derive(Debug)]
pub struct Witness {
    socket: OwnedFd,
    watch: Watch,
    dialled: Flows,
    seen: Seen,
}

impl Witness {
    /// Hears from now on.
    ///
    /// # Errors
    /// The world cannot be entered, or listened to.
    pub fn open(watch: Watch) -> Result<Self, Error> {
        let failed = |tried| {
            let (link, netns) = (watch.link.clone(), watch.netns.clone());
            move |source| Error::Socket { tried, link, netns, source }
        };
        let socket = Netns::named(&watch.netns).run(|| {
            let index = if_nametoindex(watch.link.as_str()).map_err(|errno| failed("find")(errno.into()))?;
            packet_socket(index).map_err(failed("listen to"))
        })??;
        Ok(Self { socket, watch, dialled: Flows::default(), seen: Seen::default() })
    }

    /// Goes on with a cluster that has changed.
    ///
    /// # Errors
    /// What was heard before cannot be read.
    pub fn change(&mut self, watch: Watch) -> io::Result<()> {
        self.look()?;
        self.watch = watch;
        Ok(())
    }

    /// Looks at all that was heard until now.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn look(&mut self) -> io::Result<&Seen> {
        let mut bytes = [0; LOOKED_AT];
        while let Some((length, is_outgoing)) = receive(&self.socket, &mut bytes)? {
            if let Some(packet) = Heard::read(&bytes[..length]) {
                self.judge(&packet, is_outgoing);
            }
        }
        self.seen.missed += u64::from(missed(&self.socket)?);
        Ok(&self.seen)
    }

    fn judge(&mut self, packet: &Heard, is_outgoing: bool) {
        let Heard { source, target, .. } = *packet;
        if is_outgoing {
            if self.watch.pods.contains(&target) {
                self.dialled.note(packet.flow.inverse());
            }
            return;
        }
        // 1.
        let is_shown = self.watch.shown.iter().any(|range| range.contains(&target));
        // 2. and 3.
        if !self.watch.pods.contains(&source) || is_shown || self.dialled.answered_by(packet) {
            return;
        }
        self.seen.leaked += 1;
        if self.seen.leaks.len() < DESCRIBED {
            let Flow { protocol, near_port, far_port, .. } = packet.flow;
            self.seen.leaks.push(format!(
                "a packet came from pod address {source} port {near_port} to {target} port {far_port}, protocol {protocol}"
            ));
        }
    }
}

/// The ends of a flow: the one that sent, and the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flow {
    protocol: u8,
    near: IpAddr,
    near_port: u16,
    far: IpAddr,
    far_port: u16,
}

impl Flow {
    fn inverse(self) -> Self {
        let Self { protocol, near, near_port, far, far_port } = self;
        Self { protocol, near: far, near_port: far_port, far: near, far_port: near_port }
    }
}

/// What is known of a packet.
#[derive(Clone, Copy, Debug)]
struct Heard {
    source: IpAddr,
    target: IpAddr,
    /// Its own flow; that of an error is the one of the packet that it is about, from the other side.
    flow: Flow,
    /// It is the later part of a packet, so its ports are not there.
    later: bool,
}

impl Heard {
    fn read(bytes: &[u8]) -> Option<Self> {
        let sliced = LaxSlicedPacket::from_ip(bytes).ok()?;
        let (source, target): (IpAddr, IpAddr) = match sliced.net.as_ref()? {
            LaxNetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            LaxNetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            LaxNetSlice::Arp(_) => return None,
        };
        let payload = sliced.net.as_ref()?.ip_payload_ref()?;
        let later = payload.fragmented && !begins(sliced.net.as_ref()?);
        let (protocol, bytes) = (payload.ip_number.0, payload.payload);
        let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let (near_port, far_port) = match (protocol, later) {
            (_, true) => (0, 0),
            (ICMP | ICMP_V6, _) => {
                if let Some(about) = quoted(protocol, bytes).and_then(Self::read) {
                    return Some(Self { source, target, flow: about.flow.inverse(), later: about.later });
                }
                let number = word(4).unwrap_or_default();
                (number, number)
            }
            _ => (word(0).unwrap_or_default(), word(2).unwrap_or_default()),
        };
        let flow = Flow { protocol, near: source, near_port, far: target, far_port };
        Some(Self { source, target, flow, later })
    }
}

/// Protocol numbers (IANA).
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;

/// The packet that an ICMP error is about.
fn quoted(protocol: u8, bytes: &[u8]) -> Option<&[u8]> {
    let is_error = match (protocol, bytes.first()?) {
        (ICMP, kind) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (_, kind) => *kind < 128,
    };
    if is_error { bytes.get(8..) } else { None }
}

/// Whether the first part of the packet's payload is in it.
fn begins(net: &LaxNetSlice<'_>) -> bool {
    match net {
        LaxNetSlice::Ipv4(ip) => ip.header().fragments_offset().value() == 0,
        LaxNetSlice::Ipv6(ip) => ip.extensions().clone().into_iter().all(|extension| match extension {
            etherparse::Ipv6ExtensionSlice::Fragment(part) => part.fragment_offset().value() == 0,
            _ => true,
        }),
        LaxNetSlice::Arp(_) => true,
    }
}

/// Flows that were dialled from outside, seen from the pod. Of very many, the oldest are forgotten.
#[derive(Debug, Default)]
struct Flows {
    newer: HashSet<Flow>,
    older: HashSet<Flow>,
    /// Who dialled whom at all, for packets that do not tell their ports.
    pairs: HashSet<(IpAddr, IpAddr)>,
}

impl Flows {
    fn note(&mut self, flow: Flow) {
        self.pairs.insert((flow.near, flow.far));
        if self.newer.len() == FLOWS {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(flow);
    }

    fn answered_by(&self, packet: &Heard) -> bool {
        if packet.later {
            return self.pairs.contains(&(packet.source, packet.target));
        }
        // An error may come from anybody on the way; it is about what the other end sent.
        self.newer.contains(&packet.flow) || self.older.contains(&packet.flow)
    }
}

/// A packet socket that hears what comes and goes at a link of the calling thread's namespace, from its first
/// byte after the link's own header.
fn packet_socket(index: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // Protocol 0 hears nothing yet.
    // SAFETY: a system call without pointers; the descriptor that it gives is ours alone.
    let socket = unsafe {
        match libc::socket(libc::AF_PACKET, kind, 0) {
            fd if fd >= 0 => OwnedFd::from_raw_fd(fd),
            _ => return Err(io::Error::last_os_error()),
        }
    };
    setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: bind reads one sockaddr_ll, which outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// The next packet that waits: its length, as far as it is looked at, and whether it was sent from here.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    loop {
        // SAFETY: recvfrom writes at most the buffer's length, and one sockaddr_ll.
        let length = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
                (&raw mut from).cast(),
                &raw mut size,
            )
        };
        if let Ok(length) = usize::try_from(length) {
            return Ok(Some((length.min(bytes.len()), from.sll_pkttype == libc::PACKET_OUTGOING)));
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
}

/// Packets that the queue had no room for, since it was last asked (`PACKET_STATISTICS`).
fn missed(socket: &OwnedFd) -> io::Result<u32> {
    const PACKET_STATISTICS: libc::c_int = 6;
    // Packets, and those dropped.
    let mut counts = [0_u32; 2];
    let mut size = size_of_val(&counts) as libc::socklen_t;
    let (level, into) = (libc::SOL_PACKET, (&raw mut counts).cast());
    // SAFETY: getsockopt writes at most the two words, which outlive the call.
    let asked =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, PACKET_STATISTICS, into, &raw mut size) };
    if asked < 0 { Err(io::Error::last_os_error()) } else { Ok(counts[1]) }
}

/// A witness that looks whenever something is heard, within a runtime.
#[derive(Debug)]
pub(crate) struct Watching {
    witness: Arc<Mutex<Witness>>,
    task: JoinHandle<()>,
}

impl Watching {
    /// Begins.
    ///
    /// # Errors
    /// As [`Witness::open`].
    pub(crate) fn begin(watch: Watch) -> Result<Self, Error> {
        let witness = Witness::open(watch)?;
        let heard = witness.socket.try_clone().and_then(|socket| {
            // SAFETY: the descriptor is the one that the value owns, as long as it is registered.
            unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
                .map_err(|error| error.into_parts().1)
        });
        let heard = heard.map_err(|source| Error::Socket {
            tried: "wait for packets on",
            link: witness.watch.link.clone(),
            netns: witness.watch.netns.clone(),
            source,
        })?;
        let witness = Arc::new(Mutex::new(witness));
        let task = tokio::spawn(look_when_heard(heard, Arc::clone(&witness)));
        Ok(Self { witness, task })
    }

    /// As [`Witness::change`].
    pub(crate) fn change(&self, watch: Watch) -> io::Result<()> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner).change(watch)
    }

    /// What was seen until now.
    ///
    /// # Errors
    /// As [`Witness::look`].
    pub(crate) fn seen(&self) -> io::Result<Seen> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner).look().cloned()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look_when_heard(heard: AsyncFd<OwnedFd>, witness: Arc<Mutex<Witness>>) {
    while let Ok(mut ready) = heard.readable().await {
        ready.clear_ready();
        let looked = witness.lock().unwrap_or_else(PoisonError::into_inner).look().map(drop);
        if let Err(error) = looked {
            tracing::warn!("the witness in the world hears no more: {error}");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const POD: [u8; 4] = [10, 244, 1, 5];
    const WORLD: [u8; 4] = [203, 0, 113, 7];

    /// A witness that hears nothing but what it is told.
    fn witness(shown: &str) -> Witness {
        let (socket, _) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let watch = Watch {
            netns: String::new(),
            link: String::new(),
            pods: HashSet::from([POD.into()]),
            shown: shown.split_whitespace().map(|range| range.parse().expect("a range")).collect(),
        };
        Witness { socket: socket.into(), watch, dialled: Flows::default(), seen: Seen::default() }
    }

    fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let packet = PacketBuilder::ipv4(from.0, to.0, 64).udp(from.1, to.1);
        packet.write(&mut bytes, &[7; 16]).expect("there is room");
        bytes
    }

    fn tell(witness: &mut Witness, bytes: &[u8], is_outgoing: bool) -> u64 {
        witness.judge(&Heard::read(bytes).expect("a packet"), is_outgoing);
        witness.seen.leaked
    }

    #[test]
    fn a_pods_address_in_the_world_is_seen_unless_the_world_dialled_it() {
        let mut witness = witness("");
        let answer = udp((POD, 80), (WORLD, 4000));
        assert_eq!(tell(&mut witness, &answer, false), 1, "nobody asked");
        assert_eq!(tell(&mut witness, &udp((WORLD, 4000), (POD, 80)), true), 1);
        assert_eq!(tell(&mut witness, &answer, false), 1, "it was asked");
        assert_eq!(tell(&mut witness, &udp((POD, 81), (WORLD, 4000)), false), 2, "another port was not");
        assert!(witness.seen.leaks[0].contains("10.244.1.5 port 80 to 203.0.113.7"), "{:?}", witness.seen);
    }

    #[test]
    fn a_pod_may_show_its_address_where_the_cluster_says_so() {
        let mut witness = witness("203.0.113.0/24");
        assert_eq!(tell(&mut witness, &udp((POD, 80), (WORLD, 4000)), false), 0);
        assert_eq!(tell(&mut witness, &udp((POD, 80), ([8, 8, 8, 8], 53)), false), 1);
    }

    #[test]
    fn an_error_belongs_to_the_packet_that_it_is_about() {
        let mut witness = witness("");
        let about = udp((WORLD, 4000), (POD, 80));
        let mut error = Vec::new();
        let unreachable =
            etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
        PacketBuilder::ipv4(POD, WORLD, 64)
            .icmpv4(unreachable)
            .write(&mut error, &about)
            .expect("there is room");
        assert_eq!(tell(&mut witness, &error, false), 1, "nobody sent what it is about");
        tell(&mut witness, &about, true);
        assert_eq!(tell(&mut witness, &error, false), 1);
    }
}
