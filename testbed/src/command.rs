//! The commands, one file each, and what they share: where a cluster comes from, and how a command ends.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};
use testbed::output::Paint;
use testbed::state::{self, State};
use userspace::model::{self, Cluster, Key, Objects};

pub(crate) mod apply;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod completion;
pub(crate) mod dataplane;
pub(crate) mod delete;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod down;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod fabric;
pub(crate) mod get;
pub(crate) mod link;
pub(crate) mod lint;
pub(crate) mod plan;
pub(crate) mod roster;
pub(crate) mod schema;
pub(crate) mod serve;
pub(crate) mod up;
pub(crate) mod upgrade;
pub(crate) mod r#where;

use dataplane::Dataplane;

/// How a command ended that could do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Exit code 0.
    Yes,
    /// Exit code 1: the check failed, something is missing.
    No,
    /// Another program's exit code, passed on.
    Code(u8),
}

/// Tells the user how it ended: words to stderr, and the exit code. What could not be done is 2.
pub(crate) fn finish(ended: anyhow::Result<Answer>) -> ExitCode {
    match ended {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Ok(Answer::Code(code)) => ExitCode::from(code),
        Err(error) => {
            let paint = Paint::stderr();
            match error.downcast_ref::<model::Error>() {
                Some(error) => error.each().iter().for_each(|one| eprintln!("{} {one}", paint.bad("error:"))),
                None => eprintln!("{} {error}", paint.bad("error:")),
            }
            ExitCode::from(2)
        }
    }
}

/// Why no cluster can be spoken of.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChoiceError {
    /// There is none.
    #[error(
        "cannot choose a cluster: none is up; bring one up with `podpath up -f …`, or name objects with -f"
    )]
    None,
    /// There are several.
    #[error("cannot choose a cluster: {} are up; say which with --cluster", .0.join(", "))]
    Several(Vec<String>),
    /// It is not up.
    #[error("cannot find cluster {name}: it is not up; {}", known(.up))]
    Missing {
        /// As it was asked for.
        name: String,
        /// Those that are.
        up: Vec<String>,
    },
}

fn known(up: &[String]) -> String {
    match up {
        [] => "none is".to_owned(),
        up => format!("up: {}", up.join(", ")),
    }
}

/// Where the cluster comes from: files, or the one that is up.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Source {
    /// Kubernetes objects: files, directories, `-` for standard input
    #[arg(short, long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A cluster that is up; may be left out if it is the only one
    #[arg(long, value_name = "NAME", conflicts_with = "files")]
    cluster: Option<String>,
}

/// A cluster to speak of.
#[derive(Debug)]
pub(crate) enum Subject {
    /// Described by files.
    Files(Cluster),
    /// Up on this machine.
    Live(State),
}

impl Subject {
    /// The cluster itself.
    pub(crate) fn cluster(&self) -> &Cluster {
        match self {
            Self::Files(cluster) => cluster,
            Self::Live(state) => &state.cluster,
        }
    }
}

impl Subject {
    /// The dataplane it runs on, if it is up.
    pub(crate) fn runs_on(&self) -> Option<Dataplane> {
        match self {
            Self::Files(_) => None,
            Self::Live(state) => Dataplane::of(&state.dataplane),
        }
    }
}

impl Source {
    /// Reads the files, or finds the cluster that is up.
    ///
    /// # Errors
    /// The input's, or [`ChoiceError`].
    pub(crate) fn subject(&self) -> anyhow::Result<Subject> {
        if self.files.is_empty() {
            return Ok(Subject::Live(live(self.cluster.as_deref())?));
        }
        Ok(Subject::Files(resolved(&Objects::read(&self.files)?)?))
    }
}

/// The cluster of some objects; what was left out or assumed is said on stderr.
///
/// # Errors
/// The objects do not make a cluster.
pub(crate) fn resolved(objects: &Objects) -> Result<Cluster, model::Error> {
    let cluster = objects.resolve(None)?;
    for note in &cluster.notes {
        eprintln!("note: {note}");
    }
    Ok(cluster)
}

/// The name of the cluster that is asked for, of which there is at least a trace; or of the only one that
/// is up.
///
/// # Errors
/// [`ChoiceError`].
pub(crate) fn chosen(name: Option<&str>) -> anyhow::Result<String> {
    let all = state::list()?;
    if let Some(name) = name {
        let there = all.iter().any(|one| one == name);
        return if there {
            Ok(name.to_owned())
        } else {
            Err(ChoiceError::Missing { name: name.to_owned(), up: all }.into())
        };
    }
    // What has no state is a trace that something killed left, or somebody's test.
    let mut up: Vec<String> = Vec::new();
    for name in all {
        if state::load(&name)?.is_some() {
            up.push(name);
        }
    }
    match up.as_slice() {
        [] => Err(ChoiceError::None.into()),
        [_] => Ok(up.remove(0)),
        _ => Err(ChoiceError::Several(up).into()),
    }
}

/// The state of a cluster that is up.
///
/// # Errors
/// [`ChoiceError`], or only traces of it are left.
pub(crate) fn live(name: Option<&str>) -> anyhow::Result<State> {
    let name = chosen(name)?;
    state::load(&name)?.ok_or_else(|| {
        anyhow::anyhow!(
            "cannot read cluster {name}: only traces of it are left; remove them with `podpath down {name}`"
        )
    })
}

/// Objects as a state keeps them.
pub(crate) fn stored(objects: &Objects) -> Vec<Value> {
    objects.iter().map(|entry| entry.object.to_value()).collect()
}

/// The objects that a state keeps.
///
/// # Errors
/// They were not written by this version.
pub(crate) fn recalled(state: &State) -> Result<Objects, model::Error> {
    if state.objects.is_empty() {
        return Ok(Objects::default());
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": state.objects});
    Objects::parse("the cluster that is up", &list.to_string())
}

/// As kubectl names what it changed: `networkpolicy.networking.k8s.io/allow-web`.
pub(crate) fn kubectl_name(key: &Key) -> String {
    let (kind, group) = (key.kind.name().to_lowercase(), key.kind.group());
    let dot = if group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{group}/{}", key.name)
}
