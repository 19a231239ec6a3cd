//! Logic and simple lane arithmetic on XMM registers in plain Rust: the instructions string functions, memory copies
//! and hashes are made of, where a call into generated code would cost more than the work.

use super::M128;
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, aligned, same};
use iced_x86::Code as C;

/// A lane type. The loops are over arrays of fixed size, which the compiler turns into vector instructions.
pub trait Lane: Copy + Default + Ord {
    const BITS: u32;
    const ONES: Self;
    /// Applies `f` to each pair of lanes.
    fn zip(a: u128, b: u128, f: impl Fn(Self, Self) -> Self) -> u128;
    /// Interleaves the lanes of the lower (or upper) halves.
    fn interleave<const UPPER: bool>(a: u128, b: u128) -> u128;
    fn plus(self, o: Self) -> Self;
    fn minus(self, o: Self) -> Self;
}

macro_rules! lane {
    ($($t:ty as $u:ty),*) => {$(
        impl Lane for $t {
            const BITS: u32 = <$t>::BITS;
            const ONES: Self = <$u>::MAX as $t;
            #[inline(always)]
            fn zip(a: u128, b: u128, f: impl Fn(Self, Self) -> Self) -> u128 {
                let (a, b, mut r) = (a.to_le_bytes(), b.to_le_bytes(), [0; 16]);
                let (a, b) = (a.as_chunks::<{ size_of::<$t>() }>().0, b.as_chunks::<{ size_of::<$t>() }>().0);
                for (r, (a, b)) in r.as_chunks_mut::<{ size_of::<$t>() }>().0.iter_mut().zip(a.iter().zip(b)) {
                    *r = f(<$t>::from_le_bytes(*a), <$t>::from_le_bytes(*b)).to_le_bytes();
                }
                u128::from_le_bytes(r)
            }
            #[inline(always)]
            fn interleave<const UPPER: bool>(a: u128, b: u128) -> u128 {
                const SIZE: usize = size_of::<$t>();
                let (a, b, mut r) = (a.to_le_bytes(), b.to_le_bytes(), [0; 16]);
                let half = if UPPER { 8 } else { 0 };
                for n in 0..8 / SIZE {
                    for k in 0..SIZE {
                        r[2 * n * SIZE + k] = a[half + n * SIZE + k];
                        r[(2 * n + 1) * SIZE + k] = b[half + n * SIZE + k];
                    }
                }
                u128::from_le_bytes(r)
            }
            #[inline(always)]
            fn plus(self, o: Self) -> Self { self.wrapping_add(o) }
            #[inline(always)]
            fn minus(self, o: Self) -> Self { self.wrapping_sub(o) }
        }
    )*};
}
lane!(u8 as u8, u16 as u16, u32 as u32, u64 as u64, i8 as u8, i16 as u16, i32 as u32);

fn if_true<T: Lane>(c: bool) -> T {
    if c { T::ONES } else { T::default() }
}
pub fn add<T: Lane>(a: u128, b: u128) -> u128 {
    T::zip(a, b, T::plus)
}
pub fn sub<T: Lane>(a: u128, b: u128) -> u128 {
    T::zip(a, b, T::minus)
}
pub fn eq<T: Lane>(a: u128, b: u128) -> u128 {
    T::zip(a, b, |x: T, y| if_true(x == y))
}
pub fn gt<T: Lane>(a: u128, b: u128) -> u128 {
    T::zip(a, b, |x: T, y| if_true(x > y))
}
pub fn min<T: Lane>(a: u128, b: u128) -> u128 {
    T::zip(a, b, T::min)
}
pub fn max<T: Lane>(a: u128, b: u128) -> u128 {
    T::zip(a, b, T::max)
}

/// Logical shift of each lane; a count of the lane's width or more gives zero.
pub fn shift_left<T: Lane>(v: u128, count: u32) -> u128 {
    if count >= T::BITS { 0 } else { v << count & !spread::<T>((1 << count) - 1) }
}
pub fn shift_right<T: Lane>(v: u128, count: u32) -> u128 {
    if count >= T::BITS { 0 } else { v >> count & spread::<T>((1 << (T::BITS - count)) - 1) }
}

/// The low bits of each lane set to `v`.
fn spread<T: Lane>(v: u128) -> u128 {
    (0..128 / T::BITS).fold(0, |r, n| r | v << (n * T::BITS))
}

#[inline(always)]
fn binary(ctx: &mut Ctx<'_>, i: &Insn, f: impl Fn(u128, u128) -> u128) -> Exec {
    ctx.sse_ready()?;
    let b = ctx.xmm_src::<M128>(i)?;
    let r = f(ctx.xmm_reg(i), b);
    ctx.set_xmm_reg(i, r);
    Ok(())
}

#[inline(always)]
fn shift(ctx: &mut Ctx<'_>, i: &Insn, f: impl Fn(u128, u32) -> u128) -> Exec {
    ctx.sse_ready()?;
    let r = f(ctx.xmm_rm(i), i.imm as u32 & 0xff);
    ctx.set_xmm_rm(i, r);
    Ok(())
}

fn pshufd(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_src::<M128>(i)?;
    let lane = |n: u64| v >> (32 * (i.imm >> (2 * n) & 3)) & 0xffff_ffff;
    ctx.set_xmm_reg(i, lane(0) | lane(1) << 32 | lane(2) << 64 | lane(3) << 96);
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    aligned(C::Pand_xmm_xmmm128, |c, i| binary(c, i, |a, b| a & b)),
    aligned(C::Andps_xmm_xmmm128, |c, i| binary(c, i, |a, b| a & b)),
    aligned(C::Andpd_xmm_xmmm128, |c, i| binary(c, i, |a, b| a & b)),
    aligned(C::Pandn_xmm_xmmm128, |c, i| binary(c, i, |a, b| !a & b)),
    aligned(C::Andnps_xmm_xmmm128, |c, i| binary(c, i, |a, b| !a & b)),
    aligned(C::Andnpd_xmm_xmmm128, |c, i| binary(c, i, |a, b| !a & b)),
    aligned(C::Por_xmm_xmmm128, |c, i| binary(c, i, |a, b| a | b)),
    aligned(C::Orps_xmm_xmmm128, |c, i| binary(c, i, |a, b| a | b)),
    aligned(C::Orpd_xmm_xmmm128, |c, i| binary(c, i, |a, b| a | b)),
    aligned(C::Pxor_xmm_xmmm128, |c, i| binary(c, i, |a, b| a ^ b)),
    aligned(C::Xorps_xmm_xmmm128, |c, i| binary(c, i, |a, b| a ^ b)),
    aligned(C::Xorpd_xmm_xmmm128, |c, i| binary(c, i, |a, b| a ^ b)),
    aligned(C::Paddb_xmm_xmmm128, |c, i| binary(c, i, add::<u8>)),
    aligned(C::Paddw_xmm_xmmm128, |c, i| binary(c, i, add::<u16>)),
    aligned(C::Paddd_xmm_xmmm128, |c, i| binary(c, i, add::<u32>)),
    aligned(C::Paddq_xmm_xmmm128, |c, i| binary(c, i, add::<u64>)),
    aligned(C::Psubb_xmm_xmmm128, |c, i| binary(c, i, sub::<u8>)),
    aligned(C::Psubw_xmm_xmmm128, |c, i| binary(c, i, sub::<u16>)),
    aligned(C::Psubd_xmm_xmmm128, |c, i| binary(c, i, sub::<u32>)),
    aligned(C::Psubq_xmm_xmmm128, |c, i| binary(c, i, sub::<u64>)),
    aligned(C::Pcmpeqb_xmm_xmmm128, |c, i| binary(c, i, eq::<u8>)),
    aligned(C::Pcmpeqw_xmm_xmmm128, |c, i| binary(c, i, eq::<u16>)),
    aligned(C::Pcmpeqd_xmm_xmmm128, |c, i| binary(c, i, eq::<u32>)),
    aligned(C::Pcmpgtb_xmm_xmmm128, |c, i| binary(c, i, gt::<i8>)),
    aligned(C::Pcmpgtw_xmm_xmmm128, |c, i| binary(c, i, gt::<i16>)),
    aligned(C::Pcmpgtd_xmm_xmmm128, |c, i| binary(c, i, gt::<i32>)),
    aligned(C::Pminub_xmm_xmmm128, |c, i| binary(c, i, min::<u8>)),
    aligned(C::Pmaxub_xmm_xmmm128, |c, i| binary(c, i, max::<u8>)),
    aligned(C::Pminsw_xmm_xmmm128, |c, i| binary(c, i, min::<i16>)),
    aligned(C::Pmaxsw_xmm_xmmm128, |c, i| binary(c, i, max::<i16>)),
    aligned(C::Punpcklbw_xmm_xmmm128, |c, i| binary(c, i, u8::interleave::<false>)),
    aligned(C::Punpcklwd_xmm_xmmm128, |c, i| binary(c, i, u16::interleave::<false>)),
    aligned(C::Punpckldq_xmm_xmmm128, |c, i| binary(c, i, u32::interleave::<false>)),
    aligned(C::Punpcklqdq_xmm_xmmm128, |c, i| binary(c, i, u64::interleave::<false>)),
    aligned(C::Punpckhbw_xmm_xmmm128, |c, i| binary(c, i, u8::interleave::<true>)),
    aligned(C::Punpckhwd_xmm_xmmm128, |c, i| binary(c, i, u16::interleave::<true>)),
    aligned(C::Punpckhdq_xmm_xmmm128, |c, i| binary(c, i, u32::interleave::<true>)),
    aligned(C::Punpckhqdq_xmm_xmmm128, |c, i| binary(c, i, u64::interleave::<true>)),
    aligned(C::Unpcklps_xmm_xmmm128, |c, i| binary(c, i, u32::interleave::<false>)),
    aligned(C::Unpcklpd_xmm_xmmm128, |c, i| binary(c, i, u64::interleave::<false>)),
    aligned(C::Unpckhps_xmm_xmmm128, |c, i| binary(c, i, u32::interleave::<true>)),
    aligned(C::Unpckhpd_xmm_xmmm128, |c, i| binary(c, i, u64::interleave::<true>)),
    same(C::Psllw_xmm_imm8, |c, i| shift(c, i, shift_left::<u16>)),
    same(C::Pslld_xmm_imm8, |c, i| shift(c, i, shift_left::<u32>)),
    same(C::Psllq_xmm_imm8, |c, i| shift(c, i, shift_left::<u64>)),
    same(C::Psrlw_xmm_imm8, |c, i| shift(c, i, shift_right::<u16>)),
    same(C::Psrld_xmm_imm8, |c, i| shift(c, i, shift_right::<u32>)),
    same(C::Psrlq_xmm_imm8, |c, i| shift(c, i, shift_right::<u64>)),
    same(C::Pslldq_xmm_imm8, |c, i| shift(c, i, |v, n| if n > 15 { 0 } else { v << (8 * n) })),
    same(C::Psrldq_xmm_imm8, |c, i| shift(c, i, |v, n| if n > 15 { 0 } else { v >> (8 * n) })),
    aligned(C::Pshufd_xmm_xmmm128_imm8, pshufd),
];
