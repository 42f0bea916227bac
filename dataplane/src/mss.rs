//! Lower the largest segment that the ends of a TCP connection agree on to what the tunnel has room for.
//!
//! Reads and writes the frame. Drops `WriteFailed`.
//!
//! 1. Segments that open a connection (SYN) say how long a segment their sender takes. The other end obeys, so
//!    both directions' are looked at, where they go into the tunnel and where they come out of it.
//! 2. The size is lowered, never raised, and never added: without it segments have 536 bytes (IPv6: 1,220),
//!    which any underlay of a cluster has room for.
//! 3. Options that make no sense are left for the receiver to judge.
//!
//! Source: RFC 9293 sections 3.1, 3.2 and 3.7.1 (headers' options are not subtracted).

use crate::Reason;
use crate::flow::Flow;
use crate::platform::{Machine, Mend, Packet};
use crate::trace::{self, Record, Stage};
use crate::wire::transport::tcp::{self, option};
use crate::wire::{Address, Be16, checksum, ip};

/// Lowers the size that a SYN says to what fits an IP packet of `room` bytes.
///
/// # Errors
/// `WriteFailed`.
#[inline(always)]
pub fn lower<A: Address>(
    platform: &mut impl Machine,
    packet: &mut impl Packet,
    flow: &Flow<A>,
    room: u32,
) -> Result<(), Reason> {
    // 1.
    if flow.error || flow.protocol != ip::protocol::TCP || flow.flags & tcp::SYN == 0 {
        return Ok(());
    }
    let Some(place) = find(packet, flow.transport) else {
        return Ok(());
    };
    let Some(before) = packet.read::<Be16>(place) else {
        return Ok(());
    };
    // No way is so narrow that there is no room for the headers: asked, the verifier would follow each width apart.
    let most = room.wrapping_sub((A::HEADER + tcp::LENGTH) as u32);
    // 2.
    if before.host() as u32 <= most {
        return Ok(());
    }
    let after = Be16::new(most as u16);
    packet.write(place, after).ok_or(Reason::WriteFailed)?;
    let mut delta = checksum::word_delta(before, after);
    if place.wrapping_sub(flow.transport) & 1 != 0 {
        // Half of it in each of two words: the same sum with its bytes swapped (RFC 1071, section 2).
        delta = checksum::word_delta(swapped(before), swapped(after));
    }
    let mend = Mend { delta, ..Mend::default() };
    packet.mend(flow.transport + tcp::CHECKSUM, mend).ok_or(Reason::WriteFailed)?;
    trace::step(platform, || Record { source_port: before, target_port: after, ..flow.record(Stage::Mss) });
    Ok(())
}

/// Where the size stands in the frame whose TCP header is at `transport`, if it says one.
#[inline(always)]
fn find(packet: &mut impl Packet, transport: usize) -> Option<usize> {
    let words: u8 = packet.read(transport + tcp::DATA_OFFSET)?;
    let header = (words >> 4) as usize * 4;
    let end = transport + header;
    packet.pull(end as u32);
    let mut left = header.checked_sub(tcp::LENGTH)?;
    let mut options = 0;
    while left != 0 && options < option::MOST {
        let at = end - left;
        // Behind the last byte there is no size.
        let Be16([kind, stated]) = packet.read(at)?;
        if kind == option::END {
            return None;
        }
        let length = if kind == option::NOTHING { 1 } else { stated as usize };
        // 3.
        if length == 0 || length > left {
            return None;
        }
        if kind == option::MAXIMUM_SEGMENT {
            return if length == option::MAXIMUM_SEGMENT_LENGTH { Some(at + 2) } else { None };
        }
        // It is never more: but so the verifier knows as much behind every option, and follows the next one once.
        left = (left - length) & 0x3f;
        options += 1;
    }
    None
}

#[inline(always)]
fn swapped(word: Be16) -> Be16 {
    let [high, low] = word.0;
    Be16([low, high])
}
