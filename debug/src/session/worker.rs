//! The VM thread: serves commands between runs of the machine, and turns `VmExit`s into events.

use super::travel::End;
use super::{Answer, Options, Resume, Role, SessionError, Sink};
use crate::breakpoints::{BreakpointSet, ClientId, Point};
use crate::inspect::{Inspect, linear_pc};
use crate::monitor;
use crate::stop::{Event, Exit, Stop, StopReason};
use crate::travel::Marks;
use retrovisor_core::input::InputEvent;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::vcpu::Activity;
use retrovisor_core::{Gpa, Gva, Icount};
use retrovisor_replay::Machine;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

/// A command, as the VM thread sees it.
pub type Job = Box<dyn FnOnce(&mut Worker) + Send>;

enum State {
    Running {
        how: Resume,
        /// Nothing executed yet since the resume: a breakpoint at the start does not count.
        fresh: bool,
    },
    Stopped(Stop),
    Exited(Exit),
}

struct Attached {
    id: ClientId,
    role: Role,
    sink: Sink,
    /// Exceptions it wants to stop at, a bit a vector.
    exceptions: u32,
}

/// What the VM thread owns.
pub struct Worker {
    pub(super) vm: Machine,
    jobs: Receiver<Job>,
    options: Options,
    state: State,
    clients: Vec<Attached>,
    next_client: u64,
    points: BreakpointSet,
    /// Number of the latest run.
    run: u64,
    quit: bool,
    /// Where the last triple fault was reported, so that a resume from there goes through with it.
    pub(super) triple_fault_at: Option<Icount>,
    pub(super) end: Option<End>,
    pub(super) marks: Marks,
}

impl Worker {
    pub(super) fn new(vm: Machine, jobs: Receiver<Job>, options: Options) -> Self {
        let state = State::Running { how: Resume::Continue { until: None }, fresh: true };
        let mut worker = Self {
            vm,
            jobs,
            options,
            state,
            clients: Vec::new(),
            next_client: 1,
            points: BreakpointSet::default(),
            run: u64::from(!options.freeze),
            quit: false,
            triple_fault_at: None,
            end: None,
            marks: Marks::new(),
        };
        if options.freeze {
            worker.state = State::Stopped(worker.stop_here(StopReason::Frozen));
        }
        worker
    }

    /// The thread's body: serves and runs until told to quit; gives the machine back.
    pub(super) fn run(mut self) -> Machine {
        if let Err(bug) = catch_unwind(AssertUnwindSafe(|| self.serve())) {
            self.state = State::Exited(Exit::Bug);
            self.broadcast(Event::Exited(Exit::Bug));
            resume_unwind(bug);
        }
        self.vm
    }

    fn serve(&mut self) {
        while !self.quit {
            let job = if matches!(self.state, State::Running { .. }) {
                match self.jobs.try_recv() {
                    Err(TryRecvError::Empty) => {
                        self.advance();
                        continue;
                    }
                    other => other.ok(),
                }
            } else {
                self.jobs.recv().ok()
            };
            match job {
                Some(job) => job(self),
                None => return, // every handle is gone
            }
        }
    }

    // --- clients ---

    pub(super) fn attach(&mut self, role: Role, mut sink: Sink) -> ClientId {
        let id = ClientId(self.next_client);
        self.next_client += 1;
        let listening = sink(&self.state());
        if listening {
            self.clients.push(Attached { id, role, sink, exceptions: 0 });
        }
        self.update_hooks();
        id
    }

    pub(super) fn detach(&mut self, id: ClientId) {
        self.clients.retain(|c| c.id != id);
        self.points.remove_client(id);
        self.update_hooks();
    }

    pub(super) fn detach_and_continue(&mut self, id: ClientId) {
        self.detach(id);
        if !self.has_debugger() && matches!(self.state, State::Stopped(_)) {
            // Cannot fail: the guest is stopped and the vCPU is not named.
            let _ = self.resume(Resume::Continue { until: None });
        }
    }

    pub(super) fn has_debugger(&self) -> bool {
        self.clients.iter().any(|c| c.role == Role::Debugger)
    }

    fn broadcast(&mut self, event: Event) {
        self.clients.retain_mut(|c| (c.sink)(&event));
    }

    pub(super) fn state(&self) -> Event {
        match self.state {
            State::Running { .. } => Event::Running(self.run),
            State::Stopped(stop) => Event::Stopped(stop),
            State::Exited(exit) => Event::Exited(exit),
        }
    }

    pub(super) fn inspect(&mut self) -> Inspect<'_> {
        Inspect::new(&mut self.vm)
    }

    // --- breakpoints ---

    pub(super) fn insert(&mut self, id: ClientId, point: Point) {
        self.points.insert(id, point);
        self.update_hooks();
    }

    pub(super) fn remove(&mut self, id: ClientId, point: Point) -> bool {
        let held = self.points.remove(id, point);
        self.update_hooks();
        held
    }

    pub(super) fn stop_on_exceptions(&mut self, id: ClientId, mask: u32) {
        self.clients.iter_mut().filter(|c| c.id == id).for_each(|c| c.exceptions = mask);
        self.update_hooks();
    }

    pub(super) fn monitor(&mut self, id: ClientId, vcpu: usize, line: &str) -> Result<Answer, String> {
        let mut exceptions = self.clients.iter().find(|c| c.id == id).map_or(0, |c| c.exceptions);
        let (timeline, vm) = self.vm.parts();
        let machine = &mut Inspect::new(vm);
        let mut ctx = monitor::Context {
            machine,
            vcpu,
            exceptions: &mut exceptions,
            timeline,
            marks: &mut self.marks,
            go: None,
        };
        let answer = monitor::run(&mut ctx, line);
        let go = ctx.go;
        self.stop_on_exceptions(id, exceptions);
        let run = match (&answer, go) {
            (Ok(_), Some(how)) => Some(self.go(how).map_err(|e| e.to_string())?),
            _ => None,
        };
        answer.map(|text| Answer { text, run })
    }

    /// Resumes; a guest that runs is stopped first.
    fn go(&mut self, how: Resume) -> Result<u64, SessionError> {
        if matches!(self.state, State::Running { .. }) {
            self.state = State::Stopped(self.stop_here(StopReason::Paused));
        }
        self.resume(how)
    }

    /// Tells the engine what to stop at.
    fn update_hooks(&mut self) {
        self.vm.hooks.breakpoints = self.points.breakpoints();
        self.vm.hooks.stop_triple_fault = self.has_debugger();
        self.vm.hooks.stop_exceptions = self.clients.iter().fold(0, |mask, c| mask | c.exceptions);
        self.vm.hooks.watches = self.points.watches();
    }

    // --- writes: logged inputs ---

    pub(super) fn inject(&mut self, event: &InputEvent) -> Result<(), SessionError> {
        if let State::Exited(exit) = self.state {
            return Err(SessionError::Exited(exit));
        }
        self.make_changeable()?;
        self.vm.inject(event);
        // A debugger's own write to a watched place is no hit.
        let system = &mut self.vm.sys;
        system.mmu.take_watch_hit(&mut system.mem);
        Ok(())
    }

    pub(super) fn write_virtual(&mut self, vcpu: usize, gva: Gva, bytes: &[u8]) -> Result<(), SessionError> {
        let pieces = self.inspect().plan_write(vcpu, gva, bytes).map_err(SessionError::Unmapped)?;
        for (gpa, bytes) in pieces {
            self.inject(&InputEvent::WritePhys { gpa: gpa.0, bytes: bytes.to_vec() })?;
        }
        Ok(())
    }

    pub(super) fn write_physical(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), SessionError> {
        let mut at = gpa.0 & !0xfff;
        while at < gpa.0.saturating_add(bytes.len() as u64) {
            if !self.inspect().is_ram(Gpa(at.max(gpa.0))) {
                return Err(SessionError::NotRam(Gpa(at.max(gpa.0))));
            }
            at += 4096;
        }
        self.inject(&InputEvent::WritePhys { gpa: gpa.0, bytes: bytes.to_vec() })
    }

    pub(super) fn write_register(&mut self, vcpu: usize, reg: u16, value: u128) -> Result<(), SessionError> {
        let index = u8::try_from(vcpu).ok().filter(|_| vcpu < self.vm.vcpus.len());
        let vcpu = index.ok_or(SessionError::NoVcpu(vcpu))?;
        self.inject(&InputEvent::WriteReg { vcpu, reg, value })
    }

    // --- running ---

    pub(super) fn resume(&mut self, how: Resume) -> Result<u64, SessionError> {
        match self.state {
            State::Exited(exit) => return Err(SessionError::Exited(exit)),
            State::Running { .. } => return Ok(self.run),
            State::Stopped(_) => {}
        }
        if how.travels() {
            self.vm.travel()?;
        }
        if let Resume::Step { vcpu } | Resume::StepRange { vcpu, .. } | Resume::ReverseStep { vcpu } = how
            && vcpu >= self.vm.vcpus.len()
        {
            return Err(SessionError::NoVcpu(vcpu));
        }
        self.run += 1;
        // Guest time does not pass while the guest is stopped.
        let when = self.vm.when();
        self.vm.sys.input.resume(when);
        self.state = State::Running { how, fresh: true };
        self.broadcast(Event::Running(self.run));
        Ok(self.run)
    }

    pub(super) fn read_only(&self) -> bool {
        self.options.read_only
    }

    pub(super) fn pause(&mut self) {
        if let Some(t) = self.vm.timeline() {
            // It asked to end what has ended.
            t.cancel().store(false, Ordering::Release);
        }
        if matches!(self.state, State::Running { .. }) {
            self.stop(StopReason::Paused);
        }
    }

    pub(super) fn kill(&mut self) {
        if !matches!(self.state, State::Exited(_)) {
            self.exit(Exit::Killed);
        }
    }

    pub(super) fn quit(&mut self) {
        self.kill();
        self.quit = true;
    }

    fn stop_here(&self, reason: StopReason) -> Stop {
        let vcpu = self.vm.current;
        let pc = self.vm.vcpus.get(vcpu).map_or(Gva(0), linear_pc);
        Stop { reason, when: self.vm.when(), vcpu, pc, run: self.run }
    }

    pub(super) fn stop(&mut self, reason: StopReason) {
        let stop = self.stop_here(reason);
        self.state = State::Stopped(stop);
        self.broadcast(Event::Stopped(stop));
    }

    pub(super) fn exit(&mut self, exit: Exit) {
        self.state = State::Exited(exit);
        self.broadcast(Event::Exited(exit));
    }

    /// Runs until the machine stops or a command is waiting.
    fn advance(&mut self) {
        let State::Running { how, fresh } = self.state else { return };
        if how.travels() {
            return self.travel(how);
        }
        if let Some(exit) = self.at_end() {
            return self.ended(exit);
        }
        let outcome = match how {
            Resume::Continue { until } => self.advance_continue(self.capped(until), fresh),
            Resume::Step { vcpu } => self.advance_step(vcpu, None),
            Resume::StepRange { vcpu, start, end } => self.advance_step(vcpu, Some((start, end))),
            Resume::Search { what, .. } => {
                Some(self.advance_search(what)).filter(|e| *e != VmExit::Interrupted)
            }
            _ => return,
        };
        match (outcome, self.at_end()) {
            (Some(VmExit::Reached), Some(exit)) if !matches!(how, Resume::Step { .. }) => self.ended(exit),
            (Some(exit), _) => self.settle(exit, how),
            (None, _) => {}
        }
    }

    /// `until`, but not beyond where the machine is known to end.
    fn capped(&self, until: Option<Icount>) -> Option<Icount> {
        let end = self.end.map(|e| e.at);
        until.map_or(end, |u| Some(end.map_or(u, |e| e.min(u))))
    }

    /// `None`: not done, look for commands and come back.
    fn advance_continue(&mut self, until: Option<Icount>, fresh: bool) -> Option<VmExit> {
        if until.is_some_and(|u| self.vm.when().icount >= u) {
            return Some(VmExit::Reached);
        }
        if let Some(at) = self.at_breakpoint() {
            if !fresh {
                return Some(VmExit::Breakpoint(at));
            }
            return match self.step_over(at) {
                VmExit::Reached => None,
                VmExit::Interrupted => None,
                exit => Some(exit),
            };
        }
        self.no_longer_fresh();
        Some(self.vm.run(until)).filter(|exit| *exit != VmExit::Interrupted)
    }

    /// Steps `vcpu` once, and then on while its RIP is in `range`; other vCPUs take their turns as ever.
    fn advance_step(&mut self, vcpu: usize, range: Option<(u64, u64)>) -> Option<VmExit> {
        let stepped = self.vm.current;
        if stepped != vcpu
            && let State::Running { fresh: false, .. } = self.state
            && let Some(at) = self.at_breakpoint()
        {
            return Some(VmExit::Breakpoint(at));
        }
        let before = self.vm.when().icount;
        let exit = match self.at_breakpoint() {
            Some(at) => self.step_over(at),
            None => self.vm.step(),
        };
        if self.vm.when().icount != before {
            self.no_longer_fresh();
        }
        match exit {
            VmExit::Interrupted => None,
            VmExit::Reached if self.vm.when().icount == before || stepped != vcpu => None,
            VmExit::Reached => self.step_done(vcpu, range),
            exit => Some(exit),
        }
    }

    fn step_done(&self, vcpu: usize, range: Option<(u64, u64)>) -> Option<VmExit> {
        let rip = self.vm.vcpus.get(vcpu).map_or(0, |cpu| cpu.rip);
        match range {
            Some((start, end)) if (start..end).contains(&rip) => self.at_breakpoint().map(VmExit::Breakpoint),
            _ => Some(VmExit::Reached),
        }
    }

    fn no_longer_fresh(&mut self) {
        if let State::Running { fresh, .. } = &mut self.state {
            *fresh = false;
        }
    }

    /// The breakpoint the current vCPU stands at, if it is about to execute there.
    fn at_breakpoint(&self) -> Option<Gva> {
        let cpu = self.vm.vcpus.get(self.vm.current)?;
        let pc = linear_pc(cpu);
        let armed = cpu.activity == Activity::Running && self.vm.hooks.breakpoints.contains(&pc.0);
        armed.then_some(pc)
    }

    /// Executes the instruction under the breakpoint at `at`.
    fn step_over(&mut self, at: Gva) -> VmExit {
        let before = self.vm.when().icount;
        self.vm.hooks.breakpoints.remove(&at.0);
        let exit = self.vm.step();
        self.vm.hooks.breakpoints.insert(at.0);
        if self.vm.when().icount != before {
            self.no_longer_fresh();
        }
        exit
    }

    /// Turns what the machine did into an event. With a debugger attached, a condition the guest cannot leave by
    /// itself stops instead of ending the run.
    fn settle(&mut self, exit: VmExit, how: Resume) {
        let debugged = self.has_debugger();
        let or_stop = |worker: &mut Self, exit: Exit, reason: StopReason| {
            if debugged { worker.stop(reason) } else { worker.exit(exit) }
        };
        match exit {
            VmExit::Reached if matches!(how, Resume::Continue { .. } | Resume::Search { .. }) => {
                self.stop(StopReason::Reached)
            }
            VmExit::Reached => self.stop(StopReason::Step),
            VmExit::Breakpoint(at) => self.stop(StopReason::Breakpoint(at)),
            VmExit::Watchpoint(hit) => self.stop(StopReason::Watchpoint(hit)),
            VmExit::Exception(e) => self.stop(StopReason::Exception(e)),
            VmExit::Occurred(what) => self.stop(StopReason::Occurred(what)),
            VmExit::TripleFault => self.triple_fault(),
            VmExit::Reset => self.ended(Exit::Reset),
            VmExit::PowerOff => self.ended(Exit::PowerOff),
            VmExit::DebugExit(v) => self.ended(Exit::DebugExit(v)),
            // Live: the guest waits for input, and nobody is left to send any.
            VmExit::InputEnded if !self.on_trace() => or_stop(self, Exit::TraceEnded, StopReason::Dead),
            VmExit::InputEnded => or_stop(self, Exit::TraceEnded, StopReason::TraceEnded),
            VmExit::Diverged => or_stop(self, Exit::Diverged, StopReason::Diverged),
            VmExit::Dead => or_stop(self, Exit::Dead, StopReason::Dead),
            VmExit::Interrupted => {}
        }
    }

    /// Stops before the triple fault takes effect; if it was reported already, lets it take effect.
    fn triple_fault(&mut self) {
        let here = self.vm.when().icount;
        let reported = self.triple_fault_at.replace(here) == Some(here);
        if self.has_debugger() && !reported {
            self.stop(StopReason::TripleFault);
        } else if self.vm.config.no_reboot {
            self.exit(Exit::TripleFault);
        } else if self.vm.reset().is_err() {
            // The reset is what the engine does where nobody stops it.
            self.exit(Exit::TripleFault);
        }
    }
}
