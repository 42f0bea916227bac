//! A [`Ruleset`] as a program: what a packet walks through.
//!
//! The walk is as the kernel's own: one rule after the other, and nothing remembered between packets but what the
//! rules themselves count. So its price is that of the rules on a packet's way, and that is what this dataplane is
//! here to show; the price of one rule is as low as it can be plainly had:
//!
//! | | |
//! | --- | --- |
//! | a rule that does not apply | one line of 48 bytes read (IPv6: 112), two masked comparisons at most |
//! | `-i`, `-o` | a comparison of two numbers; a pattern with `+`, one bit looked up |
//! | protocol, `--dport` | in the same line |
//! | any other match | 20 bytes elsewhere, looked at only if the line applies |
//! | a jump | a number pushed on a stack of 16 |
//!
//! All rules stand one behind the other, chains contiguous, jumps by index. Nothing is allocated.

use std::fmt;
use std::net::IpAddr;
use std::ops::BitAnd;
use std::sync::Arc;

use ipnet::IpNet;

use super::frame::{Address, Tuple};
use super::ruleset::{End, RejectWith, SourcePorts, States, TableName};

mod compile;

/// The states of packets that are of no connection.
const NO_CONNECTION: u8 = States::INVALID.or(States::UNTRACKED).0;

/// The number of an interface of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interface(u16);

impl Interface {
    /// None: the node's own stack.
    pub const NONE: Self = Self(0);
    /// Rules that do not care.
    const ANY: Self = Self(u16::MAX);
    /// An interface that the node does not have.
    const UNKNOWN: Self = Self(PATTERN - 1);

    /// The interface that has this place among the names that the rules were compiled with, from 0.
    pub fn at(place: usize) -> Self {
        Self(u16::try_from(place + 1).ok().filter(|number| *number < PATTERN - 1).unwrap_or(PATTERN - 1))
    }

    /// Its place, if it is one.
    pub fn place(self) -> Option<usize> {
        usize::from(self.0).checked_sub(1)
    }
}

/// From this number on it is that of a pattern of names.
const PATTERN: u16 = 0x8000;

/// How deep chains may lead into one another, as nf_tables has it (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;

/// An address as a number that masks apply to.
pub trait Bits: Copy + Eq + BitAnd<Output = Self> + fmt::Debug + Send + 'static {
    /// No bits.
    const NONE: Self;

    /// The address, which is of the family.
    fn of(address: Address) -> Self;

    /// The network's address and mask, if it is of the family.
    fn net(range: IpNet) -> Option<(Self, Self)>;
}

impl Bits for u32 {
    const NONE: Self = 0;

    fn of(address: Address) -> Self {
        address.low()
    }

    fn net(range: IpNet) -> Option<(Self, Self)> {
        match range {
            IpNet::V4(range) => Some((range.network().to_bits(), range.netmask().to_bits())),
            IpNet::V6(_) => None,
        }
    }
}

impl Bits for u128 {
    const NONE: Self = 0;

    fn of(address: Address) -> Self {
        address.bits()
    }

    fn net(range: IpNet) -> Option<(Self, Self)> {
        match range {
            IpNet::V4(_) => None,
            IpNet::V6(range) => Some((range.network().to_bits(), range.netmask().to_bits())),
        }
    }
}

/// A packet as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its ends, as they are at this point of its way.
    pub tuple: Tuple,
    /// Where it came in.
    pub from: Interface,
    /// Where it will leave, once it is routed.
    pub to: Interface,
    /// How it stands to its connection: bits of [`super::ruleset::States`].
    pub states: u8,
    /// It goes the other way than its connection's first packet.
    pub reply: bool,
    /// What earlier rules wrote on it.
    pub mark: u32,
}

/// A place in a packet's way where rules are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// It has come in.
    Prerouting,
    /// It is for the node itself.
    Input,
    /// It passes through.
    Forward,
    /// The node itself sends it.
    Output,
    /// It is about to leave.
    Postrouting,
}

impl Hook {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Prerouting, "PREROUTING"),
        (Self::Input, "INPUT"),
        (Self::Forward, "FORWARD"),
        (Self::Output, "OUTPUT"),
        (Self::Postrouting, "POSTROUTING"),
    ];
}

/// What a walk came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// Through, by a rule or by the end of the chain.
    Accept,
    /// Refused by the rule of this number; see [`Program::place`].
    Drop(u32),
    /// The same, with an answer.
    Reject(u32, RejectWith),
    /// Through, with a new target, of this number.
    Dnat(u32),
    /// Through, with a new source, of this number.
    Snat(u32),
}

/// A new end for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTarget {
    /// Where it goes from now on.
    pub address: Address,
    /// The port there, if it is not the one dialled.
    pub port: Option<u16>,
}

/// A new source for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSource {
    /// Who it comes from from now on: the node, if nobody is said.
    pub address: Option<Address>,
    /// With which port.
    pub ports: SourcePorts,
}

/// A rule, as one would look for it in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the table.
    pub table: TableName,
    /// Of the chain.
    pub chain: Arc<str>,
    /// Counted from 1, as `iptables -L --line-numbers` does; 0 is a built-in chain's policy.
    pub line: u32,
    /// What the rule's comment says.
    pub comment: Arc<str>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.table, self.chain)?;
        match self.line {
            0 => f.write_str("policy")?,
            line => write!(f, "rule {line}")?,
        }
        if self.comment.is_empty() { Ok(()) } else { write!(f, " ({})", self.comment) }
    }
}

/// What a line asks the contrary of.
mod flag {
    pub(super) const NOT_SOURCE: u8 = 1;
    pub(super) const NOT_TARGET: u8 = 2;
    pub(super) const NOT_FROM: u8 = 4;
    pub(super) const NOT_TO: u8 = 8;
    pub(super) const NOT_PROTOCOL: u8 = 16;
    /// It asks for an interface at all.
    pub(super) const INTERFACES: u8 = 32;
}

/// A rule, or the end of a chain.
#[derive(Clone, Copy, Debug)]
struct Line<A> {
    target: (A, A),
    source: (A, A),
    from: Interface,
    to: Interface,
    ports: (u16, u16),
    /// 0: any.
    protocol: u8,
    flags: u8,
    conditions: u8,
    then: Does,
    /// The first of its conditions.
    first: u32,
}

/// What a line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Nothing,
    Accept,
    Drop,
    Reject(RejectWith),
    Return,
    Jump(u32),
    Goto(u32),
    Log(u32),
    Mark(u32),
    Dnat(u32),
    Snat(u32),
}

/// One of the conditions that a line has no room for.
#[derive(Clone, Copy, Debug)]
enum Condition {
    SourcePort(bool, (u16, u16)),
    TargetPort(bool, (u16, u16)),
    Multiport(End, bool, (u32, u32)),
    State(bool, u8),
    Reply(bool),
    Mark(bool, (u32, u32)),
    Random(bool, u32),
    /// The number of packets of which one is taken, and the number of its counter.
    Nth(bool, (u32, u32)),
    Local(End, bool),
    /// The list's number; whether sources are noted in it; how many seconds count.
    Recent {
        not: bool,
        list: u32,
        set: bool,
        seconds: u32,
        reap: bool,
    },
}

/// What rules remember between packets.
#[derive(Clone, Debug, Default)]
struct Memory {
    /// Packets that `nth` rules have seen.
    counters: Vec<u32>,
    lists: Vec<List>,
}

/// Sources and when they were last noted, in seconds; the oldest makes room for another.
#[derive(Clone, Debug)]
struct List {
    name: String,
    noted: Vec<(Address, u64)>,
}

/// Sources that a list of `-m recent` holds (the module's `ip_list_tot`).
const LIST: usize = 100;

/// The rules of one family, ready to be walked.
#[derive(Clone, Debug)]
pub struct Program<A> {
    lines: Vec<Line<A>>,
    conditions: Vec<Condition>,
    ports: Vec<(u16, u16)>,
    marks: Vec<(u32, u32)>,
    prefixes: Vec<String>,
    targets: Vec<NewTarget>,
    sources: Vec<NewSource>,
    /// Of each pattern of names: a bit for every interface, by number.
    patterns: Vec<Vec<bool>>,
    /// The first line of each built-in chain, and whether it drops what it does not decide.
    hooks: [[Option<(u32, bool)>; 5]; 4],
    /// Where chains begin, in order, and of which table.
    chains: Vec<(u32, TableName, Arc<str>)>,
    comments: Vec<Arc<str>>,
    memory: Memory,
}

/// What a walk must know of the world beside the packet.
#[derive(Debug)]
pub struct World<'a> {
    /// The node's own addresses.
    pub own: &'a [Address],
    /// Seconds, from any start.
    pub now_s: u64,
    /// For choices.
    pub dice: &'a mut Dice,
}

impl World<'_> {
    fn is_local(&self, address: Address) -> bool {
        self.own.contains(&address) || IpAddr::from(address).is_loopback()
    }
}

impl<A: Bits> Program<A> {
    /// The target of this number.
    pub fn target(&self, number: u32) -> &NewTarget {
        &self.targets[number as usize]
    }

    /// The source of this number.
    pub fn source(&self, number: u32) -> &NewSource {
        &self.sources[number as usize]
    }

    /// The rule of this number.
    pub fn place(&self, line: u32) -> Place {
        let at = self.chains.partition_point(|(start, ..)| *start <= line).saturating_sub(1);
        let (start, table, chain) = &self.chains[at];
        let ends = self.lines[line as usize].then == Does::Return;
        let number = if ends { 0 } else { line - start + 1 };
        Place {
            table: *table,
            chain: chain.clone(),
            line: number,
            comment: self.comments[line as usize].clone(),
        }
    }

    /// Walks a table's built-in chain; what has none there is let through. Rules may change the packet's mark.
    pub fn walk(&mut self, table: TableName, hook: Hook, seen: &mut Seen, world: &mut World<'_>) -> Walked {
        let Some((start, drops)) = self.hooks[table as usize][hook as usize] else { return Walked::Accept };
        let ends = (A::of(seen.tuple.source), A::of(seen.tuple.target));
        let mut stack = [0_u32; DEEPEST];
        let (mut depth, mut at) = (0, start);
        loop {
            let number = at;
            let line = &self.lines[number as usize];
            at += 1;
            if !line.applies(ends, seen, &self.patterns)
                || line.conditions > 0 && !self.holds(number, seen, world)
            {
                continue;
            }
            match self.lines[number as usize].then {
                Does::Nothing => {}
                Does::Accept => return Walked::Accept,
                Does::Drop => return Walked::Drop(number),
                Does::Reject(with) => return Walked::Reject(number, with),
                Does::Return if depth == 0 => {
                    return if drops { Walked::Drop(number) } else { Walked::Accept };
                }
                Does::Return => {
                    depth -= 1;
                    at = stack[depth];
                }
                Does::Jump(next) => {
                    stack[depth] = at;
                    depth += 1;
                    at = next;
                }
                Does::Goto(next) => at = next,
                Does::Log(prefix) => {
                    let prefix = &self.prefixes[prefix as usize];
                    tracing::info!("{prefix}{}: {}", self.place(number), seen.tuple);
                }
                Does::Mark(mark) => {
                    let (value, mask) = self.marks[mark as usize];
                    seen.mark = (seen.mark & !mask) ^ value;
                }
                Does::Dnat(target) => return Walked::Dnat(target),
                Does::Snat(source) => return Walked::Snat(source),
            }
        }
    }

    /// Whether all of the line's conditions hold, in order; the first that does not ends it.
    fn holds(&mut self, number: u32, seen: &Seen, world: &mut World<'_>) -> bool {
        let Line { first, conditions, .. } = self.lines[number as usize];
        let own = first as usize..first as usize + usize::from(conditions);
        self.conditions[own]
            .iter()
            .all(|condition| condition.holds(seen, &self.ports, &mut self.memory, world))
    }
}

impl<A: Bits> Line<A> {
    fn any() -> Self {
        let all = (A::NONE, A::NONE);
        Self {
            target: all,
            source: all,
            from: Interface::ANY,
            to: Interface::ANY,
            ports: (0, u16::MAX),
            protocol: 0,
            flags: 0,
            conditions: 0,
            then: Does::Nothing,
            first: 0,
        }
    }

    #[inline]
    fn applies(&self, (source, target): (A, A), seen: &Seen, patterns: &[Vec<bool>]) -> bool {
        let not = |bit: u8| self.flags & bit != 0;
        (target & self.target.1 == self.target.0) != not(flag::NOT_TARGET)
            && (source & self.source.1 == self.source.0) != not(flag::NOT_SOURCE)
            && (self.protocol == 0 || (self.protocol == seen.tuple.protocol) != not(flag::NOT_PROTOCOL))
            && self.ports.0 <= seen.tuple.target_port
            && seen.tuple.target_port <= self.ports.1
            && (!not(flag::INTERFACES)
                || is_named(self.from, seen.from, patterns) != not(flag::NOT_FROM)
                    && is_named(self.to, seen.to, patterns) != not(flag::NOT_TO))
    }
}

fn is_named(asked: Interface, own: Interface, patterns: &[Vec<bool>]) -> bool {
    if asked.0 < PATTERN || asked == Interface::ANY {
        return asked == own && own != Interface::NONE || asked == Interface::ANY;
    }
    let pattern = &patterns[usize::from(asked.0 - PATTERN)];
    pattern.get(usize::from(own.0)).copied().unwrap_or(false)
}

impl Condition {
    fn holds(&self, seen: &Seen, ports: &[(u16, u16)], memory: &mut Memory, world: &mut World<'_>) -> bool {
        let Tuple { source_port, target_port, source, target, .. } = seen.tuple;
        let within = |port: u16, (first, last): (u16, u16)| first <= port && port <= last;
        match *self {
            Self::SourcePort(not, range) => within(source_port, range) != not,
            Self::TargetPort(not, range) => within(target_port, range) != not,
            Self::Multiport(end, not, (first, last)) => {
                let any =
                    |port| ports[first as usize..last as usize].iter().any(|range| within(port, *range));
                let found = match end {
                    End::Source => any(source_port),
                    End::Target => any(target_port),
                    End::Either => any(source_port) || any(target_port),
                };
                found != not
            }
            Self::State(not, states) => (seen.states & states != 0) != not,
            // What is of no connection goes no way of one.
            Self::Reply(reply) => seen.states & NO_CONNECTION == 0 && seen.reply == reply,
            Self::Mark(not, (value, mask)) => (seen.mark & mask == value) != not,
            Self::Random(not, chance) => (((world.dice.roll() >> 33) as u32) < chance) != not,
            Self::Nth(not, (every, counter)) => {
                let left = &mut memory.counters[counter as usize];
                let taken = *left == 0;
                *left = if taken { every - 1 } else { *left - 1 };
                taken != not
            }
            Self::Local(end, not) => world.is_local(if end == End::Source { source } else { target }) != not,
            Self::Recent { not, list, set, seconds, reap } => {
                let list = &mut memory.lists[list as usize];
                let found = if set {
                    list.note(source, world.now_s)
                } else {
                    list.has(source, seconds, reap, world.now_s)
                };
                found != not
            }
        }
    }
}

impl List {
    /// Notes a source; always true, as the rule applies then.
    fn note(&mut self, source: Address, now_s: u64) -> bool {
        if let Some((_, at)) = self.noted.iter_mut().find(|(known, _)| *known == source) {
            *at = now_s;
            return true;
        }
        if self.noted.len() >= LIST
            && let Some(oldest) = (0..self.noted.len()).min_by_key(|place| self.noted[*place].1)
        {
            self.noted.swap_remove(oldest);
        }
        self.noted.push((source, now_s));
        true
    }

    /// Whether a source was noted, in the last `seconds` if they are not 0; forgets the oldest that was not, if asked
    /// to.
    fn has(&mut self, source: Address, seconds: u32, reap: bool, now_s: u64) -> bool {
        let recent = |at: u64| seconds == 0 || at + u64::from(seconds) >= now_s;
        let found = self.noted.iter().any(|(known, at)| *known == source && recent(*at));
        if reap {
            self.noted.retain(|(_, at)| recent(*at));
        }
        found
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
}
