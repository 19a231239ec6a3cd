//! The engine: what happens at instruction boundaries. Owns the order of events there, the budget of the block
//! loop, exact landing on an icount, idle time, and debugger stops.
//!
//! At a boundary, in this order: the run's target and hash points (so that the state *at* an icount is the state on
//! first arrival there), due timers, inputs, then one delivery or some instructions.

pub mod filter;
pub mod hooks;
pub mod interrupts;
mod jit;
mod options;

pub use options::{Engine, JitOptions};

use crate::addr::{GuestTime, Icount};
use crate::clock::ClockKind;
use crate::ctx::Ctx;
use crate::engine::hooks::Occurrence;
use crate::exception::{Exception, vector};
use crate::input::{Idle, Poll};
use crate::interp::Leave;
use crate::machine::board::BoardEvent;
use crate::machine::vm::{Vm, VmExit};
use crate::vcpu::{Activity, Shadow, flags};

/// Instructions between two looks at the live input port.
const POLL_INTERVAL: u64 = 100_000;

/// What a boundary step decided.
enum Next {
    /// Something happened; look again.
    Again,
    /// Execute instructions up to this icount.
    Run(u64),
    Exit(VmExit),
}

/// Instructions of the time slice that begins at `icount`: `mean` give or take half of it. Slices of one length could
/// fall into step with a loop of the guest: a vCPU idling in a loop that takes a lock would lose its turn with the
/// lock held each time, and another that wants the lock would never see it free.
fn slice_length(icount: u64, mean: u64) -> u64 {
    let spread = icount.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (mean / 2 + spread % mean.max(1)).max(1)
}

impl Vm {
    /// Runs until icount `until` (exactly, standing there before anything else happens) or another exit.
    pub fn run(&mut self, until: Option<Icount>) -> VmExit {
        self.run_to(until, false)
    }

    /// Runs until the next place where the engine looks around: the end of a block, a delivery, a stretch of idle time.
    /// What that is depends on the engine and its options; the icount reached says how far it came, at most to `until`.
    pub fn run_block(&mut self, until: Option<Icount>) -> VmExit {
        self.run_to(until, true)
    }

    fn run_to(&mut self, until: Option<Icount>, one_block: bool) -> VmExit {
        self.run_from(self.sys.icount, until, one_block)
    }

    /// As [`Vm::run`], but a breakpoint at the very first instruction counts, too.
    pub fn run_here(&mut self, until: Option<Icount>) -> VmExit {
        self.run_from(u64::MAX, until, false)
    }

    /// Runs; a breakpoint at icount `start` was stopped at already.
    fn run_from(&mut self, start: u64, until: Option<Icount>, one_block: bool) -> VmExit {
        self.sync_hooks();
        self.one_block = one_block;
        loop {
            let reached = match one_block {
                true => self.sys.icount != start,
                false => until.is_some_and(|u| self.sys.icount >= u.0),
            };
            if reached {
                return VmExit::Reached;
            }
            match self.boundary(until) {
                Next::Again => {}
                Next::Exit(e) => return e,
                Next::Run(limit) => {
                    if let Some(e) = self.execute(limit, start) {
                        return e;
                    }
                }
            }
        }
    }

    /// Executes one instruction, REP iteration or delivery of the current vCPU.
    pub fn step(&mut self) -> VmExit {
        self.run(Some(Icount(self.sys.icount + 1)))
    }

    fn boundary(&mut self, until: Option<Icount>) -> Next {
        if !self.arrive() {
            return Next::Exit(VmExit::Diverged);
        }
        if let Some(next) = self.poll() {
            return next;
        }
        if let Some(next) = self.board_events() {
            return next;
        }
        if !self.schedule() {
            return self.idle();
        }
        if let Some(next) = self.deliver_pending() {
            return next;
        }
        Next::Run(self.budget(until))
    }

    /// What comes before anything else at a boundary: the hash point, if one is due, and what is due by the clock. A
    /// replay does both before it asks for inputs, so whoever changes or ends a run between two calls of
    /// [`Vm::run`] does them first. False if the hash differs from the recorded one.
    pub fn arrive(&mut self) -> bool {
        let mut same = true;
        if self.sys.icount >= self.next_hash {
            self.next_hash = (self.sys.icount / self.config.hash_interval + 1) * self.config.hash_interval;
            let (when, hash) = (self.when(), self.state_hash());
            same = self.sys.input.check(when, hash);
        }
        self.settle();
        same
    }

    /// Lets due timers expire and derived state catch up with the devices.
    pub(crate) fn settle(&mut self) {
        if !self.sys.mem.code_writes.is_empty() {
            let writes = std::mem::take(&mut self.sys.mem.code_writes);
            self.invalidate(&writes);
        }
        // Under the host clock time also moves by reads in the middle of a block, and where blocks end differs in a
        // replay: there only a logged tick and the end of an idle wait let timers expire.
        if self.is_virtual_clock() {
            self.expire_timers();
        }
        if std::mem::take(&mut self.sys.board.a20_changed) {
            self.sys.mem.set_a20(self.sys.board.a20_mask() == u64::MAX);
        }
    }

    /// Lets every timer expire whose deadline has come.
    pub(crate) fn expire_timers(&mut self) {
        let now = self.sys.when().time;
        if self.sys.board.deadline().is_some_and(|d| d <= now) {
            let (board, mut bus) = self.sys.bus();
            board.advance(&mut bus);
        }
    }

    /// Takes inputs that are due at this point.
    fn poll(&mut self) -> Option<Next> {
        let due = match self.sys.input.next_poll() {
            Some(at) => self.sys.icount >= at.0,
            None => self.sys.icount >= self.next_poll,
        };
        if !due {
            return None;
        }
        self.next_poll = self.sys.icount + POLL_INTERVAL;
        let deadline = self.sys.board.deadline();
        self.sys.input.set_deadline(deadline);
        let when = self.when();
        match self.sys.input.poll(when) {
            Poll::None => None,
            Poll::Event(e) => {
                self.apply(&e);
                self.next_poll = self.sys.icount;
                Some(Next::Again)
            }
            Poll::Interrupt => {
                self.next_poll = self.sys.icount;
                Some(Next::Exit(VmExit::Interrupted))
            }
            Poll::End => Some(Next::Exit(VmExit::InputEnded)),
        }
    }

    /// Carries out what devices asked of the machine since the last boundary.
    fn board_events(&mut self) -> Option<Next> {
        if self.sys.board.events.is_empty() {
            return None;
        }
        for event in std::mem::take(&mut self.sys.board.events) {
            match event {
                BoardEvent::Init(n) => self.with_vcpu(n, |ctx| ctx.deliver_init()),
                BoardEvent::Sipi(n, vector) => self.with_vcpu(n, |ctx| ctx.deliver_sipi(vector)),
                BoardEvent::Nmi(n) => {
                    if let Some(c) = self.vcpus.get_mut(usize::from(n)) {
                        c.nmi_pending = true;
                    }
                }
                BoardEvent::Reset if self.config.no_reboot => return Some(Next::Exit(VmExit::Reset)),
                BoardEvent::Reset => {
                    return Some(match self.reset() {
                        Ok(()) => Next::Again,
                        Err(_) => Next::Exit(VmExit::Reset),
                    });
                }
                BoardEvent::PowerOff => return Some(Next::Exit(VmExit::PowerOff)),
                BoardEvent::DebugExit(v) => return Some(Next::Exit(VmExit::DebugExit(v))),
            }
        }
        self.note_interrupts();
        Some(Next::Again)
    }

    fn with_vcpu(&mut self, n: u8, f: impl FnOnce(&mut Ctx<'_>)) {
        if let Some(cpu) = self.vcpus.get_mut(usize::from(n)) {
            f(&mut Ctx { cpu, sys: &mut self.sys });
        }
    }

    /// Can vCPU `n` execute or be woken now?
    fn runnable(&self, n: usize) -> bool {
        let c = &self.vcpus[n];
        match c.activity {
            Activity::Running => true,
            Activity::Halted => {
                (c.nmi_pending && !c.nmi_blocked)
                    || (c.flags.has(flags::bit::IF) && self.sys.board.intr(c.index))
            }
            Activity::WaitForSipi | Activity::Shutdown => false,
        }
    }

    /// Picks the vCPU whose turn it is; false if none can run. Turns are a function of icount alone.
    fn schedule(&mut self) -> bool {
        let n = self.vcpus.len();
        if n == 1 {
            return self.runnable(0);
        }
        if self.sys.icount < self.slice_end && self.runnable(self.current) {
            return true;
        }
        for k in 1..=n {
            let c = (self.current + k) % n;
            if self.runnable(c) {
                self.current = c;
                self.slice_end = self.sys.icount + slice_length(self.sys.icount, self.config.slice);
                Ctx { cpu: &mut self.vcpus[c], sys: &mut self.sys }.mmu_switch();
                return true;
            }
        }
        false
    }

    /// Every vCPU waits: guest time jumps to the next deadline or input.
    fn idle(&mut self) -> Next {
        if self.vcpus.iter().any(|c| c.activity == Activity::Shutdown) {
            return Next::Exit(VmExit::TripleFault);
        }
        let icount = self.sys.icount;
        let deadline = self.sys.board.deadline();
        let deaf = |c: &crate::vcpu::Vcpu| c.activity != Activity::Halted || !c.flags.has(flags::bit::IF);
        if self.vcpus.iter().all(deaf) {
            return Next::Exit(VmExit::Dead);
        }
        let when = self.when();
        match self.sys.input.idle(when, deadline) {
            Idle::Deadline => match deadline {
                Some(d) => self.sys.clock.advance_to(icount, d),
                None => return Next::Exit(VmExit::InputEnded),
            },
            Idle::Input(t) => {
                let t = deadline.map_or(t, |d| GuestTime(t.0.min(d.0)));
                self.sys.clock.advance_to(icount, t);
                self.next_poll = icount;
            }
            Idle::Interrupted => {
                // The next run polls at once, which takes the request; it would interrupt every wait otherwise.
                self.next_poll = icount;
                return Next::Exit(VmExit::Interrupted);
            }
            Idle::End => return Next::Exit(VmExit::InputEnded),
        }
        self.expire_timers();
        Next::Again
    }

    /// Delivers an NMI or interrupt to the current vCPU if the boundary allows it.
    fn deliver_pending(&mut self) -> Option<Next> {
        let cpu = &mut self.vcpus[self.current];
        if cpu.shadow != Shadow::None {
            return None;
        }
        if cpu.nmi_pending && !cpu.nmi_blocked {
            return Some(self.interrupt(vector::NMI, |ctx| ctx.deliver_nmi()));
        }
        if cpu.flags.has(flags::bit::IF) && self.sys.board.intr(cpu.index) {
            let index = cpu.index;
            let vector = self.sys.board.ack(index);
            return Some(self.interrupt(vector, |ctx| ctx.deliver_external(vector)));
        }
        None
    }

    /// Delivers an interrupt or NMI.
    fn interrupt(&mut self, vector: u8, how: impl FnOnce(&mut Ctx<'_>)) -> Next {
        self.sys.occurred(|| Occurrence::Interrupt(vector));
        match self.deliver(how) {
            Next::Again => self.report().map_or(Next::Again, Next::Exit),
            other => other,
        }
    }

    /// One delivery: counts as one on the icount axis.
    fn deliver(&mut self, how: impl FnOnce(&mut Ctx<'_>)) -> Next {
        let cpu = &mut self.vcpus[self.current];
        cpu.activity = Activity::Running;
        cpu.shadow = Shadow::None;
        how(&mut Ctx { cpu, sys: &mut self.sys });
        self.sys.icount += 1;
        self.here().note_interrupts();
        if self.vcpus[self.current].activity == Activity::Shutdown {
            self.triple_fault()
        } else {
            Next::Again
        }
    }

    fn triple_fault(&mut self) -> Next {
        if self.config.no_reboot || self.hooks.stop_triple_fault {
            return Next::Exit(VmExit::TripleFault);
        }
        match self.reset() {
            Ok(()) => Next::Again,
            Err(_) => Next::Exit(VmExit::TripleFault),
        }
    }

    /// First icount at which the block loop must come back here.
    fn budget(&self, until: Option<Icount>) -> u64 {
        let at = self.sys.icount;
        let mut limit = self.next_hash.min(until.map_or(u64::MAX, |u| u.0));
        match self.sys.input.next_poll() {
            Some(p) => limit = limit.min(p.0),
            None => limit = limit.min(self.next_poll),
        }
        if let Some(d) = self.sys.board.deadline().and_then(|d| self.sys.clock.icount_at(d)) {
            limit = limit.min(d.0);
        }
        if self.vcpus.len() > 1 {
            limit = limit.min(self.slice_end);
        }
        let cpu = &self.vcpus[self.current];
        if cpu.needs_care() {
            limit = at + 1;
        }
        limit.max(at + 1)
    }

    /// Executes instructions of the current vCPU up to `limit`; delivers what they raise.
    fn execute(&mut self, limit: u64, start: u64) -> Option<VmExit> {
        self.sys.limit = limit;
        let skip = self.sys.icount == start;
        let cpu = &mut self.vcpus[self.current];
        let care = cpu.needs_care();
        let tf = cpu.flags.has(flags::bit::TF);
        if care && let Err(e) = (Ctx { cpu, sys: &mut self.sys }).begin_insn() {
            return self.raise(e);
        }
        let leave = match self.engine {
            Engine::Jit if !care => self.run_translated(skip),
            _ => self.interpret(skip),
        };
        match leave {
            Leave::Breakpoint => return Some(VmExit::Breakpoint(crate::Gva(self.here().code_lin()))),
            Leave::Fault(e) => return self.raise(e),
            Leave::TripleFault => {
                return match self.triple_fault() {
                    Next::Exit(x) => Some(x),
                    Next::Again | Next::Run(_) => None,
                };
            }
            Leave::Budget => {}
        }
        if let Some(e) = self.here().trap_boundary(tf) {
            return self.raise(e);
        }
        self.report()
    }

    /// The vCPU whose turn it is, about to execute.
    fn here(&mut self) -> Ctx<'_> {
        Ctx { cpu: &mut self.vcpus[self.current], sys: &mut self.sys }
    }

    /// Interprets up to the limit.
    fn interpret(&mut self, skip: bool) -> Leave {
        let mut ctx = Ctx { cpu: &mut self.vcpus[self.current], sys: &mut self.sys };
        if self.filter.is_empty() && !ctx.sys.interrupts.on() {
            ctx.run_blocks::<false>(&mut self.cache, &self.filter, skip)
        } else {
            ctx.run_blocks::<true>(&mut self.cache, &self.filter, skip)
        }
    }

    /// Takes over the debugger's breakpoints and watchpoints.
    fn sync_hooks(&mut self) {
        if self.sys.mmu.watches() != self.hooks.watches {
            self.sys.mmu.set_watches(&mut self.sys.mem, &self.hooks.watches);
        }
        if self.sys.observer.wanted() != self.hooks.wanted {
            self.observe();
        }
        let changed = self.filter.sync(&self.hooks.breakpoints);
        if !changed.is_empty()
            && let Some(t) = &mut self.translator
        {
            t.breakpoints_changed(&changed, &mut self.sys.mem);
        }
    }

    /// Delivers an exception, or stops before it if the debugger asked; the run after that stop delivers it.
    fn raise(&mut self, e: Exception) -> Option<VmExit> {
        let asked = self.hooks.stop_exceptions & 1u32.checked_shl(e.vector.into()).unwrap_or(0) != 0;
        let here = self.sys.icount;
        if asked && self.shown_exception.replace(here) != Some(here) {
            if e.vector == vector::DB {
                // A trap is not raised again by executing on: it stays pending.
                self.vcpus[self.current].pending_db |= e.addr;
            }
            return Some(VmExit::Exception(e));
        }
        match self.deliver(|ctx| ctx.deliver_exception(e)) {
            Next::Exit(x) => Some(x),
            Next::Again | Next::Run(_) => self.report(),
        }
    }

    /// The debugger knows of the exception that is about to be delivered here: the next run delivers it.
    pub fn exception_shown(&mut self) {
        self.shown_exception = Some(self.sys.icount);
    }

    /// What the debugger wants to know about the instruction or delivery just made.
    fn report(&mut self) -> Option<VmExit> {
        let hit = self.sys.mmu.take_watch_hit(&mut self.sys.mem).map(VmExit::Watchpoint);
        let occurred = self.sys.observer.take().map(VmExit::Occurred);
        hit.or(occurred)
    }

    /// Whether guest time follows icount.
    pub fn is_virtual_clock(&self) -> bool {
        self.sys.clock.kind == ClockKind::Virtual
    }
}

#[cfg(test)]
mod tests {
    use super::slice_length;

    #[test]
    fn test_slices_vary_about_their_mean_and_never_fall_into_step() {
        let (mut at, mut phases) = (0, std::collections::BTreeSet::new());
        let n = 10_000;
        for _ in 0..n {
            let len = slice_length(at, 10_000);
            assert!((5000..15_000).contains(&len), "{len}");
            at += len;
            // A loop of 500 instructions: slices of one length would always end at the same place of it.
            phases.insert(at % 500);
        }
        assert_eq!(phases.len(), 500);
        assert!((9_800..10_200).contains(&(at / n)), "mean {}", at / n);
    }

    #[test]
    fn test_the_shortest_slice_is_one_instruction() {
        assert!((0..100).all(|at| (1..=2).contains(&slice_length(at, 1))));
        assert_eq!(slice_length(7, 0), 1);
    }
}
