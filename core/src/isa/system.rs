//! Processor control: CPUID, TSC reads, HLT, cache and TLB maintenance, SMAP flag.
//! Source: SDM vol. 2. Registers and tables are in `control`, `desctable` and `msrs`; RFLAGS in `sysflags`.

use super::insn::Insn;
use super::{END, NO_ACCESS, Row, end, row};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::translate::{special, system as emit};
use crate::vcpu::cpuid::{CpuidState, Feature};
use crate::vcpu::descriptor::canonical;
use crate::vcpu::flags::bit;
use crate::vcpu::{Activity, cr4, gpr};
use iced_x86::Code as C;

// MONITOR, MWAIT, RDPID, RSM, VMCALL and their like are not shown by any CPU model: no row, so #UD.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row(C::Cpuid, cpuid), row(C::Rdtsc, rdtsc).emit(emit::rdtsc), row(C::Rdtscp, rdtscp).emit(emit::rdtsc), row(C::Rdpmc, rdpmc),
    end(C::Hlt, hlt), INVLPG, end(C::Invd, privileged_nop),
    end(C::Wbinvd, privileged_nop), end(C::Wbnoinvd, privileged_nop),
    end(C::Invpcid_r32_m128, invpcid), end(C::Invpcid_r64_m128, invpcid),
    end(C::Clac, set_ac::<false>).emit(emit::set_ac), end(C::Stac, set_ac::<true>).emit(emit::set_ac),
];

fn cpuid(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let cpu = &mut *ctx.cpu;
    let state = CpuidState {
        apic_id: cpu.index,
        vcpus: cpu.count,
        apic_enabled: cpu.msr.apic_base & 1 << 11 != 0,
        osxsave: cpu.cr4 & cr4::OSXSAVE != 0,
    };
    let leaf = cpu.gpr[gpr::RAX] as u32;
    let [eax, ebx, ecx, edx] = cpu.model.cpuid(leaf, cpu.gpr[gpr::RCX] as u32, &state);
    cpu.gpr[gpr::RAX] = eax.into();
    cpu.gpr[gpr::RBX] = ebx.into();
    cpu.gpr[gpr::RCX] = ecx.into();
    cpu.gpr[gpr::RDX] = edx.into();
    Ok(())
}

/// #UD without the feature; #GP(0) if CR4.TSD reserves the TSC to CPL 0.
fn tsc_allowed(ctx: &Ctx<'_>, feature: Feature) -> Exec {
    if !ctx.cpu.model.has(feature) {
        return Err(Exception::ud());
    }
    if ctx.cpu.cr4 & cr4::TSD != 0 { ctx.require_cpl0() } else { Ok(()) }
}

fn rdtsc(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    tsc_allowed(ctx, Feature::Tsc)?;
    let tsc = ctx.read_tsc();
    ctx.cpu.set_edx_eax(tsc);
    Ok(())
}

fn rdtscp(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    tsc_allowed(ctx, Feature::Rdtscp)?;
    let tsc = ctx.read_tsc();
    ctx.cpu.set_edx_eax(tsc);
    ctx.cpu.gpr[gpr::RCX] = ctx.cpu.msr.tsc_aux;
    Ok(())
}

/// Only the P6-family model has counters (two, which do not count); elsewhere every counter number is invalid.
fn rdpmc(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    use crate::vcpu::cpuid::CpuModel;
    if ctx.cpu.model < CpuModel::Pentium3 {
        return Err(Exception::ud());
    }
    if ctx.cpu.cr4 & cr4::PCE == 0 {
        ctx.require_cpl0()?;
    }
    if ctx.cpu.model != CpuModel::Pentium3 || ctx.cpu.gpr[gpr::RCX] as u32 > 1 {
        return Err(Exception::gp(0));
    }
    ctx.cpu.set_edx_eax(0);
    Ok(())
}

fn hlt(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.require_cpl0()?;
    ctx.cpu.activity = Activity::Halted;
    ctx.sys.end_block();
    Ok(())
}

/// INVLPG, INVD, WBINVD: TLBs are coherent and there are no caches, so only the privilege check is left.
fn privileged_nop(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.require_cpl0()
}

fn invpcid(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    if !ctx.cpu.model.has(Feature::Invpcid) {
        return Err(Exception::ud());
    }
    ctx.require_cpl0()?;
    let kind = ctx.cpu.gpr[usize::from(i.reg & 15)];
    let kind = if ctx.cpu.mode.is64() { kind } else { kind & 0xffff_ffff };
    let descriptor: u128 = ctx.load(i.seg, ctx.ea(i))?;
    let (pcid, address) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcide = ctx.cpu.cr4 & cr4::PCIDE != 0;
    let ok = match kind {
        0 => pcid >> 12 == 0 && canonical(address) && (pcide || pcid == 0),
        1 => pcid >> 12 == 0 && (pcide || pcid == 0),
        2 | 3 => true,
        _ => false,
    };
    if ok { Ok(()) } else { Err(Exception::gp(0)) }
}

/// Nothing of it is left at CPL 0.
const INVLPG: Row = Row { attrs: END | NO_ACCESS, ..end(C::Invlpg_m, privileged_nop).emit(special::nop) };

/// CLAC, STAC: #UD outside CPL 0.
fn set_ac<const ON: bool>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    if !ctx.cpu.model.has(Feature::Smap) || ctx.cpu.mode.cpl != 0 {
        return Err(Exception::ud());
    }
    ctx.cpu.flags.put(bit::AC, ON);
    ctx.mmu_switch();
    Ok(())
}
