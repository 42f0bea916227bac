//! What an ICMP error quotes of the packet that it is about.

use super::mend::checksum_offset;
use super::{Side, note_port, port_offset, replace_address};
use crate::Reason;
use crate::flow::Flow;
use crate::platform::Packet;
use crate::wire::{Address, Be16, Port, checksum, ip};

/// Replaces one end of the flow in the packet that an ICMP error quotes: there the sides are the other way
/// round. The quoted checksums follow. Returns what all of that changes in the sum of the error, whose own checksum
/// follows then.
#[inline(always)]
pub(super) fn requote<A: Address>(
    packet: &mut impl Packet,
    flow: &mut Flow<A>,
    side: Side,
    (old, new): (A, A),
    (old_port, new_port): (Port, Port),
) -> Result<u32, Reason> {
    let inside = if side == Side::Source { Side::Target } else { Side::Source };
    replace_address(packet, flow.quoted, inside, (old, new))?;
    let addresses = checksum::address_delta(old, new);
    // A header's own checksum moves by as much as the address, the other way: no change in the sum.
    let mut delta = if A::CHECKSUM.is_none() { addresses } else { 0 };
    let ports = checksum::word_delta(old_port, new_port);
    delta = checksum::add(delta, ports);
    if flow.protocol == ip::protocol::SCTP {
        note_port(flow, inside, (old_port, new_port));
    } else {
        let mut covered = ports;
        if A::ICMP.pseudo || flow.protocol != A::ICMP.protocol {
            covered = checksum::add(covered, addresses);
        }
        delta = checksum::add(delta, mend_quoted(packet, flow, covered)?);
    }
    if old_port != new_port {
        let offset = flow.quoted_transport + port_offset::<A>(flow.protocol, inside);
        packet.write(offset, new_port).ok_or(Reason::Truncated)?;
    }
    Ok(delta)
}

/// Corrects the quoted packet's transport checksum, if the quote reaches that far: TCP's lies beyond the
/// eight bytes that are quoted for certain. Returns what that changes in the sum of the quote.
#[inline(always)]
fn mend_quoted<A>(packet: &mut impl Packet, flow: &Flow<A>, delta: u32) -> Result<u32, Reason> {
    let offset = flow.quoted_transport + checksum_offset(flow.protocol);
    if offset + size_of::<Be16>() > flow.end {
        return Ok(0);
    }
    let Some(before) = packet.read::<Be16>(offset) else {
        return Ok(0);
    };
    let mut after = checksum::mended(before, delta);
    if flow.protocol == ip::protocol::UDP {
        if before == Be16::new(0) {
            return Ok(0);
        }
        if after == Be16::new(0) {
            after = Be16::new(0xffff);
        }
    }
    packet.write(offset, after).ok_or(Reason::Truncated)?;
    Ok(checksum::word_delta(before, after))
}
