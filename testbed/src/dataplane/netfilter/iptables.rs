//! `iptables`: the text that `chains` walks, in the kernel.
//!
//! A change is loaded as kube-proxy's partial sync does it: with `--noflush`, tables and chains that differ alone. A
//! chain that is declared is flushed and written anew. The kernel's own chains have no such short way, so where one
//! of these differs its table is written anew as a whole; that is one transaction as well.
//!
//! Source: Kubernetes, `pkg/proxy/iptables/proxier.go` and KEP-3453 (partial sync); iptables-restore(8).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use userspace::model::Cluster;

use super::run::{RESTORE, RESTORE_V6, Tool};
use crate::dataplane::chains::{self, Family, Ruleset};

/// What `iptables-restore` and `ip6tables-restore` are told to go from one cluster's rules of a node to another's.
/// Where there is nothing before, everything is written. Empty where nothing differs.
///
/// # Errors
/// The cluster has no such node.
pub fn change(
    before: Option<&Cluster>,
    after: &Cluster,
    node: &str,
) -> Result<Vec<(Tool, String)>, chains::Error> {
    let mut told = Vec::new();
    for (family, tool) in [(Family::V4, RESTORE), (Family::V6, RESTORE_V6)] {
        if !has(after, family) {
            if before.is_some_and(|cluster| has(cluster, family)) {
                told.push((tool, emptied()));
            }
            continue;
        }
        let new = Ruleset::plan(after, node, family)?.to_string();
        let old = match before.filter(|cluster| has(cluster, family)) {
            Some(cluster) => Ruleset::plan(cluster, node, family)?.to_string(),
            None => String::new(),
        };
        let text = difference(&Tables::of(&old), &Tables::of(&new));
        if !text.is_empty() {
            told.push((tool, text));
        }
    }
    Ok(told)
}

/// What empties every table, for a cluster of these families.
pub fn removal(cluster: &Cluster) -> Vec<(Tool, String)> {
    let families = [(Family::V4, RESTORE), (Family::V6, RESTORE_V6)];
    let own = families.into_iter().filter(|(family, _)| has(cluster, *family));
    own.map(|(_, tool)| (tool, emptied())).collect()
}

/// The text that empties every table.
fn emptied() -> String {
    ["raw", "mangle", "nat", "filter"].map(|table| format!("*{table}\n-F\n-X\nCOMMIT\n")).concat()
}

/// Whether somebody on its nodes has addresses of the family.
fn has(cluster: &Cluster, family: Family) -> bool {
    let pods = cluster.pods.iter().flat_map(|pod| &pod.addresses);
    let nodes = cluster.nodes.iter().flat_map(|node| &node.addresses);
    pods.chain(nodes).any(|address| Family::of(*address) == family)
}

/// A saved rule set, line by line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tables<'a>(BTreeMap<&'a str, Chains<'a>>);

/// The chains of a table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Chains<'a> {
    /// With what stands behind their names: a policy, or `-` for those that are not the kernel's.
    declared: BTreeMap<&'a str, &'a str>,
    rules: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Tables<'a> {
    fn of(saved: &'a str) -> Self {
        let (mut tables, mut current) = (Self::default(), "");
        for line in saved.lines() {
            if let Some(table) = line.strip_prefix('*') {
                current = table;
                tables.0.entry(table).or_default();
            } else if let Some((chain, policy)) = line.strip_prefix(':').and_then(|it| it.split_once(' ')) {
                tables.0.entry(current).or_default().declared.insert(chain, policy);
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let chain = rule.split(' ').next().unwrap_or_default();
                tables.0.entry(current).or_default().rules.entry(chain).or_default().push(line);
            }
        }
        tables
    }
}

impl Chains<'_> {
    fn rules_of(&self, chain: &str) -> &[&str] {
        self.rules.get(chain).map_or(&[], Vec::as_slice)
    }

    /// Whether a chain of the kernel's own has other rules or another policy.
    fn differs_at_a_hook(&self, old: &Self) -> bool {
        let hooks = |of: &Self| -> Vec<(String, String)> {
            let own = of.declared.iter().filter(|(_, policy)| !policy.starts_with('-'));
            own.map(|(chain, policy)| ((*chain).to_owned(), format!("{policy} {:?}", of.rules_of(chain))))
                .collect()
        };
        hooks(self) != hooks(old)
    }

    /// These chains: declared first, because they may lead to each other.
    fn write<'b>(&self, chains: impl Iterator<Item = &'b str> + Clone, text: &mut String) {
        chains.clone().for_each(|chain| line(text, format_args!(":{chain} {}", self.declared[chain])));
        chains.flat_map(|chain| self.rules_of(chain)).for_each(|rule| line(text, format_args!("{rule}")));
    }
}

/// The text that makes `new` of `old`.
fn difference(old: &Tables<'_>, new: &Tables<'_>) -> String {
    let (mut text, none) = (String::new(), Chains::default());
    for (table, chains) in &new.0 {
        let before = old.0.get(table).unwrap_or(&none);
        if chains == before {
            continue;
        }
        line(&mut text, format_args!("*{table}"));
        if chains.differs_at_a_hook(before) {
            // Whatever was in it goes.
            line(&mut text, format_args!("-F\n-X"));
            chains.write(chains.declared.keys().copied(), &mut text);
        } else {
            let is_gone = |chain: &&str| !chains.declared.contains_key(chain);
            let gone: Vec<&str> = before.declared.keys().copied().filter(is_gone).collect();
            // Declared once more they are empty: then nothing leads from one of them to another.
            gone.iter().for_each(|chain| line(&mut text, format_args!(":{chain} - [0:0]")));
            let differs = |chain: &&str| {
                !before.declared.contains_key(chain) || chains.rules_of(chain) != before.rules_of(chain)
            };
            chains.write(chains.declared.keys().copied().filter(differs), &mut text);
            gone.iter().for_each(|chain| line(&mut text, format_args!("-X {chain}")));
        }
        line(&mut text, format_args!("COMMIT"));
    }
    text
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    // To write into a string does not fail.
    let _ = writeln!(text, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]\n-A PREROUTING -j A\n\
                          -A A -j B\n-A A -j C\n-A B -j RETURN\n-A C -j RETURN\nCOMMIT\n";

    fn changed(after: &str) -> String {
        difference(&Tables::of(BEFORE), &Tables::of(after))
    }

    #[test]
    fn a_chain_that_differs_is_written_anew_and_the_others_are_not_named() {
        let after = BEFORE.replace("-A B -j RETURN", "-A B -j ACCEPT");
        assert_eq!(changed(&after), "*nat\n:B - [0:0]\n-A B -j ACCEPT\nCOMMIT\n");
        assert_eq!(changed(BEFORE), "");
    }

    #[test]
    fn a_chain_that_is_gone_is_emptied_and_deleted_after_those_that_led_to_it() {
        let after =
            BEFORE.replace("-A A -j C\n", "").replace("-A C -j RETURN\n", "").replace(":C - [0:0]\n", "");
        assert_eq!(changed(&after), "*nat\n:C - [0:0]\n:A - [0:0]\n-A A -j B\n-X C\nCOMMIT\n");
    }

    #[test]
    fn where_the_last_address_of_a_family_goes_its_rules_go_with_it() {
        let of = |subnets: &str| {
            let text = format!(
                "apiVersion: podpath.dev/v1alpha1\nkind: Testbed\nmetadata: {{name: t}}\n\
                 spec: {{nodes: 1, model: flat, nodeSubnets: [{subnets}]}}\n"
            );
            userspace::model::load_text("t.yaml", &text).unwrap_or_else(|error| panic!("{error}"))
        };
        let (dual, single) = (of("10.240.0.0/16, \"fd00:10:240::/64\""), of("10.240.0.0/16"));
        let told = change(Some(&dual), &single, "n1").unwrap_or_else(|error| panic!("{error}"));
        let of_v6: Vec<_> = told.iter().filter(|(tool, _)| *tool == RESTORE_V6).collect();
        let [(_, text)] = of_v6[..] else { panic!("{told:?}") };
        assert!(text.contains("*nat\n-F\n-X\nCOMMIT\n"), "{text}");
    }

    #[test]
    fn where_a_chain_of_the_kernels_own_differs_the_table_is_written_as_a_whole() {
        let after = BEFORE.replace("-A PREROUTING -j A", "-A PREROUTING -p tcp -j A");
        let text = changed(&after);
        assert!(text.starts_with("*nat\n-F\n-X\n:A - [0:0]\n"), "{text}");
    }
}
