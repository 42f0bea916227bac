//! Frames that are made beforehand, and pushed through a path of this process without any link.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use testbed::dataplane::live::{self, Out, Path, Refusal, Wire};
use testbed::dataplane::{Name, chains};
use userspace::model::Cluster;

use crate::cluster::{CLIENT, NODE};
use crate::figure::RECEIVED;
use crate::matrix::{Run, Variant, Way};
use crate::sample::{self, Measured};

/// Source ports of flows: as many flows as there are ports.
const FIRST_PORT: u16 = 1024;

/// Frames between two looks at the clock.
const BATCH: usize = 1024;

/// Why nothing was pushed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path refused the cluster.
    #[error(transparent)]
    Path(#[from] Refusal),
    /// A frame did not leave.
    #[error("a frame that is to leave by the uplink did not; is it refused?")]
    Stuck,
}

/// Pushes frames of established flows, from the client's pod to the Service, as fast as one CPU can.
///
/// # Errors
/// [`Error`].
pub(crate) fn in_memory(
    variant: Variant,
    run: &Run,
    cluster: &Cluster,
    time: Duration,
) -> Result<Measured, Error> {
    // The bare loop knows pods only.
    let way = if variant.dataplane == Name::Bare { Way::OtherNode } else { Way::Service };
    let frames = frames(cluster, sample::dialled(cluster, way), run);
    let kpps = match variant.dataplane {
        Name::Emulator => pushed::<live::emulator::Node>(cluster, &frames, time)?,
        Name::Chains => pushed::<chains::Live>(cluster, &frames, time)?,
        _ => pushed::<live::bare::Loop>(cluster, &frames, time)?,
    };
    Ok(Measured::of(&[(RECEIVED, kpps)]))
}

/// Thousands of frames a second.
fn pushed<P: Path>(cluster: &Cluster, frames: &[Vec<u8>], time: Duration) -> Result<f64, Error> {
    let mut path = P::new(cluster, NODE)?;
    let client = cluster.pod(CLIENT).expect("the built-in cluster has it").address();
    let (begin, mut out) = (Instant::now(), Out::default());
    for frame in frames {
        path.pass(Wire::Pod(client), frame, begin.elapsed(), &mut out);
        if !out.frames().map(|(to, _)| to).eq([Wire::Uplink]) {
            return Err(Error::Stuck);
        }
        out.clear();
    }
    let mut next = frames.iter().cycle();
    let (mut count, start) = (0, Instant::now());
    while start.elapsed() < time {
        let now = begin.elapsed();
        for frame in next.by_ref().take(BATCH) {
            path.pass(Wire::Pod(client), frame, now, &mut out);
            count += out.len();
            out.clear();
        }
    }
    Ok(count as f64 / start.elapsed().as_secs_f64() / 1e3)
}

/// A datagram of each flow, as the client's pod sends it to its gateway.
pub(crate) fn frames(cluster: &Cluster, to: SocketAddrV4, run: &Run) -> Vec<Vec<u8>> {
    let client = cluster.pod(CLIENT).expect("the built-in cluster has it").address();
    let IpAddr::V4(client) = client else { unreachable!("the built-in cluster is IPv4") };
    let ports = (FIRST_PORT..=u16::MAX).take(run.sizes.flows);
    ports.map(|port| datagram(SocketAddrV4::new(client, port), to, run.size_bytes)).collect()
}

/// To a pod's gateway, whose hardware address is that of every node. Without a checksum of UDP, which IPv4 allows.
fn datagram(from: SocketAddrV4, to: SocketAddrV4, size: usize) -> Vec<u8> {
    const GATEWAY: [u8; 6] = ::dataplane::wire::Mac::GATEWAY.0;
    let mac = |address: &Ipv4Addr| testbed::topology::mac((*address).into()).0;
    let udp = 8 + size;
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&((20 + udp) as u16).to_be_bytes());
    ip[12..16].copy_from_slice(&from.ip().octets());
    ip[16..20].copy_from_slice(&to.ip().octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes(), (udp as u16).to_be_bytes(), [0; 2]];
    [&GATEWAY[..], &mac(from.ip()), &[8, 0], &ip, &ports.concat(), &vec![b'x'; size]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Sizes, Workload};

    #[test]
    fn paths_of_this_process_forward_what_is_pushed() {
        let sizes = Sizes { flows: 8, ..Sizes::LEAST };
        let run = Run { sizes, ..Run::new(Workload::Forward, Way::Memory) };
        let cluster = crate::cluster::of("bench-test", sizes).expect("built in");
        for dataplane in [Name::Emulator, Name::Chains, Name::Bare] {
            let measured = in_memory(dataplane.into(), &run, &cluster, Duration::from_millis(5));
            let measured = measured.unwrap_or_else(|error| panic!("{dataplane}: {error}"));
            assert!(measured.figures[RECEIVED] > 0.0, "{dataplane}");
        }
    }

    #[test]
    fn frames_are_sound_and_of_a_flow_each() {
        let sizes = Sizes { flows: 1024, ..Sizes::LEAST };
        let run = Run { sizes, ..Run::new(Workload::Forward, Way::OtherNode) };
        let cluster = crate::cluster::of("bench-test", sizes).expect("built in");
        let mut frames = frames(&cluster, sample::dialled(&cluster, Way::OtherNode), &run);
        for frame in &frames {
            testbed::sound::check(frame, None).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
        frames.sort();
        frames.dedup();
        assert_eq!(frames.len(), 1024);
    }
}
