//! An agent that starts from kube-proxy's configuration file.

use std::fs;

use anyhow::{Result, ensure};
use lb_tests::echo::{Failure, Proto};
use lb_tests::{
    agent::TempDir,
    manifest::{Endpoint, Service, Slice},
    require,
    scene::{
        Scene, Seen, TARGET, Variant, cluster_ips, expect, expect_failure, external_ip,
        external_ips,
    },
    topology::Ip,
};

const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;

#[test]
fn fields_of_the_file_take_effect() -> Result<()> {
    // semantics 4.3, 24.1, 24.14
    require!(Root, Bpf, Cgroup2);
    let dir = TempDir::new("config")?;
    let path = dir.path().join("config.conf");
    fs::write(
        &path,
        "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nmode: iptables\n\
         featureGates: {AllowServiceExternalIPs: false}\nunknown: 1\n",
    )?;
    let variant = Variant::plain().flag(&format!("--config={}", path.display()));
    let scene = Scene::start(&variant, |world| {
        let web = Service::new("web", &cluster_ips(1))
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
