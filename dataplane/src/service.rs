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
use crate::flow::Flow;
use crate::platform::Platform;
use crate::tables::{Backend, Backends, Frontend, Frontends, Maglev, Table};
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
) -> Result<Option<Backend<A>>, Reason> {
    let key = Frontend { address: flow.target, port: flow.target_port, protocol: flow.protocol, pad: 0 };
    // 1.
    let Some(slots) = Frontends::get(platform, &key) else {
        return Ok(None);
    };
    // 2.
    if slots.count == 0 {
        return Err(Reason::NoBackend);
    }
    // 3.
    let slot = slots.first.wrapping_add(flow.hash(platform.node().seed) % slots.count);
    let backend = Maglev::<A>::get(platform, &slot).ok_or(Reason::NoBackend)?;
    let backend = Backends::get(platform, &backend.0).ok_or(Reason::NoBackend)?;
    trace::step(platform, || Record {
        source: flow.target.to_v6(),
        source_port: flow.target_port,
        target: backend.address.to_v6(),
        target_port: backend.port,
        ..flow.record(Stage::Service)
    });
    Ok(Some(backend))
}
