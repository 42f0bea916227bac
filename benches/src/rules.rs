//! What is done to a variant itself: all rules into an empty node, one endpoint changed among them, what they take of
//! the memory, and a whole cluster until packets pass. And frames pushed through it without links.
//!
//! A node's rules are taken from the cluster's description as the node's agent has it in memory: to plan them is part
//! of it, to bring the description there is not. `ebpf` and `emulator` plan and write one Service when one changes; the
//! others make what they have to make. What of it was planning and what was writing is told beside the whole, of all but
//! `chains`, where one is the other.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ::dataplane::tables::IfIndex;
use testbed::dataplane::live::Path;
use testbed::dataplane::{self, Name, Up, chains, netfilter};
use testbed::netns::{self, Guard, Netns};
use userspace::engine::Engine;
use userspace::engine::emulator::Emulator;
use userspace::engine::kernel::{Kernel, Options};
use userspace::model::Cluster;
use userspace::plan::{Links, NodePlan, NodeRows, Plan};

use crate::charged::{self, Charged};
use crate::cluster::{self, NODE};
use crate::figure::{LATENCY_P50, LATENCY_P99, MEMORY, PLANNED, PLANNED_P50, TOOK, WRITTEN, WRITTEN_P50};
use crate::matrix::{Run, Variant, Workload};
use crate::measure::cluster_name;
use crate::memory;
use crate::results::Spread;
use crate::sample::Measured;

/// Changes that are made one after the other: at least so many, then until their time is over, and at most.
const FEWEST_CHANGES: usize = 20;
const MOST_CHANGES: usize = 2000;

/// Pods of a cluster that is built to see how long it takes.
const PODS: u8 = 32;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The built-in cluster.
    #[error("cannot read the built-in cluster: {0}")]
    Cluster(#[from] userspace::model::Error),
    /// A cluster that is up.
    #[error(transparent)]
    Up(#[from] dataplane::Error),
    /// The cluster could not be planned, or an engine refused it.
    #[error(transparent)]
    Engine(#[from] userspace::error::Error),
    /// A packet path refused the cluster.
    #[error(transparent)]
    Path(#[from] dataplane::live::Refusal),
    /// A namespace.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// The kernel's packet filter.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// Frames.
    #[error(transparent)]
    Forward(#[from] memory::Error),
    /// What the kernel allocates for its packet filter.
    #[error(transparent)]
    Charged(#[from] charged::Error),
    /// Rules take something.
    #[error("nothing says how many bytes they take: this process's allocator does not tell, or the kernel")]
    Unknown,
    /// There are no Services.
    #[error("no endpoint can change: the cluster has no Services")]
    NoEndpoint,
}

/// The rules of a node somewhere, without links.
trait Rules {
    /// All of a cluster's, where there were none: how long it took to plan them, if that can be told.
    fn program(&mut self, cluster: &Cluster) -> Result<Option<Duration>, Error>;

    /// From one cluster's to another's, which differs in this Service alone; the same.
    fn update(
        &mut self,
        before: &Cluster,
        after: &Cluster,
        service: usize,
    ) -> Result<Option<Duration>, Error>;

    /// Bytes that the kernel has for them, where they are there.
    fn memory(&self) -> Result<Option<u64>, Error>;

    /// Lets go of what only the next change needs.
    fn forget_plan(&mut self);
}

/// Takes a sample of what is no traffic.
///
/// # Errors
/// [`Error`].
pub fn measure(variant: Variant, run: &Run, time: Duration) -> Result<Measured, Error> {
    if run.workload == Workload::Boot {
        return boot(variant);
    }
    let cluster = cluster::of("bench-rules", run.sizes)?;
    if run.workload == Workload::Forward {
        return Ok(Measured {
            figures: memory::once(variant.dataplane, &cluster, run.sizes.flows)?,
            ..Measured::default()
        });
    }
    let before = heap();
    let mut rules = empty(variant, &cluster, run.workload)?;
    let begin = Instant::now();
    let planned = rules.program(&cluster)?;
    let took = begin.elapsed();
    Ok(match run.workload {
        Workload::Update => updates(rules.as_mut(), &cluster, time)?,
        Workload::Memory => {
            rules.forget_plan();
            // Nobody else allocates in this process meanwhile.
            let bytes = match rules.memory()? {
                Some(bytes) => bytes,
                None => heap().saturating_sub(before),
            };
            Measured::of(&[(MEMORY, told(bytes)? as f64)])
        }
        _ => {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            let mut measured = Measured::of(&[(TOOK, ms(took))]);
            let parts = planned.map(|planned| [(PLANNED, ms(planned)), (WRITTEN, ms(took - planned))]);
            measured.figures.extend(parts.into_iter().flatten().map(|(name, ms)| (name.to_owned(), ms)));
            measured
        }
    })
}

/// A node of that kind with no rules yet.
fn empty(variant: Variant, cluster: &Cluster, workload: Workload) -> Result<Box<dyn Rules>, Error> {
    let dataplane = variant.dataplane;
    let bare = Cluster { services: Vec::new(), policies: Vec::new(), ..cluster.clone() };
    let node = || -> Result<NodePlan, Error> {
        let plan =
            userspace::plan::plan(&bare, NODE, &links(&bare)).map_err(userspace::error::Error::from)?;
        Ok(NodePlan { rows: NodeRows::default(), ..plan })
    };
    Ok(match dataplane {
        Name::Ebpf => {
            Box::new(Planned { engine: Kernel::load(&node()?, Options::default())?, plan: None, tables })
        }
        Name::Emulator => {
            Box::new(Planned { engine: Emulator::new(&node()?)?, plan: None, tables: |_| Ok(None) })
        }
        Name::Chains => Box::new(Chains(None)),
        Name::Iptables | Name::Nftables => {
            let name = format!("podpath-{}", cluster_name(variant, "rules"));
            let charged = (workload == Workload::Memory).then(|| Charged::new(&name)).transpose()?;
            Box::new(Filter { name: dataplane, netns: Netns::create(name)?.guarded(), charged })
        }
        Name::Routed | Name::Wire | Name::Bare => unreachable!("they have no rules, and are not asked"),
    })
}

/// What the kernel says of our tables.
fn tables(kernel: &Kernel) -> Result<Option<u64>, Error> {
    let tables = kernel.memory().map_err(userspace::error::Error::from)?;
    Ok(Some(tables.iter().map(|(_, bytes)| bytes).sum()))
}

/// The links of the node's pods, by numbers that nobody looks up.
fn links(cluster: &Cluster) -> Links {
    let pods = cluster.pods_on(NODE).zip(10..).map(|(pod, number)| (pod.id(), IfIndex(number)));
    Links { uplink: IfIndex(1), pods: pods.collect(), homes: None }
}

/// Our tables, in the kernel or in this process.
struct Planned<E> {
    engine: E,
    plan: Option<Plan>,
    tables: fn(&E) -> Result<Option<u64>, Error>,
}

impl<E: Engine> Rules for Planned<E> {
    fn program(&mut self, cluster: &Cluster) -> Result<Option<Duration>, Error> {
        let begin = Instant::now();
        let plan = Plan::of(cluster).map_err(userspace::error::Error::from)?;
        let node = plan.node(NODE, &links(cluster)).map_err(userspace::error::Error::from)?;
        let planned = begin.elapsed();
        self.engine.apply(&node.rows)?;
        self.plan = Some(plan);
        Ok(Some(planned))
    }

    fn update(&mut self, _: &Cluster, after: &Cluster, service: usize) -> Result<Option<Duration>, Error> {
        let begin = Instant::now();
        let service = &after.services[service];
        let plan = self.plan.as_mut().expect("what changes was programmed");
        let changes =
            plan.change(NODE, &service.id(), Some(service)).map_err(userspace::error::Error::from)?;
        let planned = begin.elapsed();
        self.engine.change(&changes)?;
        Ok(Some(planned))
    }

    fn memory(&self) -> Result<Option<u64>, Error> {
        (self.tables)(&self.engine)
    }

    fn forget_plan(&mut self) {
        self.plan = None;
    }
}

/// Rule chains in this process.
struct Chains(Option<chains::Live>);

impl Rules for Chains {
    fn program(&mut self, cluster: &Cluster) -> Result<Option<Duration>, Error> {
        self.0 = Some(<chains::Live as Path>::new(cluster, NODE)?);
        Ok(None)
    }

    fn update(&mut self, _: &Cluster, after: &Cluster, _: usize) -> Result<Option<Duration>, Error> {
        let node = self.0.as_mut().expect("what changes was programmed");
        Path::apply(node, after, NODE)?;
        Ok(None)
    }

    fn memory(&self) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    fn forget_plan(&mut self) {}
}

/// The kernel's packet filter, in a namespace of its own.
struct Filter {
    name: Name,
    netns: Guard,
    /// Who pays for it, where that is asked.
    charged: Option<Charged>,
}

impl Filter {
    fn load(&self, before: Option<&Cluster>, after: &Cluster) -> Result<Option<Duration>, Error> {
        let begin = Instant::now();
        let told = netfilter::change(self.name, before, after, NODE)?;
        let planned = begin.elapsed();
        for (tool, rules) in told {
            let load = || tool.load(&self.netns, &rules);
            match &self.charged {
                Some(charged) => charged.during(load)??,
                None => load()?,
            }
        }
        // As the product does after each change.
        netfilter::forget(&self.netns, before, after, NODE)?;
        Ok(Some(planned))
    }
}

impl Rules for Filter {
    fn program(&mut self, cluster: &Cluster) -> Result<Option<Duration>, Error> {
        self.load(None, cluster)
    }

    fn update(&mut self, before: &Cluster, after: &Cluster, _: usize) -> Result<Option<Duration>, Error> {
        self.load(Some(before), after)
    }

    fn memory(&self) -> Result<Option<u64>, Error> {
        Ok(self.charged.as_ref().map(Charged::bytes).transpose()?)
    }

    fn forget_plan(&mut self) {}
}

/// An endpoint goes or comes, of one Service after the other.
fn updates(rules: &mut dyn Rules, cluster: &Cluster, time: Duration) -> Result<Measured, Error> {
    if cluster.services.is_empty() {
        return Err(Error::NoEndpoint);
    }
    let (mut before, mut after) = (cluster.clone(), cluster.clone());
    let begin = Instant::now();
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    let (mut took_us, mut planned_us, mut written_us) = (Vec::new(), Vec::new(), Vec::new());
    while took_us.len() < FEWEST_CHANGES || (begin.elapsed() < time && took_us.len() < MOST_CHANGES) {
        // A step that leads through all of them.
        let service = took_us.len() * 7919 % cluster.services.len();
        turn(&mut after, service);
        let change = Instant::now();
        let planned = rules.update(&before, &after, service)?;
        let took = change.elapsed();
        took_us.push(us(took));
        planned_us.extend(planned.map(us));
        written_us.extend(planned.map(|planned| us(took - planned)));
        turn(&mut before, service);
    }
    took_us.sort_by(f64::total_cmp);
    let part = |part: f64| took_us[((took_us.len() - 1) as f64 * part).round() as usize];
    let mut measured = Measured::of(&[(LATENCY_P50, part(0.5)), (LATENCY_P99, part(0.99))]);
    for (name, values) in [(PLANNED_P50, planned_us), (WRITTEN_P50, written_us)] {
        let median = Spread::of(values).map(|spread| (name.to_owned(), spread.median));
        measured.figures.extend(median);
    }
    Ok(measured)
}

/// The first endpoint of a Service goes if it is there, and comes if it is not.
fn turn(cluster: &mut Cluster, service: usize) {
    let ports = cluster.services[service].ports.iter_mut();
    for backend in ports.filter_map(|port| port.backends.first_mut()) {
        backend.ready = !backend.ready;
        backend.serving = backend.ready;
    }
}

/// A cluster of [`PODS`] pods on two nodes, until packets pass.
fn boot(variant: Variant) -> Result<Measured, Error> {
    let mut cluster = cluster::of(&cluster_name(variant, "boot"), crate::matrix::Sizes::LEAST)?;
    let pattern = cluster.pods.clone();
    for number in pattern.len() as u8..PODS {
        let mut pod = pattern[usize::from(number) % 2].clone();
        pod.name = format!("pod-{number}");
        pod.labels.clear();
        let node = if pod.node == NODE { 1 } else { 2 };
        pod.addresses = vec![std::net::Ipv4Addr::new(10, 244, node, 10 + number).into()];
        cluster.pods.push(pod);
    }
    let begin = Instant::now();
    let up = Up::with_io(&cluster, variant.dataplane, variant.io)?;
    let took = begin.elapsed();
    up.down()?;
    Ok(Measured::of(&[(TOOK, took.as_secs_f64() * 1e3)]))
}

/// Nothing is no figure: not every allocator says what it has given.
fn told(bytes: u64) -> Result<u64, Error> {
    if bytes == 0 { Err(Error::Unknown) } else { Ok(bytes) }
}

/// Bytes that this process has allocated and not given back.
fn heap() -> u64 {
    // SAFETY: a call without pointers; what it reads is the allocator's own.
    let info = black_box(unsafe { libc::mallinfo2() });
    (info.uordblks + info.hblkhd) as u64
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use testbed::link::{Links, Next, Route};
    use userspace::model::Protocol;

    use super::*;
    use crate::matrix::{Sizes, Way};

    fn measured(dataplane: Name, workload: Workload, services: usize) -> Measured {
        let run = Run { sizes: Sizes { services, ..Sizes::LEAST }, ..Run::new(workload, Way::Memory) };
        let measured = measure(dataplane.into(), &run, Duration::from_millis(1));
        measured.unwrap_or_else(|error| panic!("{dataplane}: {error}"))
    }

    #[test]
    fn rules_in_this_process_are_programmed_and_changed() {
        for dataplane in [Name::Emulator, Name::Chains] {
            let program = measured(dataplane, Workload::Program, 50).figures;
            assert!(program[TOOK] > 0.0, "{program:?}");
            // Of chains one is the other.
            let parts = [PLANNED, WRITTEN].map(|part| program.get(part).copied());
            let both = parts[0].zip(parts[1]).map(|(one, other)| one + other);
            assert_eq!(both.is_some(), dataplane == Name::Emulator, "{program:?}");
            assert!(both.is_none_or(|both| (both - program[TOOK]).abs() < 1e-3), "{program:?}");
            let update = measured(dataplane, Workload::Update, 50).figures;
            assert!(update[LATENCY_P99] >= update[LATENCY_P50] && update[LATENCY_P50] > 0.0, "{update:?}");
        }
    }

    #[test]
    fn nothing_is_no_figure() {
        assert_eq!(told(5).ok(), Some(5));
        assert!(matches!(told(0), Err(Error::Unknown)), "not everybody says what it takes");
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn what_the_kernels_packet_filter_takes_grows_with_its_rules() {
        let [few, many] = [20, 2_000];
        for name in [Name::Iptables, Name::Nftables] {
            let bytes = |services| measured(name, Workload::Memory, services).figures[MEMORY];
            let (alone, all) = (bytes(few), bytes(many));
            assert!(alone > 0.0 && all > 10.0 * alone, "{name}: {alone} and {all} bytes");
        }
    }

    #[test]
    fn an_endpoint_that_goes_comes_back() {
        let cluster = cluster::of("bench-test", Sizes { services: 3, ..Sizes::LEAST }).expect("built in");
        let mut changed = cluster.clone();
        turn(&mut changed, 1);
        assert_ne!(changed, cluster);
        turn(&mut changed, 1);
        assert_eq!(changed, cluster);
    }

    #[test]
    #[ignore = "needs root: make test"]
    fn an_update_of_the_kernels_packet_filter_forgets_connections_as_the_product_does() {
        let mut before = cluster::of("bench-test", Sizes { services: 1, ..Sizes::LEAST }).expect("built in");
        let service = &mut before.services[0];
        service.ports.truncate(1);
        service.ports[0].protocol = Protocol::Udp;
        service.ports[0].backends.truncate(1);
        let dialled = SocketAddr::new(service.addresses[0], service.ports[0].port);
        let mut after = before.clone();
        turn(&mut after, 0);
        let own = before.node(NODE).expect("the cluster has it").address();
        for name in [Name::Iptables, Name::Nftables] {
            let netns = Netns::create(format!("podpath-test-{}-{name}-update", std::process::id()));
            let netns = netns.expect("the name is free").guarded();
            let all = "0.0.0.0/0".parse().expect("a range");
            let led = Links::open(&netns).and_then(|mut links| {
                links.up("lo")?;
                links.address("lo", own, 32)?;
                links.route(Route::net(all, Next::Link("lo")))
            });
            led.unwrap_or_else(|error| panic!("{error}"));
            let mut filter = Filter { name, netns, charged: None };
            filter.program(&before).unwrap_or_else(|error| panic!("{error}"));
            let send = || UdpSocket::bind((own, 0))?.send_to(b"x", dialled);
            filter.netns.run(send).expect("it runs").expect("it is led somewhere");
            let tracked = |filter: &Filter| netfilter::tracked(&filter.netns).expect("root may ask");
            assert_eq!(tracked(&filter), 1, "{name}");
            filter.update(&before, &after, 0).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(tracked(&filter), 0, "{name}");
        }
    }
}
