//! Names on the command line: `ns/pod`, `ext:name`, `node:name`, `svc:ns/name`, with `:port/protocol` if need be.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::cluster::{Cluster, External, Node, Pod, Protocol, Service};
use super::syntax;

/// Who, and on which port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The name before the port.
    pub who: Who,
    /// None where the name was given without one.
    pub port: Option<Port>,
}

/// A transport port: `8080/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// 1 to 65,535.
    pub number: u16,
    /// TCP when left out.
    pub protocol: Protocol,
}

/// Somebody that can send, or be sent to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// `namespace/name`.
    Pod(String),
    /// A host outside the cluster.
    External(String),
    /// A node of the cluster.
    Node(String),
    /// `namespace/name`.
    Service(String),
}

/// Why a text isn't the name of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It isn't written as one.
    #[error(
        "cannot read {text:?}: {why}: write ns/pod, ext:name, node:name or svc:ns/name, with :8080/tcp after it if need be"
    )]
    Syntax {
        /// As it was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// The cluster has nothing of that name.
    #[error("unknown {what} {name:?}{hint}")]
    Unknown {
        /// pod, service, node or external.
        what: &'static str,
        /// As it was given.
        name: String,
        /// `, did you mean "shop/web"?`, or nothing.
        hint: String,
    },
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (prefix, rest) = prefix_of(text);
        let Some((name, port)) = rest.split_once(':') else {
            return Ok(Self { who: text.parse()?, port: None });
        };
        let port = port.parse().map_err(|why| EndpointError::Syntax { text: text.into(), why })?;
        let who = text[..prefix.map_or(0, |prefix| prefix.len() + 1) + name.len()].parse()?;
        Ok(Self { who, port: Some(port) })
    }
}

impl FromStr for Who {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = |why: &str| Err(EndpointError::Syntax { text: text.into(), why: why.into() });
        let (prefix, name) = prefix_of(text);
        let namespaced = matches!(prefix, None | Some("svc"));
        let parts: Vec<&str> = name.split('/').collect();
        match parts.as_slice() {
            _ if name.contains(':') => return wrong("a port is not asked for"),
            parts if parts.contains(&"") => return wrong("a name is missing"),
            [_, _] if namespaced => {}
            [_] if !namespaced => {}
            [_] => return wrong("the namespace is missing"),
            _ => return wrong("too many slashes"),
        }
        let name = name.to_owned();
        Ok(match prefix {
            Some("ext") => Self::External(name),
            Some("node") => Self::Node(name),
            Some("svc") => Self::Service(name),
            _ => Self::Pod(name),
        })
    }
}

/// `svc` and what follows, of `svc:shop/api`.
fn prefix_of(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((prefix @ ("ext" | "node" | "svc"), rest)) => (Some(prefix), rest),
        _ => (None, text),
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let number: i64 = number.parse().map_err(|_| format!("port {number:?} is not a number"))?;
        let number = syntax::port(number).map_err(|why| format!("port {why}"))?;
        let protocol = syntax::protocol(Some(&protocol.to_uppercase()))
            .map_err(|_| format!("protocol {protocol:?} is none of tcp, udp and sctp"))?;
        Ok(Self { number, protocol })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol.to_string().to_lowercase())
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(id) => f.write_str(id),
            Self::External(name) => write!(f, "ext:{name}"),
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Service(id) => write!(f, "svc:{id}"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.who.fmt(f)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// What a name stands for in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A pod.
    Pod(&'a Pod),
    /// A host outside.
    External(&'a External),
    /// A node.
    Node(&'a Node),
    /// A Service.
    Service(&'a Service),
}

impl Found<'_> {
    /// Where it is reached: a Service at its cluster address.
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Pod(pod) => pod.address(),
            Self::External(external) => external.address,
            Self::Node(node) => node.address(),
            Self::Service(service) => service.address(),
        }
    }

    /// Where it is reached, in each family it has.
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Pod(pod) => &pod.addresses,
            Self::External(external) => std::slice::from_ref(&external.address),
            Self::Node(node) => &node.addresses,
            Self::Service(service) => &service.addresses,
        }
    }

    /// Where it is reached from somebody with these addresses: at the first of a family that both have, or
    /// at the first of all if there is none.
    pub fn address_from(&self, own: &[IpAddr]) -> IpAddr {
        let reached = |to: &&IpAddr| own.iter().any(|from| from.is_ipv4() == to.is_ipv4());
        self.addresses().iter().find(reached).copied().unwrap_or_else(|| self.address())
    }

    /// Its name as on the command line.
    pub fn who(&self) -> Who {
        match self {
            Self::Pod(pod) => Who::Pod(pod.id()),
            Self::External(external) => Who::External(external.name.clone()),
            Self::Node(node) => Who::Node(node.name.clone()),
            Self::Service(service) => Who::Service(service.id()),
        }
    }
}

impl Cluster {
    /// What a name stands for.
    ///
    /// # Errors
    /// [`EndpointError::Unknown`], with the nearest name there is.
    pub fn find(&self, who: &Who) -> Result<Found<'_>, EndpointError> {
        let (found, what, name, known): (_, _, _, Vec<String>) = match who {
            Who::Pod(id) => {
                (self.pod(id).map(Found::Pod), "pod", id, self.pods.iter().map(Pod::id).collect())
            }
            Who::External(name) => {
                let known = self.externals.iter().map(|external| external.name.clone()).collect();
                (self.external(name).map(Found::External), "external", name, known)
            }
            Who::Node(name) => {
                let known = self.nodes.iter().map(|node| node.name.clone()).collect();
                (self.node(name).map(Found::Node), "node", name, known)
            }
            Who::Service(id) => {
                let known = self.services.iter().map(Service::id).collect();
                (self.service(id).map(Found::Service), "service", id, known)
            }
        };
        found.ok_or_else(|| EndpointError::Unknown {
            what,
            name: name.clone(),
            hint: did_you_mean(name, known.iter().map(String::as_str)),
        })
    }
}

/// `, did you mean "web"?` if one of the names there are is near enough, else nothing.
pub(super) fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let near = known.map(|candidate| (distance(name, candidate), candidate)).min();
    // A third of the letters wrong is still a slip; more is another word.
    match near.filter(|(distance, _)| *distance <= name.chars().count().div_ceil(3)) {
        Some((_, candidate)) => format!(", did you mean {candidate:?}?"),
        None => String::new(),
    }
}

/// Letters to insert, remove, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            rows[i][j] = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                rows[i][j] = rows[i][j].min(rows[i - 2][j - 2] + 1);
            }
        }
    }
    rows[a.len()][b.len()]
}
