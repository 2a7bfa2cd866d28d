//! The sources of `core`, which the BPF target builds for itself.
use super::{Rustc, Steps};
use anyhow::Result;
pub(super) fn install(_steps: &Steps, _rustc: &Rustc) -> Result<()> {
    Ok(())
}
