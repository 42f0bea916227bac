//! What can be wrong with the input, said so that the user can mend it.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::ipam;

/// Where an object was read: `file:line`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The path as it was given, `-` for standard input, or the name of an embedded text.
    pub file: String,
    /// The line of the object's first field; 0 where it isn't known.
    pub line: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// Why no cluster came out of the input. Nothing has been created when this is returned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path isn't there, or isn't ours to read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// As it was given.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A directory without manifests.
    #[error("cannot read {path}: no file in it ends in .yaml, .yml or .json")]
    NoManifests {
        /// As it was given.
        path: String,
    },
    /// The input was read, and none of its objects is of a kind that we know.
    #[error("no objects in {files}: podpath reads {kinds}")]
    NoObjects {
        /// Everything that was read.
        files: String,
        /// What would have been of use.
        kinds: String,
    },
    /// Neither YAML nor JSON.
    #[error("cannot parse {origin}: {why}")]
    Syntax {
        /// The file, and the line where parsing stopped.
        origin: Origin,
        /// What the parser said.
        why: String,
    },
    /// The text is sound, but isn't an object of its kind.
    #[error("{origin}: {object}: {why}")]
    Decode {
        /// Where it was read.
        origin: Origin,
        /// Kind and name, as far as they are known.
        object: String,
        /// In kubectl's words.
        why: String,
    },
    /// A field has a value that the API server would refuse, or that can't be true of this cluster.
    #[error("{origin}: {object}: {field}: {why}")]
    Invalid {
        /// Where it was read.
        origin: Origin,
        /// Kind and name.
        object: String,
        /// Its path, as the API server writes it.
        field: String,
        /// In the API server's words.
        why: String,
    },
    /// Two objects of one kind and name.
    #[error("{origin}: {object}: is there already, from {first}: rename or remove one of them")]
    Duplicate {
        /// Where the second was read.
        origin: Origin,
        /// Kind and name.
        object: String,
        /// Where the first was read.
        first: Origin,
    },
    /// Addresses ran out.
    #[error(transparent)]
    Addresses(#[from] ipam::Error),
    /// More than one of the above, in the order of the input: one line each.
    #[error("{}", lines(.0))]
    Several(Vec<Error>),
}

fn lines(errors: &[Error]) -> String {
    errors.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
}

impl Error {
    /// Each thing that is wrong, by itself.
    pub fn each(&self) -> &[Error] {
        match self {
            Self::Several(errors) => errors,
            one => std::slice::from_ref(one),
        }
    }
}

/// Everything found wrong so far, so that the user hears of it all at once.
#[derive(Debug, Default)]
pub(super) struct Faults(pub(super) Vec<Error>);

impl Faults {
    /// `value` if nothing is wrong.
    pub(super) fn or<T>(mut self, value: T) -> Result<T, Error> {
        match self.0.len() {
            0 => Ok(value),
            1 => Err(self.0.remove(0)),
            _ => Err(Error::Several(self.0)),
        }
    }

    /// Notes an error, one by one if there are several in it.
    pub(super) fn push(&mut self, error: Error) {
        match error {
            Error::Several(errors) => self.0.extend(errors),
            one => self.0.push(one),
        }
    }

    /// A place to put what is wrong with this object's fields.
    pub(super) fn of<'a>(&'a mut self, origin: &'a Origin, object: String) -> Fields<'a> {
        Fields { faults: self, origin, object }
    }
}

/// What is wrong with the fields of one object.
pub(super) struct Fields<'a> {
    faults: &'a mut Faults,
    origin: &'a Origin,
    object: String,
}

impl Fields<'_> {
    /// Notes that the field at this path is wrong.
    pub(super) fn wrong(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.faults.0.push(Error::Invalid {
            origin: self.origin.clone(),
            object: self.object.clone(),
            field: field.into(),
            why: why.into(),
        });
    }
}
