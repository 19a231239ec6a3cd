//! The `retrovisor` command. Owns the mapping from how things end to exit codes (listed in `--help`).

mod args;
mod cmd;
mod config;
mod console;

use args::{Cli, Command};
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

/// Our own exit codes; odd ones belong to the guest (isa-debug-exit).
pub mod exit {
    pub const BAD_INPUT: u8 = 2;
    pub const DIVERGED: u8 = 4;
    pub const RESET: u8 = 6;
    pub const DEAD: u8 = 8;
    pub const BUG: u8 = 70;
    pub const INTERRUPTED: u8 = 130;
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // With a handler, a file that grows past its limit (ulimit -f) is an error of the write, not the end of the process.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    // A bug anywhere ends with its own code; the panic hook has printed what and where.
    let run = std::panic::catch_unwind(|| dispatch(cli.command));
    console::restore_terminal();
    match run {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(e)) => {
            let _ = writeln!(std::io::stderr(), "retrovisor: {e:#}");
            ExitCode::from(exit::BAD_INPUT)
        }
        Err(_) => ExitCode::from(exit::BUG),
    }
}

fn dispatch(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Demo(a) => {
            cmd::demo::demo(a.save.as_deref(), a.elf.as_deref(), &mut std::io::stdout()).map(|()| 0)
        }
        Command::Run(a) => cmd::run::run(&a),
        Command::Replay(a) => cmd::inspect::replay(&a),
        Command::Verify(a) => cmd::inspect::verify(&a),
        Command::Trace(c) => cmd::inspect::trace(&c),
    }
}
