//! Why flags, environment or files cannot be used.

/// Why the flags cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// A value cannot be read.
    #[error("--{flag} {value}: {problem}")]
    Value {
        /// The flag without its dashes.
        flag: &'static str,
        /// What was given.
        value: String,
        /// What is wrong and what to write.
        problem: String,
    },
    /// Something needed is missing.
    #[error("{0}")]
    Missing(&'static str),
}

pub(super) fn invalid(
    flag: &'static str,
    value: impl Into<String>,
    problem: impl ToString,
) -> ConfigError {
    ConfigError::Value {
        flag,
        value: value.into(),
        problem: problem.to_string(),
    }
}
