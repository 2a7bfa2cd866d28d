//! rtnetlink dumps → [`Snapshot`]: links, addresses and default routes as the kernel has them now.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::netlink::{Message, Request, Socket, attrs, text, u16_at, u32_at};

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

/// An interface as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Link {
    pub ifindex: u32,
    pub name: String,
    /// `ARPHRD_…`.
    pub hardware: u16,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_LOOPBACK`.
    pub loopback: bool,
    /// `IFLA_INFO_KIND`: veth, bridge, vxlan, …; empty for physical ones.
    pub kind: String,
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// Link-layer address of six octets.
    pub mac: Option<[u8; 6]>,
    /// Bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// `IFLA_LINK`: the interface below, or a veth's peer.
    pub lower: Option<u32>,
    /// `IFLA_LINK_NETNSID` is there: [`Link::lower`] is in another network namespace.
    pub lower_elsewhere: bool,
}

/// An address of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Address {
    pub ifindex: u32,
    pub addr: IpAddr,
    /// `RT_SCOPE_…`: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_…`.
    pub flags: u32,
}

impl Address {
    /// `IFA_F_SECONDARY` (IPv6: temporary).
    const SECONDARY: u32 = 0x01;
    const DAD_FAILED: u32 = 0x08;
    const DEPRECATED: u32 = 0x20;
    const TENTATIVE: u32 = 0x40;

    /// May be a source address for others.
    pub(crate) const fn is_preferred(&self) -> bool {
        self.scope == 0
            && self.flags
                & (Self::SECONDARY | Self::DAD_FAILED | Self::DEPRECATED | Self::TENTATIVE)
                == 0
    }
}

/// The node's network at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Snapshot {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    /// Interface of the default route, IPv4 and IPv6.
    pub default_links: [Option<u32>; 2],
}

impl Snapshot {
    /// Asks the kernel.
    pub(crate) fn read(socket: &mut Socket) -> io::Result<Snapshot> {
        let links = socket.dump(RTM_GETLINK, &Request::new(&[0; 16]))?;
        let addresses = socket.dump(RTM_GETADDR, &Request::new(&[0; 8]))?;
        Ok(Snapshot {
            links: links.iter().filter_map(link).collect(),
            addresses: addresses.iter().filter_map(address).collect(),
            default_links: [
                default_link(socket, libc::AF_INET)?,
                default_link(socket, libc::AF_INET6)?,
            ],
        })
    }

    /// Every local address, none twice, sorted.
    pub(crate) fn local_addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = self.addresses.iter().map(|address| address.addr).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Preferred source address of an interface.
    pub(crate) fn source(&self, ifindex: u32, v6: bool) -> Option<IpAddr> {
        let mut here = self
            .addresses
            .iter()
            .filter(|address| address.ifindex == ifindex && address.addr.is_ipv6() == v6);
        here.find(|address| address.is_preferred())
            .map(|address| address.addr)
    }

    /// Addresses of the default-route interfaces: IPv4's, then IPv6's.
    pub(crate) fn default_addresses(&self) -> Vec<IpAddr> {
        let of = |v6: bool| {
            self.default_links[usize::from(v6)].and_then(|ifindex| self.source(ifindex, v6))
        };
        [of(false), of(true)].into_iter().flatten().collect()
    }
}

/// Whether a multicast message says something that a snapshot shows; routes count when they are default routes.
pub(crate) fn is_relevant(message: &Message) -> bool {
    match message.kind {
        RTM_NEWROUTE | RTM_DELROUTE => message.body.get(1) == Some(&0),
        _ => true,
    }
}

fn link(message: &Message) -> Option<Link> {
    let body = &message.body;
    let flags = u32_at(body, 8)?;
    let mut link = Link {
        ifindex: u32_at(body, 4)?,
        hardware: u16_at(body, 2)?,
        up: flags & libc::IFF_UP.cast_unsigned() != 0,
        loopback: flags & libc::IFF_LOOPBACK.cast_unsigned() != 0,
        ..Link::default()
    };
    for (kind, value) in attrs(body, 16) {
        match kind {
            1 => link.mac = value.try_into().ok(),
            3 => link.name = text(value),
            4 => link.mtu = u32_at(value, 0)?,
            5 => link.lower = u32_at(value, 0).filter(|lower| *lower != 0),
            10 => link.master = u32_at(value, 0).filter(|master| *master != 0),
            18 => {
                link.kind = attrs(value, 0)
                    .find(|(kind, _)| *kind == 1)
                    .map(|(_, value)| text(value))
                    .unwrap_or_default()
            }
            37 => link.lower_elsewhere = true,
            _ => {}
        }
    }
    Some(link)
}

fn address(message: &Message) -> Option<Address> {
    let body = &message.body;
    let (mut local, mut other) = (None, None);
    let mut flags = u32::from(*body.get(2)?);
    for (kind, value) in attrs(body, 8) {
        match kind {
            1 => other = ip(value),
            // On point-to-point links IFA_ADDRESS is the peer's.
            2 => local = ip(value),
            8 => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(Address {
        ifindex: u32_at(body, 4)?,
        addr: local.or(other)?,
        scope: *body.get(3)?,
        flags,
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// Interface of the default route with the lowest metric in the main table.
fn default_link(socket: &mut Socket, family: i32) -> io::Result<Option<u32>> {
    let mut fixed = [0u8; 12];
    fixed[0] = u8::try_from(family).map_err(io::Error::other)?;
    let routes = socket.dump(RTM_GETROUTE, &Request::new(&fixed))?;
    Ok(routes
        .iter()
        .filter_map(default_route)
        .min()
        .map(|(_, ifindex)| ifindex))
}

/// (metric, ifindex) of a unicast default route of the main table.
fn default_route(message: &Message) -> Option<(u32, u32)> {
    let body = &message.body;
    let (len, table, kind) = (*body.get(1)?, *body.get(4)?, *body.get(7)?);
    if len != 0 || table != libc::RT_TABLE_MAIN || kind != libc::RTN_UNICAST {
        return None;
    }
    let (mut metric, mut ifindex) = (0, None);
    for (kind, value) in attrs(body, 12) {
        match kind {
            4 => ifindex = u32_at(value, 0),
            6 => metric = u32_at(value, 0)?,
            // RTA_MULTIPATH: the first `struct rtnexthop`.
            9 => ifindex = ifindex.or_else(|| u32_at(value, 4)),
            _ => {}
        }
    }
    Some((metric, ifindex?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_of_the_main_table_names_its_interface() {
        let mut fixed = [0u8; 12];
        fixed[4] = libc::RT_TABLE_MAIN;
        fixed[7] = libc::RTN_UNICAST;
        let route = |fixed: [u8; 12]| Message {
            kind: RTM_NEWROUTE,
            body: Request::new(&fixed)
                .attr(4, &7u32.to_ne_bytes())
                .attr(6, &100u32.to_ne_bytes())
                .as_bytes()
                .to_vec(),
        };
        assert_eq!(default_route(&route(fixed)), Some((100, 7)));
        assert!(is_relevant(&route(fixed)));
        fixed[1] = 24;
        assert_eq!(default_route(&route(fixed)), None);
        assert!(!is_relevant(&route(fixed)));
    }

    #[test]
    fn the_kernel_shows_loopback_with_its_address() {
        let snapshot = Snapshot::read(&mut Socket::new().unwrap()).unwrap();
        let lo = snapshot.links.iter().find(|link| link.loopback).unwrap();
        assert_eq!(lo.name, "lo");
        assert!(lo.mtu > 0);
    }
}
