//! Developer tasks: `cargo xtask ci` is exactly what CI runs; `cargo xtask bench` measures.

mod checks;

use anyhow::{Result, bail};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
cargo xtask <task>

  ci              everything CI checks: format, lints, import rule, unsafe list, licences, build, all tests
  check           the fast part of ci: format, lints, import rule, unsafe list, licences
  bench [ARGS]    a guest benchmark under retrovisor, QEMU's TCG and natively, and guest boots; `cargo xtask bench
                  --help` lists what it measures
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.first().map(String::as_str) {
        Some("ci") => ci(),
        Some("check") => check(),
        Some("bench") => bench(&args[1..]),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn ci() -> Result<()> {
    check()?;
    checks::gdb()?;
    cargo("build", &["build", "--release", "--workspace"])?;
    // Guests need an optimised build to finish in minutes.
    cargo("tests", &["test", "--release", "--workspace", "--no-fail-fast"])?;
    cargo("demo", &["run", "--release", "--", "demo"])?;
    println!("xtask: ci passed");
    Ok(())
}

fn check() -> Result<()> {
    cargo("format", &["fmt", "--all", "--check"])?;
    cargo("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    checks::imports()?;
    checks::unsafe_list()?;
    checks::licences()?;
    Ok(())
}

fn bench(args: &[String]) -> Result<()> {
    cargo("bench", &["build", "--release", "--quiet", "--package", "retrovisor"])?;
    let mut all =
        vec!["run", "--release", "--quiet", "--package", "retrovisor-tests", "--bin", "bench", "--"];
    all.extend(args.iter().map(String::as_str));
    cargo("bench", &all)
}

/// Runs cargo with a headline; fails with the name of the step.
fn cargo(step: &str, args: &[&str]) -> Result<()> {
    println!("xtask: {step}: cargo {}", args.join(" "));
    let status =
        Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())).args(args).status()?;
    if !status.success() {
        bail!("{step} failed");
    }
    Ok(())
}
