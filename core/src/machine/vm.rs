//! The virtual machine: vCPUs, memory and board as one value that runs, stops exactly, saves and restores.

use super::config::MachineConfig;
use crate::addr::{Gva, Icount};
use crate::ctx::System;
use crate::engine::hooks::{Hooks, WatchHit};
use crate::exception::Exception;
use crate::hash::StateHash;
use crate::input::{InputPort, When};
use crate::loader::{Images, LoadError};
use crate::output::OutputSink;
use crate::state::StateError;
use crate::vcpu::Vcpu;

/// Why [`Vm::run`] returned. The VM is at an instruction boundary and can be run again after any of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmExit {
    /// The icount asked for was reached.
    Reached,
    /// The instruction at this linear address is about to execute.
    Breakpoint(Gva),
    /// The instruction just executed touched a watched place.
    Watchpoint(WatchHit),
    /// The vCPU is about to deliver this exception (see `Hooks::stop_exceptions`).
    Exception(Exception),
    /// A vCPU triple-faulted (with `no_reboot`, or before the reset if `Hooks::stop_triple_fault`).
    TripleFault,
    /// The guest asked for a reset and `no_reboot` is set.
    Reset,
    /// The guest switched the machine off.
    PowerOff,
    /// isa-debug-exit: the exit code is `(value << 1) | 1`.
    DebugExit(u32),
    /// The input port wants the VM thread.
    Interrupted,
    /// The trace being replayed ends here.
    InputEnded,
    /// Every vCPU is halted for good: nothing can wake the machine.
    Dead,
    /// The state hash differs from the recorded one.
    Diverged,
}

/// A virtual machine.
pub struct Vm {
    pub config: MachineConfig,
    pub images: Images,
    pub vcpus: Vec<Vcpu>,
    /// Index of the vCPU whose turn it is.
    pub current: usize,
    pub sys: System,
    pub hooks: Hooks,
}

impl Vm {
    /// Builds the machine, loads the images, and stands before the first instruction.
    pub fn new(
        config: MachineConfig, images: Images, input: Box<dyn InputPort>, output: Box<dyn OutputSink>,
    ) -> Result<Self, LoadError> {
        let _ = (config, images, input, output);
        Err(LoadError::NothingToBoot)
    }
    /// Runs until `until` (exactly) or another exit.
    pub fn run(&mut self, until: Option<Icount>) -> VmExit {
        let _ = until;
        VmExit::Dead
    }
    /// Executes one instruction (or one REP iteration) of the current vCPU, delivering what is due before it.
    pub fn step(&mut self) -> VmExit { self.run(Some(Icount(self.sys.icount + 1))) }
    /// Applies an input at the current boundary on behalf of the VM's owner (a debugger's write) and logs it.
    pub fn inject(&mut self, event: &crate::input::InputEvent) { let _ = event; }
    /// The current point.
    pub fn when(&self) -> When { self.sys.when() }
    /// Digest of the guest-visible state.
    pub fn state_hash(&mut self) -> StateHash { StateHash::default() }
    /// vCPUs, clock and devices (not memory) as bytes.
    pub fn save_state(&self) -> Vec<u8> { Vec::new() }
    /// Restores what [`Vm::save_state`] gave, into a machine of the same description; drops derived state.
    pub fn load_state(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let _ = bytes;
        Ok(())
    }
}
