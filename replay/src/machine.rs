//! A machine as the commands run it: with its history, or followed in lockstep by the same machine on the interpreter.
//! Used like a `Vm`; only running, and moving in time, is done here.

use crate::compare::VerifyOptions;
use crate::lockstep::{InputLog, Lockstep, Mismatch};
use crate::timeline::{Timeline, TimelineError};
use retrovisor_core::Icount;
use retrovisor_core::input::InputPort;
use retrovisor_core::loader::{Images, LoadError};
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::{NullSink, OutputSink};
use std::ops::{Deref, DerefMut};

/// A machine, and perhaps its history or the one that follows it.
pub struct Machine {
    vm: Vm,
    timeline: Option<Box<Timeline>>,
    lockstep: Option<Box<Lockstep>>,
    mismatch: Option<Box<Mismatch>>,
}

impl From<Vm> for Machine {
    fn from(vm: Vm) -> Self {
        Self { vm, timeline: None, lockstep: None, mismatch: None }
    }
}

impl Machine {
    /// A new machine with a live port; if `options` say so, in lockstep with a second one that hears the same.
    ///
    /// # Errors
    /// As `Vm::new`.
    pub fn live(
        config: MachineConfig,
        images: Images,
        options: VerifyOptions,
        input: Box<dyn InputPort>,
        output: Box<dyn OutputSink>,
    ) -> Result<Self, LoadError> {
        let switched = |mut vm: Vm| {
            (vm.engine, vm.jit_options) = (options.engine, options.jit);
            vm
        };
        let Some(stride) = options.lockstep else {
            return Vm::new(config, images, input, output).map(|vm| switched(vm).into());
        };
        let log = InputLog::default();
        let port = Box::new(log.leader(input));
        let mut vm = switched(Vm::new(config.clone(), images.clone(), port, output)?);
        let reference = Vm::new(config, images, Box::new(log.follower()), Box::new(NullSink))?;
        let lockstep = Lockstep::new(&mut vm, reference, stride).hears(log);
        Ok(Self::in_lockstep(vm, lockstep))
    }

    /// `vm`, followed.
    pub fn in_lockstep(vm: Vm, lockstep: Lockstep) -> Self {
        Self { vm, timeline: None, lockstep: Some(Box::new(lockstep)), mismatch: None }
    }

    /// Lets the machine be moved in time. A machine in lockstep has no history.
    pub fn with_timeline(mut self, begin: impl FnOnce(&mut Vm) -> Timeline) -> Self {
        if self.lockstep.is_none() {
            self.timeline = Some(Box::new(begin(&mut self.vm)));
        }
        self
    }

    /// The machine's history.
    pub fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_deref()
    }

    /// The machine's history, and the machine to move in it.
    ///
    /// # Errors
    /// If it has none.
    pub fn travel(&mut self) -> Result<(&mut Timeline, &mut Vm), TimelineError> {
        match &mut self.timeline {
            Some(t) => Ok((t, &mut self.vm)),
            None if self.lockstep.is_some() => Err(TimelineError::NoHistory("in lockstep none is kept")),
            None => Err(TimelineError::NoHistory("it was switched off")),
        }
    }

    /// The machine's history, if it has one, and the machine.
    pub fn parts(&mut self) -> (Option<&mut Timeline>, &mut Vm) {
        (self.timeline.as_deref_mut(), &mut self.vm)
    }

    /// As `Vm::run`. In lockstep a difference between the machines ends the run with `Diverged`, for good.
    pub fn run(&mut self, until: Option<Icount>) -> VmExit {
        if let Some(timeline) = &mut self.timeline {
            return timeline.run(&mut self.vm, until);
        }
        let Some(lockstep) = &mut self.lockstep else { return self.vm.run(until) };
        if self.mismatch.is_some() {
            return VmExit::Diverged;
        }
        match lockstep.run(&mut self.vm, until) {
            Ok(exit) => exit,
            Err(mismatch) => {
                self.mismatch = Some(mismatch);
                VmExit::Diverged
            }
        }
    }

    /// As `Vm::step`.
    pub fn step(&mut self) -> VmExit {
        let next = self.vm.when().icount + 1;
        self.run(Some(next))
    }

    /// As `Vm::reset`.
    ///
    /// # Errors
    /// As `Vm::reset`.
    pub fn reset(&mut self) -> Result<(), LoadError> {
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.reference().reset()?;
        }
        self.vm.reset()
    }

    /// The machine that follows.
    pub fn lockstep(&mut self) -> Option<&mut Lockstep> {
        self.lockstep.as_deref_mut()
    }

    /// How the machines differ, once they do.
    pub fn mismatch(&self) -> Option<&Mismatch> {
        self.mismatch.as_deref()
    }
}

impl Deref for Machine {
    type Target = Vm;
    fn deref(&self) -> &Vm {
        &self.vm
    }
}

impl DerefMut for Machine {
    fn deref_mut(&mut self) -> &mut Vm {
        &mut self.vm
    }
}
