//! Links, addresses, routes and neighbours of one namespace, by netlink.
//!
//! A netlink socket speaks for the namespace that it was opened in, whichever thread uses it later. So
//! [`Links::open`] enters the namespace once, and everything after is an ordinary blocking call:
//! rtnetlink(7) answers within the system call, there is nothing to wait for.
//!
//! Source: the kernel's `Documentation/netlink/specs/rt_link.yaml` and its neighbours.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use dataplane::wire::Mac;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::{AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, State};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteMetric, RouteScope, RouteType};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use crate::netns::{self, Netns};

mod offload;
mod steer;
mod tunnel;

pub use steer::{Chosen, Rule};
pub use tunnel::Vxlan;

/// Why something with a link did not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] netns::Error),
    /// There is no such link.
    #[error("cannot {tried} in network namespace {namespace}: there is no link {link}")]
    Missing {
        /// What was tried.
        tried: String,
        /// The namespace's name.
        namespace: String,
        /// The link's name.
        link: String,
    },
    /// It is set up, but its other end is not, or not any more.
    #[error("link {link} in network namespace {namespace} does not come up: is its other end up?")]
    Down {
        /// The namespace's name.
        namespace: String,
        /// The link's name.
        link: String,
    },
    /// Links are the superuser's.
    #[error("cannot {tried} in network namespace {namespace}: permission denied; run as root")]
    Permission {
        /// What was tried.
        tried: String,
        /// The namespace's name.
        namespace: String,
    },
    /// Anything else that the kernel refused.
    #[error("cannot {tried} in network namespace {namespace}: {source}{}", detail.as_deref().unwrap_or(""))]
    Refused {
        /// What was tried.
        tried: String,
        /// The namespace's name.
        namespace: String,
        /// The kernel's reason.
        source: io::Error,
        /// What it says beside, in brackets.
        detail: Option<String>,
    },
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where it is to be.
    pub netns: &'a Netns,
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Its hardware address; the kernel draws one if there is none.
    pub mac: Option<Mac>,
    /// The longest IP packet, in bytes.
    pub mtu: u32,
    /// The longest packet that a socket may hand down to be cut later, in bytes.
    pub gso_max_size: u32,
}

/// Where packets to a destination go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// Straight on to the link of that name.
    Link(&'a str),
    /// To a neighbour on the link of that name, whether or not a route leads to the neighbour.
    Via(IpAddr, &'a str),
    /// Nowhere, without an answer.
    Blackhole,
}

/// A row of the kernel's main routing table of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The destinations.
    pub to: IpNet,
    /// The next hop.
    pub next: Next<'a>,
    /// What a socket without an address takes as its own.
    pub source: Option<IpAddr>,
    /// The longest packet that may take it, in bytes, if that is less than its link's.
    pub mtu: Option<u32>,
}

impl<'a> Route<'a> {
    /// To the one address `to`.
    pub fn host(to: IpAddr, next: Next<'a>) -> Self {
        Self::net(IpNet::from(to), next)
    }

    /// To the range `to`.
    pub fn net(to: IpNet, next: Next<'a>) -> Self {
        Self { to, next, source: None, mtu: None }
    }

    /// To wherever no other route of the gateway's family leads.
    pub fn default(gateway: IpAddr, link: &'a str) -> Self {
        let all = match gateway {
            IpAddr::V4(_) => IpNet::V4(Ipv4Net::default()),
            IpAddr::V6(_) => IpNet::V6(Ipv6Net::default()),
        };
        Self::net(all, Next::Via(gateway, link))
    }

    /// The same, with a source address for the namespace's own sockets.
    pub fn source(self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self }
    }
}

/// The links of one namespace.
#[derive(Debug)]
pub struct Links {
    namespace: String,
    netlink: Socket,
    /// Takes the requests that netlink does not know (ethtool's).
    ioctl: UdpSocket,
    sequence: u32,
}

impl Links {
    /// Opens the namespace's netlink.
    ///
    /// # Errors
    /// [`Error::Netns`] if it cannot be entered.
    pub fn open(netns: &Netns) -> Result<Self, Error> {
        let opened = netns.run(|| -> io::Result<_> {
            let mut netlink = Socket::new(NETLINK_ROUTE)?;
            netlink.bind_auto()?;
            netlink.connect(&SocketAddr::new(0, 0))?;
            // The kernel then says in words what it did not like, and does not repeat the question.
            netlink.set_ext_ack(true)?;
            netlink.set_cap_ack(true)?;
            Ok((netlink, UdpSocket::bind("0.0.0.0:0")?))
        })?;
        let namespace = netns.name().to_owned();
        match opened {
            Ok((netlink, ioctl)) => Ok(Self { namespace, netlink, ioctl, sequence: 0 }),
            Err(source) => {
                Err(Error::Refused { tried: "open netlink".to_owned(), namespace, source, detail: None })
            }
        }
    }

    /// Adds a bridge, without spanning tree: its ports forward as soon as they are up.
    ///
    /// # Errors
    /// It exists, or the kernel's reason.
    pub fn bridge(&mut self, name: &str, mac: Mac, mtu: u32) -> Result<(), Error> {
        let bridge = LinkBridge::new(name).address(mac.0.to_vec()).mtu(mtu).build();
        self.add(&format!("add bridge {name}"), Message::NewLink(bridge))
    }

    /// Makes the link a port of the bridge.
    ///
    /// # Errors
    /// [`Error::Missing`], or the kernel's reason.
    pub fn join(&mut self, link: &str, bridge: &str) -> Result<(), Error> {
        let tried = format!("make {link} a port of {bridge}");
        let bridge = self.index(&tried, bridge)?;
        let port = LinkUnspec::new_with_name(link).controller(bridge).build();
        self.change(&tried, link, Message::SetLink(port))
    }

    /// Sets the link up.
    ///
    /// # Errors
    /// [`Error::Missing`], or the kernel's reason.
    pub fn up(&mut self, link: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_name(link).up().build();
        self.change(&format!("set {link} up"), link, Message::SetLink(message))
    }

    /// Waits until the link carries packets. A link that has just come up, because its peer did, drops
    /// what it is given until the kernel has noticed; to ask after it makes newer kernels notice at once.
    ///
    /// # Errors
    /// [`Error::Missing`], or [`Error::Down`] if it takes longer than seconds.
    pub fn wait_up(&mut self, link: &str) -> Result<(), Error> {
        let tried = format!("wait for {link} to carry packets");
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.state(&tried, link)? != State::Up {
            if Instant::now() > deadline {
                return Err(Error::Down { namespace: self.namespace.clone(), link: link.to_owned() });
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Deletes the link, and its peer if it is a veth. To delete what is not there succeeds.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn delete(&mut self, link: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_name(link).build();
        let deleted = self.change(&format!("delete {link}"), link, Message::DelLink(message));
        if matches!(deleted, Err(Error::Missing { .. })) { Ok(()) } else { deleted }
    }

    /// Whether there is a link of that name.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn has(&mut self, link: &str) -> Result<bool, Error> {
        match self.index("look", link) {
            Ok(_) => Ok(true),
            Err(Error::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives the link an address; a prefix that is not the whole address brings a route along. Nobody is
    /// asked whether somebody else has it.
    ///
    /// # Errors
    /// [`Error::Missing`], it has that address, or the kernel's reason.
    pub fn address(&mut self, link: &str, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let tried = format!("give {link} the address {address}/{prefix}");
        let index = self.index(&tried, link)?;
        let mut message = address_on(index, address, prefix);
        if address.is_ipv6() {
            message.header.flags |= AddressHeaderFlags::Nodad;
        }
        self.add(&tried, Message::NewAddress(message))
    }

    /// Takes an address off the link, and the routes that came along with it. To take one that it does not
    /// have succeeds.
    ///
    /// # Errors
    /// [`Error::Missing`], or the kernel's reason.
    pub fn unaddress(&mut self, link: &str, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let tried = format!("take the address {address}/{prefix} off {link}");
        let index = self.index(&tried, link)?;
        let message = address_on(index, address, prefix);
        match self.request(&tried, Message::DelAddress(message), 0) {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                Ok(())
            }
            taken => taken.map(drop),
        }
    }

    /// Sets a route, in place of one to the same destinations.
    ///
    /// # Errors
    /// [`Error::Missing`], or the kernel's reason.
    pub fn route(&mut self, route: Route<'_>) -> Result<(), Error> {
        let tried = format!("add a route to {}", route.to);
        let message = self.row(&tried, route)?;
        self.request(&tried, Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Deletes the route to exactly these destinations. To delete what is not there succeeds.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn unroute(&mut self, to: IpNet) -> Result<(), Error> {
        let mut message = toward(to);
        // Any kind and any scope will do.
        message.header.scope = RouteScope::NoWhere;
        message.header.kind = RouteType::Unspec;
        match self.request(&format!("delete the route to {to}"), Message::DelRoute(message), 0) {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    /// Says for good which hardware address a neighbour has, so that nobody asks.
    ///
    /// # Errors
    /// [`Error::Missing`], or the kernel's reason.
    pub fn neighbour(&mut self, link: &str, address: IpAddr, mac: Mac) -> Result<(), Error> {
        let tried = format!("add the neighbour {address} on {link}");
        let mut message = neighbour_on(self.index(&tried, link)?, address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        self.request(&tried, Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Forgets a neighbour. To forget one that is not known succeeds.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such link, or the kernel's reason.
    pub fn forget(&mut self, link: &str, address: IpAddr) -> Result<(), Error> {
        let tried = format!("delete the neighbour {address} on {link}");
        let message = neighbour_on(self.index(&tried, link)?, address);
        match self.request(&tried, Message::DelNeighbour(message), 0) {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            forgotten => forgotten.map(drop),
        }
    }

    /// The number of a link, which all but link messages name it by.
    fn index(&mut self, tried: &str, link: &str) -> Result<u32, Error> {
        Ok(self.found(tried, link)?.header.index)
    }

    /// Whether a link carries packets (RFC 2863, `ifOperStatus`).
    fn state(&mut self, tried: &str, link: &str) -> Result<State, Error> {
        let found = self.found(tried, link)?;
        let state = found.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::OperState(state) => Some(*state),
            _ => None,
        });
        Ok(state.unwrap_or(State::Unknown))
    }

    /// What the kernel says about a link.
    fn found(&mut self, tried: &str, link: &str) -> Result<LinkMessage, Error> {
        let message = LinkUnspec::new_with_name(link).build();
        match self.request(tried, Message::GetLink(message), 0) {
            Ok(Some(Message::NewLink(found))) => Ok(found),
            Ok(_) => Err(self.missing(tried, link)),
            Err(error) => Err(self.or_missing(error, tried, link)),
        }
    }

    /// A route as a message.
    fn row(&mut self, tried: &str, route: Route<'_>) -> Result<RouteMessage, Error> {
        let mut row = RouteMessageBuilder::<IpAddr>::new();
        *row.get_mut() = toward(route.to);
        row = match route.next {
            Next::Link(link) => row.output_interface(self.index(tried, link)?).scope(RouteScope::Link),
            Next::Via(_, link) => row.output_interface(self.index(tried, link)?).onlink(),
            Next::Blackhole => row.kind(RouteType::BlackHole),
        };
        let mut row = row.build();
        if let Next::Via(gateway, _) = route.next {
            row.attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        row.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
        row.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        Ok(row)
    }

    /// Adds what must not exist yet.
    fn add(&mut self, tried: &str, message: Message) -> Result<(), Error> {
        self.request(tried, message, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Changes a link that the message names.
    fn change(&mut self, tried: &str, link: &str, message: Message) -> Result<(), Error> {
        let changed = self.request(tried, message, 0).map(drop);
        changed.map_err(|error| self.or_missing(error, tried, link))
    }

    /// The kernel's "no such device", in our words.
    fn or_missing(&self, error: Error, tried: &str, link: &str) -> Error {
        match error {
            Error::Refused { source, .. } if source.raw_os_error() == Some(libc::ENODEV) => {
                self.missing(tried, link)
            }
            error => error,
        }
    }

    fn missing(&self, tried: &str, link: &str) -> Error {
        let (tried, link) = (tried.to_owned(), link.to_owned());
        Error::Missing { tried, namespace: self.namespace.clone(), link }
    }

    fn refused(&self, tried: &str, source: io::Error, detail: Option<String>) -> Error {
        let (tried, namespace) = (tried.to_owned(), self.namespace.clone());
        if source.kind() == io::ErrorKind::PermissionDenied {
            return Error::Permission { tried, namespace };
        }
        Error::Refused { tried, namespace, source, detail }
    }

    /// Sends one message and waits for the kernel's word on it; a message that answers is given back.
    fn request(&mut self, tried: &str, message: Message, flags: u16) -> Result<Option<Message>, Error> {
        match self.exchange(message, flags) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(refusal)) => Err(self.refused(tried, refusal.to_io(), words(&refusal))),
            Err(error) => Err(self.refused(tried, error, None)),
        }
    }

    /// The wire side of [`Self::request`]: errors of the socket outside, of the kernel inside.
    fn exchange(
        &mut self,
        message: Message,
        flags: u16,
    ) -> io::Result<Result<Option<Message>, ErrorMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.netlink.send(&bytes, 0)?;
        let mut answer = None;
        loop {
            let (datagram, _) = self.netlink.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let reply = NetlinkMessage::<Message>::deserialize(rest).map_err(io::Error::other)?;
                // Messages stand at multiples of four bytes.
                let length = (reply.header.length as usize).next_multiple_of(4);
                rest = rest.get(length.max(4)..).unwrap_or_default();
                if reply.header.sequence_number != self.sequence {
                    continue;
                }
                match reply.payload {
                    NetlinkPayload::Error(word) if word.code.is_some() => return Ok(Err(word)),
                    NetlinkPayload::Error(_) => return Ok(Ok(answer)),
                    NetlinkPayload::InnerMessage(message) => answer = Some(message),
                    _ => {}
                }
            }
        }
    }
}

/// Adds a veth pair, each end where it belongs from its first moment.
///
/// # Errors
/// A link of either name exists there, or the kernel's reason. Then there is neither end.
pub fn pair(near: &End<'_>, far: &End<'_>) -> Result<(), Error> {
    let tried = format!("add the link {} to {} in {}", near.name, far.name, far.netns.name());
    let far_side = File::open(far.netns.path()).map_err(|source| Error::Refused {
        tried: tried.clone(),
        namespace: near.netns.name().to_owned(),
        source,
        detail: None,
    })?;
    let mut peer = with_properties(LinkMessageBuilder::<LinkUnspec>::new(), far).build();
    peer.attributes.push(LinkAttribute::NetNsFd(far_side.as_raw_fd()));
    let veth = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    let message: LinkMessage = with_properties(veth, near).build();
    Links::open(near.netns)?.add(&tried, Message::NewLink(message))
}

/// An address on the link of that number.
fn address_on(link: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    match address {
        IpAddr::V4(address) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(link).address(address, prefix).build()
        }
        IpAddr::V6(address) => {
            AddressMessageBuilder::<Ipv6Addr>::new().index(link).address(address, prefix).build()
        }
    }
}

/// A route to a range of addresses, that leads nowhere yet.
fn toward(to: IpNet) -> RouteMessage {
    let mut row = RouteMessageBuilder::<IpAddr>::new().build();
    row.header.address_family = match to {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    row.header.destination_prefix_length = to.prefix_len();
    if to.prefix_len() > 0 {
        row.attributes.push(RouteAttribute::Destination(to.network().into()));
    }
    row
}

/// A neighbour on the link of that number, of which nothing is said yet.
fn neighbour_on(link: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    let (family, address) = match address {
        IpAddr::V4(address) => (AddressFamily::Inet, NeighbourAddress::Inet(address)),
        IpAddr::V6(address) => (AddressFamily::Inet6, NeighbourAddress::Inet6(address)),
    };
    message.header.family = family;
    message.header.ifindex = link;
    message.attributes = vec![NeighbourAttribute::Destination(address)];
    message
}

/// What either end of a pair is made with.
fn with_properties<T>(link: LinkMessageBuilder<T>, end: &End<'_>) -> LinkMessageBuilder<T> {
    let link =
        link.name(end.name).mtu(end.mtu).append_extra_attribute(LinkAttribute::GsoMaxSize(end.gso_max_size));
    match end.mac {
        Some(mac) => link.address(mac.0.to_vec()),
        None => link,
    }
}

/// What the kernel says about a refusal beside its number: the extended acknowledgement's message
/// (`NLMSGERR_ATTR_MSG`, kernel documentation "Introduction to Netlink"), in brackets.
fn words(refusal: &ErrorMessage) -> Option<String> {
    const MESSAGE: u16 = 1;
    // The header of our request comes first; its payload does not, as asked (`NETLINK_CAP_ACK`).
    let mut rest = refusal.header.get(16..)?;
    while let [l0, l1, k0, k1, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([k0, k1]) == MESSAGE {
            let text = String::from_utf8_lossy(rest.get(4..length)?);
            return Some(format!(" ({})", text.trim_end_matches('\0')));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read_from_an_extended_acknowledgement() {
        let mut refusal = ErrorMessage::default();
        refusal.header = vec![0; 16];
        // An attribute to pass over (offset, 8 bytes), then the message.
        refusal.header.extend([8, 0, 2, 0, 1, 2, 3, 4]);
        refusal.header.extend([8, 0, 1, 0, b'b', b'a', b'd', 0]);
        assert_eq!(words(&refusal).as_deref(), Some(" (bad)"));
    }

    #[test]
    fn a_refusal_without_words_or_cut_short_has_none() {
        for tail in [vec![], vec![8, 0], vec![200, 0, 1, 0, b'x'], vec![0, 0, 2, 0]] {
            let mut refusal = ErrorMessage::default();
            refusal.header = [vec![0; 16], tail].concat();
            assert_eq!(words(&refusal), None);
        }
    }
}
