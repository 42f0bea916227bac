//! Cases that nobody thought of: from a seed, the same one every time.
//!
//! Few addresses, ports and flags, so that packets meet: flows are opened, answered, reset and opened again,
//! masqueraded ports clash, replies come from the wrong end. A third of the frames is broken somewhere.

use std::fmt::Write;

const SENDERS: [&str; 7] =
    ["default/web", "default/idle", "default/api", "default/db", "node:n1", "node:n2", "ext:world"];
const TARGETS: [&str; 12] = [
    "default/web",
    "default/idle",
    "default/api",
    "default/db",
    "svc:default/api",
    "svc:default/api",
    "svc:default/empty",
    "node:n1",
    "node:n2",
    "ext:world",
    "10.244.1.99",
    "198.51.100.1",
];
const APPS: [&str; 4] = ["web", "idle", "api", "db"];
const PORTS: [u16; 6] = [80, 53, 8080, 40_000, 40_001, 40_002];
const TCP: [&str; 8] = ["syn", "syn", "syn ack", "ack", "data", "fin ack", "rst", "rst ack"];
const STEPS: u32 = 40;

/// A random case: its head, and its steps, which can be left out one by one.
#[derive(Clone, Debug)]
pub struct Random {
    head: String,
    steps: Vec<String>,
}

impl Random {
    /// The case of this seed.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice(mixed(seed));
        let mut head = format!("# Random case {seed}.\ninclude: ../clusters/two-nodes.yaml\n");
        let policies = dice.below(5);
        if policies > 0 {
            head += "objects: |\n";
            for number in 0..policies {
                write!(head, "  ---\n  {}\n", policy(&mut dice, number)).expect("a String takes everything");
            }
        }
        let steps = (0..STEPS).map(|_| step(&mut dice)).collect();
        Self { head, steps }
    }

    /// The case, as a file would hold it.
    pub fn text(&self) -> String {
        let steps: String = self.steps.iter().map(|step| format!("  - {step}\n")).collect();
        format!("{}send:\n{steps}expect: \"\"\n", self.head)
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Leaves out every step without which the case still `fails`.
    #[must_use]
    pub fn shrink(mut self, mut fails: impl FnMut(&str) -> bool) -> Self {
        let mut place = self.steps.len();
        while place > 0 {
            place -= 1;
            let step = self.steps.remove(place);
            if self.steps.is_empty() || !fails(&self.text()) {
                self.steps.insert(place, step);
            }
        }
        self
    }
}

/// A generator of numbers that look random.
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014 (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mixed(self.0) % u64::from(count)) as u32
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }
}

fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn policy(dice: &mut Dice, number: u32) -> String {
    let (direction, peers) = dice.of(&[("Ingress", "ingress: [{from"), ("Egress", "egress: [{to")]);
    let peer = if dice.one_in(3) {
        let cidr = dice.of(&["203.0.113.0/24", "10.240.0.4/32", "0.0.0.0/0", "10.244.0.0/16"]);
        format!("{{ipBlock: {{cidr: {cidr}}}}}")
    } else {
        format!("{{podSelector: {{matchLabels: {{app: {}}}}}}}", dice.of(&APPS))
    };
    let port = match dice.below(4) {
        0 => String::new(),
        1 => format!(", ports: [{{port: {}, protocol: UDP}}]", dice.of(&PORTS)),
        2 => format!(", ports: [{{port: {}}}]", dice.of(&PORTS)),
        _ => format!(", ports: [{{port: {}, endPort: 40001}}]", dice.of(&[53, 80, 8080])),
    };
    let rules = if dice.one_in(4) { String::new() } else { format!(", {peers}: [{peer}]{port}}}]") };
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: policy-{number}}}, \
         spec: {{podSelector: {{matchLabels: {{app: {}}}}}, policyTypes: [{direction}]{rules}}}}}",
        dice.of(&APPS)
    )
}

fn step(dice: &mut Dice) -> String {
    if dice.one_in(15) {
        return format!("{{wait: {}s}}", dice.of(&[1, 11, 61]));
    }
    let (mut from, mut to) = (dice.of(&SENDERS), dice.of(&TARGETS));
    let (mut source_port, mut port) = (dice.of(&PORTS), dice.of(&PORTS));
    match dice.below(8) {
        // To the world, or an answer from there to a port that stands for a pod, perhaps.
        0 => (from, to, port) = (dice.of(&SENDERS[..4]), "ext:world", dice.of(&PORTS[..2])),
        1 => (from, to, source_port) = ("ext:world", dice.of(&["node:n1", "node:n2"]), dice.of(&PORTS[..2])),
        // To a backend, directly or by way of its Service.
        2 => (to, port) = dice.of(&[("default/api", 8080), ("default/api", 53), ("svc:default/api", 80)]),
        _ => {}
    }
    let mut step = match dice.below(8) {
        0 => format!("{{from: {from:?}, to: {to:?}, as: {}", dice.of(&["ping", "unreachable"])),
        1..=3 => format!("{{from: {from:?}, to: \"{to}:{port}/udp\", as: udp"),
        _ => format!("{{from: {from:?}, to: \"{to}:{port}/tcp\", as: tcp {}", dice.of(&TCP)),
    };
    write!(step, ", source_port: {source_port}").expect("a String takes everything");
    if dice.one_in(3) {
        step += &broken(dice);
    }
    step + "}"
}

/// Something that is wrong with a frame, or at least unusual.
fn broken(dice: &mut Dice) -> String {
    match dice.below(8) {
        0 => format!(", cut: {}", 14 + dice.below(60)),
        1 | 2 => format!(
            ", set: [{{offset: {}, bytes: {:?}}}]",
            dice.below(42),
            format!("{:02x}", dice.below(256))
        ),
        3 => ", fragment: true".to_owned(),
        6 => format!(", source: {:?}", dice.of(&APPS.map(pod))),
        4 => format!(", ttl: {}", dice.below(3)),
        5 => {
            let vni = dice.of(&["", ", vni: 7"]);
            format!(
                ", source: {:?}, tunnel: {{to: \"node:n{}\"{vni}}}",
                dice.of(&APPS.map(pod)),
                1 + dice.below(2)
            )
        }
        _ => format!(", size: {}", dice.of(&[1, 1400, 1423, 1472])),
    }
}

fn pod(app: &'static str) -> &'static str {
    match app {
        "web" => "default/web",
        "idle" => "default/idle",
        "api" => "default/api",
        _ => "default/db",
    }
}
