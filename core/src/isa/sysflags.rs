//! RFLAGS under privilege: CLI, STI, PUSHF, POPF with IOPL, VME and PVI. Source: SDM vol. 2; vol. 3B, 20.3 and 20.4.

use super::farxfer::slot;
use super::insn::Insn;
use super::traits::Width;
use super::{Row, end, row};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::translate::system;
use crate::vcpu::flags::bit;
use crate::vcpu::newstack::Slot;
use crate::vcpu::{Shadow, Vcpu, cr4};
use iced_x86::Code as C;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    end(C::Cli, cli).emit(system::cli), end(C::Sti, sti).emit(system::sti),
    row(C::Pushfw, pushf::<u16>), row(C::Pushfd, pushf::<u32>).emit(system::pushf),
    row(C::Pushfq, pushf::<u64>).emit(system::pushf),
    end(C::Popfw, popf::<u16>), end(C::Popfd, popf::<u32>), end(C::Popfq, popf::<u64>),
];

/// Which flag CLI and STI act on.
enum InterruptFlag {
    Real,
    Virtual,
}

impl Vcpu {
    /// CLI and STI: IF if IOPL allows, VIF with VME or PVI, else #GP(0).
    fn interrupt_flag(&self) -> Result<InterruptFlag, Exception> {
        if self.mode.real() || self.flags.iopl() >= self.mode.cpl {
            return Ok(InterruptFlag::Real);
        }
        let vme = self.mode.v86 && self.cr4 & cr4::VME != 0;
        let pvi = self.mode.protected && self.mode.cpl == 3 && self.cr4 & cr4::PVI != 0;
        if vme || pvi { Ok(InterruptFlag::Virtual) } else { Err(Exception::gp(0)) }
    }
}

fn cli(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    match ctx.cpu.interrupt_flag()? {
        InterruptFlag::Real => ctx.cpu.flags.put(bit::IF, false),
        InterruptFlag::Virtual => ctx.cpu.flags.put(bit::VIF, false),
    }
    Ok(())
}

fn sti(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    match ctx.cpu.interrupt_flag()? {
        InterruptFlag::Real => {
            if !ctx.cpu.flags.has(bit::IF) {
                ctx.cpu.flags.put(bit::IF, true);
                ctx.cpu.shadow = Shadow::Sti;
            }
        }
        InterruptFlag::Virtual if ctx.cpu.flags.has(bit::VIP) => return Err(Exception::gp(0)),
        InterruptFlag::Virtual => ctx.cpu.flags.put(bit::VIF, true),
    }
    ctx.sys.end_block();
    Ok(())
}

/// v86 mode with IOPL < 3: VME virtualises 16-bit PUSHF and POPF; everything else is #GP(0).
fn virtualised(ctx: &Ctx<'_>, slot: Slot) -> Result<bool, Exception> {
    if !ctx.cpu.mode.v86 || ctx.cpu.flags.iopl() == 3 {
        return Ok(false);
    }
    if ctx.cpu.cr4 & cr4::VME != 0 && slot == Slot::Word { Ok(true) } else { Err(Exception::gp(0)) }
}

fn pushf<W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let mut image = ctx.cpu.flags.0 & !(bit::VM | bit::RF);
    if virtualised(ctx, slot::<W>())? {
        let vif = if image & bit::VIF != 0 { bit::IF } else { 0 };
        image = (image & !bit::IF) | bit::IOPL | vif;
    }
    ctx.push(W::of(image))
}

fn popf<W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    const PLAIN: u64 = bit::ARITH | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
    let virtualised = virtualised(ctx, slot::<W>())?;
    let rsp = ctx.cpu.gpr[crate::vcpu::gpr::RSP];
    let image = ctx.pop::<W>()?.u();
    let wants_if = image & bit::IF != 0;
    if virtualised && (image & bit::TF != 0 || (wants_if && ctx.cpu.flags.has(bit::VIP))) {
        ctx.cpu.gpr[crate::vcpu::gpr::RSP] = rsp;
        return Err(Exception::gp(0));
    }
    let mut mask = PLAIN;
    if ctx.cpu.mode.cpl <= ctx.cpu.flags.iopl() {
        mask |= bit::IF;
    }
    if ctx.cpu.mode.cpl == 0 {
        mask |= bit::IOPL;
    }
    if virtualised {
        ctx.cpu.flags.put(bit::VIF, wants_if);
    }
    ctx.cpu.flags.replace(mask & W::MASK, image);
    ctx.mmu_switch();
    ctx.attend();
    Ok(())
}
