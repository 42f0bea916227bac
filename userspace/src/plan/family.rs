//! What the tables of one family must hold: the whole of the cluster, then one node's view of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dataplane::tables::{self, Cookie, Endpoint, Home, IfIndex, RuleSet, Table};
use dataplane::wire::Mac;

use super::bits;
use super::diff::used;
use super::fit::{Demand, left_out};
use super::identity::Identities;
use super::policy::{Policy, Tier};
use super::route::Map;
use super::ruleset::RuleSets;
use super::selector::Pods;
use super::service::{Prepared, Services};
use super::{Change, Error, Family, Homes, Links, Rows, mac_of};
use crate::model::{Cluster, ContainerPort, Labels, Service};

/// One node's part in the plan of a family.
pub(super) struct Part<A: Family> {
    /// The node's address; zero if it has none.
    pub(super) address: A,
    /// Rows of its tables.
    pub(super) rows: Rows<A>,
}

/// A pod on its node.
#[derive(Clone, Debug)]
pub(super) struct Local<A> {
    /// `namespace/name`.
    pub(super) id: String,
    pub(super) address: A,
    pub(super) ports: Vec<ContainerPort>,
    /// Of its interface, which is called after the pod's first address.
    mac: Mac,
    pub(super) rules: RuleSet,
    pub(super) isolated: u8,
    /// [`Endpoint::flags`].
    flags: u8,
    /// The names of the policies that select it are those at these places.
    pub(super) policies: bits::Bits,
}

/// What all nodes of a cluster share of one family.
#[derive(Clone, Debug)]
pub(super) struct FamilyPlan<A> {
    /// Of each node, its name.
    nodes: Vec<String>,
    /// Of each node, its address if it has one of this family.
    pub(super) addresses: Vec<Option<A>>,
    /// Of each node, its pods that have an address of their own.
    pub(super) pods: Vec<Vec<Local<A>>>,
    /// In the order in which they are asked.
    pub(super) policies: Arc<[Policy]>,
    pub(super) namespaces: BTreeMap<String, Labels>,
    pub(super) identities: Identities<A>,
    pub(super) sets: RuleSets,
    services: Services<A>,
    map: Map<A>,
}

impl<A: Family> FamilyPlan<A> {
    /// Plans a cluster; see [`super::Plan::after`] for what the previous plan does to it, and
    /// [`super::Plan::resuming`] for rows that are held.
    ///
    /// # Errors
    /// [`Error::TableFull`] for what all nodes share.
    pub(super) fn following(
        cluster: &Cluster,
        policies: Arc<[Policy]>,
        previous: Option<&Self>,
        held: Option<&Rows<A>>,
    ) -> Result<Self, Error> {
        let addresses: Vec<_> = cluster.nodes.iter().map(|node| A::among(&node.addresses)).collect();
        let nodes = cluster.nodes.iter().zip(&addresses);
        let known: Vec<_> = nodes.filter_map(|(node, address)| Some(((*address)?, &node.labels))).collect();
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
                ports: pod.ports.clone(),
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
            namespaces: cluster.namespaces.clone(),
            sets,
            services: Services::of(cluster, previous.map(|previous| &previous.services), held)?,
            map: Map::of(cluster),
        })
    }

    /// See [`super::Plan::stray`].
    pub(super) fn stray(&mut self) {
        self.sets.stray();
        self.identities.stray();
        self.services.stray();
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
        Ok(Part { address: self.addresses[place].unwrap_or_default(), rows })
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
        let fitting = self.fitting(place);
        let address = self.addresses[place];
        let own = self.identities.of_node(address);
        let mut policy = BTreeMap::new();
        for rules in &fitting {
            self.sets.write(*rules, &self.identities, own, &mut policy);
        }
        let (frontends, source_ranges) = self.services.fronts(place as u32);
        Ok(Rows {
            endpoints: self.endpoints((place, links), &fitting)?,
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

    /// What the pods of the node at this place need of the policy table.
    pub(super) fn demands(&self, place: usize) -> BTreeMap<RuleSet, Demand> {
        let own = self.identities.of_node(self.addresses[place]);
        let mut demands: BTreeMap<_, Demand> = BTreeMap::new();
        for pod in &self.pods[place] {
            demands.entry(pod.rules).or_default().pods += 1;
        }
        for (rules, demand) in &mut demands {
            demand.rows = self.sets.size(*rules, &self.identities, own);
        }
        demands
    }

    /// The rule sets of its pods that the policy table of the node at this place has room for.
    pub(super) fn fitting(&self, place: usize) -> BTreeSet<RuleSet> {
        let demands = self.demands(place);
        let out = left_out(&demands, tables::Policy::<A>::CAPACITY as usize);
        demands.into_keys().filter(|rules| !out.contains(rules)).collect()
    }

    /// Who is on the node at this place, if its table has room for these rule sets.
    pub(super) fn endpoints(
        &self,
        (place, links): (usize, &Links),
        fitting: &BTreeSet<RuleSet>,
    ) -> Result<BTreeMap<A, Endpoint>, Error> {
        let endpoint = |pod: &Local<A>| {
            let interface = self.interface((place, links), pod)?;
            let incomplete = if fitting.contains(&pod.rules) { 0 } else { Endpoint::INCOMPLETE };
            let endpoint = Endpoint {
                interface,
                identity: self.identities.of_address(pod.address),
                rules: pod.rules,
                mac: pod.mac,
                isolated: pod.isolated,
                flags: pod.flags | incomplete,
            };
            Ok((pod.address, endpoint))
        };
        self.pods[place].iter().map(endpoint).collect()
    }

    pub(super) fn interface(
        &self,
        (place, links): (usize, &Links),
        pod: &Local<A>,
    ) -> Result<IfIndex, Error> {
        let missing = || Error::NoInterface { node: self.nodes[place].clone(), pod: pod.id.clone() };
        links.pods.get(&pod.id).copied().ok_or_else(missing)
    }

    /// Who has no room for its rules on the node at this place, in a sentence.
    pub(super) fn note(&self, place: usize) -> Option<String> {
        let fitting = self.fitting(place);
        let left_out = self.pods[place].iter().filter(|pod| !fitting.contains(&pod.rules));
        let left_out: Vec<_> = left_out.map(|pod| pod.id.as_str()).collect();
        let (table, capacity) = (tables::Policy::<A>::NAME, tables::Policy::<A>::CAPACITY);
        (!left_out.is_empty()).then(|| {
            format!(
                "node {}: table {table} holds {capacity} rows, too few for the rules of {}: what policies would \
                 have to decide about them is dropped: let policies tell fewer peers apart, or name fewer port \
                 ranges",
                self.nodes[place],
                left_out.join(", ")
            )
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
