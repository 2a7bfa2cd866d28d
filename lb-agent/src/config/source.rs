//! Where Services come from: flags → a directory, or a way to the API server.

use std::path::PathBuf;

use super::{
    error::{ConfigError, invalid},
    flags::RunArgs,
};
use crate::kube::api::ApiAccess;

/// Where Services come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ObjectSource {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// The API server.
    Api(ApiAccess),
}

impl RunArgs {
    pub(super) fn source(&self) -> Result<ObjectSource, ConfigError> {
        let Some(manifests) = &self.manifests else {
            return Ok(ObjectSource::Api(ApiAccess {
                kubeconfig: self.kubeconfig.clone(),
                server: self.apiserver.clone(),
            }));
        };
        if !manifests.is_dir() {
            return Err(invalid(
                "manifests",
                manifests.display().to_string(),
                "is no directory; create it, it may be empty",
            ));
        }
        Ok(ObjectSource::Manifests(manifests.clone()))
    }
}
