//! When the maps are brought up to date: at once, once for many changes, and visibly where nothing had to be written.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lb_tests::{
    echo::{Dial, Proto},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{SOON, Scene, TARGET, Variant, cluster_ip, cluster_ips},
    tests,
    topology::{Ip, World},
    trials, wait,
};
use serde_json::Value;

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [changes_are_merged_and_those_without_effect_are_counted]
    ))
}

const PORT: u16 = 80;
/// Services, all changed at once.
const MANY: u8 = 200;
/// At most so many passes, with those for interfaces that settle.
const FEW: f64 = 10.0;

fn objects(world: &World) -> Vec<Value> {
    let endpoints = [Endpoint::ready(world.a().pod(1))];
    let mut objects = Vec::new();
    for number in 1..=MANY {
        let name = format!("s{number}");
        objects.push(
            ServiceManifest::new(&name, &cluster_ips(number))
                .both(PORT)
                .build(),
        );
        objects.extend(Slice::both(&name, PORT, TARGET, &endpoints));
    }
    objects
}

/// Passes over the IPv4 rules.
fn passes(scene: &Scene) -> Result<f64> {
    let name = "kubeproxy_sync_proxy_rules_duration_seconds_count";
    scene.a.metric(name, &["ip_family=\"IPv4\""])
}

/// Semantics 22.1, 22.8: everything that the lists hold is served when the agent says that it is ready; many changes are a
/// few passes, and a change without an effect is one, too.
fn changes_are_merged_and_those_without_effect_are_counted() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), objects)?;
    let world = &scene.world;
    for ip in Ip::BOTH {
        for proto in Proto::BOTH {
            for number in [1, MANY] {
                let to = (cluster_ip(ip, number), PORT);
                Dial::new(world.a().pod(0), proto, to.into()).ask()?;
            }
        }
    }
    let before = passes(&scene)?;
    ensure!(before <= FEW, "{before} passes for the lists");
    scene.replace(&objects(world)[..3])?;
    let gone = Dial::tcp(world.a().pod(0), (cluster_ip(Ip::V4, MANY), PORT).into());
    scene.until("the others are gone", gone, Result::is_err)?;
    // The count follows the maps.
    let merged = wait::until("the pass is counted", SOON, || {
        let merged = passes(&scene)? - before;
        ensure!(merged > 0.0);
        Ok(merged)
    })?;
    ensure!(merged <= FEW, "{merged} passes for one write");

    let before = passes(&scene)?;
    let entries = scene.a.metric("lb_map_entries", &["map=\"services_v4\""])?;
    let nobodys = Slice::both("nobody", PORT, TARGET, &[Endpoint::ready(world.a().pod(1))]);
    scene.manifests.write("nobody.json", &nobodys[0])?;
    wait::until("a pass over nothing", SOON, || {
        let more = passes(&scene)? - before;
        ensure!(more > 0.0);
        Ok(())
    })?;
    let after = scene.a.metric("lb_map_entries", &["map=\"services_v4\""])?;
    ensure!(after == entries, "{entries} frontends, then {after}");
    Ok(())
}
