//! Replaces the nodes of a cluster that is up, as the cloud does it.

use std::num::NonZeroUsize;
use std::str::FromStr;

use testbed::interrupt::Interrupt;
use testbed::lab::Lab;
use testbed::output;
use testbed::progress::Progress;
use userspace::model::{Cluster, Labels, Node, Objects};

use super::{Answer, chosen, recalled, roster, stored};

/// The label that says what a node is called.
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Replace every node of a cluster that is up by a new one, some at a time
///
/// New nodes join first, so they need addresses while the old ones still have theirs. Then the pods of
/// workloads move off the old nodes; pods that no workload makes anew go with them; then the old nodes go.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which cluster; may be left out if it is the only one
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// How many nodes join before as many leave: a number, or a percentage of all, rounded up
    #[arg(long, value_name = "N|N%", default_value = "1")]
    max_surge: Surge,
}

/// The value of `--max-surge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Surge {
    Nodes(NonZeroUsize),
    /// 1 to 100.
    Percent(usize),
}

/// It is no such value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of at least 1, or a percentage from 1% to 100%")]
struct NoSurge;

impl FromStr for Surge {
    type Err = NoSurge;

    fn from_str(text: &str) -> Result<Self, NoSurge> {
        match text.strip_suffix('%') {
            Some(percent) => {
                let percent = percent.parse().ok().filter(|percent| (1..=100).contains(percent));
                percent.map(Self::Percent).ok_or(NoSurge)
            }
            None => text.parse().map(Self::Nodes).map_err(|_| NoSurge),
        }
    }
}

impl Surge {
    /// How many nodes at a time, of so many.
    fn of(self, nodes: usize) -> usize {
        match self {
            Self::Nodes(count) => count.get().min(nodes.max(1)),
            Self::Percent(percent) => (nodes * percent).div_ceil(100).max(1),
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Answer> {
    let mut lab = Lab::open(&chosen(args.name.as_deref())?)?;
    let interrupt = Interrupt::watch()?;
    let old = lab.state().cluster.nodes.clone();
    for batch in old.chunks(args.max_surge.of(old.len())) {
        interrupt.check()?;
        let progress = Progress::start(format!("replacing {} of {} nodes", batch.len(), old.len()));
        join(&mut lab, batch)?;
        leave(&mut lab, batch)?;
        drop(progress);
    }
    Ok(Answer::Yes)
}

/// As many new nodes join as are to leave.
fn join(lab: &mut Lab, leaving: &[Node]) -> anyhow::Result<()> {
    let before = lab.state().cluster.clone();
    let mut names: Vec<String> = before.nodes.iter().map(|node| node.name.clone()).collect();
    let mut joining: Vec<(String, Labels)> = Vec::new();
    for node in leaving {
        let (name, mut labels) = (next_name(&node.name, &names), node.labels.clone());
        if let Some(hostname) = labels.get_mut(HOSTNAME) {
            hostname.clone_from(&name);
        }
        names.push(name.clone());
        joining.push((name, labels));
    }
    let joining = roster::nodes(joining.iter().map(|(name, labels)| (name.as_str(), labels)))?;
    let mut objects = recalled(lab.state())?;
    roster::state_nodes(&mut objects, &before, &joining)?;
    objects.apply(joining);
    let after = change(lab, &objects)?;
    for node in after.nodes.iter().filter(|node| before.node(&node.name).is_none()) {
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        output::print(&format!("node {} joined: {}\n", node.name, addresses.join(", ")))?;
    }
    Ok(())
}

/// Nodes leave, their pods before them.
fn leave(lab: &mut Lab, leaving: &[Node]) -> anyhow::Result<()> {
    let before = lab.state().cluster.clone();
    let mut objects = recalled(lab.state())?;
    let names: Vec<&str> = leaving.iter().map(|node| node.name.as_str()).collect();
    roster::evict(&mut objects, &before, &names)?;
    objects.delete(&roster::nodes(leaving.iter().map(|node| (node.name.as_str(), &node.labels)))?);
    let after = change(lab, &objects)?;
    let mut text = String::new();
    for pod in before.pods.iter().filter(|pod| names.contains(&pod.node.as_str())) {
        text += &match after.pod(&pod.id()) {
            Some(moved) => format!("pod {} moved from {} to {}\n", pod.id(), pod.node, moved.node),
            None => format!("pod {} went with {}\n", pod.id(), pod.node),
        };
    }
    for pod in after.pods.iter().filter(|pod| before.pod(&pod.id()).is_none()) {
        text += &format!("pod {} started on {}\n", pod.id(), pod.node);
    }
    for name in names {
        text += &format!("node {name} left\n");
    }
    output::print(&text)?;
    Ok(())
}

/// Brings the cluster to what the objects say; a change that has begun is seen through.
fn change(lab: &mut Lab, objects: &Objects) -> anyhow::Result<Cluster> {
    let cluster = objects.resolve(Some(&lab.state().cluster))?;
    lab.change(stored(objects), cluster)?;
    Ok(lab.state().cluster.clone())
}

/// The name of the node that takes another's place: the next number of its kind, `n3` after `n1` and `n2`.
fn next_name(old: &str, taken: &[String]) -> String {
    let kind = old.trim_end_matches(|c: char| c.is_ascii_digit());
    let numbers = taken.iter().filter_map(|name| name.strip_prefix(kind)?.parse::<u64>().ok());
    let next = numbers.max().map_or(1, |last| last.saturating_add(1));
    // A kind without a number keeps apart from the number.
    let dash = if kind == old && !kind.ends_with('-') { "-" } else { "" };
    let name = format!("{kind}{dash}{next}");
    if taken.contains(&name) { next_name(&name, taken) } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_surge_is_a_number_of_nodes_or_a_part_of_all_rounded_up() {
        let surge = |text: &str| text.parse::<Surge>();
        assert_eq!(surge("1").map(|surge| surge.of(5)), Ok(1));
        assert_eq!(surge("9").map(|surge| surge.of(5)), Ok(5));
        assert_eq!(surge("33%").map(|surge| surge.of(5)), Ok(2));
        assert_eq!(surge("1%").map(|surge| surge.of(5)), Ok(1));
        assert_eq!(surge("100%").map(|surge| surge.of(5)), Ok(5));
        for text in ["0", "-1", "0%", "101%", "%", "all", ""] {
            assert_eq!(surge(text), Err(NoSurge), "{text}");
        }
    }

    #[test]
    fn new_nodes_are_numbered_on() {
        let taken = ["n1", "n2", "pool-a-9", "gateway", "gateway-1"].map(str::to_owned);
        assert_eq!(next_name("n1", &taken), "n3");
        assert_eq!(next_name("pool-a-9", &taken), "pool-a-10");
        assert_eq!(next_name("gateway", &taken), "gateway-2");
        assert_eq!(next_name("other", &taken), "other-1");
    }
}
