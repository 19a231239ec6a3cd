//! BMI1 and BMI2, the VEX-encoded general-register instructions: ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, MULX, PDEP,
//! PEXT, RORX, SARX, SHLX, SHRX.
//!
//! Undefined flags: AF and PF are cleared wherever other flags are set.

use super::insn::Insn;
use super::muldiv::mul_wide;
use super::traits::{Width, rows};
use super::{Row, same};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::vcpu::flags::bit::{ARITH, CF};
use crate::vcpu::gpr::RDX;
use iced_x86::Code;

/// VEX encodings are undefined in real-address and virtual-8086 mode (SDM vol. 2, 2.9, exceptions type 13).
#[inline(always)]
fn vex_allowed(ctx: &Ctx<'_>) -> Exec {
    if ctx.cpu.mode.protected { Ok(()) } else { Err(Exception::ud()) }
}

/// Reads the r/m operand of a VEX instruction.
#[inline(always)]
fn vex_rm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Result<u64, Exception> {
    vex_allowed(ctx)?;
    Ok(ctx.rm::<W>(i)?.u())
}

#[inline(always)]
fn vvvv<W: Width>(ctx: &Ctx<'_>, i: &Insn) -> u64 {
    W::reg(ctx.cpu, i.vvvv).u()
}

/// SF and ZF of a result, with CF in `cf`; OF, AF and PF are cleared.
#[inline(always)]
fn set_flags<W: Width>(ctx: &mut Ctx<'_>, r: u64, cf: u64) {
    let f = u64::from(r == 0) << 6 | (r >> (W::BITS - 1)) << 7 | (cf & CF);
    ctx.cpu.flags.replace(ARITH, f);
}

/// The lowest `n` bits set.
#[inline(always)]
fn low_mask(n: u64) -> u64 {
    if n < 64 { (1 << n) - 1 } else { u64::MAX }
}

fn andn<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let r = vex_rm::<W>(ctx, i)? & !vvvv::<W>(ctx, i);
    ctx.set_reg(i, W::of(r));
    set_flags::<W>(ctx, r, 0);
    Ok(())
}

/// BEXTR: bits 7:0 of the control are the start, bits 15:8 the length. SF is undefined: clear.
fn bextr<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = vex_rm::<W>(ctx, i)?;
    let control = vvvv::<W>(ctx, i);
    let r = v.checked_shr((control & 0xff) as u32).unwrap_or(0) & low_mask((control >> 8) & 0xff);
    ctx.set_reg(i, W::of(r));
    ctx.cpu.flags.replace(ARITH, u64::from(r == 0) << 6);
    Ok(())
}

/// The three operations on the lowest set bit: result and CF.
pub trait LowestBit {
    fn apply(v: u64) -> (u64, bool);
}
pub struct Blsi;
pub struct Blsmsk;
pub struct Blsr;
impl LowestBit for Blsi {
    #[inline(always)]
    fn apply(v: u64) -> (u64, bool) {
        (v & v.wrapping_neg(), v != 0)
    }
}
impl LowestBit for Blsmsk {
    #[inline(always)]
    fn apply(v: u64) -> (u64, bool) {
        (v ^ v.wrapping_sub(1), v == 0)
    }
}
impl LowestBit for Blsr {
    #[inline(always)]
    fn apply(v: u64) -> (u64, bool) {
        (v & v.wrapping_sub(1), v == 0)
    }
}

fn lowest<O: LowestBit, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let (r, cf) = O::apply(vex_rm::<W>(ctx, i)?);
    let r = r & W::MASK;
    W::set_reg(ctx.cpu, i.vvvv, W::of(r));
    set_flags::<W>(ctx, r, cf.into());
    Ok(())
}

fn bzhi<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = vex_rm::<W>(ctx, i)?;
    let n = vvvv::<W>(ctx, i) & 0xff;
    let r = v & low_mask(n);
    ctx.set_reg(i, W::of(r));
    set_flags::<W>(ctx, r, u64::from(n >= u64::from(W::BITS)));
    Ok(())
}

/// MULX: the high half is written last, so it wins when both destinations are the same register.
fn mulx<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = vex_rm::<W>(ctx, i)?;
    let (low, high) = mul_wide::<W>(W::reg(ctx.cpu, RDX as u8).u(), v);
    W::set_reg(ctx.cpu, i.vvvv, W::of(low));
    ctx.set_reg(i, W::of(high));
    Ok(())
}

/// Scatters the low bits of `v` to the places set in `mask`.
fn deposit(mut v: u64, mut mask: u64) -> u64 {
    let mut r = 0;
    while mask != 0 {
        if v & 1 != 0 {
            r |= mask & mask.wrapping_neg();
        }
        v >>= 1;
        mask &= mask - 1;
    }
    r
}

/// Gathers the bits of `v` at the places set in `mask`.
fn extract(v: u64, mut mask: u64) -> u64 {
    let (mut r, mut n) = (0, 0);
    while mask != 0 {
        r |= u64::from(v & mask & mask.wrapping_neg() != 0) << n;
        n += 1;
        mask &= mask - 1;
    }
    r
}

fn pdep<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let mask = vex_rm::<W>(ctx, i)?;
    ctx.set_reg(i, W::of(deposit(vvvv::<W>(ctx, i), mask)));
    Ok(())
}

fn pext<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let mask = vex_rm::<W>(ctx, i)?;
    ctx.set_reg(i, W::of(extract(vvvv::<W>(ctx, i), mask)));
    Ok(())
}

fn rorx<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = vex_rm::<W>(ctx, i)?;
    let n = i.imm as u32 & (W::BITS - 1);
    ctx.set_reg(i, W::of((v >> n) | v.checked_shl(W::BITS - n).unwrap_or(0)));
    Ok(())
}

const LOGICAL_LEFT: u8 = 0;
const LOGICAL_RIGHT: u8 = 1;
const ARITHMETIC_RIGHT: u8 = 2;

/// SHLX, SHRX, SARX: shifts without flags.
fn shiftx<const KIND: u8, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = vex_rm::<W>(ctx, i)?;
    let n = vvvv::<W>(ctx, i) & u64::from(W::BITS - 1);
    let r = match KIND {
        LOGICAL_LEFT => v << n,
        LOGICAL_RIGHT => v >> n,
        _ => (W::of(v).s() >> n) as u64,
    };
    ctx.set_reg(i, W::of(r));
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    same andn<> u32: VEX_Andn_r32_r32_rm32;
    same andn<> u64: VEX_Andn_r64_r64_rm64;
    same bextr<> u32: VEX_Bextr_r32_rm32_r32;
    same bextr<> u64: VEX_Bextr_r64_rm64_r64;
    same lowest<Blsi> u32: VEX_Blsi_r32_rm32;
    same lowest<Blsi> u64: VEX_Blsi_r64_rm64;
    same lowest<Blsmsk> u32: VEX_Blsmsk_r32_rm32;
    same lowest<Blsmsk> u64: VEX_Blsmsk_r64_rm64;
    same lowest<Blsr> u32: VEX_Blsr_r32_rm32;
    same lowest<Blsr> u64: VEX_Blsr_r64_rm64;
    same bzhi<> u32: VEX_Bzhi_r32_rm32_r32;
    same bzhi<> u64: VEX_Bzhi_r64_rm64_r64;
    same mulx<> u32: VEX_Mulx_r32_r32_rm32;
    same mulx<> u64: VEX_Mulx_r64_r64_rm64;
    same pdep<> u32: VEX_Pdep_r32_r32_rm32;
    same pdep<> u64: VEX_Pdep_r64_r64_rm64;
    same pext<> u32: VEX_Pext_r32_r32_rm32;
    same pext<> u64: VEX_Pext_r64_r64_rm64;
    same rorx<> u32: VEX_Rorx_r32_rm32_imm8;
    same rorx<> u64: VEX_Rorx_r64_rm64_imm8;
    same shiftx<LOGICAL_LEFT> u32: VEX_Shlx_r32_rm32_r32;
    same shiftx<LOGICAL_LEFT> u64: VEX_Shlx_r64_rm64_r64;
    same shiftx<LOGICAL_RIGHT> u32: VEX_Shrx_r32_rm32_r32;
    same shiftx<LOGICAL_RIGHT> u64: VEX_Shrx_r64_rm64_r64;
    same shiftx<ARITHMETIC_RIGHT> u32: VEX_Sarx_r32_rm32_r32;
    same shiftx<ARITHMETIC_RIGHT> u64: VEX_Sarx_r64_rm64_r64;
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_deposit_and_extract_are_inverse_on_the_mask() {
        assert_eq!(deposit(0b1011, 0xf0f0), 0x00b0);
        assert_eq!(extract(0xabcd, 0xf0f0), 0xac);
        let (mask, v) = (0x8000_0000_0f30_0005, 0x1a5);
        assert_eq!(extract(deposit(v, mask), mask), v & low_mask(mask.count_ones().into()));
    }
}
