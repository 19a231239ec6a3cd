//! One run of the guest benchmark, or of a boot: starts a process, takes the time of each line it prints, and collects
//! what the lines say.

use crate::clock::Clock;
use crate::options::Options;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What one program did in one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Host seconds of each repetition.
    pub seconds: Vec<f64>,
    /// The checksum of each repetition, as printed.
    pub checksums: Vec<String>,
}

/// What a run printed, with times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Seconds from the start of the process to the line `ready`.
    pub ready: Option<f64>,
    pub programs: BTreeMap<String, Measured>,
    /// The line `done` came: nothing is missing.
    pub complete: bool,
    running: Option<(String, f64)>,
    /// Last lines that are not the benchmark's, for messages.
    other: Vec<String>,
}

impl Run {
    /// Takes in a line that came `at` seconds after the start.
    fn line(&mut self, at: f64, line: &str) {
        let line = line.trim_end();
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("ready"), None, None) => self.ready = Some(at),
            (Some("done"), None, None) => self.complete = true,
            (Some("start"), Some(name), None) => self.running = Some((name.to_owned(), at)),
            (Some("end"), Some(name), Some(sum)) => match self.running.take() {
                Some((started, since)) if started == name => {
                    // A process of the host has measured itself.
                    let own = words.next().and_then(|w| w.parse::<f64>().ok()).map(|ns| ns / 1e9);
                    let m = self.programs.entry(started).or_default();
                    m.seconds.push(own.unwrap_or(at - since));
                    m.checksums.push(sum.to_owned());
                }
                _ => self.other.push(line.to_owned()),
            },
            (None, ..) => {}
            _ => self.other.push(line.to_owned()),
        }
    }

    pub fn median(&self, program: &str) -> Option<f64> {
        self.programs.get(program).and_then(|m| median(&m.seconds))
    }

    pub fn failure(&self, why: &str) -> String {
        let during = self.running.as_ref().map_or(String::new(), |(name, _)| format!(" in `{name}`"));
        let from = self.other.len().saturating_sub(5);
        let tail: String = self.other[from..].iter().map(|l| format!("\n    {l}")).collect();
        format!("{why}{during}{tail}")
    }
}

/// The median; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut v = values.to_vec();
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => None,
        n if n % 2 == 1 => Some(v[n / 2]),
        n => Some(f64::midpoint(v[n / 2 - 1], v[n / 2])),
    }
}

/// Runs `command` to its end, at most for the timeout. What it measured comes back even if it failed; the string says
/// why it did.
pub fn run(command: &mut Command, o: &Options) -> (Run, Result<(), String>) {
    run_for(command, o.timeout, o.cpu_time)
}

fn run_for(command: &mut Command, timeout: Duration, cpu_time: bool) -> (Run, Result<(), String>) {
    let mut run = Run::default();
    let start = Instant::now();
    // Standard input stays open and silent: a guest whose console is closed would not wait for anything.
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) => return (run, Err(format!("{}: {e}", command.get_program().to_string_lossy()))),
    };
    let errors = child.stderr.take().map(drain);
    let clock = Clock::of(child.id(), start, cpu_time);
    let lines = timed_lines(&mut child, clock);
    let ended = follow(&mut run, &lines, start + timeout);
    if ended.is_err() {
        // It may have ended by itself meanwhile.
        let _ = child.kill();
    }
    let status = child.wait();
    let errors = errors.and_then(|e| e.join().ok()).unwrap_or_default();
    run.other.extend(errors.lines().map(str::to_owned));
    let done = match (ended, status) {
        (Err(why), _) => Err(run.failure(&why)),
        (Ok(()), Ok(s)) if s.success() => Ok(()),
        (Ok(()), Ok(s)) => Err(run.failure(&s.to_string())),
        (Ok(()), Err(e)) => Err(e.to_string()),
    };
    (run, done)
}

/// Reads a stream to its end on a thread of its own.
fn drain(mut stream: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is worth showing.
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The lines of a child's standard output with the seconds at which they came.
fn timed_lines(child: &mut Child, clock: Clock) -> Receiver<(f64, String)> {
    let (sender, lines) = channel();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut out = BufReader::new(out);
            let mut line = Vec::new();
            while out.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let at = clock.seconds();
                if sender.send((at, String::from_utf8_lossy(&line).into_owned())).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    lines
}

fn follow(run: &mut Run, lines: &Receiver<(f64, String)>, deadline: Instant) -> Result<(), String> {
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok((at, line)) => run.line(at, &line),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => return Err("took too long (--timeout)".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_times_and_checksums() {
        let mut r = Run::default();
        let lines = [
            "[ 0.1] noise",
            "ready\r",
            "start a",
            "end a 1f",
            "start a",
            "end a 1f 2000000000",
            "end b 2",
            "done",
        ];
        lines.iter().enumerate().for_each(|(at, l)| r.line(at as f64, l));
        assert_eq!(r.ready, Some(1.0));
        assert_eq!(r.programs["a"], Measured { seconds: vec![1.0, 2.0], checksums: vec!["1f".into(); 2] });
        assert!(r.complete && !r.programs.contains_key("b"));
        assert_eq!(r.other, ["[ 0.1] noise", "end b 2"]);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; echo start x; echo oops; exit 3"]);
        let (run, done) = run_for(&mut command, Duration::from_secs(60), false);
        assert!(run.ready.is_some() && !run.complete);
        assert_eq!(done.unwrap_err(), "exit status: 3 in `x`\n    oops");
    }
}
