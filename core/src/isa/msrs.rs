//! RDMSR and WRMSR. Source: SDM vol. 4, table 2-2; vol. 3A, 12.11 (MTRRs), 12.12 (PAT), 18.17 (TSC), 11.4.4 and
//! 11.12.5 (IA32_APIC_BASE). Unknown registers and reserved bits are #GP(0).

use super::control::reserved_address_bits;
use super::insn::Insn;
use super::{Row, end, row};
use crate::addr::GuestTime;
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::vcpu::cpuid::{CpuModel, Feature};
use crate::vcpu::descriptor::canonical;
use crate::vcpu::{Seg, Vcpu, cr0, efer, gpr};
use iced_x86::Code as C;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[row(C::Rdmsr, rdmsr), end(C::Wrmsr, wrmsr)];

/// Ticks of the TSC in a second of guest time: one each nanosecond.
pub const TSC_HZ: u64 = 1_000_000_000;

/// MSR numbers.
pub mod num {
    pub const P5_MC_ADDR: u32 = 0;
    pub const P5_MC_TYPE: u32 = 1;
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const EBL_CR_POWERON: u32 = 0x2a;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const PERFCTR0: u32 = 0xc1;
    pub const PERFCTR1: u32 = 0xc2;
    pub const FSB_FREQ: u32 = 0xcd;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const BBL_CR_CTL3: u32 = 0x11e;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const EVNTSEL0: u32 = 0x186;
    pub const EVNTSEL1: u32 = 0x187;
    pub const PERF_STATUS: u32 = 0x198;
    pub const PERF_CTL: u32 = 0x199;
    pub const THERM_INTERRUPT: u32 = 0x19b;
    pub const THERM_STATUS: u32 = 0x19c;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const LAST_BRANCH_FROM: u32 = 0x1db;
    pub const LAST_INT_TO: u32 = 0x1de;
    pub const MTRR_PHYSBASE0: u32 = 0x200;
    pub const MTRR_PHYSMASK7: u32 = 0x20f;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// IA32_APIC_BASE bits.
const APIC_EN: u64 = 1 << 11;
const APIC_EXTD: u64 = 1 << 10;
const APIC_BSP: u64 = 1 << 8;

/// Eight variable-range registers, fixed ranges, write-combining.
const MTRR_CAP: u64 = 0x508;

/// Not vulnerable to: rogue data cache load, L1TF (no flush needed), store bypass, MDS, page-size-change machine
/// checks, TAA, stale fill-buffer data (three forms), branch history injection, post-barrier return predictions,
/// gather data sampling, register-file data sampling, indirect target selection. True of an engine that speculates
/// nothing, and spares guests their mitigations.
const ARCH_CAPABILITIES: u64 = 1 | 0xf << 3 | 1 << 8 | 7 << 13 | 1 << 20 | 1 << 24 | 3 << 26 | 1 << 62;

/// Branch-trace and PEBS "unavailable" bits of IA32_MISC_ENABLE: read-only ones.
const MISC_ENABLE_FIXED: u64 = 0x1800;

fn check(ok: bool) -> Exec {
    if ok { Ok(()) } else { Err(Exception::gp(0)) }
}

fn msr_allowed(ctx: &Ctx<'_>) -> Exec {
    if !ctx.cpu.model.has(Feature::Msr) {
        return Err(Exception::ud());
    }
    ctx.require_cpl0()
}

fn rdmsr(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    msr_allowed(ctx)?;
    let v = ctx.read_msr(ctx.cpu.gpr[gpr::RCX] as u32)?;
    ctx.cpu.set_edx_eax(v);
    Ok(())
}

fn wrmsr(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    msr_allowed(ctx)?;
    ctx.write_msr(ctx.cpu.gpr[gpr::RCX] as u32, ctx.cpu.edx_eax())?;
    ctx.sys.end_block();
    Ok(())
}

/// The first model that has this MSR.
fn first_model(msr: u32) -> CpuModel {
    match msr {
        num::P5_MC_ADDR | num::P5_MC_TYPE | num::TSC => CpuModel::Pentium,
        num::TSC_ADJUST
        | num::FSB_FREQ
        | num::PLATFORM_INFO
        | num::ARCH_CAPABILITIES
        | num::PERF_STATUS
        | num::PERF_CTL
        | num::THERM_INTERRUPT
        | num::THERM_STATUS
        | num::MISC_ENABLE
        | num::TSC_DEADLINE
        | num::X2APIC_FIRST..=num::X2APIC_LAST
        | num::EFER..=num::FMASK
        | num::FS_BASE..=num::TSC_AUX
        | num::FEATURE_CONTROL => CpuModel::X86_64V2,
        _ => CpuModel::Pentium3,
    }
}

/// Slot of a fixed-range MTRR in `Msrs::mtrr_fix`.
fn mtrr_fix(msr: u32) -> Option<usize> {
    match msr {
        num::MTRR_FIX64K => Some(0),
        0x258 | 0x259 => Some((msr - 0x257) as usize),
        0x268..=0x26f => Some((msr - 0x265) as usize),
        _ => None,
    }
}

const fn mtrr_type(t: u64) -> bool {
    matches!(t & 0xff, 0 | 1 | 4 | 5 | 6)
}

impl Ctx<'_> {
    /// The TSC as RDTSC shows it now.
    pub fn read_tsc(&mut self) -> u64 {
        self.sys.read_time().0.wrapping_add(self.cpu.msr.tsc_offset)
    }

    /// Reads an MSR; #GP(0) if there is none of this number.
    pub fn read_msr(&mut self, msr: u32) -> Result<u64, Exception> {
        if self.cpu.model < first_model(msr) {
            return Err(Exception::gp(0));
        }
        let m = &self.cpu.msr;
        Ok(match msr {
            num::TSC => self.read_tsc(),
            num::APIC_BASE => m.apic_base,
            num::FEATURE_CONTROL => 1,
            num::TSC_ADJUST => m.tsc_adjust,
            num::BIOS_SIGN_ID => m.bios_sign_id,
            // Base ratio 10 × 100 MHz.
            num::PLATFORM_INFO => 0xa00,
            num::MTRR_CAP => MTRR_CAP,
            num::ARCH_CAPABILITIES => ARCH_CAPABILITIES,
            num::SYSENTER_CS => m.sysenter_cs,
            num::SYSENTER_ESP => m.sysenter_esp,
            num::SYSENTER_EIP => m.sysenter_eip,
            num::MCG_STATUS => m.mcg_status,
            num::MISC_ENABLE => m.misc_enable | MISC_ENABLE_FIXED,
            num::DEBUGCTL => m.debugctl,
            num::MTRR_PHYSBASE0..=num::MTRR_PHYSMASK7 => {
                m.mtrr_var[(msr - num::MTRR_PHYSBASE0) as usize & 15]
            }
            num::PAT => m.pat,
            num::MTRR_DEF_TYPE => m.mtrr_def_type,
            num::TSC_DEADLINE => self.sys.board.tsc_deadline(self.cpu.index),
            num::X2APIC_FIRST..=num::X2APIC_LAST => self.read_x2apic(msr)?,
            num::EFER => m.efer,
            num::STAR => m.star,
            num::LSTAR => m.lstar,
            num::CSTAR => m.cstar,
            num::FMASK => m.sfmask,
            num::FS_BASE => self.cpu.seg[Seg::Fs as usize].base,
            num::GS_BASE => self.cpu.seg[Seg::Gs as usize].base,
            num::KERNEL_GS_BASE => m.kernel_gs_base,
            num::TSC_AUX => m.tsc_aux,
            _ if mtrr_fix(msr).is_some() => m.mtrr_fix[mtrr_fix(msr).unwrap_or(0)],
            _ if reads_zero(msr) => 0,
            _ => return Err(Exception::gp(0)),
        })
    }

    /// Writes an MSR; #GP(0), with nothing changed, if it does not exist, is read-only, or a reserved bit is set.
    pub fn write_msr(&mut self, msr: u32, v: u64) -> Exec {
        check(self.cpu.model >= first_model(msr))?;
        match msr {
            num::TSC => self.write_tsc(v),
            num::TSC_ADJUST => self.adjust_tsc(v),
            num::TSC_DEADLINE => self.arm_tsc_deadline(v),
            num::APIC_BASE => return self.write_apic_base(v),
            num::X2APIC_FIRST..=num::X2APIC_LAST => return self.write_x2apic(msr, v),
            num::EFER => return self.write_efer(v),
            num::FS_BASE | num::GS_BASE => {
                check(canonical(v))?;
                let seg = if msr == num::FS_BASE { Seg::Fs } else { Seg::Gs };
                self.cpu.seg[seg as usize].base = v;
                self.cpu.refresh();
            }
            num::LSTAR | num::CSTAR | num::KERNEL_GS_BASE | num::SYSENTER_ESP | num::SYSENTER_EIP => {
                check(canonical(v))?;
                self.cpu.write_plain_msr(msr, v);
            }
            num::FMASK | num::TSC_AUX | num::SYSENTER_CS => {
                check(v >> 32 == 0)?;
                self.cpu.write_plain_msr(msr, v);
            }
            num::PAT => {
                check((0..8).all(|n| matches!(v >> (8 * n) & 0xff, 0 | 1 | 4 | 5 | 6 | 7)))?;
                self.cpu.msr.pat = v;
            }
            num::DEBUGCTL => {
                check(v & !3 == 0)?;
                self.cpu.msr.debugctl = v;
            }
            num::MCG_STATUS => {
                check(v & !7 == 0)?;
                self.cpu.msr.mcg_status = v;
            }
            num::MISC_ENABLE => self.cpu.msr.misc_enable = v & !MISC_ENABLE_FIXED,
            num::STAR => self.cpu.msr.star = v,
            num::BIOS_SIGN_ID => self.cpu.msr.bios_sign_id = v,
            num::MTRR_PHYSBASE0..=num::MTRR_PHYSMASK7 | num::MTRR_DEF_TYPE => {
                return self.cpu.write_mtrr(msr, v);
            }
            _ if mtrr_fix(msr).is_some() => {
                check((0..8).all(|n| mtrr_type(v >> (8 * n))))?;
                self.cpu.msr.mtrr_fix[mtrr_fix(msr).unwrap_or(0)] = v;
            }
            _ => return check(ignores_writes(msr)),
        }
        Ok(())
    }

    fn read_x2apic(&mut self, msr: u32) -> Result<u64, Exception> {
        check(self.cpu.msr.apic_base & APIC_EXTD != 0)?;
        let index = self.cpu.index;
        let (board, mut bus) = self.sys.bus();
        board.x2apic_read(index, msr as u8, &mut bus).ok_or(Exception::gp(0))
    }

    fn write_x2apic(&mut self, msr: u32, v: u64) -> Exec {
        check(self.cpu.msr.apic_base & APIC_EXTD != 0)?;
        let index = self.cpu.index;
        let (board, mut bus) = self.sys.bus();
        check(board.x2apic_write(index, msr as u8, v, &mut bus))
    }

    /// IA32_APIC_BASE: reserved bits, and the transitions of SDM vol. 3A, figure 11-27.
    fn write_apic_base(&mut self, v: u64) -> Exec {
        let model = self.cpu.model;
        let extd = if model.has(Feature::X2apic) { APIC_EXTD } else { 0 };
        let allowed = 0xf_ffff_ffff_f000 | APIC_EN | APIC_BSP | extd;
        let old = self.cpu.msr.apic_base & (APIC_EN | APIC_EXTD);
        let new = v & (APIC_EN | APIC_EXTD);
        let invalid = new == APIC_EXTD
            || (old == APIC_EN | APIC_EXTD && new == APIC_EN)
            || (old == 0 && new == APIC_EN | APIC_EXTD);
        check(v & !allowed == 0 && v & reserved_address_bits(model) == 0 && !invalid)?;
        self.cpu.msr.apic_base = v;
        self.sys.board.set_apic_base(self.cpu.index, v);
        self.sys.end_block();
        Ok(())
    }

    /// IA32_EFER: LMA is read-only; LME cannot change while paging is on.
    fn write_efer(&mut self, v: u64) -> Exec {
        let old = self.cpu.msr.efer;
        let lme_change = (v ^ old) & efer::LME != 0;
        check(v & !(efer::SCE | efer::LME | efer::LMA | efer::NXE) == 0)?;
        check(!(lme_change && self.cpu.cr0 & cr0::PG != 0))?;
        self.cpu.msr.efer = (v & !efer::LMA) | (old & efer::LMA);
        self.cpu.refresh();
        self.mmu_switch();
        Ok(())
    }

    /// Writing the TSC moves TSC_ADJUST by the same amount (SDM vol. 3B, 18.17.3).
    fn write_tsc(&mut self, v: u64) {
        let delta = v.wrapping_sub(self.read_tsc());
        let m = &mut self.cpu.msr;
        m.tsc_adjust = m.tsc_adjust.wrapping_add(delta);
        self.shift_tsc(delta);
    }

    fn adjust_tsc(&mut self, v: u64) {
        let delta = v.wrapping_sub(self.cpu.msr.tsc_adjust);
        self.cpu.msr.tsc_adjust = v;
        self.shift_tsc(delta);
    }

    /// An armed deadline is a TSC value: it moves in guest time when the TSC jumps.
    fn shift_tsc(&mut self, delta: u64) {
        self.cpu.msr.tsc_offset = self.cpu.msr.tsc_offset.wrapping_add(delta);
        let armed = self.sys.board.tsc_deadline(self.cpu.index);
        if armed != 0 {
            self.arm_tsc_deadline(armed);
        }
    }

    fn arm_tsc_deadline(&mut self, tsc: u64) {
        let at = self.cpu.tsc_to_time(tsc);
        self.sys.board.set_tsc_deadline(self.cpu.index, tsc, at);
        self.sys.end_block();
    }
}

/// Registers without function here that guests read unconditionally: they read zero.
fn reads_zero(msr: u32) -> bool {
    matches!(
        msr,
        num::P5_MC_ADDR
            | num::P5_MC_TYPE
            | num::PLATFORM_ID
            | num::EBL_CR_POWERON
            | num::PERFCTR0
            | num::PERFCTR1
            | num::FSB_FREQ
            | num::BBL_CR_CTL3
            | num::MCG_CAP
            | num::EVNTSEL0
            | num::EVNTSEL1
            | num::PERF_STATUS
            | num::PERF_CTL
            | num::THERM_INTERRUPT
            | num::THERM_STATUS
            | num::LAST_BRANCH_FROM..=num::LAST_INT_TO
    )
}

/// Registers without function here whose writes do nothing.
fn ignores_writes(msr: u32) -> bool {
    matches!(
        msr,
        num::P5_MC_ADDR
            | num::P5_MC_TYPE
            | num::EBL_CR_POWERON
            | num::BIOS_UPDT_TRIG
            | num::PERFCTR0
            | num::PERFCTR1
            | num::BBL_CR_CTL3
            | num::EVNTSEL0
            | num::EVNTSEL1
            | num::PERF_CTL
            | num::THERM_INTERRUPT
            | num::THERM_STATUS
    )
}

impl Vcpu {
    /// The guest time at which the TSC of this vCPU reads `tsc`; the start of time if that is before it.
    pub fn tsc_to_time(&self, tsc: u64) -> GuestTime {
        let at = i128::from(tsc) - i128::from(self.msr.tsc_offset as i64);
        GuestTime(u64::try_from(at.max(0)).unwrap_or(u64::MAX))
    }

    /// Stores an MSR whose value has been checked.
    fn write_plain_msr(&mut self, msr: u32, v: u64) {
        let m = &mut self.msr;
        match msr {
            num::LSTAR => m.lstar = v,
            num::CSTAR => m.cstar = v,
            num::KERNEL_GS_BASE => m.kernel_gs_base = v,
            num::SYSENTER_ESP => m.sysenter_esp = v,
            num::SYSENTER_EIP => m.sysenter_eip = v,
            num::FMASK => m.sfmask = v,
            num::TSC_AUX => m.tsc_aux = v,
            num::SYSENTER_CS => m.sysenter_cs = v,
            _ => crate::bug!("MSR {msr:#x} is not a plain register"),
        }
    }

    fn write_mtrr(&mut self, msr: u32, v: u64) -> Exec {
        if msr == num::MTRR_DEF_TYPE {
            check(v & !0xcff == 0 && mtrr_type(v))?;
            self.msr.mtrr_def_type = v;
            return Ok(());
        }
        let low = if msr & 1 == 0 { 0xf00 } else { 0x7ff };
        check(v & (low | reserved_address_bits(self.model)) == 0 && (msr & 1 == 1 || mtrr_type(v)))?;
        self.msr.mtrr_var[(msr - num::MTRR_PHYSBASE0) as usize & 15] = v;
        Ok(())
    }
}
