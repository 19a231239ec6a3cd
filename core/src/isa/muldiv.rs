//! MUL, IMUL (one, two and three operands), DIV, IDIV.
//!
//! Undefined flags: multiplication sets SF and PF from the low half of the product and clears ZF and AF; division
//! changes no flag.

use super::alu::arith::pf;
use super::insn::Insn;
use super::traits::{Width, emitted, rows};
use super::{Row, row, same};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::translate::special;
use crate::vcpu::flags::bit::{ARITH, CF, OF};
use crate::vcpu::gpr::{RAX, RDX};
use iced_x86::Code;

/// Flags of a product with low half `low`.
#[inline(always)]
fn mul_flags<W: Width>(low: u64, overflow: bool) -> u64 {
    pf(low) | (((low >> (W::BITS - 1)) & 1) << 7) | if overflow { CF | OF } else { 0 }
}

/// Unsigned product of zero-extended operands: low half, high half.
#[inline(always)]
pub fn mul_wide<W: Width>(a: u64, b: u64) -> (u64, u64) {
    if W::BITS == 64 {
        let p = u128::from(a) * u128::from(b);
        (p as u64, (p >> 64) as u64)
    } else {
        let p = a.wrapping_mul(b);
        (p & W::MASK, p >> (W::BITS & 63))
    }
}

/// Signed product of sign-extended operands: low half, high half (both truncated), and whether the product does not
/// fit the low half.
#[inline(always)]
fn imul_wide<W: Width>(a: i64, b: i64) -> (u64, u64, bool) {
    if W::BITS == 64 {
        let p = i128::from(a) * i128::from(b);
        (p as u64, (p >> 64) as u64, i128::from(p as i64) != p)
    } else {
        let p = a.wrapping_mul(b);
        (p as u64 & W::MASK, (p >> (W::BITS & 63)) as u64 & W::MASK, W::of(p as u64).s() != p)
    }
}

/// Writes a double-width result to AX, or to rDX:rAX.
#[inline(always)]
fn set_pair<W: Width>(ctx: &mut Ctx<'_>, low: u64, high: u64) {
    if W::BITS == 8 {
        u16::set_reg(ctx.cpu, RAX as u8, ((high & 0xff) << 8 | low & 0xff) as u16);
    } else {
        W::set_reg(ctx.cpu, RAX as u8, W::of(low));
        W::set_reg(ctx.cpu, RDX as u8, W::of(high));
    }
}

/// Reads a double-width operand: low half, high half, zero-extended.
#[inline(always)]
fn pair<W: Width>(ctx: &Ctx<'_>) -> (u64, u64) {
    if W::BITS == 8 {
        (u64::from(ctx.cpu.gpr[RAX] as u8), (ctx.cpu.gpr[RAX] >> 8) & 0xff)
    } else {
        (W::reg(ctx.cpu, RAX as u8).u(), W::reg(ctx.cpu, RDX as u8).u())
    }
}

fn mul<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let b = ctx.rm::<W>(i)?.u();
    let (low, high) = mul_wide::<W>(W::reg(ctx.cpu, RAX as u8).u(), b);
    set_pair::<W>(ctx, low, high);
    ctx.cpu.flags.replace(ARITH, mul_flags::<W>(low, high != 0));
    Ok(())
}

fn imul<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let b = ctx.rm::<W>(i)?.s();
    let (low, high, overflow) = imul_wide::<W>(W::reg(ctx.cpu, RAX as u8).s(), b);
    set_pair::<W>(ctx, low, high);
    ctx.cpu.flags.replace(ARITH, mul_flags::<W>(low, overflow));
    Ok(())
}

/// The two- and three-operand forms: `reg` = `a` × `b`.
#[inline(always)]
fn imul_to_reg<W: Width>(ctx: &mut Ctx<'_>, i: &Insn, a: i64, b: i64) {
    let (low, _, overflow) = imul_wide::<W>(a, b);
    ctx.set_reg(i, W::of(low));
    ctx.cpu.flags.replace(ARITH, mul_flags::<W>(low, overflow));
}

fn imul_reg_rm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.with_rm(i, |ctx, b: W| imul_to_reg::<W>(ctx, i, ctx.reg::<W>(i).s(), b.s()))
}

fn imul_imm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.with_rm(i, |ctx, a: W| imul_to_reg::<W>(ctx, i, a.s(), W::of(i.imm).s()))
}

/// Unsigned division of `high:low` by `d`: quotient and remainder, or `None` for #DE. All zero-extended.
#[inline(always)]
fn div_wide<W: Width>(low: u64, high: u64, d: u64) -> Option<(u64, u64)> {
    if high >= d {
        return None; // also when d is zero; otherwise exactly when the quotient does not fit
    }
    if W::BITS == 64 && high != 0 {
        let n = (u128::from(high) << 64) | u128::from(low);
        return Some(((n / u128::from(d)) as u64, (n % u128::from(d)) as u64));
    }
    let n = if W::BITS == 64 { low } else { (high << (W::BITS & 63)) | low };
    Some((n.checked_div(d)?, n.checked_rem(d)?))
}

/// Signed division of `high:low` by `d`: quotient and remainder, or `None` for #DE.
#[inline(always)]
fn idiv_wide<W: Width>(low: u64, high: u64, d: i64) -> Option<(i64, i64)> {
    if W::BITS == 64 {
        if high as i64 == low as i64 >> 63 {
            return Some(((low as i64).checked_div(d)?, (low as i64).checked_rem(d)?));
        }
        let n = ((u128::from(high) << 64) | u128::from(low)) as i128;
        let q = n.checked_div(i128::from(d))?;
        return Some((i64::try_from(q).ok()?, (n % i128::from(d)) as i64));
    }
    let n = (W::of(high).s() << (W::BITS & 63)) | low as i64;
    let q = n.checked_div(d)?;
    (W::of(q as u64).s() == q).then_some((q, n % d))
}

fn div<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let d = ctx.rm::<W>(i)?.u();
    let (low, high) = pair::<W>(ctx);
    let (q, r) = div_wide::<W>(low, high, d).ok_or(Exception::de())?;
    set_pair::<W>(ctx, q, r);
    Ok(())
}

fn idiv<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let d = ctx.rm::<W>(i)?.s();
    let (low, high) = pair::<W>(ctx);
    let (q, r) = idiv_wide::<W>(low, high, d).ok_or(Exception::de())?;
    set_pair::<W>(ctx, q as u64, r as u64);
    Ok(())
}

emitted! {
    multiplies = row, special::multiply;
    divides = row, special::divide;
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    multiplies mul<> 4: Mul_rm8 Mul_rm16 Mul_rm32 Mul_rm64;
    multiplies imul<> 4: Imul_rm8 Imul_rm16 Imul_rm32 Imul_rm64;
    same imul_reg_rm<> 3: Imul_r16_rm16 Imul_r32_rm32 Imul_r64_rm64;
    same imul_imm<> 3: Imul_r16_rm16_imm16 Imul_r32_rm32_imm32 Imul_r64_rm64_imm32;
    same imul_imm<> 3: Imul_r16_rm16_imm8 Imul_r32_rm32_imm8 Imul_r64_rm64_imm8;
    divides div<> 4: Div_rm8 Div_rm16 Div_rm32 Div_rm64;
    divides idiv<> 4: Idiv_rm8 Idiv_rm16 Idiv_rm32 Idiv_rm64;
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_div_overflow_and_zero_are_faults() {
        assert_eq!(div_wide::<u8>(0, 1, 1), None);
        assert_eq!(div_wide::<u8>(0xff, 0, 0), None);
        assert_eq!(div_wide::<u64>(5, 7, 7), None);
        assert_eq!(div_wide::<u64>(u64::MAX, 6, 7), Some((0xffff_ffff_ffff_ffff, 6)));
        assert_eq!(div_wide::<u16>(0x86a0, 1, 10), Some((10000, 0)));
    }

    #[test]
    fn test_idiv_limits() {
        let min = i64::MIN as u64;
        assert_eq!(idiv_wide::<u64>(min, u64::MAX, -1), None);
        assert_eq!(idiv_wide::<u64>(min, u64::MAX, 1), Some((i64::MIN, 0)));
        assert_eq!(idiv_wide::<u64>(0, min, -1), None, "the 128-bit minimum");
        assert_eq!(idiv_wide::<u64>(0, 1, 2), None, "one more than the maximum");
        assert_eq!(idiv_wide::<u8>(0x80, 0xff, 1), Some((-128, 0)));
        assert_eq!(idiv_wide::<u8>(0x80, 0xff, -1), None);
        assert_eq!(idiv_wide::<u32>(0xffff_fff9, 0xffff_ffff, 2), Some((-3, -1)));
        assert_eq!(idiv_wide::<u32>(0, 0x8000_0000, -1), None);
    }
}
