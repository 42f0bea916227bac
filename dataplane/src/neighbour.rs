//! Who answers when a pod asks for its gateway: the path itself, in ARP and in neighbour discovery.
//!
//! Reads the frame. Writes the answer over the question. Drops `Truncated`, `MalformedHeader`,
//! `OwnAddressAsked`, `NeedsNoAnswer`, `WriteFailed`.
//!
//! A pod has one neighbour, the host side of its veth, which stands for every address but its own. So
//! every question gets the same answer, except one about the pod's own address: whoever asks that looks
//! for a duplicate (RFC 5227, RFC 4862), and must hear nothing. Whatever else neighbours tell each other
//! (where routers are, what they listen to) finds nobody on this link that it concerns.
//!
//! Source: RFC 826; RFC 1027 (answering for others); RFC 4861, sections 4.3, 4.4, 7.1.1 and 7.2.

use crate::Reason;
use crate::flow::Flow;
use crate::platform::Packet;
use crate::wire::ethernet::{self, arp};
use crate::wire::icmp::{self, neighbour};
use crate::wire::{Address, Be16, Be32, Mac, Plain, V4, V6, checksum, ip};

/// Turns a pod's question into its answer. `flow` is what could be read of the frame: see
/// [`crate::flow::read`].
///
/// # Errors
/// `Truncated`, `MalformedHeader`: not a question that has an answer. `OwnAddressAsked`, `NeedsNoAnswer`: not
/// one that needs it. `WriteFailed`.
#[inline(never)]
pub fn answer<A: Address>(packet: &mut impl Packet, flow: &Flow<A>) -> Result<(), Reason> {
    if A::VERSION == 4 { answer_arp(packet) } else { answer_solicitation(packet, flow) }
}

#[inline(always)]
fn answer_arp(packet: &mut impl Packet) -> Result<(), Reason> {
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
    put(packet, ARP + arp::OPERATION, arp::REPLY)?;
    put(packet, ARP + arp::SENDER_MAC, Mac::GATEWAY)?;
    put(packet, ARP + arp::SENDER, asked)?;
    put(packet, ARP + arp::TARGET_MAC, asker_mac)?;
    put(packet, ARP + arp::TARGET, asker)?;
    put(packet, ethernet::TARGET, asker_mac)?;
    put(packet, ethernet::SOURCE, Mac::GATEWAY)?;
    Ok(())
}

/// The question must have room for the answer's one option, as it has if it brings its own: the hardware
/// address of whoever asks. Its checksum is not looked at; nothing but the answer depends on it, and that
/// goes back to whoever asked.
#[inline(always)]
fn answer_solicitation<A: Address>(packet: &mut impl Packet, flow: &Flow<A>) -> Result<(), Reason> {
    const IP: usize = ethernet::LENGTH;
    const ICMP: usize = IP + ip::v6::LENGTH;
    if flow.flags != neighbour::SOLICITATION {
        return Err(Reason::NeedsNoAnswer);
    }
    let asked: V6 = packet.read(ICMP + neighbour::TARGET).ok_or(Reason::Truncated)?;
    let asker: V6 = packet.read(IP + ip::v6::SOURCE).ok_or(Reason::Truncated)?;
    let asker_mac: Mac = packet.read(ethernet::SOURCE).ok_or(Reason::Truncated)?;
    let code: u8 = packet.read(ICMP + icmp::CODE).ok_or(Reason::Truncated)?;
    let length: Be16 = packet.read(IP + ip::v6::PAYLOAD_LENGTH).ok_or(Reason::Truncated)?;
    if flow.transport != ICMP {
        return Err(Reason::MalformedHeader);
    }
    if flow.hops != neighbour::HOPS {
        return Err(Reason::MalformedHeader);
    }
    if code != 0 {
        return Err(Reason::MalformedHeader);
    }
    if asked.is_multicast() {
        return Err(Reason::MalformedHeader);
    }
    // Before the length: whoever looks for a duplicate has no address to bring an option about.
    if asked == asker || asker == V6::default() {
        return Err(Reason::OwnAddressAsked);
    }
    if (length.host() as usize) < neighbour::LENGTH {
        return Err(Reason::MalformedHeader);
    }
    packet.trim((ICMP + neighbour::LENGTH) as u32).ok_or(Reason::WriteFailed)?;
    put(packet, IP + ip::v6::VERSION_CLASS_LABEL, ip::v6::VERSION_6_PLAIN)?;
    put(packet, IP + ip::v6::PAYLOAD_LENGTH, Be16::new(neighbour::LENGTH as u16))?;
    put(packet, IP + ip::v6::SOURCE, asked)?;
    put(packet, IP + ip::v6::TARGET, asker)?;
    put(packet, ICMP + icmp::TYPE, neighbour::ADVERTISEMENT)?;
    put(packet, ICMP + icmp::CHECKSUM, advertisement_checksum(asked, asker))?;
    put(packet, ICMP + neighbour::FLAGS, neighbour::ROUTER_SOLICITED_OVERRIDE)?;
    put(packet, ICMP + neighbour::OPTION, neighbour::TARGET_MAC)?;
    put(packet, ICMP + neighbour::OPTION_MAC, Mac::GATEWAY)?;
    put(packet, ethernet::TARGET, asker_mac)?;
    put(packet, ethernet::SOURCE, Mac::GATEWAY)?;
    Ok(())
}

/// The checksum of the answer, pseudo-header included (RFC 8200, section 8.1): its source is the address
/// asked for, and so is what it says of it.
#[inline(always)]
fn advertisement_checksum(asked: V6, asker: V6) -> Be16 {
    let [a, b, c, d, e, f] = Mac::GATEWAY.0;
    let [high, middle, ..] = neighbour::ROUTER_SOLICITED_OVERRIDE.0;
    let words = [
        Be16::new(neighbour::LENGTH as u16),
        Be16([0, ip::protocol::ICMPV6]),
        Be16([neighbour::ADVERTISEMENT, 0]),
        Be16([high, middle]),
        neighbour::TARGET_MAC,
        Be16([a, b]),
        Be16([c, d]),
        Be16([e, f]),
    ];
    checksum::of(words, asked.sum() * 2 + asker.sum())
}

#[inline(always)]
fn put<T: Plain>(packet: &mut impl Packet, offset: usize, value: T) -> Result<(), Reason> {
    packet.write(offset, value).ok_or(Reason::Truncated)
}
