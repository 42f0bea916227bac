//! Ethernet II (IEEE 802.3, clause 3) and ARP over it (RFC 826).

use core::mem::size_of;

use super::{Be16, Mac, plain};

/// A header, as it lies in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// At [`TARGET`].
    pub target: Mac,
    /// At [`SOURCE`].
    pub source: Mac,
    /// At [`TYPE`].
    pub ethertype: Be16,
}

plain!(Header);

const _: () = assert!(size_of::<Header>() == LENGTH);

/// Offset of the target's hardware address.
pub const TARGET: usize = 0;
/// Offset of the source's hardware address.
pub const SOURCE: usize = 6;
/// Offset of the type of what follows.
pub const TYPE: usize = 12;
/// Length of the header: no VLAN tags on pod links.
pub const LENGTH: usize = 14;

/// An IPv4 packet follows.
pub const IPV4: Be16 = Be16::new(0x0800);
/// An IPv6 packet follows.
pub const IPV6: Be16 = Be16::new(0x86dd);
/// An ARP packet follows.
pub const ARP: Be16 = Be16::new(0x0806);

/// ARP for IPv4 over Ethernet: offsets from the start of the ARP packet.
pub mod arp {
    use crate::wire::{Be16, Be32};

    /// Hardware type 1, protocol type IPv4: the first four bytes.
    pub const KIND: usize = 0;
    /// Ethernet and IPv4.
    pub const ETHERNET_IPV4: Be32 = Be32::new(0x0001_0800);
    /// Address lengths: 6 and 4.
    pub const LENGTHS: usize = 4;
    /// What [`LENGTHS`] must hold.
    pub const SIX_FOUR: Be16 = Be16::new(0x0604);
    /// Question or answer.
    pub const OPERATION: usize = 6;
    /// Who has this address?
    pub const REQUEST: Be16 = Be16::new(1);
    /// I have.
    pub const REPLY: Be16 = Be16::new(2);
    /// Hardware address of the sender.
    pub const SENDER_MAC: usize = 8;
    /// IPv4 address of the sender.
    pub const SENDER: usize = 14;
    /// Hardware address of the target.
    pub const TARGET_MAC: usize = 18;
    /// IPv4 address of the target.
    pub const TARGET: usize = 24;
    /// Length of the packet.
    pub const LENGTH: usize = 28;
}
