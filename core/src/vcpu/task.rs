//! The hardware task switch. Source: SDM vol. 3A, 7.3 and table 7-1.
//!
//! Everything that can fault on behalf of the old task comes first; from the load of TR on, faults belong to the
//! new task and are returned as such.

use super::descriptor::{Descriptor, is_null, kind, selector_error};
use super::flags::bit;
use super::newstack::{NewStack, Slot};
use super::segment::{Segment, attr};
use super::{Seg, Vcpu, cr0};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::mmu::Privilege;

/// How the new task relates to the old one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nesting {
    /// JMP: the old task ends.
    Jump,
    /// CALL, interrupt, exception: the new task links back to the old one.
    Nested,
    /// IRET with NT: the old task ends, the new one was busy.
    Return,
}

/// A task switch whose TSS descriptor has passed the checks of the instruction or gate.
#[derive(Clone, Copy, Debug)]
pub struct TaskSwitch {
    pub selector: u16,
    pub tss: Descriptor,
    pub nesting: Nesting,
    /// EXT bit of error codes.
    pub ext: u32,
    /// Error code pushed on the new task's stack.
    pub error: Option<u32>,
    /// RFLAGS to save for the old task.
    pub flags: u64,
}

/// What a TSS says of a task; selectors are ES, CS, SS, DS, FS, GS.
struct TaskImage {
    cr3: Option<u64>,
    eip: u32,
    flags: u32,
    gpr: [u32; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// Field offsets of the two TSS formats.
struct Layout {
    eip: u64,
    flags: u64,
    gpr: u64,
    seg: u64,
    ldt: u64,
    segments: usize,
    /// Bytes between two fields.
    step: u64,
    min_limit: u32,
    wide: bool,
}

const TSS16: Layout = Layout {
    eip: 0x0e,
    flags: 0x10,
    gpr: 0x12,
    seg: 0x22,
    ldt: 0x2a,
    segments: 4,
    step: 2,
    min_limit: 0x2b,
    wide: false,
};
const TSS32: Layout = Layout {
    eip: 0x20,
    flags: 0x24,
    gpr: 0x28,
    seg: 0x48,
    ldt: 0x60,
    segments: 6,
    step: 4,
    min_limit: 0x67,
    wide: true,
};

impl Layout {
    const fn of(tss_kind: u8) -> &'static Self {
        if tss_kind & 8 != 0 { &TSS32 } else { &TSS16 }
    }
}

impl Ctx<'_> {
    /// Switches tasks. `Err`: a fault of the old task, nothing has changed. `Ok(Some(fault))`: the switch is done
    /// and the new task faulted while its registers were loaded (RIP is its first instruction).
    pub fn task_switch(&mut self, s: &TaskSwitch) -> Result<Option<Exception>, Exception> {
        let new = Layout::of(s.tss.kind());
        if s.tss.limit() < new.min_limit {
            return Err(Exception::ts(selector_error(s.selector, s.ext)));
        }
        let image = self.read_task(s.tss.base(), new)?;
        let old = Layout::of(self.cpu.tr.attr as u8 & 15);
        let old_lin = self.descriptor(self.cpu.tr.selector, vector::TS, s.ext)?.lin;
        self.probe_task_writes(s, old, old_lin)?;
        if s.nesting != Nesting::Nested {
            self.set_tss_busy(old_lin, false)?;
        }
        self.save_task(s, old)?;
        if s.nesting == Nesting::Nested {
            self.write_lin(self.table_address(s.tss.base(), 0), self.cpu.tr.selector, Privilege::System)?;
        }
        if s.nesting != Nesting::Return {
            self.set_tss_busy(s.tss.lin, true)?;
        }
        self.load_task_registers(s, &image);
        Ok(self.finish_task(s, &image, new.wide).err())
    }

    /// A task switch by an instruction: a fault in the new task's context is delivered here, since it must not be
    /// taken for a fault of the instruction (which would restore RIP).
    pub fn task_switch_by_instruction(&mut self, s: &TaskSwitch) -> Exec {
        let stepping = self.cpu.flags.has(bit::TF);
        if stepping {
            // The old task steps again when it is resumed; the new one has a TF of its own.
            self.cpu.suppress_single_step();
        }
        if let Some(fault) = self.task_switch(s)? {
            self.deliver_exception(fault);
        }
        self.sys.end_block();
        Ok(())
    }

    fn task_field(&mut self, base: u64, off: u64, wide: bool) -> Result<u32, Exception> {
        let lin = self.table_address(base, off);
        if wide {
            return self.read_lin(lin, Privilege::System);
        }
        Ok(self.read_lin::<u16>(lin, Privilege::System)?.into())
    }

    fn read_task(&mut self, base: u64, l: &Layout) -> Result<TaskImage, Exception> {
        let mut image = TaskImage {
            cr3: None,
            eip: self.task_field(base, l.eip, l.wide)?,
            flags: self.task_field(base, l.flags, l.wide)?,
            gpr: [0; 8],
            selectors: [0; 6],
            ldt: self.task_field(base, l.ldt, false)? as u16,
            trap: false,
        };
        for n in 0..8 {
            image.gpr[n] = self.task_field(base, l.gpr + n as u64 * l.step, l.wide)?;
            if !l.wide {
                image.gpr[n] |= 0xffff_0000;
            }
        }
        for n in 0..l.segments {
            image.selectors[n] = self.task_field(base, l.seg + n as u64 * l.step, false)? as u16;
        }
        if l.wide {
            image.trap = self.task_field(base, 0x64, false)? & 1 != 0;
            image.cr3 = Some(self.task_field(base, 0x1c, true)?.into());
        }
        Ok(image)
    }

    /// Makes every write of the switch once with the value already there, so that the real ones cannot fault.
    fn probe_task_writes(&mut self, s: &TaskSwitch, old: &Layout, old_lin: u64) -> Exec {
        let base = self.cpu.tr.base;
        let last = old.seg + (old.segments as u64 - 1) * old.step + 1;
        let link = self.table_address(s.tss.base(), 0);
        let first = self.table_address(base, old.eip);
        let last = self.table_address(base, last);
        let nested = s.nesting == Nesting::Nested;
        self.rewrite(first)?;
        self.rewrite(last)?;
        if nested {
            self.rewrite(link)?;
            self.rewrite(link.wrapping_add(1))?;
        } else {
            self.rewrite(old_lin.wrapping_add(5))?;
        }
        if s.nesting == Nesting::Return { Ok(()) } else { self.rewrite(s.tss.lin.wrapping_add(5)) }
    }

    fn rewrite(&mut self, lin: u64) -> Exec {
        let b: u8 = self.read_lin(lin, Privilege::System)?;
        self.write_lin(lin, b, Privilege::System)
    }

    /// Saves the old task's registers in its TSS.
    fn save_task(&mut self, s: &TaskSwitch, l: &Layout) -> Exec {
        let base = self.cpu.tr.base;
        let flags = if s.nesting == Nesting::Return { s.flags & !bit::NT } else { s.flags };
        let mut fields = vec![(l.eip, self.cpu.rip), (l.flags, flags)];
        fields.extend((0..8).map(|n| (l.gpr + n as u64 * l.step, self.cpu.gpr[n])));
        for (off, value) in fields {
            let lin = self.table_address(base, off);
            if l.wide {
                self.write_lin(lin, value as u32, Privilege::System)?;
            } else {
                self.write_lin(lin, value as u16, Privilege::System)?;
            }
        }
        for n in 0..l.segments {
            let lin = self.table_address(base, l.seg + n as u64 * l.step);
            self.write_lin(lin, self.cpu.seg[n].selector, Privilege::System)?;
        }
        Ok(())
    }

    /// Loads what needs no check: TR, CR3, RFLAGS, RIP, general registers, and the selectors (not yet usable).
    fn load_task_registers(&mut self, s: &TaskSwitch, image: &TaskImage) {
        let paging = self.cpu.cr0 & cr0::PG != 0;
        let cpu = &mut *self.cpu;
        cpu.tr = s.tss.segment(s.selector);
        cpu.tr.attr |= 2;
        cpu.cr0 |= cr0::TS;
        cpu.dr7 &= !0x155;
        let flags =
            if s.nesting == Nesting::Nested { u64::from(image.flags) | bit::NT } else { image.flags.into() };
        cpu.flags.0 = (flags & super::flags::WRITABLE) | bit::FIXED;
        cpu.rip = image.eip.into();
        for n in 0..8 {
            cpu.gpr[n] = image.gpr[n].into();
        }
        let cpl = image.selectors[1] as u8 & 3;
        for n in 0..6 {
            cpu.seg[n] = Segment::null(image.selectors[n], cpl);
        }
        cpu.ldtr = Segment::null(image.ldt, 0);
        if let (Some(cr3), true) = (image.cr3, paging) {
            cpu.cr3 = cr3;
        }
        cpu.refresh();
        self.refresh_debug_regs();
        self.mmu_switch();
    }

    /// Loads the descriptors in the new task's context, then pushes the error code.
    fn finish_task(&mut self, s: &TaskSwitch, image: &TaskImage, wide: bool) -> Exec {
        if image.cr3.is_some() && self.cpu.cr0 & cr0::PG != 0 {
            self.load_pdptes(self.cpu.cr3)?;
        }
        if image.trap {
            self.cpu.pending_db |= super::debug::dr6::BT;
        }
        self.load_task_ldt(image.ldt, s.ext)?;
        if wide && self.cpu.flags.has(bit::VM) {
            self.cpu.load_v86_segments(image.selectors);
            self.cpu.refresh();
            self.mmu_switch();
        } else {
            self.load_task_segments(&image.selectors, s.ext)?;
        }
        if self.cpu.rip > u64::from(self.cpu.seg[Seg::Cs as usize].limit) {
            return Err(Exception::gp(s.ext));
        }
        if let Some(code) = s.error {
            let mut stack = NewStack::current(self, s.ext);
            stack.push(self, if wide { Slot::Dword } else { Slot::Word }, code.into())?;
            stack.commit(self);
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16, ext: u32) -> Exec {
        if is_null(selector) {
            return Ok(());
        }
        let bad = Exception::ts(selector_error(selector, ext));
        if selector & 4 != 0 {
            return Err(bad);
        }
        let d = self.descriptor(selector, vector::TS, ext)?;
        if d.kind() != kind::LDT || !d.present() {
            return Err(bad);
        }
        self.cpu.ldtr = d.segment(selector);
        Ok(())
    }

    /// CS, SS, then the data segments (SDM vol. 3A, table 7-1).
    fn load_task_segments(&mut self, selectors: &[u16; 6], ext: u32) -> Exec {
        let cs = selectors[Seg::Cs as usize];
        let cpl = cs as u8 & 3;
        if is_null(cs) {
            return Err(Exception::ts(ext));
        }
        let mut code = self.descriptor(cs, vector::TS, ext)?;
        let privilege = if code.is_conforming() { code.dpl() <= cpl } else { code.dpl() == cpl };
        if !code.is_code() || !privilege {
            return Err(Exception::ts(selector_error(cs, ext)));
        }
        if !code.present() {
            return Err(Exception::np(selector_error(cs, ext)));
        }
        self.set_accessed(&mut code)?;
        self.cpu.seg[Seg::Cs as usize] = code.segment(cs);
        self.cpu.refresh();
        let ss = self.stack_segment(selectors[Seg::Ss as usize], cpl, vector::TS, ext)?;
        self.cpu.seg[Seg::Ss as usize] = ss;
        self.cpu.refresh();
        self.mmu_switch();
        for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
            let loaded = self.data_segment(selectors[seg as usize], vector::TS, ext)?;
            self.cpu.seg[seg as usize] = loaded;
            self.cpu.refresh();
        }
        Ok(())
    }

    /// Checks a data segment for DS, ES, FS or GS at the current CPL; a null selector is allowed. Violations raise
    /// `vector` (#GP, or #TS in a task switch), absence #NP. Sets the accessed bit.
    pub fn data_segment(&mut self, selector: u16, vector: u8, ext: u32) -> Result<Segment, Exception> {
        if is_null(selector) {
            return Ok(Segment::null(selector, 0));
        }
        let mut d = self.descriptor(selector, vector, ext)?;
        let privilege = d.is_conforming() || d.dpl() >= self.cpu.mode.cpl.max(selector as u8 & 3);
        if !d.is_readable() || !privilege {
            return Err(Exception::with_error(vector, selector_error(selector, ext)));
        }
        if !d.present() {
            return Err(Exception::np(selector_error(selector, ext)));
        }
        self.set_accessed(&mut d)?;
        Ok(d.segment(selector))
    }
}

impl Vcpu {
    /// Loads all six segment registers for v86 mode (in encoding order) from selectors.
    pub fn load_v86_segments(&mut self, selectors: [u16; 6]) {
        for (seg, selector) in self.seg.iter_mut().zip(selectors) {
            *seg = Segment::real(selector);
            seg.attr |= attr::DPL;
        }
    }
}
