//! The fabric as a switch, where its bridge would be what is measured.

use dataplane::wire::Mac;
use userspace::engine::kernel::switch::Switch;

use super::ground::mac;
use super::{Topology, fabric_side};
use crate::fabric;

impl Topology {
    /// Lets nodes' frames for each other pass the fabric's bridge by, for as long as the switch lives: a program hands
    /// each to the other node's uplink at once, whatever dataplane is behind it. Everything else takes the bridge, and
    /// who looks at that sees nothing of the rest. `None` where nodes are not joined by a bridge.
    ///
    /// # Errors
    /// See [`Switch::join`].
    pub fn switch(&self) -> Result<Option<Switch>, userspace::engine::kernel::Error> {
        let fabric = self.fabric();
        if fabric::is_emulated(&self.cluster) || !fabric.exists() {
            return Ok(None);
        }
        let ports: Vec<(String, Mac)> =
            self.cluster.nodes.iter().map(|node| (fabric_side(&node.name), mac(node.address()))).collect();
        let ports = ports.iter().map(|(port, station)| (port.as_str(), *station));
        Switch::join(&fabric.path(), ports).map(Some)
    }
}
