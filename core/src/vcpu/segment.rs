//! Segment registers with their hidden parts. Source: SDM vol. 3A, 3.4 and 3.5.

/// Attribute bits: bits 0-7 are byte 5 of the descriptor, bits 12-15 the upper nibble of byte 6.
pub mod attr {
    pub const ACCESSED: u32 = 1;
    /// Data: writable. Code: readable.
    pub const RW: u32 = 1 << 1;
    /// Data: expand-down. Code: conforming.
    pub const DC: u32 = 1 << 2;
    pub const CODE: u32 = 1 << 3;
    /// Code or data (not a system descriptor).
    pub const S: u32 = 1 << 4;
    pub const DPL: u32 = 3 << 5;
    pub const P: u32 = 1 << 7;
    pub const AVL: u32 = 1 << 12;
    pub const L: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    /// Not part of a descriptor: the register was loaded with a null selector.
    pub const UNUSABLE: u32 = 1 << 16;
}

/// A segment register: selector and hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    pub selector: u16,
    /// Base linear address.
    pub base: u64,
    /// Limit in bytes (granularity applied): the last valid offset, or below the first for expand-down.
    pub limit: u32,
    /// See [`attr`].
    pub attr: u32,
    /// Derived: base to add in the current mode (0 for ES, CS, SS, DS in 64-bit mode).
    pub lin_base: u64,
    /// Derived: [`Segment::FAST_READ`], [`Segment::FAST_WRITE`]: accesses need no limit or rights check.
    pub fast: u8,
}

impl Segment {
    pub const FAST_READ: u8 = 1;
    pub const FAST_WRITE: u8 = 2;

    /// A real-mode or v86-mode segment: base = selector × 16, limit 64 KiB, writable data, accessed.
    pub const fn real(selector: u16) -> Self {
        let base = (selector as u64) << 4;
        let a = attr::P | attr::S | attr::RW | attr::ACCESSED;
        Self { selector, base, limit: 0xffff, attr: a, lin_base: base, fast: 0 }
    }

    /// A system register (LDTR, TR) after reset: selector 0, base 0, limit 64 KiB.
    pub const fn unusable(attr: u32) -> Self {
        Self { selector: 0, base: 0, limit: 0xffff, attr, lin_base: 0, fast: 0 }
    }

    /// Descriptor privilege level.
    #[inline(always)]
    pub const fn dpl(&self) -> u8 {
        ((self.attr >> 5) & 3) as u8
    }

    /// Recomputes the derived fields for the current mode.
    pub fn refresh(&mut self, is64: bool, is_cs: bool, is_fs_gs: bool) {
        if is64 {
            self.lin_base = if is_fs_gs { self.base } else { 0 };
            self.fast = Self::FAST_READ | Self::FAST_WRITE;
            return;
        }
        self.lin_base = self.base;
        let usable = self.attr & (attr::UNUSABLE | attr::P | attr::S) == attr::P | attr::S;
        let flat = self.limit == u32::MAX && self.attr & (attr::CODE | attr::DC) != attr::DC;
        self.fast = 0;
        if usable && flat {
            if self.attr & attr::CODE == 0 || self.attr & attr::RW != 0 {
                self.fast |= Self::FAST_READ;
            }
            if self.attr & attr::CODE == 0 && self.attr & attr::RW != 0 && !is_cs {
                self.fast |= Self::FAST_WRITE;
            }
        }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableReg {
    /// Linear address.
    pub base: u64,
    /// Limit in bytes: the last valid offset.
    pub limit: u16,
}

impl crate::state::Field for Segment {
    fn put(&self, w: &mut crate::state::Writer) {
        let Self { selector, base, limit, attr, lin_base: _, fast: _ } = self;
        selector.put(w);
        base.put(w);
        limit.put(w);
        attr.put(w);
    }
    fn get(r: &mut crate::state::Reader<'_>) -> Result<Self, crate::state::StateError> {
        let (selector, base) = (u16::get(r)?, u64::get(r)?);
        Ok(Self { selector, base, limit: u32::get(r)?, attr: u32::get(r)?, lin_base: base, fast: 0 })
    }
}

crate::impl_field!(TableReg { base, limit });
