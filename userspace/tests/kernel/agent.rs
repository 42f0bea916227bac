//! An agent that is told of one Service among many, and one that comes after another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use userspace::agent::{Agent, Change, Desired, Reply, Request, Seat};
use userspace::engine::kernel::{Kernel, Pins};
use userspace::model::{Backend, Cluster, Node, Service, ServicePort};
use userspace::plan::{LEGS, NodeRows};

use crate::Folder;
use crate::netns::Netns;

/// Services, each with four endpoints that no other has.
const SERVICES: u32 = 2000;

fn address(first: [u8; 4], index: u32) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes(first) + index).into()
}

fn service(index: u32) -> Service {
    let end = |place| Backend::new(address([10, 128, 0, 0], index * 4 + place), 8080);
    let port = ServicePort { port: 80, backends: (0..4).map(end).collect(), ..ServicePort::default() };
    Service {
        namespace: "many".to_owned(),
        name: format!("s{index:05}"),
        addresses: vec![address([10, 96, 0, 0], index + 1)],
        ports: vec![port],
        ..Service::default()
    }
}

fn cluster(services: impl Iterator<Item = u32>) -> Cluster {
    let node = Node {
        name: "n1".to_owned(),
        labels: BTreeMap::new(),
        addresses: vec![address([10, 240, 0, 4], 0)],
        pod_cidrs: Vec::new(),
    };
    Cluster { nodes: vec![node], services: services.map(service).collect(), ..Cluster::default() }
}

/// An agent of this cluster's node `n1`, whose pins are of this name.
fn agent(cluster: &str) -> Agent {
    Agent::new(Seat {
        cluster: cluster.to_owned(),
        node: "n1".to_owned(),
        uplink: "eth0".to_owned(),
        host: "pod0".to_owned(),
    })
}

fn all(revision: u64, cluster: Cluster) -> Request {
    let (interfaces, netns) = (BTreeMap::new(), BTreeMap::new());
    Request::Apply(Box::new(Desired { revision, cluster, interfaces, netns }))
}

fn one(from: u64, service: &Service) -> Request {
    let services = [(service.id(), Some(service.clone()))].into();
    Request::Change(Box::new(Change { from, revision: from + 1, services, labels: None }))
}

/// The answer to a request; all legs of the way are gone.
fn told(agent: &mut Agent, request: &Request) -> Reply {
    let reply = agent.serve(request);
    (1..LEGS).for_each(|_| assert_eq!(agent.serve(&Request::Go), Reply::Done));
    reply
}

/// What the node's programs go by.
fn held(pins: &Pins) -> NodeRows {
    Kernel::held(pins).expect("it can be read").expect("programs are hooked in")
}

/// The numbers of the backends behind every frontend.
fn numbers(rows: &NodeRows) -> BTreeMap<String, BTreeSet<u32>> {
    let rows = &rows.v4;
    let behind = rows.frontends.iter().map(|(key, row)| {
        let run = row.internal.first..row.internal.first + row.internal.count;
        (format!("{key:?} {}", row.id.0), run.map(|slot| rows.maglev[slot as usize].0).collect())
    });
    behind.collect()
}

#[test]
#[ignore = "needs root: make test"]
fn one_service_that_changes_is_planned_and_written_alone() {
    let (netns, name) = (Netns::with_links("change"), format!("test-{}-change", std::process::id()));
    let folder = Folder(Pins::of(&name, "n1"));
    netns.run(|| {
        let mut agent = agent(&name);
        assert_eq!(told(&mut agent, &all(7, cluster(0..SERVICES))), Reply::Done);
        let mut changed = service(SERVICES / 2);
        let end = changed.ports[0].backends.pop().expect("there are four");
        let begun = Instant::now();
        // Three slots, the frontend that names them, and the backend that is no more.
        assert_eq!(told(&mut agent, &one(7, &changed)), Reply::Changed(5));
        println!("one endpoint of {SERVICES} Services: {:?}", begun.elapsed());
        let backends = held(&folder.0).v4.backends;
        let row = backends.iter().find(|row| IpAddr::from(row.address.0) == end.address);
        assert_eq!(row.expect("it has a row").state, dataplane::tables::Backend::<dataplane::wire::V4>::GONE);
        // Whoever does not know the state that the agent is at tells it all.
        assert_eq!(told(&mut agent, &one(7, &changed)), Reply::Behind);
        assert_eq!(told(&mut agent, &all(9, cluster(0..SERVICES))), Reply::Done);
        assert!(matches!(told(&mut agent, &one(9, &changed)), Reply::Changed(1..=5)));
        assert_eq!(agent.serve(&Request::Stop), Reply::Done);
    });
}

#[test]
#[ignore = "needs root: make test"]
fn the_agent_after_another_goes_on_with_its_numbers() {
    let (netns, name) = (Netns::with_links("numbers"), format!("test-{}-numbers", std::process::id()));
    let folder = Folder(Pins::of(&name, "n1"));
    netns.run(|| {
        let mut first = agent(&name);
        assert_eq!(told(&mut first, &all(0, cluster(100..140))), Reply::Done);
        // By name, these come before the others.
        assert_eq!(told(&mut first, &all(1, cluster(80..130))), Reply::Done);
        let before = numbers(&held(&folder.0));
        // Ended by a signal, it takes nothing off.
        drop(first);
        let mut second = agent(&name);
        assert_eq!(told(&mut second, &all(2, cluster(70..130))), Reply::Done);
        let after = numbers(&held(&folder.0));
        assert_eq!((before.len(), after.len()), (50, 60));
        assert!(before.iter().all(|(frontend, numbers)| after.get(frontend) == Some(numbers)));
        assert_eq!(second.serve(&Request::Stop), Reply::Done);
    });
}
