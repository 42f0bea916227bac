//! Pods that no policy tells apart, and what they may do: for whoever has to weigh policies against each other.

use std::cell::RefCell;
use std::collections::HashMap;

use userspace::model::{Action, Tier};
use userspace::plan::Bits;

use super::set::{Ends, Spans};
use super::view::{Policy, Rule, What, place};
use super::world::World;
use crate::oracle::Direction;

/// Pods that the same policies are for, and that call their ports the same.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) pods: Bits,
    /// One of them, which stands for all.
    pub(super) pod: usize,
    /// The places of the policies that are for them.
    pub(super) policies: Vec<usize>,
}

/// What a rule matches for the pods of a class.
pub(super) type Pieces = Vec<(Ends, Spans)>;

/// The judge of a cluster.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    pub(super) world: &'a World<'a>,
    pub(super) policies: &'a [Policy<'a>],
    pub(super) classes: Vec<Class>,
    /// The class of each pod.
    pub(super) class_of: Vec<usize>,
    /// Where pods of a class may go at a port, as far as it has been asked for.
    known: RefCell<HashMap<(usize, usize, u128), Ends>>,
}

impl<'a> Judge<'a> {
    pub(super) fn of(world: &'a World<'a>, policies: &'a [Policy<'a>]) -> Self {
        let mut of_pods = vec![Vec::new(); world.pods.len()];
        for (index, policy) in policies.iter().enumerate() {
            policy.subject.iter().for_each(|pod| of_pods[pod].push(index));
        }
        let spoken_of: std::collections::BTreeSet<&str> = policies
            .iter()
            .flat_map(|policy| &policy.rules)
            .flat_map(|rule| rule.ports.iter().flatten())
            .filter_map(|port| match &port.what {
                What::Named(_, name) => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let mut known: HashMap<_, usize> = HashMap::new();
        let (mut classes, mut class_of): (Vec<Class>, Vec<usize>) = (Vec::new(), Vec::new());
        for (pod, policies) in of_pods.into_iter().enumerate() {
            let ports = world.pods[pod].ports.iter().filter_map(|port| {
                let name = port.name.as_deref().filter(|name| spoken_of.contains(name))?;
                Some((name, port.protocol, port.port))
            });
            let key = (policies, ports.collect::<Vec<_>>());
            let class = known.get(&key).copied().unwrap_or_else(|| {
                classes.push(Class { pods: Bits::default(), pod, policies: key.0.clone() });
                known.insert(key, classes.len() - 1);
                classes.len() - 1
            });
            classes[class].pods.insert(pod);
            class_of.push(class);
        }
        Self { world, policies, classes, class_of, known: RefCell::default() }
    }

    /// The classes that a policy is for.
    pub(super) fn classes_of(&self, policy: usize) -> impl Iterator<Item = (usize, &Class)> {
        self.classes
            .iter()
            .enumerate()
            .filter(move |(_, class)| class.policies.binary_search(&policy).is_ok())
    }

    /// The policies that are for a class and about a direction: of a tier, or NetworkPolicies.
    pub(super) fn asked(
        &self,
        class: &Class,
        direction: Direction,
        tier: Option<Tier>,
    ) -> impl Iterator<Item = (usize, &Policy<'a>)> {
        let all = class.policies.iter().map(|index| (*index, &self.policies[*index]));
        all.filter(move |(_, policy)| policy.tier() == tier && policy.limits(direction))
    }

    /// Their rules in that direction, in the order of the policies.
    pub(super) fn rules(
        &self,
        class: &Class,
        direction: Direction,
        tier: Option<Tier>,
    ) -> impl Iterator<Item = (usize, &Rule)> {
        self.asked(class, direction, tier).flat_map(move |(index, policy)| {
            policy.rules.iter().filter(move |rule| rule.direction == direction).map(move |rule| (index, rule))
        })
    }

    /// Whether NetworkPolicies isolate the pods of a class.
    pub(super) fn is_isolated(&self, class: &Class, direction: Direction) -> bool {
        self.asked(class, direction, None).next().is_some()
    }

    /// Those with whom pods of a class may exchange flows to a port, as far as their own policies are asked.
    pub(super) fn allowed(&self, class: usize, direction: Direction, port: u128) -> Ends {
        let key = (class, place(direction), port);
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone();
        }
        let allowed = self.judged(&self.classes[class], direction, port);
        self.known.borrow_mut().insert(key, allowed.clone());
        allowed
    }

    fn judged(&self, class: &Class, direction: Direction, port: u128) -> Ends {
        let mut allowed = Ends::default();
        // Who is left for the tiers to come.
        let mut left = self.tier((class, direction, port), Tier::Admin, self.world.anybody(), &mut allowed);
        if self.is_isolated(class, direction) {
            for (_, rule) in self.rules(class, direction, None) {
                let mut matched = self.matched(class, rule, port);
                matched.pods = matched.pods.and(&left.pods);
                let mut beyond = matched.addresses.clone();
                beyond.subtract(&left.addresses);
                matched.addresses.subtract(&beyond);
                allowed.unite(&matched);
            }
            return allowed;
        }
        left = self.tier((class, direction, port), Tier::Baseline, left, &mut allowed);
        allowed.unite(&left);
        allowed
    }

    /// Asks a tier about `left`; who is allowed by it goes to `allowed`, who is left for the next comes back.
    fn tier(
        &self,
        (class, direction, port): (&Class, Direction, u128),
        tier: Tier,
        mut left: Ends,
        allowed: &mut Ends,
    ) -> Ends {
        let mut passed = Ends::default();
        for (_, rule) in self.rules(class, direction, Some(tier)) {
            let mut matched = left.clone();
            left.subtract(&self.matched(class, rule, port));
            matched.subtract(&left);
            match rule.action {
                Action::Accept => allowed.unite(&matched),
                Action::Deny => {}
                Action::Pass => passed.unite(&matched),
            }
        }
        left.unite(&passed);
        left
    }

    /// Who a rule matches, at a port.
    fn matched(&self, class: &Class, rule: &Rule, port: u128) -> Ends {
        let mut matched = Ends::default();
        for (ends, ports) in rule.pieces(self.world, class.pod) {
            if ports.contains(port) {
                matched.unite(&ends);
            }
        }
        matched
    }
}
