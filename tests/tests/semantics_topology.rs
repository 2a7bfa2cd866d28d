//! Topology hints under traffic: who uses which endpoints, and what a node's zone changes.

use std::process::ExitCode;

use anyhow::Result;
use lb_tests::{
    echo::{Dial, Proto},
    manifest::{self, Endpoint, ServiceManifest, Slice},
    scene::{
        Scene, Seen, TARGET, Variant, check, cluster_ip, cluster_ips, expect_all, external_ip,
        external_ips,
    },
    tests,
    topology::{Ip, Place, World},
    trials,
};
use serde_json::{Value, json};

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            each_node_uses_what_is_hinted_for_it,
            policy_local_takes_no_hint
        ]
    ))
}

const PORT: u16 = 80;
const SERVICE: u8 = 1;

/// An endpoint and its hints: zones, nodes.
type Hinted<'a> = (&'a Place, &'a [&'a str], &'a [&'a str]);

fn objects(service: ServiceManifest, endpoints: &[Hinted<'_>]) -> Vec<Value> {
    let ready: Vec<Endpoint<'_>> = endpoints
        .iter()
        .map(|(place, ..)| Endpoint::ready(place))
        .collect();
    let mut objects = vec![service.build()];
    for mut slice in Slice::both("web", PORT, TARGET, &ready) {
        for (at, (_, zones, nodes)) in endpoints.iter().enumerate() {
            let names = |names: &[&str]| -> Vec<Value> {
                names.iter().map(|name| json!({ "name": name })).collect()
            };
            slice["endpoints"][at]["hints"] =
                json!({ "forZones": names(zones), "forNodes": names(nodes) });
        }
        objects.push(slice);
    }
    objects
}

fn web() -> ServiceManifest {
    ServiceManifest::new("web", &cluster_ips(SERVICE))
        .both(PORT)
        .node_port(30080)
        .load_balancer(&external_ips(21))
}

/// Names both Nodes' zones.
fn zones(scene: &Scene, zones: [Option<&str>; 2]) -> Result<()> {
    let [a, b] = scene.world.nodes.each_ref();
    let nodes = [
        manifest::node(&a.host, zones[0]),
        manifest::node(&b.host, zones[1]),
    ];
    scene
        .manifests
        .write("nodes.json", &manifest::list(&nodes))?;
    Ok(())
}

/// Waits until a pod is served by nobody else than `wanted`, and by all of them.
fn until_served_by(scene: &Scene, from: &Place, wanted: &[&Place]) -> Result<()> {
    let names: Vec<&str> = wanted.iter().map(|place| place.name.as_str()).collect();
    let to = (cluster_ip(Ip::V4, SERVICE), PORT);
    for _ in 0..2 {
        for name in &names {
            scene.until(
                &format!("{} meets {name}", from.name),
                Dial::tcp(from, to.into()),
                |outcome| outcome.as_ref().is_ok_and(|answer| answer.server == *name),
            )?;
        }
        // Many in a row of the wanted ones alone.
        lb_tests::wait::until(
            &format!("{} meets only {names:?}", from.name),
            lb_tests::scene::SOON,
            || {
                for _ in 0..30 {
                    check("hints", Dial::tcp(from, to.into()), wanted, Seen::Anyone)?;
                }
                Ok(())
            },
        )?;
    }
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            let to = (cluster_ip(ip, SERVICE), PORT);
            expect_all("hints", from, proto, to, wanted, Seen::Anyone)?;
        }
    }
    Ok(())
}

/// Semantics 7.3, 7.4, 7.5, 7.6, 7.8, 7.12, 28.29: each node uses what is hinted for it or its zone, as long as every
/// ready endpoint has a hint; all of them else.
fn each_node_uses_what_is_hinted_for_it() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), |_| vec![web().build()])?;
    let world: &World = &scene.world;
    let [a, b] = [world.a(), world.b()];
    let (near, far) = (a.pod(1), b.pod(1));
    let [from_a, from_b] = [a.pod(0), b.pod(0)];

    // Crosswise: the hint counts, not where the endpoint is.
    zones(&scene, [Some("east"), Some("west")])?;
    scene.replace(&objects(
        web(),
        &[(near, &["west"], &[]), (far, &["east"], &[])],
    ))?;
    until_served_by(&scene, from_a, &[far])?;
    until_served_by(&scene, from_b, &[near])?;

    // The zones change places; then node-a loses its own.
    zones(&scene, [Some("west"), Some("east")])?;
    until_served_by(&scene, from_a, &[near])?;
    zones(&scene, [None, Some("east")])?;
    until_served_by(&scene, from_a, &[near, far])?;
    until_served_by(&scene, from_b, &[far])?;

    // Nodes go before zones.
    zones(&scene, [Some("east"), Some("east")])?;
    let crossed: [Hinted<'_>; 2] = [
        (near, &["east"], &["node-b"]),
        (far, &["east"], &["node-a"]),
    ];
    scene.replace(&objects(web(), &crossed))?;
    until_served_by(&scene, from_a, &[far])?;
    until_served_by(&scene, from_b, &[near])?;

    // One without a hint ends it.
    scene.replace(&objects(web(), &[crossed[0], (far, &[], &[])]))?;
    until_served_by(&scene, from_a, &[near, far])
}

/// Semantics 6.3, 7.11: policy Local takes no hint; what it does not govern follows them.
fn policy_local_takes_no_hint() -> Result<()> {
    let scene = Scene::start(&Variant::native(), |world| {
        let (near, far) = (world.a().pod(1), world.b().pod(1));
        let hinted: [Hinted<'_>; 2] = [(near, &[], &["node-b"]), (far, &[], &["node-a"])];
        objects(web().external_local(), &hinted)
    })?;
    let world = &scene.world;
    let (near, far) = (world.a().pod(1), world.b().pod(1));
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for _ in 0..20 {
                let dial = |from, to: (std::net::IpAddr, u16)| Dial::new(from, proto, to.into());
                let external = dial(&world.client, (external_ip(ip, 21), PORT));
                check("from outside", external, &[near], Seen::Client)?;
                let internal = dial(world.a().pod(0), (cluster_ip(ip, SERVICE), PORT));
                check("by ClusterIP", internal, &[far], Seen::Client)?;
            }
        }
    }
    Ok(())
}
