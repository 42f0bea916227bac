//! The key and row of what policies say.

use core::mem::size_of;

use super::{Identity, RuleId, RuleSet};
use crate::wire::{Port, plain};

/// Key of [`super::Policy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PolicyKey {
    /// The rules of the pod that is judged.
    pub rules: RuleSet,
    /// The other end, or [`Identity::ANY`].
    pub identity: Identity,
    /// [`super::Endpoint::INGRESS`] or [`super::Endpoint::EGRESS`].
    pub direction: u8,
    /// As in the IP header. Left out of the prefix: any.
    pub protocol: u8,
    /// The target's port. Left out of the prefix, wholly or its low bits: any of them.
    pub port: Port,
}

impl PolicyKey {
    /// Bits of the prefix that a row must at least have: everything but protocol and port.
    pub const FIXED_BITS: u32 = 72;
    /// Bits of a prefix that names a protocol and one port.
    pub const BITS: u32 = 96;
}

/// Row of [`super::Policy`]: this is allowed, or denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PolicyRow {
    /// The rule that says so; 0 where none does, and it is allowed because nothing denies it.
    pub rule: RuleId,
    /// [`PolicyRow::ALLOW`] or [`PolicyRow::DENY`].
    pub action: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl PolicyRow {
    /// In [`PolicyRow::action`]: it may pass.
    pub const ALLOW: u8 = 1;
    /// In [`PolicyRow::action`]: it may not.
    pub const DENY: u8 = 2;

    /// The rule lets it pass.
    pub const fn allow(rule: RuleId) -> Self {
        Self { rule, action: Self::ALLOW, pad: [0; 3] }
    }
    /// The rule forbids it.
    pub const fn deny(rule: RuleId) -> Self {
        Self { rule, action: Self::DENY, pad: [0; 3] }
    }
}

plain!(PolicyKey, PolicyRow);
const _: () = assert!(size_of::<PolicyKey>() == 12 && size_of::<PolicyRow>() == 8);
