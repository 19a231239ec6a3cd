//! Operand widths, and the macro that builds row tables. Arithmetic is written once, generic over [`Width`].

use super::{Row, row, undefined};
use crate::mem::Pod;
use crate::vcpu::Vcpu;
use iced_x86::Code;

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
            fn of(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn u(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn s(self) -> i64 {
                self as $s as i64
            }
            #[inline(always)]
            fn reg($cpu: &Vcpu, $r: u8) -> Self {
                $get
            }
            #[inline(always)]
            fn set_reg($c2: &mut Vcpu, $r2: u8, $v: Self) {
                $set
            }
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
width!(u32, i32, |cpu, r| cpu.gpr[(r & 15) as usize] as u32, |cpu, r, v| cpu.gpr[(r & 15) as usize] =
    v as u64);
width!(u64, i64, |cpu, r| cpu.gpr[(r & 15) as usize], |cpu, r, v| cpu.gpr[(r & 15) as usize] = v);

/// Builds a row table. Each group is `constructor exec<parameter> widths: codes;` where the exec function is generic
/// over the parameter (an operation type, a condition, ...) and the operand width:
/// `4:` codes for u8, u16, u32, u64; `3:` for u16, u32, u64; `u32:` (or another width) for every code listed.
/// `exec<>` has only the width parameter, `exec<parameter>:` no width; without brackets the function is not generic.
macro_rules! rows {
    (@ [$($out:expr,)*]) => { &[$($out),*] };
    (@ [$($out:expr,)*] $mk:ident $f:ident<$op:tt> 4: $a:ident $b:ident $c:ident $d:ident; $($rest:tt)*) => {
        $crate::isa::traits::rows!(@ [$($out,)* $mk(Code::$a, $f::<$op, u8>), $mk(Code::$b, $f::<$op, u16>),
            $mk(Code::$c, $f::<$op, u32>), $mk(Code::$d, $f::<$op, u64>),] $($rest)*)
    };
    (@ [$($out:expr,)*] $mk:ident $f:ident<$op:tt> 3: $b:ident $c:ident $d:ident; $($rest:tt)*) => {
        $crate::isa::traits::rows!(@ [$($out,)* $mk(Code::$b, $f::<$op, u16>),
            $mk(Code::$c, $f::<$op, u32>), $mk(Code::$d, $f::<$op, u64>),] $($rest)*)
    };
    (@ [$($out:expr,)*] $mk:ident $f:ident<$op:tt> $w:ident: $($c:ident)+; $($rest:tt)*) => {
        $crate::isa::traits::rows!(@ [$($out,)* $($mk(Code::$c, $f::<$op, $w>),)+] $($rest)*)
    };
    (@ [$($out:expr,)*] $mk:ident $f:ident<> 4: $a:ident $b:ident $c:ident $d:ident; $($rest:tt)*) => {
        $crate::isa::traits::rows!(@ [$($out,)* $mk(Code::$a, $f::<u8>), $mk(Code::$b, $f::<u16>),
            $mk(Code::$c, $f::<u32>), $mk(Code::$d, $f::<u64>),] $($rest)*)
    };
    (@ [$($out:expr,)*] $mk:ident $f:ident<> 3: $b:ident $c:ident $d:ident; $($rest:tt)*) => {
        $crate::isa::traits::rows!(@ [$($out,)* $mk(Code::$b, $f::<u16>),
            $mk(Code::$c, $f::<u32>), $mk(Code::$d, $f::<u64>),] $($rest)*)
    };
    (@ [$($out:expr,)*] $mk:ident $f:ident<> $w:ident: $($c:ident)+; $($rest:tt)*) => {
        $crate::isa::traits::rows!(@ [$($out,)* $($mk(Code::$c, $f::<$w>),)+] $($rest)*)
    };
    (@ [$($out:expr,)*] $mk:ident $f:ident<$op:tt>: $($c:ident)+; $($rest:tt)*) => {
        $crate::isa::traits::rows!(@ [$($out,)* $($mk(Code::$c, $f::<$op>),)+] $($rest)*)
    };
    (@ [$($out:expr,)*] $mk:ident $f:ident: $($c:ident)+; $($rest:tt)*) => {
        $crate::isa::traits::rows!(@ [$($out,)* $($mk(Code::$c, $f),)+] $($rest)*)
    };
    ($mk:ident $($t:tt)*) => { $crate::isa::traits::rows!(@ [] $mk $($t)*) };
}
pub(crate) use rows;

/// Row constructors for [`rows!`] that give a row a translation of its own: `name = constructor, emit function;`.
macro_rules! emitted {
    ($($name:ident = $mk:ident, $emit:path;)*) => {$(
        const fn $name(code: Code, exec: $crate::isa::insn::ExecFn) -> Row {
            $mk(code, exec).emit($emit)
        }
    )*};
}
pub(crate) use emitted;

/// Joins row tables of one family's files; `N` is the sum of their lengths.
pub(crate) const fn join<const N: usize>(tables: &[&[Row]]) -> [Row; N] {
    let mut out = [row(Code::INVALID, undefined); N];
    let (mut t, mut n) = (0, 0);
    while t < tables.len() {
        let mut k = 0;
        while k < tables[t].len() {
            out[n] = tables[t][k];
            n += 1;
            k += 1;
        }
        t += 1;
    }
    assert!(n == N);
    out
}
