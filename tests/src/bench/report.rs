//! Rows, the table and the JSON file.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// One figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub id: String,
    /// The figure: for packets the whole time behind the front program.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The empty program's figure behind the same front, where there is one.
    pub floor: Option<f64>,
    /// Median of the differences to the floor, round by round.
    pub own: Option<f64>,
    /// How often it was measured.
    pub runs: usize,
}

/// All rows.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order of the table.
    pub rows: Vec<Row>,
    /// Ratios that the goals speak of: what, value, bound.
    pub goals: Vec<(String, f64, f64)>,
}

impl Report {
    /// A row by name.
    pub fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }

    /// Notes a ratio of rows against its bound; nothing where a row is missing.
    pub fn goal(&mut self, what: &str, ratio: Option<f64>, bound: f64) {
        if let Some(ratio) = ratio {
            self.goals.push((what.to_owned(), ratio, bound));
        }
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<52} {:>11} {:<6} {:>9} {:>9} {:>5}\n",
            "row", "value", "unit", "floor", "own", "runs"
        );
        let cell =
            |value: Option<f64>| value.map_or(String::from("-"), |value| format!("{value:.1}"));
        for row in &self.rows {
            text += &format!(
                "{:<52} {:>11.2} {:<6} {:>9} {:>9} {:>5}\n",
                row.id,
                row.value,
                row.unit,
                cell(row.floor),
                cell(row.own),
                row.runs
            );
        }
        if !self.goals.is_empty() {
            text += &format!("\n{:<72} {:>8} {:>8}\n", "goal", "measured", "bound");
        }
        for (what, ratio, bound) in &self.goals {
            let verdict = if ratio <= bound { "" } else { "  missed" };
            text += &format!("{what:<72} {ratio:>8.2} {bound:>8.2}{verdict}\n");
        }
        text
    }

    /// Writes the JSON file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "id": row.id, "value": row.value, "unit": row.unit, "floor": row.floor,
                    "own": row.own, "runs": row.runs,
                })
            })
            .collect();
        let text = serde_json::to_string_pretty(&json!({ "machine": machine(), "rows": rows }))?;
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The machine in a line: processor, cores, kernel.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or("unknown processor", |(_, model)| model)
        .to_owned();
    let cores = cpu
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}
