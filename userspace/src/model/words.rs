//! The words that fields of podpath's own kinds may be, each with what it means. The reader knows no others, and the
//! schema offers these.

use super::settings::{
    Acceleration, Algorithm, Direction, Encapsulation, Established, FabricKind, Forward, IpBlocks, Probe,
};

/// A word, and what it means.
pub(super) type Word<T> = (&'static str, T);

pub(super) const ENCAPSULATIONS: [Word<Encapsulation>; 2] =
    [("vxlan", Encapsulation::Vxlan), ("geneve", Encapsulation::Geneve)];
pub(super) const ALGORITHMS: [Word<Algorithm>; 2] =
    [("maglev", Algorithm::Maglev), ("random", Algorithm::Random)];
pub(super) const ACCELERATIONS: [Word<Acceleration>; 2] =
    [("disabled", Acceleration::Disabled), ("native", Acceleration::Native)];
pub(super) const ESTABLISHED: [Word<Established>; 2] =
    [("keep", Established::Keep), ("cut", Established::Cut)];
pub(super) const IP_BLOCKS: [Word<IpBlocks>; 2] =
    [("literal", IpBlocks::Literal), ("outside", IpBlocks::Outside)];
pub(super) const PROBES: [Word<Probe>; 2] = [("tcp", Probe::Tcp), ("http", Probe::Http)];
pub(super) const FORWARDS: [Word<Forward>; 3] =
    [("floating-ip", Forward::FloatingIp), ("node-port", Forward::NodePort), ("ip-in-ip", Forward::IpInIp)];
pub(super) const FABRICS: [Word<FabricKind>; 2] =
    [("bridge", FabricKind::Bridge), ("emulator", FabricKind::Emulator)];

/// Of a user-defined route. Source: Azure, "Virtual network traffic routing".
pub(super) const NEXT_HOPS: [&str; 4] = ["Internet", "None", "VirtualAppliance", "VirtualNetwork"];
/// Of a security rule, as the others that follow. Source: Azure, "Network security groups".
pub(super) const DIRECTIONS: [Word<Option<Direction>>; 2] =
    [("Inbound", Some(Direction::Inbound)), ("Outbound", Some(Direction::Outbound))];
pub(super) const ACCESSES: [Word<Option<bool>>; 2] = [("Allow", Some(true)), ("Deny", Some(false))];
/// With their numbers.
pub(super) const SECURITY_PROTOCOLS: [Word<Option<u8>>; 4] =
    [("*", None), ("Icmp", Some(1)), ("Tcp", Some(6)), ("Udp", Some(17))];
/// Of a port.
pub(super) const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// The words alone.
pub(super) fn of<T>(words: &[Word<T>]) -> Vec<&'static str> {
    words.iter().map(|(word, _)| *word).collect()
}
