//! Tables, sets and chains as text for `nft -f -`, and the transaction from one rule set to another.
//!
//! A transaction names only what differs: chains are flushed and written anew, elements come and go one by one. So
//! a change of one Service is its own chains and its own elements, as in kube-proxy's partial sync, and connections
//! are not concerned: the kernel tracks them apart from the rules.
//!
//! Source: nft(8).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// All rules of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// By family and name, `ip kube-proxy`.
    tables: BTreeMap<String, Table>,
}

/// A table of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    sets: BTreeMap<String, Set>,
    chains: BTreeMap<String, Chain>,
}

/// A set or a map with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Set {
    /// `set` or `map`.
    word: &'static str,
    /// What stands between its braces.
    head: String,
    /// With what they lead to, if it is a map.
    elements: BTreeMap<String, Option<String>>,
}

/// A chain, and where it hangs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    /// What stands between its braces; nothing for one that is only jumped to.
    head: String,
    rules: Vec<String>,
}

impl Table {
    /// Declares a set.
    pub(super) fn set(&mut self, name: &str, head: impl Into<String>) {
        self.declare(name, "set", head.into());
    }

    /// Declares a map.
    pub(super) fn map(&mut self, name: &str, head: impl Into<String>) {
        self.declare(name, "map", head.into());
    }

    fn declare(&mut self, name: &str, word: &'static str, head: String) {
        let set = Set { word, head, elements: BTreeMap::new() };
        self.sets.entry(name.to_owned()).or_insert(set);
    }

    /// Puts an element into a declared set.
    pub(super) fn element(&mut self, set: &str, key: impl fmt::Display) {
        self.put(set, key.to_string(), None);
    }

    /// Leads a key of a declared map to a verdict, unless it leads somewhere already.
    pub(super) fn lead(&mut self, map: &str, key: impl fmt::Display, verdict: impl Into<String>) {
        self.put(map, key.to_string(), Some(verdict.into()));
    }

    fn put(&mut self, set: &str, key: String, verdict: Option<String>) {
        let set = self.sets.get_mut(set).expect("sets are declared before they are filled");
        set.elements.entry(key).or_insert(verdict);
    }

    /// Adds a chain that hangs at a hook of the kernel.
    pub(super) fn base(&mut self, name: &str, hook: &str, rules: Vec<String>) {
        let head = format!("type {hook}; policy accept;");
        self.chains.insert(name.to_owned(), Chain { head, rules });
    }

    /// Adds a chain to be jumped to.
    pub(super) fn chain(&mut self, name: &str, rules: Vec<String>) {
        self.chains.insert(name.to_owned(), Chain { head: String::new(), rules });
    }

    /// Whether there is a chain of that name.
    pub(super) fn has_chain(&self, name: &str) -> bool {
        self.chains.contains_key(name)
    }
}

impl Ruleset {
    pub(super) fn add(&mut self, name: String, table: Table) {
        self.tables.insert(name, table);
    }

    /// Rules in all chains together, and elements in all sets.
    pub fn len(&self) -> (usize, usize) {
        let tables = self.tables.values();
        let rules = tables.clone().flat_map(|table| table.chains.values()).map(|chain| chain.rules.len());
        let elements = tables.flat_map(|table| table.sets.values()).map(|set| set.elements.len());
        (rules.sum(), elements.sum())
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// The transaction that makes `self` of `before`, which is in the kernel; empty if they are the same.
    pub fn change(&self, before: &Self) -> String {
        let (mut text, empty) = (String::new(), Table::default());
        for name in before.tables.keys().filter(|name| !self.tables.contains_key(*name)) {
            line(&mut text, format_args!("delete table {name}"));
        }
        for (name, table) in &self.tables {
            let old = before.tables.get(name);
            if old.is_none() {
                // Whatever is there of that name is not known.
                line(&mut text, format_args!("add table {name}"));
                line(&mut text, format_args!("delete table {name}"));
                line(&mut text, format_args!("add table {name}"));
            }
            table.change(old.unwrap_or(&empty), name, &mut text);
        }
        text
    }

    /// The transaction that leaves nothing of it, whether or not it is there.
    pub fn removal(&self) -> String {
        let mut text = String::new();
        for name in self.tables.keys() {
            line(&mut text, format_args!("add table {name}"));
            line(&mut text, format_args!("delete table {name}"));
        }
        text
    }
}

impl Table {
    fn change(&self, old: &Self, table: &str, text: &mut String) {
        let new_sets = self.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name));
        for (name, set) in new_sets {
            line(text, format_args!("add {} {table} {name} {{ {} }}", set.word, set.head));
        }
        for (name, chain) in self.chains.iter().filter(|(name, _)| !old.chains.contains_key(*name)) {
            match chain.head.as_str() {
                "" => line(text, format_args!("add chain {table} {name}")),
                head => line(text, format_args!("add chain {table} {name} {{ {head} }}")),
            }
        }
        let empty = BTreeMap::new();
        let elements =
            |of: &Self, name: &str| of.sets.get(name).map_or(empty.clone(), |it| it.elements.clone());
        for (name, set) in &self.sets {
            let gone = elements(old, name);
            let gone = gone.iter().filter(|(key, lead)| set.elements.get(*key) != Some(lead));
            write_elements(text, &format!("delete element {table} {name}"), gone.map(|(key, _)| key.clone()));
        }
        for (name, chain) in &self.chains {
            let known = old.chains.get(name);
            if known == Some(chain) {
                continue;
            }
            if known.is_some() {
                line(text, format_args!("flush chain {table} {name}"));
            }
            for rule in &chain.rules {
                line(text, format_args!("add rule {table} {name} {rule}"));
            }
        }
        for (name, set) in &self.sets {
            let known = elements(old, name);
            let new = set.elements.iter().filter(|(key, lead)| known.get(*key) != Some(lead));
            let written = new.map(|(key, lead)| match lead {
                Some(lead) => format!("{key} : {lead}"),
                None => key.clone(),
            });
            write_elements(text, &format!("add element {table} {name}"), written);
        }
        let gone = || old.chains.keys().filter(|name| !self.chains.contains_key(*name));
        // They may jump to each other.
        gone().for_each(|name| line(text, format_args!("flush chain {table} {name}")));
        gone().for_each(|name| line(text, format_args!("delete chain {table} {name}")));
        for (name, set) in old.sets.iter().filter(|(name, _)| !self.sets.contains_key(*name)) {
            line(text, format_args!("delete {} {table} {name}", set.word));
        }
    }
}

/// The whole rule set, as it is loaded where nothing is yet.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.change(&Self::default()))
    }
}

fn line(text: &mut String, what: fmt::Arguments<'_>) {
    // To write into a string does not fail.
    let _ = writeln!(text, "{what}");
}

/// One command for all elements; none if there are none.
fn write_elements(text: &mut String, command: &str, elements: impl Iterator<Item = String>) {
    let elements: Vec<String> = elements.collect();
    if !elements.is_empty() {
        line(text, format_args!("{command} {{ {} }}", elements.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset(services: &[(&str, &str)]) -> Ruleset {
        let mut table = Table::default();
        table.map("services", "type ipv4_addr : verdict;");
        table.base("hook", "nat hook prerouting priority dstnat", vec!["ip daddr vmap @services".into()]);
        for (address, backend) in services {
            table.chain(&format!("to-{address}"), vec![format!("dnat to {backend}")]);
            table.lead("services", address, format!("goto to-{address}"));
        }
        let mut ruleset = Ruleset::default();
        ruleset.add("ip t".to_owned(), table);
        ruleset
    }

    #[test]
    fn what_stays_as_it_is_is_not_in_the_transaction() {
        let before = ruleset(&[("10.0.0.1", "1.1.1.1"), ("10.0.0.2", "2.2.2.2")]);
        let after = ruleset(&[("10.0.0.1", "1.1.1.1"), ("10.0.0.2", "3.3.3.3")]);
        let expected = "flush chain ip t to-10.0.0.2\nadd rule ip t to-10.0.0.2 dnat to 3.3.3.3\n";
        assert_eq!(after.change(&before), expected);
        assert_eq!(after.change(&after), "");
    }

    #[test]
    fn what_is_gone_loses_its_element_before_its_chain() {
        let before = ruleset(&[("10.0.0.1", "1.1.1.1"), ("10.0.0.2", "2.2.2.2")]);
        let after = ruleset(&[("10.0.0.1", "1.1.1.1")]);
        let expected = "delete element ip t services { 10.0.0.2 }\nflush chain ip t to-10.0.0.2\n\
                        delete chain ip t to-10.0.0.2\n";
        assert_eq!(after.change(&before), expected);
    }

    #[test]
    fn what_is_new_is_declared_before_anything_speaks_of_it() {
        let text = ruleset(&[("10.0.0.1", "1.1.1.1")]).to_string();
        let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is not in {text}"));
        assert!(place("add map ip t services") < place("add rule ip t hook"));
        assert!(place("add chain ip t to-10.0.0.1") < place("add element ip t services"));
    }
}
