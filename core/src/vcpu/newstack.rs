//! A stack that is not yet the current one: control transfers push here, and commit only when nothing can fault.

use super::descriptor::{canonical, is_null, selector_error};
use super::segment::{Segment, attr};
use super::{Seg, gpr};
use crate::ctx::Ctx;
use crate::exception::{Exception, vector};
use crate::mmu::Privilege;

/// Size of a pushed value, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    Word = 2,
    Dword = 4,
    Qword = 8,
}

impl Slot {
    pub const fn bytes(self) -> u64 {
        self as u64
    }
    /// All ones of this size.
    pub const fn mask(self) -> u64 {
        match self {
            Slot::Word => 0xffff,
            Slot::Dword => 0xffff_ffff,
            Slot::Qword => u64::MAX,
        }
    }
}

/// A stack being built.
#[derive(Clone, Copy, Debug)]
pub struct NewStack {
    pub ss: Segment,
    pub sp: u64,
    mask: u64,
    who: Privilege,
    /// Error code of the #SS raised when it overflows.
    error: u32,
}

impl NewStack {
    /// The current stack. Overflow is #SS with `error`.
    pub fn current(ctx: &Ctx<'_>, error: u32) -> Self {
        let mask = ctx.cpu.mode.stack_mask;
        let ss = ctx.cpu.seg[Seg::Ss as usize];
        Self { ss, sp: ctx.cpu.gpr[gpr::RSP] & mask, mask, who: Privilege::Current, error }
    }

    /// A 16/32-bit stack in `ss` for privilege level `cpl`.
    pub fn legacy(ss: Segment, sp: u64, cpl: u8, error: u32) -> Self {
        let mask = if ss.attr & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
        Self { ss, sp: sp & mask, mask, who: privilege(cpl), error }
    }

    /// A 64-bit stack in `ss` (whose base and limit do not count) for privilege level `cpl`.
    pub fn long(ss: Segment, sp: u64, cpl: u8, error: u32) -> Self {
        Self { ss, sp, mask: u64::MAX, who: privilege(cpl), error }
    }

    fn is64(&self) -> bool {
        self.mask == u64::MAX
    }

    /// Linear address of `len` bytes at offset `off`, or #SS.
    fn linear(&self, off: u64, len: u64) -> Result<u64, Exception> {
        let fault = Exception::ss(self.error);
        if self.is64() {
            let ok = canonical(off) && canonical(off.wrapping_add(len - 1));
            return if ok { Ok(off) } else { Err(fault) };
        }
        if self.ss.attr & attr::UNUSABLE != 0 || !self.ss.contains(off, len) {
            return Err(fault);
        }
        Ok(self.ss.base.wrapping_add(off) & 0xffff_ffff)
    }

    /// Pushes a value. The new stack pointer is in `self` only.
    pub fn push(&mut self, ctx: &mut Ctx<'_>, size: Slot, value: u64) -> Result<(), Exception> {
        let sp = self.sp.wrapping_sub(size.bytes()) & self.mask;
        let lin = self.linear(sp, size.bytes())?;
        match size {
            Slot::Word => ctx.write_lin(lin, value as u16, self.who)?,
            Slot::Dword => ctx.write_lin(lin, value as u32, self.who)?,
            Slot::Qword => ctx.write_lin(lin, value, self.who)?,
        }
        self.sp = sp;
        Ok(())
    }

    /// Makes it the current stack.
    pub fn commit(self, ctx: &mut Ctx<'_>) {
        ctx.cpu.seg[Seg::Ss as usize] = self.ss;
        let r = &mut ctx.cpu.gpr[gpr::RSP];
        *r = if self.mask == 0xffff { (*r & !0xffff) | self.sp } else { self.sp };
    }
}

fn privilege(cpl: u8) -> Privilege {
    if cpl == 3 { Privilege::User } else { Privilege::System }
}

impl Segment {
    /// Are `len` bytes at `off` inside the segment (expand-down included)? Rights are not looked at.
    pub fn contains(&self, off: u64, len: u64) -> bool {
        let last = off + (len - 1);
        if self.attr & (attr::CODE | attr::DC) == attr::DC {
            let top = if self.attr & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
            off > u64::from(self.limit) && last <= top
        } else {
            last <= u64::from(self.limit)
        }
    }

    /// A null SS of 64-bit mode at privilege level `cpl`.
    pub const fn null_ss(cpl: u8) -> Self {
        Self::null(cpl as u16, cpl)
    }

    /// A register loaded with the null selector; `dpl` keeps the CPL when the register is SS.
    pub const fn null(selector: u16, dpl: u8) -> Self {
        let attr = attr::UNUSABLE | attr::RW | attr::S | attr::ACCESSED | (dpl as u32) << 5 | attr::DB;
        Self { selector, base: 0, limit: 0, attr, lin_base: 0, fast: 0 }
    }
}

impl Ctx<'_> {
    /// Checks a stack segment for a transfer to privilege level `cpl` (SDM vol. 3A, 5.8.5). Every violation raises
    /// `vector` (#TS or #GP) with the selector, absence #SS. Sets the accessed bit.
    pub fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        vector: u8,
        ext: u32,
    ) -> Result<Segment, Exception> {
        if is_null(selector) {
            return Err(Exception::with_error(vector, ext));
        }
        let bad = Exception::with_error(vector, selector_error(selector, ext));
        let mut d = self.descriptor(selector, vector, ext)?;
        if selector as u8 & 3 != cpl || !d.is_writable_data() || d.dpl() != cpl {
            return Err(bad);
        }
        if !d.present() {
            return Err(Exception::ss(selector_error(selector, ext)));
        }
        self.set_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// The stack the current TSS names for privilege level `cpl` outside long mode: checked segment and pointer.
    pub fn tss_stack(&mut self, cpl: u8, ext: u32) -> Result<(Segment, u64), Exception> {
        let tr = self.cpu.tr;
        let is32 = tr.attr & 8 != 0;
        let (off, last) = if is32 { (u64::from(cpl) * 8 + 4, 5) } else { (u64::from(cpl) * 4 + 2, 3) };
        if off + last > u64::from(tr.limit) {
            return Err(Exception::ts(selector_error(tr.selector, ext)));
        }
        let lin = self.table_address(tr.base, off);
        let (sp, selector) = if is32 {
            let sp: u32 = self.read_lin(lin, Privilege::System)?;
            (u64::from(sp), self.read_lin::<u16>(lin.wrapping_add(4), Privilege::System)?)
        } else {
            let sp: u16 = self.read_lin(lin, Privilege::System)?;
            (u64::from(sp), self.read_lin::<u16>(lin.wrapping_add(2), Privilege::System)?)
        };
        Ok((self.stack_segment(selector, cpl, vector::TS, ext)?, sp))
    }

    /// A stack pointer of the 64-bit TSS at byte `off`: RSPn or ISTn (SDM vol. 3A, 7.7).
    pub fn tss_rsp(&mut self, off: u64, ext: u32) -> Result<u64, Exception> {
        let tr = self.cpu.tr;
        if off + 7 > u64::from(tr.limit) {
            return Err(Exception::ts(selector_error(tr.selector, ext)));
        }
        self.read_lin(tr.base.wrapping_add(off), Privilege::System)
    }
}
