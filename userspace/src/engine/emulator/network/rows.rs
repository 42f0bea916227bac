//! What the nodes of a network remember of the packets they saw.

use dataplane::wire::Address;

use super::Network;
use crate::engine::{Claims, Clients, Clock, Engine, Flows, Tracks};
use crate::error::Error;

impl<E: Engine + Clock> Network<E> {
    /// The flows of a family that a node tracks, without those whose time is over: an engine may still hold
    /// them.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn connections<A: Address>(&self, node: usize) -> Result<Flows<A>, Error>
    where
        E: Tracks<A>,
    {
        let (_, engine) = &self.engines[node];
        let now_s = engine.now_s()?;
        let mut rows: Flows<A> = engine.connections()?;
        rows.retain(|(_, row)| !dataplane::conntrack::is_over(row, now_s));
        Ok(rows)
    }

    /// The source ports that a node has claimed in a family.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn masquerades<A: Address>(&self, node: usize) -> Result<Claims<A>, Error>
    where
        E: Tracks<A>,
    {
        self.engines[node].1.masquerades()
    }

    /// The clients of a family that a node's Services remember.
    ///
    /// # Errors
    /// The engine could not be read.
    pub fn affinities<A: Address>(&self, node: usize) -> Result<Clients<A>, Error>
    where
        E: Tracks<A>,
    {
        self.engines[node].1.affinities()
    }
}
