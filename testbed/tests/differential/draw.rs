//! Clusters and packets, drawn from a seed: mostly such as could be, some such as should not.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use etherparse::{IcmpEchoHeader, Icmpv4Type, PacketBuilder, icmpv4::DestUnreachableHeader};
use userspace::engine::Hook;
use userspace::engine::emulator::topology::{HOST_LINK, UPLINK};
use userspace::model;

use super::twins::{Act, Cluster, shortest};

const LABELS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 4] = [53, 80, 81, 8080];
const WORLD: [&str; 3] = ["203.0.113.7", "10.0.0.1", "8.8.8.8"];

/// A sequence that looks like chance and repeats with its seed (Marsaglia, "Xorshift RNGs", 2003).
pub(crate) struct Draw {
    state: u64,
}

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 11
    }

    /// Below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn of<T: Clone>(&mut self, these: &[T]) -> T {
        these[self.below(these.len())].clone()
    }

    /// A cluster as Kubernetes objects.
    pub(crate) fn objects(&mut self) -> String {
        let mut text = String::new();
        let nodes = 2 + self.below(2);
        let _ = writeln!(
            text,
            "apiVersion: podpath.dev/v1alpha1\nkind: Testbed\nmetadata: {{name: drawn}}\nspec: {{nodes: {nodes}}}"
        );
        for (index, address) in WORLD.iter().enumerate() {
            let _ = writeln!(
                text,
                "---\napiVersion: podpath.dev/v1alpha1\nkind: External\nmetadata: {{name: e{index}}}\nspec: {{address: {address}}}"
            );
        }
        for index in 0..4 + self.below(5) {
            let (namespace, label) = (self.of(&["x", "y"]), self.of(&LABELS));
            let _ = writeln!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{index}, namespace: {namespace}, labels: {{app: {label}}}}}\n\
                 spec: {{containers: [{{name: c, image: x, ports: [{{containerPort: 80, name: web}}, {{containerPort: 53, protocol: UDP}}, {{containerPort: {}}}]}}]}}",
                8080 + self.below(2)
            );
        }
        for index in 0..2 + self.below(3) {
            let protocol = self.of(&["TCP", "UDP"]);
            let target = if protocol == "UDP" { 53 } else { 80 };
            let _ = writeln!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{index}, namespace: {}}}\n\
                 spec: {{selector: {{app: {}}}, ports: [{{port: {}, targetPort: {target}, protocol: {protocol}}}]}}",
                self.of(&["x", "y"]),
                self.of(&LABELS),
                self.of(&PORTS),
            );
        }
        for index in 0..self.below(5) {
            text.push_str(&self.policy(index));
        }
        text
    }

    fn policy(&mut self, index: usize) -> String {
        let selector = if self.one_in(3) { "{}".to_string() } else { self.selector() };
        let kinds = self.of(&["[Ingress]", "[Egress]", "[Ingress, Egress]"]);
        let mut text = format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: n{index}, namespace: {}}}\n\
             spec:\n  podSelector: {selector}\n  policyTypes: {kinds}\n",
            self.of(&["x", "y"])
        );
        for (list, peers) in [("ingress", "from"), ("egress", "to")] {
            if kinds.to_lowercase().contains(list) && !self.one_in(4) {
                let _ = writeln!(text, "  {list}:");
                for _ in 0..1 + self.below(2) {
                    let (peer, ports) = (self.peer(), self.ports());
                    let _ = writeln!(text, "    - {{{peers}: [{peer}], ports: [{ports}]}}");
                }
            }
        }
        text
    }

    fn selector(&mut self) -> String {
        format!("{{matchLabels: {{app: {}}}}}", self.of(&LABELS))
    }

    fn peer(&mut self) -> String {
        match self.below(5) {
            0 => String::new(),
            1 => format!("{{podSelector: {}}}", self.selector()),
            2 => format!("{{namespaceSelector: {{}}, podSelector: {}}}", self.selector()),
            3 => "{ipBlock: {cidr: 0.0.0.0/0, except: [8.0.0.0/8]}}".to_string(),
            _ => "{ipBlock: {cidr: 10.244.0.0/16}}".to_string(),
        }
    }

    fn ports(&mut self) -> String {
        match self.below(5) {
            0 => String::new(),
            1 => "{port: web}".to_string(),
            2 => "{port: 53, protocol: UDP}".to_string(),
            3 => "{port: 79, endPort: 8080}".to_string(),
            _ => "{protocol: TCP}".to_string(),
        }
    }

    /// Something to do to a cluster: mostly a frame where such a frame could arrive.
    pub(crate) fn act(&mut self, model: &model::Cluster, cluster: &Cluster) -> Act {
        if self.one_in(150) {
            return Act::Wait(1 + self.below(90) as u32);
        }
        let node = self.below(cluster.nodes.len());
        let pods = &cluster.nodes[node].1;
        let (hook, interface) = match self.below(8) {
            0 => (Hook::FromHost, HOST_LINK),
            1..=3 => (Hook::FromUnderlay, UPLINK),
            _ if pods.is_empty() => (Hook::FromUnderlay, UPLINK),
            _ => (Hook::FromPod, self.of(pods)),
        };
        let mut frame = self.frame(model, cluster, (hook, node));
        if self.one_in(12) {
            for _ in 0..1 + self.below(3) {
                let at = self.below(frame.len());
                frame[at] = self.next() as u8;
            }
        }
        if self.one_in(25) {
            let least = shortest(&frame).min(frame.len());
            frame.truncate(least + self.below((frame.len() - least).max(1)));
        }
        Act::Frame { node, hook, interface, frame }
    }

    fn frame(&mut self, model: &model::Cluster, cluster: &Cluster, (hook, node): (Hook, usize)) -> Vec<u8> {
        let flying = &cluster.flying;
        if !flying.is_empty() && self.one_in(2) {
            let frame = self.of(flying);
            return if self.one_in(2) { self.answered(&frame) } else { frame };
        }
        if hook == Hook::FromPod && self.one_in(15) {
            return self.question(model);
        }
        let own = &model.nodes[node];
        let pods: Vec<_> = model.pods.iter().filter(|pod| pod.node == own.name).collect();
        let source = match hook {
            Hook::FromPod if !self.one_in(10) && !pods.is_empty() => self.of(&pods).address(),
            Hook::FromHost if !self.one_in(10) => own.address(),
            _ => self.address(model),
        };
        let target = self.address(model);
        let (IpAddr::V4(source), IpAddr::V4(target)) = (source, target) else {
            unreachable!("drawn clusters have IPv4 addresses only")
        };
        self.packet(source, target)
    }

    fn address(&mut self, model: &model::Cluster) -> IpAddr {
        let stray: IpAddr = Ipv4Addr::from(0x0af4_0000 + self.below(0x400) as u32).into();
        match self.below(10) {
            0 => stray,
            1 => self.of(&WORLD).parse().expect("an address"),
            2 => self.of(&model.nodes).address(),
            3..=4 if !model.services.is_empty() => self.of(&model.services).address(),
            _ => self.of(&model.pods).address(),
        }
    }

    /// A frame for the node, with a small choice of ports, so that flows meet again.
    fn packet(&mut self, source: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let hops = if self.one_in(20) { self.below(3) as u8 } else { 64 };
        let start = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(source.octets(), target.octets(), hops);
        let client = 33_000 + self.below(6) as u16;
        let (from, to) = if self.one_in(8) { (self.of(&PORTS), client) } else { (client, self.of(&PORTS)) };
        let payload = vec![0x5a; self.below(40)];
        let mut frame = Vec::new();
        let written = match self.below(6) {
            0..=2 => {
                let tcp = start.tcp(from, to, 7, 512);
                match self.below(6) {
                    0..=2 => tcp.syn(),
                    3 => tcp.fin().ack(1),
                    4 => tcp.rst(),
                    _ => tcp.ack(1),
                }
                .write(&mut frame, &payload)
            }
            3..=4 => start.udp(from, to).write(&mut frame, &payload),
            _ => {
                let echo = IcmpEchoHeader { id: client, seq: 1 };
                let kind =
                    if self.one_in(4) { Icmpv4Type::EchoReply(echo) } else { Icmpv4Type::EchoRequest(echo) };
                start.icmpv4(kind).write(&mut frame, &payload)
            }
        };
        written.expect("a vector takes everything");
        if self.one_in(30) && frame[23] == 17 {
            frame[40..42].fill(0);
        }
        frame
    }

    /// What might come back for a frame: the same with its ends swapped, or an ICMP error about it.
    fn answered(&mut self, frame: &[u8]) -> Vec<u8> {
        if frame.len() < 42 || frame[12..14] != [8, 0] {
            return frame.to_vec();
        }
        let (mut source, mut target) = ([0; 4], [0; 4]);
        source.copy_from_slice(&frame[26..30]);
        target.copy_from_slice(&frame[30..34]);
        let mut answer = Vec::new();
        if self.one_in(4) {
            let from = if self.one_in(3) { [192, 0, 2, 1] } else { target };
            let kind = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port);
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv4(from, source, 60)
                .icmpv4(kind)
                .write(&mut answer, &frame[14..])
                .expect("a vector takes everything");
            return answer;
        }
        answer.extend_from_slice(frame);
        answer[26..30].copy_from_slice(&target);
        answer[30..34].copy_from_slice(&source);
        if frame[23] == 1 {
            answer[34] = if frame[34] == 8 { 0 } else { 8 };
        } else {
            let ports: [u8; 4] = [frame[36], frame[37], frame[34], frame[35]];
            answer[34..38].copy_from_slice(&ports);
        }
        if frame[23] == 6 && frame.len() > 47 && frame[47] & 2 != 0 {
            answer[47] |= 0x10;
        }
        answer
    }

    /// An ARP question, now and then about the asker itself.
    fn question(&mut self, model: &model::Cluster) -> Vec<u8> {
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(_) => unreachable!("drawn clusters have IPv4 addresses only"),
        };
        let asker = address(self.of(&model.pods).address());
        let asked = if self.one_in(4) { asker } else { [169, 254, 1, 1] };
        let mut frame = vec![0xff; 6];
        frame.extend_from_slice(&[4, 4, 4, 4, 4, 4, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 4, 4, 4, 4, 4, 4]);
        frame.extend_from_slice(&asker);
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&asked);
        frame
    }
}
