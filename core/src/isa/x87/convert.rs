//! Loads and stores: FLD, FST, FSTP of all real formats, FILD, FIST, FISTTP, FBLD, FBSTP, and constants.

use super::BEFORE;
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::traits::Width;
use crate::isa::{Row, row, same};
use crate::mem::Pod;
use crate::vcpu::fpu::{INDEFINITE, Raw80, sw};
use iced_x86::Code as C;

const INTEGER_BIT: u64 = 1 << 63;

/// Widens an IEEE format of `FRAC` fraction and `EXP` exponent bits; exact. Returns the exceptions it raises:
/// #D for a denormal, #IA for a signalling NaN (which becomes quiet).
pub fn widen<const FRAC: u32, const EXP: u32>(v: u64) -> (Raw80, u16) {
    let max = (1u64 << EXP) - 1;
    let sign = ((v >> (FRAC + EXP)) as u16 & 1) << 15;
    let exponent = v >> FRAC & max;
    let fraction = v & ((1 << FRAC) - 1);
    let sig = fraction << (63 - FRAC);
    let bias = 0x3fff - (max >> 1) as u16;
    if exponent == max {
        let signalling = fraction != 0 && sig >> 62 & 1 == 0;
        let quiet = if fraction != 0 { 1 << 62 } else { 0 };
        return ((INTEGER_BIT | quiet | sig, sign | 0x7fff), if signalling { sw::IE } else { 0 });
    }
    if exponent != 0 {
        return ((INTEGER_BIT | sig, sign | (exponent as u16 + bias)), 0);
    }
    if fraction == 0 {
        return ((0, sign), 0);
    }
    let shift = sig.leading_zeros();
    ((sig << shift, sign | (bias + 1 - shift as u16)), sw::DE)
}

/// An integer as an 80-bit real; exact.
pub fn from_int(v: i64) -> Raw80 {
    if v == 0 {
        return (0, 0);
    }
    let shift = v.unsigned_abs().leading_zeros();
    let sign = if v < 0 { 0x8000 } else { 0 };
    (v.unsigned_abs() << shift, sign | (0x3fff + 63 - shift as u16))
}

/// FLD m32, m64.
fn load_real<T: Width, const FRAC: u32, const EXP: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    let m: T = ctx.load_operand(i)?;
    ctx.x87_note(i);
    if !ctx.cpu.fpu.is_empty(7) {
        ctx.x87_overflow();
        return Ok(());
    }
    let (v, raised) = widen::<FRAC, EXP>(m.u());
    ctx.cpu.fpu.set_cc(sw::C1, 0);
    ctx.x87_raise(raised);
    if raised & ctx.cpu.fpu.unmasked() == 0 {
        ctx.cpu.fpu.push(v);
    }
    Ok(())
}

/// FLD m80: a copy; never an exception but stack overflow.
fn load_m80(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    let v = load_80(ctx, i)?;
    ctx.x87_note(i);
    ctx.x87_push(v);
    Ok(())
}

fn load_80(ctx: &mut Ctx<'_>, i: &Insn) -> Result<Raw80, crate::exception::Exception> {
    let ea = ctx.ea(i);
    let mut b = [0u8; 10];
    ctx.load_block(i.seg, ea, i.addr_mask, &mut b)?;
    Ok(from_bytes(&b))
}

/// An 80-bit image in memory order.
pub fn from_bytes(b: &[u8; 10]) -> Raw80 {
    let [s0, s1, s2, s3, s4, s5, s6, s7, e0, e1] = *b;
    (u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]), u16::from_le_bytes([e0, e1]))
}

/// The reverse of [`from_bytes`].
pub fn to_bytes((sig, se): Raw80) -> [u8; 10] {
    let mut b = [0; 10];
    b[..8].copy_from_slice(&sig.to_le_bytes());
    b[8..].copy_from_slice(&se.to_le_bytes());
    b
}

fn load_int<T: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    let m: T = ctx.load_operand(i)?;
    ctx.x87_note(i);
    ctx.x87_push(from_int(m.s()));
    Ok(())
}

/// FBLD: eighteen decimal digits and a sign. Digits above 9 are undefined: here they count as their value.
fn fbld(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    let (digits, se) = load_80(ctx, i)?;
    ctx.x87_note(i);
    let nibbles = |v: u64, n: u32| (0..n).rev().fold(0u64, |r, k| r * 10 + (v >> (4 * k) & 15));
    let value = nibbles(u64::from(se & 0xff), 2) * 10_000_000_000_000_000 + nibbles(digits, 16);
    let (sig, exponent) = from_int(value as i64);
    ctx.x87_push((sig, exponent | se & 0x8000));
    Ok(())
}

/// Stores `o.mem` of a native conversion of ST(0), or `indefinite` if ST(0) is empty. Flags change only once the
/// store has succeeded.
#[inline(always)]
fn store_converted<T: Pod>(
    ctx: &mut Ctx<'_>,
    i: &Insn,
    op: u16,
    narrow: fn(u128) -> T,
    indefinite: u128,
    pop: bool,
) -> Exec {
    ctx.x87_ready()?;
    if ctx.cpu.fpu.is_empty(0) {
        return store_indefinite(ctx, i, narrow(indefinite), pop);
    }
    let o = ctx.x87_native(op, ctx.cpu.fpu.st(0), (0, 0), 0);
    // An unmasked numeric exception other than inexact leaves memory and stack alone.
    let suppressed = o.sw & ctx.cpu.fpu.unmasked() & (BEFORE | sw::OE | sw::UE) != 0;
    if !suppressed {
        ctx.store_operand(i, narrow(o.mem))?;
    }
    ctx.x87_note(i);
    ctx.x87_complete(&o);
    if pop && !suppressed {
        ctx.cpu.fpu.pop();
    }
    Ok(())
}

#[cold]
fn store_indefinite<T: Pod>(ctx: &mut Ctx<'_>, i: &Insn, v: T, pop: bool) -> Exec {
    let masked = ctx.cpu.fpu.unmasked() & sw::IE == 0;
    if masked {
        ctx.store_operand(i, v)?;
    }
    ctx.x87_note(i);
    ctx.x87_underflow();
    if masked && pop {
        ctx.cpu.fpu.pop();
    }
    Ok(())
}

fn store_m32<const OP: u16, const POP: bool>(ctx: &mut Ctx<'_>, i: &Insn, indefinite: u32) -> Exec {
    store_converted::<u32>(ctx, i, OP, |v| v as u32, indefinite.into(), POP)
}
fn store_m64<const OP: u16, const POP: bool>(ctx: &mut Ctx<'_>, i: &Insn, indefinite: u64) -> Exec {
    store_converted::<u64>(ctx, i, OP, |v| v as u64, indefinite.into(), POP)
}
fn store_m16<const OP: u16, const POP: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    store_converted::<u16>(ctx, i, OP, |v| v as u16, 0x8000, POP)
}
fn real32<const POP: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    store_m32::<{ C::Fst_m32fp as u16 }, POP>(ctx, i, 0xffc0_0000)
}
fn real64<const POP: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    store_m64::<{ C::Fst_m64fp as u16 }, POP>(ctx, i, 0xfff8 << 48)
}
fn int32<const OP: u16, const POP: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    store_m32::<OP, POP>(ctx, i, 1 << 31)
}
fn int64<const OP: u16>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    store_m64::<OP, true>(ctx, i, 1 << 63)
}

/// FSTP m80: a copy, never an exception but stack underflow.
fn store_m80(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    let empty = ctx.cpu.fpu.is_empty(0);
    let masked = ctx.cpu.fpu.unmasked() & sw::IE == 0;
    let v = if empty { INDEFINITE } else { ctx.cpu.fpu.st(0) };
    store_80(ctx, i, v, empty, masked)
}

/// FBSTP: rounded to an integer of eighteen digits.
fn fbstp(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    let masked = ctx.cpu.fpu.unmasked() & sw::IE == 0;
    if ctx.cpu.fpu.is_empty(0) {
        return store_80(ctx, i, (0xc000_0000_0000_0000, 0xffff), true, masked);
    }
    let o = ctx.x87_native(i.code, ctx.cpu.fpu.st(0), (0, 0), 0);
    let suppressed = o.sw & ctx.cpu.fpu.unmasked() & BEFORE != 0;
    if !suppressed {
        let ea = ctx.ea(i);
        ctx.store_block(i.seg, ea, i.addr_mask, &o.mem.to_le_bytes()[..10])?;
    }
    ctx.x87_note(i);
    ctx.x87_complete(&o);
    if !suppressed {
        ctx.cpu.fpu.pop();
    }
    Ok(())
}

/// Stores ten bytes and pops; `empty`: with stack underflow, if masked.
fn store_80(ctx: &mut Ctx<'_>, i: &Insn, v: Raw80, empty: bool, masked: bool) -> Exec {
    if !empty || masked {
        let ea = ctx.ea(i);
        ctx.store_block(i.seg, ea, i.addr_mask, &to_bytes(v))?;
    }
    ctx.x87_note(i);
    if empty {
        ctx.x87_underflow();
    } else {
        ctx.cpu.fpu.set_cc(sw::C1, 0);
    }
    if !empty || masked {
        ctx.cpu.fpu.pop();
    }
    Ok(())
}

/// The constants: sign and exponent, the significand rounded down, and whether rounding to nearest or up adds one.
fn constant(ctx: &mut Ctx<'_>, i: &Insn, se: u16, sig: u64, nearest_up: bool, exact: bool) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let up = match ctx.cpu.fpu.fcw >> 10 & 3 {
        0 => nearest_up,
        2 => true,
        _ => false,
    };
    ctx.x87_push((sig + u64::from(up && !exact), se));
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    same(C::Fld_m32fp, load_real::<u32, 23, 8>),
    same(C::Fld_m64fp, load_real::<u64, 52, 11>),
    same(C::Fld_m80fp, load_m80),
    same(C::Fild_m16int, load_int::<u16>),
    same(C::Fild_m32int, load_int::<u32>),
    same(C::Fild_m64int, load_int::<u64>),
    row(C::Fbld_m80bcd, fbld),
    same(C::Fst_m32fp, real32::<false>),
    same(C::Fstp_m32fp, real32::<true>),
    same(C::Fst_m64fp, real64::<false>),
    same(C::Fstp_m64fp, real64::<true>),
    same(C::Fstp_m80fp, store_m80),
    same(C::Fist_m16int, store_m16::<{ C::Fist_m16int as u16 }, false>),
    same(C::Fistp_m16int, store_m16::<{ C::Fist_m16int as u16 }, true>),
    same(C::Fisttp_m16int, store_m16::<{ C::Fisttp_m16int as u16 }, true>),
    same(C::Fist_m32int, int32::<{ C::Fist_m32int as u16 }, false>),
    same(C::Fistp_m32int, int32::<{ C::Fist_m32int as u16 }, true>),
    same(C::Fisttp_m32int, int32::<{ C::Fisttp_m32int as u16 }, true>),
    same(C::Fistp_m64int, int64::<{ C::Fistp_m64int as u16 }>),
    same(C::Fisttp_m64int, int64::<{ C::Fisttp_m64int as u16 }>),
    same(C::Fbstp_m80bcd, fbstp),
    same(C::Fld1, |c, i| constant(c, i, 0x3fff, INTEGER_BIT, false, true)),
    same(C::Fldz, |c, i| constant(c, i, 0, 0, false, true)),
    same(C::Fldl2t, |c, i| constant(c, i, 0x4000, 0xd49a_784b_cd1b_8afe, false, false)),
    same(C::Fldl2e, |c, i| constant(c, i, 0x3fff, 0xb8aa_3b29_5c17_f0bb, true, false)),
    same(C::Fldpi, |c, i| constant(c, i, 0x4000, 0xc90f_daa2_2168_c234, true, false)),
    same(C::Fldlg2, |c, i| constant(c, i, 0x3ffd, 0x9a20_9a84_fbcf_f798, true, false)),
    same(C::Fldln2, |c, i| constant(c, i, 0x3ffe, 0xb172_17f7_d1cf_79ab, true, false)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_doubles() {
        let w = |v: f64| widen::<52, 11>(v.to_bits());
        assert_eq!(w(1.0), ((INTEGER_BIT, 0x3fff), 0));
        assert_eq!(w(-2.5), ((0xa000_0000_0000_0000, 0xc000), 0));
        assert_eq!(w(0.0), ((0, 0), 0));
        assert_eq!(w(f64::NEG_INFINITY), ((INTEGER_BIT, 0xffff), 0));
        assert_eq!(w(f64::from_bits(1)), ((INTEGER_BIT, 0x3fff - 1074), sw::DE));
        let signalling = widen::<52, 11>(0x7ff0_0000_0000_0001);
        assert_eq!(signalling, ((0xc000_0000_0000_0800, 0x7fff), sw::IE));
    }

    #[test]
    fn widening_floats() {
        assert_eq!(widen::<23, 8>(1), ((INTEGER_BIT, 0x3fff - 149), sw::DE));
        assert_eq!(widen::<23, 8>(0xffc0_0000), (INDEFINITE, 0));
    }

    #[test]
    fn integers() {
        assert_eq!(from_int(i64::MIN), (INTEGER_BIT, 0xc03e));
        assert_eq!(from_int(-3), (0xc000_0000_0000_0000, 0xc000));
        assert_eq!(from_int(1), (INTEGER_BIT, 0x3fff));
    }
}
