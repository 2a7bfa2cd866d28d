//! Interfaces come and go under a running agent; other programs and the kernel's own filters stay in force.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lb_tests::{
    echo::{Dial, Proto, Server},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{SOON, Scene, Seen, TARGET, Variant, cluster_ip, cluster_ips, expect, expect_all},
    tests,
    topology::{Ip, World},
    trials, wait,
};
use serde_json::Value;

fn main() -> ExitCode {
    let mut trials = tests!(
        [Root, Bpf, Cgroup2],
        [
            a_pod_that_appears_is_covered_and_one_that_goes_leaves_nothing,
            traffic_of_others_is_left_alone
        ]
    );
    trials.extend(tests!(
        [Root, Bpf, Cgroup2, Nft],
        [conntrack_calls_nothing_invalid]
    ));
    trials::run(trials)
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

fn objects(world: &World) -> Vec<Value> {
    let [a, b] = [world.a(), world.b()];
    let mut objects = vec![
        ServiceManifest::new("s", &cluster_ips(1))
            .both(PORT)
            .node_port(NODE_PORT)
            .build(),
    ];
    objects.extend(Slice::both(
        "s",
        PORT,
        TARGET,
        &[Endpoint::ready(a.pod(1)), Endpoint::ready(b.pod(0))],
    ));
    objects
}

/// A pod that appears is covered before it can use its network in practice.
fn a_pod_that_appears_is_covered_and_one_that_goes_leaves_nothing() -> Result<()> {
    for variant in [Variant::plain(), Variant::native_bridge()] {
        let mut scene = Scene::start(&variant, objects)?;
        for round in 0..3 {
            let index = scene.world.add_pod(0)?;
            let what = format!("round {round}, {}", variant.describe());
            {
                let [a, b] = [scene.world.a(), scene.world.b()];
                let pod = a.pod(index);
                let dial = Dial::tcp(pod, (cluster_ip(Ip::V4, 1), PORT).into());
                scene.until(&what, dial, Result::is_ok)?;
                for ip in Ip::BOTH {
                    for proto in Proto::BOTH {
                        let to = (cluster_ip(ip, 1), PORT);
                        expect_all(&what, pod, proto, to, &[a.pod(1), b.pod(0)], Seen::Client)?;
                    }
                }
                // As a backend, too.
                let _servers = Server::start_all(pod, TARGET)?;
                let mut grown = vec![
                    ServiceManifest::new("s", &cluster_ips(1))
                        .both(PORT)
                        .node_port(NODE_PORT)
                        .build(),
                ];
                grown.extend(Slice::both("s", PORT, TARGET, &[Endpoint::ready(pod)]));
                scene.replace(&grown)?;
                let dial = Dial::tcp(a.pod(0), (cluster_ip(Ip::V4, 1), PORT).into());
                scene.until(&what, dial, |outcome| {
                    outcome
                        .as_ref()
                        .is_ok_and(|answer| answer.server == pod.name)
                })?;
                for ip in Ip::BOTH {
                    for proto in Proto::BOTH {
                        let node_port = (a.host.addr(ip), NODE_PORT);
                        expect(
                            &what,
                            &scene.world.client,
                            proto,
                            node_port,
                            &[pod],
                            Seen::Client,
                        )?;
                    }
                }
            }
            scene.world.remove_pod(0)?;
            scene.replace(&objects(&scene.world))?;
            let interface = format!("veth-{}", index + 2);
            wait::until("the interface that went is not listed", SOON, || {
                let interfaces = scene.a.json(&["interfaces"])?.to_string();
                ensure!(
                    !interfaces.contains(&format!("\"{interface}\"")),
                    "{interfaces}"
                );
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Semantics 19.4, 28.18: the kernel's conntrack sees genuine flows, nothing INVALID.
fn conntrack_calls_nothing_invalid() -> Result<()> {
    for mut variant in [Variant::plain(), Variant::native()] {
        variant.world = variant.world.with_conntrack();
        let scene = Scene::start(&variant, objects)?;
        let world = &scene.world;
        let [a, b] = [world.a(), world.b()];
        let what = variant.describe();
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                let backends = [a.pod(1), b.pod(0)];
                expect_all(
                    &what,
                    a.pod(0),
                    proto,
                    (cluster_ip(ip, 1), PORT),
                    &backends,
                    Seen::Client,
                )?;
                expect_all(
                    &what,
                    &world.client,
                    proto,
                    (a.host.addr(ip), NODE_PORT),
                    &backends,
                    Seen::Anyone,
                )?;
            }
        }
        for node in [a, b] {
            let rules = node.host.ns.output("nft", &["list ruleset"])?;
            let invalid = rules.lines().find(|line| line.contains("invalid"));
            let clean = invalid.is_some_and(|rule| rule.contains("packets 0 "));
            ensure!(clean, "{}: {}\n{rules}", what, node.host.name);
        }
    }
    Ok(())
}

/// Traffic that is no Service's passes as if nothing were attached, in every direction and family.
fn traffic_of_others_is_left_alone() -> Result<()> {
    for variant in Variant::all() {
        let scene = Scene::start(&variant, objects)?;
        let world = &scene.world;
        let places = [
            &world.client,
            world.a().pod(0),
            world.b().pod(2),
            &world.b().host,
        ];
        let pods = [
            world.a().pod(0),
            world.a().pod(1),
            world.b().pod(0),
            world.b().pod(2),
        ];
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                for from in places {
                    for to in pods.iter().filter(|to| to.name != from.name) {
                        let own_pod = from.name == "node-b" && to.name.starts_with('b');
                        let seen = if own_pod { Seen::Anyone } else { Seen::Client };
                        let what = variant.describe();
                        expect(&what, from, proto, (to.addr(ip), TARGET), &[to], seen)?;
                        let dial = Dial::new(from, proto, to.at(ip, TARGET)).size(9_000);
                        lb_tests::scene::check(&what, dial, &[to], seen)?;
                    }
                }
            }
        }
    }
    Ok(())
}
