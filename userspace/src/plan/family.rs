//! What the tables of one family must hold: the whole of the cluster, then one node's view of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use dataplane::tables::{Cookie, Endpoint, Home, RuleSet};
use dataplane::wire::Mac;

use super::bits;
use super::diff::used;
use super::identity::Identities;
use super::policy::{Policy, Tier};
use super::route::Map;
use super::ruleset::RuleSets;
use super::selector::Pods;
use super::service::{Prepared, Services};
use super::{Change, Error, Family, Homes, Links, Rows, RuleName, mac_of};
use crate::model::{Cluster, Service};

/// One node's part in the plan of a family.
pub(super) struct Part<A: Family> {
    /// The node's address; zero if it has none.
    pub(super) address: A,
    /// Rows of its tables.
    pub(super) rows: Rows<A>,
    /// The names of its rules.
    pub(super) rules: Vec<RuleName>,
}

/// A pod on its node.
#[derive(Clone, Debug)]
struct Local<A> {
    /// `namespace/name`.
    id: String,
    address: A,
    /// Of its interface, which is called after the pod's first address.
    mac: Mac,
    rules: RuleSet,
    isolated: u8,
    /// [`Endpoint::flags`].
    flags: u8,
    /// The names of the policies that select it are those at these places.
    policies: bits::Bits,
}

/// What all nodes of a cluster share of one family.
#[derive(Clone, Debug)]
pub(super) struct FamilyPlan<A> {
    /// Of each node, its name.
    nodes: Vec<String>,
    /// Of each node, its address if it has one of this family.
    addresses: Vec<Option<A>>,
    /// Of each node, its pods that have an address of their own.
    pods: Vec<Vec<Local<A>>>,
    /// In the order in which they are asked.
    policies: Arc<[Policy]>,
    identities: Identities<A>,
    sets: RuleSets,
    services: Services<A>,
    map: Map<A>,
}

impl<A: Family> FamilyPlan<A> {
    /// Plans a cluster; see [`super::Plan::after`] for what the previous plan does to it.
    ///
    /// # Errors
    /// [`Error::TableFull`] for what all nodes share.
    pub(super) fn following(
        cluster: &Cluster,
        policies: Arc<[Policy]>,
        previous: Option<&Self>,
    ) -> Result<Self, Error> {
        let addresses: Vec<_> = cluster.nodes.iter().map(|node| A::among(&node.addresses)).collect();
        let nodes = cluster.nodes.iter().zip(&addresses);
        let known: Vec<_> =
            nodes.filter_map(|(node, address)| Some(((*address)?, &node.labels))).collect();
        let found = Pods::of(cluster);
        let (sets, selected) = RuleSets::of(&policies, &found, previous.map(|previous| &previous.sets));
        let places: BTreeMap<_, _> =
            cluster.nodes.iter().zip(0..).map(|(node, place)| (&node.name, place)).collect();
        let mut pods = vec![Vec::new(); cluster.nodes.len()];
        for ((pod, address), selected) in found.list.iter().zip(selected) {
            let Some(place) = places.get(&pod.node) else { continue };
            let local: &mut Vec<_> = &mut pods[*place];
            local.push(Local {
                id: pod.id(),
                address: *address,
                mac: mac_of(pod.address()),
                rules: selected.rules,
                isolated: selected.isolated,
                flags: if cluster.audits(&pod.namespace) { Endpoint::AUDIT } else { 0 },
                policies: selected.policies,
            });
        }
        Ok(Self {
            nodes: cluster.nodes.iter().map(|node| node.name.clone()).collect(),
            addresses,
            pods,
            identities: Identities::of(
                &policies,
                &found,
                &known,
                previous.map(|previous| &previous.identities),
            ),
            policies,
            sets,
            services: Services::of(cluster, previous.map(|previous| &previous.services))?,
            map: Map::of(cluster),
        })
    }

    /// What the node at this place must hold.
    ///
    /// # Errors
    /// [`Error::NoInterface`], [`Error::TableFull`].
    pub(super) fn node(&self, place: usize, links: &Links) -> Result<Part<A>, Error> {
        let rows = self.rows(place, links)?;
        for used in used(&rows) {
            if used.rows > used.capacity as usize {
                let node = format!("node {}", self.nodes[place]);
                return Err(Error::table_full(&node, used.table, used.rows, used.capacity));
            }
        }
        Ok(Part { address: self.addresses[place].unwrap_or_default(), rows, rules: self.sets.names.clone() })
    }

    /// Prepares one Service (`namespace/name`) as it is now, or its end.
    ///
    /// # Errors
    /// [`Error::TableFull`]; nothing has changed then.
    pub(super) fn prepare(&mut self, id: &str, service: Option<&Service>) -> Result<Prepared<A>, Error> {
        self.services.prepare(id, service)
    }
    /// Takes back what was prepared.
    pub(super) fn undo(&mut self, prepared: &Prepared<A>) {
        self.services.undo(prepared);
    }
    /// Makes the change that was prepared, and says what it changes on the node at this place.
    pub(super) fn commit(&mut self, prepared: Prepared<A>, place: usize) -> Vec<Change<A>> {
        self.services.commit(prepared, place as u32)
    }

    fn rows(&self, place: usize, links: &Links) -> Result<Rows<A>, Error> {
        let mut endpoints = BTreeMap::new();
        let mut policy = BTreeMap::new();
        let mut written = bits::Bits::default();
        let address = self.addresses[place];
        let own = self.identities.of_node(address);
        for pod in &self.pods[place] {
            let interface = links
                .pods
                .get(&pod.id)
                .copied()
                .ok_or_else(|| Error::NoInterface { node: self.nodes[place].clone(), pod: pod.id.clone() })?;
            let (rules, isolated, flags) = (pod.rules, pod.isolated, pod.flags);
            endpoints.insert(
                pod.address,
                Endpoint {
                    interface,
                    identity: self.identities.of_address(pod.address),
                    rules,
                    mac: pod.mac,
                    isolated,
                    flags,
                },
            );
            if !written.contains(rules.0 as usize) {
                written.insert(rules.0 as usize);
                self.sets.write(rules, &self.identities, own, &mut policy);
            }
        }
        let (frontends, source_ranges) = self.services.fronts(place as u32);
        Ok(Rows {
            endpoints,
            frontends,
            maglev: self.services.maglev().to_vec(),
            backends: self.services.backends().to_vec(),
            source_ranges,
            identities: self.identities.rows(address),
            policy,
            routes: self.map.rows(place, address.is_some()),
            homes: links.homes.as_ref().map_or_else(BTreeMap::new, |homes| self.homes(place, homes)),
        })
    }

    /// Who lives in which network namespace of the node at this place.
    fn homes(&self, place: usize, homes: &Homes) -> BTreeMap<Cookie, Home<A>> {
        let row = |address, own| Home { address, own, pad: [0; 3] };
        let pods = self.pods[place].iter().filter_map(|pod| {
            let cookie = homes.pods.get(&pod.id)?;
            Some((Cookie::new(*cookie), row(pod.address, 0)))
        });
        let node = self.addresses[place].map(|address| (Cookie::new(homes.node), row(address, 1)));
        pods.chain(node).collect()
    }

    /// The policies that have a say about a pod (`namespace/name`) in a direction, [`Endpoint::INGRESS`] or
    /// [`Endpoint::EGRESS`], by name: NetworkPolicies alone, if one isolates it.
    pub(super) fn isolating(&self, pod: &str, direction: u8) -> Vec<&str> {
        let pod = self.pods.iter().flatten().find(|local| local.id == pod);
        let selecting = pod.into_iter().flat_map(|pod| pod.policies.iter());
        let (network, others): (Vec<_>, Vec<_>) = selecting
            .map(|place| &self.policies[place])
            .filter(|policy| policy.judges & direction != 0)
            .partition(|policy| policy.tier == Tier::Network);
        let judging = if network.is_empty() { others } else { network };
        judging.into_iter().map(|policy| policy.name.as_str()).collect()
    }
}
