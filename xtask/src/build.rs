//! Sources → the agent with the BPF programs inside, below `target/`.

use anyhow::Result;

use crate::setup::Tools;
use crate::{build_ebpf, command};

/// Builds the BPF programs, then the agent that embeds them.
pub(crate) fn build(tools: &Tools) -> Result<()> {
    build_ebpf::build(tools, &["lb"])?;
    command::run(command::cargo().args(["build", "--release", "--package", "lb-agent"]))
}
