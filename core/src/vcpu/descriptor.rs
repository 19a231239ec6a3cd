//! Descriptors in the GDT, LDT and IDT: decoding, fetching with the limit checks, and the accessed bit.
//! Source: SDM vol. 3A, 3.4.5, 3.5, 5.8.3 and 6.11. Knows nothing of what a descriptor is fetched for.

use super::segment::{Segment, attr};
use super::{Seg, Vcpu};
use crate::ctx::Ctx;
use crate::exception::Exception;
use crate::mmu::Privilege;

/// System-descriptor types (SDM vol. 3A, table 3-2).
pub mod kind {
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INT16: u8 = 6;
    pub const TRAP16: u8 = 7;
    /// Available 32-bit TSS; in long mode the 64-bit one.
    pub const TSS32: u8 = 9;
    pub const TSS32_BUSY: u8 = 11;
    /// 32-bit call gate; in long mode the 64-bit one.
    pub const CALL32: u8 = 12;
    pub const INT32: u8 = 14;
    pub const TRAP32: u8 = 15;
}

/// Bit of a TSS descriptor's type field (in the low quadword) that says the task is busy.
pub const BUSY: u64 = 1 << 41;

/// A descriptor as it is in memory, and where it was read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    pub lo: u64,
    /// Upper half of a 16-byte descriptor, else 0.
    pub hi: u64,
    /// Linear address of the low half.
    pub lin: u64,
}

impl Descriptor {
    pub const fn attr(&self) -> u32 {
        ((self.lo >> 40) & 0xf0ff) as u32
    }
    pub const fn dpl(&self) -> u8 {
        ((self.lo >> 45) & 3) as u8
    }
    pub const fn present(&self) -> bool {
        self.lo & (1 << 47) != 0
    }
    /// Code or data, not system.
    pub const fn is_segment(&self) -> bool {
        self.lo & (1 << 44) != 0
    }
    pub const fn is_code(&self) -> bool {
        self.is_segment() && self.lo & (1 << 43) != 0
    }
    pub const fn is_conforming(&self) -> bool {
        self.is_code() && self.lo & (1 << 42) != 0
    }
    pub const fn is_writable_data(&self) -> bool {
        self.is_segment() && !self.is_code() && self.lo & (1 << 41) != 0
    }
    pub const fn is_readable(&self) -> bool {
        self.is_segment() && (self.lo & (1 << 43) == 0 || self.lo & (1 << 41) != 0)
    }
    /// Code segment with L set and D clear: 64-bit code.
    pub const fn is_code64(&self) -> bool {
        self.is_code() && self.attr() & (attr::L | attr::DB) == attr::L
    }
    /// Type field of a system descriptor, see [`kind`]; 0 (reserved) for a code or data segment.
    pub const fn kind(&self) -> u8 {
        if self.is_segment() { 0 } else { ((self.lo >> 40) & 15) as u8 }
    }

    pub const fn base(&self) -> u64 {
        ((self.lo >> 16) & 0xff_ffff) | ((self.lo >> 32) & 0xff00_0000) | (self.hi & 0xffff_ffff) << 32
    }
    /// Limit in bytes.
    pub const fn limit(&self) -> u32 {
        let raw = ((self.lo & 0xffff) | ((self.lo >> 32) & 0xf_0000)) as u32;
        if self.lo & (1 << 55) != 0 { raw << 12 | 0xfff } else { raw }
    }
    /// The segment register this descriptor loads.
    pub const fn segment(&self, selector: u16) -> Segment {
        let base = self.base();
        Segment { selector, base, limit: self.limit(), attr: self.attr(), lin_base: base, fast: 0 }
    }

    /// Gates: the target's selector.
    pub const fn gate_selector(&self) -> u16 {
        (self.lo >> 16) as u16
    }
    /// Gates: the target's offset; 16 bits for 286 gates, whose upper word is ignored.
    pub const fn gate_offset(&self) -> u64 {
        if self.gate_is_286() {
            return self.lo & 0xffff;
        }
        (self.lo & 0xffff) | ((self.lo >> 32) & 0xffff_0000) | (self.hi & 0xffff_ffff) << 32
    }
    /// Gates: a 286 (16-bit) call, interrupt or trap gate.
    pub const fn gate_is_286(&self) -> bool {
        self.lo & (1 << 43) == 0
    }
    /// Call gates: number of stack parameters.
    pub const fn gate_params(&self) -> u8 {
        (self.lo >> 32) as u8 & 31
    }
    /// 64-bit interrupt and trap gates: interrupt-stack-table index.
    pub const fn gate_ist(&self) -> u8 {
        (self.lo >> 32) as u8 & 7
    }
}

/// Is this selector null (GDT entry 0, any RPL)?
pub const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// The error code that names `selector`; `ext` is the EXT bit.
pub const fn selector_error(selector: u16, ext: u32) -> u32 {
    (selector & !3) as u32 | ext
}

/// Is `addr` canonical for 48-bit linear addresses?
#[inline(always)]
pub const fn canonical(addr: u64) -> bool {
    ((addr << 16) as i64 >> 16) as u64 == addr
}

impl Vcpu {
    /// Sets CS with the RPL replaced by `cpl`.
    pub fn set_cs(&mut self, mut cs: Segment, cpl: u8) {
        cs.selector = (cs.selector & !3) | u16::from(cpl);
        self.seg[Seg::Cs as usize] = cs;
    }
}

impl Ctx<'_> {
    /// Fetches the 8-byte descriptor of `selector`. Outside its table: `vector` with the selector as error code.
    pub fn descriptor(&mut self, selector: u16, vector: u8, ext: u32) -> Result<Descriptor, Exception> {
        let bad = Exception::with_error(vector, selector_error(selector, ext));
        let (base, limit) = if selector & 4 == 0 {
            (self.cpu.gdtr.base, u32::from(self.cpu.gdtr.limit))
        } else if self.cpu.ldtr.attr & (attr::UNUSABLE | attr::P) == attr::P
            && !is_null(self.cpu.ldtr.selector)
        {
            (self.cpu.ldtr.base, self.cpu.ldtr.limit)
        } else {
            return Err(bad);
        };
        if u32::from(selector | 7) > limit {
            return Err(bad);
        }
        let lin = self.table_address(base, u64::from(selector & !7));
        Ok(Descriptor { lo: self.read_lin(lin, Privilege::System)?, hi: 0, lin })
    }

    /// Fetches a system descriptor or gate: 16 bytes in long mode, 8 elsewhere. An upper half whose type field is
    /// not zero raises `vector` too.
    pub fn system_descriptor(
        &mut self,
        selector: u16,
        vector: u8,
        ext: u32,
    ) -> Result<Descriptor, Exception> {
        let mut d = self.descriptor(selector, vector, ext)?;
        if !self.cpu.mode.long || d.is_segment() {
            return Ok(d);
        }
        let bad = Exception::with_error(vector, selector_error(selector, ext));
        let limit = if selector & 4 == 0 { u32::from(self.cpu.gdtr.limit) } else { self.cpu.ldtr.limit };
        if u32::from(selector & !7) + 15 > limit {
            return Err(bad);
        }
        d.hi = self.read_lin(d.lin.wrapping_add(8), Privilege::System)?;
        if d.hi & (0x1f << 40) != 0 { Err(bad) } else { Ok(d) }
    }

    /// Sets the accessed bit of a code or data descriptor in memory, if it is clear.
    pub fn set_accessed(&mut self, d: &mut Descriptor) -> Result<(), Exception> {
        if d.lo & (1 << 40) == 0 {
            d.lo |= 1 << 40;
            self.write_lin(d.lin.wrapping_add(5), (d.lo >> 40) as u8, Privilege::System)?;
        }
        Ok(())
    }

    /// Sets or clears the busy bit of the TSS descriptor at linear address `lin`.
    pub fn set_tss_busy(&mut self, lin: u64, busy: bool) -> Result<(), Exception> {
        let lo: u64 = self.read_lin(lin, Privilege::System)?;
        let new = if busy { lo | BUSY } else { lo & !BUSY };
        self.write_lin(lin.wrapping_add(5), (new >> 40) as u8, Privilege::System)
    }

    /// Address `off` bytes into a system table: 32 bits outside long mode.
    pub fn table_address(&self, base: u64, off: u64) -> u64 {
        let lin = base.wrapping_add(off);
        if self.cpu.mode.long { lin } else { lin & 0xffff_ffff }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_descriptor_fields() {
        let d = Descriptor { lo: 0x12cf_9a34_5678_ffff, hi: 0, lin: 0 };
        assert_eq!(d.base(), 0x1234_5678);
        assert_eq!(d.limit(), u32::MAX);
        assert!(d.is_code() && d.present() && !d.is_conforming() && d.is_readable());
        assert_eq!(d.dpl(), 0);
        assert_eq!(d.kind(), 0);
    }

    #[test]
    fn test_gate_fields() {
        let d = Descriptor { lo: 0x1234_ee03_0008_5678, hi: 0xffff_8000, lin: 0 };
        assert_eq!(d.kind(), kind::INT32);
        assert_eq!(d.dpl(), 3);
        assert_eq!(d.gate_selector(), 8);
        assert_eq!(d.gate_offset(), 0xffff_8000_1234_5678);
        assert_eq!(d.gate_ist(), 3);
        let g286 = Descriptor { lo: 0x1234_8600_0008_5678, ..d };
        assert_eq!(g286.gate_offset(), 0x5678);
    }

    #[test]
    fn test_canonical() {
        assert!(canonical(0x7fff_ffff_ffff) && canonical(0xffff_8000_0000_0000));
        assert!(!canonical(0x8000_0000_0000) && !canonical(0xffff_7fff_ffff_ffff));
    }
}
