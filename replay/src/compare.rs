//! A machine built from a trace, run to the trace's end, and the proof that it was the same run.

use crate::format::TraceError;
use crate::format::end::{EndRecord, ExitReason};
use crate::format::reader::{Cut, Ending, Trace};
use crate::lockstep::{Lockstep, Mismatch, Stride};
use crate::machine::Machine;
use crate::mailbox::Mailbox;
use crate::play::{Difference, Divergence, PlayMonitor, Player};
use crate::timeline::Timeline;
use retrovisor_core::Icount;
use retrovisor_core::engine::{Engine, JitOptions};
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::When;
use retrovisor_core::loader::LoadError;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::{NullSink, OutputSink};
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
    digest: crate::output::OutputDigest,
    /// In lockstep: what the player of the machine that follows finds.
    follower: Option<PlayMonitor>,
}

impl Replay {
    /// Builds the trace's machine; it stands before its first instruction. `output` is shown what the guest puts out.
    ///
    /// # Errors
    /// If the trace's images are incomplete or damaged, or the machine cannot be built.
    pub fn new(
        trace: &Arc<Trace>,
        options: VerifyOptions,
        output: Box<dyn OutputSink>,
    ) -> Result<Self, VerifyError> {
        let mailbox = Mailbox::new();
        let player = Player::new(trace.clone(), Arc::clone(&mailbox));
        let (monitor, digest) = (player.monitor(), player.digest());
        let mut vm = machine(trace, player, output)?;
        (vm.engine, vm.jit_options) = (options.engine, options.jit);
        let (vm, follower) = match options.lockstep {
            None => (vm.into(), None),
            Some(stride) => {
                let player = Player::new(trace.clone(), Mailbox::new());
                let follower = player.monitor();
                let reference = machine(trace, player, Box::new(NullSink))?;
                let lockstep = Lockstep::new(&mut vm, reference, stride);
                (Machine::in_lockstep(vm, lockstep), Some(follower))
            }
        };
        Ok(Self { vm, monitor, mailbox, trace: Arc::clone(trace), digest, follower })
    }

    /// Keeps a history of up to `budget` bytes (0: none), so that the machine can be moved in time.
    pub fn with_history(mut self, budget: u64) -> Self {
        if budget > 0 {
            let told = (self.monitor.clone(), self.digest.clone());
            let (log, mailbox) = (self.trace.clone(), Arc::clone(&self.mailbox));
            self.vm = self.vm.with_timeline(|vm| Timeline::replay(vm, log, mailbox, told, budget));
        }
        self
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
        Ok(Report { when, hashes: self.monitor.hashes(), hash, reason, cut })
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

/// The trace's machine with a player of it.
fn machine(trace: &Trace, player: Player, output: Box<dyn OutputSink>) -> Result<Vm, VerifyError> {
    let (config, images) = trace.machine()?;
    let output = Box::new(player.output(output));
    Vm::new(config, images, Box::new(player), output)
        .map_err(|why| VerifyError::Load { file: trace.name().to_owned(), why })
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
        let exit = replay.vm.run(Some(at + PROGRESS_EVERY));
        if let Some(result) = replay.conclude(exit) {
            return result;
        }
    }
}
