//! What is valid YAML, and means something else than it looks like.

use k8s_openapi::api::networking::v1::{NetworkPolicyPeer, NetworkPolicySpec};

use super::selector::Selector;
use super::view::{Policy, Text, Who, fields};
use super::world::{Scope, World};
use super::{Check, Found};
use crate::oracle::Direction;

pub(super) fn look(world: &World<'_>, found: &mut Found<'_>) {
    for (place, policy) in found.policies() {
        let Text::Network(text) = policy.text else { continue };
        let Some(spec) = &text.spec else { continue };
        let mut trap = Trap { world, found, place, policy };
        trap.directions(spec);
        let ingress = spec.ingress.iter().flatten().enumerate();
        for (index, rule) in ingress {
            let ports = rule.ports.as_ref().map(Vec::len);
            trap.rule(Direction::Ingress, index, (rule.from.as_deref(), ports));
        }
        for (index, rule) in spec.egress.iter().flatten().enumerate() {
            let ports = rule.ports.as_ref().map(Vec::len);
            trap.rule(Direction::Egress, index, (rule.to.as_deref(), ports));
        }
        trap.own_namespace();
    }
}

struct Trap<'w, 'f, 'a> {
    world: &'w World<'w>,
    found: &'f mut Found<'a>,
    place: usize,
    policy: &'f Policy<'a>,
}

impl Trap<'_, '_, '_> {
    fn note(&mut self, check: Check, field: &str, reason: String, next: String) {
        self.found.note(self.place, check, field, (reason, next));
    }

    /// Lists of rules, against `policyTypes`.
    fn directions(&mut self, spec: &NetworkPolicySpec) {
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let counts = [
            (Direction::Ingress, "Ingress", spec.ingress.as_ref().map(Vec::len)),
            (Direction::Egress, "Egress", spec.egress.as_ref().map(Vec::len)),
        ];
        for (direction, word, rules) in counts {
            let Some(rules) = rules else { continue };
            let field = format!("spec.{direction}");
            if !types.is_empty() && !types.iter().any(|one| one == word) {
                let what = if rules == 0 { "an empty list, which would deny all," } else { "its rules" };
                let have = if rules == 0 { "has" } else { "have" };
                let reason = format!("policyTypes does not list {word}: {what} {have} no effect");
                self.note(Check::UnlistedDirection, &field, reason, format!("add {word} to policyTypes"));
            } else if types.is_empty() && direction == Direction::Egress && rules == 0 {
                let reason =
                    "without policyTypes an empty list of egress rules limits nothing: everything may go out";
                let next = "write policyTypes: [Egress] to deny all, or leave egress out";
                self.note(Check::EgressNotLimited, &field, reason.into(), next.into());
            }
        }
    }

    /// Lists of peers and of ports.
    fn rule(
        &mut self,
        direction: Direction,
        index: usize,
        (peers, ports): (Option<&[NetworkPolicyPeer]>, Option<usize>),
    ) {
        let (list, side) = fields(direction);
        let field = format!("spec.{list}[{index}]");
        if !self.policy.limits(direction) {
            return;
        }
        if peers.is_some_and(<[_]>::is_empty) {
            let reason =
                format!("an empty list `{side}` restricts nothing: everybody is matched, the world too");
            let next = format!("leave `{side}` out if everybody is meant; remove the rule if nobody is");
            self.note(Check::EmptyList, &format!("{field}.{side}"), reason, next);
        }
        if ports == Some(0) {
            let reason = "an empty list `ports` restricts nothing: every port is matched".to_owned();
            let next = "leave `ports` out if every port is meant; remove the rule if none is".to_owned();
            self.note(Check::EmptyList, &format!("{field}.ports"), reason, next);
        }
        self.or_not_and(&format!("{field}.{side}"), peers.unwrap_or_default());
    }

    /// `- namespaceSelector` and `- podSelector`, one below the other.
    fn or_not_and(&mut self, field: &str, peers: &[NetworkPolicyPeer]) {
        let only_namespace = |peer: &NetworkPolicyPeer| match (&peer.namespace_selector, &peer.pod_selector) {
            (Some(selector), None) => Some(Selector::read(selector)),
            _ => None,
        };
        let only_pods = |peer: &NetworkPolicyPeer| match (&peer.namespace_selector, &peer.pod_selector) {
            (None, Some(selector)) => Some(Selector::read(selector)).filter(|one| !one.is_everything()),
            _ => None,
        };
        for (first, pair) in peers.windows(2).enumerate() {
            let [one, other] = pair else { continue };
            let found = match (only_namespace(one), only_pods(other)) {
                (Some(namespaces), Some(pods)) => Some((namespaces, pods)),
                _ => only_namespace(other).zip(only_pods(one)),
            };
            let Some((namespaces, pods)) = found else { continue };
            // Together they would have to mean somebody.
            let both = self.world.select(&Scope::Labelled(namespaces.clone()), &pods);
            if both.is_empty() {
                continue;
            }
            let reason = format!(
                "two items of the list are alternatives: every pod of namespaces with {namespaces}, or pods of this namespace with {pods}; {} would be both",
                self.world.named_pods(&both)
            );
            let next = "write both selectors in one item (one dash) if pods with both are meant".to_owned();
            self.note(Check::OrNotAnd, &format!("{field}[{}]", first + 1), reason, next);
        }
    }

    /// `podSelector: {}` where the namespace has no pod but those the policy is for.
    fn own_namespace(&mut self) {
        let Policy { whom, subject, .. } = self.policy;
        let members = self.world.select(&whom.scope, &Selector::default());
        if whom.pods.is_everything() || subject.is_empty() || !members.is_within(subject) {
            return;
        }
        for rule in &self.policy.rules {
            let [peer] = rule.peers.as_slice() else { continue };
            let Who::Pods(named) = &peer.who else { continue };
            if named.scope == whom.scope && named.pods.is_everything() {
                let reason = format!(
                    "`podSelector: {{}}` without namespaceSelector is every pod of this namespace, where there is none but those the policy is for ({})",
                    self.world.named_pods(subject)
                );
                let next = "add namespaceSelector: {} if pods of every namespace are meant".to_owned();
                self.note(Check::OwnNamespaceOnly, &format!("{}.podSelector", peer.field), reason, next);
            }
        }
    }
}
