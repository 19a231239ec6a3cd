//! FCOM, FUCOM, FICOM, FTST, FCOMI, FUCOMI and their popping forms; FXAM.

use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, row, same};
use crate::mem::Pod;
use crate::vcpu::flags::bit;
use crate::vcpu::fpu::sw;
use iced_x86::Code as C;

const COM: u16 = C::Fcom_st0_sti as u16;
const UCOM: u16 = C::Fucom_st0_sti as u16;
const COMI: u16 = C::Fcomi_st0_sti as u16;
const UCOMI: u16 = C::Fucomi_st0_sti as u16;

fn pop(ctx: &mut Ctx<'_>, times: u8) {
    for _ in 0..times {
        ctx.cpu.fpu.pop();
    }
}

/// An empty operand: unordered, if invalid operations are masked.
fn unordered(ctx: &mut Ctx<'_>, pops: u8) {
    if ctx.x87_underflow() {
        ctx.cpu.fpu.set_cc(sw::CC, sw::C0 | sw::C2 | sw::C3);
        pop(ctx, pops);
    }
}

/// Compares ST(0) with ST(`s`) or `mem` as form `op` does, into the condition codes.
#[inline(always)]
fn to_codes(ctx: &mut Ctx<'_>, op: u16, s: u8, mem: u128, pops: u8) {
    let f = &ctx.cpu.fpu;
    if f.is_empty(0) || f.is_empty(s) {
        return unordered(ctx, pops);
    }
    let o = ctx.x87_native(op, f.st(0), f.st(s), mem);
    if ctx.x87_complete(&o) {
        ctx.cpu.fpu.set_cc(sw::CC, o.sw);
        pop(ctx, pops);
    }
}

fn registers<const OP: u16, const POPS: u8>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    to_codes(ctx, OP, i.rm, 0, POPS);
    Ok(())
}

/// FCOMPP, FUCOMPP.
fn pop_both<const OP: u16>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    to_codes(ctx, OP, 1, 0, 2);
    Ok(())
}

fn memory<T: Pod + Into<u128>, const OP: u16, const POPS: u8>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    let m: T = ctx.load_operand(i)?;
    ctx.x87_note(i);
    to_codes(ctx, OP, 0, m.into(), POPS);
    Ok(())
}

fn ftst(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    to_codes(ctx, C::Ftst as u16, 0, 0, 0);
    Ok(())
}

/// FCOMI, FUCOMI: the result goes to ZF, PF, CF; OF, SF, AF are cleared; the condition codes stay.
fn to_flags<const OP: u16, const POPS: u8>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let f = &ctx.cpu.fpu;
    if f.is_empty(0) || f.is_empty(i.rm) {
        if ctx.x87_underflow() {
            ctx.cpu.flags.replace(bit::ARITH, bit::ZF | bit::PF | bit::CF);
            pop(ctx, POPS);
        }
        return Ok(());
    }
    let (codes, o) = (f.fsw, ctx.x87_native(OP, f.st(0), f.st(i.rm), 0));
    let written = ctx.x87_complete(&o);
    ctx.cpu.fpu.set_cc(sw::C1, codes);
    if written {
        ctx.cpu.flags.replace(bit::ARITH, o.flags & (bit::ZF | bit::PF | bit::CF));
        pop(ctx, POPS);
    }
    Ok(())
}

/// FXAM: class of ST(0) in C3, C2, C0 and its sign in C1; never an exception.
fn fxam(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    ctx.x87_note(i);
    let f = &mut ctx.cpu.fpu;
    let (sig, se) = f.st(0);
    let class = match se & 0x7fff {
        _ if f.is_empty(0) => sw::C3 | sw::C0,
        0 if sig == 0 => sw::C3,
        0 => sw::C3 | sw::C2,
        // Unnormals, pseudo-NaNs and pseudo-infinities are unsupported.
        _ if sig >> 63 == 0 => 0,
        0x7fff if sig << 1 == 0 => sw::C2 | sw::C0,
        0x7fff => sw::C0,
        _ => sw::C2,
    };
    let sign = if se & 0x8000 != 0 { sw::C1 } else { 0 };
    f.set_cc(sw::CC, class | sign);
    Ok(())
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    same(C::Fcom_st0_sti, registers::<COM, 0>),
    row(C::Fcom_st0_sti_DCD0, registers::<COM, 0>),
    same(C::Fcomp_st0_sti, registers::<COM, 1>),
    row(C::Fcomp_st0_sti_DCD8, registers::<COM, 1>),
    row(C::Fcomp_st0_sti_DED0, registers::<COM, 1>),
    same(C::Fucom_st0_sti, registers::<UCOM, 0>),
    same(C::Fucomp_st0_sti, registers::<UCOM, 1>),
    same(C::Fcompp, pop_both::<COM>),
    same(C::Fucompp, pop_both::<UCOM>),
    same(C::Fcom_m32fp, memory::<u32, { C::Fcom_m32fp as u16 }, 0>),
    same(C::Fcomp_m32fp, memory::<u32, { C::Fcom_m32fp as u16 }, 1>),
    same(C::Fcom_m64fp, memory::<u64, { C::Fcom_m64fp as u16 }, 0>),
    same(C::Fcomp_m64fp, memory::<u64, { C::Fcom_m64fp as u16 }, 1>),
    same(C::Ficom_m32int, memory::<u32, { C::Ficom_m32int as u16 }, 0>),
    same(C::Ficomp_m32int, memory::<u32, { C::Ficom_m32int as u16 }, 1>),
    same(C::Ficom_m16int, memory::<u16, { C::Ficom_m16int as u16 }, 0>),
    same(C::Ficomp_m16int, memory::<u16, { C::Ficom_m16int as u16 }, 1>),
    same(C::Ftst, ftst),
    same(C::Fcomi_st0_sti, to_flags::<COMI, 0>),
    same(C::Fcomip_st0_sti, to_flags::<COMI, 1>),
    same(C::Fucomi_st0_sti, to_flags::<UCOMI, 0>),
    same(C::Fucomip_st0_sti, to_flags::<UCOMI, 1>),
    same(C::Fxam, fxam),
];
