//! The dispatcher: finds or makes the block to execute, enters translated code, and takes up where it left off. What is not
//! translated (see `translate::mode`) and the last instructions before the limit are interpreted.

use crate::ctx::Ctx;
use crate::interp::Leave;
use crate::jit::run::{self, Left};
use crate::machine::vm::Vm;
use crate::translate::cache::Ticket;
use crate::translate::mode::ModeKey;
use crate::translate::site::saved;
use crate::translate::unit::Key;
use crate::translate::{MAX_INSNS, Stats, Translator};
use crate::vcpu::flags::bit::ARITH;

/// Instructions interpreted at once in code that is not translated.
const INTERPRETED: u64 = 1000;
/// Instructions run at once at most: what a frame's budget holds.
const STRETCH: u64 = 1 << 40;

/// How the dispatcher goes on.
enum Turn {
    Again,
    Leave(Leave),
}

impl Vm {
    /// The translator and what it did, if it was used.
    pub fn translator(&self) -> Option<&Translator> {
        self.translator.as_deref()
    }

    /// What the translator did so far.
    pub fn jit_stats(&self) -> Stats {
        self.translator.as_ref().map_or_else(Stats::default, |t| t.stats)
    }

    /// Runs the current vCPU up to the limit, translated as far as possible.
    pub(super) fn run_translated(&mut self, skip_first: bool) -> Leave {
        if self.translator.is_none() {
            match Translator::new(self.config.cpu, self.translator_options(), self.jit_buffer) {
                Ok(t) => self.translator = Some(Box::new(t)),
                Err(_) => return self.interpret(skip_first),
            }
        }
        let mut skip = skip_first;
        let mut ticket = None;
        let start = self.sys.icount;
        while self.sys.icount < self.sys.limit {
            if self.one_block && self.sys.icount != start {
                return Leave::Budget;
            }
            match self.turn(skip, &mut ticket) {
                Turn::Again => {}
                Turn::Leave(l) => return l,
            }
            skip = false;
        }
        Leave::Budget
    }

    /// One entry into translated code, or some interpreted instructions.
    fn turn(&mut self, skip: bool, ticket: &mut Option<Ticket>) -> Turn {
        let from = ticket.take();
        let limit = self.sys.limit;
        let mode = ModeKey::of(&self.vcpus[self.current]);
        let left = limit - self.sys.icount;
        // The first block always passes its budget check: see `translate::emit`.
        let Some(mode) = mode.filter(|_| left > 2 * MAX_INSNS as u64) else {
            return self.interpret_some(skip, mode.is_some());
        };
        if !self.filter.is_empty() {
            let at = self.here().code_lin();
            let stop = self.filter.contains(at);
            if stop && !skip {
                return Turn::Leave(Leave::Breakpoint);
            }
            if stop {
                return self.interpret_one();
            }
        }
        let Some(id) = self.block_here(mode) else { return self.interpret_one() };
        self.enter(id, from, mode, limit, ticket)
    }

    fn enter(
        &mut self,
        id: u32,
        from: Option<Ticket>,
        mode: ModeKey,
        limit: u64,
        ticket: &mut Option<Ticket>,
    ) -> Turn {
        let Some(t) = self.translator.as_deref_mut() else { return self.interpret_one() };
        if t.options.chain && !self.one_block {
            match from {
                Some(f) => t.link(f, id),
                None => t.note_target(id),
            }
        }
        let Some((code, insns)) = t.block(id).map(|b| (b.saved_entry, b.insns)) else { return Turn::Again };
        t.stats.entries += 1;
        let jump_cache = t.jump_cache(mode);
        let cpu = &mut self.vcpus[self.current];
        let at = self.sys.icount;
        let frame = t.stack.get();
        frame.epoch = self.sys.mem.tlb.epoch();
        frame.jump_cache = jump_cache;
        frame.roam = t.options.jump_cache && t.options.chain && !self.one_block;
        frame.stops = if self.filter.is_empty() { self.hooks.stop_exceptions } else { u32::MAX };
        // In single-block steps the first block uses up the budget.
        frame.base = match self.one_block {
            true => at + u64::from(insns),
            false => limit.min(at + STRETCH) - MAX_INSNS as u64,
        };
        frame.budget = frame.base as i64 - at as i64;
        frame.flags = saved(cpu.flags.0);
        frame.refresh(cpu, &self.sys);
        let mut ctx = Ctx { cpu, sys: &mut self.sys };
        let stubs = t.stubs;
        let left = run::enter(&mut t.stack, &stubs, code, &mut ctx);
        if let Some(m) = t.stack.get().adapt.take() {
            t.adapt(m, &mut ctx.sys.mem);
        }
        if let Some(key) = t.stack.get().sampled.take() {
            t.sample(&key, &mut ctx.sys.mem);
        }
        match left {
            Left::Fault(e) => Turn::Leave(Leave::Fault(e)),
            Left::TripleFault => Turn::Leave(Leave::TripleFault),
            Left::Boundary => Turn::Again,
            Left::Link(n) => {
                let frame = t.stack.get();
                ctx.sys.icount = (frame.base as i64 - frame.budget) as u64;
                ctx.cpu.flags.replace(ARITH, frame.flags);
                if let Some((rip, tk)) = t.slot(n) {
                    ctx.cpu.rip = rip;
                    *ticket = Some(tk);
                }
                Turn::Again
            }
        }
    }

    /// The block at RIP, translated if need be; `None`: the interpreter has to execute what is there (or to find that it
    /// cannot be fetched).
    fn block_here(&mut self, mode: ModeKey) -> Option<u32> {
        let mut ctx = Ctx { cpu: &mut self.vcpus[self.current], sys: &mut self.sys };
        let rip = ctx.cpu.rip;
        let gpa = ctx.translate_fetch(rip).ok()?;
        let key = Key { gpa, rip, mode };
        let t = self.translator.as_deref_mut()?;
        let next = (rip | 0xfff).wrapping_add(1) & ctx.cpu.mode.lin_mask;
        let id = match t.find(&key) {
            Some(id) => id,
            None => {
                let stop = |rip| self.filter.contains(rip);
                match t.translate(key, &mut ctx.sys.mem, None, &stop) {
                    Some(id) => id,
                    // Maybe its first instruction leaves the page. Only then may the next page be touched.
                    None => {
                        if !t.straddles(&key, &ctx.sys.mem) {
                            return None;
                        }
                        let second = ctx.translate_fetch(next).ok()?;
                        t.translate(key, &mut ctx.sys.mem, Some(second), &stop)?
                    }
                }
            }
        };
        if let Some(second) = t.block(id)?.second
            && ctx.translate_fetch(next).ok()?.page() != second.page()
        {
            // The second page is mapped elsewhere now.
            return None;
        }
        Some(id)
    }

    fn interpret_one(&mut self) -> Turn {
        match self.here().step_insn() {
            Ok(()) => Turn::Again,
            Err(e) => Turn::Leave(Leave::Fault(e)),
        }
    }

    /// Interprets a stretch: all that is left, or (`mode_fits` false) some instructions, after which the mode may be
    /// another.
    fn interpret_some(&mut self, skip: bool, mode_fits: bool) -> Turn {
        let limit = self.sys.limit;
        if !mode_fits {
            self.sys.limit = limit.min(self.sys.icount + INTERPRETED);
        }
        let leave = self.interpret(skip);
        if self.sys.limit != 0 {
            self.sys.limit = limit;
        }
        match leave {
            Leave::Budget => Turn::Again,
            other => Turn::Leave(other),
        }
    }
}
