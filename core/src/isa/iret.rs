//! IRET, IRETD, IRETQ in every mode. Source: SDM vol. 2A, "IRET/IRETD/IRETQ".

use super::farxfer::slot;
use super::insn::Insn;
use super::traits::Width;
use super::{Row, end};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::mmu::Privilege;
use crate::vcpu::descriptor::{is_null, kind, selector_error};
use crate::vcpu::flags::bit;
use crate::vcpu::newstack::Slot;
use crate::vcpu::task::{Nesting, TaskSwitch};
use crate::vcpu::{Seg, cr4, gpr};
use iced_x86::Code as C;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[end(C::Iretw, iret::<u16>), end(C::Iretd, iret::<u32>), end(C::Iretq, iret::<u64>)];

/// What IRET pops first.
struct Frame {
    rip: u64,
    cs: u16,
    flags: u64,
    slot: Slot,
}

fn iret<W: Width>(ctx: &mut Ctx<'_>, _i: &Insn) -> Exec {
    // Even an IRET that faults ends the blocking of NMIs.
    ctx.cpu.nmi_blocked = false;
    let r = perform::<W>(ctx);
    ctx.attend();
    r
}

fn perform<W: Width>(ctx: &mut Ctx<'_>) -> Exec {
    let slot = slot::<W>();
    if ctx.cpu.mode.v86 {
        return ctx.iret_v86(slot);
    }
    if ctx.cpu.mode.protected && ctx.cpu.flags.has(bit::NT) {
        return ctx.iret_task();
    }
    let frame = ctx.iret_frame(slot)?;
    if !ctx.cpu.mode.protected {
        return ctx.iret_8086(&frame, REAL_FLAGS);
    }
    if !ctx.cpu.mode.long && slot == Slot::Dword && frame.flags & bit::VM != 0 && ctx.cpu.mode.cpl == 0 {
        return ctx.iret_to_v86(&frame);
    }
    ctx.iret_protected(&frame)
}

/// Flags every IRET loads; RF only with a 32- or 64-bit operand, as all above bit 15.
const COMMON: u64 = bit::ARITH | bit::TF | bit::DF | bit::NT | bit::RF | bit::AC | bit::ID;
const REAL_FLAGS: u64 = COMMON | bit::IF | bit::IOPL;

impl Ctx<'_> {
    fn iret_frame(&mut self, slot: Slot) -> Result<Frame, Exception> {
        let rip = self.peek_slot(0, 0, slot)?;
        let cs = self.peek_slot(1, 0, slot)? as u16;
        Ok(Frame { rip, cs, flags: self.peek_slot(2, 0, slot)?, slot })
    }

    /// Loads the flags of `mask` that the operand size covers.
    fn iret_flags(&mut self, frame: &Frame, mask: u64) {
        let covered = if frame.slot == Slot::Word { 0xffff } else { 0xffff_ffff };
        self.cpu.flags.replace(mask & covered, frame.flags);
    }

    /// Real mode, and v86 mode with IOPL 3.
    fn iret_8086(&mut self, frame: &Frame, mask: u64) -> Exec {
        let cs = &mut self.cpu.seg[Seg::Cs as usize];
        if frame.rip > u64::from(cs.limit) {
            return Err(Exception::gp(0));
        }
        *cs = cs.with_real_selector(frame.cs);
        self.cpu.rip = frame.rip;
        self.set_sp(self.cpu.gpr[gpr::RSP].wrapping_add(3 * frame.slot.bytes()));
        self.iret_flags(frame, mask);
        self.cpu.refresh();
        self.mmu_switch();
        Ok(())
    }

    fn iret_v86(&mut self, slot: Slot) -> Exec {
        if self.cpu.flags.iopl() == 3 {
            let frame = self.iret_frame(slot)?;
            return self.iret_8086(&frame, COMMON | bit::IF);
        }
        if self.cpu.cr4 & cr4::VME == 0 || slot != Slot::Word {
            return Err(Exception::gp(0));
        }
        let frame = self.iret_frame(slot)?;
        let wants_if = frame.flags & bit::IF != 0;
        if frame.flags & bit::TF != 0 || (wants_if && self.cpu.flags.has(bit::VIP)) {
            return Err(Exception::gp(0));
        }
        self.iret_8086(&frame, COMMON)?;
        self.cpu.flags.put(bit::VIF, wants_if);
        Ok(())
    }

    /// Return to v86 mode: ESP, SS, ES, DS, FS, GS follow on the stack.
    fn iret_to_v86(&mut self, frame: &Frame) -> Exec {
        let mut tail = [0u64; 6];
        for (n, value) in tail.iter_mut().enumerate() {
            *value = self.peek_slot(3 + n as u64, 0, Slot::Dword)?;
        }
        if frame.rip & 0xffff_0000 != 0 {
            return Err(Exception::gp(0));
        }
        let [esp, ss, es, ds, fs, gs] = tail;
        self.cpu.flags.0 = (frame.flags & crate::vcpu::flags::WRITABLE) | bit::FIXED;
        self.cpu.load_v86_segments([es as u16, frame.cs, ss as u16, ds as u16, fs as u16, gs as u16]);
        self.cpu.gpr[gpr::RSP] = esp;
        self.cpu.rip = frame.rip;
        self.cpu.refresh();
        self.mmu_switch();
        Ok(())
    }

    /// NT: return to the task the current TSS links to.
    fn iret_task(&mut self) -> Exec {
        if self.cpu.mode.long {
            return Err(Exception::gp(0));
        }
        let selector: u16 = self.read_lin(self.table_address(self.cpu.tr.base, 0), Privilege::System)?;
        let bad = Exception::ts(selector_error(selector, 0));
        if selector & 4 != 0 || is_null(selector) {
            return Err(bad);
        }
        let tss = self.descriptor(selector, vector::TS, 0)?;
        if !matches!(tss.kind(), kind::TSS16_BUSY | kind::TSS32_BUSY) {
            return Err(bad);
        }
        if !tss.present() {
            return Err(Exception::np(selector_error(selector, 0)));
        }
        let flags = self.cpu.flags.0 & !bit::RF;
        let nesting = Nesting::Return;
        self.task_switch_by_instruction(&TaskSwitch { selector, tss, nesting, ext: 0, error: None, flags })
    }

    fn iret_protected(&mut self, frame: &Frame) -> Exec {
        let cpl = self.cpu.mode.cpl;
        let cs = self.return_code(frame.cs)?;
        let outer = frame.cs as u8 & 3 > cpl;
        let mut mask = COMMON;
        if cpl <= self.cpu.flags.iopl() {
            mask |= bit::IF;
        }
        if cpl == 0 {
            mask |= bit::IOPL | bit::VIF | bit::VIP;
        }
        if outer || self.cpu.mode.is64() {
            let rsp = self.peek_slot(3, 0, frame.slot)?;
            let ss = self.peek_slot(4, 0, frame.slot)? as u16;
            let ss = self.return_stack(ss, &cs)?;
            self.check_offset(&cs, frame.rip)?;
            self.iret_flags(frame, mask);
            self.return_outer(cs, frame.rip, ss, rsp, frame.slot, 0);
            return Ok(());
        }
        self.check_offset(&cs, frame.rip)?;
        self.set_sp(self.cpu.gpr[gpr::RSP].wrapping_add(3 * frame.slot.bytes()));
        self.cpu.set_cs(cs, cpl);
        self.cpu.rip = frame.rip;
        self.iret_flags(frame, mask);
        self.cpu.refresh();
        self.mmu_switch();
        Ok(())
    }
}
