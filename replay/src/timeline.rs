//! Moving a machine in time: its history is recorded as it runs, and any point of it can be gone back to.
//!
//! The machine is either at the *head*, the newest point, where its inputs are live (or, in a replay of a trace, where the
//! trace ends), or in the *past*, where a player gives it what it heard then. Running forward from the past leads to the
//! head and on. The state at an icount is the state on first arrival there, whichever way led there.

use crate::format::TraceError;
use crate::history::{Checkpoint, History, Stretch};
use crate::log::Log;
use crate::mailbox::Mailbox;
use crate::output::{HashedOutput, OutputDigest};
use crate::pages::{PAGE, PageMap, Unpacker};
use crate::play::{PlayMonitor, Player};
use crate::record::Recording;
use retrovisor_core::Icount;
use retrovisor_core::input::{InputPort, NoInput, When};
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::{NullSink, OutputSink};
use retrovisor_core::state::StateError;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use thiserror::Error;

/// Instructions between two checkpoints at least, while the history grows.
const INTERVAL: u64 = 1 << 24;
/// ... and at most.
const MAX_INTERVAL: u64 = 1 << 34;
/// Share of the run's time that checkpoints may take: one part in so many.
const SHARE: u32 = 64;
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
    #[error("the replay of the history differs from the run at instruction {at}")]
    Diverged { at: Icount },
    #[error("interrupted")]
    Interrupted,
}

/// The newest point of a live run, kept while the machine is elsewhere.
struct Head {
    input: Box<dyn InputPort>,
    output: Box<dyn OutputSink>,
    at: When,
    state: Vec<u8>,
    pages: PageMap,
    open: Stretch,
}

/// A way to run a machine.
pub(crate) type Run = fn(&mut Vm, Option<Icount>) -> VmExit;

/// Where a run's log comes from.
enum Source {
    /// The run is live: inputs are recorded as they come.
    Live(Recording),
    /// The run is replayed from a trace.
    Trace(Arc<dyn Log>),
}

/// A machine's history and its place in it. Every method is given the one machine it belongs to.
pub struct Timeline {
    source: Source,
    history: History,
    /// `Some`: the machine of a live run is in the past.
    head: Option<Box<Head>>,
    mailbox: Arc<Mailbox>,
    monitor: PlayMonitor,
    /// The output of replays.
    digest: OutputDigest,
    /// What memory held when pages were last asked for, and what is known of the stretch before that.
    base: PageMap,
    open: Stretch,
    unpacker: Unpacker,
    /// icount of the next checkpoint while the history grows, and the distance to the one after it.
    next: u64,
    interval: u64,
    last: Instant,
    /// The newest point known.
    newest: Icount,
    cancel: Arc<AtomicBool>,
}

impl Timeline {
    /// The timeline of a live run, whose inputs and output go through `recording`; `vm` stands before its first instruction.
    /// `mailbox` is that of the live port. The history takes up to `budget` bytes.
    pub fn live(vm: &mut Vm, recording: Recording, mailbox: Arc<Mailbox>, budget: u64) -> Self {
        let (monitor, digest) = (PlayMonitor::default(), OutputDigest::default());
        Self::new(vm, Source::Live(recording), mailbox, (monitor, digest), budget)
    }

    /// The timeline of a replay of `log` by a player that has `monitor` and `digest`; `vm` stands before its first
    /// instruction.
    pub fn replay(
        vm: &mut Vm,
        log: Arc<dyn Log>,
        mailbox: Arc<Mailbox>,
        told: (PlayMonitor, OutputDigest),
        budget: u64,
    ) -> Self {
        Self::new(vm, Source::Trace(log), mailbox, told, budget)
    }

    fn new(
        vm: &mut Vm,
        source: Source,
        mailbox: Arc<Mailbox>,
        (monitor, digest): (PlayMonitor, OutputDigest),
        budget: u64,
    ) -> Self {
        let at = vm.when().icount;
        let mut timeline = Self {
            source,
            history: History::new(budget),
            head: None,
            mailbox,
            monitor,
            digest,
            base: PageMap::new(vm.sys.mem.flags.len()),
            open: Stretch::begin(at),
            unpacker: Unpacker::new(),
            next: 0,
            interval: INTERVAL,
            last: Instant::now(),
            newest: at,
            cancel: Arc::default(),
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
        match self.source {
            Source::Live(_) => self.head.is_some(),
            Source::Trace(_) => vm.when() < self.end(vm),
        }
    }

    /// The newest point: the live head, or the end of the trace.
    pub fn end(&self, vm: &Vm) -> When {
        match (&self.source, &self.head) {
            (Source::Trace(log), _) => log.end().when,
            (Source::Live(_), Some(head)) => head.at,
            (Source::Live(_), None) => vm.when(),
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
        match &self.source {
            Source::Live(recording) => Arc::new(recording.tape().clone()),
            Source::Trace(log) => Arc::clone(log),
        }
    }

    /// As [`Timeline::log`], with everything up to the machine's point.
    pub fn log_to_here(&self, vm: &mut Vm) -> Arc<dyn Log> {
        if let (Source::Live(recording), None) = (&self.source, &self.head) {
            vm.arrive();
            recording.flush(vm.when());
        }
        self.log()
    }

    // --- checkpoints ---

    /// Takes a checkpoint of the machine, which has just arrived where it stands.
    fn capture(&mut self, vm: &mut Vm, dense: bool) {
        let at = vm.when();
        self.look_at_memory(vm);
        let stretch = std::mem::replace(&mut self.open, Stretch::begin(at.icount));
        let digest = match (&self.source, &self.head) {
            (Source::Live(recording), None) => recording.digest(),
            _ => &self.digest,
        };
        let checkpoint = Checkpoint {
            at,
            state: vm.save_state().into(),
            pages: self.base.clone(),
            output: digest.snapshot(),
            stretch,
            dense,
        };
        self.history.insert(checkpoint, at.icount);
        if let Some(known) = self.history.get(at.icount) {
            // The same contents: share its pages.
            self.base = known.pages.clone();
        }
    }

    /// Learns what memory holds now, and what was touched since the last time.
    fn look_at_memory(&mut self, vm: &mut Vm) {
        let written = vm.take_written();
        for page in &written {
            self.base.set(*page, self.history.store.page(vm.sys.mem.ram.page(*page)));
        }
        self.history.store.hand_on();
        self.open.add(&written, &vm.take_footprint());
    }

    /// Takes a checkpoint because the history grows, and says when the next is due: so that they take a small part of the
    /// time, whatever they cost.
    fn grow(&mut self, vm: &mut Vm) {
        let began = Instant::now();
        let ran = began - self.last;
        self.capture(vm, false);
        let took = began.elapsed();
        if took * SHARE > ran {
            self.interval = (self.interval * 2).min(MAX_INTERVAL);
        } else if took * SHARE * 2 < ran {
            self.interval = (self.interval / 2).max(INTERVAL);
        }
        self.last = Instant::now();
        let here = vm.when().icount.0;
        self.newest = self.newest.max(Icount(here));
        self.next = (here / INTERVAL * INTERVAL).saturating_add(self.interval);
    }

    fn grow_if_new(&mut self, vm: &mut Vm) {
        let here = vm.when().icount;
        self.newest = self.newest.max(here);
        if here.0 == self.next {
            self.grow(vm);
        }
    }

    /// When the next checkpoint is due.
    fn due(&mut self, here: Icount) -> u64 {
        if here < self.newest {
            // Nothing new is seen before there.
            return self.newest.0;
        }
        if self.next <= here.0 {
            self.next = (here.0 / INTERVAL * INTERVAL).saturating_add(self.interval);
            self.last = Instant::now();
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
        let (here, end) = (vm.when().icount, self.end(vm).icount);
        let to = match self.source {
            Source::Live(_) if to >= end => return self.jump_to_head(vm),
            _ => to.min(end),
        };
        let from = match self.history.before(to) {
            Some(c) => c.at.icount,
            None => return Err(self.too_early()),
        };
        let ahead = self.in_past(vm) && (from..=to).contains(&here);
        if !ahead {
            self.leave_head(vm);
            self.restore(vm, from)?;
        }
        for distance in DENSE {
            let stop = Icount(to.0.saturating_sub(distance));
            if stop > vm.when().icount {
                self.play(vm, stop)?;
                self.capture(vm, true);
            }
        }
        self.play(vm, to)
    }

    fn too_early(&self) -> TimelineError {
        match self.history.start() {
            Some(start) => TimelineError::BeforeStart { start },
            None => TimelineError::NoHistory("it does not fit into the memory it was given"),
        }
    }

    /// Runs a machine in the past up to `to`, with nothing to stop at.
    fn play(&mut self, vm: &mut Vm, to: Icount) -> Result<(), TimelineError> {
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
        let mut run: Run = first;
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
        let Source::Live(recording) = &self.source else { return };
        if self.head.is_some() {
            return;
        }
        // The log says everything up to here, and a player asks for what is due here before it hears that it ends.
        vm.arrive();
        let at = vm.when();
        recording.flush(at);
        self.newest = self.newest.max(at.icount);
        self.look_at_memory(vm);
        self.head = Some(Box::new(Head {
            input: std::mem::replace(&mut vm.sys.input, Box::new(NoInput)),
            output: std::mem::replace(&mut vm.sys.output, Box::new(NullSink)),
            at,
            state: vm.save_state(),
            pages: self.base.clone(),
            open: self.open.clone(),
        }));
        vm.sys.output = Box::new(HashedOutput::new(NullSink, self.digest.clone()));
    }

    /// Puts the machine of a live run to the newest point.
    fn jump_to_head(&mut self, vm: &mut Vm) -> Result<(), TimelineError> {
        let Some(head) = self.head.take() else { return Ok(()) };
        self.restore_memory(vm, &head.pages);
        vm.load_state(&head.state)?;
        (vm.sys.input, vm.sys.output) = (head.input, head.output);
        self.open = head.open;
        self.last = Instant::now();
        Ok(())
    }

    /// Puts a machine in the past to a checkpoint.
    pub(crate) fn restore(&mut self, vm: &mut Vm, at: Icount) -> Result<(), TimelineError> {
        let Some(checkpoint) = self.history.get(at) else { return Err(self.too_early()) };
        let checkpoint = checkpoint.clone();
        let (log, mailbox) = (self.log(), Arc::clone(&self.mailbox));
        let player = Player::resume(log, mailbox, at, self.monitor.clone(), self.digest.clone())?;
        self.restore_memory(vm, &checkpoint.pages);
        vm.load_state(&checkpoint.state)?;
        self.digest.restore(checkpoint.output);
        vm.sys.input = Box::new(player);
        self.open = Stretch::begin(at);
        Ok(())
    }

    /// Gives memory the contents of `pages`: what differs from what it held, and what was written since.
    fn restore_memory(&mut self, vm: &mut Vm, pages: &PageMap) {
        let mut contents = [0; PAGE];
        let unpacker = &mut self.unpacker;
        let mut put = |n: usize, page: Option<&Arc<crate::pages::Page>>| {
            match page {
                Some(p) => p.read(unpacker, &mut contents),
                None => contents.fill(0),
            }
            vm.restore_page(n, &contents);
        };
        self.base.diff(pages, &mut put);
        for n in vm.take_written() {
            let page = pages.get(n);
            match page {
                Some(p) => p.read(&mut self.unpacker, &mut contents),
                None => contents.fill(0),
            }
            vm.restore_page(n, &contents);
        }
        vm.take_footprint();
        self.base = pages.clone();
    }
}
