//! The values of `--dataplane`, and what can be done with each.

use std::fmt;

use clap::ValueEnum;
use clap::builder::PossibleValue;
use testbed::doctor;

/// A way for packets to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dataplane {
    /// The packet path as eBPF programs in the kernel.
    Ebpf,
    /// The same packet path in this process.
    Emulator,
    /// Linear rule chains, in this process.
    Chains,
    /// Linear rule chains in the kernel.
    Iptables,
    /// Rule chains with maps in the kernel.
    Nftables,
    /// Plain kernel routing.
    Routed,
    /// One veth pair.
    Wire,
}

impl Dataplane {
    /// Every one, in the order of the documents.
    pub(crate) const ALL: [Self; 7] =
        [Self::Ebpf, Self::Emulator, Self::Chains, Self::Iptables, Self::Nftables, Self::Routed, Self::Wire];

    /// The word for it, in every place.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Emulator => "emulator",
            Self::Chains => "chains",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Routed => "routed",
            Self::Wire => "wire",
        }
    }

    /// The dataplane of that word.
    pub(crate) fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.word() == word)
    }

    /// Real packets where this machine can have them; else the emulator, which runs anywhere.
    pub(crate) fn best() -> Self {
        if doctor::works(&doctor::without_filter(), Self::Ebpf.word()) {
            return Self::Ebpf;
        }
        eprintln!(
            "note: ebpf does not work here, so the emulator takes its place; `podpath doctor` says what is missing"
        );
        Self::Emulator
    }

    /// Itself, if it is one of those that can do it.
    ///
    /// # Errors
    /// [`Unavailable`], with those that can.
    pub(crate) fn among(self, able: &[Self], task: &'static str) -> Result<Self, Unavailable> {
        if able.contains(&self) {
            Ok(self)
        } else {
            Err(Unavailable { task, dataplane: self, able: able.to_vec() })
        }
    }
}

/// A dataplane cannot do this.
#[derive(Debug, thiserror::Error)]
#[error("cannot {task} with --dataplane {dataplane}: choose {}", words(.able))]
pub(crate) struct Unavailable {
    task: &'static str,
    dataplane: Dataplane,
    able: Vec<Dataplane>,
}

fn words(able: &[Dataplane]) -> String {
    able.iter().map(|one| one.word()).collect::<Vec<_>>().join(" or ")
}

impl fmt::Display for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl ValueEnum for Dataplane {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.word()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_is_answered_with_what_can() {
        let error = Dataplane::Chains.among(&[Dataplane::Emulator, Dataplane::Ebpf], "check").unwrap_err();
        assert_eq!(error.to_string(), "cannot check with --dataplane chains: choose emulator or ebpf");
    }

    #[test]
    fn every_word_is_read_back() {
        for one in Dataplane::ALL {
            assert_eq!(Dataplane::of(one.word()), Some(one));
        }
    }
}
