//! `externalTrafficPolicy` and `internalTrafficPolicy`.

use std::{net::IpAddr, process::ExitCode};

use anyhow::{Context as _, Result};
use lb_tests::{
    echo::{Dial, Failure, Proto},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{
        SILENCE, SOON, Scene, Seen, TARGET, Variant, check, cluster_ip, cluster_ips, expect,
        expect_all, expect_failure, external_ip, external_ips,
    },
    scenes, tests,
    topology::{Ip, Node, Place, World},
    trials, wait,
};
use serde_json::Value;

fn main() -> ExitCode {
    let mut trials = scenes!(
        objects,
        [plain, bridge, without_offloads, native, native_bridge],
        [
            external_local_keeps_outside_clients_on_the_node,
            external_local_without_a_local_endpoint_drops_outside_clients,
            external_local_is_short_circuited_for_pods_and_processes_of_the_node,
            internal_local_keeps_cluster_ip_traffic_on_the_node,
            internal_local_without_a_local_endpoint_drops,
            a_port_of_an_ended_connection_is_used_again_past_the_frontends
        ]
    );
    trials.extend(tests!(
        [Root, Bpf, Cgroup2],
        [a_terminating_local_endpoint_serves_local_traffic_only]
    ));
    trials::run(trials)
}

const PORT: u16 = 80;

fn service(name: &str, number: u8) -> ServiceManifest {
    ServiceManifest::new(name, &cluster_ips(number))
        .both(PORT)
        .node_port(30080 + u16::from(number))
        .external_ips(&external_ips(10 + number))
        .load_balancer(&external_ips(20 + number))
}

fn frontends(node: &Node, number: u8, ip: Ip) -> [(IpAddr, u16); 3] {
    [
        (node.host.addr(ip), 30080 + u16::from(number)),
        (external_ip(ip, 10 + number), PORT),
        (external_ip(ip, 20 + number), PORT),
    ]
}

/// External Local with backends on both nodes, external Local with backends on node-b alone; the same
/// two for internal Local.
const EXTERNAL: u8 = 1;
const EXTERNAL_ELSEWHERE: u8 = 2;
const INTERNAL: u8 = 3;
const INTERNAL_ELSEWHERE: u8 = 4;

fn objects(world: &World) -> Vec<Value> {
    let [a, b] = [world.a(), world.b()];
    let everywhere = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)].map(Endpoint::ready);
    let elsewhere = [b.pod(0), b.pod(1)].map(Endpoint::ready);
    let mut objects = vec![
        service("external", EXTERNAL).external_local().build(),
        service("external-elsewhere", EXTERNAL_ELSEWHERE)
            .external_local()
            .build(),
        service("internal", INTERNAL).internal_local().build(),
        service("internal-elsewhere", INTERNAL_ELSEWHERE)
            .internal_local()
            .build(),
    ];
    for name in ["external", "internal"] {
        objects.extend(Slice::both(name, PORT, TARGET, &everywhere));
        objects.extend(Slice::both(
            &format!("{name}-elsewhere"),
            PORT,
            TARGET,
            &elsewhere,
        ));
    }
    objects
}

/// Semantics 8.2, 9.4: only this node's backends, and they see the client.
fn external_local_keeps_outside_clients_on_the_node(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let [a, b] = [world.a(), world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for frontend in frontends(a, EXTERNAL, ip) {
                expect_all(
                    what,
                    &world.client,
                    proto,
                    frontend,
                    &[a.pod(1), a.pod(2)],
                    Seen::Client,
                )?;
            }
            let [on_b, ..] = frontends(b, EXTERNAL, ip);
            expect_all(
                what,
                &world.client,
                proto,
                on_b,
                &[b.pod(0), b.pod(1)],
                Seen::Client,
            )?;
            // The ClusterIP is not concerned (8.5).
            let all = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)];
            expect_all(
                what,
                a.pod(0),
                proto,
                (cluster_ip(ip, EXTERNAL), PORT),
                &all,
                Seen::Client,
            )?;
        }
    }
    Ok(())
}

/// Semantics 10.2: silence, so that a client behind a load balancer tries again.
fn external_local_without_a_local_endpoint_drops_outside_clients(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let world = &scene.world;
    let [a, b] = [world.a(), world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for frontend in frontends(a, EXTERNAL_ELSEWHERE, ip) {
                expect_failure(what, &world.client, proto, frontend, &Failure::TimedOut)?;
            }
            let [on_b, ..] = frontends(b, EXTERNAL_ELSEWHERE, ip);
            expect(
                what,
                &world.client,
                proto,
                on_b,
                &[b.pod(0), b.pod(1)],
                Seen::Client,
            )?;
        }
    }
    Ok(())
}

/// Semantics 8.6, 10.3, 28.1: pods and processes of a node get what a load balancer would give them.
fn external_local_is_short_circuited_for_pods_and_processes_of_the_node(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let [a, b] = [scene.world.a(), scene.world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for frontend in frontends(a, EXTERNAL_ELSEWHERE, ip) {
                for from in [a.pod(0), &a.host] {
                    expect(
                        what,
                        from,
                        proto,
                        frontend,
                        &[b.pod(0), b.pod(1)],
                        Seen::Client,
                    )?;
                }
            }
            // semantics 28.4, 8.8: a pod is an outside client of another node: served where a backend is, not
            // served where none is.
            let [on_b, ..] = frontends(b, EXTERNAL_ELSEWHERE, ip);
            expect(
                what,
                a.pod(0),
                proto,
                on_b,
                &[b.pod(0), b.pod(1)],
                Seen::Client,
            )?;
            let [on_a, ..] = frontends(a, EXTERNAL_ELSEWHERE, ip);
            expect_failure(what, b.pod(2), proto, on_a, &Failure::TimedOut)?;
        }
    }
    Ok(())
}

/// Semantics 1.3, 8.2, 8.5: ClusterIP stays on the node; the external frontends are not concerned.
fn internal_local_keeps_cluster_ip_traffic_on_the_node(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let [a, b] = [world.a(), world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let to = (cluster_ip(ip, INTERNAL), PORT);
            let local = [a.pod(1), a.pod(2)];
            expect_all(what, a.pod(0), proto, to, &local, Seen::Client)?;
            expect_all(what, &a.host, proto, to, &local, Seen::Anyone)?;
            expect_all(what, &world.client, proto, to, &local, Seen::Client)?;
            expect_all(
                what,
                b.pod(2),
                proto,
                to,
                &[b.pod(0), b.pod(1)],
                Seen::Client,
            )?;
            let [node_port, ..] = frontends(a, INTERNAL, ip);
            let all = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)];
            expect_all(what, &world.client, proto, node_port, &all, Seen::Anyone)?;
        }
    }
    Ok(())
}

/// Semantics 10.2, 10.4; a socket hook can only fail the call.
fn internal_local_without_a_local_endpoint_drops(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let [a, b] = [world.a(), world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let to = (cluster_ip(ip, INTERNAL_ELSEWHERE), PORT);
            for from in [a.pod(0), &world.client] {
                expect_failure(what, from, proto, to, &Failure::TimedOut)?;
            }
            expect_failure(what, &a.host, proto, to, &Failure::NotPermitted)?;
            expect(
                what,
                b.pod(2),
                proto,
                to,
                &[b.pod(0), b.pod(1)],
                Seen::Client,
            )?;
            let [node_port, ..] = frontends(a, INTERNAL_ELSEWHERE, ip);
            expect(
                what,
                &world.client,
                proto,
                node_port,
                &[b.pod(0), b.pod(1)],
                Seen::As(&a.host),
            )?;
        }
    }
    Ok(())
}

/// Semantics 9.4, 28.17: a client that a backend saw with its own address and port uses that port again, for the backend
/// itself or for a frontend at another node. Closed or reset, the old connection leaves nothing in the way.
fn a_port_of_an_ended_connection_is_used_again_past_the_frontends(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let world = &scene.world;
    let b = world.b();
    let mut port = 20_000;
    for ip in Ip::BOTH {
        let [on_b, ..] = frontends(b, EXTERNAL_ELSEWHERE, ip);
        // The backend itself, by its own address; or the Service, by its ClusterIP.
        for (from, by_frontend) in [(&world.client, false), (world.a().pod(0), true)] {
            let to = |backend: &Place| match by_frontend {
                true => (cluster_ip(ip, EXTERNAL_ELSEWHERE), PORT),
                false => (backend.addr(ip), TARGET),
            };
            for reset in [false, true] {
                port += 1;
                let dial = |to: (IpAddr, u16)| {
                    let dial = Dial::tcp(from, to.into()).source_port(port);
                    if reset { dial.reset() } else { dial }
                };
                let servers = [b.pod(0), b.pod(1)];
                let first = check(what, dial(on_b), &servers, Seen::Client)?;
                let served = servers.iter().find(|pod| pod.name == first.server);
                let served = served.context("no such pod")?;
                let again = dial(to(served));
                // The two ends close on their own; until then the connection is not over.
                wait::until("the port is free again", SOON, || {
                    check(what, again.timeout(SILENCE), &servers, Seen::Client).map(drop)
                })?;
            }
        }
    }
    Ok(())
}

/// Semantics 6.3, 6.5, 28.25: a terminating local endpoint that still serves is used for Local before nothing;
/// ready endpoints elsewhere serve Cluster traffic.
fn a_terminating_local_endpoint_serves_local_traffic_only() -> Result<()> {
    let scene = Scene::start(&Variant::native(), |world| {
        let [a, b] = [world.a(), world.b()];
        let endpoints = [
            Endpoint::terminating(a.pod(1), true),
            Endpoint::terminating(a.pod(2), false),
            Endpoint::ready(b.pod(0)),
        ];
        let mut objects = vec![service("draining", 1).external_local().build()];
        objects.extend(Slice::both("draining", PORT, TARGET, &endpoints));
        objects
    })?;
    let world = &scene.world;
    let [a, b] = [world.a(), world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for frontend in frontends(a, 1, ip) {
                for _ in 0..10 {
                    expect(
                        "from outside",
                        &world.client,
                        proto,
                        frontend,
                        &[a.pod(1)],
                        Seen::Client,
                    )?;
                }
            }
            for _ in 0..10 {
                expect(
                    "by ClusterIP",
                    a.pod(0),
                    proto,
                    (cluster_ip(ip, 1), PORT),
                    &[b.pod(0)],
                    Seen::Client,
                )?;
            }
        }
    }
    Ok(())
}
