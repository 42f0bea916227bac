//! Virtual address -> backend.
//!
//! Reads `frontends`, `maglev`, `backends`. Writes nothing. Drops `NoBackend`.
//!
//! 1. The target is no Service's address and port: nothing to do.
//! 2. The Service has no ready endpoint: refuse.
//! 3. The hash of the flow picks a slot, the slot names the backend. The same flow always picks the same
//!    slot, and few slots change hands when endpoints come or go.
//!
//! Source: Eisenbud et al., "Maglev", NSDI 2016, section 3.4; Kubernetes, "Virtual IPs and Service Proxies".

use crate::Reason;
use crate::flow::{Flow, mix};
use crate::platform::Platform;
use crate::tables::{Backend, BackendId, Backends, Frontend, Frontends, Maglev, Slots, Table};
use crate::trace::{self, Record, Stage};
use crate::wire::Address;

/// The backend that the flow's target stands for, if it is a Service.
///
/// # Errors
/// `NoBackend`.
#[inline(always)]
pub fn choose<A: Address>(
    platform: &mut impl Platform<A>,
    flow: &Flow<A>,
) -> Result<Option<(BackendId, Backend<A>)>, Reason> {
    let key = Frontend { address: flow.target, port: flow.target_port, protocol: flow.protocol, pad: 0 };
    // 1.
    let Some(service) = Frontends::get(platform, &key) else {
        return Ok(None);
    };
    // 2.
    let slots = service.internal;
    if slots.count == 0 {
        return Err(Reason::NoBackend);
    }
    // 3.
    let hash = flow.hash(platform.node().seed);
    let slot = if slots.count <= Slots::FEW {
        slots.first.wrapping_add(winner(platform, slots, hash))
    } else {
        slots.first.wrapping_add(hash % slots.count)
    };
    let id = Maglev::<A>::get(platform, &slot).ok_or(Reason::NoBackend)?;
    let backend = Backends::get(platform, &id.0).ok_or(Reason::NoBackend)?;
    trace::step(platform, || Record {
        source: flow.target.to_v6(),
        source_port: flow.target_port,
        target: backend.address.to_v6(),
        target_port: backend.port,
        ..flow.record(Stage::Service)
    });
    Ok(Some((id, backend)))
}

/// The place in a short list of the one that a flow with this hash prefers. A backend that is listed again has
/// another chance each time.
#[inline(always)]
fn winner<A: Address>(platform: &impl Platform<A>, slots: Slots, hash: u32) -> u32 {
    let (mut place, mut best, mut last, mut again) = (0, 0, 0, 0u32);
    let mut at = 0;
    while at < Slots::FEW && at < slots.count {
        let slot = slots.first.wrapping_add(at);
        if let Some(backend) = Maglev::<A>::get(platform, &slot)
            && let Some(row) = Backends::get(platform, &backend.0)
        {
            again = if backend.0 == last { again.wrapping_add(0x9e37_79b9) } else { 0 };
            last = backend.0;
            let score = mix(hash ^ row.seed.wrapping_add(again));
            if score >= best {
                (place, best) = (at, score);
            }
        }
        at += 1;
    }
    place
}
