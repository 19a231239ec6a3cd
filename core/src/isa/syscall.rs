//! SYSCALL, SYSRET, SYSENTER, SYSEXIT. Source: SDM vol. 2B; vol. 3A, 5.8.7 and 5.8.8.

use super::insn::Insn;
use super::{Row, end};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::vcpu::cpuid::Feature;
use crate::vcpu::debug::dr6;
use crate::vcpu::descriptor::canonical;
use crate::vcpu::flags::{WRITABLE, bit};
use crate::vcpu::segment::{Segment, attr};
use crate::vcpu::{Seg, efer, gpr};
use iced_x86::Code as C;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    end(C::Syscall, syscall), end(C::Sysretd, sysret::<false>), end(C::Sysretq, sysret::<true>),
    end(C::Sysenter, sysenter), end(C::Sysexitd, sysexit::<false>), end(C::Sysexitq, sysexit::<true>),
];

const FLAT: u32 = attr::P | attr::S | attr::G | attr::RW | attr::ACCESSED;

/// A flat code segment, 64-bit if `long`, else 32-bit.
fn flat_code(selector: u16, dpl: u8, long: bool) -> Segment {
    let size = if long { attr::L } else { attr::DB };
    flat(selector, FLAT | attr::CODE | size | u32::from(dpl) << 5)
}

fn flat_data(selector: u16, dpl: u8) -> Segment {
    flat(selector, FLAT | attr::DB | u32::from(dpl) << 5)
}

fn flat(selector: u16, attr: u32) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attr, lin_base: 0, fast: 0 }
}

impl Ctx<'_> {
    /// Enters flat CS and SS at privilege level `cpl`; the selectors are `cs` and `ss`.
    fn enter_flat(&mut self, cs: u16, ss: u16, cpl: u8, long: bool) {
        self.cpu.seg[Seg::Cs as usize] = flat_code(cs, cpl, long);
        self.cpu.seg[Seg::Ss as usize] = flat_data(ss, cpl);
        self.cpu.refresh();
        self.mmu_switch();
        self.attend();
    }
}

fn syscall(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    if !ctx.cpu.mode.is64() || ctx.cpu.msr.efer & efer::SCE == 0 {
        return Err(Exception::ud());
    }
    let cpu = &mut *ctx.cpu;
    let flags = cpu.flags.0 & !bit::RF;
    cpu.gpr[gpr::RCX] = cpu.rip;
    cpu.gpr[11] = flags;
    cpu.flags.0 = (flags & !cpu.msr.sfmask) | bit::FIXED;
    if flags & bit::TF != 0 && !cpu.flags.has(bit::TF) {
        cpu.suppress_single_step();
    }
    cpu.rip = cpu.msr.lstar;
    let cs = (cpu.msr.star >> 32) as u16 & !3;
    ctx.enter_flat(cs, cs.wrapping_add(8), 0, true);
    Ok(())
}

fn sysret<const LONG: bool>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    if !ctx.cpu.mode.is64() || ctx.cpu.msr.efer & efer::SCE == 0 {
        return Err(Exception::ud());
    }
    ctx.require_cpl0()?;
    let rip = ctx.cpu.gpr[gpr::RCX];
    if LONG && !canonical(rip) {
        return Err(Exception::gp(0));
    }
    let cpu = &mut *ctx.cpu;
    cpu.rip = if LONG { rip } else { rip & 0xffff_ffff };
    cpu.flags.0 = (cpu.gpr[11] & WRITABLE & !(bit::RF | bit::VM)) | bit::FIXED;
    if cpu.flags.has(bit::TF) {
        // Unlike IRET and POPF, SYSRET with TF traps at once, on the instruction returned to.
        cpu.pending_db |= dr6::BS;
    }
    let base = (cpu.msr.star >> 48) as u16;
    let cs = if LONG { base.wrapping_add(16) } else { base };
    ctx.enter_flat(cs | 3, base.wrapping_add(8) | 3, 3, LONG);
    Ok(())
}

fn sysenter_cs(ctx: &Ctx<'_>) -> Result<u16, Exception> {
    if !ctx.cpu.model.has(Feature::Sep) {
        return Err(Exception::ud());
    }
    let cs = ctx.cpu.msr.sysenter_cs as u16;
    // v86 mode may execute SYSENTER; real mode may not.
    if ctx.cpu.mode.real() || cs & !3 == 0 { Err(Exception::gp(0)) } else { Ok(cs & !3) }
}

fn sysenter(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let cs = sysenter_cs(ctx)?;
    let long = ctx.cpu.mode.long;
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    let cpu = &mut *ctx.cpu;
    cpu.flags.0 &= !(bit::VM | bit::IF | bit::RF);
    cpu.gpr[gpr::RSP] = cpu.msr.sysenter_esp & mask;
    cpu.rip = cpu.msr.sysenter_eip & mask;
    ctx.enter_flat(cs, cs.wrapping_add(8), 0, long);
    Ok(())
}

fn sysexit<const LONG: bool>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    let cs = sysenter_cs(ctx)?;
    ctx.require_cpl0()?;
    let (rsp, rip) = (ctx.cpu.gpr[gpr::RCX], ctx.cpu.gpr[gpr::RDX]);
    if LONG && !(canonical(rsp) && canonical(rip)) {
        return Err(Exception::gp(0));
    }
    let mask = if LONG { u64::MAX } else { 0xffff_ffff };
    ctx.cpu.gpr[gpr::RSP] = rsp & mask;
    ctx.cpu.rip = rip & mask;
    let cs = cs.wrapping_add(if LONG { 32 } else { 16 });
    ctx.enter_flat(cs | 3, cs.wrapping_add(8) | 3, 3, LONG);
    Ok(())
}
