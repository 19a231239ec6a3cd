//! From "they differ somewhere in this interval" to the first instruction that differs: the replay that diverged is run again
//! beside a reference from the last point known to be good, and the interval halved until it is one instruction.

use crate::compare::{Replay, VerifyError, VerifyOptions};
use crate::format::reader::Trace;
use crate::history::Checkpoint;
use crate::keep::Keeper;
use crate::lockstep::{Mismatch, Names, Scene};
use crate::log::Log;
use crate::play::Divergence;
use crate::stored::StoredCheckpoints;
use retrovisor_core::Icount;
use retrovisor_core::engine::Engine;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::output::NullSink;
use std::fmt;
use std::sync::Arc;

/// What a bisection came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Finding {
    /// The replay differs from a reference after this instruction, and not before.
    Instruction {
        at: Icount,
        mismatch: Box<Mismatch>,
        /// Does the reference agree with the recording where the replay was seen not to? `None`: that was not compared there.
        reference_agrees: Option<bool>,
    },
    /// Both engines, and a second run, do the same between these points, and it is not what was recorded.
    AllAgree { after: Icount, at: Icount },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Instruction { at, mismatch, reference_agrees } => {
                let Names { reference, subject } = mismatch.names;
                writeln!(f, "the first instruction that differs is number {at}: {}", mismatch.headline())?;
                writeln!(f, "{}", mismatch.details.trim_end())?;
                match reference_agrees {
                    Some(true) => {
                        write!(f, "the {reference} agrees with the recording: the {subject} is wrong")
                    }
                    Some(false) => write!(f, "the {reference} does not agree with the recording either"),
                    None => Ok(()),
                }
            }
            Finding::AllAgree { after, at } => write!(
                f,
                "the translator, the interpreter and a second run all do the same between instructions {after} and \
                 {at}, and it is not what was recorded: the recording was made by another version of the machine, or \
                 was changed"
            ),
        }
    }
}

/// A replay that can be put back.
struct Side {
    replay: Replay,
    keeper: Keeper,
    /// How its last run ended.
    exit: VmExit,
}

impl Side {
    fn new(
        trace: &Arc<Trace>,
        options: VerifyOptions,
        from: Option<&Checkpoint>,
    ) -> Result<Self, VerifyError> {
        let replay = Replay::at(trace, options, Box::new(NullSink), from)?;
        let keeper = replay.keeper();
        Ok(Self { replay, keeper, exit: VmExit::Reached })
    }

    /// Runs to `to`, unless it ends before.
    fn run(&mut self, to: Icount) {
        self.exit = VmExit::Reached;
        while self.exit == VmExit::Reached && self.replay.vm.when().icount < to {
            self.exit = self.replay.run(Some(to));
        }
    }

    fn capture(&mut self) -> Checkpoint {
        let digest = self.replay.digest().clone();
        self.keeper.capture(&mut self.replay.vm, &digest)
    }

    fn go_back(&mut self, to: &Checkpoint) -> Result<(), VerifyError> {
        self.replay.go_back(&mut self.keeper, to)
    }

    /// Is everything the guest can see the same?
    fn same(&self, other: &Self) -> bool {
        let (a, b) = (&self.replay.vm, &other.replay.vm);
        self.exit == other.exit
            && a.when() == b.when()
            && a.save_state() == b.save_state()
            && a.sys.mem.ram.as_slice() == b.sys.mem.ram.as_slice()
    }
}

/// Narrows down `divergence` of a replay of `trace` by `options`.
///
/// # Errors
/// If the trace cannot be replayed up to the last point that was good.
pub fn bisect(
    trace: &Arc<Trace>,
    options: VerifyOptions,
    divergence: &Divergence,
) -> Result<Finding, VerifyError> {
    let options = VerifyOptions { lockstep: None, ..options };
    let mut subject = Side::new(trace, options, nearest(trace, options, divergence.after)?.as_ref())?;
    subject.run(divergence.after);
    let good = subject.capture();
    for (names, engine) in references(options) {
        let plain = VerifyOptions { engine, mutation: None, ..options };
        let mut reference = Side::new(trace, plain, Some(&good))?;
        subject.go_back(&good)?;
        if let Some(finding) = halve(trace, (&mut subject, &mut reference), &good, divergence, names)? {
            return Ok(finding);
        }
    }
    Ok(Finding::AllAgree { after: divergence.after, at: divergence.at })
}

/// What the replay is compared with: the other engine, then the same one again.
fn references(options: VerifyOptions) -> [(Names, Engine); 2] {
    let mutated = options.mutation.is_some();
    let (subject, other, engine, again) = match (options.engine, mutated) {
        (Engine::Interp, false) => ("interpreter", "translator", Engine::Jit, "second interpreter"),
        (Engine::Interp, true) => ("mutated interpreter", "translator", Engine::Jit, "interpreter"),
        (_, false) => ("translator", "interpreter", Engine::Interp, "second translator"),
        (_, true) => ("mutated translator", "interpreter", Engine::Interp, "translator"),
    };
    let names = |reference| Names { reference, subject };
    [(names(other), engine), (names(again), options.engine)]
}

/// The trace's last checkpoint of use at or before `icount`.
fn nearest(
    trace: &Arc<Trace>,
    options: VerifyOptions,
    icount: Icount,
) -> Result<Option<Checkpoint>, VerifyError> {
    if trace.checkpoints() == 0 {
        return Ok(None);
    }
    let side = Side::new(trace, options, None)?;
    let mut stored = StoredCheckpoints::new(trace, side.replay.vm.sys.mem.flags.len());
    let mut best = None;
    while let Ok(Some(c)) = stored.next(side.keeper.store()) {
        if c.at.icount > icount {
            break;
        }
        best = Some(c);
    }
    // One that is wrong is not used.
    let usable = |c: &Checkpoint| Replay::at(trace, options, Box::new(NullSink), Some(c)).is_ok();
    Ok(best.filter(usable))
}

/// Halves the interval of `divergence`, at whose beginning both sides stand at `good`; `None` if they do not differ in it.
fn halve(
    trace: &Trace,
    (subject, reference): (&mut Side, &mut Side),
    good: &Checkpoint,
    divergence: &Divergence,
    names: Names,
) -> Result<Option<Finding>, VerifyError> {
    let (mut low, mut high) = (good.clone(), divergence.at.max(good.at.icount + 1));
    subject.run(high);
    reference.run(high);
    if subject.same(reference) {
        return Ok(None);
    }
    let recorded = trace.hash_at(divergence.at)?;
    let vm = &mut reference.replay.vm;
    let found = (vm.when(), vm.state_hash(), reference.replay.digest().value());
    let reference_agrees = recorded.map(|r| r == found);
    let mut back = true;
    while high.0 - low.at.icount.0 > 1 {
        if back {
            subject.go_back(&low)?;
            reference.go_back(&low)?;
        }
        let middle = Icount(low.at.icount.0 + (high.0 - low.at.icount.0) / 2);
        subject.run(middle);
        reference.run(middle);
        back = !subject.same(reference);
        match back {
            true => high = middle,
            false => low = subject.capture(),
        }
    }
    subject.go_back(&low)?;
    reference.go_back(&low)?;
    let (at, vcpu) = (low.at.icount, reference.replay.vm.current);
    let before = reference.replay.vm.vcpus[vcpu].clone();
    subject.run(high);
    reference.run(high);
    let scene = Scene { names, from: at, vcpu, before: &before, exits: (reference.exit, subject.exit) };
    let mismatch = Box::new(scene.report(&subject.replay.vm, &reference.replay.vm));
    Ok(Some(Finding::Instruction { at, mismatch, reference_agrees }))
}
