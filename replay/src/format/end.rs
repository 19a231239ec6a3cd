//! How a recorded run ended: the end record.

use super::MAX_POINT;
use super::varint::{Cursor, Malformed, put};
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::When;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::{GuestTime, Icount};

/// Why the recorded run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitReason {
    /// The user, a signal or a debugger ended it.
    Quit,
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset and resets end the run.
    Reset,
    /// Triple fault, and resets end the run.
    TripleFault,
    /// isa-debug-exit; the process's exit code is `(value << 1) | 1`.
    DebugExit(u32),
    /// Every vCPU was halted and nothing could wake the machine.
    Dead,
}

impl ExitReason {
    /// The reason a recorder writes for the way [`Vm::run`](retrovisor_core::machine::vm::Vm::run) ended.
    pub const fn from_exit(exit: VmExit) -> Self {
        match exit {
            VmExit::PowerOff => ExitReason::PowerOff,
            VmExit::Reset => ExitReason::Reset,
            VmExit::TripleFault => ExitReason::TripleFault,
            VmExit::DebugExit(v) => ExitReason::DebugExit(v),
            VmExit::Dead => ExitReason::Dead,
            _ => ExitReason::Quit,
        }
    }

    /// Does the machine come to this end by itself, with no word from the input port?
    pub const fn is_own(self) -> bool {
        !matches!(self, ExitReason::Quit)
    }

    /// Short name, stable for scripts.
    pub const fn name(self) -> &'static str {
        match self {
            ExitReason::Quit => "quit",
            ExitReason::PowerOff => "power-off",
            ExitReason::Reset => "reset",
            ExitReason::TripleFault => "triple-fault",
            ExitReason::DebugExit(_) => "isa-debug-exit",
            ExitReason::Dead => "dead",
        }
    }

    /// What was written to isa-debug-exit, else 0.
    pub const fn value(self) -> u32 {
        self.code().1
    }

    const fn code(self) -> (u8, u32) {
        match self {
            ExitReason::Quit => (0, 0),
            ExitReason::PowerOff => (1, 0),
            ExitReason::Reset => (2, 0),
            ExitReason::TripleFault => (3, 0),
            ExitReason::DebugExit(v) => (4, v),
            ExitReason::Dead => (5, 0),
        }
    }

    const fn from_code(code: u8, value: u32) -> Option<Self> {
        Some(match code {
            0 => ExitReason::Quit,
            1 => ExitReason::PowerOff,
            2 => ExitReason::Reset,
            3 => ExitReason::TripleFault,
            4 => ExitReason::DebugExit(value),
            5 => ExitReason::Dead,
            _ => return None,
        })
    }
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExitReason::Quit => write!(f, "ended by the user"),
            ExitReason::PowerOff => write!(f, "power-off"),
            ExitReason::Reset => write!(f, "reset"),
            ExitReason::TripleFault => write!(f, "triple fault"),
            ExitReason::DebugExit(v) => write!(f, "isa-debug-exit with value {v:#x}"),
            ExitReason::Dead => write!(f, "halted for good"),
        }
    }
}

/// The last word of a complete trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndRecord {
    pub when: When,
    pub reason: ExitReason,
    /// State hash at `when`.
    pub hash: StateHash,
    /// Digest of all output of the run.
    pub output: u64,
}

impl EndRecord {
    /// Appends the record.
    pub fn put(&self, out: &mut Vec<u8>) {
        let Self { when, reason, hash, output } = self;
        put(out, when.icount.0);
        put(out, when.time.0);
        let (code, value) = reason.code();
        out.push(code);
        out.extend_from_slice(&value.to_le_bytes());
        out.extend_from_slice(&hash.0.to_le_bytes());
        out.extend_from_slice(&output.to_le_bytes());
    }

    /// Reads the record.
    pub fn get(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        let when = get_point(c)?;
        let (code, value) = (c.u8()?, c.u32()?);
        let reason = ExitReason::from_code(code, value).ok_or("its exit reason is unknown")?;
        Ok(Self { when, reason, hash: StateHash(c.u128()?), output: c.u64()? })
    }
}

/// Reads an absolute point: icount, then guest time.
pub fn get_point(c: &mut Cursor<'_>) -> Result<When, Malformed> {
    let (icount, time) = (c.number()?, c.number()?);
    if icount > MAX_POINT || time > MAX_POINT {
        return Err("a point is out of range");
    }
    Ok(When { icount: Icount(icount), time: GuestTime(time) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_end_record_round_trips() {
        let all = [
            ExitReason::Quit,
            ExitReason::PowerOff,
            ExitReason::Reset,
            ExitReason::TripleFault,
            ExitReason::DebugExit(0x8000_0001),
            ExitReason::Dead,
        ];
        for reason in all {
            let when = When { icount: Icount(1 << 40), time: GuestTime(3) };
            let e = EndRecord { when, reason, hash: StateHash(u128::MAX / 3), output: 5 };
            let mut out = Vec::new();
            e.put(&mut out);
            assert_eq!(EndRecord::get(&mut Cursor::new(&out)).unwrap(), e);
        }
    }

    #[test]
    fn test_point_invalid_out_of_range_returns_error() {
        let mut out = Vec::new();
        put(&mut out, MAX_POINT + 1);
        put(&mut out, 0);
        assert!(get_point(&mut Cursor::new(&out)).is_err());
    }
}
