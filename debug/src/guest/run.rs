//! Moving a guest: forwards to an event, backwards, anywhere.

use super::{Error, Guest, Icount, Place, VmExit};
use retrovisor_core::engine::hooks::{Hooks, Watch, WatchAddr, WatchKind};
use retrovisor_core::input::InputEvent;
use retrovisor_replay::Write;

/// Instructions run at once while a text is waited for that the machine cannot stop at by itself.
const SLICE: u64 = 1 << 22;

impl Guest {
    // --- forwards ---

    /// Runs until `icount` instructions have been executed since power-on.
    ///
    /// # Errors
    /// If the run ends before, or the point lies behind.
    pub fn run_to(&mut self, icount: Icount) -> Result<(), Error> {
        let at = self.icount();
        if icount < at {
            return Err(Error::Behind { to: icount, at });
        }
        match self.advance(Some(icount), Hooks::default())? {
            VmExit::Reached => Ok(()),
            exit => Err(self.ended_early(format!("instruction {icount}"), exit)),
        }
    }

    /// Executes one instruction, REP iteration or delivery.
    ///
    /// # Errors
    /// If the run ends here.
    pub fn step(&mut self) -> Result<(), Error> {
        self.run_to(self.icount() + 1)
    }

    /// Runs until the guest has printed `text` on COM1: to the boundary behind the instruction that completed it.
    ///
    /// # Errors
    /// If that does not happen within `limit` instructions.
    pub fn run_until_console(&mut self, text: &str, limit: u64) -> Result<(), Error> {
        let from = self.icount();
        let last = from + limit;
        let what = || format!("`{}` on the console", text.escape_debug());
        loop {
            if let Some(at) = self.console.find(text, from).filter(|at| *at <= last) {
                // Known already, or just found to have been passed.
                return if at >= self.icount() { self.run_to(at) } else { self.seek(at) };
            }
            let here = self.icount();
            if here >= last {
                return Err(Error::Limit { what: what(), limit, at: here });
            }
            // A live machine stops by itself; others look up now and then.
            let live = self.trace.is_none() && !self.in_past();
            let until = if live { last } else { (here + SLICE).min(last) };
            self.console.wait_for(if live { text } else { "" });
            let exit = self.advance(Some(until), Hooks::default());
            self.console.wait_for("");
            match exit? {
                VmExit::Reached | VmExit::Interrupted => {}
                exit if self.console.find(text, from).is_none() => {
                    return Err(self.ended_early(what(), exit));
                }
                _ => {}
            }
        }
    }

    /// Runs until the instruction at `at` is about to execute; if it is now, until the next time.
    ///
    /// # Errors
    /// If that does not happen within the builder's limit.
    pub fn run_to_breakpoint(&mut self, at: impl Into<Place>) -> Result<(), Error> {
        let place = at.into();
        let hooks = Hooks { breakpoints: [place.code(&self.symbols)?].into(), ..Hooks::default() };
        let what = format!("{place} to be executed");
        self.run_to_hit(hooks, what, |exit| matches!(exit, VmExit::Breakpoint(_)))
    }

    /// Runs until an instruction has written to `len` bytes of memory; stops behind it.
    ///
    /// # Errors
    /// If that does not happen within the builder's limit.
    pub fn run_to_write(&mut self, at: impl Into<Place>, len: u64) -> Result<(), Error> {
        let place = at.into();
        let addr = WatchAddr::Physical(self.look().physical(place.clone(), len)?);
        let hooks = Hooks { watches: vec![Watch { addr, len, kind: WatchKind::Write }], ..Hooks::default() };
        self.run_to_hit(hooks, format!("a write to {place}"), |exit| matches!(exit, VmExit::Watchpoint(_)))
    }

    /// Runs until exception `vector` (0 to 31) is about to be delivered.
    ///
    /// # Errors
    /// If that does not happen within the builder's limit.
    pub fn run_to_exception(&mut self, vector: u8) -> Result<(), Error> {
        let hooks =
            Hooks { stop_exceptions: 1u32.checked_shl(vector.into()).unwrap_or(0), ..Hooks::default() };
        self.run_to_hit(hooks, format!("exception {vector}"), |exit| matches!(exit, VmExit::Exception(_)))
    }

    /// Runs to the end of the run: the guest switches the machine off, leaves by isa-debug-exit, crashes, ...
    ///
    /// # Errors
    /// If that does not happen within `limit` instructions.
    pub fn run_to_exit(&mut self, limit: u64) -> Result<VmExit, Error> {
        match self.advance(Some(self.icount() + limit), Hooks::default())? {
            VmExit::Reached => {
                Err(Error::Limit { what: "the end of the run".into(), limit, at: self.icount() })
            }
            exit => Ok(exit),
        }
    }

    /// Types on the serial console, COM1: the bytes arrive at this very point. A logged input.
    ///
    /// # Errors
    /// If the guest is in its past.
    pub fn type_text(&mut self, text: &str) -> Result<(), Error> {
        self.inject(&InputEvent::Serial { port: 0, bytes: text.as_bytes().to_vec() })
    }

    /// Applies an input at this point: serial bytes, keys, the power button, an NMI, a write by a debugger. A logged input.
    ///
    /// # Errors
    /// If the guest is in its past.
    pub fn inject(&mut self, event: &InputEvent) -> Result<(), Error> {
        if self.in_past() || self.trace.is_some() {
            return Err(Error::InPast { at: self.icount() });
        }
        self.machine.inject(event);
        Ok(())
    }

    // --- backwards and anywhere ---

    /// Puts the machine where it first arrived at `icount`; beyond the newest point, to that point.
    ///
    /// # Errors
    /// If the history does not reach back so far.
    pub fn seek(&mut self, icount: Icount) -> Result<(), Error> {
        let (timeline, vm) = self.parts()?;
        Ok(timeline.seek(vm, icount)?)
    }

    /// Puts the machine to the newest point.
    ///
    /// # Errors
    /// If the history cannot be replayed to there.
    pub fn seek_end(&mut self) -> Result<(), Error> {
        self.seek(Icount(u64::MAX))
    }

    /// Is the machine in the past of its run, or before the end of its trace?
    pub fn in_past(&self) -> bool {
        self.machine.timeline().is_some_and(|t| t.in_past(&self.machine))
    }

    /// Lets the run go on from here in another way; what came after this point is forgotten by the guest's console.
    ///
    /// # Errors
    /// If there are too many branches.
    pub fn branch(&mut self) -> Result<(), Error> {
        let at = self.icount();
        let (timeline, vm) = self.parts()?;
        timeline.branch(vm)?;
        self.console.forget_from(at);
        (self.trace, self.ended) = (None, None);
        Ok(())
    }

    /// Goes one instruction (REP iteration, delivery) of the machine back.
    ///
    /// # Errors
    /// If there is none in the history.
    pub fn reverse_step(&mut self) -> Result<(), Error> {
        let before = self.icount();
        match before.0.checked_sub(1) {
            Some(at) => self.seek(Icount(at)),
            None => Err(Error::NeverBefore { what: "an instruction".into(), before }),
        }
    }

    /// Goes back to the last point before this one at which the instruction at `at` was about to execute.
    ///
    /// # Errors
    /// If that did not happen; the machine then stays where it is.
    pub fn reverse_to(&mut self, at: impl Into<Place>) -> Result<(), Error> {
        let place = at.into();
        let hooks = Hooks { breakpoints: [place.code(&self.symbols)?].into(), ..Hooks::default() };
        self.reverse_to_hit(hooks, format!("the execution of {place}"))
    }

    /// Goes back to the last point before this one at which an instruction was about to write to `len` bytes of memory.
    ///
    /// # Errors
    /// If that did not happen; the machine then stays where it is.
    pub fn reverse_to_write(&mut self, at: impl Into<Place>, len: u64) -> Result<(), Error> {
        let place = at.into();
        let addr = WatchAddr::Physical(self.look().physical(place.clone(), len)?);
        let hooks = Hooks { watches: vec![Watch { addr, len, kind: WatchKind::Write }], ..Hooks::default() };
        self.reverse_to_hit(hooks, format!("a write to {place}"))
    }

    /// Goes back to the last point before this one at which exception `vector` (0 to 31) was about to be delivered.
    ///
    /// # Errors
    /// If that did not happen; the machine then stays where it is.
    pub fn reverse_to_exception(&mut self, vector: u8) -> Result<(), Error> {
        let hooks =
            Hooks { stop_exceptions: 1u32.checked_shl(vector.into()).unwrap_or(0), ..Hooks::default() };
        self.reverse_to_hit(hooks, format!("exception {vector}"))
    }

    /// Who wrote last, before this point, to `len` bytes of memory; `None`: nobody since the history began. By physical
    /// address: DMA and the page walker's bits count. The machine stays where it is.
    ///
    /// # Errors
    /// If the history cannot be replayed.
    pub fn last_write(&mut self, at: impl Into<Place>, len: u64) -> Result<Option<Write>, Error> {
        let gpa = self.look().physical(at, len)?;
        let (timeline, vm) = self.parts()?;
        let Some(at) = timeline.last_write(vm, gpa, len)? else { return Ok(None) };
        Ok(timeline.writes(vm, gpa, len, at..at + 1, 1)?.pop())
    }

    // --- how ---

    fn run_to_hit(&mut self, hooks: Hooks, what: String, hit: fn(&VmExit) -> bool) -> Result<(), Error> {
        let limit = self.limit;
        match self.advance(Some(self.icount() + limit), hooks)? {
            exit if hit(&exit) => Ok(()),
            VmExit::Reached => Err(Error::Limit { what, limit, at: self.icount() }),
            exit => Err(self.ended_early(what, exit)),
        }
    }

    fn reverse_to_hit(&mut self, hooks: Hooks, what: String) -> Result<(), Error> {
        let before = self.icount();
        let (timeline, vm) = self.parts()?;
        vm.hooks = hooks;
        let found = timeline.reverse_continue(vm);
        vm.hooks = Hooks::default();
        if found?.is_some() {
            return Ok(());
        }
        timeline.seek(vm, before)?;
        Err(Error::NeverBefore { what, before })
    }

    /// Runs with `hooks` to `until` or an exit.
    fn advance(&mut self, until: Option<Icount>, hooks: Hooks) -> Result<VmExit, Error> {
        let (timeline, vm) = self.parts()?;
        vm.hooks = hooks;
        let exit = timeline.run(vm, until);
        vm.hooks = Hooks::default();
        let at = vm.when().icount;
        if matches!(
            exit,
            VmExit::PowerOff | VmExit::Reset | VmExit::TripleFault | VmExit::DebugExit(_) | VmExit::Dead
        ) {
            self.ended = Some((at, exit));
        } else if self.ended.is_some_and(|(end, _)| at > end) {
            self.ended = None;
        }
        Ok(exit)
    }

    fn ended_early(&self, what: String, exit: VmExit) -> Error {
        Error::Ended { what, exit, at: self.icount() }
    }
}
