//! The thread that answers and writes while the loop works: health, metrics, and the state file, at most once a
//! second and only when something changed. It answers from before the first state is in the maps.

use std::{
    io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use tokio::{sync::oneshot, time::sleep};

use crate::{
    clock::rfc3339,
    config::Config,
    error::chain,
    health::{self, Addresses, Shared},
    telemetry::{
        pages::Pages,
        state::{ManifestProblem, State, StateError, StateFile},
    },
};

/// Between two files, and between two looks for problems of manifests.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Reporter {
    shared: Arc<Shared>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Reporter {
    pub(super) fn start(config: &Config, flags: Vec<(String, String)>) -> io::Result<Reporter> {
        let shared: Arc<Shared> = Arc::default();
        shared.pages.get_or_init(|| Pages {
            config: config.effective.clone(),
            flags,
            started: SystemTime::now(),
        });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut writer = Writer::new(&config.bpffs, &config.node_name, shared.clone());
        let served = shared.clone();
        let addresses = Addresses {
            health: config.healthz,
            metrics: config.metrics,
            hard_fail: config.bind_hard_fail,
        };
        let thread = thread::Builder::new()
            .name("telemetry".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::spawn(health::serve(addresses, served));
                    tokio::select! {
                        () = writer.follow() => {}
                        // An error means that the other side is gone: the agent failed.
                        _ = stopped => {}
                    }
                    writer.end();
                });
            })?;
        Ok(Reporter {
            shared,
            stop,
            thread,
        })
    }

    /// What the loop tells it.
    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Writes the last state and ends.
    pub(super) fn stop(self) {
        // It may have ended by itself; the join tells.
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the thread of health, metrics and state file has failed");
        }
    }
}

/// Keeps the state file.
struct Writer {
    file: StateFile,
    /// Held as long as the agent lives.
    _lock: Option<std::fs::File>,
    shared: Arc<Shared>,
    state: State,
    /// The problems that were written last.
    problems: Vec<ManifestProblem>,
    has_failed: bool,
}

impl Writer {
    fn new(bpffs: &Path, node: &str, shared: Arc<Shared>) -> Writer {
        let file = StateFile::of(bpffs);
        let mut writer = Writer {
            _lock: None,
            shared,
            state: State {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                node: node.to_owned(),
                pid: std::process::id(),
                started_at: rfc3339(Some(SystemTime::now())),
                ..State::default()
            },
            problems: Vec::new(),
            has_failed: false,
            file,
        };
        match writer.file.lock() {
            Ok(Some(lock)) => writer._lock = Some(lock),
            Ok(None) => {
                tracing::warn!(bpffs = %bpffs.display(), "another agent runs with the same bpffs: both write the same maps; stop one")
            }
            Err(error) => writer.failed(&error),
        }
        writer
    }

    async fn follow(&mut self) {
        loop {
            tokio::select! {
                () = self.shared.board.changed() => {}
                // Problems of manifests come and go without a word.
                () = sleep(WRITE_INTERVAL) => {}
            }
            // Nothing is known before; what an earlier agent wrote is still right.
            if self.shared.is_ready() && self.is_changed() {
                self.write();
                sleep(WRITE_INTERVAL).await;
            }
        }
    }

    fn is_changed(&mut self) -> bool {
        let problems = self.shared.board.manifest_problems();
        let differ = problems != self.problems;
        self.problems = problems;
        self.shared.board.take_changed() || differ || !self.state.is_ready
    }

    fn end(&mut self) {
        if self.shared.is_ready() {
            self.state.stopped_at = Some(rfc3339(Some(SystemTime::now())));
            self.write();
        }
    }

    fn write(&mut self) {
        self.state.is_ready = true;
        self.state.written_at = rfc3339(Some(SystemTime::now()));
        self.shared.board.fill(&mut self.state);
        match self.file.write(&self.state) {
            Ok(()) => self.has_failed = false,
            Err(error) => self.failed(&error),
        }
        // Names are copied anew for each file.
        self.state.services = Vec::new();
    }

    /// Says once that commands will show ids.
    fn failed(&mut self, error: &StateError) {
        if !std::mem::replace(&mut self.has_failed, true) {
            tracing::warn!("{}; commands will not know names of Services", chain(error));
        }
    }
}
