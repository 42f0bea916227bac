//! Identity and ports -> allow or deny, and the rule that decided.
//!
//! Reads `identities`, `policy`. Writes nothing. Drops `PolicyDenied`.
//!
//! Judges the first packet of a flow only: `conntrack` knows the others.
//!
//! 1. No policy selects the pod in this direction: allowed.
//! 2. A rule about this peer and these ports: allowed.
//! 3. A rule about any peer and these ports: allowed.
//! 4. Otherwise denied.
//!
//! Two look-ups, whatever the number of policies: the planner unites rules and turns port ranges into
//! prefixes.
//!
//! Source: Kubernetes API reference, NetworkPolicy v1; "The two sorts of pod isolation".

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
    /// No policy selects the pod in this direction.
    NotIsolated = 1,
    /// A rule allows it.
    Allowed = 2,
    /// A policy selects the pod, and no rule allows it.
    Denied = 3,
    /// The pod's own node may always reach it.
    OwnNode = 4,
    /// A pod may always reach itself.
    Itself = 5,
}

/// Judges a flow for the pod at its source ([`Endpoint::EGRESS`]) or its target ([`Endpoint::INGRESS`]):
/// `asked` is that, and what is known of the peer already; [`Identity::ANY`] if nothing is.
///
/// # Errors
/// `PolicyDenied`.
#[inline(never)]
pub fn judge<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    pod: &Endpoint,
    asked: (u8, Identity),
) -> Result<(), Reason> {
    // Every parameter of a function of its own has a name: the kernel refuses the description of others.
    let (direction, carried) = asked;
    // 1.
    if pod.isolated & direction == 0 {
        note(platform, flow, pod, direction, (Decision::NotIsolated, RuleId(0)));
        return Ok(());
    }
    let peer = if direction == Endpoint::EGRESS { flow.target } else { flow.source };
    let identity = identity(platform, peer, carried);
    let key =
        PolicyKey { rules: pod.rules, identity, direction, protocol: flow.protocol, port: flow.target_port };
    // 2.
    let mut row: Option<PolicyRow> = Policy::<A>::get(platform, &key);
    if row.is_none() {
        // 3.
        row = Policy::<A>::get(platform, &PolicyKey { identity: Identity::ANY, ..key });
    }
    if let Some(row) = row {
        note(platform, flow, pod, direction, (Decision::Allowed, row.rule));
        return Ok(());
    }
    // 4.
    note(platform, flow, pod, direction, (Decision::Denied, RuleId(0)));
    Err(Reason::PolicyDenied)
}

/// What policies can tell apart about a peer: what is known of it, where that says enough, else what its
/// address says. The addresses of nodes are told apart here only.
#[inline(always)]
pub fn identity<A: Address>(platform: &impl Platform<A>, peer: A, carried: Identity) -> Identity {
    if carried.0 >= Identity::FIRST.0 || carried.0 == Identity::WORLD.0 {
        return carried;
    }
    Identities::get(platform, &peer).unwrap_or(Identity::WORLD)
}

/// Whether the flow is a pod's with itself, which is not judged: not where it leaves, not where it arrives.
#[inline(always)]
pub fn is_itself<A: Address>(flow: &Flow<A>) -> bool {
    flow.source == A::ITSELF
}

/// Notes that whoever sends is not judged: the pod itself, or its own node.
#[inline(always)]
pub fn waive<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, pod: &Endpoint) {
    let decision = if is_itself(flow) { Decision::Itself } else { Decision::OwnNode };
    note(platform, flow, pod, Endpoint::INGRESS, (decision, RuleId(0)));
}

#[inline(always)]
fn note<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
    pod: &Endpoint,
    direction: u8,
    (decision, rule): (Decision, RuleId),
) {
    trace::step(platform, || Record {
        detail: decision as u8,
        direction,
        number: if rule.0 == 0 { pod.rules.0 } else { rule.0 },
        ..flow.record(Stage::Policy)
    });
}
