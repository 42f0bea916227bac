//! Flows of which the way is known, and packets that say nothing new of them: see [`Way`].

use core::sync::atomic::{Ordering, compiler_fence};

use super::{
    ANSWERED, FINISHED, RESET, SETTLED, State, Tracked, dialled_by, is_dialled, is_original, lifetime_s,
};
use crate::flow::{self, Ends, Flow};
use crate::platform::Platform;
use crate::tables::{Connections, Table, Way, Writes};
use crate::wire::transport::tcp;
use crate::wire::{Address, Mac, Port, ip};

/// What the pod that [`Way`] is about has to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Pod {
    /// Nobody knows: the packet goes the long way.
    Unknown = 0,
    /// It sends it.
    Sends = 1,
    /// It is for that.
    Receives = 2,
}

impl Pod {
    /// Whether it is this. The numbers are compared, as the verifier follows them.
    #[inline(always)]
    pub fn is(self, other: Self) -> bool {
        self as u8 == other as u8
    }
}

/// A way as a row has it of which the packet's source is the higher end, or not: see [`learn`].
#[inline(always)]
pub(super) fn taken(way: &Way, from_high: bool) -> Way {
    Way { high: way.high ^ u8::from(from_high), ..*way }
}

/// Notes which way a packet of a flow took that is known already, in the row that the next one of its direction
/// meets first. In `way`, as in [`open`] and [`dial`], [`Way::high`] is 0 where the pod is at the packet's source,
/// and 1 where it is at its target.
#[inline(never)]
pub fn learn<A: Address>(platform: &mut impl Platform<A>, flow: &Flow<A>, way: &Way) {
    let (tuple, from_high) = if flow.frontend != A::default() {
        dialled_by(flow)
    } else if flow.backend != A::default() {
        flow::ends((&flow.backend, flow.backend_port), (&flow.target, flow.target_port), flow.protocol)
    } else {
        flow.tuple()
    };
    let way = taken(way, from_high);
    Writes::<Connections<A>>::change(platform, &tuple, |row| {
        let before = Way { mac: way.mac, ..row.way };
        // What comes from a node does not say how to get there.
        if way.mac != Mac::default() || before != way {
            // Another CPU may copy the row meanwhile: it finds no way in it, and never halves of two.
            row.way.generation = 0;
            compiler_fence(Ordering::Release);
            row.way = Way { generation: 0, ..way };
            compiler_fence(Ordering::Release);
            row.way.generation = way.generation;
        }
    });
}

/// Whether the row of a packet's flow says which way it goes, and the packet nothing that is new: then it changes no
/// row, whatever it passes. Its place in the flow is left in `tracked`: whether it is of a new one,
/// because there is no row.
///
/// 12. Its flow goes on as it did (1. to 11.): it is the way of the flow's first packet, or another one's, which was
///     answered before; no handshake, no end; no port stands for another. That no Service is dialled (10.) was found
///     out when the way was noted, and the agent has written nothing since.
/// 13. It does not prolong it, because it comes in the same second as one before it.
#[inline(always)]
pub fn recall<A: Address>(platform: &impl Platform<A>, ends: &Ends<A>, tracked: &mut Tracked<A>) -> Pod {
    let source = (&ends.source, ends.source_port);
    let (tuple, from_high) = flow::ends(source, (&ends.target, ends.target_port), ends.protocol);
    tracked.state = State::New;
    let Some(found) = Connections::get(platform, &tuple) else {
        return Pod::Unknown;
    };
    tracked.connection = found;
    tracked.state = State::Established;
    let row = &tracked.connection;
    let generation = platform.generation();
    if generation == 0 || row.way.generation != generation {
        return Pod::Unknown;
    }
    // 12.
    if row.direct != 0 || row.client_port != Port::default() || row.masquerade_port != Port::default() {
        return Pod::Unknown;
    }
    tracked.original = is_original(row, from_high);
    if is_dialled(row) != (tracked.original && row.frontend != A::default()) {
        return Pod::Unknown;
    }
    let connects = ends.protocol == ip::protocol::TCP;
    let mut flags = if connects { SETTLED } else { 0 };
    if !tracked.original {
        flags |= ANSWERED;
    }
    if row.flags & (flags | FINISHED | RESET) != flags || ends.flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 {
        return Pod::Unknown;
    }
    // 13.
    let lasts_s = lifetime_s(row, ends.protocol, &platform.node().timeouts);
    if row.expires_s != platform.now_s().wrapping_add(lasts_s) {
        return Pod::Unknown;
    }
    tracked.state = if tracked.original { State::Established } else { State::Reply };
    if (row.way.high != 0) == from_high { Pod::Sends } else { Pod::Receives }
}
