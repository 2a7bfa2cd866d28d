//! The agent's log: standard error, as text or JSON. `RUST_LOG` filters it.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, util::TryInitError};

use crate::config::LogFormat;

/// Target of the dataplane's events in the log: `RUST_LOG=info,lb_agent::events=debug` shows them.
pub(crate) const EVENTS: &str = "lb_agent::events";

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// `RUST_LOG` cannot be read.
    #[error(
        "RUST_LOG is no filter; write a level such as `debug`, or `info,lb_agent::events=debug`"
    )]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// There is one already.
    #[error("cannot start the log")]
    Start(#[source] TryInitError),
}

/// Starts the log. Once a process.
pub(crate) fn init(format: LogFormat) -> Result<(), LogError> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(text).map_err(LogError::Filter)?,
        // The client logs every request that fails, beside the watcher that says what follows from it.
        _ => EnvFilter::new("info,kube_client::client::builder=off"),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    use tracing_subscriber::util::SubscriberInitExt as _;
    match format {
        LogFormat::Text => log
            .with_ansi(std::io::stderr().is_terminal())
            .finish()
            .try_init(),
        LogFormat::Json => log.json().finish().try_init(),
    }
    .map_err(LogError::Start)
}

/// Whether the log wants the dataplane's events. Only then programs write them.
pub(crate) fn wants_events() -> bool {
    tracing::enabled!(target: EVENTS, tracing::Level::DEBUG)
}
