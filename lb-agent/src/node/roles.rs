//! [`Snapshot`] → the interfaces that we serve: role, source addresses, where XDP may transmit. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use lb_common::abi::InterfaceRole;

use super::{
    globs::Globs,
    snapshot::{Link, Snapshot},
};

const ARPHRD_ETHER: u16 = 1;

/// `--xdp`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum XdpMode {
    /// Native where the driver and what is above the interface allow it; never veth or tap.
    Auto,
    /// Native on every external interface with an Ethernet header, veth and tap included.
    Native,
    /// Generic on every external interface with an Ethernet header.
    Generic,
    /// None; tc carries everything.
    Off,
}

/// What decides besides the links themselves.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// External by name.
    pub external: Globs,
    /// Pod interfaces by name.
    pub pod: Globs,
    /// `--xdp`.
    pub xdp: XdpMode,
}

/// An interface that we serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Interface {
    pub ifindex: u32,
    pub name: String,
    /// What is behind it.
    pub role: InterfaceRole,
    /// Preferred IPv4 source address.
    pub saddr_v4: Option<Ipv4Addr>,
    /// Preferred global IPv6 source address.
    pub saddr_v6: Option<Ipv6Addr>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Own link-layer address.
    pub mac: Option<[u8; 6]>,
    /// No link-layer header.
    pub l3: bool,
    /// Whether XDP is attached and may transmit by it; else why not.
    pub xdp: Result<(), &'static str>,
}

/// The interfaces that we serve, by index.
pub(crate) fn interfaces(snapshot: &Snapshot, rules: &Rules) -> Vec<Interface> {
    let mut all: Vec<Interface> = snapshot
        .links
        .iter()
        .filter_map(|link| {
            let role = role(link, snapshot, rules)?;
            Some(Interface {
                ifindex: link.ifindex,
                name: link.name.clone(),
                role,
                saddr_v4: match snapshot.source(link.ifindex, false) {
                    Some(std::net::IpAddr::V4(addr)) => Some(addr),
                    _ => None,
                },
                saddr_v6: match snapshot.source(link.ifindex, true) {
                    Some(std::net::IpAddr::V6(addr)) => Some(addr),
                    _ => None,
                },
                mtu: link.mtu,
                mac: link.mac.filter(|_| link.hardware == ARPHRD_ETHER),
                l3: link.hardware != ARPHRD_ETHER,
                xdp: xdp(link, role, snapshot, rules.xdp),
            })
        })
        .collect();
    all.sort_by_key(|interface| interface.ifindex);
    all
}

/// What is behind a link; `None`: it is not ours.
fn role(link: &Link, snapshot: &Snapshot, rules: &Rules) -> Option<InterfaceRole> {
    if !link.up || link.loopback {
        return None;
    }
    if rules.external.matches(&link.name) {
        return Some(InterfaceRole::External);
    }
    if rules.pod.matches(&link.name) {
        return Some(InterfaceRole::Pod);
    }
    let master = link
        .master
        .and_then(|master| snapshot.links.iter().find(|link| link.ifindex == master));
    match link.kind.as_str() {
        // The host's end: the other one is in a pod's namespace. With a default route it is this node's own uplink:
        // the node is a container itself.
        "veth" | "netkit"
            if link.lower_elsewhere && !snapshot.default_links.contains(&Some(link.ifindex)) =>
        {
            Some(InterfaceRole::Pod)
        }
        "tun" if link.hardware == ARPHRD_ETHER => Some(InterfaceRole::Pod),
        // A bridge that only switches is not on the way of any routed packet.
        "bridge"
            if !snapshot
                .addresses
                .iter()
                .any(|address| address.ifindex == link.ifindex && address.scope == 0) =>
        {
            None
        }
        // The bond's or team's hooks see the packets of its members.
        _ if master.is_some_and(|master| matches!(master.kind.as_str(), "bond" | "team")) => None,
        _ => Some(InterfaceRole::External),
    }
}

fn xdp(
    link: &Link,
    role: InterfaceRole,
    snapshot: &Snapshot,
    mode: XdpMode,
) -> Result<(), &'static str> {
    if mode == XdpMode::Off {
        return Err("--xdp off");
    }
    if role == InterfaceRole::Pod {
        return Err("a pod interface");
    }
    if link.hardware != ARPHRD_ETHER {
        return Err("no Ethernet header");
    }
    if snapshot.links.iter().any(|upper| {
        upper.kind == "vlan" && upper.lower == Some(link.ifindex) && !upper.lower_elsewhere
    }) {
        return Err("a VLAN lies above it");
    }
    match (link.kind.as_str(), mode) {
        ("" | "bond", _) => Ok(()),
        ("veth" | "tun", XdpMode::Auto) => Err(
            "frames of a virtual peer may have unfinished checksums; --xdp native to use it all the same",
        ),
        ("veth" | "tun", _) => Ok(()),
        _ => Err("an overlay, a bridge or another interface in software"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::snapshot::Address, *};

    fn link(ifindex: u32, name: &str, kind: &str) -> Link {
        Link {
            ifindex,
            name: name.into(),
            kind: kind.into(),
            hardware: 1,
            up: true,
            mtu: 1500,
            mac: Some([2; 6]),
            ..Link::default()
        }
    }

    fn rules(xdp: XdpMode) -> Rules {
        Rules {
            external: Globs::new(&["up*".into()]).unwrap(),
            pod: Globs::new(&["weird*".into()]).unwrap(),
            xdp,
        }
    }

    fn node() -> Snapshot {
        let veth = |ifindex, name: &str| Link {
            lower: Some(2),
            lower_elsewhere: true,
            ..link(ifindex, name, "veth")
        };
        Snapshot {
            links: vec![
                Link {
                    loopback: true,
                    hardware: 772,
                    ..link(1, "lo", "")
                },
                link(2, "eth0", ""),
                veth(3, "vethpod"),
                veth(4, "uplink"),
                link(5, "br0", "bridge"),
                link(6, "br1", "bridge"),
                Link {
                    master: Some(5),
                    ..veth(7, "vethport")
                },
                link(8, "bond0", "bond"),
                Link {
                    master: Some(8),
                    ..link(9, "eth1", "")
                },
                link(10, "tap0", "tun"),
                Link {
                    hardware: 65534,
                    mac: None,
                    ..link(11, "tun0", "tun")
                },
                Link {
                    up: false,
                    ..link(12, "eth2", "")
                },
                link(13, "eth3", ""),
                Link {
                    lower: Some(13),
                    ..link(14, "eth3.5", "vlan")
                },
                link(15, "vxlan0", "vxlan"),
                link(16, "weird0", ""),
            ],
            addresses: vec![
                Address {
                    ifindex: 5,
                    addr: "10.0.0.1".parse().unwrap(),
                    scope: 0,
                    flags: 0,
                },
                Address {
                    ifindex: 2,
                    addr: "fe80::1".parse().unwrap(),
                    scope: 253,
                    flags: 0,
                },
                Address {
                    ifindex: 2,
                    addr: "192.0.2.2".parse().unwrap(),
                    scope: 0,
                    flags: 1,
                },
                Address {
                    ifindex: 2,
                    addr: "192.0.2.1".parse().unwrap(),
                    scope: 0,
                    flags: 0,
                },
                Address {
                    ifindex: 2,
                    addr: "2001:db8::1".parse().unwrap(),
                    scope: 0,
                    flags: 0x80,
                },
            ],
            default_links: [Some(2), Some(2)],
        }
    }

    fn roles(xdp: XdpMode) -> Vec<(String, InterfaceRole, bool)> {
        interfaces(&node(), &rules(xdp))
            .into_iter()
            .map(|i| (i.name, i.role, i.xdp.is_ok()))
            .collect()
    }

    #[test]
    fn roles_follow_from_what_is_behind_an_interface() {
        use InterfaceRole::{External, Pod};
        let expected = [
            ("eth0", External, true),
            ("vethpod", Pod, false),
            ("uplink", External, false),
            ("br0", External, false),
            ("vethport", Pod, false),
            ("bond0", External, true),
            ("tap0", Pod, false),
            ("tun0", External, false),
            ("eth3", External, false),
            ("eth3.5", External, false),
            ("vxlan0", External, false),
            ("weird0", Pod, false),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, role, xdp)| ((*name).to_owned(), *role, *xdp))
            .collect();
        assert_eq!(roles(XdpMode::Auto), expected);
    }

    #[test]
    fn a_veth_with_the_default_route_is_an_uplink() {
        let mut node = node();
        node.default_links = [Some(3), None];
        let role = |name: &str| {
            let all = interfaces(&node, &rules(XdpMode::Auto));
            all.into_iter().find(|i| i.name == name).map(|i| i.role)
        };
        assert_eq!(role("vethpod"), Some(InterfaceRole::External));
        assert_eq!(role("vethport"), Some(InterfaceRole::Pod));
    }

    #[test]
    fn native_xdp_on_request_takes_external_veths_but_no_pods() {
        let with: Vec<String> = roles(XdpMode::Native)
            .into_iter()
            .filter(|(_, _, xdp)| *xdp)
            .map(|(name, ..)| name)
            .collect();
        assert_eq!(with, ["eth0", "uplink", "bond0"]);
        assert!(roles(XdpMode::Off).iter().all(|(_, _, xdp)| !xdp));
    }

    // semantics 9.5, 20.7
    #[test]
    fn sources_are_preferred_global_addresses() {
        let all = interfaces(&node(), &rules(XdpMode::Auto));
        let eth0 = all
            .iter()
            .find(|interface| interface.name == "eth0")
            .unwrap();
        assert_eq!(eth0.saddr_v4, Some("192.0.2.1".parse().unwrap()));
        assert_eq!(eth0.saddr_v6, Some("2001:db8::1".parse().unwrap()));
        let tun0 = all
            .iter()
            .find(|interface| interface.name == "tun0")
            .unwrap();
        assert!(tun0.l3 && tun0.mac.is_none() && tun0.saddr_v4.is_none());
    }

    #[test]
    fn default_addresses_are_those_of_the_default_route() {
        let expected: Vec<std::net::IpAddr> =
            vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(node().default_addresses(), expected);
    }
}
