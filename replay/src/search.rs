//! Going backwards: the last point before this one at which something happened. The history is searched segment by
//! segment between checkpoints, the newest first; a segment that cannot have it is skipped without being run.

use crate::timeline::{Run, Timeline, TimelineError};
use retrovisor_core::engine::hooks::{Hooks, Occurrence, Watch, WatchAddr, WatchHit, WatchKind};
use retrovisor_core::exception::Exception;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::{Gpa, Gva, Icount};

/// What was found at a point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The instruction at this linear address is about to execute.
    Breakpoint(Gva),
    /// The instruction about to execute touches a watched place.
    Watchpoint(WatchHit),
    /// This exception is about to be delivered.
    Exception(Exception),
    /// The instruction about to execute, or the delivery about to be made, does this.
    Occurred(Occurrence),
}

/// A point at which the run would have stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hit {
    pub at: Icount,
    pub reason: Reason,
}

impl Timeline {
    /// Puts the machine at the last point before this one at which its `hooks` would have stopped it, or, if there is none
    /// (`None`), at the beginning of the history. For an access the point is before the instruction that makes it.
    ///
    /// # Errors
    /// If the history cannot be replayed, or the search was interrupted: the machine then stands where it stood.
    pub fn reverse_continue(&mut self, vm: &mut Vm) -> Result<Option<Hit>, TimelineError> {
        let hooks = std::mem::take(&mut vm.hooks);
        let result = self.reverse_to_hit(vm, &hooks);
        vm.hooks = hooks;
        result
    }

    fn reverse_to_hit(&mut self, vm: &mut Vm, hooks: &Hooks) -> Result<Option<Hit>, TimelineError> {
        let from = vm.when().icount;
        match self.last_hit(vm, hooks, from) {
            Ok(hit) => {
                let start = self.history().start().unwrap_or(from);
                self.seek(vm, hit.map_or(start, |h| h.at))?;
                if hit.is_some_and(|h| matches!(h.reason, Reason::Exception(_))) {
                    vm.exception_shown();
                }
                Ok(hit)
            }
            Err(e) => {
                // As if nothing had been asked for.
                self.seek(vm, from)?;
                Err(e)
            }
        }
    }

    /// Steps one instruction (or REP iteration, or delivery) of vCPU `vcpu` back; false if there is none in the history: the
    /// machine then stands at its beginning.
    ///
    /// # Errors
    /// As [`Timeline::reverse_continue`].
    pub fn reverse_step(&mut self, vm: &mut Vm, vcpu: usize) -> Result<bool, TimelineError> {
        let Some(start) = self.history().start() else { return Err(self.too_early()) };
        loop {
            let here = vm.when().icount;
            if here <= start {
                return Ok(false);
            }
            self.seek(vm, Icount(here.0 - 1))?;
            if vm.vcpus.len() == 1 || self.turn(vm)? == vcpu {
                return Ok(true);
            }
        }
    }

    /// The vCPU that executes next.
    fn turn(&mut self, vm: &mut Vm) -> Result<usize, TimelineError> {
        let here = vm.when().icount;
        let hooks = std::mem::take(&mut vm.hooks);
        vm.step();
        vm.hooks = hooks;
        let turn = vm.current;
        self.seek(vm, here)?;
        Ok(turn)
    }

    /// Who wrote last, before this point, to `len` bytes of physical memory: the point before the write. DMA and the
    /// page walk's accessed and dirty bits count, too, at the instruction that caused them. The machine stays where it is.
    ///
    /// # Errors
    /// As [`Timeline::reverse_continue`].
    pub fn last_write(&mut self, vm: &mut Vm, gpa: Gpa, len: u64) -> Result<Option<Icount>, TimelineError> {
        let watch = Watch { addr: WatchAddr::Physical(gpa), len, kind: WatchKind::Write };
        let wanted = Hooks { watches: vec![watch], ..Hooks::default() };
        let from = vm.when().icount;
        let hooks = std::mem::take(&mut vm.hooks);
        let found = self.last_hit(vm, &wanted, from);
        let back = self.seek(vm, from);
        vm.hooks = hooks;
        let found = found?;
        back?;
        Ok(found.map(|h| h.at))
    }

    /// Searches backwards from `from` for the last hit of `wanted` before it. The machine ends up anywhere.
    fn last_hit(&mut self, vm: &mut Vm, wanted: &Hooks, from: Icount) -> Result<Option<Hit>, TimelineError> {
        if self.history().is_empty() {
            return Err(self.too_early());
        }
        self.leave_head(vm);
        let mut end = from;
        loop {
            let Some(begin) = end.0.checked_sub(1).and_then(|n| self.history().before(Icount(n))) else {
                return Ok(None);
            };
            let begin = begin.at.icount;
            let known = self.stretch(begin, end);
            let skip = known.is_some_and(|s| !s.may_stop(wanted, &vm.sys.mem.map));
            if !skip && let Some(hit) = self.search(vm, wanted, begin, end)? {
                return Ok(Some(hit));
            }
            self.check_cancel()?;
            end = begin;
        }
    }

    /// The last hit in `[begin, end)`, which begins at a checkpoint.
    fn search(
        &mut self,
        vm: &mut Vm,
        wanted: &Hooks,
        begin: Icount,
        end: Icount,
    ) -> Result<Option<Hit>, TimelineError> {
        if let Some(answer) = self.seen.as_ref().and_then(|s| s.last(wanted, begin, end)) {
            return Ok(answer);
        }
        self.restore(vm, begin)?;
        vm.hooks = wanted.clone();
        let found = self.hits(vm, begin, end);
        vm.hooks = Hooks::default();
        let seen = found?;
        let last = seen.hits.last().copied();
        self.seen = Some(seen);
        Ok(last)
    }

    /// Runs to `end` and tells the hits on the way.
    fn hits(&mut self, vm: &mut Vm, begin: Icount, end: Icount) -> Result<Seen, TimelineError> {
        let mut seen = Seen { hooks: vm.hooks.clone(), begin, end, hits: Vec::new() };
        let mut run: Run = Vm::run_here;
        while let Some(hit) = self.next_hit(vm, end, &mut run)? {
            seen.add(hit);
        }
        Ok(seen)
    }

    /// Runs to the next hit of the machine's hooks; `None`: there is none before `end`, where it stands then. `run` begins,
    /// and becomes what goes on from the hit.
    pub(crate) fn next_hit(
        &mut self,
        vm: &mut Vm,
        end: Icount,
        run: &mut Run,
    ) -> Result<Option<Hit>, TimelineError> {
        loop {
            let exit = self.stretch_to(vm, end, *run)?;
            let here = vm.when().icount;
            // What is reported at the end's icount belongs to what comes after, except what happened on the way there.
            let reason = match exit {
                VmExit::Breakpoint(at) if here < end => Reason::Breakpoint(at),
                VmExit::Exception(e) if here < end => Reason::Exception(e),
                VmExit::Watchpoint(hit) => Reason::Watchpoint(hit),
                VmExit::Occurred(what) => Reason::Occurred(what),
                VmExit::Interrupted => continue,
                _ => return Ok(None),
            };
            // It was done by the instruction just executed, and nothing has been reported here yet.
            let done = matches!(reason, Reason::Watchpoint(_) | Reason::Occurred(_));
            *run = if done { Vm::run_here } else { Vm::run };
            return Ok(Some(Hit { at: Icount(here.0.saturating_sub(u64::from(done))), reason }));
        }
    }
}

/// Hits remembered at most.
const MOST: usize = 1 << 16;

/// All hits of some hooks in a stretch of the run: whoever goes back from hit to hit has each after the first for nothing.
pub(crate) struct Seen {
    hooks: Hooks,
    begin: Icount,
    end: Icount,
    hits: Vec<Hit>,
}

impl Seen {
    fn add(&mut self, hit: Hit) {
        if self.hits.len() == MOST {
            // Those that come last are asked for first.
            self.hits.drain(..MOST / 2);
            self.begin = self.hits.first().map_or(hit.at, |h| h.at);
        }
        self.hits.push(hit);
    }

    /// The last hit in `[begin, end)`, if this is the stretch to know; the inner `None`: there is none.
    fn last(&self, hooks: &Hooks, begin: Icount, end: Icount) -> Option<Option<Hit>> {
        if *hooks != self.hooks || end > self.end {
            return None;
        }
        let before = self.hits.partition_point(|h| h.at < end);
        let last = before.checked_sub(1).and_then(|n| self.hits.get(n)).filter(|h| h.at >= begin);
        match last {
            Some(hit) => Some(Some(*hit)),
            None => (begin >= self.begin).then_some(None),
        }
    }
}
