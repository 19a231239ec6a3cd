//! How long vCPUs run with interrupts off. Owns the measurement: while it is on, whatever changes RFLAGS.IF (or wakes or
//! stops a vCPU) notes it at the boundary behind. Off, it costs a test where an instruction is executed singly or called
//! out of translated code, and nothing elsewhere. Never part of guest state.

use crate::addr::{Gva, Icount};
use crate::ctx::Ctx;
use crate::engine::JitOptions;
use crate::machine::vm::Vm;
use crate::vcpu::{Activity, Vcpu, flags};

/// A stretch during which a vCPU that was running or halted had RFLAGS.IF clear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OffStretch {
    pub vcpu: usize,
    /// The first boundary with IF clear, and the address of the instruction to execute there.
    pub from: Icount,
    pub from_pc: Gva,
    /// The first boundary with IF set again, and the same there; or where the measurement ended.
    pub to: Icount,
    pub to_pc: Gva,
    /// The measurement ended before the stretch did.
    pub open: bool,
}

impl OffStretch {
    /// Instructions (of the whole machine) with interrupts off.
    pub const fn insns(&self) -> u64 {
        self.to.0.saturating_sub(self.from.0)
    }
}

/// The measurement.
#[derive(Debug, Default)]
pub struct InterruptWatch {
    on: bool,
    /// Since when and where each vCPU has interrupts off.
    since: Vec<Option<(u64, u64)>>,
    longest: Option<OffStretch>,
}

impl InterruptWatch {
    #[inline(always)]
    pub const fn on(&self) -> bool {
        self.on
    }

    fn note(&mut self, cpu: &Vcpu, at: u64, pc: u64) {
        let vcpu = usize::from(cpu.index);
        let counts = matches!(cpu.activity, Activity::Running | Activity::Halted);
        let off = counts && !cpu.flags.has(flags::bit::IF);
        match self.since.get_mut(vcpu) {
            Some(since @ None) if off => *since = Some((at, pc)),
            Some(since @ Some(_)) if !off => {
                let began = since.take();
                self.end(vcpu, began, (at, pc), false);
            }
            _ => {}
        }
    }

    fn end(&mut self, vcpu: usize, began: Option<(u64, u64)>, (to, to_pc): (u64, u64), open: bool) {
        let Some((from, from_pc)) = began else { return };
        let (from, from_pc, to, to_pc) = (Icount(from), Gva(from_pc), Icount(to), Gva(to_pc));
        let stretch = OffStretch { vcpu, from, from_pc, to, to_pc, open };
        // Of equally long ones the first.
        if self.longest.is_none_or(|l| l.insns() < stretch.insns()) {
            self.longest = Some(stretch);
        }
    }
}

impl Ctx<'_> {
    /// At the boundary behind an instruction or delivery that may have changed IF.
    #[inline(always)]
    pub(crate) fn note_interrupts(&mut self) {
        if self.sys.interrupts.on {
            self.note_interrupts_now();
        }
    }

    #[cold]
    #[inline(never)]
    fn note_interrupts_now(&mut self) {
        let (at, pc) = (self.sys.icount, self.code_lin());
        self.sys.interrupts.note(self.cpu, at, pc);
    }
}

impl Vm {
    /// From here on, measures how long interrupts are off, on either engine.
    pub fn measure_interrupts(&mut self) {
        self.drop_translator();
        self.sys.interrupts = InterruptWatch { on: true, since: vec![None; self.vcpus.len()], longest: None };
        self.note_interrupts();
    }

    /// Ends the measurement here: the longest stretch with interrupts off, if there was one.
    pub fn interrupts_measured(&mut self) -> Option<OffStretch> {
        let at = self.sys.icount;
        for n in 0..self.vcpus.len() {
            let pc = self.ctx(n).map_or(0, |c| c.code_lin());
            let began = self.sys.interrupts.since.get_mut(n).and_then(Option::take);
            self.sys.interrupts.end(n, began, (at, pc), true);
        }
        self.drop_translator();
        std::mem::take(&mut self.sys.interrupts).longest
    }

    /// As [`Ctx::note_interrupts`], of every vCPU.
    pub(crate) fn note_interrupts(&mut self) {
        if !self.sys.interrupts.on {
            return;
        }
        for cpu in &mut self.vcpus {
            Ctx { cpu, sys: &mut self.sys }.note_interrupts();
        }
    }

    /// Blocks translated for a run with the measurement on call out for everything that changes IF.
    fn drop_translator(&mut self) {
        if let Some(mut t) = self.translator.take() {
            t.flush(&mut self.sys.mem);
        }
    }

    /// The switches to translate with. While interrupts are measured, every instruction that changes IF must be called.
    pub(super) fn translator_options(&self) -> JitOptions {
        JitOptions { system: self.jit_options.system && !self.sys.interrupts.on(), ..self.jit_options }
    }
}
