//! Forms with a general-register operand: MOVD/MOVQ, MOVMSK, PMOVMSKB, PEXTR, PINSR, EXTRACTPS, and conversions.

use super::native::{float_from_gpr, float_to_gpr};
use super::{M32, M64};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::traits::Width;
use crate::isa::{Row, same};
use iced_x86::Code as C;

/// MOVD, MOVQ to XMM, zero-extended.
fn from_gpr<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.rm::<W>(i)?.u();
    ctx.set_xmm_reg(i, u128::from(v));
    Ok(())
}

/// MOVD, MOVQ from XMM.
fn to_gpr<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_reg(i) as u64;
    ctx.set_rm::<W>(i, W::of(v))
}

/// General register ← f(XMM): sign masks.
fn mask(ctx: &mut Ctx<'_>, i: &Insn, f: fn(u128) -> u64) -> Exec {
    ctx.sse_ready()?;
    let v = f(ctx.xmm_rm(i));
    ctx.set_reg::<u64>(i, v);
    Ok(())
}

const fn sign_bits<const LANES: u32>(v: u128) -> u64 {
    let (width, mut n, mut r) = (128 / LANES, 0, 0);
    while n < LANES {
        r |= ((v >> (width * (n + 1) - 1)) as u64 & 1) << n;
        n += 1;
    }
    r
}

/// Top bits of the sixteen bytes, eight at a time: the multiplication gathers one bit of each byte.
const fn byte_signs(v: u128) -> u64 {
    const GATHER: u64 = 0x0002_0408_1020_4081;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let low = (v as u64 & TOPS) >> 7;
    let high = ((v >> 64) as u64 & TOPS) >> 7;
    (low.wrapping_mul(GATHER << 7) >> 56) | (high.wrapping_mul(GATHER << 7) >> 56) << 8
}

/// PEXTRB and its kin, EXTRACTPS: element `imm` of the ModRM.reg operand to register (zero-extended) or memory.
fn extract<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let lane = i.imm as u32 % (128 / W::BITS);
    let v = W::of((ctx.xmm_reg(i) >> (lane * W::BITS)) as u64);
    if i.is_mem() {
        return ctx.store_operand(i, v);
    }
    ctx.set_rm::<u64>(i, v.u())
}

/// PEXTRW in its first encoding: from ModRM.rm to ModRM.reg.
fn extract_word(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = (ctx.xmm_rm(i) >> ((i.imm & 7) * 16)) as u16;
    ctx.set_reg::<u64>(i, u64::from(v));
    Ok(())
}

/// PINSRB and its kin: element `imm` from a register's low bits or from memory.
fn insert<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    // A byte operand's register number is that of the 32-bit register, never AH to BH.
    let v = if i.is_mem() { ctx.load_operand::<W>(i)?.u() } else { ctx.rm::<u64>(i)? & W::MASK };
    let at = i.imm as u32 % (128 / W::BITS) * W::BITS;
    let r = ctx.xmm_reg(i) & !(u128::from(W::MASK) << at) | u128::from(v) << at;
    ctx.set_xmm_reg(i, r);
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    same(C::Movd_xmm_rm32, from_gpr::<u32>),
    same(C::Movq_xmm_rm64, from_gpr::<u64>),
    same(C::Movd_rm32_xmm, to_gpr::<u32>),
    same(C::Movq_rm64_xmm, to_gpr::<u64>),
    same(C::Movmskps_r32_xmm, |c, i| mask(c, i, sign_bits::<4>)),
    same(C::Movmskps_r64_xmm, |c, i| mask(c, i, sign_bits::<4>)),
    same(C::Movmskpd_r32_xmm, |c, i| mask(c, i, sign_bits::<2>)),
    same(C::Movmskpd_r64_xmm, |c, i| mask(c, i, sign_bits::<2>)),
    same(C::Pmovmskb_r32_xmm, |c, i| mask(c, i, byte_signs)),
    same(C::Pmovmskb_r64_xmm, |c, i| mask(c, i, byte_signs)),
    same(C::Pextrb_r32m8_xmm_imm8, extract::<u8>),
    same(C::Pextrb_r64m8_xmm_imm8, extract::<u8>),
    same(C::Pextrw_r32m16_xmm_imm8, extract::<u16>),
    same(C::Pextrw_r64m16_xmm_imm8, extract::<u16>),
    same(C::Pextrd_rm32_xmm_imm8, extract::<u32>),
    same(C::Pextrq_rm64_xmm_imm8, extract::<u64>),
    same(C::Extractps_rm32_xmm_imm8, extract::<u32>),
    same(C::Extractps_r64m32_xmm_imm8, extract::<u32>),
    same(C::Pextrw_r32_xmm_imm8, extract_word),
    same(C::Pextrw_r64_xmm_imm8, extract_word),
    same(C::Pinsrb_xmm_r32m8_imm8, insert::<u8>),
    same(C::Pinsrb_xmm_r64m8_imm8, insert::<u8>),
    same(C::Pinsrw_xmm_r32m16_imm8, insert::<u16>),
    same(C::Pinsrw_xmm_r64m16_imm8, insert::<u16>),
    same(C::Pinsrd_xmm_rm32_imm8, insert::<u32>),
    same(C::Pinsrq_xmm_rm64_imm8, insert::<u64>),
    same(C::Cvtsi2ss_xmm_rm32, float_from_gpr::<u32>),
    same(C::Cvtsi2ss_xmm_rm64, float_from_gpr::<u64>),
    same(C::Cvtsi2sd_xmm_rm32, float_from_gpr::<u32>),
    same(C::Cvtsi2sd_xmm_rm64, float_from_gpr::<u64>),
    same(C::Cvttss2si_r32_xmmm32, float_to_gpr::<u32, M32>),
    same(C::Cvttss2si_r64_xmmm32, float_to_gpr::<u64, M32>),
    same(C::Cvttsd2si_r32_xmmm64, float_to_gpr::<u32, M64>),
    same(C::Cvttsd2si_r64_xmmm64, float_to_gpr::<u64, M64>),
    same(C::Cvtss2si_r32_xmmm32, float_to_gpr::<u32, M32>),
    same(C::Cvtss2si_r64_xmmm32, float_to_gpr::<u64, M32>),
    same(C::Cvtsd2si_r32_xmmm64, float_to_gpr::<u32, M64>),
    same(C::Cvtsd2si_r64_xmmm64, float_to_gpr::<u64, M64>),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_masks() {
        for v in
            [0, u128::MAX, 0x80 << 120, 0x80, 0x8000_0000_0000_0000_8070_6050_4030_2080, 0xdead_beef << 37]
        {
            assert_eq!(byte_signs(v), sign_bits::<16>(v), "{v:#x}");
        }
        assert_eq!(sign_bits::<4>(1 << 127 | 1 << 31), 0b1001);
        assert_eq!(sign_bits::<2>(1 << 127), 0b10);
    }
}
