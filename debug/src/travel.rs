//! The machine's history as clients see it: what can be looked for in it, marks, who wrote last, and a summary. Owns the
//! ways to a point that take more than one step of the timeline; the timeline itself is the replay crate's.

use crate::inspect::Inspect;
use retrovisor_core::engine::hooks::{Hooks, Wanted};
use retrovisor_core::input::When;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::{Gpa, GuestTime, Gva, Icount, disasm};
use retrovisor_replay::{BranchInfo, Timeline, TimelineError};
use std::collections::BTreeMap;

/// Named points of a run.
pub type Marks = BTreeMap<String, Icount>;

/// What can be looked for, back and forward.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sought {
    /// An exception about to be delivered: of this vector, or any.
    Exception(Option<u8>),
    Occurrence(Wanted),
}

impl Sought {
    /// What makes the engine stop there, and nowhere else.
    pub fn hooks(self) -> Hooks {
        let bit = |v: u8| 1u32.checked_shl(v.into()).unwrap_or(0);
        match self {
            Sought::Exception(vector) => {
                Hooks { stop_exceptions: vector.map_or(u32::MAX, bit), ..Hooks::default() }
            }
            Sought::Occurrence(wanted) => Hooks { wanted: vec![wanted], ..Hooks::default() },
        }
    }
}

/// A checkpoint of the history.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckpointView {
    pub at: When,
    /// Taken for the sake of what was looked at, not of the history.
    pub dense: bool,
}

/// The history and the machine's place in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelineView {
    /// The oldest point that can be gone back to; `None` if nothing could be kept.
    pub start: Option<Icount>,
    /// The newest point: where the run is live, or where the trace ends.
    pub end: When,
    pub here: When,
    /// The machine is not at the newest point.
    pub in_past: bool,
    /// Ascending.
    pub checkpoints: Vec<CheckpointView>,
    /// Bytes the checkpoints take, and may take.
    pub bytes: u64,
    pub budget: u64,
    pub marks: Marks,
    pub branches: Vec<BranchInfo>,
}

impl TimelineView {
    /// What is known of `timeline`, whose machine is `vm`.
    pub fn of(timeline: &Timeline, vm: &Vm, marks: &Marks) -> Self {
        let history = timeline.history();
        Self {
            start: history.start(),
            end: timeline.end(vm),
            here: vm.when(),
            in_past: timeline.in_past(vm),
            checkpoints: history.iter().map(|c| CheckpointView { at: c.at, dense: c.dense }).collect(),
            bytes: history.bytes(),
            budget: history.budget(),
            marks: marks.clone(),
            branches: timeline.branches(vm),
        }
    }

    /// The place of `at` between the history's ends, in thousandths.
    pub fn thousandths(&self, at: Icount) -> u64 {
        let start = self.start.unwrap_or(self.here.icount).0;
        let (all, part) = (self.end.icount.0.saturating_sub(start), at.0.saturating_sub(start));
        match all {
            0 => 1000,
            _ => u64::try_from(u128::from(part.min(all)) * 1000 / u128::from(all)).unwrap_or(1000),
        }
    }

    /// The point that lies `millionths` of the way from the history's beginning to its end.
    pub fn portion(&self, millionths: u64) -> Icount {
        let start = self.start.unwrap_or(self.here.icount).0;
        let all = self.end.icount.0.saturating_sub(start);
        let part = u128::from(all) * u128::from(millionths.min(1_000_000)) / 1_000_000;
        Icount(start + u64::try_from(part).unwrap_or(all))
    }
}

/// Puts the machine where guest time first reached `to`, or to the nearest end of the history.
///
/// # Errors
/// As `Timeline::seek`.
pub fn seek_time(timeline: &mut Timeline, vm: &mut Vm, to: GuestTime) -> Result<(), TimelineError> {
    let end = timeline.end(vm);
    if to >= end.time {
        return timeline.seek(vm, end.icount);
    }
    let known = |c: &retrovisor_replay::history::Checkpoint| c.at.icount.0;
    let before = timeline.history().iter().rev().find(|c| c.at.time < to).map(known);
    let after = timeline.history().iter().find(|c| c.at.time >= to).map(known);
    let mut high = after.unwrap_or(end.icount.0);
    let mut low = before.unwrap_or(high);
    // Time at `low` is earlier than `to`, at `high` it is not.
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        timeline.seek(vm, Icount(middle))?;
        if vm.when().time < to { low = middle } else { high = middle }
    }
    timeline.seek(vm, Icount(high))
}

/// The last write to some bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LastWrite {
    /// The point before the write.
    pub at: When,
    /// The vCPU that made it, or executed while a device or the page walker did.
    pub vcpu: usize,
    pub pc: Gva,
    /// The instruction there.
    pub insn: String,
    /// The bytes before and after.
    pub old: Vec<u8>,
    pub new: Vec<u8>,
}

/// Who wrote last, before the machine's point, to any of these pieces of physical memory. The machine stays where it is.
///
/// # Errors
/// As `Timeline::last_write`.
pub fn last_write(
    timeline: &mut Timeline,
    vm: &mut Vm,
    pieces: &[(Gpa, u64)],
) -> Result<Option<LastWrite>, TimelineError> {
    let here = vm.when().icount;
    let mut latest = None;
    for (gpa, len) in pieces {
        latest = latest.max(timeline.last_write(vm, *gpa, *len)?);
    }
    let Some(at) = latest else { return Ok(None) };
    let hooks = std::mem::take(&mut vm.hooks);
    let told = look_at_write(timeline, vm, pieces, at);
    let back = timeline.seek(vm, here);
    vm.hooks = hooks;
    back.and(told).map(Some)
}

fn look_at_write(
    timeline: &mut Timeline,
    vm: &mut Vm,
    pieces: &[(Gpa, u64)],
    at: Icount,
) -> Result<LastWrite, TimelineError> {
    timeline.seek(vm, at)?;
    let (at, old) = (vm.when(), contents(vm, pieces));
    let code: Vec<(Gva, String)> =
        (0..vm.vcpus.len()).map(|n| instruction(&mut Inspect::new(vm), n)).collect();
    vm.step();
    let vcpu = vm.current;
    let (pc, insn) = code.into_iter().nth(vcpu).unwrap_or((Gva(0), String::new()));
    Ok(LastWrite { at, vcpu, pc, insn, old, new: contents(vm, pieces) })
}

fn contents(vm: &mut Vm, pieces: &[(Gpa, u64)]) -> Vec<u8> {
    let machine = Inspect::new(vm);
    let mut all = Vec::new();
    for (gpa, len) in pieces {
        let mut bytes = vec![0; *len as usize];
        let got = machine.read_physical(*gpa, &mut bytes);
        all.extend_from_slice(&bytes[..got]);
    }
    all
}

/// The instruction vCPU `n` executes next, with its address.
pub fn instruction(machine: &mut Inspect<'_>, n: usize) -> (Gva, String) {
    let (pc, bits) = (machine.pc(n), machine.vcpu(n).map_or(64, |cpu| cpu.mode.bits));
    let mut bytes = [0; 15];
    let got = machine.read_virtual(n, pc, &mut bytes);
    let line = disasm::disassemble(&bytes[..got], bits, pc.0, 1).pop();
    (pc, line.map_or_else(|| "(not in memory)".into(), |l| l.text))
}
