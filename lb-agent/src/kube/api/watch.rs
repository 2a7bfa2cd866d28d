//! One kind of object: list it, watch it, and begin again where that ends. The initial list is
//! streamed where the server can, else paged; it counts only when it is complete.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt as _;
use kube::{
    api::{ListParams, WatchParams},
    client::Body,
    core::Request,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    connect::Connection,
    decode::{self, Item, Line, Page, Refusal},
    mailbox::Mailbox,
    metrics::ApiMetrics,
};
use crate::{
    error::chain,
    kube::{
        decode::{Kind, ObjectId},
        files::FileProblem,
        intern::Interner,
        manifests::ManifestProblems,
        objects::{Key, ObjectEvent},
        store::List,
    },
    net::IpFamily,
};

/// Objects a page: some megabytes where slices are full.
const PAGE: u32 = 200;
/// The longest line of a watch. The API server stores no object of more than 1.5 MiB.
const LINE_BYTES: usize = 16 << 20;
/// The API server is asked to end a watch after so many seconds, so that watches spread over servers.
const WATCH_SECS: u32 = 290;
/// A watch that ends sooner is no success.
const SHORT: Duration = Duration::from_secs(1);
/// Between two log lines that say the same.
const REPEAT: Duration = Duration::from_secs(60);

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// For the head of an answer.
    pub(super) answer: Duration,
    /// For the next bytes of an initial list.
    pub(super) listing: Duration,
    /// For the next bytes of a watch. The server sends a bookmark about once a minute.
    pub(super) watching: Duration,
    /// Before the first new try.
    pub(super) first: Duration,
    /// Before every later one, at most.
    pub(super) last: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            answer: Duration::from_secs(15),
            listing: Duration::from_secs(20),
            watching: Duration::from_secs(150),
            first: Duration::from_millis(200),
            last: Duration::from_secs(10),
        }
    }
}

/// Why a list or a watch ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("no answer")]
    Connect(#[source] Box<kube::Error>),
    #[error("no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    #[error("status {code}: {message}")]
    Refused { code: u16, message: String },
    #[error("the connection broke")]
    Broken(#[source] Box<kube::Error>),
    #[error("the connection ended in the middle of the list")]
    Cut,
    #[error("nothing came for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("what came is no list and no event of a watch")]
    Nonsense(#[source] serde_json::Error),
    #[error("a line of more than {LINE_BYTES} bytes came")]
    TooLong,
    #[error("the list has no resource version")]
    NoVersion,
    #[error("cannot build the request")]
    Request(#[source] kube::core::request::Error),
}

impl WatchError {
    fn code(&self) -> Option<u16> {
        match self {
            WatchError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Objects that cannot be used, with the reason.
#[derive(Clone, Debug)]
pub(super) struct Problems {
    all: Arc<Mutex<BTreeMap<ObjectId, String>>>,
    shown: ManifestProblems,
}

impl Problems {
    /// They can be read there.
    pub(super) fn new(shown: ManifestProblems) -> Problems {
        Problems {
            all: Arc::default(),
            shown,
        }
    }
    fn all(&self) -> MutexGuard<'_, BTreeMap<ObjectId, String>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn show(&self, all: &BTreeMap<ObjectId, String>) {
        let problem = |(object, message): (&ObjectId, &String)| FileProblem {
            file: object.to_string(),
            message: message.clone(),
        };
        self.shown.set(all.iter().map(problem).collect());
    }
    /// Notes what is wrong with an object, or that nothing is.
    fn set(&self, object: ObjectId, problem: Option<String>) {
        let mut all = self.all();
        if all.get(&object) == problem.as_ref() {
            return;
        }
        match problem {
            Some(problem) => {
                tracing::error!(
                    "{object}: {problem}; what was known of it stays, the others are served"
                );
                all.insert(object, problem);
            }
            None => {
                tracing::info!("{object} can be used again");
                all.remove(&object);
            }
        }
        self.show(&all);
    }
    /// Forgets objects of a kind that a complete list lacks.
    fn retain(&self, kind: Kind, keep: &HashSet<Key>) {
        let mut all = self.all();
        let before = all.len();
        all.retain(|object, _| object.kind != kind || keep.contains(&object.key));
        if all.len() != before {
            self.show(&all);
        }
    }
}

/// A list on its way.
#[derive(Default)]
struct Listing {
    events: Vec<ObjectEvent>,
    keep: HashSet<Key>,
    triggers: Vec<(IpFamily, SystemTime)>,
}

/// Failures in a row.
#[derive(Default)]
struct Trouble {
    failures: u32,
    since: Option<Instant>,
    logged: Option<(String, Instant)>,
}

/// What the watchers share.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) connection: Connection,
    pub(super) node_name: Arc<str>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) names: Arc<Mutex<Interner>>,
    pub(super) metrics: Arc<ApiMetrics>,
    pub(super) problems: Problems,
    pub(super) pace: Pace,
}

/// Lists and watches one kind of object.
pub(super) struct Watcher {
    list: List,
    common: Common,
    /// The next list may be streamed.
    has_streaming: bool,
    /// The server has said that it streams no lists; one that is only slow is asked again.
    refuses_streaming: bool,
    /// The next list may be paged.
    has_paging: bool,
    trouble: Trouble,
    /// Before it, triggers are old (semantics 23.1).
    started: SystemTime,
    newest_trigger: SystemTime,
}

impl Watcher {
    pub(super) fn new(list: List, common: Common) -> Watcher {
        let now = SystemTime::now();
        Watcher {
            list,
            common,
            has_streaming: true,
            refuses_streaming: false,
            has_paging: true,
            trouble: Trouble::default(),
            started: now,
            newest_trigger: now,
        }
    }

    fn kind(&self) -> Kind {
        match self.list {
            List::Services => Kind::Service,
            List::Slices => Kind::EndpointSlice,
            List::Node => Kind::Node,
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(mut self) {
        // Where the watch goes on; none: with a list.
        let mut version: Option<String> = None;
        loop {
            let begun = Instant::now();
            let result = self.follow(&mut version).await;
            let is_listing = version.is_none();
            match result {
                Ok(()) if begun.elapsed() >= SHORT => {}
                Ok(()) => self.pause().await,
                // The version is too old for the server's memory.
                Err(error) if error.code() == Some(410) => {
                    self.common.metrics.failed(self.list);
                    tracing::info!(kind = %self.kind(), "the watch has expired: {}", chain(&error));
                    // A list that outlives its own pages is asked for whole.
                    self.has_paging = !is_listing;
                    version = None;
                    self.pause().await;
                }
                Err(error) if is_listing && self.has_streaming && is_no_streaming(&error) => {
                    self.has_streaming = false;
                    self.refuses_streaming = error.code().is_some();
                    tracing::info!(
                        kind = %self.kind(),
                        "the API server streams no initial lists ({}); pages are read",
                        chain(&error)
                    );
                }
                Err(error) => {
                    self.common.metrics.failed(self.list);
                    self.log(&error);
                    self.pause().await;
                }
            }
        }
    }

    /// One list, where there is no version, and one watch.
    async fn follow(&mut self, version: &mut Option<String>) -> Result<(), WatchError> {
        if version.is_none() && !self.has_streaming {
            *version = Some(self.pages().await?);
        }
        self.watch(version).await
    }

    fn request(&self) -> Request {
        Request::new(match self.list {
            List::Services => "/api/v1/services",
            List::Slices => "/apis/discovery.k8s.io/v1/endpointslices",
            List::Node => "/api/v1/nodes",
        })
    }

    /// Label and field selectors (semantics 2.1, 2.2, 2.6).
    fn selectors(&self) -> (Option<String>, Option<String>) {
        match self.list {
            List::Services => (
                Some("!service.kubernetes.io/service-proxy-name".to_owned()),
                Some("spec.clusterIP!=None".to_owned()),
            ),
            List::Slices => (Some("!service.kubernetes.io/headless".to_owned()), None),
            List::Node => (
                None,
                Some(format!("metadata.name={}", self.common.node_name)),
            ),
        }
    }

    /// Reads a list page by page; gives its version.
    async fn pages(&mut self) -> Result<String, WatchError> {
        let (labels, fields) = self.selectors();
        let mut params = ListParams {
            label_selector: labels,
            field_selector: fields,
            limit: self.has_paging.then_some(PAGE),
            ..ListParams::default()
        };
        let mut listing = Listing::default();
        loop {
            let request = self.request().list(&params).map_err(WatchError::Request)?;
            let mut lines = self.open(request).await?;
            let body = lines.rest(self.common.pace.listing).await?;
            let page: Page<'_> = serde_json::from_slice(&body).map_err(WatchError::Nonsense)?;
            for item in page.items.unwrap_or_default() {
                let item = decode::present(self.list, item.get(), &mut lock(&self.common.names));
                self.listed(&mut listing, item);
            }
            match page.metadata.next.filter(|next| !next.is_empty()) {
                Some(next) => params.continue_token = Some(next.into_owned()),
                None => {
                    let version = page.metadata.resource_version.into_owned();
                    if version.is_empty() {
                        return Err(WatchError::NoVersion);
                    }
                    self.complete(listing);
                    return Ok(version);
                }
            }
        }
    }

    /// Watches from a version; without one the initial list comes first in the same stream.
    async fn watch(&mut self, version: &mut Option<String>) -> Result<(), WatchError> {
        let mut listing = version.is_none().then(Listing::default);
        let (labels, fields) = self.selectors();
        let params = WatchParams {
            label_selector: labels,
            field_selector: fields,
            timeout: Some(WATCH_SECS),
            bookmarks: true,
            send_initial_events: listing.is_some(),
        };
        let from = version.as_deref().unwrap_or_default();
        let request = self.request().watch(&params, from);
        let mut lines = self.open(request.map_err(WatchError::Request)?).await?;
        loop {
            let idle = if listing.is_some() {
                self.common.pace.listing
            } else {
                self.common.pace.watching
            };
            let Some(line) = lines.next(idle).await? else {
                return if listing.is_some() {
                    Err(WatchError::Cut)
                } else {
                    Ok(())
                };
            };
            let line: Line<'_> = serde_json::from_slice(&line).map_err(WatchError::Nonsense)?;
            let text = line.object.get();
            let item = match &*line.kind {
                "ADDED" | "MODIFIED" => {
                    decode::present(self.list, text, &mut lock(&self.common.names))
                }
                "DELETED" => decode::gone(self.list, text, &mut lock(&self.common.names)),
                "BOOKMARK" => {
                    let bookmark = decode::bookmark(text);
                    match listing.take() {
                        Some(list) if bookmark.ends_initial => {
                            if bookmark.version.is_none() {
                                return Err(WatchError::NoVersion);
                            }
                            self.complete(list);
                            *version = bookmark.version;
                        }
                        Some(list) => listing = Some(list),
                        None => {
                            self.recovered();
                            *version = bookmark.version.or(version.take());
                        }
                    }
                    continue;
                }
                "ERROR" => {
                    let refusal: Refusal = serde_json::from_str(text).unwrap_or_default();
                    return Err(WatchError::Refused {
                        code: refusal.code,
                        message: refusal.message,
                    });
                }
                other => {
                    tracing::debug!(kind = other, "an event of an unknown kind is ignored");
                    continue;
                }
            };
            match &mut listing {
                Some(listing) => self.listed(listing, item),
                None => {
                    self.recovered();
                    if item.version.is_some() {
                        version.clone_from(&item.version);
                    }
                    self.changed(item);
                }
            }
        }
    }

    /// Takes an object of a list.
    fn listed(&self, listing: &mut Listing, item: Item) {
        if self.is_foreign(&item) {
            return;
        }
        let fresh = item.trigger.filter(|(_, at)| *at > self.newest_trigger);
        listing.triggers.extend(fresh);
        match self.judge(item) {
            Ok(event) => listing.events.push(event),
            Err(key) => {
                listing.keep.insert(key);
            }
        }
    }

    /// The list is complete.
    fn complete(&mut self, listing: Listing) {
        self.has_paging = true;
        self.has_streaming = !self.refuses_streaming;
        self.common.metrics.relisted(self.list);
        self.common.problems.retain(self.kind(), &listing.keep);
        let newest = listing.triggers.iter().map(|(_, at)| *at).max();
        self.newest_trigger = newest.map_or(self.newest_trigger, |at| at.max(self.newest_trigger));
        tracing::info!(kind = %self.kind(), objects = listing.events.len(), "list complete");
        self.common
            .mailbox
            .list(self.list, listing.events, listing.keep, listing.triggers);
        self.recovered();
    }

    /// Takes an object of a watch.
    fn changed(&mut self, item: Item) {
        if self.is_foreign(&item) {
            return;
        }
        let trigger = item.trigger.filter(|(_, at)| *at >= self.started);
        if let Some((_, at)) = trigger {
            self.newest_trigger = self.newest_trigger.max(at);
        }
        if let Ok(event) = self.judge(item) {
            self.common.mailbox.change(event, trigger);
        }
    }

    /// Another Node, from a server that knows no field selectors.
    fn is_foreign(&self, item: &Item) -> bool {
        self.list == List::Node && item.key.name != self.common.node_name
    }

    /// What an object says, or its key where it cannot be used.
    fn judge(&self, item: Item) -> Result<ObjectEvent, Key> {
        let object = ObjectId {
            kind: self.kind(),
            key: item.key,
        };
        match item.event {
            Ok(event) => {
                self.common.problems.set(object, None);
                Ok(event)
            }
            Err(error) => {
                self.common.metrics.malformed(self.list);
                let key = object.key.clone();
                self.common.problems.set(object, Some(error.to_string()));
                Err(key)
            }
        }
    }

    /// Sends a request and waits for the head of its answer.
    async fn open(&self, request: http::Request<Vec<u8>>) -> Result<Lines, WatchError> {
        let answer = self.common.connection.client.send(request.map(Body::from));
        let response = match timeout(self.common.pace.answer, answer).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                self.common.metrics.answered("GET", None);
                return Err(WatchError::Connect(Box::new(error)));
            }
            Err(_elapsed) => {
                self.common.metrics.answered("GET", None);
                return Err(WatchError::NoAnswer(self.common.pace.answer));
            }
        };
        let status = response.status();
        self.common.metrics.answered("GET", Some(status.as_u16()));
        self.common.metrics.heard();
        let mut lines = Lines {
            body: response.into_body(),
            buffer: BytesMut::new(),
            scanned: 0,
            metrics: self.common.metrics.clone(),
        };
        if status.is_success() {
            return Ok(lines);
        }
        let body = lines
            .rest(self.common.pace.answer)
            .await
            .unwrap_or_default();
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let message = if refusal.message.is_empty() {
            status.canonical_reason().unwrap_or_default().to_owned()
        } else {
            refusal.message
        };
        Err(WatchError::Refused {
            code: status.as_u16(),
            message,
        })
    }

    /// Waits before the next try: longer each time, and not as long as others do.
    async fn pause(&mut self) {
        let doubled = self.common.pace.first * (1 << self.trouble.failures.min(16));
        self.trouble.failures = self.trouble.failures.saturating_add(1);
        let most = doubled.min(self.common.pace.last);
        // A hasher of its own seeds itself at random.
        let random = RandomState::new().hash_one(0) % 512;
        let part = 512 + u32::try_from(random).unwrap_or(0);
        sleep(most * part / 1024).await;
    }

    fn log(&mut self, error: &WatchError) {
        self.trouble.since.get_or_insert_with(Instant::now);
        let message = chain(error);
        let said = self.trouble.logged.as_ref();
        if said.is_some_and(|(said, at)| *said == message && at.elapsed() < REPEAT) {
            return;
        }
        let advice = if error.code() == Some(403) {
            "; this account may not list and watch them: look at its ClusterRole"
        } else if error.code() == Some(401) {
            "; the credentials are not accepted"
        } else if self.common.connection.is_cluster_ip && error.code().is_none() {
            "; the address is the ClusterIP of Service default/kubernetes, which somebody has to serve: name a real one with --apiserver"
        } else {
            ""
        };
        tracing::warn!(
            server = self.common.connection.address,
            kind = %self.kind(),
            "cannot list and watch: {message}{advice}; what is known stays served, the next try follows within {} s",
            self.common.pace.last.as_secs()
        );
        self.trouble.logged = Some((message, Instant::now()));
    }

    /// The API server has said something useful.
    fn recovered(&mut self) {
        let trouble = mem::take(&mut self.trouble);
        if let Some(since) = trouble.since {
            tracing::info!(
                server = self.common.connection.address,
                kind = %self.kind(),
                silent_s = since.elapsed().as_secs(),
                "the API server is heard again"
            );
        }
    }
}

/// Whether the server, or something before it, cannot stream an initial list.
fn is_no_streaming(error: &WatchError) -> bool {
    match error {
        WatchError::Refused { code, .. } => matches!(code, 400 | 405 | 415 | 422),
        // A server that does not know the parameter sends objects, but never says that these are all.
        WatchError::Silent(_) => true,
        _ => false,
    }
}

fn lock(names: &Mutex<Interner>) -> MutexGuard<'_, Interner> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of an answer.
struct Lines {
    body: Body,
    buffer: BytesMut,
    /// Bytes of the buffer without a line's end.
    scanned: usize,
    metrics: Arc<ApiMetrics>,
}

impl Lines {
    /// The next line without its end; `None`: the body has ended, whatever is left of a line.
    async fn next(&mut self, idle: Duration) -> Result<Option<BytesMut>, WatchError> {
        loop {
            let fresh = &self.buffer[self.scanned..];
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.scanned + at);
                self.buffer.advance(1);
                self.scanned = 0;
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.scanned > LINE_BYTES {
                return Err(WatchError::TooLong);
            }
            if !self.fill(idle).await? {
                return Ok(None);
            }
        }
    }

    /// Everything that is still to come.
    async fn rest(&mut self, idle: Duration) -> Result<BytesMut, WatchError> {
        while self.fill(idle).await? {}
        Ok(mem::take(&mut self.buffer))
    }

    async fn fill(&mut self, idle: Duration) -> Result<bool, WatchError> {
        let frame = match timeout(idle, self.body.frame()).await {
            Err(_elapsed) => return Err(WatchError::Silent(idle)),
            Ok(None) => return Ok(false),
            Ok(Some(frame)) => frame.map_err(|error| WatchError::Broken(Box::new(error)))?,
        };
        if let Some(data) = frame.data_ref() {
            self.metrics.heard();
            self.buffer.extend_from_slice(data);
        }
        Ok(true)
    }
}
