//! An error → one line of text, its causes included: for the log, for Events and for whoever asks over HTTP.

use std::error::Error;

/// An error with its causes, in one line. A cause whose text the last one ends with is not repeated.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Step {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn a_cause_stands_once() {
        let step = |text| Step {
            text,
            source: io::Error::other("no room"),
        };
        assert_eq!(chain(&step("cannot write")), "cannot write: no room");
        assert_eq!(chain(&step("write: no room")), "write: no room");
    }
}
