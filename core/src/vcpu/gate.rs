//! Interrupt delivery by mode: the real-mode IVT, protected-mode gates (286, 386, task), long-mode gates.
//! Source: SDM vol. 3A, 6.12, 6.14; vol. 2A, "INT n". Each function commits only after its last fault.

use super::descriptor::{Descriptor, canonical, is_null, kind, selector_error};
use super::flags::bit;
use super::interrupt::{Event, Source};
use super::newstack::{NewStack, Slot};
use super::segment::{Segment, attr};
use super::task::{Nesting, TaskSwitch};
use super::{Seg, gpr};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::mmu::Privilege;

/// A gate whose target code segment has been checked.
struct Target {
    cs: Segment,
    rip: u64,
    /// CPL of the handler.
    cpl: u8,
    slot: Slot,
    clear_if: bool,
    ist: u8,
}

impl Ctx<'_> {
    /// Real mode: three words on the stack, CS:IP from the vector table at the IDTR's base.
    pub(super) fn deliver_real(&mut self, vector: u8, ext: u32, flags: u64) -> Exec {
        let entry = u64::from(vector) * 4;
        if entry + 3 > u64::from(self.cpu.idtr.limit) {
            return Err(Exception::gp(u32::from(vector) << 3 | 2 | ext));
        }
        let target: u32 = self.read_lin(self.table_address(self.cpu.idtr.base, entry), Privilege::System)?;
        self.enter_8086(target, flags)?;
        self.cpu.flags.0 &= !(bit::IF | bit::TF | bit::AC | bit::RF);
        self.mmu_switch();
        Ok(())
    }

    /// Pushes FLAGS, CS, IP and jumps to the real-mode pointer `target`.
    fn enter_8086(&mut self, target: u32, flags: u64) -> Exec {
        let mut stack = NewStack::current(self, 0);
        stack.push(self, Slot::Word, flags)?;
        stack.push(self, Slot::Word, self.cpu.seg[Seg::Cs as usize].selector.into())?;
        stack.push(self, Slot::Word, self.cpu.rip)?;
        stack.commit(self);
        let cs = &mut self.cpu.seg[Seg::Cs as usize];
        cs.selector = (target >> 16) as u16;
        cs.base = u64::from(cs.selector) << 4;
        self.cpu.rip = u64::from(target & 0xffff);
        self.cpu.refresh();
        Ok(())
    }

    /// INT n in v86 mode with CR4.VME, its redirection bit clear: through the IVT at linear address 0
    /// (SDM vol. 3B, 20.3.3). With IOPL < 3 the pushed IF is VIF, and VIF is cleared instead of IF.
    pub fn deliver_redirected(&mut self, vector: u8) -> Exec {
        let target: u32 = self.read_lin(u64::from(vector) * 4, Privilege::System)?;
        let mut flags = self.cpu.flags.0 & !bit::RF;
        let virtualised = self.cpu.flags.iopl() < 3;
        if virtualised {
            let vif = flags & bit::VIF != 0;
            flags = (flags & !bit::IF) | bit::IOPL | if vif { bit::IF } else { 0 };
        }
        if self.cpu.flags.has(bit::TF) {
            self.cpu.suppress_single_step();
        }
        self.enter_8086(target, flags)?;
        self.cpu.flags.0 &= !(bit::TF | bit::NT | bit::RF | if virtualised { bit::VIF } else { bit::IF });
        self.cpu.shadow = super::Shadow::None;
        Ok(())
    }

    /// Protected and v86 mode without EFER.LMA.
    pub(super) fn deliver_protected(&mut self, event: &Event) -> Exec {
        let entry = u64::from(event.vector) * 8;
        if entry + 7 > u64::from(self.cpu.idtr.limit) {
            return Err(Exception::gp(event.idt_error()));
        }
        let lin = self.table_address(self.cpu.idtr.base, entry);
        let gate = Descriptor { lo: self.read_lin(lin, Privilege::System)?, hi: 0, lin };
        let known =
            matches!(gate.kind(), kind::TASK_GATE | kind::INT16 | kind::TRAP16 | kind::INT32 | kind::TRAP32);
        self.check_gate(event, &gate, known)?;
        if gate.kind() == kind::TASK_GATE {
            return self.deliver_task(event, gate.gate_selector());
        }
        let target = self.gate_target(event, &gate)?;
        if self.cpu.mode.v86 {
            self.enter_from_v86(event, &target)?;
        } else if target.cpl < self.cpu.mode.cpl {
            self.enter_inner(event, &target)?;
        } else {
            let mut stack = NewStack::current(self, event.ext());
            self.push_frame(event, &target, &mut stack)?;
            stack.commit(self);
        }
        self.commit_gate(&target);
        Ok(())
    }

    /// Type, software privilege and presence of an IDT entry.
    fn check_gate(&self, event: &Event, gate: &Descriptor, known: bool) -> Exec {
        let software = event.source == Source::Software;
        if !known || (software && gate.dpl() < self.cpu.mode.cpl) {
            return Err(Exception::gp(event.idt_error()));
        }
        if gate.present() { Ok(()) } else { Err(Exception::np(event.idt_error())) }
    }

    /// Checks the code segment (and offset) an interrupt or trap gate leads to.
    fn gate_target(&mut self, event: &Event, gate: &Descriptor) -> Result<Target, Exception> {
        let (ext, selector) = (event.ext(), gate.gate_selector());
        if is_null(selector) {
            return Err(Exception::gp(ext));
        }
        let bad = Exception::gp(selector_error(selector, ext));
        let mut code = self.descriptor(selector, vector::GP, ext)?;
        let (cpl, long) = (self.cpu.mode.cpl, self.cpu.mode.long);
        if !code.is_code() || code.dpl() > cpl || (long && !code.is_code64()) {
            return Err(bad);
        }
        let new_cpl = if code.is_conforming() { cpl } else { code.dpl() };
        if self.cpu.mode.v86 && new_cpl != 0 {
            return Err(bad);
        }
        if !code.present() {
            return Err(Exception::np(selector_error(selector, ext)));
        }
        let rip = gate.gate_offset();
        let in_range = if long { canonical(rip) } else { rip <= u64::from(code.limit()) };
        if !in_range {
            return Err(Exception::gp(ext));
        }
        self.set_accessed(&mut code)?;
        let slot = match () {
            _ if long => Slot::Qword,
            _ if gate.gate_is_286() => Slot::Word,
            _ => Slot::Dword,
        };
        let clear_if = matches!(gate.kind(), kind::INT16 | kind::INT32);
        let ist = if long { gate.gate_ist() } else { 0 };
        Ok(Target { cs: code.segment(selector), rip, cpl: new_cpl, slot, clear_if, ist })
    }

    fn enter_inner(&mut self, event: &Event, target: &Target) -> Exec {
        let (ss, sp) = self.tss_stack(target.cpl, event.ext())?;
        let mut stack = NewStack::legacy(ss, sp, target.cpl, selector_error(ss.selector, event.ext()));
        self.push_outer_stack(target.slot, &mut stack)?;
        self.push_frame(event, target, &mut stack)?;
        stack.commit(self);
        Ok(())
    }

    /// From v86 mode: the data segments are saved too, then nulled.
    fn enter_from_v86(&mut self, event: &Event, target: &Target) -> Exec {
        const DATA: [Seg; 4] = [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es];
        let (ss, sp) = self.tss_stack(0, event.ext())?;
        let mut stack = NewStack::legacy(ss, sp, 0, selector_error(ss.selector, event.ext()));
        for seg in DATA {
            let selector = self.cpu.seg[seg as usize].selector;
            stack.push(self, target.slot, selector.into())?;
        }
        self.push_outer_stack(target.slot, &mut stack)?;
        self.push_frame(event, target, &mut stack)?;
        stack.commit(self);
        for seg in DATA {
            self.cpu.seg[seg as usize] = Segment::null(0, 0);
        }
        Ok(())
    }

    fn push_outer_stack(&mut self, slot: Slot, stack: &mut NewStack) -> Exec {
        let ss = self.cpu.seg[Seg::Ss as usize].selector;
        stack.push(self, slot, ss.into())?;
        stack.push(self, slot, self.cpu.gpr[gpr::RSP])
    }

    /// RFLAGS, CS, RIP and the error code.
    fn push_frame(&mut self, event: &Event, target: &Target, stack: &mut NewStack) -> Exec {
        stack.push(self, target.slot, event.flags)?;
        stack.push(self, target.slot, self.cpu.seg[Seg::Cs as usize].selector.into())?;
        stack.push(self, target.slot, self.cpu.rip)?;
        match event.error {
            Some(code) => stack.push(self, target.slot, code.into()),
            None => Ok(()),
        }
    }

    /// The part that cannot fault: CS:RIP, RFLAGS, mode. The stack has been committed.
    fn commit_gate(&mut self, target: &Target) {
        self.cpu.set_cs(target.cs, target.cpl);
        self.cpu.rip = target.rip;
        self.cpu.flags.0 &= !(bit::TF | bit::VM | bit::RF | bit::NT);
        if target.clear_if {
            self.cpu.flags.0 &= !bit::IF;
        }
        self.cpu.refresh();
        self.mmu_switch();
    }

    fn deliver_task(&mut self, event: &Event, selector: u16) -> Exec {
        let ext = event.ext();
        let bad = Exception::gp(selector_error(selector, ext));
        if selector & 4 != 0 || is_null(selector) {
            return Err(bad);
        }
        let tss = self.descriptor(selector, vector::GP, ext)?;
        if !matches!(tss.kind(), kind::TSS16 | kind::TSS32) {
            return Err(bad);
        }
        if !tss.present() {
            return Err(Exception::np(selector_error(selector, ext)));
        }
        let switch = TaskSwitch {
            selector,
            tss,
            nesting: Nesting::Nested,
            ext,
            error: event.error,
            flags: event.flags,
        };
        match self.task_switch(&switch)? {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Long mode (SDM vol. 3A, 6.14).
    pub(super) fn deliver_long(&mut self, event: &Event) -> Exec {
        let entry = u64::from(event.vector) * 16;
        if entry + 15 > u64::from(self.cpu.idtr.limit) {
            return Err(Exception::gp(event.idt_error()));
        }
        let lin = self.cpu.idtr.base.wrapping_add(entry);
        let lo = self.read_lin(lin, Privilege::System)?;
        let gate = Descriptor { lo, hi: self.read_lin(lin.wrapping_add(8), Privilege::System)?, lin };
        self.check_gate(event, &gate, matches!(gate.kind(), kind::INT32 | kind::TRAP32))?;
        let target = self.gate_target(event, &gate)?;
        let inner = target.cpl < self.cpu.mode.cpl;
        let ss = if inner { Segment::null_ss(target.cpl) } else { self.cpu.seg[Seg::Ss as usize] };
        let rsp = match target.ist {
            0 if inner => self.tss_rsp(4 + 8 * u64::from(target.cpl), event.ext())?,
            0 => self.cpu.gpr[gpr::RSP],
            n => self.tss_rsp(0x1c + 8 * u64::from(n), event.ext())?,
        };
        let error = if inner { selector_error(ss.selector, event.ext()) } else { event.ext() };
        let mut stack = NewStack::long(ss, rsp & !15, target.cpl, error);
        self.push_outer_stack(Slot::Qword, &mut stack)?;
        self.push_frame(event, &target, &mut stack)?;
        stack.commit(self);
        self.commit_gate(&target);
        Ok(())
    }

    /// Is interrupt `vector` redirected to the 8086 program by the TSS's bitmap (CR4.VME)? False if there is no
    /// 32-bit TSS with a bitmap inside its limit.
    pub fn vme_redirected(&mut self, vector: u8) -> Result<bool, Exception> {
        let tr = self.cpu.tr;
        if tr.attr & (attr::P | 8) != attr::P | 8 || tr.limit < 0x67 {
            return Err(Exception::gp(0));
        }
        let io_base: u16 = self.read_lin(self.table_address(tr.base, 0x66), Privilege::System)?;
        let at = u64::from(io_base).wrapping_sub(32).wrapping_add(u64::from(vector / 8));
        if at > u64::from(tr.limit) {
            return Err(Exception::gp(0));
        }
        let byte: u8 = self.read_lin(self.table_address(tr.base, at), Privilege::System)?;
        Ok(byte & 1 << (vector % 8) == 0)
    }
}
