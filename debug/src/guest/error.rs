//! What can go wrong with a guest under test; each in one line.

use super::place::Place;
use retrovisor_core::Icount;
use retrovisor_core::loader::LoadError;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_replay::{TimelineError, TraceError, VerifyError};
use thiserror::Error;

/// Why a guest could not do what the test asked for.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Error {
    #[error("{file}: {why}")]
    File { file: String, why: String },
    #[error("the guest cannot be booted: {0}")]
    Load(#[from] LoadError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Replay(#[from] VerifyError),
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    #[error("waiting for {what}: not within {limit} instructions, the guest stands at instruction {at}")]
    Limit { what: String, limit: u64, at: Icount },
    #[error("waiting for {what}: at instruction {at} {}", ended(*.exit))]
    Ended { what: String, exit: VmExit, at: Icount },
    #[error("{what} happened never before instruction {before}")]
    NeverBefore { what: String, before: Icount },
    #[error("instruction {to} lies behind instruction {at}, where the guest stands: use `seek`")]
    Behind { to: Icount, at: Icount },
    #[error(
        "at instruction {at} the guest is in its past, where nothing can be typed: `seek` its end, or `branch`"
    )]
    InPast { at: Icount },
    #[error("there is no register `{0}`")]
    NoRegister(String),
    #[error("there is no vCPU {0}")]
    NoVcpu(usize),
    #[error("there is no symbol `{0}`")]
    NoSymbol(String),
    #[error("{place} is not mapped to memory at instruction {at}")]
    NotMapped { place: Place, at: Icount },
    #[error("the {len} bytes at {place} are not contiguous in physical memory: ask for parts of them")]
    Scattered { place: Place, len: u64 },
}

/// How a run ended.
pub(super) fn ended(exit: VmExit) -> String {
    match exit {
        VmExit::PowerOff => "the guest switched the machine off".into(),
        VmExit::Reset => "the guest reset the machine".into(),
        VmExit::TripleFault => "the guest triple-faulted".into(),
        VmExit::DebugExit(v) => format!("the guest exited through isa-debug-exit with value {v:#x}"),
        VmExit::InputEnded => "the guest waits for ever, or its trace ends".into(),
        VmExit::Dead => "every vCPU is halted and nothing can wake it".into(),
        VmExit::Diverged => "the replay differs from the recording".into(),
        other => format!("the guest stopped: {other:?}"),
    }
}
