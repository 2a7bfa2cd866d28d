//! The agent with many Services: how long until everything is in the maps, how long one change takes,
//! and what it weighs. Each start has a bpffs and a cgroup of its own, so every map starts empty.

use std::{
    collections::HashSet,
    fs,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::MapData;
use lb_agent::{
    bpf::maps::{Access, TypedMap, pin_dir},
    kube::manifests::ManifestSource,
};
use lb_common::{
    Family, V4, V6,
    abi::{Be16, FrontendKind, Service, ServiceFlags, ServiceKey, proto},
    flow_table::WAYS,
    names,
};

use super::{Effort, Report, Row, median, progress, quantile, sys};
use crate::{
    agent::{Agent, AgentOptions},
    manifest::ManifestDir,
    tempdir::TempDir,
    topology::{World, WorldOptions},
};

/// Endpoints of each Service.
const ENDPOINTS: usize = 10;
/// Services of the small agent.
const FEW: usize = 100;
/// Endpoints of the Service with a long list, in slices as the API server cuts them.
const LONG: usize = 5_000;
const SLICE: usize = 100;
/// The node that the agent serves; a hundredth of the endpoints are on it.
const NODE: &str = "node-a";
/// Between two changes: the agent has done all that follows from the last one (freed ids rest for a
/// grace period).
const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 80;
const FIRST_NODE_PORT: usize = 30_000;
/// Bytes of a row of `selection`.
const ROW_BYTES: u32 = 4;
/// Argument of the benchmark's own binary that makes it print what [`parse`] says.
pub const PARSE: &str = "--parse-manifests";

/// Milliseconds to read a directory of manifests, and nothing else.
pub fn parse(dir: &Path) -> Result<f64> {
    let start = Instant::now();
    let events = ManifestSource::open(dir, NODE)?.initial()?;
    let elapsed = start.elapsed();
    ensure!(!events.is_empty(), "no object in {}", dir.display());
    Ok(millis(elapsed))
}

/// Measures all agent rows.
pub fn measure(report: &mut Report, effort: &Effort) -> Result<()> {
    let services = effort.agent_services;
    let size = format!("{services}x{ENDPOINTS}");
    let world = World::new(WorldOptions::default())?;
    let starts = effort.rounds.min(5);

    progress(&format!("agent: writing {services} manifests"));
    let manifests = generate(services, false)?;
    let (mut parsed, mut cold) = (Vec::new(), Vec::new());
    let mut last = None;
    for round in 1..=starts {
        drop(last.take());
        progress(&format!(
            "agent: cold start {round} of {starts} with {size} endpoints"
        ));
        let parse = parse_in_child(manifests.path())?;
        let (agent, ready) = start(&world, &manifests)?;
        parsed.push(parse);
        cold.push(millis(ready) - parse);
        last = Some(agent);
    }
    let agent = last.ok_or_else(|| anyhow!("no start was measured"))?;
    let rss = settled_rss(&agent)?;
    let pins = pin_dir(agent.bpffs());
    let table = selection_bytes(&pins, services)?;

    progress(&format!(
        "agent: {} changes of one endpoint",
        effort.updates
    ));
    let updates = time_updates(&agent, &manifests, services, effort.updates)?;
    let weights = [
        (
            "maps.services",
            weight::<ServiceKey<V4>, Service>(&pins, names::maps::SERVICES[0])?,
        ),
        (
            "maps.services.v6",
            weight::<ServiceKey<V6>, Service>(&pins, names::maps::SERVICES[1])?,
        ),
        ("maps.flow_entry", flow_weight::<V4>(&pins)?),
        ("maps.flow_entry.v6", flow_weight::<V6>(&pins)?),
    ];
    drop(agent);

    progress(&format!("agent: {FEW} Services"));
    let few = generate(FEW, false)?;
    let few_rss = settled_rss(&start(&world, &few)?.0)?;
    progress(&format!("agent: {services} Services with NodePorts"));
    let external = generate(services, true)?;
    let (agent, _) = start(&world, &external)?;
    let external = selection_bytes(&pin_dir(agent.bpffs()), services)?;
    drop(agent);

    progress(&format!(
        "agent: {} changes of one endpoint among {LONG} with a NodePort",
        effort.updates
    ));
    let long = generate_long()?;
    let long_updates = time_long_updates(&start(&world, &long)?.0, &long, effort.updates)?;

    let mut row = |id: String, value: f64, unit: &'static str, runs: usize| {
        report.rows.push(Row {
            id,
            value,
            unit,
            floor: None,
            own: None,
            runs,
        });
    };
    row(format!("agent.parse.{size}"), median(&parsed), "ms", starts);
    row(format!("agent.cold.{size}"), median(&cold), "ms", starts);
    row(
        "agent.update.p50".into(),
        quantile(&updates, 0.5),
        "ms",
        updates.len(),
    );
    row(
        "agent.update.p99".into(),
        quantile(&updates, 0.99),
        "ms",
        updates.len(),
    );
    for (id, q) in [("", 0.5), (".p99", 0.99)] {
        row(
            format!("agent.update.1x{LONG}{id}"),
            quantile(&long_updates, q),
            "ms",
            long_updates.len(),
        );
    }
    row(format!("agent.rss.{size}"), rss, "MiB", 1);
    row(format!("agent.rss.{FEW}x{ENDPOINTS}"), few_rss, "MiB", 1);
    row("maps.selection".into(), f64::from(table), "bytes", 1);
    row(
        "maps.selection.external".into(),
        f64::from(external),
        "bytes",
        1,
    );
    for (id, bytes) in weights {
        row(id.into(), bytes, "bytes", 1);
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A fresh process, so that its memory is as untouched as the agent's.
fn parse_in_child(dir: &Path) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .arg(PARSE)
        .arg(dir)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().with_context(|| {
        format!(
            "reading the manifests printed: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// Starts an agent; the time from the start of the process to `/readyz`.
fn start(world: &World, manifests: &ManifestDir) -> Result<(Agent, Duration)> {
    let options = AgentOptions {
        log: "warn".into(),
        is_quiet: true,
        ..AgentOptions::default()
    };
    let mut agent = Agent::prepare(world.a(), manifests, options)?;
    let start = Instant::now();
    agent.run()?;
    agent.wait_ready()?;
    Ok((agent, start.elapsed()))
}

/// MiB of anonymous memory, once it has been the same for half a second.
fn settled_rss(agent: &Agent) -> Result<f64> {
    let pid = agent
        .pid()
        .ok_or_else(|| anyhow!("the agent does not run"))?;
    let read = || -> Result<u32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.ok_or_else(|| anyhow!("no RssAnon in /proc/{pid}/status"))?
            .parse()
            .context("RssAnon is no number")
    };
    let end = Instant::now() + PATIENCE;
    let (mut seen, mut since) = (read()?, Instant::now());
    while since.elapsed() < Duration::from_millis(500) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
        let now = read()?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    Ok(f64::from(seen) / 1024.0)
}

type Services = TypedMap<ServiceKey<V4>, Service>;

/// Bytes of the selection tables that frontends show. Sees that every Service is served.
fn selection_bytes(pins: &Path, services: usize) -> Result<u32> {
    let map = Services::open(pins, names::maps::SERVICES[0], Access::Read)?;
    let mut tables = HashSet::new();
    let mut cluster_ips = 0;
    for (_, service) in map.entries()? {
        tables.extend([service.cluster, service.local]);
        let is_port = !service.has(ServiceFlags::ADDRESS_ONLY);
        cluster_ips += usize::from(is_port && service.kind == FrontendKind::ClusterIp as u8);
    }
    ensure!(
        cluster_ips == services,
        "{cluster_ips} of {services} Services are in the map of a ready agent"
    );
    Ok(tables.iter().map(|table| table.len * ROW_BYTES).sum())
}

/// Bytes of a map for each entry that it has room for.
fn weight<K, V>(pins: &Path, name: &'static str) -> Result<f64>
where
    K: lb_agent::bpf::maps::Plain,
    V: lb_agent::bpf::maps::Plain,
{
    let map = TypedMap::<K, V>::open(pins, name, Access::Read)?;
    Ok(memlock(map.fd())? / f64::from(map.max_entries()))
}

/// Bytes of a connection in a table of flows at 60 % load.
fn flow_weight<F: Family>(pins: &Path) -> Result<f64> {
    let open = |name: &str| {
        let pin = pins.join(name);
        MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))
    };
    let buckets = open(names::maps::FLOWS[F::INDEX])?;
    let lines = open(names::maps::FLOW_INDEX[F::INDEX])?;
    let bytes = memlock(buckets.fd().as_fd())? + memlock(lines.fd().as_fd())?;
    let places = f64::from(buckets.info()?.max_entries()) * f64::from(WAYS);
    Ok(bytes / (places * 0.6))
}

/// What the kernel says that a map weighs.
fn memlock(map: BorrowedFd<'_>) -> Result<f64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.ok_or_else(|| anyhow!("the kernel tells no size of a map"))?
        .trim()
        .parse()
        .context("the size of a map is no number")
}

/// Milliseconds of changes of one endpoint each, of Service after Service.
fn time_updates(
    agent: &Agent,
    manifests: &ManifestDir,
    services: usize,
    count: usize,
) -> Result<Vec<f64>> {
    let changes = (0..count).map(|number| {
        let service = number * (services / count).max(1) % services;
        Replacement {
            service,
            file: file_name(service),
            text: manifest(service, false, number / services + 1),
        }
    });
    time(agent, manifests, changes)
}

/// The same for the Service with a long list, slice after slice.
fn time_long_updates(agent: &Agent, manifests: &ManifestDir, count: usize) -> Result<Vec<f64>> {
    let changes = (0..count).map(|number| {
        let slice = number % (LONG / SLICE);
        Replacement {
            service: 0,
            file: slice_file_name(slice),
            text: long_slice(slice, number / (LONG / SLICE) + 1),
        }
    });
    time(agent, manifests, changes)
}

/// A manifest that changes the endpoints of a Service.
struct Replacement {
    service: usize,
    file: String,
    text: String,
}

/// Milliseconds from the rename of each manifest to the frontend that shows the new table: the entry is
/// written last.
fn time(
    agent: &Agent,
    manifests: &ManifestDir,
    changes: impl Iterator<Item = Replacement>,
) -> Result<Vec<f64>> {
    let map = Services::open(
        &pin_dir(agent.bpffs()),
        names::maps::SERVICES[0],
        Access::Read,
    )?;
    let aside = TempDir::new("changes")?;
    let mut times = Vec::new();
    for change in changes {
        let changed = aside.path().join(&change.file);
        fs::write(&changed, &change.text)?;
        let key = ServiceKey::<V4>::new(
            cluster_ip(change.service).into(),
            Be16::from_host(PORT),
            proto::TCP,
        );
        let before = map
            .lookup(&key)?
            .ok_or_else(|| anyhow!("Service {} is not in the map", change.service))?;
        std::thread::sleep(PAUSE);
        let target = manifests.path().join(&change.file);
        // A thread of its own: what the agent does shall not wait behind a thread that never rests.
        let time = std::thread::scope(|scope| {
            let timed = scope.spawn(|| -> Result<Duration> {
                sys::pin();
                let start = Instant::now();
                fs::rename(&changed, &target)?;
                loop {
                    if map.lookup(&key)? != Some(before) {
                        return Ok(start.elapsed());
                    }
                    if start.elapsed() > PATIENCE {
                        bail!(
                            "a changed endpoint is not in the map after {PATIENCE:?}:\n{}",
                            agent.log()
                        );
                    }
                }
            });
            timed
                .join()
                .map_err(|_panic| anyhow!("the thread that times changes panicked"))
        })??;
        times.push(millis(time));
    }
    Ok(times)
}

fn file_name(service: usize) -> String {
    format!("svc-{service:05}.json")
}

/// A directory with a file for each Service.
fn generate(services: usize, has_node_ports: bool) -> Result<ManifestDir> {
    let manifests = ManifestDir::new()?;
    for service in 0..services {
        let path = manifests.path().join(file_name(service));
        fs::write(&path, manifest(service, has_node_ports, 0))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(manifests)
}

fn cluster_ip(service: usize) -> Ipv4Addr {
    nth(Ipv4Addr::new(10, 96, 1, 0), service)
}

fn nth(base: Ipv4Addr, number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(base) + u32::try_from(number).unwrap_or(u32::MAX))
}

/// A Service and its EndpointSlice as the API server shows them. From one `version` to the next the
/// first endpoint is another one.
fn manifest(service: usize, has_node_ports: bool, version: usize) -> String {
    let endpoints = endpoints(service, ENDPOINTS, |endpoint| {
        let is_changed = endpoint == 0 && version > 0;
        match is_changed {
            true => nth(Ipv4Addr::new(10, 192, 0, 0), version * 65_536 + service),
            false => nth(Ipv4Addr::new(10, 128, 0, 0), service * ENDPOINTS + endpoint),
        }
    });
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\n{},\n{}\n]}}\n",
        service_object(service, has_node_ports),
        slice_object(service, 1, &endpoints)
    )
}

/// A directory with the Service that has a NodePort and a long list.
fn generate_long() -> Result<ManifestDir> {
    let manifests = ManifestDir::new()?;
    manifests.write_text(&file_name(0), &service_object(0, true))?;
    for slice in 0..LONG / SLICE {
        manifests.write_text(&slice_file_name(slice), &long_slice(slice, 0))?;
    }
    Ok(manifests)
}

fn slice_file_name(slice: usize) -> String {
    format!("slice-{slice:05}.json")
}

/// One of the slices of the long list. From one `version` to the next its first endpoint is another one.
fn long_slice(slice: usize, version: usize) -> String {
    let endpoints = endpoints(0, SLICE, |endpoint| {
        let is_changed = endpoint == 0 && version > 0;
        match is_changed {
            true => nth(Ipv4Addr::new(10, 192, 0, 0), version * 65_536 + slice),
            false => nth(Ipv4Addr::new(10, 128, 0, 0), slice * SLICE + endpoint),
        }
    });
    slice_object(0, slice, &endpoints)
}

/// The endpoints of a slice, of which a hundredth are on the node.
fn endpoints(service: usize, count: usize, addr: impl Fn(usize) -> Ipv4Addr) -> String {
    let endpoint = |endpoint: usize| {
        let node = match (service * count + endpoint) % 100 {
            0 => NODE.to_owned(),
            other => format!("worker-{other}"),
        };
        let addr = addr(endpoint);
        format!(
            r#"{{"addresses":["{addr}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"{node}","targetRef":{{"kind":"Pod","namespace":"bench","name":"svc-{service:05}-{endpoint}"}}}}"#
        )
    };
    (0..count).map(endpoint).collect::<Vec<_>>().join(",")
}

fn service_object(service: usize, has_node_ports: bool) -> String {
    let addr = cluster_ip(service);
    let (kind, node_port) = if has_node_ports {
        (
            "NodePort",
            format!(r#","nodePort":{}"#, FIRST_NODE_PORT + service),
        )
    } else {
        ("ClusterIP", String::new())
    };
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"svc-{service:05}","namespace":"bench","labels":{{"app":"svc-{service:05}"}}}},"spec":{{"type":"{kind}","clusterIP":"{addr}","clusterIPs":["{addr}"],"ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster","sessionAffinity":"None","selector":{{"app":"svc-{service:05}"}},"ports":[{{"name":"http","protocol":"TCP","port":{PORT},"targetPort":8080{node_port}}}]}}}}"#
    )
}

fn slice_object(service: usize, slice: usize, endpoints: &str) -> String {
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"svc-{service:05}-{slice}","namespace":"bench","labels":{{"kubernetes.io/service-name":"svc-{service:05}"}}}},"addressType":"IPv4","ports":[{{"name":"http","protocol":"TCP","port":8080}}],"endpoints":[{endpoints}]}}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_manifest_differs_in_one_endpoint() {
        let (first, second) = (manifest(7, true, 0), manifest(7, true, 1));
        let parsed: serde_json::Value = serde_json::from_str(&second).expect("JSON");
        assert_eq!(parsed["items"][0]["spec"]["ports"][0]["nodePort"], 30_007);
        let endpoints = parsed["items"][1]["endpoints"].as_array().expect("a list");
        assert_eq!(endpoints.len(), ENDPOINTS);
        assert_eq!(endpoints[0]["addresses"][0], "10.193.0.7");
        assert_eq!(first.replace("10.128.0.70", "10.193.0.7"), second);
    }
}
