//! Durations → counts by upper bound, as Prometheus reads them.

use std::time::Duration;

use crate::exposition::Text;

/// Observations in buckets.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    bounds: Vec<f64>,
    /// One more than bounds: the last has no bound.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    pub(super) fn new(bounds: Vec<f64>) -> Histogram {
        Histogram {
            counts: vec![0; bounds.len() + 1],
            bounds,
            sum: 0.0,
        }
    }
    pub(super) fn observe(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        self.counts[self.bounds.partition_point(|bound| *bound < seconds)] += 1;
        self.sum += seconds;
    }
    pub(super) fn render(&self, out: &mut Text, name: &str, labels: &[(&str, &str)]) {
        let mut total = 0;
        let ends = self
            .bounds
            .iter()
            .map(f64::to_string)
            .chain(["+Inf".to_owned()]);
        for (end, count) in ends.zip(&self.counts) {
            total += count;
            let labels: Vec<_> = labels
                .iter()
                .copied()
                .chain([("le", end.as_str())])
                .collect();
            out.row(&format!("{name}_bucket"), &labels, total);
        }
        out.row(&format!("{name}_sum"), labels, self.sum);
        out.row(&format!("{name}_count"), labels, total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_hold_their_bound() {
        let mut histogram = Histogram::new(vec![0.5, 1.0]);
        for millis in [500, 700, 5000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut out = Text::default();
        histogram.render(&mut out, "x", &[("ip_family", "IPv4")]);
        assert_eq!(
            out.into_string(),
            "x_bucket{ip_family=\"IPv4\",le=\"0.5\"} 1\nx_bucket{ip_family=\"IPv4\",le=\"1\"} 2\n\
             x_bucket{ip_family=\"IPv4\",le=\"+Inf\"} 3\nx_sum{ip_family=\"IPv4\"} 6.2\nx_count{ip_family=\"IPv4\"} 3\n"
        );
    }
}
