//! MMX arithmetic, run natively, and the conversions between MMX and XMM operands.

use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::sse::native::run_float;
use crate::isa::sse::{M64, M128};
use crate::isa::{Row, row, same};
use crate::jit::entry::{Uses, simd, simd_imm};
use crate::jit::thunk::Operands;
use iced_x86::Code as C;

/// MM ← op(MM, MM or m64).
fn op(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let rm = ctx.mm_src(i)?;
    binary(ctx, i, rm)
}

/// MM ← op(MM, MM or m32): the low unpacks.
fn op_m32(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let rm = if i.is_mem() { u64::from(ctx.load_operand::<u32>(i)?) } else { ctx.mm(i.rm) };
    binary(ctx, i, rm)
}

#[inline(always)]
fn binary(ctx: &mut Ctx<'_>, i: &Insn, rm: u64) -> Exec {
    let mut o = Operands { rm: u128::from(rm), reg: u128::from(ctx.mm(i.reg)), ..Operands::default() };
    simd(i.code, Uses::Nothing, &mut o);
    ctx.mmx_enter();
    ctx.set_mm(i.reg, o.reg as u64);
    Ok(())
}

/// MM ← op(MM, MM or m64, imm8).
fn op_imm(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let rm = u128::from(ctx.mm_src(i)?);
    let mut o = Operands { rm, reg: u128::from(ctx.mm(i.reg)), ..Operands::default() };
    simd_imm(i.code, i.imm as u8, Uses::Nothing, &mut o);
    ctx.mmx_enter();
    ctx.set_mm(i.reg, o.reg as u64);
    Ok(())
}

/// Shift of an MMX register by an immediate.
fn shift_imm(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let mut o = Operands { rm: u128::from(ctx.mm(i.rm)), ..Operands::default() };
    simd_imm(i.code, i.imm as u8, Uses::Nothing, &mut o);
    ctx.mmx_enter();
    ctx.set_mm(i.rm, o.rm as u64);
    Ok(())
}

/// CVTPI2PS, CVTPI2PD: XMM ← convert(MM or m64). From memory they leave the x87 state alone.
fn to_xmm(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    ctx.mmx_ready()?;
    let mut o = Operands { rm: u128::from(ctx.mm_src(i)?), reg: ctx.xmm_reg(i), ..Operands::default() };
    run_float::<false>(ctx, i, &mut o)?;
    if !i.is_mem() {
        ctx.mmx_enter();
    }
    ctx.set_xmm_reg(i, o.reg);
    Ok(())
}

/// CVTPS2PI and its kin: MM ← convert(XMM or memory).
fn from_xmm<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    ctx.mmx_ready()?;
    let mut o = Operands { rm: ctx.xmm_src::<M>(i)?, ..Operands::default() };
    run_float::<false>(ctx, i, &mut o)?;
    ctx.mmx_enter();
    ctx.set_mm(i.reg, o.reg as u64);
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row(C::Cvtpi2ps_xmm_mmm64, to_xmm),
    row(C::Cvtpi2pd_xmm_mmm64, to_xmm),
    row(C::Cvttps2pi_mm_xmmm64, from_xmm::<M64>),
    row(C::Cvttpd2pi_mm_xmmm128, from_xmm::<M128>),
    row(C::Cvtps2pi_mm_xmmm64, from_xmm::<M64>),
    row(C::Cvtpd2pi_mm_xmmm128, from_xmm::<M128>),
    same(C::Punpcklbw_mm_mmm32, op_m32),
    same(C::Punpcklwd_mm_mmm32, op_m32),
    same(C::Punpckldq_mm_mmm32, op_m32),
    same(C::Packsswb_mm_mmm64, op),
    same(C::Pcmpgtb_mm_mmm64, op),
    same(C::Pcmpgtw_mm_mmm64, op),
    same(C::Pcmpgtd_mm_mmm64, op),
    same(C::Packuswb_mm_mmm64, op),
    same(C::Punpckhbw_mm_mmm64, op),
    same(C::Punpckhwd_mm_mmm64, op),
    same(C::Punpckhdq_mm_mmm64, op),
    same(C::Packssdw_mm_mmm64, op),
    same(C::Pshufw_mm_mmm64_imm8, op_imm),
    same(C::Psrlw_mm_imm8, shift_imm),
    same(C::Psraw_mm_imm8, shift_imm),
    same(C::Psllw_mm_imm8, shift_imm),
    same(C::Psrld_mm_imm8, shift_imm),
    same(C::Psrad_mm_imm8, shift_imm),
    same(C::Pslld_mm_imm8, shift_imm),
    same(C::Psrlq_mm_imm8, shift_imm),
    same(C::Psllq_mm_imm8, shift_imm),
    same(C::Pcmpeqb_mm_mmm64, op),
    same(C::Pcmpeqw_mm_mmm64, op),
    same(C::Pcmpeqd_mm_mmm64, op),
    same(C::Psrlw_mm_mmm64, op),
    same(C::Psrld_mm_mmm64, op),
    same(C::Psrlq_mm_mmm64, op),
    same(C::Paddq_mm_mmm64, op),
    same(C::Pmullw_mm_mmm64, op),
    same(C::Psubusb_mm_mmm64, op),
    same(C::Psubusw_mm_mmm64, op),
    same(C::Pminub_mm_mmm64, op),
    same(C::Pand_mm_mmm64, op),
    same(C::Paddusb_mm_mmm64, op),
    same(C::Paddusw_mm_mmm64, op),
    same(C::Pmaxub_mm_mmm64, op),
    same(C::Pandn_mm_mmm64, op),
    same(C::Pavgb_mm_mmm64, op),
    same(C::Psraw_mm_mmm64, op),
    same(C::Psrad_mm_mmm64, op),
    same(C::Pavgw_mm_mmm64, op),
    same(C::Pmulhuw_mm_mmm64, op),
    same(C::Pmulhw_mm_mmm64, op),
    same(C::Psubsb_mm_mmm64, op),
    same(C::Psubsw_mm_mmm64, op),
    same(C::Pminsw_mm_mmm64, op),
    same(C::Por_mm_mmm64, op),
    same(C::Paddsb_mm_mmm64, op),
    same(C::Paddsw_mm_mmm64, op),
    same(C::Pmaxsw_mm_mmm64, op),
    same(C::Pxor_mm_mmm64, op),
    same(C::Psllw_mm_mmm64, op),
    same(C::Pslld_mm_mmm64, op),
    same(C::Psllq_mm_mmm64, op),
    same(C::Pmuludq_mm_mmm64, op),
    same(C::Pmaddwd_mm_mmm64, op),
    same(C::Psadbw_mm_mmm64, op),
    same(C::Psubb_mm_mmm64, op),
    same(C::Psubw_mm_mmm64, op),
    same(C::Psubd_mm_mmm64, op),
    same(C::Psubq_mm_mmm64, op),
    same(C::Paddb_mm_mmm64, op),
    same(C::Paddw_mm_mmm64, op),
    same(C::Paddd_mm_mmm64, op),
    same(C::Pshufb_mm_mmm64, op),
    same(C::Phaddw_mm_mmm64, op),
    same(C::Phaddd_mm_mmm64, op),
    same(C::Phaddsw_mm_mmm64, op),
    same(C::Pmaddubsw_mm_mmm64, op),
    same(C::Phsubw_mm_mmm64, op),
    same(C::Phsubd_mm_mmm64, op),
    same(C::Phsubsw_mm_mmm64, op),
    same(C::Psignb_mm_mmm64, op),
    same(C::Psignw_mm_mmm64, op),
    same(C::Psignd_mm_mmm64, op),
    same(C::Pmulhrsw_mm_mmm64, op),
    same(C::Pabsb_mm_mmm64, op),
    same(C::Pabsw_mm_mmm64, op),
    same(C::Pabsd_mm_mmm64, op),
    same(C::Palignr_mm_mmm64_imm8, op_imm),
];
