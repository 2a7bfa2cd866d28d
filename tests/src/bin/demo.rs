//! `cargo xtask demo [--hold]`: shows the product at work and checks what it shows.

use std::process::ExitCode;

use anyhow::bail;
use lb_tests::demo::{Options, Screen, catch_signals, is_stopped, play};

/// What a shell says of a program that ^C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let mut options = Options::default();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--hold" => options.is_held = true,
            other => bail!("the demo knows no `{other}`; there is --hold"),
        }
    }
    catch_signals()?;
    let mut screen = Screen::default();
    let played = play(&mut screen, options);
    if is_stopped() {
        screen.line("");
        screen.line("stopped; everything that the demo made is removed");
        let is_complete = played.is_ok() && screen.broken().is_empty();
        return Ok(if is_complete {
            ExitCode::SUCCESS
        } else {
            INTERRUPTED.into()
        });
    }
    played?;
    screen.line("everything that the demo made is removed");
    Ok(if screen.broken().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
