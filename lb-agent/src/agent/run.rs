//! The loop: waits for the first complete state, serves it, and takes what arrives until a signal ends it.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

use super::{
    changes::log_errors, cleanup, observer::Observer, parts::Agent, reporter::Reporter,
    signals::Signals, surroundings,
};
use crate::{
    config::{Config, RunArgs},
    desired::Desired,
    error::chain,
    health::BindFailure,
    kube::{
        api::events::{Note, Subject},
        objects::ObjectEvent,
        source::Source,
    },
    node::reserved,
    telemetry::metrics::Extent,
};

/// Between two audits.
const AUDIT_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks whether the hooks are still attached.
const HOOKS_INTERVAL: Duration = Duration::from_secs(10);
/// Between two looks for sockets whose backend is gone.
const SOCKETS_INTERVAL: Duration = Duration::from_millis(250);
/// Between two tries of what failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// An Event that the agent ends with has this long to get out.
const EVENT_PATIENCE: Duration = Duration::from_secs(3);

/// After so long without complete lists the agent serves what it finds in the maps.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves this node until a signal ends it. `flags` are those of the command line with their values, `started` is when the
/// process began.
pub(crate) fn run(
    args: &RunArgs,
    config: Config,
    flags: Vec<(String, String)>,
    started: Instant,
) -> Result<()> {
    let unset = surroundings::prepare(&config);
    let reporter =
        Reporter::start(&config, flags).context("cannot start the thread of health and metrics")?;
    let observer = Observer::new(reporter.shared());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new().context("cannot catch signals")?;
        let (mut agent, source) = Agent::start(args, config, unset, observer)?;
        let Some(source) = agent.begin(source, &mut signals).await? else {
            return Ok(());
        };
        tracing::info!(elapsed_ms = started.elapsed().as_millis(), "ready");
        agent.follow(source, &mut signals).await
    });
    reporter.stop();
    result
}

impl Agent {
    /// Waits for the first complete state and serves it; `None`: a signal came before.
    async fn begin(&mut self, mut source: Source, signals: &mut Signals) -> Result<Option<Source>> {
        let mut surroundings = ticks(HOOKS_INTERVAL);
        surroundings.reset();
        let mut patience = pin!(sleep(PATIENCE));
        let mut is_waiting = false;
        if self.dataplane.usage().service_ports != 0 {
            self.observer.serving();
        }
        self.hooks.preload(self.config.socket_lb);
        let events = loop {
            let ageing = sleep_until(self.ageing.next().into());
            tokio::select! {
                biased;
                signal = signals.stop() => {
                    log_stop(signal);
                    return Ok(None);
                }
                failure = self.observer.unbound() => return Err(self.refuse(failure).await),
                events = source.initial() => break events?,
                () = &mut patience, if !is_waiting => {
                    is_waiting = true;
                    tracing::info!("no complete lists yet; what an earlier agent left in the maps is served meanwhile");
                    self.serve_pinned()?;
                }
                changed = self.watch.changed() => {
                    changed.context("cannot hear of changes of the interfaces")?;
                    self.snapshot = self.watch.snapshot().context("cannot list the interfaces")?;
                    if is_waiting {
                        self.serve_pinned()?;
                    }
                }
                () = ageing => self.ageing.collect(&mut self.dataplane),
                // The lists may be waited for because the file is wrong.
                _ = surroundings.tick() => self.follow_surroundings().await?,
            }
        };
        self.first(events)?;
        let (source, problems) = source.follow()?;
        for problem in problems.list() {
            tracing::error!(file = problem.file, "{}", problem.message);
        }
        self.observer.manifest_problems(problems);
        self.observer
            .ready(&self.desired, &self.dataplane, self.ageing.found());
        Ok(Some(source))
    }

    /// The first complete state: maps, then hooks.
    fn first(&mut self, events: Vec<ObjectEvent>) -> Result<()> {
        if let Err(error) = reserved::reserve(&self.snat_ports) {
            tracing::warn!(%error, "cannot keep the ports for source translation out of the host's ephemeral ports");
        }
        let begun = self.observer.arrived(events.iter());
        let dirty = self.objects.initial(events);
        self.is_node_there = self.objects.node().is_some();
        if let Some(node) = self.objects.node() {
            for warning in self.config.check_node(node)? {
                tracing::warn!("{warning}");
            }
        }
        self.desired = Desired::new(self.view());
        let changes = self.desired.apply(&self.objects, &dirty);
        self.write_node()?;
        log_errors(
            &self
                .dataplane
                .set_local_addresses(&self.snapshot.local_addresses()),
        );
        self.write("first state", Extent::Full, begun, &changes);
        // Its XDP programs would be in the way of ours.
        let removed = cleanup::remove_other_versions(&self.config.bpffs)?;
        if removed != 0 {
            tracing::warn!(
                pins = removed,
                "removed what an agent of another version left; its connections are lost"
            );
        }
        self.serve_interfaces()?;
        self.serve_sockets()
    }

    /// Takes what arrives until a signal ends it.
    async fn follow(&mut self, mut source: Source, signals: &mut Signals) -> Result<()> {
        let mut sockets = ticks(SOCKETS_INTERVAL);
        let mut retry = ticks(RETRY_INTERVAL);
        let mut audit = ticks(AUDIT_INTERVAL);
        audit.reset();
        let mut hooks = ticks(HOOKS_INTERVAL);
        hooks.reset();
        let mut events_open = true;
        loop {
            let ageing = sleep_until(self.ageing.next().into());
            tokio::select! {
                biased;
                signal = signals.stop() => {
                    log_stop(signal);
                    return Ok(());
                }
                failure = self.observer.unbound() => return Err(self.refuse(failure).await),
                batch = source.next(), if events_open => match batch {
                    Some(batch) => self.objects_changed(batch)?,
                    None => {
                        events_open = false;
                        tracing::error!("objects are not followed any more; what is known stays served");
                    }
                },
                changed = self.watch.changed() => {
                    changed.context("cannot hear of changes of the interfaces")?;
                    self.network_changed()?;
                }
                () = ageing => self.ageing.collect(&mut self.dataplane),
                _ = sockets.tick() => self.end_stale_sockets(),
                _ = retry.tick() => {
                    if self.dataplane.is_pending() {
                        let report = self.dataplane.retry();
                        self.ageing.changed(&mut self.dataplane);
                        self.stale_sockets.changed();
                        self.observer.settled(&report, &self.dataplane);
                        self.observer.health_checks(&self.desired);
                    }
                    self.observer.tick(&self.desired, &self.dataplane, self.ageing.found());
                }
                _ = audit.tick() => self.audit(),
                _ = hooks.tick() => {
                    self.repair_hooks()?;
                    self.follow_surroundings().await?;
                }
            }
        }
    }

    /// An address cannot be bound, and the flags want the agent to end then (semantics 16.10).
    async fn refuse(&self, failure: BindFailure) -> anyhow::Error {
        let text = chain(&failure);
        self.observer.events().write(Note {
            subject: Subject::Node,
            is_warning: true,
            reason: failure.reason,
            action: "StartKubeProxy",
            text,
        });
        self.observer.events_settled(EVENT_PATIENCE).await;
        anyhow::Error::from(failure).context("--bind-address-hard-fail")
    }

    /// Once the maps are as wanted (semantics 17.6).
    fn end_stale_sockets(&mut self) {
        match self.stale_sockets.sweep(self.dataplane.store().maps()) {
            Ok(0) => {}
            Ok(ended) => tracing::info!(ended, "connected UDP sockets lost their backend"),
            Err(error) => tracing::error!("{}", chain(&error)),
        }
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn log_stop(signal: &str) {
    tracing::info!(
        signal,
        "stopped; the dataplane stays attached, `lb-agent cleanup` removes it"
    );
}
