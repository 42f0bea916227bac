//! What the fabric did to packets, told to whoever wants to follow one.
//!
//! **Invariant:** memory is bounded: only the first [`MOST`] packets are followed.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket};
use serde::{Deserialize, Serialize};
use userspace::fabric::{End, Outcome};

/// Packets that are followed.
const MOST: usize = 4096;

/// What the fabric did to a packet, beside passing it on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Where it came from, as it arrived at the fabric.
    pub source: IpAddr,
    /// Where it was to go then.
    pub target: IpAddr,
    /// A line of the walk each; the last says why it was lost, if it was.
    pub says: Vec<String>,
}

/// The packets that are followed.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Their ends as they arrived; a packet's tag is its place, counted from 1.
    ends: Vec<(IpAddr, IpAddr)>,
    pub(super) told: Vec<Told>,
}

impl Telling {
    /// The tag of a frame that arrives; 0 if it is not followed.
    pub(super) fn tag(&mut self, frame: &[u8]) -> u32 {
        match ends(frame) {
            Some(ends) if self.ends.len() < MOST => {
                self.ends.push(ends);
                self.ends.len() as u32
            }
            _ => 0,
        }
    }

    /// Notes what became of a frame.
    pub(super) fn note(&mut self, outcome: &Outcome) {
        let place = (outcome.tag as usize).checked_sub(1);
        let Some((source, target)) = place.and_then(|place| self.ends.get(place)).copied() else { return };
        let mut says: Vec<String> = outcome.notes.iter().map(ToString::to_string).collect();
        if let End::Lost(loss) = outcome.end {
            says.push(format!("{}: {}", loss.slug(), loss.sentence()));
        }
        if !says.is_empty() {
            self.told.push(Told { source, target, says });
        }
    }
}

/// Source and target of a frame with an IP packet.
fn ends(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Ipv4(packet) => {
            let header = packet.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        NetSlice::Ipv6(packet) => {
            let header = packet.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        _ => None,
    }
}
