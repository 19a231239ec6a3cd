//! Decimal adjustment: AAA, AAS, AAM, AAD, DAA, DAS, and the undocumented SALC.
//!
//! Undefined flags, as on Intel processors: OF is cleared, AAA and AAS set SF, ZF, PF from the resulting AL, AAM
//! clears AF and CF; AAD is described there.

use super::arith::{add, szp};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::isa::insn::Insn;
use crate::isa::traits::rows;
use crate::isa::{Row, row};
use crate::vcpu::flags::bit::{AF, ARITH, CF};
use crate::vcpu::gpr::RAX;
use iced_x86::Code;

fn ax(ctx: &Ctx<'_>) -> u16 {
    ctx.cpu.gpr[RAX] as u16
}

fn set_ax(ctx: &mut Ctx<'_>, ax: u16) {
    let r = &mut ctx.cpu.gpr[RAX];
    *r = (*r & !0xffff) | u64::from(ax);
}

/// Writes AX, and the flags as the manual has them from AL, with `cf_af` for CF and AF.
fn finish(ctx: &mut Ctx<'_>, ax: u16, cf_af: u64) -> Exec {
    set_ax(ctx, ax);
    ctx.cpu.flags.replace(ARITH, szp::<u8>(u64::from(ax & 0xff)) | cf_af);
    Ok(())
}

/// Does the low digit of `al` need an adjustment?
fn low_digit_over(ctx: &Ctx<'_>, al: u8) -> bool {
    al & 15 > 9 || ctx.cpu.flags.has(AF)
}

fn aaa(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let ax = ax(ctx);
    if low_digit_over(ctx, ax as u8) {
        finish(ctx, ax.wrapping_add(0x106) & 0xff0f, CF | AF)
    } else {
        finish(ctx, ax & 0xff0f, 0)
    }
}

fn aas(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let ax = ax(ctx);
    if low_digit_over(ctx, ax as u8) {
        finish(ctx, ax.wrapping_sub(0x106) & 0xff0f, CF | AF)
    } else {
        finish(ctx, ax & 0xff0f, 0)
    }
}

/// DAA (`SUB` false) and DAS.
fn decimal<const SUB: bool>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let old = ax(ctx);
    let al = old as u8;
    let cf = ctx.cpu.flags.has(CF);
    let step = |v: u8, n: u8| if SUB { v.overflowing_sub(n) } else { v.overflowing_add(n) };
    let (mut r, mut f) = (al, 0);
    if low_digit_over(ctx, al) {
        let carry;
        (r, carry) = step(r, 6);
        f = AF | if cf || carry { CF } else { 0 };
    }
    if al > 0x99 || cf {
        r = step(r, 0x60).0;
        f |= CF;
    } else if !SUB {
        f &= !CF;
    }
    finish(ctx, (old & 0xff00) | u16::from(r), f)
}
const ADD: bool = false;
const SUB: bool = true;

fn aam(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let (al, base) = (ax(ctx) as u8, i.imm as u8);
    if base == 0 {
        return Err(Exception::de());
    }
    finish(ctx, u16::from(al / base) << 8 | u16::from(al % base), 0)
}

/// AAD: OF, AF and CF (undefined) are those of the addition.
fn aad(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let [al, ah] = ax(ctx).to_le_bytes();
    let (r, f) = add::<u8>(al.into(), ah.wrapping_mul(i.imm as u8).into(), 0);
    set_ax(ctx, r as u16);
    ctx.cpu.flags.replace(ARITH, f);
    Ok(())
}

/// SALC: AL = CF ? 0xff : 0, no flag changed.
fn salc(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let v = if ctx.cpu.flags.has(CF) { 0xff } else { 0 };
    let r = &mut ctx.cpu.gpr[RAX];
    *r = (*r & !0xff) | v;
    Ok(())
}

fn daa(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    decimal::<ADD>(ctx, i)
}
fn das(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    decimal::<SUB>(ctx, i)
}

pub const ROWS: &[Row] = rows! {
    row aaa: Aaa;
    row aas: Aas;
    row aam: Aam_imm8;
    row aad: Aad_imm8;
    row daa: Daa;
    row das: Das;
    row salc: Salc;
};
