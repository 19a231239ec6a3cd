//! Questions about a part of the history: every point at which something happened, in order. A segment between checkpoints
//! that cannot have it is skipped without being run. The machine ends up where it stood.

use crate::search::{Hit, Reason};
use crate::timeline::{Run, Timeline, TimelineError};
use retrovisor_core::engine::hooks::{Hooks, Watch, WatchAddr, WatchHit, WatchKind};
use retrovisor_core::engine::interrupts::OffStretch;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::{Gpa, Gva, Icount};
use std::ops::ControlFlow;

/// Part of a run: from the first point up to, not including, what is done at the second.
pub type Part = std::ops::Range<Icount>;

/// Told of a point; says whether to go on. The machine stands behind an access or occurrence, before anything else.
pub type See<'a> = &'a mut dyn FnMut(&mut Vm, Hit) -> ControlFlow<()>;

/// An instruction that wrote to watched bytes of memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Write {
    /// The point before it.
    pub at: Icount,
    pub vcpu: usize,
    /// Linear address of what the vCPU was about to execute there. (If an exception is delivered there, that wrote.)
    pub pc: Gva,
    pub hit: WatchHit,
    /// What the bytes held before and after.
    pub old: Vec<u8>,
    pub new: Vec<u8>,
}

fn read(vm: &Vm, gpa: Gpa, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    vm.sys.mem.read_phys(gpa, &mut bytes);
    bytes
}

impl Timeline {
    /// Calls `see` at each point of `part` at which `hooks` would stop the machine, in order. In the history of a live run,
    /// DMA and the page walker's accesses count, too, for watchpoints by physical address.
    ///
    /// # Errors
    /// If `part` begins before the history, the history cannot be replayed, or the search was interrupted.
    pub fn scan(
        &mut self,
        vm: &mut Vm,
        hooks: &Hooks,
        part: Part,
        see: See<'_>,
    ) -> Result<(), TimelineError> {
        self.in_the_past(vm, |timeline, vm| timeline.scan_segments(vm, hooks, part, see))
    }

    /// Calls `see` at every point of `part` and at its end: before each instruction, REP iteration and delivery.
    ///
    /// # Errors
    /// As [`Timeline::scan`].
    pub fn walk(
        &mut self,
        vm: &mut Vm,
        part: Part,
        see: &mut dyn FnMut(&mut Vm) -> ControlFlow<()>,
    ) -> Result<(), TimelineError> {
        self.in_the_past(vm, |timeline, vm| {
            timeline.go_back_to(vm, part.start)?;
            while see(vm).is_continue() {
                let here = vm.when().icount;
                if here >= part.end || timeline.stretch_to(vm, here + 1, Vm::run)? != VmExit::Reached {
                    break;
                }
            }
            Ok(())
        })
    }

    /// The longest stretch in `part` during which a vCPU had interrupts off. Stretches are cut at the ends of `part`.
    ///
    /// # Errors
    /// As [`Timeline::scan`].
    pub fn interrupts_off(&mut self, vm: &mut Vm, part: Part) -> Result<Option<OffStretch>, TimelineError> {
        self.in_the_past(vm, |timeline, vm| {
            timeline.go_back_to(vm, part.start)?;
            vm.measure_interrupts();
            let ran = timeline.stretch_to(vm, part.end, Vm::run);
            let longest = vm.interrupts_measured();
            ran.map(|_| longest)
        })
    }

    /// Every write in `part` to `len` bytes of physical memory, in order, at most `most`. One instruction is one write,
    /// also if it wrote what was there. DMA and the page walker's bits count.
    ///
    /// # Errors
    /// As [`Timeline::scan`].
    pub fn writes(
        &mut self,
        vm: &mut Vm,
        gpa: Gpa,
        len: u64,
        part: Part,
        most: usize,
    ) -> Result<Vec<Write>, TimelineError> {
        let watch = Watch { addr: WatchAddr::Physical(gpa), len, kind: WatchKind::Write };
        let hooks = Hooks { watches: vec![watch], ..Hooks::default() };
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        let mut all: Vec<Write> = Vec::new();
        self.in_the_past(vm, |timeline, vm| {
            timeline.go_back_to(vm, part.start)?;
            let mut old = read(vm, gpa, size);
            let mut see = |vm: &mut Vm, hit: Hit| {
                let Reason::Watchpoint(watch) = hit.reason else { return ControlFlow::Continue(()) };
                let new = read(vm, gpa, size);
                let old = std::mem::replace(&mut old, new.clone());
                all.push(Write { at: hit.at, vcpu: vm.current, pc: Gva(0), hit: watch, old, new });
                if all.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            timeline.scan_segments(vm, &hooks, part, &mut see)?;
            timeline.name_writers(vm, &mut all)
        })?;
        Ok(all)
    }

    /// Finds out what each write was made by.
    fn name_writers(&mut self, vm: &mut Vm, all: &mut [Write]) -> Result<(), TimelineError> {
        for write in all {
            self.go_on_to(vm, write.at)?;
            write.pc = vm.ctx(write.vcpu).map_or(Gva(0), |c| Gva(c.code_lin()));
        }
        Ok(())
    }

    /// Does `f` with a machine in the past that has no hooks, and puts it back.
    fn in_the_past<T>(
        &mut self,
        vm: &mut Vm,
        f: impl FnOnce(&mut Self, &mut Vm) -> Result<T, TimelineError>,
    ) -> Result<T, TimelineError> {
        let here = vm.when().icount;
        let hooks = std::mem::take(&mut vm.hooks);
        self.leave_head(vm);
        let done = f(self, vm);
        vm.hooks = Hooks::default();
        let back = self.seek(vm, here);
        vm.hooks = hooks;
        let done = done?;
        back?;
        Ok(done)
    }

    /// Puts a machine that left the head to `to`, by way of the checkpoint before it.
    fn go_back_to(&mut self, vm: &mut Vm, to: Icount) -> Result<(), TimelineError> {
        self.restore(vm, self.checkpoint_before(to)?)?;
        self.play(vm, to)
    }

    /// The same, but from where the machine is if that is nearer.
    fn go_on_to(&mut self, vm: &mut Vm, to: Icount) -> Result<(), TimelineError> {
        self.set_out(vm, to)?;
        self.play(vm, to)
    }

    fn scan_segments(
        &mut self,
        vm: &mut Vm,
        hooks: &Hooks,
        part: Part,
        see: See<'_>,
    ) -> Result<(), TimelineError> {
        let mut at = part.start;
        let end = part.end.min(self.end(vm).icount);
        while at < end {
            let begin = self.checkpoint_before(at)?;
            let next = self.history().after(at).map_or(end, |c| c.at.icount.min(end));
            let known = self.stretch(begin, next);
            if known.is_none_or(|s| s.may_stop(hooks, &vm.sys.mem.map)) {
                self.go_on_to(vm, at)?;
                vm.hooks = hooks.clone();
                let seen = self.see_hits(vm, next, see);
                vm.hooks = Hooks::default();
                if seen?.is_break() {
                    return Ok(());
                }
            }
            self.check_cancel()?;
            at = next;
        }
        Ok(())
    }

    /// Runs to `end`, showing each hit on the way.
    fn see_hits(&mut self, vm: &mut Vm, end: Icount, see: See<'_>) -> Result<ControlFlow<()>, TimelineError> {
        let mut run: Run = Vm::run_here;
        while let Some(hit) = self.next_hit(vm, end, &mut run)? {
            if see(vm, hit).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
