//! Identity and ports -> allow or deny, and the rule that decided.
//!
//! Reads `identities`, `policy`. Writes nothing. Drops `PolicyDenied`, `PolicyFull`.
//!
//! Judges the first packet of a flow: `conntrack` knows the others. Where flows are cut ([`Node::CUT`]) it judges
//! every packet of a flow, those of its other direction as what they answer.
//!
//! 1. No policy has a say about the pod in this direction: allowed.
//! 2. What policies say of the pod did not fit into the table: refused, for nobody knows whether they allow it.
//! 3. A row about this peer and these ports: as it says, by its rule.
//! 4. A row about any peer and these ports: as it says, by its rule.
//! 5. Otherwise denied: the pod is isolated, and no rule allows it.
//! 6. What is denied by 3, 4 or 5 passes where the pod is audited: it is noted and counted.
//!
//! Two look-ups, whatever the number of policies and tiers: the planner settles which rule wins for each peer and
//! port, and turns port ranges into prefixes.
//!
//! Source: Kubernetes API reference, NetworkPolicy v1; "The two sorts of pod isolation". Network Policy API,
//! ClusterNetworkPolicy v1alpha2 (tiers, and denial by a rule).
//!
//! [`Node::CUT`]: crate::tables::Node::CUT

use crate::Reason;
use crate::flow::Flow;
use crate::platform::Platform;
use crate::tables::{Endpoint, Identities, Identity, Policy, PolicyKey, PolicyRow, RuleId, Table};
use crate::trace::{self, Record, Stage};
use crate::wire::Address;

/// How it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Decision {
    /// No policy has a say about the pod in this direction.
    NotIsolated = 1,
    /// A rule allows it; or, by rule 0, none denies it.
    Allowed = 2,
    /// A policy isolates the pod, and no rule allows it.
    Denied = 3,
    /// The pod's own node may always reach it.
    OwnNode = 4,
    /// A pod may always reach itself.
    Itself = 5,
    /// A rule denies it.
    DeniedByRule = 6,
    /// The table has no room for what policies say of the pod.
    Incomplete = 7,
}

impl Decision {
    /// Every decision.
    pub const ALL: [Self; 7] = [
        Self::NotIsolated,
        Self::Allowed,
        Self::Denied,
        Self::OwnNode,
        Self::Itself,
        Self::DeniedByRule,
        Self::Incomplete,
    ];

    /// The decision that a report's `detail` and `number` tell, and whether it was waived by [`AUDITED`]. A row that
    /// denies by no rule is isolation, where a row that allows more would be found else.
    pub fn told(detail: u8, number: u32) -> Option<(Self, bool)> {
        let decision = Self::ALL.into_iter().find(|decision| *decision as u8 == detail & !AUDITED)?;
        let isolates = decision == Self::DeniedByRule && number == 0;
        Some((if isolates { Self::Denied } else { decision }, detail & AUDITED != 0))
    }
}

/// Added to the [`Decision`] in a report's `detail`: what was denied passes, because the pod is audited.
pub const AUDITED: u8 = 128;

/// What is asked of a pod's policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The pod is at the flow's source ([`Endpoint::EGRESS`]) or its target ([`Endpoint::INGRESS`]).
    pub direction: u8,
    /// The packet answers, so that its own source is the flow's target.
    pub answers: bool,
    /// It is its flow's first: what audit lets pass is known of once.
    pub first: bool,
    /// What is known of the peer already; [`Identity::ANY`] if nothing is.
    pub carried: Identity,
}

impl Question {
    /// About the first packet of a flow.
    #[inline(always)]
    pub fn first(direction: u8, carried: Identity) -> Self {
        Self { direction, answers: false, first: true, carried }
    }
}

/// Judges a packet for a pod.
///
/// # Errors
/// `PolicyDenied`, `PolicyFull`.
#[inline(never)]
pub fn judge<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    pod: &Endpoint,
    asked: Question,
) -> Result<(), Reason> {
    // 1.
    if pod.isolated & asked.direction == 0 {
        note(platform, flow, asked, (Decision::NotIsolated as u8, RuleId(0)));
        return Ok(());
    }
    // 2.
    if pod.flags & Endpoint::INCOMPLETE != 0 {
        note(platform, flow, asked, (Decision::Incomplete as u8, RuleId(0)));
        return Err(Reason::PolicyFull);
    }
    let of_target = (asked.direction == Endpoint::EGRESS) != asked.answers;
    let peer = if of_target { flow.target } else { flow.source };
    let port = if asked.answers { flow.source_port } else { flow.target_port };
    let identity = identity(platform, peer, asked.carried);
    let key =
        PolicyKey { rules: pod.rules, identity, direction: asked.direction, protocol: flow.protocol, port };
    // 3.
    let mut row: Option<PolicyRow> = Policy::<A>::often(platform, &key);
    if row.is_none() {
        // 4.
        row = Policy::<A>::often(platform, &PolicyKey { identity: Identity::ANY, ..key });
    }
    // 5.
    let (mut decision, mut rule) = (Decision::Denied as u8, RuleId(0));
    if let Some(row) = row {
        rule = row.rule;
        decision = Decision::DeniedByRule as u8;
        if row.action == PolicyRow::ALLOW {
            decision = Decision::Allowed as u8;
        }
    }
    if decision == Decision::Allowed as u8 {
        note(platform, flow, asked, (decision, rule));
        return Ok(());
    }
    // 6.
    if pod.flags & Endpoint::AUDIT != 0 {
        audit(platform, flow, asked, (decision, rule));
        return Ok(());
    }
    note(platform, flow, asked, (decision, rule));
    Err(Reason::PolicyDenied)
}

/// What policies can tell apart about a peer: what is known of it, where that says enough, else what its
/// address says. The addresses of nodes are told apart here only.
#[inline(always)]
pub fn identity<A: Address>(platform: &impl Platform<A>, peer: A, carried: Identity) -> Identity {
    if carried.0 >= Identity::FIRST.0 || carried.0 == Identity::WORLD.0 {
        return carried;
    }
    Identities::often(platform, &peer).unwrap_or(Identity::WORLD)
}

/// Whether the flow is a pod's with itself, which is not judged: not where it leaves, not where it arrives.
#[inline(always)]
pub fn is_itself<A: Address>(flow: &Flow<A>) -> bool {
    flow.source == A::ITSELF
}

/// Notes that whoever sends is not judged: the pod itself, or its own node.
#[inline(always)]
pub fn waive<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>) {
    let decision = if is_itself(flow) { Decision::Itself } else { Decision::OwnNode };
    let asked = Question::first(Endpoint::INGRESS, Identity::ANY);
    note(platform, flow, asked, (decision as u8, RuleId(0)));
}

/// Notes and counts that what is denied passes all the same. Of a flow's first packet everybody is told, traced or
/// not.
#[inline(always)]
fn audit<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    asked: Question,
    (decision, rule): (u8, RuleId),
) {
    platform.count_audited();
    if asked.first || platform.tracing() {
        platform.report(&record(flow, asked, (decision | AUDITED, rule)));
    }
}

#[inline(always)]
fn note<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, asked: Question, decided: (u8, RuleId)) {
    trace::step(platform, || record(flow, asked, decided));
}

/// The report: of what answers, the two ends of what it answers.
#[inline(always)]
fn record<A: Address>(flow: &Flow<A>, asked: Question, (decision, rule): (u8, RuleId)) -> Record {
    let mut record = flow.record(Stage::Policy);
    record.detail = decision;
    record.direction = asked.direction;
    record.number = rule.0;
    if asked.answers {
        (record.source, record.target) = (record.target, record.source);
        (record.source_port, record.target_port) = (record.target_port, record.source_port);
    }
    record
}
