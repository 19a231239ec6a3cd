//! The VM thread's part of moving in time: resumptions that go back or look for something, marks, and where the run ends.

use super::worker::Worker;
use super::{Resume, SessionError};
use crate::stop::{Exit, StopReason};
use crate::travel::{LastWrite, Marks, Sought, TimelineView, last_write, seek_time};
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::{Gpa, Icount};
use retrovisor_replay::{Reason, TimelineError};

/// Where the machine came to its end while a debugger was there to look back from it.
#[derive(Clone, Copy)]
pub struct End {
    pub at: Icount,
    pub exit: Exit,
    /// The debugger was told on this arrival: the next resume forward ends the run.
    pub told: bool,
}

impl Resume {
    /// Does it move the machine by its history?
    pub(super) fn travels(self) -> bool {
        match self {
            Resume::ReverseContinue | Resume::ReverseStep { .. } | Resume::Branch { .. } => true,
            Resume::Seek { .. } | Resume::SeekTime { .. } | Resume::Search { back: true, .. } => true,
            Resume::Continue { .. } | Resume::Step { .. } | Resume::StepRange { .. } => false,
            Resume::Search { back: false, .. } => false,
        }
    }
}

impl Worker {
    pub(super) fn travels(&self) -> bool {
        self.vm.timeline().is_some()
    }

    pub(super) fn timeline(&self) -> Option<TimelineView> {
        self.vm.timeline().map(|t| TimelineView::of(t, &self.vm, &self.marks))
    }

    pub(super) fn marks(&mut self) -> &mut Marks {
        &mut self.marks
    }

    pub(super) fn last_write(&mut self, gpa: Gpa, len: u64) -> Result<Option<LastWrite>, SessionError> {
        let (timeline, vm) = self.vm.travel()?;
        Ok(last_write(timeline, vm, &[(gpa, len)])?)
    }

    /// A machine that does not hear what comes goes on by itself from here, because a client changes it. False if it cannot.
    pub(super) fn make_changeable(&mut self) -> Result<(), SessionError> {
        let read_only = self.read_only();
        match self.vm.parts() {
            (Some(timeline), vm) if !timeline.is_live() => {
                timeline.branch(vm)?;
                self.end = None;
                Ok(())
            }
            (None, _) if read_only => Err(SessionError::ReadOnly),
            _ => Ok(()),
        }
    }

    /// Does the machine follow a trace?
    pub(super) fn on_trace(&self) -> bool {
        self.vm.timeline().map_or(self.read_only(), |t| t.on_trace())
    }

    /// Moves the machine in time, and stops it there.
    pub(super) fn travel(&mut self, how: Resume) {
        if let Resume::Branch { .. } = how {
            self.end = None;
        }
        if let Some(end) = &mut self.end {
            end.told = false;
        }
        self.triple_fault_at = None;
        match self.moved(how) {
            Ok(reason) => self.stop(reason),
            Err(TimelineError::Interrupted) => self.stop(StopReason::Paused),
            Err(TimelineError::BeforeStart { .. } | TimelineError::NoHistory(_)) => {
                self.stop(StopReason::HistoryStart)
            }
            Err(TimelineError::NoBranch(_)) => self.stop(StopReason::NotFound),
            Err(_) => self.stop(StopReason::Diverged),
        }
    }

    fn moved(&mut self, how: Resume) -> Result<StopReason, TimelineError> {
        let (timeline, vm) = self.vm.travel()?;
        match how {
            Resume::ReverseStep { vcpu } => Ok(match timeline.reverse_step(vm, vcpu)? {
                true => StopReason::Step,
                false => StopReason::HistoryStart,
            }),
            Resume::Seek { to } => timeline.seek(vm, to).map(|()| StopReason::Reached),
            Resume::Branch { id: None } => timeline.branch(vm).map(StopReason::Branch),
            Resume::Branch { id: Some(id) } => timeline.switch(vm, id).map(|()| StopReason::Branch(id)),
            Resume::SeekTime { to } => seek_time(timeline, vm, to).map(|()| StopReason::Reached),
            Resume::Search { what, .. } => {
                let from = vm.when().icount;
                let hooks = std::mem::replace(&mut vm.hooks, what.hooks());
                let found = timeline.reverse_continue(vm);
                vm.hooks = hooks;
                match found? {
                    None => timeline.seek(vm, from).map(|()| StopReason::NotFound),
                    found => Ok(reason(found.map(|h| h.reason))),
                }
            }
            _ => Ok(reason(timeline.reverse_continue(vm)?.map(|h| h.reason))),
        }
    }

    /// Runs forward to what is sought; nothing else that a client wants to stop at counts.
    pub(super) fn advance_search(&mut self, what: Sought) -> VmExit {
        let hooks = std::mem::replace(&mut self.vm.hooks, what.hooks());
        self.vm.hooks.stop_triple_fault = hooks.stop_triple_fault;
        let exit = self.vm.run(self.end.map(|e| e.at));
        self.vm.hooks = hooks;
        exit
    }

    /// The machine came to its end. A debugger that could go back from it may look first.
    pub(super) fn ended(&mut self, exit: Exit) {
        let at = self.vm.when().icount;
        let told = self.end.is_some_and(|e| e.at == at && e.told);
        if self.has_debugger() && self.travels() && !told {
            self.end = Some(End { at, exit, told: true });
            self.stop(StopReason::Ended(exit));
        } else {
            self.exit(exit);
        }
    }

    /// The end, if it was come to before and the machine is there (again).
    pub(super) fn at_end(&self) -> Option<Exit> {
        let here = self.vm.when().icount;
        self.end.filter(|e| here >= e.at).map(|e| e.exit)
    }
}

fn reason(found: Option<Reason>) -> StopReason {
    match found {
        Some(Reason::Breakpoint(at)) => StopReason::Breakpoint(at),
        Some(Reason::Watchpoint(hit)) => StopReason::Watchpoint(hit),
        Some(Reason::Exception(e)) => StopReason::Exception(e),
        Some(Reason::Occurred(what)) => StopReason::Occurred(what),
        None => StopReason::HistoryStart,
    }
}
