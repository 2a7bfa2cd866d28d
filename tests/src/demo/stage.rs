//! What the demo plays on: the world, a server in every pod, an agent on both nodes, and a copy of
//! `examples/` that both follow.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::{
    ABI_VERSION,
    abi::{Counter, DropReason},
    names::{PIN_ROOT, maps},
};

use super::{
    screen::{Screen, check_stopped},
    tally::list,
};
use crate::{
    agent::{Agent, AgentOptions},
    echo::Server,
    manifest::ManifestDir,
    scene::TARGET,
    topology::{Ip, Place, World, WorldOptions},
};

/// Port of the pods that serve `dns`.
const DNS_TARGET: u16 = 5353;

/// Everything that the demo made. Dropped in the order of the fields.
#[derive(Debug)]
pub struct Stage {
    /// Agent of node-a.
    pub a: Agent,
    /// Agent of node-b.
    pub b: Agent,
    /// The copy of `examples/`.
    pub manifests: ManifestDir,
    /// Servers of all pods.
    pub servers: Vec<Server>,
    /// The world.
    pub world: World,
}

impl Stage {
    /// Builds the world, starts servers and agents; returns when both agents are ready.
    pub fn set(screen: &mut Screen) -> Result<Stage> {
        // Native XDP on veth wants finished checksums.
        let world = World::new(WorldOptions::default().without_offloads())?;
        check_stopped()?;
        let mut servers = Vec::new();
        for node in &world.nodes {
            for pod in &node.pods {
                servers.extend(Server::start_all(pod, TARGET)?);
            }
            servers.extend(Server::start_all(node.pod(2), DNS_TARGET)?);
        }
        let manifests = ManifestDir::new()?;
        for name in EXAMPLES {
            manifests.write_text(name, &example(name)?)?;
        }
        check_stopped()?;
        let start = Instant::now();
        let options = AgentOptions {
            is_quiet: true,
            ..AgentOptions::native()
        };
        let mut a = Agent::prepare(world.a(), &manifests, options.clone())?;
        let mut b = Agent::prepare(world.b(), &manifests, options)?;
        a.run()?;
        b.run()?;
        a.wait_ready()?;
        b.wait_ready()?;
        screen.aside(&format!(
            "lb-agent runs on both nodes, ready after {:.1} s, and follows a copy of examples/",
            start.elapsed().as_secs_f32()
        ));
        Ok(Stage {
            a,
            b,
            manifests,
            servers,
            world,
        })
    }

    /// The agents' logs are printed when the stage is dropped: something went wrong.
    pub fn keep_logs(&mut self) {
        self.a.options_mut().is_quiet = false;
        self.b.options_mut().is_quiet = false;
    }

    /// Who has an address, as `ADDRESS (NAME)`.
    pub fn whose(&self, addr: IpAddr) -> String {
        let places = self.world.nodes.iter().flat_map(|node| {
            let pods = node.pods.iter();
            std::iter::once(&node.host).chain(pods)
        });
        std::iter::once(&self.world.client)
            .chain(places)
            .find(|place| place.addr(Ip::of(addr)) == addr)
            .map_or_else(
                || addr.to_string(),
                |place| format!("{addr} ({})", place.name),
            )
    }

    /// A pod of node-a that serves no example but `dns`.
    pub fn pod(&self) -> &Place {
        self.world.a().pod(2)
    }

    /// Writes a changed copy of one of the examples, in one step.
    pub fn edit(&self, file: &str, change: impl FnOnce(&str) -> String) -> Result<()> {
        let text = example(file)?;
        let changed = change(&text);
        if changed == text {
            bail!("{file} has nothing of what the demo wants to change; restore examples/");
        }
        self.manifests.write_text(file, &changed)?;
        Ok(())
    }

    /// Writes one of the examples as it is.
    pub fn restore(&self, file: &str) -> Result<()> {
        self.manifests.write_text(file, &example(file)?)?;
        Ok(())
    }
}

/// Where an agent's maps are pinned.
pub fn pins(agent: &Agent) -> PathBuf {
    agent.bpffs().join(PIN_ROOT).join(format!("v{ABI_VERSION}"))
}

/// The manifests that the demo plays on.
const EXAMPLES: [&str; 5] = [
    "nodes.yaml",
    "web.yaml",
    "dns.yaml",
    "session.yaml",
    "local.yaml",
];

/// A manifest in `examples/`.
fn example(file: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(file);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// A manifest without the endpoint at an address.
pub fn without_endpoint(text: &str, addr: IpAddr) -> String {
    let entry = format!("- addresses: [\"{addr}\"]");
    let mut lines: Vec<&str> = Vec::new();
    let mut is_skipping = false;
    for line in text.lines() {
        is_skipping = line == entry || is_skipping && line.starts_with("  ");
        if !is_skipping {
            lines.push(line);
        }
    }
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        let is_empty = *line == "endpoints:" && lines.get(i + 1).is_none_or(|next| *next == "---");
        out.push_str(if is_empty { "endpoints: []" } else { line });
        out.push('\n');
    }
    out
}

/// A manifest with one more endpoint behind that at an address.
pub fn with_endpoint_after(text: &str, addr: IpAddr, new: IpAddr, node: &str) -> String {
    let entry = format!("- addresses: [\"{addr}\"]\n");
    let more = format!("- addresses: [\"{new}\"]\n  nodeName: {node}\n");
    text.replace(&entry, &format!("{more}{entry}"))
}

/// A moment's counters of a node.
#[derive(Clone, Debug)]
pub struct Counters(Vec<u64>);

impl Counters {
    /// Reads them from the pinned map, as any tool can.
    pub fn read(agent: &Agent) -> Result<Counters> {
        let path = pins(agent).join(maps::COUNTERS);
        let map =
            MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let map = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(map))?;
        // A `PacketCount` is one number.
        let sum = |index: u32| -> Result<u64> { Ok(map.get(&index, 0)?.iter().sum()) };
        Ok(Counters(
            (0..DropReason::COUNTERS).map(sum).collect::<Result<_>>()?,
        ))
    }

    /// How much each has grown since.
    pub fn since(&self, before: &Counters) -> Counters {
        let grown = self.0.iter().zip(&before.0);
        Counters(
            grown
                .map(|(now, before)| now.saturating_sub(*before))
                .collect(),
        )
    }

    /// One of them.
    pub fn of(&self, counter: Counter) -> u64 {
        self.0.get(counter as usize).copied().unwrap_or(0)
    }

    /// Packets dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// What translated, hook by hook.
    pub fn hooks(&self) -> String {
        let named = [
            ("XDP", self.of(Counter::XdpTranslated)),
            ("tc external", self.of(Counter::TcExternalTranslated)),
            ("tc pod", self.of(Counter::TcPodTranslated)),
            ("tc out", self.of(Counter::TcOutTranslated)),
            ("sockets", self.sockets()),
        ];
        let used = named.iter().filter(|(_, count)| *count > 0);
        list(used, |(name, count)| format!("{name} {count}"))
    }

    /// Calls translated at sockets.
    pub fn sockets(&self) -> u64 {
        self.of(Counter::SocketConnect) + self.of(Counter::SocketSend)
    }

    /// Packets translated by any packet hook.
    pub fn packets(&self) -> u64 {
        [
            Counter::XdpTranslated,
            Counter::TcExternalTranslated,
            Counter::TcPodTranslated,
            Counter::TcOutTranslated,
            Counter::Hairpin,
        ]
        .iter()
        .map(|counter| self.of(*counter))
        .sum()
    }
}

/// How long the demo waits for what a change does.
pub const SOON: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_taken_out_and_put_in() {
        let text = "endpoints:\n- addresses: [\"10.0.0.1\"]\n  nodeName: a\n---\nx: 1\n";
        let addr = "10.0.0.1".parse().unwrap();
        assert_eq!(without_endpoint(text, addr), "endpoints: []\n---\nx: 1\n");
        let more = with_endpoint_after(text, addr, "10.0.0.2".parse().unwrap(), "b");
        assert_eq!(
            without_endpoint(&more, addr),
            "endpoints:\n- addresses: [\"10.0.0.2\"]\n  nodeName: b\n---\nx: 1\n"
        );
    }
}
