//! F2XM1, FYL2X, FYL2XP1, FPTAN, FPATAN, FSIN, FCOS, FSINCOS. Real CPUs differ in the last bits of these, so their
//! results are defined here: the exact value, rounded once under the rounding control to a 64-bit significand
//! (precision control does not apply). Sine, cosine and tangent reduce with the true pi, not with the 66-bit pi of
//! some CPUs. Specials follow the tables in SDM vol. 2A; C1 says whether the result was rounded up.

pub mod series;

use super::ext::{Class, Ext, Operand, round};
use super::raw;
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, row};
use crate::vcpu::fpu::{INDEFINITE, Raw80, sw};
use iced_x86::Code as C;

const ONE: Raw80 = (1 << 63, 0x3fff);

/// What a function of finite or special operands gives.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// An exact result, encoded.
    Exact(Raw80),
    /// A value to round; true if it is exact.
    Value(Ext, bool),
    /// #IA.
    Invalid,
    /// #Z; the masked response is infinity of this sign.
    DivideByZero(bool),
}

const fn zero(negative: bool) -> Outcome {
    Outcome::Exact((0, if negative { 0x8000 } else { 0 }))
}
const fn infinity(negative: bool) -> Outcome {
    Outcome::Exact((1 << 63, if negative { 0xffff } else { 0x7fff }))
}

impl Ctx<'_> {
    /// Writes an outcome to ST(`at`). False if an unmasked exception suppressed it.
    fn x87_outcome(&mut self, outcome: Outcome, at: u8) -> bool {
        let masked = |c: &Self, e| c.cpu.fpu.unmasked() & e == 0;
        let value = match outcome {
            Outcome::Exact(v) => v,
            Outcome::Invalid => {
                self.x87_raise(sw::IE);
                if !masked(self, sw::IE) {
                    return false;
                }
                INDEFINITE
            }
            Outcome::DivideByZero(negative) => {
                self.x87_raise(sw::ZE);
                if !masked(self, sw::ZE) {
                    return false;
                }
                (1 << 63, if negative { 0xffff } else { 0x7fff })
            }
            Outcome::Value(v, exact) => {
                let r = round(v, self.cpu.fpu.fcw, exact);
                self.x87_raise(r.flags);
                self.cpu.fpu.set_cc(sw::C1, if r.up { sw::C1 } else { 0 });
                r.value
            }
        };
        self.cpu.fpu.set_st(at, value);
        true
    }

    /// The start of a one-operand function: the operand, unless the instruction is already done.
    fn x87_operand(&mut self, i: &Insn) -> Result<Option<Operand>, crate::exception::Exception> {
        self.x87_ready()?;
        self.x87_note(i);
        if self.cpu.fpu.is_empty(0) {
            if self.x87_underflow() {
                self.cpu.fpu.set_st(0, INDEFINITE);
            }
            return Ok(None);
        }
        self.cpu.fpu.set_cc(sw::C1, 0);
        let a = Operand::new(self.cpu.fpu.st(0));
        if a.is_other() {
            self.x87_unary_nan();
            return Ok(None);
        }
        Ok(if self.x87_denormal(a.denormal) { Some(a) } else { None })
    }

    /// ST(0) is a NaN or unsupported: quietens it, or #IA. False if unmasked.
    fn x87_unary_nan(&mut self) -> bool {
        let o = self.x87_native(C::Fadd_st0_sti as u16, self.cpu.fpu.st(0), ONE, 0);
        let written = self.x87_complete(&o);
        if written {
            self.cpu.fpu.set_st(0, raw(o.st0));
        }
        written
    }
}

/// An angle too large to reduce: C2 is set and nothing else happens.
fn out_of_range(ctx: &mut Ctx<'_>, a: &Operand) -> bool {
    let too_large = a.class == Class::Finite && a.value.exp >= 63;
    ctx.cpu.fpu.set_cc(sw::C2, if too_large { sw::C2 } else { 0 });
    too_large
}

fn f2xm1(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let Some(a) = ctx.x87_operand(i)? else { return Ok(()) };
    let outcome = match a.class {
        Class::Zero => zero(a.negative),
        Class::Infinity if a.negative => Outcome::Value(Ext::int(-1), true),
        Class::Infinity => infinity(false),
        _ if a.value == Ext::ONE => Outcome::Value(Ext::ONE, true),
        _ if a.value == Ext::int(-1) => Outcome::Value(Ext::int(-1).scale(-1), true),
        // Outside [-1, 1] the result is undefined: the operand stays.
        _ if a.value.exp >= 0 => return Ok(()),
        _ => Outcome::Value(series::exp2_m1(a.value), false),
    };
    ctx.x87_outcome(outcome, 0);
    Ok(())
}

/// Sine or cosine of a finite or zero operand.
fn sine(a: &Operand) -> Outcome {
    if a.is_zero() { zero(a.negative) } else { Outcome::Value(series::sin_cos(a.value).0, false) }
}
fn cosine(a: &Operand) -> Outcome {
    if a.is_zero() { Outcome::Exact(ONE) } else { Outcome::Value(series::sin_cos(a.value).1, false) }
}

fn circular(ctx: &mut Ctx<'_>, i: &Insn, f: fn(&Operand) -> Outcome) -> Exec {
    ctx.x87_ready()?;
    ctx.cpu.fpu.set_cc(sw::C2, 0);
    let Some(a) = ctx.x87_operand(i)? else { return Ok(()) };
    if out_of_range(ctx, &a) {
        return Ok(());
    }
    ctx.x87_outcome(if a.is_infinite() { Outcome::Invalid } else { f(&a) }, 0);
    Ok(())
}

/// FSINCOS and FPTAN: a result in ST(0), then a second pushed.
fn circular_pair(ctx: &mut Ctx<'_>, i: &Insn, f: fn(&Operand) -> (Outcome, Outcome)) -> Exec {
    ctx.x87_ready()?;
    ctx.cpu.fpu.set_cc(sw::C2, 0);
    if ctx.cpu.fpu.is_empty(0) {
        ctx.x87_note(i);
        if ctx.x87_underflow() {
            ctx.cpu.fpu.set_st(0, INDEFINITE);
            ctx.cpu.fpu.push(INDEFINITE);
        }
        return Ok(());
    }
    if !ctx.cpu.fpu.is_empty(7) {
        ctx.x87_note(i);
        ctx.x87_overflow_both();
        return Ok(());
    }
    if Operand::new(ctx.cpu.fpu.st(0)).is_other() {
        ctx.x87_note(i);
        ctx.cpu.fpu.set_cc(sw::C1 | sw::C2, 0);
        if ctx.x87_unary_nan() {
            let v = ctx.cpu.fpu.st(0);
            ctx.cpu.fpu.push(v);
        }
        return Ok(());
    }
    let Some(a) = ctx.x87_operand(i)? else { return Ok(()) };
    if out_of_range(ctx, &a) {
        return Ok(());
    }
    if a.is_infinite() {
        if ctx.x87_invalid() {
            ctx.cpu.fpu.push(INDEFINITE);
        }
        return Ok(());
    }
    let (first, second) = f(&a);
    // ST(7) is the register the push goes to. C1 speaks of the first result.
    ctx.x87_outcome(second, 7);
    ctx.cpu.fpu.set_cc(sw::C1, 0);
    ctx.x87_outcome(first, 0);
    ctx.cpu.fpu.set_top(ctx.cpu.fpu.top().wrapping_sub(1));
    Ok(())
}

fn tangent(a: &Operand) -> (Outcome, Outcome) {
    let first = if a.is_zero() {
        zero(a.negative)
    } else {
        let (s, c) = series::sin_cos(a.value);
        Outcome::Value(s.div(c), false)
    };
    (first, Outcome::Exact(ONE))
}

/// A function of ST(1) and ST(0) that pops: the result replaces both.
fn binary(ctx: &mut Ctx<'_>, i: &Insn, f: fn(&Operand, &Operand) -> Outcome) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let p = &ctx.cpu.fpu;
    if p.is_empty(0) || p.is_empty(1) {
        if ctx.x87_underflow() {
            ctx.cpu.fpu.set_st(1, INDEFINITE);
            ctx.cpu.fpu.pop();
        }
        return Ok(());
    }
    let (x, y) = (Operand::new(p.st(0)), Operand::new(p.st(1)));
    ctx.cpu.fpu.set_cc(sw::C1, 0);
    if x.is_other() || y.is_other() {
        let p = &ctx.cpu.fpu;
        let o = ctx.x87_native(C::Fadd_st0_sti as u16, p.st(1), p.st(0), 0);
        if ctx.x87_complete(&o) {
            ctx.cpu.fpu.set_st(1, raw(o.st0));
            ctx.cpu.fpu.pop();
        }
        return Ok(());
    }
    let outcome = f(&y, &x);
    // #IA and #Z come before #D.
    let early = matches!(outcome, Outcome::Invalid | Outcome::DivideByZero(_));
    if !early && !ctx.x87_denormal(x.denormal || y.denormal) {
        return Ok(());
    }
    if ctx.x87_outcome(outcome, 1) {
        ctx.cpu.fpu.pop();
    }
    Ok(())
}

/// y * log2 x.
fn yl2x(y: &Operand, x: &Operand) -> Outcome {
    if x.is_zero() {
        return match y.class {
            Class::Zero => Outcome::Invalid,
            Class::Infinity => infinity(!y.negative),
            _ => Outcome::DivideByZero(!y.negative),
        };
    }
    if x.negative {
        return Outcome::Invalid;
    }
    let log = if x.is_infinite() { None } else { Some(series::log2(x.value)) };
    times_log(y, log)
}

/// y * log2(x + 1). Below -1 the result is undefined: here invalid.
fn yl2xp1(y: &Operand, x: &Operand) -> Outcome {
    if x.is_zero() {
        return if y.is_infinite() { Outcome::Invalid } else { zero(x.negative != y.negative) };
    }
    if x.negative && (x.is_infinite() || x.value.exp >= 0) {
        return Outcome::Invalid;
    }
    let log = if x.is_infinite() { None } else { Some(series::log2_1p(x.value)) };
    times_log(y, log)
}

/// y times a logarithm (`None`: plus infinity).
fn times_log(y: &Operand, log: Option<Ext>) -> Outcome {
    let Some(log) = log else {
        return if y.is_zero() { Outcome::Invalid } else { infinity(y.negative) };
    };
    let negative = y.negative != log.negative;
    match y.class {
        Class::Infinity if log.is_zero() => Outcome::Invalid,
        Class::Infinity => infinity(negative),
        Class::Zero => zero(negative),
        _ if log.is_zero() => zero(y.negative),
        // The logarithm of a power of two is an integer, and its product with y exact.
        _ => Outcome::Value(y.value.mul(log), log.sig as u64 == 0 && log.sig << 16 == 0),
    }
}

/// atan2(y, x).
fn patan(y: &Operand, x: &Operand) -> Outcome {
    let pi = |quarters| Outcome::Value(series::pi_quarters(quarters).with_sign(y.negative), false);
    match (y.class, x.class) {
        (Class::Infinity, Class::Infinity) => pi(if x.negative { 3 } else { 1 }),
        (Class::Infinity, _) => pi(2),
        (Class::Zero, _) | (_, Class::Infinity) => {
            if x.negative {
                pi(4)
            } else {
                zero(y.negative)
            }
        }
        (_, Class::Zero) => pi(2),
        _ if !x.negative && quotient_is_exact_and_tiny(y, x) => Outcome::Value(y.value.div(x.value), false),
        _ => Outcome::Value(series::atan2(y.value, x.value), false),
    }
}

/// For a quotient below the smallest normal number its arc tangent rounds as the quotient itself does.
fn quotient_is_exact_and_tiny(y: &Operand, x: &Operand) -> bool {
    y.value.exp - x.value.exp < -16400
}

pub const ROWS: &[Row] = &[
    row(C::F2xm1, f2xm1),
    row(C::Fyl2x, |c, i| binary(c, i, yl2x)),
    row(C::Fyl2xp1, |c, i| binary(c, i, yl2xp1)),
    row(C::Fpatan, |c, i| binary(c, i, patan)),
    row(C::Fptan, |c, i| circular_pair(c, i, tangent)),
    row(C::Fsin, |c, i| circular(c, i, sine)),
    row(C::Fcos, |c, i| circular(c, i, cosine)),
    row(C::Fsincos, |c, i| circular_pair(c, i, |a| (sine(a), cosine(a)))),
];

#[cfg(test)]
mod tests;
