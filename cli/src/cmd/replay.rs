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

/// Instructions between two looks at the mailbox: a replay polls only where its trace has something.
const LOOK_EVERY: u64 = 1 << 22;

/// Runs to `to`, the trace's end, or an interrupt.
fn run(replay: &mut Replay, to: Option<Icount>) -> VmExit {
    loop {
        let next = replay.vm.when().icount + LOOK_EVERY;
        let target = to.map_or(next, |to| to.min(next));
        match replay.vm.run(Some(target)) {
            VmExit::Reached if Some(target) != to => {}
            exit => return exit,
        }
        if replay.mailbox.take_interrupt() {
            return VmExit::Interrupted;
        }
    }
}

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
    let exit = run(&mut replay, to);
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
        Some(Err(e @ (VerifyError::Diverged { .. } | VerifyError::Lockstep { .. }))) => {
            writeln!(out, "{e}")?;
            Ok(Verdict::Diverged)
        }
        Some(Err(e)) => Err(e.into()),
    }
}
