//! Session affinity `ClientIP` → seconds.

use crate::kube::objects::Service;

/// The API's default of `clientIP.timeoutSeconds`.
const DEFAULT_SECS: u32 = 10_800;

/// Seconds that a client keeps its backend; 0 without affinity (semantics 4.11).
pub(crate) fn secs(service: &Service) -> u32 {
    match service.client_ip_affinity {
        None => 0,
        Some(timeout) => timeout
            .and_then(|secs| u32::try_from(secs).ok())
            .filter(|secs| *secs > 0)
            .unwrap_or(DEFAULT_SECS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube::testing::service;

    #[test]
    fn the_timeout_counts_only_with_client_ip_affinity() {
        // semantics 4.11, 13.8
        for (given, wanted) in [
            (None, 0),
            (Some(None), 10_800),
            (Some(Some(1)), 1),
            (Some(Some(86_400)), 86_400),
        ] {
            let mut service = service("web");
            service.client_ip_affinity = given;
            assert_eq!(secs(&service), wanted, "{given:?}");
        }
    }
}
