//! Ports between which no policy draws a line.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use userspace::model::{Cluster, Port, Protocol, TierPort};

/// Ports side by side of which policies say the same, or all that no policy and no pod speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The one that is asked about.
    pub(super) port: Port,
    /// To this one; none: it stands for all that nobody speaks of.
    last: Option<u16>,
}

/// The stretches of two clusters: every number that a policy or a pod speaks of is in one.
pub(super) fn stretches(old: &Cluster, new: &Cluster) -> Vec<Stretch> {
    let mut spoken_of: BTreeSet<(Protocol, u16, u16)> = BTreeSet::new();
    for cluster in [old, new] {
        let pods = cluster.pods.iter().flat_map(|pod| &pod.ports);
        let outside = cluster.externals.iter().flat_map(|external| &external.ports);
        spoken_of.extend(pods.chain(outside).map(|port| (port.protocol, port.port, port.port)));
        spoken_of.extend(cluster.policies.iter().flat_map(of_policy));
        for policy in &cluster.cluster_policies {
            for port in
                policy.ingress.iter().chain(&policy.egress).flat_map(|rule| rule.ports.iter().flatten())
            {
                match port {
                    TierPort::Range(protocol, first, last) => spoken_of.extend([(*protocol, *first, *last)]),
                    // Names are those of ports that pods declare.
                    TierPort::Protocol(_) | TierPort::Named(_) => {}
                }
            }
        }
    }
    let mut stretches = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let ranges: Vec<(u16, u16)> = spoken_of
            .iter()
            .filter(|(of, ..)| *of == protocol)
            .map(|(_, first, last)| (*first, *last))
            .collect();
        stretches.extend(of_protocol(protocol, &ranges));
    }
    stretches
}

fn of_policy(policy: &NetworkPolicy) -> Vec<(Protocol, u16, u16)> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let ingress = spec.ingress.iter().flatten().flat_map(|rule| rule.ports.iter().flatten());
    let egress = spec.egress.iter().flatten().flat_map(|rule| rule.ports.iter().flatten());
    let number = |port: i32| u16::try_from(port).ok();
    let range = |port: &NetworkPolicyPort| {
        let protocol = match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        match &port.port {
            Some(IntOrString::Int(first)) => {
                Some((protocol, number(*first)?, number(port.end_port.unwrap_or(*first))?))
            }
            _ => None,
        }
    };
    ingress.chain(egress).filter_map(range).collect()
}

/// The stretches of a protocol; SCTP has none where nobody speaks of it.
fn of_protocol(protocol: Protocol, ranges: &[(u16, u16)]) -> Vec<Stretch> {
    if protocol == Protocol::Sctp && ranges.is_empty() {
        return Vec::new();
    }
    let edges = ranges.iter().flat_map(|(first, last)| [u32::from(*first), u32::from(*last) + 1]);
    let edges: Vec<u32> = edges.collect::<BTreeSet<u32>>().into_iter().collect();
    let is_spoken_of =
        |port: u32| ranges.iter().any(|(first, last)| (u32::from(*first)..=u32::from(*last)).contains(&port));
    let number = |port: u32| u16::try_from(port).unwrap_or(u16::MAX);
    let mut stretches: Vec<Stretch> = edges
        .windows(2)
        .filter(|pair| is_spoken_of(pair[0]))
        .map(|pair| Stretch {
            port: Port { number: number(pair[0]), protocol },
            last: Some(number(pair[1] - 1)),
        })
        .collect();
    let other = (1..=u32::from(u16::MAX)).find(|port| !is_spoken_of(*port));
    stretches
        .extend(other.map(|other| Stretch { port: Port { number: number(other), protocol }, last: None }));
    stretches
}

/// In words; those side by side as one.
pub(super) fn spelled(stretches: &[Stretch], places: &[usize]) -> Vec<String> {
    if places.len() == stretches.len() {
        return vec!["every port".to_owned()];
    }
    let mut joined: Vec<(Protocol, u16, Option<u16>)> = Vec::new();
    for stretch in places.iter().map(|place| &stretches[*place]) {
        let Port { number, protocol } = stretch.port;
        match (joined.last_mut(), stretch.last) {
            (Some((of, _, Some(end))), Some(last))
                if *of == protocol && end.checked_add(1) == Some(number) =>
            {
                *end = last;
            }
            _ => joined.push((protocol, number, stretch.last)),
        }
    }
    let spell = |(protocol, first, last): (Protocol, u16, Option<u16>)| {
        let protocol = protocol.to_string().to_lowercase();
        match last {
            None => format!("other ports/{protocol}"),
            Some(last) if last == first => format!("{first}/{protocol}"),
            Some(last) => format!("{first}-{last}/{protocol}"),
        }
    };
    joined.into_iter().map(spell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spoken(ranges: &[(u16, u16)]) -> Vec<(u16, Option<u16>)> {
        let all = of_protocol(Protocol::Tcp, ranges).into_iter();
        all.map(|stretch| (stretch.port.number, stretch.last)).collect()
    }

    #[test]
    fn ranges_that_meet_are_cut_where_they_begin_and_end() {
        let cut = [(80, Some(80)), (8000, Some(8499)), (8500, Some(9000)), (9001, Some(9100)), (1, None)];
        assert_eq!(spoken(&[(80, 80), (8000, 9000), (8500, 9100)]), cut);
    }

    #[test]
    fn what_nobody_speaks_of_is_one_stretch_and_may_be_nothing() {
        assert_eq!(spoken(&[]), [(1, None)]);
        assert_eq!(spoken(&[(1, 65_535)]), [(1, Some(65_535))]);
        assert_eq!(spoken(&[(1, 1)]), [(1, Some(1)), (2, None)]);
    }

    #[test]
    fn stretches_side_by_side_are_spelled_as_one() {
        let stretches = of_protocol(Protocol::Tcp, &[(80, 80), (8000, 9000), (8500, 9100)]);
        assert_eq!(spelled(&stretches, &[0, 1, 2]), ["80/tcp", "8000-9000/tcp"]);
        assert_eq!(spelled(&stretches, &[4]), ["other ports/tcp"]);
        assert_eq!(spelled(&stretches, &[0, 1, 2, 3, 4]), ["every port"]);
    }
}
