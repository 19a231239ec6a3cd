//! Bit instructions: BT, BTS, BTR, BTC, BSF, BSR, POPCNT, LZCNT, TZCNT, CRC32.
//!
//! Undefined flags: the BT family changes CF only; the others clear what the manual leaves undefined, but BSF and BSR
//! set PF from the result.

use super::alu::arith::pf;
use super::insn::Insn;
use super::traits::{Width, emitted, rows};
use super::{Row, lockable, locked, row, same};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::translate::special;
use crate::vcpu::cpuid::CpuModel;
use crate::vcpu::flags::bit::{ARITH, CF, PF, ZF};
use iced_x86::Code;

/// What is done with the bit selected: its new word from the old one and the bit's mask.
pub trait BitOp {
    const WRITES: bool;
    fn apply(word: u64, mask: u64) -> u64;
}
macro_rules! bit_ops {
    ($($name:ident, $writes:literal, |$w:ident, $m:ident| $e:expr;)*) => {$(
        pub struct $name;
        impl BitOp for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply($w: u64, $m: u64) -> u64 { $e }
        }
    )*};
}
bit_ops! {
    Bt, false, |w, _m| w;
    Bts, true, |w, m| w | m;
    Btr, true, |w, m| w & !m;
    Btc, true, |w, m| w ^ m;
}

/// Bit `bit` modulo the width, of the r/m operand itself.
#[inline(always)]
fn within<O: BitOp, W: Width>(ctx: &mut Ctx<'_>, i: &Insn, bit: u64) -> Exec {
    let n = bit & u64::from(W::BITS - 1);
    let apply = move |ctx: &mut Ctx<'_>, a: W| {
        ctx.cpu.flags.replace(CF, (a.u() >> n) & 1);
        W::of(O::apply(a.u(), 1 << n))
    };
    if O::WRITES {
        ctx.update_rm(i, apply)
    } else {
        ctx.with_rm(i, |ctx, a| {
            apply(ctx, a);
        })
    }
}

fn bit_imm<O: BitOp, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    within::<O, W>(ctx, i, i.imm)
}

/// The register form. A memory operand is a bit string: the signed bit offset reaches outside the operand.
fn bit_reg<O: BitOp, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let offset = ctx.reg::<W>(i);
    if !i.is_mem() {
        return within::<O, W>(ctx, i, offset.u());
    }
    let words = offset.s() >> W::BITS.trailing_zeros();
    let ea = ctx.ea(i).wrapping_add((words as u64).wrapping_mul(W::SIZE as u64)) & i.addr_mask;
    let n = offset.u() & u64::from(W::BITS - 1);
    let a = if O::WRITES { ctx.load_rmw::<W>(i.seg, ea)? } else { ctx.load::<W>(i.seg, ea)? }.u();
    if O::WRITES {
        ctx.store(i.seg, ea, W::of(O::apply(a, 1 << n)))?;
    }
    ctx.cpu.flags.replace(CF, (a >> n) & 1);
    Ok(())
}

/// BSF, and BSR with `REVERSE`. A zero source sets ZF and leaves the destination unchanged.
fn scan<const REVERSE: bool, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = ctx.rm::<W>(i)?.u();
    if v == 0 {
        ctx.cpu.flags.replace(ARITH, ZF | PF);
        return Ok(());
    }
    let n = u64::from(if REVERSE { 63 - v.leading_zeros() } else { v.trailing_zeros() });
    ctx.set_reg(i, W::of(n));
    ctx.cpu.flags.replace(ARITH, pf(n));
    Ok(())
}
const FORWARD: bool = false;
const REVERSE: bool = true;

/// LZCNT, TZCNT: CF for a zero source, ZF for a zero result. Models without them ignore the prefix: BSR, BSF.
#[inline(always)]
fn count_zeros<W: Width>(ctx: &mut Ctx<'_>, i: &Insn, count: impl FnOnce(u64) -> u32) -> Exec {
    let v = ctx.rm::<W>(i)?.u();
    let n = count(v);
    ctx.set_reg(i, W::of(n.into()));
    ctx.cpu.flags.replace(ARITH, u64::from(v == 0) | u64::from(n == 0) << 6);
    Ok(())
}

fn lzcnt<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    if !ctx.is_since(CpuModel::X86_64V2) {
        return scan::<REVERSE, W>(ctx, i);
    }
    count_zeros::<W>(ctx, i, |v| v.leading_zeros() - (64 - W::BITS))
}

fn tzcnt<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    if !ctx.is_since(CpuModel::X86_64V2) {
        return scan::<FORWARD, W>(ctx, i);
    }
    count_zeros::<W>(ctx, i, |v| v.trailing_zeros().min(W::BITS))
}

fn popcnt<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = ctx.rm::<W>(i)?.u();
    ctx.set_reg(i, W::of(v.count_ones().into()));
    ctx.cpu.flags.replace(ARITH, u64::from(v == 0) << 6);
    Ok(())
}

/// CRC-32C (polynomial 0x11EDC6F41, bit-reflected) of each byte.
static CRC32C: [u32; 256] = {
    let mut t = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut k) = (i as u32, 0);
        while k < 8 {
            c = (c >> 1) ^ if c & 1 != 0 { 0x82f6_3b78 } else { 0 };
            k += 1;
        }
        t[i] = c;
        i += 1;
    }
    t
};

/// CRC32 of a source of width `W`, accumulated in the destination; its upper half is cleared in every form.
fn crc32<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = ctx.rm::<W>(i)?.u();
    let mut crc = ctx.reg::<u32>(i);
    for b in v.to_le_bytes().into_iter().take(W::SIZE) {
        crc = (crc >> 8) ^ CRC32C[usize::from(crc as u8 ^ b)];
    }
    ctx.set_reg(i, crc);
    Ok(())
}

emitted! {
    strings = row, special::bit_string;
    locked_strings = lockable, special::bit_string;
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    strings bit_reg<Bt> 3: Bt_rm16_r16 Bt_rm32_r32 Bt_rm64_r64;
    same bit_imm<Bt> 3: Bt_rm16_imm8 Bt_rm32_imm8 Bt_rm64_imm8;
    locked_strings bit_reg<Bts> 3: Bts_rm16_r16 Bts_rm32_r32 Bts_rm64_r64;
    locked bit_imm<Bts> 3: Bts_rm16_imm8 Bts_rm32_imm8 Bts_rm64_imm8;
    locked_strings bit_reg<Btr> 3: Btr_rm16_r16 Btr_rm32_r32 Btr_rm64_r64;
    locked bit_imm<Btr> 3: Btr_rm16_imm8 Btr_rm32_imm8 Btr_rm64_imm8;
    locked_strings bit_reg<Btc> 3: Btc_rm16_r16 Btc_rm32_r32 Btc_rm64_r64;
    locked bit_imm<Btc> 3: Btc_rm16_imm8 Btc_rm32_imm8 Btc_rm64_imm8;
    same scan<FORWARD> 3: Bsf_r16_rm16 Bsf_r32_rm32 Bsf_r64_rm64;
    same scan<REVERSE> 3: Bsr_r16_rm16 Bsr_r32_rm32 Bsr_r64_rm64;
    same popcnt<> 3: Popcnt_r16_rm16 Popcnt_r32_rm32 Popcnt_r64_rm64;
    same lzcnt<> 3: Lzcnt_r16_rm16 Lzcnt_r32_rm32 Lzcnt_r64_rm64;
    same tzcnt<> 3: Tzcnt_r16_rm16 Tzcnt_r32_rm32 Tzcnt_r64_rm64;
    same crc32<> u8: Crc32_r32_rm8 Crc32_r64_rm8;
    same crc32<> u16: Crc32_r32_rm16;
    same crc32<> u32: Crc32_r32_rm32;
    same crc32<> u64: Crc32_r64_rm64;
};
