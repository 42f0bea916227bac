//! What steers frames and packets beside routes: what a bridge knows of its ports, and rules that choose a table.

use std::io::ErrorKind;
use std::net::IpAddr;

use dataplane::wire::Mac;
use ipnet::IpNet;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};

use super::{Error, Links, Message, Route};

/// Which packets a rule is about; all that is said must be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen<'a> {
    /// Those of a transport protocol that come in by a link, from a range, out of one of its ports.
    From {
        /// The link.
        link: &'a str,
        /// The range of addresses.
        range: IpNet,
        /// As in the IP header.
        protocol: u8,
        /// The first and the last port.
        ports: (u16, u16),
    },
    /// Those to an address.
    To(IpAddr),
}

/// What a rule does with its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// They follow the routes of a table other than the main one.
    Table(u8),
    /// They go nowhere, without an answer.
    Blackhole,
}

impl Links {
    /// Says for good behind which port of its bridge a hardware address is, so that frames for it go to no other.
    ///
    /// # Errors
    /// [`Error::Missing`], it is no port of a bridge, or the kernel's reason.
    pub fn station(&mut self, port: &str, mac: Mac) -> Result<(), Error> {
        let tried = format!("say that {mac} is behind {port}");
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.index(&tried, port)?;
        // Permanent ones are the bridge's own.
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
        self.request(&tried, Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Lets a port of a bridge have only what is for a hardware address that is behind it: no broadcast, no
    /// multicast, and nothing whose port the bridge does not know.
    ///
    /// # Errors
    /// [`Error::Missing`], it is no port of a bridge, or the kernel's reason.
    pub fn spare_floods(&mut self, port: &str) -> Result<(), Error> {
        let floods = vec![
            InfoBridgePort::UnicastFlood(false),
            InfoBridgePort::MulticastFlood(false),
            InfoBridgePort::BroadcastFlood(false),
        ];
        let mut message = LinkUnspec::new_with_name(port).build();
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(floods)),
        ]));
        self.change(&format!("keep floods from {port}"), port, Message::NewLink(message))
    }

    /// Adds a rule that is asked before the main routing table, unless it is there.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn rule(&mut self, chosen: Chosen<'_>, rule: Rule) -> Result<(), Error> {
        let mut message = RuleMessage::default();
        (message.header.action, message.header.table) = match rule {
            Rule::Table(table) => (RuleAction::ToTable, table),
            Rule::Blackhole => (RuleAction::Blackhole, 0),
        };
        let range = match chosen {
            Chosen::From { link, range, protocol, ports: (start, end) } => {
                message.header.src_len = range.prefix_len();
                message.attributes = vec![
                    RuleAttribute::Source(range.network()),
                    RuleAttribute::Iifname(link.to_owned()),
                    RuleAttribute::IpProtocol(IpProtocol::from(protocol)),
                    RuleAttribute::SourcePortRange(RulePortRange { start, end }),
                ];
                range
            }
            Chosen::To(address) => {
                let whole = IpNet::from(address);
                message.header.dst_len = whole.prefix_len();
                message.attributes = vec![RuleAttribute::Destination(address)];
                whole
            }
        };
        message.header.family = match range {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        let tried = format!("add a rule for packets of {range}");
        match self.add(&tried, Message::NewRule(message)) {
            Err(Error::Refused { source, .. }) if source.kind() == ErrorKind::AlreadyExists => Ok(()),
            added => added,
        }
    }

    /// Sets a route of a table that rules lead to, in place of one to the same destinations.
    ///
    /// # Errors
    /// [`Error::Missing`], or the kernel's reason.
    pub fn route_in(&mut self, table: u8, route: Route<'_>) -> Result<(), Error> {
        let tried = format!("add a route to {} to table {table}", route.to);
        let mut message = self.row(&tried, route)?;
        message.header.table = table;
        self.request(&tried, Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }
}
