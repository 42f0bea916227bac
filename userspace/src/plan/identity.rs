//! What policies can tell apart about addresses.
//!
//! A **feature** is something that a policy may ask of an address: to be matched by a certain peer, or,
//! where an egress rule names a port, to have a pod behind it that calls a certain number so. Addresses
//! with the same features are one identity: whatever policies say of one, they say of all. So the policy
//! table needs a row for an identity and not for every address.
//!
//! 1. Pods have the features of the peers that select them by label, and of the blocks they lie in.
//! 2. Nodes, and pods that live in their nodes' network, have those of the blocks alone.
//! 3. So has any other address.
//! 4. Nothing asked of it: [`Identity::REMOTE_NODE`] for a node, else [`Identity::WORLD`].
//! 5. A node's own address is [`Identity::HOST`] to itself, whatever its features.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dataplane::tables::{Endpoint, Identity};

use super::bits::Bits;
use super::numbers::Numbers;
use super::policy::{Peer, Policy, Ports, Rule};
use super::prefix::Longest;
use super::selector::Pods;
use super::{Family, Prefix};
use crate::model::Protocol;

/// Something that a policy may ask of an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Feature {
    /// It is matched by this peer.
    Peer(Peer),
    /// It is a pod's, which calls this port so.
    Port(Protocol, String, u16),
}

/// The identities of a cluster, the same on all its nodes but for [`Identity::HOST`].
#[derive(Clone, Debug)]
pub(super) struct Identities<A> {
    features: Numbers<Feature>,
    /// By their features' numbers.
    classes: Numbers<Bits>,
    /// The identities that have a feature, by its number.
    having: HashMap<u32, Vec<Identity>>,
    /// What ports that egress rules name may stand for: the number, and the number of the feature.
    named: HashMap<(Protocol, String), BTreeSet<(u16, u32)>>,
    addresses: Longest<A, Identity>,
    /// Identities that the blocks alone give to nodes.
    nodes: HashMap<A, Identity>,
}

impl<A: Family> Identities<A> {
    /// Tells addresses apart as far as the policies do.
    pub(super) fn of(policies: &[Policy], pods: &Pods<'_, A>, nodes: &[A], previous: Option<&Self>) -> Self {
        let mut identities = Self {
            features: Numbers::after(previous.map(|previous| &previous.features), 0),
            classes: Numbers::after(previous.map(|previous| &previous.classes), Identity::FIRST.0),
            having: HashMap::new(),
            named: HashMap::new(),
            addresses: Longest::new(),
            nodes: HashMap::new(),
        };
        let rules: Vec<_> = policies.iter().flat_map(|policy| &policy.rules).collect();
        let blocks = identities.blocks(&rules);
        for (prefix, features) in blocks.rows() {
            identities.place(*prefix, features, Identity::WORLD);
        }
        for ((_, address), features) in pods.list.iter().zip(identities.pods(&rules, pods, &blocks)) {
            identities.place(Prefix::host(*address), &features, Identity::WORLD);
        }
        for node in nodes {
            let features = blocks.find(*node).cloned().unwrap_or_default();
            let identity = identities.place(Prefix::host(*node), &features, Identity::REMOTE_NODE);
            identities.nodes.insert(*node, identity);
        }
        identities
    }

    /// 3. The features of addresses as such: those of the longest prefix that holds them.
    fn blocks(&mut self, rules: &[&Rule]) -> Longest<A, Bits> {
        let mut blocks = BTreeMap::new();
        for peer in rules.iter().flat_map(|rule| rule.peers.iter().flatten()) {
            let Peer::Block(range, except) = peer else { continue };
            if let Some(range) = Prefix::<A>::of(*range) {
                let except: Vec<_> = except.iter().filter_map(|range| Prefix::<A>::of(*range)).collect();
                blocks.insert(self.features.give(&Feature::Peer(peer.clone())), (range, except));
            }
        }
        let edges = blocks.values().flat_map(|(range, except)| except.iter().chain([range]).copied());
        let edges: BTreeSet<_> = edges.chain([Prefix::all()]).collect();
        let mut prefixes = Longest::new();
        for edge in edges {
            // Every border of a block is an edge: what holds for one address of the prefix that is in no
            // longer one holds for all of them.
            let inside = blocks.iter().filter(|(_, (range, except))| {
                range.covers(&edge) && !except.iter().any(|except| except.covers(&edge))
            });
            prefixes.put(edge, inside.map(|(feature, _)| *feature as usize).collect());
        }
        prefixes
    }

    /// 1. The features of each pod.
    fn pods(&mut self, rules: &[&Rule], pods: &Pods<'_, A>, blocks: &Longest<A, Bits>) -> Vec<Bits> {
        let of_block = |(_, address): &(_, A)| blocks.find(*address).cloned().unwrap_or_default();
        let mut features: Vec<Bits> = pods.list.iter().map(of_block).collect();
        let mut seen = Bits::default();
        for peer in rules.iter().flat_map(|rule| rule.peers.iter().flatten()) {
            let Peer::Pods(namespaces, selector) = peer else { continue };
            let feature = self.features.give(&Feature::Peer(peer.clone())) as usize;
            if !seen.contains(feature) {
                seen.insert(feature);
                pods.select(namespaces, selector).iter().for_each(|pod| features[pod].insert(feature));
            }
        }
        for rule in rules.iter().filter(|rule| rule.direction == Endpoint::EGRESS) {
            for port in &rule.ports {
                let Ports::Named(protocol, name) = port else { continue };
                self.named.entry((*protocol, name.clone())).or_default();
            }
        }
        for ((pod, _), features) in pods.list.iter().zip(&mut features) {
            for port in &pod.ports {
                let Some(name) = &port.name else { continue };
                let Some(numbers) = self.named.get_mut(&(port.protocol, name.clone())) else { continue };
                let feature = self.features.give(&Feature::Port(port.protocol, name.clone(), port.port));
                numbers.insert((port.port, feature));
                features.insert(feature as usize);
            }
        }
        features
    }

    /// Gives the prefix the identity of its features, or the one for addresses without any.
    fn place(&mut self, prefix: Prefix<A>, features: &Bits, without: Identity) -> Identity {
        let identity = if features.is_empty() { without } else { self.class(features) };
        // A row that says what a shorter prefix says already is left out.
        if self.addresses.find_shorter(prefix.key, prefix.bits) != Some(&identity) {
            self.addresses.put(prefix, identity);
        }
        identity
    }

    fn class(&mut self, features: &Bits) -> Identity {
        let known = self.classes.find(features);
        let identity = Identity(self.classes.give(features));
        if known.is_none() {
            for feature in features.iter() {
                self.having.entry(feature as u32).or_default().push(identity);
            }
        }
        identity
    }

    /// The identities that the peer matches.
    pub(super) fn matched_by(&self, peer: &Peer) -> &[Identity] {
        let feature = self.features.find(&Feature::Peer(peer.clone()));
        feature.map_or(&[], |feature| self.having(feature))
    }
    /// What the name of a port in an egress rule stands for: the number, and the identities where it does.
    pub(super) fn named(&self, protocol: Protocol, name: &str) -> impl Iterator<Item = (u16, &[Identity])> {
        let numbers = self.named.get(&(protocol, name.to_owned()));
        numbers.into_iter().flatten().map(|(number, feature)| (*number, self.having(*feature)))
    }
    fn having(&self, feature: u32) -> &[Identity] {
        self.having.get(&feature).map_or(&[], Vec::as_slice)
    }
    /// What the node would be if it were not itself.
    pub(super) fn of_node(&self, node: Option<A>) -> Identity {
        node.and_then(|node| self.nodes.get(&node).copied()).unwrap_or(Identity::REMOTE_NODE)
    }
    /// What an address is to policies.
    pub(super) fn of_address(&self, address: A) -> Identity {
        self.addresses.find(address).copied().unwrap_or(Identity::WORLD)
    }
    /// The rows of the table on the node with this address.
    pub(super) fn rows(&self, node: Option<A>) -> BTreeMap<Prefix<A>, Identity> {
        let mut rows = self.addresses.rows().clone();
        // 5.
        rows.extend(node.map(|node| (Prefix::host(node), Identity::HOST)));
        rows
    }
}
