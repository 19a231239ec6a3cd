//! LDMXCSR and STMXCSR.

use super::native::mxcsr;
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::isa::insn::Insn;
use crate::isa::{Row, row, same};
use crate::translate::special;
use iced_x86::Code as C;

fn ldmxcsr(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v: u32 = ctx.load_operand(i)?;
    if v & !mxcsr::VALID != 0 {
        return Err(Exception::gp(0));
    }
    ctx.cpu.fpu.mxcsr = v;
    Ok(())
}

fn stmxcsr(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.cpu.fpu.mxcsr;
    ctx.store_operand(i, v)
}

pub const ROWS: &[Row] =
    &[row(C::Ldmxcsr_m32, ldmxcsr).emit(special::ldmxcsr), same(C::Stmxcsr_m32, stmxcsr)];
