//! INT n, INT3, INTO, INT1. Source: SDM vol. 2A, "INT n/INTO/INT3/INT1"; vol. 3B, 20.3.

use super::insn::Insn;
use super::{Row, end};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::vcpu::interrupt::Source;
use crate::vcpu::{cr4, flags::bit};
use iced_x86::Code as C;

#[rustfmt::skip]
pub const ROWS: &[Row] =
    &[end(C::Int_imm8, int_n), end(C::Int3, int3), end(C::Into, into), end(C::Int1, int1)];

fn int_n(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let vector = i.imm as u8;
    if ctx.cpu.mode.v86 {
        if ctx.cpu.cr4 & cr4::VME != 0 && ctx.vme_redirected(vector)? {
            return ctx.deliver_redirected(vector);
        }
        if ctx.cpu.flags.iopl() < 3 {
            return Err(Exception::gp(0));
        }
    }
    ctx.software_interrupt(vector, Source::Software)
}

/// Unlike INT 3 (CD 03), never checked against IOPL nor redirected in v86 mode.
fn int3(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.software_interrupt(vector::BP, Source::Software)
}

fn into(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    if ctx.cpu.flags.has(bit::OF) { ctx.software_interrupt(vector::OF, Source::Software) } else { Ok(()) }
}

fn int1(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.software_interrupt(vector::DB, Source::Icebp)
}
