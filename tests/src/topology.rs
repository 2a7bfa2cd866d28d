//! A small world: a client outside the cluster, two nodes on its network, pods behind both.
//!
//! ```text
//!   client 192.0.2.100, 2001:db8:1::100     routes 10.96.0.0/16, fd00:10:96::/112, 198.51.100.0/24
//!      | eth0                               and 2001:db8:2::/64 to node-a
//!   ===+============ fabric: one switch, gateway 192.0.2.1 that drops what it is asked to forward
//!      | eth0                                    | eth0
//!   node-a 192.0.2.11, 2001:db8:1::11         node-b 192.0.2.12, 2001:db8:1::12
//!      | veth-2 | veth-3 | veth-4                | veth-2 | veth-3 | veth-4
//!     a2       a3       a4                      b2       b3       b4
//!   10.244.1.2 … 4, fd00:10:244:1::2 … 4      10.244.2.2 … 4, fd00:10:244:2::2 … 4
//! ```
//!
//! Pods hang on routed veths (a /32, next hop 169.254.1.1 by proxy ARP and fe80::1) or on the ports
//! of a bridge `cni0` that holds the subnet's `.1`. Nodes route each other's pod subnets.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, bail};
use lb_common::{Family, V4, V6};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    cgroup::Cgroup,
    netns::{NetNs, Offloads},
    xdp_pass::XdpPass,
};

/// Name of the interface of client, nodes and pods that leads away from them.
pub const UPLINK: &str = "eth0";
/// Bridge of the pods in a [`PodLink::Bridge`] world.
pub const POD_BRIDGE: &str = "cni0";

/// An IP family as a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ip {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Ip {
    /// Both families.
    pub const BOTH: [Ip; 2] = [Ip::V4, Ip::V6];

    /// The family's name in EndpointSlices.
    pub fn name(self) -> &'static str {
        match self {
            Ip::V4 => V4::NAME,
            Ip::V6 => V6::NAME,
        }
    }

    /// The family of an address.
    pub fn of(addr: IpAddr) -> Ip {
        if addr.is_ipv4() { Ip::V4 } else { Ip::V6 }
    }
}

/// How pods hang on their node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PodLink {
    /// A veth pair with a route of its own on the node.
    Routed,
    /// A port of the bridge `cni0`.
    Bridge,
}

/// What a world is to be like.
#[derive(Clone, Copy, Debug)]
pub struct WorldOptions {
    /// How pods hang on their node.
    pub pods: PodLink,
    /// Checksum and segmentation offloads everywhere. Native XDP needs them off.
    pub offloads: bool,
    /// Reverse-path filter of the nodes: 0 off, 1 strict, 2 loose.
    pub rp_filter: u8,
    /// Pods on each node, up to 200.
    pub pods_per_node: u8,
    /// Nodes drop forwarded packets that conntrack calls INVALID; needs `nft`.
    pub conntrack: bool,
}

impl Default for WorldOptions {
    fn default() -> Self {
        WorldOptions {
            pods: PodLink::Routed,
            offloads: true,
            rp_filter: 1,
            pods_per_node: 3,
            conntrack: false,
        }
    }
}

impl WorldOptions {
    /// Pods on a bridge.
    pub fn bridge(mut self) -> Self {
        self.pods = PodLink::Bridge;
        self
    }
    /// Finished checksums and no segmentation offload on every link.
    pub fn without_offloads(mut self) -> Self {
        self.offloads = false;
        self
    }
    /// With conntrack and a rule that drops what it calls INVALID.
    pub fn with_conntrack(mut self) -> Self {
        self.conntrack = true;
        self
    }
}

/// Somewhere with addresses of its own, where sockets are made: client, pod, or host of a node.
#[derive(Debug)]
pub struct Place {
    /// Name in errors and answers.
    pub name: String,
    /// Its namespace.
    pub ns: NetNs,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    cgroup: Mutex<Option<Arc<Cgroup>>>,
}

impl Place {
    /// A place in a namespace.
    pub fn new(name: &str, ns: NetNs, v4: Ipv4Addr, v6: Ipv6Addr) -> Place {
        Place {
            name: name.to_owned(),
            ns,
            v4,
            v6,
            cgroup: Mutex::new(None),
        }
    }

    /// Its address of a family.
    pub fn addr(&self, ip: Ip) -> IpAddr {
        match ip {
            Ip::V4 => self.v4.into(),
            Ip::V6 => self.v6.into(),
        }
    }

    /// A pod's gateway on a bridge, which is its node's source address towards it.
    pub fn gateway(&self, ip: Ip) -> Option<IpAddr> {
        let pod = self.name.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        let mut v4 = self.v4.octets();
        v4[3] = 1;
        let mut v6 = self.v6.segments();
        v6[7] = 1;
        pod.then(|| match ip {
            Ip::V4 => v4.into(),
            Ip::V6 => v6.into(),
        })
    }

    /// Its address of a family, with a port.
    pub fn at(&self, ip: Ip, port: u16) -> SocketAddr {
        (self.addr(ip), port).into()
    }

    /// From now on sockets of this place belong to the cgroup, as those of the node's processes do.
    pub fn enter_cgroup(&self, cgroup: Option<Arc<Cgroup>>) {
        *self.cgroup.lock().unwrap_or_else(PoisonError::into_inner) = cgroup;
    }

    /// A socket of this place. Its namespace and cgroup are fixed here; any thread may use it.
    pub fn socket(&self, ip: Ip, kind: Type) -> Result<Socket> {
        let (domain, protocol) = match ip {
            Ip::V4 => (Domain::IPV4, None::<Protocol>),
            Ip::V6 => (Domain::IPV6, None),
        };
        let cgroup = self
            .cgroup
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match cgroup {
            Some(cgroup) => cgroup.socket(&self.ns, domain, kind),
            None => self.ns.socket(domain, kind, protocol),
        }
    }
}

/// A node: its host and its pods.
#[derive(Debug)]
pub struct Node {
    /// The host's own addresses and processes.
    pub host: Place,
    /// Its pods, the first with host part `.2`.
    pub pods: Vec<Place>,
    number: u8,
}

impl Node {
    /// Pod by index from 0.
    pub fn pod(&self, index: usize) -> &Place {
        &self.pods[index]
    }

    /// Host end of a pod's link.
    pub fn pod_interface(&self, index: usize) -> String {
        format!("veth-{}", index + 2)
    }
}

/// The world drawn above. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct World {
    /// What it was made with.
    pub options: WorldOptions,
    /// Outside the cluster.
    pub client: Place,
    /// node-a and node-b.
    pub nodes: [Node; 2],
    /// The switch.
    pub fabric: NetNs,
    /// Programs on the switch's ports.
    _ports: Vec<XdpPass>,
}

/// Set before any interface exists: no address waits for duplicate detection, nobody autoconfigures.
const COMMON_SYSCTLS: &[(&str, &str)] = &[
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    // A Service address that is none for a while is routed back to where the client sits, and the redirect that it
    // gets for that would outlast the while.
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    // A test sees more errors in a second than a peer may be told of.
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv6/icmp/ratelimit", "0"),
];

impl World {
    /// Builds a world.
    pub fn new(options: WorldOptions) -> Result<World> {
        let fabric = NetNs::new("fabric")?;
        fabric.sysctl(COMMON_SYSCTLS)?;
        let client = Place::new(
            "client",
            NetNs::new("client")?,
            Ipv4Addr::new(192, 0, 2, 100),
            Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100),
        );
        client.ns.sysctl(COMMON_SYSCTLS)?;
        let nodes = [
            new_node("node-a", 1, options)?,
            new_node("node-b", 2, options)?,
        ];

        let mut batch = String::from(
            "link set lo up\n\
             link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
             addr add 192.0.2.1/24 dev br0\n\
             addr add 2001:db8:1::1/64 dev br0 nodad\n\
             link set br0 up\n",
        );
        let ports = [
            ("to-client", &client.ns),
            ("to-node-a", &nodes[0].host.ns),
            ("to-node-b", &nodes[1].host.ns),
        ];
        for (port, peer) in ports {
            batch += &format!(
                "link add {port} type veth peer name {UPLINK} netns {}\nlink set {port} master br0 up\n",
                peer.path().display()
            );
        }
        fabric.ip(&batch)?;
        let mut passes = Vec::new();
        for (port, peer) in ports {
            fabric.offloads(
                port,
                Offloads {
                    transmit: options.offloads,
                    gro: true,
                },
            )?;
            peer.offloads(UPLINK, options.link_offloads())?;
            if !options.offloads {
                // The nodes may run native XDP. Last: a program switches its peer's TSO off for good.
                passes.push(XdpPass::attach(&fabric, port)?);
            }
        }

        client.ns.ip(&format!(
            "link set lo up\n\
             addr add {}/24 dev {UPLINK}\n\
             addr add {}/64 dev {UPLINK} nodad\n\
             link set {UPLINK} up\n\
             route add 10.244.1.0/24 via {a4}\nroute add 10.244.2.0/24 via {b4}\n\
             route add fd00:10:244:1::/64 via {a6}\nroute add fd00:10:244:2::/64 via {b6}\n\
             route add 10.96.0.0/16 via {a4}\nroute add 198.51.100.0/24 via {a4}\n\
             route add fd00:10:96::/112 via {a6}\nroute add 2001:db8:2::/64 via {a6}\n\
             route add 0.0.0.0/0 via 192.0.2.1\nroute add ::/0 via 2001:db8:1::1\n",
            client.v4,
            client.v6,
            a4 = nodes[0].host.v4,
            b4 = nodes[1].host.v4,
            a6 = nodes[0].host.v6,
            b6 = nodes[1].host.v6,
        ))?;
        connect_node(1, &nodes[0], &nodes[1], options)?;
        connect_node(2, &nodes[1], &nodes[0], options)?;
        Ok(World {
            options,
            client,
            nodes,
            fabric,
            _ports: passes,
        })
    }

    /// One more pod on a node. Returns its index.
    pub fn add_pod(&mut self, node: usize) -> Result<usize> {
        let node = &mut self.nodes[node];
        let index = node.pods.len();
        let suffix = u8::try_from(index + 2)?;
        node.pods
            .push(new_pod(&node.host.name, node.number, suffix)?);
        node.host.ns.ip(&pod_link(node, index, self.options))?;
        connect_pod(node, index, self.options)?;
        Ok(index)
    }

    /// Takes a node's last pod away, its interface first, as a runtime does.
    pub fn remove_pod(&mut self, node: usize) -> Result<()> {
        let node = &mut self.nodes[node];
        if node.pods.is_empty() {
            bail!("{} has no pod", node.host.name);
        }
        node.host.ns.ip(&format!(
            "link del {}\n",
            node.pod_interface(node.pods.len() - 1)
        ))?;
        let Some(gone) = node.pods.pop() else {
            return Ok(());
        };
        // The next pod of this address has another link-layer address, and nobody announces it as a
        // container runtime's network plugin would.
        let flush = format!("neigh flush to {}\nneigh flush to {}\n", gone.v4, gone.v6);
        for place in std::iter::once(&node.host).chain(&node.pods) {
            place.ns.ip(&flush)?;
        }
        Ok(())
    }

    /// node-a, which the client's routes for Service addresses point to.
    pub fn a(&self) -> &Node {
        &self.nodes[0]
    }

    /// node-b.
    pub fn b(&self) -> &Node {
        &self.nodes[1]
    }
}

impl WorldOptions {
    fn link_offloads(&self) -> Offloads {
        Offloads {
            transmit: self.offloads,
            gro: self.offloads,
        }
    }
}

fn new_node(name: &str, number: u8, options: WorldOptions) -> Result<Node> {
    let node = u16::from(number);
    let host = Place::new(
        name,
        NetNs::new(name)?,
        Ipv4Addr::new(192, 0, 2, 10 + number),
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10 + node),
    );
    host.ns.sysctl(COMMON_SYSCTLS)?;
    let rp_filter = options.rp_filter.to_string();
    host.ns.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", &rp_filter),
        ("ipv4/conf/default/rp_filter", &rp_filter),
    ])?;
    let mut pods = Vec::new();
    for suffix in 2..2 + options.pods_per_node {
        pods.push(new_pod(name, number, suffix)?);
    }
    Ok(Node { host, pods, number })
}

/// Addresses and routes of a node, its pods' links, and the pods themselves.
fn connect_node(number: u8, node: &Node, other: &Node, options: WorldOptions) -> Result<()> {
    let peer = 3 - number;
    let mut batch = format!(
        "link set lo up\n\
         addr add {}/24 dev {UPLINK}\n\
         addr add {}/64 dev {UPLINK} nodad\n\
         link set {UPLINK} up\n\
         route add 0.0.0.0/0 via 192.0.2.1\nroute add ::/0 via 2001:db8:1::1\n\
         route add 10.244.{peer}.0/24 via {}\nroute add fd00:10:244:{peer}::/64 via {}\n",
        node.host.v4, node.host.v6, other.host.v4, other.host.v6,
    );
    if options.pods == PodLink::Bridge {
        // Without an address of its own a bridge takes the lowest of its ports': it would change as pods come and
        // go, and pods would send to the old one until their neighbour entries expire.
        batch += &format!(
            "link add {POD_BRIDGE} address 0a:58:0a:f4:{number:02x}:01 type bridge forward_delay 0 mcast_snooping 0\n\
             addr add 10.244.{number}.1/24 dev {POD_BRIDGE}\n\
             addr add fd00:10:244:{number}::1/64 dev {POD_BRIDGE} nodad\n\
             link set {POD_BRIDGE} up\n"
        );
    }
    for index in 0..node.pods.len() {
        batch += &pod_link(node, index, options);
    }
    node.host.ns.ip(&batch)?;
    for index in 0..node.pods.len() {
        connect_pod(node, index, options)?;
    }
    if options.conntrack {
        node.host.ns.output(
            "nft",
            &["add table inet test; add chain inet test forward { type filter hook forward priority 0; }; \
               add rule inet test forward ct state invalid counter drop; \
               add rule inet test forward ct state new,established,related counter accept"],
        )?;
    }
    Ok(())
}

/// What a node's `ip` does for the link to a pod.
fn pod_link(node: &Node, index: usize, options: WorldOptions) -> String {
    let (pod, interface) = (node.pod(index), node.pod_interface(index));
    // A pod that gets the address of one that is gone gets its link-layer address, too: neighbours that
    // remember it need not learn anew.
    let mac = format!("0a:58:0a:f4:{:02x}:{:02x}", node.number, pod.v4.octets()[3]);
    let pair = format!(
        "link add {interface} type veth peer name {UPLINK} address {mac} netns {}\n",
        pod.ns.path().display()
    );
    let connected = match options.pods {
        PodLink::Routed => format!(
            "addr add fe80::1/64 dev {interface} nodad\nlink set {interface} up\n\
             route add {} dev {interface} src {}\nroute add {} dev {interface} src {}\n",
            pod.v4, node.host.v4, pod.v6, node.host.v6,
        ),
        PodLink::Bridge => format!("link set {interface} master {POD_BRIDGE} up\n"),
    };
    pair + &connected
}

/// The rest of a pod's link, and the pod.
fn connect_pod(node: &Node, index: usize, options: WorldOptions) -> Result<()> {
    let (pod, interface, number) = (node.pod(index), node.pod_interface(index), node.number);
    node.host.ns.offloads(&interface, options.link_offloads())?;
    pod.ns.offloads(UPLINK, options.link_offloads())?;
    match options.pods {
        PodLink::Routed => {
            let proxy_arp = format!("ipv4/conf/{interface}/proxy_arp");
            let proxy_delay = format!("ipv4/neigh/{interface}/proxy_delay");
            node.host
                .ns
                .sysctl(&[(&proxy_arp, "1"), (&proxy_delay, "0")])?;
            pod.ns.ip(&format!(
                "link set lo up\n\
                 addr add {}/32 dev {UPLINK}\n\
                 addr add {}/128 dev {UPLINK} nodad\n\
                 link set {UPLINK} up\n\
                 route add 169.254.1.1 dev {UPLINK} scope link\n\
                 route add 0.0.0.0/0 via 169.254.1.1 dev {UPLINK}\n\
                 route add ::/0 via fe80::1 dev {UPLINK}\n",
                pod.v4, pod.v6,
            ))
        }
        PodLink::Bridge => pod.ns.ip(&format!(
            "link set lo up\n\
             addr add {}/24 dev {UPLINK}\n\
             addr add {}/64 dev {UPLINK} nodad\n\
             link set {UPLINK} up\n\
             route add 0.0.0.0/0 via 10.244.{number}.1\n\
             route add ::/0 via fd00:10:244:{number}::1\n",
            pod.v4, pod.v6,
        )),
    }
}

fn new_pod(node: &str, number: u8, suffix: u8) -> Result<Place> {
    let name = format!("{}{suffix}", &node[node.len() - 1..]);
    let ns = NetNs::new(&name)?;
    ns.sysctl(COMMON_SYSCTLS)?;
    Ok(Place::new(
        &name,
        ns,
        Ipv4Addr::new(10, 244, number, suffix),
        Ipv6Addr::new(
            0xfd00,
            0x10,
            0x244,
            u16::from(number),
            0,
            0,
            0,
            u16::from(suffix),
        ),
    ))
}
