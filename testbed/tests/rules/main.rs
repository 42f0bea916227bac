//! Rules by lot, in the kernel and in `chains`, and the same frames through both: what differs, `chains` has wrong.
//!
//! Rules are of every kind that [`Ruleset`](testbed::dataplane::chains::Ruleset) knows, loaded by `iptables-restore`;
//! frames are opening and following packets, answers, errors, ends of connections and strays of TCP, UDP, SCTP and ICMP,
//! in turns over IPv4 and IPv6. Compared is where each leaves, and its bytes: see [`packet::difference`]. What differs is shrunk.
//!
//! Every other pair of scenes has a second node beyond a tunnel (VXLAN, over either family): `chains` wraps and unwraps by
//! itself, the kernel by a device. Then what is around the frame is compared as well: see [`tunnel::Ports`]. Packets are
//! of every class, and what is around them of others: marks of congestion go over from one to the other.
//!
//! What the node itself sends, to tell senders what became of their packets, meets rules of OUTPUT.
//!
//! The kernel needs no sockets of SCTP for this, but its connections (`CONFIG_NF_CT_PROTO_SCTP`) and the match of its
//! ports (`CONFIG_NETFILTER_XT_MATCH_SCTP`). That match's `--chunk-types` is not drawn: `Ruleset` does not know it.
//!
//! `PODPATH_RULES_SEED` and `PODPATH_RULES` ask for others, and for more.

mod association;
#[path = "../clusters/mod.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod clusters;
mod draw;
mod ground;
mod packet;
mod realm;
mod tunnel;

use std::collections::BTreeMap;
use std::time::Duration;

use association::{ABORT, BACK, INIT_ACK, LAST, Saying, THERE};
use draw::{Flow, STAYS, Scene, Step};
use ground::{Ground, into_link, own_macs};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use packet::{
    Chosen, Says, back, class, classify, difference, error, framed, hex, inside, source, target, there,
};
use realm::{Realm, TUNNEL, V4, V6};
use testbed::dataplane::chains::{Family, Link, Node, Refused, Ruleset};
use userspace::model::{self, Cluster};

/// How many rule sets are tried.
const SCENES: u64 = 150;

/// More differences than these are not looked for: each takes a while to shrink.
const ENOUGH: usize = 3;

const CLUSTER: &str = r#"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: rules}
spec:
  model: kubenet
  nodeSubnets: [10.240.0.0/16, "fd00:240::/64"]
  podCIDRs: [10.244.0.0/16, "fd00:244::/32"]
---
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"]}
status: {addresses: [{type: InternalIP, address: 10.240.0.4}, {type: InternalIP, address: "fd00:240::4"}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24, "fd00:244:2::/64"]}
status: {addresses: [{type: InternalIP, address: 10.240.0.5}, {type: InternalIP, address: "fd00:240::5"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.244.1.2}, {ip: "fd00:244:1::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.244.1.3}, {ip: "fd00:244:1::3"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: c}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.244.1.4}, {ip: "fd00:244:1::4"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: d}
spec: {nodeName: n2, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.244.2.2}, {ip: "fd00:244:2::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: e}
spec: {nodeName: n2, containers: [{name: c, image: i}]}
status: {podIPs: [{ip: 10.244.2.3}, {ip: "fd00:244:2::3"}]}
"#;

/// What is of the nodes in [`CLUSTER`], in either family.
const NODES: [(&str, &str); 3] = [
    ("10.240.0.0/16", "\"fd00:240::/64\""),
    ("{type: InternalIP, address: 10.240.0.4}", "{type: InternalIP, address: \"fd00:240::4\"}"),
    ("{type: InternalIP, address: 10.240.0.5}", "{type: InternalIP, address: \"fd00:240::5\"}"),
];

/// The node that both are, and another, which may be beyond a tunnel.
pub(crate) fn cluster(tunnel: Option<&Realm>) -> Cluster {
    let mut text = CLUSTER.to_owned();
    if let Some(over) = tunnel {
        text = text.replace("kubenet", "overlay");
        if over.family == Family::V6 {
            // Nodes are called by their first addresses.
            for (v4, v6) in NODES {
                text = text.replace(&format!("{v4}, {v6}"), &format!("{v6}, {v4}"));
            }
        }
    }
    model::load_text("rules.yaml", &text).unwrap_or_else(|error| panic!("{error}"))
}

/// How far a flow is, and what of it arrived last: at which link, in the kernel and in `chains`.
#[derive(Clone, Debug, Default)]
struct Progress {
    opened: bool,
    answered: bool,
    /// Who has no more to send: the end that opened it, and the other.
    finished: [bool; 2],
    over: bool,
    /// What was said in an association, in turn: there, back, and at its end.
    said: [usize; 3],
    arrived: Option<(usize, [Vec<u8>; 2])>,
}

/// What is sent for a step, into the kernel and into `chains`, and whether it goes as the flow's first packet went.
fn sent(
    (realm, tunnel): (&Realm, Option<&Realm>),
    flow: &Flow,
    step: Step,
    at: &mut Progress,
) -> Option<(usize, [Vec<u8>; 2], bool)> {
    let tcp = flow.protocol == 6;
    let home = realm.home(flow.source, tunnel.is_some());
    let ahead = |says| {
        let packet = there(flow, says);
        Some((home, [packet.clone(), packet], true))
    };
    let answer = |at: &Progress, says| {
        let (link, arrived) = at.arrived.as_ref()?;
        Some((*link, arrived.each_ref().map(|packet| back(packet, says)), false))
    };
    if flow.protocol == 132
        && let Some((saying, back)) = said(step, at)
    {
        let from = if back { at.arrived.as_ref()?.0 } else { home };
        // Only over IPv4 the other node's end may leave out its checksum: see `tunnel::wrapped`.
        let saying = if (from, tunnel) == (TUNNEL, Some(&V6)) { saying.sound() } else { saying };
        return if back { answer(at, Says::Chunks(saying)) } else { ahead(Says::Chunks(saying)) };
    }
    match step {
        Step::Open(_) => {
            // The same ports again, sooner or later; or out of place, in the middle of what was opened before.
            if at.over || at.finished == [true; 2] {
                (at.answered, at.finished, at.over) = (false, [false; 2], false);
            }
            at.opened = true;
            ahead(Says::Syn)
        }
        Step::On(_) if at.answered && !at.over => ahead(Says::Ack),
        Step::Answer(_) if !at.over => {
            let answer = answer(at, if at.answered { Says::Ack } else { Says::SynAck })?;
            at.answered = true;
            Some(answer)
        }
        Step::Error(_, routed) => {
            let (link, arrived) = at.arrived.as_ref()?;
            Some((
                *link,
                arrived.each_ref().map(|packet| error(packet, routed.then_some(realm.router))),
                false,
            ))
        }
        Step::Finish(_, ours) if tcp && at.answered && !at.over => {
            at.finished[usize::from(!ours)] = true;
            if ours { ahead(Says::Fin) } else { answer(at, Says::Fin) }
        }
        Step::Reset(_, ours) if tcp && at.answered && !at.over => {
            at.over = true;
            if ours { ahead(Says::Reset) } else { answer(at, Says::Reset) }
        }
        Step::Stray(_, reset) if tcp && !at.opened => ahead(if reset { Says::Reset } else { Says::SynAck }),
        Step::Stray(..) if flow.protocol == realm.icmp && !at.opened => {
            let packet = back(
                &there(&Flow { source: flow.target, target: flow.source, ..*flow }, Says::Ack),
                Says::Ack,
            );
            Some((home, [packet.clone(), packet], false))
        }
        _ => None,
    }
}

/// What an association's end says for a step, and whether it is the end that answers; an error says nothing itself.
fn said(step: Step, at: &mut Progress) -> Option<(Saying, bool)> {
    fn next(said: &mut usize, of: [&'static [u8]; 3]) -> Saying {
        *said += 1;
        Saying::plain(of[(*said).min(3) - 1])
    }
    match step {
        Step::Open(_) => {
            at.said = [0; 3];
            Some((next(&mut at.said[0], THERE), false))
        }
        Step::On(_) => Some((next(&mut at.said[0], THERE), false)),
        Step::Answer(_) if at.arrived.is_none() => None,
        Step::Answer(_) => Some((next(&mut at.said[1], BACK), true)),
        Step::Finish(_, ours) => Some((next(&mut at.said[2], LAST), !ours)),
        Step::Reset(_, ours) => Some((Saying::plain(&[ABORT]), !ours)),
        Step::Stray(_, reset) => Some((Saying::plain(if reset { &[ABORT] } else { &[INIT_ACK] }), false)),
        Step::Say(_, ours, saying) => Some((saying, !ours)),
        Step::Error(..) => None,
    }
}

fn flow_of(step: Step) -> usize {
    match step {
        Step::Open(flow) | Step::On(flow) | Step::Answer(flow) => flow,
        Step::Error(flow, _) | Step::Finish(flow, _) | Step::Reset(flow, _) | Step::Stray(flow, _) => flow,
        Step::Say(flow, ..) => flow,
    }
}

/// What came of all scenes, to tell whether they prove anything.
type Tally = BTreeMap<&'static str, usize>;

/// Sends the scene's packets through both.
///
/// # Errors
/// The first that does not fare the same, and how.
fn run(scene: &Scene, name: &str, tally: &mut Tally) -> Result<(), String> {
    let Scene { realm, tunnel, .. } = *scene;
    let first = tunnel.unwrap_or(&V4);
    let v4 = realm.family == Family::V4;
    let none = Ruleset::new(if v4 { Family::V6 } else { Family::V4 });
    let rules = if v4 { [&scene.rules, &none] } else { [&none, &scene.rules] };
    let mut node = Node::with_rules(&cluster(tunnel), "n1", rules, 1).map_err(|why| why.to_string())?;
    let mut ground = Ground::new(name, realm, tunnel, &scene.rules.to_string());
    let (mut ports, mut chosen) = (tunnel::Ports::default(), Chosen::default());
    let mut progress = vec![Progress::default(); scene.flows.len()];
    for (number, (step, classes)) in scene.steps.iter().enumerate() {
        let (flow, at) = (&scene.flows[flow_of(*step)], &mut progress[flow_of(*step)]);
        let Some((link, mut packets, ahead)) = sent((realm, tunnel), flow, *step, at) else {
            continue;
        };
        packets.iter_mut().for_each(|packet| classify(packet, classes.own));
        let [for_kernel, for_chains] = packets;
        let to = own_macs(first)[link].0;
        let kernel = ground.push(link, &framed(to, &for_kernel), classes.outer);
        let (into, frame) = into_link(link, &framed(to, &for_chains), (first, classes.outer));
        let from = if into == 0 { Link::Uplink } else { Link::Pod(V4.pods[into - 1]) };
        let pushed = node.push(from, &frame, Duration::from_secs(1000));
        let place = |link| match link {
            Link::Uplink => Some(0),
            Link::Pod(address) => V4.pods.iter().position(|pod| address == *pod).map(|place| place + 1),
            Link::Host | Link::Tunnel => None,
        };
        let chains: Vec<_> = pushed.frames.iter().map(|(link, frame)| (place(*link), frame)).collect();
        let why = pushed.refused.as_ref().map_or("it leaves".to_owned(), ToString::to_string);
        let told = |what: String| {
            Err(format!("step {number}, {step:?} ({classes:?}) of {flow:?} into link {link} ({why}): {what}"))
        };
        let made = pushed.refused.is_some();
        let word = match (made, kernel.is_empty()) {
            (true, false) => "refused and told",
            (true, true) => "dropped",
            _ => "passed",
        };
        *tally.entry(word).or_default() += 1;
        *tally.entry(if v4 { "IPv4" } else { "IPv6" }).or_default() += 1;
        let v6 = first.family == Family::V6;
        if link == TUNNEL {
            *tally.entry(if v6 { "unwrapped, IPv6" } else { "unwrapped" }).or_default() += 1;
        }
        if pushed.refused == Some(Refused::CongestionLost) {
            *tally.entry("lost to congestion").or_default() += 1;
        }
        let of_sctp = flow.protocol == 132;
        if of_sctp {
            *tally.entry("SCTP").or_default() += 1;
        }
        match (kernel.as_slice(), chains.as_slice()) {
            // What is for the node itself goes no further in the kernel, which drops it there.
            ([], [] | [(None, _)]) => {}
            ([(out, one)], [(Some(other_out), other)]) if out == other_out => {
                let (mut out, mut one, mut other) = (*out, &one[..], &other[..]);
                if let (Some(inner), Some(other_inner)) = (tunnel::unwrapped(one), tunnel::unwrapped(other)) {
                    if let Some(what) = ports.difference([one, other]) {
                        return told(what);
                    }
                    (out, one, other) = (TUNNEL, inner, other_inner);
                    *tally.entry(if v6 { "wrapped, IPv6" } else { "wrapped" }).or_default() += 1;
                }
                if let Some(what) = difference(one, other, [&for_kernel, &for_chains], made) {
                    return told(what);
                }
                let ends = |packet: &[u8]| (source(packet), target(packet));
                if ends(inside(one)) != ends(&for_kernel) && !made {
                    *tally.entry(if of_sctp { "SCTP translated" } else { "translated" }).or_default() += 1;
                }
                if class(inside(one)) != class(&for_kernel) && !made {
                    *tally.entry("marked").or_default() += 1;
                }
                if ahead && !made {
                    if let Some(what) = chosen.difference([one, other], &for_kernel) {
                        return told(what);
                    }
                    at.arrived = Some((out, [inside(one).to_vec(), inside(other).to_vec()]));
                }
            }
            (kernel, chains) => {
                let kernel: Vec<_> = kernel.iter().map(|(link, frame)| (link, hex(frame))).collect();
                let chains: Vec<_> = chains.iter().map(|(link, frame)| (link, hex(frame))).collect();
                return told(format!("kernel {kernel:?}\n  chains {chains:?}"));
            }
        }
    }
    Ok(())
}

/// The scene with less in it that still differs.
fn shrunk(mut scene: Scene, name: &str) -> Scene {
    let differs = |scene: &Scene| run(scene, name, &mut Tally::new()).is_err();
    // What comes after the first difference has no part in it.
    while scene.steps.len() > 1 {
        let mut less = scene.clone();
        less.steps.truncate(scene.steps.len() / 2);
        if !differs(&less) {
            break;
        }
        scene = less;
    }
    let mut at = 0;
    while at < scene.steps.len() {
        let mut less = scene.clone();
        less.steps.remove(at);
        if differs(&less) { scene = less } else { at += 1 }
    }
    let places = |scene: &Scene| -> Vec<_> {
        let tables = scene.rules.tables.iter();
        let chains = tables
            .flat_map(|(table, of)| of.chains.iter().map(move |(name, chain)| (*table, name.clone(), chain)));
        chains
            .flat_map(|(table, name, chain)| {
                let drawn = chain.rules.iter().enumerate().filter(|(_, rule)| rule.comment != STAYS);
                drawn.map(move |(place, _)| (table, name.clone(), place))
            })
            .collect()
    };
    for (table, chain, rule) in places(&scene).into_iter().rev() {
        let mut less = scene.clone();
        if let Some(chain) = less.rules.tables.get_mut(&table).and_then(|table| table.chains.get_mut(&chain))
        {
            chain.rules.remove(rule);
        }
        if differs(&less) {
            scene = less;
        }
    }
    scene
}

/// A number that the environment may ask for.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|why| panic!("{name}={text}: {why}")))
}

#[test]
#[ignore = "needs root: make test"]
fn rules_by_lot_do_in_chains_what_they_do_in_the_kernel() {
    // What is sent and what comes of it stay in order on one processor.
    let mut one = CpuSet::new();
    one.set(0).expect("there is a first");
    sched_setaffinity(Pid::from_raw(0), &one).expect("a thread may choose");
    let first = number("PODPATH_RULES_SEED", 0);
    let mut tally = Tally::new();
    let mut wrong = Vec::new();
    let scenes = number("PODPATH_RULES", SCENES);
    for seed in first..first + scenes {
        let scene = Scene::drawn(seed);
        if let Err(first) = run(&scene, &format!("rules-{seed}"), &mut tally) {
            let least = shrunk(scene, &format!("rules-{seed}"));
            let what = run(&least, &format!("rules-{seed}"), &mut Tally::new()).err();
            // Not every time, perhaps: ports are chosen by chance.
            let what = what.unwrap_or_else(|| format!("not once more, but before: {first}"));
            wrong.push(format!("seed {seed}: {what}\n{:?}\n{}", least.steps, least.rules));
            if wrong.len() >= ENOUGH {
                break;
            }
        }
    }
    println!("{tally:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let words = [
        "passed",
        "dropped",
        "refused and told",
        "translated",
        "IPv4",
        "IPv6",
        "SCTP",
        "SCTP translated",
        "wrapped",
        "unwrapped",
        "wrapped, IPv6",
        "unwrapped, IPv6",
        "marked",
        "lost to congestion",
    ];
    // Few scenes do not have everything.
    for word in words.iter().filter(|_| scenes >= SCENES) {
        assert!(tally.get(*word).is_some_and(|times| *times > 50), "{word}: {tally:?}");
    }
}
