//! Transport checksums that follow other addresses and ports, other than SCTP's.

use crate::Reason;
use crate::flow::Flow;
use crate::platform::{Mend, MendEnd, Packet};
use crate::wire::transport::{tcp, udp};
use crate::wire::{Address, Be16, Port, checksum, icmp, ip};

/// Makes the transport checksum, unless it is SCTP's, follow a port, and what an address adds to the pseudo-header.
///
/// Whether its sender left it to the network card is known by the field itself, not by what the kernel notes: where a pod
/// has put a datagram around another packet, that may be about the packet inside alone. Of a fragment, and of what will
/// be cut into several, the length that counts is not known, and nobody but the engine can tell. Where no pseudo-header is
/// covered (ICMP over IPv4), what is left is 0.
#[inline(always)]
pub(super) fn follow<A: Address>(
    packet: &mut impl Packet,
    flow: &Flow<A>,
    mut pseudo: u32,
    (old, new): (Port, Port),
) -> Result<(), Reason> {
    let protocol = flow.protocol;
    if protocol == ip::protocol::SCTP {
        return Ok(());
    }
    let mut left = Be16::default();
    if protocol == A::ICMP.protocol && !A::ICMP.pseudo {
        pseudo = 0;
    } else {
        let length = flow.end.wrapping_sub(flow.transport) as u16;
        left = checksum::pseudo(flow.source, flow.target, protocol, length);
    }
    let change = (pseudo, port_delta(old, new));
    if !flow.piece.is_whole() || packet.segment() != 0 {
        return mend(packet, flow, protocol, change);
    }
    let whole = mend_of::<A>(protocol, change, left);
    packet.mend_end(flow.transport + checksum_offset(protocol), whole).ok_or(Reason::WriteFailed)
}

/// Corrects the packet's transport checksum for what changes the sum of the pseudo-header, and for what changes the rest.
#[inline(always)]
pub(super) fn mend<A: Address>(
    packet: &mut impl Packet,
    flow: &Flow<A>,
    protocol: u8,
    (pseudo, rest): (u32, u32),
) -> Result<(), Reason> {
    let offset = flow.transport + checksum_offset(protocol);
    let part = Mend {
        delta: rest,
        pseudo: false,
        balanced: A::CHECKSUM.is_none(),
        optional: protocol == ip::protocol::UDP,
    };
    if pseudo != 0 {
        packet.mend(offset, Mend { delta: pseudo, pseudo: true, ..part }).ok_or(Reason::WriteFailed)?;
    }
    if rest != 0 {
        packet.mend(offset, part).ok_or(Reason::WriteFailed)?;
    }
    Ok(())
}

/// What a whole packet's checksum has to follow where its pseudo-header's sum and that of the rest change by so much.
#[inline(always)]
pub(super) fn mend_of<A: Address>(protocol: u8, (pseudo, rest): (u32, u32), left: Be16) -> MendEnd {
    MendEnd {
        address: pseudo,
        port: rest,
        balanced: A::CHECKSUM.is_none(),
        optional: protocol == ip::protocol::UDP,
        left,
    }
}

/// What another port adds to a sum; 0 if it is the same.
#[inline(always)]
pub(super) fn port_delta(old: Port, new: Port) -> u32 {
    if old == new { 0 } else { checksum::word_delta(old, new) }
}

/// Where a transport header's checksum stands, other than SCTP's. Looked up, because the verifier would follow each
/// protocol to the end of whatever asks.
#[inline(always)]
pub(super) fn checksum_offset(protocol: u8) -> usize {
    const OFFSETS: [u8; 256] = {
        let mut offsets = [icmp::CHECKSUM as u8; 256];
        offsets[ip::protocol::TCP as usize] = tcp::CHECKSUM as u8;
        offsets[ip::protocol::UDP as usize] = udp::CHECKSUM as u8;
        offsets
    };
    OFFSETS[protocol as usize] as usize
}
