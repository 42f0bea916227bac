//! Packets, drawn: mostly such as could be, some such as should not.

use std::net::IpAddr;

use super::bytes::{ICMP, ICMPV6, IP, Layout, SCTP, TCP, UDP, put};
use super::draw::{Draw, PORTS};

/// The longest frame that both engines are given: a kernel's test run takes no more than a page, less what
/// it needs itself (`bpf_test_init` in `net/bpf/test_run.c`).
pub(crate) const LONGEST: usize = 3000;

const SYN: u8 = 2;
const ACK: u8 = 16;
/// TCP's flags, as they are in sound and in strange packets.
const FLAGS: [u8; 12] = [SYN, SYN, SYN, SYN, SYN | ACK, ACK, ACK, ACK | 8, ACK | 1, 4, ACK | 4, 0];
/// TCP's options of a SYN: MSS of several sizes, alone and among others, and broken ones.
const SYN_OPTIONS: [&[u8]; 12] = [
    &[],
    &[2, 4, 0x05, 0xb4],
    &[2, 4, 0x05, 0xb4],
    &[2, 4, 0x23, 0x00],
    &[2, 4, 0x02, 0x18],
    &[1, 1, 4, 2, 2, 4, 0x05, 0xb4],
    &[2, 4, 0x05, 0xa0, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7],
    &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 4, 0x05, 0xb4, 0],
    &[2, 3, 0x05, 0xb4],
    &[2, 0, 0x05, 0xb4],
    &[0, 2, 4, 0x05, 0xb4, 0, 0, 0],
    &[3, 40, 2, 4],
];

const INIT: u8 = 1;
/// SCTP's chunks, as they are in sound and in strange packets.
const CHUNKS: [u8; 12] = [INIT, INIT, INIT, 2, 10, 11, 0, 0, 3, 6, 14, 64];

/// What of the underlay a packet must be cut to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) mtu: usize,
    pub(crate) tunnel_port: u16,
    pub(crate) geneve: bool,
}

impl Draw {
    /// What a client sends to a protocol and port, mostly to begin with, from one of a few ports.
    pub(crate) fn dial(
        &mut self,
        ends: (IpAddr, IpAddr),
        (protocol, port): (u8, u16),
        link: Link,
    ) -> Vec<u8> {
        let ports = (33_000 + self.below(3) as u16, port);
        let payload = self.payload(link, ends.0.is_ipv6());
        let transport = match protocol {
            TCP => self.tcp(ports, &payload),
            SCTP => self.sctp(ports, &payload),
            _ => udp(ports, &payload),
        };
        let mut frame = self.ip(ends, protocol, &transport);
        self.unseal(&mut frame);
        frame
    }

    /// What somebody sends who pretends to be a Service, to one of the ports that [`Draw::dial`] sends from.
    pub(crate) fn pretend(&mut self, ends: (IpAddr, IpAddr), (protocol, port): (u8, u16)) -> Vec<u8> {
        let ports = (port, 33_000 + self.below(3) as u16);
        let transport = if protocol == TCP { self.tcp(ports, &[]) } else { udp(ports, &[]) };
        self.ip(ends, protocol, &transport)
    }

    /// A packet from one to the other, of the same family, with a small choice of ports, so that flows meet
    /// again.
    pub(crate) fn packet(&mut self, ends: (IpAddr, IpAddr), link: Link) -> Vec<u8> {
        let six = ends.0.is_ipv6();
        let client = 33_000 + self.below(6) as u16;
        let ports = if self.one_in(8) { (self.of(&PORTS), client) } else { (client, self.of(&PORTS)) };
        let payload = self.payload(link, six);
        let (protocol, transport) = match self.below(27) {
            0..=10 => (TCP, self.tcp(ports, &payload)),
            11..=17 => (UDP, udp(ports, &payload)),
            18..=21 => (if six { ICMPV6 } else { ICMP }, self.echo(six, client, &payload)),
            22 => (if six { ICMPV6 } else { ICMP }, self.message(six, &payload)),
            23..=25 => (SCTP, self.sctp(ports, &payload)),
            _ => (self.of(&[33, 47, 2, 59, if six { ICMP } else { ICMPV6 }]), payload),
        };
        let mut frame = self.ip(ends, protocol, &transport);
        if protocol == UDP && self.one_in(20) {
            self.without_checksum(&mut frame, six);
        }
        self.unseal(&mut frame);
        frame
    }

    fn payload(&mut self, link: Link, six: bool) -> Vec<u8> {
        let length = match self.below(14) {
            0 => {
                // Around what fits the underlay, alone or with a tunnel's headers.
                let headers = [if six { 48 } else { 28 }, if six { 98 } else { 78 }, 118];
                (link.mtu + 20).saturating_sub(self.of(&headers) + self.below(48))
            }
            1 => self.below(link.mtu + 200),
            _ => self.below(40),
        };
        vec![0x5a; length.min(LONGEST - 200)]
    }

    fn tcp(&mut self, (from, to): (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut flags = if self.one_in(20) { self.next() as u8 } else { self.of(&FLAGS) };
        if self.one_in(16) {
            // Congestion notification is asked for (RFC 3168).
            flags |= 0xc0;
        }
        let options: &[u8] = if flags & SYN != 0 {
            self.of(&SYN_OPTIONS)
        } else if self.one_in(6) {
            &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]
        } else {
            &[]
        };
        let mut words = (20 + options.len()) as u8 / 4;
        if self.one_in(60) {
            words = self.below(16) as u8;
        }
        let [a, b] = from.to_be_bytes();
        let [c, d] = to.to_be_bytes();
        let header = [a, b, c, d, 0, 0, 0, 7, 0, 0, 0, 1, words << 4, flags, 2, 0, 0, 0, 0, 0];
        [&header[..], options, payload].concat()
    }

    fn sctp(&mut self, (from, to): (u16, u16), payload: &[u8]) -> Vec<u8> {
        let kind = if self.one_in(20) { self.next() as u8 } else { self.of(&CHUNKS) };
        let mut packet = vec![0; 16];
        put(&mut packet, 0, from);
        put(&mut packet, 2, to);
        put(&mut packet, 14, (4 + payload.len()) as u16);
        packet[12] = kind;
        packet.extend_from_slice(payload);
        packet.resize(packet.len().next_multiple_of(4), 0);
        packet
    }

    /// Some of SCTP's checksums are left to a network card, and some are wrong.
    fn unseal(&mut self, frame: &mut [u8]) {
        if let Some(layout) = Layout::of(frame)
            && (layout.protocol, layout.later) == (SCTP, false)
            && let Some(field) = frame.get_mut(layout.transport + 8..layout.transport + 12)
        {
            match self.below(8) {
                0 => field.fill(0),
                1 => field[self.below(4)] ^= 1 << self.below(8),
                _ => {}
            }
        }
    }

    fn echo(&mut self, six: bool, identifier: u16, payload: &[u8]) -> Vec<u8> {
        let kind = match (six, self.one_in(4)) {
            (false, false) => 8,
            (false, true) => 0,
            (true, false) => 128,
            (true, true) => 129,
        };
        let [high, low] = identifier.to_be_bytes();
        [&[kind, 0, 0, 0, high, low, 0, 1], payload].concat()
    }

    /// A message that is no echo and quotes nothing.
    fn message(&mut self, six: bool, payload: &[u8]) -> Vec<u8> {
        let kind = if six { self.of(&[130, 133, 135, 143, 200, 1, 3]) } else { self.of(&[13, 9, 17, 3, 11]) };
        [&[kind, 0, 0, 0, 0, 0, 0, 0], payload].concat()
    }

    fn without_checksum(&mut self, frame: &mut [u8], six: bool) {
        if let Some(layout) = Layout::of(frame)
            && (!six || self.one_in(4))
        {
            frame[layout.transport + 6..layout.transport + 8].fill(0);
        }
    }

    /// A frame around a transport packet, with checksums.
    pub(crate) fn ip(&mut self, ends: (IpAddr, IpAddr), protocol: u8, transport: &[u8]) -> Vec<u8> {
        let hops = if self.one_in(20) { self.below(3) as u8 } else { 64 };
        let class = if self.one_in(4) { self.of(&[1, 2, 3, 0xb8, 0xba, 0x28]) } else { 0 };
        let mut frame = ethernet(ends.0.is_ipv6());
        match ends {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let options: &[u8] = match self.below(50) {
                    0 => &[1, 1, 1, 0],
                    1 => &[7, 7, 4, 0, 0, 0, 0, 0],
                    2 => &[0x94, 4, 0, 0],
                    _ => &[],
                };
                let words = 0x45 + options.len() as u8 / 4;
                let whole = (20 + options.len() + transport.len()) as u16;
                let flags = if self.one_in(2) { 0x40 } else { 0 };
                let [high, low] = whole.to_be_bytes();
                frame.extend([
                    words,
                    class,
                    high,
                    low,
                    0,
                    self.below(8) as u8,
                    flags,
                    0,
                    hops,
                    protocol,
                    0,
                    0,
                ]);
                frame.extend(source.octets());
                frame.extend(target.octets());
                frame.extend(options);
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let (first, extensions) = self.extensions(protocol);
                let [high, low] = ((extensions.len() + transport.len()) as u16).to_be_bytes();
                let label = self.below(256) as u8;
                frame.extend([0x60 | class >> 4, class << 4, 0, label, high, low, first, hops]);
                frame.extend(source.octets());
                frame.extend(target.octets());
                frame.extend(extensions);
            }
            _ => unreachable!("both ends are drawn of one family"),
        }
        frame.extend(transport);
        if let Some(layout) = Layout::of(&frame) {
            layout.seal(&mut frame);
        }
        frame
    }

    /// IPv6's extension headers, mostly none: what the first is, and their bytes.
    fn extensions(&mut self, protocol: u8) -> (u8, Vec<u8>) {
        let count = if self.one_in(8) { 1 + self.below(3) } else { 0 };
        let kinds: Vec<u8> = (0..count)
            .map(|index| match self.below(12) {
                0..=2 if index == 0 => 0,
                0..=6 => 60,
                7..=8 => 43,
                9 => 44,
                _ => self.of(&[0, 51, 50, 135, 139, 140]),
            })
            .collect();
        let mut bytes = Vec::new();
        for (index, kind) in kinds.iter().enumerate() {
            let next = kinds.get(index + 1).copied().unwrap_or(protocol);
            let more = if *kind != 44 && self.one_in(3) { 1 + self.below(2) } else { 0 };
            let stated = if self.one_in(30) { self.next() as u8 } else { more as u8 };
            let left = if *kind == 43 && self.one_in(2) { 1 } else { 0 };
            // A pad option fills the rest, which an atomic fragment takes for its identification.
            let fragment =
                if *kind == 44 { [0; 6] } else { [1, if *kind == 43 { left } else { 4 }, 0, 0, 0, 0] };
            bytes.extend([next, stated]);
            bytes.extend(fragment);
            bytes.resize(bytes.len() + 8 * more, 0);
        }
        (kinds.first().copied().unwrap_or(protocol), bytes)
    }

    /// An ICMP error about a frame's packet, to whoever sent that, from whom it was for or a router on the
    /// way.
    pub(crate) fn complaint(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let layout = Layout::of(frame)?;
        let (source, target) = (address(layout.source(frame)), address(layout.target(frame)));
        let router: IpAddr =
            if layout.six { "2001:db8:ffff::1" } else { "192.0.2.1" }.parse().expect("an address");
        let from = if self.one_in(3) { router } else { target };
        let mtu = self.of(&[1280_u16, 1400, 576, 0]);
        let kinds: &[(u8, u8)] = if layout.six {
            &[(1, 0), (1, 4), (2, 0), (2, 0), (3, 0), (3, 1), (4, 1), (100, 0), (137, 0)]
        } else {
            &[(3, 0), (3, 1), (3, 3), (3, 4), (3, 4), (11, 0), (11, 1), (12, 0), (4, 0), (5, 0)]
        };
        let (kind, code) = self.of(kinds);
        let [high, low] = mtu.to_be_bytes();
        let quote = &frame[IP..layout.end];
        let kept = match self.below(6) {
            0 => layout.transport - IP + 8,
            1 => self.below(quote.len() + 1),
            _ => quote.len(),
        };
        let message =
            [&[kind, code, 0, 0, 0, 0, high, low], &quote[..kept.min(quote.len()).min(LONGEST - 200)]];
        Some(self.ip((from, source), if layout.six { ICMPV6 } else { ICMP }, &message.concat()))
    }

    /// What goes on in a flow: the same packet with another payload, and other flags if it is TCP's.
    pub(crate) fn sequel(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let layout = Layout::of(frame).filter(|layout| !layout.later)?;
        let mut sequel = frame.to_vec();
        let hops = layout.ip + if layout.six { 7 } else { 8 };
        sequel[hops] = 64;
        if layout.protocol == TCP && layout.transport + 20 <= layout.end {
            sequel[layout.transport + 13] = self.of(&[ACK, ACK, ACK | 8, ACK | 1, ACK | 1, 4, SYN, SYN]);
        }
        if layout.protocol == SCTP && layout.transport + 16 <= layout.end {
            sequel[layout.transport + 12] = self.of(&[0, 0, 3, 10, 11, 6, 14, INIT]);
        }
        layout.seal(&mut sequel);
        Some(sequel)
    }

    /// What might come back for a packet that has arrived somewhere.
    pub(crate) fn answer(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        if self.one_in(5) {
            return self.complaint(frame);
        }
        let mut answer = super::bytes::turned(frame)?;
        let layout = Layout::of(&answer)?;
        if layout.protocol == TCP && !layout.later && layout.transport + 20 <= layout.end {
            let flags = layout.transport + 13;
            answer[flags] = match answer[flags] & (SYN | ACK) {
                SYN if self.one_in(4) => ACK | 4,
                SYN => SYN | ACK,
                _ => self.of(&[ACK, ACK, ACK | 8, ACK | 1, 4]),
            };
            layout.seal(&mut answer);
        }
        if layout.protocol == SCTP && !layout.later && layout.transport + 16 <= layout.end {
            let chunk = layout.transport + 12;
            answer[chunk] = match answer[chunk] {
                INIT if self.one_in(4) => 6,
                INIT => 2,
                10 => 11,
                _ => self.of(&[0, 3, 3, 11, 6, 14]),
            };
            layout.seal(&mut answer);
        }
        Some(answer)
    }

    /// A frame inside the tunnel, from one node's end to another's.
    pub(crate) fn wrapped(
        &mut self,
        ends: (IpAddr, IpAddr),
        inner: &[u8],
        identity: u32,
        link: Link,
    ) -> Vec<u8> {
        let kind = inner.get(12..14).map_or([0, 0], |kind| [kind[0], kind[1]]);
        let [_, a, b, c] = identity.to_be_bytes();
        let mut header =
            if link.geneve { vec![0, 0, 0x65, 0x58, a, b, c, 0] } else { vec![8, 0, 0, 0, a, b, c, 0] };
        if link.geneve && !self.one_in(3) {
            self.options(&mut header, kind == [0x86, 0xdd]);
        }
        if self.one_in(16) {
            let at = self.below(8);
            header[at] = self.next() as u8;
        }
        let payload = [&header[..], &[2; 6], &[4; 6], &kind, &inner[IP.min(inner.len())..]].concat();
        let ports = (50_000 + self.below(8) as u16, link.tunnel_port);
        let mut frame = self.ip(ends, UDP, &udp(ports, &payload));
        if let Some(layout) = Layout::of(&frame)
            && !self.one_in(3)
            // A fragment may end before.
            && let Some(checksum) = frame.get_mut(layout.transport + 6..layout.transport + 8)
        {
            checksum.fill(0);
        }
        frame
    }

    /// Some of Geneve's options: of nobody's class, critical or not, and what a client dialled.
    fn options(&mut self, header: &mut Vec<u8>, six: bool) {
        const DIALLED_V4: [u8; 12] = [0xff, 0x70, 0x81, 2, 10, 240, 0, 5, 0x75, 0x30, 0, 0];
        const DIALLED_V6: [u8; 24] =
            [0xff, 0x70, 0x81, 5, 0xfd, 0, 0, 0x10, 2, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0x75, 0x30, 0, 0];
        let dialled: &[u8] = if six { &DIALLED_V6 } else { &DIALLED_V4 };
        header[1] = self.of(&[0, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0x80]);
        for _ in 0..1 + self.below(6) / 4 {
            let mut option = match self.below(10) {
                0 => vec![0xff, 0xf0, 1, 1, 9, 9, 9, 9],
                1 => vec![0xff, 0xf0, 1, 0],
                2 => vec![0xff, 0xf0, 0x80, 1, 9, 9, 9, 9],
                3 => [DIALLED_V4.as_slice(), DIALLED_V6.as_slice()][usize::from(!six)].to_vec(),
                _ => dialled.to_vec(),
            };
            if option.len() > 8 && self.one_in(3) {
                // Another port, so that flows meet in one row.
                let at = option.len() - 3;
                option[at] = 0x31;
            }
            if self.one_in(12) {
                let at = self.below(option.len());
                option[at] = self.next() as u8;
            }
            header.extend(option);
        }
        header[0] = (header.len() as u8 - 8) / 4;
    }

    /// A question of a pod's about its link, or some other talk on it.
    pub(crate) fn link_talk(&mut self, pod: IpAddr, other: IpAddr) -> Vec<u8> {
        match pod {
            IpAddr::V4(asker) => {
                let asked = match self.below(4) {
                    0 => asker.octets(),
                    1 => match other {
                        IpAddr::V4(other) => other.octets(),
                        IpAddr::V6(_) => [10, 0, 0, 1],
                    },
                    _ => [169, 254, 1, 1],
                };
                let mut frame = vec![0xff; 6];
                frame.extend([4, 4, 4, 4, 4, 4, 8, 6, 0, 1, 8, 0, 6, 4, 0]);
                frame.push(if self.one_in(10) { 2 } else { 1 });
                frame.extend([4; 6]);
                frame.extend(if self.one_in(12) { [0; 4] } else { asker.octets() });
                frame.extend([0; 6]);
                frame.extend(asked);
                frame
            }
            IpAddr::V6(asker) => {
                let gateway: IpAddr = "fe80::1".parse().expect("an address");
                let unspecified: IpAddr = "::".parse().expect("an address");
                let group: IpAddr = "ff02::1".parse().expect("an address");
                let asked = self.of(&[gateway, gateway, other, IpAddr::V6(asker), group]);
                let source = if self.one_in(8) { unspecified } else { pod };
                let kind = self.of(&[135, 135, 135, 135, 133, 136, 143, 130, 137]);
                let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
                if kind == 135 || kind == 136 {
                    if let IpAddr::V6(asked) = asked {
                        message.extend(asked.octets());
                    }
                    message.extend([1, 1, 4, 4, 4, 4, 4, 4]);
                }
                if self.one_in(8) {
                    message.extend([14, 1, 0, 0, 0, 0, 0, 0]);
                }
                let mut frame = self.ip((source, group), ICMPV6, &message);
                if !self.one_in(10) {
                    frame[IP + 7] = 255;
                }
                frame
            }
        }
    }

    /// Breaks some bytes, mostly of headers.
    pub(crate) fn corrupt(&mut self, frame: &mut [u8]) {
        for _ in 0..1 + self.below(3) {
            let reach = if self.one_in(3) { frame.len() } else { frame.len().min(120) };
            let at = self.below(reach);
            frame[at] = if self.one_in(2) { self.next() as u8 } else { frame[at] ^ (1 << self.below(8)) };
        }
    }

    /// Another service class, or congestion mark, on the outermost header.
    pub(crate) fn remark(&mut self, frame: &mut [u8]) {
        let Some(layout) = Layout::of(frame) else { return };
        let class = self.of(&[0_u8, 1, 2, 3, 3, 0x2b, 0xb8]);
        if layout.six {
            frame[IP] = 0x60 | class >> 4;
            frame[IP + 1] = class << 4 | frame[IP + 1] & 0xf;
        } else {
            frame[IP + 1] = class;
            let bare = Layout { piece: true, ..layout };
            bare.seal(frame);
        }
    }
}

/// A UDP datagram, its checksum to be filled in.
fn udp((from, to): (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; 8];
    put(&mut datagram, 0, from);
    put(&mut datagram, 2, to);
    put(&mut datagram, 4, (8 + payload.len()) as u16);
    datagram.extend_from_slice(payload);
    datagram
}

/// The Ethernet header of an IP packet's frame.
fn ethernet(six: bool) -> Vec<u8> {
    let kind: [u8; 2] = if six { [0x86, 0xdd] } else { [8, 0] };
    [&[2; 6][..], &[4; 6], &kind].concat()
}

/// An address of either family.
pub(crate) fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(four) => IpAddr::from(four),
        Err(_) => {
            let mut six = [0; 16];
            six.copy_from_slice(bytes);
            IpAddr::from(six)
        }
    }
}
