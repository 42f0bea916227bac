//! Ports of packets that come in pieces: later pieces have those of the first, which must come first.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use super::Loss;
use super::packet::{Fragment, Packet, Tuple};

/// How long pieces may follow (RFC 8200, section 4.5, has a receiver wait 60 seconds, Linux 30).
const TIMEOUT_NS: u64 = 30 * 1_000_000_000;
/// Packets in pieces at one time; where there are more, the oldest is forgotten.
const MOST: usize = 4096;

/// Packets whose first piece was seen.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    /// Their flows, and when their first piece came.
    known: HashMap<Key, (Tuple, u64)>,
    /// In the order they came, and when.
    order: VecDeque<(Key, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    target: IpAddr,
    id: u32,
}

impl Fragments {
    /// The flow of a packet, also of a later piece.
    ///
    /// # Errors
    /// [`Loss::FragmentWithoutFirst`], or [`Loss::Unreadable`] if its ports are not in it though they should.
    pub(super) fn tuple(&mut self, packet: &Packet, now_ns: u64) -> Result<Tuple, Loss> {
        let key = |id| Key { source: packet.source, target: packet.target, id };
        while let Some((oldest, seen_ns)) = self.order.front()
            && (now_ns.saturating_sub(*seen_ns) >= TIMEOUT_NS || self.order.len() > MOST)
        {
            // Another packet may have had the same number since.
            if self.known.get(oldest).is_some_and(|(_, since_ns)| since_ns == seen_ns) {
                self.known.remove(oldest);
            }
            self.order.pop_front();
        }
        match packet.fragment {
            Fragment::Whole => packet.tuple().ok_or(Loss::Unreadable),
            Fragment::First(id) => {
                let tuple = packet.tuple().ok_or(Loss::Unreadable)?;
                self.known.insert(key(id), (tuple, now_ns));
                self.order.push_back((key(id), now_ns));
                Ok(tuple)
            }
            Fragment::Later(id) => {
                let known = self.known.get(&key(id));
                known.map(|(tuple, _)| *tuple).ok_or(Loss::FragmentWithoutFirst)
            }
        }
    }
}
