//! A pod dials a Service that leads to itself.

use anyhow::Result;
use lb_tests::{
    echo::{Dial, Proto, Stream},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{
        Scene, Seen, TARGET, Variant, cluster_ip, cluster_ips, expect, external_ip, external_ips,
    },
    tests,
    topology::{Ip, World},
    trials,
};
use serde_json::Value;
use std::{process::ExitCode, time::Duration};

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            a_pod_reaches_itself_and_sees_its_node,
            a_pod_among_several_backends_reaches_itself_and_the_others
        ]
    ))
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

/// The only backend is a2.
fn objects(world: &World) -> Vec<Value> {
    let service = ServiceManifest::new("own", &cluster_ips(1))
        .both(PORT)
        .node_port(NODE_PORT);
    let mut objects = vec![service.external_ips(&external_ips(11)).build()];
    objects.extend(Slice::both(
        "own",
        PORT,
        TARGET,
        &[Endpoint::ready(world.a().pod(0))],
    ));
    objects.push(
        ServiceManifest::new("same", &cluster_ips(2))
            .both(TARGET)
            .build(),
    );
    objects.extend(Slice::both(
        "same",
        TARGET,
        TARGET,
        &[Endpoint::ready(world.a().pod(0)).nowhere()],
    ));
    objects
}

/// Semantics 8.3, 9.2.d: the pod sees its node as the client, whatever the frontend, and with no `nodeName`
/// in the slice, too.
fn a_pod_reaches_itself_and_sees_its_node() -> Result<()> {
    for variant in Variant::all() {
        let scene = Scene::start(&variant, objects)?;
        let a = scene.world.a();
        let pod = a.pod(0);
        let what = variant.describe();
        for ip in Ip::BOTH {
            let frontends = [
                (cluster_ip(ip, 1), PORT),
                (cluster_ip(ip, 2), TARGET),
                (external_ip(ip, 11), PORT),
                (a.host.addr(ip), NODE_PORT),
            ];
            for proto in Proto::BOTH {
                for frontend in frontends {
                    expect(&what, pod, proto, frontend, &[pod], Seen::As(&a.host))?;
                }
            }
            for frontend in frontends {
                let dial = Dial::tcp(pod, frontend.into());
                let mut stream = Stream::open(dial)?;
                let patience = Duration::from_secs(20);
                assert_eq!(
                    stream.ask_with(1_000_000, patience)?.length,
                    1_000_000,
                    "{dial}, {what}"
                );
                stream.fetch(1_000_000, patience)?;
            }
        }
    }
    Ok(())
}

/// With other backends beside it, a pod reaches all of them, and only itself by way of its node.
fn a_pod_among_several_backends_reaches_itself_and_the_others() -> Result<()> {
    for variant in [Variant::plain(), Variant::bridge()] {
        let scene = Scene::start(&variant, |world| {
            let [a, b] = [world.a(), world.b()];
            let endpoints = [a.pod(0), a.pod(1), b.pod(0)].map(Endpoint::ready);
            let mut objects = vec![
                ServiceManifest::new("several", &cluster_ips(1))
                    .both(PORT)
                    .build(),
            ];
            objects.extend(Slice::both("several", PORT, TARGET, &endpoints));
            objects
        })?;
        let [a, b] = [scene.world.a(), scene.world.b()];
        let backends = [a.pod(0), a.pod(1), b.pod(0)];
        for ip in Ip::BOTH {
            for proto in Proto::BOTH {
                let mut seen: Vec<String> = Vec::new();
                for _ in 0..100 {
                    let answer = expect(
                        &variant.describe(),
                        a.pod(0),
                        proto,
                        (cluster_ip(ip, 1), PORT),
                        &backends,
                        Seen::Anyone,
                    )?;
                    let source = if answer.server == "a2" {
                        &a.host
                    } else {
                        a.pod(0)
                    };
                    assert_eq!(
                        answer.seen_peer.ip(),
                        source.addr(ip),
                        "{} of {}",
                        answer.server,
                        variant.describe()
                    );
                    seen.push(answer.server);
                }
                seen.sort();
                seen.dedup();
                assert_eq!(seen, ["a2", "a3", "b2"], "{}", variant.describe());
            }
        }
    }
    Ok(())
}
