//! Pods and outside clients dial ClusterIPs.

use anyhow::Result;
use lb_tests::{
    echo::{Dial, Failure, Proto, Stream},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{
        Scene, Seen, TARGET, check, cluster_ip, cluster_ips, expect, expect_all, expect_failure,
    },
    scenes,
    topology::{Ip, World},
    trials,
};
use serde_json::Value;
use std::{process::ExitCode, time::Duration};

fn main() -> ExitCode {
    trials::run(scenes!(
        objects,
        [plain, bridge, without_offloads, native, native_bridge],
        [
            a_pod_reaches_local_and_remote_backends_with_its_own_address,
            an_outside_client_reaches_cluster_ips_by_a_route_to_a_node,
            large_transfers_through_a_cluster_ip_are_whole,
            fragmented_datagrams_reach_one_backend_and_come_back,
            an_undefined_port_of_a_cluster_ip_is_refused
        ]
    ))
}

const PORT: u16 = 80;
/// ClusterIPs by number: backend a3; backend b2; backends a3, a4, b2 and b3; the same port number as
/// the backend's.
const LOCAL: u8 = 1;
const REMOTE: u8 = 2;
const MIXED: u8 = 3;
const SAME_PORT: u8 = 4;
/// Backend b2, by TCP alone.
const TCP_ONLY: u8 = 5;

fn objects(world: &World) -> Vec<Value> {
    let [a, b] = [world.a(), world.b()];
    let service = |name: &str, number: u8, port: u16| {
        ServiceManifest::new(name, &cluster_ips(number))
            .both(port)
            .build()
    };
    let mut objects = vec![
        service("local", LOCAL, PORT),
        service("remote", REMOTE, PORT),
        service("mixed", MIXED, PORT),
        service("same-port", SAME_PORT, TARGET),
    ];
    let local = [Endpoint::ready(a.pod(1))];
    let remote = [Endpoint::ready(b.pod(0))];
    let mixed = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)].map(Endpoint::ready);
    objects.extend(Slice::both("local", PORT, TARGET, &local));
    objects.extend(Slice::both("remote", PORT, TARGET, &remote));
    objects.extend(Slice::both("mixed", PORT, TARGET, &mixed));
    objects.extend(Slice::both("same-port", TARGET, TARGET, &mixed));
    objects.push(
        ServiceManifest::new("tcp-only", &cluster_ips(TCP_ONLY))
            .port(Proto::Tcp, PORT)
            .build(),
    );
    for ip in Ip::BOTH {
        let slice = Slice::new("tcp-only", ip).port(Proto::Tcp, PORT, TARGET);
        objects.push(slice.endpoint(Endpoint::ready(b.pod(0))).build());
    }
    objects
}

/// Semantics 8.1, 8.2, 9.4: a pod's own address is seen, the reply comes from the ClusterIP.
fn a_pod_reaches_local_and_remote_backends_with_its_own_address(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let [a, b] = [scene.world.a(), scene.world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let client = a.pod(0);
            expect(
                what,
                client,
                proto,
                (cluster_ip(ip, LOCAL), PORT),
                &[a.pod(1)],
                Seen::Client,
            )?;
            expect(
                what,
                client,
                proto,
                (cluster_ip(ip, REMOTE), PORT),
                &[b.pod(0)],
                Seen::Client,
            )?;
            let mixed = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)];
            expect_all(
                what,
                client,
                proto,
                (cluster_ip(ip, MIXED), PORT),
                &mixed,
                Seen::Client,
            )?;
            expect_all(
                what,
                client,
                proto,
                (cluster_ip(ip, SAME_PORT), TARGET),
                &mixed,
                Seen::Client,
            )?;
            // From the other node the roles are swapped.
            expect(
                what,
                b.pod(1),
                proto,
                (cluster_ip(ip, REMOTE), PORT),
                &[b.pod(0)],
                Seen::Client,
            )?;
            expect(
                what,
                b.pod(1),
                proto,
                (cluster_ip(ip, LOCAL), PORT),
                &[a.pod(1)],
                Seen::Client,
            )?;
        }
    }
    Ok(())
}

/// Semantics 8.1, 8.2, 8.9: an outside client's address is kept for a local backend; for a remote one the
/// node's stands in, so that the reply comes back this way.
fn an_outside_client_reaches_cluster_ips_by_a_route_to_a_node(
    scene: &Scene,
    what: &str,
) -> Result<()> {
    let world = &scene.world;
    let [a, b] = [world.a(), world.b()];
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            expect(
                what,
                &world.client,
                proto,
                (cluster_ip(ip, LOCAL), PORT),
                &[a.pod(1)],
                Seen::Client,
            )?;
            // Twice: the first packets find the next hop, later ones use it.
            for _ in 0..2 {
                expect(
                    what,
                    &world.client,
                    proto,
                    (cluster_ip(ip, REMOTE), PORT),
                    &[b.pod(0)],
                    Seen::As(&a.host),
                )?;
            }
            let mixed = [a.pod(1), a.pod(2), b.pod(0), b.pod(1)];
            expect_all(
                what,
                &world.client,
                proto,
                (cluster_ip(ip, MIXED), PORT),
                &mixed,
                Seen::Anyone,
            )?;
        }
    }
    Ok(())
}

/// Megabytes in both directions: segmentation offload, checksums left to the device, full windows.
fn large_transfers_through_a_cluster_ip_are_whole(scene: &Scene, what: &str) -> Result<()> {
    let patience = Duration::from_secs(20);
    for ip in Ip::BOTH {
        for from in [scene.world.a().pod(0), &scene.world.client] {
            for number in [LOCAL, REMOTE, SAME_PORT] {
                let port = if number == SAME_PORT { TARGET } else { PORT };
                let dial = Dial::tcp(from, (cluster_ip(ip, number), port).into());
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
    }
    Ok(())
}

/// Semantics 8.15, 28.43: datagrams of several fragments, asked and answered.
fn fragmented_datagrams_reach_one_backend_and_come_back(scene: &Scene, what: &str) -> Result<()> {
    let [a, b] = [scene.world.a(), scene.world.b()];
    for ip in Ip::BOTH {
        for size in [2_000, 9_000] {
            for (number, backend) in [(LOCAL, a.pod(1)), (REMOTE, b.pod(0))] {
                for from in [a.pod(0), &scene.world.client] {
                    let dial = Dial::udp(from, (cluster_ip(ip, number), PORT).into()).size(size);
                    let answer = check(
                        &format!("{what}, {size} bytes"),
                        dial,
                        &[backend],
                        Seen::Anyone,
                    )?;
                    assert_eq!(answer.length, size);
                }
            }
        }
    }
    Ok(())
}

/// Semantics 11.1: a port that no Service defines on a ClusterIP is refused, and TCP is not UDP.
fn an_undefined_port_of_a_cluster_ip_is_refused(scene: &Scene, what: &str) -> Result<()> {
    let world = &scene.world;
    for ip in Ip::BOTH {
        for from in [world.a().pod(0), &world.client, &world.a().host] {
            for proto in Proto::BOTH {
                expect_failure(
                    what,
                    from,
                    proto,
                    (cluster_ip(ip, LOCAL), 81),
                    &Failure::Refused,
                )?;
            }
            // semantics 28.35
            let tcp_only = (cluster_ip(ip, TCP_ONLY), PORT);
            expect_failure(what, from, Proto::Udp, tcp_only, &Failure::Refused)?;
            expect(
                what,
                from,
                Proto::Tcp,
                tcp_only,
                &[world.b().pod(0)],
                Seen::Anyone,
            )?;
        }
    }
    Ok(())
}
