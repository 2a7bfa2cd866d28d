//! Programs that tests, demo and benchmark call.
use super::Steps;
use anyhow::Result;
pub(super) fn install(_steps: &Steps) -> Result<()> {
    Ok(())
}
