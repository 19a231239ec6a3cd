//! Descriptor-table registers and descriptor inspection: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR, LAR, LSL,
//! VERR, VERW, ARPL. Source: SDM vol. 2; vol. 3A, 5.10.

use super::insn::Insn;
use super::traits::Width;
use super::{Row, end, row};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::mmu::Access;
use crate::vcpu::cr4;
use crate::vcpu::descriptor::{Descriptor, canonical, is_null, kind, selector_error};
use crate::vcpu::flags::bit;
use crate::vcpu::segment::{Segment, TableReg};
use iced_x86::Code as C;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row(C::Sgdt_m1632_16, sgdt), row(C::Sgdt_m1632, sgdt), row(C::Sgdt_m1664, sgdt),
    row(C::Sidt_m1632_16, sidt), row(C::Sidt_m1632, sidt), row(C::Sidt_m1664, sidt),
    end(C::Lgdt_m1632_16, lgdt::<0xff_ffff>), end(C::Lgdt_m1632, lgdt::<0xffff_ffff>),
    end(C::Lgdt_m1664, lgdt::<{ u64::MAX }>), end(C::Lidt_m1632_16, lidt::<0xff_ffff>),
    end(C::Lidt_m1632, lidt::<0xffff_ffff>), end(C::Lidt_m1664, lidt::<{ u64::MAX }>),
    row(C::Sldt_rm16, sldt::<u16>), row(C::Sldt_r32m16, sldt::<u32>), row(C::Sldt_r64m16, sldt::<u64>),
    row(C::Str_rm16, str::<u16>), row(C::Str_r32m16, str::<u32>), row(C::Str_r64m16, str::<u64>),
    end(C::Lldt_rm16, lldt), end(C::Lldt_r32m16, lldt), end(C::Lldt_r64m16, lldt),
    end(C::Ltr_rm16, ltr), end(C::Ltr_r32m16, ltr), end(C::Ltr_r64m16, ltr),
    row(C::Lar_r16_rm16, lar::<u16>), row(C::Lar_r32_r32m16, lar::<u32>), row(C::Lar_r64_r64m16, lar::<u64>),
    row(C::Lsl_r16_rm16, lsl::<u16>), row(C::Lsl_r32_r32m16, lsl::<u32>), row(C::Lsl_r64_r64m16, lsl::<u64>),
    row(C::Verr_rm16, verr), row(C::Verr_r32m16, verr), row(C::Verr_r64m16, verr),
    row(C::Verw_rm16, verw), row(C::Verw_r32m16, verw), row(C::Verw_r64m16, verw),
    row(C::Arpl_rm16_r16, arpl), row(C::Arpl_r32m16_r32, arpl),
];

impl Ctx<'_> {
    /// #GP(0) unless CPL = 0.
    pub(super) fn require_cpl0(&self) -> Exec {
        if self.cpu.mode.cpl == 0 { Ok(()) } else { Err(Exception::gp(0)) }
    }

    /// #UD in real and v86 mode.
    pub(super) fn require_protected(&self) -> Exec {
        if self.cpu.mode.protected { Ok(()) } else { Err(Exception::ud()) }
    }

    /// CR4.UMIP: #GP(0) outside CPL 0 for SGDT, SIDT, SLDT, STR, SMSW.
    pub(super) fn require_umip(&self) -> Exec {
        if self.cpu.cr4 & cr4::UMIP != 0 { self.require_cpl0() } else { Ok(()) }
    }
}

fn sgdt(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    store_table(ctx, i, ctx.cpu.gdtr)
}

fn sidt(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    store_table(ctx, i, ctx.cpu.idtr)
}

/// All 32 bits of the base are stored whatever the operand size; 64 in 64-bit mode.
fn store_table(ctx: &mut Ctx<'_>, i: &Insn, table: TableReg) -> Exec {
    ctx.require_umip()?;
    let at = ctx.ea(i);
    let base = at.wrapping_add(2) & i.addr_mask;
    let long = ctx.cpu.mode.is64();
    ctx.probe(i.seg, base, if long { 8 } else { 4 }, Access::Write)?;
    ctx.store(i.seg, at, table.limit)?;
    if long { ctx.store(i.seg, base, table.base) } else { ctx.store(i.seg, base, table.base as u32) }
}

fn load_table(ctx: &mut Ctx<'_>, i: &Insn, mask: u64) -> Result<TableReg, Exception> {
    ctx.require_cpl0()?;
    let at = ctx.ea(i);
    let limit = ctx.load::<u16>(i.seg, at)?;
    let from = at.wrapping_add(2) & i.addr_mask;
    let base = if ctx.cpu.mode.is64() {
        ctx.load::<u64>(i.seg, from)?
    } else {
        u64::from(ctx.load::<u32>(i.seg, from)?) & mask
    };
    if canonical(base) { Ok(TableReg { base, limit }) } else { Err(Exception::gp(0)) }
}

fn lgdt<const MASK: u64>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.cpu.gdtr = load_table(ctx, i, MASK)?;
    Ok(())
}

fn lidt<const MASK: u64>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.cpu.idtr = load_table(ctx, i, MASK)?;
    Ok(())
}

/// Stores a selector: 16 bits to memory, zero-extended to a register.
fn store_selector<W: Width>(ctx: &mut Ctx<'_>, i: &Insn, selector: u16) -> Exec {
    ctx.require_protected()?;
    ctx.require_umip()?;
    if i.is_mem() { ctx.set_rm(i, selector) } else { ctx.set_rm(i, W::of(selector.into())) }
}

fn sldt<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    store_selector::<W>(ctx, i, ctx.cpu.ldtr.selector)
}

fn str<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    store_selector::<W>(ctx, i, ctx.cpu.tr.selector)
}

fn lldt(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.require_protected()?;
    ctx.require_cpl0()?;
    let selector = ctx.rm::<u16>(i)?;
    if is_null(selector) {
        ctx.cpu.ldtr = Segment::null(selector, 0);
        return Ok(());
    }
    let d = table_descriptor(ctx, selector, &[kind::LDT])?;
    ctx.cpu.ldtr = d.segment(selector);
    Ok(())
}

fn ltr(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.require_protected()?;
    ctx.require_cpl0()?;
    let selector = ctx.rm::<u16>(i)?;
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let kinds: &[u8] = if ctx.cpu.mode.long { &[kind::TSS32] } else { &[kind::TSS16, kind::TSS32] };
    let d = table_descriptor(ctx, selector, kinds)?;
    ctx.set_tss_busy(d.lin, true)?;
    ctx.cpu.tr = d.segment(selector);
    ctx.cpu.tr.attr |= 2;
    Ok(())
}

/// The GDT descriptor LLDT and LTR load: of one of `kinds`, present, with a canonical base.
fn table_descriptor(ctx: &mut Ctx<'_>, selector: u16, kinds: &[u8]) -> Result<Descriptor, Exception> {
    let bad = Exception::gp(selector_error(selector, 0));
    if selector & 4 != 0 {
        return Err(bad);
    }
    let d = ctx.system_descriptor(selector, vector::GP, 0)?;
    if !kinds.contains(&d.kind()) || !canonical(d.base()) {
        return Err(bad);
    }
    if d.present() { Ok(d) } else { Err(Exception::np(selector_error(selector, 0))) }
}

/// The descriptor LAR, LSL, VERR and VERW look at; `None` where they clear ZF: null, outside its table, or out of
/// reach of max(CPL, RPL) unless conforming code.
fn visible_descriptor(ctx: &mut Ctx<'_>, i: &Insn) -> Result<Option<Descriptor>, Exception> {
    ctx.require_protected()?;
    let selector = ctx.rm::<u16>(i)?;
    if is_null(selector) {
        return Ok(None);
    }
    let d = match ctx.system_descriptor(selector, vector::GP, 0) {
        Ok(d) => d,
        Err(e) if e.vector == vector::GP => return Ok(None),
        Err(e) => return Err(e),
    };
    let reach = ctx.cpu.mode.cpl.max(selector as u8 & 3);
    Ok((d.is_conforming() || d.dpl() >= reach).then_some(d))
}

fn set_zf(ctx: &mut Ctx<'_>, on: bool) -> Exec {
    ctx.cpu.flags.put(bit::ZF, on);
    Ok(())
}

fn lar<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let long = ctx.cpu.mode.long;
    let d = visible_descriptor(ctx, i)?.filter(|d| {
        d.is_segment()
            || match d.kind() {
                kind::LDT | kind::TSS32 | kind::TSS32_BUSY | kind::CALL32 => true,
                kind::TSS16 | kind::TSS16_BUSY | kind::CALL16 | kind::TASK_GATE => !long,
                _ => false,
            }
    });
    if let Some(d) = d {
        ctx.set_reg(i, W::of(d.lo >> 32 & 0x00f0_ff00));
    }
    set_zf(ctx, d.is_some())
}

fn lsl<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let long = ctx.cpu.mode.long;
    let d = visible_descriptor(ctx, i)?.filter(|d| {
        d.is_segment()
            || match d.kind() {
                kind::LDT | kind::TSS32 | kind::TSS32_BUSY => true,
                kind::TSS16 | kind::TSS16_BUSY => !long,
                _ => false,
            }
    });
    if let Some(d) = d {
        ctx.set_reg(i, W::of(d.limit().into()));
    }
    set_zf(ctx, d.is_some())
}

fn verr(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let ok = visible_descriptor(ctx, i)?.is_some_and(|d| d.is_readable());
    set_zf(ctx, ok)
}

fn verw(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let ok = visible_descriptor(ctx, i)?.is_some_and(|d| d.is_writable_data());
    set_zf(ctx, ok)
}

fn arpl(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.require_protected()?;
    let dst = ctx.rmw::<u16>(i)?;
    let src = ctx.reg::<u16>(i);
    let raise = dst & 3 < src & 3;
    if raise {
        ctx.set_rm(i, (dst & !3) | (src & 3))?;
    }
    set_zf(ctx, raise)
}
