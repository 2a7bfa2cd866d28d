//! Connections → questions on each of them all the time, and how many were answered.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::Stream;

/// What became of continuous traffic.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// Requests answered.
    pub answered: usize,
    /// Requests that failed, each with the server that used to answer.
    pub failed: Vec<String>,
    /// Longest time between two answers of one connection.
    pub longest_gap: Duration,
    /// Requests that another server answered than the first time.
    pub moved: Vec<String>,
}

/// Connections that ask without pause on a thread until stopped.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<Report>>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Starts asking over these connections, one after the other; a connection that fails once is
    /// counted and not used again.
    pub fn start(mut streams: Vec<Stream>, timeout: Duration) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Mutex::new(Report::default()));
        let (stopping, shared) = (Arc::clone(&stop), Arc::clone(&report));
        let thread = thread::spawn(move || {
            let mut servers: Vec<Option<String>> = vec![None; streams.len()];
            let mut last: Vec<Instant> = vec![Instant::now(); streams.len()];
            let mut alive = vec![true; streams.len()];
            while !stopping.load(Ordering::Relaxed) && alive.contains(&true) {
                for (i, stream) in streams.iter_mut().enumerate() {
                    if !alive[i] {
                        continue;
                    }
                    let result = stream.ask(timeout);
                    let mut report = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(answer) => {
                            report.answered += 1;
                            report.longest_gap = report.longest_gap.max(last[i].elapsed());
                            last[i] = Instant::now();
                            match &servers[i] {
                                Some(first) if *first != answer.server => {
                                    report.moved.push(format!("{first} → {}", answer.server));
                                }
                                Some(_) => {}
                                None => servers[i] = Some(answer.server),
                            }
                        }
                        Err(outcome) => {
                            alive[i] = false;
                            let server = servers[i].clone().unwrap_or_default();
                            report
                                .failed
                                .push(format!("{} of {server}: {outcome:?}", stream.peer()));
                        }
                    }
                }
            }
        });
        Traffic {
            stop,
            report,
            thread: Some(thread),
        }
    }

    /// What happened so far.
    pub fn report(&self) -> Report {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until this many more requests have been answered, or one has failed.
    pub fn wait_more(&self, requests: usize) -> Result<()> {
        let start = self.report().answered;
        crate::wait::until("traffic flows", Duration::from_secs(20), || {
            let report = self.report();
            match report.answered >= start + requests || !report.failed.is_empty() {
                true => Ok(()),
                false => Err(anyhow!("{} requests answered", report.answered - start)),
            }
        })
    }

    /// Ends the traffic.
    pub fn stop(mut self) -> Report {
        self.join();
        self.report()
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("traffic panicked");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.join();
    }
}
