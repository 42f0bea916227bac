//! Connections over UDP that lead to endpoints that are no more, taken out of a node's table.
//!
//! A client over UDP that keeps its port keeps its connection, as long as it goes on sending: no rule is asked again,
//! and what it sends goes where nobody is. So after each change of rules those are forgotten that were opened to a
//! frontend and lead to whom it does not lead any more, as kube-proxy does. A connection over TCP ends by itself.
//!
//! Source: Kubernetes, `pkg/proxy/conntrack/cleanup.go`; `linux/netfilter/nfnetlink_conntrack.h`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{self, Socket};
use userspace::model::{Cluster, Protocol};

use super::run::Error;
use crate::netns::Netns;

/// Who answers at each frontend.
type Frontends = HashMap<SocketAddr, HashSet<SocketAddr>>;

/// Forgets the connections of a node that lead where, since the change from `before`, nobody is led any more.
///
/// # Errors
/// The table cannot be read, or not be changed.
pub fn forget(netns: &Netns, before: Option<&Cluster>, after: &Cluster, node: &str) -> Result<(), Error> {
    let Some(before) = before else { return Ok(()) };
    let mut frontends = frontends(after, node);
    for gone in self::frontends(before, node).into_keys() {
        frontends.entry(gone).or_default();
    }
    if frontends.is_empty() {
        return Ok(());
    }
    let is_stale = |row: &Row| frontends.get(&row.dialled).is_some_and(|who| !who.contains(&row.answers));
    let forgotten = netns.run(|| {
        let mut table = Table::open()?;
        let rows = table.rows()?;
        // Of those that cannot be forgotten the first is told, and the others are forgotten all the same.
        let all = rows.iter().filter(|row| is_stale(row)).map(|row| table.delete(row));
        all.fold(Ok(()), io::Result::and)
    })?;
    let name = || netns.name().to_owned();
    forgotten.map_err(|source| Error::Connections { netns: name(), source })
}

/// How many connections over UDP a namespace has.
///
/// # Errors
/// The table cannot be read.
pub fn tracked(netns: &Netns) -> Result<usize, Error> {
    let rows = netns.run(|| Table::open()?.rows())?;
    let failed = |source| Error::Connections { netns: netns.name().to_owned(), source };
    Ok(rows.map_err(failed)?.len())
}

/// The frontends over UDP at which a client may come in to this node, and who answers there: also those on their way
/// out, as long as they serve.
fn frontends(cluster: &Cluster, node: &str) -> Frontends {
    let own = cluster.node(node).map(|node| node.addresses.as_slice()).unwrap_or_default();
    let mut frontends = Frontends::new();
    for service in &cluster.services {
        let outside = service.external_addresses.iter().chain(&service.load_balancer_addresses);
        let addresses: Vec<IpAddr> = service.addresses.iter().chain(outside).copied().collect();
        for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            let at = addresses.iter().map(|address| SocketAddr::new(*address, port.port));
            let alike =
                own.iter().filter(|own| service.addresses.iter().any(|it| it.is_ipv4() == own.is_ipv4()));
            let at_node =
                port.node_port.into_iter().flat_map(|port| alike.clone().map(move |it| (*it, port)));
            let serving = port.backends.iter().filter(|it| it.ready || it.serving);
            let who: Vec<SocketAddr> = serving.map(|it| SocketAddr::new(it.address, it.port)).collect();
            for frontend in at.chain(at_node.map(SocketAddr::from)) {
                frontends.entry(frontend).or_default().extend(&who);
            }
        }
    }
    for pod in cluster.pods_on(node).filter(|pod| !pod.host_network) {
        for port in pod.host_ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            let who = pod.addresses.iter().map(|address| SocketAddr::new(*address, port.container_port));
            for address in own.iter().filter(|own| port.address.is_none_or(|only| only == **own)) {
                frontends.entry(SocketAddr::new(*address, port.port)).or_default().extend(who.clone());
            }
        }
    }
    frontends
}

/// A connection over UDP.
struct Row {
    /// To whom its client sends.
    dialled: SocketAddr,
    /// Who answers, when the answer comes.
    answers: SocketAddr,
    /// What names it to the kernel: its family, and the client's way as an attribute.
    name: (u8, Vec<u8>),
}

/// The connections of the calling thread's namespace.
struct Table(Socket);

/// How often the table is read at most, until nobody has changed it meanwhile.
const READS: u32 = 8;

/// What a datagram of the kernel's says of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// More of it comes.
    More,
    /// That was all.
    All,
}

/// What is asked of the kernel's table: `NFNL_SUBSYS_CTNETLINK`, and what to do (`IPCTNL_MSG_CT_…`).
const CONNECTIONS: u16 = 1 << 8;
const GET: u16 = CONNECTIONS | 1;
const DELETE: u16 = CONNECTIONS | 2;
/// Attributes of a connection: both ways (`CTA_TUPLE_…`).
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
/// Of a way: its addresses, and what is above them; of these the sender's and the receiver's, of IPv4 and IPv6.
const ADDRESSES: u16 = 1;
const TRANSPORT: u16 = 2;
const SOURCE: [u16; 2] = [1, 3];
const TARGET: [u16; 2] = [2, 4];
const PROTOCOL: u16 = 1;
const SOURCE_PORT: u16 = 2;
const TARGET_PORT: u16 = 3;

/// `struct nlmsghdr`, and `struct nfgenmsg` behind it.
const HEADER: usize = 16;
const BODY: usize = HEADER + 4;

impl Table {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&sys::SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// All connections over UDP. Where the table was changed while it was read, some may be missing: then once more.
    fn rows(&mut self) -> io::Result<Vec<Row>> {
        for _ in 0..READS {
            let mut rows = Vec::new();
            let all = (libc::AF_UNSPEC as u8, [].as_slice());
            let whole = self.ask(GET, libc::NLM_F_DUMP as u16, all, |message| rows.extend(row(message)))?;
            if whole {
                return Ok(rows);
            }
        }
        Err(io::Error::other(format!("the table was changed each of the {READS} times that it was read")))
    }

    /// Forgets one. To forget one that is no more succeeds.
    fn delete(&mut self, row: &Row) -> io::Result<()> {
        let (family, way) = &row.name;
        match self.ask(DELETE, libc::NLM_F_ACK as u16, (*family, way), |_| ()) {
            Err(why) if why.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    /// Sends a request and gives what is answered to `take`, until the kernel says that that was all. Whether it is a
    /// whole answer: not where the table was changed meanwhile.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        (family, attributes): (u8, &[u8]),
        mut take: impl FnMut(&[u8]),
    ) -> io::Result<bool> {
        let mut request = Vec::with_capacity(BODY + attributes.len());
        request.extend(((BODY + attributes.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        // Its number, and who asks; then the family, and version and identifier, which are 0.
        request.extend([0; 8]);
        request.extend([family, 0, 0, 0]);
        request.extend(attributes);
        self.0.send(&request, 0)?;
        let mut whole = true;
        loop {
            let (datagram, _) = self.0.recv_from_full()?;
            if read(&datagram, &mut whole, &mut take)? == Told::All {
                return Ok(whole);
            }
        }
    }
}

/// Gives the messages of a datagram to `take`, but those that end an answer. `whole` is no longer so where one of them
/// says that the table was changed while it was read (`NLM_F_DUMP_INTR`).
///
/// # Errors
/// Why the kernel has not done what was asked, or not all of it.
fn read(datagram: &[u8], whole: &mut bool, mut take: impl FnMut(&[u8])) -> io::Result<Told> {
    let mut rest = datagram;
    while let Some(length) = u32_at(rest, 0) {
        let length = (length as usize).clamp(HEADER, rest.len().max(HEADER));
        let message = rest.get(..length).unwrap_or_default();
        let Some((kind, flags)) = u16_at(message, 4).zip(u16_at(message, 6)) else { break };
        *whole &= flags & libc::NLM_F_DUMP_INTR as u16 == 0;
        match i32::from(kind) {
            // Both carry a number that is 0 where all went well.
            libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                let errno = u32_at(message, HEADER).map_or(0, |code| (code as i32).wrapping_neg());
                return if errno == 0 { Ok(Told::All) } else { Err(io::Error::from_raw_os_error(errno)) };
            }
            _ => take(message),
        }
        // Messages stand at multiples of four bytes.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Told::More)
}

/// The connection that a message tells of, if it is one over UDP.
fn row(message: &[u8]) -> Option<Row> {
    let (family, body) = (*message.get(HEADER)?, message.get(BODY..)?);
    let (original, whole) = attribute(body, ORIGINAL)?;
    let (reply, _) = attribute(body, REPLY)?;
    let (protocol, _) = attribute(attribute(original, TRANSPORT)?.0, PROTOCOL)?;
    (protocol == [Protocol::Udp.number()]).then_some(())?;
    let dialled = end(original, TARGET, TARGET_PORT)?;
    let answers = end(reply, SOURCE, SOURCE_PORT)?;
    Some(Row { dialled, answers, name: (family, whole.to_vec()) })
}

/// An end of a way.
fn end(way: &[u8], address: [u16; 2], port: u16) -> Option<SocketAddr> {
    let ((addresses, _), (transport, _)) = (attribute(way, ADDRESSES)?, attribute(way, TRANSPORT)?);
    let bytes = |kind| attribute(addresses, kind).map(|(bytes, _)| bytes);
    let address: IpAddr = match (bytes(address[0]), bytes(address[1])) {
        (Some(v4), _) => Ipv4Addr::from(<[u8; 4]>::try_from(v4).ok()?).into(),
        (_, v6) => Ipv6Addr::from(<[u8; 16]>::try_from(v6?).ok()?).into(),
    };
    let (port, _) = attribute(transport, port)?;
    Some(SocketAddr::new(address, u16::from_be_bytes(port.try_into().ok()?)))
}

/// The value of the first attribute of a kind, and the attribute as a whole.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<(&[u8], &[u8])> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let whole = attributes.get(..length).filter(|whole| whole.len() >= 4)?;
        // The two highest bits say what is inside.
        if u16_at(attributes, 2)? & 0x3fff == kind {
            return Some((&whole[4..], whole));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of the kernel's of that kind, with these flags and four bytes behind its header.
    fn message(kind: i32, flags: i32, number: i32) -> Vec<u8> {
        let mut message = (HEADER as u32 + 4).to_ne_bytes().to_vec();
        message.extend([kind as u16, flags as u16].into_iter().flat_map(u16::to_ne_bytes));
        message.extend([0; 8]);
        message.extend(number.to_ne_bytes());
        message
    }

    const ROW: i32 = CONNECTIONS as i32;

    /// What a datagram tells, how many messages of it are rows, and whether it is a whole answer.
    fn told(datagram: &[Vec<u8>]) -> (io::Result<Told>, usize, bool) {
        let (mut rows, mut whole) = (0, true);
        let told = read(&datagram.concat(), &mut whole, |_| rows += 1);
        (told, rows, whole)
    }

    #[test]
    fn an_answer_goes_on_until_it_is_said_to_be_over() {
        let (more, rows, _) = told(&[message(ROW, libc::NLM_F_MULTI, 1), message(ROW, libc::NLM_F_MULTI, 2)]);
        assert_eq!((more.ok(), rows), (Some(Told::More), 2));
        let (all, rows, whole) = told(&[message(ROW, libc::NLM_F_MULTI, 1), message(libc::NLMSG_DONE, 0, 0)]);
        assert_eq!((all.ok(), rows, whole), (Some(Told::All), 1, true));
        assert_eq!(told(&[message(libc::NLMSG_ERROR, 0, 0)]).0.ok(), Some(Told::All));
    }

    #[test]
    fn an_answer_that_ends_in_an_error_is_none() {
        for kind in [libc::NLMSG_DONE, libc::NLMSG_ERROR] {
            let (failed, ..) = told(&[message(ROW, libc::NLM_F_MULTI, 1), message(kind, 0, -libc::ENOBUFS)]);
            assert_eq!(failed.expect_err("the kernel says so").raw_os_error(), Some(libc::ENOBUFS));
        }
    }

    #[test]
    fn an_answer_during_which_the_table_was_changed_is_not_whole() {
        for place in 0..2 {
            let mut flags = [libc::NLM_F_MULTI; 2];
            flags[place] |= libc::NLM_F_DUMP_INTR;
            let (all, _, whole) = told(&[message(ROW, flags[0], 1), message(libc::NLMSG_DONE, flags[1], 0)]);
            assert_eq!((all.ok(), whole), (Some(Told::All), false), "message {place}");
        }
    }
}
