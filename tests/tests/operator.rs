//! What an operator sees: the commands on a running and on a stopped agent, health, metrics, the state file, events.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::abi::{Config, ModeFlags};
use lb_tests::{
    agent::{Agent, AgentOptions},
    control_plane::{self, ControlPlane, Role},
    echo::{Dial, Proto, Stream},
    manifest::{Endpoint, ManifestDir, ServiceManifest, Slice, list},
    scene::{SILENCE, SOON, Scene, TARGET, Variant, cluster_ip, cluster_ips, external_ips},
    tests,
    topology::{Ip, World, WorldOptions},
    trials, wait,
};
use serde_json::{Value, json};
use socket2::{Domain, Type};

fn main() -> ExitCode {
    let mut trials = tests!(
        [Root, Bpf, Cgroup2],
        [
            every_command_answers_of_a_running_and_of_a_stopped_agent,
            without_the_state_file_commands_show_ids,
            health_and_metrics_answer_from_the_start,
            an_object_without_room_is_named_and_the_rest_is_served,
            a_source_translated_flow_is_one_row,
            events_are_logged_at_debug_level_only,
            hooks_that_somebody_detaches_come_back,
            the_metrics_port_shows_configuration_flags_and_status
        ]
    );
    trials.extend(tests!(
        [Root, Bpf, Cgroup2, ControlPlane],
        [
            a_node_object_that_changes_or_goes_is_taken_over,
            an_address_that_cannot_be_bound_ends_the_agent_where_that_is_wanted
        ]
    ));
    trials::run(trials)
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const PATIENCE: Duration = Duration::from_secs(5);
const COMMANDS: [&str; 5] = ["status", "services", "backends", "flows", "interfaces"];

/// `web` with endpoints on both nodes, `far` with policy Local and an endpoint on node-b alone, `rival` that claims
/// the external address of `web`.
/// Within this time after they went hooks are back: three looks of the agent.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(30);

fn objects(world: &World) -> Vec<Value> {
    let web = ServiceManifest::new("web", &cluster_ips(1))
        .both(PORT)
        .node_port(NODE_PORT)
        .external_ips(&external_ips(1))
        .affinity(600);
    let far = ServiceManifest::new("far", &cluster_ips(2))
        .both(PORT)
        .node_port(NODE_PORT + 10)
        .external_local();
    let rival = ServiceManifest::new("web-rival", &cluster_ips(3))
        .both(PORT)
        .external_ips(&external_ips(1));
    let near_and_far = [
        Endpoint::ready(world.a().pod(1)),
        Endpoint::ready(world.b().pod(0)),
    ];
    let mut objects = vec![web.build(), far.build(), rival.build()];
    objects.extend(Slice::both("web", PORT, TARGET, &near_and_far));
    objects.extend(Slice::both("far", PORT, TARGET, &near_and_far[1..]));
    objects
}

fn text(agent: &Agent, args: &[&str]) -> Result<String> {
    let output = agent.command(args)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`lb-agent {}`: {error}",
        args.join(" ")
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn rows(agent: &Agent, args: &[&str]) -> Result<Vec<Value>> {
    let rows = agent.json(args)?;
    Ok(rows
        .as_array()
        .with_context(|| format!("`{}` is no list: {rows}", args.join(" ")))?
        .clone())
}

/// Waits for the state file, which is written behind the maps.
fn wait_for_names(agent: &Agent) -> Result<()> {
    wait::until("names of Services", SOON, || {
        let services = rows(agent, &["services"])?;
        ensure!(
            !services.is_empty() && services.iter().all(|row| row["service"].is_string()),
            "{services:?}"
        );
        Ok(())
    })
}

/// What every command says of the scene, whether the agent runs or not.
fn check_commands(agent: &Agent, client: &Stream) -> Result<()> {
    for command in COMMANDS {
        let table = text(agent, &[command])?;
        eprintln!("$ lb-agent {command}\n{table}");
        ensure!(
            table.lines().count() > 1,
            "`{command}` shows nothing: {table}"
        );
        agent.json(&[command])?;
    }
    check_services(agent)?;

    let backends = rows(agent, &["backends", "-n", "test"])?;
    let of = |service: &str, family: &str| {
        let row = |row: &&Value| {
            row["service"] == service && row["family"] == family && row["port"] == "tcp-80"
        };
        backends.iter().filter(row).count()
    };
    assert_eq!(
        (of("web", "IPv4"), of("web", "IPv6"), of("far", "IPv4")),
        (2, 2, 1),
        "{backends:?}"
    );
    let local = backends
        .iter()
        .find(|row| row["backend"] == "10.244.1.3:8080")
        .context("no backend a3")?;
    assert_eq!(
        (&local["local"], &local["in_cluster"], &local["usable"]),
        (&true.into(), &true.into(), &true.into())
    );

    let local = client.local().to_string();
    let flows = rows(agent, &["flows", "--proto", "tcp", "--addr", "10.96.0.1"])?;
    let flow = flows
        .iter()
        .find(|row| row["client"] == local)
        .with_context(|| format!("no flow of {local}: {flows:?}"))?;
    assert_eq!(flow["frontend"], "10.96.0.1:80");
    assert_eq!(
        (&flow["state"], &flow["side"], &flow["source"]),
        (&"established".into(), &"pod".into(), &Value::Null)
    );
    assert_eq!(
        (&flow["service"], &flow["is_answered"]),
        (&"test/web:tcp-80".into(), &true.into())
    );
    assert!(rows(agent, &["flows", "--proto", "sctp"])?.is_empty());
    assert!(rows(agent, &["flows", "--addr", "10.99.0.1"])?.is_empty());
    let opening = rows(agent, &["flows", "--opening"])?;
    assert!(
        opening.iter().all(|row| row["state"] == "opening"),
        "{opening:?}"
    );

    let interfaces = rows(agent, &["interfaces"])?;
    let named = |name: &str| {
        interfaces
            .iter()
            .find(|row| row["name"] == name)
            .with_context(|| format!("no {name}: {interfaces:?}"))
    };
    assert_eq!(named("veth-2")?["role"], "pod");
    let uplink = named(lb_tests::topology::UPLINK)?;
    assert_eq!(
        (&uplink["role"], &uplink["xdp_transmit"]),
        (&"external".into(), &false.into())
    );
    assert_eq!(
        uplink["hooks"].as_array().map(Vec::len),
        Some(2),
        "{uplink}"
    );
    Ok(())
}

fn check_services(agent: &Agent) -> Result<()> {
    let services = rows(agent, &["services", "--namespace", "test"])?;
    let find = |service: &str, kind: &str, family: &str| {
        let row = |row: &&Value| {
            row["service"] == service
                && row["kind"] == kind
                && row["family"] == family
                && row["protocol"] == "TCP"
        };
        services
            .iter()
            .find(row)
            .with_context(|| format!("no {kind} of {service}: {services:?}"))
    };
    let web = find("web", "ClusterIP", "IPv4")?;
    assert_eq!(
        (&web["namespace"], &web["port"], &web["frontend"]),
        (&"test".into(), &"tcp-80".into(), &"10.96.0.1:80".into())
    );
    assert_eq!(
        (&web["cluster_backends"], &web["node_backends"]),
        (&2.into(), &1.into()),
        "{web}"
    );
    assert_eq!(
        (&web["affinity_secs"], &web["policy"]),
        (&600.into(), &"Cluster".into())
    );
    ensure!(
        web["flows"].as_u64() >= Some(1)
            && web["packets"].as_u64() >= Some(3)
            && web["bytes"].as_u64() > Some(100),
        "{web}"
    );
    let far = find("far", "NodePort", "IPv6")?;
    assert_eq!(
        (
            &far["policy"],
            &far["cluster_backends"],
            &far["local_backends"]
        ),
        (&"Local".into(), &1.into(), &0.into())
    );
    assert_eq!(far["local_rows"], 0);
    find("web", "ExternalIP", "IPv4")?;
    ensure!(
        find("web-rival", "ExternalIP", "IPv4").is_err(),
        "the loser of a conflict is served"
    );
    assert!(rows(agent, &["services", "-n", "other"])?.is_empty());
    Ok(())
}

fn every_command_answers_of_a_running_and_of_a_stopped_agent() -> Result<()> {
    let mut scene = Scene::start(&Variant::plain(), objects)?;
    scene.manifests.write_text("broken.yaml", "kind: [\n")?;
    let mut client = Stream::open(Dial::tcp(
        scene.world.a().pod(0),
        (cluster_ip(Ip::V4, 1), PORT).into(),
    ))?;
    for _ in 0..3 {
        client.ask(PATIENCE)?;
    }
    wait_for_names(&scene.a)?;
    check_commands(&scene.a, &client)?;
    let problems = |agent: &Agent| -> Result<()> {
        let status = agent.json(&["status"])?;
        assert_eq!(
            (&status["abi_version"], &status["node"]),
            (&lb_common::ABI_VERSION.into(), &"node-a".into())
        );
        ensure!(
            status["manifest_problems"][0]["file"] == "broken.yaml",
            "{status}"
        );
        ensure!(
            status["conflicts"][0]["winner"]
                .as_str()
                .is_some_and(|name| name.starts_with("test/web:")),
            "{status}"
        );
        ensure!(
            status["conflicts"][0]["losers"][0]
                .as_str()
                .is_some_and(|name| name.starts_with("test/web-rival:")),
            "{status}"
        );
        let services = status["maps"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|map| map["map"] == "services_v4");
        ensure!(
            services.is_some_and(
                |map| map["entries"].as_u64() > Some(8) && map["max_entries"] == 65_536
            ),
            "{status}"
        );
        ensure!(
            status["counters"]
                .to_string()
                .contains("\"tc_pod_translated\""),
            "{status}"
        );
        Ok(())
    };
    wait::until("problems in the status", SOON, || problems(&scene.a))?;
    let status = scene.a.json(&["status"])?;
    assert_eq!(
        (&status["agent"], &status["stopped_at"]),
        (&"running".into(), &Value::Null)
    );
    assert_eq!(status["pid"], scene.a.pid().context("it runs")?);

    scene.a.terminate()?;
    check_commands(&scene.a, &client)?;
    problems(&scene.a)?;
    let status = scene.a.json(&["status"])?;
    assert_eq!(
        (&status["agent"], &status["pid"]),
        (&"stopped".into(), &Value::Null)
    );
    ensure!(status["stopped_at"].is_string(), "{status}");
    ensure!(text(&scene.a, &["status"])?.contains("stopped at"));

    scene.a.start_again()?;
    scene.a.kill()?;
    check_services(&scene.a)?;
    client.ask(PATIENCE)?;
    Ok(())
}

/// Names are the agent's knowledge; without its file commands say so and show ids.
fn without_the_state_file_commands_show_ids() -> Result<()> {
    let mut scene = Scene::start(&Variant::plain(), objects)?;
    wait_for_names(&scene.a)?;
    let dir = scene.a.run_dir().to_owned();
    let files = || -> Result<Vec<String>> {
        let entries = fs::read_dir(&dir)?;
        let names = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        Ok(names
            .filter(|name| name.ends_with(".json") || name.ends_with(".lock"))
            .collect())
    };
    let json: Vec<_> = files()?
        .into_iter()
        .filter(|name| name.ends_with(".json"))
        .collect();
    assert_eq!(json.len(), 1, "{json:?}");
    let path = dir.join(&json[0]);
    let state: Value = serde_json::from_slice(&fs::read(&path)?)?;
    let services = state["services"].as_array().context("no services")?;
    let ports = |family: &str| {
        services
            .iter()
            .filter(|name| name["family"] == family && name["namespace"] == "test")
            .count()
    };
    // Three Services of two ports each.
    assert_eq!((ports("IPv4"), ports("IPv6")), (6, 6), "{services:?}");

    // A change shows in the file, and only then.
    let written = || -> Result<Value> {
        Ok(serde_json::from_slice::<Value>(&fs::read(&path)?)?["written_at"].clone())
    };
    let before = written()?;
    scene.replace(&objects(&scene.world)[..1])?;
    wait::until("the Services that went are not in the file", SOON, || {
        let state: Value = serde_json::from_slice(&fs::read(&path)?)?;
        ensure!(
            state["services"].as_array().map(Vec::len) == Some(4),
            "{state}"
        );
        Ok(())
    })?;
    assert_ne!(written()?, before);

    scene.a.terminate()?;
    fs::remove_file(&path)?;
    let output = scene.a.command(&["services"])?;
    let (table, said) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    ensure!(
        output.status.success() && table.contains("id ") && !table.contains("web"),
        "{table}"
    );
    ensure!(said.contains("names of Services are not known"), "{said}");
    let output = scene.a.command(&["services", "-n", "test"])?;
    ensure!(!output.status.success());
    assert_eq!(String::from_utf8(output.stderr)?.trim().lines().count(), 1);

    text(&scene.a, &["cleanup"])?;
    assert_eq!(files()?, Vec::<String>::new());
    for command in COMMANDS {
        let output = scene.a.command(&[command])?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(
            !output.status.success() && said.trim().lines().count() == 1,
            "`{command}` without pins: {said}"
        );
        ensure!(
            said.contains("lb-agent run"),
            "`{command}` without pins: {said}"
        );
    }
    Ok(())
}

/// Semantics 16.4, 16.12, 23: the agent answers before it is ready, and the rows that dashboards ask for are there.
fn health_and_metrics_answer_from_the_start() -> Result<()> {
    let world = World::new(WorldOptions::default())?;
    let _servers = lb_tests::echo::Server::start_all(world.a().pod(1), TARGET)?;
    let manifests = ManifestDir::with(&objects(&world))?;
    let mut agent = Agent::prepare(world.a(), &manifests, AgentOptions::default())?;
    agent.run()?;
    let (mut was_unready, mut was_kept_away) = (false, false);
    wait::until("ready", lb_tests::agent::PATIENCE, || {
        let (status, body) = agent.health("/livez")?;
        assert_eq!(status, 200, "/livez: {body}");
        was_kept_away |= agent.health("/healthz")?.0 == 503;
        let (status, body) = agent.health("/readyz")?;
        was_unready |= status == 503;
        ensure!(status == 200, "{status} {body}");
        Ok(())
    })?;
    ensure!(
        was_kept_away,
        "/healthz never said 503 before the first state"
    );
    ensure!(was_unready, "/readyz never said 503 before the first state");
    for path in ["/healthz", "/livez"] {
        let (status, body) = agent.health(path)?;
        let body: Value = serde_json::from_str(&body)?;
        assert_eq!((status, &body["healthy"]), (200, &true.into()), "{body}");
        ensure!(body["status"]["IPv6"]["healthy"] == true, "{body}");
    }
    assert_eq!(agent.health("/metrics")?.0, 404);

    let from = world.a().pod(0);
    wait::until("traffic", SOON, || {
        Ok(Dial::tcp(from, (cluster_ip(Ip::V4, 1), PORT).into())
            .ask()
            .map(|_| ())?)
    })?;
    let web = [
        "namespace=\"test\"",
        "service=\"web\"",
        "port=\"tcp-80\"",
        "protocol=\"TCP\"",
        "ip_family=\"IPv4\"",
    ];
    for (name, least) in [
        ("lb_service_flows_total", 1.0),
        ("lb_service_packets_total", 3.0),
        ("lb_service_bytes_total", 100.0),
    ] {
        ensure!(
            agent.metric(name, &web)? >= least,
            "{name}:\n{}",
            agent.metrics()?
        );
    }
    assert_eq!(
        agent.metric("lb_map_max_entries", &["map=\"services_v6\""])?,
        65_536.0
    );
    ensure!(agent.metric("lb_map_entries", &["map=\"services_v6\""])? > 8.0);
    wait::until("flows are counted", SOON, || {
        ensure!(
            agent.metric("lb_map_entries", &["map=\"flows_v4"])? >= 1.0
                && agent.metric("lb_flows", &["IPv4"])? >= 1.0
        );
        Ok(())
    })?;
    ensure!(agent.metric("lb_interfaces", &["state=\"tc\""])? >= 3.0);
    assert_eq!(agent.metric("lb_interfaces", &["state=\"failed\""])?, 0.0);
    assert_eq!(agent.metric("lb_manifest_errors", &[])?, 0.0);
    ensure!(agent.metric("lb_events_total", &["tc_pod_translated"])? >= 2.0);
    ensure!(agent.metric("process_resident_memory_bytes", &[])? > 1e6);

    // Two ports of `far` lack a local endpoint in each family.
    for family in ["IPv4", "IPv6"] {
        let family = format!("ip_family=\"{family}\"");
        assert_eq!(
            agent.metric(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                &["external", &family]
            )?,
            2.0
        );
        ensure!(
            agent.metric(
                "kubeproxy_sync_proxy_rules_duration_seconds_count",
                &[&family]
            )? >= 1.0
        );
        let last = agent.metric(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            &[&family],
        )?;
        ensure!(
            last >= agent.metric(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                &[&family]
            )?
        );
        ensure!(agent.metrics()?.contains(&format!(
            "network_programming_duration_seconds_bucket{{{family},le=\"300\"}}"
        )));
    }
    let before = agent.metric("lb_update_seconds_count", &[])?;
    let changes = agent.metric("kubeproxy_sync_proxy_rules_service_changes_total", &[])?;
    manifests.write(
        "more.json",
        &ServiceManifest::new("more", &cluster_ips(9))
            .both(PORT)
            .build(),
    )?;
    manifests.write_text("broken.yaml", "kind: [\n")?;
    wait::until("the change and the broken file are counted", SOON, || {
        ensure!(agent.metric("lb_update_seconds_count", &[])? > before);
        ensure!(
            agent.metric("kubeproxy_sync_proxy_rules_service_changes_total", &[])? == changes + 2.0
        );
        ensure!(agent.metric("lb_manifest_errors", &[])? == 1.0);
        Ok(())
    })?;
    assert_eq!(
        agent.metric("kubeproxy_sync_proxy_rules_service_changes_pending", &[])?,
        0.0
    );
    Ok(())
}

/// A map that is full: the object that does not fit is named in an error and a metric, everything else is served (semantics
/// 28.19).
fn an_object_without_room_is_named_and_the_rest_is_served() -> Result<()> {
    let service = |name: &str, number: u8, ports: &[u16], endpoints: &[Endpoint<'_>]| {
        let mut service = ServiceManifest::new(name, &[cluster_ip(Ip::V4, number)]);
        let mut slice = Slice::new(name, Ip::V4);
        for port in ports {
            service = service.port(Proto::Tcp, *port);
            slice = slice.port(Proto::Tcp, *port, TARGET);
        }
        for endpoint in endpoints {
            slice = slice.endpoint(*endpoint);
        }
        [service.build(), slice.build()]
    };
    // An entry a port and one for the ClusterIP: the first Service takes three of four.
    let first = |world: &World, pods: usize| {
        let endpoints = [world.a().pod(1), world.b().pod(0)].map(Endpoint::ready);
        service("first", 1, &[PORT, 81], &endpoints[..pods]).to_vec()
    };
    let variant = Variant::plain().flag("--max-frontends 4");
    let scene = Scene::start(&variant, |world| first(world, 1))?;
    let world = &scene.world;
    let dial = Dial::tcp(world.a().pod(0), (cluster_ip(Ip::V4, 1), PORT).into());
    dial.ask()?;
    scene.manifests.write(
        "second.json",
        &list(&service(
            "second",
            2,
            &[PORT],
            &[Endpoint::ready(world.a().pod(1))],
        )),
    )?;
    wait::until("an error that names the Service", SOON, || {
        let log = scene.a.log();
        ensure!(
            log.lines().any(|line| line.contains("ERROR")
                && line.contains("test/second:")
                && line.contains("services_v4")),
            "{log}"
        );
        Ok(())
    })?;
    let second = [
        "namespace=\"test\"",
        "service=\"second\"",
        "ip_family=\"IPv4\"",
        "map=\"services_v4\"",
    ];
    ensure!(scene.a.metric("lb_service_unserved", &second)? >= 1.0);
    ensure!(
        scene
            .a
            .metric("lb_map_full_total", &["map=\"services_v4\""])?
            >= 1.0
    );
    dial.ask()?;
    wait::until("the status names it", SOON, || {
        let status = text(&scene.a, &["status"])?;
        ensure!(
            status.contains("test/second:") && status.contains("services_v4"),
            "{status}"
        );
        Ok(())
    })?;
    eprintln!("{}", text(&scene.a, &["status"])?);
    // It is tried again every second, and reported once.
    let errors = || {
        scene
            .a
            .log()
            .lines()
            .filter(|line| line.contains("ERROR") && line.contains("(IPv4)"))
            .count()
    };
    let (before, full) = (
        errors(),
        scene
            .a
            .metric("lb_map_full_total", &["map=\"services_v4\""])?,
    );
    let written = scene.a.metric("lb_update_seconds_count", &[])?;
    scene.replace(&first(world, 2))?;
    wait::until("another change", SOON, || {
        ensure!(scene.a.metric("lb_update_seconds_count", &[])? > written);
        Ok(())
    })?;
    assert_eq!(
        (
            errors(),
            scene
                .a
                .metric("lb_map_full_total", &["map=\"services_v4\""])?
        ),
        (before, full),
        "{}",
        scene.a.log()
    );

    scene.replace(&[])?;
    scene.until(
        "the second has found its room",
        Dial::tcp(world.a().pod(0), (cluster_ip(Ip::V4, 2), PORT).into()),
        |outcome| outcome.is_ok(),
    )?;
    wait::until("nothing lacks room", SOON, || {
        let metrics = scene.a.metrics()?;
        ensure!(!metrics.contains("lb_service_unserved{"), "{metrics}");
        Ok(())
    })
}

/// A flow from outside to a remote backend: both directions and both translations are one row, wherever it is carried.
fn a_source_translated_flow_is_one_row() -> Result<()> {
    let variants = [
        (Variant::native(), true),
        (Variant::plain().flag("--tc-attach clsact"), false),
    ];
    for (variant, is_xdp) in variants {
        let scene = Scene::start(&variant, |world| {
            let service = ServiceManifest::new("remote", &cluster_ips(1))
                .both(PORT)
                .node_port(NODE_PORT);
            let mut objects = vec![service.build()];
            objects.extend(Slice::both(
                "remote",
                PORT,
                TARGET,
                &[Endpoint::ready(world.b().pod(0))],
            ));
            objects
        })?;
        wait_for_names(&scene.a)?;
        let (client, node) = (&scene.world.client, &scene.world.a().host);
        for ip in Ip::BOTH {
            let mut stream = Stream::open(Dial::tcp(client, (node.addr(ip), NODE_PORT).into()))?;
            for _ in 0..3 {
                stream.ask(PATIENCE)?;
            }
            let addr = client.addr(ip).to_string();
            let flows = rows(&scene.a, &["flows", "--addr", &addr])?;
            ensure!(flows.len() == 1, "{flows:?}");
            let flow = &flows[0];
            assert_eq!(flow["client"], stream.local().to_string());
            assert_eq!(flow["frontend"], node.at(ip, NODE_PORT).to_string());
            assert_eq!(
                flow["backend"],
                scene.world.b().pod(0).at(ip, TARGET).to_string()
            );
            assert_eq!(
                (&flow["state"], &flow["side"]),
                (&"established".into(), &"external".into())
            );
            let source = flow["source"]
                .as_str()
                .context("no source")?
                .parse::<std::net::SocketAddr>()?;
            assert_eq!(source.ip(), node.addr(ip));
            assert_eq!(flow["service"], "test/remote:tcp-80");
            assert_eq!(flow["next_hop"].is_object(), is_xdp, "{flow}");
        }
        for command in ["flows", "interfaces", "services"] {
            eprintln!("$ lb-agent {command}\n{}", text(&scene.a, &[command])?);
        }
        let interfaces = rows(&scene.a, &["interfaces"])?;
        let uplink = interfaces
            .iter()
            .find(|row| row["name"] == lb_tests::topology::UPLINK);
        let uplink = uplink.with_context(|| format!("no uplink: {interfaces:?}"))?;
        assert_eq!(uplink["xdp_transmit"], is_xdp);
        let hooks = uplink["hooks"].to_string();
        let wanted = if is_xdp {
            "xdp-native"
        } else {
            "clsact-ingress"
        };
        ensure!(hooks.contains(wanted), "{hooks}");
    }
    Ok(())
}

/// New flows are logged, and written to the ring buffer, only where the log asks for them.
fn events_are_logged_at_debug_level_only() -> Result<()> {
    let mut variant = Variant::plain();
    variant.agent.log = "info,lb_agent::events=debug".into();
    let mut scene = Scene::start(&variant, objects)?;
    let mode = |agent: &Agent| -> Result<bool> {
        let pin = agent
            .bpffs()
            .join(format!("lb/v{}/config", lb_common::ABI_VERSION));
        let config: Array<_, [u8; size_of::<Config>()]> =
            Map::Array(MapData::from_pin(pin)?).try_into()?;
        let bytes = config.get(&0, 0)?;
        let modes = u32::from_ne_bytes(std::array::from_fn(|i| {
            bytes[std::mem::offset_of!(Config, modes) + i]
        }));
        Ok(ModeFlags::from_bits(modes).contains(ModeFlags::DEBUG_EVENTS))
    };
    assert!(mode(&scene.a)?);
    let answer = Dial::tcp(scene.world.a().pod(0), (cluster_ip(Ip::V4, 1), PORT).into()).ask()?;
    scene.a.wait_log(&format!(
        "new flow TCP {} → 10.96.0.1:80 → 10.244.",
        answer.local
    ))?;
    let answer = Dial::udp(scene.world.a().pod(0), (cluster_ip(Ip::V6, 1), PORT).into()).ask()?;
    scene.a.wait_log(&format!(
        "new flow UDP {} → [fd00:10:96::1]:80 → [fd00:10:244:",
        answer.local
    ))?;
    scene.a.terminate()?;
    scene.a.options_mut().log = "info".into();
    scene.a.start_again()?;
    assert!(!mode(&scene.a)?);
    Ok(())
}

/// Semantics 22.6: hooks that somebody takes away come back.
fn hooks_that_somebody_detaches_come_back() -> Result<()> {
    for variant in [
        Variant::native(),
        Variant::plain().flag("--tc-attach clsact"),
    ] {
        let what = variant.describe();
        let scene = Scene::start(&variant, objects)?;
        let [pod, host] = [scene.world.a().pod(0), &scene.world.a().host];
        let dials = || {
            Ip::BOTH.into_iter().flat_map(|ip| {
                [pod, host].map(|from| Dial::tcp(from, (cluster_ip(ip, 1), PORT).into()))
            })
        };
        for dial in dials() {
            dial.ask().context("before")?;
        }
        // Without its pin nothing holds a link any more.
        let links = scene
            .a
            .bpffs()
            .join(format!("lb/v{}/links", lb_common::ABI_VERSION));
        for link in std::fs::read_dir(&links)? {
            std::fs::remove_file(link?.path())?;
        }
        for index in 0..scene.world.a().pods.len() {
            let interface = scene.world.a().pod_interface(index);
            // There is none where TCX is used.
            drop(
                host.ns
                    .output("tc", &["qdisc", "del", "dev", &interface, "clsact"]),
            );
        }
        for dial in dials() {
            wait::until(&format!("{dial} again, {what}"), AGAIN, || {
                dial.ask().map(drop).map_err(Into::into)
            })?;
        }
        scene.a.wait_log("attached again")?;
    }
    Ok(())
}

/// The answer of an address on a node's loopback, headers included.
fn get(world: &World, port: u16, path: &str) -> Result<String> {
    let ns = &world.a().host.ns;
    let socket = ns.socket(Domain::IPV4, Type::STREAM, None)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    let mut stream = TcpStream::from(socket);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Semantics 16.11, 24.11: the metrics port tells of the process what kube-proxy's tells.
fn the_metrics_port_shows_configuration_flags_and_status() -> Result<()> {
    let variant = Variant::plain()
        .flag("--feature-gates AllowServiceExternalIPs=false")
        .flag("--oom-score-adj=321");
    let scene = Scene::start(&variant, objects)?;
    let pid = scene.a.pid().context("it runs")?;
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    assert_eq!(score.trim(), "321");
    for (path, parts) in [
        ("/healthz", &["200 OK", "ok"][..]),
        ("/proxyMode", &["200 OK", "ebpf"]),
        (
            "/configz",
            &[
                "\"hostnameOverride\":\"node-a\"",
                "\"kubeproxy.config.k8s.io\"",
            ],
        ),
        (
            "/flagz",
            &[
                "\nhostname-override=node-a\n",
                "\nsocket-lb=host\n",
                "\nxdp=off\n",
            ],
        ),
        ("/statusz", &["\nBinary version: ", "\nUp: 0 hr"]),
        (
            "/metrics/slis",
            &["kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n"],
        ),
        (
            "/metrics",
            &["kubernetes_feature_enabled{name=\"AllowServiceExternalIPs\",stage=\"\"} 0"],
        ),
        ("/debug/pprof/", &["404 Not Found"]),
    ] {
        let answer = get(&scene.world, 10249, path)?;
        for part in parts {
            ensure!(answer.contains(part), "{part} of {path} in {answer}");
        }
    }
    Ok(())
}

/// An agent on node-a that follows a control plane, which has both Nodes and `objects`.
fn with_control_plane(
    objects: impl FnOnce(&World) -> Vec<Value>,
    flag: &str,
) -> Result<(Agent, World, ControlPlane)> {
    let plane = ControlPlane::start()?;
    let world = World::new(WorldOptions::default())?;
    control_plane::join(&plane, &world)?;
    plane.api().apply_all(&objects(&world))?;
    let options = match flag {
        "" => AgentOptions::default(),
        flag => AgentOptions::default().flag(flag),
    };
    let agent = Agent::prepare_api(world.a(), &plane.kubeconfig(Role::Agent), options)?;
    Ok((agent, world, plane))
}

/// Waits for an Event on the Node.
fn wait_event(plane: &ControlPlane, reason: &str, kind: &str) -> Result<Value> {
    wait::until(&format!("Event {reason}"), SOON, || {
        let list = plane.api().get("/apis/events.k8s.io/v1/events")?;
        let of = |event: &&Value| event["reason"] == reason && event["type"] == kind;
        let event = list["items"].as_array().into_iter().flatten().find(of);
        let event = event.with_context(|| format!("{list}"))?;
        ensure!(event["regarding"]["kind"] == "Node", "{event}");
        ensure!(event["regarding"]["name"] == "node-a", "{event}");
        Ok(event.clone())
    })
}

/// Semantics 16.5, 25.1, 25.2, 28.49: a Node that changes its address or goes is taken over; without it load balancers are
/// sent away, and what is served stays.
fn a_node_object_that_changes_or_goes_is_taken_over() -> Result<()> {
    let local = |world: &World| {
        let service = ServiceManifest::new("web", &cluster_ips(20))
            .both(PORT)
            .node_port(NODE_PORT);
        let mut objects = vec![service.build()];
        let endpoints = [Endpoint::ready(world.a().pod(1))];
        objects.extend(Slice::both("web", PORT, TARGET, &endpoints));
        objects
    };
    let (mut agent, world, plane) = with_control_plane(local, "")?;
    let _servers = lb_tests::echo::Server::start_all(world.a().pod(1), TARGET)?;
    agent.run()?;
    agent.wait_ready()?;
    let event = wait_event(&plane, "Starting", "Normal")?;
    ensure!(event["action"] == "StartKubeProxy", "{event}");
    let host = &world.a().host;
    let moved: Ipv4Addr = "192.0.2.211".parse()?;
    host.ns.ip(&format!(
        "addr add {moved}/24 dev {}",
        lb_tests::topology::UPLINK
    ))?;
    let old = (host.addr(Ip::V4), NODE_PORT);
    let node_port = |addr: std::net::IpAddr, answers: bool| {
        wait::until(&format!("NodePort of {addr}: {answers}"), SOON, || {
            let dial = Dial::tcp(&world.client, (addr, NODE_PORT).into());
            let outcome = dial.timeout(SILENCE).ask();
            ensure!(outcome.is_ok() == answers, "{outcome:?}");
            Ok(())
        })
    };
    node_port(old.0, true)?;
    node_port(moved.into(), false)?;
    let mut node = lb_tests::manifest::node(host, None);
    node["status"]["addresses"][0]["address"] = json!(moved);
    plane.api().apply(&node)?;
    node_port(moved.into(), true)?;
    node_port(old.0, false)?;

    let health = |path: &str, wanted: u16| {
        wait::until(&format!("{path}: {wanted}"), SOON, || {
            let (status, body) = agent.health(path)?;
            ensure!(status == wanted, "{status} {body}");
            Ok(serde_json::from_str::<Value>(&body)?)
        })
    };
    health("/healthz", 200)?;
    plane.api().delete(&node)?;
    let body = health("/healthz", 503)?;
    ensure!(
        body["nodeEligible"] == false && body["healthy"] == true,
        "{body}"
    );
    health("/livez", 200)?;
    for ip in Ip::BOTH {
        for from in [world.a().pod(0), host] {
            Dial::tcp(from, (cluster_ip(ip, 20), PORT).into()).ask()?;
        }
    }
    plane.api().apply(&lb_tests::manifest::node(host, None))?;
    health("/healthz", 200)?;
    node_port(old.0, true)
}

/// Semantics 16.10: with `--bind-address-hard-fail` an address that is taken ends the agent, with an Event on the Node.
fn an_address_that_cannot_be_bound_ends_the_agent_where_that_is_wanted() -> Result<()> {
    for (port, reason) in [
        (10256, "FailedToStartProxierHealthcheck"),
        (10249, "FailedToStartMetricServer"),
    ] {
        let none = |_: &World| Vec::new();
        let (mut agent, world, plane) = with_control_plane(none, "--bind-address-hard-fail")?;
        let taken = world.a().host.ns.socket(Domain::IPV4, Type::STREAM, None)?;
        taken.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        taken.listen(1)?;
        agent.run()?;
        let status = wait::until("the agent ends", lb_tests::agent::PATIENCE, || {
            agent.exited()?.context("it runs")
        })?;
        let log = agent.log();
        ensure!(
            !status.success() && log.contains(&format!("127.0.0.1:{port}")),
            "{log}"
        );
        let event = wait_event(&plane, reason, "Warning")?;
        ensure!(
            event["note"].to_string().contains(&port.to_string()),
            "{event}"
        );
    }
    Ok(())
}
