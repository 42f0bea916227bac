//! Are a frame's checksums right? Read by another parser than the path's own (etherparse; SCTP's, which that does not
//! know, are those of the emulated hosts), so that neither engine is its own judge.
//!
//! [`Watched`] asks it about everything that an engine lets out: whoever sends what is sound must be answered
//! and passed on with what is sound.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use dataplane::Verdict;
use dataplane::tables::{IfIndex, Node};
use dataplane::trace::Record;
use dataplane::wire::Address;
use etherparse::checksum::Sum16BitWords;
use etherparse::{IpNumber, IpSlice, Ipv4HeaderSlice, UdpSlice};
use userspace::engine::emulator::message::crc32c;
use userspace::engine::{
    Claims, Clients, Clock, Count, Dialling, Engine, Flows, Hook, Outcome, Pieces, Tracks,
};
use userspace::error::Error;
use userspace::plan::{Legs, NodeChange, NodePlan, NodeRows};

/// Length of an Ethernet header, and of those of VXLAN, of Geneve without options, and of ICMP.
const ETHERNET: usize = 14;
const TUNNEL: usize = 8;
const ICMP: usize = 8;

/// The tunnel that a frame may be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its UDP port.
    pub port: u16,
    /// Geneve, whose header has a length; else VXLAN.
    pub geneve: bool,
}

impl Tunnel {
    /// A node's, if it has one.
    pub fn of(node: &Node) -> Option<Self> {
        let port = node.tunnel_port.host();
        (node.encapsulation != Node::PLAIN)
            .then_some(Self { port, geneve: node.encapsulation == Node::GENEVE })
    }
}

/// What a sound frame is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sound {
    /// A UDP datagram without a checksum, or an SCTP packet whose checksum was left to a network card, out of the
    /// tunnel if it is in it.
    pub bare: bool,
}

/// Reads a frame, out of the tunnel as well if it is in it, and what ICMP errors in it quote.
///
/// # Errors
/// Which header cannot be read, or which checksum is wrong. What is neither IPv4 nor IPv6 is sound.
pub fn check(frame: &[u8], tunnel: Option<Tunnel>) -> Result<Sound, String> {
    match frame.get(12..ETHERNET) {
        None => Err("no Ethernet header".to_owned()),
        Some([0x08, 0x00] | [0x86, 0xdd]) => packet(&frame[ETHERNET..], tunnel),
        Some(_) => Ok(Sound::default()),
    }
}

/// Reads an IP packet, padding behind it or not.
fn packet(bytes: &[u8], tunnel: Option<Tunnel>) -> Result<Sound, String> {
    let ip = IpSlice::from_slice(bytes).map_err(|why| format!("IP header: {why}"))?;
    let stated_as_six = bytes[0] >> 4 == 6;
    if let IpSlice::Ipv4(slice) = &ip {
        right("IPv4 header", slice.header().slice(), Sum16BitWords::new())?;
    }
    let payload = ip.payload();
    if payload.fragmented {
        return Ok(Sound::default());
    }
    let bytes = payload.payload;
    match payload.ip_number {
        IpNumber::TCP if bytes.len() < 20 => Err(format!("TCP header: {} bytes", bytes.len())),
        IpNumber::TCP => right("TCP", bytes, pseudo(&ip, bytes.len())),
        IpNumber::UDP => return datagram(&ip, bytes, tunnel),
        IpNumber::SCTP => return chunks(bytes),
        IpNumber::ICMP if !stated_as_six => {
            right("ICMP", bytes, Sum16BitWords::new())?;
            quoted(bytes, matches!(bytes.first(), Some(3 | 4 | 5 | 11 | 12)))
        }
        IpNumber::IPV6_ICMP if stated_as_six => {
            right("ICMPv6", bytes, pseudo(&ip, bytes.len()))?;
            quoted(bytes, matches!(bytes.first(), Some(1..=127)))
        }
        _ => Ok(()),
    }?;
    Ok(Sound::default())
}

/// Reads a UDP datagram, and what is in it if it is a tunnel's.
fn datagram(ip: &IpSlice<'_>, bytes: &[u8], tunnel: Option<Tunnel>) -> Result<Sound, String> {
    let udp = UdpSlice::from_slice(bytes).map_err(|why| format!("UDP header: {why}"))?;
    // Jumbograms (a length of 0) are nobody's here.
    if usize::from(udp.length()) != udp.slice().len() {
        return Err(format!("UDP header: length {}", udp.length()));
    }
    let inside = tunnel.filter(|tunnel| tunnel.port == udp.destination_port());
    if udp.checksum() != 0 {
        right("UDP", udp.slice(), pseudo(ip, udp.slice().len()))?;
    } else if matches!(ip, IpSlice::Ipv6(_)) && inside.is_none() {
        return Err("UDP over IPv6: no checksum".to_owned());
    }
    let Some(tunnel) = inside else {
        return Ok(Sound { bare: udp.checksum() == 0 });
    };
    let header = udp.payload().first().copied().ok_or("tunnel: no header")?;
    let length = if tunnel.geneve { TUNNEL + usize::from(header & 0x3f) * 4 } else { TUNNEL };
    let inner = udp.payload().get(length..).ok_or("tunnel: the header is cut short")?;
    check(inner, None).map_err(|why| format!("in the tunnel: {why}"))
}

/// Reads an SCTP packet, whose checksum covers all of it, the field itself as zero (RFC 9260, section 6.8).
fn chunks(bytes: &[u8]) -> Result<Sound, String> {
    let field = bytes.get(8..12).ok_or_else(|| format!("SCTP header: {} bytes", bytes.len()))?;
    let sum = crc32c(&[&bytes[..8], &[0; 4], &bytes[12..]].concat()).to_le_bytes();
    match field {
        [0, 0, 0, 0] => Ok(Sound { bare: true }),
        stated if stated == sum => Ok(Sound::default()),
        stated => Err(format!("SCTP: the checksum is {}, not {}", hex(stated), hex(&sum))),
    }
}

/// Reads what an ICMP error quotes, as far as it is quoted.
fn quoted(message: &[u8], is_error: bool) -> Result<(), String> {
    let Some(quote) = message.get(ICMP..).filter(|quote| is_error && !quote.is_empty()) else {
        return Ok(());
    };
    if let Ok(header) = Ipv4HeaderSlice::from_slice(quote) {
        right("quoted IPv4 header", header.slice(), Sum16BitWords::new())?;
    }
    // A packet that is quoted in part only has no checksum that could be looked at.
    match IpSlice::from_slice(quote) {
        Ok(_) => packet(quote, None).map(drop).map_err(|why| format!("quoted: {why}")),
        Err(_) => Ok(()),
    }
}

/// The pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn pseudo(ip: &IpSlice<'_>, length: usize) -> Sum16BitWords {
    let mut sum = Sum16BitWords::new();
    match ip {
        IpSlice::Ipv4(slice) => {
            sum = sum.add_4bytes(slice.header().source()).add_4bytes(slice.header().destination());
        }
        IpSlice::Ipv6(slice) => {
            sum = sum.add_16bytes(slice.header().source()).add_16bytes(slice.header().destination());
        }
    }
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    sum.add_4bytes(length.to_be_bytes()).add_2bytes([0, ip.payload_ip_number().0])
}

/// Whether bytes and what else is summed with them come to nothing, their checksum included.
fn right(what: &str, bytes: &[u8], sum: Sum16BitWords) -> Result<(), String> {
    match sum.add_slice(bytes).ones_complement() {
        0 => Ok(()),
        rest => Err(format!("{what}: the checksum is wrong by {:#06x}", rest.to_be())),
    }
}

/// What was found in frames that left an engine, in words.
pub type Faults = Rc<RefCell<Vec<String>>>;

/// An engine under supervision: what it is given and what comes out of it is looked at.
#[derive(Debug)]
pub struct Watched<E> {
    /// The engine.
    pub engine: E,
    tunnel: Option<Tunnel>,
    faults: Faults,
}

impl<E: Engine> Watched<E> {
    /// Watches the engine of the node with this plan, and adds what is found to `faults`.
    pub fn new(engine: E, plan: &NodePlan, faults: Faults) -> Self {
        Self { engine, tunnel: Tunnel::of(&plan.node), faults }
    }

    /// What is wrong with what came of a frame, unless the frame was wrong already.
    fn fault(&self, hook: Hook, frame: &[u8], outcome: &Outcome) -> Option<String> {
        if matches!(outcome.verdict, Verdict::Drop(_)) {
            return None;
        }
        // What only looks like the tunnel's, as a pod's packet to its port does, goes its way as it is.
        let (came, left) = (frame.len(), outcome.frame.len());
        let passed = matches!(outcome.verdict, Verdict::Deliver(_) | Verdict::Forward(_));
        let rejected = matches!(outcome.verdict, Verdict::Reject(_));
        let unwrapped = left < came || (rejected && hook == Hook::FromUnderlay);
        let before = check(frame, self.tunnel.filter(|_| unwrapped)).ok()?;
        let why = match check(&outcome.frame, self.tunnel.filter(|_| passed && left > came)) {
            Ok(after) if passed && before != after => format!("{before:?} became {after:?}"),
            Ok(_) => return None,
            Err(why) => why,
        };
        Some(format!(
            "{hook:?}, {:?}: {why}\n  came: {}\n  left: {}",
            outcome.verdict,
            hex(frame),
            hex(&outcome.frame)
        ))
    }
}

/// Bytes as people and Wireshark's import read them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl<E: Engine> Engine for Watched<E> {
    fn legs(&self, rows: &NodeRows) -> Result<Legs, Error> {
        self.engine.legs(rows)
    }

    fn change(&mut self, changes: &[NodeChange]) -> Result<(), Error> {
        self.engine.change(changes)
    }

    fn push(&mut self, hook: Hook, interface: IfIndex, frame: &[u8]) -> Result<Outcome, Error> {
        let outcome = self.engine.push(hook, interface, frame)?;
        if let Some(fault) = self.fault(hook, frame, &outcome) {
            self.faults.borrow_mut().push(fault);
        }
        Ok(outcome)
    }

    fn lead(&mut self, dialling: &Dialling) -> Result<(SocketAddr, Vec<Record>), Error> {
        self.engine.lead(dialling)
    }

    fn hang_up(&mut self, socket: u64) {
        self.engine.hang_up(socket);
    }

    fn counts(&self) -> Result<Vec<Count>, Error> {
        self.engine.counts()
    }
}

impl<A: Address, E: Tracks<A>> Tracks<A> for Watched<E> {
    fn connections(&self) -> Result<Flows<A>, Error> {
        self.engine.connections()
    }

    fn masquerades(&self) -> Result<Claims<A>, Error> {
        self.engine.masquerades()
    }

    fn fragments(&self) -> Result<Pieces<A>, Error> {
        self.engine.fragments()
    }

    fn affinities(&self) -> Result<Clients<A>, Error> {
        self.engine.affinities()
    }
}

impl<E: Clock> Clock for Watched<E> {
    fn now_s(&self) -> Result<u32, Error> {
        self.engine.now_s()
    }

    fn wait(&mut self, seconds: u32) -> Result<(), Error> {
        self.engine.wait(seconds)
    }

    fn set_random(&mut self, number: u32) -> Result<(), Error> {
        self.engine.set_random(number)
    }

    fn sweep(&mut self) -> Result<(), Error> {
        self.engine.sweep()
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};

    use super::*;

    const VXLAN: Tunnel = Tunnel { port: 8472, geneve: false };

    fn v4(write: impl Fn(etherparse::PacketBuilderStep<etherparse::IpHeaders>, &mut Vec<u8>)) -> Vec<u8> {
        let mut frame = Vec::new();
        write(PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64), &mut frame);
        frame
    }

    fn v6(write: impl Fn(etherparse::PacketBuilderStep<etherparse::IpHeaders>, &mut Vec<u8>)) -> Vec<u8> {
        let mut frame = Vec::new();
        write(PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64), &mut frame);
        frame
    }

    fn sctp() -> Vec<u8> {
        let mut packet =
            [&[0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 3, 0, 19][..], b"three bytes too ."].concat();
        let sum = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&sum);
        packet
    }

    /// Frames whose every byte behind the IP addresses is covered by a checksum.
    fn covered() -> Vec<(usize, Vec<u8>)> {
        let quote = v4(|step, frame| step.udp(5, 6).write(frame, b"quoted").expect("a vector takes it"));
        let unreachable = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
        let unreachable_v6 = Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port);
        vec![
            (34, v4(|step, frame| step.tcp(1, 2, 3, 4).write(frame, b"odd").expect("a vector takes it"))),
            (34, v4(|step, frame| step.udp(1, 2).write(frame, b"odd").expect("a vector takes it"))),
            (34, v4(|step, frame| step.write(frame, IpNumber::SCTP, &sctp()).expect("takes it"))),
            (54, v6(|step, frame| step.write(frame, IpNumber::SCTP, &sctp()).expect("takes it"))),
            (
                34,
                v4(|step, frame| {
                    step.icmpv4(unreachable.clone()).write(frame, &quote[14..]).expect("takes it")
                }),
            ),
            (54, v6(|step, frame| step.tcp(1, 2, 3, 4).write(frame, b"even").expect("a vector takes it"))),
            (54, v6(|step, frame| step.udp(1, 2).write(frame, b"even").expect("a vector takes it"))),
            (54, v6(|step, frame| step.icmpv6(unreachable_v6).write(frame, &[0; 9]).expect("takes it"))),
        ]
    }

    #[test]
    fn sound_frames_are_and_no_byte_of_them_may_change() {
        for (transport, frame) in covered() {
            assert_eq!(check(&frame, None), Ok(Sound { bare: false }), "{}", hex(&frame));
            for at in transport..frame.len() {
                let mut broken = frame.clone();
                broken[at] ^= 0x10;
                assert!(check(&broken, None).is_err(), "byte {at} of {}", hex(&broken));
            }
        }
    }

    #[test]
    fn a_wrong_checksum_in_the_tunnel_is_found() {
        for (_, mut inner) in covered() {
            let wrap = |inner: &[u8]| {
                let payload = [&[8, 0, 0, 0, 0, 1, 0, 0], inner].concat();
                v4(|step, frame| step.udp(50_000, 8472).write(frame, &payload).expect("a vector takes it"))
            };
            assert_eq!(check(&wrap(&inner), Some(VXLAN)), Ok(Sound { bare: false }));
            *inner.last_mut().expect("it has bytes") ^= 1;
            let why = check(&wrap(&inner), Some(VXLAN)).expect_err("it is broken");
            assert!(why.starts_with("in the tunnel: "), "{why}");
            assert!(check(&wrap(&inner), None).is_ok(), "without a tunnel it is payload");
        }
    }

    #[test]
    fn an_sctp_checksum_may_be_left_to_a_network_card() {
        let mut packet = sctp();
        packet[8..12].fill(0);
        let frame = v6(|step, frame| step.write(frame, IpNumber::SCTP, &packet).expect("takes it"));
        assert_eq!(check(&frame, None), Ok(Sound { bare: true }));
    }

    #[test]
    fn udp_needs_no_checksum_over_ipv4_and_needs_one_over_ipv6() {
        let mut four = v4(|step, frame| step.udp(1, 2).write(frame, b"odd").expect("a vector takes it"));
        four[40..42].fill(0);
        assert_eq!(check(&four, None), Ok(Sound { bare: true }));
        let mut six = v6(|step, frame| step.udp(1, 2).write(frame, b"odd").expect("a vector takes it"));
        six[60..62].fill(0);
        assert!(check(&six, None).is_err());
    }
}
