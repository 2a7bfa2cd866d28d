//! A checked configuration → an agent that has its maps, from nothing or from what an earlier one left.

use anyhow::{Context as _, Result, bail};

use super::{
    ageing::Ageing, hooks::Hooks, observer::Observer, parts::Agent, stale_sockets::StaleSockets,
};
use crate::{
    bpf::{
        attach::TcMode,
        config::ConfigEntry,
        features::Features,
        load::{Loaded, MemoryShare, Sizes, memory_bytes},
        maps::ClockReader,
    },
    config::{Config, ObjectSource, RunArgs, SocketLb, TcAttach, conntrack},
    dataplane::{Dataplane, DataplaneConfig, pinned::PinnedMaps},
    desired::{Desired, NodeView},
    kube::{api::ApiSource, manifests::ManifestSource, source::Source, store::ObjectStore},
    node::{Watch, netns_cookie},
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
        for (map, has, asked) in &loaded.kept_sizes {
            tracing::warn!(
                map,
                has,
                asked,
                "the pinned map keeps its size; run `lb-agent cleanup` first to change it (flows are lost)"
            );
        }
        loaded.program(lb_common::names::programs::CLOCK)?;
        let clock = ClockReader::open_pinned(loaded.dir())?;
        let entry = ConfigEntry::open(loaded.dir())?;
        let translates = config.socket_lb != SocketLb::Off;
        let stale_sockets = StaleSockets::open(loaded.dir(), translates)?;
        observer.maps_opened(loaded.dir())?;
        let store = PinnedMaps::open(loaded.dir(), entry.clone())?;
        let tc = tc_mode(config.tc_attach, &features)?;
        let dataplane_config = DataplaneConfig {
            snat_ports: config.snat_ports,
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
            cookie: cookie.unwrap_or(0),
            conntrack,
            is_node_there: false,
            config,
            observer,
        };
        Ok((agent, source))
    }
}

fn sizes(config: &Config) -> Sizes {
    let share = MemoryShare::of(memory_bytes());
    Sizes {
        frontends: config.max_frontends,
        backends: config.max_backends.unwrap_or(share.backends),
        flows: config.flow_table_size.unwrap_or(share.flows),
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
