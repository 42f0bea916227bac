//! Somebody dials somebody: a whole conversation, and what became of it.

use std::net::{IpAddr, SocketAddr};

use dataplane::Reason;
use dataplane::trace::Stage;

use super::host::{Dial, Progress};
use super::network::Network;
use super::topology::{NODE_NETNS, Seat, netns_of};
use crate::engine::{Clock, Dialling, Engine};
use crate::error::Error;
use crate::observe::walk::{Event, Step};
use crate::plan::RuleName;

/// What became of an attempt to talk to somebody, as who tried can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// There was an answer.
    Allow,
    /// There was none.
    Deny,
    /// It was refused at once: nobody listens.
    Reject,
}

/// A conversation, or the attempt at one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What became of it.
    pub answer: Answer,
    /// Why the first packet that was dropped was dropped.
    pub reason: Option<Reason>,
    /// The rule that decided, or the policy that isolates the pod; `None` where no policy had a say.
    pub rule: Option<RuleName>,
    /// Everything that happened to every packet of it.
    pub walk: Vec<Step>,
}

/// Where a socket is led, and the node that led it with the cookie it has there.
type Led = (IpAddr, Dial, Option<(usize, u64)>);

impl<E: Engine + Clock> Network<E> {
    /// Lets a host dial an address, and hosts talk until nobody has more to say.
    ///
    /// What a host sends to its own address never leaves it, and what it has no address for neither.
    ///
    /// # Errors
    /// [`Error::Leaked`], or an engine failed.
    pub fn connect(&mut self, from: usize, to: IpAddr, dial: Dial) -> Result<Attempt, Error> {
        self.hush(false);
        self.take_steps();
        let (to, dial, socket) = self.lead(from, to, dial)?;
        let answer = self.converse(from, to, dial)?;
        if let Some((node, socket)) = socket
            && let Some(engine) = self.engine(node)
        {
            engine.hang_up(socket);
        }
        let walk = self.take_steps();
        Ok(Attempt { answer, reason: first_drop(&walk), rule: self.names().decider(&walk), walk })
    }

    /// Where a host's socket is led that dials, and by which node under which cookie it is known there.
    fn lead(&mut self, from: usize, to: IpAddr, dial: Dial) -> Result<Led, Error> {
        let Dial::Port(protocol, port) = dial else { return Ok((to, dial, None)) };
        let (node, netns) = match self.seat(from) {
            Seat::Pod { node, interface, .. } => (node, netns_of(interface)),
            Seat::Node(node) => (node, NODE_NETNS),
            Seat::World(_) => return Ok((to, dial, None)),
        };
        let socket = self.next_socket();
        let target = SocketAddr::new(to, port);
        let dialling = Dialling { socket, netns, target, protocol: protocol.number() };
        let Some(engine) = self.engine(node) else { return Ok((to, dial, None)) };
        let (led, records) = engine.lead(&dialling)?;
        for record in records {
            self.note(Event::Stage { node, record });
        }
        Ok((led.ip(), Dial::Port(protocol, led.port()), Some((node, socket))))
    }

    /// Lets the host talk until nobody has more to say.
    fn converse(&mut self, from: usize, to: IpAddr, dial: Dial) -> Result<Answer, Error> {
        let host = self.host_at(from);
        if host.addresses.contains(&to) {
            let answer = if host.answers(dial) { Answer::Allow } else { Answer::Reject };
            let host = host.name.clone();
            self.note(Event::Loopback { host });
            return Ok(answer);
        }
        if host.address_like(to).is_none() {
            let why = format!("{} has no address to dial {to} from", host.name);
            self.note(Event::Lost { place: "host", why });
            return Ok(Answer::Reject);
        }
        let opening = self.host_mut(from).dial(to, dial);
        let (place, frame) = self.framed(from, opening)?;
        self.send(place, frame);
        self.run()?;
        Ok(match self.host_at(from).progress() {
            Progress::Answered => Answer::Allow,
            Progress::Refused => Answer::Reject,
            Progress::Waiting | Progress::Open => Answer::Deny,
        })
    }
}

fn first_drop(walk: &[Step]) -> Option<Reason> {
    walk.iter().find_map(|step| match &step.event {
        Event::Stage { record, .. } if record.stage == Stage::Drop as u8 => {
            Reason::from_number(record.detail)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use dataplane::wire::V4;

    use super::super::Emulator;
    use super::*;
    use crate::model::{self, Protocol};

    const CLUSTER: &str = r"
apiVersion: podpath.dev/v1alpha1
kind: Testbed
metadata: {name: test}
spec: {nodes: 2}
---
apiVersion: podpath.dev/v1alpha1
kind: External
metadata: {name: world}
spec: {address: 203.0.113.7, ports: [{port: 80, protocol: TCP}, {port: 53, protocol: UDP}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - {name: web, image: web, ports: [{containerPort: 8080}, {containerPort: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]
";

    fn network() -> (Network<Emulator>, model::Cluster) {
        let cluster = model::load_text("test", CLUSTER).expect("a cluster");
        (Network::new(&cluster, 7).expect("it fits"), cluster)
    }

    #[test]
    fn everybody_reaches_everybody_and_nothing_gets_lost() {
        let (mut network, cluster) = network();
        let names: Vec<String> = cluster
            .pods
            .iter()
            .map(model::Pod::id)
            .chain(cluster.nodes.iter().map(|node| format!("node:{}", node.name)))
            .chain(["ext:world".to_owned()])
            .collect();
        let dials = [
            Dial::Ping,
            Dial::Port(Protocol::Tcp, 8080),
            Dial::Port(Protocol::Udp, 53),
            Dial::Port(Protocol::Tcp, 9),
            Dial::Port(Protocol::Udp, 9),
        ];
        for from in &names {
            for to in &names {
                for dial in dials {
                    let (from, to) =
                        (network.host(from).expect("is there"), network.host(to).expect("is there"));
                    let address = network.host_at(to).addresses[0];
                    let answers_there = network.host_at(to).answers(dial);
                    let attempt = network.connect(from, address, dial).expect("runs");
                    let expected = if answers_there { Answer::Allow } else { Answer::Reject };
                    let text = crate::observe::walk::print(&attempt.walk, network.names());
                    assert_eq!(attempt.answer, expected, "{dial:?}:\n{text}");
                }
            }
        }
        assert_eq!(network.tally().dropped(), 0, "{:?}", network.tally());
    }

    #[test]
    fn a_service_is_reached_from_pods_and_nodes_but_not_from_outside() {
        let (mut network, cluster) = network();
        let address = cluster.services[0].address();
        let node = format!("node:{}", cluster.nodes[0].name);
        for (from, expected) in [(node.as_str(), Answer::Allow), ("ext:world", Answer::Deny)] {
            let from = network.host(from).expect("is there");
            for dial in [Dial::Port(Protocol::Tcp, 80), Dial::Port(Protocol::Udp, 53)] {
                assert_eq!(network.connect(from, address, dial).expect("runs").answer, expected);
            }
        }
    }

    #[test]
    fn a_network_whose_flows_are_over_tracks_nothing_and_works_on() {
        let (mut network, cluster) = network();
        let from = network.host(&cluster.pods[0].id()).expect("is there");
        let world = network.host("ext:world").expect("is there");
        let address = network.host_at(world).addresses[0];
        for _ in 0..2 {
            let attempt = network.connect(from, address, Dial::Port(Protocol::Tcp, 80)).expect("runs");
            assert_eq!(attempt.answer, Answer::Allow);
            assert_eq!(network.connections::<V4>(0).expect("in memory").len(), 1);
            assert_eq!(network.masquerades::<V4>(0).expect("in memory").len(), 1);
            network.wait(8000).expect("in memory");
            network.sweep().expect("in memory");
            assert!(network.connections::<V4>(0).expect("in memory").is_empty());
            assert!(network.masquerades::<V4>(0).expect("in memory").is_empty());
        }
    }

    #[test]
    fn a_pod_that_is_added_later_is_reached_and_one_that_is_gone_is_not() {
        let (mut network, mut cluster) = network();
        let gone = cluster.pods.pop().expect("there are four");
        let address = gone.address();
        network.apply(&cluster).expect("it fits");
        let from = network.host(&cluster.pods[0].id()).expect("is there");
        assert_eq!(network.connect(from, address, Dial::Ping).expect("runs").answer, Answer::Deny);
        assert!(network.host(&gone.id()).is_err());
        cluster.pods.push(gone);
        network.apply(&cluster).expect("it fits");
        assert_eq!(network.connect(from, address, Dial::Ping).expect("runs").answer, Answer::Allow);
    }

    #[test]
    fn a_policy_that_arrives_later_is_asked_about_the_next_conversation() {
        let (mut network, cluster) = network();
        let (from, to) = (cluster.pods[0].id(), cluster.pods[1].address());
        let mut objects = model::Objects::parse("test", CLUSTER).expect("objects");
        let deny = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, \
                    spec: {podSelector: {}}}";
        objects.apply(model::Objects::parse("deny", deny).expect("a policy"));
        let denied = objects.resolve(Some(&cluster)).expect("a cluster");
        for (cluster, expected) in [(&cluster, Answer::Allow), (&denied, Answer::Deny)] {
            network.apply(cluster).expect("it fits");
            let from = network.host(&from).expect("is there");
            let attempt = network.connect(from, to, Dial::Port(Protocol::Tcp, 8080)).expect("runs");
            assert_eq!(attempt.answer, expected);
        }
    }
}
