//! `cargo xtask bench`: measures, prints a table, writes JSON.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    agent::target_dir,
    bench::{Effort, Report, agent, connect, control_plane, goals, packets, progress, report},
};

const HELP: &str = "\
measures packets through the programs, connects through the socket hooks, and the agent;
prints a table and the goals, and writes JSON; needs root

usage: cargo xtask bench [OPTIONS]

  --quick        fewer packets, flows and Services: a minute instead of several
  --control-plane  instead: the agent beside kube-proxy (nftables) at a real API server with
                 10,000 Services; about ten minutes
  --services N   with --control-plane: so many Services
  --json FILE    where the JSON goes [default: target/bench.json]
  --only GROUP   one group of rows: packets, connect, agent
  --help         this text
";

const GROUPS: [&str; 3] = ["packets", "connect", "agent"];

struct Options {
    effort: Effort,
    is_quick: bool,
    file: PathBuf,
    only: Option<String>,
    control_plane: bool,
    services: Option<usize>,
}

impl Options {
    fn scale(&self) -> control_plane::Scale {
        let mut scale = match self.is_quick {
            true => control_plane::Scale::QUICK,
            false => control_plane::Scale::WHOLE,
        };
        scale.services = self.services.unwrap_or(scale.services);
        scale
    }
}

#[expect(clippy::print_stdout, reason = "the table is the output")]
fn main() -> Result<()> {
    let mut options = Options {
        effort: Effort::WHOLE,
        is_quick: false,
        file: target_dir().join("bench.json"),
        only: None,
        control_plane: false,
        services: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = |name: &str| args.next().with_context(|| format!("{name} wants a value"));
        match arg.as_str() {
            "--quick" => {
                options.effort = Effort::QUICK;
                options.is_quick = true;
            }
            "--json" => options.file = value("--json FILE")?.into(),
            "--only" => options.only = Some(value("--only GROUP")?),
            "--control-plane" => options.control_plane = true,
            "--services" => {
                let value = value("--services N")?;
                let number = value.parse();
                options.services =
                    Some(number.with_context(|| format!("--services {value} is no number"))?);
            }
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(());
            }
            agent::PARSE => {
                println!("{}", agent::parse(Path::new(&value(agent::PARSE)?))?);
                return Ok(());
            }
            other => bail!("unknown argument {other}; see --help"),
        }
    }
    if let Some(only) = options.only.as_deref() {
        ensure!(
            GROUPS.contains(&only),
            "unknown group {only}; there are {}",
            GROUPS.join(", ")
        );
    }
    ensure!(
        options.control_plane || options.services.is_none(),
        "--services goes with --control-plane"
    );
    ensure!(
        !options.control_plane || options.only.is_none(),
        "--only does not go with --control-plane"
    );
    measure(&options)
}

fn measure(options: &Options) -> Result<()> {
    use_release_agent()?;
    let mut report = Report::default();
    if options.control_plane {
        control_plane::measure(&mut report, &options.scale())?;
        return show(&report, options);
    }
    let wanted = |group: &str| options.only.as_deref().is_none_or(|only| only == group);
    if wanted("packets") {
        packets::measure(&mut report, &options.effort)?;
    }
    if wanted("connect") {
        connect::measure(&mut report, &options.effort)?;
    }
    if wanted("agent") {
        agent::measure(&mut report, &options.effort)?;
    }
    goals::note(&mut report);
    show(&report, options)
}

#[expect(clippy::print_stdout, reason = "the table is the output")]
fn show(report: &Report, options: &Options) -> Result<()> {
    progress("done");
    println!("{}\n\n{}", report::machine(), report.table());
    report.write(&options.file)?;
    println!("written to {}", options.file.display());
    Ok(())
}

/// The harness takes the agent that was built last; a debug build would be no measure.
fn use_release_agent() -> Result<()> {
    if std::env::var_os("LB_AGENT").is_none() {
        let agent = target_dir().join("release/lb-agent");
        ensure!(
            agent.is_file(),
            "no {}; run `cargo xtask build`",
            agent.display()
        );
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var("LB_AGENT", agent) };
    }
    Ok(())
}
