//! Clusters drawn by lot: whatever the model reads of policies, and whom they are about. The same seed draws the
//! same cluster. What differs is shrunk to the objects that it takes.

pub(crate) mod policies;
pub(crate) mod shrink;

use dataplane::Reason;
use serde_json::{Value, json};
use testbed::dataplane::chains::walk::Dice;
use testbed::probe::{Flow, Grid, Row, all_pairs};
use userspace::model::{self, Cluster, Port, Protocol, Who};

/// Chance, and what is drawn with it.
pub(crate) struct Lot(Dice);

impl Lot {
    pub(crate) fn of(seed: u64) -> Self {
        // Seeds in a row are to have nothing in common.
        let mut dice = Dice::new(seed);
        Self(Dice::new(dice.roll()))
    }

    fn roll(&mut self) -> u64 {
        self.0.roll()
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// One of these.
    pub(crate) fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    /// Once in so many times.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// From the first to the last number of them.
    fn several(&mut self, (least, most): (u64, u64), mut one: impl FnMut(&mut Self) -> Value) -> Value {
        let count = least + self.below(most - least + 1);
        (0..count).map(|_| one(self)).collect()
    }
}

/// The families of a cluster's addresses, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    /// IPv4 alone.
    Four,
    /// IPv6 alone.
    Six,
    /// Both.
    Both,
    /// Pods state an IPv4 address alone, and hosts outside have both.
    Lent,
}

/// How clusters are drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) families: Families,
    /// In words of a Testbed.
    pub(crate) model: &'static str,
    pub(crate) encapsulation: &'static str,
}

impl Kind {
    /// One family in the default model.
    pub(crate) const PLAIN: Self =
        Self { families: Families::Four, model: "overlay", encapsulation: "vxlan" };

    /// Any.
    fn drawn(lot: &mut Lot) -> Self {
        use Families::{Both, Four, Lent, Six};
        let families = lot.one(&[Four, Four, Both, Both, Six, Lent]);
        let model = lot.one(&["overlay", "overlay", "overlay", "kubenet", "flat", "flat-dynamic"]);
        Self { families, model, encapsulation: lot.one(&["vxlan", "geneve"]) }
    }

    fn has(self, six: bool) -> bool {
        match self.families {
            Families::Four => !six,
            Families::Six => six,
            Families::Both | Families::Lent => true,
        }
    }
}

pub(crate) const NAMESPACES: [&str; 3] = ["red", "blue", "grey"];
pub(crate) const APPS: [&str; 3] = ["web", "api", "db"];
const TIERS: [&str; 2] = ["front", "back"];

/// A drawn cluster: its objects as a list, and the ports to ask about.
#[derive(Clone, Debug)]
pub(crate) struct Drawn {
    pub(crate) objects: Value,
    pub(crate) ports: Vec<Port>,
}

impl Drawn {
    /// Of any kind.
    pub(crate) fn any(seed: u64) -> Self {
        let mut lot = Lot::of(seed);
        let kind = Kind::drawn(&mut lot);
        Self::of(&mut lot, kind)
    }

    /// Of the plainest kind.
    pub(crate) fn plain(seed: u64) -> Self {
        Self::of(&mut Lot::of(seed), Kind::PLAIN)
    }

    fn of(lot: &mut Lot, kind: Kind) -> Self {
        let mut items = vec![testbed(lot, kind)];
        items.extend(externals(lot, kind));
        items.extend(nodes(lot, kind));
        for namespace in &NAMESPACES[..2 + lot.below(2) as usize] {
            items.push(inhabited(lot, namespace));
            for app in &APPS[..1 + lot.below(3) as usize] {
                items.push(pod(lot, kind, (namespace, app, items.len())));
            }
            if lot.once_in(2) {
                items.push(service(lot, namespace));
            }
        }
        items.extend(policies::all(lot, kind));
        Self { objects: json!({"apiVersion": "v1", "kind": "List", "items": items}), ports: ports(lot) }
    }

    /// As YAML, one document for each object.
    pub(crate) fn text(&self) -> String {
        let items = self.objects["items"].as_array().expect("it is a list");
        let documents = items.iter().map(|item| serde_saphyr::to_string(item).expect("it can be written"));
        documents.collect::<Vec<_>>().join("---\n")
    }

    /// # Errors
    /// The objects are refused.
    pub(crate) fn cluster(&self) -> Result<Cluster, String> {
        model::load_text("drawn", &self.objects.to_string()).map_err(|error| error.to_string())
    }

    /// Every pair that policies may be about at these ports, and Services at their own.
    pub(crate) fn flows(&self, cluster: &Cluster) -> Vec<Flow> {
        let pods = cluster.pods.iter().map(|pod| Who::Pod(pod.id()));
        let nodes = cluster.nodes.iter().map(|node| Who::Node(node.name.clone()));
        let outside = cluster.externals.iter().map(|external| Who::External(external.name.clone()));
        let ends: Vec<Who> = pods.chain(nodes).chain(outside).collect();
        let services: Vec<Flow> =
            all_pairs(cluster).into_iter().filter(|flow| matches!(flow.to, Who::Service(_))).collect();
        let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
        let concerns = |(from, to): &(&Who, &Who)| [from, to].iter().any(|who| matches!(who, Who::Pod(_)));
        let direct = pairs.filter(concerns).flat_map(|(from, to)| {
            self.ports.iter().map(|port| Flow {
                from: from.clone(),
                to: to.clone(),
                port: port.number,
                protocol: port.protocol,
                over: None,
            })
        });
        direct.chain(services).collect()
    }
}

/// The rows of a grid that are not as the oracle says, in words.
pub(crate) fn differing(grid: &Grid) -> Vec<String> {
    let rows = grid.rows.iter().filter(|row| row.differs());
    let told = rows.map(|row| {
        let Row { flow, measured, expectation } = row;
        let reason = measured.reason.map_or("", Reason::slug);
        format!("{flow}: {} says {} {reason}, the oracle {expectation}", grid.dataplane, measured.verdict)
    });
    told.collect()
}

/// Ports that policies are about, and others right beside them.
fn ports(lot: &mut Lot) -> Vec<Port> {
    use Protocol::{Sctp, Tcp, Udp};
    let more = [
        (8080, Udp),
        (53, Tcp),
        (8000, Tcp),
        (8999, Tcp),
        (9000, Tcp),
        (7999, Tcp),
        (81, Tcp),
        (79, Tcp),
        (1, Tcp),
        (65_535, Tcp),
        (32_768, Udp),
        (32_767, Udp),
        (132, Sctp),
    ];
    let other = if lot.once_in(3) { (80, Sctp) } else { lot.one(&more) };
    [(80, Tcp), (8080, Tcp), (53, Udp), other].map(|(number, protocol)| Port { number, protocol }).to_vec()
}

fn testbed(lot: &mut Lot, kind: Kind) -> Value {
    let mut spec = json!({"model": kind.model, "encapsulation": kind.encapsulation, "policies": {
        "audit": lot.once_in(12),
        "established": lot.one(&["keep", "cut"]),
        "ipBlocks": lot.one(&["literal", "literal", "outside"]),
    }});
    let first_six = lot.once_in(3);
    let ranges = match kind.families {
        Families::Four | Families::Lent => return testbed_of(spec),
        Families::Six => vec![SIX],
        Families::Both if first_six => vec![SIX, FOUR],
        Families::Both => vec![FOUR, SIX],
    };
    let [nodes, pods] = [0, 1].map(|at| ranges.iter().map(|range| range[at]).collect::<Vec<_>>());
    spec["nodeSubnets"] = json!(nodes);
    match kind.model {
        "flat" => {}
        "flat-dynamic" => spec["podSubnets"] = json!(pods),
        _ => spec["podCIDRs"] = json!(pods),
    }
    testbed_of(spec)
}

/// The ranges of nodes and of pods.
const FOUR: [&str; 2] = ["10.240.0.0/16", "10.244.0.0/16"];
const SIX: [&str; 2] = ["fd00:10:240::/64", "fd00:10:244::/48"];

fn testbed_of(spec: Value) -> Value {
    json!({"apiVersion": "podpath.dev/v1alpha1", "kind": "Testbed", "metadata": {"name": "drawn"}, "spec": spec})
}

/// Hosts outside, in different networks; some answer at one port only.
fn externals(lot: &mut Lot, kind: Kind) -> Vec<Value> {
    let all = [
        ("near", "203.0.113.7", false),
        ("far", "198.51.100.9", false),
        ("near6", "2001:db8:1::7", true),
        ("far6", "2001:db8:2::9", true),
    ];
    let mut hosts = Vec::new();
    for (name, address, _) in all.into_iter().filter(|(.., six)| kind.has(*six)) {
        let mut spec = json!({"address": address});
        if lot.once_in(5) {
            spec["ports"] = json!([{"port": 80, "protocol": "TCP"}]);
        }
        // One of each family is always there.
        if name.starts_with("near") || lot.once_in(2) {
            hosts.push(json!({"apiVersion": "podpath.dev/v1alpha1", "kind": "External",
                              "metadata": {"name": name}, "spec": spec}));
        }
    }
    hosts
}

fn nodes(lot: &mut Lot, kind: Kind) -> Vec<Value> {
    let node = |number: u64, lot: &mut Lot| {
        let mut labels = json!({});
        if lot.once_in(2) {
            labels["pool"] = json!(lot.one(&["cpu", "gpu"]));
        }
        let name = format!("n{number}");
        let mut node =
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        if matches!(kind.families, Families::Four | Families::Lent) {
            node["status"] =
                json!({"addresses": [{"type": "InternalIP", "address": format!("10.240.0.{}", 3 + number)}]});
        }
        node
    };
    let count = lot.one(&[2, 2, 3]);
    (1..=count).map(|number| node(number, lot)).collect()
}

fn inhabited(lot: &mut Lot, namespace: &str) -> Value {
    let mut labels = json!({"colour": namespace});
    if lot.once_in(2) {
        labels["team"] = json!(lot.one(&["a", "b"]));
    }
    let mut metadata = json!({"name": namespace, "labels": labels});
    if lot.once_in(6) {
        metadata["annotations"] = json!({"podpath.dev/audit": lot.one(&["true", "false"])});
    }
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
}

/// A pod whose ports have names that mean something else in others.
fn pod(lot: &mut Lot, kind: Kind, (namespace, app, place): (&str, &str, usize)) -> Value {
    let mut labels = json!({"app": app});
    if lot.once_in(2) {
        labels["tier"] = json!(lot.one(&TIERS));
    }
    let mut ports = vec![json!({"name": "http", "containerPort": lot.one(&[80, 8080, 8080])})];
    if lot.once_in(4) {
        ports[0]["protocol"] = json!(lot.one(&["UDP", "SCTP", "TCP"]));
    }
    if lot.once_in(2) {
        ports.push(json!({"name": "dns", "containerPort": lot.one(&[53, 8080]), "protocol": lot.one(&["UDP", "TCP"])}));
    }
    if lot.once_in(4) {
        ports.push(json!({"containerPort": 9000}));
    }
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": app, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": lot.one(&["n1", "n1", "n2"]), "hostNetwork": lot.once_in(9),
                 "containers": [{"name": "c", "image": "i", "ports": ports}]}});
    let states = kind.families == Families::Lent || kind.families == Families::Four && lot.once_in(3);
    if states && matches!(kind.model, "overlay" | "kubenet") && pod["spec"]["hostNetwork"] == false {
        pod["status"] = json!({"podIP": format!("10.244.{}.{}", lot.below(3), 2 + place)});
    }
    pod
}

fn service(lot: &mut Lot, namespace: &str) -> Value {
    let target = [json!("http"), json!(8080), json!(80), json!("dns")];
    let mut ports = vec![json!({"name": "a", "port": 80, "targetPort": lot.one(&target)})];
    if lot.once_in(3) {
        ports.push(json!({"name": "b", "port": 53, "protocol": "UDP", "targetPort": lot.one(&target)}));
    }
    let mut spec = json!({"selector": {"app": lot.one(&["web", "api", "db", "nobody"])}, "ports": ports});
    if lot.once_in(3) {
        spec["ipFamilyPolicy"] = json!("PreferDualStack");
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front", "namespace": namespace},
           "spec": spec})
}
