//! Why a session is not running: stops (it can go on) and exits (the guest's run is over), with their wording.

use retrovisor_core::Gva;
use retrovisor_core::engine::hooks::{Occurrence, WatchAddr, WatchHit};
use retrovisor_core::exception::{self, Exception};
use retrovisor_core::input::When;
use std::fmt;

/// What happened to the machine; broadcast to every attached client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The guest runs. The number identifies this run; the stop that ends it carries the same one.
    Running(u64),
    /// The guest is stopped and can be resumed.
    Stopped(Stop),
    /// The run is over; the machine can still be looked at.
    Exited(Exit),
}

/// A stop, and where it happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stop {
    pub reason: StopReason,
    pub when: When,
    /// Index of the vCPU the stop is about.
    pub vcpu: usize,
    /// Linear address of the instruction that vCPU executes next.
    pub pc: Gva,
    /// Number of the run this stop ended (0: never ran).
    pub run: u64,
}

/// Why the guest stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// The machine waits before its first instruction.
    Frozen,
    /// The step asked for is done.
    Step,
    /// The instruction at this linear address is about to execute.
    Breakpoint(Gva),
    /// The instruction just executed touched a watched place.
    Watchpoint(WatchHit),
    /// This exception is about to be delivered.
    Exception(Exception),
    /// The machine did this: just now, or, where the way led backwards, with the instruction or delivery that comes next.
    Occurred(Occurrence),
    /// The run ends here; it can still be gone back from. The next resume forward ends it.
    Ended(Exit),
    /// A triple fault is about to shut the machine down or reset it.
    TripleFault,
    /// A client asked for it.
    Paused,
    /// The icount asked for was reached.
    Reached,
    /// The trace being replayed ends here.
    TraceEnded,
    /// The machine is on this branch now.
    Branch(usize),
    /// The history begins here: nothing before it was kept.
    HistoryStart,
    /// What was looked for is not in the history; the machine stands where it stood.
    NotFound,
    /// The state hash differs from the recorded one.
    Diverged,
    /// Every vCPU is halted and nothing can wake it.
    Dead,
}

/// How the run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset and rebooting is disabled.
    Reset,
    /// isa-debug-exit: the value written.
    DebugExit(u32),
    /// A triple fault with rebooting disabled.
    TripleFault,
    /// Every vCPU is halted for good (and no debugger is attached to look).
    Dead,
    /// A replay reached the end of its trace (and no debugger is attached).
    TraceEnded,
    /// A replay differs from its recording (and no debugger is attached).
    Diverged,
    /// A client ended the run.
    Killed,
    /// The VM thread met an internal bug and is gone.
    Bug,
}

impl Exit {
    /// The status a debugger shows as the exit code of the program: isa-debug-exit's own, else 0 for an orderly end
    /// and 1 for the rest.
    pub const fn status(self) -> u8 {
        match self {
            Exit::PowerOff | Exit::Reset | Exit::TraceEnded => 0,
            Exit::DebugExit(v) => (v << 1) as u8 | 1,
            Exit::TripleFault | Exit::Dead | Exit::Diverged | Exit::Killed | Exit::Bug => 1,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::PowerOff => f.write_str("the guest switched the machine off"),
            Exit::Reset => f.write_str("the guest reset the machine, and rebooting is disabled"),
            Exit::DebugExit(v) => write!(f, "the guest exited through isa-debug-exit with value {v:#x}"),
            Exit::TripleFault => f.write_str("the guest triple-faulted"),
            Exit::Dead => f.write_str("every vCPU is halted and nothing can wake it"),
            Exit::TraceEnded => f.write_str("the trace ends here"),
            Exit::Diverged => f.write_str("the replay differs from the recording"),
            Exit::Killed => f.write_str("the run was ended by a client"),
            Exit::Bug => f.write_str("the VM thread met an internal bug"),
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopReason::Frozen => f.write_str("before the first instruction"),
            StopReason::Step => f.write_str("step done"),
            StopReason::Breakpoint(at) => write!(f, "breakpoint at {at}"),
            StopReason::Watchpoint(hit) => {
                let (what, at) = (if hit.write { "write to" } else { "read of" }, hit.gva);
                match hit.watch.addr {
                    WatchAddr::Virtual(_) => write!(f, "{what} watched address {at}"),
                    WatchAddr::Physical(gpa) => {
                        write!(f, "{what} watched physical address {gpa} (linear {at})")
                    }
                }
            }
            StopReason::Exception(e) => {
                write!(f, "{} (vector {}) is about to be delivered", exception::name(e.vector), e.vector)?;
                if e.has_error {
                    write!(f, ", error code {:#x}", e.error)?;
                }
                if e.vector == exception::vector::PF {
                    write!(f, ", address {:#x}", e.addr)?;
                }
                Ok(())
            }
            StopReason::Occurred(what) => occurrence(f, what),
            StopReason::Ended(exit) => write!(f, "{exit}"),
            StopReason::TripleFault => {
                f.write_str("triple fault: the machine is about to shut down or reset")
            }
            StopReason::Paused => f.write_str("paused"),
            StopReason::Reached => f.write_str("the icount asked for is reached"),
            StopReason::TraceEnded => f.write_str("the trace ends here"),
            StopReason::NotFound => f.write_str("there is none in the history before this point"),
            StopReason::Branch(id) => write!(f, "on branch {id}"),
            StopReason::HistoryStart => f.write_str("the history begins here"),
            StopReason::Diverged => f.write_str("the replay differs from the recording"),
            StopReason::Dead => f.write_str("every vCPU is halted and nothing can wake it"),
        }
    }
}

fn occurrence(f: &mut fmt::Formatter<'_>, what: &Occurrence) -> fmt::Result {
    let access = |write: bool| if write { "write to" } else { "read of" };
    match *what {
        Occurrence::Interrupt(exception::vector::NMI) => f.write_str("NMI"),
        Occurrence::Interrupt(vector) => write!(f, "interrupt {vector:#x}"),
        Occurrence::Port { port, bytes, write, value } => {
            write!(f, "{} port {port:#x}: {value:#x}, bytes: {bytes}", access(write))
        }
        Occurrence::Mmio { gpa, bytes, write } => {
            write!(f, "{} device memory at {gpa}, bytes: {bytes}", access(write))
        }
        Occurrence::Cr3 { from, to } => write!(f, "CR3 from {from:#x} to {to:#x}"),
        Occurrence::Cpl { from, to } => write!(f, "CPL from {from} to {to}"),
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [icount {}, vCPU {}, pc {}]", self.reason, self.when.icount, self.vcpu, self.pc)
    }
}
