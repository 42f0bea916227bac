//! `podpath get fabric`: what became of frames, and who has how many of the outbound rule's ports.

use std::collections::BTreeMap;

use testbed::fabric::{Client, is_emulated};
use testbed::output::{self, Format, columns};
use userspace::fabric::{BalancerReport, FrontendReport, LinkReport, Loss, Report, RuleReport, SnatReport};
use userspace::model::Direction;

use super::super::{Answer, Subject};

/// # Errors
/// The cluster is not up, its fabric is all the kernel's, or it does not answer.
pub(super) fn run(subject: &Subject, format: Format) -> anyhow::Result<Answer> {
    let Subject::Live(state) = subject else {
        anyhow::bail!("cannot show the fabric of objects in files: it has none until the cluster is up");
    };
    let report = Client::of(&state.cluster, "show the fabric of")?.report()?;
    output::print(&format.document(&report)?.unwrap_or_else(|| {
        // A bridge counts nothing.
        let frames = is_emulated(&state.cluster).then(|| frames(&report));
        frames.into_iter().chain(tables(&report)).collect::<Vec<_>>().join("\n")
    }))?;
    Ok(Answer::Yes)
}

/// Everything but frames.
fn tables(report: &Report) -> Vec<String> {
    let mut parts = Vec::new();
    if !report.links.is_empty() {
        parts.push(links(&report.links));
    }
    if !report.rules.is_empty() {
        parts.push(rules(&report.rules));
    }
    parts.extend(report.snat.as_ref().map(snat));
    parts.extend(report.balancer.as_ref().map(balancer));
    if !report.frontends.is_empty() {
        parts.push(frontends(&report.frontends));
    }
    parts
}

fn frames(report: &Report) -> String {
    let Report { arrived, duplicated, made, departed, taken, under_way, lost, .. } = report;
    let counters = [
        ("arrived", arrived, "Frames that hosts sent."),
        ("duplicated", duplicated, "Second copies that links made."),
        ("made", made, "ICMP errors of the gateway, and health probes."),
        ("departed", departed, "Frames that hosts were given."),
        ("taken", taken, "Answers to health probes."),
        ("under-way", under_way, "Frames that are on a link."),
    ];
    let rows = counters.map(|(name, count, what)| [name.to_owned(), count.to_string(), what.to_owned()]);
    columns(["FRAMES", "COUNT", "MEANING"], rows.into_iter().chain(losses(lost)))
}

/// The losses that happened: slug, how often, and what it means.
fn losses(lost: &BTreeMap<String, u64>) -> impl Iterator<Item = [String; 3]> {
    Loss::ALL.iter().filter_map(|loss| {
        let count = lost.get(loss.slug())?;
        Some([loss.slug().to_owned(), count.to_string(), loss.sentence().to_owned()])
    })
}

fn links(links: &[LinkReport]) -> String {
    let rows = links.iter().map(|link| {
        let LinkReport { quality, passed_in, passed_out, lost, queue_full, duplicated } = link;
        let counts = [passed_in, passed_out, lost, queue_full, duplicated].map(u64::to_string);
        let [passed_in, passed_out, lost, queue_full, duplicated] = counts;
        [quality.link.clone(), passed_in, passed_out, lost, queue_full, duplicated]
    });
    columns(["LINK", "FROM HOST", "TO HOST", "LOST", "QUEUE FULL", "DOUBLED"], rows)
}

fn rules(rules: &[RuleReport]) -> String {
    let rows = rules.iter().map(|rule| {
        let direction = if rule.direction == Direction::Outbound { "outbound" } else { "inbound" };
        let access = if rule.allow { "allow" } else { "deny" };
        let (priority, hits) = (rule.priority.to_string(), rule.hits.to_string());
        [direction.to_owned(), priority, rule.name.clone(), access.to_owned(), hits]
    });
    columns(["DIRECTION", "PRIORITY", "RULE", "ACCESS", "FLOWS"], rows)
}

/// A node's ports, and where it uses most of them: what runs out is those towards one destination.
fn snat(snat: &SnatReport) -> String {
    let mut rows = Vec::new();
    for node in &snat.nodes {
        let (first, last) = node.ports;
        let all = u32::from(last - first) + 1;
        let mut row = [
            node.node.clone(),
            format!("{}:{first}-{last}", snat.address),
            node.flows.to_string(),
            node.exhausted.to_string(),
            String::new(),
        ];
        if node.destinations.is_empty() {
            rows.push(row);
            continue;
        }
        for one in &node.destinations {
            let protocol = if one.protocol == 6 { "tcp" } else { "udp" };
            row[4] = format!("{} of {all} to {}/{protocol}", one.used, one.remote);
            rows.push(std::mem::take(&mut row));
        }
    }
    columns(["NODE", "SNAT PORTS", "FLOWS", "REFUSED", "IN USE"], rows)
}

/// What became of the packets for frontends: what arrived is what was sent, and what was lost for each reason.
fn balancer(report: &BalancerReport) -> String {
    let BalancerReport { arrived, sent, lost, returned } = report;
    let counters = [
        ("arrived", arrived, "Packets for frontends."),
        ("sent", sent, "Packets that went to a node."),
        ("returned", returned, "Answers that came from a frontend again."),
    ];
    let rows = counters.map(|(name, count, what)| [name.to_owned(), count.to_string(), what.to_owned()]);
    columns(["LOAD BALANCER", "COUNT", "MEANING"], rows.into_iter().chain(losses(lost)))
}

/// Who is behind the load balancer's frontends, and with what share of their new flows.
fn frontends(frontends: &[FrontendReport]) -> String {
    let rows = frontends.iter().flat_map(|frontend| {
        let protocol = match frontend.protocol {
            6 => "tcp",
            17 => "udp",
            _ => "sctp",
        };
        let all: u32 = frontend.nodes.iter().map(|node| node.slots).sum();
        let mut name = format!("{}/{protocol}", frontend.frontend);
        frontend.nodes.iter().map(move |node| {
            let share = 100.0 * f64::from(node.slots) / f64::from(all.max(1));
            [std::mem::take(&mut name), node.node.clone(), node.state.clone(), format!("{share:.0}%")]
        })
    });
    columns(["FRONTEND", "NODE", "STATE", "SHARE"], rows)
}

#[cfg(test)]
mod tests {
    use userspace::fabric::{SnatDestination, SnatNode};

    use super::*;

    #[test]
    fn a_node_that_has_used_up_its_ports_is_shown_with_where_they_went() {
        let to = |remote: &str, used| SnatDestination {
            remote: remote.parse().expect("an address and a port"),
            protocol: 6,
            used,
        };
        let node = |name: &str, first, destinations| SnatNode {
            node: name.to_owned(),
            ports: (first, first + 1023),
            flows: 1030,
            exhausted: 3,
            destinations,
        };
        let report = SnatReport {
            address: "20.0.0.1".parse().expect("an address"),
            nodes: vec![
                node("n1", 1024, vec![to("203.0.113.7:443", 1024), to("198.51.100.9:80", 6)]),
                SnatNode { flows: 0, exhausted: 0, ..node("n2", 2048, Vec::new()) },
            ],
        };
        let expected = "\
NODE   SNAT PORTS           FLOWS   REFUSED   IN USE
n1     20.0.0.1:1024-2047   1030    3         1024 of 1024 to 203.0.113.7:443/tcp
                                              6 of 1024 to 198.51.100.9:80/tcp
n2     20.0.0.1:2048-3071   0       0
";
        assert_eq!(snat(&report), expected);
    }

    #[test]
    fn losses_that_happened_are_shown_with_their_sentences_and_others_not() {
        let lost = [("spoofed".to_owned(), 2)].into();
        let text = frames(&Report { arrived: 7, lost, ..Report::default() });
        assert!(text.contains("arrived") && text.contains(Loss::Spoofed.sentence()), "{text}");
        assert!(!text.contains("no-route"), "{text}");
    }
}
