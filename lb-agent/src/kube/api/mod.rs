//! The API server → object events. A thread of its own lists and watches Services, EndpointSlices
//! and this agent's Node (semantics 2), reduces every object as it arrives and lays it into a
//! mailbox. Whatever happens to the API server, what was known stays.

mod connect;
mod decode;
pub(crate) mod events;
mod mailbox;
pub(crate) mod metrics;
mod watch;

use std::{io, sync::Arc, thread, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use self::metrics::ApiMetrics;
use super::{batch::Batch, manifests::ManifestProblems, objects::ObjectEvent, store::List};

pub(crate) use connect::{AccessError, ApiAccess};
use events::EventWriter;
use mailbox::{First, Mailbox};
use watch::{Common, Pace, Problems, Watcher};

/// This long the first state waits for this node's addresses (semantics 25.1).
const ADDRESSES: Duration = Duration::from_secs(30);

/// Why the API server cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// It is not clear how to reach it.
    #[error("cannot tell how to reach the API server")]
    Access(#[from] AccessError),
    /// No thread or runtime.
    #[error("cannot start the thread that watches the API server")]
    Thread(#[source] io::Error),
}

/// The API server, watched.
#[derive(Debug)]
pub(crate) struct ApiSource {
    mailbox: Arc<Mailbox>,
    problems: ManifestProblems,
    events: EventWriter,
    /// The end of the wait for addresses, once everything else is there.
    patience: Option<Instant>,
    /// The thread ends when this is dropped.
    #[expect(dead_code, reason = "only its drop counts")]
    alive: Option<oneshot::Sender<()>>,
}

impl ApiSource {
    /// Starts to watch. Fails only where the access makes no sense: a server that does not answer is
    /// asked again for as long as it takes.
    pub(crate) fn start(
        access: &ApiAccess,
        node_name: &str,
        metrics: Arc<ApiMetrics>,
    ) -> Result<ApiSource, ApiError> {
        Self::start_with(access, node_name, metrics, Pace::default())
    }

    fn start_with(
        access: &ApiAccess,
        node_name: &str,
        metrics: Arc<ApiMetrics>,
        pace: Pace,
    ) -> Result<ApiSource, ApiError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ApiError::Thread)?;
        let source = ApiSource {
            mailbox: Arc::default(),
            problems: ManifestProblems::default(),
            events: EventWriter::default(),
            patience: None,
            alive: None,
        };
        let (mailbox, problems) = (
            source.mailbox.clone(),
            Problems::new(source.problems.clone()),
        );
        let (events, queue) = EventWriter::new(metrics.clone());
        let (alive, ended) = oneshot::channel();
        // The caller may drive a runtime of its own, in which no other one can be entered.
        let (report, started) = std::sync::mpsc::channel();
        let (access, node_name) = (access.clone(), Arc::from(node_name));
        let work = async move {
            let connection = match connect::connect(&access).await {
                Ok(connection) => connection,
                Err(error) => return drop(report.send(Err(error))),
            };
            metrics.connect(&connection.host);
            tracing::info!(server = connection.address, "watching the API server");
            drop(report.send(Ok(())));
            let client = connection.client.clone();
            let common = Common {
                connection,
                node_name,
                mailbox,
                names: Arc::default(),
                metrics,
                problems,
                pace,
            };
            let mut tasks = JoinSet::new();
            for list in [List::Services, List::Slices, List::Node] {
                tasks.spawn(Watcher::new(list, common.clone()).run());
            }
            let (node_name, metrics) = (common.node_name.clone(), common.metrics.clone());
            tasks.spawn(events::write(client, node_name, queue, metrics));
            tokio::select! {
                _dropped = ended => {}
                // No task ends by itself.
                _ended = tasks.join_next() => {}
            }
            common.mailbox.close();
        };
        thread::Builder::new()
            .name("api".to_owned())
            .spawn(move || runtime.block_on(work))
            .map_err(ApiError::Thread)?;
        started
            .recv()
            .map_err(|_ended| ApiError::Thread(io::Error::other("it ended at once")))??;
        Ok(ApiSource {
            events,
            alive: Some(alive),
            ..source
        })
    }

    /// Objects that cannot be used.
    pub(crate) fn problems(&self) -> ManifestProblems {
        self.problems.clone()
    }

    /// Writes Events on objects.
    pub(crate) fn events(&self) -> EventWriter {
        self.events.clone()
    }

    /// The first complete state; `None`: it will not come.
    pub(crate) async fn initial(&mut self) -> Option<Vec<ObjectEvent>> {
        loop {
            let filled = self.mailbox.filled.notified();
            match self.mailbox.first() {
                First::Complete => break,
                First::Incomplete if self.mailbox.is_closed() => return None,
                First::Incomplete => filled.await,
                First::Addresses => {
                    let patience = *self
                        .patience
                        .get_or_insert_with(|| Instant::now() + ADDRESSES);
                    if timeout_at(patience, filled).await.is_err() {
                        tracing::warn!(
                            "the API knows no address of this node; those of its default routes are taken"
                        );
                        break;
                    }
                }
            }
        }
        let batch = self.mailbox.take()?;
        let listed = batch.lists.into_iter().flat_map(|relist| relist.events);
        Some(listed.chain(batch.changes).collect())
    }

    /// What changed; `None`: nothing more will come.
    pub(crate) async fn next(&mut self) -> Option<Batch> {
        loop {
            let filled = self.mailbox.filled.notified();
            if let Some(batch) = self.mailbox.take() {
                return Some(batch);
            }
            if self.mailbox.is_closed() {
                return None;
            }
            filled.await;
        }
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
