//! Traffic through the cluster: DNS, ClusterIP, NodePort, a roll-out of the agent, and what an operator sees in a node.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Report;
use super::cluster::{Cluster, file};
use crate::command;

const NAMESPACE: &str = "lb-proof";
/// Replicas of the Deployment in tests/kind/traffic.yaml.
const BACKENDS: usize = 4;
/// Tries to see every backend: each of four is missed by 200 uniform choices with a probability of 4e-25.
const TRIES: usize = 200;

/// Where requests come from.
#[derive(Clone, Debug)]
enum Source {
    /// A pod, in the pod network or the host's.
    Pod { name: String, what: String },
    /// The network that the nodes are in.
    Outside,
}

impl Source {
    fn name(&self) -> &str {
        match self {
            Self::Pod { what, .. } => what,
            Self::Outside => "outside",
        }
    }

    fn command(&self, cluster: &Cluster, arguments: &[&str]) -> Command {
        match self {
            Self::Pod { name, .. } => {
                let mut kubectl = cluster.kubectl();
                kubectl
                    .args(["--namespace", NAMESPACE, "exec", name, "--"])
                    .args(arguments);
                kubectl
            }
            Self::Outside => {
                let mut command = cluster.engine.inside(arguments[0]);
                command.args(&arguments[1..]);
                command
            }
        }
    }

    fn run(&self, cluster: &Cluster, arguments: &[&str]) -> Result<String> {
        command::read(&mut self.command(cluster, arguments))
    }
}

/// Makes the objects, runs every check, and takes the objects away again.
pub(super) fn run(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let path = file("traffic.yaml");
    let objects = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    cluster.apply(&objects)?;
    for object in [
        "deployment/web",
        "daemonset/client",
        "daemonset/host-client",
    ] {
        cluster.kubectl_ok(&[
            "--namespace",
            NAMESPACE,
            "rollout",
            "status",
            object,
            "--timeout=180s",
        ])?;
    }
    checks(cluster, report)?;
    cluster.kubectl_ok(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    Ok(())
}

fn checks(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let pods = sources(cluster)?;
    let service = cluster.get(&["--namespace", NAMESPACE, "service", "web"])?;
    let cluster_ip = text(&service["spec"]["clusterIP"])?;
    let node_port = service["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .context("no nodePort")?;
    let dns = cluster.get(&["--namespace=kube-system", "service", "kube-dns"])?;
    let dns_ip = text(&dns["spec"]["clusterIP"])?;

    if !cluster.is_kube_proxy {
        report.check("no kube-proxy in the cluster", no_kube_proxy(cluster));
    }
    for source in &pods {
        for transport in ["+notcp", "+tcp"] {
            let name = format!("DNS by its ClusterIP from {} ({transport})", source.name());
            report.check(
                &name,
                resolve(cluster, source, dns_ip, transport, cluster_ip),
            );
        }
    }
    let url = format!("http://{cluster_ip}/hostname");
    for source in &pods {
        let name = format!("every backend of a ClusterIP from {}", source.name());
        report.check(&name, every_backend(cluster, source, &url));
    }
    for source in pods.iter().chain([&Source::Outside]) {
        for node in &cluster.nodes {
            let name = format!(
                "every backend of a NodePort of {} from {}",
                node.name,
                source.name()
            );
            let url = format!("http://{}:{node_port}/hostname", node.address);
            report.check(&name, every_backend(cluster, source, &url));
        }
    }
    let worker = cluster.workers().next().context("no worker")?;
    let node_url = format!("http://{}:{node_port}/hostname", worker.address);
    if !cluster.is_kube_proxy {
        report.check(
            "no failed request while every agent is replaced",
            roll_out(cluster, &pods, &url, &node_url),
        );
        for node in &cluster.nodes {
            let name = format!("lb-agent status in {}", node.name);
            report.check(&name, status(cluster, &node.name));
            let name = format!("bpftool in {}", node.name);
            report.check(&name, bpftool(cluster, &node.name));
        }
    }
    Ok(())
}

/// One client in the pod network and one in the host's on each worker.
fn sources(cluster: &Cluster) -> Result<Vec<Source>> {
    let pods = cluster.get(&["--namespace", NAMESPACE, "pods", "--selector=role=client"])?;
    let mut sources = Vec::new();
    for pod in pods["items"].as_array().context("no list of pods")? {
        let node = text(&pod["spec"]["nodeName"])?;
        let what = match pod["spec"]["hostNetwork"].as_bool() {
            Some(true) => format!("{node} itself"),
            _ => format!("a pod of {node}"),
        };
        sources.push(Source::Pod {
            name: text(&pod["metadata"]["name"])?.to_owned(),
            what,
        });
    }
    ensure!(
        sources.len() == 2 * cluster.workers().count(),
        "{} clients are there",
        sources.len()
    );
    Ok(sources)
}

fn no_kube_proxy(cluster: &Cluster) -> Result<String> {
    let pods = cluster.kubectl_ok(&[
        "--namespace=kube-system",
        "get",
        "pods",
        "--selector=k8s-app=kube-proxy",
        "--output=name",
    ])?;
    ensure!(pods.trim().is_empty(), "there is {pods}");
    Ok("none".to_owned())
}

fn resolve(
    cluster: &Cluster,
    source: &Source,
    server: &str,
    transport: &str,
    wanted: &str,
) -> Result<String> {
    let server = format!("@{server}");
    let name = format!("web.{NAMESPACE}.svc.cluster.local");
    let answer = source.run(
        cluster,
        &[
            "dig", "+short", "+tries=1", "+time=5", transport, &server, &name,
        ],
    )?;
    ensure!(
        answer.trim() == wanted,
        "the answer is `{}`, not {wanted}",
        answer.trim()
    );
    Ok(wanted.to_owned())
}

/// Opens connections until every backend has answered; none may fail.
fn every_backend(cluster: &Cluster, source: &Source, url: &str) -> Result<String> {
    let script = format!(
        "seen=; i=0; while [ $i -lt {TRIES} ]; do i=$((i + 1)); \
         who=$(curl --silent --show-error --fail --max-time 5 {url}) || exit 1; \
         case \" $seen \" in *\" $who \"*) ;; *) seen=\"$seen $who\"; set -- $seen; \
         [ $# -ge {BACKENDS} ] && break ;; esac; done; echo $i $seen"
    );
    let answer = source.run(cluster, &["sh", "-c", &script])?;
    let (tries, names) = answer.trim().split_once(' ').context("no answer")?;
    let names: BTreeSet<&str> = names.split_whitespace().collect();
    ensure!(
        names.len() == BACKENDS,
        "only {names:?} answer in {tries} connections"
    );
    Ok(format!("{BACKENDS} in {tries} connections"))
}

/// Requests go on from everywhere while the DaemonSet is restarted.
fn roll_out(
    cluster: &Cluster,
    pods: &[Source],
    cluster_url: &str,
    node_url: &str,
) -> Result<String> {
    // New connections, one after the other; and one connection that stays, a request each 100 ms.
    let seconds = 45;
    let mut running: Vec<(String, Child)> = Vec::new();
    for (index, source) in pods.iter().chain([&Source::Outside]).enumerate() {
        let url = match source {
            Source::Outside => node_url,
            Source::Pod { .. } => cluster_url,
        };
        let many = format!(
            "ok=0; bad=0; end=$(($(date +%s) + {seconds})); while [ $(date +%s) -lt $end ]; do \
             if curl --silent --fail --max-time 5 --output /dev/null {url}; then ok=$((ok + 1)); \
             else bad=$((bad + 1)); fi; done; echo $ok $bad"
        );
        running.push((
            format!("connections from {}", source.name()),
            start(source.command(cluster, &["sh", "-c", &many]))?,
        ));
        if index == 0 || matches!(source, Source::Outside) {
            let one = format!(
                "curl --silent --fail --rate 10/s --output /dev/null --write-out '%{{num_connects}}\\n' \
                 '{url}?[1-{}]' | awk '{{ n++; c += $1 }} END {{ print n, c - 1 }}'",
                seconds * 10
            );
            running.push((
                format!("requests of one connection from {}", source.name()),
                start(source.command(cluster, &["sh", "-c", &one]))?,
            ));
        }
    }
    let begin = Instant::now();
    cluster.kubectl_ok(&[
        "--namespace=kube-system",
        "rollout",
        "restart",
        "daemonset/lb-agent",
    ])?;
    cluster.rollout()?;
    let took = begin.elapsed();
    ensure!(
        took < Duration::from_secs(seconds),
        "the roll-out took {} s, longer than the traffic",
        took.as_secs()
    );
    let mut total = 0;
    let mut faults = Vec::new();
    for (name, child) in running {
        let output = child.wait_with_output()?;
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let counts: Option<Vec<u64>> = answer
            .split_whitespace()
            .map(|word| word.parse().ok())
            .collect();
        match counts.as_deref() {
            Some([ok, 0]) if *ok > 20 => total += ok,
            Some([ok, bad]) => faults.push(format!("{name}: {ok} good, {bad} bad")),
            _ => faults.push(format!("{name}: `{answer}`")),
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(format!(
        "{total} requests, {:.0} s of roll-out",
        took.as_secs_f32()
    ))
}

fn start(mut command: Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start docker")
}

/// `lb-agent status` in the pod of a node: it runs and nothing is wrong.
fn status(cluster: &Cluster, node: &str) -> Result<String> {
    let pods = cluster.get(&[
        "--namespace=kube-system",
        "pods",
        "--selector=app.kubernetes.io/name=lb-agent",
        &format!("--field-selector=spec.nodeName={node},status.phase=Running"),
    ])?;
    let pod = text(&pods["items"][0]["metadata"]["name"])?;
    let answer = cluster.kubectl_ok(&[
        "--namespace=kube-system",
        "exec",
        pod,
        "--",
        "lb-agent",
        "status",
    ])?;
    for line in answer.lines() {
        eprintln!("    {line}");
    }
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// bpftool in the node itself reads the pinned maps with their fields.
fn bpftool(cluster: &Cluster, node: &str) -> Result<String> {
    // kind's own node image has none.
    const INSTALL: &str =
        "command -v bpftool || { apt-get -qq update && apt-get -qq install --yes bpftool; }";
    cluster.on_node(node, &["sh", "-c", INSTALL])?;
    let find = "find /sys/fs/bpf/lb -name services_v4 | sort | tail -1";
    let path = cluster.on_node(node, &["sh", "-c", find])?;
    ensure!(!path.trim().is_empty(), "no map services_v4 is pinned");
    let dump = cluster.on_node(
        node,
        &["bpftool", "--json", "map", "dump", "pinned", path.trim()],
    )?;
    let dump: Value = serde_json::from_str(&dump)?;
    let entries = dump.as_array().map_or(0, Vec::len);
    ensure!(entries > 0, "services_v4 is empty");
    let programs = cluster.on_node(
        node,
        &[
            "sh",
            "-c",
            "bpftool net show; bpftool link show | grep -c prog",
        ],
    )?;
    Ok(format!(
        "{entries} frontends; {} links",
        programs.lines().last().unwrap_or_default()
    ))
}

fn text(value: &Value) -> Result<&str> {
    match value.as_str() {
        Some(text) => Ok(text),
        None => bail!("a field of the API is missing"),
    }
}
