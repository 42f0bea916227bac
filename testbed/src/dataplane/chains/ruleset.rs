//! Rules the iptables way, as they are written: tables of chains of rules.
//!
//! A rule applies if all that it asks for holds. What it then does ends the walk, changes the packet's mark, or leads
//! to another chain. A [`Ruleset`] is a text first of all: it is written as `iptables-save` writes, the kernel's own
//! tools take it as it stands, and what they save is read again as the same rules. [`super::walk`] makes a program
//! of it.
//!
//! What is read is what kube-proxy and NetworkPolicy engines write: `-p`, `-s`, `-d`, `-i`, `-o`, ports, and the
//! matches of [`Match`]; targets are those of [`Then`]. Anything else is an error that names the line.
//!
//! Source: iptables(8), iptables-extensions(8), iptables-save(8); netfilter's `libxt_*.c` for what is written how.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::Family;

mod read;
mod write;

/// The tables of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Which addresses its rules speak of.
    pub family: Family,
    /// Those that have chains.
    pub tables: BTreeMap<TableName, Table>,
}

/// A table, in the order in which a packet meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableName {
    /// Before connections are looked up.
    Raw,
    /// Changes what is no address.
    Mangle,
    /// Translates addresses, of a connection's first packet.
    Nat,
    /// Lets pass or refuses.
    Filter,
}

impl TableName {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Mangle, Self::Nat, Self::Filter];

    /// The built-in chains that it has.
    pub fn hooks(self) -> &'static [&'static str] {
        match self {
            Self::Raw => &["PREROUTING", "OUTPUT"],
            Self::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            Self::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
            Self::Filter => &["INPUT", "FORWARD", "OUTPUT"],
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        })
    }
}

/// Chains that may lead to one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// By their names.
    pub chains: BTreeMap<String, Chain>,
}

/// Rules in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// A built-in chain refuses what none of its rules decides.
    pub drops: bool,
    /// From the first to the last.
    pub rules: Vec<Rule>,
}

/// Something asked for, or its contrary (`!`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sign<T> {
    /// It is the contrary.
    pub not: bool,
    /// What is asked for.
    pub value: T,
}

/// That it is so.
pub fn is<T>(value: T) -> Sign<T> {
    Sign { not: false, value }
}

/// That it is not so.
pub fn not<T>(value: T) -> Sign<T> {
    Sign { not: true, value }
}

/// Whether it asks for something that every packet has.
fn is_match(option: &str) -> bool {
    ["-s", "--source", "--src", "-d", "--destination", "--dst", "-p", "--protocol"].contains(&option)
        || ["-i", "--in-interface", "-o", "--out-interface"].contains(&option)
}

/// Checks that the kernel has the target in the table.
fn belongs(then: Option<&Then>, table: TableName) -> Result<(), String> {
    let (word, belongs, place) = match then {
        Some(Then::Dnat(..)) => ("DNAT", table == TableName::Nat, "only in table nat"),
        Some(Then::Snat(..)) => ("SNAT", table == TableName::Nat, "only in table nat"),
        Some(Then::Masquerade(..)) => ("MASQUERADE", table == TableName::Nat, "only in table nat"),
        Some(Then::Reject(..)) => ("REJECT", table == TableName::Filter, "only in table filter"),
        Some(Then::Drop) => ("DROP", table != TableName::Nat, "not in table nat"),
        _ => return Ok(()),
    };
    if belongs { Ok(()) } else { Err(format!("target {word} may be {place}, and this is {table}")) }
}

/// A rule of a chain. What it does not speak of is as it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `-s`.
    pub source: Option<Sign<IpNet>>,
    /// `-d`.
    pub target: Option<Sign<IpNet>>,
    /// `-i`; with `+` at its end, all whose names begin like this.
    pub from: Option<Sign<String>>,
    /// `-o`, as `-i`.
    pub to: Option<Sign<String>>,
    /// `-p`: as in the IP header.
    pub protocol: Option<Sign<u8>>,
    /// `-m`, in order.
    pub matches: Vec<Match>,
    /// `-m comment`: whom it is for.
    pub comment: String,
    /// `-j` or `-g`: what happens; nothing if none.
    pub then: Option<Then>,
}

/// A range of ports, both ends in it.
pub type Ports = RangeInclusive<u16>;

/// One end of a packet, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Target,
    /// One of the two.
    Either,
}

/// The states of `--ctstate`, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States(pub u8);

impl States {
    /// Of no connection, and it can open none.
    pub const INVALID: Self = Self(1);
    /// Of a connection that nobody has answered yet.
    pub const NEW: Self = Self(2);
    /// An error about a connection.
    pub const RELATED: Self = Self(4);
    /// Of a connection that was answered.
    pub const ESTABLISHED: Self = Self(8);
    /// Not looked up, as it is no connection's business.
    pub const UNTRACKED: Self = Self(16);
    /// Of a connection that has another source than its client knows.
    pub const SNAT: Self = Self(32);
    /// Of a connection that has another target than its client dialled.
    pub const DNAT: Self = Self(64);

    /// In the order in which `iptables-save` names them.
    const NAMES: [(Self, &'static str); 7] = [
        (Self::INVALID, "INVALID"),
        (Self::NEW, "NEW"),
        (Self::RELATED, "RELATED"),
        (Self::ESTABLISHED, "ESTABLISHED"),
        (Self::UNTRACKED, "UNTRACKED"),
        (Self::SNAT, "SNAT"),
        (Self::DNAT, "DNAT"),
    ];

    /// Either of the two.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What `-m recent` does with a list of sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recent {
    /// The list's name.
    pub name: String,
    /// Notes the source; else looks whether it was noted, in so many seconds if any are said.
    pub set: bool,
    /// As above.
    pub seconds: Option<u32>,
    /// Forgets what is older.
    pub reap: bool,
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// `--sport`.
    SourcePort(Sign<Ports>),
    /// `--dport`.
    TargetPort(Sign<Ports>),
    /// `-m multiport`: in any of these.
    Multiport(End, Sign<Vec<Ports>>),
    /// `-m conntrack --ctstate`: any of these.
    State(Sign<States>),
    /// `-m conntrack --ctdir`: the way of the connection's first packet (`false`), or back (`true`).
    Reply(bool),
    /// `-m mark --mark value/mask`.
    Mark(Sign<(u32, u32)>),
    /// `-m statistic --mode random --probability`, in 2^-31.
    Random(Sign<u32>),
    /// `-m statistic --mode nth --every --packet`: one in so many packets, counted per rule; which of them, from 0.
    Nth(Sign<(u32, u32)>),
    /// `-m addrtype`: it is one of the node's own addresses; `--src-type` or `--dst-type`.
    Local(End, bool),
    /// `-m recent`.
    Recent(Sign<Recent>),
}

impl Match {
    /// `-m statistic --mode random` with a chance from 0 to 1.
    pub fn chance(part: f64) -> Self {
        Self::Random(is((part * f64::from(1_u32 << 31)).round() as u32))
    }
}

/// What the sender of a refused packet is told (`--reject-with`). Both families' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectWith {
    /// Nobody listens.
    PortUnreachable,
    /// There is no such host.
    HostUnreachable,
    /// There is no way to it. IPv6 has the one word `icmp6-no-route`.
    NetUnreachable,
    /// It does not speak this protocol. IPv4 only.
    ProtoUnreachable,
    /// It is forbidden.
    AdminProhibited,
    /// This host is forbidden. IPv4 only.
    HostProhibited,
    /// The connection is reset.
    TcpReset,
}

/// What a rule does when it applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// Let it through this table.
    Accept,
    /// Refuse it without an answer.
    Drop,
    /// Refuse it with one.
    Reject(RejectWith),
    /// Back to where this chain was jumped to.
    Return,
    /// Through another chain of the table, and back.
    Jump(String),
    /// Through another chain of the table, and on where this one was jumped to.
    Goto(String),
    /// Say that it came by, under this prefix, and go on.
    Log(String),
    /// `MARK --set-xmark value/mask`: clears the mask's bits, then flips the value's.
    Mark(u32, u32),
    /// A new target for the connection: another port too, if one is said.
    Dnat(IpAddr, Option<u16>),
    /// A new source for the connection.
    Snat(IpAddr, SourcePorts),
    /// A new source for the connection: the node's address.
    Masquerade(SourcePorts),
}

/// Which source port a translated connection has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcePorts {
    /// One of these; else its own, if that can be.
    pub among: Option<Ports>,
    /// Any, even if its own would do.
    pub random: bool,
}

/// Why rules cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line says something that is not known here.
    #[error("cannot read rules: {file}:{line}: {what}")]
    Line {
        /// Where it was read.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What was not understood, and what would be.
        what: String,
    },
    /// A packet could be sent round for ever.
    #[error("cannot use table {table}: chain {chain} leads back to itself; remove the jump")]
    Loop {
        /// Of the table.
        table: TableName,
        /// Of the chain.
        chain: String,
    },
    /// Chains lead into one another too often.
    #[error(
        "cannot use table {table}: from chain {chain} more than {deepest} chains lead into one another; have fewer"
    )]
    Deep {
        /// Of the table.
        table: TableName,
        /// Of the chain.
        chain: String,
        /// So many may.
        deepest: usize,
    },
    /// A rule leads nowhere.
    #[error(
        "cannot use table {table}: chain {chain} leads to {to}, which it does not have; declare it with `:{to} - [0:0]`"
    )]
    NoChain {
        /// Of the table.
        table: TableName,
        /// Of the chain.
        chain: String,
        /// Where it leads.
        to: String,
    },
}

impl Ruleset {
    /// Without a table.
    pub fn new(family: Family) -> Self {
        Self { family, tables: BTreeMap::new() }
    }

    /// The table of that name, with its built-in chains; made, if it is not there.
    pub fn table(&mut self, name: TableName) -> &mut Table {
        self.tables.entry(name).or_insert_with(|| {
            let hooks = name.hooks().iter().map(|hook| ((*hook).to_owned(), Chain::default()));
            Table { chains: hooks.collect() }
        })
    }

    /// Rules in all chains.
    pub fn rules(&self) -> usize {
        self.tables.values().flat_map(|table| table.chains.values()).map(|chain| chain.rules.len()).sum()
    }
}

impl Table {
    /// Makes the chain of that name, if it is not there.
    pub fn declare(&mut self, chain: &str) {
        if !self.chains.contains_key(chain) {
            self.chains.insert(chain.to_owned(), Chain::default());
        }
    }

    /// Adds a rule at the end of the chain, which is made if it is not there.
    pub fn append(&mut self, chain: &str, rule: Rule) {
        if let Some(chain) = self.chains.get_mut(chain) {
            chain.rules.push(rule);
        } else {
            self.chains.insert(chain.to_owned(), Chain { drops: false, rules: vec![rule] });
        }
    }
}

impl Rule {
    /// A rule that applies to everything.
    pub fn then(then: Then) -> Self {
        Self { then: Some(then), ..Self::default() }
    }

    /// A rule that leads everything through a chain.
    pub fn jump(chain: &str) -> Self {
        Self::then(Then::Jump(chain.to_owned()))
    }

    /// The same, from addresses in this range only.
    pub fn source(self, range: impl Into<IpNet>) -> Self {
        Self { source: Some(is(range.into())), ..self }
    }

    /// The same, to addresses in this range only.
    pub fn target(self, range: impl Into<IpNet>) -> Self {
        Self { target: Some(is(range.into())), ..self }
    }

    /// The same, from this interface only.
    pub fn from(self, interface: &str) -> Self {
        Self { from: Some(is(interface.to_owned())), ..self }
    }

    /// The same, to this interface only.
    pub fn to(self, interface: &str) -> Self {
        Self { to: Some(is(interface.to_owned())), ..self }
    }

    /// The same, of this protocol only.
    pub fn protocol(self, number: u8) -> Self {
        Self { protocol: Some(is(number)), ..self }
    }

    /// The same, to these ports of a protocol only.
    pub fn ports(self, protocol: u8, first: u16, last: u16) -> Self {
        self.protocol(protocol).when(Match::TargetPort(is(first..=last)))
    }

    /// The same, if this holds as well.
    pub fn when(mut self, condition: Match) -> Self {
        self.matches.push(condition);
        self
    }

    /// The same, for `whom`, as far as a comment may be long.
    pub fn comment(self, whom: impl Into<String>) -> Self {
        let mut comment: String = whom.into();
        let mut end = comment.len().min(LONGEST_COMMENT);
        while !comment.is_char_boundary(end) {
            end -= 1;
        }
        comment.truncate(end);
        Self { comment, ..self }
    }
}

/// Bytes of a comment (`XT_MAX_COMMENT_LEN`, with its end).
const LONGEST_COMMENT: usize = 255;

/// The protocols that rules call by name.
const PROTOCOLS: [(u8, &str); 8] = [
    (6, "tcp"),
    (17, "udp"),
    (132, "sctp"),
    (1, "icmp"),
    (58, "ipv6-icmp"),
    (50, "esp"),
    (51, "ah"),
    (4, "ipencap"),
];

/// Which family has the answer under which word.
const REJECTS: [(RejectWith, Option<&str>, Option<&str>); 7] = [
    (RejectWith::PortUnreachable, Some("icmp-port-unreachable"), Some("icmp6-port-unreachable")),
    (RejectWith::HostUnreachable, Some("icmp-host-unreachable"), Some("icmp6-addr-unreachable")),
    (RejectWith::NetUnreachable, Some("icmp-net-unreachable"), Some("icmp6-no-route")),
    (RejectWith::ProtoUnreachable, Some("icmp-proto-unreachable"), None),
    (RejectWith::AdminProhibited, Some("icmp-admin-prohibited"), Some("icmp6-adm-prohibited")),
    (RejectWith::HostProhibited, Some("icmp-host-prohibited"), None),
    (RejectWith::TcpReset, Some("tcp-reset"), Some("tcp-reset")),
];

#[cfg(test)]
mod tests;
