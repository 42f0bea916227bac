//! Objects, each sound in itself, into a cluster: names looked up, addresses honoured or chosen.
//!
//! 1. Workloads become pods; finished pods go.
//! 2. Nodes, from their objects; without any, as many as pods name and a Testbed asks for.
//! 3. What the previous cluster had is kept, then the addresses that the input states are taken.
//! 4. Ranges are chosen around them, then the remaining addresses out of the ranges.
//! 5. Services find their endpoints.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::cluster::{Cluster, ContainerPort, External, Labels, Model, Pod, Settings};
use super::error::{Error, Faults};
use super::object::{Entry, Object, Objects};
use super::own::{self, TestbedSpec};
use super::place::{self, NodeDraft, PodDraft};
use super::ranges::{self, Given, Ranges};
use super::service::{self, ServiceDraft};
use super::{syntax, workload};
use crate::ipam::Ipam;

/// The cluster that the objects describe; see [`Objects::resolve`].
pub(super) fn cluster(objects: &Objects, previous: Option<&Cluster>) -> Result<Cluster, Error> {
    let mut work =
        Work { objects, previous, faults: Faults::default(), notes: Vec::new(), owners: HashMap::new() };
    work.note_skipped();
    let testbed = work.testbed();
    let spec = testbed.map(|testbed| &testbed.spec);

    // 1. and 2.
    let mut sources = workload::pods(objects);
    place::remove_finished(&mut work, &mut sources);
    let mut nodes = place::nodes(&mut work, &sources, spec);
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    workload::add_daemons(objects, &names, &mut sources);

    // 3.
    let mut pods = place::pods(&mut work, sources, &names);
    let mut services = service::all(&mut work);
    place::keep(&mut work, &mut nodes, &mut pods);
    service::keep(&mut work, &mut services);
    place::state_node_addresses(&mut work, &mut nodes, &pods);
    place::state_pod_addresses(&mut work, &mut pods);
    let externals = work.externals();
    service::state_addresses(&mut work, &mut services);
    work.stop_if_wrong()?;

    // 4.
    let given = given(&nodes, &pods, &services, &externals);
    let ranges = ranges::choose(spec, previous.map(|cluster| &cluster.settings), &given, &mut work.notes)?;
    place::check_ranges(&mut work, &ranges, &nodes, &pods);
    service::check_ranges(&mut work, spec, &ranges, &services);
    work.check_externals(&ranges, &externals);
    work.stop_if_wrong()?;
    let settings = settings(spec, previous, &ranges);
    let mut ipam = work.ipam();
    place::note_pods(&mut work, &pods, &nodes, &ranges);
    place::choose_node_addresses(&mut ipam, &mut nodes, &ranges)?;
    place::spread(&mut pods, &nodes, settings.max_pods)?;
    place::choose_pod_addresses(&mut ipam, &mut pods, &nodes)?;
    service::choose_addresses(&mut ipam, &mut services, &ranges)?;

    // 5.
    let pods: Vec<Pod> = pods.into_iter().map(PodDraft::settle).collect();
    let services = service::with_endpoints(objects, services, &pods);
    let namespaces = work.namespaces(&pods);
    Ok(Cluster {
        name: name(testbed, previous),
        settings,
        namespaces,
        nodes: nodes.into_iter().map(NodeDraft::settle).collect(),
        pods,
        services,
        policies: policies(objects),
        externals,
        notes: work.notes,
    })
}

/// The Testbed's name; without one it stays as it was.
fn name(testbed: Option<&own::Testbed>, previous: Option<&Cluster>) -> String {
    let stated = testbed.and_then(|testbed| testbed.metadata.name.clone()).filter(|name| !name.is_empty());
    stated.or_else(|| previous.map(|cluster| cluster.name.clone())).unwrap_or_else(|| "lab".into())
}

fn policies(objects: &Objects) -> Vec<NetworkPolicy> {
    let policy = |entry: &Entry| match &entry.object {
        Object::NetworkPolicy(policy) => Some((**policy).clone()),
        _ => None,
    };
    objects.iter().filter_map(policy).collect()
}

/// Every address that the input states, by what it is for.
fn given(
    nodes: &[NodeDraft<'_>],
    pods: &[PodDraft],
    services: &[ServiceDraft<'_>],
    externals: &[External],
) -> Given {
    let pod_ranges = nodes.iter().filter_map(|node| node.pod_range);
    let external = |external: &External| match external.address {
        IpAddr::V4(address) => Some(address.into()),
        IpAddr::V6(_) => None,
    };
    Given {
        nodes: nodes.iter().filter_map(|node| node.address).map(Into::into).collect(),
        pods: pods.iter().filter_map(|pod| pod.address).map(Into::into).chain(pod_ranges).collect(),
        services: services.iter().filter_map(|service| service.address).map(Into::into).collect(),
        externals: externals.iter().filter_map(external).collect(),
    }
}

/// What the Testbed says, and the defaults; without one everything stays as it was.
fn settings(spec: Option<&TestbedSpec>, previous: Option<&Cluster>, ranges: &Ranges) -> Settings {
    let ranges = Settings {
        model: Model::Overlay,
        node_subnets: vec![IpNet::V4(ranges.node_subnet)],
        pod_cidrs: vec![IpNet::V4(ranges.pod_cidr)],
        service_cidrs: vec![IpNet::V4(ranges.service_cidr)],
        vnet_cidrs: vec![IpNet::V4(ranges.node_subnet)],
        ..Settings::default()
    };
    let Some(spec) = spec else {
        let kept = previous.map_or_else(Settings::default, |cluster| cluster.settings.clone());
        let Settings { max_pods, mtu, non_masquerade_cidrs, .. } = kept;
        return Settings { max_pods, mtu, non_masquerade_cidrs, ..ranges };
    };
    // They have been validated.
    let number =
        |stated: Option<i64>, default: u32| stated.and_then(|n| u32::try_from(n).ok()).unwrap_or(default);
    let non_masquerade = spec.non_masquerade_cidrs.iter().filter_map(|text| syntax::cidr(text).ok());
    Settings {
        max_pods: number(spec.max_pods, ranges.max_pods),
        mtu: number(spec.mtu, ranges.mtu),
        non_masquerade_cidrs: non_masquerade.map(|range| range.trunc()).collect(),
        ..ranges
    }
}

/// What is known so far, and what is wrong with it.
pub(super) struct Work<'a> {
    pub(super) objects: &'a Objects,
    pub(super) previous: Option<&'a Cluster>,
    pub(super) faults: Faults,
    pub(super) notes: Vec<String>,
    /// Who has which address.
    owners: HashMap<IpAddr, String>,
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

    /// As [`Work::claim`], for an address that there may not be.
    pub(super) fn claim_v4(
        &mut self,
        address: Option<Ipv4Addr>,
        owner: &str,
    ) -> Result<Option<Ipv4Addr>, String> {
        address.map(|address| self.claim(address.into(), owner).map(|()| address)).transpose()
    }

    /// An address of the previous cluster, if it is still to be had.
    pub(super) fn keep(&mut self, address: IpAddr, owner: &str) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => self.claim_v4(Some(address), owner).ok().flatten(),
            IpAddr::V6(_) => None,
        }
    }

    /// Addresses that are spoken for: all that has an owner, and endpoints, which may be of hosts unknown to us.
    fn ipam(&self) -> Ipam {
        let mut ipam = Ipam::default();
        for address in service::slice_addresses(self.objects) {
            ipam.reserve(address);
        }
        for address in self.owners.keys() {
            if let IpAddr::V4(address) = address {
                ipam.reserve(*address);
            }
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

    fn testbed(&mut self) -> Option<&'a own::Testbed> {
        let mut found: Option<&'a own::Testbed> = None;
        for entry in self.objects.iter() {
            let Object::Testbed(testbed) = &entry.object else {
                continue;
            };
            match found {
                None => found = Some(testbed),
                Some(first) => {
                    let first = first.metadata.name.as_deref().unwrap_or_default();
                    let why = format!("there is a Testbed {first:?} already, and a cluster has one at most");
                    self.faults.of(&entry.origin, entry.object.key().to_string()).wrong("metadata.name", why);
                }
            }
        }
        found
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
    fn check_externals(&mut self, ranges: &Ranges, externals: &[External]) {
        let inside = [
            ("nodeSubnet", ranges.node_subnet),
            ("podCIDR", ranges.pod_cidr),
            ("serviceCIDR", ranges.service_cidr),
        ];
        for external in externals {
            let (IpAddr::V4(address), Some(entry)) = (external.address, self.entry_of(external)) else {
                continue;
            };
            if let Some((name, range)) = inside.iter().find(|(_, range)| range.contains(&address)) {
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
