//! How many frames came to which kind of verdict: a run that never gets anywhere shows nothing.

use std::collections::BTreeMap;
use std::fmt;

use dataplane::{Reason, Verdict};

/// What a run need not reach: only the rarest of broken frames cannot be changed.
const RARE: [Reason; 1] = [Reason::WriteFailed];

/// What a run need reach in one family only, whichever: it takes two flows that meet by chance, or the first piece of
/// an SCTP packet whose port has to change.
const RARE_IN_EACH: [Reason; 2] = [Reason::FlowConflict, Reason::SctpFragment];

/// Reasons that are about one family's frames alone: `true` for IPv6.
const OF_ONE_FAMILY: [(Reason, bool); 2] = [
    // Whatever is not IPv6 is IPv4's to refuse.
    (Reason::UnsupportedEtherType, false),
    (Reason::ExtensionHeader, true),
];

const VERDICTS: [&str; 5] = ["delivered", "forwarded", "answered", "to the stack", "rejected"];

/// Counts, by the word for the verdict or the reason's slug: of IPv4 and whatever is neither, and of IPv6.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kinds {
    counts: BTreeMap<&'static str, [usize; 2]>,
}

impl Kinds {
    /// Counts the verdict on a frame as it came.
    pub(crate) fn note(&mut self, frame: &[u8], verdict: Verdict) {
        let six = usize::from(frame.get(12..14).is_some_and(|kind| kind == [0x86, 0xdd]));
        let mut count = |word| self.counts.entry(word).or_default()[six] += 1;
        match verdict {
            Verdict::Deliver(_) => count(VERDICTS[0]),
            Verdict::Forward(_) => count(VERDICTS[1]),
            Verdict::Answer => count(VERDICTS[2]),
            Verdict::Stack => count(VERDICTS[3]),
            Verdict::Reject(reason) => {
                count(VERDICTS[4]);
                count(reason.slug());
            }
            Verdict::Drop(reason) => count(reason.slug()),
        }
    }

    pub(crate) fn and(mut self, other: &Self) -> Self {
        for (word, [v4, v6]) in &other.counts {
            let sum = self.counts.entry(word).or_default();
            *sum = [sum[0] + v4, sum[1] + v6];
        }
        self
    }

    /// Everything that a path is for and that it refuses, and did not occur, in the words of `Display`.
    pub(crate) fn missing(&self) -> Vec<String> {
        let reasons = Reason::ALL.iter().filter(|reason| !RARE.contains(reason));
        let wanted = reasons.flat_map(|reason| {
            let only = OF_ONE_FAMILY.iter().find(|(one, _)| one == reason).map(|(_, six)| *six);
            [false, true]
                .into_iter()
                .filter(move |six| only.is_none_or(|only| only == *six))
                .map(|six| (reason.slug(), six))
        });
        let verdicts = VERDICTS.iter().flat_map(|word| [(*word, false), (*word, true)]);
        let seen = |(word, six): &(&str, bool)| {
            let either = RARE_IN_EACH.iter().any(|reason| reason.slug() == *word);
            self.counts
                .get(word)
                .is_some_and(|count| count[usize::from(*six)] > 0 || either && count[usize::from(!*six)] > 0)
        };
        verdicts
            .chain(wanted)
            .filter(|one| !seen(one))
            .map(|(word, six)| format!("{word} ({})", if six { "IPv6" } else { "IPv4" }))
            .collect()
    }
}

impl fmt::Display for Kinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<28} {:>9} {:>9}", "", "IPv4", "IPv6")?;
        let verdicts = VERDICTS.iter().filter_map(|word| self.counts.get_key_value(word));
        let reasons = self.counts.iter().filter(|(word, _)| !VERDICTS.contains(word));
        for (word, [v4, v6]) in verdicts.chain(reasons) {
            writeln!(f, "{word:<28} {v4:>9} {v6:>9}")?;
        }
        Ok(())
    }
}
