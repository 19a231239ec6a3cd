//! The execution mode: what is derived from CR0, CR4, EFER, CS, SS and RFLAGS and consulted by every instruction.

use super::segment::attr;
use super::{Seg, Vcpu, cr0, efer, flags};

/// Derived mode values. [`Vcpu::refresh`] recomputes them; nothing else writes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    /// Code size in bits: 16, 32 or 64.
    pub bits: u8,
    /// Current privilege level (0 in real mode, 3 in v86 mode).
    pub cpl: u8,
    /// CR0.PE and not RFLAGS.VM.
    pub protected: bool,
    /// CR0.PE and RFLAGS.VM.
    pub v86: bool,
    /// EFER.LMA: long mode, either 64-bit or compatibility.
    pub long: bool,
    /// Mask of the stack pointer: 0xffff, 0xffff_ffff or all ones.
    pub stack_mask: u64,
    /// Mask of linear addresses: 32 bits outside 64-bit mode.
    pub lin_mask: u64,
}

impl Default for Mode {
    fn default() -> Self {
        Self {
            bits: 16,
            cpl: 0,
            protected: false,
            v86: false,
            long: false,
            stack_mask: 0xffff,
            lin_mask: 0xffff_ffff,
        }
    }
}

impl Mode {
    /// Real-address mode (no protection at all).
    pub const fn real(&self) -> bool {
        !self.protected && !self.v86
    }
    /// 64-bit mode.
    #[inline(always)]
    pub const fn is64(&self) -> bool {
        self.bits == 64
    }
}

impl Vcpu {
    /// Recomputes [`Mode`] and the segments' access caches. Call after any change of CR0.PE, EFER.LMA, RFLAGS.VM,
    /// CS or SS (the CPL is SS.DPL in protected mode, 3 in v86 mode, 0 in real mode).
    pub fn refresh(&mut self) {
        let pe = self.cr0 & cr0::PE != 0;
        let v86 = pe && self.flags.has(flags::bit::VM);
        let long = self.msr.efer & efer::LMA != 0;
        let cs = &self.seg[Seg::Cs as usize];
        let ss = &self.seg[Seg::Ss as usize];
        let bits = match () {
            _ if v86 => 16,
            _ if long && cs.attr & attr::L != 0 => 64,
            _ if cs.attr & attr::DB != 0 => 32,
            _ => 16,
        };
        self.mode = Mode {
            bits,
            cpl: if !pe {
                0
            } else if v86 {
                3
            } else {
                ss.dpl()
            },
            protected: pe && !v86,
            v86,
            long,
            stack_mask: match () {
                _ if bits == 64 => u64::MAX,
                _ if ss.attr & attr::DB != 0 => 0xffff_ffff,
                _ => 0xffff,
            },
            lin_mask: if bits == 64 { u64::MAX } else { 0xffff_ffff },
        };
        for i in 0..6 {
            self.seg[i].refresh(bits == 64, i == Seg::Cs as usize, i >= Seg::Fs as usize);
        }
    }
}
