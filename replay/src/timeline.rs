//! Moving a machine in time: its history is recorded as it runs, and any point of it can be gone back to.
//!
//! The machine is either at the *head*, the newest point, where its inputs are live (or, in a replay of a trace, where the
//! trace ends), or in the *past*, where a player gives it what it heard then. Running forward from the past leads to the
//! head and on. The state at an icount is the state on first arrival there, whichever way led there.

use crate::branch::{Name, Parked};
use crate::format::TraceError;
use crate::history::{Checkpoint, History, Stretch};
use crate::keep;
use crate::log::Log;
use crate::mailbox::Mailbox;
use crate::output::{HashedOutput, OutputDigest, OutputState};
use crate::pages::{PageMap, Unpacker};
use crate::persist::Checkpointer;
use crate::play::{PlayMonitor, Player};
use crate::record::{RecordError, Recording};
use crate::search::Seen;
use crate::stored::StoredCheckpoints;
use retrovisor_core::Icount;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{InputPort, NoInput, When};
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::{NullSink, OutputSink};
use retrovisor_core::state::StateError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thiserror::Error;

/// Checkpoints of a growing history stand on multiples of so many instructions: there the clock is looked at.
const GRID: u64 = 1 << 24;
/// Time between two of them at least: what going back to any point between them costs about.
const APART: Duration = Duration::from_millis(80);
/// Share of the run's time that they may take: one part in so many...
const SHARE: u32 = 32;
/// ...but for so much, so that one that was dear does not keep those after it away.
const DEBT: Duration = Duration::from_millis(40);
/// Pages (4 KiB) a checkpoint copies before it has them compressed, if there are more.
const AT_ONCE: usize = 1 << 15;
/// Instructions between two looks at whether to go on.
const LOOK_EVERY: u64 = 1 << 22;
/// Distances before a point gone to at which checkpoints are taken on the way: what is looked at next lies near.
const DENSE: [u64; 5] = [1 << 20, 1 << 16, 1 << 12, 1 << 8, 1 << 5];

/// Why a machine could not be moved in time.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum TimelineError {
    #[error("the history begins at instruction {start}: nothing before it was kept")]
    BeforeStart { start: Icount },
    #[error("there is no history: {0}")]
    NoHistory(&'static str),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("a checkpoint cannot be restored: {0}")]
    State(#[from] StateError),
    #[error("the checkpoint at instruction {at} is not what was recorded there")]
    WrongCheckpoint { at: Icount },
    #[error("the replay of the history differs from the run at instruction {at}")]
    Diverged { at: Icount },
    #[error("interrupted")]
    Interrupted,
    #[error("no branch: {0}")]
    NoBranch(&'static str),
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The newest point of a branch of a live run, kept while the machine is elsewhere.
pub(crate) struct Head {
    pub at: When,
    state: Vec<u8>,
    pages: PageMap,
    pub hash: StateHash,
    pub output: OutputState,
    open: Stretch,
}

/// A way to run a machine.
pub(crate) type Run = fn(&mut Vm, Option<Icount>) -> VmExit;

/// What this thread has computed so far: neither the guest's idle time nor what else the host does counts.
fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

/// What a live machine hears and what it says.
type Doors = (Box<dyn InputPort>, Box<dyn OutputSink>);

/// A machine's history and its place in it. Every method is given the one machine it belongs to.
pub struct Timeline {
    /// The trace, if the machine is on the branch that replays one; otherwise it is on one that goes on live...
    pub(crate) trace: Option<Arc<dyn Log>>,
    /// ...and is recorded here.
    pub(crate) recording: Recording,
    pub(crate) history: History,
    /// `Some`: the machine of a live run is in the past.
    pub(crate) head: Option<Box<Head>>,
    /// Its doors at the head, while it is in the past.
    pub(crate) doors: Option<Doors>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) monitor: PlayMonitor,
    /// The output of replays.
    pub(crate) digest: OutputDigest,
    /// What memory held when pages were last asked for, and what is known of the stretch before that.
    base: PageMap,
    open: Stretch,
    unpacker: Unpacker,
    /// When (by [`cpu_time`]) the last checkpoint of the growing history was taken, how long after it the next is due, and
    /// where to look at the clock again.
    last: Duration,
    apart: Duration,
    /// Time that checkpoints have taken beyond their share.
    debt: Duration,
    next: u64,
    /// The newest point known.
    pub(crate) newest: Icount,
    /// Stores checkpoints in a recording.
    checkpointer: Option<Checkpointer>,
    cancel: Arc<AtomicBool>,
    /// What the last search saw.
    pub(crate) seen: Option<Seen>,
    pub(crate) name: Name,
    pub(crate) parked: Vec<Parked>,
    /// Number of the next branch.
    pub(crate) next_branch: usize,
}

impl Timeline {
    /// The timeline of a live run, whose inputs and output go through `recording`; `vm` stands before its first instruction.
    /// `mailbox` is that of the live port. The history takes up to `budget` bytes.
    pub fn live(vm: &mut Vm, recording: Recording, mailbox: Arc<Mailbox>, budget: u64) -> Self {
        let (monitor, digest) = (PlayMonitor::default(), OutputDigest::default());
        let pages = PageMap::new(vm.sys.mem.flags.len());
        Self::new(vm, None, recording, mailbox, (monitor, digest), (pages, budget))
    }

    /// The timeline of a replay of `log` by a player that has `monitor` and `digest`; `vm` stands before its first
    /// instruction, or at a checkpoint, where memory holds `pages`.
    pub fn replay(
        vm: &mut Vm,
        log: Arc<dyn Log>,
        mailbox: Arc<Mailbox>,
        told: (PlayMonitor, OutputDigest),
        (pages, budget): (PageMap, u64),
    ) -> Self {
        let recording = Recording::unwritten(&vm.config);
        Self::new(vm, Some(log), recording, mailbox, told, (pages, budget))
    }

    /// Learns the checkpoints that a trace holds, as far as they make sense; they are looked into when they are used.
    pub fn learn(&mut self, mut stored: StoredCheckpoints) {
        while !self.history.is_empty()
            && let Ok(Some(checkpoint)) = stored.next(&self.history.store)
        {
            self.history.insert(checkpoint, self.newest);
        }
    }

    /// Has checkpoints of a live run stored in its recording, until it branches.
    pub fn store_checkpoints(&mut self, checkpointer: Checkpointer) {
        self.next = self.next.min(checkpointer.next());
        self.checkpointer = Some(checkpointer);
    }

    /// Returns when the checkpoints taken so far are stored; no more will be.
    pub(crate) fn end_checkpoints(&mut self) {
        self.checkpointer = None;
    }

    fn new(
        vm: &mut Vm,
        trace: Option<Arc<dyn Log>>,
        recording: Recording,
        mailbox: Arc<Mailbox>,
        (monitor, digest): (PlayMonitor, OutputDigest),
        (pages, budget): (PageMap, u64),
    ) -> Self {
        let at = vm.when().icount;
        let mut timeline = Self {
            trace,
            recording,
            history: History::new(budget),
            head: None,
            doors: None,
            mailbox,
            monitor,
            digest,
            base: pages,
            open: Stretch::begin(at),
            unpacker: Unpacker::new(),
            last: cpu_time(),
            apart: APART,
            debt: Duration::ZERO,
            next: 0,
            newest: at,
            checkpointer: None,
            cancel: Arc::default(),
            seen: None,
            name: Name { id: 1, parent: None },
            parked: Vec::new(),
            next_branch: 2,
        };
        timeline.grow(vm);
        timeline
    }

    // --- what it knows ---

    pub fn history(&self) -> &History {
        &self.history
    }

    /// Is the machine in the past of a live run, or before the end of a trace?
    pub fn in_past(&self, vm: &Vm) -> bool {
        match &self.trace {
            None => self.head.is_some(),
            Some(log) => vm.when() < log.end().when,
        }
    }

    /// Does the machine hear what comes, rather than what a log says?
    pub fn is_live(&self) -> bool {
        self.trace.is_none() && self.head.is_none()
    }

    /// Does the machine follow a trace, which ends?
    pub fn on_trace(&self) -> bool {
        self.trace.is_some()
    }

    /// The newest point: the live head, or the end of the trace.
    pub fn end(&self, vm: &Vm) -> When {
        match (&self.trace, &self.head) {
            (Some(log), _) => log.end().when,
            (None, Some(head)) => head.at,
            (None, None) => vm.when(),
        }
    }

    /// What is known of the stretch from the checkpoint at `begin` to `end`, before which no other lies.
    pub(crate) fn stretch(&self, begin: Icount, end: Icount) -> Option<&Stretch> {
        match self.history.after(begin) {
            Some(c) => Some(&c.stretch).filter(|_| c.at.icount >= end),
            None => self.head.as_ref().map(|h| &h.open),
        }
    }

    /// Set by another thread, makes a search or a long way end early with [`TimelineError::Interrupted`].
    pub fn cancel(&self) -> &Arc<AtomicBool> {
        &self.cancel
    }

    /// The log of the run, complete up to the machine's point if that is the head.
    pub fn log(&self) -> Arc<dyn Log> {
        match &self.trace {
            None => Arc::new(self.recording.tape()),
            Some(log) => Arc::clone(log),
        }
    }

    /// As [`Timeline::log`], with everything up to the machine's point.
    pub fn log_to_here(&self, vm: &mut Vm) -> Arc<dyn Log> {
        if self.is_live() {
            vm.arrive();
            self.recording.flush(vm.when());
        }
        self.log()
    }

    // --- checkpoints ---

    /// Takes a checkpoint of the machine, which has just arrived where it stands.
    fn capture(&mut self, vm: &mut Vm, dense: bool) {
        let at = vm.when();
        self.look_at_memory(vm);
        let stretch = std::mem::replace(&mut self.open, Stretch::begin(at.icount));
        let digest = if self.is_live() { self.recording.digest() } else { &self.digest };
        let checkpoint = Checkpoint {
            at,
            state: vm.save_state().into(),
            pages: self.base.clone(),
            output: digest.snapshot(),
            stretch,
            dense,
            proven: true,
        };
        if let (false, Some(checkpointer)) = (dense, &mut self.checkpointer) {
            checkpointer.offer(&checkpoint);
        }
        self.history.insert(checkpoint, at.icount);
        if self.history.bytes() > self.history.budget() && self.head.is_none() {
            return self.give_up(vm);
        }
        if let Some(known) = self.history.get(at.icount) {
            // The same contents: share its pages.
            self.base = known.pages.clone();
        }
    }

    /// Learns what memory holds now, and what was touched since the last time.
    fn look_at_memory(&mut self, vm: &mut Vm) {
        let written = vm.take_written();
        for pages in written.chunks(AT_ONCE) {
            for page in pages {
                self.base.set(*page, self.history.store.page(vm.sys.mem.ram.page(*page)));
            }
            self.history.store.hand_on();
            // So many that they are to be compressed before there are more.
            if written.len() > AT_ONCE {
                self.history.store.settle();
            }
        }
        self.open.add(&written, &vm.take_footprint());
    }

    /// Not even the newest checkpoint fits into the budget: no history is kept from now on.
    fn give_up(&mut self, vm: &Vm) {
        self.history.clear();
        self.drop_branches();
        self.base = PageMap::new(vm.sys.mem.flags.len());
    }

    /// Takes a checkpoint because the history grows, and decides when the next is due: so that going back is fast, and so
    /// that they take a small part of the time, whatever they cost.
    fn grow(&mut self, vm: &mut Vm) {
        let began = cpu_time();
        self.capture(vm, false);
        let took = cpu_time().saturating_sub(began);
        // What this one took, less what the run since the last one has earned.
        let earned = began.saturating_sub(self.last) / SHARE;
        self.debt = (self.debt + took).saturating_sub(earned);
        self.apart = (self.debt.saturating_sub(DEBT) * SHARE).max(APART);
        self.last = cpu_time();
        self.newest = self.newest.max(vm.when().icount);
        self.next_on_grid(vm.when().icount);
    }

    /// The next place to see whether a checkpoint is due.
    fn next_on_grid(&mut self, here: Icount) {
        let grid = (here.0 / GRID + 1) * GRID;
        // What is to be stored has to be taken.
        self.next = self.checkpointer.as_ref().map_or(grid, |c| c.next().min(grid));
    }

    /// The history of this branch grows from `at` on.
    pub(crate) fn grow_from(&mut self, at: Icount) {
        (self.newest, self.next) = (at, 0);
        self.last = cpu_time();
    }

    fn grow_if_new(&mut self, vm: &mut Vm) {
        let here = vm.when().icount;
        self.newest = self.newest.max(here);
        if here.0 != self.next {
            return;
        }
        let stored = self.checkpointer.as_ref().is_some_and(|c| c.next() <= here.0);
        match stored || cpu_time().saturating_sub(self.last) >= self.apart {
            true => self.grow(vm),
            false => self.next_on_grid(here),
        }
    }

    /// When the next checkpoint is due.
    fn due(&mut self, here: Icount) -> u64 {
        if self.history.is_empty() {
            return u64::MAX;
        }
        if here < self.newest {
            // Nothing new is seen before there.
            return self.newest.0;
        }
        if self.next <= here.0 {
            self.next_on_grid(here);
        }
        self.next
    }

    // --- moving ---

    /// As `Vm::run`, keeping the history; in the past, runs on to the head and there live.
    pub fn run(&mut self, vm: &mut Vm, until: Option<Icount>) -> VmExit {
        let mut first = true;
        loop {
            let here = vm.when().icount;
            if until.is_some_and(|u| here >= u) {
                return VmExit::Reached;
            }
            let due = match &self.head {
                Some(head) => head.at.icount.0,
                None => self.due(here),
            };
            let stop = Some(Icount(until.map_or(due, |u| u.0.min(due))));
            // A breakpoint where the run begins was stopped at; one where a stretch of it begins was not.
            let exit = if first { vm.run(stop) } else { vm.run_here(stop) };
            first = false;
            if exit != VmExit::Reached {
                return exit;
            }
            if vm.when().icount.0 != due {
                continue;
            }
            if self.head.is_none() {
                self.grow_if_new(vm);
            } else if self.jump_to_head(vm).is_err() {
                return VmExit::Diverged;
            }
        }
    }

    /// Puts the machine where it first arrived at `to`; beyond the newest point, to that point.
    ///
    /// # Errors
    /// If the history does not reach back so far or cannot be replayed, or if the way was interrupted (the machine then
    /// stands on it).
    pub fn seek(&mut self, vm: &mut Vm, to: Icount) -> Result<(), TimelineError> {
        let hooks = std::mem::take(&mut vm.hooks);
        let result = self.seek_quietly(vm, to);
        vm.hooks = hooks;
        result
    }

    fn seek_quietly(&mut self, vm: &mut Vm, to: Icount) -> Result<(), TimelineError> {
        let end = self.end(vm).icount;
        if self.trace.is_none() && to >= end {
            return self.jump_to_head(vm);
        }
        let to = to.min(end);
        self.set_out(vm, to)?;
        for distance in DENSE {
            let stop = Icount(to.0.saturating_sub(distance));
            if stop > vm.when().icount {
                self.play(vm, stop)?;
                self.capture(vm, true);
            }
        }
        self.play(vm, to)
    }

    /// Puts the machine where the way to `to` begins: at the last checkpoint before it, or, in the past, where it stands if
    /// that is nearer.
    pub(crate) fn set_out(&mut self, vm: &mut Vm, to: Icount) -> Result<(), TimelineError> {
        let from = self.checkpoint_before(to)?;
        if self.in_past(vm) && (from..=to).contains(&vm.when().icount) {
            return Ok(());
        }
        self.leave_head(vm);
        self.restore(vm, from)
    }

    /// The last checkpoint at or before `to`.
    pub(crate) fn checkpoint_before(&self, to: Icount) -> Result<Icount, TimelineError> {
        self.history.before(to).map(|c| c.at.icount).ok_or_else(|| self.too_early())
    }

    pub(crate) fn too_early(&self) -> TimelineError {
        match self.history.start() {
            Some(start) => TimelineError::BeforeStart { start },
            None => TimelineError::NoHistory("the guest's memory does not fit into what --history gives it"),
        }
    }

    /// Runs a machine in the past up to `to`, with nothing to stop at.
    pub(crate) fn play(&mut self, vm: &mut Vm, to: Icount) -> Result<(), TimelineError> {
        loop {
            match self.stretch_to(vm, to, Vm::run)? {
                VmExit::Reached => return Ok(()),
                VmExit::Interrupted => {}
                _ if self.monitor.divergence().is_none() && self.monitor.error().is_none() => return Ok(()),
                _ => return Err(self.diverged(vm)),
            }
        }
    }

    /// Runs up to `to` or another exit than [`VmExit::Reached`], looking up now and then whether to go on. `first` begins.
    pub(crate) fn stretch_to(
        &mut self,
        vm: &mut Vm,
        to: Icount,
        first: Run,
    ) -> Result<VmExit, TimelineError> {
        let mut run = first;
        loop {
            let here = vm.when().icount;
            if here >= to {
                return Ok(VmExit::Reached);
            }
            let exit = run(vm, Some(Icount((here.0 + LOOK_EVERY).min(to.0))));
            self.check_cancel()?;
            if exit != VmExit::Reached {
                return Ok(exit);
            }
            run = Vm::run_here;
        }
    }

    pub(crate) fn check_cancel(&self) -> Result<(), TimelineError> {
        match self.cancel.swap(false, Ordering::AcqRel) {
            true => Err(TimelineError::Interrupted),
            false => Ok(()),
        }
    }

    fn diverged(&self, vm: &Vm) -> TimelineError {
        match self.monitor.error() {
            Some(e) => e.into(),
            None => TimelineError::Diverged { at: vm.when().icount },
        }
    }

    /// Before the machine of a live run goes to the past: keeps what is needed to go on from here.
    pub(crate) fn leave_head(&mut self, vm: &mut Vm) {
        if self.trace.is_some() || self.head.is_some() {
            return;
        }
        // The log says everything up to here, and a player asks for what is due here before it hears that it ends.
        vm.arrive();
        let at = vm.when();
        self.recording.flush(at);
        let output = self.recording.digest().snapshot();
        self.newest = self.newest.max(at.icount);
        let hash = vm.state_hash();
        self.look_at_memory(vm);
        self.head = Some(Box::new(Head {
            at,
            state: vm.save_state(),
            pages: self.base.clone(),
            hash,
            output,
            open: self.open.clone(),
        }));
        let output = Box::new(HashedOutput::new(NullSink, self.digest.clone()));
        self.doors = Some((
            std::mem::replace(&mut vm.sys.input, Box::new(NoInput)),
            std::mem::replace(&mut vm.sys.output, output),
        ));
    }

    /// Puts the machine of a live run to the newest point.
    fn jump_to_head(&mut self, vm: &mut Vm) -> Result<(), TimelineError> {
        let Some(head) = self.head.take() else { return Ok(()) };
        self.restore_memory(vm, &head.pages)?;
        vm.load_state(&head.state)?;
        self.recording.digest().restore(head.output);
        self.open = head.open;
        self.enter_live(vm);
        Ok(())
    }

    /// The machine hears and says what its host does again.
    pub(crate) fn enter_live(&mut self, vm: &mut Vm) {
        if let Some(doors) = self.doors.take() {
            (vm.sys.input, vm.sys.output) = doors;
            vm.sys.input.resume(vm.when());
        }
    }

    /// Puts a machine in the past to a checkpoint. One from a file that turns out to be wrong is given up: then an earlier one
    /// leads there.
    pub(crate) fn restore(&mut self, vm: &mut Vm, at: Icount) -> Result<(), TimelineError> {
        match self.restore_exactly(vm, at) {
            Err(e) if self.history.distrust(at) => {
                let Some(earlier) = self.history.before(at).map(|c| c.at.icount) else { return Err(e) };
                self.restore(vm, earlier)?;
                self.play(vm, at)
            }
            done => done,
        }
    }

    fn restore_exactly(&mut self, vm: &mut Vm, at: Icount) -> Result<(), TimelineError> {
        let Some(checkpoint) = self.history.get(at) else { return Err(self.too_early()) };
        let checkpoint = checkpoint.clone();
        let (log, mailbox) = (self.log(), Arc::clone(&self.mailbox));
        let player = Player::resume(log, mailbox, at, self.monitor.clone(), self.digest.clone())?;
        self.restore_memory(vm, &checkpoint.pages)?;
        vm.load_state(&checkpoint.state)?;
        if !checkpoint.proven {
            let found = (vm.when(), vm.state_hash(), checkpoint.output.value());
            if self.log().hash_at(at)? != Some(found) {
                return Err(TimelineError::WrongCheckpoint { at });
            }
            self.history.prove(at);
        }
        self.digest.restore(checkpoint.output);
        vm.sys.input = Box::new(player);
        self.open = Stretch::begin(at);
        Ok(())
    }

    fn restore_memory(&mut self, vm: &mut Vm, pages: &PageMap) -> Result<(), TraceError> {
        keep::restore_memory(vm, &mut self.base, pages, &mut self.unpacker)
    }
}
