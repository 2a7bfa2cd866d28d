//! What arrived (objects, addresses of this node, time) → the maps as they are to be.

use std::time::Instant;

use anyhow::{Context as _, Result};

use super::{addresses::tells_node, parts::Agent};
use crate::{
    dataplane::ApplyReport,
    desired::state::Change,
    error::chain,
    kube::{batch::Batch, store::Dirty},
    telemetry::metrics::Extent,
};

impl Agent {
    pub(super) fn objects_changed(&mut self, batch: Batch) -> Result<()> {
        let begun = self.observer.arrived(batch.events());
        if let Some(is_there) = tells_node(&batch) {
            self.is_node_there = is_there;
            self.observer.node_eligible(self.is_eligible());
        }
        let mut dirty = Dirty::default();
        let extent = match batch.lists.is_empty() {
            true => Extent::Partial,
            false => Extent::Full,
        };
        for relist in batch.lists {
            dirty.extend(
                self.objects
                    .relist(relist.list, relist.events, &relist.keep),
            );
        }
        dirty.extend(self.objects.apply(batch.changes));
        if dirty.node {
            self.node_changed(extent, begun, &dirty)?;
        } else {
            let changes = self.desired.apply(&self.objects, &dirty);
            self.write("change", extent, begun, &changes);
        }
        self.observer.programmed(&batch.triggers);
        Ok(())
    }

    /// Brings changes to the maps.
    pub(super) fn write(&mut self, what: &str, extent: Extent, begun: Instant, changes: &[Change]) {
        let report = self.dataplane.apply(changes);
        self.ageing.changed(&mut self.dataplane);
        self.stale_sockets.changed();
        self.observer
            .applied(what, extent, begun, changes, &report, &self.dataplane);
        self.observer.health_checks(&self.desired);
    }

    pub(super) fn network_changed(&mut self) -> Result<()> {
        let snapshot = self
            .watch
            .snapshot()
            .context("cannot list the interfaces")?;
        if snapshot == self.snapshot {
            return Ok(());
        }
        self.snapshot = snapshot;
        let begun = self.observer.begin();
        log_errors(
            &self
                .dataplane
                .set_local_addresses(&self.snapshot.local_addresses()),
        );
        self.node_changed(Extent::Full, begun, &Dirty::default())?;
        self.serve_interfaces()
    }

    /// The Node object or the addresses changed.
    pub(super) fn node_changed(
        &mut self,
        extent: Extent,
        begun: Instant,
        dirty: &Dirty,
    ) -> Result<()> {
        let mut changes = self.desired.set_node(&self.objects, self.view());
        changes.extend(self.desired.apply(&self.objects, dirty));
        self.write_node()?;
        self.write("node", extent, begun, &changes);
        Ok(())
    }

    pub(super) fn audit(&mut self) {
        // For a socket that was being connected when its backend went.
        self.stale_sockets.changed();
        let fresh: Vec<_> = self.desired.current().cloned().collect();
        match self.dataplane.audit(&fresh) {
            Ok(report) => {
                if report.differences() > 0 {
                    tracing::warn!(
                        differences = report.differences(),
                        "the audit found maps that were not as wanted, and repaired them"
                    );
                }
                log_errors(&report.repair);
            }
            Err(error) => tracing::error!("audit failed: {}", chain(&error)),
        }
    }
}

pub(super) fn log_errors(report: &ApplyReport) {
    for error in &report.errors {
        tracing::error!("{}", chain(error));
    }
}
