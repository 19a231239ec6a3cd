//! Branches: a run that goes on from a point of its past in another way. The branch that was left is kept, with its log,
//! its checkpoints and its newest point, and can be gone back to.

use crate::divert::Diverted;
use crate::format::end::{EndRecord, ExitReason};
use crate::format::writer::Frames;
use crate::history::History;
use crate::log::{Log, Tape};
use crate::record::{RecordError, Recording, Track};
use crate::timeline::{Head, Timeline, TimelineError};
use retrovisor_core::Icount;
use retrovisor_core::input::When;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::output::NullSink;
use std::sync::Arc;

/// Branches kept at most beside the one the machine is on.
const MAX_BRANCHES: usize = 16;
/// Checkpoints kept of a branch the machine is not on.
const KEPT: usize = 24;

/// What is known of a branch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BranchInfo {
    /// 1 is the run that began at power-on.
    pub id: usize,
    /// The branch it left, and where.
    pub parent: Option<(usize, Icount)>,
    /// Its newest point.
    pub end: When,
    /// The machine is on it.
    pub current: bool,
}

/// Which branch this is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub id: usize,
    pub parent: Option<(usize, Icount)>,
}

/// A branch the machine is not on.
pub(crate) struct Parked {
    name: Name,
    history: History,
    rest: Rest,
}

/// How a parked branch goes on.
enum Rest {
    /// From its newest point, hearing what comes.
    Live(Track, Box<Head>),
    /// As its trace says; the machine left it at this point.
    Trace(Arc<dyn Log>, Icount),
}

const NO_SUCH: TimelineError = TimelineError::NoBranch("there is none with this number");

impl Timeline {
    /// All branches, by number.
    pub fn branches(&self, vm: &Vm) -> Vec<BranchInfo> {
        let info = |name: Name, end, current| BranchInfo { id: name.id, parent: name.parent, end, current };
        let mut all = vec![info(self.name, self.end(vm), true)];
        all.extend(self.parked.iter().map(|p| info(p.name, p.rest.end(), false)));
        all.sort_by_key(|b| b.id);
        all
    }

    /// Lets the run go on from here in another way: a new branch begins, whose newest point is this one. What the run was is
    /// kept as a branch of its own. In a live run the new branch hears what comes; in the replay of a trace nothing comes,
    /// and what the guest asks for is made up ([`Diverted`]). At the newest point of a live run nothing happens. The number
    /// of the branch the machine is on now.
    ///
    /// # Errors
    /// If the log cannot be read, or there are too many branches.
    pub fn branch(&mut self, vm: &mut Vm) -> Result<usize, TimelineError> {
        if self.is_live() {
            return Ok(self.name.id);
        }
        if self.parked.len() >= MAX_BRANCHES {
            return Err(TimelineError::NoBranch("there are too many, drop one first"));
        }
        // The file belongs to the branch that is left.
        self.end_checkpoints();
        let at = vm.when();
        let mut track = Track::new(&vm.config, self.played(vm, at)?, at);
        self.recording.swap(&mut track);
        let head = self.head.take();
        let rest = self.left(track, head, at.icount);
        if let Rest::Trace(..) = rest {
            let port = Diverted::new(at, &vm.config, Arc::clone(&self.mailbox));
            let doors = (self.recording.port(port), self.recording.output(NullSink));
            self.doors = Some((Box::new(doors.0), Box::new(doors.1)));
        }
        self.recording.digest().restore(self.digest.snapshot());
        let history = self.history.fork(at.icount);
        let name = Name { id: self.next_branch, parent: Some((self.name.id, at.icount)) };
        self.next_branch += 1;
        self.park(name, history, rest);
        self.grow_from(at.icount);
        self.enter_live(vm);
        Ok(self.name.id)
    }

    /// What has been played of the log, up to `at`, where the machine stands.
    fn played(&self, vm: &Vm, at: When) -> Result<Tape, TimelineError> {
        let ((frames, records), log) = (self.monitor.consumed(), self.log());
        let start = log.frame(frames)?.map_or_else(|| log.end().when, |f| f.start);
        let mut rest = Frames::new(&vm.config, start);
        let (mut left, mut n) = (records, frames);
        while left > 0 {
            let Some(frame) = log.frame(n)? else { break };
            rest.push_logged(frame.records.iter().take(left));
            left = left.saturating_sub(frame.records.len());
            n += 1;
        }
        let tape = Tape::fork(&vm.config, log, frames);
        tape.push(at, &rest.end(at).raw);
        Ok(tape)
    }

    /// Parks the branch the machine was on, which goes on with `rest`, in favour of another.
    fn park(&mut self, name: Name, history: History, rest: Rest) {
        self.seen = None;
        let left = std::mem::replace(&mut self.history, history);
        let old = std::mem::replace(&mut self.name, name);
        let mut parked = Parked { name: old, history: left, rest };
        self.history.adopt(&mut parked.history);
        parked.history.keep(KEPT);
        self.parked.push(parked);
    }

    /// Puts the machine to the newest point of branch `id`; on that of a trace, to where it was left.
    ///
    /// # Errors
    /// If there is no such branch, or it cannot be restored.
    pub fn switch(&mut self, vm: &mut Vm, id: usize) -> Result<(), TimelineError> {
        if id == self.name.id {
            return self.seek(vm, Icount(u64::MAX));
        }
        let n = self.parked.iter().position(|p| p.name.id == id).ok_or(NO_SUCH)?;
        let here = vm.when().icount;
        self.end_checkpoints();
        self.leave_head(vm);
        let Parked { name, history, rest } = self.parked.swap_remove(n);
        let to = rest.end().icount;
        let (mut track, head, trace) = match rest {
            Rest::Live(track, head) => (track, Some(head), None),
            // Nothing is recorded while the machine follows a trace.
            Rest::Trace(log, _) => {
                (Track::new(&vm.config, Tape::new(&vm.config), When::default()), None, Some(log))
            }
        };
        self.recording.swap(&mut track);
        let old = std::mem::replace(&mut self.head, head);
        let rest = self.left(track, old, here);
        self.trace = trace;
        self.park(name, history, rest);
        self.grow_from(to);
        self.seek(vm, to)
    }

    /// How the branch that was left at `here` goes on: from its head, or, on a trace, as that says.
    fn left(&mut self, track: Track, head: Option<Box<Head>>, here: Icount) -> Rest {
        match (self.trace.take(), head) {
            (Some(log), _) => Rest::Trace(log, here),
            (None, Some(head)) => Rest::Live(track, head),
            (None, None) => Rest::Trace(Arc::new(track.into_tape()), here),
        }
    }

    /// Forgets a branch the machine is not on. A file that is written of it ends where the branch was left.
    ///
    /// # Errors
    /// If there is no such branch, or its file could not be ended.
    pub fn drop_branch(&mut self, id: usize) -> Result<(), TimelineError> {
        if id == self.name.id {
            return Err(TimelineError::NoBranch("the machine is on this one"));
        }
        let n = self.parked.iter().position(|p| p.name.id == id).ok_or(NO_SUCH)?;
        Ok(self.parked.swap_remove(n).finish()?)
    }

    /// Forgets all branches but the one the machine is on.
    pub(crate) fn drop_branches(&mut self) {
        for mut branch in self.parked.drain(..) {
            // What was written of it stays readable if it cannot be ended.
            let _ = branch.finish();
        }
    }

    /// Ends the recording of a live run for `reason`: of this branch at its newest point, where `vm` is put, and of the
    /// others where they were left.
    ///
    /// # Errors
    /// If the machine cannot be put there, or a file could not be ended.
    pub fn finish(&mut self, vm: &mut Vm, reason: ExitReason) -> Result<(), TimelineError> {
        if self.trace.is_some() {
            return Ok(());
        }
        self.seek(vm, Icount(u64::MAX))?;
        self.end_checkpoints();
        let recording: Recording = self.recording.clone();
        let mut done = recording.finish_vm(vm, reason);
        for branch in &mut self.parked {
            done = done.and(branch.finish());
        }
        Ok(done?)
    }
}

impl Rest {
    fn end(&self) -> When {
        match self {
            Rest::Live(_, head) => head.at,
            Rest::Trace(_, at) => When { icount: *at, ..When::default() },
        }
    }
}

impl Parked {
    fn finish(&mut self) -> Result<(), RecordError> {
        let Rest::Live(track, head) = &mut self.rest else { return Ok(()) };
        let (when, hash, output) = (head.at, head.hash, head.output.value());
        track.finish(&EndRecord { when, reason: ExitReason::Quit, hash, output })
    }
}
