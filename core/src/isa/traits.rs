//! Operand widths. Arithmetic is written once, generic over [`Width`].

use crate::mem::Pod;
use crate::vcpu::Vcpu;

/// An integer operand width: u8, u16, u32 or u64.
pub trait Width: Pod + Eq + Ord + std::fmt::LowerHex + std::fmt::Debug {
    const BITS: u32;
    /// All ones of this width.
    const MASK: u64;
    /// The sign bit.
    const SIGN: u64;
    /// Truncates.
    fn of(v: u64) -> Self;
    /// Zero-extends.
    fn u(self) -> u64;
    /// Sign-extends to 64 bits.
    fn s(self) -> i64;
    /// Reads register `r` of a decoded instruction (16..=19: AH, CH, DH, BH).
    fn reg(cpu: &Vcpu, r: u8) -> Self;
    /// Writes register `r`: 32-bit writes clear the upper half, 8- and 16-bit writes keep the rest.
    fn set_reg(cpu: &mut Vcpu, r: u8, v: Self);
}

macro_rules! width {
    ($t:ty, $s:ty, |$cpu:ident, $r:ident| $get:expr, |$c2:ident, $r2:ident, $v:ident| $set:expr) => {
        impl Width for $t {
            const BITS: u32 = <$t>::BITS;
            const MASK: u64 = <$t>::MAX as u64;
            const SIGN: u64 = 1 << (<$t>::BITS - 1);
            #[inline(always)]
            fn of(v: u64) -> Self { v as $t }
            #[inline(always)]
            fn u(self) -> u64 { self as u64 }
            #[inline(always)]
            fn s(self) -> i64 { self as $s as i64 }
            #[inline(always)]
            fn reg($cpu: &Vcpu, $r: u8) -> Self { $get }
            #[inline(always)]
            fn set_reg($c2: &mut Vcpu, $r2: u8, $v: Self) { $set }
        }
    };
}

width!(u8, i8, |cpu, r| (cpu.gpr[(r & 15) as usize] >> ((r >> 4) << 3)) as u8, |cpu, r, v| {
    let g = &mut cpu.gpr[(r & 15) as usize];
    let sh = (r >> 4) << 3;
    *g = (*g & !(0xff << sh)) | (v as u64) << sh;
});
width!(u16, i16, |cpu, r| cpu.gpr[(r & 15) as usize] as u16, |cpu, r, v| {
    let g = &mut cpu.gpr[(r & 15) as usize];
    *g = (*g & !0xffff) | v as u64;
});
width!(u32, i32, |cpu, r| cpu.gpr[(r & 15) as usize] as u32, |cpu, r, v| cpu.gpr[(r & 15) as usize] = v as u64);
width!(u64, i64, |cpu, r| cpu.gpr[(r & 15) as usize], |cpu, r, v| cpu.gpr[(r & 15) as usize] = v);
