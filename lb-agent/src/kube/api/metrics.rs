//! What the agent asks of the API server and how it fares, for `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{exposition::Text, kube::store::List};

#[derive(Debug, Default)]
struct Inner {
    /// Where requests go; none: there is no API server.
    host: Option<String>,
    /// By method and status code; `<error>` where no answer came, as client-go writes it.
    requests: BTreeMap<(&'static str, String), u64>,
    relists: [u64; 3],
    errors: [u64; 3],
    malformed: [u64; 3],
    heard: Option<Instant>,
    events: [u64; 3],
}

/// What became of an Event that the agent wanted to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EventFate {
    /// It is in the API.
    Written,
    /// The API server did not take it.
    Failed,
    /// There were too many.
    Dropped,
}

/// Requests to the API server.
#[derive(Debug, Default)]
pub(crate) struct ApiMetrics(Mutex<Inner>);

impl ApiMetrics {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// There is an API server, and this is its address. Silence counts from here.
    pub(crate) fn connect(&self, host: &str) {
        let mut inner = self.inner();
        inner.host = Some(host.to_owned());
        inner.heard = Some(Instant::now());
    }
    /// A request was answered, or not.
    pub(crate) fn answered(&self, method: &'static str, code: Option<u16>) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        *self.inner().requests.entry((method, code)).or_default() += 1;
    }
    /// Something came from the API server.
    pub(crate) fn heard(&self) {
        self.inner().heard = Some(Instant::now());
    }
    /// A complete list arrived.
    pub(crate) fn relisted(&self, list: List) {
        self.inner().relists[list as usize] += 1;
    }
    /// A list or watch failed.
    pub(crate) fn failed(&self, list: List) {
        self.inner().errors[list as usize] += 1;
    }
    /// An object could not be used.
    pub(crate) fn malformed(&self, list: List) {
        self.inner().malformed[list as usize] += 1;
    }
    /// An Event was dealt with.
    pub(crate) fn event(&self, fate: EventFate) {
        self.inner().events[fate as usize] += 1;
    }

    /// Events that are dealt with, whatever became of them.
    pub(crate) fn events_done(&self) -> u64 {
        self.inner().events.iter().sum()
    }

    /// Appends the rows; none where there is no API server.
    pub(crate) fn render(&self, out: &mut Text) {
        let inner = self.inner();
        let Some(host) = inner.host.as_deref() else {
            return;
        };
        // The name and labels of client-go, which dashboards of kube-proxy ask for (semantics 23.2).
        let name = "rest_client_requests_total";
        out.head(name, "counter", "Requests to the API server by answer.");
        for ((method, code), count) in &inner.requests {
            let labels = [("code", code.as_str()), ("method", method), ("host", host)];
            out.row(name, &labels, count);
        }
        let counts = [
            (
                "lb_api_lists_total",
                "Complete lists that the API server gave.",
                inner.relists,
            ),
            (
                "lb_api_errors_total",
                "Lists and watches that failed.",
                inner.errors,
            ),
            (
                "lb_api_malformed_objects_total",
                "Objects of the API that could not be used.",
                inner.malformed,
            ),
        ];
        for (name, help, counts) in counts {
            out.head(name, "counter", help);
            let kinds = ["Service", "EndpointSlice", "Node"];
            for (kind, count) in kinds.into_iter().zip(counts) {
                out.row(name, &[("kind", kind)], count);
            }
        }
        let name = "lb_api_silence_seconds";
        out.head(
            name,
            "gauge",
            "Time since the API server was last heard; while it is quiet it sends something about once a minute.",
        );
        let silence = inner
            .heard
            .map_or(0.0, |heard| heard.elapsed().as_secs_f64());
        out.row(name, &[], silence);
        let name = "lb_api_events_total";
        out.head(name, "counter", "Events on objects by what became of them.");
        for (fate, count) in ["written", "failed", "dropped"]
            .into_iter()
            .zip(inner.events)
        {
            out.row(name, &[("result", fate)], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(metrics: &ApiMetrics) -> String {
        let mut out = Text::default();
        metrics.render(&mut out);
        out.into_string()
    }

    #[test]
    fn without_an_api_server_there_are_no_rows() {
        assert_eq!(rendered(&ApiMetrics::default()), "");
    }

    #[test]
    fn requests_count_under_the_name_that_dashboards_ask_for() {
        // semantics 23.2
        let metrics = ApiMetrics::default();
        metrics.connect("192.0.2.1:6443");
        metrics.answered("GET", Some(200));
        metrics.answered("GET", None);
        metrics.failed(List::Slices);
        let out = rendered(&metrics);
        for row in [
            "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"192.0.2.1:6443\"} 1\n",
            "rest_client_requests_total{code=\"<error>\",method=\"GET\",host=\"192.0.2.1:6443\"} 1\n",
            "lb_api_errors_total{kind=\"EndpointSlice\"} 1\n",
            "lb_api_silence_seconds 0",
        ] {
            assert!(out.contains(row), "{row} in {out}");
        }
    }
}
