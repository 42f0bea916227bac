//! Objects, each sound in itself, into a cluster: names looked up, addresses honoured or chosen.
//!
//! 1. Workloads become pods; finished pods go.
//! 2. Nodes, from their objects; without any, as many as pods name and a Testbed asks for.
//! 3. What the previous cluster had is kept, then the addresses that the input states are taken.
//! 4. Ranges are chosen around them, and whatever of the Testbed depends on them is settled.
//! 5. The remaining addresses are chosen out of the ranges.
//! 6. Services find their endpoints.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::choice::{self, Choices};
use super::cluster::{Cluster, ContainerPort, Demand, External, Labels, Node, Pod, Protocol, Service};
use super::error::{Error, Faults};
use super::object::{Entry, Object, Objects};
use super::own;
use super::place::{self, NodeDraft, PodDraft};
use super::ranges::{self, Choice, Given, Ranges};
use super::service::{self, ServiceDraft};
use super::settings::{Model, Settings};
use super::{assign, fabric, masquerade, syntax, tiers, workload};
use crate::ipam::{IpFamily, Ipam};

/// The cluster that the objects describe; see [`Objects::resolve`].
pub(super) fn cluster(objects: &Objects, previous: Option<&Cluster>) -> Result<Cluster, Error> {
    let draft = Draft::of(objects, previous)?;
    let Draft { mut work, testbed, settings, mut nodes, mut pods, mut services, externals } = draft;

    // 5.
    let mut ipam = work.ipam();
    place::note_pods(&mut work, &pods, &nodes, (settings.model, &Ranges::settled(&settings)));
    place::spread(&mut work, &mut pods, &nodes, settings.max_pods)?;
    work.stop_if_wrong()?;
    assign::addresses(&mut ipam, &settings, &mut nodes, &mut pods)?;
    service::choose_addresses(&mut ipam, &mut services, &settings)?;
    if let Some((_, object)) = testbed {
        let known: Vec<_> = nodes.iter().map(|node| (node.name.clone(), node.addresses.clone())).collect();
        let wrong = choice::node_contradictions(&object.spec, &settings, &known, &addressed(&externals));
        work.blame_testbed(testbed, wrong);
    }
    work.stop_if_wrong()?;

    // 6.
    let weights = place::weights(&pods);
    let pods: Vec<Pod> = pods.into_iter().map(PodDraft::settle).collect();
    let nodes: Vec<Node> = nodes.into_iter().map(NodeDraft::settle).collect();
    let services = service::with_endpoints(objects, services, (&pods, &nodes), weights);
    let namespaces = work.namespaces(&pods);
    let cluster_policies = tiers::policies(&mut work, &namespaces, &pods);
    Ok(Cluster {
        name: name(testbed, previous),
        settings,
        namespaces,
        nodes,
        pods,
        services,
        policies: policies(objects),
        cluster_policies,
        audited: tiers::audited(objects),
        externals,
        notes: work.notes,
    })
}

/// What the objects ask of the ranges; see [`Objects::demand`].
pub(super) fn demand(objects: &Objects) -> Result<Demand, Error> {
    let Draft { work, testbed, settings, nodes, pods, services, .. } = Draft::of(objects, None)?;
    let max_pods = testbed.and_then(|(_, testbed)| testbed.spec.max_pods).map(|_| settings.max_pods);
    let mut demand = Demand {
        name: name(testbed, None),
        max_pods,
        nodes: nodes.len() as u64,
        notes: work.notes,
        ..Demand::of(settings)
    };
    for pod in &pods {
        let on_first = || pod.node.as_ref() == nodes.first().map(|node| &node.name);
        // A DaemonSet's are counted once, on the first of the nodes.
        match (pod.is_daemon(), pod.host_network()) {
            (false, false) => demand.pods += 1,
            (false, true) => demand.host_pods += 1,
            (true, false) => demand.daemons += u64::from(on_first()),
            (true, true) => demand.host_daemons += u64::from(on_first()),
        }
    }
    let ordinary = services.iter().filter(|service| !service.is_dns());
    demand.services = by_family(ordinary.flat_map(|service| service.families.clone()));
    let subnets = &demand.settings.node_subnets;
    demand.internal_frontends = by_family(services.iter().flat_map(|service| service.wanted_inside(subnets)));
    Ok(demand)
}

/// How many there are of each family, IPv4 first.
fn by_family(families: impl Iterator<Item = IpFamily>) -> (u64, u64) {
    families.fold((0, 0), |(four, six), family| match family {
        IpFamily::V4 => (four + 1, six),
        IpFamily::V6 => (four, six + 1),
    })
}

/// A Testbed object, and where it was read.
type Stated<'a> = Option<(&'a Entry, &'a own::Testbed)>;

/// Everything that is known before anybody is given an address.
struct Draft<'a> {
    work: Work<'a>,
    testbed: Stated<'a>,
    /// With the ranges that were chosen.
    settings: Settings,
    nodes: Vec<NodeDraft<'a>>,
    pods: Vec<PodDraft>,
    services: Vec<ServiceDraft<'a>>,
    externals: Vec<External>,
}

impl<'a> Draft<'a> {
    fn of(objects: &'a Objects, previous: Option<&'a Cluster>) -> Result<Self, Error> {
        let mut work = Work {
            objects,
            previous,
            faults: Faults::default(),
            notes: Vec::new(),
            services: previous.map(by_id).unwrap_or_default(),
            owners: HashMap::new(),
            frontends: HashMap::new(),
        };
        work.note_skipped();
        let testbed = work.testbed();
        let choices = work.choices(testbed);
        let model = choices.settings.model;

        // 1. and 2.
        let mut sources = workload::pods(objects);
        place::remove_finished(&mut work, &mut sources);
        let mut nodes = place::nodes(&mut work, &sources, testbed.map(|(_, testbed)| &testbed.spec));
        let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
        workload::add_daemons(objects, &names, &mut sources);

        // 3.
        let mut pods = place::pods(&mut work, sources, &names);
        let mut services = service::all(&mut work);
        place::keep(&mut work, &mut nodes, &mut pods);
        service::keep(&mut work, &mut services);
        place::state_node_addresses(&mut work, model, &mut nodes, &pods);
        place::state_pod_addresses(&mut work, &mut pods);
        let externals = work.externals();
        service::state(&mut work, &choices.settings, &mut services);
        work.stop_if_wrong()?;

        // 4.
        let Choices { mut settings, ranges: stated } = choices;
        let stated_services = stated.services.clone();
        let choice = Choice {
            model,
            stated,
            previous: previous.map(|cluster| &cluster.settings),
            given: given(&nodes, &pods, &services, &externals),
        };
        let ranges = ranges::choose(choice, &mut work.notes)?;
        service::find_families(&mut work, &ranges, &mut services);
        place::check_ranges(&mut work, &ranges, &nodes, &pods);
        service::check_ranges(&mut work, (model, &stated_services), &ranges, &mut services);
        work.check_externals(model, &ranges, &externals);
        ranges.settle(&mut settings);
        work.settle_fabric(testbed, &mut settings);
        work.blame_testbed(testbed, choice::contradictions(&settings, &addressed(&externals)));
        work.stop_if_wrong()?;
        Ok(Self { work, testbed, settings, nodes, pods, services, externals })
    }
}

fn by_id(cluster: &Cluster) -> HashMap<String, &Service> {
    cluster.services.iter().map(|service| (service.id(), service)).collect()
}

/// The Testbed's name; without one it stays as it was.
fn name(testbed: Stated<'_>, previous: Option<&Cluster>) -> String {
    let stated =
        testbed.and_then(|(_, testbed)| testbed.metadata.name.clone()).filter(|name| !name.is_empty());
    stated.or_else(|| previous.map(|cluster| cluster.name.clone())).unwrap_or_else(|| "lab".into())
}

fn policies(objects: &Objects) -> Vec<NetworkPolicy> {
    let policy = |entry: &Entry| match &entry.object {
        Object::NetworkPolicy(policy) => {
            // One that says nothing is the empty one, which selects every pod of its namespace.
            let spec = Some(policy.spec.clone().unwrap_or_default());
            Some(NetworkPolicy { spec, ..(**policy).clone() })
        }
        _ => None,
    };
    objects.iter().filter_map(policy).collect()
}

/// The names and addresses of hosts outside.
fn addressed(externals: &[External]) -> Vec<(String, IpAddr)> {
    externals.iter().map(|external| (external.name.clone(), external.address)).collect()
}

/// Every address that the input states, by what it is for.
fn given(
    nodes: &[NodeDraft<'_>],
    pods: &[PodDraft],
    services: &[ServiceDraft<'_>],
    externals: &[External],
) -> Given {
    let pod_ranges = nodes.iter().flat_map(|node| &node.pod_ranges).copied();
    Given {
        nodes: nodes.iter().flat_map(|node| &node.addresses).copied().map(Into::into).collect(),
        pods: pods.iter().flat_map(|pod| &pod.addresses).copied().map(Into::into).chain(pod_ranges).collect(),
        services: services.iter().flat_map(|service| &service.addresses).copied().map(Into::into).collect(),
        externals: externals.iter().map(|external| external.address.into()).collect(),
        frontends: service::outside_addresses(services).map(Into::into).collect(),
        in_full: pods.iter().any(PodDraft::in_full) || nodes.iter().any(|node| node.ranges_stated),
    }
}

/// What is known so far, and what is wrong with it.
pub(super) struct Work<'a> {
    pub(super) objects: &'a Objects,
    pub(super) previous: Option<&'a Cluster>,
    pub(super) faults: Faults,
    pub(super) notes: Vec<String>,
    /// The Services of the previous cluster, by `namespace/name`.
    services: HashMap<String, &'a Service>,
    /// Who has which address.
    owners: HashMap<IpAddr, String>,
    /// Who has which port of those that Services may share.
    frontends: HashMap<IpAddr, HashMap<(u16, Protocol), String>>,
}

impl<'a> Work<'a> {
    fn stop_if_wrong(&mut self) -> Result<(), Error> {
        std::mem::take(&mut self.faults).or(())
    }

    /// Notes that this address is somebody's; the API server has no words for it if it was somebody else's.
    pub(super) fn claim(&mut self, address: IpAddr, owner: &str) -> Result<(), String> {
        match self.owners.insert(address, owner.to_owned()) {
            Some(first) => {
                let why = format!("{address} is the address of {first} already");
                self.owners.insert(address, first);
                Err(why)
            }
            None => Ok(()),
        }
    }

    /// As [`Work::claim`], for each of them.
    pub(super) fn claim_all(&mut self, addresses: Vec<IpAddr>, owner: &str) -> Result<Vec<IpAddr>, String> {
        addresses.into_iter().map(|address| self.claim(address, owner).map(|()| address)).collect()
    }

    /// Notes that these ports of an address are a Service's. Services may share one, if nobody else has it.
    pub(super) fn claim_frontend(
        &mut self,
        address: IpAddr,
        owner: &str,
        ports: impl Iterator<Item = (u16, Protocol)>,
    ) -> Result<(), String> {
        if let (Some(first), None) = (self.owners.get(&address), self.frontends.get(&address)) {
            return Err(format!("{address} is the address of {first} already"));
        }
        self.owners.entry(address).or_insert_with(|| owner.to_owned());
        let owners = self.frontends.entry(address).or_default();
        for (port, protocol) in ports {
            let first = owners.entry((port, protocol)).or_insert_with(|| owner.to_owned());
            if first != owner {
                return Err(format!("port {port} {protocol} of {address} is {first}'s already"));
            }
        }
        Ok(())
    }

    /// A Service as it was in the previous cluster.
    pub(super) fn before(&self, service: &str) -> Option<&'a Service> {
        self.services.get(service).copied()
    }

    /// A node has this address.
    pub(super) fn is_node(&self, address: IpAddr) -> bool {
        self.owners.get(&address).is_some_and(|owner| owner.starts_with("Node "))
    }

    /// Those addresses of the previous cluster that are still to be had.
    pub(super) fn keep(&mut self, addresses: &[IpAddr], owner: &str) -> Vec<IpAddr> {
        addresses.iter().copied().filter(|address| self.claim(*address, owner).is_ok()).collect()
    }

    /// Addresses that are spoken for: all that has an owner, and endpoints, which may be of hosts unknown to us.
    fn ipam(&self) -> Ipam {
        let mut ipam = Ipam::default();
        for address in service::slice_addresses(self.objects).chain(self.owners.keys().copied()) {
            ipam.reserve(address);
        }
        ipam
    }

    fn note_skipped(&mut self) {
        let skipped = self.objects.skipped();
        if !skipped.is_empty() {
            let kinds = skipped
                .iter()
                .map(|(kind, count)| format!("{kind} ({count})"))
                .collect::<Vec<_>>()
                .join(", ");
            self.notes.push(format!("Skipped objects of kinds that podpath does not read: {kinds}."));
        }
    }

    fn testbed(&mut self) -> Stated<'a> {
        let mut found: Stated<'a> = None;
        for entry in self.objects.iter() {
            let Object::Testbed(testbed) = &entry.object else {
                continue;
            };
            match found {
                None => found = Some((entry, testbed)),
                Some((_, first)) => {
                    let first = first.metadata.name.as_deref().unwrap_or_default();
                    let why = format!("there is a Testbed {first:?} already, and a cluster has one at most");
                    self.faults.of(&entry.origin, entry.object.key().to_string()).wrong("metadata.name", why);
                }
            }
        }
        found
    }

    /// What the Testbed says, and the defaults; without one everything stays as it was. Destinations that are
    /// not masqueraded are those of the objects that are there now.
    fn choices(&mut self, testbed: Stated<'a>) -> Choices {
        let mut choices = match (testbed, self.previous) {
            (Some((entry, testbed)), _) => {
                // It has been validated.
                let mut known = Faults::default();
                choice::read(&testbed.spec, &mut known.of(&entry.origin, entry.object.key().to_string()))
            }
            (None, Some(previous)) => {
                let settings = Settings { non_masquerade_cidrs: Vec::new(), ..previous.settings.clone() };
                Choices { settings, ranges: Ranges::default() }
            }
            (None, None) => Choices { settings: Settings::default(), ranges: Ranges::default() },
        };
        let (cidrs, notes) = masquerade::all(self.objects);
        for cidr in cidrs {
            if !choices.settings.non_masquerade_cidrs.contains(&cidr) {
                choices.settings.non_masquerade_cidrs.push(cidr);
            }
        }
        self.notes.extend(notes);
        choices
    }

    /// The tags of security rules stand for ranges, which are known now.
    fn settle_fabric(&mut self, testbed: Stated<'a>, settings: &mut Settings) {
        if let Some((entry, testbed)) = testbed {
            let mut fields = self.faults.of(&entry.origin, entry.object.key().to_string());
            settings.fabric = fabric::read(&testbed.spec, &fabric::inside(settings), &mut fields);
        }
    }

    /// Notes what the Testbed says and can't be.
    fn blame_testbed(&mut self, testbed: Stated<'a>, contradictions: Vec<(String, String)>) {
        if let Some((entry, _)) = testbed {
            let mut fields = self.faults.of(&entry.origin, entry.object.key().to_string());
            for (field, why) in contradictions {
                fields.wrong(field, why);
            }
        }
    }

    fn externals(&mut self) -> Vec<External> {
        let mut externals = Vec::new();
        for entry in self.objects.iter() {
            let Object::External(external) = &entry.object else {
                continue;
            };
            let key = entry.object.key();
            let claimed = syntax::address(&external.spec.address)
                .and_then(|address| self.claim(address, &key.to_string()).map(|()| address));
            match claimed {
                Ok(address) => externals.push(External {
                    name: key.name,
                    address,
                    ports: external.spec.ports.iter().filter_map(external_port).collect(),
                }),
                Err(why) => self.faults.of(&entry.origin, key.to_string()).wrong("spec.address", why),
            }
        }
        externals
    }

    /// A range that was stated, or that holds more than was meant, may have a host outside the cluster in it.
    fn check_externals(&mut self, model: Model, ranges: &Ranges, externals: &[External]) {
        for external in externals {
            let (address, Some(entry)) = (external.address, self.entry_of(external)) else {
                continue;
            };
            if let Some((name, range)) = ranges.named(model).find(|(_, range)| range.contains(&address)) {
                let why = format!(
                    "{address} is inside {name} {range}: a host outside the cluster needs an address outside of it"
                );
                self.faults.of(&entry.origin, entry.object.key().to_string()).wrong("spec.address", why);
            }
        }
    }

    fn entry_of(&self, external: &External) -> Option<&'a Entry> {
        self.objects.iter().find(|entry| {
            matches!(&entry.object, Object::External(object) if object.metadata.name.as_deref() == Some(&external.name))
        })
    }

    /// Those that have objects, and those that objects live in.
    fn namespaces(&mut self, pods: &[Pod]) -> BTreeMap<String, Labels> {
        let mut namespaces: BTreeMap<String, Labels> = BTreeMap::new();
        for entry in self.objects.iter() {
            if let Object::Namespace(namespace) = &entry.object {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                namespaces.insert(entry.object.key().name, labels);
            }
        }
        let used = self.objects.iter().filter_map(|entry| entry.object.metadata().namespace.as_ref());
        let used: BTreeSet<&String> = used.chain(pods.iter().map(|pod| &pod.namespace)).collect();
        let mut made_up = Vec::new();
        for name in used {
            namespaces.entry(name.clone()).or_insert_with(|| {
                made_up.push(name.clone());
                Labels::new()
            });
        }
        // Every cluster has this one.
        made_up.retain(|name| name != "default");
        if !made_up.is_empty() {
            self.notes.push(format!(
                "Namespaces without an object, assumed to have no labels: {}.",
                listed(&made_up)
            ));
        }
        for (name, labels) in &mut namespaces {
            labels.insert("kubernetes.io/metadata.name".into(), name.clone());
        }
        namespaces
    }
}

fn external_port(port: &own::ExternalPort) -> Option<ContainerPort> {
    // They have been validated.
    let protocol = syntax::protocol(port.protocol.as_deref()).ok()?;
    Some(ContainerPort { name: port.name.clone(), port: syntax::port(port.port).ok()?, protocol })
}

/// The first few of them, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    match names.len().checked_sub(SHOWN) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN].join(", ")),
    }
}
