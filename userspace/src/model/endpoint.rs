//! Names on the command line, with `:port/protocol` if need be.
//!
//! | name | stands for |
//! | --- | --- |
//! | `ns/pod` | a pod |
//! | `node:name` | a node: with a node port or a host port, what is behind that |
//! | `ext:name` | a host outside |
//! | `svc:ns/name` | a Service at its cluster address |
//! | `svc:ns/name@lb` | a Service at its frontend of the load balancer |
//! | `svc:ns/name@external` | a Service at its external address (`externalIPs`) |

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::cluster::{Cluster, External, Node, Pod, Protocol, Service, ServiceKind};
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
    /// `namespace/name`, at its cluster address.
    Service(String),
    /// `namespace/name`, at another address of it.
    Frontend(String, Way),
}

/// How a Service is reached otherwise than at its cluster address or at a node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// At the load balancer: `@lb`.
    LoadBalancer,
    /// At an address of `spec.externalIPs`: `@external`.
    External,
}

impl Way {
    const ALL: [(&'static str, Self); 2] = [("lb", Self::LoadBalancer), ("external", Self::External)];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LoadBalancer => "lb",
            Self::External => "external",
        })
    }
}

/// Why a text isn't the name of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It isn't written as one.
    #[error(
        "cannot read {text:?}: {why}: write ns/pod, ext:name, node:name, svc:ns/name, svc:ns/name@lb or svc:ns/name@external, with :8080/tcp after it if need be"
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
    /// The Service is there, but not to be reached that way.
    #[error("svc:{service}@{way} has no address: {why}")]
    NoFrontend {
        /// `namespace/name`.
        service: String,
        /// How it was to be reached.
        way: Way,
        /// What it would need.
        why: &'static str,
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
        let (name, way) = match name.split_once('@').filter(|_| prefix == Some("svc")) {
            Some((name, way)) => (name, Some(way)),
            None => (name, None),
        };
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
            Some("svc") => match way {
                None => Self::Service(name),
                Some(way) => match Way::ALL.iter().find(|(word, _)| *word == way) {
                    Some((_, way)) => Self::Frontend(name, *way),
                    None => return wrong(&format!("{way:?} is neither lb nor external")),
                },
            },
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
            Self::Frontend(id, way) => write!(f, "svc:{id}@{way}"),
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
    /// A Service, at its cluster address.
    Service(&'a Service),
    /// A Service, at another address of it, which it has.
    Frontend(&'a Service, Way),
}

impl Found<'_> {
    /// Where it is reached.
    pub fn address(&self) -> IpAddr {
        self.addresses().first().copied().expect("whoever is found has an address")
    }

    /// Where it is reached, all of them.
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Pod(pod) => &pod.addresses,
            Self::External(external) => std::slice::from_ref(&external.address),
            Self::Node(node) => &node.addresses,
            Self::Service(service) => &service.addresses,
            Self::Frontend(service, Way::LoadBalancer) => &service.load_balancer_addresses,
            Self::Frontend(service, Way::External) => &service.external_addresses,
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
            Self::Frontend(service, way) => Who::Frontend(service.id(), *way),
        }
    }
}

impl Cluster {
    /// What a name stands for.
    ///
    /// # Errors
    /// [`EndpointError::Unknown`], with the nearest name there is; [`EndpointError::NoFrontend`].
    pub fn find(&self, who: &Who) -> Result<Found<'_>, EndpointError> {
        if let Who::Frontend(id, way) = who
            && let Some(service) = self.service(id)
        {
            return frontend(service, *way);
        }
        let found = match who {
            Who::Pod(id) => self.pod(id).map(Found::Pod),
            Who::External(name) => self.external(name).map(Found::External),
            Who::Node(name) => self.node(name).map(Found::Node),
            Who::Service(id) | Who::Frontend(id, _) => self.service(id).map(Found::Service),
        };
        found.ok_or_else(|| self.unknown(who))
    }

    fn unknown(&self, who: &Who) -> EndpointError {
        let (what, name, known): (_, _, Vec<String>) = match who {
            Who::Pod(id) => ("pod", id, self.pods.iter().map(Pod::id).collect()),
            Who::External(name) => {
                ("external", name, self.externals.iter().map(|external| external.name.clone()).collect())
            }
            Who::Node(name) => ("node", name, self.nodes.iter().map(|node| node.name.clone()).collect()),
            Who::Service(id) | Who::Frontend(id, _) => {
                ("service", id, self.services.iter().map(Service::id).collect())
            }
        };
        let hint = did_you_mean(name, known.iter().map(String::as_str));
        EndpointError::Unknown { what, name: name.clone(), hint }
    }
}

pub(super) fn frontend(service: &Service, way: Way) -> Result<Found<'_>, EndpointError> {
    let found = Found::Frontend(service, way);
    let why = match way {
        _ if !found.addresses().is_empty() => return Ok(found),
        Way::LoadBalancer if service.kind == ServiceKind::LoadBalancer => {
            "the load balancer gave it none that is on the path"
        }
        Way::LoadBalancer => "only a Service of type LoadBalancer has one",
        Way::External => "it states no externalIPs",
    };
    Err(EndpointError::NoFrontend { service: service.id(), way, why })
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
