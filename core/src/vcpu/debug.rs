//! Debug exceptions: DR0-DR7 breakpoints, single step, RF, and the shadow of MOV SS. Source: SDM vol. 3B, 18.2-18.3.
//!
//! The engine's part: while [`Vcpu::needs_care`] is false nothing here has to be called. Otherwise, around each
//! instruction: remember TF, [`Ctx::begin_insn`], execute, and after success [`Ctx::trap_boundary`].
//! Data breakpoints are found by the load/store path (`mmu::watch`), which leaves their DR6 bits in `pending_db`.

use super::flags::bit;
use super::{Seg, Shadow, Vcpu, cr4};
use crate::ctx::Ctx;
use crate::exception::Exception;

/// DR6 bits.
pub mod dr6 {
    /// B0..B3.
    pub const B: u64 = 0xf;
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    pub const BT: u64 = 1 << 15;
    /// Bits that always read one; the others read zero unless written.
    pub const FIXED: u64 = 0xffff_0ff0;
    pub const WRITABLE: u64 = B | BD | BS | BT;
}

/// DR7 bits.
pub mod dr7 {
    /// L0, G0 .. L3, G3.
    pub const ENABLES: u64 = 0xff;
    pub const GD: u64 = 1 << 13;
    /// Bit 10 always reads one.
    pub const FIXED: u64 = 0x400;
    pub const WRITABLE: u64 = 0xffff_23ff;
}

/// In `pending_db`: the instruction just executed is not followed by a single-step trap. Never outlives its boundary.
const NO_STEP: u64 = 1 << 63;

/// What a DR7 R/Wn field watches.
const EXECUTE: u64 = 0;
const IO: u64 = 2;

impl Vcpu {
    /// Must the next instruction be wrapped in [`Ctx::begin_insn`] and [`Ctx::trap_boundary`]? Can become true only
    /// by an instruction that ends its block, or by a data breakpoint, whose access ends it.
    #[inline]
    pub fn needs_care(&self) -> bool {
        self.flags.has(bit::RF) || self.is_followed()
    }

    /// The same, RF apart.
    #[inline]
    pub fn is_followed(&self) -> bool {
        self.flags.has(bit::TF)
            || self.pending_db != 0
            || self.shadow != Shadow::None
            || self.has_insn_breakpoints()
    }

    /// Is an instruction breakpoint enabled in DR7?
    #[inline]
    pub fn has_insn_breakpoints(&self) -> bool {
        self.dr7 & dr7::ENABLES != 0 && (0..4).any(|n| self.enabled(n) && self.kind(n) == EXECUTE)
    }

    /// A repeated string instruction stops between two iterations: RIP goes back to it. RF keeps an instruction
    /// breakpoint on it silent when it is resumed (it is set only if there are any).
    #[inline]
    pub fn suspend_repeat(&mut self) {
        self.rip = self.insn_rip;
        if self.has_insn_breakpoints() {
            self.flags.put(bit::RF, true);
        }
    }

    fn enabled(&self, n: usize) -> bool {
        self.dr7 >> (2 * n) & 3 != 0
    }

    fn kind(&self, n: usize) -> u64 {
        self.dr7 >> (16 + 4 * n) & 3
    }

    /// Length in bytes of breakpoint `n`.
    fn breakpoint_len(&self, n: usize) -> u64 {
        [1, 2, 8, 4][(self.dr7 >> (18 + 4 * n) & 3) as usize]
    }

    /// Notes an access to `len` I/O ports from `port`: a CR4.DE breakpoint there becomes a #DB trap at the
    /// instruction's boundary.
    pub fn io_breakpoint(&mut self, port: u16, len: u64) {
        if self.cr4 & cr4::DE == 0 || self.dr7 & dr7::ENABLES == 0 {
            return;
        }
        let port = u64::from(port);
        for n in 0..4 {
            let size = self.breakpoint_len(n);
            let start = self.dr[n] & !(size - 1);
            // Wrapping distances: the access and the watched range overlap if either starts inside the other.
            let overlap = port.wrapping_sub(start) < size || start.wrapping_sub(port) < len;
            if self.enabled(n) && self.kind(n) == IO && overlap {
                self.pending_db |= 1 << n;
            }
        }
    }

    /// The instruction being executed clears TF as part of an event delivery (or SYSCALL): no step trap follows.
    pub fn suppress_single_step(&mut self) {
        self.pending_db |= NO_STEP;
    }

    /// DR6 and DR7.GD as #DB leaves them; `bits` are the DR6 bits of its causes (none for INT1).
    pub(super) fn note_debug_exception(&mut self, bits: u64) {
        self.dr6 = (self.dr6 & !dr6::B) | bits & dr6::WRITABLE;
        self.dr7 &= !dr7::GD;
    }
}

impl Ctx<'_> {
    /// The #DB of an instruction breakpoint on the instruction at RIP, unless RF masks it. Changes nothing.
    pub fn insn_breakpoint_check(&self) -> Option<Exception> {
        if self.cpu.dr7 & dr7::ENABLES == 0 || self.cpu.flags.has(bit::RF) {
            return None;
        }
        let cpu = &self.cpu;
        let lin = cpu.seg[Seg::Cs as usize].lin_base.wrapping_add(cpu.rip) & cpu.mode.lin_mask;
        let hits = (0..4).filter(|&n| cpu.enabled(n) && cpu.kind(n) == EXECUTE && cpu.dr[n] == lin);
        let bits = hits.fold(0, |bits, n| bits | 1 << n);
        (bits != 0).then(|| Exception::db(bits))
    }

    /// Before an instruction, after interrupts have been looked at: raises a task switch's #DB and instruction
    /// breakpoints, then ends the previous instruction's shadow and RF.
    pub fn begin_insn(&mut self) -> Result<(), Exception> {
        if self.cpu.shadow != Shadow::MovSs {
            let due = self.trap_boundary(false).or_else(|| self.insn_breakpoint_check());
            if let Some(e) = due {
                return Err(e);
            }
        }
        self.cpu.shadow = Shadow::None;
        self.cpu.flags.put(bit::RF, false);
        Ok(())
    }

    /// After an instruction that succeeded: the #DB trap due at this boundary. `tf_before`: RFLAGS.TF when the
    /// instruction began. Held back (and kept) in the shadow of MOV SS.
    #[inline]
    pub fn trap_boundary(&mut self, tf_before: bool) -> Option<Exception> {
        if !tf_before && self.cpu.pending_db == 0 { None } else { self.collect_traps(tf_before) }
    }

    fn collect_traps(&mut self, tf_before: bool) -> Option<Exception> {
        let pending = std::mem::take(&mut self.cpu.pending_db);
        let bits = pending & !NO_STEP;
        if self.cpu.shadow == Shadow::MovSs {
            self.cpu.pending_db = bits;
            return None;
        }
        let step = if tf_before && pending & NO_STEP == 0 { dr6::BS } else { 0 };
        (bits | step != 0).then(|| Exception::db(bits | step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::cpuid::CpuModel;

    fn cpu(dr7: u64) -> Vcpu {
        let mut cpu = Vcpu::new(0, CpuModel::default());
        cpu.dr7 = dr7;
        cpu.dr = [0x1000, 0x2003, 0x3000, 0];
        cpu
    }

    #[test]
    fn test_io_breakpoint_needs_de() {
        let mut c = cpu(1 | 0b0110 << 16);
        c.dr[0] = 0x3f8;
        c.io_breakpoint(0x3f8, 1);
        assert_eq!(c.pending_db, 0);
        c.cr4 |= cr4::DE;
        c.io_breakpoint(0x3fa, 1);
        c.io_breakpoint(0x3f4, 4);
        assert_eq!(c.pending_db, 0);
        c.io_breakpoint(0x3f6, 4);
        assert_eq!(c.pending_db, 1);
        c.pending_db = 0;
        c.io_breakpoint(0x3f8, 1);
        assert_eq!(c.pending_db, 1);
    }
}
