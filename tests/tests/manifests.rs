//! The directory of manifests, followed live; and what the agent says about bad ones.

use std::{fs, process::ExitCode};

use anyhow::{Result, ensure};
use lb_tests::{
    echo::{Dial, Failure, Outcome},
    manifest::{Endpoint, ManifestDir, ServiceManifest, Slice, list},
    scene::{SILENCE, SOON, Scene, Seen, TARGET, Variant, check, cluster_ip, cluster_ips},
    tests,
    topology::{Ip, World},
    trials, wait,
};
use serde_json::Value;

fn main() -> ExitCode {
    trials::run(tests!(
        [Root, Bpf, Cgroup2],
        [
            files_are_followed_as_they_come_change_and_go,
            many_files_at_once_are_all_served,
            a_bad_file_is_named_and_its_last_good_state_serves,
            an_object_in_two_files_is_an_error_that_names_both,
            the_agent_starts_on_a_directory_with_a_bad_file,
            a_missing_directory_is_one_clear_sentence
        ]
    ))
}

const PORT: u16 = 80;

fn service(name: &str, number: u8, world: &World) -> Vec<Value> {
    let mut objects = vec![
        ServiceManifest::new(name, &cluster_ips(number))
            .both(PORT)
            .build(),
    ];
    objects.extend(Slice::both(
        name,
        PORT,
        TARGET,
        &[Endpoint::ready(world.b().pod(0))],
    ));
    objects
}

fn dial(world: &World, number: u8) -> Dial<'_> {
    Dial::tcp(world.a().pod(0), (cluster_ip(Ip::V4, number), PORT).into())
}

fn answered(outcome: &Outcome) -> bool {
    outcome.is_ok()
}

fn files_are_followed_as_they_come_change_and_go() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), |_| Vec::new())?;
    let world = &scene.world;

    // Renamed in, as JSON, YAML and a file of many documents.
    scene
        .manifests
        .write("one.json", &list(&service("one", 1, world)))?;
    scene.until("renamed in", dial(world, 1), answered)?;
    let yaml = "\
apiVersion: v1
kind: Service
metadata: {name: two, namespace: test}
spec:
  clusterIP: 10.96.0.2
  ports: [{name: http, port: 80}]   # protocol and target port are the server's defaults
---
# An empty document between two others.
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: two-1
  namespace: test
  labels: {kubernetes.io/service-name: two}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- addresses: [10.244.2.2]
";
    scene.manifests.write_text("two.yaml", yaml)?;
    scene.until("YAML", dial(world, 2), answered)?;

    // Changed in place, without a rename.
    let path = scene.manifests.path().join("two.yaml");
    fs::write(&path, yaml.replace("10.244.2.2", "10.244.2.3"))?;
    scene.until("written in place", dial(world, 2), |outcome| {
        outcome.as_ref().is_ok_and(|answer| answer.server == "b3")
    })?;

    // Moved to another file in the order that shows it twice for a moment, then not at all.
    scene.manifests.write_text("moved.yml", yaml)?;
    fs::remove_file(&path)?;
    scene.until("moved", dial(world, 2), |outcome| {
        outcome.as_ref().is_ok_and(|answer| answer.server == "b2")
    })?;

    scene.manifests.remove("moved.yml")?;
    scene.until("deleted", dial(world, 2), |outcome| outcome.is_err())?;
    check(
        "the other file",
        dial(world, 1),
        &[world.b().pod(0)],
        Seen::Client,
    )?;

    // Names that are no manifests.
    scene.manifests.write_text("notes.txt", yaml)?;
    scene.manifests.write_text(".hidden.yaml", yaml)?;
    scene
        .manifests
        .write("three.json", &list(&service("three", 3, world)))?;
    scene.until("after the others", dial(world, 3), answered)?;
    assert!(dial(world, 2).timeout(SILENCE).ask().is_err());
    Ok(())
}

fn many_files_at_once_are_all_served() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), |_| Vec::new())?;
    let world = &scene.world;
    for number in 1..=200 {
        scene.manifests.write(
            &format!("{number}.json"),
            &list(&service(&format!("s{number}"), number, world)),
        )?;
    }
    for number in 1..=200 {
        scene.until(&format!("Service {number}"), dial(world, number), answered)?;
    }
    for number in 1..=199 {
        scene.manifests.remove(&format!("{number}.json"))?;
    }
    // Each look at a Service that is gone takes its time.
    for number in [1, 100, 199] {
        scene.until(
            &format!("Service {number} is gone"),
            dial(world, number),
            Result::is_err,
        )?;
    }
    check(
        "the last one",
        dial(world, 200),
        &[world.b().pod(0)],
        Seen::Client,
    )?;
    Ok(())
}

/// Each file is bad in its own way: the log names the file, and the field or line; what it held before
/// goes on serving; the other files are followed; the right file ends it.
fn a_bad_file_is_named_and_its_last_good_state_serves() -> Result<()> {
    let good = "\
apiVersion: v1
kind: Service
metadata: {name: file, namespace: test}
spec:
  clusterIP: 10.96.0.1
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: file-1, namespace: test, labels: {kubernetes.io/service-name: file}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.2.2]}]
";
    // (what is replaced, by what, what the message must name)
    let bad = [
        (
            "  ports: [{name: http, port: 80}]",
            "  ports: [{name: http, port: 80}",
            "bad.yaml",
        ),
        ("port: 80}]", "port: eighty}]", "port"),
        ("port: 80}]", "port: 80000}]", "port"),
        (
            "clusterIP: 10.96.0.1",
            "clusterIP: 10.96.0.256",
            "clusterIP",
        ),
        (
            "addresses: [10.244.2.2]",
            "addresses: [nowhere]",
            "addresses",
        ),
        ("addressType: IPv4", "addressType: IPv5", "addressType"),
        (
            "metadata: {name: file, namespace: test}",
            "metadata: {namespace: test}",
            "name",
        ),
    ];
    let scene = Scene::start(&Variant::plain(), |_| Vec::new())?;
    let world = &scene.world;
    scene.manifests.write_text("bad.yaml", good)?;
    scene.until("the good file", dial(world, 1), answered)?;
    for (number, (what, by, named)) in (2u8..).zip(bad) {
        let text = good.replacen(what, by, 1);
        assert_ne!(text, good, "{what}");
        let log = scene.a.log().len();
        scene.manifests.write_text("bad.yaml", &text)?;
        wait::until(
            &format!("`{by}` is reported with its file and {named}"),
            SOON,
            || {
                let news = scene.a.log()[log..].to_owned();
                ensure!(
                    news.lines()
                        .any(|line| line.contains("bad.yaml") && line.contains(named)),
                    "the log says:\n{news}"
                );
                Ok(())
            },
        )?;
        // Others are followed meanwhile, which also shows that this one has been dealt with.
        scene
            .manifests
            .write("other.json", &list(&service("other", number, world)))?;
        scene.until("the other file", dial(world, number), answered)?;
        check(
            &format!("with `{by}`"),
            dial(world, 1),
            &[world.b().pod(0)],
            Seen::Client,
        )?;
        let errors = scene.a.log()[log..]
            .lines()
            .filter(|line| line.contains("bad.yaml"))
            .count();
        ensure!(
            errors <= 2,
            "`{by}` is reported {errors} times:\n{}",
            &scene.a.log()[log..]
        );
        scene.manifests.write_text("bad.yaml", good)?;
    }
    scene
        .manifests
        .write_text("bad.yaml", &good.replace("10.244.2.2", "10.244.2.3"))?;
    scene.until("the right file again", dial(world, 1), |outcome| {
        outcome.as_ref().is_ok_and(|answer| answer.server == "b3")
    })?;
    Ok(())
}

/// An error that names both files, and the first keeps serving.
fn an_object_in_two_files_is_an_error_that_names_both() -> Result<()> {
    let scene = Scene::start(&Variant::plain(), |_| Vec::new())?;
    let world = &scene.world;
    scene
        .manifests
        .write("first.json", &list(&service("twice", 1, world)))?;
    scene.until("the first file", dial(world, 1), answered)?;
    let log = scene.a.log().len();
    scene.manifests.write(
        "second.json",
        &ServiceManifest::new("twice", &cluster_ips(2))
            .both(PORT)
            .build(),
    )?;
    wait::until("an error that names both files", SOON, || {
        let news = scene.a.log()[log..].to_owned();
        let both = |line: &str| {
            ["first.json", "second.json", "twice"]
                .iter()
                .all(|name| line.contains(name))
        };
        ensure!(news.lines().any(both), "the log says:\n{news}");
        Ok(())
    })?;
    check(
        "the first",
        dial(world, 1),
        &[world.b().pod(0)],
        Seen::Client,
    )?;
    // The first goes, the second takes over: its address is served, with the slices gone it refuses.
    scene.manifests.remove("first.json")?;
    scene.until("the second", dial(world, 2), |outcome| {
        *outcome == Err(Failure::Refused)
    })?;
    Ok(())
}

/// A start on a bad directory is one clear sentence; on a bad file the rest is served.
fn the_agent_starts_on_a_directory_with_a_bad_file() -> Result<()> {
    let world = World::new(lb_tests::topology::WorldOptions::default())?;
    let _server = lb_tests::echo::Server::start_all(world.b().pod(0), TARGET)?;
    let manifests = ManifestDir::new()?;
    manifests.write("good.json", &list(&service("good", 1, &world)))?;
    manifests.write_text("bad.yaml", "kind: [\n")?;
    let agent = lb_tests::agent::Agent::start(
        world.a(),
        &manifests,
        lb_tests::agent::AgentOptions::default(),
    )?;
    check(
        "the good file",
        dial(&world, 1),
        &[world.b().pod(0)],
        Seen::Client,
    )?;
    ensure!(
        agent.log().contains("bad.yaml"),
        "the bad file is not named:\n{}",
        agent.log()
    );
    Ok(())
}

fn a_missing_directory_is_one_clear_sentence() -> Result<()> {
    let world = World::new(lb_tests::topology::WorldOptions::default())?;
    let manifests = ManifestDir::new()?;
    let mut agent = lb_tests::agent::Agent::prepare(
        world.a(),
        &manifests,
        lb_tests::agent::AgentOptions::default(),
    )?;
    let path = manifests.path().display().to_string();
    drop(manifests);
    agent.run()?;
    let status = wait::until("the agent ends", SOON, || {
        agent.exited()?.ok_or_else(|| anyhow::anyhow!("it runs"))
    })?;
    ensure!(!status.success(), "it ended with {status}");
    let log = agent.log();
    ensure!(
        log.contains(&path),
        "the directory {path} is not named:\n{log}"
    );
    ensure!(
        log.trim().lines().count() <= 3,
        "more than a sentence:\n{log}"
    );
    Ok(())
}
