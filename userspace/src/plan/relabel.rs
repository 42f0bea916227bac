//! One pod's labels change: which policies select it, and who it is to policies.
//!
//! Rules change for this pod alone. Its identity may be one that nobody had, which the rule sets learn then, or the
//! last of its kind, which they forget. So what changes on a node is found without looking at what does not.

use std::collections::BTreeSet;

use dataplane::tables::{self, Identity, RuleSet, Table};

use super::diff::{Cells, FamilyLegs, ordered};
use super::family::{FamilyPlan, Local};
use super::identity::Renamed;
use super::ruleset::PolicyRows;
use super::selector::{Namespaces, Selector};
use super::transition::LEGS;
use super::{Error, Family, Links, Rows};
use crate::model::Labels;

impl<A: Family> FamilyPlan<A> {
    /// Checks that every pod of the node at this place has an interface.
    ///
    /// # Errors
    /// [`Error::NoInterface`].
    pub(super) fn linked(&self, (place, links): (usize, &Links)) -> Result<(), Error> {
        self.pods[place].iter().try_for_each(|pod| self.interface((place, links), pod).map(|_| ()))
    }

    /// A pod's labels are others now: what that changes on the node at this place, in order.
    ///
    /// # Errors
    /// [`Error::NoInterface`]; nothing has changed then.
    pub(super) fn relabel(
        &mut self,
        (place, links): (usize, &Links),
        pod: &str,
        labels: &Labels,
    ) -> Result<FamilyLegs<A>, Error> {
        let index = |pods: &Vec<Local<A>>| pods.iter().position(|local| local.id == pod);
        let mut pods = self.pods.iter().enumerate();
        let Some((node, index)) = pods.find_map(|(node, pods)| Some((node, index(pods)?))) else {
            return Ok([(); LEGS].map(|()| Vec::new()));
        };
        let address = self.pods[node][index].address;
        let own = self.identities.of_node(self.addresses[place]);
        let demands = self.demands(place);
        let fitted = self.fitting(place);
        let held: usize = fitted.iter().map(|rules| demands[rules].rows).sum();
        let mut from = Rows {
            endpoints: self.endpoints((place, links), &fitted)?,
            identities: self.identities.around(address),
            policy: self.about(&fitted, (self.identities.of_address(address), own)),
            ..Rows::default()
        };

        let renamed = self.change_labels((node, index), labels);
        let used: BTreeSet<_> =
            self.pods[place].iter().map(|pod| pod.rules).chain(fitted.iter().copied()).collect();
        if renamed.fresh {
            self.sets.learn(renamed.after, &self.identities, &used);
        }
        if renamed.gone {
            self.sets.forget(renamed.before);
        }

        let fitting = self.fitting(place);
        let mut to = Rows {
            endpoints: self.endpoints((place, links), &fitting)?,
            identities: self.identities.around(address),
            ..Rows::default()
        };
        let stay: BTreeSet<_> = fitted.intersection(&fitting).copied().collect();
        for identity in [renamed.before, renamed.after].into_iter().take(1 + usize::from(renamed.fresh)) {
            to.policy.extend(self.about(&stay, (identity, own)));
        }
        for rules in fitting.difference(&fitted) {
            self.sets.write(*rules, &self.identities, own, &mut to.policy);
        }
        let mut leaving = PolicyRows::new();
        for rules in fitted.difference(&fitting) {
            self.sets.write(*rules, &self.identities, own, &mut leaving);
        }
        // They have learnt of it since.
        leaving.retain(|key, _| !renamed.fresh || key.identity != renamed.after.0);
        from.policy.extend(leaving);
        let others = held.saturating_sub(from.policy.len());
        let room = (tables::Policy::<A>::CAPACITY as usize).saturating_sub(others);
        // The pod's own new one was put there just now.
        let taken = |identity| self.identities.has(identity) && !(renamed.fresh && identity == renamed.after);
        Ok(ordered(&from, &to, &Cells::default(), (room, &taken)))
    }

    /// Finds the rules of a pod anew, and its identity.
    fn change_labels(&mut self, (node, index): (usize, usize), labels: &Labels) -> Renamed {
        let pod = &mut self.pods[node][index];
        let namespace = pod.id.split_once('/').map_or("", |(namespace, _)| namespace);
        let none = Labels::new();
        let of_namespace = self.namespaces.get(namespace).unwrap_or(&none);
        let named = |namespaces: &Namespaces, selector: &Selector| {
            namespaces.matches(namespace, of_namespace) && selector.matches(labels)
        };
        let policies = self.policies.iter().enumerate();
        let selecting = policies.filter(|(_, policy)| named(&policy.namespaces, &policy.pods));
        let selecting = selecting.map(|(place, _)| place).collect();
        let selected = self.sets.select(&self.policies, &selecting, &pod.ports);
        let renamed = self.identities.relabel(pod.address, &pod.ports, named);
        (pod.rules, pod.isolated, pod.policies) = (selected.rules, selected.isolated, selected.policies);
        renamed
    }

    /// The rows of these rule sets about one peer.
    fn about(&self, sets: &BTreeSet<RuleSet>, peer: (Identity, Identity)) -> PolicyRows {
        let mut rows = PolicyRows::new();
        for rules in sets {
            self.sets.write_about(*rules, &self.identities, peer, &mut rows);
        }
        rows
    }
}
