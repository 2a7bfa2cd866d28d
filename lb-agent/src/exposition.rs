//! Metrics → a page in Prometheus' text exposition format.

use std::fmt::{Arguments, Display, Write as _};

/// A page of the text format.
#[derive(Debug, Default)]
pub(crate) struct Text(String);

impl Text {
    /// Appends help and type of a metric.
    pub(crate) fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }
    /// Appends a sample.
    pub(crate) fn row(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            self.0.push(if i == 0 { '{' } else { ',' });
            let text = text
                .replace('\\', r"\\")
                .replace('"', "\\\"")
                .replace('\n', r"\n");
            self.line(format_args!("{label}=\"{text}\""));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        self.line(format_args!("{close} {value}\n"));
    }
    fn line(&mut self, text: Arguments<'_>) {
        // Writing to a String cannot fail.
        self.0.write_fmt(text).unwrap_or_default();
    }
    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut out = Text::default();
        out.row("x", &[("a", "say \"no\"\\")], 1);
        assert_eq!(out.into_string(), "x{a=\"say \\\"no\\\"\\\\\"} 1\n");
    }
}
