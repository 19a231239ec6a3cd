//! PUSH and POP of general operands, PUSHA, POPA, ENTER, LEAVE.
//!
//! Every register changes only when the last memory access has succeeded, so each fault is restartable.

use super::insn::Insn;
use super::traits::{Width, emitted, rows};
use super::{Row, row};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::mmu::Access;
use crate::translate::stack as emit;
use crate::vcpu::Seg;
use crate::vcpu::gpr::{RBP, RSP};
use iced_x86::Code;

const SS: u8 = Seg::Ss as u8;

/// PUSH of a register encoded in the opcode. RSP is pushed as it was before.
fn push_reg<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.push(W::reg(ctx.cpu, i.rm))
}

/// PUSH r/m: a memory operand's address, or RSP itself, is read before the push.
fn push_rm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = ctx.rm::<W>(i)?;
    ctx.push(v)
}

fn push_imm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.push(W::of(i.imm))
}

fn pop_reg<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = ctx.pop::<W>()?;
    W::set_reg(ctx.cpu, i.rm, v);
    Ok(())
}

/// POP r/m: an address based on RSP uses its value after the pop.
fn pop_rm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    if !i.is_mem() {
        return pop_reg::<W>(ctx, i);
    }
    let old = ctx.cpu.gpr[RSP];
    let v = ctx.pop::<W>()?;
    let r = ctx.set_rm(i, v);
    if r.is_err() {
        ctx.cpu.gpr[RSP] = old;
    }
    r
}

/// PUSHA: rAX, rCX, rDX, rBX, the original rSP, rBP, rSI, rDI.
fn pusha<W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let mut sp = ctx.cpu.gpr[RSP];
    for r in 0..8 {
        sp = sp.wrapping_sub(W::SIZE as u64) & ctx.cpu.mode.stack_mask;
        ctx.store(SS, sp, W::reg(ctx.cpu, r))?;
    }
    ctx.set_sp(sp);
    Ok(())
}

/// POPA: the reverse of PUSHA; the rSP image is skipped.
fn popa<W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let mut values = [W::of(0); 8];
    let mut sp = ctx.cpu.gpr[RSP] & ctx.cpu.mode.stack_mask;
    for r in (0..8).rev() {
        if r != RSP {
            values[r] = ctx.load(SS, sp)?;
        }
        sp = sp.wrapping_add(W::SIZE as u64) & ctx.cpu.mode.stack_mask;
    }
    for (r, v) in values.into_iter().enumerate() {
        if r != RSP {
            W::set_reg(ctx.cpu, r as u8, v);
        }
    }
    ctx.set_sp(sp);
    Ok(())
}

/// ENTER size, level: `W` is the operand size; addresses on the stack follow the stack size. A write at the final
/// stack pointer must be possible (SDM vol. 2, ENTER).
fn enter<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let mask = ctx.cpu.mode.stack_mask;
    let level = i.imm2 & 31;
    let mut bp = ctx.cpu.gpr[RBP];
    let mut sp = ctx.cpu.gpr[RSP].wrapping_sub(W::SIZE as u64);
    ctx.store(SS, sp & mask, W::of(bp))?;
    let frame = (ctx.cpu.gpr[RSP] & !mask) | (sp & mask);
    if level > 0 {
        for _ in 1..level {
            bp = bp.wrapping_sub(W::SIZE as u64);
            let v = ctx.load::<W>(SS, bp & mask)?;
            sp = sp.wrapping_sub(W::SIZE as u64);
            ctx.store(SS, sp & mask, v)?;
        }
        sp = sp.wrapping_sub(W::SIZE as u64);
        ctx.store(SS, sp & mask, W::of(frame))?;
    }
    sp = sp.wrapping_sub(i.imm & 0xffff) & mask;
    ctx.probe(SS, sp, W::SIZE as u64, Access::Write)?;
    W::set_reg(ctx.cpu, RBP as u8, W::of(frame));
    ctx.set_sp(sp);
    Ok(())
}

/// LEAVE: rSP = rBP by the stack size, then POP rBP.
fn leave<W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let bp = ctx.cpu.gpr[RBP] & ctx.cpu.mode.stack_mask;
    let v = ctx.load::<W>(SS, bp)?;
    ctx.set_sp(bp.wrapping_add(W::SIZE as u64));
    W::set_reg(ctx.cpu, RBP as u8, v);
    Ok(())
}

emitted! {
    pushes = row, emit::push;
    pops = row, emit::pop;
    leaves = row, emit::leave;
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    row push_reg<> u16: Push_r16;
    pushes push_reg<> u32: Push_r32;
    pushes push_reg<> u64: Push_r64;
    row push_rm<> u16: Push_rm16;
    pushes push_rm<> u32: Push_rm32;
    pushes push_rm<> u64: Push_rm64;
    row push_imm<> u16: Push_imm16 Pushw_imm8;
    pushes push_imm<> u32: Pushd_imm32 Pushd_imm8;
    pushes push_imm<> u64: Pushq_imm32 Pushq_imm8;
    row pop_reg<> u16: Pop_r16;
    pops pop_reg<> u32: Pop_r32;
    pops pop_reg<> u64: Pop_r64;
    row pop_rm<> 3: Pop_rm16 Pop_rm32 Pop_rm64;
    row pusha<> u16: Pushaw;
    row pusha<> u32: Pushad;
    row popa<> u16: Popaw;
    row popa<> u32: Popad;
    row enter<> 3: Enterw_imm16_imm8 Enterd_imm16_imm8 Enterq_imm16_imm8;
    row leave<> u16: Leavew;
    leaves leave<> u32: Leaved;
    leaves leave<> u64: Leaveq;
};
