//! Pods and outside clients dial NodePorts, externalIPs and load-balancer addresses.

use std::{net::IpAddr, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use lb_tests::{
    echo::{Dial, Failure, Proto, Stream},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{
        Scene, Seen, TARGET, Variant, check, cluster_ips, expect, expect_all, expect_failure,
        external_ip, external_ips,
    },
    scenes, tests,
    topology::{Ip, Node, World},
    trials,
};
use serde_json::Value;

fn main() -> ExitCode {
    let mut trials = scenes!(
        objects,
        [plain, bridge, without_offloads, native, native_bridge],
        [
            an_outside_client_reaches_local_and_remote_backends_by_every_frontend,
            a_pod_reaches_the_external_frontends_of_its_node,
            a_pod_reaches_the_node_ports_of_another_node,
            large_transfers_through_a_node_port_are_whole,
            fragmented_datagrams_from_outside_reach_one_backend_and_come_back,
            undefined_ports_of_external_addresses_are_left_to_the_host,
            the_hook_that_should_translate_does
        ]
    );
    trials.extend(tests!(
        [Root, Bpf, Cgroup2],
        [
            masquerade_kube_proxy_hides_clients_of_external_frontends,
            source_ranges_drop_strangers_at_the_load_balancer_address_only
        ]
    ));
    trials::run(trials)
}

const PORT: u16 = 80;

/// A Service with every external frontend, by its number.
#[derive(Clone, Copy)]
struct ExternalService {
    name: &'static str,
    number: u8,
}

/// Backend a3.
const LOCAL: ExternalService = ExternalService {
    name: "local",
    number: 1,
};
/// Backend b2.
const REMOTE: ExternalService = ExternalService {
    name: "remote",
    number: 2,
};
/// Backends a3, a4, b2, b3.
const MIXED: ExternalService = ExternalService {
    name: "mixed",
    number: 3,
};

impl ExternalService {
    fn node_port(self) -> u16 {
        30080 + u16::from(self.number)
    }

    /// NodePort of a node, externalIP and load-balancer address.
    fn frontends(self, node: &Node, ip: Ip) -> [(IpAddr, u16); 3] {
        [
            (node.host.addr(ip), self.node_port()),
            (external_ip(ip, 10 + self.number), PORT),
            (external_ip(ip, 20 + self.number), PORT),
        ]
    }

    fn objects(self, endpoints: &[Endpoint<'_>]) -> Vec<Value> {
        let service = ServiceManifest::new(self.name, &cluster_ips(self.number))
            .both(PORT)
            .node_port(self.node_port())
            .external_ips(&external_ips(10 + self.number))
            .load_balancer(&external_ips(20 + self.number));
        let mut objects = vec![service.build()];
        objects.extend(Slice::both(self.name, PORT, TARGET, endpoints));
        objects
    }
}

fn objects(world: &World) -> Vec<Value> {
    let [a, b] = [world.a(), world.b()];
    let mut objects = LOCAL.objects(&[Endpoint::ready(a.pod(1))]);
    objects.extend(REMOTE.objects(&[Endpoint::ready(b.pod(0))]));
    objects.extend(MIXED.objects(&[a.pod(1), a.pod(2), b.pod(0), b.pod(1)].map(Endpoint::ready)));
    objects
}

/// Semantics 8.2, 9.9: a local backend sees the client; a remote one the node that the client dialled.
fn an_outside_client_reaches_local_and_remote_backends_by_every_frontend(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let world = &scene.world;
    let (client, [a, b]) = (&world.client, [world.a(), world.b()]);
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for frontend in LOCAL.frontends(a, ip) {
                expect(what, client, proto, frontend, &[a.pod(1)], Seen::Client)?;
            }
            for frontend in REMOTE.frontends(a, ip) {
                for _ in 0..2 {
                    expect(
                        what,
                        client,
                        proto,
                        frontend,
                        &[b.pod(0)],
                        Seen::As(&a.host),
                    )?;
                }
            }
            // By the other node's NodePort the roles are swapped.
            let [on_b, ..] = REMOTE.frontends(b, ip);
            expect(what, client, proto, on_b, &[b.pod(0)], Seen::Client)?;
            let [on_b, ..] = LOCAL.frontends(b, ip);
            expect(what, client, proto, on_b, &[a.pod(1)], Seen::As(&b.host))?;
            for frontend in MIXED.frontends(a, ip) {
                let mixed = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)];
                expect_all(what, client, proto, frontend, &mixed, Seen::Anyone)?;
            }
        }
    }
    Ok(())
}

/// Semantics 8.2, 9.9: the source of a pod of this node is kept, whatever the frontend.
fn a_pod_reaches_the_external_frontends_of_its_node(scene: &Scene, what: &str) -> Result<()> {
    let [a, b] = [scene.world.a(), scene.world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for frontend in LOCAL.frontends(a, ip) {
                expect(what, a.pod(0), proto, frontend, &[a.pod(1)], Seen::Client)?;
            }
            for frontend in REMOTE.frontends(a, ip) {
                expect(what, a.pod(0), proto, frontend, &[b.pod(0)], Seen::Client)?;
            }
        }
    }
    Ok(())
}

/// Semantics 8.7, 8.8: another node's NodePort is that node's business, and there the pod is a client from
/// outside.
fn a_pod_reaches_the_node_ports_of_another_node(scene: &Scene, what: &str) -> Result<()> {
    let [a, b] = [scene.world.a(), scene.world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let [to_b, ..] = REMOTE.frontends(b, ip);
            expect(what, a.pod(0), proto, to_b, &[b.pod(0)], Seen::Client)?;
            let [to_b, ..] = LOCAL.frontends(b, ip);
            expect(what, a.pod(0), proto, to_b, &[a.pod(1)], Seen::As(&b.host))?;
        }
    }
    Ok(())
}

/// Semantics 9.2.c, to the letter: policy Cluster hides every client.
fn masquerade_kube_proxy_hides_clients_of_external_frontends() -> Result<()> {
    for variant in [Variant::plain(), Variant::native()] {
        let variant =
            variant.flag("--masquerade kube-proxy --cluster-cidr 10.244.0.0/16,fd00:10:244::/48");
        let scene = Scene::start(&variant, objects)?;
        let world = &scene.world;
        let [a, b] = [world.a(), world.b()];
        let what = variant.describe();
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                for from in [&world.client, a.pod(0)] {
                    for frontend in LOCAL.frontends(a, ip) {
                        expect(&what, from, proto, frontend, &[a.pod(1)], Seen::As(&a.host))?;
                    }
                    for frontend in REMOTE.frontends(a, ip) {
                        expect(&what, from, proto, frontend, &[b.pod(0)], Seen::As(&a.host))?;
                    }
                }
                // semantics 9.4: pods keep their address through a ClusterIP.
                let cluster = (lb_tests::scene::cluster_ip(ip, REMOTE.number), PORT);
                expect(&what, a.pod(0), proto, cluster, &[b.pod(0)], Seen::Client)?;
            }
        }
    }
    Ok(())
}

/// Segmentation offload, full windows, and (with XDP) packets that must stay in order.
fn large_transfers_through_a_node_port_are_whole(scene: &Scene, what: &str) -> Result<()> {
    let patience = Duration::from_secs(20);
    for ip in Ip::BOTH {
        for case in [LOCAL, REMOTE] {
            let [frontend, ..] = case.frontends(scene.world.a(), ip);
            let dial = Dial::tcp(&scene.world.client, frontend.into());
            let mut stream = Stream::open(dial)?;
            assert_eq!(
                stream.ask_with(3_000_000, patience)?.length,
                3_000_000,
                "{dial}, {}",
                what
            );
            stream.fetch(3_000_000, patience)?;
        }
    }
    Ok(())
}

/// Semantics 8.15, from outside and with source translation.
fn fragmented_datagrams_from_outside_reach_one_backend_and_come_back(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let [a, b] = [scene.world.a(), scene.world.b()];
    for ip in Ip::BOTH {
        for size in [2_000, 9_000] {
            for (case, backend) in [(LOCAL, a.pod(1)), (REMOTE, b.pod(0))] {
                for frontend in case.frontends(a, ip) {
                    let dial = Dial::udp(&scene.world.client, frontend.into()).size(size);
                    let what = format!("{}, {size} bytes", what);
                    let answer = check(&what, dial, &[backend], Seen::Anyone)?;
                    assert_eq!(answer.length, size);
                }
            }
        }
    }
    Ok(())
}

/// Semantics 11.4, 14.10: ports of node and external addresses that no Service has are the host's.
fn undefined_ports_of_external_addresses_are_left_to_the_host(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let world = &scene.world;
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let what = format!("a port of the node that nothing listens on, {what}");
            let to = (world.a().host.addr(ip), 30999);
            expect_failure(&what, &world.client, proto, to, &Failure::Refused)?;
            // Not ours: routed on to where nobody answers.
            let what = format!("an externalIP's other port, {what}");
            expect_failure(
                &what,
                &world.client,
                proto,
                (external_ip(ip, 11), 81),
                &Failure::TimedOut,
            )?;
        }
    }
    Ok(())
}

/// Semantics 12.1, 12.2, 12.3, 28.8, 28.9: a source outside the ranges is dropped, and only at the load-balancer address.
/// Semantics 9.8: the client is looked at, not the node that stands in for it.
fn source_ranges_drop_strangers_at_the_load_balancer_address_only() -> Result<()> {
    for variant in [Variant::plain(), Variant::native()] {
        let scene = Scene::start(&variant, |world| {
            let service = |name: &str, number: u8, ranges: &[&str]| {
                let ports = ServiceManifest::new(name, &cluster_ips(number))
                    .both(PORT)
                    .node_port(30080 + u16::from(number));
                ports
                    .load_balancer(&external_ips(number))
                    .source_ranges(ranges)
                    .build()
            };
            let mut objects = vec![
                service("closed", 31, &["203.0.113.0/24", "2001:db8:99::/48"]),
                service(
                    "open",
                    32,
                    &[
                        "192.0.2.100/32",
                        "2001:db8:1::100/128",
                        "10.244.0.0/16",
                        "fd00:10:244::/48",
                    ],
                ),
                service("half", 33, &["2001:db8:99::/48"]),
            ];
            for name in ["closed", "open", "half"] {
                objects.extend(Slice::both(
                    name,
                    PORT,
                    TARGET,
                    &[Endpoint::ready(world.b().pod(0))],
                ));
            }
            objects
        })?;
        let world = &scene.world;
        let (a, backend) = (world.a(), [world.b().pod(0)]);
        let what = variant.describe();
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                for from in [&world.client, a.pod(0)] {
                    expect_failure(
                        &what,
                        from,
                        proto,
                        (external_ip(ip, 31), PORT),
                        &Failure::TimedOut,
                    )?;
                    expect(
                        &what,
                        from,
                        proto,
                        (a.host.addr(ip), 30111),
                        &backend,
                        Seen::Anyone,
                    )?;
                    expect(
                        &what,
                        from,
                        proto,
                        (external_ip(ip, 32), PORT),
                        &backend,
                        Seen::Anyone,
                    )?;
                }
                // semantics 4.5: ranges of the other family alone leave this one open.
                let half = (external_ip(ip, 33), PORT);
                match ip {
                    Ip::V4 => drop(expect(
                        &what,
                        &world.client,
                        proto,
                        half,
                        &backend,
                        Seen::Anyone,
                    )?),
                    Ip::V6 => {
                        expect_failure(&what, &world.client, proto, half, &Failure::TimedOut)?
                    }
                }
            }
        }
    }
    Ok(())
}

/// XDP carries flows to remote backends where it may transmit, tc the others.
fn the_hook_that_should_translate_does(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let counted = |event: &str| {
        scene
            .a
            .metric("lb_events_total", &[&format!("\"{event}\"")])
    };
    for ip in Ip::BOTH {
        for (case, by_xdp) in [(REMOTE, scene.xdp()), (LOCAL, false)] {
            let [frontend, ..] = case.frontends(world.a(), ip);
            let before = [
                counted("xdp_translated")?,
                counted("tc_external_translated")?,
            ];
            let mut stream = Stream::open(Dial::tcp(&world.client, frontend.into()))?;
            for _ in 0..20 {
                stream.ask(Duration::from_secs(5))?;
            }
            let by = [
                counted("xdp_translated")? - before[0],
                counted("tc_external_translated")? - before[1],
            ];
            // The first packets may go by tc while the next hop is not known.
            let (most, other) = if by_xdp {
                (by[0], by[1])
            } else {
                (by[1], by[0])
            };
            ensure!(
                most >= 20.0,
                "{} by {ip:?}: XDP, tc translated {by:?}, {what}",
                case.name
            );
            ensure!(
                by_xdp || other == 0.0,
                "{} by {ip:?}: XDP, tc translated {by:?}, {what}",
                case.name
            );
        }
    }
    Ok(())
}
