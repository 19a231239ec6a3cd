//! The same run in another trace: with checkpoints, or only a part of it. Both replay the trace, so what comes out is exact.

use crate::compare::{Progress, Replay, Report, VerifyError, VerifyOptions};
use crate::disk::TraceFile;
use crate::format::end::{EndRecord, ExitReason};
use crate::format::header::Header;
use crate::format::reader::{Ending, Trace};
use crate::format::record::{Record, What};
use crate::format::writer::{Effort, EncodedFrame, Frames, TraceWriter};
use crate::format::{MAX_POINT, TraceError};
use crate::history::Checkpoint;
use crate::keep::Keeper;
use crate::log::Log;
use crate::persist::{PersistError, Persister};
use crate::stored::StoredCheckpoints;
use retrovisor_core::Icount;
use retrovisor_core::input::When;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::output::NullSink;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;

/// zstd's level for checkpoints that nobody waits for: higher ones gain little.
const LEVEL: i32 = 6;
/// Instructions between two progress reports.
const PROGRESS_EVERY: u64 = 1 << 22;

/// Why a trace could not be rewritten.
#[derive(Debug, Error)]
pub enum RewriteError {
    #[error(transparent)]
    Replay(#[from] VerifyError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("{file}: cannot be written: {why}")]
    Write { file: String, why: io::Error },
    #[error("{file}: {why}")]
    Range { file: String, why: String },
}

/// What was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rewritten {
    /// Bytes of the new file.
    pub size: u64,
    /// Checkpoints in it.
    pub checkpoints: u64,
    pub begin: Icount,
    pub end: Icount,
    /// The verification of the whole trace, if all of it was replayed.
    pub report: Option<Report>,
}

/// The new file.
struct Output {
    file: TraceFile,
    name: String,
    writer: TraceWriter,
    persister: Persister,
    checkpoints: u64,
}

impl Output {
    /// Begins `path` with `header` and the images of `trace`.
    fn begin(path: &Path, header: &Header, trace: &Trace) -> Result<Self, RewriteError> {
        // Images that are damaged are not handed on.
        trace.machine()?;
        let name = path.display().to_string();
        let fail = |why| RewriteError::Write { file: name.clone(), why };
        let file = TraceFile::create(path).map_err(fail)?;
        let out = Box::new(file.clone());
        let mut writer = TraceWriter::without_images(out, header, Effort::Live).map_err(fail)?;
        trace.image_chunks(&mut |chunk| writer.append(chunk))?.map_err(fail)?;
        Ok(Self { file, name, writer, persister: Persister::new(LEVEL), checkpoints: 0 })
    }

    fn fail(&self, why: io::Error) -> RewriteError {
        RewriteError::Write { file: self.name.clone(), why }
    }

    fn checkpoint(&mut self, c: &Checkpoint) -> Result<(), RewriteError> {
        let writer = &mut self.writer;
        self.checkpoints += 1;
        self.persister.add(c, &mut |chunk| writer.append(&chunk)).map_err(|e| match e {
            PersistError::Trace(e) => e.into(),
            PersistError::Write(why) => RewriteError::Write { file: self.name.clone(), why },
        })
    }

    fn frame(&mut self, frame: &EncodedFrame) -> Result<(), RewriteError> {
        self.writer.frame(frame).map_err(|why| self.fail(why))
    }

    /// Ends the file and gives it its name.
    fn finish(mut self, ending: Option<&EndRecord>) -> Result<(u64, u64), RewriteError> {
        if let Some(end) = ending {
            self.writer.finish(end).map_err(|why| self.fail(why))?;
        }
        self.file.flush().map_err(|why| self.fail(why))?;
        self.file.publish().map_err(|why| self.fail(why))?;
        Ok((self.writer.written(), self.checkpoints))
    }
}

/// Writes `trace` to `path` (which may be the same file) with a checkpoint every `every` instructions, rounded up to hash
/// points, in place of those it has.
///
/// # Errors
/// If the trace does not replay exactly, or `path` cannot be written; what was there before stays then.
pub fn checkpoint(
    trace: &Arc<Trace>,
    path: &Path,
    every: u64,
    options: VerifyOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Rewritten, RewriteError> {
    let interval = trace.config().hash_interval;
    let every = every.max(1).div_ceil(interval).saturating_mul(interval);
    let mut out = Output::begin(path, trace.header(), trace)?;
    let mut replay = Replay::new(trace, options, Box::new(NullSink))?;
    let mut keeper = replay.keeper();
    let begin = replay.vm.when().icount;
    if trace.is_trimmed() {
        out.checkpoint(&capture(&mut keeper, &mut replay))?;
    }
    copy_frames(trace, &mut out)?;
    let end = trace.ending().when().icount;
    let report = loop {
        let at = replay.vm.when().icount;
        let next = (at.0 / every + 1).saturating_mul(every);
        let exit = run_to(&mut replay, Icount(next), end, progress);
        if let Some(result) = replay.conclude(exit) {
            break result?;
        }
        out.checkpoint(&capture(&mut keeper, &mut replay))?;
    };
    let ending = match trace.ending() {
        Ending::Complete(end) => Some(end),
        Ending::Cut(_) => None,
    };
    let (size, checkpoints) = out.finish(ending)?;
    Ok(Rewritten { size, checkpoints, begin, end, report: Some(report) })
}

fn capture(keeper: &mut Keeper, replay: &mut Replay) -> Checkpoint {
    let digest = replay.digest().clone();
    keeper.capture(&mut replay.vm, &digest)
}

/// Runs to `to` or another end.
fn run_to(replay: &mut Replay, to: Icount, end: Icount, progress: &mut dyn FnMut(Progress)) -> VmExit {
    loop {
        let at = replay.vm.when().icount;
        progress(Progress { at, end, hashes: replay.monitor.hashes() });
        let target = to.min(at + PROGRESS_EVERY);
        let exit = replay.vm.run(Some(target));
        if exit != VmExit::Reached || target == to {
            return exit;
        }
    }
}

fn copy_frames(trace: &Trace, out: &mut Output) -> Result<(), RewriteError> {
    for n in 0..trace.frames() {
        let Some(frame) = trace.frame(n)? else { break };
        let raw = trace.frame_payload(n)?;
        out.frame(&EncodedFrame { start: frame.start, end: frame.end, raw })?;
    }
    Ok(())
}

/// Writes to `path` (which may be the same file) the part of `trace` from the last hash point at or before `from` to `to`,
/// where it is within the trace.
///
/// # Errors
/// If the range is empty, the trace does not replay exactly, or `path` cannot be written; what was there before stays then.
pub fn trim(
    trace: &Arc<Trace>,
    path: &Path,
    (from, to): (Icount, Icount),
    options: VerifyOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Rewritten, RewriteError> {
    let (first, last) = (trace.start().icount, trace.ending().when().icount);
    let range = |why| Err(RewriteError::Range { file: trace.name().to_owned(), why });
    if from > last || to <= first {
        return range(format!("it has instructions {first} to {last}, not {from} to {to}"));
    }
    if from > to {
        return range(format!("nothing lies between instructions {from} and {to}"));
    }
    let interval = trace.config().hash_interval;
    let begin = Icount(from.0 / interval * interval).max(first);
    let (mut replay, mut stored) = nearest(trace, begin, options)?;
    let mut keeper = replay.keeper();
    if begin > replay.vm.when().icount {
        let exit = run_to(&mut replay, begin, to, progress);
        not_over(&mut replay, exit)?;
    }
    let start = replay.vm.when();
    // Nothing before the beginning is there to be asked for any more.
    let machine = if start == When::default() { trace.config() } else { &replay.vm.config };
    let header = Header { machine: machine.clone(), ..trace.header().clone() };
    let mut out = Output::begin(path, &header, trace)?;
    if start != When::default() {
        let first = capture(&mut keeper, &mut replay);
        out.checkpoint(&first)?;
    }
    stored.retain(|at| (start.icount.0 + 1..=to.0.min(last.0)).contains(at));
    for at in stored {
        let exit = run_to(&mut replay, Icount(at), to, progress);
        not_over(&mut replay, exit)?;
        out.checkpoint(&capture(&mut keeper, &mut replay))?;
    }
    let ending = ending(&mut replay, to, progress)?;
    part_of_frames(trace, start, ending.map(|e| e.when), &mut out)?;
    let end = ending.map_or(last, |e| e.when.icount);
    let (size, checkpoints) = out.finish(ending.as_ref())?;
    Ok(Rewritten { size, checkpoints, begin: start.icount, end, report: None })
}

/// A replay that stands at the last checkpoint of use at or before `begin`, and where the trace's checkpoints are.
fn nearest(
    trace: &Arc<Trace>,
    begin: Icount,
    options: VerifyOptions,
) -> Result<(Replay, Vec<u64>), RewriteError> {
    let replay = Replay::new(trace, options, Box::new(NullSink))?;
    let keeper = replay.keeper();
    let (mut best, mut all) = (None, Vec::new());
    let mut stored = StoredCheckpoints::new(trace, replay.vm.sys.mem.flags.len());
    while let Ok(Some(c)) = stored.next(keeper.store()) {
        all.push(c.at.icount.0);
        if c.at.icount <= begin {
            best = Some(c);
        }
    }
    let there = best.and_then(|c| Replay::at(trace, options, Box::new(NullSink), Some(&c)).ok());
    Ok((there.unwrap_or(replay), all))
}

/// An error if a run inside the trace came to an end.
fn not_over(replay: &mut Replay, exit: VmExit) -> Result<(), RewriteError> {
    match replay.conclude(exit) {
        None => Ok(()),
        Some(Err(e)) => Err(e.into()),
        Some(Ok(_)) => {
            let why = "the run ends before its end".to_owned();
            Err(RewriteError::Range { file: replay.trace().name().to_owned(), why })
        }
    }
}

/// Runs to `to`, or to the trace's end if that comes first; the end record of what was replayed, `None` if it is cut there.
fn ending(
    replay: &mut Replay,
    to: Icount,
    progress: &mut dyn FnMut(Progress),
) -> Result<Option<EndRecord>, RewriteError> {
    let last = replay.trace().ending().when().icount;
    let stop = if to < last { to } else { Icount(MAX_POINT) };
    let exit = run_to(replay, stop, to.min(last), progress);
    if let Some(result) = replay.conclude(exit) {
        result?;
        return Ok(match replay.trace().ending() {
            Ending::Complete(end) => Some(*end),
            Ending::Cut(_) => None,
        });
    }
    // As a recording that the user ends here.
    if let (false, Some(divergence)) = (replay.vm.arrive(), replay.monitor.divergence()) {
        let file = replay.trace().name().to_owned();
        return Err(VerifyError::Diverged { file, divergence }.into());
    }
    let (when, hash, output) = (replay.vm.when(), replay.vm.state_hash(), replay.digest().value());
    Ok(Some(EndRecord { when, reason: ExitReason::Quit, hash, output }))
}

/// Writes the records of `trace` from `start` to `end` (`None`: to its own end).
fn part_of_frames(
    trace: &Trace,
    start: When,
    end: Option<When>,
    out: &mut Output,
) -> Result<(), RewriteError> {
    let (mut frames, whole) = (Frames::new(trace.config(), start), trace.ending().when());
    let (end, mut last) = (end.unwrap_or(whole), None);
    // At the end's icount, only the hash point comes before the end.
    let within = |r: &Record| {
        let at = r.when.icount;
        let before = at < end.icount || end == whole || matches!(r.what, What::Hash { .. });
        at >= start.icount && at <= end.icount && before
    };
    for n in trace.frame_at(start.icount)?..trace.frames() {
        let Some(frame) = trace.frame(n)?.filter(|f| f.start.icount <= end.icount) else { break };
        frames.push_logged(frame.records.iter().filter(|r| within(r)));
        let until = frame.end.min(end).max(start);
        out.frame(&frames.end(until))?;
        last = Some(until);
    }
    if last != Some(end) { out.frame(&frames.end(end)) } else { Ok(()) }
}
