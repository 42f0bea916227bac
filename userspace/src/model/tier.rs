//! Policies of the whole cluster: those that come before NetworkPolicies, and those that come after.
//!
//! A flow is judged for a pod in a direction by three tiers, one after the other:
//!
//! 1. **Admin**: of the rules of all policies that select the pod, the first that matches decides.
//! 2. **NetworkPolicy**: if any selects the pod, they decide: one rule of one allows the flow, or it is denied.
//! 3. **Baseline**: as Admin. Where nothing matches, the flow is allowed.
//!
//! A rule that passes ends its tier, and the next goes on.
//!
//! Source: network-policy-api, `ClusterNetworkPolicy` v1alpha2; `AdminNetworkPolicy` and
//! `BaselineAdminNetworkPolicy` v1alpha1 say the same in other words, and are read into the same.

use std::fmt;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};

use super::{Kind, Protocol};

/// A policy of the whole cluster, validated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterPolicy {
    /// What it was written as.
    pub kind: Kind,
    /// `metadata.name`.
    pub name: String,
    /// When it is asked.
    pub tier: Tier,
    /// Within its tier, the lower is asked first: 0 to 1000.
    pub priority: i32,
    /// The pods that it is for: those with an address of their own.
    pub subject: PodPeer,
    /// About what comes in, the first first.
    pub ingress: Vec<TierRule>,
    /// About what goes out, the first first.
    pub egress: Vec<TierRule>,
}

/// When a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tier {
    /// Before NetworkPolicies.
    Admin,
    /// After them, for pods that none of them selects.
    Baseline,
}

/// A rule of a policy of the whole cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TierRule {
    /// For people; may be empty.
    pub name: String,
    /// What it does with a flow that it matches.
    pub action: Action,
    /// The other end is one of these.
    pub peers: Vec<TierPeer>,
    /// The target's port is one of these; whatever it is if `None`.
    pub ports: Option<Vec<TierPort>>,
}

/// What a rule does with a flow that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// It is allowed; nothing else is asked.
    Accept,
    /// It is denied; nothing else is asked.
    Deny,
    /// Its tier has nothing to say about it.
    Pass,
}

/// Pods with an address of their own, by their labels and those of their namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodPeer {
    /// Their namespace's; all if it is empty.
    pub namespaces: LabelSelector,
    /// Their own; all if it is empty.
    pub pods: LabelSelector,
}

/// The other end of a flow, as a rule describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TierPeer {
    /// Such pods.
    Pods(PodPeer),
    /// Nodes with such labels, by their addresses; egress only.
    Nodes(LabelSelector),
    /// Whatever has an address in one of these ranges; egress only.
    Networks(Vec<IpNet>),
}

/// A target port, as a rule describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TierPort {
    /// Any port of the protocol.
    Protocol(Protocol),
    /// From the first to the last, both included.
    Range(Protocol, u16, u16),
    /// Whatever the target pod calls so, of any protocol.
    Named(String),
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        })
    }
}
