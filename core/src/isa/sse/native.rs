//! Executors that run the instruction itself on the host: they move operands, and turn what MXCSR says afterwards into
//! flags or #XM. Source: SDM vol. 1, 11.5 (SIMD floating-point exceptions).

use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::isa::insn::Insn;
use crate::isa::traits::Width;
use crate::jit::entry::{Uses, simd, simd_imm};
use crate::jit::thunk::{HOST_MXCSR, Operands};
use crate::vcpu::{cr4, flags::bit};
use iced_x86::Mnemonic;

/// MXCSR bits (SDM vol. 1, 10.2.3).
pub mod mxcsr {
    pub const IE: u32 = 1;
    pub const DE: u32 = 2;
    pub const ZE: u32 = 4;
    pub const OE: u32 = 8;
    pub const UE: u32 = 16;
    pub const PE: u32 = 32;
    pub const FLAGS: u32 = 0x3f;
    pub const DAZ: u32 = 0x40;
    pub const MASKS: u32 = 0x1f80;
    pub const UM: u32 = UE << 7;
    pub const FTZ: u32 = 0x8000;
    /// Bits that may be set; others raise #GP(0) in LDMXCSR, FXRSTOR and XRSTOR.
    pub const VALID: u32 = 0xffff;
    /// Exceptions found before computing; an unmasked one keeps the others from being computed at all.
    pub const BEFORE: u32 = IE | DE | ZE;
}

/// Runs a form that uses MXCSR. On an unmasked exception only flags change, and the caller must write nothing back.
#[inline(always)]
pub fn run_float<const IMM: bool>(ctx: &mut Ctx<'_>, i: &Insn, o: &mut Operands) -> Exec {
    let m = ctx.cpu.fpu.mxcsr;
    if m & mxcsr::MASKS != mxcsr::MASKS {
        return run_unmasked::<IMM>(ctx, i, o);
    }
    call_float::<IMM>(i, o, m);
    ctx.cpu.fpu.mxcsr = o.mxcsr_out;
    Ok(())
}

#[inline(always)]
fn call_float<const IMM: bool>(i: &Insn, o: &mut Operands, control: u32) {
    o.mxcsr_in = control;
    o.mxcsr_host = HOST_MXCSR;
    if IMM { simd_imm(i.code, i.imm as u8, Uses::Mxcsr, o) } else { simd(i.code, Uses::Mxcsr, o) }
}

/// The same with some exception unmasked: runs masked, with clean flags, and judges the flags raised.
#[cold]
fn run_unmasked<const IMM: bool>(ctx: &mut Ctx<'_>, i: &Insn, o: &mut Operands) -> Exec {
    let m = ctx.cpu.fpu.mxcsr;
    let unmasked = !(m >> 7) & mxcsr::FLAGS;
    let mut control = (m | mxcsr::MASKS) & !mxcsr::FLAGS;
    if unmasked & mxcsr::UE != 0 {
        // Flush-to-zero is a response to *masked* underflow only (SDM vol. 1, 10.2.3.3).
        control &= !mxcsr::FTZ;
    }
    call_float::<IMM>(i, o, control);
    let mut raised = o.mxcsr_out & mxcsr::FLAGS;
    if raised & unmasked & mxcsr::BEFORE != 0 {
        raised &= mxcsr::BEFORE;
    } else if unmasked & mxcsr::UE != 0 && tiny_result(i, o) {
        // Unmasked underflow is signalled for tiny results even if they are exact (SDM vol. 1, 4.9.1.5).
        raised |= mxcsr::UE;
    }
    ctx.cpu.fpu.mxcsr |= raised;
    if raised & unmasked == 0 {
        return Ok(());
    }
    // #XM, or #UD if the operating system does not handle it.
    Err(if ctx.cpu.cr4 & cr4::OSXMMEXCPT != 0 { Exception::plain(vector::XM) } else { Exception::ud() })
}

/// Is an element of the result of an arithmetic form denormal?
fn tiny_result(i: &Insn, o: &Operands) -> bool {
    use Mnemonic as N;
    let f32s = (0..4).map(|n| (o.reg >> (32 * n)) as u32).map(|v| v & 0x7f80_0000 == 0 && v & 0x7f_ffff != 0);
    let f64s =
        (0..2).map(|n| (o.reg >> (64 * n)) as u64).map(|v| v & 0x7ff0 << 48 == 0 && v & !(0xfff0 << 48) != 0);
    let (f32_lanes, f64_lanes) = match i.code().mnemonic() {
        N::Addss | N::Subss | N::Mulss | N::Divss | N::Cvtsd2ss => (1, 0),
        N::Cvtpd2ps => (2, 0),
        N::Addps | N::Subps | N::Mulps | N::Divps | N::Addsubps | N::Haddps | N::Hsubps | N::Dpps => (4, 0),
        N::Addsd | N::Subsd | N::Mulsd | N::Divsd => (0, 1),
        N::Addpd | N::Subpd | N::Mulpd | N::Divpd | N::Addsubpd | N::Haddpd | N::Hsubpd | N::Dppd => (0, 2),
        _ => (0, 0),
    };
    f32s.take(f32_lanes).chain(f64s.take(f64_lanes)).any(|tiny| tiny)
}

/// XMM ← op(XMM, XMM or memory), under MXCSR.
pub fn float<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let mut o = Operands { rm: ctx.xmm_src::<M>(i)?, reg: ctx.xmm_reg(i), ..Operands::default() };
    run_float::<false>(ctx, i, &mut o)?;
    ctx.set_xmm_reg(i, o.reg);
    Ok(())
}

/// XMM ← op(XMM, XMM or memory, imm8), under MXCSR.
pub fn float_imm<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let mut o = Operands { rm: ctx.xmm_src::<M>(i)?, reg: ctx.xmm_reg(i), ..Operands::default() };
    run_float::<true>(ctx, i, &mut o)?;
    ctx.set_xmm_reg(i, o.reg);
    Ok(())
}

/// XMM ← op(XMM, XMM or memory), integer.
pub fn int<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let mut o = Operands { rm: ctx.xmm_src::<M>(i)?, reg: ctx.xmm_reg(i), ..Operands::default() };
    simd(i.code, Uses::Nothing, &mut o);
    ctx.set_xmm_reg(i, o.reg);
    Ok(())
}

/// XMM ← op(XMM, XMM or memory, imm8), integer.
pub fn int_imm<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let mut o = Operands { rm: ctx.xmm_src::<M>(i)?, reg: ctx.xmm_reg(i), ..Operands::default() };
    simd_imm(i.code, i.imm as u8, Uses::Nothing, &mut o);
    ctx.set_xmm_reg(i, o.reg);
    Ok(())
}

/// INSERTPS. A memory source is one element: the immediate's source selector does not apply.
pub fn insertps(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let imm = if i.is_mem() { i.imm as u8 & 0x3f } else { i.imm as u8 };
    let mut o =
        Operands { rm: ctx.xmm_src::<{ super::M32 }>(i)?, reg: ctx.xmm_reg(i), ..Operands::default() };
    simd_imm(i.code, imm, Uses::Nothing, &mut o);
    ctx.set_xmm_reg(i, o.reg);
    Ok(())
}

/// XMM ← op(XMM, XMM or memory, implicit XMM0): the variable blends.
pub fn blend(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let rm = ctx.xmm_src::<{ super::M128 }>(i)?;
    let mut o = Operands { rm, reg: ctx.xmm_reg(i), xmm0: ctx.cpu.fpu.xmm[0], ..Operands::default() };
    simd(i.code, Uses::Nothing, &mut o);
    ctx.set_xmm_reg(i, o.reg);
    Ok(())
}

/// Shift of an XMM register by an immediate.
pub fn shift_imm(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let mut o = Operands { rm: ctx.xmm_rm(i), ..Operands::default() };
    simd_imm(i.code, i.imm as u8, Uses::Nothing, &mut o);
    ctx.set_xmm_rm(i, o.rm);
    Ok(())
}

/// RFLAGS ← compare(XMM, XMM or memory), under MXCSR: COMISS and its kin.
pub fn float_flags<const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let mut o = Operands { rm: ctx.xmm_src::<M>(i)?, reg: ctx.xmm_reg(i), ..Operands::default() };
    run_float::<false>(ctx, i, &mut o)?;
    ctx.cpu.flags.replace(bit::ARITH, o.flags);
    Ok(())
}

/// RFLAGS ← test(XMM, XMM or memory): PTEST.
pub fn int_flags(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let mut o =
        Operands { rm: ctx.xmm_src::<{ super::M128 }>(i)?, reg: ctx.xmm_reg(i), ..Operands::default() };
    simd(i.code, Uses::Nothing, &mut o);
    ctx.cpu.flags.replace(bit::ARITH, o.flags);
    Ok(())
}

/// XMM ← convert(general register or memory), under MXCSR.
pub fn float_from_gpr<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let mut o = Operands { rax: ctx.rm::<W>(i)?.u(), reg: ctx.xmm_reg(i), ..Operands::default() };
    run_float::<false>(ctx, i, &mut o)?;
    ctx.set_xmm_reg(i, o.reg);
    Ok(())
}

/// General register ← convert(XMM or memory), under MXCSR.
pub fn float_to_gpr<W: Width, const M: u32>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.sse_ready()?;
    let mut o = Operands { rm: ctx.xmm_src::<M>(i)?, ..Operands::default() };
    run_float::<false>(ctx, i, &mut o)?;
    ctx.set_reg::<W>(i, W::of(o.rax));
    Ok(())
}
