//! Services without a usable endpoint refuse; an endpoint that appears is used at once.

use std::{
    net::IpAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lb_tests::{
    echo::{Dial, Failure, Proto},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{
        Scene, Seen, TARGET, Variant, cluster_ip, cluster_ips, expect, external_ip, external_ips,
    },
    tests,
    topology::{Ip, Node, World},
    trials,
};
use serde_json::Value;

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            everybody_is_refused_at_once,
            an_endpoint_that_appears_is_used_and_one_that_goes_is_refused,
            terminating_endpoints_that_serve_are_used_before_nothing
        ]
    ))
}

const PORT: u16 = 80;

fn service(name: &str, number: u8) -> ServiceManifest {
    ServiceManifest::new(name, &cluster_ips(number))
        .both(PORT)
        .node_port(30080 + u16::from(number))
        .external_ips(&external_ips(10 + number))
        .load_balancer(&external_ips(20 + number))
}

fn frontends(node: &Node, number: u8, ip: Ip) -> [(IpAddr, u16); 4] {
    [
        (cluster_ip(ip, number), PORT),
        (node.host.addr(ip), 30080 + u16::from(number)),
        (external_ip(ip, 10 + number), PORT),
        (external_ip(ip, 20 + number), PORT),
    ]
}

/// No slice; an empty slice, as the controller makes it of pods that failed; endpoints that must not be used.
fn objects(world: &World) -> Vec<Value> {
    let a = world.a();
    let mut objects = vec![
        service("none", 1).build(),
        service("empty", 2).build(),
        service("unusable", 3).build(),
    ];
    objects.push(
        service("local", 4)
            .external_local()
            .internal_local()
            .build(),
    );
    objects.extend(Slice::both("empty", PORT, TARGET, &[]));
    let unusable = [
        Endpoint::unready(a.pod(1)),
        Endpoint::terminating(a.pod(2), false),
    ];
    objects.extend(Slice::both("unusable", PORT, TARGET, &unusable));
    objects
}

/// Semantics 5.14, 6.6, 10.1, 10.7, 10.8, 10.10, 28.27: an answer at once, for everybody, at every frontend, whatever the policy.
fn everybody_is_refused_at_once() -> Result<()> {
    for variant in Variant::all() {
        let scene = Scene::start(&variant, objects)?;
        let world = &scene.world;
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                for number in 1..=4 {
                    for frontend in frontends(world.a(), number, ip) {
                        for from in [world.a().pod(0), &world.client, &world.a().host] {
                            let dial = Dial::new(from, proto, frontend.into());
                            let start = Instant::now();
                            let outcome = dial.ask();
                            let took = start.elapsed();
                            ensure!(
                                outcome == Err(Failure::Refused),
                                "{dial}: {outcome:?}, {}",
                                variant.describe()
                            );
                            // A lost answer would show by the client's next try, a second later.
                            ensure!(
                                took < Duration::from_millis(900),
                                "{dial}: after {took:?}, {}",
                                variant.describe()
                            );
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Semantics 10.9: no negative state is left; and the way back.
fn an_endpoint_that_appears_is_used_and_one_that_goes_is_refused() -> Result<()> {
    for variant in [Variant::plain(), Variant::native_bridge()] {
        let scene = Scene::start(&variant, objects)?;
        let world = &scene.world;
        let backend = world.b().pod(0);
        let mut served = objects(world);
        served.extend(Slice::both(
            "none",
            PORT,
            TARGET,
            &[Endpoint::ready(backend)],
        ));
        let clients = [world.a().pod(0), &world.client, &world.a().host];
        for round in 0..2 {
            for (objects, answers) in [(&objects(world), false), (&served, true)] {
                scene.replace(objects)?;
                let what = format!("round {round}, answers: {answers}, {}", variant.describe());
                for ip in Ip::BOTH {
                    for proto in Proto::BOTH {
                        for frontend in frontends(world.a(), 1, ip) {
                            for from in clients {
                                // One source port throughout: the flow refused before is the one served. The node's own
                                // is none that a flow may be given.
                                let is_node = from.name == world.a().host.name;
                                let dial = Dial::new(from, proto, frontend.into())
                                    .source_port(if is_node { 40_000 } else { 4_000 })
                                    .reset();
                                scene.until(&format!("{what}: {dial}"), dial, |outcome| {
                                    match answers {
                                        true => outcome
                                            .as_ref()
                                            .is_ok_and(|answer| answer.server == backend.name),
                                        false => *outcome == Err(Failure::Refused),
                                    }
                                })?;
                                if answers {
                                    expect(&what, from, proto, frontend, &[backend], Seen::Anyone)?;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Semantics 6.2: where nothing is ready, endpoints that terminate but still serve are used.
fn terminating_endpoints_that_serve_are_used_before_nothing() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), |world| {
        let [a, b] = [world.a(), world.b()];
        let endpoints = [
            Endpoint::terminating(a.pod(1), true),
            Endpoint::terminating(b.pod(0), false),
            Endpoint::unready(b.pod(1)),
        ];
        let mut objects = vec![service("draining", 1).build()];
        objects.extend(Slice::both("draining", PORT, TARGET, &endpoints));
        objects
    })?;
    let world = &scene.world;
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for frontend in frontends(world.a(), 1, ip) {
                for from in [world.a().pod(0), &world.client, &world.a().host] {
                    for _ in 0..5 {
                        expect(
                            "draining",
                            from,
                            proto,
                            frontend,
                            &[world.a().pod(1)],
                            Seen::Anyone,
                        )?;
                    }
                }
            }
        }
    }
    Ok(())
}
