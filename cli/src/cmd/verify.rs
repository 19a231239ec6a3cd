//! `retrovisor verify`: replays traces and compares everything they recorded.

use super::report;
use anyhow::Result;
use retrovisor_replay::compare::Progress;
use retrovisor_replay::{Trace, VerifyError, VerifyOptions, verify as verify_trace};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

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

/// `verify`: one line a trace, in the order given, by up to `jobs` threads; what is exact on `out`, the rest on `err`.
/// `progress` is called from any thread.
///
/// # Errors
/// If `out` or `err` cannot be written.
pub fn verify(
    paths: &[PathBuf],
    options: VerifyOptions,
    jobs: usize,
    progress: &(dyn Fn(&Path, Progress) + Sync),
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Verdict> {
    let next = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, paths.len().max(1)) {
            let (next, sender) = (&next, sender.clone());
            scope.spawn(move || {
                while let Some((n, path)) = paths.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed))
                {
                    // The receiver lives until all threads have ended.
                    let _ = sender.send((n, one(path, options, progress)));
                }
            });
        }
        drop(sender);
        print_in_order(&results, out, err)
    })
}

/// One trace: the line to print and the verdict.
fn one(
    path: &Path,
    options: VerifyOptions,
    progress: &(dyn Fn(&Path, Progress) + Sync),
) -> (String, Verdict) {
    let result = match Trace::open(path) {
        Ok(trace) => verify_trace(&trace, options, &mut |p| progress(path, p)),
        Err(e) => Err(e.into()),
    };
    match result {
        Ok(r) => (report::line(&path.display().to_string(), &r), Verdict::Exact),
        Err(e) => (e.to_string(), Verdict::of(&e)),
    }
}

fn print_in_order(
    results: &mpsc::Receiver<(usize, (String, Verdict))>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Verdict> {
    let mut waiting = std::collections::BTreeMap::new();
    let (mut next, mut worst) = (0, Verdict::Exact);
    for (n, result) in results {
        waiting.insert(n, result);
        while let Some((line, verdict)) = waiting.remove(&next) {
            let to: &mut dyn Write = if verdict == Verdict::Exact { out } else { err };
            writeln!(to, "{line}")?;
            to.flush()?;
            worst = worst.max(verdict);
            next += 1;
        }
    }
    Ok(worst)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_unusable_traces_get_a_line_each_in_order() {
        let paths: Vec<_> = (0..5).map(|n| PathBuf::from(format!("/nonexistent/{n}.rvt"))).collect();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let verdict = verify(&paths, VerifyOptions::default(), 3, &|_, _| (), &mut out, &mut err).unwrap();
        assert_eq!(verdict, Verdict::Unusable);
        assert!(out.is_empty());
        let text = String::from_utf8(err).unwrap();
        for (n, line) in text.lines().enumerate() {
            assert!(line.starts_with(&format!("/nonexistent/{n}.rvt: ")), "{line}");
        }
        assert_eq!(text.lines().count(), 5);
    }
}
