//! Replay: the port that says exactly what the trace says, at exactly the points it says it.
//!
//! Records are consumed strictly in the order they were logged. Whatever the machine asks that the trace did not log,
//! or passes without asking, is a divergence: it is noted, and every later call tells the engine to leave. So a replay
//! that differs never hangs and never goes on in silence.

use crate::format::TraceError;
use crate::format::describe::query_name;
use crate::format::end::ExitReason;
use crate::format::record::{Record, What};
use crate::log::{Log, LogEnd};
use crate::mailbox::Mailbox;
use crate::output::{HashedOutput, OutputDigest};
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use retrovisor_core::output::OutputSink;
use retrovisor_core::{GuestTime, Icount};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How a replay differs from its trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Difference {
    /// The guest-visible state.
    State { recorded: StateHash, found: StateHash },
    /// What the guest has put out.
    Output { recorded: u64, found: u64 },
    /// The guest time at a hash point, or at the end.
    Time { recorded: GuestTime, found: GuestTime },
    /// The machine asked `query`, but the trace goes on with `recorded` (`None`: with nothing).
    Query { query: Query, recorded: Option<String> },
    /// The machine took a hash point where none is recorded.
    NoHash,
    /// The machine went past a record without asking for it.
    Missed { recorded: String },
    /// The machine waits for an input for ever, the trace goes on.
    Waits,
    /// The recorded run ended by itself here, the replay goes on.
    RunsOn { recorded: ExitReason },
    /// The replay ended by itself where the recorded run went on or ended otherwise.
    Ended { recorded: Option<ExitReason>, found: ExitReason },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::State { recorded, found } => {
                write!(f, "the state hash is {found}, recorded {recorded}")
            }
            Difference::Output { recorded, found } => {
                write!(f, "the output's digest is {found:016x}, recorded {recorded:016x}")
            }
            Difference::Time { recorded, found } => write!(f, "guest time is {found}, recorded {recorded}"),
            Difference::Query { query, recorded: Some(r) } => {
                write!(f, "the guest asks for {}, recorded is: {r}", query_name(*query))
            }
            Difference::Query { query, recorded: None } => {
                write!(f, "the guest asks for {}, nothing more is recorded", query_name(*query))
            }
            Difference::NoHash => write!(f, "no state hash is recorded at this hash point"),
            Difference::Missed { recorded } => write!(f, "the guest passes by what was recorded: {recorded}"),
            Difference::Waits => write!(f, "the guest waits for ever, the recorded run went on"),
            Difference::RunsOn { recorded } => {
                write!(f, "the guest runs on, the recorded run ended: {recorded}")
            }
            Difference::Ended { recorded: Some(r), found } => {
                write!(f, "the run ends: {found}, the recorded run ended: {r}")
            }
            Difference::Ended { recorded: None, found } => {
                write!(f, "the run ends: {found}, the recorded run went on")
            }
        }
    }
}

/// The first difference between a replay and its trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Divergence {
    /// The last hash point at which everything was equal (0: none was reached).
    pub after: Icount,
    /// Where the difference was seen.
    pub at: Icount,
    pub what: Difference,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "diverged between instructions {} and {}: {}", self.after, self.at, self.what)
    }
}

#[derive(Default)]
struct Progress {
    divergence: Option<Divergence>,
    error: Option<TraceError>,
    hashes: u64,
    /// Last hash point found equal.
    good: Icount,
    /// The machine was changed by its owner, so state may differ from now on.
    poked: bool,
    /// Records consumed, counted from the beginning of a frame: number of that frame, number of records.
    consumed: (usize, usize),
}

/// What a player has found so far; stays readable while the machine owns the player.
#[derive(Clone, Default)]
pub struct PlayMonitor {
    progress: Arc<Mutex<Progress>>,
}

impl PlayMonitor {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The first difference, if there is one.
    pub fn divergence(&self) -> Option<Divergence> {
        self.lock().divergence.clone()
    }
    /// Why the trace could not be read further, if so.
    pub fn error(&self) -> Option<TraceError> {
        self.lock().error.clone()
    }
    /// State hashes compared and found equal.
    pub fn hashes(&self) -> u64 {
        self.lock().hashes
    }
    /// The last hash point found equal.
    pub fn last_good(&self) -> Icount {
        self.lock().good
    }
    /// Did the machine's owner change it, so that hashes are no longer compared?
    pub fn poked(&self) -> bool {
        self.lock().poked
    }

    /// How much of the log has been played: so many records from the beginning of a frame.
    pub(crate) fn consumed(&self) -> (usize, usize) {
        self.lock().consumed
    }

    /// Notes a difference; the first one stays.
    pub fn diverge(&self, at: Icount, what: Difference) {
        let mut p = self.lock();
        let after = p.good;
        p.divergence.get_or_insert(Divergence { after, at, what });
    }
}

/// An input port that plays a trace.
pub struct Player {
    log: Arc<dyn Log>,
    mailbox: Arc<Mailbox>,
    monitor: PlayMonitor,
    output: OutputDigest,
    /// Records of the frames read so far that are not yet consumed.
    queue: VecDeque<Record>,
    /// Points of the asynchronous events in `queue`.
    events: VecDeque<Icount>,
    next_frame: usize,
    /// Everything up to this point is in `queue`.
    known: When,
    more: bool,
    end: LogEnd,
    /// `poll` had nothing at this icount and nothing was consumed since.
    looked: Option<Icount>,
    /// The last hash point.
    hashed: Option<Icount>,
    /// A divergence or an unreadable trace: leave.
    stopped: bool,
}

impl Player {
    /// A player of `log` from power-on; `mailbox` is listened to for interrupts only.
    pub fn new(log: Arc<dyn Log>, mailbox: Arc<Mailbox>) -> Self {
        Self {
            end: log.end(),
            log,
            mailbox,
            monitor: PlayMonitor::default(),
            output: OutputDigest::default(),
            queue: VecDeque::new(),
            events: VecDeque::new(),
            next_frame: 0,
            known: When::default(),
            more: true,
            looked: None,
            hashed: None,
            stopped: false,
        }
    }

    /// A player for a machine that stands where it first arrived at `icount`. It goes on telling `monitor`, and compares
    /// `output`, which its owner has restored.
    ///
    /// # Errors
    /// If the log cannot be read there.
    pub fn resume(
        log: Arc<dyn Log>,
        mailbox: Arc<Mailbox>,
        icount: Icount,
        monitor: PlayMonitor,
        output: OutputDigest,
    ) -> Result<Self, TraceError> {
        let next_frame = log.frame_at(icount)?;
        let known = log.frame(next_frame)?.map_or_else(|| log.end().when, |f| f.start);
        let mut player = Self { next_frame, known, monitor, output, ..Self::new(log, mailbox) };
        player.monitor.lock().consumed = (next_frame, 0);
        while player.more && player.known.icount < icount {
            player.read_frame();
            while player.queue.front().is_some_and(|r| r.when.icount < icount) {
                player.pop();
            }
        }
        Ok(player)
    }

    /// What this player finds, readable after the machine has taken the player.
    pub fn monitor(&self) -> PlayMonitor {
        self.monitor.clone()
    }

    /// A sink that passes output on to `inner` and lets this player compare it.
    pub fn output<S: OutputSink>(&self, inner: S) -> HashedOutput<S> {
        HashedOutput::new(inner, self.output.clone())
    }

    /// The digest of the replay's own output.
    pub fn digest(&self) -> OutputDigest {
        self.output.clone()
    }

    fn diverge(&mut self, at: Icount, what: Difference) {
        self.monitor.diverge(at, what);
        self.stopped = true;
    }

    /// Reads the next frame.
    fn read_frame(&mut self) {
        match self.log.frame(self.next_frame) {
            Ok(Some(frame)) if frame.start == self.known => {
                self.next_frame += 1;
                self.known = frame.end;
                let async_points = frame.records.iter().filter(|r| matches!(r.what, What::Event(_)));
                self.events.extend(async_points.map(|r| r.when.icount));
                self.queue.extend(frame.records);
            }
            Ok(None) => self.more = false,
            Ok(Some(_)) => self.unreadable(self.log.out_of_order(self.next_frame)),
            Err(e) => self.unreadable(e),
        }
    }

    /// The trace makes no sense from here on: it ends here.
    fn unreadable(&mut self, e: TraceError) {
        self.monitor.lock().error.get_or_insert(e);
        self.more = false;
        self.end = LogEnd { when: self.known, own: None, open: true };
    }

    /// Reads frames until everything at `icount` is known, and everything up to `time` while idle there.
    fn read_to(&mut self, icount: Icount, time: GuestTime) {
        while self.more
            && (self.known.icount < icount || (self.known.icount == icount && self.known.time <= time))
        {
            self.read_frame();
        }
    }

    /// Takes the record in front.
    fn pop(&mut self) -> Option<Record> {
        let record = self.queue.pop_front()?;
        self.monitor.lock().consumed.1 += 1;
        if matches!(record.what, What::Event(_)) {
            self.events.pop_front();
        }
        self.looked = None;
        Some(record)
    }

    /// Notes a divergence if the machine has passed the record in front.
    fn check_missed(&mut self, now: When) -> bool {
        let Some(front) = self.queue.front() else { return false };
        let late = now.time > front.when.time && matches!(front.what, What::Event(_));
        if now.icount < front.when.icount || (now.icount == front.when.icount && !late) {
            return false;
        }
        let recorded = format!("{} at instruction {}", front.what, front.when.icount);
        self.diverge(now.icount, Difference::Missed { recorded });
        true
    }

    /// Is `now` where the trace ends? Nothing may be left in the queue.
    fn at_end(&mut self, now: When) -> bool {
        if self.more || !self.queue.is_empty() {
            return false;
        }
        match self.end.own {
            // The machine must come to this end by itself, before its next instruction.
            Some(recorded) if now.icount > self.end.when.icount => {
                self.diverge(now.icount, Difference::RunsOn { recorded });
                true
            }
            Some(_) => false,
            None => now >= self.end.when,
        }
    }

    /// The difference between a recorded hash point and the machine, if any.
    fn compare(&self, now: When, found: StateHash, digest: u64, recorded: &Record) -> Option<Difference> {
        let What::Hash { hash, output } = recorded.what else { return None };
        if output != digest {
            Some(Difference::Output { recorded: output, found: digest })
        } else if recorded.when.time != now.time {
            Some(Difference::Time { recorded: recorded.when.time, found: now.time })
        } else if hash != found {
            Some(Difference::State { recorded: hash, found })
        } else {
            None
        }
    }
}

impl InputPort for Player {
    fn poll(&mut self, now: When) -> Poll {
        if self.mailbox.take_interrupt() {
            return Poll::Interrupt;
        }
        self.read_to(now.icount, now.time);
        if self.stopped || self.check_missed(now) {
            return Poll::End;
        }
        let due = self.queue.front().is_some_and(|r| r.when == now && matches!(r.what, What::Event(_)));
        if due && let Some(Record { what: What::Event(event), .. }) = self.pop() {
            return Poll::Event(event);
        }
        if self.at_end(now) {
            return Poll::End;
        }
        self.looked = Some(now.icount);
        Poll::None
    }

    /// The next event, the end of what is read so far, or the end of the trace; never a point where `poll` had
    /// nothing already.
    fn next_poll(&self) -> Option<Icount> {
        let next = match self.events.front() {
            _ if self.stopped => return Some(Icount(0)),
            Some(icount) => *icount,
            None if self.more => self.known.icount,
            None => self.end.when.icount,
        };
        match self.looked {
            Some(looked) if looked >= next => Some(looked + 1),
            _ => Some(next),
        }
    }

    fn answer(&mut self, now: When, query: Query) -> u64 {
        while self.more && self.queue.is_empty() {
            self.read_frame();
        }
        let logged = match self.queue.front() {
            Some(Record { when, what: What::Answer { query: q, value } }) if *when == now && *q == query => {
                Some(*value)
            }
            _ => None,
        };
        if let Some(value) = logged {
            self.pop();
            return value;
        }
        let cut = self.queue.is_empty() && self.end.open;
        if !self.stopped && !cut {
            let recorded = self.queue.front().map(|r| format!("{} at instruction {}", r.what, r.when.icount));
            self.diverge(now.icount, Difference::Query { query, recorded });
        }
        // The engine leaves at its next poll; until then time stands still.
        if query == Query::HostTime { now.time.0 } else { 0 }
    }

    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        // Without a deadline everything at this icount matters.
        self.read_to(now.icount, deadline.unwrap_or(GuestTime(u64::MAX)));
        if self.stopped || self.check_missed(now) {
            return Idle::End;
        }
        self.looked = None;
        let next = match self.queue.front() {
            Some(r) if r.when.icount == now.icount && matches!(r.what, What::Event(_)) => Some(r.when.time),
            None if !self.more && self.end.when.icount == now.icount => {
                let end = self.end.when.time;
                if now.time >= end && deadline.is_none_or(|d| d > end) {
                    return Idle::End;
                }
                Some(end)
            }
            _ => None,
        };
        match (next, deadline) {
            (Some(time), Some(deadline)) if time >= deadline => Idle::Deadline,
            (Some(time), _) => Idle::Input(time.max(now.time)),
            (None, Some(_)) => Idle::Deadline,
            (None, None) => {
                self.diverge(now.icount, Difference::Waits);
                Idle::End
            }
        }
    }

    /// A write by the machine's owner is no part of the trace: hashes are no longer compared.
    fn inject(&mut self, _now: When, _event: &InputEvent) {
        self.monitor.lock().poked = true
    }

    fn check(&mut self, now: When, hash: StateHash) -> bool {
        self.read_to(now.icount, now.time);
        if self.stopped {
            return false;
        }
        // An engine that is stopped at a hash point may take it again when it goes on.
        if self.hashed.replace(now.icount) == Some(now.icount) {
            return true;
        }
        let digest = self.output.close();
        let is_hash = |r: &Record| matches!(r.what, What::Hash { .. }) && r.when.icount == now.icount;
        let record = if self.queue.front().is_some_and(is_hash) { self.pop() } else { None };
        if self.monitor.poked() {
            return true;
        }
        let Some(record) = record else {
            self.diverge(now.icount, Difference::NoHash);
            return false;
        };
        if let Some(what) = self.compare(now, hash, digest, &record) {
            self.diverge(now.icount, what);
            return false;
        }
        let mut p = self.monitor.lock();
        p.hashes += 1;
        p.good = now.icount;
        true
    }
}
