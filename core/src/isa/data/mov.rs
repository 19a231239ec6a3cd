//! MOV (general), MOVZX, MOVSX, MOVSXD, CMOVcc, LEA, XLAT, MOVBE, BSWAP, MOVNTI, and the CBW and CWD families.

use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::flagops::{cc::*, holds};
use crate::isa::insn::Insn;
use crate::isa::traits::{Width, emitted, rows};
use crate::isa::{Row, row, same};
use crate::translate::special;
use crate::vcpu::gpr::{RAX, RBX, RDX};
use iced_x86::Code;

fn rm_reg<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.put_rm(i, ctx.reg::<W>(i))
}

fn reg_rm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.with_rm(i, |ctx, v: W| ctx.set_reg(i, v))
}

fn rm_imm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.put_rm(i, W::of(i.imm))
}

/// Zero-extends a source of width `S`.
fn movzx<S: Width, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.with_rm(i, |ctx, v: S| ctx.set_reg(i, W::of(v.u())))
}

/// Sign-extends a source of width `S`.
fn movsx<S: Width, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.with_rm(i, |ctx, v: S| ctx.set_reg(i, W::of(v.s() as u64)))
}

/// CMOVcc: the source is read whatever the condition, and a 32-bit destination is zero-extended always.
fn cmov<const CC: u8, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.with_rm(i, |ctx, v: W| {
        let old = ctx.reg::<W>(i);
        ctx.set_reg(i, if holds::<CC>(ctx.cpu.flags) { v } else { old });
    })
}

fn lea<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let ea = ctx.ea(i);
    ctx.set_reg(i, W::of(ea));
    Ok(())
}

/// XLAT: AL = byte at seg:[rBX + AL].
fn xlat(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let al = ctx.cpu.gpr[RAX] & 0xff;
    let v: u8 = ctx.load(i.seg, ctx.cpu.gpr[RBX].wrapping_add(al) & i.addr_mask)?;
    u8::set_reg(ctx.cpu, RAX as u8, v);
    Ok(())
}

/// Reverses the bytes of a zero-extended value of width `W`.
#[inline(always)]
fn swap_bytes<W: Width>(v: W) -> W {
    W::of(v.u().swap_bytes() >> (64 - W::BITS))
}

fn movbe_load<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = ctx.rm::<W>(i)?;
    ctx.set_reg(i, swap_bytes(v));
    Ok(())
}

fn movbe_store<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.set_rm(i, swap_bytes(ctx.reg::<W>(i)))
}

/// BSWAP. With a 16-bit operand the result is undefined: zero, as Intel processors have it.
fn bswap<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = W::reg(ctx.cpu, i.rm);
    W::set_reg(ctx.cpu, i.rm, if W::BITS == 16 { W::of(0) } else { swap_bytes(v) });
    Ok(())
}

/// CBW, CWDE, CDQE: the lower half of the accumulator (width `S`) sign-extended to `W`.
fn extend<S: Width, W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let v = S::reg(ctx.cpu, RAX as u8).s();
    W::set_reg(ctx.cpu, RAX as u8, W::of(v as u64));
    Ok(())
}

/// CWD, CDQ, CQO: rDX is filled with the sign of rAX.
fn fill_sign<W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let v = W::reg(ctx.cpu, RAX as u8).s() >> 63;
    W::set_reg(ctx.cpu, RDX as u8, W::of(v as u64));
    Ok(())
}

emitted! {
    leas = row, special::lea;
    extends = row, special::extend;
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    same rm_reg<> 4: Mov_rm8_r8 Mov_rm16_r16 Mov_rm32_r32 Mov_rm64_r64;
    same reg_rm<> 4: Mov_r8_rm8 Mov_r16_rm16 Mov_r32_rm32 Mov_r64_rm64;
    same rm_imm<> 4: Mov_rm8_imm8 Mov_rm16_imm16 Mov_rm32_imm32 Mov_rm64_imm32;
    same rm_imm<> 4: Mov_r8_imm8 Mov_r16_imm16 Mov_r32_imm32 Mov_r64_imm64;
    same reg_rm<> 4: Mov_AL_moffs8 Mov_AX_moffs16 Mov_EAX_moffs32 Mov_RAX_moffs64;
    same rm_reg<> 4: Mov_moffs8_AL Mov_moffs16_AX Mov_moffs32_EAX Mov_moffs64_RAX;
    same rm_reg<> u32: Movnti_m32_r32;
    same rm_reg<> u64: Movnti_m64_r64;
    same movzx<u8> 3: Movzx_r16_rm8 Movzx_r32_rm8 Movzx_r64_rm8;
    same movzx<u16> 3: Movzx_r16_rm16 Movzx_r32_rm16 Movzx_r64_rm16;
    same movsx<u8> 3: Movsx_r16_rm8 Movsx_r32_rm8 Movsx_r64_rm8;
    same movsx<u16> 3: Movsx_r16_rm16 Movsx_r32_rm16 Movsx_r64_rm16;
    same movsx<u16> u16: Movsxd_r16_rm16;
    same movsx<u32> u32: Movsxd_r32_rm32;
    same movsx<u32> u64: Movsxd_r64_rm32;
    leas lea<> 3: Lea_r16_m Lea_r32_m Lea_r64_m;
    row xlat: Xlat_m8;
    same movbe_load<> 3: Movbe_r16_m16 Movbe_r32_m32 Movbe_r64_m64;
    same movbe_store<> 3: Movbe_m16_r16 Movbe_m32_r32 Movbe_m64_r64;
    row bswap<> u16: Bswap_r16;
    same bswap<> u32: Bswap_r32;
    same bswap<> u64: Bswap_r64;
    extends extend<u8> u16: Cbw;
    extends extend<u16> u32: Cwde;
    extends extend<u32> u64: Cdqe;
    extends fill_sign<> 3: Cwd Cdq Cqo;
    same cmov<O> 3: Cmovo_r16_rm16 Cmovo_r32_rm32 Cmovo_r64_rm64;
    same cmov<NO> 3: Cmovno_r16_rm16 Cmovno_r32_rm32 Cmovno_r64_rm64;
    same cmov<B> 3: Cmovb_r16_rm16 Cmovb_r32_rm32 Cmovb_r64_rm64;
    same cmov<AE> 3: Cmovae_r16_rm16 Cmovae_r32_rm32 Cmovae_r64_rm64;
    same cmov<E> 3: Cmove_r16_rm16 Cmove_r32_rm32 Cmove_r64_rm64;
    same cmov<NE> 3: Cmovne_r16_rm16 Cmovne_r32_rm32 Cmovne_r64_rm64;
    same cmov<BE> 3: Cmovbe_r16_rm16 Cmovbe_r32_rm32 Cmovbe_r64_rm64;
    same cmov<A> 3: Cmova_r16_rm16 Cmova_r32_rm32 Cmova_r64_rm64;
    same cmov<S> 3: Cmovs_r16_rm16 Cmovs_r32_rm32 Cmovs_r64_rm64;
    same cmov<NS> 3: Cmovns_r16_rm16 Cmovns_r32_rm32 Cmovns_r64_rm64;
    same cmov<P> 3: Cmovp_r16_rm16 Cmovp_r32_rm32 Cmovp_r64_rm64;
    same cmov<NP> 3: Cmovnp_r16_rm16 Cmovnp_r32_rm32 Cmovnp_r64_rm64;
    same cmov<L> 3: Cmovl_r16_rm16 Cmovl_r32_rm32 Cmovl_r64_rm64;
    same cmov<GE> 3: Cmovge_r16_rm16 Cmovge_r32_rm32 Cmovge_r64_rm64;
    same cmov<LE> 3: Cmovle_r16_rm16 Cmovle_r32_rm32 Cmovle_r64_rm64;
    same cmov<G> 3: Cmovg_r16_rm16 Cmovg_r32_rm32 Cmovg_r64_rm64;
};
