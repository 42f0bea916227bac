//! Flows that nodes' interfaces know: who began them. Security groups need it to be stateful, the outbound
//! rule so that it leaves the replies to hosts outside alone.
//!
//! A flow is forgotten when no packet was seen for four minutes, the cloud's default (Microsoft Learn,
//! "Virtual network", `flowTimeoutInMinutes`). An interface holds 500,000 flows (Microsoft Learn, "Virtual
//! machine network bandwidth", flow limits).

use std::collections::HashMap;

use super::Loss;
use super::packet::Tuple;
use super::seats::{NodeId, Seats};
use crate::model::Direction;

const TIMEOUT_NS: u64 = 240 * 1_000_000_000;
const MOST: usize = 500_000;

/// The flows of all interfaces.
#[derive(Debug, Default)]
pub(super) struct Flows {
    interfaces: HashMap<NodeId, HashMap<Tuple, Row>>,
}

#[derive(Debug)]
struct Row {
    /// The direction of the first packet.
    began: Direction,
    seen_ns: u64,
}

impl Row {
    fn is_over(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.seen_ns) >= TIMEOUT_NS
    }
}

impl Flows {
    /// In which direction the flow of a packet began that passes a node's interface now.
    pub(super) fn began(
        &mut self,
        node: NodeId,
        direction: Direction,
        packet: Tuple,
        now_ns: u64,
    ) -> Option<Direction> {
        let row = self.interfaces.get_mut(&node)?.get_mut(&as_sent(direction, packet))?;
        if row.is_over(now_ns) {
            return None;
        }
        row.seen_ns = now_ns;
        Some(row.began)
    }

    /// A flow begins with a packet that passes a node's interface now.
    ///
    /// # Errors
    /// [`Loss::FlowsExhausted`].
    pub(super) fn begin(
        &mut self,
        node: NodeId,
        direction: Direction,
        packet: Tuple,
        now_ns: u64,
    ) -> Result<(), Loss> {
        let flows = self.interfaces.entry(node).or_default();
        let key = as_sent(direction, packet);
        if flows.len() >= MOST && !flows.contains_key(&key) {
            return Err(Loss::FlowsExhausted);
        }
        flows.insert(key, Row { began: direction, seen_ns: now_ns });
        Ok(())
    }

    /// Forgets what is over.
    pub(super) fn sweep(&mut self, now_ns: u64) {
        for flows in self.interfaces.values_mut() {
            flows.retain(|_, row| !row.is_over(now_ns));
        }
    }

    /// Forgets nodes that are gone.
    pub(super) fn retain_nodes(&mut self, seats: &Seats) {
        self.interfaces.retain(|node, _| seats.has(*node));
    }

    pub(super) fn len(&self) -> usize {
        self.interfaces.values().map(HashMap::len).sum()
    }
}

/// Both directions of a flow are one row, as the node sends it.
fn as_sent(direction: Direction, packet: Tuple) -> Tuple {
    match direction {
        Direction::Outbound => packet,
        Direction::Inbound => packet.reversed(),
    }
}
