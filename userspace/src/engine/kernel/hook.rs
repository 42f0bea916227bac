//! Programs in their places: ingress of interfaces, inside the node's network namespace.
//!
//! Where the kernel has them (6.6), tcx links: pinned, and given another program in one step. Before that,
//! filters of the `clsact` queueing discipline, which cannot be pinned but stay as well; a new program then
//! takes the old one's place after it, and packets in between pass by.

use std::fs;
use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{self, NlOptions, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;

use super::error::{Error, sentence};
use super::pin::Pins;

/// The place of the programs among filters of others, on kernels without tcx.
const PRIORITY: u16 = 10;

/// How programs are hooked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Links of the interface's own list of programs.
    Tcx,
    /// Filters of a queueing discipline.
    Clsact,
}

impl Way {
    /// The best that this kernel has.
    pub fn best() -> Self {
        // A kernel that does not say how old it is counts as old.
        match KernelVersion::current() {
            Ok(version) if version >= KernelVersion::new(6, 6, 0) => Self::Tcx,
            _ => Self::Clsact,
        }
    }
}

/// A program that is hooked in. It stays so when this is dropped, if it is pinned or a filter.
#[derive(Debug)]
pub(super) enum Hooked {
    Pinned(#[expect(dead_code, reason = "keeps the link's file open")] PinnedLink),
    /// With the number of the interface, whose name another may have later.
    Held(#[expect(dead_code, reason = "the link ends with its last owner")] FdLink, u32),
    Filter,
}

impl Hooked {
    /// Whether it is a link of this process, at the interface that has this name now. Called inside the namespace.
    pub(super) fn is_held_at(&self, interface: &str) -> bool {
        matches!(self, Self::Held(_, index) if nix::net::if_::if_nametoindex(interface) == Ok(*index))
    }
}

/// Hooks a program in, in place of the one that may be there from before. Called inside the namespace.
pub(super) fn attach(
    program: &mut SchedClassifier,
    (name, interface): (&'static str, &str),
    way: Way,
    pins: Option<&Pins>,
) -> Result<Hooked, Error> {
    let failed = |why: String| Error::Attach { program: name, interface: interface.to_owned(), why };
    if nix::net::if_::if_nametoindex(interface).is_err() {
        return Err(failed("interface does not exist".to_owned()));
    }
    if way == Way::Clsact {
        return filter(program, name, interface).map(|()| Hooked::Filter).map_err(failed);
    }
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    hook_in(
        program,
        (name, interface),
        pins,
        (replace, |program: &mut SchedClassifier| {
            let id = program.attach_with_options(interface, TcAttachType::Ingress, options);
            let link = id.and_then(|id| program.take_link(id)).map_err(|why| sentence(&why))?;
            FdLink::try_from(link).map_err(|why| sentence(&why))
        }),
    )
}

/// Hooks a program in, in place of the one that may be pinned from before: `replace` does so, and gives `None` if that
/// one's link is dead; `attach` makes a link. Called inside the namespace.
pub(super) fn hook_in<P>(
    program: &mut P,
    (name, interface): (&'static str, &str),
    pins: Option<&Pins>,
    (replace, attach): (
        impl FnOnce(&mut P, &Path) -> Option<PinnedLink>,
        impl FnOnce(&mut P) -> Result<FdLink, String>,
    ),
) -> Result<Hooked, Error> {
    let failed = |why: String| Error::Attach { program: name, interface: interface.to_owned(), why };
    let pin = pins.map(|pins| pins.link(name, interface));
    if let Some(pin) = &pin
        && pin.exists()
    {
        if let Some(link) = replace(program, pin) {
            return Ok(Hooked::Pinned(link));
        }
        // The interface was removed since, and another has its name.
        fs::remove_file(pin).map_err(|why| failed(why.to_string()))?;
    }
    let link = attach(program).map_err(failed)?;
    match pin {
        Some(pin) => link.pin(&pin).map(Hooked::Pinned).map_err(|why| failed(sentence(&why))),
        None => nix::net::if_::if_nametoindex(interface)
            .map(|index| Hooked::Held(link, index))
            .map_err(|why| failed(why.to_string())),
    }
}

/// Puts the program into a pinned link, in one step; `None` if the link is dead.
fn replace(program: &mut SchedClassifier, pin: &Path) -> Option<PinnedLink> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?).try_into().ok()?;
    let id = program.attach_to_link(link).ok()?;
    // The pin holds the link; this handle of it is not needed any more.
    drop(program.take_link(id).ok()?);
    PinnedLink::from_pin(pin).ok()
}

/// Hooks a program in as a filter.
fn filter(program: &mut SchedClassifier, name: &str, interface: &str) -> Result<(), String> {
    // It is there already if another program made it: attaching tells whether it is not.
    let _ = tc::qdisc_add_clsact(interface);
    // The old one, if there is one.
    let _ = tc::qdisc_detach_program(interface, TcAttachType::Ingress, name);
    let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, ..NlOptions::default() });
    let link = program
        .attach_with_options(interface, TcAttachType::Ingress, options)
        .and_then(|id| program.take_link(id))
        .map_err(|why| sentence(&why))?;
    // Dropped, it would take the filter with it.
    std::mem::forget(link);
    Ok(())
}

/// Takes a filter off an interface, which may be gone. Called inside the namespace. A link needs no such
/// thing: it ends with its pin.
pub(super) fn detach_filter(name: &str, interface: &str) {
    let _ = tc::qdisc_detach_program(interface, TcAttachType::Ingress, name);
}
