//! Rules the iptables way: tables of chains of rules, walked in order until one decides.
//!
//! A rule applies if all its matches do. What it then does either ends the walk, changes the packet's
//! mark, or leads to another chain; a chain that ends returns to the rule after the one that led to it,
//! and a built-in chain that ends gives its policy. The cost of a walk grows with the rules on its way:
//! that is what this dataplane is here to show.
//!
//! Source: iptables(8), iptables-extensions(8).

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;

use super::conntrack::State;
use super::frame::Tuple;

/// Where a packet enters or leaves a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Link {
    /// To the fabric.
    Uplink,
    /// To the node's own stack.
    Host,
    /// To other nodes' pods, inside the uplink's packets.
    Tunnel,
    /// To the pod with this address.
    Pod(Ipv4Addr),
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uplink => f.write_str("eth0"),
            Self::Host => f.write_str("host"),
            Self::Tunnel => f.write_str("vxlan"),
            Self::Pod(address) => write!(f, "pod-{address}"),
        }
    }
}

/// A packet as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its ends, as they are at this point of its way.
    pub tuple: Tuple,
    /// Where it came in.
    pub from: Link,
    /// Where it will leave, once it is routed.
    pub to: Option<Link>,
    /// How it stands to its connection.
    pub state: State,
    /// It goes the other way than its connection's first packet.
    pub reply: bool,
    /// What earlier rules wrote on it.
    pub mark: u32,
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Match {
    /// `-p`: the protocol, as in the IP header.
    Protocol(u8),
    /// `-s`.
    Source(Ipv4Net),
    /// `! -s`.
    SourceNot(Ipv4Net),
    /// `-d`.
    Target(Ipv4Net),
    /// `! -d`.
    TargetNot(Ipv4Net),
    /// `--dport`.
    TargetPort(RangeInclusive<u16>),
    /// `-i`.
    From(Link),
    /// `-o`.
    To(Link),
    /// `-m conntrack --ctstate`: any of these.
    State(Vec<State>),
    /// `-m conntrack --ctdir REPLY`: the other way than the connection's first packet.
    Reply,
    /// `-m mark --mark value/mask`.
    Mark {
        /// After the mask.
        value: u32,
        /// Bits that count.
        mask: u32,
    },
    /// `-m mark ! --mark value/mask`.
    MarkNot {
        /// After the mask.
        value: u32,
        /// Bits that count.
        mask: u32,
    },
    /// `-m statistic --mode random --probability`: this part (0 to 1) of all packets.
    Random(f64),
    /// `-m statistic --mode nth --every --packet`: one in so many packets, counted per rule.
    Nth {
        /// At least 1.
        every: u64,
        /// Which of them, from 0.
        packet: u64,
        /// Packets seen.
        seen: Cell<u64>,
    },
}

impl Match {
    /// The one address.
    pub fn source(address: Ipv4Addr) -> Self {
        Self::Source(address.into())
    }

    /// The one address.
    pub fn target(address: Ipv4Addr) -> Self {
        Self::Target(address.into())
    }

    fn applies(&self, seen: &Seen, dice: &mut Dice) -> bool {
        let Tuple { protocol, source, target, target_port, .. } = seen.tuple;
        match self {
            Self::Protocol(number) => *number == protocol,
            Self::Source(range) => range.contains(&source),
            Self::SourceNot(range) => !range.contains(&source),
            Self::Target(range) => range.contains(&target),
            Self::TargetNot(range) => !range.contains(&target),
            Self::TargetPort(ports) => ports.contains(&target_port),
            Self::From(link) => *link == seen.from,
            Self::To(link) => Some(*link) == seen.to,
            Self::State(states) => states.contains(&seen.state),
            Self::Reply => seen.reply,
            Self::Mark { value, mask } => seen.mark & mask == *value,
            Self::MarkNot { value, mask } => seen.mark & mask != *value,
            Self::Random(part) => dice.part() < *part,
            Self::Nth { every, packet, seen } => {
                let number = seen.replace(seen.get().wrapping_add(1));
                number % every == *packet
            }
        }
    }
}

/// What a rule does when it applies.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Let it through this table.
    Accept,
    /// Refuse it without an answer.
    Drop,
    /// Refuse it with an ICMP error.
    Reject,
    /// Say that it came by, and go on.
    Log,
    /// Back to where this chain was jumped to.
    Return,
    /// Through another chain of the table.
    Jump(ChainId),
    /// `MARK --set-xmark value/mask`: clears the mask's bits, then flips the value's.
    Mark {
        /// Bits to flip.
        value: u32,
        /// Bits to clear first.
        mask: u32,
    },
    /// A new target for the connection.
    Dnat(Ipv4Addr, u16),
    /// A new source for the connection: this address.
    Snat(Ipv4Addr),
    /// A new source for the connection: the node's address, and one of these ports.
    Masquerade(RangeInclusive<u16>),
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// All must apply.
    pub matches: Vec<Match>,
    /// What then happens.
    pub target: Target,
    /// `-m comment`: whom it is for.
    pub comment: String,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(matches: impl Into<Vec<Match>>, target: Target) -> Self {
        Self { matches: matches.into(), target, comment: String::new() }
    }

    /// The same, for `whom`.
    pub fn comment(self, whom: impl Into<String>) -> Self {
        Self { comment: whom.into(), ..self }
    }
}

/// A chain of a [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChainId(usize);

#[derive(Clone, Debug)]
struct Chain {
    name: String,
    rules: Vec<Rule>,
}

/// What a walk came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Walked {
    /// Through, by a rule or by the end of the chain.
    Accept,
    /// Refused by the rule at this place, counted from 1.
    Drop(Place),
    /// The same, with an ICMP error.
    Reject(Place),
    /// Through, with a new target.
    Dnat(Ipv4Addr, u16),
    /// Through, with a new source.
    Snat(Ipv4Addr),
    /// Through, with the node's address and one of these ports as source.
    Masquerade(RangeInclusive<u16>),
}

/// A rule, as one would look for it in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the table.
    pub table: &'static str,
    /// Of the chain.
    pub chain: String,
    /// Counted from 1, as `iptables -L --line-numbers` does.
    pub line: usize,
    /// What the rule's comment says.
    pub comment: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} rule {}", self.table, self.chain, self.line)?;
        if self.comment.is_empty() { Ok(()) } else { write!(f, " ({})", self.comment) }
    }
}

/// Why rules are no table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A packet could be sent round for ever.
    #[error("cannot use table {table}: chain {chain} leads back to itself; remove the jump")]
    Loop {
        /// Of the table.
        table: &'static str,
        /// Of the chain.
        chain: String,
    },
}

/// Chains that may jump to one another.
#[derive(Clone, Debug)]
pub struct Table {
    name: &'static str,
    chains: Vec<Chain>,
    by_name: HashMap<String, ChainId>,
}

impl Table {
    /// A table without chains.
    pub fn new(name: &'static str) -> Self {
        Self { name, chains: Vec::new(), by_name: HashMap::new() }
    }

    /// The chain of that name; made, if it is not there.
    pub fn chain(&mut self, name: &str) -> ChainId {
        if let Some(chain) = self.by_name.get(name) {
            return *chain;
        }
        let chain = ChainId(self.chains.len());
        self.chains.push(Chain { name: name.to_owned(), rules: Vec::new() });
        self.by_name.insert(name.to_owned(), chain);
        chain
    }

    /// Adds a rule at the end of the chain.
    pub fn append(&mut self, chain: ChainId, rule: Rule) {
        self.chains[chain.0].rules.push(rule);
    }

    /// Rules in all chains.
    pub fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    /// Checks that every walk ends.
    ///
    /// # Errors
    /// [`Error::Loop`], with a chain on it.
    pub fn check(&self) -> Result<(), Error> {
        // 0: not seen, 1: on the way, 2: known to end.
        let mut seen = vec![0_u8; self.chains.len()];
        (0..self.chains.len()).try_for_each(|chain| self.check_from(chain, &mut seen))
    }

    fn check_from(&self, chain: usize, seen: &mut [u8]) -> Result<(), Error> {
        match seen[chain] {
            0 => {}
            1 => return Err(Error::Loop { table: self.name, chain: self.chains[chain].name.clone() }),
            _ => return Ok(()),
        }
        seen[chain] = 1;
        for rule in &self.chains[chain].rules {
            if let Target::Jump(next) = rule.target {
                self.check_from(next.0, seen)?;
            }
        }
        seen[chain] = 2;
        Ok(())
    }

    /// Walks the chain of that name, which accepts what no rule decides. Rules may change the packet's mark.
    pub fn walk(&self, chain: &str, seen: &mut Seen, dice: &mut Dice) -> Walked {
        let Some(start) = self.by_name.get(chain) else { return Walked::Accept };
        // Chains to come back to, and the next rule there.
        let mut way = vec![(start.0, 0)];
        while let Some((chain, line)) = way.pop() {
            let Some(rule) = self.chains[chain].rules.get(line) else { continue };
            way.push((chain, line + 1));
            if !rule.matches.iter().all(|condition| condition.applies(seen, dice)) {
                continue;
            }
            match &rule.target {
                Target::Accept => return Walked::Accept,
                Target::Drop => return Walked::Drop(self.place(chain, line)),
                Target::Reject => return Walked::Reject(self.place(chain, line)),
                Target::Log => {
                    let Tuple { protocol, source, target, target_port, .. } = seen.tuple;
                    let place = self.place(chain, line);
                    tracing::info!("{place}: {source} -> {target}:{target_port} ({protocol})");
                }
                Target::Return => {
                    way.pop();
                }
                Target::Jump(next) => way.push((next.0, 0)),
                Target::Mark { value, mask } => seen.mark = (seen.mark & !mask) ^ value,
                Target::Dnat(address, port) => return Walked::Dnat(*address, *port),
                Target::Snat(address) => return Walked::Snat(*address),
                Target::Masquerade(ports) => return Walked::Masquerade(ports.clone()),
            }
        }
        Walked::Accept
    }

    fn place(&self, chain: usize, line: usize) -> Place {
        let Chain { name, rules } = &self.chains[chain];
        Place { table: self.name, chain: name.clone(), line: line + 1, comment: rules[line].comment.clone() }
    }
}

/// Chance that is the same in every run: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed rolls the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, all bits equally likely.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From 0 to below 1.
    fn part(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl fmt::Display for Table {
    /// As `iptables-save` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.name)?;
        for chain in &self.chains {
            writeln!(f, ":{} - [0:0]", chain.name)?;
        }
        for chain in &self.chains {
            for rule in &chain.rules {
                write!(f, "-A {}", chain.name)?;
                for condition in &rule.matches {
                    write!(f, " {condition}")?;
                }
                if !rule.comment.is_empty() {
                    write!(f, " -m comment --comment {:?}", rule.comment)?;
                }
                self.write_target(f, &rule.target)?;
            }
        }
        writeln!(f, "COMMIT")
    }
}

impl Table {
    fn write_target(&self, f: &mut fmt::Formatter<'_>, target: &Target) -> fmt::Result {
        match target {
            Target::Accept => writeln!(f, " -j ACCEPT"),
            Target::Drop => writeln!(f, " -j DROP"),
            Target::Reject => writeln!(f, " -j REJECT --reject-with icmp-port-unreachable"),
            Target::Log => writeln!(f, " -j LOG"),
            Target::Return => writeln!(f, " -j RETURN"),
            Target::Jump(chain) => writeln!(f, " -j {}", self.chains[chain.0].name),
            Target::Mark { value, mask } => writeln!(f, " -j MARK --set-xmark {value:#x}/{mask:#x}"),
            Target::Dnat(address, port) => writeln!(f, " -j DNAT --to-destination {address}:{port}"),
            Target::Snat(address) => writeln!(f, " -j SNAT --to-source {address}"),
            Target::Masquerade(ports) => {
                writeln!(f, " -j MASQUERADE --to-ports {}-{}", ports.start(), ports.end())
            }
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(6) => f.write_str("-p tcp"),
            Self::Protocol(17) => f.write_str("-p udp"),
            Self::Protocol(number) => write!(f, "-p {number}"),
            Self::Source(range) => write!(f, "-s {range}"),
            Self::SourceNot(range) => write!(f, "! -s {range}"),
            Self::Target(range) => write!(f, "-d {range}"),
            Self::TargetNot(range) => write!(f, "! -d {range}"),
            Self::TargetPort(ports) if ports.start() == ports.end() => write!(f, "--dport {}", ports.start()),
            Self::TargetPort(ports) => write!(f, "--dport {}:{}", ports.start(), ports.end()),
            Self::From(link) => write!(f, "-i {link}"),
            Self::To(link) => write!(f, "-o {link}"),
            Self::State(states) => {
                let names: Vec<String> =
                    states.iter().map(|state| format!("{state:?}").to_uppercase()).collect();
                write!(f, "-m conntrack --ctstate {}", names.join(","))
            }
            Self::Reply => f.write_str("-m conntrack --ctdir REPLY"),
            Self::Mark { value, mask } => write!(f, "-m mark --mark {value:#x}/{mask:#x}"),
            Self::MarkNot { value, mask } => write!(f, "-m mark ! --mark {value:#x}/{mask:#x}"),
            Self::Random(part) => write!(f, "-m statistic --mode random --probability {part:.11}"),
            Self::Nth { every, packet, .. } => {
                write!(f, "-m statistic --mode nth --every {every} --packet {packet}")
            }
        }
    }
}
