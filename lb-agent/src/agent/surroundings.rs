//! What the agent depends on and nobody tells it of: settings of the kernel that it makes, whether conntrack is loaded, and
//! the file of `--config`.

use anyhow::{Context as _, Result, bail};

use super::parts::Agent;
use crate::{
    config::{Config, conntrack, file::Look},
    error::chain,
    node::reserved,
};

/// What the flags ask of the process and the kernel. A node without Services would be worse than one where this fails
/// (semantics 24.9, 24.11). Gives the settings of a conntrack that is not loaded yet.
pub(super) fn prepare(config: &Config) -> Vec<conntrack::Setting> {
    if let Some(score) = config.oom_score_adj
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string())
    {
        tracing::error!(score, "--oom-score-adj is not applied: {error}");
    }
    let unset = set_conntrack(&config.conntrack);
    if !unset.is_empty() {
        tracing::info!("the kernel's conntrack is not loaded; it is set as asked when it is");
    }
    unset
}

/// Sets what can be set; gives back what the kernel does not have now.
fn set_conntrack(settings: &[conntrack::Setting]) -> Vec<conntrack::Setting> {
    let mut absent = Vec::new();
    if settings.is_empty() {
        return absent;
    }
    let written = conntrack::write(settings, &conntrack::proc_sys(), conntrack::host_cpus());
    let unset = written.unwrap_or_else(|error| {
        tracing::error!("conntrack is not set: {error}");
        Vec::new()
    });
    for unset in unset {
        if unset.is_absent() {
            absent.push(unset.setting);
        } else {
            tracing::error!("{}", chain(&unset));
        }
    }
    absent
}

/// `--init-only`: everything that needs a writable `/proc/sys` (semantics 25.6). Here what cannot be set is an error: it is
/// all that was asked for.
pub(crate) fn init_only(config: &Config) -> Result<()> {
    for unset in conntrack::write(
        &config.conntrack,
        &conntrack::proc_sys(),
        conntrack::host_cpus(),
    )? {
        if !unset.is_absent() {
            return Err(unset.into());
        }
        tracing::warn!("{}", chain(&unset));
    }
    // The default leaves the ephemeral ports to the host.
    if let Some(ports) = &config.snat_ports {
        reserved::reserve(ports).context(
            "cannot keep the ports for source translation out of the host's ephemeral ports",
        )?;
    }
    Ok(())
}

impl Agent {
    /// What changes without anybody saying so: whether conntrack is loaded, and the file of `--config`. Another file takes
    /// effect when the agent is started anew, which whoever runs it does (semantics 24.1). One that no agent could start
    /// with would leave the node without changes, so it is only told.
    pub(super) async fn follow_surroundings(&mut self) -> Result<()> {
        self.conntrack = set_conntrack(&self.conntrack);
        let Some(file) = &mut self.config.file else {
            return Ok(());
        };
        match file.look(&self.args).await {
            Look::Same => Ok(()),
            Look::Changed(path) => bail!(
                "{} has changed: start the agent again to use it; the dataplane stays attached",
                path.display()
            ),
            Look::Refused(why) => {
                tracing::error!("the changed configuration is not used: {why}");
                Ok(())
            }
        }
    }
}
