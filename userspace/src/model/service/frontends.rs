//! Addresses of Services beside the cluster's own: those that routers outside bring to some node
//! (`externalIPs`), and the load balancer's.
//!
//! A frontend is, in this order: what `status.loadBalancer` says; what the Service asks for, by an annotation of
//! Azure's or `loadBalancerIP`; what it had; an address that is chosen, out of `loadBalancer.frontendCIDRs` or,
//! for an internal load balancer, out of the node subnet. Services may share an address, but not a port of it.
//!
//! Source: cloud-provider-azure, `pkg/provider/azure_loadbalancer.go` and "LoadBalancer annotations".

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::super::cluster::{Protocol, ServiceKind};
use super::super::ranges::{Purpose, Ranges};
use super::super::resolve::{Work, listed};
use super::super::settings::{Model, Settings};
use super::super::syntax;
use super::ServiceDraft;
use crate::ipam::{self, IpFamily, Ipam};

/// The frontend is in the virtual network.
const INTERNAL: &str = "service.beta.kubernetes.io/azure-load-balancer-internal";
/// The frontend of each family.
pub(in super::super) const STATIC: [(IpFamily, &str); 2] = [
    (IpFamily::V4, "service.beta.kubernetes.io/azure-load-balancer-ipv4"),
    (IpFamily::V6, "service.beta.kubernetes.io/azure-load-balancer-ipv6"),
];

/// The load balancer's addresses for a Service.
#[derive(Clone, Debug, Default)]
pub(super) struct Frontends {
    pub(super) addresses: Vec<IpAddr>,
    /// No others are chosen: the status says what there is, or the load balancer is somebody else's.
    complete: bool,
    pub(super) internal: bool,
}

/// An address that a Service states, and the field where it does.
type Stated = (String, IpAddr);

impl ServiceDraft<'_> {
    fn annotation(&self, name: &str) -> Option<&str> {
        self.object.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    fn ingress(&self) -> &[core::LoadBalancerIngress] {
        let status = self.object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        status.and_then(|status| status.ingress.as_deref()).unwrap_or_default()
    }

    /// What the status says of the load balancer, as far as it is on the path: with another mode than VIP,
    /// packets do not arrive at a node with the frontend's address.
    fn reported(&self) -> Vec<Stated> {
        let addresses = self.ingress().iter().enumerate().filter_map(|(i, ingress)| {
            let vip = ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP";
            let address = ingress.ip.as_deref().filter(|_| vip)?.parse().ok()?;
            Some((format!("status.loadBalancer.ingress[{i}].ip"), address))
        });
        addresses.collect()
    }

    /// What the Service asks for.
    fn asked(&self) -> Vec<Stated> {
        let mut asked: Vec<Stated> = Vec::new();
        for (_, name) in STATIC {
            if let Some(address) = self.annotation(name).and_then(|text| text.parse().ok()) {
                asked.push((format!("metadata.annotations[{name}]"), address));
            }
        }
        let field = self.spec.load_balancer_ip.as_deref().and_then(|text| text.parse().ok());
        let known = |address: &IpAddr| asked.iter().any(|(_, other)| other.is_ipv4() == address.is_ipv4());
        if let Some(address) = field.filter(|address| !known(address)) {
            asked.push(("spec.loadBalancerIP".into(), address));
        }
        asked
    }

    /// `spec.externalIPs`.
    fn external(&self) -> Vec<Stated> {
        let texts = self.spec.external_ips.iter().flatten().enumerate();
        // They have been validated.
        let parsed = texts.map(|(i, text)| Some((format!("spec.externalIPs[{i}]"), text.parse().ok()?)));
        parsed.flatten().collect()
    }

    /// Its ports, as clients dial them.
    fn dialled(&self) -> impl Iterator<Item = (u16, Protocol)> {
        let ports = self.spec.ports.iter().flatten();
        // They have been validated.
        ports.filter_map(|port| {
            let number = syntax::port(port.port.into()).ok()?;
            Some((number, syntax::protocol(port.protocol.as_deref()).ok()?))
        })
    }

    /// The families of its frontends that have, or are to have, an address of the node subnets.
    pub(in super::super) fn wanted_inside(&self, subnets: &[IpNet]) -> Vec<IpFamily> {
        if !self.balanced() || !self.frontends.internal {
            return Vec::new();
        }
        let known = &self.frontends.addresses;
        let of = |family: IpFamily| known.iter().filter(move |address| IpFamily::of(**address) == family);
        let inside = |family: &IpFamily| match of(*family).next() {
            None => !self.frontends.complete && family.pick(subnets).is_some(),
            Some(_) => of(*family).any(|address| subnets.iter().any(|subnet| subnet.contains(address))),
        };
        self.families.iter().copied().filter(inside).collect()
    }

    fn balanced(&self) -> bool {
        self.kind == ServiceKind::LoadBalancer
    }

    /// The cloud's load balancer serves it: a class is the name of another. Source: Kubernetes,
    /// `cloud-provider/controllers/service`.
    fn is_the_clouds(&self) -> bool {
        self.spec.load_balancer_class.is_none()
    }
}

/// What load balancers gave stays, unless something else is stated now.
pub(super) fn keep(work: &mut Work<'_>, services: &mut [ServiceDraft<'_>]) {
    for draft in services.iter_mut().filter(|draft| draft.balanced()) {
        let internal = draft.annotation(INTERNAL) == Some("true");
        let old = work.before(&draft.id).filter(|old| old.internal_load_balancer == internal);
        let (Some(old), true, true) = (old, draft.ingress().is_empty(), draft.is_the_clouds()) else {
            continue;
        };
        let asked = draft.asked();
        for address in &old.load_balancer_addresses {
            let unstated = !asked.iter().any(|(_, other)| other.is_ipv4() == address.is_ipv4());
            if unstated && claim(work, draft, *address).is_ok() {
                draft.frontends.addresses.push(*address);
            }
        }
    }
}

/// What Services state.
pub(super) fn state(work: &mut Work<'_>, services: &mut [ServiceDraft<'_>]) {
    let (mut of_nodes, mut by_name, mut of_others) = (Vec::new(), Vec::new(), Vec::new());
    for draft in services.iter_mut() {
        if draft.balanced() {
            draft.frontends.internal = draft.annotation(INTERNAL) == Some("true");
            let reported = draft.reported();
            draft.frontends.complete = !draft.ingress().is_empty() || !draft.is_the_clouds();
            if reported.is_empty() && !draft.ingress().is_empty() {
                by_name.push(draft.id.clone());
            } else if reported.is_empty() && !draft.is_the_clouds() {
                of_others.push(draft.id.clone());
            }
            let stated = if draft.frontends.complete { reported } else { draft.asked() };
            let before = std::mem::take(&mut draft.frontends.addresses);
            for (field, address) in stated {
                // Some load balancers are the nodes themselves: their ports are opened by pods there.
                if field.starts_with("status") && work.is_node(address) {
                    of_nodes.push(draft.id.clone());
                    continue;
                }
                match claim(work, draft, address) {
                    Ok(()) => draft.frontends.addresses.push(address),
                    Err(why) => draft.wrong(work, field, why),
                }
            }
            draft.frontends.addresses.extend(before);
        }
        state_external(work, draft);
    }
    of_nodes.dedup();
    let notes = [
        (of_nodes, "Load balancers whose addresses are nodes' own are left out"),
        (by_name, "Load balancers that are reached by a name or as a proxy are not on the path"),
        (of_others, "Services of another load balancer's class have no frontend"),
    ];
    let notes = notes.iter().filter(|(ids, _)| !ids.is_empty());
    work.notes.extend(notes.map(|(ids, what)| format!("{what}: {}.", listed(ids))));
}

fn state_external(work: &mut Work<'_>, draft: &mut ServiceDraft<'_>) {
    for (field, address) in draft.external() {
        match claim(work, draft, address) {
            // Who comes by the load balancer's address is asked more: it stands for both.
            Ok(()) if draft.frontends.addresses.contains(&address) => {}
            Ok(()) if draft.external_addresses.contains(&address) => {}
            Ok(()) => draft.external_addresses.push(address),
            Err(why) => draft.wrong(work, field, why),
        }
    }
}

fn claim(work: &mut Work<'_>, draft: &ServiceDraft<'_>, address: IpAddr) -> Result<(), String> {
    work.claim_frontend(address, &format!("Service {}", draft.id), draft.dialled())
}

/// Frontends may be in no range where only pods or only Services have addresses. One that is in the virtual
/// network is internal, whatever the annotation says.
pub(super) fn check_ranges(
    work: &mut Work<'_>,
    model: Model,
    ranges: &Ranges,
    services: &mut [ServiceDraft<'_>],
) {
    let private_pods = matches!(model, Model::Overlay | Model::Kubenet);
    let closed: Vec<(&str, IpNet)> = ranges
        .named(model)
        .filter(|(name, _)| {
            *name == Purpose::Services.name(model) || private_pods && *name == Purpose::Pods.name(model)
        })
        .collect();
    let closed = |address: &IpAddr| closed.iter().find(|(_, range)| range.contains(address));
    for draft in services {
        let stated: Vec<Stated> = [draft.reported(), draft.asked(), draft.external()].concat();
        // What was chosen for it before, and is in a range that has been stated since, is chosen anew.
        let is_stated = |address: &IpAddr| stated.iter().any(|(_, other)| other == address);
        draft.frontends.addresses.retain(|address| is_stated(address) || closed(address).is_none());
        for (field, address) in &stated {
            if let Some((name, range)) = closed(address) {
                let why = format!("{address} is inside {name} {range}: it needs an address outside of it");
                draft.wrong(work, field.clone(), why);
            }
        }
        let inside =
            |address: &IpAddr| ranges.nodes.iter().chain(&ranges.vnet).any(|range| range.contains(address));
        let addresses = &draft.frontends.addresses;
        draft.frontends.internal |= !addresses.is_empty() && addresses.iter().all(inside);
    }
}

/// A frontend of each of its families for every Service of a load balancer that states none.
pub(super) fn choose(
    ipam: &mut Ipam,
    services: &mut [ServiceDraft<'_>],
    settings: &Settings,
) -> Result<(), ipam::Error> {
    for draft in services.iter_mut().filter(|draft| draft.balanced()) {
        let families = draft.families.clone();
        draft.frontends.addresses.retain(|address| families.contains(&IpFamily::of(*address)));
        if draft.frontends.complete {
            continue;
        }
        let mut addresses = Vec::new();
        for family in &families {
            let known = draft.frontends.addresses.iter().find(|address| IpFamily::of(**address) == *family);
            let range = match draft.frontends.internal {
                true => family.pick(&settings.node_subnets),
                false => family.pick(&settings.load_balancer.frontend_cidrs),
            };
            addresses.push(match (known, range) {
                (Some(address), _) => *address,
                (None, Some(range)) if draft.frontends.internal => {
                    ipam.internal_frontend(range, &draft.id)?
                }
                (None, Some(range)) => ipam.frontend(range, &draft.id)?,
                (None, None) => continue,
            });
        }
        draft.frontends.addresses = addresses;
    }
    Ok(())
}
