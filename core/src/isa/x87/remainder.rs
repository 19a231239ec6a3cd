//! FPREM, FPREM1 and FXTRACT. The amount by which one FPREM reduces a far larger operand is left to each CPU model,
//! so partial remainders are computed here: with D the difference of the exponents, D < 64 gives the final
//! remainder, otherwise D falls by 32 to 63, to a multiple of 32. Source: SDM vol. 2A, FPREM, FPREM1, FXTRACT.

use super::ext::{Class, Ext, Operand, round};
use super::raw;
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, row};
use crate::vcpu::fpu::{INDEFINITE, sw};
use iced_x86::Code as C;

/// The outcome of a (partial) remainder: the value and, if the reduction is complete, the quotient's low bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remainder {
    pub value: Ext,
    pub quotient: Option<u64>,
}

/// `a` rem `b`, both finite and not zero. `NEAREST`: the quotient is rounded to nearest even instead of truncated.
pub fn remainder<const NEAREST: bool>(a: Ext, b: Ext) -> Remainder {
    let d = a.exp - b.exp;
    let (sa, sb) = (a.sig >> 64, b.sig >> 64);
    if d >= 64 {
        // Subtract a multiple of b * 2^(d - n), so that no bit of the remainder is lost.
        let n = 32 + d % 32;
        let (_, r) = divide(sa, sb, n as u32);
        return Remainder { value: from_units(a.negative, r, b.exp + d - n), quotient: None };
    }
    if d < -1 || d < 0 && !NEAREST {
        return Remainder { value: a, quotient: Some(0) };
    }
    // d = -1: work in units of a's last place, half those of b's.
    let (q, r, half, exp) = match d {
        -1 => (0, sa, sb, a.exp),
        _ => {
            let (q, r) = divide(sa, sb, d as u32);
            (q, r, sb, b.exp)
        }
    };
    let whole = if d == -1 { half << 1 } else { half };
    if NEAREST && (2 * r > whole || 2 * r == whole && q & 1 != 0) {
        return Remainder {
            value: from_units(!a.negative, whole - r, exp),
            quotient: Some(q.wrapping_add(1)),
        };
    }
    Remainder { value: from_units(a.negative, r, exp), quotient: Some(q) }
}

/// Low bits of the quotient and the remainder of `a * 2^n / b`.
fn divide(a: u128, b: u128, n: u32) -> (u64, u128) {
    let (mut q, mut r) = (0u64, a);
    for k in 0..=n {
        q <<= 1;
        if r >= b {
            r -= b;
            q |= 1;
        }
        if k < n {
            r <<= 1;
        }
    }
    (q, r)
}

/// `r` units of the last place of a 64-bit significand with exponent `exp`.
fn from_units(negative: bool, r: u128, exp: i32) -> Ext {
    Ext::new(negative, exp + 64, r)
}

fn fprem<const NEAREST: bool>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let f = &ctx.cpu.fpu;
    if f.is_empty(0) || f.is_empty(1) {
        ctx.cpu.fpu.set_cc(sw::C2, 0);
        if ctx.x87_underflow() {
            ctx.cpu.fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let (a, b) = (Operand::new(f.st(0)), Operand::new(f.st(1)));
    ctx.cpu.fpu.set_cc(sw::C1 | sw::C2, 0);
    match (a.class, b.class) {
        (Class::Other, _) | (_, Class::Other) => ctx.x87_nan_result(),
        (Class::Infinity, _) | (_, Class::Zero) => {
            ctx.x87_invalid();
        }
        (Class::Zero, _) | (_, Class::Infinity) => {
            if ctx.x87_denormal(a.denormal || b.denormal) {
                ctx.cpu.fpu.set_cc(sw::CC, 0);
                // A denormal dividend is normalised only in the sense of a pseudo-denormal's encoding.
                ctx.x87_exact(a.value.with_sign(a.negative));
            }
        }
        _ => {
            if ctx.x87_denormal(a.denormal || b.denormal) {
                let r = remainder::<NEAREST>(a.value, b.value);
                let codes = match r.quotient {
                    None => sw::C2,
                    Some(q) => {
                        let bit = |n: u64, c| if q >> n & 1 != 0 { c } else { 0 };
                        bit(2, sw::C0) | bit(1, sw::C3) | bit(0, sw::C1)
                    }
                };
                // A zero remainder has the dividend's sign.
                let value = if r.value.is_zero() { Ext::ZERO.with_sign(a.negative) } else { r.value };
                ctx.x87_exact(value);
                ctx.cpu.fpu.set_cc(sw::CC, codes);
            }
        }
    }
    Ok(())
}

impl Ctx<'_> {
    /// The result of an operation with a NaN or unsupported operand in ST(0) or ST(1): as any addition's.
    pub(super) fn x87_nan_result(&mut self) {
        let f = &self.cpu.fpu;
        let o = self.x87_native(C::Fadd_st0_sti as u16, f.st(0), f.st(1), 0);
        if self.x87_complete(&o) {
            self.cpu.fpu.set_st(0, raw(o.st0));
        }
    }

    /// #IA: ST(0) becomes the indefinite if it is masked. True if so.
    pub(super) fn x87_invalid(&mut self) -> bool {
        self.x87_raise(sw::IE);
        let masked = self.cpu.fpu.unmasked() & sw::IE == 0;
        if masked {
            self.cpu.fpu.set_st(0, INDEFINITE);
        }
        masked
    }

    /// #D, if there is a denormal operand. False if it is unmasked and the instruction ends here.
    pub(super) fn x87_denormal(&mut self, denormal: bool) -> bool {
        if denormal {
            self.x87_raise(sw::DE);
        }
        !denormal || self.cpu.fpu.unmasked() & sw::DE == 0
    }

    /// Writes an exactly representable result to ST(0).
    fn x87_exact(&mut self, v: Ext) {
        let r = round(v, self.cpu.fpu.fcw, true);
        self.x87_raise(r.flags);
        self.cpu.fpu.set_st(0, r.value);
    }
}

/// FXTRACT: ST(0) becomes the exponent, the significand is pushed.
fn fxtract(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    if ctx.cpu.fpu.is_empty(0) {
        if ctx.x87_underflow() {
            ctx.cpu.fpu.set_st(0, INDEFINITE);
            ctx.cpu.fpu.push(INDEFINITE);
        }
        return Ok(());
    }
    if !ctx.cpu.fpu.is_empty(7) {
        ctx.x87_overflow_both();
        return Ok(());
    }
    ctx.cpu.fpu.set_cc(sw::C1, 0);
    let st0 = ctx.cpu.fpu.st(0);
    let a = Operand::new(st0);
    let sign = st0.1 & 0x8000;
    let (exponent, significand) = match a.class {
        Class::Other => {
            let o = ctx.x87_native(C::Fadd_st0_sti as u16, st0, (1 << 63, 0x3fff), 0);
            if !ctx.x87_complete(&o) {
                return Ok(());
            }
            (raw(o.st0), raw(o.st0))
        }
        Class::Infinity => ((1 << 63, 0x7fff), st0),
        Class::Zero => {
            ctx.x87_raise(sw::ZE);
            if ctx.cpu.fpu.unmasked() & sw::ZE != 0 {
                return Ok(());
            }
            ((1 << 63, 0xffff), (0, sign))
        }
        Class::Finite => {
            if !ctx.x87_denormal(a.denormal) {
                return Ok(());
            }
            (super::convert::from_int(a.value.exp.into()), ((a.value.sig >> 64) as u64, sign | 0x3fff))
        }
    };
    ctx.cpu.fpu.set_st(0, exponent);
    ctx.cpu.fpu.push(significand);
    Ok(())
}

pub const ROWS: &[Row] =
    &[row(C::Fprem, fprem::<false>), row(C::Fprem1, fprem::<true>), row(C::Fxtract, fxtract)];

#[cfg(test)]
mod tests {
    use super::*;

    fn rem<const NEAREST: bool>(a: f64, b: f64) -> (f64, Option<u64>) {
        let ext = |v: f64| Operand::new(super::super::convert::widen::<52, 11>(v.to_bits()).0).value;
        let r = remainder::<NEAREST>(ext(a), ext(b));
        // In two steps: 2^(exp - 63) alone may be out of range.
        let v = (r.value.sig >> 64) as f64 * 2f64.powi(-63) * 2f64.powi(r.value.exp);
        (if r.value.negative { -v } else { v }, r.quotient)
    }

    #[test]
    fn complete_remainders() {
        assert_eq!(rem::<false>(17.0, 5.0), (2.0, Some(3)));
        assert_eq!(rem::<false>(-17.0, 5.0), (-2.0, Some(3)));
        assert_eq!(rem::<false>(3.0, 5.0), (3.0, Some(0)));
        assert_eq!(rem::<true>(17.0, 5.0), (2.0, Some(3)));
        assert_eq!(rem::<true>(18.0, 5.0), (-2.0, Some(4)));
        assert_eq!(rem::<true>(3.0, 5.0), (-2.0, Some(1)));
        assert_eq!(rem::<true>(2.5, 5.0), (2.5, Some(0)));
        assert_eq!(rem::<true>(7.5, 5.0), (-2.5, Some(2)));
        assert_eq!(rem::<true>(1.0, 5.0), (1.0, Some(0)));
        assert_eq!(rem::<false>(10.0, 5.0).0, 0.0);
        assert_eq!(rem::<false>(1e18, 7.0).0, 1e18 % 7.0);
    }

    #[test]
    fn partial_remainders_end_in_the_true_one() {
        for (a, b) in [(1e300, 7.0), (1.7e308, 3e-300), (6.5e200, 0.1)] {
            let (mut x, mut rounds) = (a, 0);
            loop {
                let (r, q) = rem::<false>(x, b);
                assert!(r.abs() < x.abs() || r == 0.0);
                (x, rounds) = (r, rounds + 1);
                if q.is_some() || x == 0.0 {
                    break;
                }
            }
            assert_eq!(x, a % b);
            assert!(rounds > 1);
        }
    }
}
