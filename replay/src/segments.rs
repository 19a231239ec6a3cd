//! Verifying one trace on several threads: it is cut at checkpoints, and each segment is replayed by itself. A segment begins
//! with the state whose hash the trace recorded there and must end with the state whose hash it recorded where the next one
//! begins, so together they prove what one replay from end to end proves.
//!
//! The checkpoints are those of the trace. A trace without any is cut while the translator runs ahead and takes them, if
//! what verifies is so much slower that this pays.

use crate::compare::{Progress, Replay, Report, VerifyError, VerifyOptions, verify};
use crate::format::reader::Trace;
use crate::history::Checkpoint;
use crate::log::Log;
use crate::pages::PageStore;
use crate::play::Difference;
use crate::stored::StoredCheckpoints;
use retrovisor_core::Icount;
use retrovisor_core::engine::Engine;
use retrovisor_core::loader::rom_pages;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::output::NullSink;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

/// Segments a thread, so that none waits long for the last one.
const EACH: u64 = 4;
/// Instructions between two progress reports.
const PROGRESS_EVERY: u64 = 1 << 22;

/// How a verification was spread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// Over segments between checkpoints of the trace.
    Checkpoints,
    /// Over segments between checkpoints that the translator took running ahead.
    Scouted,
    /// It was not: the trace holds no checkpoints, and making them takes as long as verifying.
    One,
}

/// Can a verification of `trace` by `options` be spread over threads, and how?
pub fn spread(trace: &Trace, options: VerifyOptions) -> Spread {
    match trace.checkpoints() {
        1.. => Spread::Checkpoints,
        0 if options.engine != Engine::Jit || options.lockstep.is_some() => Spread::Scouted,
        0 => Spread::One,
    }
}

/// A part of the run, by number.
struct Segment {
    n: usize,
    /// `None`: where the trace begins.
    begin: Option<Checkpoint>,
    /// `None`: where the trace ends.
    end: Option<Icount>,
}

/// As [`verify`], on up to `jobs` threads; `progress` is called by any of them.
///
/// # Errors
/// As [`verify`]; of several differences, the first of the run.
pub fn verify_spread(
    trace: &Arc<Trace>,
    options: VerifyOptions,
    jobs: usize,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report, VerifyError> {
    let how = spread(trace, options);
    if jobs < 2 || how == Spread::One {
        return verify(trace, options, &mut |p| progress(p));
    }
    let (begin, end) = (trace.start().icount.0, trace.ending().when().icount);
    let apart = (end.0.saturating_sub(begin) / (jobs as u64 * EACH)).max(trace.config().hash_interval);
    let done = AtomicU64::new(begin);
    let told = |insns: u64, hashes: u64| {
        let at = Icount(done.fetch_add(insns, Ordering::Relaxed) + insns);
        progress(Progress { at: at.min(end), end, hashes });
    };
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        // Segments wait only for a thread that is free, and with them the checkpoints they begin at.
        let (tx, rx) = mpsc::sync_channel(jobs);
        let rx = Arc::new(Mutex::new(rx));
        for _ in 0..jobs {
            let (rx, results, told) = (Arc::clone(&rx), &results, &told);
            scope.spawn(move || {
                while let Some(segment) = next(&rx) {
                    let result = verify_segment(trace, options, &segment, told);
                    results.lock().unwrap_or_else(PoisonError::into_inner).insert(segment.n, result);
                }
            });
        }
        drop(rx);
        match how {
            Spread::Scouted => scout(trace, options, apart, &tx),
            _ => cut(trace, apart, &tx),
        }
    });
    combine(trace, options, results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn next(rx: &Mutex<mpsc::Receiver<Segment>>) -> Option<Segment> {
    rx.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Cuts the trace at its own checkpoints.
fn cut(trace: &Arc<Trace>, apart: u64, tx: &mpsc::SyncSender<Segment>) {
    let pages = (trace.config().memory >> 12) as usize;
    // ROM follows RAM in a machine's memory.
    let rom = trace.machine().map_or(0, |(_, images)| rom_pages(&images) as usize);
    let (mut stored, store) = (StoredCheckpoints::new(trace, pages + rom), PageStore::default());
    let (mut begin, mut n, mut from) = (None, 0, trace.start().icount.0);
    while let Ok(Some(c)) = stored.next(&store) {
        if c.at.icount.0 - from.min(c.at.icount.0) < apart {
            continue;
        }
        from = c.at.icount.0;
        // Nobody listens any more only if every thread has died.
        let _ = tx.send(Segment { n, begin: begin.replace(c), end: Some(Icount(from)) });
        n += 1;
    }
    let _ = tx.send(Segment { n, begin, end: None });
}

/// Cuts the trace where the translator, running ahead, takes checkpoints.
fn scout(trace: &Arc<Trace>, options: VerifyOptions, apart: u64, tx: &mpsc::SyncSender<Segment>) {
    let options = VerifyOptions { engine: Engine::Jit, lockstep: None, mutation: None, ..options };
    let interval = trace.config().hash_interval;
    let (mut begin, mut n) = (None, 0);
    // If it cannot go on, the rest is one segment, and whoever verifies that finds out why.
    if let Ok(mut ahead) = Replay::new(trace, options, Box::new(NullSink)) {
        let mut keeper = ahead.keeper();
        loop {
            let to = Icount((ahead.vm.when().icount.0 + apart).div_ceil(interval) * interval);
            if ahead.run(Some(to)) != VmExit::Reached {
                break;
            }
            let digest = ahead.digest().clone();
            let c = keeper.capture(&mut ahead.vm, &digest);
            let _ = tx.send(Segment { n, begin: begin.replace(c), end: Some(to) });
            n += 1;
        }
    }
    let _ = tx.send(Segment { n, begin, end: None });
}

/// What a segment came to: state hashes compared, or, of the last one, the report.
enum Part {
    Inner { hashes: u64 },
    Last(Report),
}

fn verify_segment(
    trace: &Arc<Trace>,
    options: VerifyOptions,
    segment: &Segment,
    told: &dyn Fn(u64, u64),
) -> Result<Part, VerifyError> {
    let mut replay = Replay::at(trace, options, Box::new(NullSink), segment.begin.as_ref())?;
    loop {
        let at = replay.vm.when().icount;
        let step = at + PROGRESS_EVERY;
        let exit = replay.run(Some(segment.end.map_or(step, |end| end.min(step))));
        told(replay.vm.when().icount - at, replay.monitor.hashes());
        if let Some(result) = replay.conclude(exit) {
            return result.map(Part::Last);
        }
        if segment.end.is_some_and(|end| replay.vm.when().icount >= end) {
            return joined(trace, &mut replay);
        }
    }
}

/// Does the replay stand where the next segment begins?
fn joined(trace: &Arc<Trace>, replay: &mut Replay) -> Result<Part, VerifyError> {
    let (when, hash, output) = (replay.vm.when(), replay.vm.state_hash(), replay.digest().value());
    let difference = match trace.hash_at(when.icount)? {
        None => Some(Difference::NoHash),
        Some((_, _, recorded)) if recorded != output => Some(Difference::Output { recorded, found: output }),
        Some((recorded, ..)) if recorded.time != when.time => {
            Some(Difference::Time { recorded: recorded.time, found: when.time })
        }
        Some((_, recorded, _)) if recorded != hash => Some(Difference::State { recorded, found: hash }),
        Some(_) => None,
    };
    if let Some(what) = difference {
        replay.monitor.diverge(when.icount, what);
    }
    match replay.monitor.divergence() {
        Some(divergence) => Err(VerifyError::Diverged { file: trace.name().to_owned(), divergence }),
        None => Ok(Part::Inner { hashes: replay.monitor.hashes() }),
    }
}

fn combine(
    trace: &Arc<Trace>,
    options: VerifyOptions,
    parts: BTreeMap<usize, Result<Part, VerifyError>>,
) -> Result<Report, VerifyError> {
    let mut sum = 0;
    for part in parts.into_values() {
        match part {
            Ok(Part::Inner { hashes }) => sum += hashes,
            Ok(Part::Last(report)) => return Ok(Report { hashes: sum + report.hashes, ..report }),
            // The trace is what counts: a checkpoint is only a help.
            Err(VerifyError::Checkpoint { .. }) => {
                let report = verify(trace, options, &mut |_| ())?;
                return Ok(Report { wrong_checkpoint: true, ..report });
            }
            Err(e) => return Err(e),
        }
    }
    verify(trace, options, &mut |_| ())
}
