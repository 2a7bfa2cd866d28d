//! An agent that starts from kube-proxy's configuration file, and its flags that do one thing and end.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Result, ensure};
use lb_tests::echo::{Dial, Failure, Proto, Stream};
use lb_tests::{
    agent::{Agent, AgentOptions, binary},
    manifest::{Endpoint, ServiceManifest, Slice},
    scene::{
        SILENCE, SOON, Scene, Seen, TARGET, Variant, cluster_ip, cluster_ips, expect,
        expect_failure, external_ip, external_ips,
    },
    tempdir::TempDir,
    tests,
    topology::{Ip, World, WorldOptions},
    trials, wait,
};
use serde_json::Value;

fn main() -> ExitCode {
    let mut trials = tests!(
        [Root, Bpf, Cgroup2],
        [
            fields_of_the_file_take_effect,
            a_changed_file_ends_the_agent_and_the_dataplane_goes_on,
            a_changed_file_ends_an_agent_that_waits_for_its_lists,
            cleanup_as_a_flag_takes_everything_away
        ]
    );
    trials.extend(tests!(
        [],
        [
            init_only_sets_the_kernel_and_ends,
            the_configuration_in_force_can_be_written
        ]
    ));
    trials.extend(tests!(
        [Root, Bpf, Cgroup2, Nft],
        [conntrack_of_the_node_is_set_as_asked]
    ));
    trials::run(trials)
}

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

fn fields_of_the_file_take_effect() -> Result<()> {
    // semantics 4.3, 24.1, 24.14
    let dir = TempDir::new("config")?;
    let path = dir.path().join("config.conf");
    fs::write(
        &path,
        "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nmode: iptables\n\
         featureGates: {AllowServiceExternalIPs: false}\nunknown: 1\n",
    )?;
    let variant = Variant::plain().flag(&format!("--config={}", path.display()));
    let scene = Scene::start(&variant, |world| {
        let web = ServiceManifest::new("web", &cluster_ips(1))
            .both(PORT)
            .node_port(NODE_PORT)
            .external_ips(&external_ips(1));
        let mut objects = vec![web.build()];
        objects.extend(Slice::both(
            "web",
            PORT,
            TARGET,
            &[Endpoint::ready(world.a().pod(1))],
        ));
        objects
    })?;
    let world = &scene.world;
    for ip in Ip::BOTH {
        let node = (world.a().host.addr(ip), NODE_PORT);
        let what = "node port";
        expect(
            what,
            &world.client,
            Proto::Tcp,
            node,
            &[world.a().pod(1)],
            Seen::Client,
        )?;
        let external = (external_ip(ip, 1), PORT);
        expect_failure(
            "gate off",
            &world.client,
            Proto::Udp,
            external,
            &Failure::TimedOut,
        )?;
    }
    let log = scene.a.log();
    for text in ["unknown and ignored: unknown", "proxy-mode"] {
        ensure!(log.contains(text), "{text} in {log}");
    }
    Ok(())
}

/// The agent looks at its file every ten seconds.
const LOOK: Duration = Duration::from_secs(30);
const HEAD: &str =
    "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nmode: nftables\n";

fn web(world: &World) -> Vec<Value> {
    let mut objects = vec![
        ServiceManifest::new("web", &cluster_ips(1))
            .both(PORT)
            .build(),
    ];
    let endpoints = [Endpoint::ready(world.a().pod(1))];
    objects.extend(Slice::both("web", PORT, TARGET, &endpoints));
    objects
}

fn dials(world: &World) -> impl Iterator<Item = Dial<'_>> {
    let from = [world.a().pod(0), &world.a().host];
    Ip::BOTH
        .into_iter()
        .flat_map(move |ip| from.map(|from| Dial::tcp(from, (cluster_ip(ip, 1), PORT).into())))
}

/// Semantics 24.1, 25.3, 28.46: a changed file ends the agent, so that it is started with it; one that cannot be used does
/// not. Without the agent traffic goes on.
fn a_changed_file_ends_the_agent_and_the_dataplane_goes_on() -> Result<()> {
    let dir = TempDir::new("config")?;
    let path = dir.path().join("config.conf");
    fs::write(&path, HEAD)?;
    let variant = Variant::plain().flag(&format!("--config={}", path.display()));
    let mut scene = Scene::start(&variant, web)?;
    fs::write(&path, HEAD.replace("v1alpha1", "v9"))?;
    wait::until("the file is refused", LOOK, || {
        let log = scene.a.log();
        ensure!(log.contains("is not used") && log.contains("v9"), "{log}");
        Ok(())
    })?;
    ensure!(scene.a.exited()?.is_none(), "{}", scene.a.log());
    let mut stream = Stream::open(dials(&scene.world).next().expect("one dial"))?;
    stream.ask(SOON)?;
    // As kubelet does it with a ConfigMap: another file behind the same name.
    let next = dir.path().join("next");
    fs::write(&next, format!("{HEAD}oomScoreAdj: 0\n"))?;
    fs::rename(&next, &path)?;
    let status = wait::until("the agent ends", LOOK, || {
        scene.a.exited()?.ok_or_else(|| anyhow::anyhow!("it runs"))
    })?;
    ensure!(!status.success(), "{status}");
    let log = scene.a.log();
    ensure!(log.contains("has changed: start the agent again"), "{log}");
    stream.ask(SOON)?;
    for dial in dials(&scene.world) {
        dial.ask()?;
    }
    Ok(())
}

/// Semantics 24.1: an agent that waits for an API server in vain hears of its file, too.
fn a_changed_file_ends_an_agent_that_waits_for_its_lists() -> Result<()> {
    let world = World::new(WorldOptions::default())?;
    let dir = TempDir::new("config")?;
    let [path, kubeconfig] = ["config.conf", "kubeconfig"].map(|name| dir.path().join(name));
    fs::write(&path, HEAD)?;
    let nobody = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1"}}],
    });
    fs::write(&kubeconfig, nobody.to_string())?;
    let options = AgentOptions::default().flag(&format!("--config={}", path.display()));
    let mut agent = Agent::prepare_api(world.a(), &kubeconfig, options)?;
    agent.run()?;
    agent.wait_log("no complete lists yet")?;
    fs::write(&path, format!("{HEAD}oomScoreAdj: 0\n"))?;
    let status = wait::until("the agent ends", LOOK, || {
        agent.exited()?.ok_or_else(|| anyhow::anyhow!("it runs"))
    })?;
    let log = agent.log();
    ensure!(
        !status.success() && log.contains("has changed: start the agent again"),
        "{status}: {log}"
    );
    Ok(())
}

/// Semantics 24.11, 25.5: `run --cleanup` does what `cleanup` does, as often as one likes, once its flags are right.
fn cleanup_as_a_flag_takes_everything_away() -> Result<()> {
    let mut scene = Scene::start(&Variant::plain(), web)?;
    for dial in dials(&scene.world) {
        dial.ask()?;
    }
    scene.a.terminate()?;
    let manifests = scene.manifests.path().display().to_string();
    let run = |flags: &[&str]| {
        let args = ["run", "--manifests", &manifests, "--cleanup"];
        scene.a.command(&[&args, flags].concat())
    };
    let refused = run(&["--snat-ports=9-8"])?;
    ensure!(!refused.status.success(), "{refused:?}");
    for dial in dials(&scene.world) {
        dial.ask()?;
    }
    for _ in 0..2 {
        let done = run(&[])?;
        ensure!(done.status.success(), "{done:?}");
    }
    for dial in dials(&scene.world) {
        let outcome = dial.timeout(SILENCE).ask();
        ensure!(outcome.is_err(), "{dial}: {outcome:?}");
    }
    Ok(())
}

/// Runs the agent with `proc` in the place of `/proc/sys`.
fn run(proc: &Path, flags: &[&str]) -> Result<Output> {
    let mut agent = Command::new(binary()?);
    agent.args(["run", "--manifests", "/"]).args(flags);
    Ok(agent.env("LB_PROC_SYS", proc).output()?)
}

/// Semantics 24.9, 25.6: `--init-only` sets what needs a writable `/proc/sys` and ends; what cannot be set is an error.
fn init_only_sets_the_kernel_and_ends() -> Result<()> {
    let proc = TempDir::new("proc")?;
    let file = |name: &str| proc.path().join("net").join(name);
    fs::create_dir_all(file("netfilter"))?;
    fs::create_dir_all(file("ipv4"))?;
    fs::write(file("ipv4/ip_local_reserved_ports"), "80\n")?;
    let kernel = [
        ("netfilter/nf_conntrack_max", "65536\n", ""),
        ("netfilter/nf_conntrack_buckets", "16384\n", ""),
        (
            "netfilter/nf_conntrack_tcp_timeout_established",
            "432000\n",
            "86400",
        ),
        (
            "netfilter/nf_conntrack_tcp_timeout_close_wait",
            "60\n",
            "3600",
        ),
    ];
    for (name, value, _) in kernel {
        fs::write(file(name), value)?;
    }
    let config = proc.path().join("config.conf");
    fs::write(&config, format!("{HEAD}conntrack: {{min: 1048576}}\n"))?;
    // The host hands these ports out, so they have to be kept from it.
    fs::write(file("ipv4/ip_local_port_range"), "15000\t60999\n")?;
    let flags = [
        &format!("--config={}", config.display()),
        "--snat-ports=20000-29999",
        "--init-only",
    ];
    let done = run(proc.path(), &flags)?;
    ensure!(done.status.success(), "{done:?}");
    let has = |name: &str| fs::read_to_string(file(name));
    assert_eq!(has("netfilter/nf_conntrack_max")?, "1048576");
    assert_eq!(has("netfilter/nf_conntrack_buckets")?, "262144");
    for (name, _, wanted) in &kernel[2..] {
        assert_eq!(has(name)?, *wanted, "{name}");
    }
    assert_eq!(has("ipv4/ip_local_reserved_ports")?, "80,20000-29999");
    // A directory in its place can be opened, but neither read nor written.
    fs::remove_file(file("netfilter/nf_conntrack_max"))?;
    fs::create_dir(file("netfilter/nf_conntrack_max"))?;
    let failed = run(proc.path(), &flags)?;
    let said = String::from_utf8(failed.stderr)?;
    ensure!(
        !failed.status.success() && said.contains("nf_conntrack_max"),
        "{said}"
    );
    let elsewhere = run(&proc.path().join("elsewhere"), &flags)?;
    let said = String::from_utf8(elsewhere.stderr)?;
    ensure!(
        !elsewhere.status.success() && said.contains("no settings of the network"),
        "{said}"
    );
    Ok(())
}

/// Semantics 24.1: `--write-config-to` writes what flags and file come to.
fn the_configuration_in_force_can_be_written() -> Result<()> {
    let dir = TempDir::new("written")?;
    let [given, written] = ["given", "written"].map(|name| dir.path().join(name));
    fs::write(&given, format!("{HEAD}clusterCIDR: 10.244.0.0/16\n"))?;
    let config = format!("--config={}", given.display());
    let to = format!("--write-config-to={}", written.display());
    let done = run(dir.path(), &[&config, &to, "--hostname-override=Node-A"])?;
    ensure!(done.status.success(), "{done:?}");
    let text = fs::read_to_string(&written)?;
    for line in [
        "kind: KubeProxyConfiguration\n",
        "clusterCIDR: 10.244.0.0/16\n",
        "hostnameOverride: Node-A\n",
        "mode: nftables\n",
        "tcpCloseWaitTimeout: 1h\n",
    ] {
        ensure!(text.contains(line), "{line} in {text}");
    }
    let again = dir.path().join("again");
    let config = format!("--config={}", written.display());
    let to = format!("--write-config-to={}", again.display());
    ensure!(run(dir.path(), &[&config, &to])?.status.success());
    assert_eq!(fs::read_to_string(again)?, text);
    Ok(())
}

/// Semantics 24.9: an agent that runs sets the conntrack of its node, and what was not asked for stays.
fn conntrack_of_the_node_is_set_as_asked() -> Result<()> {
    let mut variant = Variant::plain().flag("--conntrack-tcp-timeout-close-wait=1h");
    variant.world = variant.world.with_conntrack();
    let scene = Scene::start(&variant, web)?;
    let setting = |node: &lb_tests::topology::Node, name: &str| {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        node.host.ns.output("cat", &[&path])
    };
    let (node, client) = (scene.world.a(), &scene.world.client);
    assert_eq!(setting(node, "tcp_timeout_close_wait")?.trim(), "3600");
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
    let untouched = client.ns.output("cat", &[path])?;
    assert_eq!(setting(node, "tcp_timeout_established")?, untouched);
    Ok(())
}
