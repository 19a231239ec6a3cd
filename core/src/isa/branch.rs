//! Near control transfers: JMP, Jcc, LOOPcc, JrCXZ, CALL, RET; BOUND; and the UD instructions.
//!
//! The target is checked (CS limit, or canonicality in 64-bit mode) before any state changes, so every fault leaves
//! the instruction restartable. Source: SDM vol. 2, CALL, JMP, Jcc, LOOP, RET.

use super::flagops::{cc::*, holds};
use super::insn::Insn;
use super::traits::{Width, emitted, rows};
use super::{Row, end, row, undefined};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::translate::stack as emit;
use crate::vcpu::Seg;
use crate::vcpu::descriptor::canonical;
use crate::vcpu::flags::bit::ZF;
use crate::vcpu::gpr::{RCX, RSP};
use iced_x86::Code;

impl Ctx<'_> {
    /// #GP(0) if `target` is not a place to execute from: beyond the CS limit, or not canonical in 64-bit mode.
    #[inline(always)]
    pub fn check_near_target(&self, target: u64) -> Exec {
        let ok = if self.cpu.mode.is64() {
            canonical(target)
        } else {
            target <= u64::from(self.cpu.seg[Seg::Cs as usize].limit)
        };
        if ok { Ok(()) } else { Err(Exception::gp(0)) }
    }

    /// Continues at `target` within the code segment.
    #[inline(always)]
    fn jump_near(&mut self, target: u64) -> Exec {
        self.check_near_target(target)?;
        self.cpu.rip = target;
        Ok(())
    }
}

fn jmp(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.jump_near(i.imm)
}

fn jmp_rm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let target = ctx.rm::<W>(i)?.u();
    ctx.jump_near(target)
}

fn jcc<const CC: u8>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    if holds::<CC>(ctx.cpu.flags) { ctx.jump_near(i.imm) } else { Ok(()) }
}

/// JCXZ, JECXZ, JRCXZ: `W` is the width of the count register.
fn jcxz<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    if W::reg(ctx.cpu, RCX as u8).u() == 0 { ctx.jump_near(i.imm) } else { Ok(()) }
}

/// What LOOPcc asks of ZF besides a non-zero count.
const ALWAYS: u8 = 0;
const WHILE_ZERO: u8 = 1;
const WHILE_NOT_ZERO: u8 = 2;

/// LOOP, LOOPE, LOOPNE: `W` is the width of the count register.
fn loops<const KIND: u8, W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let count = W::of(W::reg(ctx.cpu, RCX as u8).u().wrapping_sub(1));
    let zf = ctx.cpu.flags.has(ZF);
    let wanted = match KIND {
        WHILE_ZERO => zf,
        WHILE_NOT_ZERO => !zf,
        _ => true,
    };
    if wanted && count.u() != 0 {
        ctx.jump_near(i.imm)?;
    }
    W::set_reg(ctx.cpu, RCX as u8, count);
    Ok(())
}

/// Pushes the return address and continues at `target`.
#[inline(always)]
fn call_to<W: Width>(ctx: &mut Ctx<'_>, target: u64) -> Exec {
    ctx.check_near_target(target)?;
    ctx.push(W::of(ctx.cpu.rip))?;
    ctx.cpu.rip = target;
    Ok(())
}

fn call<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    call_to::<W>(ctx, i.imm)
}

fn call_rm<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let target = ctx.rm::<W>(i)?.u();
    call_to::<W>(ctx, target)
}

/// RET, with `i.imm` more bytes of stack released (0 for the form without an immediate).
fn ret<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let sp = ctx.cpu.gpr[RSP] & ctx.cpu.mode.stack_mask;
    let target = ctx.load::<W>(Seg::Ss as u8, sp)?.u();
    ctx.jump_near(target)?;
    ctx.set_sp(sp.wrapping_add(W::SIZE as u64).wrapping_add(i.imm & 0xffff));
    Ok(())
}

/// BOUND: #BR unless lower bound <= index <= upper bound, all signed; the bounds follow each other in memory.
fn bound<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let ea = ctx.ea(i);
    let lower = ctx.load::<W>(i.seg, ea)?.s();
    let upper = ctx.load::<W>(i.seg, ea.wrapping_add(W::SIZE as u64) & i.addr_mask)?.s();
    let index = ctx.reg::<W>(i).s();
    if index < lower || index > upper { Err(Exception::plain(vector::BR)) } else { Ok(()) }
}

emitted! {
    jumps = end, emit::jmp;
    jumps_rm = end, emit::jmp_indirect;
    calls = end, emit::call;
    calls_rm = end, emit::call_indirect;
    returns = end, emit::ret;
    branches = end, emit::jcc;
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    end jmp: Jmp_rel8_16 Jmp_rel16;
    jumps jmp: Jmp_rel8_32 Jmp_rel8_64 Jmp_rel32_32 Jmp_rel32_64;
    end jmp_rm<> u16: Jmp_rm16;
    jumps_rm jmp_rm<> u32: Jmp_rm32;
    jumps_rm jmp_rm<> u64: Jmp_rm64;
    end call<> u16: Call_rel16;
    calls call<> u32: Call_rel32_32;
    calls call<> u64: Call_rel32_64;
    end call_rm<> u16: Call_rm16;
    calls_rm call_rm<> u32: Call_rm32;
    calls_rm call_rm<> u64: Call_rm64;
    end ret<> u16: Retnw Retnw_imm16;
    returns ret<> u32: Retnd Retnd_imm16;
    returns ret<> u64: Retnq Retnq_imm16;
    row bound<> u16: Bound_r16_m1616;
    row bound<> u32: Bound_r32_m3232;
    end undefined: Ud0 Ud0_r16_rm16 Ud0_r32_rm32 Ud0_r64_rm64 Ud1_r16_rm16 Ud1_r32_rm32 Ud1_r64_rm64 Ud2;
    end jcxz<> u16: Jcxz_rel8_16 Jcxz_rel8_32;
    end jcxz<> u32: Jecxz_rel8_16 Jecxz_rel8_32 Jecxz_rel8_64;
    end jcxz<> u64: Jrcxz_rel8_16 Jrcxz_rel8_64;
    end loops<WHILE_NOT_ZERO> u16: Loopne_rel8_16_CX Loopne_rel8_32_CX;
    end loops<WHILE_NOT_ZERO> u32: Loopne_rel8_16_ECX Loopne_rel8_32_ECX Loopne_rel8_64_ECX;
    end loops<WHILE_NOT_ZERO> u64: Loopne_rel8_16_RCX Loopne_rel8_64_RCX;
    end loops<WHILE_ZERO> u16: Loope_rel8_16_CX Loope_rel8_32_CX;
    end loops<WHILE_ZERO> u32: Loope_rel8_16_ECX Loope_rel8_32_ECX Loope_rel8_64_ECX;
    end loops<WHILE_ZERO> u64: Loope_rel8_16_RCX Loope_rel8_64_RCX;
    end loops<ALWAYS> u16: Loop_rel8_16_CX Loop_rel8_32_CX;
    end loops<ALWAYS> u32: Loop_rel8_16_ECX Loop_rel8_32_ECX Loop_rel8_64_ECX;
    end loops<ALWAYS> u64: Loop_rel8_16_RCX Loop_rel8_64_RCX;
    end jcc<O>: Jo_rel8_16 Jo_rel16;
    branches jcc<O>: Jo_rel8_32 Jo_rel8_64 Jo_rel32_32 Jo_rel32_64;
    end jcc<NO>: Jno_rel8_16 Jno_rel16;
    branches jcc<NO>: Jno_rel8_32 Jno_rel8_64 Jno_rel32_32 Jno_rel32_64;
    end jcc<B>: Jb_rel8_16 Jb_rel16;
    branches jcc<B>: Jb_rel8_32 Jb_rel8_64 Jb_rel32_32 Jb_rel32_64;
    end jcc<AE>: Jae_rel8_16 Jae_rel16;
    branches jcc<AE>: Jae_rel8_32 Jae_rel8_64 Jae_rel32_32 Jae_rel32_64;
    end jcc<E>: Je_rel8_16 Je_rel16;
    branches jcc<E>: Je_rel8_32 Je_rel8_64 Je_rel32_32 Je_rel32_64;
    end jcc<NE>: Jne_rel8_16 Jne_rel16;
    branches jcc<NE>: Jne_rel8_32 Jne_rel8_64 Jne_rel32_32 Jne_rel32_64;
    end jcc<BE>: Jbe_rel8_16 Jbe_rel16;
    branches jcc<BE>: Jbe_rel8_32 Jbe_rel8_64 Jbe_rel32_32 Jbe_rel32_64;
    end jcc<A>: Ja_rel8_16 Ja_rel16;
    branches jcc<A>: Ja_rel8_32 Ja_rel8_64 Ja_rel32_32 Ja_rel32_64;
    end jcc<S>: Js_rel8_16 Js_rel16;
    branches jcc<S>: Js_rel8_32 Js_rel8_64 Js_rel32_32 Js_rel32_64;
    end jcc<NS>: Jns_rel8_16 Jns_rel16;
    branches jcc<NS>: Jns_rel8_32 Jns_rel8_64 Jns_rel32_32 Jns_rel32_64;
    end jcc<P>: Jp_rel8_16 Jp_rel16;
    branches jcc<P>: Jp_rel8_32 Jp_rel8_64 Jp_rel32_32 Jp_rel32_64;
    end jcc<NP>: Jnp_rel8_16 Jnp_rel16;
    branches jcc<NP>: Jnp_rel8_32 Jnp_rel8_64 Jnp_rel32_32 Jnp_rel32_64;
    end jcc<L>: Jl_rel8_16 Jl_rel16;
    branches jcc<L>: Jl_rel8_32 Jl_rel8_64 Jl_rel32_32 Jl_rel32_64;
    end jcc<GE>: Jge_rel8_16 Jge_rel16;
    branches jcc<GE>: Jge_rel8_32 Jge_rel8_64 Jge_rel32_32 Jge_rel32_64;
    end jcc<LE>: Jle_rel8_16 Jle_rel16;
    branches jcc<LE>: Jle_rel8_32 Jle_rel8_64 Jle_rel32_32 Jle_rel32_64;
    end jcc<G>: Jg_rel8_16 Jg_rel16;
    branches jcc<G>: Jg_rel8_32 Jg_rel8_64 Jg_rel32_32 Jg_rel32_64;
};
