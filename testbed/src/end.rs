//! Names of the ends of a flow, as the command line and every output write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use userspace::model::{Cluster, Protocol};

/// Who sends, or who is dialled.
///
/// Written `namespace/pod`, `ext:name`, `node:name`, `svc:namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum End {
    /// A pod, by `namespace/name`.
    Pod(String),
    /// A host outside the cluster, by name.
    External(String),
    /// A node, by name.
    Node(String),
    /// A Service, by `namespace/name`: only ever dialled.
    Service(String),
}

/// Why a text does not name an end, or not one of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text has none of the four forms.
    #[error("cannot read {0:?} as a name: expected namespace/pod, svc:namespace/name, node:name or ext:name")]
    Form(String),
    /// What follows the last colon is no port.
    #[error(
        "cannot read the port of {0:?}: expected 1 to 65535 and tcp, udp or sctp, as in shop/api:8080/tcp"
    )]
    Port(String),
    /// The cluster has no such thing.
    #[error("unknown {kind} {name:?}{}", suggestion(.near.as_deref()))]
    Unknown {
        /// `pod`, `service`, `node` or `external`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// The most similar name that exists.
        near: Option<String>,
    },
    /// Services are dialled; nothing is ever sent from one.
    #[error("{0} cannot send: a Service is only an address to dial")]
    Source(End),
}

fn suggestion(near: Option<&str>) -> String {
    near.map_or(String::new(), |near| format!(", did you mean {near:?}?"))
}

impl End {
    /// Whether the cluster has it.
    ///
    /// # Errors
    /// [`NameError::Unknown`], with the most similar name that exists.
    pub fn find_in(&self, cluster: &Cluster) -> Result<(), NameError> {
        let (kind, name, known): (_, _, Vec<String>) = match self {
            Self::Pod(name) => ("pod", name, cluster.pods.iter().map(|pod| pod.id()).collect()),
            Self::External(name) => {
                ("external", name, cluster.externals.iter().map(|e| e.name.clone()).collect())
            }
            Self::Node(name) => ("node", name, cluster.nodes.iter().map(|node| node.name.clone()).collect()),
            Self::Service(name) => ("service", name, cluster.services.iter().map(|s| s.id()).collect()),
        };
        if known.contains(name) {
            return Ok(());
        }
        let near = known
            .into_iter()
            .map(|candidate| (distance(name, &candidate), candidate))
            .filter(|(distance, _)| *distance <= 1 + name.len() / 4)
            .min()
            .map(|(_, candidate)| candidate);
        Err(NameError::Unknown { kind, name: name.clone(), near })
    }
}

/// Letters to insert, remove, replace, or swap with their neighbour, to turn one word into the other.
/// Source: optimal string alignment, a restriction of Damerau (1964).
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut table = vec![vec![0; other.len() + 1]; one.len() + 1];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            table[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = table[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
                let mut best = replaced.min(table[i - 1][j] + 1).min(table[i][j - 1] + 1);
                if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                    best = best.min(table[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    table[one.len()][other.len()]
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => f.pad(name),
            Self::External(name) => f.pad(&format!("ext:{name}")),
            Self::Node(name) => f.pad(&format!("node:{name}")),
            Self::Service(name) => f.pad(&format!("svc:{name}")),
        }
    }
}

impl FromStr for End {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Form(text.to_owned());
        let plain = |name: &str| (!name.is_empty() && !name.contains(['/', ':'])).then(|| name.to_owned());
        let namespaced = |name: &str| {
            let (namespace, rest) = name.split_once('/')?;
            (plain(namespace).is_some() && plain(rest).is_some()).then(|| name.to_owned())
        };
        match text.split_once(':') {
            None => namespaced(text).map(Self::Pod),
            Some(("ext", name)) => plain(name).map(Self::External),
            Some(("node", name)) => plain(name).map(Self::Node),
            Some(("svc", name)) => namespaced(name).map(Self::Service),
            Some(_) => None,
        }
        .ok_or_else(wrong)
    }
}

impl TryFrom<String> for End {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<End> for String {
    fn from(end: End) -> Self {
        end.to_string()
    }
}

/// An end, and where on it: `shop/api:8080/tcp`; `tcp` when left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Who.
    pub end: End,
    /// The port, where one was given.
    pub port: Option<u16>,
    /// TCP when left out.
    pub protocol: Protocol,
}

impl FromStr for Dial {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Port(text.to_owned());
        if let Ok(end) = text.parse() {
            return Ok(Self { end, port: None, protocol: Protocol::Tcp });
        }
        let (end, port) = text.rsplit_once(':').ok_or_else(|| NameError::Form(text.to_owned()))?;
        let end = end.parse().map_err(|_| NameError::Form(text.to_owned()))?;
        let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        let protocol = protocol_named(protocol).ok_or_else(wrong)?;
        Ok(Self { end, port: Some(port), protocol })
    }
}

/// The protocol with this name, in any case.
pub fn protocol_named(name: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.to_string().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_back_as_it_was_written() {
        for text in ["shop/web", "ext:world", "node:n1", "svc:shop/api"] {
            assert_eq!(text.parse::<End>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_has_no_form_is_refused() {
        for text in
            ["", "web", "shop/", "/web", "a/b/c", "svc:api", "node:", "ext:a/b", "pod:a/b", "node:a:b"]
        {
            assert_eq!(text.parse::<End>(), Err(NameError::Form(text.to_owned())));
        }
    }

    #[test]
    fn a_port_and_a_protocol_may_follow() {
        let dial = |text: &str| text.parse::<Dial>();
        assert_eq!(dial("a/b").unwrap().port, None);
        assert_eq!(
            dial("a/b:80").unwrap(),
            Dial { end: End::Pod("a/b".into()), port: Some(80), protocol: Protocol::Tcp }
        );
        let dns = dial("svc:kube-system/dns:53/udp").unwrap();
        assert_eq!((dns.port, dns.protocol), (Some(53), Protocol::Udp));
        for text in ["a/b:0", "a/b:65536", "a/b:http", "a/b:80/icmp", "ext:world:"] {
            assert_eq!(dial(text), Err(NameError::Port(text.to_owned())));
        }
        assert_eq!(dial("web:80"), Err(NameError::Form("web:80".to_owned())));
    }

    #[test]
    fn a_mistyped_name_is_answered_with_the_nearest_one() {
        let node = |name: &str| userspace::model::Node {
            name: name.to_owned(),
            labels: Default::default(),
            address: "10.240.0.4".parse().unwrap(),
            pod_cidr: None,
        };
        let cluster = Cluster { nodes: vec![node("worker"), node("control")], ..Cluster::default() };
        assert_eq!(End::Node("worker".into()).find_in(&cluster), Ok(()));
        let error = End::Node("wroker".into()).find_in(&cluster).unwrap_err();
        assert_eq!(error.to_string(), r#"unknown node "wroker", did you mean "worker"?"#);
        let error = End::Node("elsewhere".into()).find_in(&cluster).unwrap_err();
        assert_eq!(error.to_string(), r#"unknown node "elsewhere""#);
    }
}
