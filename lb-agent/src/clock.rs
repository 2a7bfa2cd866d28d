//! Wall-clock time → text as Kubernetes writes it.

use std::time::SystemTime;

use jiff::Timestamp;

/// RFC 3339 in UTC, whole seconds; year 1 for "never", as Kubernetes writes it.
pub(crate) fn rfc3339(at: Option<SystemTime>) -> String {
    at.and_then(|at| Timestamp::try_from(at).ok())
        .filter(|at| *at >= Timestamp::UNIX_EPOCH)
        .map_or_else(
            || "0001-01-01T00:00:00Z".to_owned(),
            |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(None), "0001-01-01T00:00:00Z");
        assert_eq!(
            rfc3339(Some(UNIX_EPOCH + Duration::from_secs(951_782_399))),
            "2000-02-28T23:59:59Z"
        );
        assert_eq!(
            rfc3339(Some(UNIX_EPOCH + Duration::from_millis(951_782_400_999))),
            "2000-02-29T00:00:00Z"
        );
    }
}
