//! ICMP (RFC 792) and ICMPv6 (RFC 4443), whose headers have the same fields in the same places. Offsets
//! count from the start of the header.

use super::ip::protocol;

/// Offset of the type.
pub const TYPE: usize = 0;
/// Offset of the code, which says more than the type.
pub const CODE: usize = 1;
/// Offset of the checksum.
pub const CHECKSUM: usize = 2;
/// Offset of an echo's identifier.
pub const IDENTIFIER: usize = 4;
/// Offset of the four bytes whose meaning is the type's. Of an error about a packet that was too big they are what
/// there is room for (RFC 4443, section 3.2; in IPv4 the low 16 bits of it: RFC 1191, section 4).
pub const REST: usize = 4;
/// Length of the header; an error's quoted packet follows it.
pub const LENGTH: usize = 8;
/// Bytes of its transport header that an error quotes at least.
pub const QUOTED: usize = 8;

/// Answer to [`ECHO`].
pub const ECHO_REPLY: u8 = 0;
/// Could not be delivered.
pub const UNREACHABLE: u8 = 3;
/// The code of [`UNREACHABLE`] that asks for smaller packets (RFC 1191).
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// Asks for an answer.
pub const ECHO: u8 = 8;
/// The time to live ran out.
pub const TIME_EXCEEDED: u8 = 11;
/// A header field is wrong.
pub const PARAMETER_PROBLEM: u8 = 12;

/// What the messages of one family are called by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Of ICMP itself, in the IP header.
    pub protocol: u8,
    /// Asks for an answer.
    pub echo: u8,
    /// The answer.
    pub echo_reply: u8,
    /// Could not be delivered.
    pub unreachable: u8,
    /// The code of `unreachable` that says that nobody listens on the port.
    pub port_unreachable: u8,
    /// Asks for smaller packets; in IPv4 a code of `unreachable`.
    pub too_big: u8,
    /// No hop was left, or a fragment never came.
    pub time_exceeded: u8,
    /// A header field is wrong.
    pub parameter_problem: u8,
    /// Its checksum covers the pseudo-header (RFC 4443, section 2.3).
    pub pseudo: bool,
}

impl Numbers {
    /// RFC 792.
    pub const V4: Self = Self {
        protocol: protocol::ICMP,
        echo: ECHO,
        echo_reply: ECHO_REPLY,
        unreachable: UNREACHABLE,
        port_unreachable: 3,
        too_big: UNREACHABLE,
        time_exceeded: TIME_EXCEEDED,
        parameter_problem: PARAMETER_PROBLEM,
        pseudo: false,
    };
    /// RFC 4443.
    pub const V6: Self = Self {
        protocol: protocol::ICMPV6,
        echo: 128,
        echo_reply: 129,
        unreachable: 1,
        port_unreachable: 4,
        too_big: 2,
        time_exceeded: 3,
        parameter_problem: 4,
        pseudo: true,
    };

    /// Whether a message of this type quotes the packet it is about.
    #[inline(always)]
    pub const fn is_error(&self, kind: u8) -> bool {
        kind == self.unreachable
            || kind == self.too_big
            || kind == self.time_exceeded
            || kind == self.parameter_problem
    }
}

/// What neighbours on a link say to each other over ICMPv6: neighbour discovery (RFC 4861) and multicast
/// listeners' reports (RFC 2710, RFC 3810).
pub mod neighbour {
    use crate::wire::{Be16, Be32};

    /// Who has this address?
    pub const SOLICITATION: u8 = 135;
    /// I have.
    pub const ADVERTISEMENT: u8 = 136;
    /// Offset of an advertisement's flags.
    pub const FLAGS: usize = 4;
    /// The answer of a router, to a question, that replaces what the asker knew.
    pub const ROUTER_SOLICITED_OVERRIDE: Be32 = Be32::new(0xe000_0000);
    /// Offset of the address that is asked for.
    pub const TARGET: usize = 8;
    /// Offset of the first option.
    pub const OPTION: usize = 24;
    /// Offset of the first option's hardware address.
    pub const OPTION_MAC: usize = 26;
    /// An option's type and length in units of eight bytes: the hardware address of the target.
    pub const TARGET_MAC: Be16 = Be16::new(0x0201);
    /// Length of a message with that option.
    pub const LENGTH: usize = 32;
    /// The hops such a message must have left: no router has passed it on.
    pub const HOPS: u8 = 255;

    /// Whether messages of this type are for the link alone.
    #[inline(always)]
    pub const fn is_talk(kind: u8) -> bool {
        const LISTENERS: u8 = 130;
        const REDIRECT: u8 = 137;
        const LISTENERS_REPORT: u8 = 143;
        (kind >= LISTENERS && kind <= REDIRECT) || kind == LISTENERS_REPORT
    }
}
