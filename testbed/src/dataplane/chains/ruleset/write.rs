//! Rules as `iptables-save` writes them.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};

use super::{
    Chain, End, Match, PROTOCOLS, Ports, REJECTS, Recent, RejectWith, Rule, Ruleset, Sign, SourcePorts,
    States, TableName, Then,
};
use crate::dataplane::chains::Family;

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (name, table) in &self.tables {
            writeln!(f, "*{name}")?;
            for (chain, _) in built_in_first(*name, &table.chains) {
                let policy = policy(*name, chain, &table.chains[chain]);
                writeln!(f, ":{chain} {policy} [0:0]")?;
            }
            for (chain, Chain { rules, .. }) in built_in_first(*name, &table.chains) {
                for rule in rules {
                    write!(f, "-A {chain}")?;
                    rule.write(f, self.family)?;
                    writeln!(f)?;
                }
            }
            writeln!(f, "COMMIT")?;
        }
        Ok(())
    }
}

fn policy(table: TableName, name: &str, chain: &Chain) -> &'static str {
    match (table.hooks().contains(&name), chain.drops) {
        (false, _) => "-",
        (true, false) => "ACCEPT",
        (true, true) => "DROP",
    }
}

/// Chains in the order in which a reader looks for them.
fn built_in_first(
    table: TableName,
    chains: &std::collections::BTreeMap<String, Chain>,
) -> impl Iterator<Item = (&str, &Chain)> {
    let is_hook = move |name: &&String| table.hooks().contains(&name.as_str());
    let hooks = table.hooks().iter().filter_map(|hook| Some((*hook, chains.get(*hook)?)));
    let others = chains.iter().filter(move |(name, _)| !is_hook(name));
    hooks.chain(others.map(|(name, chain)| (name.as_str(), chain)))
}

/// ` !`, where the contrary is asked for.
struct Not(bool);

impl Display for Not {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 { f.write_str(" !") } else { Ok(()) }
    }
}

/// Writes ` ! option value`.
fn option<T: Display>(f: &mut Formatter<'_>, name: &str, asked: Option<&Sign<T>>) -> fmt::Result {
    asked.map_or(Ok(()), |Sign { not, value }| write!(f, "{} {name} {value}", Not(*not)))
}

impl Rule {
    /// All after the chain's name.
    pub(crate) fn write(&self, f: &mut Formatter<'_>, family: Family) -> fmt::Result {
        option(f, "-s", self.source.as_ref())?;
        option(f, "-d", self.target.as_ref())?;
        option(f, "-i", self.from.as_ref())?;
        option(f, "-o", self.to.as_ref())?;
        if let Some(Sign { not, value }) = self.protocol {
            write!(f, "{} -p {}", Not(not), Protocol(value))?;
        }
        if !self.comment.is_empty() {
            write!(f, " -m comment --comment {}", Quoted(&self.comment))?;
        }
        let protocol = Protocol(self.protocol.as_ref().map_or(0, |sign| sign.value));
        for condition in &self.matches {
            condition.write(f, &protocol, family)?;
        }
        self.then.as_ref().map_or(Ok(()), |then| then.write(f, family))
    }
}

/// A protocol by its name, if it has one.
struct Protocol(u8);

impl Display for Protocol {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// As `xtables_save_string` does: in quotes, unless it is one plain word.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !self.0.is_empty() && self.0.chars().all(plain) {
            return f.write_str(self.0);
        }
        f.write_str("\"")?;
        for c in self.0.chars() {
            if matches!(c, '"' | '\\' | '\'') {
                f.write_str("\\")?;
            }
            write!(f, "{c}")?;
        }
        f.write_str("\"")
    }
}

/// Ports, with `:` between the first and the last.
struct Range<'a>(&'a Ports);

impl Display for Range<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last { write!(f, "{first}") } else { write!(f, "{first}:{last}") }
    }
}

impl Display for States {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES.iter().filter(|(state, _)| self.0 & state.0 != 0);
        f.write_str(&names.map(|(_, name)| *name).collect::<Vec<_>>().join(","))
    }
}

impl Match {
    fn write(&self, f: &mut Formatter<'_>, protocol: &Protocol, family: Family) -> fmt::Result {
        match self {
            Self::SourcePort(Sign { not, value }) => {
                write!(f, " -m {protocol}{} --sport {}", Not(*not), Range(value))
            }
            Self::TargetPort(Sign { not, value }) => {
                write!(f, " -m {protocol}{} --dport {}", Not(*not), Range(value))
            }
            Self::Multiport(end, Sign { not, value }) => {
                let option = match end {
                    End::Source => "--sports",
                    End::Target => "--dports",
                    End::Either => "--ports",
                };
                let ports: Vec<String> = value.iter().map(|ports| Range(ports).to_string()).collect();
                write!(f, " -m multiport{} {option} {}", Not(*not), ports.join(","))
            }
            Self::State(Sign { not, value }) => write!(f, " -m conntrack{} --ctstate {value}", Not(*not)),
            Self::Reply(reply) => {
                write!(f, " -m conntrack --ctdir {}", if *reply { "REPLY" } else { "ORIGINAL" })
            }
            Self::Mark(Sign { not, value }) => write!(f, " -m mark{} --mark {}", Not(*not), Bits(*value)),
            Self::Random(Sign { not, value }) => {
                let part = f64::from(*value) / f64::from(1_u32 << 31);
                write!(f, " -m statistic --mode random{} --probability {part:.11}", Not(*not))
            }
            Self::Nth(Sign { not, value: (every, packet) }) => {
                write!(f, " -m statistic --mode nth{} --every {every} --packet {packet}", Not(*not))
            }
            Self::Local(end, not) => {
                let option = if *end == End::Source { "--src-type" } else { "--dst-type" };
                write!(f, " -m addrtype{} {option} LOCAL", Not(*not))
            }
            Self::Recent(Sign { not, value }) => value.write(f, *not, family),
        }
    }
}

impl Recent {
    fn write(&self, f: &mut Formatter<'_>, not: bool, family: Family) -> fmt::Result {
        let Self { name, set, seconds, reap } = self;
        write!(f, " -m recent{} {}", Not(not), if *set { "--set" } else { "--rcheck" })?;
        if let Some(seconds) = seconds {
            write!(f, " --seconds {seconds}")?;
        }
        if *reap {
            f.write_str(" --reap")?;
        }
        let whole = match family {
            Family::V4 => "255.255.255.255",
            Family::V6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        };
        write!(f, " --name {} --mask {whole} --rsource", Quoted(name))
    }
}

/// `value/mask`, without a mask of all bits.
struct Bits((u32, u32));

impl Display for Bits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (value, mask) = self.0;
        if mask == u32::MAX { write!(f, "{value:#x}") } else { write!(f, "{value:#x}/{mask:#x}") }
    }
}

impl Then {
    fn write(&self, f: &mut Formatter<'_>, family: Family) -> fmt::Result {
        match self {
            Self::Accept => f.write_str(" -j ACCEPT"),
            Self::Drop => f.write_str(" -j DROP"),
            Self::Reject(with) => write!(f, " -j REJECT --reject-with {}", with.word(family)),
            Self::Return => f.write_str(" -j RETURN"),
            Self::Jump(chain) => write!(f, " -j {chain}"),
            Self::Goto(chain) => write!(f, " -g {chain}"),
            Self::Log(prefix) if prefix.is_empty() => f.write_str(" -j LOG"),
            Self::Log(prefix) => write!(f, " -j LOG --log-prefix {}", Quoted(prefix)),
            Self::Mark(value, mask) => write!(f, " -j MARK --set-xmark {value:#x}/{mask:#x}"),
            Self::Dnat(address, port) => write!(f, " -j DNAT --to-destination {}", at(*address, *port)),
            Self::Snat(address, ports) => {
                write!(f, " -j SNAT --to-source {}", source(*address, ports))?;
                random(f, ports)
            }
            Self::Masquerade(ports) => {
                f.write_str(" -j MASQUERADE")?;
                if let Some(among) = &ports.among {
                    write!(f, " --to-ports {}", dashed(among))?;
                }
                random(f, ports)
            }
        }
    }
}

impl RejectWith {
    /// What the family calls it; the nearest that it has a word for.
    fn word(self, family: Family) -> &'static str {
        let (_, v4, v6) = REJECTS.iter().find(|(with, ..)| *with == self).expect("all of them are listed");
        let (own, other) =
            if family == Family::V4 { (v4, "icmp-port-unreachable") } else { (v6, "icmp6-port-unreachable") };
        own.unwrap_or(other)
    }
}

fn random(f: &mut Formatter<'_>, ports: &SourcePorts) -> fmt::Result {
    if ports.random { f.write_str(" --random-fully") } else { Ok(()) }
}

/// An address, and a port if there is one.
fn at(address: IpAddr, port: Option<u16>) -> String {
    port.map_or(address.to_string(), |port| SocketAddr::new(address, port).to_string())
}

/// Ports, with `-` between the first and the last.
fn dashed(ports: &Ports) -> String {
    let (first, last) = (ports.start(), ports.end());
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

fn source(address: IpAddr, ports: &SourcePorts) -> String {
    match (&ports.among, address) {
        (None, _) => address.to_string(),
        (Some(among), IpAddr::V4(_)) => format!("{address}:{}", dashed(among)),
        (Some(among), IpAddr::V6(_)) => format!("[{address}]:{}", dashed(among)),
    }
}
