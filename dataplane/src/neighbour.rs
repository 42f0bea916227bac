//! Who answers when a pod asks for its gateway: the path itself.
//!
//! Reads the frame. Writes the answer over the question. Drops `Truncated`, `MalformedHeader`.
//!
//! A pod has one neighbour, the host side of its veth, which stands for every address but its own. So
//! every question gets the same answer, except one about the pod's own address: whoever asks that looks
//! for a duplicate (RFC 5227), and must hear nothing.
//!
//! Source: RFC 826; RFC 1027 (answering for others).

use crate::platform::Packet;
use crate::wire::ethernet::{self, arp};
use crate::wire::{Be16, Be32, Mac, V4};
use crate::{Reason, Verdict};

/// Turns an ARP question into its answer.
///
/// # Errors
/// `Truncated`, `MalformedHeader`: not a question about IPv4 over Ethernet that has an answer.
#[inline(always)]
pub fn answer(packet: &mut impl Packet) -> Result<Verdict, Reason> {
    const ARP: usize = ethernet::LENGTH;
    let asked: V4 = packet.read(ARP + arp::TARGET).ok_or(Reason::Truncated)?;
    let asker: V4 = packet.read(ARP + arp::SENDER).ok_or(Reason::Truncated)?;
    let asker_mac: Mac = packet.read(ARP + arp::SENDER_MAC).ok_or(Reason::Truncated)?;
    let kind: Be32 = packet.read(ARP + arp::KIND).ok_or(Reason::Truncated)?;
    let lengths: Be16 = packet.read(ARP + arp::LENGTHS).ok_or(Reason::Truncated)?;
    let operation: Be16 = packet.read(ARP + arp::OPERATION).ok_or(Reason::Truncated)?;
    if kind != arp::ETHERNET_IPV4 {
        return Err(Reason::MalformedHeader);
    }
    if lengths != arp::SIX_FOUR {
        return Err(Reason::MalformedHeader);
    }
    if operation != arp::REQUEST {
        return Err(Reason::MalformedHeader);
    }
    if asked == asker || asker == V4::default() {
        return Err(Reason::OwnAddressAsked);
    }
    packet.write(ARP + arp::OPERATION, arp::REPLY).ok_or(Reason::Truncated)?;
    packet.write(ARP + arp::SENDER_MAC, Mac::GATEWAY).ok_or(Reason::Truncated)?;
    packet.write(ARP + arp::SENDER, asked).ok_or(Reason::Truncated)?;
    packet.write(ARP + arp::TARGET_MAC, asker_mac).ok_or(Reason::Truncated)?;
    packet.write(ARP + arp::TARGET, asker).ok_or(Reason::Truncated)?;
    packet.write(ethernet::TARGET, asker_mac).ok_or(Reason::Truncated)?;
    packet.write(ethernet::SOURCE, Mac::GATEWAY).ok_or(Reason::Truncated)?;
    Ok(Verdict::Answer)
}
