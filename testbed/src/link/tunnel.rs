//! A tunnel device of the kernel's own, and who is at its far ends.

use std::net::{IpAddr, Ipv6Addr};

use dataplane::wire::Mac;
use rtnetlink::LinkVxlan;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{InfoVxlan, LinkAttribute};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::{Error, Links, Message};

/// A tunnel device to be made.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// The link that wrapped packets leave by.
    pub over: &'a str,
    /// Its ends are known by IPv6 addresses.
    pub v6: bool,
    /// The network's identifier, in both directions.
    pub vni: u32,
    /// The UDP port of all ends.
    pub port: u16,
    /// Its hardware address.
    pub mac: Mac,
    /// The longest packet that it wraps, in bytes.
    pub mtu: u32,
    /// The longest packet that a socket may hand down to be cut later, in bytes.
    pub gso_max_size: u32,
}

impl Links {
    /// Adds a VXLAN device (RFC 7348) that learns nothing: its far ends are told to it, see [`Self::beyond`].
    ///
    /// # Errors
    /// It exists, [`Error::Missing`] if what it goes over does not, or the kernel's reason.
    pub fn vxlan(&mut self, tunnel: &Vxlan<'_>) -> Result<(), Error> {
        let tried = format!("add the VXLAN device {}", tunnel.name);
        let mut device = LinkVxlan::new(tunnel.name, tunnel.vni)
            .dev(self.index(&tried, tunnel.over)?)
            .port(tunnel.port)
            .append_info_data(InfoVxlan::Learning(false));
        if tunnel.v6 {
            // Nobody in particular; and no address of its own, so that it takes that of the way.
            device = device.append_info_data(InfoVxlan::Group6(Ipv6Addr::UNSPECIFIED));
        }
        let device = device
            .address(tunnel.mac.0.to_vec())
            .mtu(tunnel.mtu)
            .append_extra_attribute(LinkAttribute::GsoMaxSize(tunnel.gso_max_size))
            .build();
        self.add(&tried, Message::NewLink(device))
    }

    /// Says for good at which far end of the tunnel a hardware address is, and by which link what is wrapped for it
    /// leaves: only routes that lead there are asked.
    ///
    /// # Errors
    /// [`Error::Missing`], or the kernel's reason.
    pub fn beyond(&mut self, tunnel: &str, mac: Mac, (end, over): (IpAddr, &str)) -> Result<(), Error> {
        let tried = format!("say that {mac} is at the end {end} of {tunnel}");
        let mut message = far_end(self.index(&tried, tunnel)?, mac, end);
        message.attributes.push(NeighbourAttribute::IfIndex(self.index(&tried, over)?));
        self.request(&tried, Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Forgets a far end. To forget one that is not known succeeds.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such tunnel or link, or the kernel's reason.
    pub fn not_beyond(&mut self, tunnel: &str, mac: Mac, (end, over): (IpAddr, &str)) -> Result<(), Error> {
        let tried = format!("forget that {mac} is at the end {end} of {tunnel}");
        let mut message = far_end(self.index(&tried, tunnel)?, mac, end);
        message.attributes.push(NeighbourAttribute::IfIndex(self.index(&tried, over)?));
        match self.request(&tried, Message::DelNeighbour(message), 0) {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            forgotten => forgotten.map(drop),
        }
    }
}

/// A row of a tunnel's table of far ends (bridge(8), "fdb").
fn far_end(tunnel: u32, mac: Mac, end: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = tunnel;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    let end = match end {
        IpAddr::V4(end) => NeighbourAddress::Inet(end),
        IpAddr::V6(end) => NeighbourAddress::Inet6(end),
    };
    message.attributes =
        vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()), NeighbourAttribute::Destination(end)];
    message
}
