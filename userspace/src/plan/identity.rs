//! What policies can tell apart about addresses.
//!
//! A **feature** is something that a policy may ask of an address: to be matched by a certain peer, or,
//! where an egress rule names a port, to have a pod behind it that calls a certain number so. Addresses
//! with the same features are one identity: whatever policies say of one, they say of all. So the policy
//! table needs a row for an identity and not for every address.
//!
//! 1. Pods have the features of the peers that select them by label, of the blocks they lie in that reach
//!    pods, and of the ports they name.
//! 2. Nodes, and pods that live in their nodes' network, have those of the blocks and of the peers that
//!    select nodes.
//! 3. Any other address has those of the blocks alone.
//! 4. Nothing asked of it: [`Identity::REMOTE_NODE`] for a node, else [`Identity::WORLD`].
//! 5. A node's own address is [`Identity::HOST`] to itself, whatever its features.
//! 6. The tunnel carries a pod's identity to other nodes. Each plans by itself, and some have seen more of the
//!    cluster's past than others: so an identity's number says what it is, by a hash of its features.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use dataplane::tables::{Endpoint, Identity};

use super::bits::Bits;
use super::hash;
use super::numbers::{Marks, Numbers};
use super::policy::{Peer, Policy, Ports, Reach, Rule};
use super::prefix::Longest;
use super::selector::{Namespaces, Pods, Selector};
use super::{Family, Prefix};
use crate::model::{ContainerPort, Labels, Protocol};

/// Numbers of identities: so many as the tunnel's network identifier has room for, from the first on.
pub(super) const NUMBERS: (u32, u32) = (Identity::FIRST.0, (1 << 24) - Identity::FIRST.0);

/// Something that a policy may ask of an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Feature {
    /// It is matched by this peer.
    Peer(Peer),
    /// It is a pod's, which calls this port so.
    Port(Protocol, String, u16),
}

/// Whom a clause is about, as features.
#[derive(Debug)]
pub(super) struct Asked {
    /// One of these; whatever if `None`.
    peers: Option<Vec<u32>>,
    /// And this one, if there is one: the target calls a port so.
    serving: Option<u32>,
}

impl Asked {
    /// Nothing is asked.
    pub(super) fn is_anybody(&self) -> bool {
        self.peers.is_none() && self.serving.is_none()
    }
}

/// Somebody's identity is another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renamed {
    pub(super) before: Identity,
    pub(super) after: Identity,
    /// Nobody has the former any more.
    pub(super) gone: bool,
    /// Nobody had the latter.
    pub(super) fresh: bool,
}

/// A port that egress rules name, as some pod has it: protocol, number, and the number of its feature.
type NamedPort = (Protocol, u16, u32);

/// What policies ask, by number.
#[derive(Clone, Debug)]
struct Features {
    numbers: Numbers<Feature>,
    /// By the feature's number: of what it is, and not of its number.
    hashes: HashMap<u32, u64>,
}

impl Features {
    fn after(previous: Option<&Self>) -> Self {
        let numbers = Numbers::after(previous.map(|previous| &previous.numbers), 0);
        Self { numbers, hashes: HashMap::new() }
    }
    /// The number of the feature; it has one from here on.
    fn give(&mut self, feature: &Feature) -> u32 {
        let number = self.numbers.give(feature);
        self.hashes.entry(number).or_insert_with(|| hash::mixed(format!("{feature:?}").as_bytes()));
        number
    }
    /// Of all of these, in whatever order they were numbered.
    fn hash(&self, features: &Bits) -> u64 {
        let hashes = features.iter().filter_map(|feature| self.hashes.get(&(feature as u32)));
        hashes.fold(0, |sum, hash| sum.wrapping_add(*hash))
    }
}

/// The identities of a cluster, the same on all its nodes but for [`Identity::HOST`].
#[derive(Clone, Debug)]
pub(super) struct Identities<A> {
    features: Features,
    /// By their features' numbers.
    classes: Marks<Bits>,
    /// Of each identity, its features, and how many prefixes have it.
    known: HashMap<Identity, (Bits, usize)>,
    /// The identities that have a feature, by its number.
    having: HashMap<u32, BTreeSet<Identity>>,
    /// What ports that egress rules name may stand for.
    named: HashMap<String, BTreeSet<NamedPort>>,
    /// The peers that are pods, and the numbers of their features.
    selectors: Vec<(u32, Namespaces, Selector)>,
    /// The features of addresses as such: those of the longest prefix that holds them.
    blocks: Longest<A, Bits>,
    /// Those of them that pods do not have.
    outside: Bits,
    addresses: Longest<A, Identity>,
    /// Identities that nodes have for others.
    nodes: HashMap<A, Identity>,
}

impl<A: Family> Identities<A> {
    /// See [`super::Plan::stray`].
    pub(super) fn stray(&mut self) {
        self.features.numbers.stray();
        self.classes.stray();
    }

    /// Tells addresses apart as far as the policies do.
    pub(super) fn of(
        policies: &[Policy],
        pods: &Pods<'_, A>,
        nodes: &[(A, &Labels)],
        previous: Option<&Self>,
    ) -> Self {
        let mut identities = Self {
            features: Features::after(previous.map(|previous| &previous.features)),
            classes: Marks::after(previous.map(|previous| &previous.classes), NUMBERS),
            known: HashMap::new(),
            having: HashMap::new(),
            named: HashMap::new(),
            selectors: Vec::new(),
            blocks: Longest::new(),
            outside: Bits::default(),
            addresses: Longest::new(),
            nodes: HashMap::new(),
        };
        let rules: Vec<_> = policies.iter().flat_map(|policy| &policy.rules).collect();
        let of_nodes = identities.read(&rules);
        let blocks: Vec<_> =
            identities.blocks.rows().iter().map(|(prefix, features)| (*prefix, features.clone())).collect();
        for (prefix, features) in blocks {
            identities.place(prefix, &features, Identity::WORLD);
        }
        for ((_, address), features) in pods.list.iter().zip(identities.pods(pods)) {
            identities.place(Prefix::host(*address), &features, Identity::WORLD);
        }
        for (node, labels) in nodes {
            let mut features = identities.blocks.find(*node).cloned().unwrap_or_default();
            let selecting = of_nodes.iter().filter(|(_, selector)| selector.matches(labels));
            selecting.for_each(|(feature, _)| features.insert(*feature as usize));
            let identity = identities.place(Prefix::host(*node), &features, Identity::REMOTE_NODE);
            identities.nodes.insert(*node, identity);
        }
        identities
    }

    /// Gives a number to everything that rules ask, and finds the peers that are nodes.
    fn read(&mut self, rules: &[&Rule]) -> Vec<(u32, Selector)> {
        let (mut blocks, mut nodes) = (BTreeMap::new(), Vec::new());
        let mut seen = BTreeSet::new();
        for peer in rules.iter().flat_map(|rule| rule.peers.iter().flatten()) {
            let feature = self.features.give(&Feature::Peer(peer.clone()));
            if !seen.insert(feature) {
                continue;
            }
            match peer {
                Peer::Pods(namespaces, pods) => {
                    self.selectors.push((feature, namespaces.clone(), pods.clone()));
                }
                Peer::Nodes(selector) => nodes.push((feature, selector.clone())),
                Peer::Block(range, except, reach) => {
                    let Some(range) = Prefix::<A>::of(*range) else { continue };
                    let except: Vec<_> = except.iter().filter_map(|range| Prefix::<A>::of(*range)).collect();
                    blocks.insert(feature, (range, except));
                    if *reach == Reach::Outside {
                        self.outside.insert(feature as usize);
                    }
                }
            }
        }
        self.blocks = self::blocks(&blocks);
        for port in
            rules.iter().filter(|rule| rule.direction == Endpoint::EGRESS).flat_map(|rule| &rule.ports)
        {
            if let Ports::Named(_, name) = port {
                self.named.entry(name.clone()).or_default();
            }
        }
        nodes
    }

    /// 1. The features of each pod.
    fn pods(&mut self, pods: &Pods<'_, A>) -> Vec<Bits> {
        let mut features: Vec<_> =
            pods.list.iter().map(|(pod, address)| self.of_itself(*address, &pod.ports)).collect();
        for (feature, namespaces, selector) in &self.selectors {
            let selected = pods.select(namespaces, selector);
            selected.iter().for_each(|pod| features[pod].insert(*feature as usize));
        }
        features
    }

    /// The features that a pod has whatever its labels.
    fn of_itself(&mut self, address: A, ports: &[ContainerPort]) -> Bits {
        let mut features = self.blocks.find(address).cloned().unwrap_or_default();
        features.subtract(&self.outside);
        for port in ports {
            let Some(name) = &port.name else { continue };
            let Some(numbers) = self.named.get_mut(name) else { continue };
            let feature = self.features.give(&Feature::Port(port.protocol, name.clone(), port.port));
            numbers.insert((port.protocol, port.port, feature));
            features.insert(feature as usize);
        }
        features
    }

    /// A pod's labels are others now: tells it apart anew.
    pub(super) fn relabel(
        &mut self,
        address: A,
        ports: &[ContainerPort],
        named: impl Fn(&Namespaces, &Selector) -> bool,
    ) -> Renamed {
        let before = self.of_address(address);
        let mut features = self.of_itself(address, ports);
        let selecting = self.selectors.iter().filter(|(_, namespaces, selector)| named(namespaces, selector));
        selecting.for_each(|(feature, ..)| features.insert(*feature as usize));
        self.addresses.remove(&Prefix::host(address));
        let after = self.place(Prefix::host(address), &features, Identity::WORLD);
        if let Some((features, users)) = self.known.get_mut(&before) {
            *users -= 1;
            if *users == 0 {
                let features = std::mem::take(features);
                for feature in features.iter() {
                    self.having.get_mut(&(feature as u32)).map(|having| having.remove(&before));
                }
                self.classes.take_back(&features);
                self.known.remove(&before);
            }
        }
        let users = |identity| self.known.get(&identity).map(|(_, users)| *users);
        Renamed {
            before,
            after,
            gone: before >= Identity::FIRST && users(before).is_none(),
            fresh: before != after && users(after) == Some(1),
        }
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
        // 6.
        let identity = Identity(self.classes.give(features, self.features.hash(features)));
        let (_, users) = self.known.entry(identity).or_insert_with(|| {
            for feature in features.iter() {
                self.having.entry(feature as u32).or_default().insert(identity);
            }
            (features.clone(), 0)
        });
        *users += 1;
        identity
    }

    /// What it takes to be one of these peers, and to have the feature as well, if one is given.
    pub(super) fn asked(&self, peers: Option<&[Peer]>, serving: Option<u32>) -> Asked {
        let number = |peer: &Peer| self.features.numbers.find(&Feature::Peer(peer.clone()));
        Asked { peers: peers.map(|peers| peers.iter().filter_map(number).collect()), serving }
    }
    /// The identities that are asked for, each once; none where nothing is asked.
    pub(super) fn matching(&self, asked: &Asked) -> BTreeSet<Identity> {
        let peers = || asked.peers.iter().flatten().flat_map(|peer| self.having(*peer));
        match asked.serving {
            Some(serving) => self.having(serving).filter(|identity| self.matches(asked, *identity)).collect(),
            None => peers().collect(),
        }
    }
    /// Whether the identity is one of those that are asked for.
    pub(super) fn matches(&self, asked: &Asked, identity: Identity) -> bool {
        let Some((features, _)) = self.known.get(&identity) else { return false };
        let has = |feature: &u32| features.contains(*feature as usize);
        !asked.is_anybody()
            && asked.serving.iter().all(has)
            && asked.peers.as_ref().is_none_or(|peers| peers.iter().any(has))
    }
    /// What the name of a port in an egress rule stands for.
    pub(super) fn named(&self, name: &str) -> impl Iterator<Item = &NamedPort> {
        self.named.get(name).into_iter().flatten()
    }
    fn having(&self, feature: u32) -> impl Iterator<Item = Identity> {
        self.having.get(&feature).into_iter().flatten().copied()
    }
    /// What the node would be if it were not itself.
    pub(super) fn of_node(&self, node: Option<A>) -> Identity {
        node.and_then(|node| self.nodes.get(&node).copied()).unwrap_or(Identity::REMOTE_NODE)
    }
    /// Whether somebody has this identity.
    pub(super) fn has(&self, identity: Identity) -> bool {
        self.known.contains_key(&identity)
    }
    /// What an address is to policies.
    pub(super) fn of_address(&self, address: A) -> Identity {
        self.addresses.find(address).copied().unwrap_or(Identity::WORLD)
    }
    /// The rows about an address: its own, and the one that holds without it.
    pub(super) fn around(&self, address: A) -> BTreeMap<Prefix<A>, Identity> {
        let host = Prefix::host(address);
        let own = self.addresses.rows().get(&host).map(|identity| (host, *identity));
        let without = self.addresses.find_shorter(address, A::BITS).copied().unwrap_or(Identity::WORLD);
        own.into_iter().chain([(Prefix::all(), without)]).collect()
    }
    /// The rows of the table on the node with this address.
    pub(super) fn rows(&self, node: Option<A>) -> BTreeMap<Prefix<A>, Identity> {
        let mut rows = self.addresses.rows().clone();
        // 5.
        rows.extend(node.map(|node| (Prefix::host(node), Identity::HOST)));
        rows
    }
}

/// 3. Blocks by the number of their feature, as features by prefix.
fn blocks<A: Family>(blocks: &BTreeMap<u32, (Prefix<A>, Vec<Prefix<A>>)>) -> Longest<A, Bits> {
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
