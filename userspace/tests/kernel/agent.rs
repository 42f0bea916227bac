//! An agent that is told of one Service among many, and one that comes after another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use aya::maps::{HashMap, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use dataplane::tables::{Fragments, Frontend, Frontends, Table};
use dataplane::wire::V4;
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

/// Bytes of a key and of a row of the table that is made full.
const SIZES: (usize, usize) = (size_of::<Frontend<V4>>(), size_of::<<Frontends<V4> as Table>::Row>());

/// Rows of a node's frontends that its agent does not know of, which leave room for so many others.
struct Strangers(HashMap<MapData, [u8; SIZES.0], [u8; SIZES.1]>, Vec<[u8; SIZES.0]>);

impl Strangers {
    fn come(pins: &Pins, room: u32) -> Self {
        let opened = MapData::from_pin(pins.path().join("maps").join(Frontends::<V4>::NAME));
        let map = opened.and_then(Map::from_map_data).expect("it is pinned");
        let mut map = HashMap::try_from(map).expect("these are its sizes");
        let free = Frontends::<V4>::CAPACITY - map.keys().count() as u32 - room;
        // From 192.0.0.0 on, where no Service is.
        let keys = (0..free).map(|index| {
            let mut key = [0; SIZES.0];
            key[..4].copy_from_slice(&(0xc000_0000 + index).to_be_bytes());
            key
        });
        let keys: Vec<_> = keys.collect();
        keys.iter().for_each(|key| map.insert(key, [0; SIZES.1], 0).expect("there is room"));
        Self(map, keys)
    }

    fn go(mut self) {
        self.1.iter().for_each(|key| self.0.remove(key).expect("it is there"));
    }
}

/// Who is behind every Service that is dialled, by its address.
fn reached(rows: &NodeRows) -> BTreeMap<IpAddr, BTreeSet<IpAddr>> {
    let rows = &rows.v4;
    let behind = rows.frontends.iter().map(|(key, row)| {
        let run = row.internal.first..row.internal.first + row.internal.count;
        let end = |slot: u32| rows.backends[rows.maglev[slot as usize].0 as usize].address.0;
        (key.address.0.into(), run.map(|slot| end(slot).into()).collect())
    });
    behind.collect()
}

fn wanted(cluster: &Cluster) -> BTreeMap<IpAddr, BTreeSet<IpAddr>> {
    let ends = |service: &Service| service.ports[0].backends.iter().map(|end| end.address).collect();
    cluster.services.iter().map(|service| (service.address(), ends(service))).collect()
}

fn failed(reply: &Reply) -> bool {
    matches!(reply, Reply::Failed(why) if why.contains(Frontends::<V4>::NAME))
}

#[test]
#[ignore = "needs root: make test"]
fn an_agent_whose_way_failed_sets_out_for_the_next_state_from_where_it_is() {
    let (netns, name) = (Netns::with_links("astray"), format!("test-{}-astray", std::process::id()));
    let folder = Folder(Pins::of(&name, "n1"));
    netns.run(|| {
        let mut agent = agent(&name);
        assert_eq!(told(&mut agent, &all(1, cluster(0..40))), Reply::Done);
        let strangers = Strangers::come(&folder.0, 3);
        // Three of ten frontends find room, and what is gone in this state is not removed before they are there.
        assert_eq!(agent.serve(&all(2, cluster(10..50))), Reply::Done, "the first leg");
        assert!(failed(&agent.serve(&Request::Go)));
        // The other nodes go on, and so does who asks them all.
        assert_eq!(agent.serve(&Request::Go), Reply::Done);
        strangers.go();
        assert_eq!(reached(&held(&folder.0)), wanted(&cluster(0..43)));
        // It is at none of the two states.
        for from in [1, 2] {
            assert_eq!(agent.serve(&one(from, &service(60))), Reply::Behind);
        }
        let strangers = Strangers::come(&folder.0, 0);
        assert_eq!(agent.serve(&all(3, cluster(20..60))), Reply::Done);
        assert!(failed(&agent.serve(&Request::Go)), "there is less room than before");
        strangers.go();
        let next = cluster((15..35).chain(45..70));
        assert_eq!(told(&mut agent, &all(4, next.clone())), Reply::Done);
        assert_eq!(reached(&held(&folder.0)), wanted(&next));
        // One Service alone, of which slots and backends are written before it is known that its frontend finds no room.
        let strangers = Strangers::come(&folder.0, 0);
        assert!(matches!(agent.serve(&one(4, &service(80))), Reply::Changed(_)));
        assert!(failed(&agent.serve(&Request::Go)));
        strangers.go();
        assert_eq!(reached(&held(&folder.0)), wanted(&next));
        assert_eq!(agent.serve(&one(4, &service(80))), Reply::Behind);
        let last = cluster((15..35).chain(45..70).chain([80]));
        assert_eq!(told(&mut agent, &all(5, last.clone())), Reply::Done);
        assert_eq!(reached(&held(&folder.0)), wanted(&last));
        assert!(
            matches!(told(&mut agent, &one(5, &service(81))), Reply::Changed(_)),
            "it is where it is said to be"
        );
        assert_eq!(agent.serve(&Request::Stop), Reply::Done);
    });
}

#[test]
#[ignore = "needs root: make test"]
fn programs_that_could_not_be_told_what_holds_for_all_packets_are_told_with_the_next_state() {
    let (netns, name) = (Netns::with_links("untold"), format!("test-{}-untold", std::process::id()));
    let folder = Folder(Pins::of(&name, "n1"));
    netns.run(|| {
        let mut agent = agent(&name);
        assert_eq!(told(&mut agent, &all(1, cluster(0..10))), Reply::Done);
        let first = program("pod0");
        let mut next = cluster(5..15);
        next.settings.services.node_ports = (31_000, 31_999);
        // The loader finds this where it pins a table.
        let pin = folder.0.path().join("maps").join(Fragments::<V4>::NAME);
        std::fs::remove_file(&pin).and_then(|()| std::fs::create_dir(&pin)).expect("it is pinned");
        assert!(matches!(agent.serve(&all(2, next.clone())), Reply::Failed(_)));
        assert_eq!(program("pod0"), first, "it goes on");
        std::fs::remove_dir(&pin).expect("it is empty");
        assert_eq!(told(&mut agent, &all(3, next.clone())), Reply::Done);
        assert_ne!(program("pod0"), first, "another knows what is different");
        assert_eq!(reached(&held(&folder.0)), wanted(&next));
        assert_eq!(agent.serve(&Request::Stop), Reply::Done);
    });
}

/// The number of the program at an interface.
fn program(link: &str) -> u32 {
    let (_, programs) =
        SchedClassifier::query_tcx(link, TcAttachType::Ingress).expect("the interface is there");
    assert_eq!(programs.len(), 1);
    programs[0].id()
}
