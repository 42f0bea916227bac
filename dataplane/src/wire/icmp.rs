//! ICMP (RFC 792). Offsets count from the start of the header.

/// Offset of the type; the code follows it.
pub const TYPE: usize = 0;
/// Offset of the checksum.
pub const CHECKSUM: usize = 2;
/// Offset of an echo's identifier.
pub const IDENTIFIER: usize = 4;
/// Length of the header; an error's quoted packet follows it.
pub const LENGTH: usize = 8;
/// Bytes of its transport header that an error quotes at least.
pub const QUOTED: usize = 8;

/// Answer to [`ECHO`].
pub const ECHO_REPLY: u8 = 0;
/// Could not be delivered; code 4 asks for smaller packets (RFC 1191).
pub const UNREACHABLE: u8 = 3;
/// Asks for an answer.
pub const ECHO: u8 = 8;
/// The time to live ran out.
pub const TIME_EXCEEDED: u8 = 11;
/// A header field is wrong.
pub const PARAMETER_PROBLEM: u8 = 12;
