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
    /// Those that the namespace's own sockets send to a port of an address. Where it is one of their own, they are
    /// chosen only behind [`Links::ask_rules_first`].
    Dialled {
        /// The address.
        address: IpAddr,
        /// As in the IP header.
        protocol: u8,
        /// The port.
        port: u16,
    },
}

/// When rules are asked that come before a namespace's own addresses, and when those; and when all others are. The kernel
/// begins with 0, and asks the main table at 32,766.
const FIRST: u32 = 1;
const THEN_OWN: u32 = 2;
const BEFORE_MAIN: u32 = 1000;
/// The table of a namespace's own addresses (rtnetlink(7), `RT_TABLE_LOCAL`).
const OWN: u8 = 255;

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
        let (message, range) = message(chosen, rule);
        match self.add(&format!("add a rule for packets of {range}"), Message::NewRule(message)) {
            Err(Error::Refused { source, .. }) if source.kind() == ErrorKind::AlreadyExists => Ok(()),
            added => added,
        }
    }

    /// Deletes a rule. To delete what is not there succeeds.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn unrule(&mut self, chosen: Chosen<'_>, rule: Rule) -> Result<(), Error> {
        let (message, range) = message(chosen, rule);
        self.delete_rule(&format!("delete the rule for packets of {range}"), message)
    }

    /// Lets rules be asked also about packets to the namespace's own addresses of this one's family, which the kernel
    /// otherwise keeps to itself before any rule.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn ask_rules_first(&mut self, family: IpAddr) -> Result<(), Error> {
        let own = |priority| {
            let mut message = RuleMessage::default();
            message.header.family = family_of(IpNet::from(family));
            (message.header.action, message.header.table) = (RuleAction::ToTable, OWN);
            message.attributes = vec![RuleAttribute::Priority(priority)];
            message
        };
        // The second before the first is gone: the addresses are its own at any moment.
        let tried = "ask rules before a namespace's own addresses";
        match self.add(tried, Message::NewRule(own(THEN_OWN))) {
            Err(Error::Refused { source, .. }) if source.kind() == ErrorKind::AlreadyExists => {}
            added => added?,
        }
        self.delete_rule(tried, own(0))
    }

    fn delete_rule(&mut self, tried: &str, message: RuleMessage) -> Result<(), Error> {
        match self.request(tried, Message::DelRule(message), 0) {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            deleted => deleted.map(drop),
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

/// A rule as a message, and the addresses that it is about.
fn message(chosen: Chosen<'_>, rule: Rule) -> (RuleMessage, IpNet) {
    let mut message = RuleMessage::default();
    (message.header.action, message.header.table) = match rule {
        Rule::Table(table) => (RuleAction::ToTable, table),
        Rule::Blackhole => (RuleAction::Blackhole, 0),
    };
    let range = match chosen {
        Chosen::From { link, range, protocol, ports: (start, end) } => {
            message.header.src_len = range.prefix_len();
            message.attributes = vec![
                RuleAttribute::Priority(BEFORE_MAIN),
                RuleAttribute::Source(range.network()),
                RuleAttribute::Iifname(link.to_owned()),
                RuleAttribute::IpProtocol(IpProtocol::from(protocol)),
                RuleAttribute::SourcePortRange(RulePortRange { start, end }),
            ];
            range
        }
        Chosen::To(address) => {
            message.attributes =
                vec![RuleAttribute::Priority(BEFORE_MAIN), RuleAttribute::Destination(address)];
            IpNet::from(address)
        }
        Chosen::Dialled { address, protocol, port } => {
            message.attributes = vec![
                RuleAttribute::Priority(FIRST),
                RuleAttribute::Destination(address),
                // What comes from no link.
                RuleAttribute::Iifname("lo".to_owned()),
                RuleAttribute::IpProtocol(IpProtocol::from(protocol)),
                RuleAttribute::DestinationPortRange(RulePortRange { start: port, end: port }),
            ];
            IpNet::from(address)
        }
    };
    if !matches!(chosen, Chosen::From { .. }) {
        message.header.dst_len = range.prefix_len();
    }
    message.header.family = family_of(range);
    (message, range)
}

fn family_of(range: IpNet) -> AddressFamily {
    match range {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_says_when_it_is_asked() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let chosen = [
            Chosen::From { link: "eth0", range: IpNet::from(address), protocol: 6, ports: (1, 2) },
            Chosen::To(address),
            Chosen::Dialled { address, protocol: 6, port: 80 },
        ];
        // Otherwise the kernel counts down from the main table's, and each is asked before the one that was added first.
        for chosen in chosen {
            let (message, _) = message(chosen, Rule::Blackhole);
            let own = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Priority(1..=1000));
            assert!(message.attributes.iter().any(own), "{message:?}");
        }
    }
}
