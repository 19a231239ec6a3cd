//! `retrovisor replay` without a debugger: runs a trace to its end or to one instruction.

use super::report;
use super::verify::Verdict;
use anyhow::Result;
use retrovisor_core::Icount;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::output::OutputSink;
use retrovisor_replay::{Mailbox, Replay, Trace, VerifyError, VerifyOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// `replay`: runs the trace, showing its output on `output`; a line on how it ended goes to `out`. `started` is given
/// the mailbox by which another thread (Ctrl-C) can interrupt the replay.
///
/// # Errors
/// If the trace cannot be replayed, in one line; a divergence is a verdict, not an error.
pub fn replay(
    path: &Path,
    options: VerifyOptions,
    to: Option<Icount>,
    output: Box<dyn OutputSink>,
    started: &mut dyn FnMut(&Arc<Mailbox>),
    out: &mut dyn Write,
) -> Result<Verdict> {
    let trace = Trace::open(path)?;
    let mut replay = Replay::new(&trace, options, output)?;
    started(&replay.mailbox);
    let exit = replay.vm.run(to);
    match replay.conclude(exit) {
        None => {
            let (at, hash) = (replay.vm.when(), replay.vm.state_hash());
            let why = if exit == VmExit::Reached { "stands" } else { "stopped" };
            writeln!(out, "{}: {why} at instruction {}, state {hash}", trace.name(), at.icount)?;
            Ok(Verdict::Exact)
        }
        Some(Ok(r)) => {
            writeln!(out, "{}", report::line(trace.name(), &r))?;
            Ok(Verdict::Exact)
        }
        Some(Err(e @ VerifyError::Diverged { .. })) => {
            writeln!(out, "{e}")?;
            Ok(Verdict::Diverged)
        }
        Some(Err(e)) => Err(e.into()),
    }
}
