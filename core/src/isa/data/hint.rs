//! Instructions without architectural effect: NOP in all forms, PAUSE, ENDBR, prefetches, fences, cache-line flushes.
//!
//! The vCPUs run in turn and every access is in program order, so fences have nothing to order. MPX, CET and cache
//! hints outside the CPU models are the reserved NOPs they were made from.

use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::{ExecFn, Insn};
use crate::isa::traits::rows;
use crate::isa::{NO_ACCESS, Row, row};
use crate::mmu::Access;
use crate::translate::special;
use iced_x86::Code;

fn nop(_ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT: faults as a load of one byte does.
fn flush_line(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.probe(i.seg, ctx.ea(i), 1, Access::Read)
}

const fn nops(code: Code, exec: ExecFn) -> Row {
    Row { attrs: NO_ACCESS, ..row(code, exec).emit(special::nop) }
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    nops nop: Nopw Nopd Nopq Nop_rm16 Nop_rm32 Nop_rm64 Pause Endbr32 Endbr64;
    nops nop: Prefetch_m8 Prefetchw_m8 Prefetchwt1_m8 Prefetchnta_m8 Prefetcht0_m8 Prefetcht1_m8 Prefetcht2_m8
        Prefetchreserved3_m8 Prefetchreserved4_m8 Prefetchreserved5_m8 Prefetchreserved6_m8 Prefetchreserved7_m8
        Prefetchit0_m8 Prefetchit1_m8 Cldemote_m8;
    nops nop: Reservednop_rm16_r16_0F0D Reservednop_rm32_r32_0F0D Reservednop_rm64_r64_0F0D;
    nops nop: Reservednop_rm16_r16_0F18 Reservednop_rm32_r32_0F18 Reservednop_rm64_r64_0F18;
    nops nop: Reservednop_rm16_r16_0F19 Reservednop_rm32_r32_0F19 Reservednop_rm64_r64_0F19;
    nops nop: Reservednop_rm16_r16_0F1A Reservednop_rm32_r32_0F1A Reservednop_rm64_r64_0F1A;
    nops nop: Reservednop_rm16_r16_0F1B Reservednop_rm32_r32_0F1B Reservednop_rm64_r64_0F1B;
    nops nop: Reservednop_rm16_r16_0F1C Reservednop_rm32_r32_0F1C Reservednop_rm64_r64_0F1C;
    nops nop: Reservednop_rm16_r16_0F1D Reservednop_rm32_r32_0F1D Reservednop_rm64_r64_0F1D;
    nops nop: Reservednop_rm16_r16_0F1E Reservednop_rm32_r32_0F1E Reservednop_rm64_r64_0F1E;
    nops nop: Reservednop_rm16_r16_0F1F Reservednop_rm32_r32_0F1F Reservednop_rm64_r64_0F1F;
    nops nop: Bndldx_bnd_mib Bndmov_bnd_bndm64 Bndmov_bnd_bndm128 Bndcl_bnd_rm32 Bndcl_bnd_rm64 Bndcu_bnd_rm32
        Bndcu_bnd_rm64 Bndstx_mib_bnd Bndmov_bndm64_bnd Bndmov_bndm128_bnd Bndmk_bnd_m32 Bndmk_bnd_m64
        Bndcn_bnd_rm32 Bndcn_bnd_rm64 Rdsspd_r32 Rdsspq_r64;
    nops nop: Lfence Lfence_E9 Lfence_EA Lfence_EB Lfence_EC Lfence_ED Lfence_EE Lfence_EF;
    nops nop: Mfence Mfence_F1 Mfence_F2 Mfence_F3 Mfence_F4 Mfence_F5 Mfence_F6 Mfence_F7;
    nops nop: Sfence Sfence_F9 Sfence_FA Sfence_FB Sfence_FC Sfence_FD Sfence_FE Sfence_FF;
    row flush_line: Clflush_m8 Clflushopt_m8;
};
