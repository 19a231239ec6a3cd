//! What a verification says while it works: a line a trace, in the order given, and on a terminal one status line.

use super::verify::Verdict;
use anyhow::Result;
use retrovisor_replay::compare::Progress;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where all threads of a verification say what they found.
pub struct Board {
    state: Mutex<State>,
}

struct State {
    /// For what is exact.
    out: Box<dyn Write + Send>,
    /// For the rest, and the status.
    err: Box<dyn Write + Send>,
    /// Columns of the terminal `err` goes to, if it is one.
    columns: Option<usize>,
    /// Lines not printed yet because one before them is missing.
    waiting: BTreeMap<usize, (String, Verdict)>,
    /// Traces at work: name and percent.
    running: BTreeMap<usize, (String, u64)>,
    printed: usize,
    done: usize,
    total: usize,
    worst: Verdict,
    /// The last status line.
    status: String,
    drawn: Option<Instant>,
    error: Option<io::Error>,
}

/// Time between two status lines.
const REDRAW: Duration = Duration::from_millis(100);

impl Board {
    /// A board for `total` traces. `columns`: the width of the terminal `err` goes to, if it is one.
    pub fn new(
        total: usize,
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
        columns: Option<usize>,
    ) -> Self {
        let state = State {
            out,
            err,
            columns,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            printed: 0,
            done: 0,
            total,
            worst: Verdict::Exact,
            status: String::new(),
            drawn: None,
            error: None,
        };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Trace `n` has come so far.
    pub fn progress(&self, n: usize, path: &Path, p: Progress) {
        let mut state = self.lock();
        if state.columns.is_none() {
            return;
        }
        let percent = (u128::from(p.at.0) * 100 / u128::from(p.end.0.max(1))).min(100) as u64;
        let name = || path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        state.running.entry(n).or_insert_with(|| (name(), 0)).1 = percent;
        if state.drawn.is_none_or(|at| at.elapsed() >= REDRAW) {
            state.drawn = Some(Instant::now());
            state.draw();
        }
    }

    /// Trace `n` is done.
    pub fn finish(&self, n: usize, line: String, verdict: Verdict) {
        let mut state = self.lock();
        state.running.remove(&n);
        state.done += 1;
        state.worst = state.worst.max(verdict);
        state.waiting.insert(n, (line, verdict));
        while let Some((line, verdict)) = {
            let next = state.printed;
            state.waiting.remove(&next)
        } {
            state.print(&line, verdict);
            state.printed += 1;
        }
        if state.done == state.total { state.clear() } else { state.draw() }
    }

    /// The worst verdict.
    pub fn verdict(&self) -> Result<Verdict> {
        let mut state = self.lock();
        state.error.take().map_or(Ok(state.worst), |e| Err(e.into()))
    }

    /// A signal ends the process: says what is known, and lets nobody say more.
    pub fn interrupted(&self, end: impl FnOnce()) {
        let mut state = self.lock();
        for (_, (line, verdict)) in std::mem::take(&mut state.waiting) {
            state.print(&line, verdict);
        }
        state.clear();
        let (done, total) = (state.done, state.total);
        let _ = writeln!(state.err, "retrovisor: interrupted: {done} of {total} traces verified");
        end();
    }
}

impl State {
    /// Prints a line above the status line.
    fn print(&mut self, line: &str, verdict: Verdict) {
        self.clear();
        let to = if verdict == Verdict::Exact { &mut self.out } else { &mut self.err };
        if let Err(e) = writeln!(to, "{line}").and_then(|()| to.flush()) {
            self.error.get_or_insert(e);
        }
    }

    fn clear(&mut self) {
        if !std::mem::take(&mut self.status).is_empty() {
            let _ = write!(self.err, "\r\x1b[K").and_then(|()| self.err.flush());
        }
    }

    fn draw(&mut self) {
        let Some(columns) = self.columns else { return };
        let done = (self.total > 1).then(|| format!("{} of {} done", self.done, self.total));
        let running = self.running.values().map(|(name, percent)| format!("{name} {percent}%"));
        let parts: Vec<_> = done.into_iter().chain(running).collect();
        // One column stays free: a full line would wrap.
        let shown = |c: char| if c.is_control() { '?' } else { c };
        let text: String = parts.join(", ").chars().map(shown).take(columns.saturating_sub(1)).collect();
        if text != self.status {
            let _ = write!(self.err, "\r{text}\x1b[K").and_then(|()| self.err.flush());
            self.status = text;
        }
    }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use retrovisor_core::Icount;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    pub struct Text(Arc<Mutex<Vec<u8>>>);

    impl Write for Text {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(buf)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Text {
        pub fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
        }
    }

    pub fn board(total: usize, columns: Option<usize>) -> (Board, Text, Text) {
        let (out, err) = (Text::default(), Text::default());
        (Board::new(total, Box::new(out.clone()), Box::new(err.clone()), columns), out, err)
    }

    fn at(at: u64) -> Progress {
        Progress { at: Icount(at), end: Icount(200), hashes: 0 }
    }

    #[test]
    fn test_status_is_one_line_that_goes_before_results() {
        let (board, out, err) = board(3, Some(30));
        board.progress(1, Path::new("/x/b.rvt"), at(50));
        assert_eq!(err.take(), "\r0 of 3 done, b.rvt 25%\x1b[K");
        board.progress(2, Path::new("/x/c.rvt"), at(50));
        assert_eq!(err.take(), "", "not so soon");
        board.finish(1, "b is exact".into(), Verdict::Exact);
        assert_eq!(
            (out.take(), err.take()),
            (String::new(), "\r1 of 3 done, c.rvt 25%\x1b[K".into()),
            "a comes first"
        );
        board.finish(0, "a diverged".into(), Verdict::Diverged);
        assert_eq!(out.take(), "b is exact\n");
        assert_eq!(err.take(), "\r\x1b[Ka diverged\n\r2 of 3 done, c.rvt 25%\x1b[K");
        board.finish(2, "c is exact".into(), Verdict::Exact);
        assert_eq!(err.take(), "\r\x1b[K", "nothing stays");
        assert_eq!(board.verdict().unwrap(), Verdict::Diverged);
    }

    #[test]
    fn test_narrow_terminals_and_odd_names_keep_one_line() {
        let (board, _, err) = board(1, Some(10));
        board.progress(0, Path::new("a\nlong name.rvt"), at(20));
        assert_eq!(err.take(), "\ra?long na\x1b[K");
        let (silent, _, err) = self::board(1, None);
        silent.progress(0, Path::new("a.rvt"), at(20));
        assert_eq!(err.take(), "", "no terminal");
    }

    #[test]
    fn test_interruption_says_what_is_known() {
        let (board, out, err) = board(3, Some(80));
        board.progress(0, Path::new("a.rvt"), at(100));
        board.finish(2, "c is exact".into(), Verdict::Exact);
        err.take();
        let mut ended = false;
        board.interrupted(|| ended = true);
        assert_eq!((out.take().as_str(), ended), ("c is exact\n", true));
        assert_eq!(err.take(), "\r\x1b[Kretrovisor: interrupted: 1 of 3 traces verified\n");
    }
}
