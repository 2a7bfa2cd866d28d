//! `lb-agent cleanup`: detaches and unpins everything of ours and tells how much it was. Nothing there is success, too.

use std::path::Path;

use anyhow::Result;

use super::table::print_line;
use crate::{agent::cleanup, telemetry::state::StateFile};

/// Removes everything and tells how much it was.
pub(super) fn cleanup(bpffs: &Path) -> Result<()> {
    let removed = cleanup::cleanup(bpffs)?;
    StateFile::of(bpffs).remove()?;
    print_line(&format!(
        "removed {} attachments and {} pins",
        removed.attachments, removed.pins
    ))
}
