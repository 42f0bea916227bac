//! Read, run and check a case: Kubernetes objects, what is sent, and the walk that is expected.
//!
//! A case is specification, test and bug report in one. It knows nothing of engines: whoever runs it says
//! what the nodes run on, so the same case judges the emulator and the kernel, and the two can be compared.
//!
//! ```yaml
//! # What it shows, in a sentence.
//! include: ../clusters/two-nodes.yaml
//! send:
//!   - from: default/web
//!     to: svc:default/api:80/tcp
//! expect: |
//!   from_pod       n1  default/web
//!   ...
//! ```
//! Every field is described at [`script::Line`]; the steps' walks stand in `expect` one after the other, an
//! empty line between packets.

mod frame;
mod rows;
pub mod script;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use dataplane::wire::{V4, V6};
use userspace::engine::emulator::network::{Heard, Make, Network};
use userspace::engine::emulator::{Answer, Emulator};
use userspace::engine::{Capacities, Clock, Engine};
use userspace::model::{Cluster, Objects};
use userspace::observe::walk;
use userspace::plan::Prefix;

use crate::sound::{Faults, Watched};
use script::{Over, Script, Step};

/// Why a case could not be read or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there, or not text.
    #[error("cannot read case {path}: {why}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        why: std::io::Error,
    },
    /// Something in it makes no sense.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: String,
        /// What, and what is meant perhaps.
        why: String,
    },
    /// An engine failed.
    #[error("{path}: {why}")]
    Engine {
        /// The file.
        path: String,
        /// What it says.
        why: userspace::error::Error,
    },
}

/// A case, read and understood as far as that is possible without a cluster.
#[derive(Clone, Debug)]
pub struct Case {
    /// The file.
    pub path: PathBuf,
    /// The cluster.
    pub cluster: Cluster,
    /// Rows that tables may hold.
    pub capacities: Capacities,
    objects: Objects,
    script: Script,
}

/// What came of a case. Two engines that agree give equal ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Every walk in words.
    pub walk: String,
    /// The rows that nodes hold at the end, in words.
    pub rows: String,
    /// After each step: the frame that a host received.
    pub heard: Vec<Option<Heard>>,
    /// Frames that left a node with a wrong checksum though they came with right ones, in words.
    pub faults: Vec<String>,
}

impl Case {
    /// Reads a case and the files that it includes.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Content`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            fs::read_to_string(path).map_err(|why| Error::File { path: path.display().to_string(), why })?;
        let content = |why: String| Error::Content { path: path.display().to_string(), why };
        let script = Script::parse(&text).map_err(content)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut objects = Objects::default();
        for include in &script.include {
            let included = Objects::read(&[folder.join(include)]).map_err(|why| content(why.to_string()))?;
            objects.apply(included);
        }
        if let Some(inline) = &script.objects {
            let inline = Objects::parse("objects", inline).map_err(|why| content(why.to_string()))?;
            objects.apply(inline);
        }
        let cluster = objects.resolve(None).map_err(|why| content(why.to_string()))?;
        let mut capacities = Capacities::default();
        for (table, rows) in &script.capacity {
            capacities.set(table, *rows).map_err(|why| content(why.to_string()))?;
        }
        Ok(Self { path: path.to_path_buf(), cluster, capacities, objects, script })
    }

    /// Runs it on engines that `make` makes.
    ///
    /// # Errors
    /// [`Error::Content`] for a name that is not in the cluster, [`Error::Engine`].
    pub fn run<E: Engine + Clock + 'static>(&self, mut make: Make<E>) -> Result<Ran, Error> {
        let without = self.script.without_routes.iter().copied();
        let without_v4: Vec<_> = without.clone().filter_map(Prefix::<V4>::of).collect();
        let without_v6: Vec<_> = without.filter_map(Prefix::<V6>::of).collect();
        let faults = Faults::default();
        let list = Rc::clone(&faults);
        let make: Make<Watched<E>> = Box::new(move |plan| {
            let mut plan = plan.clone();
            plan.rows.v4.routes.retain(|prefix, _| !without_v4.contains(prefix));
            plan.rows.v6.routes.retain(|prefix, _| !without_v6.contains(prefix));
            Ok(Watched::new(make(&plan)?, &plan, Rc::clone(&list)))
        });
        let network = Network::with(&self.cluster, 0, make).map_err(|why| self.engine(why))?;
        let mut run = Run { case: self, network, cluster: self.cluster.clone(), last: None };
        let mut ran = Ran { walk: String::new(), rows: String::new(), heard: Vec::new(), faults: Vec::new() };
        for (index, step) in self.script.steps.iter().enumerate() {
            let (text, heard) = run.step(step).map_err(|why| match why {
                Failure::Engine(why) => self.engine(why),
                Failure::Content(why) => self.content(format!("send[{index}]: {why}")),
            })?;
            if !text.is_empty() && !ran.walk.is_empty() {
                ran.walk.push('\n');
            }
            ran.walk.push_str(&text);
            ran.heard.push(heard);
        }
        ran.rows = rows::print(&run.network).map_err(|why| self.engine(why))?;
        ran.faults.clone_from(&faults.borrow());
        Ok(ran)
    }

    /// Runs it on the emulator.
    ///
    /// # Errors
    /// As [`Case::run`].
    pub fn emulate(&self) -> Result<Ran, Error> {
        let capacities = self.capacities.clone();
        self.run(Box::new(move |plan| Emulator::with_capacities(plan, &capacities)))
    }

    /// What is expected and did not come, or came and was not expected; `None` if all is as expected.
    pub fn differs(&self, ran: &Ran) -> Option<String> {
        let mut text = String::new();
        if self.script.expect != ran.walk {
            text += &side_by_side("expected", &self.script.expect, "walked", &ran.walk);
        }
        if let Some(rows) = &self.script.rows
            && *rows != ran.rows
        {
            text += &side_by_side("expected rows", rows, "rows", &ran.rows);
        }
        text += &ran.faults.join("\n");
        (!text.is_empty()).then(|| format!("{}:\n{text}", self.path.display()))
    }

    /// Writes what came of it into the file as what is expected; the rows only if it expects any.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn bless(&self, ran: &Ran) -> Result<(), Error> {
        let file = |why| Error::File { path: self.path.display().to_string(), why };
        let mut text = fs::read_to_string(&self.path).map_err(file)?;
        text = script::with_block(&text, "expect", &ran.walk);
        if self.script.rows.is_some() {
            text = script::with_block(&text, "rows", &ran.rows);
        }
        fs::write(&self.path, text).map_err(file)
    }

    fn content(&self, why: String) -> Error {
        Error::Content { path: self.path.display().to_string(), why }
    }

    fn engine(&self, why: userspace::error::Error) -> Error {
        Error::Engine { path: self.path.display().to_string(), why }
    }
}

/// Why a step could not be taken.
enum Failure {
    Content(String),
    Engine(userspace::error::Error),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Content(why)
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        Self::Content(why.to_owned())
    }
}

impl From<userspace::error::Error> for Failure {
    fn from(why: userspace::error::Error) -> Self {
        Self::Engine(why)
    }
}

/// A case under way.
struct Run<'a, E> {
    case: &'a Case,
    network: Network<E>,
    cluster: Cluster,
    last: Option<Heard>,
}

impl<E: Engine + Clock> Run<'_, E> {
    /// Takes a step: what happened, in words, and the frame that a host received.
    fn step(&mut self, step: &Step) -> Result<(String, Option<Heard>), Failure> {
        match step {
            Step::Send(send) => {
                self.network.hush(true);
                let mut text = String::new();
                for repetition in 0..send.repeat {
                    let (place, bytes) = frame::make(&mut self.network, &self.cluster, send, repetition)?;
                    self.network.take_heard();
                    self.network.send(place, bytes);
                    self.network.run()?;
                    text = self.walked();
                }
                Ok((text, self.hear()))
            }
            Step::Reply(reply) => {
                self.network.hush(true);
                let last = self.last.clone().ok_or("nobody received anything that could be replied to")?;
                let (place, bytes) = frame::reply(&mut self.network, &last, reply)?;
                self.network.take_heard();
                self.network.send(place, bytes);
                self.network.run()?;
                Ok((self.walked(), self.hear()))
            }
            Step::Connect { from, to, over } => {
                let from = frame::host(&self.network, &self.cluster, from)?;
                let (address, dial) = frame::dial(&self.cluster, to, *over)?;
                let attempt = self.network.connect(from, address, dial)?;
                let answer = match attempt.answer {
                    Answer::Allow => "allow",
                    Answer::Deny => "deny",
                    Answer::Reject => "reject",
                };
                let text = walk::print(&attempt.walk, self.network.names());
                Ok((format!("{text}= {answer}\n"), self.hear()))
            }
            Step::Wait { seconds } => {
                self.network.wait(*seconds)?;
                Ok((String::new(), None))
            }
            Step::Sweep => {
                self.network.sweep()?;
                Ok((String::new(), None))
            }
            Step::Apply(text) => {
                let mut objects = self.case.objects.clone();
                objects.apply(Objects::parse("apply", text).map_err(|why| why.to_string())?);
                self.cluster = objects.resolve(Some(&self.cluster)).map_err(|why| why.to_string())?;
                self.network.apply(&self.cluster)?;
                Ok((String::new(), None))
            }
        }
    }

    fn walked(&mut self) -> String {
        let steps = self.network.take_steps();
        walk::print(&steps, self.network.names())
    }

    fn hear(&mut self) -> Option<Heard> {
        let heard = self.network.take_heard();
        if heard.is_some() {
            self.last.clone_from(&heard);
        }
        heard
    }
}

/// Two texts beside each other, a line to a line, `!` between those that differ.
pub fn side_by_side(left_title: &str, left: &str, right_title: &str, right: &str) -> String {
    let width = left.lines().map(|line| line.chars().count()).max().unwrap_or(0).max(left_title.len());
    let mut text = format!("  {left_title:width$}   {right_title}\n");
    let (mut left, mut right) = (left.lines(), right.lines());
    loop {
        let (one, other) = (left.next(), right.next());
        if one.is_none() && other.is_none() {
            return text;
        }
        let mark = if one == other { ' ' } else { '!' };
        let line = format!("  {:width$} {mark} {}", one.unwrap_or(""), other.unwrap_or(""));
        text += line.trim_end();
        text.push('\n');
    }
}

/// Every case below a folder, in the order of their paths.
///
/// # Errors
/// [`Error::File`] for a folder that cannot be read.
pub fn all(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let file = |why| Error::File { path: folder.display().to_string(), why };
        for entry in fs::read_dir(&folder).map_err(file)? {
            let path = entry.map_err(file)?.path();
            if path.is_dir() && !path.ends_with("clusters") {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "yaml") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The one of somebody's addresses that is of a family; the first, if none is asked for.
///
/// # Errors
/// There is none.
fn address_over(whose: &str, addresses: &[IpAddr], over: Option<Over>) -> Result<IpAddr, String> {
    let fits = |address: &&IpAddr| over.is_none_or(|over| address.is_ipv4() == (over == Over::IPv4));
    let found = addresses.iter().find(fits).copied();
    found.ok_or_else(|| format!("{whose} has no {} address", over.map_or("", Over::word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("case.yaml");
        fs::write(&path, text).expect("it can be written");
        (folder, path)
    }

    const POD: &str = r"
objects: |
  {apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: web, image: web}]}}
";

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let (_folder, path) =
            written(&format!("{POD}send: [{{from: default/wbe, to: ext:world}}]\nexpect: \"\"\n"));
        let error = Case::read(&path).expect("reads").emulate().expect_err("there is no such pod");
        let text = error.to_string();
        assert!(
            text.ends_with(r#"send[0]: unknown pod "default/wbe", did you mean "default/web"?"#),
            "{text}"
        );
    }

    #[test]
    fn an_unknown_field_is_an_error_that_names_the_file() {
        let (_folder, path) = written(&format!("{POD}send: [{{form: default/web}}]\nexpect: \"\"\n"));
        let text = Case::read(&path).expect_err("no such field").to_string();
        assert!(text.starts_with(&path.display().to_string()), "{text}");
        assert!(text.contains("form"), "{text}");
    }

    #[test]
    fn blessing_writes_the_walk_and_keeps_everything_else() {
        let text =
            format!("# A comment.\n{POD}expect: |\n  nonsense\nsend: [{{from: default/web, as: who-has}}]\n");
        let (_folder, path) = written(&text);
        let case = Case::read(&path).expect("reads");
        let ran = case.emulate().expect("runs");
        assert!(case.differs(&ran).is_some());
        case.bless(&ran).expect("it can be written");
        assert_eq!(Case::read(&path).expect("reads").differs(&ran), None);
        let blessed = fs::read_to_string(&path).expect("is there");
        assert!(blessed.starts_with("# A comment.\n"), "{blessed}");
        assert!(blessed.ends_with("send: [{from: default/web, as: who-has}]\n"), "{blessed}");
    }

    #[test]
    fn lines_that_differ_are_marked() {
        let text = side_by_side("left", "a\nb\n", "right", "a\nc\nd\n");
        assert_eq!(text, "  left   right\n  a      a\n  b    ! c\n       ! d\n");
    }
}
