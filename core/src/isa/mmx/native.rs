//! MMX arithmetic, run natively, and the conversions between MMX and XMM operands.

use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::sse::native::run_float;
use crate::isa::sse::{M64, M128};
use crate::isa::{Row, row};
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
    row(C::Punpcklbw_mm_mmm32, op_m32),
    row(C::Punpcklwd_mm_mmm32, op_m32),
    row(C::Punpckldq_mm_mmm32, op_m32),
    row(C::Packsswb_mm_mmm64, op),
    row(C::Pcmpgtb_mm_mmm64, op),
    row(C::Pcmpgtw_mm_mmm64, op),
    row(C::Pcmpgtd_mm_mmm64, op),
    row(C::Packuswb_mm_mmm64, op),
    row(C::Punpckhbw_mm_mmm64, op),
    row(C::Punpckhwd_mm_mmm64, op),
    row(C::Punpckhdq_mm_mmm64, op),
    row(C::Packssdw_mm_mmm64, op),
    row(C::Pshufw_mm_mmm64_imm8, op_imm),
    row(C::Psrlw_mm_imm8, shift_imm),
    row(C::Psraw_mm_imm8, shift_imm),
    row(C::Psllw_mm_imm8, shift_imm),
    row(C::Psrld_mm_imm8, shift_imm),
    row(C::Psrad_mm_imm8, shift_imm),
    row(C::Pslld_mm_imm8, shift_imm),
    row(C::Psrlq_mm_imm8, shift_imm),
    row(C::Psllq_mm_imm8, shift_imm),
    row(C::Pcmpeqb_mm_mmm64, op),
    row(C::Pcmpeqw_mm_mmm64, op),
    row(C::Pcmpeqd_mm_mmm64, op),
    row(C::Psrlw_mm_mmm64, op),
    row(C::Psrld_mm_mmm64, op),
    row(C::Psrlq_mm_mmm64, op),
    row(C::Paddq_mm_mmm64, op),
    row(C::Pmullw_mm_mmm64, op),
    row(C::Psubusb_mm_mmm64, op),
    row(C::Psubusw_mm_mmm64, op),
    row(C::Pminub_mm_mmm64, op),
    row(C::Pand_mm_mmm64, op),
    row(C::Paddusb_mm_mmm64, op),
    row(C::Paddusw_mm_mmm64, op),
    row(C::Pmaxub_mm_mmm64, op),
    row(C::Pandn_mm_mmm64, op),
    row(C::Pavgb_mm_mmm64, op),
    row(C::Psraw_mm_mmm64, op),
    row(C::Psrad_mm_mmm64, op),
    row(C::Pavgw_mm_mmm64, op),
    row(C::Pmulhuw_mm_mmm64, op),
    row(C::Pmulhw_mm_mmm64, op),
    row(C::Psubsb_mm_mmm64, op),
    row(C::Psubsw_mm_mmm64, op),
    row(C::Pminsw_mm_mmm64, op),
    row(C::Por_mm_mmm64, op),
    row(C::Paddsb_mm_mmm64, op),
    row(C::Paddsw_mm_mmm64, op),
    row(C::Pmaxsw_mm_mmm64, op),
    row(C::Pxor_mm_mmm64, op),
    row(C::Psllw_mm_mmm64, op),
    row(C::Pslld_mm_mmm64, op),
    row(C::Psllq_mm_mmm64, op),
    row(C::Pmuludq_mm_mmm64, op),
    row(C::Pmaddwd_mm_mmm64, op),
    row(C::Psadbw_mm_mmm64, op),
    row(C::Psubb_mm_mmm64, op),
    row(C::Psubw_mm_mmm64, op),
    row(C::Psubd_mm_mmm64, op),
    row(C::Psubq_mm_mmm64, op),
    row(C::Paddb_mm_mmm64, op),
    row(C::Paddw_mm_mmm64, op),
    row(C::Paddd_mm_mmm64, op),
    row(C::Pshufb_mm_mmm64, op),
    row(C::Phaddw_mm_mmm64, op),
    row(C::Phaddd_mm_mmm64, op),
    row(C::Phaddsw_mm_mmm64, op),
    row(C::Pmaddubsw_mm_mmm64, op),
    row(C::Phsubw_mm_mmm64, op),
    row(C::Phsubd_mm_mmm64, op),
    row(C::Phsubsw_mm_mmm64, op),
    row(C::Psignb_mm_mmm64, op),
    row(C::Psignw_mm_mmm64, op),
    row(C::Psignd_mm_mmm64, op),
    row(C::Pmulhrsw_mm_mmm64, op),
    row(C::Pabsb_mm_mmm64, op),
    row(C::Pabsw_mm_mmm64, op),
    row(C::Pabsd_mm_mmm64, op),
    row(C::Palignr_mm_mmm64_imm8, op_imm),
];
