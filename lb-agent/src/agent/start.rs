//! A checked configuration → an agent that has its maps, from nothing or from what an earlier one left.

use anyhow::{Context as _, Result, bail};
use lb_common::names::{maps, programs};

use super::{
    ageing::Ageing, hooks::Hooks, observer::Observer, parts::Agent, stale_sockets::StaleSockets,
};
use crate::{
    bpf::{
        attach::TcMode,
        config::ConfigEntry,
        features::Features,
        flow_size::{self, FlowSize},
        load::{Loaded, MemoryShare, Sizes, memory_bytes},
        maps::ClockReader,
    },
    config::{Config, ObjectSource, RunArgs, SocketLb, TcAttach, conntrack},
    dataplane::{Dataplane, DataplaneConfig, pinned::PinnedMaps},
    desired::{Desired, NodeView},
    kube::{api::ApiSource, manifests::ManifestSource, source::Source, store::ObjectStore},
    node::{Watch, netns_cookie, reserved},
    port_set::PortSet,
};

impl Agent {
    /// From nothing, or from what an earlier agent left, to an agent that knows its maps and waits for objects.
    pub(super) fn start(
        args: &RunArgs,
        config: Config,
        conntrack: Vec<conntrack::Setting>,
        mut observer: Observer,
    ) -> Result<(Agent, Source)> {
        let source = match &config.source {
            ObjectSource::Manifests(dir) => {
                Source::Manifests(Box::new(ManifestSource::open(dir, &config.node_name)?))
            }
            ObjectSource::Api(access) => {
                let source = ApiSource::start(access, &config.node_name, observer.api_metrics())?;
                observer.set_events(source.events());
                Source::Api(source)
            }
        };
        let features = Features::probe();
        tracing::info!(
            kernel = features.release,
            tcx = features.tcx,
            csum_ipv6 = features.csum_ipv6,
            "kernel probed"
        );
        let mut loaded = Loaded::new(&config.bpffs, &sizes(&config), &features)?;
        tell_kept_sizes(&loaded, config.flow_table_size);
        let snat_ports = snat_ports(&config)?;
        for program in [programs::CLOCK].into_iter().chain(programs::REAP) {
            loaded.program(program)?;
        }
        let clock = ClockReader::open_pinned(loaded.dir())?;
        let entry = ConfigEntry::open(loaded.dir())?;
        let translates = config.socket_lb != SocketLb::Off;
        let stale_sockets = StaleSockets::open(loaded.dir(), translates)?;
        observer.maps_opened(loaded.dir())?;
        let store = PinnedMaps::open(loaded.dir(), entry.clone())?;
        let tc = tc_mode(config.tc_attach, &features)?;
        let dataplane_config = DataplaneConfig {
            snat_ports: snat_ports.clone(),
        };
        let dataplane =
            Dataplane::new(store, dataplane_config).context("cannot read the pinned maps back")?;
        let cookie = netns_cookie().context("cannot tell this network namespace's cookie")?;
        if cookie.is_none() && config.socket_lb == SocketLb::Host {
            bail!(
                "--socket-lb host needs network namespace cookies (kernel 5.14); pass --socket-lb off or all"
            );
        }
        let mut watch = Watch::new().context("cannot follow the interfaces")?;
        let snapshot = watch.snapshot().context("cannot list the interfaces")?;
        let agent = Agent {
            args: args.clone(),
            hooks: Hooks::new(loaded, tc, config.xdp)?,
            objects: ObjectStore::new(),
            desired: Desired::new(NodeView::default()),
            dataplane,
            entry,
            watch,
            snapshot,
            stale_sockets,
            ageing: Ageing::new(clock),
            snat_ports,
            cookie: cookie.unwrap_or(0),
            conntrack,
            is_node_there: false,
            config,
            observer,
        };
        Ok((agent, source))
    }
}

/// Pinned maps keep their sizes. Those of the tables of flows are the machine's memory's unless a flag names them.
fn tell_kept_sizes(loaded: &Loaded, asked_connections: Option<u32>) {
    for (map, has, asked) in &loaded.kept_sizes {
        if maps::FLOWS.contains(&map.as_str()) {
            if let Some(asked) = asked_connections {
                let has = flow_size::connections(*has);
                tracing::warn!(
                    map,
                    has,
                    asked,
                    "the table of flows keeps its size, in connections; run `lb-agent cleanup` first to change it (flows are lost)"
                );
            }
        } else if !maps::FLOW_INDEX.contains(&map.as_str()) {
            tracing::warn!(
                map,
                has,
                asked,
                "the pinned map keeps its size; run `lb-agent cleanup` first to change it (flows are lost)"
            );
        }
    }
}

/// The ports that source translation may take: what the flag names, or what the host leaves.
fn snat_ports(config: &Config) -> Result<PortSet> {
    if let Some(ports) = &config.snat_ports {
        return Ok(ports.clone());
    }
    let ports = reserved::snat_ports().context(
        "cannot tell which ports the host leaves for source translation; name them with --snat-ports",
    )?;
    if ports.len() < FEW_PORTS {
        tracing::warn!(
            ports = ports.len(),
            "few ports are left for source translation: narrow net.ipv4.ip_local_port_range or net.ipv4.ip_local_reserved_ports, or name ports with --snat-ports"
        );
    }
    tracing::info!(%ports, "ports for source translation");
    Ok(ports)
}

/// Less ports than these are worth a warning.
const FEW_PORTS: usize = 1_024;

fn sizes(config: &Config) -> Sizes {
    let share = MemoryShare::of(memory_bytes());
    Sizes {
        frontends: config.max_frontends,
        backends: config.max_backends.unwrap_or(share.backends),
        flows: config.flow_table_size.map_or(share.flows, FlowSize::of),
        rows: config.selection_rows.unwrap_or(share.rows),
    }
}

fn tc_mode(choice: TcAttach, features: &Features) -> Result<TcMode> {
    match choice {
        TcAttach::Tcx if !features.tcx => bail!(
            "kernel {} has no TCX (6.6); pass --tc-attach auto",
            features.release
        ),
        TcAttach::Clsact => Ok(TcMode::Clsact),
        _ if features.tcx => Ok(TcMode::Tcx),
        _ => Ok(TcMode::Clsact),
    }
}
