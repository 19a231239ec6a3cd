//! Which engine executes in which mode, and what of the mode translated code depends on.

use crate::vcpu::segment::Segment;
use crate::vcpu::{Seg, Vcpu};

/// The mode bits of a block key: code size, privilege, and which segments need no limit check.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ModeKey(pub u8);

const LONG: u8 = 1;
/// CPL 0. The place of CS among the segments, which is never written through.
const KERNEL: u8 = 2 << Seg::Cs as u8;

impl ModeKey {
    /// Number of different keys.
    pub const COUNT: usize = 128;

    /// The key of a vCPU's mode; `None`: the interpreter executes. Translated are 64-bit code, and 32-bit code in a flat
    /// code segment; 16-bit and v86 code is interpreted.
    #[inline]
    pub fn of(cpu: &Vcpu) -> Option<Self> {
        let kernel = if cpu.mode.cpl == 0 { KERNEL } else { 0 };
        if cpu.mode.bits == 64 {
            return Some(Self(LONG | kernel));
        }
        let cs = &cpu.seg[Seg::Cs as usize];
        // In real-address mode VEX encodings are undefined.
        if cpu.mode.bits != 32 || !cpu.mode.protected || cs.lin_base != 0 || cs.limit != u32::MAX {
            return None;
        }
        let both = Segment::FAST_READ | Segment::FAST_WRITE;
        let mut key = kernel;
        for (n, s) in cpu.seg.iter().enumerate() {
            let based = n >= Seg::Fs as usize;
            let stack = n != Seg::Ss as usize || cpu.mode.stack_mask == 0xffff_ffff;
            if n != Seg::Cs as usize && s.fast & both == both && stack && (based || s.lin_base == 0) {
                key |= 2 << n;
            }
        }
        Some(Self(key))
    }

    /// Code size in bits.
    pub const fn bits(self) -> u8 {
        if self.0 & LONG != 0 { 64 } else { 32 }
    }

    pub const fn is64(self) -> bool {
        self.0 & LONG != 0
    }

    /// Is the CPL 0?
    pub const fn is_kernel(self) -> bool {
        self.0 & KERNEL != 0
    }

    /// The mode in words: code size, privilege, and in 32-bit code the segments accessed without a check.
    pub fn name(self) -> String {
        const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
        let mut name = format!("{}-bit{}", self.bits(), if self.is_kernel() { ", CPL 0" } else { "" });
        let fast = (0u8..).zip(SEGMENTS).filter(|(n, _)| !self.is64() && self.fast_segment(*n));
        let fast: Vec<&str> = fast.map(|(_, name)| name).collect();
        if !fast.is_empty() {
            name += &format!(", fast {}", fast.join(" "));
        }
        name
    }

    /// May generated code access memory through segment `seg`?
    pub const fn fast_segment(self, seg: u8) -> bool {
        self.is64() || seg != Seg::Cs as u8 && self.0 & (2 << seg) != 0
    }
}
