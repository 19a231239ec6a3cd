//! Data movement between XMM registers and memory. Non-temporal hints mean nothing here.

use super::{M32, M64, M128, U128};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, aligned, row, same};
use crate::mem::Pod;
use crate::mmu::Access;
use crate::vcpu::gpr;
use iced_x86::Code as C;

const LOW: u128 = u64::MAX as u128;
const LOW32: u128 = u32::MAX as u128;

/// MOVAPS, MOVUPS and the like: XMM ← XMM or memory, all 128 bits (or zero-extended).
fn load<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_src::<M>(i)?;
    ctx.set_xmm_reg(i, v);
    Ok(())
}

/// The same from XMM to XMM or memory.
fn store<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_reg(i);
    if !i.is_mem() {
        ctx.set_xmm_rm(i, v);
        return Ok(());
    }
    if M == M128 { ctx.store_aligned(i, v) } else { ctx.store_operand(i, v) }
}

/// Replaces the bits of `old` in `mask` by those of `new`.
const fn merge(old: u128, new: u128, mask: u128) -> u128 {
    old & !mask | new & mask
}

/// MOVSS, MOVSD: a load zero-extends, a register move keeps the upper bits.
fn scalar_load<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_src::<M>(i)?;
    let mask = if M == M32 { LOW32 } else { LOW };
    let v = if i.is_mem() { v } else { merge(ctx.xmm_reg(i), v, mask) };
    ctx.set_xmm_reg(i, v);
    Ok(())
}

fn scalar_store<T: Pod>(ctx: &mut Ctx<'_>, i: &Insn, mask: u128, narrow: fn(u128) -> T) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_reg(i);
    if i.is_mem() {
        return ctx.store_operand(i, narrow(v));
    }
    let v = merge(ctx.xmm_rm(i), v, mask);
    ctx.set_xmm_rm(i, v);
    Ok(())
}

/// MOVQ xmm, xmm/m64 zero-extends both ways.
fn movq_load(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_src::<M64>(i)? & LOW;
    ctx.set_xmm_reg(i, v);
    Ok(())
}

fn movq_store(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_reg(i) & LOW;
    if i.is_mem() {
        return ctx.store_operand(i, v as u64);
    }
    ctx.set_xmm_rm(i, v);
    Ok(())
}

/// MOVLPS, MOVLPD, MOVHPS, MOVHPD from memory; MOVHLPS and MOVLHPS.
fn half(ctx: &mut Ctx<'_>, i: &Insn, f: fn(u128, u128) -> u128) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_src::<M64>(i)?;
    let r = f(ctx.xmm_reg(i), v);
    ctx.set_xmm_reg(i, r);
    Ok(())
}

fn store_low(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_reg(i) as u64;
    ctx.store_operand(i, v)
}

fn store_high(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = (ctx.xmm_reg(i) >> 64) as u64;
    ctx.store_operand(i, v)
}

/// MOVSLDUP, MOVSHDUP, MOVDDUP.
fn duplicate<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn, f: fn(u128) -> u128) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_src::<M>(i)?;
    ctx.set_xmm_reg(i, f(v));
    Ok(())
}

const EVEN: u128 = 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff;

/// MASKMOVDQU: stores the bytes whose mask byte has its top bit set. The whole 16 bytes are checked first, so that
/// a fault leaves memory unchanged; a mask of zero touches nothing.
fn maskmovdqu(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let (data, mask) = (ctx.xmm_reg(i), ctx.xmm_rm(i));
    store_masked(ctx, i, &data.to_le_bytes(), &mask.to_le_bytes())
}

/// Stores the selected bytes of `data` at DS:(E|R)DI. Also MASKMOVQ's.
pub fn store_masked(ctx: &mut Ctx<'_>, i: &Insn, data: &[u8], mask: &[u8]) -> Exec {
    let at = ctx.cpu.gpr[gpr::RDI];
    let selected =
        || (0..).zip(data.iter().zip(mask)).filter(|(_, (_, m))| **m & 0x80 != 0).map(|(n, (d, _))| (n, *d));
    for (n, _) in selected() {
        let off = at.wrapping_add(n) & i.addr_mask;
        ctx.probe(i.seg, off, 1, Access::Write)?;
    }
    for (n, byte) in selected() {
        let off = at.wrapping_add(n) & i.addr_mask;
        ctx.store::<u8>(i.seg, off, byte)?;
    }
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    aligned(C::Movaps_xmm_xmmm128, load::<M128>),
    aligned(C::Movapd_xmm_xmmm128, load::<M128>),
    aligned(C::Movdqa_xmm_xmmm128, load::<M128>),
    aligned(C::Movntdqa_xmm_m128, load::<M128>),
    same(C::Movups_xmm_xmmm128, load::<U128>),
    same(C::Movupd_xmm_xmmm128, load::<U128>),
    same(C::Movdqu_xmm_xmmm128, load::<U128>),
    same(C::Lddqu_xmm_m128, load::<U128>),
    aligned(C::Movaps_xmmm128_xmm, store::<M128>),
    aligned(C::Movapd_xmmm128_xmm, store::<M128>),
    aligned(C::Movdqa_xmmm128_xmm, store::<M128>),
    aligned(C::Movntps_m128_xmm, store::<M128>),
    aligned(C::Movntpd_m128_xmm, store::<M128>),
    aligned(C::Movntdq_m128_xmm, store::<M128>),
    same(C::Movups_xmmm128_xmm, store::<U128>),
    same(C::Movupd_xmmm128_xmm, store::<U128>),
    same(C::Movdqu_xmmm128_xmm, store::<U128>),
    same(C::Movss_xmm_xmmm32, scalar_load::<M32>),
    same(C::Movsd_xmm_xmmm64, scalar_load::<M64>),
    same(C::Movss_xmmm32_xmm, |c, i| scalar_store(c, i, LOW32, |v| v as u32)),
    same(C::Movsd_xmmm64_xmm, |c, i| scalar_store(c, i, LOW, |v| v as u64)),
    same(C::Movq_xmm_xmmm64, movq_load),
    same(C::Movq_xmmm64_xmm, movq_store),
    same(C::Movlps_xmm_m64, |c, i| half(c, i, |d, s| merge(d, s, LOW))),
    same(C::Movlpd_xmm_m64, |c, i| half(c, i, |d, s| merge(d, s, LOW))),
    same(C::Movhps_xmm_m64, |c, i| half(c, i, |d, s| merge(d, s << 64, !LOW))),
    same(C::Movhpd_xmm_m64, |c, i| half(c, i, |d, s| merge(d, s << 64, !LOW))),
    same(C::Movlhps_xmm_xmm, |c, i| half(c, i, |d, s| merge(d, s << 64, !LOW))),
    same(C::Movhlps_xmm_xmm, |c, i| half(c, i, |d, s| merge(d, s >> 64, LOW))),
    same(C::Movlps_m64_xmm, store_low),
    same(C::Movlpd_m64_xmm, store_low),
    same(C::Movhps_m64_xmm, store_high),
    same(C::Movhpd_m64_xmm, store_high),
    aligned(C::Movsldup_xmm_xmmm128, |c, i| duplicate::<M128>(c, i, |v| v & EVEN | (v & EVEN) << 32)),
    aligned(C::Movshdup_xmm_xmmm128, |c, i| duplicate::<M128>(c, i, |v| v & !EVEN | (v & !EVEN) >> 32)),
    same(C::Movddup_xmm_xmmm64, |c, i| duplicate::<M64>(c, i, |v| v & LOW | v << 64)),
    row(C::Maskmovdqu_rDI_xmm_xmm, maskmovdqu),
];
