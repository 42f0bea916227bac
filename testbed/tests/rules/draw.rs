//! Rule sets and packets by lot: the same seed draws the same.

use std::net::IpAddr;

use ipnet::IpNet;
use testbed::dataplane::chains::ruleset::{
    End, Match, RejectWith, Rule, SourcePorts, States, TableName, Then, is, not,
};
use testbed::dataplane::chains::walk::Dice;
use testbed::dataplane::chains::{Family, Ruleset};
use testbed::topology::TUNNEL;

use super::association::Saying;
use super::ground::LINKS;
use super::realm::{Realm, V4, V6};
use super::tunnel;

/// The comment of rules that every scene has.
pub(crate) const STAYS: &str = "stays";
const PORTS: [u16; 3] = [53, 80, 8080];

/// Somebody who sends to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// As in the IP header: TCP, UDP, SCTP or ICMP (an echo, whose number is `ports.0`).
    pub(crate) protocol: u8,
    pub(crate) source: IpAddr,
    pub(crate) target: IpAddr,
    pub(crate) ports: (u16, u16),
}

/// What happens next. What cannot, as things stand, does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The flow's first packet, or the same once more.
    Open(usize),
    /// A packet of the flow, after an answer.
    On(usize),
    /// An answer to the last packet of the flow that arrived.
    Answer(usize),
    /// An error about it: from its target, or from a router on the way.
    Error(usize, bool),
    /// Either end has no more to send.
    Finish(usize, bool),
    /// Either end gives up.
    Reset(usize, bool),
    /// A packet that could only follow others, of which there are none: an answer, or a reset.
    Stray(usize, bool),
    /// Either end of an association says something, whatever was said before.
    Say(usize, bool, Saying),
}

/// Classes (differentiated services and ECN) of a packet, and of what it comes wrapped in, if it comes by the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Classes {
    pub(crate) own: u8,
    pub(crate) outer: u8,
}

impl Classes {
    fn drawn(lot: &mut Lot) -> Self {
        let own = lot.one(&[0, 0, 1, 2, 2, 3, 0x28, 0xba]);
        Self { own, outer: lot.one(&[0, 0, 1, 2, 3, 3, 0x28, 0xb9]) }
    }
}

/// Rules, and what is sent through them.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) realm: &'static Realm,
    /// The other node is beyond a tunnel, whose ends have addresses of this one, else beyond the uplink as everybody.
    pub(crate) tunnel: Option<&'static Realm>,
    pub(crate) rules: Ruleset,
    pub(crate) flows: Vec<Flow>,
    pub(crate) steps: Vec<(Step, Classes)>,
}

/// Chance.
pub(crate) struct Lot {
    dice: Dice,
    realm: &'static Realm,
    tunnelled: bool,
}

impl Lot {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.dice.roll() % end
    }

    pub(crate) fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Those who send.
    fn everybody(&self) -> Vec<IpAddr> {
        let Realm { pods, hosts, remote, .. } = self.realm;
        let beyond: &[IpAddr] = if self.tunnelled { remote } else { &[] };
        [&pods[..], hosts, beyond].concat()
    }

    fn anybody(&mut self) -> IpAddr {
        let everybody = self.everybody();
        self.one(&everybody)
    }

    /// The same, or nobody.
    fn any_address(&mut self) -> IpAddr {
        let all = [&self.everybody()[..], &self.realm.nobody].concat();
        self.one(&all)
    }
}

impl Scene {
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let realm = if seed.is_multiple_of(2) { &V4 } else { &V6 };
        let tunnelled = !(seed / 2).is_multiple_of(2);
        let mut lot = Lot { dice: Dice::new(dice.roll()), realm, tunnelled };
        let mut rules = rules(&mut lot);
        let mut flows: Vec<Flow> = (0..6).map(|_| flow(&mut lot)).collect();
        let steps: Vec<Step> = (0..40).map(|_| step(&mut lot, &flows)).collect();
        lot.dice = Dice::new(dice.roll());
        append(&mut rules, &mut lot, &OWN);
        let tunnel = tunnelled.then(|| lot.one(&[&V4, &V6]));
        let mut steps: Vec<_> = steps.into_iter().map(|step| (step, Classes::drawn(&mut lot))).collect();
        // Somebody sends to others as well, from the same port: rules may have given him another.
        let own = [lot.below(6) as usize, flows.len(), flows.len() + 1];
        for _ in &own[1..] {
            let target = target_other_than(&mut lot, flows[own[0]].source);
            flows.push(Flow { target, ..flows[own[0]] });
        }
        steps.extend((0..12).map(|_| {
            let flow = lot.one(&own);
            (step_of(&mut lot, &flows, flow), Classes::drawn(&mut lot))
        }));
        if lot.once_in(4) {
            take_turns(&mut rules, &mut lot);
        }
        Self { realm, tunnel, rules, flows, steps }
    }
}

fn flow(lot: &mut Lot) -> Flow {
    let source = lot.anybody();
    let target = target_other_than(lot, source);
    let icmp = lot.realm.icmp;
    let protocol = lot.one(&[6, 6, 17, 17, 132, 132, icmp]);
    let number = lot.one(&[1500, 2500, 33_000, 40_000]);
    Flow { protocol, source, target, ports: (number, if protocol == icmp { 0 } else { lot.one(&PORTS) }) }
}

fn target_other_than(lot: &mut Lot, source: IpAddr) -> IpAddr {
    loop {
        let target = lot.any_address();
        if target != source {
            return target;
        }
    }
}

fn step(lot: &mut Lot, flows: &[Flow]) -> Step {
    let flow = lot.below(flows.len() as u64) as usize;
    step_of(lot, flows, flow)
}

fn step_of(lot: &mut Lot, flows: &[Flow], flow: usize) -> Step {
    let either = lot.once_in(2);
    if flows[flow].protocol == 132 && lot.once_in(3) {
        return Step::Say(flow, either, Saying::drawn(lot));
    }
    match lot.below(20) {
        0..=6 => Step::Open(flow),
        7..=9 => Step::On(flow),
        10..=14 => Step::Answer(flow),
        15 | 16 => Step::Error(flow, either),
        17 => Step::Finish(flow, either),
        18 => Step::Reset(flow, either),
        _ => Step::Stray(flow, either),
    }
}

/// Where packets that come in meet rules, and what is left of them to go.
const PASSING: [(TableName, &[&str]); 4] = [
    (TableName::Raw, &["PREROUTING"]),
    (TableName::Mangle, &["PREROUTING", "FORWARD", "POSTROUTING"]),
    (TableName::Nat, &["PREROUTING", "POSTROUTING"]),
    (TableName::Filter, &["FORWARD"]),
];
/// Where the node's own packets do, before they are about to leave as others: what it tells senders.
const OWN: [(TableName, &[&str]); 3] =
    [(TableName::Raw, &["OUTPUT"]), (TableName::Mangle, &["OUTPUT"]), (TableName::Filter, &["OUTPUT"])];

/// Rules of every kind, in chains that lead to one another: never back.
fn rules(lot: &mut Lot) -> Ruleset {
    let mut rules = Ruleset::new(lot.realm.family);
    // The node's own stack is not what rules are about: it is not to answer.
    rules.table(TableName::Filter).chains.entry("INPUT".to_owned()).or_default().drops = true;
    pass_others(&mut rules, lot.realm, TableName::Filter, "INPUT");
    append(&mut rules, lot, &PASSING);
    rules
}

fn append(rules: &mut Ruleset, lot: &mut Lot, to: &[(TableName, &[&str])]) {
    for (table, hooks) in to.iter().copied() {
        let most = match table {
            TableName::Raw => 2,
            TableName::Mangle => 3,
            TableName::Nat | TableName::Filter => 6,
        };
        for hook in hooks {
            pass_others(rules, lot.realm, table, hook);
            let chains = [1, 2].map(|number| format!("{hook}-{number}"));
            chains.iter().for_each(|chain| rules.table(table).declare(chain));
            for (place, chain) in [*hook, &chains[0], &chains[1]].into_iter().enumerate() {
                for _ in 0..lot.below(most + 1) {
                    let rule = rule(lot, (table, hook), &chains[place.min(2)..]);
                    rules.table(table).append(chain, rule);
                }
            }
        }
    }
}

/// Before all other rules, refuses segments by turns, with a reset, and translates connections by turns: so that it shows
/// what rules of POSTROUTING count, and what is left of a connection whose end was told that it is over.
fn take_turns(rules: &mut Ruleset, lot: &mut Lot) {
    let sources = Then::Snat(lot.realm.stand_in, SourcePorts { among: None, random: false });
    for (table, hook, then) in [
        (TableName::Filter, "FORWARD", Then::Reject(RejectWith::TcpReset)),
        (TableName::Nat, "POSTROUTING", sources),
    ] {
        let every = 2 + lot.below(2) as u32;
        let turn = Match::Nth(is((every, lot.below(every.into()) as u32)));
        let chain = rules.table(table).chains.entry(hook.to_owned()).or_default();
        let first = chain.rules.iter().position(|rule| rule.comment != STAYS).unwrap_or(chain.rules.len());
        chain.rules.insert(first, Rule::then(then).protocol(6).when(turn));
    }
}

/// Lets pass as it is what is no part of the scene: what tells that all is through; the tunnel's frames, whose outsides
/// rules of the kernel see and those of `chains` never do; and the node's own talk about neighbours and groups, which
/// comes when it likes and would be counted.
fn pass_others(rules: &mut Ruleset, realm: &Realm, table: TableName, hook: &str) {
    let from = |range: &str| Rule::then(Then::Accept).source(range.parse::<IpNet>().expect("a range"));
    let subnet = IpNet::new(realm.node, realm.subnet).expect("a prefix").trunc();
    let mut others = vec![from(&subnet.to_string()).ports(17, tunnel::PORT, tunnel::PORT)];
    if realm.family == Family::V6 {
        others.extend([from("fe80::/10"), from("::/128")]);
    }
    for rule in std::iter::once(Rule::then(Then::Accept).source(realm.marker)).chain(others) {
        rules.table(table).append(hook, rule.comment(STAYS));
    }
}

/// A rule for a hook of a table, which may lead to these chains.
fn rule(lot: &mut Lot, (table, hook): (TableName, &str), chains: &[String]) -> Rule {
    let icmp = lot.realm.icmp;
    let protocol = lot.one(&[6, 17, 132, icmp]);
    let then = target(lot, (table, hook), protocol, chains);
    let mut rule = Rule::then(then.clone());
    let has_ports = protocol != icmp;
    let needs_protocol = matches!(
        &then,
        Then::Dnat(_, Some(_))
            | Then::Snat(_, SourcePorts { among: Some(_), .. })
            | Then::Masquerade(SourcePorts { among: Some(_), .. })
            | Then::Reject(RejectWith::TcpReset)
    );
    if needs_protocol || lot.once_in(3) {
        rule = rule.protocol(protocol);
    }
    let range = |lot: &mut Lot| {
        let (address, prefixes) = (lot.any_address(), lot.realm.prefixes);
        IpNet::new(address, lot.one(&prefixes)).expect("a prefix").trunc()
    };
    let sign = |lot: &mut Lot, range| if lot.once_in(4) { not(range) } else { is(range) };
    if lot.once_in(4) {
        let range = range(lot);
        rule.source = Some(sign(lot, range));
    }
    if lot.once_in(4) {
        let range = range(lot);
        rule.target = Some(sign(lot, range));
    }
    let name = |lot: &mut Lot| {
        let tunnel = lot.tunnelled.then(|| TUNNEL.to_owned());
        lot.one(&[&LINKS[..], &["pp+".to_owned()], tunnel.as_slice()].concat())
    };
    if !["OUTPUT", "POSTROUTING"].contains(&hook) && lot.once_in(5) {
        let name = name(lot);
        rule.from = Some(if lot.once_in(4) { not(name) } else { is(name) });
    }
    if hook != "PREROUTING" && lot.once_in(5) {
        let name = name(lot);
        rule.to = Some(if lot.once_in(4) { not(name) } else { is(name) });
    }
    let mut matches: Vec<Match> =
        (0..lot.below(4).saturating_sub(1)).map(|_| condition(lot, table)).collect();
    if has_ports && rule.protocol.is_some() && lot.once_in(3) {
        let place = lot.below(matches.len() as u64 + 1) as usize;
        matches.insert(place, ports(lot));
    }
    matches.into_iter().fold(rule, Rule::when)
}

fn ports(lot: &mut Lot) -> Match {
    let first = lot.one(&[1, 53, 80, 1024, 8080]);
    let range = first..=lot.one(&[first, first, 8080_u16.max(first), u16::MAX]);
    match lot.below(3) {
        0 => Match::SourcePort(is(range)),
        1 => Match::TargetPort(if lot.once_in(3) { not(range) } else { is(range) }),
        _ => Match::Multiport(lot.one(&[End::Source, End::Target, End::Either]), is(vec![53..=53, range])),
    }
}

fn condition(lot: &mut Lot, table: TableName) -> Match {
    let states = [
        States::NEW,
        States::ESTABLISHED,
        States::RELATED,
        States::INVALID,
        States::NEW.or(States::ESTABLISHED),
        States::DNAT,
        States::SNAT,
    ];
    match lot.below(6) {
        0 | 1 if table != TableName::Raw => {
            let states = lot.one(&states);
            Match::State(if lot.once_in(4) { not(states) } else { is(states) })
        }
        2 if table != TableName::Raw => Match::Reply(lot.once_in(2)),
        3 => Match::Random(is(lot.one(&[0, 1 << 31]))),
        4 => {
            let every = 2 + lot.below(3) as u32;
            Match::Nth(is((every, lot.below(every.into()) as u32)))
        }
        _ => {
            let mark = (lot.one(&[0, 1, 2]), lot.one(&[1, 3]));
            Match::Mark(if lot.once_in(3) { not(mark) } else { is(mark) })
        }
    }
}

fn target(lot: &mut Lot, (table, hook): (TableName, &str), protocol: u8, chains: &[String]) -> Then {
    if !chains.is_empty() && lot.once_in(3) {
        let chain = lot.one(chains);
        return if lot.once_in(3) { Then::Goto(chain) } else { Then::Jump(chain) };
    }
    if lot.once_in(8) {
        return lot.one(&[Then::Return, Then::Accept]);
    }
    let ports = |lot: &mut Lot| {
        let among = (protocol != lot.realm.icmp && lot.once_in(2)).then_some(32_768..=60_999);
        SourcePorts { among, random: false }
    };
    match (table, hook) {
        (TableName::Raw, _) => lot.one(&[Then::Drop, Then::Accept]),
        (TableName::Mangle, _) => Then::Mark(lot.one(&[0, 1, 2, 3]), lot.one(&[1, 2, 3])),
        (TableName::Nat, "PREROUTING") => {
            let port = (protocol != lot.realm.icmp && lot.once_in(2)).then(|| lot.one(&PORTS));
            Then::Dnat(lot.anybody(), port)
        }
        (TableName::Nat, _) => match lot.below(2) {
            0 => Then::Masquerade(ports(lot)),
            _ => Then::Snat(lot.realm.stand_in, ports(lot)),
        },
        // Without REJECT: about a reset of the node's own the kernel tells whoever the reset says it is from, who never
        // sent it, and `chains` tells nobody.
        (TableName::Filter, "OUTPUT") => match lot.below(3) {
            0 => Then::Drop,
            1 => Then::Mark(lot.one(&[0, 1, 2, 3]), lot.one(&[1, 2, 3])),
            _ => Then::Accept,
        },
        (TableName::Filter, _) => match lot.below(6) {
            0 if protocol == 6 => Then::Reject(RejectWith::TcpReset),
            0 | 1 => Then::Reject(lot.one(&[
                RejectWith::PortUnreachable,
                RejectWith::HostUnreachable,
                RejectWith::AdminProhibited,
            ])),
            2 => Then::Drop,
            3 => Then::Mark(lot.one(&[0, 1, 2, 3]), lot.one(&[1, 2, 3])),
            _ => Then::Accept,
        },
    }
}
