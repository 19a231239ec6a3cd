//! Control and debug registers: MOV CR, MOV DR, LMSW, SMSW, CLTS, XGETBV, XSETBV, and the PAE page-directory pointers.
//! Source: SDM vol. 3A, 2.5, 4.1.2, 4.4.1, 9.8.5; vol. 2, "MOV—Move to/from Control Registers".

use super::insn::Insn;
use super::traits::Width;
use super::{Row, end, row};
use crate::addr::Gpa;
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::mem::Target;
use crate::translate::system as emit;
use crate::vcpu::cpuid::{CpuModel, Feature};
use crate::vcpu::debug::{dr6, dr7};
use crate::vcpu::segment::attr;
use crate::vcpu::{Seg, cr0, cr4, efer, gpr};
use iced_x86::Code as C;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row(C::Mov_r32_cr, mov_from_cr).emit(emit::from_control), row(C::Mov_r64_cr, mov_from_cr).emit(emit::from_control),
    end(C::Mov_cr_r32, mov_to_cr), end(C::Mov_cr_r64, mov_to_cr),
    row(C::Mov_r32_dr, mov_from_dr), row(C::Mov_r64_dr, mov_from_dr),
    end(C::Mov_dr_r32, mov_to_dr), end(C::Mov_dr_r64, mov_to_dr),
    row(C::Smsw_rm16, smsw::<u16>), row(C::Smsw_r32m16, smsw::<u32>), row(C::Smsw_r64m16, smsw::<u64>),
    end(C::Lmsw_rm16, lmsw), end(C::Lmsw_r32m16, lmsw), end(C::Lmsw_r64m16, lmsw),
    end(C::Clts, clts), row(C::Xgetbv, xgetbv), end(C::Xsetbv, xsetbv),
];

/// Bits of CR0 that exist; the others are ignored in the low half and #GP in the high.
const CR0_BITS: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;

/// Bits of CR4 this model lets software set.
const fn cr4_bits(model: CpuModel) -> u64 {
    use Feature as F;
    #[rustfmt::skip]
    const BITS: [(F, u64); 15] = [
        (F::Vme, cr4::VME | cr4::PVI), (F::Tsc, cr4::TSD), (F::De, cr4::DE), (F::Pse, cr4::PSE),
        (F::Pae, cr4::PAE), (F::Mce, cr4::MCE), (F::Pge, cr4::PGE), (F::Fxsr, cr4::OSFXSR),
        (F::Sse, cr4::OSXMMEXCPT | cr4::PCE), (F::Umip, cr4::UMIP), (F::Fsgsbase, cr4::FSGSBASE),
        (F::Pcid, cr4::PCIDE), (F::Xsave, cr4::OSXSAVE), (F::Smep, cr4::SMEP), (F::Smap, cr4::SMAP),
    ];
    let (mut bits, mut n) = (0, 0);
    while n < BITS.len() {
        if model.has(BITS[n].0) {
            bits |= BITS[n].1;
        }
        n += 1;
    }
    bits
}

/// Physical-address bits that are reserved for this model.
pub(crate) const fn reserved_address_bits(model: CpuModel) -> u64 {
    !0 << model.physical_bits()
}

/// The general register of a MOV CR/DR.
fn source(ctx: &Ctx<'_>, i: &Insn) -> u64 {
    let v = ctx.cpu.gpr[usize::from(i.rm & 15)];
    if ctx.cpu.mode.is64() { v } else { v & 0xffff_ffff }
}

fn set_destination(ctx: &mut Ctx<'_>, i: &Insn, v: u64) {
    let v = if ctx.cpu.mode.is64() { v } else { v & 0xffff_ffff };
    ctx.cpu.gpr[usize::from(i.rm & 15)] = v;
}

fn mov_from_cr(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    if !matches!(i.reg, 0 | 2 | 3 | 4 | 8) {
        return Err(Exception::ud());
    }
    ctx.require_cpl0()?;
    let v = match i.reg {
        0 => ctx.cpu.cr0,
        2 => ctx.cpu.cr2,
        3 => ctx.cpu.cr3,
        4 => ctx.cpu.cr4,
        _ => ctx.sys.board.cr8(ctx.cpu.index).into(),
    };
    set_destination(ctx, i, v);
    Ok(())
}

fn mov_to_cr(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    if !matches!(i.reg, 0 | 2 | 3 | 4 | 8) {
        return Err(Exception::ud());
    }
    ctx.require_cpl0()?;
    let v = source(ctx, i);
    match i.reg {
        0 => ctx.write_cr0(v),
        2 => {
            ctx.cpu.cr2 = v;
            Ok(())
        }
        3 => ctx.write_cr3(v),
        4 => ctx.write_cr4(v),
        _ => write_cr8(ctx, v),
    }
}

fn write_cr8(ctx: &mut Ctx<'_>, v: u64) -> Exec {
    if v > 15 {
        return Err(Exception::gp(0));
    }
    ctx.sys.board.set_cr8(ctx.cpu.index, v as u8);
    ctx.sys.end_block();
    Ok(())
}

impl Ctx<'_> {
    /// After a change of control state: derived mode, TLB choice, and the engine's view.
    fn control_changed(&mut self) {
        self.cpu.refresh();
        self.mmu_switch();
        self.sys.refetch();
    }

    /// CR0 with all checks (#GP(0)) and the activation or deactivation of IA-32e mode.
    fn write_cr0(&mut self, v: u64) -> Exec {
        let new = (v & CR0_BITS) | cr0::ET;
        let old = self.cpu.cr0;
        let has = |bits: u64| new & bits != 0;
        if v >> 32 != 0 || (has(cr0::PG) && !has(cr0::PE)) || (has(cr0::NW) && !has(cr0::CD)) {
            return Err(Exception::gp(0));
        }
        let mut new_efer = self.cpu.msr.efer;
        let changed = new ^ old;
        if changed & cr0::PG != 0 {
            new_efer = self.paging_toggled(has(cr0::PG))?;
        }
        let pae = has(cr0::PG) && self.cpu.cr4 & cr4::PAE != 0 && new_efer & efer::LMA == 0;
        if pae && changed & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            self.load_pdptes_always(self.cpu.cr3)?;
        }
        self.cpu.cr0 = new;
        self.cpu.msr.efer = new_efer;
        self.control_changed();
        Ok(())
    }

    /// Checks of a change of CR0.PG; gives EFER with its new LMA (SDM vol. 3A, 9.8.5).
    fn paging_toggled(&self, on: bool) -> Result<u64, Exception> {
        let cpu = &self.cpu;
        let cs_long = cpu.seg[Seg::Cs as usize].attr & attr::L != 0;
        let e = cpu.msr.efer;
        if on && e & efer::LME != 0 {
            let tss16 = cpu.tr.attr & 8 == 0;
            if cpu.cr4 & cr4::PAE == 0 || cs_long || tss16 {
                return Err(Exception::gp(0));
            }
            return Ok(e | efer::LMA);
        }
        if !on && (cpu.mode.is64() || cpu.cr4 & cr4::PCIDE != 0) {
            return Err(Exception::gp(0));
        }
        Ok(e & !efer::LMA)
    }

    fn write_cr3(&mut self, v: u64) -> Exec {
        let no_flush = if self.cpu.cr4 & cr4::PCIDE != 0 { 1 << 63 } else { 0 };
        let new = v & !no_flush;
        if self.cpu.mode.long && new & reserved_address_bits(self.cpu.model) != 0 {
            return Err(Exception::gp(0));
        }
        self.load_pdptes(new)?;
        self.cpu.cr3 = new;
        self.mmu_switch();
        Ok(())
    }

    fn write_cr4(&mut self, v: u64) -> Exec {
        let old = self.cpu.cr4;
        let set = v & !old;
        let long = self.cpu.mode.long;
        let bad = v & !cr4_bits(self.cpu.model) != 0
            || (long && v & cr4::PAE == 0)
            || (set & cr4::PCIDE != 0 && (!long || self.cpu.cr3 & 0xfff != 0));
        if bad {
            return Err(Exception::gp(0));
        }
        const RELOAD: u64 = cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP;
        let pae = self.cpu.cr0 & cr0::PG != 0 && v & cr4::PAE != 0 && !long;
        if pae && (v ^ old) & RELOAD != 0 {
            self.load_pdptes_always(self.cpu.cr3)?;
        }
        self.cpu.cr4 = v;
        self.control_changed();
        Ok(())
    }

    /// Loads the PDPTEs from `cr3` if PAE paging is in use. #GP(0), with nothing changed, if a present one has a
    /// reserved bit set (SDM vol. 3A, 4.4.1).
    pub fn load_pdptes(&mut self, cr3: u64) -> Exec {
        let pae = self.cpu.cr0 & cr0::PG != 0 && self.cpu.cr4 & cr4::PAE != 0 && !self.cpu.mode.long;
        if pae { self.load_pdptes_always(cr3) } else { Ok(()) }
    }

    fn load_pdptes_always(&mut self, cr3: u64) -> Exec {
        let reserved = reserved_address_bits(self.cpu.model) | 0x1e6;
        let mut new = [0u64; 4];
        for (n, entry) in new.iter_mut().enumerate() {
            let gpa = Gpa(((cr3 & 0xffff_ffe0) + 8 * n as u64) & self.sys.mem.a20_mask);
            *entry = match self.sys.mem.map.lookup(gpa) {
                Target::Ram(off) | Target::Rom(off) => self.sys.mem.ram.read(off),
                Target::Mmio => u64::MAX,
            };
            if *entry & 1 != 0 && *entry & reserved != 0 {
                return Err(Exception::gp(0));
            }
        }
        self.cpu.pdpte = new;
        Ok(())
    }
}

fn smsw<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.require_umip()?;
    let v = ctx.cpu.cr0;
    if i.is_mem() { ctx.set_rm(i, v as u16) } else { ctx.set_rm(i, W::of(v)) }
}

/// Loads PE, MP, EM and TS; PE cannot be cleared.
fn lmsw(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.require_cpl0()?;
    let v = u64::from(ctx.rm::<u16>(i)?) & 0xf;
    let old = ctx.cpu.cr0;
    ctx.write_cr0((old & !0xe) | v)
}

fn clts(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    ctx.require_cpl0()?;
    ctx.cpu.cr0 &= !cr0::TS;
    ctx.control_changed();
    Ok(())
}

/// The number of the debug register a MOV DR means: DR4 and DR5 are DR6 and DR7, or #UD with CR4.DE. Then privilege,
/// then general detect.
fn debug_register(ctx: &mut Ctx<'_>, i: &Insn) -> Result<usize, Exception> {
    let aliased = matches!(i.reg, 4 | 5);
    if i.reg > 7 || (aliased && ctx.cpu.cr4 & cr4::DE != 0) {
        return Err(Exception::ud());
    }
    ctx.require_cpl0()?;
    if ctx.cpu.dr7 & dr7::GD != 0 {
        return Err(Exception::db(dr6::BD));
    }
    Ok(usize::from(if aliased { i.reg + 2 } else { i.reg }))
}

fn mov_from_dr(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let v = match debug_register(ctx, i)? {
        6 => ctx.cpu.dr6,
        7 => ctx.cpu.dr7,
        n => ctx.cpu.dr[n & 3],
    };
    set_destination(ctx, i, v);
    Ok(())
}

fn mov_to_dr(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let n = debug_register(ctx, i)?;
    let v = source(ctx, i);
    if n >= 6 && v >> 32 != 0 {
        return Err(Exception::gp(0));
    }
    match n {
        6 => ctx.cpu.dr6 = (v & dr6::WRITABLE) | dr6::FIXED,
        7 => ctx.cpu.dr7 = (v & dr7::WRITABLE) | dr7::FIXED,
        _ => ctx.cpu.dr[n & 3] = v,
    }
    ctx.refresh_debug_regs();
    ctx.sys.end_block();
    Ok(())
}

fn xgetbv(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    if ctx.cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    if ctx.cpu.gpr[gpr::RCX] as u32 != 0 {
        return Err(Exception::gp(0));
    }
    let v = ctx.cpu.xcr0;
    ctx.cpu.set_edx_eax(v);
    Ok(())
}

/// XCR0 has the x87 (always set) and SSE bits.
fn xsetbv(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    if ctx.cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    ctx.require_cpl0()?;
    let v = ctx.cpu.edx_eax();
    if ctx.cpu.gpr[gpr::RCX] as u32 != 0 || !matches!(v, 1 | 3) {
        return Err(Exception::gp(0));
    }
    ctx.cpu.xcr0 = v;
    Ok(())
}

impl crate::vcpu::Vcpu {
    /// EDX:EAX.
    pub(crate) fn edx_eax(&self) -> u64 {
        self.gpr[gpr::RDX] << 32 | self.gpr[gpr::RAX] & 0xffff_ffff
    }

    /// Sets EDX:EAX, clearing the upper halves of RDX and RAX.
    pub(crate) fn set_edx_eax(&mut self, v: u64) {
        self.gpr[gpr::RAX] = v & 0xffff_ffff;
        self.gpr[gpr::RDX] = v >> 32;
    }
}
