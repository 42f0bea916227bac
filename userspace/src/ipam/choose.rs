//! Ranges that the user hasn't fixed, chosen around the addresses that the input states.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Error, IpFamily, overlap};

/// What is known of a range before it is chosen.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// Its name in a `Testbed` object, for errors.
    pub name: &'static str,
    /// Taken if nothing speaks against it.
    pub default: IpNet,
    /// Addresses and parts of it that the input states, of its family only. A single address is a /32 or /128.
    pub holds: &'a [IpNet],
    /// It has to hold them; otherwise some may lie outside where there is no other way.
    pub must_hold: bool,
    /// Prefixes to widen what is stated to, the shortest first.
    pub widths: &'a [u8],
}

/// Chooses a range that the user hasn't fixed.
///
/// 1. The default, where it holds all that is stated.
/// 2. What is stated, widened to each of the widths in turn.
/// 3. If some may lie outside: the default after all, then its neighbours in 10.0.0.0/8 or fd00::/16.
///
/// The first of these wins that overlaps nothing in `avoid`. A range that must hold what is stated may, as
/// the last way out, overlap single addresses in `avoid`: in a flat network pods and nodes share a subnet.
///
/// # Errors
/// [`Error::NoRange`].
pub fn choose(wish: &Wish<'_>, avoid: &[IpNet]) -> Result<IpNet, Error> {
    let free = |range: &IpNet| !avoid.iter().any(|other| overlap(*range, *other));
    let family = IpFamily::of_range(wish.default);
    // A range larger than these holds what is far apart, not what belongs together.
    let shortest = match family {
        IpFamily::V4 => 8,
        IpFamily::V6 => 16,
    };
    let mut candidates = Vec::new();
    // 1.
    if wish.holds.iter().all(|part| wish.default.contains(part)) {
        candidates.push(wish.default);
    }
    // 2.
    let cover = cover(wish.holds);
    if let Some(cover) = cover {
        candidates.extend(wish.widths.iter().map(|width| with_free_ends(widen(cover, *width), wish.holds)));
    }
    // 3.
    if wish.holds.is_empty() || !wish.must_hold {
        candidates.extend(neighbours(wish.default));
    }
    let last_way_out = || {
        let cover = with_free_ends(cover.filter(|_| wish.must_hold)?, &[wish.holds, avoid].concat());
        let whole_ranges = avoid.iter().filter(|other| other.prefix_len() < family.bits());
        let overlaps = whole_ranges.into_iter().any(|other| overlap(*other, cover));
        (cover.prefix_len() >= shortest && !overlaps).then_some(cover)
    };
    let range = candidates
        .into_iter()
        .filter(|range| range.prefix_len() >= shortest)
        .find(free)
        .or_else(last_way_out);
    range.ok_or(Error::NoRange { range: wish.name })
}

/// The smallest range that holds all of these; none if there are none.
fn cover(parts: &[IpNet]) -> Option<IpNet> {
    let mut parts = parts.iter();
    let first = parts.next()?.trunc();
    Some(parts.fold(first, |mut cover, part| {
        while !cover.contains(part) {
            // A /0 holds everything of its family, so there is always a larger one here.
            cover = cover.supernet().unwrap_or_default();
        }
        cover
    }))
}

/// The range, or one around it, whose first address is nobody's, and in IPv4 whose last isn't either.
fn with_free_ends(mut range: IpNet, used: &[IpNet]) -> IpNet {
    let is_end = |range: &IpNet, part: &IpNet| {
        let last = range.broadcast().is_ipv4() && part.addr() == range.broadcast();
        part.prefix_len() == part.max_prefix_len() && (part.addr() == range.network() || last)
    };
    while let Some(wider) = range.supernet().filter(|_| used.iter().any(|part| is_end(&range, part))) {
        range = wider;
    }
    range
}

/// The range with a prefix of at most this length around another.
fn widen(range: IpNet, prefix: u8) -> IpNet {
    IpNet::new(range.addr(), range.prefix_len().min(prefix)).expect("a prefix of its family").trunc()
}

/// A range, and those after it in 10.0.0.0/8 with the same last two bytes, or in fd00::/16 with the same end.
fn neighbours(range: IpNet) -> impl Iterator<Item = IpNet> {
    let next = move |step: u8| match range {
        IpNet::V4(range) => {
            let [_, second, third, fourth] = range.addr().octets();
            let address = Ipv4Addr::new(10, second.wrapping_add(step), third, fourth);
            let net = Ipv4Net::new(address, range.prefix_len().max(16)).expect("a prefix of at most 32");
            IpNet::V4(net.trunc())
        }
        IpNet::V6(range) => {
            let [_, second, third, rest @ ..] = range.addr().segments();
            let [d, e, f, g, h] = rest;
            let address = Ipv6Addr::new(0xfd00, second, third.wrapping_add(step.into()), d, e, f, g, h);
            let net = Ipv6Net::new(address, range.prefix_len().max(48)).expect("a prefix of at most 128");
            IpNet::V6(net.trunc())
        }
    };
    std::iter::once(range).chain((1..=255).map(next))
}
