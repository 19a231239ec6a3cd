//! A machine built from a trace, run to the trace's end, and the proof that it was the same run.

use crate::format::end::{EndRecord, ExitReason};
use crate::format::reader::{Cut, Ending, Trace};
use crate::format::{Problem, TraceError};
use crate::history::Checkpoint;
use crate::keep::Keeper;
use crate::lockstep::{Lockstep, Mismatch, Stride};
use crate::log::Log;
use crate::machine::Machine;
use crate::mailbox::Mailbox;
use crate::mutation::Mutation;
use crate::output::OutputDigest;
use crate::pages::PageMap;
use crate::play::{Difference, Divergence, PlayMonitor, Player};
use crate::stored::StoredCheckpoints;
use crate::timeline::{Timeline, TimelineError};
use retrovisor_core::engine::{Engine, JitOptions};
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{Idle, InputPort, NoInput, Poll, Query, When};
use retrovisor_core::loader::LoadError;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::{NullSink, OutputSink};
use retrovisor_core::{GuestTime, Icount};
use std::sync::Arc;
use thiserror::Error;

/// Instructions between two progress reports.
const PROGRESS_EVERY: u64 = 1 << 22;

/// Why a trace could not be replayed, or did not replay exactly.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum VerifyError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("{file}: its machine cannot be built: {why}")]
    Load { file: String, why: LoadError },
    #[error("{file}: {divergence}")]
    Diverged { file: String, divergence: Divergence },
    #[error("{file}: interrupted at instruction {at}")]
    Interrupted { file: String, at: Icount },
    #[error("{file}: {why}")]
    Checkpoint { file: String, why: TimelineError },
    #[error("{file}: {mismatch}")]
    Lockstep { file: String, mismatch: Box<Mismatch> },
}

/// What replays a trace. Every choice gives the same replay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerifyOptions {
    pub engine: Engine,
    /// The translator's switches.
    pub jit: JitOptions,
    /// A second machine, on the interpreter, follows the first and is compared with it this often.
    pub lockstep: Option<Stride>,
    /// What is made to go wrong, to see that it is found.
    pub mutation: Option<Mutation>,
}

/// How far a replay has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    pub at: Icount,
    /// Where the trace ends.
    pub end: Icount,
    /// State hashes found equal so far.
    pub hashes: u64,
}

/// A replay that was exact.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Where it ended.
    pub when: When,
    /// State hashes compared along the way, all equal.
    pub hashes: u64,
    /// State hash at the end (also compared if the trace is complete).
    pub hash: StateHash,
    /// Why the recorded run ended; `None` for a cut trace.
    pub reason: Option<ExitReason>,
    /// Where the trace is cut, if it is.
    pub cut: Option<Cut>,
    /// A checkpoint that the trace holds is not what was recorded there.
    pub wrong_checkpoint: bool,
}

/// A machine that replays a trace.
pub struct Replay {
    /// In lockstep it is two machines; a difference between them ends a run with `VmExit::Diverged`.
    pub vm: Machine,
    /// What the player finds.
    pub monitor: PlayMonitor,
    /// Interrupts `vm.run` from other threads.
    pub mailbox: Arc<Mailbox>,
    trace: Arc<Trace>,
    digest: OutputDigest,
    /// In lockstep: what the player of the machine that follows finds.
    follower: Option<PlayMonitor>,
    /// What memory held where the replay began.
    pages: PageMap,
    mutation: Option<Mutation>,
}

impl Replay {
    /// Builds the trace's machine; it stands where the trace begins. `output` is shown what the guest puts out.
    ///
    /// # Errors
    /// If the trace's images are incomplete or damaged, or the machine cannot be built.
    pub fn new(
        trace: &Arc<Trace>,
        options: VerifyOptions,
        output: Box<dyn OutputSink>,
    ) -> Result<Self, VerifyError> {
        Self::at(trace, options, output, None)
    }

    /// As [`Replay::new`], but the machine stands at a checkpoint of the run, if one is given.
    ///
    /// # Errors
    /// As [`Replay::new`], or if the checkpoint is not what the trace recorded there.
    pub fn at(
        trace: &Arc<Trace>,
        options: VerifyOptions,
        output: Box<dyn OutputSink>,
        from: Option<&Checkpoint>,
    ) -> Result<Self, VerifyError> {
        let mailbox = Mailbox::new();
        let Placed { mut vm, monitor, digest, pages } = place(trace, Arc::clone(&mailbox), output, from)?;
        (vm.engine, vm.jit_options) = (options.engine, options.jit);
        let (vm, follower) = match options.lockstep {
            None => (vm.into(), None),
            Some(stride) => {
                let other = place(trace, Mailbox::new(), Box::new(NullSink), from)?;
                let lockstep = Lockstep::new(&mut vm, other.vm, stride);
                (Machine::in_lockstep(vm, lockstep), Some(other.monitor))
            }
        };
        Ok(Self {
            vm,
            monitor,
            mailbox,
            trace: Arc::clone(trace),
            digest,
            follower,
            pages,
            mutation: options.mutation,
        })
    }

    /// Keeps a history of up to `budget` bytes (0: none), so that the machine can be moved in time.
    pub fn with_history(mut self, budget: u64) -> Self {
        if budget > 0 {
            let told = (self.monitor.clone(), self.digest.clone());
            let (trace, mailbox, pages) = (self.trace.clone(), Arc::clone(&self.mailbox), self.pages.clone());
            self.vm = self.vm.with_timeline(|vm| {
                let mut timeline = Timeline::replay(vm, trace.clone(), mailbox, told, (pages, budget));
                timeline.learn(StoredCheckpoints::new(&trace, vm.sys.mem.flags.len()));
                timeline
            });
        }
        self
    }

    /// The digest of what the guest has put out.
    pub fn digest(&self) -> &OutputDigest {
        &self.digest
    }

    /// Takes checkpoints of the machine, which has not run yet. A machine that does keeps no history.
    pub fn keeper(&self) -> Keeper {
        Keeper::holding(&self.vm, self.pages.clone())
    }

    /// As `vm.run`, with the mutation if it is on the way.
    pub fn run(&mut self, until: Option<Icount>) -> VmExit {
        let here = self.vm.when().icount;
        let ahead = |m: &Mutation| m.seen() > here && until.is_none_or(|u| u >= m.seen());
        if let Some(mutation) = self.mutation.filter(ahead) {
            match self.vm.run(Some(mutation.seen())) {
                VmExit::Reached => mutation.make(&mut self.vm),
                exit => return exit,
            }
        }
        self.vm.run(until)
    }

    /// Puts the machine back to a checkpoint that was taken of this run by `keeper`, or of another replay of the trace; what
    /// its player found is forgotten. Not for machines in lockstep.
    ///
    /// # Errors
    /// If the trace cannot be read there.
    pub(crate) fn go_back(&mut self, keeper: &mut Keeper, to: &Checkpoint) -> Result<(), VerifyError> {
        let file = || self.trace.name().to_owned();
        keeper.restore(&mut self.vm, to).map_err(|why| VerifyError::Checkpoint { file: file(), why })?;
        self.digest.restore(to.output.clone());
        self.monitor = PlayMonitor::default();
        self.monitor.begin(to.at.icount);
        let (monitor, digest) = (self.monitor.clone(), self.digest.clone());
        let (log, mailbox, at) = (self.trace.clone(), Arc::clone(&self.mailbox), to.at.icount);
        self.vm.sys.input = Box::new(Player::resume(log, mailbox, at, monitor, digest)?);
        Ok(())
    }

    /// The trace being replayed.
    pub fn trace(&self) -> &Arc<Trace> {
        &self.trace
    }

    /// Judges the end of a replay, after `vm.run` returned `exit`: `None` if the replay is not at its end.
    ///
    /// # Errors
    /// If the replay diverged or the trace could not be read to its end.
    pub fn conclude(&mut self, exit: VmExit) -> Option<Result<Report, VerifyError>> {
        let ended = match exit {
            VmExit::Reached | VmExit::Breakpoint(_) | VmExit::Watchpoint(_) | VmExit::Exception(_) => {
                return None;
            }
            VmExit::Interrupted => {
                let (file, at) = (self.trace.name().to_owned(), self.vm.when().icount);
                return Some(Err(VerifyError::Interrupted { file, at }));
            }
            VmExit::InputEnded | VmExit::Diverged => None,
            own => Some(ExitReason::from_exit(own)),
        };
        Some(self.judge(ended))
    }

    /// How the machines in lockstep differ from each other, and perhaps from the trace.
    pub fn mismatch(&self) -> Option<Box<Mismatch>> {
        let mut mismatch = Box::new(self.vm.mismatch()?.clone());
        let follower = self.follower.as_ref();
        for (who, monitor) in [("translator", Some(&self.monitor)), ("interpreter", follower)] {
            if let Some(d) = monitor.and_then(PlayMonitor::divergence) {
                mismatch.details.push_str(&format!("against the trace, the {who} {d}\n"));
            }
        }
        Some(mismatch)
    }

    /// `ended`: the machine came to this end by itself; `None`: the trace ended.
    fn judge(&mut self, ended: Option<ExitReason>) -> Result<Report, VerifyError> {
        let when = self.vm.when();
        if let Some(e) = self.monitor.error() {
            return Err(e.into());
        }
        if let Some(mismatch) = self.mismatch() {
            return Err(VerifyError::Lockstep { file: self.trace.name().to_owned(), mismatch });
        }
        let hash = self.vm.state_hash();
        let difference = match self.trace.ending() {
            _ if self.monitor.divergence().is_some() => None,
            Ending::Complete(end) => self.compare_end(end, when, ended, hash),
            // A guest that ends just where the trace is cut may well have been recorded so.
            Ending::Cut(cut) => ended
                .filter(|_| when.icount < cut.when.icount)
                .map(|found| Difference::Ended { recorded: None, found }),
        };
        if let Some(what) = difference {
            self.monitor.diverge(when.icount, what);
        }
        if let Some(divergence) = self.monitor.divergence() {
            return Err(VerifyError::Diverged { file: self.trace.name().to_owned(), divergence });
        }
        let (reason, cut) = match self.trace.ending() {
            Ending::Complete(end) => (Some(end.reason), None),
            Ending::Cut(cut) => (None, Some(cut.clone())),
        };
        Ok(Report { when, hashes: self.monitor.hashes(), hash, reason, cut, wrong_checkpoint: false })
    }

    fn compare_end(
        &self,
        end: &EndRecord,
        when: When,
        ended: Option<ExitReason>,
        hash: StateHash,
    ) -> Option<Difference> {
        let recorded = Some(end.reason);
        let output = self.digest.value();
        match ended {
            Some(found) if when.icount < end.when.icount => Some(Difference::Ended { recorded: None, found }),
            Some(found) if end.reason.is_own() && found != end.reason => {
                Some(Difference::Ended { recorded, found })
            }
            None if end.reason.is_own() && end.reason != ExitReason::Dead => {
                Some(Difference::RunsOn { recorded: end.reason })
            }
            _ if self.monitor.poked() => None,
            _ if output != end.output => Some(Difference::Output { recorded: end.output, found: output }),
            _ if when.time != end.when.time => {
                Some(Difference::Time { recorded: end.when.time, found: when.time })
            }
            _ if hash != end.hash => Some(Difference::State { recorded: end.hash, found: hash }),
            _ => None,
        }
    }
}

/// Answers the one question a machine has when it is built.
struct WallTime(u64);

impl InputPort for WallTime {
    fn poll(&mut self, now: When) -> Poll {
        NoInput.poll(now)
    }
    fn next_poll(&self) -> Option<Icount> {
        None
    }
    fn answer(&mut self, _now: When, query: Query) -> u64 {
        if query == Query::BootWallTime { self.0 } else { 0 }
    }
    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        NoInput.idle(now, deadline)
    }
}

/// A trace's machine with a player of the trace.
struct Placed {
    vm: Vm,
    monitor: PlayMonitor,
    digest: OutputDigest,
    /// What memory holds, if it came from a checkpoint.
    pages: PageMap,
}

/// Builds a trace's machine, and puts it where the trace begins or at the checkpoint `from`.
fn place(
    trace: &Arc<Trace>,
    mailbox: Arc<Mailbox>,
    output: Box<dyn OutputSink>,
    from: Option<&Checkpoint>,
) -> Result<Placed, VerifyError> {
    let (config, images) = trace.machine()?;
    let player = Player::new(trace.clone(), Arc::clone(&mailbox));
    let (monitor, digest) = (player.monitor(), player.digest());
    let output = Box::new(player.output(output));
    let input: Box<dyn InputPort> =
        if trace.is_trimmed() { Box::new(WallTime(config.wall_time)) } else { Box::new(player) };
    let load = |why| VerifyError::Load { file: trace.name().to_owned(), why };
    let vm = Vm::new(config, images, input, output).map_err(load)?;
    let pages = PageMap::new(vm.sys.mem.flags.len());
    let mut placed = Placed { vm, monitor, digest, pages };
    match from {
        Some(from) => placed.restore(trace, mailbox, from)?,
        None if trace.is_trimmed() => {
            let keeper = Keeper::new(&placed.vm);
            let mut stored = StoredCheckpoints::new(trace, placed.vm.sys.mem.flags.len());
            let start = trace.start();
            let missing = || trace.fail(Problem::NoStart { start: start.icount });
            let first = stored.next(keeper.store()).ok().flatten().filter(|c| c.at == start);
            let first = first.ok_or_else(missing)?;
            placed.restore(trace, mailbox, &first).map_err(|_| missing())?;
        }
        None => {}
    }
    Ok(placed)
}

impl Placed {
    fn restore(
        &mut self,
        trace: &Arc<Trace>,
        mailbox: Arc<Mailbox>,
        from: &Checkpoint,
    ) -> Result<(), VerifyError> {
        let (at, file) = (from.at.icount, || trace.name().to_owned());
        let fail = |why| VerifyError::Checkpoint { file: file(), why };
        Keeper::new(&self.vm).restore(&mut self.vm, from).map_err(fail)?;
        self.digest.restore(from.output.clone());
        self.pages = from.pages.clone();
        if !from.proven {
            let found = (self.vm.when(), self.vm.state_hash(), self.digest.value());
            if trace.hash_at(at)? != Some(found) {
                return Err(fail(TimelineError::WrongCheckpoint { at }));
            }
        }
        let (monitor, digest) = (self.monitor.clone(), self.digest.clone());
        monitor.begin(at);
        self.vm.sys.input = Box::new(Player::resume(trace.clone(), mailbox, at, monitor, digest)?);
        Ok(())
    }
}

/// Replays `trace` from its first to its last instruction and compares everything it recorded. `progress` is called
/// every few million instructions.
///
/// # Errors
/// The first difference, or why the trace could not be replayed.
pub fn verify(
    trace: &Arc<Trace>,
    options: VerifyOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, VerifyError> {
    let mut replay = Replay::new(trace, options, Box::new(NullSink))?;
    let end = trace.ending().when().icount;
    loop {
        let at = replay.vm.when().icount;
        progress(Progress { at, end, hashes: replay.monitor.hashes() });
        let exit = replay.run(Some(at + PROGRESS_EVERY));
        if let Some(result) = replay.conclude(exit) {
            return result;
        }
    }
}
