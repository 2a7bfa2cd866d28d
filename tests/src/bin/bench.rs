//! `cargo xtask bench`: measures, prints a table, writes JSON.

use std::path::PathBuf;

use anyhow::{Result, bail};
use lb_tests::bench::{Effort, Report, packets, report};

#[expect(clippy::print_stdout, reason = "the table is the output")]
fn main() -> Result<()> {
    let mut effort = Effort::WHOLE;
    let mut file = PathBuf::from("target/bench.json");
    let mut only = None;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.by_ref()) {
            ("--quick", _) => effort = Effort::QUICK,
            ("--json", rest) => match rest.next() {
                Some(name) => file = name.into(),
                None => bail!("--json wants a file name"),
            },
            ("--only", rest) => only = rest.next(),
            (other, _) => {
                bail!("unknown argument {other}; there are --quick, --json FILE and --only GROUP")
            }
        }
    }
    let wanted = |group: &str| only.as_deref().is_none_or(|only| only == group);
    let mut report = Report::default();
    if wanted("packets") {
        packets::measure(&mut report, &effort)?;
    }
    println!("{}\n\n{}", report::machine(), report.table());
    report.write(&file)?;
    println!("written to {}", file.display());
    Ok(())
}
