//! Control and status: FNINIT, FNCLEX, FLDCW, FNSTCW, FNSTSW, FWAIT, and the no-operations left over from the 8087
//! and 80287. The FN forms do not wait for a pending exception.

use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::isa::insn::Insn;
use crate::isa::{Row, row, same};
use crate::translate::x87 as translate;
use crate::vcpu::fpu::sw;
use crate::vcpu::{cr0, gpr};
use iced_x86::Code as C;

/// A control word as the register holds it: reserved bits read as 0, bit 6 as 1.
pub const fn control_word(v: u16) -> u16 {
    v & 0x1f3f | 0x40
}

fn fninit(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.x87_available()?;
    ctx.cpu.fpu.init();
    Ok(())
}

fn fnclex(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.x87_available()?;
    ctx.cpu.fpu.fsw &= !(sw::FLAGS | sw::SF | sw::ES | sw::B);
    Ok(())
}

fn fldcw(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_ready()?;
    let v: u16 = ctx.load_operand(i)?;
    ctx.cpu.fpu.fcw = control_word(v);
    ctx.cpu.fpu.summarize();
    Ok(())
}

fn fnstcw(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_available()?;
    let v = ctx.cpu.fpu.fcw;
    ctx.store_operand(i, v)
}

fn fnstsw(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.x87_available()?;
    let v = ctx.cpu.fpu.fsw;
    ctx.store_operand(i, v)
}

fn fnstsw_ax(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.x87_available()?;
    let rax = &mut ctx.cpu.gpr[gpr::RAX];
    *rax = *rax & !0xffff | u64::from(ctx.cpu.fpu.fsw);
    Ok(())
}

/// WAIT: #NM only if both CR0.MP and CR0.TS are set.
fn wait(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    const BOTH: u64 = cr0::MP | cr0::TS;
    if ctx.cpu.cr0 & BOTH == BOTH {
        return Err(Exception::nm());
    }
    ctx.x87_pending()
}

/// FNENI, FNDISI, FNSETPM.
fn nothing(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.x87_available()
}

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row(C::Fninit, fninit),
    same(C::Fnclex, fnclex),
    row(C::Fldcw_m2byte, fldcw).emit(translate::fldcw),
    same(C::Fnstcw_m2byte, fnstcw),
    same(C::Fnstsw_m2byte, fnstsw),
    row(C::Fnstsw_AX, fnstsw_ax).emit(translate::fnstsw_ax),
    row(C::Wait, wait).emit(translate::wait),
    row(C::Fneni, nothing),
    row(C::Fndisi, nothing),
    row(C::Fnsetpm, nothing),
];
