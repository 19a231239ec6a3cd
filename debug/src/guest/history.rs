//! Questions and assertions about everything that happened in a part of a guest's run. They replay what they must, exactly;
//! the guest stays where it is, unless an assertion fails: it then stands where that happened, and so does the trace's
//! replay.

use super::{Error, Guest, Icount, Look, OffStretch, Place};
use retrovisor_core::engine::hooks::{Hooks, Occurrence, Wanted, Watch, WatchAddr, WatchKind};
use retrovisor_core::machine::vm::Vm;
use retrovisor_replay::{Reason, Write};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Writes listed by [`History::writes`] at most.
const MOST_WRITES: usize = 100_000;

/// At which points of the run a predicate is asked. The fewer, the faster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Points {
    /// At each: before every instruction, REP iteration and delivery. Some million a second.
    All,
    /// Whenever the instruction at this place is about to execute.
    Executed(Place),
    /// Behind each write to so many bytes of memory.
    Written(Place, u64),
    /// Before each delivery of one of these exceptions (bit n: vector n).
    Exceptions(u32),
}

/// A part of a guest's run: all of it up to the point the guest stands at, if nothing else is said.
pub struct History<'g> {
    guest: &'g mut Guest,
    from: Icount,
    to: Icount,
    points: Points,
}

impl Guest {
    /// What happened up to this point.
    pub fn history(&mut self) -> History<'_> {
        let (from, to) = (self.machine.timeline().and_then(|t| t.history().start()), self.icount());
        History { guest: self, from: from.unwrap_or_default(), to, points: Points::All }
    }
}

impl History<'_> {
    /// Only from `icount` on.
    pub fn since(mut self, icount: Icount) -> Self {
        self.from = self.from.max(icount);
        self
    }

    /// Only up to `icount`, which may lie ahead of where the guest stands.
    pub fn until(mut self, icount: Icount) -> Self {
        self.to = icount;
        self
    }

    /// Asks predicates at these points only.
    pub fn at(mut self, points: Points) -> Self {
        self.points = points;
        self
    }

    // --- questions ---

    /// The first point at which `what` holds.
    ///
    /// # Errors
    /// If the history cannot be replayed, or there is no such place.
    pub fn find(&mut self, mut what: impl FnMut(&mut Look<'_>) -> bool) -> Result<Option<Icount>, Error> {
        let (part, symbols) = (self.from..self.to, self.guest.symbols.clone());
        let mut found = None;
        let mut ask = |vm: &mut Vm| {
            if what(&mut Look::new(vm, &symbols)) {
                found = Some(vm.when().icount);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        match self.hooks()? {
            None => {
                let (timeline, vm) = self.guest.parts()?;
                timeline.walk(vm, part, &mut ask)?;
            }
            Some(hooks) => {
                let (timeline, vm) = self.guest.parts()?;
                timeline.scan(vm, &hooks, part, &mut |vm, _| ask(vm))?;
            }
        }
        Ok(found)
    }

    /// How often the points asked for were come by.
    ///
    /// # Errors
    /// As [`History::find`].
    pub fn count(&mut self) -> Result<u64, Error> {
        let mut n = 0;
        self.find(|_| {
            n += 1;
            false
        })?;
        Ok(n)
    }

    fn hooks(&mut self) -> Result<Option<Hooks>, Error> {
        Ok(match self.points.clone() {
            Points::All => None,
            Points::Executed(place) => {
                let at = place.code(&self.guest.symbols)?;
                Some(Hooks { breakpoints: [at].into(), ..Hooks::default() })
            }
            Points::Written(place, len) => {
                let addr = WatchAddr::Physical(self.guest.look().physical(place, len)?);
                let watches = vec![Watch { addr, len, kind: WatchKind::Write }];
                Some(Hooks { watches, ..Hooks::default() })
            }
            Points::Exceptions(mask) => Some(Hooks { stop_exceptions: mask, ..Hooks::default() }),
        })
    }

    /// The longest stretch during which a vCPU had interrupts off, in instructions. It is measured by the engine, where the
    /// flag changes, not by stepping.
    ///
    /// # Errors
    /// If the history cannot be replayed.
    pub fn max_interrupts_off(&mut self) -> Result<Option<OffStretch>, Error> {
        let part = self.from..self.to;
        let (timeline, vm) = self.guest.parts()?;
        Ok(timeline.interrupts_off(vm, part)?)
    }

    /// How many exceptions of each vector (0 to 31) were delivered.
    ///
    /// # Errors
    /// If the history cannot be replayed.
    pub fn exceptions(&mut self) -> Result<BTreeMap<u8, u64>, Error> {
        let hooks = Hooks { stop_exceptions: u32::MAX, ..Hooks::default() };
        let (part, mut counts) = (self.from..self.to, BTreeMap::new());
        let (timeline, vm) = self.guest.parts()?;
        timeline.scan(vm, &hooks, part, &mut |_, hit| {
            if let Reason::Exception(e) = hit.reason {
                *counts.entry(e.vector).or_insert(0) += 1;
            }
            ControlFlow::Continue(())
        })?;
        Ok(counts)
    }

    /// How many external interrupts of each vector were delivered; NMIs are vector 2.
    ///
    /// # Errors
    /// If the history cannot be replayed.
    pub fn interrupts(&mut self) -> Result<BTreeMap<u8, u64>, Error> {
        let hooks = Hooks { wanted: vec![Wanted::Interrupt(None)], ..Hooks::default() };
        let (part, mut counts) = (self.from..self.to, BTreeMap::new());
        let (timeline, vm) = self.guest.parts()?;
        timeline.scan(vm, &hooks, part, &mut |_, hit| {
            if let Reason::Occurred(Occurrence::Interrupt(vector)) = hit.reason {
                *counts.entry(vector).or_insert(0) += 1;
            }
            ControlFlow::Continue(())
        })?;
        Ok(counts)
    }

    /// Every write to `len` bytes of memory: who, when, what was there before and after. A virtual address is looked up
    /// where the guest stands now, and watched physically.
    ///
    /// # Errors
    /// If the place is not memory, or the history cannot be replayed.
    pub fn writes(&mut self, at: impl Into<Place>, len: u64) -> Result<Vec<Write>, Error> {
        self.some_writes(at.into(), len, MOST_WRITES)
    }

    fn some_writes(&mut self, place: Place, len: u64, most: usize) -> Result<Vec<Write>, Error> {
        let gpa = self.guest.look().physical(place, len)?;
        let part = self.from..self.to;
        let (timeline, vm) = self.guest.parts()?;
        Ok(timeline.writes(vm, gpa, len, part, most)?)
    }

    // --- assertions ---

    /// Asserts that `what` held at none of the points.
    ///
    /// # Panics
    /// If it did.
    ///
    /// # Errors
    /// As [`History::find`].
    #[track_caller]
    pub fn never(&mut self, what: impl FnMut(&mut Look<'_>) -> bool) -> Result<(), Error> {
        match self.find(what)? {
            None => Ok(()),
            Some(at) => self.fail(at, "what must never happen happened"),
        }
    }

    /// Asserts that `what` held at all of the points.
    ///
    /// # Panics
    /// If it did not.
    ///
    /// # Errors
    /// As [`History::find`].
    #[track_caller]
    pub fn always(&mut self, mut what: impl FnMut(&mut Look<'_>) -> bool) -> Result<(), Error> {
        match self.find(|look| !what(look))? {
            None => Ok(()),
            Some(at) => self.fail(at, "what must always hold does not"),
        }
    }

    /// Asserts that no vCPU had interrupts off for more than `most` instructions.
    ///
    /// # Panics
    /// If one had.
    ///
    /// # Errors
    /// If the history cannot be replayed.
    #[track_caller]
    pub fn interrupts_off_at_most(&mut self, most: u64) -> Result<(), Error> {
        match self.max_interrupts_off()? {
            Some(s) if s.insns() > most => {
                let (from, to) = (self.guest.describe(s.from_pc), self.guest.describe(s.to_pc));
                let (n, cpu) = (s.insns(), s.vcpu);
                let what =
                    format!("vCPU {cpu} had interrupts off for {n} instructions ({most} allowed), to {to}");
                self.fail(s.from, &format!("{what}, from {from}"))
            }
            _ => Ok(()),
        }
    }

    /// Asserts that nothing wrote to `len` bytes of memory.
    ///
    /// # Panics
    /// If something did.
    ///
    /// # Errors
    /// As [`History::writes`].
    #[track_caller]
    pub fn not_written(&mut self, at: impl Into<Place>, len: u64) -> Result<(), Error> {
        let place = at.into();
        match self.some_writes(place.clone(), len, 1)?.pop() {
            None => Ok(()),
            Some(w) => {
                let who = self.guest.describe(w.pc);
                self.fail(w.at, &format!("{place} was written by {who}: {:x?} to {:x?}", w.old, w.new))
            }
        }
    }

    #[track_caller]
    #[allow(clippy::panic)]
    fn fail(&mut self, at: Icount, what: &str) -> ! {
        let there = self.guest.seek(at);
        let pc = self.guest.pc();
        let place = self.guest.describe(pc);
        match there {
            Ok(()) => panic!("at instruction {at}, {place}: {what}"),
            Err(e) => panic!("at instruction {at}: {what} ({e})"),
        }
    }
}
