//! `--hold`: the world stays, and a file of shell functions lets a person play with it.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result};

use super::{
    screen::Screen,
    stage::{Stage, pins},
};
use crate::{
    agent::{Agent, binary},
    topology::Place,
};

/// Writes the functions and says how to use them.
pub fn commands(screen: &mut Screen, stage: &Stage) -> Result<()> {
    let home = crate::tempdir::TempDir::new("demo")?;
    let file = home.path().join("functions");
    fs::write(&file, functions(stage)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let manifests = stage.manifests.path().display();
    let pins = pins(&stage.a);
    screen.line("");
    let title = screen.bold("The world stays until ^C. In another root shell (bash):");
    screen.line(&title);
    screen.line(&format!(
        "
  . {functions}

  ask a4 10.96.0.10 80                       a pod → ClusterIP: who answers, and whom it sees
  ask client 192.0.2.11 30080                outside → NodePort; also 2001:db8:1::11
  ask node_a 10.96.0.10 80                   a process of node-a → ClusterIP
  agent_a services                           also backends, flows, interfaces, status; -o json
  metrics_a                                  its counters, as Prometheus sees them
  bpftool map dump pinned {pins}/flows_v4
  a4 ip address                              any command in a pod, node or client

  Edit what both agents follow:  {manifests}/web.yaml
  By hand:                       nsenter --net={ns} COMMAND   (node-a)",
        functions = file.display(),
        pins = pins.display(),
        ns = stage.world.a().host.ns.path().display(),
    ));
    screen.wait_for_the_end();
    Ok(())
}

/// Bash functions: one a place, one an agent, and `ask`.
fn functions(stage: &Stage) -> Result<String> {
    let mut text = String::new();
    place(&mut text, "client", &stage.world.client);
    let binary = binary()?;
    for (node, agent, letter) in [
        (stage.world.a(), &stage.a, 'a'),
        (stage.world.b(), &stage.b, 'b'),
    ] {
        host(&mut text, &format!("node_{letter}"), &node.host, agent);
        // Writing to a string cannot fail.
        writeln!(
            text,
            "agent_{letter}() {{ LB_RUN_DIR={} nsenter --net={} {} \"$@\" --bpffs {}; }}",
            agent.run_dir().display(),
            node.host.ns.path().display(),
            binary.display(),
            agent.bpffs().display(),
        )?;
        for pod in &node.pods {
            place(&mut text, &pod.name, pod);
        }
    }
    text.push_str(
        "metrics_a() { node_a bash -c 'exec 3<>/dev/tcp/127.0.0.1/10249 && printf \"GET /metrics HTTP/1.0\\r\\n\\r\\n\" >&3 && cat <&3'; }\n",
    );
    // The servers answer a line with their name, the peer that they see and their own address.
    text.push_str(
        "ask() { $1 bash -c 'exec 3<>/dev/tcp/$0/$1 && echo who >&3 && head -n 1 <&3' \"$2\" \"$3\"; }\n",
    );
    Ok(text)
}

fn place(text: &mut String, name: &str, place: &Place) {
    text.push_str(&format!(
        "{name}() {{ nsenter --net={} \"$@\"; }}\n",
        place.ns.path().display()
    ));
}

/// A node's processes are in the cgroup that its agent serves.
fn host(text: &mut String, name: &str, host: &Place, agent: &Agent) {
    text.push_str(&format!(
        "{name}() {{ bash -c 'echo $$ >{}/cgroup.procs && exec nsenter --net={} \"$@\"' node \"$@\"; }}\n",
        agent.cgroup().path().display(),
        host.ns.path().display()
    ));
}
