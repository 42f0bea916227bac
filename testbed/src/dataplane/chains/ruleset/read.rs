//! Rules as `iptables-save` wrote them, or as somebody wrote them for `iptables-restore`.
//!
//! Whatever is not understood is an error: a condition left out would let pass, or refuse, what its author did not
//! mean. Counters are read over, as are lines that begin with `#`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{
    End, Error, Match, PROTOCOLS, Ports, REJECTS, Recent, RejectWith, Rule, Ruleset, Sign, SourcePorts,
    States, TableName, Then,
};
use crate::dataplane::chains::Family;

/// What is wrong with a line.
type What = String;

impl Ruleset {
    /// Reads what `iptables-save` wrote (`ip6tables-save` for IPv6); `file` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Line`].
    pub fn read(file: &str, text: &str, family: Family) -> Result<Self, Error> {
        let mut reading = Reading { rules: Self::new(family), table: None, jumps: Vec::new() };
        let mut last = 0;
        for (at, line) in text.lines().enumerate() {
            last = at + 1;
            let failed = |(line, what)| Error::Line { file: file.to_owned(), line, what };
            reading.line(line, last).map_err(failed)?;
        }
        match reading.table {
            None => Ok(reading.rules),
            Some(table) => {
                let what = format!("table {table} has no end; end it with COMMIT");
                Err(Error::Line { file: file.to_owned(), line: last, what })
            }
        }
    }
}

/// How far the reading is.
struct Reading {
    rules: Ruleset,
    table: Option<TableName>,
    /// Where rules of this table lead, and in which lines.
    jumps: Vec<(usize, String)>,
}

impl Reading {
    /// # Errors
    /// A line and what is wrong with it.
    fn line(&mut self, line: &str, number: usize) -> Result<(), (usize, What)> {
        let here = |what| (number, what);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if let Some(name) = line.strip_prefix('*') {
            return self.begin(name.trim()).map_err(here);
        }
        let Some(table) = self.table else {
            return Err(here(format!("`{line}` is in no table; begin one, such as *filter")));
        };
        if line == "COMMIT" {
            return self.end(table);
        }
        if let Some(chain) = line.strip_prefix(':') {
            return self.declare(table, chain).map_err(here);
        }
        let line =
            if line.starts_with('[') { line.split_once(']').map_or(line, |(_, rest)| rest) } else { line };
        let words = words(line).map_err(here)?;
        let ["-A" | "--append", chain, options @ ..] =
            &words.iter().map(String::as_str).collect::<Vec<_>>()[..]
        else {
            return Err(here(format!("expected `-A CHAIN …`, and this is `{line}`")));
        };
        let rule = rule(options, self.rules.family).map_err(here)?;
        super::belongs(rule.then.as_ref(), table).map_err(here)?;
        if let Some(Then::Jump(to) | Then::Goto(to)) = &rule.then {
            self.jumps.push((number, to.clone()));
        }
        match self.rules.table(table).chains.get_mut(*chain) {
            Some(chain) => chain.rules.push(rule),
            None => {
                return Err(here(format!(
                    "table {table} has no chain {chain}; declare it with `:{chain} - [0:0]`"
                )));
            }
        }
        Ok(())
    }

    fn begin(&mut self, name: &str) -> Result<(), What> {
        if let Some(open) = self.table {
            return Err(format!("table {open} has no end; end it with COMMIT"));
        }
        let table = TableName::ALL.into_iter().find(|table| table.to_string() == name);
        let table =
            table.ok_or_else(|| format!("unknown table `{name}`: expected raw, mangle, nat or filter"))?;
        self.rules.table(table);
        self.table = Some(table);
        Ok(())
    }

    /// Every jump of the table leads somewhere.
    fn end(&mut self, table: TableName) -> Result<(), (usize, What)> {
        self.table = None;
        let chains = &self.rules.table(table).chains;
        match self.jumps.drain(..).find(|(_, to)| !chains.contains_key(to)) {
            None => Ok(()),
            Some((line, to)) => {
                Err((line, format!("unknown target `{to}`, and table {table} has no such chain")))
            }
        }
    }

    /// `CHAIN POLICY [packets:bytes]`
    fn declare(&mut self, table: TableName, line: &str) -> Result<(), What> {
        let mut words = line.split_whitespace();
        let (Some(name), Some(policy)) = (words.next(), words.next()) else {
            return Err(format!("expected `:CHAIN POLICY [0:0]`, and this is `:{line}`"));
        };
        let drops = match (policy, table.hooks().contains(&name)) {
            ("-", _) | ("ACCEPT", true) => false,
            ("DROP", true) => true,
            (_, true) => return Err(format!("unknown policy `{policy}`: expected ACCEPT or DROP")),
            (_, false) => {
                return Err(format!("chain {name} is not built in and has no policy; write `:{name} -`"));
            }
        };
        let table = self.rules.table(table);
        table.declare(name);
        if let Some(chain) = table.chains.get_mut(name) {
            chain.drops = drops;
        }
        Ok(())
    }
}

/// Words, of which those in double quotes may hold spaces; in them `\` takes the next letter as it is.
fn words(line: &str) -> Result<Vec<String>, What> {
    let mut words = Vec::new();
    let mut letters = line.chars().peekable();
    while let Some(first) = letters.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut word = String::new();
        if first == '"' {
            loop {
                match letters.next() {
                    Some('"') => break,
                    Some('\\') => word.extend(letters.next()),
                    Some(letter) => word.push(letter),
                    None => return Err("a quotation has no end; end it with \"".to_owned()),
                }
            }
        } else {
            word.push(first);
            while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace()) {
                word.push(letter);
            }
        }
        words.push(word);
    }
    Ok(words)
}

/// What follows `-A CHAIN`.
fn rule(options: &[&str], family: Family) -> Result<Rule, What> {
    let mut draft =
        Draft { family, rule: Rule::default(), modules: Vec::new(), open: Open::None, target: None };
    let mut words = options.iter().copied();
    let mut not = false;
    while let Some(word) = words.next() {
        if word == "!" {
            not = true;
            continue;
        }
        let is_aim = matches!(word, "-m" | "--match" | "-j" | "--jump" | "-g" | "--goto" | "--comment");
        if not && (is_aim || draft.target.is_some() && !super::is_match(word)) {
            return Err(format!("`!` cannot stand before {word}"));
        }
        let mut value = || words.next().ok_or_else(|| format!("{word} has no value"));
        match word {
            "-s" | "--source" | "--src" => {
                once(&mut draft.rule.source, word, sign(not, range(value()?, family)?))?
            }
            "-d" | "--destination" | "--dst" => {
                once(&mut draft.rule.target, word, sign(not, range(value()?, family)?))?;
            }
            "-i" | "--in-interface" => once(&mut draft.rule.from, word, sign(not, value()?.to_owned()))?,
            "-o" | "--out-interface" => once(&mut draft.rule.to, word, sign(not, value()?.to_owned()))?,
            "-p" | "--protocol" => once(&mut draft.rule.protocol, word, sign(not, protocol(value()?)?))?,
            "-m" | "--match" => draft.module(value()?)?,
            "-j" | "--jump" => draft.aim(value()?, false)?,
            "-g" | "--goto" => draft.aim(value()?, true)?,
            _ if draft.target.is_some() => draft.target_option(word, &mut words)?,
            _ => draft.match_option(word, not, &mut words)?,
        }
        not = false;
    }
    if not {
        return Err("`!` stands before nothing".to_owned());
    }
    draft.finish()
}

fn sign<T>(not: bool, value: T) -> Sign<T> {
    Sign { not, value }
}

fn once<T>(field: &mut Option<T>, option: &str, value: T) -> Result<(), What> {
    if field.replace(value).is_some() { Err(format!("{option} is there twice")) } else { Ok(()) }
}

/// A rule that is being read.
struct Draft {
    family: Family,
    rule: Rule,
    /// What `-m` named so far.
    modules: Vec<String>,
    open: Open,
    target: Option<Target>,
}

/// A match of several options.
enum Open {
    None,
    Statistic { not: bool, mode: Option<String>, probability: Option<f64>, every: Option<u32>, packet: u32 },
    Recent(bool, Recent),
}

/// A target and its options.
struct Target {
    name: String,
    goto: bool,
    to: Option<String>,
    ports: Option<Ports>,
    random: bool,
    with: Option<RejectWith>,
    mark: Option<(u32, u32)>,
    prefix: String,
}

/// Matches that are known, and the options that each of them takes.
const MODULES: [(&str, &[&str]); 10] = [
    ("tcp", &["--sport", "--source-port", "--dport", "--destination-port"]),
    ("udp", &["--sport", "--source-port", "--dport", "--destination-port"]),
    ("sctp", &["--sport", "--source-port", "--dport", "--destination-port"]),
    ("multiport", &["--sports", "--source-ports", "--dports", "--destination-ports", "--ports"]),
    ("conntrack", &["--ctstate", "--ctdir"]),
    ("mark", &["--mark"]),
    ("statistic", &["--mode", "--probability", "--every", "--packet"]),
    ("addrtype", &["--src-type", "--dst-type"]),
    ("recent", &["--set", "--rcheck", "--seconds", "--reap", "--name", "--mask", "--rsource"]),
    ("comment", &["--comment"]),
];

impl Draft {
    fn module(&mut self, name: &str) -> Result<(), What> {
        if !MODULES.iter().any(|(known, _)| *known == name) {
            let known: Vec<&str> = MODULES.iter().map(|(known, _)| *known).collect();
            return Err(format!("unknown match `{name}`: expected one of {}", known.join(", ")));
        }
        self.close()?;
        self.modules.push(name.to_owned());
        match name {
            "statistic" => {
                self.open =
                    Open::Statistic { not: false, mode: None, probability: None, every: None, packet: 0 };
            }
            "recent" => {
                let recent = Recent { name: "DEFAULT".to_owned(), set: false, seconds: None, reap: false };
                self.open = Open::Recent(false, recent);
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends the match that is open.
    fn close(&mut self) -> Result<(), What> {
        let condition = match std::mem::replace(&mut self.open, Open::None) {
            Open::None => return Ok(()),
            Open::Recent(not, recent) => Match::Recent(sign(not, recent)),
            Open::Statistic { not, mode, probability, every, packet } => {
                match (mode.as_deref(), probability, every) {
                    (Some("random"), Some(part), None) if (0.0..=1.0).contains(&part) => {
                        Match::Random(sign(not, (part * f64::from(1_u32 << 31)).round() as u32))
                    }
                    (Some("nth"), None, Some(every)) if packet < every => {
                        Match::Nth(sign(not, (every, packet)))
                    }
                    _ => {
                        return Err("-m statistic takes --mode random with --probability 0 to 1, or --mode nth with --every and a --packet below it".to_owned());
                    }
                }
            }
        };
        self.rule.matches.push(condition);
        Ok(())
    }

    fn match_option<'a>(
        &mut self,
        option: &str,
        not: bool,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), What> {
        let of: Vec<&str> =
            MODULES.iter().filter(|(_, options)| options.contains(&option)).map(|(name, _)| *name).collect();
        // A protocol brings its ports along.
        let named = |name: &&str| {
            let number = PROTOCOLS.iter().find(|(_, known)| known == name).map(|(number, _)| *number);
            self.modules.iter().any(|own| own == *name)
                || number.is_some() && number == self.rule.protocol.as_ref().map(|sign| sign.value)
        };
        if of.is_empty() {
            return Err(format!("unknown option `{option}`"));
        }
        if !of.iter().any(named) {
            return Err(format!("`{option}` belongs to -m {}, which is not there", of.join(" or -m ")));
        }
        if of[0] == "recent" {
            return self.recent_option(option, not, words);
        }
        let value = words.next().ok_or_else(|| format!("{option} has no value"))?;
        if of[0] == "statistic" {
            return self.statistic_option(option, not, value);
        }
        let condition = match option {
            "--comment" => {
                value.clone_into(&mut self.rule.comment);
                return Ok(());
            }
            "--sport" | "--source-port" => Match::SourcePort(sign(not, ports(value, ':')?)),
            "--dport" | "--destination-port" => Match::TargetPort(sign(not, ports(value, ':')?)),
            "--sports" | "--source-ports" => Match::Multiport(End::Source, sign(not, several(value)?)),
            "--dports" | "--destination-ports" => Match::Multiport(End::Target, sign(not, several(value)?)),
            "--ports" => Match::Multiport(End::Either, sign(not, several(value)?)),
            "--ctstate" => Match::State(sign(not, states(value)?)),
            "--ctdir" => Match::Reply(reply(value)? != not),
            "--mark" => Match::Mark(sign(not, bits(value)?)),
            "--src-type" if value == "LOCAL" => Match::Local(End::Source, not),
            "--dst-type" if value == "LOCAL" => Match::Local(End::Target, not),
            _ => return Err(format!("unknown value `{value}` of {option}: expected LOCAL")),
        };
        self.rule.matches.push(condition);
        Ok(())
    }

    fn statistic_option(&mut self, option: &str, negated: bool, value: &str) -> Result<(), What> {
        let unknown = || format!("cannot read `{value}` of {option}");
        if let Open::Statistic { not, mode, probability, every, packet } = &mut self.open {
            *not |= negated;
            match option {
                "--mode" => *mode = Some(value.to_owned()),
                "--probability" => *probability = Some(value.parse().map_err(|_| unknown())?),
                "--every" => *every = Some(value.parse().map_err(|_| unknown())?),
                _ => *packet = value.parse().map_err(|_| unknown())?,
            }
        }
        Ok(())
    }

    fn recent_option<'a>(
        &mut self,
        option: &str,
        negated: bool,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), What> {
        let mut value = || words.next().ok_or_else(|| format!("{option} has no value"));
        let Open::Recent(not, recent) = &mut self.open else { return Ok(()) };
        *not |= negated;
        match option {
            "--set" => recent.set = true,
            "--rcheck" => recent.set = false,
            "--reap" => recent.reap = true,
            "--seconds" => {
                let text = value()?;
                recent.seconds =
                    Some(text.parse().map_err(|_| format!("cannot read `{text}` of --seconds"))?);
            }
            "--name" => value()?.clone_into(&mut recent.name),
            "--mask" => {
                let text = value()?;
                let whole: [IpAddr; 2] = [IpAddr::from([255; 4]), IpAddr::from([255; 16])];
                if !text.parse().is_ok_and(|mask: IpAddr| whole.contains(&mask)) {
                    return Err(format!("unknown mask `{text}` of -m recent: expected that of one address"));
                }
            }
            // It is the source that is noted.
            _ => {}
        }
        Ok(())
    }

    fn aim(&mut self, name: &str, goto: bool) -> Result<(), What> {
        let target = Target {
            name: name.to_owned(),
            goto,
            to: None,
            ports: None,
            random: false,
            with: None,
            mark: None,
            prefix: String::new(),
        };
        once(&mut self.target, "-j", target)
    }

    fn target_option<'a>(
        &mut self,
        option: &str,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), What> {
        let Some(target) = &mut self.target else { return Err(format!("unknown option `{option}`")) };
        let mut value = || words.next().ok_or_else(|| format!("{option} has no value"));
        match (target.name.as_str(), option) {
            ("DNAT", "--to-destination") | ("SNAT", "--to-source") => target.to = Some(value()?.to_owned()),
            ("SNAT" | "MASQUERADE", "--random-fully") => target.random = true,
            ("MASQUERADE", "--to-ports") => target.ports = Some(ports(value()?, '-')?),
            ("REJECT", "--reject-with") => target.with = Some(reject_with(value()?, self.family)?),
            ("LOG", "--log-prefix") => value()?.clone_into(&mut target.prefix),
            ("MARK", "--set-xmark") => target.mark = Some(bits(value()?)?),
            ("MARK", "--set-mark") => {
                let (value, mask) = bits(value()?)?;
                target.mark = Some((value, value | mask));
            }
            ("MARK", "--or-mark") => {
                let (value, _) = bits(value()?)?;
                target.mark = Some((value, value));
            }
            ("MARK", "--and-mark") => {
                let (value, _) = bits(value()?)?;
                target.mark = Some((0, !value));
            }
            ("MARK", "--xor-mark") => target.mark = Some((bits(value()?)?.0, 0)),
            (name, _) => return Err(format!("unknown option `{option}` of target {name}")),
        }
        Ok(())
    }

    /// Ports are there where the protocol that has them is asked for.
    fn check_ports(&self) -> Result<(), What> {
        let asked = self.rule.protocol.as_ref().filter(|sign| !sign.not).map(|sign| sign.value);
        for module in &self.modules {
            let own = PROTOCOLS.iter().find(|(_, name)| name == module).map(|(number, _)| *number);
            if own.is_some() && own != asked {
                return Err(format!("-m {module} needs -p {module}"));
            }
        }
        let is_port =
            |one: &Match| matches!(one, Match::SourcePort(_) | Match::TargetPort(_) | Match::Multiport(..));
        if self.rule.matches.iter().any(is_port)
            && !asked.is_some_and(|number| [6, 17, 132].contains(&number))
        {
            return Err("ports need -p tcp, -p udp or -p sctp".to_owned());
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Rule, What> {
        self.close()?;
        self.check_ports()?;
        if let Some(target) = self.target {
            self.rule.then = Some(target.finish(self.family)?);
        }
        Ok(self.rule)
    }
}

impl Target {
    fn finish(self, family: Family) -> Result<Then, What> {
        let Self { name, goto, to, ports, random, with, mark, prefix } = self;
        let lacks = |option: &str| format!("target {name} lacks {option}");
        let address = |to: Option<String>, option| {
            let text = to.ok_or_else(|| lacks(option))?;
            endpoint(&text, family).map_err(|()| format!("cannot read `{text}` of {option}"))
        };
        Ok(match name.as_str() {
            _ if goto => Then::Goto(name),
            "ACCEPT" => Then::Accept,
            "DROP" => Then::Drop,
            "RETURN" => Then::Return,
            "REJECT" => Then::Reject(with.unwrap_or(RejectWith::PortUnreachable)),
            "LOG" => Then::Log(prefix),
            "MARK" => {
                let (value, mask) = mark.ok_or_else(|| lacks("--set-xmark"))?;
                Then::Mark(value, mask)
            }
            "DNAT" => match address(to, "--to-destination")? {
                (address, None) => Then::Dnat(address, None),
                (address, Some(ports)) if ports.start() == ports.end() => {
                    Then::Dnat(address, Some(*ports.start()))
                }
                _ => return Err("DNAT to a range of ports is not known here: name one".to_owned()),
            },
            "SNAT" => {
                let (address, among) = address(to, "--to-source")?;
                Then::Snat(address, SourcePorts { among, random })
            }
            "MASQUERADE" => Then::Masquerade(SourcePorts { among: ports, random }),
            _ => Then::Jump(name),
        })
    }
}

/// `address`, `address:port` or `[address]:port`, and a range of ports with `-`.
fn endpoint(text: &str, family: Family) -> Result<(IpAddr, Option<Ports>), ()> {
    let of_family = |address: IpAddr| if Family::of(address) == family { Ok(address) } else { Err(()) };
    if let Ok(address) = text.parse() {
        return Ok((of_family(address)?, None));
    }
    let (host, range) = text.rsplit_once(':').ok_or(())?;
    let range = ports(range, '-').map_err(drop)?;
    let end: SocketAddr = format!("{host}:{}", range.start()).parse().map_err(drop)?;
    Ok((of_family(end.ip())?, Some(range)))
}

fn range(text: &str, family: Family) -> Result<IpNet, What> {
    let masked = || {
        let (address, mask) = text.split_once('/')?;
        IpNet::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok()
    };
    let whole = || text.parse().ok().map(|address: IpAddr| IpNet::from(address));
    let range = text.parse().ok().or_else(whole).or_else(masked);
    let range: IpNet =
        range.ok_or_else(|| format!("cannot read `{text}`: expected an address or a range"))?;
    if Family::of_range(range) != family {
        return Err(format!("{text} is not {family}, and these rules are"));
    }
    Ok(range.trunc())
}

fn protocol(text: &str) -> Result<u8, What> {
    if let Some((number, _)) = PROTOCOLS.iter().find(|(_, name)| *name == text) {
        return Ok(*number);
    }
    let number = if text == "icmpv6" { Some(58) } else { text.parse().ok() };
    number.filter(|number| *number != 0).ok_or_else(|| format!("unknown protocol `{text}`; say its number"))
}

fn ports(text: &str, between: char) -> Result<Ports, What> {
    let (first, last) = text.split_once(between).unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err(format!("cannot read `{text}`: expected ports, such as 80 or 80{between}90")),
    }
}

fn several(text: &str) -> Result<Vec<Ports>, What> {
    text.split(',').map(|one| ports(one, ':')).collect()
}

fn states(text: &str) -> Result<States, What> {
    text.split(',').try_fold(States::default(), |all, word| {
        let known = States::NAMES.iter().find(|(_, name)| *name == word);
        known.map(|(state, _)| all.or(*state)).ok_or_else(|| format!("unknown state `{word}` of --ctstate"))
    })
}

fn reply(text: &str) -> Result<bool, What> {
    match text {
        "ORIGINAL" => Ok(false),
        "REPLY" => Ok(true),
        _ => Err(format!("unknown direction `{text}` of --ctdir: expected ORIGINAL or REPLY")),
    }
}

/// `value` or `value/mask`, in decimal or, with 0x, hexadecimal digits.
fn bits(text: &str) -> Result<(u32, u32), What> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let read = match text.split_once('/') {
        None => number(text).map(|value| (value, u32::MAX)),
        Some((value, mask)) => number(value).zip(number(mask)),
    };
    read.ok_or_else(|| format!("cannot read `{text}`: expected a mark, such as 0x4000/0x4000"))
}

fn reject_with(word: &str, family: Family) -> Result<RejectWith, What> {
    let words = REJECTS
        .iter()
        .filter_map(|(with, v4, v6)| Some((*with, if family == Family::V4 { (*v4)? } else { (*v6)? })));
    let known: Vec<_> = words.collect();
    let found = known.iter().find(|(_, known)| *known == word).map(|(with, _)| *with);
    found.ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|(_, word)| *word).collect();
        format!("unknown answer `{word}` of REJECT: expected one of {}", words.join(", "))
    })
}
