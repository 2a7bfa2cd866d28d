//! Addresses that are special: a node's further ones, a host's own port, endpoints outside the cluster or of a node, and
//! frontends that the node itself has.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use lb_tests::{
    agent::{Agent, AgentOptions},
    echo::{Dial, Failure, Proto, Server},
    manifest::{self, Endpoint, ManifestDir, ServiceManifest, Slice},
    scene::{
        Scene, Seen, TARGET, Variant, check, cluster_ip, cluster_ips, expect, expect_failure,
        external_ip, external_ips,
    },
    scenes, tests,
    topology::{Ip, UPLINK, World, WorldOptions},
    trials,
};
use serde_json::Value;

fn main() -> ExitCode {
    let mut trials = scenes!(
        objects,
        [plain, native],
        [
            source_ranges_do_not_hold_at_external_ips,
            external_addresses_are_not_claimed,
            a_node_port_is_taken_at_accepted_addresses_only,
            an_endpoint_outside_the_cluster_is_served,
            an_endpoint_of_the_hosts_network_is_served,
            a_frontend_that_the_node_has_is_dialled_from_the_nodes_address
        ]
    );
    trials.extend(tests!(
        [Root, Bpf, Cgroup2, Nft],
        [packet_marks_belong_to_others]
    ));
    trials.extend(tests!(
        [Root, Bpf, Cgroup2],
        [a_host_without_ipv6_is_served_in_ipv4]
    ));
    trials::run(trials)
}

const PORT: u16 = 80;
/// Source ranges that admit nobody here; backend b2.
const CLOSED: u8 = 1;
/// External policy Local; backend b2.
const FAR: u8 = 2;
/// Without endpoints.
const EMPTY: u8 = 3;
/// The backend is the client outside, which no node has.
const OUTSIDE: u8 = 4;
/// The backend is a process of node-a's own network.
const HOST: u8 = 5;

fn node_port(number: u8) -> u16 {
    30080 + u16::from(number)
}

fn service(name: &str, number: u8) -> ServiceManifest {
    ServiceManifest::new(name, &cluster_ips(number))
        .both(PORT)
        .node_port(node_port(number))
        .external_ips(&external_ips(10 + number))
        .load_balancer(&external_ips(20 + number))
}

fn objects(world: &World) -> Vec<Value> {
    let far = [Endpoint::ready(world.b().pod(0))];
    let mut objects = vec![
        service("closed", CLOSED)
            .source_ranges(&["203.0.113.0/24", "2001:db8:99::/48"])
            .build(),
        service("far", FAR).external_local().build(),
        service("empty", EMPTY).build(),
        service("outside", OUTSIDE).build(),
        service("host", HOST).build(),
    ];
    for (name, endpoints) in [
        ("closed", &far),
        ("far", &far),
        ("outside", &[Endpoint::ready(&world.client).nowhere()]),
        ("host", &[Endpoint::ready(&world.a().host)]),
    ] {
        objects.extend(Slice::both(name, PORT, TARGET, endpoints));
    }
    objects
}

/// Semantics 8.10, 12.2: an external IP is served as a load balancer's address is, but for the ranges.
fn source_ranges_do_not_hold_at_external_ips(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let backend = [world.b().pod(0)];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for from in [&world.client, world.a().pod(0)] {
                let [open, closed] = [10, 20].map(|kind| (external_ip(ip, kind + CLOSED), PORT));
                expect(what, from, proto, open, &backend, Seen::Anyone)?;
                expect_failure(what, from, proto, closed, &Failure::TimedOut)?;
            }
        }
    }
    Ok(())
}

/// Semantics 8.11: no node has an external address because a Service has it.
fn external_addresses_are_not_claimed(scene: &Scene, _: &str) -> Result<()> {
    for node in &scene.world.nodes {
        let has = node.host.ns.output("ip", &["-o", "addr", "show"])?;
        for ip in Ip::BOTH {
            for number in [10 + FAR, 20 + FAR] {
                let addr = external_ip(ip, number).to_string();
                ensure!(!has.contains(&addr), "{}: {has}", node.host.name);
            }
        }
    }
    Ok(())
}

/// One more address of node-a, at which NodePorts are not accepted.
fn further(ip: Ip) -> IpAddr {
    match ip {
        Ip::V4 => [192, 0, 2, 211].into(),
        Ip::V6 => [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x211].into(),
    }
}

/// Semantics 10.6, 14.10, 14.11: at an accepted address a NodePort goes before a socket of the host, elsewhere it is as if
/// nobody had it, with endpoints or without.
fn a_node_port_is_taken_at_accepted_addresses_only(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let host = &world.a().host;
    // Never chosen as the source of what other cases do.
    host.ns.ip(&format!(
        "addr replace {}/32 dev {UPLINK}\naddr replace {}/128 dev {UPLINK} nodad preferred_lft 0\n",
        further(Ip::V4),
        further(Ip::V6)
    ))?;
    let mut servers = Vec::new();
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for number in [CLOSED, EMPTY] {
                for addr in [further(ip), host.addr(ip)] {
                    let at = SocketAddr::from((addr, node_port(number)));
                    servers.push(Server::start_at(host, "own", at, proto)?);
                }
            }
        }
    }
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for from in [&world.client, world.a().pod(0), host] {
                for number in [CLOSED, EMPTY] {
                    let to = (further(ip), node_port(number));
                    let answer = Dial::new(from, proto, to.into()).ask()?;
                    ensure!(answer.server == "own", "{to:?}: {answer:?}, {what}");
                }
                let taken = (host.addr(ip), node_port(CLOSED));
                expect(what, from, proto, taken, &[world.b().pod(0)], Seen::Anyone)?;
                let empty = (host.addr(ip), node_port(EMPTY));
                expect_failure(what, from, proto, empty, &Failure::Refused)?;
            }
        }
    }
    Ok(())
}

/// Semantics 5.15, 28.50: an endpoint that is no pod, in a slice that names no node.
fn an_endpoint_outside_the_cluster_is_served(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let _servers = Server::start_all(&world.client, TARGET)?;
    let [a, b] = [world.a(), world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let to = (cluster_ip(ip, OUTSIDE), PORT);
            for from in [a.pod(0), &a.host, b.pod(0)] {
                expect(what, from, proto, to, &[&world.client], Seen::Anyone)?;
            }
        }
    }
    Ok(())
}

/// Semantics 5.16: a backend in a node's own network is reached from pods, from nodes and from outside.
fn an_endpoint_of_the_hosts_network_is_served(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let [a, b] = [world.a(), world.b()];
    let _servers = Server::start_all(&a.host, TARGET)?;
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for frontend in [
                (cluster_ip(ip, HOST), PORT),
                (external_ip(ip, 20 + HOST), PORT),
                (a.host.addr(ip), node_port(HOST)),
            ] {
                for from in [a.pod(0), b.pod(0), &a.host, &b.host, &world.client] {
                    expect(what, from, proto, frontend, &[&a.host], Seen::Anyone)?;
                }
            }
        }
    }
    Ok(())
}

/// Semantics 9.2.e, 12.4, 28.34: where a load-balancer address is bound at the node, a process of the node reaches backends
/// of other nodes from the node's own address.
fn a_frontend_that_the_node_has_is_dialled_from_the_nodes_address(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let world = &scene.world;
    let host = &world.a().host;
    let [v4, v6] = external_ips(20 + FAR);
    host.ns.ip(&format!(
        "addr replace {v4}/32 dev lo\naddr replace {v6}/128 dev lo nodad\n"
    ))?;
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let to = (external_ip(ip, 20 + FAR), PORT);
            expect(what, host, proto, to, &[world.b().pod(0)], Seen::As(host))?;
        }
    }
    Ok(())
}

/// Packets with a mark that leave node-a, or arrive at it.
fn marked(scene: &Scene) -> Result<u64> {
    let host = &scene.world.a().host.ns;
    let text = host.output("nft", &["list", "counter", "inet", "marks", "marked"])?;
    let count = text
        .split("packets ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    Ok(count.unwrap_or_default().parse()?)
}

/// Semantics 9.6: no mark is left on packets, and one that somebody else sets is kept and does no harm.
fn packet_marks_belong_to_others() -> Result<()> {
    for variant in [Variant::plain(), Variant::native()] {
        let scene = Scene::start(&variant, |world| {
            let mut objects = vec![service("web", CLOSED).build()];
            let both = [world.a().pod(1), world.b().pod(0)].map(Endpoint::ready);
            objects.extend(Slice::both("web", PORT, TARGET, &both));
            objects
        })?;
        let world = &scene.world;
        let host = &world.a().host;
        let rules = "add table inet marks\n\
             add counter inet marks marked\n\
             add chain inet marks in { type filter hook prerouting priority -300; }\n\
             add chain inet marks out { type filter hook postrouting priority 300; }\n\
             add rule inet marks out meta mark != 0 counter name marked\n";
        host.ns.output("nft", &[rules])?;
        let dials = || -> Result<()> {
            for ip in Ip::BOTH {
                for proto in Proto::BOTH {
                    let backends = [world.a().pod(1), world.b().pod(0)];
                    for (from, to) in [
                        (world.a().pod(0), (cluster_ip(ip, CLOSED), PORT)),
                        (host, (cluster_ip(ip, CLOSED), PORT)),
                        (&world.client, (host.addr(ip), node_port(CLOSED))),
                    ] {
                        for _ in 0..5 {
                            let dial = Dial::new(from, proto, to.into());
                            check(&variant.describe(), dial, &backends, Seen::Anyone)?;
                        }
                    }
                }
            }
            Ok(())
        };
        dials()?;
        ensure!(
            marked(&scene)? == 0,
            "marks are left, {}",
            variant.describe()
        );
        host.ns
            .output("nft", &["add rule inet marks in meta mark set 0x4000"])?;
        dials()?;
        ensure!(
            marked(&scene)? > 0,
            "no mark is kept, {}",
            variant.describe()
        );
    }
    Ok(())
}

/// Semantics 20.2: a host without IPv6 is served in IPv4.
fn a_host_without_ipv6_is_served_in_ipv4() -> Result<()> {
    let world = World::new(WorldOptions::default())?;
    let [a, b] = [world.a(), world.b()];
    a.host.ns.sysctl(&[
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ])?;
    let _servers = Server::start_all(b.pod(0), TARGET)?;
    let mut objects = world
        .nodes
        .each_ref()
        .map(|node| manifest::node(&node.host, None))
        .to_vec();
    objects.push(service("web", CLOSED).build());
    objects.extend(Slice::both(
        "web",
        PORT,
        TARGET,
        &[Endpoint::ready(b.pod(0))],
    ));
    let manifests = ManifestDir::with(&objects)?;
    let agent = Agent::start(a, &manifests, AgentOptions::default())?;
    for proto in Proto::BOTH {
        for (from, to) in [
            (a.pod(0), (cluster_ip(Ip::V4, CLOSED), PORT)),
            (&a.host, (cluster_ip(Ip::V4, CLOSED), PORT)),
            (&world.client, (a.host.addr(Ip::V4), node_port(CLOSED))),
        ] {
            expect("IPv4 alone", from, proto, to, &[b.pod(0)], Seen::Anyone)?;
        }
    }
    let (status, body) = agent.health("/healthz")?;
    ensure!(status == 200, "{status} {body}");
    Ok(())
}
