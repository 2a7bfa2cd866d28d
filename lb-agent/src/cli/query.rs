//! Flags of a question → the pinned maps, and the state file beside them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::table::Output;
use crate::{
    bpf::maps::{Maps, pin_dir},
    config::DEFAULT_BPFFS,
    telemetry::state::{Names, Running, State, StateFile},
};

/// Where the pins are.
#[derive(Args, Clone, Debug)]
pub(super) struct Pins {
    /// Mount of the bpf filesystem that the agent uses
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
}

/// How to answer.
#[derive(Args, Clone, Debug)]
pub(super) struct Query {
    #[command(flatten)]
    pub(super) pins: Pins,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// A question about some Services.
#[derive(Args, Clone, Debug)]
pub(super) struct Filtered {
    #[command(flatten)]
    pub(super) query: Query,
    /// Only Services of this namespace
    #[arg(short, long, value_name = "NS")]
    pub namespace: Option<String>,
}

/// What every command reads: the pinned maps, and the state file beside them.
#[derive(Debug)]
pub(super) struct View {
    /// The maps.
    pub maps: Maps,
    /// What the agent wrote; `None`: no file, or none that can be read.
    pub state: Option<State>,
    /// Names of service ports.
    pub names: Names,
    /// Whether the agent runs.
    pub running: Running,
    /// How to answer.
    pub output: Output,
}

impl Query {
    /// Opens everything. Without pinned maps there is nothing to show; without a state file only names are missing.
    pub(super) fn open(&self) -> Result<View> {
        let maps = Maps::open_pinned(&pin_dir(&self.pins.bpffs))?;
        let file = StateFile::of(&self.pins.bpffs);
        let state = file.read().unwrap_or_else(|error| {
            eprintln!("lb-agent: {:#}", anyhow::Error::from(error));
            None
        });
        Ok(View {
            maps,
            names: Names::new(state.as_ref()),
            state,
            running: file.running(),
            output: self.output,
        })
    }
}

impl View {
    /// Says on standard error that ids stand for names.
    pub(super) fn explain_ids(&self) {
        if self.state.is_none() {
            eprintln!(
                "names of Services are not known: the agent's state file is missing; ids are shown, an agent that runs writes it"
            );
        }
    }
}

impl Filtered {
    pub(super) fn open(&self) -> Result<View> {
        let view = self.query.open()?;
        if self.namespace.is_some() && view.state.is_none() {
            anyhow::bail!(
                "names of Services are not known: the agent's state file is missing; leave --namespace out"
            );
        }
        view.explain_ids();
        Ok(view)
    }
}
