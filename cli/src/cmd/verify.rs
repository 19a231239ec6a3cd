//! `retrovisor verify`: replays traces and compares everything they recorded.

use super::board::Board;
use super::report;
use anyhow::Result;
use retrovisor_replay::compare::Progress;
use retrovisor_replay::{Trace, VerifyError, VerifyOptions, verify as verify_trace};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The result over all traces; the worst one counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Verdict {
    /// Every state hash, every output and every end was equal.
    #[default]
    Exact,
    /// A replay differed from its trace.
    Diverged,
    /// A trace could not be replayed.
    Unusable,
}

impl Verdict {
    /// The verdict on a trace that failed with `error`.
    pub const fn of(error: &VerifyError) -> Self {
        match error {
            VerifyError::Diverged { .. } | VerifyError::Lockstep { .. } => Verdict::Diverged,
            VerifyError::Trace(_) | VerifyError::Load { .. } | VerifyError::Interrupted { .. } => {
                Verdict::Unusable
            }
        }
    }
}

/// `verify`: one line a trace, in the order given, by up to `jobs` threads (0: one a CPU).
///
/// # Errors
/// If the lines cannot be written.
pub fn verify(paths: &[PathBuf], options: VerifyOptions, jobs: usize, board: &Board) -> Result<Verdict> {
    let jobs = if jobs == 0 { std::thread::available_parallelism().map_or(1, |n| n.get()) } else { jobs };
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((n, path)) = paths.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed)) {
            let (line, verdict) = one(path, options, &mut |p| board.progress(n, path, p));
            board.finish(n, line, verdict);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, paths.len().max(1)) {
            scope.spawn(work);
        }
    });
    board.verdict()
}

/// One trace: the line to print and the verdict.
fn one(path: &Path, options: VerifyOptions, progress: &mut dyn FnMut(Progress)) -> (String, Verdict) {
    let result = match Trace::open(path) {
        Ok(trace) => verify_trace(&trace, options, progress),
        Err(e) => Err(e.into()),
    };
    match result {
        Ok(r) => (report::line(&path.display().to_string(), &r), Verdict::Exact),
        Err(e) => (e.to_string(), Verdict::of(&e)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::board::tests::board;
    use super::*;

    #[test]
    fn test_unusable_traces_get_a_line_each_in_order() {
        let paths: Vec<_> = (0..5).map(|n| PathBuf::from(format!("/nonexistent/{n}.rvt"))).collect();
        for jobs in [0, 1, 3, 100] {
            let (board, out, err) = board(5, None);
            assert_eq!(verify(&paths, VerifyOptions::default(), jobs, &board).unwrap(), Verdict::Unusable);
            assert_eq!(out.take(), "");
            let text = err.take();
            for (n, line) in text.lines().enumerate() {
                assert!(line.starts_with(&format!("/nonexistent/{n}.rvt: ")), "{line}");
            }
            assert_eq!(text.lines().count(), 5);
        }
    }
}
