//! Bytes and fields: what stands on the wire, in wire order, and nothing of what it means.
//!
//! Wire order is a type here ([`Be16`], [`Be32`], the address types); a bare `u16` or `u32` is host
//! order. Every type is plain bytes without padding, so it can be read from any offset of a frame and used
//! as it is in a table key. Addresses lie at multiples of four there, so that the compiler may take whole
//! words of them.

pub mod checksum;
pub mod crc;
pub mod ethernet;
pub mod icmp;
pub mod ip;
pub mod transport;
pub mod tunnel;

use core::cmp::Ordering;
use core::fmt::{self, Debug, Display, Formatter};

/// Values that are fully described by their bytes: no padding, no pointer, every bit pattern valid.
///
/// Frames are read and tables are filled by copying such values.
///
/// # Safety
/// The type must be `repr(C)` or `repr(transparent)`, hold no padding byte, and every bit pattern of
/// its size must be a valid value: the engines copy raw frame and map bytes into it.
#[expect(unsafe_code, reason = "the one marker trait: only whoever declares a row can vouch for its layout")]
pub unsafe trait Plain: Copy + 'static {}

/// Declares types [`Plain`]; behind `<A>` such as are generic over the address family.
macro_rules! plain {
    (<A> $($type:ident),+ $(,)?) => { $(
        #[expect(unsafe_code, reason = "see Plain: the size assert beside each type shows there is no padding")]
        unsafe impl<A: $crate::wire::Address> $crate::wire::Plain for $type<A> {}
    )+ };
    ($($type:ty),+ $(,)?) => { $(
        #[expect(unsafe_code, reason = "see Plain: the size assert beside each type shows there is no padding")]
        unsafe impl $crate::wire::Plain for $type {}
    )+ };
}
pub(crate) use plain;

plain!(u8, u16, u32, u64, Be16, Be32, Mac, V4, V6);

/// Sixteen bits in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Be16(pub [u8; 2]);

impl Be16 {
    /// From host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be_bytes())
    }
    /// To host order.
    #[inline(always)]
    pub const fn host(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// Thirty-two bits in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Be32(pub [u8; 4]);

impl Be32 {
    /// From host order.
    #[inline(always)]
    pub const fn new(host: u32) -> Self {
        Self(host.to_be_bytes())
    }
    /// To host order.
    #[inline(always)]
    pub const fn host(self) -> u32 {
        u32::from_be_bytes(self.0)
    }
}

/// A TCP or UDP port, or the identifier of an ICMP echo, in wire order.
pub type Port = Be16;

impl Debug for Be16 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host())
    }
}
impl Display for Be16 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.host())
    }
}
impl Debug for Be32 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.host())
    }
}

/// An Ethernet address (IEEE 802).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of an interface that carries `address`: `0a:58` and the last four bytes of the
    /// address, the convention of the CNI plugins. A node thus knows its neighbours without asking.
    #[inline(always)]
    pub fn of<A: Address>(address: A) -> Self {
        let [a, b, c, d] = address.low32().to_be_bytes();
        Self([0x0a, 0x58, a, b, c, d])
    }
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// The host side of every pod's veth, which is every pod's gateway ([`V4::GATEWAY`], [`V6::GATEWAY`]).
    pub const GATEWAY: Self = Self([0x0a, 0x58, 169, 254, 1, 1]);

    /// Whether it stands for several stations, or all (IEEE 802).
    #[inline(always)]
    pub fn is_group(self) -> bool {
        let [first, ..] = self.0;
        first & 1 != 0
    }
}

impl Display for Mac {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
impl Debug for Mac {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// The two families of IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

impl Family {
    /// Length of its IP header without options or extensions.
    #[inline(always)]
    pub const fn header(self) -> usize {
        match self {
            Self::V4 => ip::LENGTH,
            Self::V6 => ip::v6::LENGTH,
        }
    }
}

/// An IP address of one family. Everything above `wire` is written once, generic over it.
pub trait Address: Plain + PartialEq + Eq + Ord + Debug + Display + Default + core::hash::Hash {
    /// The `EtherType` of the family's packets.
    const ETHERTYPE: Be16;
    /// What a pod that reaches itself through a Service sees as its client: its own address would not
    /// leave it again. Of the link-local ranges (RFC 3927, RFC 4291), so that nobody else can have it.
    const ITSELF: Self;
    /// Which it is.
    const FAMILY: Family;
    /// The version in the first four bits of the IP header.
    const VERSION: u8;
    /// Length of the IP header without options or extensions.
    const HEADER: usize;
    /// Offset of the source address in the IP header.
    const SOURCE: usize;
    /// Offset of the target address in the IP header.
    const TARGET: usize;
    /// Offset of the transport protocol's number in the IP header.
    const PROTOCOL: usize;
    /// Offset of the hops a packet may still take.
    const HOPS: usize;
    /// Offset of the header's own checksum, where the family has one.
    const CHECKSUM: Option<usize>;
    /// The numbers of its ICMP.
    const ICMP: icmp::Numbers;
    /// Bits in an address: 32 or 128, the longest prefix.
    const BITS: u32;
    /// Whether it is one of the host's addresses for itself (RFC 1122, section 3.2.1.3; RFC 4291, section 2.5.3).
    fn is_loopback(self) -> bool;
    /// The last 32 bits, host order: what hashes and hardware addresses are made of.
    fn low32(self) -> u32;
    /// All bits, folded into 32, host order.
    fn fold32(self) -> u32;
    /// The address in sixteen bytes: an IPv4 one as `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
    fn to_v6(self) -> V6;
    /// The address that these sixteen bytes stand for; any other in its place if they are of another family.
    fn from_v6(address: V6) -> Self;
    /// The sum of the address's 16-bit words as they lie in memory, not folded (RFC 1071, section 2).
    fn sum(self) -> u32;
    /// Whether it stands for one host that others can send to: it is not unspecified, a group's, everybody's, or a
    /// host's own word for itself (RFC 1122 section 3.2.1.3, RFC 4291 section 2.7).
    fn is_one_host(self) -> bool;
}

/// An IPv4 address, in wire order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct V4(pub [u8; 4]);

impl V4 {
    /// The address every pod has as its gateway, on a link of its own (RFC 3927 range).
    pub const GATEWAY: Self = Self([169, 254, 1, 1]);
}

impl Address for V4 {
    const ETHERTYPE: Be16 = ethernet::IPV4;
    const ITSELF: Self = V4([169, 254, 42, 1]);
    const FAMILY: Family = Family::V4;
    const VERSION: u8 = 4;
    const HEADER: usize = ip::LENGTH;
    const SOURCE: usize = ip::SOURCE;
    const TARGET: usize = ip::TARGET;
    const PROTOCOL: usize = ip::PROTOCOL;
    const HOPS: usize = ip::TTL;
    const CHECKSUM: Option<usize> = Some(ip::CHECKSUM);
    const ICMP: icmp::Numbers = icmp::Numbers::V4;
    const BITS: u32 = 32;
    #[inline(always)]
    fn is_loopback(self) -> bool {
        let [first, ..] = self.0;
        first == 127
    }
    #[inline(always)]
    fn low32(self) -> u32 {
        u32::from_be_bytes(self.0)
    }
    #[inline(always)]
    fn fold32(self) -> u32 {
        u32::from_be_bytes(self.0)
    }
    #[inline(always)]
    fn to_v6(self) -> V6 {
        let [a, b, c, d] = self.0;
        V6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }
    #[inline(always)]
    fn from_v6(address: V6) -> Self {
        let [.., a, b, c, d] = address.0;
        Self([a, b, c, d])
    }
    #[inline(always)]
    fn sum(self) -> u32 {
        let [a, b, c, d] = self.0;
        u16::from_ne_bytes([a, b]) as u32 + u16::from_ne_bytes([c, d]) as u32
    }
    #[inline(always)]
    fn is_one_host(self) -> bool {
        let [first, ..] = self.0;
        first != 0 && first != 127 && first < 224
    }
}

/// An IPv6 address, in wire order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C, align(4))]
pub struct V6(pub [u8; 16]);

/// As the bytes. As a number, because the compiler forgets for an array of bytes how it is aligned.
impl Ord for V6 {
    #[inline(always)]
    fn cmp(&self, other: &Self) -> Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for V6 {
    #[inline(always)]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
    #[inline(always)]
    fn lt(&self, other: &Self) -> bool {
        u128::from_be_bytes(self.0) < u128::from_be_bytes(other.0)
    }
}

impl V6 {
    /// As [`V4::GATEWAY`], in the range of RFC 4291, section 2.5.6.
    pub const GATEWAY: Self = Self([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// Whether it stands for an IPv4 address (RFC 4291, section 2.5.5.2).
    #[inline(always)]
    pub fn is_v4(self) -> bool {
        u128::from_be_bytes(self.0) >> 32 == 0xffff
    }
    /// Whether it stands for a group (RFC 4291, section 2.7).
    #[inline(always)]
    pub fn is_multicast(self) -> bool {
        let [first, ..] = self.0;
        first == 0xff
    }
    /// The family of the address it stands for.
    #[inline(always)]
    pub fn family(self) -> Family {
        if self.is_v4() { Family::V4 } else { Family::V6 }
    }
}

impl Address for V6 {
    const ETHERTYPE: Be16 = ethernet::IPV6;
    const ITSELF: Self = V6([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 169, 254, 42, 1]);
    const FAMILY: Family = Family::V6;
    const VERSION: u8 = 6;
    const HEADER: usize = ip::v6::LENGTH;
    const SOURCE: usize = ip::v6::SOURCE;
    const TARGET: usize = ip::v6::TARGET;
    const PROTOCOL: usize = ip::v6::NEXT_HEADER;
    const HOPS: usize = ip::v6::HOP_LIMIT;
    const CHECKSUM: Option<usize> = None;
    const ICMP: icmp::Numbers = icmp::Numbers::V6;
    const BITS: u32 = 128;
    #[inline(always)]
    fn is_loopback(self) -> bool {
        u128::from_be_bytes(self.0) == 1
    }
    #[inline(always)]
    fn low32(self) -> u32 {
        let [.., a, b, c, d] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }
    #[inline(always)]
    fn fold32(self) -> u32 {
        let words = u128::from_be_bytes(self.0);
        (words >> 96) as u32 ^ (words >> 64) as u32 ^ (words >> 32) as u32 ^ words as u32
    }
    #[inline(always)]
    fn to_v6(self) -> V6 {
        self
    }
    #[inline(always)]
    fn from_v6(address: V6) -> Self {
        address
    }
    #[inline(always)]
    fn sum(self) -> u32 {
        let words = u128::from_ne_bytes(self.0);
        let mut sum = 0;
        let mut shift = 0;
        while shift < 128 {
            sum += (words >> shift) as u32 & 0xffff;
            shift += 16;
        }
        sum
    }
    #[inline(always)]
    fn is_one_host(self) -> bool {
        u128::from_be_bytes(self.0) > 1 && !self.is_multicast()
    }
}

impl Display for V4 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(&core::net::Ipv4Addr::from(self.0), f)
    }
}
impl Debug for V4 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}
impl Display for V6 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(&core::net::Ipv6Addr::from(self.0), f)
    }
}
impl Debug for V6 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}
