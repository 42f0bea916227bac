//! Ports of every node's address: what Services state, what they had, and what is chosen for the others.
//!
//! A number is one Service's, which may use it for several protocols. Chosen numbers come from the upper band
//! of the range while there are any, so that what people state by hand, which is mostly low, stays free.
//!
//! Source: Kubernetes, `pkg/registry/core/service/storage/alloc.go` and `pkg/registry/core/service/portallocator`
//! (KEP-3668 for the bands).

use std::collections::HashMap;

use super::super::cluster::{ServiceKind, TrafficPolicy};
use super::super::resolve::Work;
use super::super::settings::{Forward, Settings};
use super::ServiceDraft;

/// Numbers that are given out, and which Service has each.
struct NodePorts {
    first: u16,
    last: u16,
    owners: HashMap<u16, String>,
}

/// Gives every Service the node ports and the health check node port that it needs.
pub(super) fn settle(work: &mut Work<'_>, settings: &Settings, services: &mut [ServiceDraft<'_>]) {
    let (first, last) = settings.services.node_ports;
    let mut ports = NodePorts { first, last, owners: HashMap::new() };
    keep(work, &mut ports, services);
    for draft in services.iter_mut() {
        state(work, &mut ports, draft);
    }
    for draft in services.iter_mut() {
        choose(work, &mut ports, draft);
        let balanced = draft.kind == ServiceKind::LoadBalancer;
        if balanced && settings.load_balancer.forward == Forward::NodePort && !draft.wants_node_ports() {
            let why = "the load balancer of this cluster forwards to node ports (loadBalancer.forward of the Testbed), so none may be missing";
            if draft.node_ports.contains(&None) {
                draft.wrong(work, "spec.allocateLoadBalancerNodePorts".into(), why.into());
            }
        }
    }
}

/// What Services had stays theirs, by the names of their ports, unless they state something else now.
fn keep(work: &Work<'_>, ports: &mut NodePorts, services: &mut [ServiceDraft<'_>]) {
    for draft in services {
        let Some(old) = work.before(&draft.id) else {
            continue;
        };
        let stated: Vec<u16> = draft.stated_node_ports().flatten().collect();
        let unstated: Vec<bool> = draft.stated_node_ports().map(|port| port.is_none()).collect();
        for (place, port) in draft.spec.ports.iter().flatten().enumerate() {
            let name = port.name.as_deref().filter(|name| !name.is_empty());
            let before = old.ports.iter().find(|before| before.name.as_deref() == name);
            let number = before
                .and_then(|before| before.node_port)
                .filter(|number| draft.wants_node_ports() && unstated[place] && !stated.contains(number));
            if let Some(number) = number.filter(|number| ports.holds(*number)) {
                ports.owners.insert(number, draft.id.clone());
                draft.node_ports[place] = Some(number);
            }
        }
        let free = |number: &u16| ports.holds(*number) && !stated.contains(number);
        let unstated = draft.wants_health_check() && draft.stated_health_check().is_none();
        if let Some(number) = old.health_check_node_port.filter(|number| unstated && free(number)) {
            ports.owners.insert(number, draft.id.clone());
            draft.health_check_node_port = Some(number);
        }
    }
}

fn state(work: &mut Work<'_>, ports: &mut NodePorts, draft: &mut ServiceDraft<'_>) {
    let stated: Vec<Option<u16>> = draft.stated_node_ports().collect();
    for (place, number) in stated.iter().enumerate() {
        let Some(number) = *number else { continue };
        match ports.claim(number, &draft.id, stated[..place].contains(&Some(number))) {
            Ok(()) => draft.node_ports[place] = Some(number),
            Err(why) => draft.wrong(work, format!("spec.ports[{place}].nodePort"), why),
        }
    }
    if let Some(number) = draft.stated_health_check() {
        match ports.claim(number, &draft.id, false) {
            Ok(()) => draft.health_check_node_port = Some(number),
            Err(why) => draft.wrong(work, "spec.healthCheckNodePort".into(), why),
        }
    }
}

fn choose(work: &mut Work<'_>, ports: &mut NodePorts, draft: &mut ServiceDraft<'_>) {
    let full = || "failed to allocate a nodePort: range is full".to_owned();
    if draft.wants_node_ports() {
        let spec = draft.spec;
        let numbers: Vec<i32> = spec.ports.iter().flatten().map(|port| port.port).collect();
        for place in 0..numbers.len() {
            if draft.node_ports[place].is_some() {
                continue;
            }
            // The same port over another protocol has the same node port.
            let twin = (0..numbers.len()).filter(|other| numbers[*other] == numbers[place]);
            let shared = twin.filter_map(|other| draft.node_ports[other]).next();
            match shared.or_else(|| ports.next(&draft.id)) {
                Some(number) => draft.node_ports[place] = Some(number),
                None => draft.wrong(work, format!("spec.ports[{place}].nodePort"), full()),
            }
        }
    }
    if draft.wants_health_check() && draft.health_check_node_port.is_none() {
        match ports.next(&draft.id) {
            Some(number) => draft.health_check_node_port = Some(number),
            None => draft.wrong(work, "spec.healthCheckNodePort".into(), full()),
        }
    }
}

impl NodePorts {
    fn holds(&self, number: u16) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// Takes a number for a Service, which may have it for another of its ports (`again`).
    fn claim(&mut self, number: u16, owner: &str, again: bool) -> Result<(), String> {
        if !self.holds(number) {
            return Err(format!(
                "provided port is not in the valid range, not {number}. The range of valid ports is {}-{}",
                self.first, self.last
            ));
        }
        match self.owners.get(&number) {
            Some(first) if !(again && first == owner) => {
                Err(format!("provided port is already allocated: {number} is Service {first}'s"))
            }
            _ => {
                self.owners.insert(number, owner.to_owned());
                Ok(())
            }
        }
    }

    /// The lowest free number of the upper band; once there is none, of the lower.
    fn next(&mut self, owner: &str) -> Option<u16> {
        let lower = self.lower_band();
        let mut numbers = (self.first.saturating_add(lower)..=self.last).chain(self.first..=self.last);
        let number = numbers.find(|number| !self.owners.contains_key(number))?;
        self.owners.insert(number, owner.to_owned());
        Some(number)
    }

    /// How many numbers at the start of the range are left for those that are stated.
    fn lower_band(&self) -> u16 {
        match u32::from(self.last - self.first) + 1 {
            0..=16 => 0,
            size => (size / 32).clamp(16, 128) as u16,
        }
    }
}

impl ServiceDraft<'_> {
    /// `nodePort` of each port, where it is stated.
    fn stated_node_ports(&self) -> impl Iterator<Item = Option<u16>> {
        let ports = self.spec.ports.iter().flatten();
        // They have been validated.
        ports.map(|port| {
            port.node_port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
        })
    }

    fn stated_health_check(&self) -> Option<u16> {
        let number = self.spec.health_check_node_port.filter(|_| self.wants_health_check())?;
        u16::try_from(number).ok().filter(|number| *number != 0)
    }

    /// Each of its ports has a node port.
    fn wants_node_ports(&self) -> bool {
        match self.kind {
            ServiceKind::ClusterIP => false,
            ServiceKind::NodePort => true,
            ServiceKind::LoadBalancer => self.spec.allocate_load_balancer_node_ports != Some(false),
        }
    }

    fn wants_health_check(&self) -> bool {
        self.kind == ServiceKind::LoadBalancer && self.external_policy() == TrafficPolicy::Local
    }
}
