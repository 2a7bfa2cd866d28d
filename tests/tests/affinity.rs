//! Session affinity by client address.

use std::{
    net::IpAddr,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lb_tests::{
    echo::{Dial, Proto},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{
        Scene, Seen, TARGET, Variant, check, cluster_ip, cluster_ips, expect_all, external_ip,
        external_ips,
    },
    tests,
    topology::{Ip, Node, Place, World},
    trials, wait,
};
use serde_json::Value;

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            a_client_keeps_its_backend_over_ports_and_frontends,
            a_client_keeps_its_backend_when_endpoints_are_added,
            affinity_ends_after_its_timeout_without_connections,
            affinity_can_be_switched_off_and_on
        ]
    ))
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

fn backends(world: &World) -> Vec<&Place> {
    let [a, b] = [world.a(), world.b()];
    vec![a.pod(1), a.pod(2), b.pod(0), b.pod(1), b.pod(2)]
}

fn objects(affinity: Option<u32>, endpoints: &[&Place]) -> Vec<Value> {
    let service = ServiceManifest::new("sticky", &cluster_ips(1))
        .both(PORT)
        .node_port(NODE_PORT)
        .load_balancer(&external_ips(21));
    let service = match affinity {
        Some(seconds) => service.affinity(seconds),
        None => service,
    };
    let endpoints: Vec<Endpoint<'_>> = endpoints.iter().map(|pod| Endpoint::ready(pod)).collect();
    let mut objects = vec![service.build()];
    objects.extend(Slice::both("sticky", PORT, TARGET, &endpoints));
    objects
}

fn frontends(node: &Node, ip: Ip) -> [(IpAddr, u16); 3] {
    [
        (cluster_ip(ip, 1), PORT),
        (node.host.addr(ip), NODE_PORT),
        (external_ip(ip, 21), PORT),
    ]
}

/// Semantics 13.1, 13.10, 28.23: one key for every frontend of a service port, for clients of every kind.
fn a_client_keeps_its_backend_over_ports_and_frontends() -> Result<()> {
    for variant in Variant::all() {
        let scene = Scene::start(&variant, |world| objects(Some(10_800), &backends(world)))?;
        let world = &scene.world;
        let what = variant.describe();
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                for from in [world.a().pod(0), &world.client, &world.a().host] {
                    let mut first: Option<String> = None;
                    for round in 0..15 {
                        let frontend = frontends(world.a(), ip)[round % 3];
                        let answer = check(
                            &what,
                            Dial::new(from, proto, frontend.into()),
                            &backends(world),
                            Seen::Anyone,
                        )?;
                        let first = first.get_or_insert_with(|| answer.server.clone());
                        assert_eq!(
                            answer.server, *first,
                            "{} by {proto:?} {ip:?} to {frontend:?}, {what}",
                            from.name
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

/// Semantics 13.5: endpoints come, clients stay. Semantics 9.8, 13.9: strangers are told apart though the same node's
/// address stands in for all of them.
fn a_client_keeps_its_backend_when_endpoints_are_added() -> Result<()> {
    for variant in [Variant::plain(), Variant::native()] {
        let scene = Scene::start(&variant, |world| objects(Some(10_800), &[world.a().pod(1)]))?;
        let world = &scene.world;
        let what = variant.describe();
        let clients = [world.a().pod(0), &world.client, &world.a().host];
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                for from in clients {
                    let dial =
                        from_own_address(Dial::new(from, proto, (cluster_ip(ip, 1), PORT).into()));
                    check(&what, dial, &[world.a().pod(1)], Seen::Anyone)?;
                }
            }
        }
        // Somebody who was never here goes to a new endpoint once they are in force.
        scene.replace(&objects(Some(10_800), &backends(world)))?;
        strangers_spread(&scene)?;
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                for from in clients {
                    for frontend in frontends(world.a(), ip) {
                        let dial = from_own_address(Dial::new(from, proto, frontend.into()));
                        check(&what, dial, &[world.a().pod(1)], Seen::Anyone)?;
                    }
                }
            }
        }
        // semantics 13.4, 28.20: the backend goes, its clients are served by others at once.
        scene.replace(&objects(Some(10_800), &backends(world)[1..]))?;
        for ip in Ip::BOTH {
            for from in clients {
                let dial = from_own_address(Dial::tcp(from, (cluster_ip(ip, 1), PORT).into()));
                scene.until("another backend", dial, |outcome| {
                    outcome.as_ref().is_ok_and(|answer| answer.server != "a3")
                })?;
            }
        }
    }
    Ok(())
}

/// The client has several addresses by and by.
fn from_own_address(dial: Dial<'_>) -> Dial<'_> {
    let addr = dial.origin().addr(Ip::of(dial.destination().ip()));
    dial.source((addr, 0).into())
}

/// Clients with addresses that were not used before reach endpoints other than a3.
fn strangers_spread(scene: &Scene) -> Result<()> {
    let client = &scene.world.client;
    for ip in Ip::BOTH {
        let mut next = 1u8;
        wait::until(
            "strangers reach the new endpoints",
            lb_tests::scene::SOON,
            || {
                next = next.wrapping_add(1).max(1);
                let source = stranger(client, ip, next)?;
                let dial =
                    Dial::tcp(client, (cluster_ip(ip, 1), PORT).into()).source((source, 0).into());
                let answer = dial.ask()?;
                ensure!(
                    answer.server != "a3",
                    "{source} still reaches {}",
                    answer.server
                );
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Gives the client one more address.
fn stranger(client: &Place, ip: Ip, number: u8) -> Result<IpAddr> {
    let addr: IpAddr = match ip {
        Ip::V4 => [192, 0, 2, 100 + number % 100].into(),
        Ip::V6 => [0x2001, 0xdb8, 1, 0, 0, 0, 1, u16::from(number)].into(),
    };
    let (prefix, nodad) = if ip == Ip::V4 {
        (24, "")
    } else {
        (64, "nodad")
    };
    client
        .ns
        .ip(&format!("addr replace {addr}/{prefix} dev eth0 {nodad}\n"))?;
    Ok(addr)
}

/// Semantics 13.2, 13.8: the time counts from the last new connection; then the client is free.
fn affinity_ends_after_its_timeout_without_connections() -> Result<()> {
    let seconds = 2;
    let scene = Scene::start(&Variant::plain(), |world| {
        objects(Some(seconds), &[world.a().pod(1)])
    })?;
    let world = &scene.world;
    let addrs: Vec<IpAddr> = (1..=16)
        .map(|number| stranger(&world.client, Ip::V4, number))
        .collect::<Result<_>>()?;
    let ask = |source: &IpAddr| -> Result<String> {
        let dial = Dial::tcp(&world.client, (cluster_ip(Ip::V4, 1), PORT).into())
            .source((*source, 0).into());
        Ok(dial.ask()?.server)
    };
    for source in &addrs {
        ask(source)?;
    }
    scene.replace(&objects(Some(seconds), &backends(world)))?;
    // Longer than the timeout, but never that long without a connection.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3500) {
        for source in &addrs {
            let before = Instant::now();
            let server = ask(source)?;
            if before.elapsed() < Duration::from_millis(500) {
                assert_eq!(server, "a3", "{source} after {:?}", start.elapsed());
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    // A pause is what this case is about: every dial would start the time anew.
    thread::sleep(Duration::from_millis(2300));
    let moved: Vec<String> = addrs.iter().map(ask).collect::<Result<_>>()?;
    assert!(
        moved.iter().any(|server| server != "a3"),
        "all clients still reach a3"
    );
    Ok(())
}

/// Semantics 13.7: switched off it is forgotten, switched on it starts anew.
fn affinity_can_be_switched_off_and_on() -> Result<()> {
    for variant in [Variant::plain(), Variant::native()] {
        let scene = Scene::start(&variant, |world| objects(Some(10_800), &backends(world)))?;
        let world = &scene.world;
        let what = variant.describe();
        for ip in Ip::BOTH {
            for from in [world.a().pod(0), &world.client] {
                let to = (cluster_ip(ip, 1), PORT);
                let dial = Dial::tcp(from, to.into());
                let first = dial.ask()?.server;
                scene.replace(&objects(None, &backends(world)))?;
                scene.until("another backend", dial, |outcome| {
                    outcome.as_ref().is_ok_and(|answer| answer.server != first)
                })?;
                expect_all(&what, from, Proto::Tcp, to, &backends(world), Seen::Anyone)?;
                scene.replace(&objects(Some(10_800), &backends(world)))?;
                wait::until(
                    "15 connections to one backend",
                    lb_tests::scene::SOON,
                    || {
                        let first = dial.ask()?.server;
                        for _ in 0..15 {
                            let server = dial.ask()?.server;
                            ensure!(server == first, "{first}, then {server}");
                        }
                        Ok(())
                    },
                )?;
            }
        }
    }
    Ok(())
}
