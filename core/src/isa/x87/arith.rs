//! FADD to FDIVR in all forms, FSQRT, FRNDINT, FSCALE, FABS, FCHS.

use super::raw;
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, same};
use crate::mem::Pod;
use crate::vcpu::fpu::{INDEFINITE, sw};
use iced_x86::Code as C;

const ADD: u16 = C::Fadd_st0_sti as u16;
const MUL: u16 = C::Fmul_st0_sti as u16;
const SUB: u16 = C::Fsub_st0_sti as u16;
const SUBR: u16 = C::Fsubr_st0_sti as u16;
const DIV: u16 = C::Fdiv_st0_sti as u16;
const DIVR: u16 = C::Fdivr_st0_sti as u16;

/// `d` ← ST(`d`) op ST(`s`), natively as form `op` with ST(0) and ST(1).
#[inline(always)]
fn registers(ctx: &mut Ctx<'_>, i: &Insn, op: u16, d: u8, s: u8, pop: bool) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let f = &ctx.cpu.fpu;
    if f.is_empty(d) || f.is_empty(s) {
        if ctx.x87_underflow() {
            ctx.cpu.fpu.set_st(d, INDEFINITE);
            if pop {
                ctx.cpu.fpu.pop();
            }
        }
        return Ok(());
    }
    let o = ctx.x87_native(op, f.st(d), f.st(s), 0);
    if ctx.x87_complete(&o) {
        ctx.cpu.fpu.set_st(d, raw(o.st0));
        if pop {
            ctx.cpu.fpu.pop();
        }
    }
    Ok(())
}

/// ST(0) ← ST(0) op ST(i).
fn to_top<const OP: u16>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    registers(ctx, i, OP, 0, i.rm, false)
}
/// ST(i) ← ST(i) op ST(0).
fn to_sti<const OP: u16>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    registers(ctx, i, OP, i.rm, 0, false)
}
/// The same, and pop.
fn to_sti_pop<const OP: u16>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    registers(ctx, i, OP, i.rm, 0, true)
}

/// ST(0) ← ST(0) op memory.
fn memory<T: Pod + Into<u128>>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    let m: T = ctx.load_operand(i)?;
    ctx.x87_note(i);
    if ctx.cpu.fpu.is_empty(0) {
        if ctx.x87_underflow() {
            ctx.cpu.fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let o = ctx.x87_native(i.code, ctx.cpu.fpu.st(0), (0, 0), m.into());
    if ctx.x87_complete(&o) {
        ctx.cpu.fpu.set_st(0, raw(o.st0));
    }
    Ok(())
}

/// ST(0) ← op(ST(0)).
fn unary(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    if ctx.cpu.fpu.is_empty(0) {
        if ctx.x87_underflow() {
            ctx.cpu.fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let o = ctx.x87_native(i.code, ctx.cpu.fpu.st(0), (0, 0), 0);
    if ctx.x87_complete(&o) {
        ctx.cpu.fpu.set_st(0, raw(o.st0));
    }
    Ok(())
}

/// FSCALE: ST(0) ← ST(0) * 2^trunc(ST(1)).
fn fscale(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    registers(ctx, i, C::Fscale as u16, 0, 1, false)
}

/// FABS, FCHS.
fn sign(ctx: &mut Ctx<'_>, i: &Insn, f: fn(u16) -> u16) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    if ctx.cpu.fpu.is_empty(0) {
        if ctx.x87_underflow() {
            ctx.cpu.fpu.set_st(0, INDEFINITE);
        }
        return Ok(());
    }
    let (sig, se) = ctx.cpu.fpu.st(0);
    ctx.cpu.fpu.set_st(0, (sig, f(se)));
    ctx.cpu.fpu.set_cc(sw::C1, 0);
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    same(C::Fadd_st0_sti, to_top::<ADD>),
    same(C::Fmul_st0_sti, to_top::<MUL>),
    same(C::Fsub_st0_sti, to_top::<SUB>),
    same(C::Fsubr_st0_sti, to_top::<SUBR>),
    same(C::Fdiv_st0_sti, to_top::<DIV>),
    same(C::Fdivr_st0_sti, to_top::<DIVR>),
    same(C::Fadd_sti_st0, to_sti::<ADD>),
    same(C::Fmul_sti_st0, to_sti::<MUL>),
    same(C::Fsub_sti_st0, to_sti::<SUB>),
    same(C::Fsubr_sti_st0, to_sti::<SUBR>),
    same(C::Fdiv_sti_st0, to_sti::<DIV>),
    same(C::Fdivr_sti_st0, to_sti::<DIVR>),
    same(C::Faddp_sti_st0, to_sti_pop::<ADD>),
    same(C::Fmulp_sti_st0, to_sti_pop::<MUL>),
    same(C::Fsubp_sti_st0, to_sti_pop::<SUB>),
    same(C::Fsubrp_sti_st0, to_sti_pop::<SUBR>),
    same(C::Fdivp_sti_st0, to_sti_pop::<DIV>),
    same(C::Fdivrp_sti_st0, to_sti_pop::<DIVR>),
    same(C::Fadd_m32fp, memory::<u32>),
    same(C::Fmul_m32fp, memory::<u32>),
    same(C::Fsub_m32fp, memory::<u32>),
    same(C::Fsubr_m32fp, memory::<u32>),
    same(C::Fdiv_m32fp, memory::<u32>),
    same(C::Fdivr_m32fp, memory::<u32>),
    same(C::Fadd_m64fp, memory::<u64>),
    same(C::Fmul_m64fp, memory::<u64>),
    same(C::Fsub_m64fp, memory::<u64>),
    same(C::Fsubr_m64fp, memory::<u64>),
    same(C::Fdiv_m64fp, memory::<u64>),
    same(C::Fdivr_m64fp, memory::<u64>),
    same(C::Fiadd_m32int, memory::<u32>),
    same(C::Fimul_m32int, memory::<u32>),
    same(C::Fisub_m32int, memory::<u32>),
    same(C::Fisubr_m32int, memory::<u32>),
    same(C::Fidiv_m32int, memory::<u32>),
    same(C::Fidivr_m32int, memory::<u32>),
    same(C::Fiadd_m16int, memory::<u16>),
    same(C::Fimul_m16int, memory::<u16>),
    same(C::Fisub_m16int, memory::<u16>),
    same(C::Fisubr_m16int, memory::<u16>),
    same(C::Fidiv_m16int, memory::<u16>),
    same(C::Fidivr_m16int, memory::<u16>),
    same(C::Fsqrt, unary),
    same(C::Frndint, unary),
    same(C::Fscale, fscale),
    same(C::Fabs, |c, i| sign(c, i, |se| se & 0x7fff)),
    same(C::Fchs, |c, i| sign(c, i, |se| se ^ 0x8000)),
];
