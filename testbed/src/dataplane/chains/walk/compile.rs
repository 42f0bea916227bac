//! Rules as a program: lines one behind the other, jumps by number.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{
    Bits, Condition, DEEPEST, Does, Hook, Interface, Line, List, Memory, NewSource, NewTarget, PATTERN,
    Program, flag,
};
use crate::dataplane::chains::ruleset::{Error, Match, Ports, Rule, Ruleset, Sign, Table, TableName, Then};

impl<A: Bits> Program<A> {
    /// Makes a program of rules, for a node with these interfaces.
    ///
    /// # Errors
    /// [`Error::Loop`], [`Error::NoChain`], [`Error::Deep`].
    pub fn new(rules: &Ruleset, interfaces: &[String]) -> Result<Self, Error> {
        for (name, table) in &rules.tables {
            check(*name, table)?;
        }
        let mut program = Self {
            lines: Vec::with_capacity(rules.rules()),
            conditions: Vec::new(),
            ports: Vec::new(),
            marks: Vec::new(),
            prefixes: Vec::new(),
            targets: Vec::new(),
            sources: Vec::new(),
            patterns: Vec::new(),
            hooks: [[None; 5]; 4],
            chains: Vec::new(),
            comments: Vec::new(),
            memory: Memory::default(),
        };
        let mut names = Names { interfaces, patterns: Vec::new(), lists: HashMap::new() };
        let empty: Arc<str> = Arc::from("");
        for (table, chains) in &rules.tables {
            let mut next = program.lines.len() as u32;
            let starts = chains.chains.iter().map(|(name, chain)| {
                let start = next;
                next += chain.rules.len() as u32 + 1;
                (name.as_str(), start)
            });
            let starts: BTreeMap<&str, u32> = starts.collect();
            for (name, chain) in &chains.chains {
                let start = program.lines.len() as u32;
                program.chains.push((start, *table, Arc::from(name.as_str())));
                for (number, (_, hook)) in Hook::ALL.iter().enumerate() {
                    if hook == name && table.hooks().contains(hook) {
                        program.hooks[*table as usize][number] = Some((start, chain.drops));
                    }
                }
                for rule in &chain.rules {
                    let line = program.line(rule, &starts, &mut names);
                    program.lines.push(line);
                    let comment =
                        if rule.comment.is_empty() { empty.clone() } else { rule.comment.as_str().into() };
                    program.comments.push(comment);
                }
                program.lines.push(Line { then: Does::Return, ..Line::any() });
                program.comments.push(empty.clone());
            }
        }
        program.patterns = names.patterns.into_iter().map(|(_, bits)| bits).collect();
        Ok(program)
    }

    /// What the rules that came before remember goes on: the sources that clients' choices are kept by.
    pub fn remember(&mut self, before: &Self) {
        let known: HashMap<&str, &List> =
            before.memory.lists.iter().map(|list| (list.name.as_str(), list)).collect();
        for list in &mut self.memory.lists {
            if let Some(old) = known.get(list.name.as_str()) {
                list.noted.clone_from(&old.noted);
            }
        }
    }

    fn line(&mut self, rule: &Rule, starts: &BTreeMap<&str, u32>, names: &mut Names<'_>) -> Line<A> {
        let mut line = Line::any();
        let set = |flags: &mut u8, not: bool, bit: u8| *flags |= if not { bit } else { 0 };
        if let Some(Sign { not, value }) = &rule.source {
            // A range of the other family has been refused when the rules were read.
            line.source = A::net(*value).unwrap_or(line.source);
            set(&mut line.flags, *not, flag::NOT_SOURCE);
        }
        if let Some(Sign { not, value }) = &rule.target {
            line.target = A::net(*value).unwrap_or(line.target);
            set(&mut line.flags, *not, flag::NOT_TARGET);
        }
        if let Some(Sign { not, value }) = &rule.from {
            line.from = names.number(value);
            set(&mut line.flags, *not, flag::NOT_FROM);
            line.flags |= flag::INTERFACES;
        }
        if let Some(Sign { not, value }) = &rule.to {
            line.to = names.number(value);
            set(&mut line.flags, *not, flag::NOT_TO);
            line.flags |= flag::INTERFACES;
        }
        if let Some(Sign { not, value }) = rule.protocol {
            line.protocol = value;
            set(&mut line.flags, not, flag::NOT_PROTOCOL);
        }
        line.first = self.conditions.len() as u32;
        for condition in &rule.matches {
            match condition {
                // Only if it is asked first: others count or roll, which they are to do for what got to them alone.
                Match::TargetPort(Sign { not: false, value })
                    if line.ports == (0, u16::MAX) && self.conditions.len() as u32 == line.first =>
                {
                    line.ports = (*value.start(), *value.end());
                }
                _ => {
                    let condition = self.condition(condition, names);
                    self.conditions.push(condition);
                }
            }
        }
        line.conditions = (self.conditions.len() as u32 - line.first) as u8;
        line.then = self.does(rule.then.as_ref(), starts);
        line
    }

    fn condition(&mut self, condition: &Match, names: &mut Names<'_>) -> Condition {
        let pair = |ports: &Ports| (*ports.start(), *ports.end());
        match condition {
            Match::SourcePort(Sign { not, value }) => Condition::SourcePort(*not, pair(value)),
            Match::TargetPort(Sign { not, value }) => Condition::TargetPort(*not, pair(value)),
            Match::Multiport(end, Sign { not, value }) => {
                let first = self.ports.len() as u32;
                self.ports.extend(value.iter().map(pair));
                Condition::Multiport(*end, *not, (first, self.ports.len() as u32))
            }
            Match::State(Sign { not, value }) => Condition::State(*not, value.0),
            Match::Reply(reply) => Condition::Reply(*reply),
            Match::Mark(Sign { not, value }) => Condition::Mark(*not, *value),
            Match::Random(Sign { not, value }) => Condition::Random(*not, *value),
            Match::Nth(Sign { not, value: (every, packet) }) => {
                // So many are still to come before the one that is taken.
                self.memory.counters.push(*packet);
                Condition::Nth(*not, (*every, self.memory.counters.len() as u32 - 1))
            }
            Match::Local(end, not) => Condition::Local(*end, *not),
            Match::Recent(Sign { not, value }) => {
                let list = *names.lists.entry(value.name.clone()).or_insert_with(|| {
                    self.memory.lists.push(List { name: value.name.clone(), noted: Vec::new() });
                    self.memory.lists.len() - 1
                });
                let seconds = value.seconds.unwrap_or(0);
                Condition::Recent { not: *not, list: list as u32, set: value.set, seconds, reap: value.reap }
            }
        }
    }

    fn does(&mut self, then: Option<&Then>, starts: &BTreeMap<&str, u32>) -> Does {
        /// The number of the same one, if one of the last few is; else of a new one.
        fn noted<T: PartialEq>(of: &mut Vec<T>, one: T) -> u32 {
            let last = of.len().saturating_sub(8);
            let known = of[last..].iter().position(|known| *known == one);
            if known.is_none() {
                of.push(one);
            }
            known.map_or(of.len() - 1, |at| last + at) as u32
        }
        match then {
            None => Does::Nothing,
            Some(Then::Accept) => Does::Accept,
            Some(Then::Drop) => Does::Drop,
            Some(Then::Reject(with)) => Does::Reject(*with),
            Some(Then::Return) => Does::Return,
            Some(Then::Jump(chain)) => Does::Jump(starts[chain.as_str()]),
            Some(Then::Goto(chain)) => Does::Goto(starts[chain.as_str()]),
            Some(Then::Log(prefix)) => Does::Log(noted(&mut self.prefixes, prefix.clone())),
            Some(Then::Mark(value, mask)) => Does::Mark(noted(&mut self.marks, (*value, *mask))),
            Some(Then::Dnat(address, port)) => {
                Does::Dnat(noted(&mut self.targets, NewTarget { address: (*address).into(), port: *port }))
            }
            Some(Then::Snat(address, ports)) => {
                let address = Some((*address).into());
                Does::Snat(noted(&mut self.sources, NewSource { address, ports: ports.clone() }))
            }
            Some(Then::Masquerade(ports)) => {
                Does::Snat(noted(&mut self.sources, NewSource { address: None, ports: ports.clone() }))
            }
        }
    }
}

/// Interfaces and lists of sources, by their names.
struct Names<'a> {
    interfaces: &'a [String],
    patterns: Vec<(String, Vec<bool>)>,
    lists: HashMap<String, usize>,
}

impl Names<'_> {
    /// The number that stands for a name in a rule.
    fn number(&mut self, name: &str) -> Interface {
        let Some(prefix) = name.strip_suffix('+') else {
            let place = self.interfaces.iter().position(|own| own == name);
            return place.map_or(Interface::UNKNOWN, Interface::at);
        };
        let known = self.patterns.iter().position(|(pattern, _)| pattern == name);
        let number = known.unwrap_or_else(|| {
            // Number 0 is no interface; `+` alone is for that as well.
            let bits = std::iter::once(prefix.is_empty());
            let bits = bits.chain(self.interfaces.iter().map(|own| own.starts_with(prefix)));
            self.patterns.push((name.to_owned(), bits.collect()));
            self.patterns.len() - 1
        });
        Interface(PATTERN + (number as u16).min(PATTERN - 2))
    }
}

/// Checks that every walk through a table ends, and is not too deep.
fn check(name: TableName, table: &Table) -> Result<(), Error> {
    let mut depths = HashMap::new();
    for chain in table.chains.keys() {
        depth(name, table, chain, &mut depths)?;
    }
    match table.chains.keys().find(|chain| depths.get(chain.as_str()).copied().flatten() > Some(DEEPEST)) {
        None => Ok(()),
        Some(chain) => Err(Error::Deep { table: name, chain: chain.clone(), deepest: DEEPEST }),
    }
}

/// How many chains lead into one another from this one. None while it is looked at.
fn depth<'a>(
    name: TableName,
    table: &'a Table,
    chain: &'a str,
    depths: &mut HashMap<&'a str, Option<usize>>,
) -> Result<usize, Error> {
    match depths.get(chain) {
        Some(Some(known)) => return Ok(*known),
        Some(None) => return Err(Error::Loop { table: name, chain: chain.to_owned() }),
        None => {}
    }
    depths.insert(chain, None);
    let mut deepest = 0;
    for rule in &table.chains[chain].rules {
        if let Some(Then::Jump(to) | Then::Goto(to)) = &rule.then {
            let Some((to, _)) = table.chains.get_key_value(to) else {
                return Err(Error::NoChain { table: name, chain: chain.to_owned(), to: to.clone() });
            };
            deepest = deepest.max(depth(name, table, to, depths)? + 1);
        }
    }
    depths.insert(chain, Some(deepest));
    Ok(deepest)
}
