//! Aligned tables and JSON on standard output.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use lb_common::abi::{Addr4, Addr6};
use serde::Serialize;

/// How an answer is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Output {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON document with stable field names.
    Json,
}

/// An address of a map, for people.
pub trait Shown {
    /// The address.
    fn ip(self) -> IpAddr;
}

impl Shown for Addr4 {
    fn ip(self) -> IpAddr {
        Ipv4Addr::from(self).into()
    }
}

impl Shown for Addr6 {
    fn ip(self) -> IpAddr {
        Ipv6Addr::from(self).into()
    }
}

/// Prints rows: a JSON array, or the cells below their heads.
#[expect(
    clippy::print_stdout,
    reason = "answers of commands go to standard output"
)]
pub fn print<T: Serialize, const N: usize>(
    output: Output,
    heads: [&str; N],
    rows: &[T],
    cells: impl Fn(&T) -> [String; N],
) -> Result<()> {
    match output {
        Output::Json => println!(
            "{}",
            serde_json::to_string_pretty(rows).context("cannot write the answer as JSON")?
        ),
        Output::Table => {
            let cells: Vec<_> = rows.iter().map(cells).collect();
            print!("{}", render(heads, &cells));
        }
    }
    Ok(())
}

/// Columns as wide as their widest cell, two spaces apart, nothing behind the last.
pub fn render<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heads.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<_> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let body = rows
        .iter()
        .map(|row| line(std::array::from_fn(|i| row[i].as_str())));
    std::iter::once(line(heads)).chain(body).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_the_widest_cell() {
        let rows = [
            ["1".to_owned(), "10.0.0.1".to_owned()],
            ["1000".to_owned(), String::new()],
        ];
        assert_eq!(
            render(["ID", "ADDR"], &rows),
            "ID    ADDR\n1     10.0.0.1\n1000\n"
        );
    }
}
