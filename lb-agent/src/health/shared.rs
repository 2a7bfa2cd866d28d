//! What the loop knows → whether this node works (semantics 16.2 to 16.7), and what else the servers tell.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{lock::lock, plan::HealthChecks};
use crate::{
    clock::rfc3339,
    kube::api::metrics::ApiMetrics,
    net::IpFamily,
    telemetry::{
        board::Board,
        counters::Counters,
        metrics::Metrics,
        pages::{Pages, Pings},
    },
};

/// Work that is pending this long is a sick data path (16.3).
pub(super) const STALE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Sync {
    pub(super) queued: Option<Instant>,
    pub(super) updated: Option<SystemTime>,
}

/// What the loop tells and the servers answer from.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(super) syncs: Mutex<[Sync; 2]>,
    pub(super) ready: AtomicBool,
    serving: AtomicBool,
    ineligible: AtomicBool,
    pub(super) healthz: [AtomicU64; 2],
    pub(super) livez: [AtomicU64; 2],
    pub(super) counters: Mutex<Option<Counters>>,
    pub(super) pings: Pings,
    unbound: Mutex<Option<BindFailure>>,
    unbound_wake: Notify,
    /// What `/metrics` shows of the loop.
    pub metrics: Metrics,
    /// What the state file and `/metrics` show of Services and interfaces.
    pub board: Board,
    /// What `/metrics` shows of the API server.
    pub api: Arc<ApiMetrics>,
    /// What the metrics port tells of the process.
    pub pages: OnceLock<Pages>,
    /// What load balancers hear about single Services.
    pub health_checks: HealthChecks,
}

impl Shared {
    /// Work is pending for a family; only the oldest moment counts (16.2).
    pub(crate) fn queued(&self, family: IpFamily) {
        self.metrics.queued(family);
        lock(&self.syncs)[family.index()]
            .queued
            .get_or_insert_with(Instant::now);
    }
    /// All pending work of a family is done.
    pub(crate) fn updated(&self, family: IpFamily) {
        lock(&self.syncs)[family.index()] = Sync {
            queued: None,
            updated: Some(SystemTime::now()),
        };
    }
    /// Services are in the maps, if only those that an earlier agent left.
    pub(crate) fn set_serving(&self) {
        self.serving.store(true, Ordering::Release);
    }
    /// The first complete state is in the maps.
    pub(crate) fn set_ready(&self) {
        self.set_serving();
        self.ready.store(true, Ordering::Release);
        self.board.touch();
    }
    /// Whether it is.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
    /// Whether load balancers may send to this node (16.5).
    pub(crate) fn set_eligible(&self, eligible: bool) {
        self.ineligible.store(!eligible, Ordering::Release);
    }
    /// Where `/metrics` reads the dataplane's counters.
    pub(crate) fn set_counters(&self, counters: Counters) {
        *lock(&self.counters) = Some(counters);
    }

    pub(super) fn set_unbound(&self, failure: BindFailure) {
        lock(&self.unbound).get_or_insert(failure);
        self.unbound_wake.notify_one();
    }
    /// Waits until an address cannot be bound and the agent is to end.
    pub(crate) async fn unbound(&self) -> BindFailure {
        loop {
            if let Some(failure) = lock(&self.unbound).take() {
                return failure;
            }
            self.unbound_wake.notified().await;
        }
    }

    pub(super) fn health(&self, now: Instant, wall: SystemTime, with_node: bool) -> (u16, Value) {
        let syncs = *lock(&self.syncs);
        let eligible = !self.ineligible.load(Ordering::Acquire);
        let fresh = |sync: &Sync| {
            sync.queued
                .is_none_or(|queued| now.duration_since(queued) < STALE)
        };
        // A node that serves nothing yet is to get nothing from load balancers, and no new start either (16.4).
        let is_serving = self.serving.load(Ordering::Acquire) || !with_node;
        let healthy = is_serving && syncs.iter().all(fresh);
        let status: BTreeMap<_, _> = IpFamily::BOTH
            .into_iter()
            .zip(&syncs)
            .filter(|(_, sync)| sync.updated.is_some() || sync.queued.is_some())
            .map(|(family, sync)| {
                (
                    family.name(),
                    json!({"lastUpdated": rfc3339(sync.updated), "healthy": fresh(sync)}),
                )
            })
            .collect();
        let ok = healthy && (eligible || !with_node);
        let newest = if ok {
            Some(wall)
        } else {
            syncs.iter().filter_map(|sync| sync.updated).max()
        };
        let mut body = json!({"lastUpdated": rfc3339(newest), "currentTime": rfc3339(Some(wall)), "healthy": healthy, "status": status});
        if with_node {
            body["nodeEligible"] = json!(eligible);
        }
        (if ok { 200 } else { 503 }, body)
    }
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {addr} for {what}; end who does, or name another address with --{what}-bind-address"
)]
pub(crate) struct BindFailure {
    /// Word of the Event.
    pub reason: &'static str,
    pub(super) what: &'static str,
    pub(super) addr: SocketAddr,
    #[source]
    pub(super) source: std::io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    // semantics 16.2
    #[test]
    fn the_oldest_pending_work_counts_until_it_is_done() {
        let shared = Shared::default();
        let queued = |shared: &Shared| lock(&shared.syncs)[0].queued;
        shared.queued(IpFamily::V4);
        let first = queued(&shared);
        shared.queued(IpFamily::V4);
        assert!(first.is_some() && queued(&shared) == first);
        shared.updated(IpFamily::V4);
        assert_eq!(queued(&shared), None);
    }

    // semantics 16.3
    #[test]
    fn a_late_family_is_not_cured_by_the_other() {
        let shared = Shared::default();
        shared.set_serving();
        shared.queued(IpFamily::V6);
        shared.updated(IpFamily::V4);
        let begun = lock(&shared.syncs)[1].queued.unwrap();
        let at = |after: Duration| shared.health(begun + after, SystemTime::now(), true);
        assert_eq!(at(STALE - Duration::from_millis(1)).0, 200);
        let (code, body) = at(STALE);
        assert_eq!(code, 503);
        assert_eq!(body["status"]["IPv6"]["healthy"], false);
        assert_eq!(body["status"]["IPv4"]["healthy"], true);
        shared.updated(IpFamily::V6);
        assert_eq!(at(100 * STALE).0, 200, "nothing is pending");
    }

    // semantics 16.5, 16.6, 16.7
    #[test]
    fn eligibility_counts_on_healthz_only() {
        let shared = Shared::default();
        shared.set_serving();
        shared.set_eligible(false);
        let (code, body) = shared.health(Instant::now(), SystemTime::now(), true);
        assert_eq!(
            (code, &body["healthy"], &body["nodeEligible"]),
            (503, &json!(true), &json!(false))
        );
        let (code, body) = shared.health(Instant::now(), SystemTime::now(), false);
        assert_eq!((code, body.get("nodeEligible")), (200, None));
    }

    // semantics 16.7
    #[test]
    fn only_a_good_answer_looks_fresh() {
        let shared = Shared::default();
        shared.set_serving();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let updated = |seconds| Sync {
            queued: None,
            updated: Some(at(seconds)),
        };
        *lock(&shared.syncs) = [updated(100), updated(200)];
        let times = || {
            let (code, body) = shared.health(Instant::now(), at(1_000), true);
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let families = ["IPv4", "IPv6"].map(|name| text(&body["status"][name]["lastUpdated"]));
            assert_eq!(text(&body["currentTime"]), rfc3339(Some(at(1_000))));
            (code, text(&body["lastUpdated"]), families)
        };
        let families = [100, 200].map(|seconds| rfc3339(Some(at(seconds))));
        let good = (200, rfc3339(Some(at(1_000))), families.clone());
        assert_eq!(times(), good);
        shared.set_eligible(false);
        assert_eq!(times(), (503, rfc3339(Some(at(200))), families));
    }
}
