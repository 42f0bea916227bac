//! Pods that may go somewhere, and not ask where that is.

use std::collections::BTreeMap;

use userspace::model::Protocol;
use userspace::plan::Bits;

use super::judge::Judge;
use super::set::{Ends, Spans, transport};
use super::view::{Rule, What};
use super::world::{count_of, some_of};
use super::{Check, Found};
use crate::oracle::Direction;

/// Where names are asked for.
const DNS: u16 = 53;

/// Those who answer, and the ports where they do, for a protocol.
struct Answering {
    ends: Ends,
    ports: Vec<u16>,
    /// `svc:kube-system/kube-dns`.
    names: Vec<String>,
}

impl Answering {
    /// The Services that are dialled at port 53, else pods that are labelled as the cluster's DNS.
    fn of(judge: &Judge<'_>, protocol: Protocol) -> Self {
        let world = judge.world;
        let mut found = Self { ends: Ends::default(), ports: Vec::new(), names: Vec::new() };
        let mut services: Vec<_> =
            world.services.iter().filter(|leads| leads.port == DNS && leads.protocol == protocol).collect();
        if services.iter().any(|leads| is_dns(leads.name)) {
            services.retain(|leads| is_dns(leads.name));
        }
        for leads in services {
            found.ends.pods.unite(&leads.pods);
            for address in &leads.elsewhere {
                found.ends.addresses.unite(&Spans::address(*address));
            }
            found.ports.extend(&leads.targets);
            found.names.push(format!("svc:{}", leads.service));
        }
        if found.ends.is_empty() {
            let labelled = |pod: usize| world.pods[pod].labels.get("k8s-app").is_some_and(|app| is_dns(app));
            found.ends.pods = (0..world.pods.len()).filter(|pod| labelled(*pod)).collect();
            found.ports = vec![DNS];
            found.names = found.ends.pods.iter().map(|index| world.pods[index].id()).collect();
        }
        found.ports.sort_unstable();
        found.ports.dedup();
        found
    }
}

fn is_dns(name: &str) -> bool {
    matches!(name, "kube-dns" | "coredns" | "rke2-coredns-rke2-coredns")
}

pub(super) fn look(judge: &Judge<'_>, found: &mut Found<'_>) {
    let (udp, tcp) = (Answering::of(judge, Protocol::Udp), Answering::of(judge, Protocol::Tcp));
    // By the policy that lets such pods out, and what is missing.
    let mut silent: BTreeMap<(usize, Check), Bits> = BTreeMap::new();
    for (place, class) in judge.classes.iter().enumerate() {
        let rules = || judge.rules(class, Direction::Egress, None).filter(|(_, rule)| !rule.ends.is_empty());
        // Who may go nowhere at all needs no names, and is meant so.
        let Some((first, _)) = rules().next() else { continue };
        let check = if !answered(judge, place, Protocol::Udp, &udp) {
            Check::DnsEgress
        } else if !tcp.ends.is_empty() && !answered(judge, place, Protocol::Tcp, &tcp) {
            Check::DnsTcp
        } else {
            continue;
        };
        silent.entry((first, check)).or_default().unite(&class.pods);
    }
    for ((policy, check), pods) in silent {
        let (protocol, answering) = match check {
            Check::DnsTcp => (Protocol::Tcp, &tcp),
            _ => (Protocol::Udp, &udp),
        };
        let whom = match answering.names.len() {
            0 => String::new(),
            count => format!(" of {}", some_of(answering.names.iter().cloned(), count)),
        };
        let who = format!("{} ({})", count_of(pods.len(), "pod"), judge.world.named_pods(&pods));
        let reason = match check {
            Check::DnsTcp => {
                format!("{who} may ask DNS{whom} over UDP and not over TCP, to which long answers move")
            }
            _ => format!(
                "{who} may go out, but not to port {DNS}/{protocol}{whom}: names can't be looked up{}",
                near_miss(judge, &pods)
            ),
        };
        let next = remedy(judge, answering);
        found.note(policy, check, "spec.egress", (reason, next));
    }
}

/// Whom to let pods ask.
fn remedy(judge: &Judge<'_>, answering: &Answering) -> String {
    let ports = answering.ports.iter().map(|port| format!("{port}/UDP and {port}/TCP"));
    let ports = if answering.ports.is_empty() {
        format!("{DNS}/UDP and {DNS}/TCP")
    } else {
        ports.collect::<Vec<_>>().join(", ")
    };
    let Some(pod) = answering.ends.pods.iter().next().map(|pod| judge.world.pods[pod]) else {
        return format!("allow egress to the cluster's DNS at {ports}");
    };
    // What tells the pod of a workload from its replicas is of no use here.
    let lasting = |(key, _): &(&String, &String)| !key.contains("hash") && !key.contains("pod-");
    let of_dns = pod.labels.get_key_value("k8s-app");
    let labels = of_dns.into_iter().chain(pod.labels.iter().filter(|_| of_dns.is_none()));
    let labels = labels.filter(lasting).map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>();
    format!(
        "allow egress to pods with {{{}}} of namespace {} (namespaceSelector and podSelector in one item) at {ports}",
        labels.join(", "),
        pod.namespace
    )
}

/// Whether pods of a class may ask.
fn answered(judge: &Judge<'_>, class: usize, protocol: Protocol, answering: &Answering) -> bool {
    if answering.ends.is_empty() {
        return !judge.allowed(class, Direction::Egress, transport(protocol, DNS)).is_empty();
    }
    let mut ports = answering.ports.iter().map(|port| transport(protocol, *port));
    ports.any(|port| judge.allowed(class, Direction::Egress, port).meets(&answering.ends))
        // A rule that names the port and addresses means a resolver elsewhere: on the node, or outside.
        || judge.rules(&judge.classes[class], Direction::Egress, None).any(|(_, rule)| {
            names_dns(rule, protocol) && !rule.ends.addresses.is_empty()
        })
}

fn names_dns(rule: &Rule, protocol: Protocol) -> bool {
    rule.ports.iter().flatten().any(|port| port.what == What::Range(protocol, DNS, DNS))
}

/// A rule that means DNS, and misses it.
fn near_miss(judge: &Judge<'_>, pods: &Bits) -> String {
    let Some(class) = pods.iter().next().map(|pod| &judge.classes[judge.class_of[pod]]) else {
        return String::new();
    };
    let mut rules = judge.rules(class, Direction::Egress, None);
    let Some((policy, rule)) = rules.find(|(_, rule)| names_dns(rule, Protocol::Udp)) else {
        return String::new();
    };
    format!("; {} of {} names the port, but not who answers", rule.field, judge.policies[policy].id)
}
