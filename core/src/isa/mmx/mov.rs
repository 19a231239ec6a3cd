//! MMX data movement, EMMS, and the element accesses between MMX and general registers.

use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::sse::mov::store_masked;
use crate::isa::traits::Width;
use crate::isa::{Row, row, same};
use iced_x86::Code as C;

/// MOVD, MOVQ mm, r/m.
fn from_gpr<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let v = ctx.rm::<W>(i)?.u();
    ctx.mmx_enter();
    ctx.set_mm(i.reg, v);
    Ok(())
}

/// MOVD, MOVQ r/m, mm.
fn to_gpr<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let v = ctx.mm(i.reg);
    ctx.set_rm::<W>(i, W::of(v))?;
    ctx.mmx_enter();
    Ok(())
}

/// MOVQ mm, mm/m64.
fn load(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let v = ctx.mm_src(i)?;
    ctx.mmx_enter();
    ctx.set_mm(i.reg, v);
    Ok(())
}

/// MOVQ mm/m64, mm; MOVNTQ.
fn store(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let v = ctx.mm(i.reg);
    if i.is_mem() {
        ctx.store_operand(i, v)?;
    } else {
        ctx.set_mm(i.rm, v);
    }
    ctx.mmx_enter();
    Ok(())
}

fn movq2dq(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    ctx.mmx_ready()?;
    let v = ctx.mm(i.rm);
    ctx.mmx_enter();
    ctx.set_xmm_reg(i, u128::from(v));
    Ok(())
}

fn movdq2q(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    ctx.mmx_ready()?;
    let v = ctx.xmm_rm(i) as u64;
    ctx.mmx_enter();
    ctx.set_mm(i.reg, v);
    Ok(())
}

fn pmovmskb(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let v = ctx.mm(i.rm).to_le_bytes();
    ctx.mmx_enter();
    let mask = (0..).zip(v).fold(0, |r, (n, b)| r | u64::from(b >> 7) << n);
    ctx.set_reg::<u64>(i, mask);
    Ok(())
}

fn pextrw(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let v = ctx.mm(i.rm) >> ((i.imm & 3) * 16) & 0xffff;
    ctx.mmx_enter();
    ctx.set_reg::<u64>(i, v);
    Ok(())
}

fn pinsrw(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let v = u64::from(ctx.rm::<u16>(i)?);
    let at = (i.imm & 3) * 16;
    let r = ctx.mm(i.reg) & !(0xffff << at) | v << at;
    ctx.mmx_enter();
    ctx.set_mm(i.reg, r);
    Ok(())
}

fn maskmovq(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    let (data, mask) = (ctx.mm(i.reg), ctx.mm(i.rm));
    store_masked(ctx, i, &data.to_le_bytes(), &mask.to_le_bytes())?;
    ctx.mmx_enter();
    Ok(())
}

/// EMMS: all registers empty, TOP = 0.
fn emms(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.mmx_ready()?;
    ctx.cpu.fpu.set_top(0);
    ctx.cpu.fpu.ftw = 0;
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    same(C::Movd_mm_rm32, from_gpr::<u32>),
    same(C::Movq_mm_rm64, from_gpr::<u64>),
    same(C::Movd_rm32_mm, to_gpr::<u32>),
    same(C::Movq_rm64_mm, to_gpr::<u64>),
    same(C::Movq_mm_mmm64, load),
    same(C::Movq_mmm64_mm, store),
    same(C::Movntq_m64_mm, store),
    same(C::Movq2dq_xmm_mm, movq2dq),
    same(C::Movdq2q_mm_xmm, movdq2q),
    same(C::Pmovmskb_r32_mm, pmovmskb),
    same(C::Pmovmskb_r64_mm, pmovmskb),
    same(C::Pextrw_r32_mm_imm8, pextrw),
    same(C::Pextrw_r64_mm_imm8, pextrw),
    same(C::Pinsrw_mm_r32m16_imm8, pinsrw),
    same(C::Pinsrw_mm_r64m16_imm8, pinsrw),
    row(C::Maskmovq_rDI_mm_mm, maskmovq),
    same(C::Emms, emms),
];
