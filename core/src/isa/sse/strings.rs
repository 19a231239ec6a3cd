//! SSE4.2 string comparison: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM. Source: SDM vol. 2B, 4.1.

use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, row, same};
use crate::jit::entry::{Uses, simd_imm};
use crate::jit::thunk::Operands;
use crate::translate::special;
use crate::vcpu::{flags::bit, gpr};
use iced_x86::Code as C;

/// Compares; the lengths in (R|E)AX and (R|E)DX are ignored by the implicit-length forms. The 16-byte memory operand
/// need not be aligned.
fn compare(ctx: &mut Ctx<'_>, i: &Insn) -> Result<Operands, crate::exception::Exception> {
    ctx.sse_ready()?;
    let mut o = Operands {
        rm: ctx.xmm_src::<{ super::U128 }>(i)?,
        reg: ctx.xmm_reg(i),
        rax: ctx.cpu.gpr[gpr::RAX],
        rdx: ctx.cpu.gpr[gpr::RDX],
        ..Operands::default()
    };
    simd_imm(i.code, i.imm as u8, Uses::Nothing, &mut o);
    ctx.cpu.flags.replace(bit::ARITH, o.flags);
    Ok(o)
}

/// Index result in ECX.
fn to_index(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let o = compare(ctx, i)?;
    ctx.cpu.gpr[gpr::RCX] = o.rcx;
    Ok(())
}

/// Mask result in XMM0.
fn to_mask(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let o = compare(ctx, i)?;
    ctx.cpu.fpu.xmm[0] = o.xmm0;
    Ok(())
}

pub const ROWS: &[Row] = &[
    row(C::Pcmpestrm_xmm_xmmm128_imm8, to_mask).emit(special::pcmpestr),
    row(C::Pcmpestrm64_xmm_xmmm128_imm8, to_mask).emit(special::pcmpestr),
    row(C::Pcmpestri_xmm_xmmm128_imm8, to_index).emit(special::pcmpestr),
    row(C::Pcmpestri64_xmm_xmmm128_imm8, to_index).emit(special::pcmpestr),
    same(C::Pcmpistrm_xmm_xmmm128_imm8, to_mask),
    same(C::Pcmpistri_xmm_xmmm128_imm8, to_index),
];
