//! The demo: the product at work between two nodes, told in short chapters. Each says what it does,
//! shows what happened, and checks what it promised.

pub mod hold;
pub mod screen;
pub mod stage;
pub mod story;
pub mod tables;
pub mod tally;

use std::time::Instant;

use anyhow::Result;

pub use screen::{Screen, catch_signals, is_stopped};
pub use stage::Stage;

/// What the demo is asked for.
#[derive(Clone, Copy, Default, Debug)]
pub struct Options {
    /// Keep the world until ^C and print commands to try.
    pub is_held: bool,
}

/// Plays the whole demo. Returns when everything that it made is gone.
pub fn play(screen: &mut Screen, options: Options) -> Result<()> {
    let start = Instant::now();
    story::introduce(screen);
    let mut stage = Stage::set(screen)?;
    let told = story::tell(screen, &mut stage);
    if told.is_err() && !is_stopped() {
        stage.keep_logs();
    }
    told?;
    story::summary(screen, start.elapsed());
    if options.is_held {
        hold::commands(screen, &stage)?;
    }
    Ok(())
}
