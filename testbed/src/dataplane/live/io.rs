//! The ways in which frames come into this process and leave it.

use std::fmt;
use std::str::FromStr;

/// How frames are read and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Io {
    /// A ring in memory shared with the kernel, and frames sent many at a time.
    #[default]
    Ring,
    /// pnet's packet sockets: one system call for each frame that comes, and one for each that leaves.
    Plain,
}

impl Io {
    /// Both, the usual one first.
    pub const ALL: [Self; 2] = [Self::Ring, Self::Plain];
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ring => "ring",
            Self::Plain => "plain",
        })
    }
}

impl FromStr for Io {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        Self::ALL.into_iter().find(|io| io.to_string() == text).ok_or_else(|| Unknown(text.to_owned()))
    }
}

/// There is no such way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown way of input and output {0:?}: expected one of {all}", all = Io::ALL.map(|io| io.to_string()).join(", "))]
pub struct Unknown(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_a_name_and_is_found_by_it() {
        for io in Io::ALL {
            assert_eq!(io.to_string().parse(), Ok(io));
        }
        let error = "mmap".parse::<Io>().expect_err("there is no such way");
        assert_eq!(
            error.to_string(),
            "unknown way of input and output \"mmap\": expected one of ring, plain"
        );
    }
}
