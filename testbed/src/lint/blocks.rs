//! Ranges of addresses that hold nothing, or that hold pods, nodes or Services.

use ipnet::IpNet;
use userspace::model::IpBlocks;

use super::set::Spans;
use super::view::{Who, without};
use super::world::{World, count_of, some_of};
use super::{Check, Found};

pub(super) fn look(world: &World<'_>, found: &mut Found<'_>) {
    let ranges = Ranges::of(world);
    for (place, policy) in found.policies() {
        let network = policy.tier().is_none();
        for peer in policy.rules.iter().flat_map(|rule| &rule.peers) {
            let Who::Blocks(blocks) = &peer.who else { continue };
            for (index, (block, except)) in blocks.iter().enumerate() {
                let field = match network {
                    true => format!("{}.ipBlock", peer.field),
                    false => format!("{}.networks[{index}]", peer.field),
                };
                let said = match (network, ranges.service(*block), except.is_empty()) {
                    (_, Some(said), _) => Some(said),
                    // Such policies mean pods by their addresses, as their specification says.
                    (false, ..) => None,
                    (true, None, _) => ranges.judge(*block, except),
                };
                if let Some((check, words)) = said {
                    found.note(place, check, &field, words);
                }
            }
        }
    }
}

/// Whose addresses are where.
struct Ranges<'a, 'w> {
    world: &'w World<'a>,
    pods: Spans,
    /// Ranges that nodes have their addresses of.
    nodes: Spans,
    /// Ranges that Services have their addresses of, and addresses of Services that lie elsewhere.
    services: Spans,
}

/// What is to be said of a block.
type Said = (Check, (String, String));

impl<'a, 'w> Ranges<'a, 'w> {
    fn of(world: &'w World<'a>) -> Self {
        let settings = &world.cluster.settings;
        let (mut nodes, mut services) = (Spans::default(), Spans::default());
        settings.node_subnets.iter().for_each(|range| nodes.unite(&Spans::block(*range)));
        settings.service_cidrs.iter().for_each(|range| services.unite(&Spans::block(*range)));
        for service in &world.cluster.services {
            let frontends = service.external_addresses.iter().chain(&service.load_balancer_addresses);
            for address in service.addresses.iter().chain(frontends) {
                services.unite(&Spans::address(*address));
            }
        }
        Self { world, pods: world.pod_ranges(), nodes, services }
    }

    /// A block that holds Services only.
    fn service(&self, block: IpNet) -> Option<Said> {
        let whole = Spans::block(block);
        if !whole.is_within(&self.services) {
            return None;
        }
        let services = self.world.cluster.services.iter();
        let inside = services.filter(|service| {
            let frontends = service.external_addresses.iter().chain(&service.load_balancer_addresses);
            let mut all = service.addresses.iter().chain(frontends);
            all.any(|address| block.contains(address))
        });
        let names: Vec<String> = inside.map(|service| service.id()).collect();
        let who = match names.len() {
            0 => "only addresses for Services".to_owned(),
            count => format!("only addresses of Services ({})", some_of(names.into_iter(), count)),
        };
        let reason = format!(
            "{block} holds {who}; policies are asked after translation, about the pod behind, so it matches nothing"
        );
        let next = "select the pods behind the Service, and their port".to_owned();
        Some((Check::BlockOfServices, (reason, next)))
    }

    /// A NetworkPolicy's block.
    fn judge(&self, block: IpNet, except: &[IpNet]) -> Option<Said> {
        let left = without(block, except);
        if left.is_empty() {
            let reason =
                format!("nothing of {block} is left without its exceptions: it matches nothing, ever");
            return Some((Check::ExceptedBlock, (reason, "take fewer addresses out".into())));
        }
        let pods = self.world.pods_at(&left);
        let nodes = self.world.nodes_at(&left);
        let outside = self.world.cluster.settings.policies.ip_blocks == IpBlocks::Outside;
        let select = "name the pods with podSelector and namespaceSelector".to_owned();
        if left.is_within(&self.pods) {
            let holds = match pods.len() {
                0 => "addresses of pods only".to_owned(),
                count => format!("{} only ({})", count_of(count, "pod"), self.world.named_pods(&pods)),
            };
            return Some(match outside {
                true => {
                    let reason = format!(
                        "{block} holds {holds}, and `ipBlocks: outside` takes pods out of it: it matches nothing"
                    );
                    (Check::BlockOnlyPods, (reason, select))
                }
                false => {
                    let reason = format!(
                        "{block} holds {holds}: addresses change as pods come and go, and some dataplanes never match a pod by an ipBlock"
                    );
                    (Check::BlockOfPods, (reason, select))
                }
            });
        }
        let pods = if outside { 0 } else { pods.len() };
        if pods == 0 && nodes.is_empty() {
            return None;
        }
        let node_names = || some_of(nodes.iter().map(|name| (*name).to_owned()), nodes.len());
        if left.is_within(&self.nodes) && pods == 0 {
            let reason = format!(
                "{block} holds {} ({}): their pods of the host network, and what comes by way of a node that stands for others (node ports, masquerading)",
                count_of(nodes.len(), "node"),
                node_names()
            );
            let next = "keep it if nodes are meant; pods are named with selectors".to_owned();
            return Some((Check::BlockOfNodes, (reason, next)));
        }
        let held = [(pods, "pod"), (nodes.len(), "node")].into_iter().filter(|(count, _)| *count > 0);
        let held = held.map(|(count, noun)| count_of(count, noun)).collect::<Vec<_>>().join(" and ");
        let reason = format!("{block} is not the world only: it holds {held} of this cluster, too");
        let next = format!("take {} out with `except` if the world is meant", self.ranges_to_except());
        Some((Check::WideBlock, (reason, next)))
    }

    fn ranges_to_except(&self) -> String {
        let settings = &self.world.cluster.settings;
        let ranges = settings.pod_cidrs.iter().chain(&settings.node_subnets).map(IpNet::to_string);
        let mut ranges: Vec<String> = ranges.collect();
        ranges.dedup();
        ranges.join(" and ")
    }
}
