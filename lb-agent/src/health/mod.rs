//! `/healthz`, `/livez`, `/readyz` and the metrics port (semantics 16), and the ports that load balancers ask for single
//! Services ([`node_port`]). HTTP/1.1, one request a connection.

pub mod node_port;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    time::timeout,
};

use crate::{
    bpf::maps::MapResult,
    clock::rfc3339,
    error::chain,
    exposition::Text,
    kube::api::metrics::ApiMetrics,
    net::IpFamily,
    telemetry::{
        board::Board,
        metrics::{
            Counters, Metrics, render_build, render_gates, render_process, render_services,
            render_unserved,
        },
        pages::{Pages, Pings},
    },
};

/// Work that is pending this long is a sick data path (16.3).
const STALE: Duration = Duration::from_secs(60);
/// A client has this long to send its request and to take the answer.
const REQUEST: Duration = Duration::from_secs(5);
/// Between two tries to bind an address.
const REBIND: Duration = Duration::from_secs(5);
/// Most connections served at a time, over both ports; more of them wait.
const CONNECTIONS: usize = 64;

#[derive(Clone, Copy, Default, Debug)]
struct Sync {
    queued: Option<Instant>,
    updated: Option<SystemTime>,
}

/// State that the agent updates and the servers answer from.
#[derive(Debug, Default)]
pub struct Shared {
    syncs: Mutex<[Sync; 2]>,
    ready: AtomicBool,
    serving: AtomicBool,
    ineligible: AtomicBool,
    healthz: [AtomicU64; 2],
    livez: [AtomicU64; 2],
    counters: Mutex<Option<Counters>>,
    pings: Pings,
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
    pub health_checks: node_port::HealthChecks,
}

impl Shared {
    /// Work is pending for a family; only the oldest moment counts (16.2).
    pub fn queued(&self, family: IpFamily) {
        self.metrics.queued(family);
        lock(&self.syncs)[family.index()]
            .queued
            .get_or_insert_with(Instant::now);
    }
    /// All pending work of a family is done.
    pub fn updated(&self, family: IpFamily) {
        lock(&self.syncs)[family.index()] = Sync {
            queued: None,
            updated: Some(SystemTime::now()),
        };
    }
    /// Services are in the maps, if only those that an earlier agent left.
    pub fn set_serving(&self) {
        self.serving.store(true, Ordering::Release);
    }
    /// The first complete state is in the maps.
    pub fn set_ready(&self) {
        self.set_serving();
        self.ready.store(true, Ordering::Release);
        self.board.touch();
    }
    /// Whether it is.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
    /// Whether load balancers may send to this node (16.5).
    pub fn set_eligible(&self, eligible: bool) {
        self.ineligible.store(!eligible, Ordering::Release);
    }
    /// Where `/metrics` reads the dataplane's counters.
    pub fn set_counters(&self, counters: Counters) {
        *lock(&self.counters) = Some(counters);
    }

    fn set_unbound(&self, failure: BindFailure) {
        lock(&self.unbound).get_or_insert(failure);
        self.unbound_wake.notify_one();
    }
    /// Waits until an address cannot be bound and the agent is to end.
    pub async fn unbound(&self) -> BindFailure {
        loop {
            if let Some(failure) = lock(&self.unbound).take() {
                return failure;
            }
            self.unbound_wake.notified().await;
        }
    }

    fn health(&self, now: Instant, wall: SystemTime, with_node: bool) -> (u16, Value) {
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

    fn answer_health(&self, path: &str) -> Answer {
        let with_node = path == "/healthz";
        match path {
            "/healthz" | "/livez" => {
                let (code, body) = self.health(Instant::now(), SystemTime::now(), with_node);
                let answers = if with_node {
                    &self.healthz
                } else {
                    &self.livez
                };
                answers[usize::from(code != 200)].fetch_add(1, Ordering::Relaxed);
                Answer::json(code, body.to_string())
            }
            "/readyz" if self.ready.load(Ordering::Acquire) => Answer::text(200, "ok"),
            "/readyz" => Answer::text(503, "the first complete state is not in the maps yet"),
            _ => Answer::text(404, "not found"),
        }
    }

    fn answer_metrics(&self, path: &str) -> Answer {
        match (path, self.pages.get()) {
            ("/healthz", _) => {
                self.pings.count();
                Answer::text(200, "ok")
            }
            ("/proxyMode", _) => Answer::text(200, "ebpf"),
            ("/metrics", _) => match self.page() {
                Ok(body) => Answer::metrics(body),
                Err(error) => Answer::text(500, &chain(&error)),
            },
            ("/metrics/slis", _) => Answer::metrics(self.pings.slis()),
            ("/configz", Some(pages)) => Answer::json(200, pages.configz()),
            ("/flagz", Some(pages)) => Answer::text(200, &pages.flagz()),
            ("/statusz", Some(pages)) => Answer::text(200, &pages.statusz(SystemTime::now())),
            _ => Answer::text(404, "not found"),
        }
    }

    /// All metrics.
    pub(crate) fn page(&self) -> MapResult<String> {
        let mut out = Text::default();
        self.metrics.render(&mut out);
        self.api.render(&mut out);
        for (name, answers) in [
            ("kubeproxy_proxy_healthz_total", &self.healthz),
            ("kubeproxy_proxy_livez_total", &self.livez),
        ] {
            out.head(name, "counter", "Answers by status code.");
            for (code, count) in ["200", "503"].into_iter().zip(answers) {
                out.row(name, &[("code", code)], count.load(Ordering::Relaxed));
            }
        }
        out.head(
            "lb_manifest_errors",
            "gauge",
            "Manifest files that cannot be used.",
        );
        out.row(
            "lb_manifest_errors",
            &[],
            self.board.manifest_problems().len(),
        );
        let interfaces = self.board.interfaces();
        out.head(
            "lb_interfaces",
            "gauge",
            "Interfaces by how they are served: by tc and XDP, by tc alone, or not.",
        );
        for state in ["tc+xdp", "tc", "failed"] {
            let count = interfaces
                .iter()
                .filter(|interface| interface.state() == state)
                .count();
            out.row("lb_interfaces", &[("state", state)], count);
        }
        render_unserved(&mut out, &self.board.unserved());
        if let Some(counters) = &*lock(&self.counters) {
            counters.read()?.render(&mut out);
            let mut services = Vec::new();
            for (port, id) in self.board.names() {
                let stats = counters.service(id)?;
                if stats.packets + stats.flows > 0 {
                    services.push((port, stats));
                }
            }
            render_services(&mut out, &services);
        }
        render_process(&mut out);
        render_build(&mut out);
        if let Some(pages) = self.pages.get() {
            render_gates(&mut out, &pages.config["featureGates"]);
        }
        Ok(out.into_string())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Answer {
    code: u16,
    kind: &'static str,
    body: String,
    /// Endpoints behind this node, where load balancers ask for them.
    weight: Option<usize>,
}

impl Answer {
    fn text(code: u16, body: &str) -> Answer {
        Answer {
            code,
            kind: "text/plain; charset=utf-8",
            body: body.to_owned(),
            weight: None,
        }
    }
    fn json(code: u16, body: String) -> Answer {
        Answer {
            code,
            kind: "application/json",
            body,
            weight: None,
        }
    }
    fn metrics(body: String) -> Answer {
        Answer {
            code: 200,
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body,
            weight: None,
        }
    }
    fn bytes(&self, head_only: bool) -> Vec<u8> {
        let reason = match self.code {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            503 => "Service Unavailable",
            _ => "Internal Server Error",
        };
        let body = if head_only { "" } else { &self.body };
        let weight = self.weight.map_or_else(String::new, |weight| {
            format!("X-Load-Balancing-Endpoint-Weight: {weight}\r\n")
        });
        format!("HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nX-Content-Type-Options: nosniff\r\n{weight}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.code, self.kind, self.body.len()).into_bytes()
    }
}

/// What is to be served where.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// `/healthz`, `/livez` and `/readyz`; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// `/metrics`; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// An address that cannot be bound is to end the agent.
    pub hard_fail: bool,
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {addr} for {what}; end who does, or name another address with --{what}-bind-address"
)]
pub struct BindFailure {
    /// Word of the Event.
    pub reason: &'static str,
    what: &'static str,
    addr: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Serves both addresses and the ports of Services for as long as it is polled.
pub async fn serve(addresses: Addresses, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let (of_health, of_metrics) = (shared.clone(), shared.clone());
    let hard_fail = addresses.hard_fail;
    tokio::join!(
        async {
            let Some(addr) = addresses.health else { return };
            let answer = move |path: &str| of_health.answer_health(path);
            let bound = bind(HEALTHZ, addr, hard_fail, &shared).await;
            accept(bound, room.clone(), answer).await;
        },
        async {
            let Some(addr) = addresses.metrics else {
                return;
            };
            let answer = move |path: &str| of_metrics.answer_metrics(path);
            let bound = bind(METRICS, addr, hard_fail, &shared).await;
            accept(bound, room.clone(), answer).await;
        },
        node_port::serve(shared.clone()),
    );
}

/// Name in the flag, and the word of the Event about one that cannot be bound (16.10).
const HEALTHZ: [&str; 2] = ["healthz", "FailedToStartProxierHealthcheck"];
const METRICS: [&str; 2] = ["metrics", "FailedToStartMetricServer"];

/// Binds an address, however often it takes (16.10).
async fn bind(
    [what, reason]: [&'static str; 2],
    addr: SocketAddr,
    hard_fail: bool,
    shared: &Shared,
) -> TcpListener {
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(source) if hard_fail => {
                shared.set_unbound(BindFailure {
                    reason,
                    what,
                    addr,
                    source,
                });
                return std::future::pending().await;
            }
            Err(error) => {
                tracing::error!(%addr, "cannot listen: {error}; trying again in {} s", REBIND.as_secs());
            }
        }
        tokio::time::sleep(REBIND).await;
    }
}

async fn accept(
    listener: TcpListener,
    room: Arc<Semaphore>,
    answer: impl Fn(&str) -> Answer + Clone + Send + 'static,
) {
    while let Ok(permit) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    match timeout(REQUEST, one(stream, answer)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "health request failed"),
                        Err(_) => tracing::debug!("health request took too long"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection of the health server");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn one(mut stream: TcpStream, answer: impl Fn(&str) -> Answer) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut chunk = [0; 1024];
        let count = stream.read(&mut chunk).await?;
        if count == 0 || head.len() > 8192 {
            break;
        }
        head.extend_from_slice(&chunk[..count]);
    }
    let line = String::from_utf8_lossy(&head);
    let mut words = line.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next());
    let reply = match target {
        Some(target) => answer(target.split('?').next().unwrap_or_default()),
        None => Answer::text(400, "this is no HTTP request"),
    };
    stream.write_all(&reply.bytes(method == "HEAD")).await?;
    stream.shutdown().await
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

    // semantics 16.1, 16.4
    #[test]
    fn before_the_first_state_it_is_alive_but_gets_no_traffic() {
        let shared = Shared::default();
        let answers = || {
            ["/livez", "/healthz", "/readyz"].map(|path| {
                let answer = shared.answer_health(path);
                let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
                (answer.code, body["healthy"].as_bool())
            })
        };
        let live = (200, Some(true));
        assert_eq!(answers(), [live, (503, Some(false)), (503, None)]);
        // What an earlier agent left.
        shared.set_serving();
        assert_eq!(answers(), [live, live, (503, None)]);
        shared.set_ready();
        assert_eq!(answers(), [live, live, (200, None)]);
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

    // semantics 16.8
    #[test]
    fn health_answers_are_json_that_is_not_guessed_at() {
        let answer = Shared::default().answer_health("/livez").bytes(false);
        let text = String::from_utf8(answer).unwrap();
        let (head, _) = text.split_once("\r\n\r\n").unwrap();
        for line in [
            "HTTP/1.1 200 OK",
            "Content-Type: application/json",
            "X-Content-Type-Options: nosniff",
        ] {
            assert!(head.lines().any(|has| has == line), "{line} in {head}");
        }
        assert!(!head.contains("Weight"), "{head}");
    }

    // semantics 16.11
    #[test]
    fn the_metrics_port_has_the_pages_of_kube_proxy() {
        let shared = Shared::default();
        let page = |path: &str| shared.answer_metrics(path);
        assert_eq!(page("/configz").code, 404, "nothing is known yet");
        let pages = Pages {
            config: json!({ "featureGates": { "AllowServiceExternalIPs": false } }),
            flags: Vec::new(),
            started: SystemTime::now(),
        };
        shared.pages.set(pages).unwrap();
        for path in crate::telemetry::pages::PATHS {
            assert_eq!(page(path).code, 200, "{path}");
        }
        assert_eq!(page("/configz").kind, "application/json");
        assert_eq!(page("/proxyMode").body, "ebpf");
        assert!(page("/metrics/slis").body.contains("} 1\n"));
        for path in ["/", "/livez", "/readyz", "/debug/pprof/"] {
            assert_eq!(page(path).code, 404, "{path}");
        }
    }

    // semantics 23
    #[test]
    fn answers_are_counted_by_code() {
        let shared = Shared::default();
        shared.set_serving();
        shared.answer_health("/healthz");
        shared.answer_health("/livez");
        shared.set_eligible(false);
        shared.answer_health("/healthz");
        let page = shared.page().unwrap();
        for row in [
            "# TYPE kubeproxy_proxy_healthz_total counter\n",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1\n",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1\n",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1\n",
            "kubeproxy_proxy_livez_total{code=\"503\"} 0\n",
        ] {
            assert!(page.contains(row), "{row} in {page}");
        }
    }

    async fn ask(addr: SocketAddr, request: &str) -> String {
        let mut client = TcpStream::connect(addr).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let read = client.read_to_string(&mut text);
        timeout(REQUEST, read).await.unwrap().unwrap();
        text
    }

    // semantics 16.12
    #[tokio::test]
    async fn any_method_gets_an_answer_and_only_from_the_exact_paths() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared: Arc<Shared> = Arc::default();
        shared.set_serving();
        let answer = move |path: &str| shared.answer_health(path);
        tokio::spawn(accept(listener, Arc::new(Semaphore::new(1)), answer));
        for (request, code) in [
            ("GET /healthz?x=1", 200),
            ("POST /livez", 200),
            ("DELETE /healthz", 200),
            ("GET /healthz/", 404),
            ("GET /", 404),
            ("GET /metrics", 404),
        ] {
            let text = ask(addr, &format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            assert!(
                text.starts_with(&format!("HTTP/1.1 {code} ")),
                "{request}: {text}"
            );
        }
    }

    // semantics 16.10, 24.4
    #[tokio::test]
    async fn an_address_that_is_taken_is_tried_again_or_ends_the_agent() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = taken.local_addr().unwrap();
        let serving = |hard_fail, shared: &Arc<Shared>| {
            let addresses = Addresses {
                health: Some(addr),
                metrics: None,
                hard_fail,
            };
            tokio::spawn(serve(addresses, shared.clone()))
        };
        let shared: Arc<Shared> = Arc::default();
        let hard = serving(true, &shared);
        let failure = timeout(REQUEST, shared.unbound()).await.unwrap();
        assert_eq!(failure.reason, "FailedToStartProxierHealthcheck");
        assert!(failure.to_string().contains(&addr.to_string()), "{failure}");
        hard.abort();
        let soft = serving(false, &shared);
        let told = timeout(REBIND / 10, shared.unbound()).await;
        assert!(told.is_err(), "{told:?}");
        drop(taken);
        let answered = async {
            while TcpStream::connect(addr).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(2 * REBIND, answered).await.unwrap();
        assert!(
            ask(addr, "GET /livez HTTP/1.1\r\n\r\n")
                .await
                .contains(" 200 OK")
        );
        soft.abort();
    }

    #[tokio::test]
    async fn a_client_gets_an_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let room = Arc::new(Semaphore::new(1));
        let shared: Arc<Shared> = Arc::default();
        let answer = move |path: &str| shared.answer_metrics(path);
        tokio::spawn(accept(listener, room, answer));
        let mut client = TcpStream::connect(addr).await.unwrap();
        client
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut text = String::new();
        timeout(REQUEST, client.read_to_string(&mut text))
            .await
            .unwrap()
            .unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("\nlb_manifest_errors 0\n"), "{text}");
        assert!(
            text.contains("\nkubeproxy_proxy_healthz_total{code=\"200\"} 0\n"),
            "{text}"
        );
    }
}
