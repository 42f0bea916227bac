//! TCP (RFC 9293), UDP (RFC 768) and SCTP (RFC 9260). Offsets count from the start of the header.

/// Offset of the source port, in all of them.
pub const SOURCE_PORT: usize = 0;
/// Offset of the target port, in all of them.
pub const TARGET_PORT: usize = 2;

/// TCP.
pub mod tcp {
    use core::mem::size_of;

    use crate::wire::{Be16, Be32, Port, plain};

    /// A header without options, as it lies in a frame.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[repr(C)]
    pub struct Header {
        /// At [`super::SOURCE_PORT`].
        pub source_port: Port,
        /// At [`super::TARGET_PORT`].
        pub target_port: Port,
        /// At [`SEQUENCE`].
        pub sequence: Be32,
        /// At [`ACKNOWLEDGMENT`].
        pub acknowledgment: Be32,
        /// At [`DATA_OFFSET`].
        pub data_offset: u8,
        /// At [`FLAGS`].
        pub flags: u8,
        /// At [`WINDOW`].
        pub window: Be16,
        /// At [`CHECKSUM`].
        pub checksum: Be16,
        /// At [`URGENT`].
        pub urgent: Be16,
    }

    plain!(Header);

    const _: () = assert!(size_of::<Header>() == LENGTH);

    /// Offset of the sequence number.
    pub const SEQUENCE: usize = 4;
    /// Offset of the acknowledgment number.
    pub const ACKNOWLEDGMENT: usize = 8;
    /// Offset of header length in words (high four bits).
    pub const DATA_OFFSET: usize = 12;
    /// Offset of the flags.
    pub const FLAGS: usize = 13;
    /// Offset of the window.
    pub const WINDOW: usize = 14;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;
    /// Offset of the urgent pointer.
    pub const URGENT: usize = 18;
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
    use core::mem::size_of;

    use crate::wire::{Be16, Port, plain};

    /// A header, as it lies in a frame.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    #[repr(C)]
    pub struct Header {
        /// At [`super::SOURCE_PORT`].
        pub source_port: Port,
        /// At [`super::TARGET_PORT`].
        pub target_port: Port,
        /// At [`TOTAL_LENGTH`].
        pub total_length: Be16,
        /// At [`CHECKSUM`].
        pub checksum: Be16,
    }

    plain!(Header);

    const _: () = assert!(size_of::<Header>() == LENGTH);

    /// Offset of the length of header and payload.
    pub const TOTAL_LENGTH: usize = 4;
    /// Offset of the checksum; 0 over IPv4 means that there is none.
    pub const CHECKSUM: usize = 6;
    /// Length of the header.
    pub const LENGTH: usize = 8;
}

/// SCTP: a header, and chunks, each with a type.
pub mod sctp {
    /// Offset of the checksum ([`crate::wire::crc`]), the lowest byte first. 0 is left there by senders whose network
    /// card writes it.
    pub const CHECKSUM: usize = 8;
    /// Offset of the first chunk's type.
    pub const CHUNK: usize = 12;
    /// Length of the header and the first four bytes of a chunk, which every chunk has.
    pub const LENGTH: usize = 16;

    /// Type of the chunk that opens an association. It travels alone.
    pub const INIT: u8 = 1;
    /// Answers [`INIT`].
    pub const INIT_ACK: u8 = 2;
    /// Ends an association at once.
    pub const ABORT: u8 = 6;
    /// Goes back with what [`INIT_ACK`] brought along, so that it was no forged sender who asked.
    pub const COOKIE_ECHO: u8 = 10;
    /// The association is open.
    pub const COOKIE_ACK: u8 = 11;
    /// The association is over.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}
