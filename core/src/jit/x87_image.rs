//! The guest's x87 state on its way between the vCPU and the host's x87 registers: FNSAVE's image, and the instruction and
//! data pointers, which translated code notes by itself (the host's would name host addresses).
//!
//! While the state is in the host's registers it stays there even in helpers, except in those that look at it: Rust code
//! uses no x87 or MMX register, and a context switch of the host's kernel keeps them. FNSAVE leaves an empty stack and the
//! control word of the ABI.

use crate::vcpu::fpu::{Fpu, sw};
use crate::vcpu::{Seg, Vcpu, cr0};

/// Values of [`super::frame::Frame::x87`].
pub mod at {
    /// In the vCPU.
    pub const VCPU: u32 = 0;
    /// In the host's registers.
    pub const HOST: u32 = 1;
    /// In the image, to be loaded into the host's registers.
    pub const IMAGE: u32 = 2;
}

/// The 108 bytes of FNSAVE: 32-bit protected-mode layout (SDM vol. 1, figures 8-9 and 8-13).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub struct Image {
    fcw: u32,
    fsw: u32,
    /// Two bits a physical register: 3 = empty.
    tags: u32,
    /// Instruction and data pointers, selectors, opcode: the host's.
    pointers: [u32; 4],
    /// ST(0) to ST(7).
    st: [[u8; 10]; 8],
}

impl Image {
    /// Takes over a vCPU's registers.
    pub fn set(&mut self, f: &Fpu) {
        self.fcw = f.fcw.into();
        self.fsw = f.fsw.into();
        self.tags = (0..8).fold(0, |t, n| if f.ftw >> n & 1 == 0 { t | 3 << (2 * n) } else { t });
        self.pointers = [0; 4];
        for (n, image) in (0..8).zip(&mut self.st) {
            let (sig, se) = f.st(n);
            image[..8].copy_from_slice(&sig.to_le_bytes());
            image[8..].copy_from_slice(&se.to_le_bytes());
        }
    }

    /// Gives them back.
    pub fn get(&self, f: &mut Fpu) {
        f.fcw = self.fcw as u16;
        f.fsw = self.fsw as u16;
        f.set_tag_word(self.tags as u16);
        for (n, image) in (0..8).zip(&self.st) {
            let p = f.physical(n);
            let (sig, se) = image.split_at(8);
            let word = |b: &[u8]| b.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
            f.r[p] = (word(sig), word(se) as u16);
        }
    }
}

/// May the x87 and MMX run on the host? Not if one of their instructions could fault.
pub fn native(cpu: &Vcpu) -> bool {
    let f = &cpu.fpu;
    cpu.cr0 & (cr0::EM | cr0::TS) == 0 && f.unmasked() == 0 && f.fsw & (sw::ES | sw::B) == 0
}

/// What translated code noted of the last x87 instructions.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Notes {
    /// RIP of the last one but control instructions; [`Notes::NONE`].
    pub fip: u64,
    /// Offset of the last memory operand.
    pub fdp: u64,
    /// Its segment, plus 1; 0: there is no new one.
    pub seg: u32,
}

impl Notes {
    /// Not canonical: no RIP.
    pub const NONE: u64 = 1 << 63;

    /// Moves what was noted into the vCPU. CS and the data segment have not changed since.
    #[inline]
    pub fn take(&mut self, cpu: &mut Vcpu) {
        if self.fip != Self::NONE {
            cpu.fpu.fip = self.fip;
            cpu.fpu.fcs = cpu.seg[Seg::Cs as usize].selector;
            self.fip = Self::NONE;
        }
        if let Some(s) = self.seg.checked_sub(1).and_then(|s| cpu.seg.get(s as usize)) {
            cpu.fpu.fdp = self.fdp;
            cpu.fpu.fds = s.selector;
            self.seg = 0;
        }
    }

    /// Nothing is noted.
    pub fn clear(&mut self) {
        (self.fip, self.seg) = (Self::NONE, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_image_keeps_registers_of_any_tag() {
        let mut f = Fpu::new();
        f.init();
        for n in 0..8u8 {
            f.r[usize::from(n)] = (0x1111_1111_1111_1111 * u64::from(n), 0x4000 + u16::from(n));
        }
        (f.ftw, f.fcw) = (0b1010_0110, 0xe7f);
        f.set_top(5);
        f.fsw |= sw::C3 | sw::PE;
        let mut i = Image::default();
        i.set(&f);
        assert_eq!(i.st[0][8..], 0x4005u16.to_le_bytes());
        let mut g = Fpu::new();
        i.get(&mut g);
        assert_eq!((g.r, g.ftw, g.fsw, g.fcw), (f.r, f.ftw, f.fsw, f.fcw));
    }
}
