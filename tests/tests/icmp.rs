//! ICMP errors about translated packets reach whom they concern, with what they quote translated back.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    echo::{Dial, Failure, Stream},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{Scene, TARGET, cluster_ip, cluster_ips},
    scenes,
    topology::{Ip, World},
    trials,
};
use serde_json::Value;

fn main() -> ExitCode {
    trials::run(scenes!(
        objects,
        [plain, bridge, without_offloads, native, native_bridge],
        [
            a_port_unreachable_of_the_backend_reaches_the_client,
            path_mtu_towards_the_backend_is_discovered,
            path_mtu_towards_the_client_is_discovered
        ]
    ))
}

const PORT: u16 = 80;
/// A port that no pod serves.
const CLOSED: u16 = 8099;
const PATIENCE: Duration = Duration::from_secs(20);

fn objects(world: &World) -> Vec<Value> {
    let mut objects = Vec::new();
    let cases = [
        ("local", 1, world.a().pod(1), TARGET),
        ("remote", 2, world.b().pod(0), TARGET),
        ("local-closed", 3, world.a().pod(1), CLOSED),
        ("remote-closed", 4, world.b().pod(0), CLOSED),
    ];
    for (name, number, pod, target) in cases {
        objects.push(
            ServiceManifest::new(name, &cluster_ips(number))
                .both(PORT)
                .node_port(30080 + u16::from(number))
                .build(),
        );
        objects.extend(Slice::both(name, PORT, target, &[Endpoint::ready(pod)]));
    }
    objects
}

fn dials(world: &World, ip: Ip, number: u8) -> [Dial<'_>; 3] {
    let node_port = world.a().host.at(ip, 30080 + u16::from(number));
    let cluster = (cluster_ip(ip, number), PORT).into();
    [
        Dial::tcp(world.a().pod(0), cluster),
        Dial::tcp(&world.client, node_port),
        Dial::tcp(&world.a().host, cluster),
    ]
}

/// Semantics 8.14, 20.7: a connected UDP socket hears that nobody listens at the backend.
fn a_port_unreachable_of_the_backend_reaches_the_client(scene: &Scene, what: &str) -> Result<()> {
    for ip in Ip::BOTH {
        for number in [3, 4] {
            for dial in dials(&scene.world, ip, number) {
                let udp = Dial::udp(dial.origin(), dial.destination());
                let outcome = udp.ask();
                ensure!(
                    outcome == Err(Failure::Refused),
                    "{udp}: {outcome:?}, {}",
                    what
                );
                // A RST is a plain reply.
                let outcome = dial.ask();
                ensure!(
                    outcome == Err(Failure::Refused),
                    "{dial}: {outcome:?}, {}",
                    what
                );
            }
        }
    }
    Ok(())
}

/// Semantics 8.14, 20.7, 28.42, 28.44: a narrow link behind the translation, towards the backend.
fn path_mtu_towards_the_backend_is_discovered(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    // Only the sending end is narrow, so that nobody learns it from the handshake.
    world.a().host.ns.ip(&format!(
        "route replace {} mtu 1400\nroute replace {} mtu 1400\n",
        route(world, 0, 1, Ip::V4),
        route(world, 0, 1, Ip::V6)
    ))?;
    world.b().host.ns.ip(&format!(
        "route replace {} mtu 1400\nroute replace {} mtu 1400\n",
        route(world, 1, 0, Ip::V4),
        route(world, 1, 0, Ip::V6)
    ))?;
    for ip in Ip::BOTH {
        for number in [1, 2] {
            let [pod, client, _host] = dials(world, ip, number);
            for dial in [pod, client] {
                let what = format!("{dial}, {}", what);
                let mut stream = Stream::open(dial).context(what.clone())?;
                let answer = stream.ask_with(500_000, PATIENCE).context(what.clone())?;
                assert_eq!(answer.length, 500_000, "{what}");
                let mss = stream.mss()?;
                ensure!(
                    mss <= 1360,
                    "{what}: segments of {mss} bytes: the narrow link was not discovered"
                );
            }
        }
    }
    Ok(())
}

/// Semantics 8.14, 28.42. The same in the direction of the reply: the narrow link is the one to the client.
fn path_mtu_towards_the_client_is_discovered(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    let a = world.a();
    a.host.ns.ip(&format!(
        "route replace {} mtu 1400\nroute replace {} mtu 1400\n\
         route add {}/32 dev eth0 mtu 1400\nroute add {}/128 dev eth0 mtu 1400\n",
        route(world, 0, 0, Ip::V4),
        route(world, 0, 0, Ip::V6),
        world.client.v4,
        world.client.v6,
    ))?;
    for ip in Ip::BOTH {
        for number in [1, 2] {
            let [pod, client, _host] = dials(world, ip, number);
            for dial in [pod, client] {
                let what = format!("{dial}, {}", what);
                let mut stream = Stream::open(dial).context(what.clone())?;
                stream
                    .fetch(500_000, PATIENCE)
                    .with_context(|| format!("{what}: the reply is stuck"))?;
            }
        }
    }
    Ok(())
}

/// A pod's route as `ip route replace` takes it.
fn route(world: &World, node: usize, pod: usize, ip: Ip) -> String {
    let node = &world.nodes[node];
    let device = match world.options.pods {
        lb_tests::topology::PodLink::Routed => node.pod_interface(pod),
        lb_tests::topology::PodLink::Bridge => lb_tests::topology::POD_BRIDGE.to_owned(),
    };
    format!("{} dev {device}", node.pod(pod).addr(ip))
}
