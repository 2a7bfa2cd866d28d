//! Aligned tables and JSON on standard output.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use lb_common::abi::{Addr4, Addr6};
use serde::Serialize;

/// How an answer is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(super) enum Output {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON document with stable field names.
    Json,
}

/// An address of a map, for people.
pub(super) trait Shown {
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

/// Writes to standard output; a reader that has seen enough (`| head`) is no error.
pub(super) fn print_text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the answer")
        }
        _ => Ok(()),
    }
}

/// Writes a line.
pub(super) fn print_line(line: &str) -> Result<()> {
    print_text(&format!("{line}\n"))
}

/// Writes a JSON document.
pub(super) fn print_json<T: Serialize + ?Sized>(document: &T) -> Result<()> {
    print_line(&serde_json::to_string_pretty(document).context("cannot write the answer as JSON")?)
}

/// Writes rows: a JSON array, or the cells below their heads.
pub(super) fn print<T: Serialize, const N: usize>(
    output: Output,
    heads: [&str; N],
    rows: &[T],
    cells: impl Fn(&T) -> [String; N],
) -> Result<()> {
    match output {
        Output::Json => print_json(rows),
        Output::Table => {
            let cells: Vec<_> = rows.iter().map(cells).collect();
            print_text(&render(heads, &cells))
        }
    }
}

/// What stands for "nothing" in a cell.
pub(super) const NOTHING: &str = "-";

/// Columns as wide as their widest cell, two spaces apart, nothing behind the last. Columns of numbers end at the
/// right.
pub(super) fn render<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heads.map(|head| head.chars().count());
    let mut are_numbers = [!rows.is_empty(); N];
    for row in rows {
        for ((width, is_number), cell) in widths.iter_mut().zip(&mut are_numbers).zip(row) {
            *width = (*width).max(cell.chars().count());
            *is_number &= cell == NOTHING || cell.bytes().all(|byte| byte.is_ascii_digit());
        }
    }
    for i in 0..N {
        are_numbers[i] &= rows
            .iter()
            .any(|row| row[i] != NOTHING && !row[i].is_empty());
    }
    let line = |cells: [&str; N]| {
        let columns = cells.iter().zip(widths).zip(are_numbers);
        let padded: Vec<_> = columns
            .map(|((cell, width), is_number)| {
                if is_number {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:width$}")
                }
            })
            .collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let body = rows
        .iter()
        .map(|row| line(std::array::from_fn(|i| row[i].as_str())));
    std::iter::once(line(heads)).chain(body).collect()
}

/// The text, or the sign for nothing.
pub(super) fn or_nothing(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty())
        .unwrap_or(NOTHING)
        .to_owned()
}

/// Name of a protocol.
pub(super) fn protocol(number: u8) -> &'static str {
    use lb_common::abi::proto;
    match number {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        _ => "other",
    }
}

/// Kubernetes' name of a family.
pub(super) const fn family_name<F: lb_common::Family>() -> &'static str {
    if F::IS_V6 { "IPv6" } else { "IPv4" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_the_widest_cell() {
        let rows = [
            ["a".to_owned(), "10.0.0.1".to_owned()],
            ["long".to_owned(), String::new()],
        ];
        assert_eq!(
            render(["ID", "ADDR"], &rows),
            "ID    ADDR\na     10.0.0.1\nlong\n"
        );
    }

    #[test]
    fn numbers_end_at_the_right() {
        let rows = [
            ["1".to_owned(), "é".to_owned()],
            ["1000".to_owned(), "-".to_owned()],
            ["-".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            render(["ID", "A"], &rows),
            "  ID  A\n   1  é\n1000  -\n   -  x\n"
        );
    }
}
