//! The commands on recorded runs: `replay`, `verify` and `trace`, from what was typed to what they do.

use super::board::Board;
use super::live::{self, Around};
use super::verify::Verdict;
use super::{replay as plain, trace as traces, verify as verifying};
use crate::args::{ReplayArgs, TraceCommand, VerifyArgs};
use crate::config;
use crate::console::{Console, Serial, SerialSink};
use crate::exit;
use anyhow::{Result, anyhow};
use retrovisor_core::Icount;
use retrovisor_core::output::{NullSink, OutputSink};
use retrovisor_debug::Options;
use retrovisor_replay::{Replay, Trace, VerifyOptions};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// `retrovisor replay`.
///
/// # Errors
/// If the trace cannot be replayed, in one line.
pub fn replay(a: &ReplayArgs) -> Result<u8> {
    let options = config::engine(&a.engine)?;
    let output: Box<dyn OutputSink> =
        match SerialSink::open(if a.show { &Serial::Stdio } else { &Serial::Null })? {
            Some(s) => Box::new(s),
            None => Box::new(NullSink),
        };
    if a.debug.gdb.is_some() || a.debug.freeze {
        return replay_in_session(a, options, output);
    }
    let (mut console, signalled) = (None, Arc::new(AtomicU8::new(0)));
    let mut started = |mailbox: &Arc<retrovisor_replay::Mailbox>| {
        let (mailbox, signalled) = (Arc::clone(mailbox), Arc::clone(&signalled));
        console = Console::without_input(move |quit| {
            signalled.store(quit.code(), Ordering::Release);
            mailbox.interrupt();
        })
        .ok();
    };
    let mut out = std::io::stderr();
    let done = plain::replay(&a.trace, options, a.to.map(Icount), output, &mut started, &mut out);
    match (done, signalled.load(Ordering::Acquire)) {
        (Err(e), by @ 1..) => {
            writeln!(out, "retrovisor: {e:#}")?;
            Ok(by)
        }
        (done, _) => Ok(code(done?)),
    }
}

fn replay_in_session(a: &ReplayArgs, options: VerifyOptions, output: Box<dyn OutputSink>) -> Result<u8> {
    let history = config::history(&a.debug.history)?;
    let server = live::bind(a.debug.gdb.as_deref())?;
    let trace = Trace::open(&a.trace)?;
    let replay = Replay::new(&trace, options, output)?.with_history(history);
    let around = Around { options: Options { freeze: a.debug.freeze, read_only: true }, console: false };
    let monitor = replay.monitor.clone();
    let ended = live::session(replay.vm, &replay.mailbox, server, &around)?;
    let (code, line) = live::exit_code(&ended);
    if let Some(mismatch) = ended.vm.as_ref().and_then(|vm| vm.mismatch()) {
        eprintln!("{}: {mismatch}", trace.name());
        return Ok(exit::DIVERGED);
    }
    if let Some(d) = monitor.divergence() {
        eprintln!("{}: {d}", trace.name());
        return Ok(exit::DIVERGED);
    }
    if let Some(line) = line {
        eprintln!("retrovisor: {line}");
    }
    Ok(code)
}

/// `retrovisor verify`.
///
/// # Errors
/// If a flag is wrong, or standard output cannot be written.
pub fn verify(a: &VerifyArgs) -> Result<u8> {
    let options = config::engine(&a.engine)?;
    let (out, err) = (Box::new(std::io::stdout()), Box::new(std::io::stderr()));
    let board = Arc::new(Board::new(a.traces.len(), out, err, terminal_columns()));
    let watched = Arc::clone(&board);
    // Nothing is half done when a signal comes: no file, no terminal to give back.
    let _signals = Console::without_input(move |quit| {
        watched.interrupted(|| std::process::exit(quit.code().into()));
    })?;
    Ok(code(verifying::verify(&a.traces, options, a.jobs, &board)?))
}

/// Width of the terminal that standard error is, if it is one.
fn terminal_columns() -> Option<usize> {
    let stderr = std::io::stderr();
    let size = stderr.is_terminal().then(|| rustix::termios::tcgetwinsize(&stderr))?;
    Some(size.map_or(80, |s| if s.ws_col == 0 { 80 } else { s.ws_col.into() }))
}

/// `retrovisor trace`.
///
/// # Errors
/// If the trace cannot be read, in one line.
pub fn trace(c: &TraceCommand) -> Result<u8> {
    let out = &mut std::io::stdout();
    match c {
        TraceCommand::Info { trace, json } => traces::info(trace, *json, out)?,
        TraceCommand::Events { trace, json, from, to, kind } => {
            let point = |flag: &str, text: &Option<String>| -> Result<Option<traces::Point>> {
                text.as_deref().map(|t| t.parse().map_err(|e| anyhow!("{flag}: {e}"))).transpose()
            };
            let (from, to) = (point("--from", from)?, point("--to", to)?);
            traces::events(trace, &traces::Filter { from, to, kinds: kind.clone() }, *json, out)?;
        }
        TraceCommand::Export { trace, format, output } => {
            traces::export(trace, *format, output.as_deref(), out)?;
        }
        TraceCommand::Pack { trace, output } => traces::pack(trace, output, out)?,
        TraceCommand::Unpack { trace, output } => traces::unpack(trace, output, out)?,
    }
    Ok(0)
}

const fn code(v: Verdict) -> u8 {
    match v {
        Verdict::Exact => 0,
        Verdict::Diverged => exit::DIVERGED,
        Verdict::Unusable => exit::BAD_INPUT,
    }
}
