//! Far JMP, CALL and RET through every kind of descriptor. Source: SDM vol. 2, "JMP", "CALL", "RET"; vol. 3A, 5.8.
//! The interrupt counterparts are in `int` and `iret`; task switches in `vcpu::task`.

use super::insn::Insn;
use super::traits::Width;
use super::{Row, end};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::vcpu::descriptor::{Descriptor, canonical, is_null, kind, selector_error};
use crate::vcpu::newstack::{NewStack, Slot};
use crate::vcpu::segment::{Segment, attr};
use crate::vcpu::task::{Nesting, TaskSwitch};
use crate::vcpu::{Seg, flags::bit, gpr};
use iced_x86::Code as C;

#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    end(C::Jmp_ptr1616, jmp_ptr), end(C::Jmp_ptr1632, jmp_ptr), end(C::Jmp_m1616, jmp_mem::<u16>),
    end(C::Jmp_m1632, jmp_mem::<u32>), end(C::Jmp_m1664, jmp_mem::<u64>),
    end(C::Call_ptr1616, call_ptr::<u16>), end(C::Call_ptr1632, call_ptr::<u32>),
    end(C::Call_m1616, call_mem::<u16>), end(C::Call_m1632, call_mem::<u32>), end(C::Call_m1664, call_mem::<u64>),
    end(C::Retfw, retf::<u16>), end(C::Retfd, retf::<u32>), end(C::Retfq, retf::<u64>),
    end(C::Retfw_imm16, retf::<u16>), end(C::Retfd_imm16, retf::<u32>), end(C::Retfq_imm16, retf::<u64>),
];

fn jmp_ptr(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.far_jump(i.imm2, i.imm)
}

fn jmp_mem<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let (selector, offset) = memory_pointer::<W>(ctx, i)?;
    ctx.far_jump(selector, offset)
}

fn call_ptr<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.far_call(i.imm2, i.imm, slot::<W>())
}

fn call_mem<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let (selector, offset) = memory_pointer::<W>(ctx, i)?;
    ctx.far_call(selector, offset, slot::<W>())
}

fn memory_pointer<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Result<(u16, u64), Exception> {
    let at = ctx.ea(i);
    let offset = ctx.load::<W>(i.seg, at)?;
    let selector = ctx.load::<u16>(i.seg, at.wrapping_add(W::SIZE as u64) & i.addr_mask)?;
    Ok((selector, offset.u()))
}

/// The stack slot of an operand width.
pub(super) const fn slot<W: Width>() -> Slot {
    match W::SIZE {
        2 => Slot::Word,
        4 => Slot::Dword,
        _ => Slot::Qword,
    }
}

/// Where a far transfer leads once its selector has been looked up.
enum Destination {
    /// A code segment, at the offset of the instruction.
    Code(Segment),
    /// A call gate: the gate, its code descriptor.
    Gate(Descriptor, Descriptor),
    Task(u16, Descriptor),
}

impl Ctx<'_> {
    fn far_jump(&mut self, selector: u16, offset: u64) -> Exec {
        if !self.cpu.mode.protected {
            return self.jump_8086(selector, offset);
        }
        match self.destination(selector)? {
            Destination::Code(cs) => self.jump_code(cs, offset),
            Destination::Gate(gate, mut code) => {
                let target = gate.gate_selector();
                let reachable = if code.is_conforming() {
                    code.dpl() <= self.cpu.mode.cpl
                } else {
                    code.dpl() == self.cpu.mode.cpl
                };
                self.check_gate_code(&code, target, reachable)?;
                self.set_accessed(&mut code)?;
                self.jump_code(code.segment(target), gate.gate_offset())
            }
            Destination::Task(tss_selector, tss) => self.far_task(tss_selector, tss, Nesting::Jump),
        }
    }

    fn far_call(&mut self, selector: u16, offset: u64, slot: Slot) -> Exec {
        if !self.cpu.mode.protected {
            let mut stack = NewStack::current(self, 0);
            self.push_return(&mut stack, slot)?;
            self.jump_8086(selector, offset)?;
            stack.commit(self);
            return Ok(());
        }
        match self.destination(selector)? {
            Destination::Code(cs) => self.call_code(cs, offset, slot),
            Destination::Gate(gate, code) => self.call_gate(&gate, code),
            Destination::Task(tss_selector, tss) => self.far_task(tss_selector, tss, Nesting::Nested),
        }
    }

    /// CALL to a code segment at the same privilege level.
    fn call_code(&mut self, cs: Segment, offset: u64, slot: Slot) -> Exec {
        let mut stack = NewStack::current(self, 0);
        self.push_return(&mut stack, slot)?;
        self.jump_code(cs, offset)?;
        stack.commit(self);
        self.cpu.refresh();
        Ok(())
    }

    fn jump_8086(&mut self, selector: u16, offset: u64) -> Exec {
        let cs = &mut self.cpu.seg[Seg::Cs as usize];
        if offset > u64::from(cs.limit) {
            return Err(Exception::gp(0));
        }
        *cs = cs.with_real_selector(selector);
        self.cpu.rip = offset;
        self.cpu.refresh();
        Ok(())
    }

    fn push_return(&mut self, stack: &mut NewStack, slot: Slot) -> Exec {
        stack.push(self, slot, self.cpu.seg[Seg::Cs as usize].selector.into())?;
        stack.push(self, slot, self.cpu.rip)
    }

    /// Loads CS at the current CPL and RIP. #GP(0) if the offset is outside.
    fn jump_code(&mut self, cs: Segment, offset: u64) -> Exec {
        self.check_offset(&cs, offset)?;
        let cpl = self.cpu.mode.cpl;
        self.cpu.set_cs(cs, cpl);
        self.cpu.rip = offset;
        self.cpu.refresh();
        self.mmu_switch();
        Ok(())
    }

    /// Is `offset` inside the code segment `cs` (canonical, for 64-bit code)? #GP(0).
    pub(super) fn check_offset(&self, cs: &Segment, offset: u64) -> Exec {
        let long = self.cpu.mode.long && cs.attr & attr::L != 0;
        let ok = if long { canonical(offset) } else { offset <= u64::from(cs.limit) };
        if ok { Ok(()) } else { Err(Exception::gp(0)) }
    }

    /// Looks up the selector of a far JMP or CALL and makes the checks common to both.
    fn destination(&mut self, selector: u16) -> Result<Destination, Exception> {
        if is_null(selector) {
            return Err(Exception::gp(0));
        }
        let d = self.system_descriptor(selector, vector::GP, 0)?;
        let bad = Exception::gp(selector_error(selector, 0));
        let (cpl, rpl, long) = (self.cpu.mode.cpl, selector as u8 & 3, self.cpu.mode.long);
        if d.is_code() {
            return self.direct_code(d, selector);
        }
        let allowed = match d.kind() {
            kind::CALL32 => true,
            kind::CALL16 | kind::TASK_GATE | kind::TSS16 | kind::TSS32 => !long,
            _ => false,
        };
        if !allowed || d.dpl() < cpl.max(rpl) {
            return Err(bad);
        }
        if !d.present() {
            return Err(Exception::np(selector_error(selector, 0)));
        }
        match d.kind() {
            kind::TSS16 | kind::TSS32 => Ok(Destination::Task(selector, d)),
            kind::TASK_GATE => self.task_gate(d.gate_selector()),
            _ => {
                let target = d.gate_selector();
                if is_null(target) {
                    return Err(Exception::gp(0));
                }
                Ok(Destination::Gate(d, self.descriptor(target, vector::GP, 0)?))
            }
        }
    }

    fn direct_code(&mut self, mut d: Descriptor, selector: u16) -> Result<Destination, Exception> {
        let (cpl, rpl) = (self.cpu.mode.cpl, selector as u8 & 3);
        let reachable = if d.is_conforming() { d.dpl() <= cpl } else { rpl <= cpl && d.dpl() == cpl };
        let both = self.cpu.mode.long && d.attr() & (attr::L | attr::DB) == attr::L | attr::DB;
        if !reachable || both {
            return Err(Exception::gp(selector_error(selector, 0)));
        }
        if !d.present() {
            return Err(Exception::np(selector_error(selector, 0)));
        }
        self.set_accessed(&mut d)?;
        Ok(Destination::Code(d.segment(selector)))
    }

    fn task_gate(&mut self, selector: u16) -> Result<Destination, Exception> {
        let bad = Exception::gp(selector_error(selector, 0));
        if selector & 4 != 0 || is_null(selector) {
            return Err(bad);
        }
        let tss = self.descriptor(selector, vector::GP, 0)?;
        if !matches!(tss.kind(), kind::TSS16 | kind::TSS32) {
            return Err(bad);
        }
        if !tss.present() {
            return Err(Exception::np(selector_error(selector, 0)));
        }
        Ok(Destination::Task(selector, tss))
    }

    fn far_task(&mut self, selector: u16, tss: Descriptor, nesting: Nesting) -> Exec {
        let flags = self.cpu.flags.0 & !bit::RF;
        self.task_switch_by_instruction(&TaskSwitch { selector, tss, nesting, ext: 0, error: None, flags })
    }

    /// Type, privilege and presence of the code segment behind a call gate.
    fn check_gate_code(&self, code: &Descriptor, selector: u16, reachable: bool) -> Exec {
        let wrong_size = self.cpu.mode.long && !code.is_code64();
        if !code.is_code() || !reachable || wrong_size {
            return Err(Exception::gp(selector_error(selector, 0)));
        }
        if code.present() { Ok(()) } else { Err(Exception::np(selector_error(selector, 0))) }
    }

    fn call_gate(&mut self, gate: &Descriptor, mut code: Descriptor) -> Exec {
        let selector = gate.gate_selector();
        let cpl = self.cpu.mode.cpl;
        self.check_gate_code(&code, selector, code.dpl() <= cpl)?;
        self.set_accessed(&mut code)?;
        let cs = code.segment(selector);
        let offset = gate.gate_offset();
        let slot = match () {
            _ if self.cpu.mode.long => Slot::Qword,
            _ if gate.gate_is_286() => Slot::Word,
            _ => Slot::Dword,
        };
        if code.is_conforming() || code.dpl() == cpl {
            let mut stack = NewStack::current(self, 0);
            if self.cpu.mode.long {
                stack = NewStack::long(stack.ss, self.cpu.gpr[gpr::RSP], cpl, 0);
            }
            self.push_return(&mut stack, slot)?;
            self.jump_code(cs, offset)?;
            stack.commit(self);
            self.cpu.refresh();
            return Ok(());
        }
        self.call_inner(gate, cs, slot)
    }

    /// CALL through a gate to a more privileged level: new stack from the TSS, parameters copied.
    fn call_inner(&mut self, gate: &Descriptor, cs: Segment, slot: Slot) -> Exec {
        let cpl = cs.dpl();
        let long = self.cpu.mode.long;
        let mut stack = if long {
            let rsp = self.tss_rsp(4 + 8 * u64::from(cpl), 0)?;
            NewStack::long(Segment::null_ss(cpl), rsp, cpl, u32::from(cpl) & !3)
        } else {
            let (ss, sp) = self.tss_stack(cpl, 0)?;
            NewStack::legacy(ss, sp, cpl, selector_error(ss.selector, 0))
        };
        self.check_offset(&cs, gate.gate_offset())?;
        let old_sp = self.cpu.gpr[gpr::RSP];
        stack.push(self, slot, self.cpu.seg[Seg::Ss as usize].selector.into())?;
        stack.push(self, slot, old_sp)?;
        let params = if long { 0 } else { u64::from(gate.gate_params()) };
        for n in (0..params).rev() {
            let at = old_sp.wrapping_add(n * slot.bytes()) & self.cpu.mode.stack_mask;
            let value = self.peek(at, slot)?;
            stack.push(self, slot, value)?;
        }
        self.push_return(&mut stack, slot)?;
        stack.commit(self);
        self.cpu.set_cs(cs, cpl);
        self.cpu.rip = gate.gate_offset();
        self.cpu.refresh();
        self.mmu_switch();
        Ok(())
    }

    /// Reads a stack slot at offset `at` of SS without moving the stack pointer.
    pub(super) fn peek(&mut self, at: u64, slot: Slot) -> Result<u64, Exception> {
        let ss = Seg::Ss as u8;
        Ok(match slot {
            Slot::Word => self.load::<u16>(ss, at)?.into(),
            Slot::Dword => self.load::<u32>(ss, at)?.into(),
            Slot::Qword => self.load(ss, at)?,
        })
    }

    /// Reads the `n`th slot above the stack pointer, plus `extra` bytes.
    pub(super) fn peek_slot(&mut self, n: u64, extra: u64, slot: Slot) -> Result<u64, Exception> {
        let at = self.cpu.gpr[gpr::RSP].wrapping_add(n * slot.bytes() + extra);
        self.peek(at & self.cpu.mode.stack_mask, slot)
    }
}

/// RETF and RETF imm16.
fn retf<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    let slot = slot::<W>();
    let release = i.imm & 0xffff;
    let rip = ctx.peek_slot(0, 0, slot)?;
    let selector = ctx.peek_slot(1, 0, slot)? as u16;
    if !ctx.cpu.mode.protected {
        ctx.jump_8086(selector, rip)?;
        ctx.set_sp(ctx.cpu.gpr[gpr::RSP].wrapping_add(2 * slot.bytes() + release));
        return Ok(());
    }
    let cs = ctx.return_code(selector)?;
    if selector as u8 & 3 > ctx.cpu.mode.cpl {
        let rsp = ctx.peek_slot(2, release, slot)?;
        let ss = ctx.peek_slot(3, release, slot)? as u16;
        ctx.check_offset(&cs, rip)?;
        let ss = ctx.return_stack(ss, &cs)?;
        ctx.return_outer(cs, rip, ss, rsp, slot, release);
        return Ok(());
    }
    ctx.check_offset(&cs, rip)?;
    ctx.set_sp(ctx.cpu.gpr[gpr::RSP].wrapping_add(2 * slot.bytes() + release));
    ctx.jump_code(cs, rip)
}

impl Ctx<'_> {
    /// Checks the code segment a RETF or IRET returns to.
    pub(super) fn return_code(&mut self, selector: u16) -> Result<Segment, Exception> {
        if is_null(selector) {
            return Err(Exception::gp(0));
        }
        let mut d = self.descriptor(selector, vector::GP, 0)?;
        let rpl = selector as u8 & 3;
        let privilege = if d.is_conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
        let both = self.cpu.mode.long && d.attr() & (attr::L | attr::DB) == attr::L | attr::DB;
        if !d.is_code() || rpl < self.cpu.mode.cpl || !privilege || both {
            return Err(Exception::gp(selector_error(selector, 0)));
        }
        if !d.present() {
            return Err(Exception::np(selector_error(selector, 0)));
        }
        self.set_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// Checks the stack segment a return to `cs` gives to its privilege level. A null one is allowed for 64-bit code
    /// below CPL 3.
    pub(super) fn return_stack(&mut self, selector: u16, cs: &Segment) -> Result<Segment, Exception> {
        let rpl = cs.selector as u8 & 3;
        let long = self.cpu.mode.long && cs.attr & attr::L != 0;
        if is_null(selector) && long && rpl != 3 && selector as u8 & 3 == rpl {
            return Ok(Segment::null_ss(rpl));
        }
        self.stack_segment(selector, rpl, vector::GP, 0)
    }

    /// The part of a return to an outer (or, in 64-bit mode, any) level that cannot fault. Data segments the new
    /// level may not use are nulled.
    pub(super) fn return_outer(
        &mut self,
        cs: Segment,
        rip: u64,
        ss: Segment,
        rsp: u64,
        slot: Slot,
        release: u64,
    ) {
        let cpl = cs.selector as u8 & 3;
        self.cpu.set_cs(cs, cpl);
        self.cpu.rip = rip;
        self.cpu.seg[Seg::Ss as usize] = ss;
        self.cpu.refresh();
        let rsp = rsp.wrapping_add(release);
        if slot == Slot::Word && self.cpu.mode.stack_mask == 0xffff_ffff {
            self.set_sp(rsp & 0xffff);
        } else {
            self.set_sp(rsp);
        }
        self.null_privileged_segments(cpl);
        self.cpu.refresh();
        self.mmu_switch();
    }

    /// Nulls ES, DS, FS, GS where they hold a segment more privileged than `cpl` (conforming code aside).
    fn null_privileged_segments(&mut self, cpl: u8) {
        for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
            let s = &mut self.cpu.seg[seg as usize];
            let conforming = s.attr & (attr::CODE | attr::DC) == attr::CODE | attr::DC;
            let null = s.attr & attr::UNUSABLE != 0;
            if !null && !conforming && s.dpl() < cpl {
                *s = Segment::null(0, 0);
            }
        }
    }
}
