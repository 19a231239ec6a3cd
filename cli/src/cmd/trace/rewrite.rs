//! `trace checkpoint` and `trace trim`: the same run in a trace that can be begun anywhere, and a part of it.

use super::info::grouped;
use super::{Point, open};
use crate::cmd::board::Board;
use crate::cmd::verify::Verdict;
use anyhow::Result;
use retrovisor_core::Icount;
use retrovisor_replay::rewrite::{self, RewriteError, Rewritten};
use retrovisor_replay::{Trace, TraceError, VerifyOptions, What};
use std::path::Path;

/// `trace checkpoint`: the trace with a checkpoint every `every` instructions, to the file `to`.
///
/// # Errors
/// If the trace cannot be read or `to` cannot be written; what `to` was before stays then, as it does after a divergence.
pub fn checkpoint(path: &Path, every: u64, to: &Path, board: &Board) -> Result<Verdict> {
    let trace = open(path)?;
    let progress = &mut |p| board.progress(0, path, p);
    let done = rewrite::checkpoint(&trace, to, every, VerifyOptions::default(), progress);
    let before = trace.size() - trace.checkpoint_bytes().0;
    conclude(done, board, |r| {
        let (n, more) = (r.checkpoints, grouped(r.size.saturating_sub(before)));
        format!("{}: {n} checkpoint{} in {more} bytes", to.display(), if n == 1 { "" } else { "s" })
    })
}

/// `trace trim`: the part of the trace in `range`, to the file `to`.
///
/// # Errors
/// As [`checkpoint`], or if the range is not in the trace.
pub fn trim(path: &Path, range: (Option<Point>, Option<Point>), to: &Path, board: &Board) -> Result<Verdict> {
    let trace = open(path)?;
    let range = (begin(&trace, range.0)?, end(&trace, range.1)?);
    let progress = &mut |p| board.progress(0, path, p);
    let done = rewrite::trim(&trace, to, range, VerifyOptions::default(), progress);
    conclude(done, board, |r| {
        let (begin, end) = (r.begin, r.end);
        format!("{}: instructions {begin} to {end}, {} bytes", to.display(), grouped(r.size))
    })
}

fn conclude(
    done: Result<Rewritten, RewriteError>,
    board: &Board,
    line: impl FnOnce(Rewritten) -> String,
) -> Result<Verdict> {
    match done {
        Ok(r) => board.finish(0, line(r), Verdict::Exact),
        Err(RewriteError::Replay(e)) => board.finish(0, e.to_string(), Verdict::of(&e)),
        Err(e) => {
            board.clear();
            return Err(e.into());
        }
    }
    board.verdict()
}

/// The icount of the last hash point up to a guest time.
fn begin(trace: &Trace, from: Option<Point>) -> Result<Icount, TraceError> {
    match from {
        None => Ok(trace.start().icount),
        Some(Point::Icount(n)) => Ok(Icount(n)),
        Some(Point::Time(t)) => {
            let points = hash_points(trace)?;
            let last = points.into_iter().take_while(|(_, time)| *time <= t).last();
            Ok(last.map_or(trace.start().icount, |(at, _)| at))
        }
    }
}

/// The icount of the first hash point from a guest time on.
fn end(trace: &Trace, to: Option<Point>) -> Result<Icount, TraceError> {
    let whole = trace.ending().when().icount;
    match to {
        None => Ok(whole),
        Some(Point::Icount(n)) => Ok(Icount(n)),
        Some(Point::Time(t)) => {
            let first = hash_points(trace)?.into_iter().find(|(_, time)| *time >= t);
            Ok(first.map_or(whole, |(at, _)| at))
        }
    }
}

fn hash_points(trace: &Trace) -> Result<Vec<(Icount, u64)>, TraceError> {
    let points = trace.records().filter(|r| r.as_ref().map_or(true, |r| matches!(r.what, What::Hash { .. })));
    points.map(|r| r.map(|r| (r.when.icount, r.when.time.0))).collect()
}
