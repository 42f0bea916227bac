//! TCP (RFC 9293) and UDP (RFC 768). Offsets count from the start of the header.

/// Offset of the source port, in both.
pub const SOURCE_PORT: usize = 0;
/// Offset of the target port, in both.
pub const TARGET_PORT: usize = 2;

/// TCP.
pub mod tcp {
    /// Offset of header length in words (high four bits).
    pub const DATA_OFFSET: usize = 12;
    /// Offset of the flags.
    pub const FLAGS: usize = 13;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;
    /// Length of a header without options.
    pub const LENGTH: usize = 20;

    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Ends a connection at once.
    pub const RST: u8 = 0x04;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;

    /// What may follow the header without options: a type each, and, but for the first two, a length of the whole.
    pub mod option {
        /// No more follow.
        pub const END: u8 = 0;
        /// A byte of nothing.
        pub const NOTHING: u8 = 1;
        /// The longest segment that its sender takes, in 16 bits.
        pub const MAXIMUM_SEGMENT: u8 = 2;
        /// Its length.
        pub const MAXIMUM_SEGMENT_LENGTH: usize = 4;
        /// How many there may be: of a byte each.
        pub const MOST: u32 = 40;
    }
}

/// UDP.
pub mod udp {
    /// Offset of the length of header and payload.
    pub const TOTAL_LENGTH: usize = 4;
    /// Offset of the checksum; 0 over IPv4 means that there is none.
    pub const CHECKSUM: usize = 6;
    /// Length of the header.
    pub const LENGTH: usize = 8;
}
