//! `cargo xtask bench`: the guest benchmark natively, under retrovisor and under QEMU's TCG; boot times; how cost grows;
//! how fast going backwards is; and the interpreter's raw speed. docs/performance.md says how to read it.

#![allow(clippy::expect_used, clippy::unwrap_used)]

mod boot;
mod clock;
mod grow;
mod guest;
mod history;
mod mips;
mod options;
mod peers;
mod run;
mod suite;
mod table;

use options::{Options, What};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(o)) => o,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("bench: {e} (see --help)");
            return ExitCode::from(2);
        }
    };
    let mut good = true;
    for what in &options.what {
        let done = match what {
            What::Suite => suite::suite(&options),
            What::Boot => boot::boot(&options),
            What::Grow => grow::grow(&options),
            What::History => history::history(&options),
            What::Mips => {
                mips::mips();
                Ok(true)
            }
        };
        good &= done.unwrap_or_else(|e| {
            eprintln!("bench: {e}");
            false
        });
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
