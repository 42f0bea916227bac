//! Ports that no target has, or has otherwise.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{Action, Protocol};
use userspace::plan::Bits;

use super::labels::{distance, is_near};
use super::set::Spans;
use super::view::{Policy, Rule, Text, What, Who, fields};
use super::world::{World, some_of};
use super::{Check, Found};
use crate::oracle::Direction;

/// DNS is spoken over both, and often declared for one.
const DNS: u16 = 53;

pub(super) fn look(world: &World<'_>, found: &mut Found<'_>) {
    for (place, policy) in found.policies() {
        for rule in &policy.rules {
            let Some((targets, only_pods)) = targets(world, policy, rule) else { continue };
            for port in rule.ports.iter().flatten() {
                let said = match &port.what {
                    What::Protocol(_) => None,
                    // Who denies what nobody does is careful, and not wrong.
                    What::Range(..) if rule.action != Action::Accept || !only_pods => None,
                    What::Range(protocol, first, last) => number(world, &targets, (*protocol, *first, *last)),
                    What::Named(protocol, name) => self::name(world, &targets, *protocol, name),
                };
                if let Some((check, words)) = said {
                    found.note(place, check, &port.field, words);
                }
            }
        }
        equal_ends(found, place, policy);
    }
}

/// The pods that a rule's ports are ports of, and whether there can be no others; none if there are none.
fn targets(world: &World<'_>, policy: &Policy<'_>, rule: &Rule) -> Option<(Bits, bool)> {
    let (targets, only_pods) = match rule.direction {
        Direction::Ingress => (policy.subject.clone(), true),
        Direction::Egress if rule.is_for_anybody() => (world.everybody(), false),
        Direction::Egress => {
            let only_pods = rule.peers.iter().all(|peer| matches!(peer.who, Who::Pods(_)));
            (rule.ends.pods.clone(), only_pods)
        }
    };
    (!targets.is_empty()).then_some((targets, only_pods))
}

/// What is to be said of a port.
type Said = (Check, (String, String));

fn written(protocol: Protocol, first: u16, last: u16) -> String {
    if first == last { format!("{first}/{protocol}") } else { format!("{first}-{last}/{protocol}") }
}

/// A number, or a range of them.
fn number(world: &World<'_>, targets: &Bits, (protocol, first, last): (Protocol, u16, u16)) -> Option<Said> {
    let declare = |protocol: Protocol| {
        let spans = Spans::ports(protocol, first, last);
        let within = spans.iter().flat_map(|(from, to)| world.declared.range(from..=to));
        within.map(|(_, pods)| pods.and(targets)).find(|pods| !pods.is_empty())
    };
    if declare(protocol).is_some() {
        return None;
    }
    let asked = written(protocol, first, last);
    if let Some(said) = service_port(world, targets, (protocol, first, last), &asked) {
        return Some(said);
    }
    // Who declares nothing may listen anywhere.
    if targets.meets(&world.portless) {
        return None;
    }
    let names = world.named_pods(targets);
    let others = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().filter(|one| *one != protocol);
    for other in others {
        let Some(pods) = declare(other) else { continue };
        if (first..=last).contains(&DNS) {
            return None;
        }
        let reason = format!(
            "none of the pods that are dialled ({names}) declares {asked}; {} {} for {other}",
            world.named_pods(&pods),
            if pods.len() == 1 { "declares it" } else { "declare it" },
        );
        return Some((Check::ProtocolMismatch, (reason, format!("write protocol: {other}"))));
    }
    let declared = declared_by(world, targets);
    let count = declared.len();
    let reason = format!("none of the pods that are dialled ({names}) declares {asked}");
    let next = format!("name a port that they declare: {}", some_of(declared.into_iter(), count));
    Some((Check::NoSuchPort, (reason, next)))
}

/// A Service's port that leads to another port of these pods.
fn service_port(
    world: &World<'_>,
    targets: &Bits,
    (protocol, first, last): (Protocol, u16, u16),
    asked: &str,
) -> Option<Said> {
    let leads = world.services.iter().find(|leads| {
        leads.protocol == protocol
            && first == last
            && leads.port == first
            && !leads.targets.contains(&first)
            && leads.pods.meets(targets)
    })?;
    let behind = leads.targets.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let reason = format!(
        "{asked} is a port of Service {}, behind which its pods listen at {behind}; policies are asked after translation, so the rule is not about what comes by way of it",
        leads.service
    );
    Some((Check::ServicePort, (reason, format!("write port: {behind}"))))
}

fn declared_by(world: &World<'_>, targets: &Bits) -> Vec<String> {
    let mut all: BTreeSet<(u16, Protocol)> = BTreeSet::new();
    for pod in targets.iter() {
        all.extend(world.pods[pod].ports.iter().map(|port| (port.port, port.protocol)));
    }
    all.into_iter().map(|(port, protocol)| format!("{port}/{protocol}")).collect()
}

/// A name.
fn name(world: &World<'_>, targets: &Bits, protocol: Option<Protocol>, name: &str) -> Option<Said> {
    let mut meant: BTreeMap<(Protocol, u16), Bits> = BTreeMap::new();
    for (port, pods) in world.named.get(name).into_iter().flatten() {
        let pods = pods.and(targets);
        if !pods.is_empty() {
            meant.insert(*port, pods);
        }
    }
    let names = world.named_pods(targets);
    if meant.is_empty() {
        let mut known: BTreeSet<&str> = BTreeSet::new();
        for pod in targets.iter() {
            known.extend(world.pods[pod].ports.iter().filter_map(|port| port.name.as_deref()));
        }
        let near = known.iter().filter(|one| is_near(name, one)).min_by_key(|one| distance(name, one));
        let hint = near.map_or(String::new(), |near| format!(" (did you mean {near}?)"));
        let reason = format!("none of the pods that are dialled ({names}) calls a port {name:?}{hint}");
        let count = known.len();
        let next = match (near, count) {
            (Some(near), _) => format!("write {near}"),
            (None, 0) => "write the number: these pods name no port".to_owned(),
            (None, _) => {
                format!(
                    "use a name that they have: {}",
                    some_of(known.iter().map(|one| (*one).to_owned()), count)
                )
            }
        };
        return Some((Check::NoSuchPort, (reason, next)));
    }
    let right: Vec<_> = meant.iter().filter(|((of, _), _)| protocol.is_none_or(|one| one == *of)).collect();
    if right.is_empty() {
        let wanted = protocol.unwrap_or_default();
        let ((other, number), _) = meant.first_key_value()?;
        let reason = format!(
            "{name:?} of the pods that are dialled ({names}) is {number}/{other}, and no port of {wanted}"
        );
        return Some((Check::ProtocolMismatch, (reason, format!("write protocol: {other}"))));
    }
    let numbers: BTreeSet<u16> = right.iter().map(|((_, number), _)| *number).collect();
    if numbers.len() > 1 && protocol.is_some() {
        let each = right.iter().map(|((_, number), pods)| format!("{number} in {}", world.named_pods(pods)));
        let reason = format!("{name:?} is {}", each.collect::<Vec<_>>().join("; "));
        let next = "keep it if each pod's own is meant; name numbers if not".to_owned();
        return Some((Check::NamedPortDiffers, (reason, next)));
    }
    None
}

/// `endPort` that is the port itself.
fn equal_ends(found: &mut Found<'_>, place: usize, policy: &Policy<'_>) {
    let Text::Network(text) = policy.text else { return };
    let Some(spec) = &text.spec else { return };
    let ingress = spec.ingress.iter().flatten().map(|rule| (Direction::Ingress, &rule.ports));
    let egress = spec.egress.iter().flatten().map(|rule| (Direction::Egress, &rule.ports));
    let lists: [Vec<(Direction, &Option<Vec<NetworkPolicyPort>>)>; 2] = [ingress.collect(), egress.collect()];
    for (index, (direction, ports)) in lists.into_iter().flat_map(|list| list.into_iter().enumerate()) {
        for (i, port) in ports.iter().flatten().enumerate() {
            if let (Some(IntOrString::Int(first)), Some(end)) = (&port.port, port.end_port)
                && *first == end
            {
                let field = format!("spec.{}[{index}].ports[{i}].endPort", fields(direction).0);
                let reason = format!("endPort {end} is the port itself: the range is one port");
                let next = "leave endPort out, or write the last port of the range".to_owned();
                found.note(place, Check::EqualEndPort, &field, (reason, next));
            }
        }
    }
}
