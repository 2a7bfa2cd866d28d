//! The one thing that the agent's loop reads objects from: a directory of manifests, or the API
//! server.

use std::io;

use super::{
    api::ApiSource,
    batch::Batch,
    manifests::{Follower, ManifestError, ManifestProblems, ManifestSource},
    objects::ObjectEvent,
};

/// Where objects come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// A directory, not read yet.
    Manifests(Box<ManifestSource>),
    /// A directory that is followed.
    Following(Follower),
    /// The API server.
    Api(ApiSource),
}

/// Why a source ends before its first state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    #[error("cannot follow the manifests")]
    Thread(#[source] io::Error),
    /// The thread that reads the API has ended.
    #[error("the API server is not watched any more")]
    Ended,
}

impl Source {
    /// The first complete state. Waits for it for as long as it takes; may be dropped and asked again.
    pub(crate) async fn initial(&mut self) -> Result<Vec<ObjectEvent>, SourceError> {
        match self {
            Source::Manifests(source) => Ok(source.initial()?),
            Source::Following(_) => Ok(Vec::new()),
            Source::Api(source) => source.initial().await.ok_or(SourceError::Ended),
        }
    }

    /// From here on changes are delivered. Gives the place where the problems of the source stand.
    pub(crate) fn follow(self) -> Result<(Source, ManifestProblems), SourceError> {
        match self {
            Source::Manifests(source) => {
                let follower = source.follow().map_err(SourceError::Thread)?;
                let problems = follower.problems.clone();
                Ok((Source::Following(follower), problems))
            }
            Source::Following(follower) => {
                let problems = follower.problems.clone();
                Ok((Source::Following(follower), problems))
            }
            Source::Api(source) => {
                let problems = source.problems();
                Ok((Source::Api(source), problems))
            }
        }
    }

    /// What changed, coalesced; `None`: nothing more will come. May be dropped and asked again.
    pub(crate) async fn next(&mut self) -> Option<Batch> {
        match self {
            Source::Manifests(_) => None,
            Source::Following(follower) => {
                let mut changes = follower.events.recv().await?;
                while let Ok(more) = follower.events.try_recv() {
                    changes.extend(more);
                }
                Some(Batch {
                    changes,
                    ..Batch::default()
                })
            }
            Source::Api(source) => source.next().await,
        }
    }
}
