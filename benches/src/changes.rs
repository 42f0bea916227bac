//! What packets see of a change of policies, labels and pods, while it is made on a live cluster.
//!
//! Two nodes with agents of their own; a client, a server beside it and one on the other node. The client sends new
//! flows all the while. Of every change it is told, in microseconds of the one clock that there is:
//!
//! - from when the agents were told to when the last of them had acknowledged;
//! - how long flows were still allowed that are now denied (the wrong-allow window): from when the agents were told
//!   to the last that was judged as before;
//! - how long flows were still denied that are now allowed (the wrong-deny window), likewise;
//! - how long both was seen: from the first flow that was judged as after to the last that was judged as before;
//! - how many were judged as before that were sent after the acknowledgement: none;
//! - how many were judged otherwise that old and new rules judge alike, allowed or denied: none.
//!
//! A window is known as well as the distance of two probes allows.

pub mod stream;

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::{Value, json};
use testbed::agents;
use testbed::state::{self, Lock, Process, State};
use testbed::topology::{self, Layout, Topology};
use userspace::model::{self, Cluster, Pod};

use crate::measure::{self, check};
use crate::results::Spread;
use stream::{Prober, Seen, Target};

/// What it is measured on.
const CLUSTER: &str = include_str!("changes/cluster.yaml");
/// How often each change is made, unless it is said otherwise.
pub const ROUNDS: usize = 10;
/// Of every server: the port whose judgement changes, the one that stays allowed, the one that stays denied.
const PORTS: [u16; 3] = [7000, 7001, 7002];
/// Of these, the first two.
const SUBJECT: usize = 0;
const OPEN: usize = 1;

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The built-in cluster.
    #[error("cannot read the built-in cluster: {0}")]
    Cluster(#[from] model::Error),
    /// The state could not be kept, or not all of it removed.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The links could not be made.
    #[error("cannot build a cluster: {0}")]
    Topology(#[from] topology::Error),
    /// The agents could not be started, or told.
    #[error(transparent)]
    Agents(#[from] agents::Error),
    /// Probes did not flow.
    #[error(transparent)]
    Stream(#[from] stream::Error),
    /// The user wants it to end.
    #[error(transparent)]
    Stopped(#[from] measure::Error),
    /// Before anything was changed, a flow was not judged as it must be.
    #[error("cannot measure {change}: before it, port {port} of the server on {place} was judged wrongly")]
    Before {
        /// The change.
        change: &'static str,
        /// Which server.
        place: &'static str,
        /// Of the server.
        port: u16,
    },
}

/// What packets saw of a change, over all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was changed.
    pub change: &'static str,
    /// `one node` or `between nodes`: where client and server are.
    pub place: &'static str,
    /// Rounds.
    pub rounds: usize,
    /// Probes of the port whose judgement changes.
    pub probes: usize,
    /// Until the agents had acknowledged.
    pub acknowledged_us: Spread,
    /// How long flows were still allowed, where the change denies.
    pub wrong_allow_us: Option<Spread>,
    /// How long flows were still denied, where the change allows.
    pub wrong_deny_us: Option<Spread>,
    /// How long both was seen.
    pub both_us: Option<Spread>,
    /// Flows sent after the acknowledgement and judged as before.
    pub late: usize,
    /// Flows that old and new rules judge alike.
    pub alike: usize,
    /// Those of them that were judged otherwise.
    pub wrong: usize,
}

/// What a change does.
struct Step {
    name: &'static str,
    /// Whether each of [`PORTS`] is allowed before it and after it.
    ports: [(bool, bool); 3],
    change: fn(&mut Cluster),
}

/// A policy in `shop`.
fn put(cluster: &mut Cluster, name: &str, spec: &Value) {
    let object = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
    cluster.policies.push(serde_json::from_value(object).expect("the benchmark's own policies are valid"));
}

fn servers(ingress: &Value) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": ingress})
}

fn drop_policy(cluster: &mut Cluster, name: &str) {
    cluster.policies.retain(|policy| policy.metadata.name.as_deref() != Some(name));
}

fn isolate(cluster: &mut Cluster) {
    put(cluster, "isolate", &servers(&json!([{"ports": [{"protocol": "UDP", "port": PORTS[OPEN]}]}])));
}

fn befriend(cluster: &mut Cluster) {
    let friends = json!([
        {"podSelector": {"matchLabels": {"role": "friend"}}},
        {"namespaceSelector": {"matchLabels": {"team": "friends"}}},
    ]);
    let ports = json!([{"protocol": "UDP", "port": PORTS[SUBJECT]}]);
    put(cluster, "friends", &servers(&json!([{"from": friends, "ports": ports}])));
}

fn client(cluster: &mut Cluster) -> &mut Pod {
    let client = cluster.pods.iter_mut().find(|pod| pod.name == "client");
    client.expect("the built-in cluster has a client")
}

fn namespace(cluster: &mut Cluster) -> &mut model::Labels {
    cluster.namespaces.entry("shop".to_owned()).or_default()
}

/// The changes of a round, one after the other; the last leads back to the first.
fn steps() -> Vec<Step> {
    const CLOSES: [(bool, bool); 3] = [(true, false), (true, true), (false, false)];
    const OPENS: [(bool, bool); 3] = [(false, true), (true, true), (false, false)];
    let step = |name, ports, change| Step { name, ports, change };
    vec![
        step("a policy is made that isolates", CLOSES, isolate),
        step("it is removed", OPENS, |cluster| drop_policy(cluster, "isolate")),
        step("a policy is made that allows others", CLOSES, |cluster| {
            isolate(cluster);
            befriend(cluster);
        }),
        step("a label of the client opens", OPENS, |cluster| {
            client(cluster).labels.insert("role".to_owned(), "friend".to_owned());
        }),
        step("it is removed, which closes", CLOSES, |cluster| {
            client(cluster).labels.remove("role");
        }),
        step("a label of the namespace opens", OPENS, |cluster| {
            namespace(cluster).insert("team".to_owned(), "friends".to_owned());
        }),
        step("it is removed, which closes", CLOSES, |cluster| {
            namespace(cluster).remove("team");
        }),
    ]
}

/// A pod that is made while policies deny most of what is sent to it.
const MADE: &str = "a pod is made that policies isolate";
const MADE_PORTS: [(bool, bool); 3] = [(false, false), (false, true), (false, false)];

/// A cluster that is up, with an agent on each node. What is left of it goes when it is dropped.
struct Lab {
    lock: Option<Lock>,
    state: State,
    topology: Topology,
}

impl Lab {
    fn up(cluster: Cluster) -> Result<Self, Error> {
        let lock = state::lock(&cluster.name)?;
        let mut state = State::new("ebpf", Vec::new(), cluster.clone());
        lock.save(&state)?;
        let built = Topology::build(&cluster, Layout::HOOKED);
        let topology = match built {
            Ok(topology) => topology,
            Err(error) => {
                lock.down()?;
                return Err(error.into());
            }
        };
        let started = agents::start((0, &cluster), |role, pid| {
            state.processes.push(Process::running(role, pid)?);
            lock.save(&state)
        });
        let lab = Self { lock: Some(lock), state, topology };
        started.map(|()| lab).map_err(Error::from)
    }

    /// Tells the agents, and waits until all have acknowledged.
    fn change(&mut self, change: impl FnOnce(&mut Cluster)) -> Result<(), Error> {
        let (before, was) = (self.state.cluster.clone(), self.state.revision);
        change(&mut self.state.cluster);
        self.state.revision += 1;
        agents::apply((was, &before), (self.state.revision, &self.state.cluster), |_, _| Ok(()))?;
        Ok(())
    }

    fn pod(&self, name: &str) -> &Pod {
        let pod = self.state.cluster.pod(&format!("shop/{name}"));
        pod.expect("the built-in cluster has it")
    }

    /// Listeners on every port of a server.
    fn listen(&self, pod: &Pod) -> Result<Vec<Target>, Error> {
        let netns = self.topology.pod(pod);
        let listen = |port: &u16| Ok(Target::listen(&netns, SocketAddr::new(pod.address(), *port))?);
        PORTS.iter().map(listen).collect()
    }

    fn down(mut self) -> Result<(), Error> {
        self.lock.take().map_or(Ok(()), |lock| Ok(lock.down()?))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(lock) = self.lock.take()
            && let Err(error) = lock.down()
        {
            eprintln!("warning: {error}");
        }
    }
}

/// Where the servers are, the client being on the first node.
const PLACES: [(&str, &str); 2] = [("near", "one node"), ("far", "between nodes")];

/// Measures all of it, on a cluster of its own: it needs root.
///
/// # Errors
/// [`Error`]; nothing is left of the cluster, or it is said what.
pub fn measure(rounds: usize, stop: &AtomicBool, mut said: impl FnMut(&str)) -> Result<Vec<Row>, Error> {
    let mut cluster = model::load_text("the built-in cluster", CLUSTER)?;
    cluster.name = format!("bench-{}-changes", std::process::id());
    let mut lab = Lab::up(cluster)?;
    let mut prober = Prober::new(lab.topology.pod(lab.pod("client")));
    let mut targets = Vec::new();
    for (name, _) in PLACES {
        targets.extend(lab.listen(lab.pod(name))?);
    }
    let steps = steps();
    let mut tallies: Vec<Vec<Tally>> = vec![vec![Tally::default(); PLACES.len()]; steps.len() + 1];
    for round in 0..rounds {
        check(stop)?;
        said(&format!("round {} of {rounds}", round + 1));
        for (step, tallies) in steps.iter().zip(&mut tallies) {
            let seen = prober.around(&targets, || lab.change(step.change))?;
            for (place, tally) in tallies.iter_mut().enumerate() {
                tally.take(&seen, (place, step.name), &step.ports)?;
            }
        }
        for (place, (name, _)) in PLACES.iter().enumerate() {
            let tally = &mut tallies[steps.len()][place];
            make(&mut lab, &mut prober, (name, round), tally)?;
        }
        lab.change(|cluster| cluster.policies.clear())?;
    }
    lab.down()?;
    let names = steps.iter().map(|step| (step.name, &step.ports)).chain([(MADE, &MADE_PORTS)]);
    let rows = names.zip(tallies).flat_map(|((change, ports), tallies)| {
        let rows = PLACES.iter().zip(tallies);
        rows.filter_map(move |((_, place), tally)| tally.row((change, place), ports)).collect::<Vec<_>>()
    });
    Ok(rows.collect())
}

/// Makes a pod beside a server and like it, while it is probed; and removes it again.
fn make(
    lab: &mut Lab,
    prober: &mut Prober,
    (beside, round): (&str, usize),
    tally: &mut Tally,
) -> Result<(), Error> {
    let beside = lab.pod(beside).clone();
    // No flow of an earlier round was for this address.
    let IpAddr::V4(address) = beside.address() else {
        unreachable!("the built-in cluster has IPv4 addresses alone")
    };
    let address = IpAddr::V4((u32::from(address) + 10 + round as u32 % 200).into());
    let pod = Pod { name: "made".to_owned(), addresses: vec![address], ..beside };
    lab.topology.add_pod(&pod)?;
    let targets = lab.listen(&pod)?;
    let seen = prober.around(&targets, || lab.change(|cluster| cluster.pods.push(pod.clone())))?;
    tally.take(&seen, (0, MADE), &MADE_PORTS)?;
    drop(targets);
    lab.topology.remove_pod(&pod.namespace, &pod.name)?;
    lab.change(|cluster| cluster.pods.retain(|other| other.name != pod.name))
}

/// What was seen of a change, between the client and one server.
#[derive(Clone, Debug, Default)]
struct Tally {
    rounds: usize,
    probes: usize,
    acknowledged_us: Vec<f64>,
    window_us: Vec<f64>,
    both_us: Vec<f64>,
    late: usize,
    alike: usize,
    wrong: usize,
}

impl Tally {
    /// Adds what was seen of the server at this place.
    fn take(
        &mut self,
        seen: &Seen,
        (place, change): (usize, &'static str),
        ports: &[(bool, bool); 3],
    ) -> Result<(), Error> {
        self.rounds += 1;
        self.probes += seen.probes.len();
        self.acknowledged_us.push((seen.acknowledged_us - seen.told_us) as f64);
        for (index, (before, after)) in ports.iter().enumerate() {
            let judged = || seen.probes.iter().map(|probe| (probe.sent_us, probe.came[place * 3 + index]));
            if before == after {
                self.alike += seen.probes.len();
                self.wrong += judged().filter(|(_, came)| came != before).count();
                continue;
            }
            if judged()
                .any(|(sent_us, came)| came != *before && sent_us < seen.told_us.saturating_sub(EARLY_US))
            {
                return Err(Error::Before { change, place: PLACES[place].1, port: PORTS[index] });
            }
            let old = judged().filter(|(_, came)| came == before).map(|(sent_us, _)| sent_us);
            let new = judged().filter(|(_, came)| came == after).map(|(sent_us, _)| sent_us).min();
            let last = old.clone().max().unwrap_or(0);
            self.window_us.push(last.saturating_sub(seen.told_us) as f64);
            self.both_us.push(last.saturating_sub(new.unwrap_or(last)) as f64);
            self.late += old.filter(|sent_us| *sent_us > seen.acknowledged_us).count();
        }
        Ok(())
    }

    /// What it comes to; nothing of no rounds.
    fn row(
        mut self,
        (change, place): (&'static str, &'static str),
        ports: &[(bool, bool); 3],
    ) -> Option<Row> {
        let closes = ports.contains(&(true, false));
        let window = spread(&mut self.window_us);
        Some(Row {
            change,
            place,
            rounds: self.rounds,
            probes: self.probes,
            acknowledged_us: spread(&mut self.acknowledged_us)?,
            wrong_allow_us: window.filter(|_| closes),
            wrong_deny_us: window.filter(|_| !closes),
            both_us: spread(&mut self.both_us),
            late: self.late,
            alike: self.alike,
            wrong: self.wrong,
        })
    }
}

/// A probe that is noted as sent may be preempted before it leaves.
const EARLY_US: u64 = 10_000;

/// The lowest, the middle one and the highest.
fn spread(values: &mut [f64]) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let (min, max) = (*values.first()?, *values.last()?);
    Some(Spread { min, median: values[values.len() / 2], max })
}

/// The rows below each other, for people.
#[derive(Debug)]
pub struct Below<'a>(pub &'a [Row]);

impl fmt::Display for Below<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.0.iter().map(|row| row.change.len()).max().unwrap_or(0);
        writeln!(f, "microseconds: lowest / median / highest")?;
        writeln!(
            f,
            "{:widest$}  {:13}  {:>20}  {:>20}  {:>20}  {:>20}  {:>6}  {:>4}  {:>15}",
            "",
            "",
            "acknowledged",
            "wrong-allow",
            "wrong-deny",
            "both seen",
            "probes",
            "late",
            "wrong of alike"
        )?;
        for row in self.0 {
            let Row { change, place, probes, late, alike, wrong, .. } = row;
            let told = |spread: Option<Spread>| {
                spread
                    .map_or("-".to_owned(), |it| format!("{:.0} / {:.0} / {:.0}", it.min, it.median, it.max))
            };
            let columns =
                [Some(row.acknowledged_us), row.wrong_allow_us, row.wrong_deny_us, row.both_us].map(told);
            let [acknowledged, allow, deny, both] = columns;
            writeln!(
                f,
                "{change:widest$}  {place:13}  {acknowledged:>20}  {allow:>20}  {deny:>20}  {both:>20}  \
                 {probes:>6}  {late:>4}  {:>15}",
                format!("{wrong} of {alike}")
            )?;
        }
        Ok(())
    }
}

/// A line for every row.
pub fn csv(rows: &[Row]) -> String {
    let mut text =
        "change,place,rounds,probes,acknowledged_us,wrong_allow_us,wrong_deny_us,both_us,late,alike,wrong\n"
            .to_owned();
    for row in rows {
        let median = |spread: Option<Spread>| spread.map_or(String::new(), |it| format!("{:.0}", it.median));
        let columns =
            [Some(row.acknowledged_us), row.wrong_allow_us, row.wrong_deny_us, row.both_us].map(median);
        let Row { change, place, rounds, probes, late, alike, wrong, .. } = row;
        writeln!(text, "\"{change}\",{place},{rounds},{probes},{},{late},{alike},{wrong}", columns.join(","))
            .expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::stream::Probe;
    use super::*;

    /// Probes of one server, a millisecond apart.
    fn seen(subject: &[bool]) -> Seen {
        let probe =
            |(at, came): (usize, &bool)| Probe { sent_us: at as u64 * 1000, came: vec![*came, true, false] };
        let probes = subject.iter().enumerate().map(probe).collect();
        Seen { probes, told_us: 20_500, acknowledged_us: 24_500 }
    }

    #[test]
    fn a_window_ends_with_the_last_flow_that_was_judged_as_before() {
        let mut came = vec![true; 23];
        came.extend([false, true, false, false]);
        let mut tally = Tally::default();
        let ports = [(true, false), (true, true), (false, false)];
        tally.take(&seen(&came), (0, "x"), &ports).expect("it was open before");
        assert_eq!((tally.window_us.clone(), tally.both_us.clone()), (vec![3500.0], vec![1000.0]));
        assert_eq!((tally.late, tally.alike, tally.wrong), (0, 54, 0));
        let row = tally.row(("x", "one node"), &ports).expect("there was a round");
        assert!(row.wrong_deny_us.is_none() && row.wrong_allow_us.is_some_and(|it| it.max == 3500.0));
        assert!(Below(std::slice::from_ref(&row)).to_string().contains("3500 / 3500 / 3500"));
        assert_eq!(csv(&[row]).lines().nth(1), Some("\"x\",one node,1,27,4000,3500,,1000,0,54,0"));
    }

    #[test]
    fn what_is_judged_as_before_after_the_acknowledgement_is_late() {
        let mut came = vec![true; 26];
        came.push(false);
        let mut tally = Tally::default();
        tally
            .take(&seen(&came), (0, "x"), &[(true, false), (true, true), (true, true)])
            .expect("it was open");
        assert_eq!((tally.late, tally.wrong), (1, 27));
        let closed = seen(&[false; 30]);
        let refused = tally.take(&closed, (0, "x"), &[(true, false), (true, true), (false, false)]);
        assert!(matches!(refused, Err(Error::Before { port: 7000, .. })));
    }
}
