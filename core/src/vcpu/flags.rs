//! RFLAGS. Owns the bit positions and the representation of the arithmetic flags.

/// Bit masks of RFLAGS (SDM vol. 1, 3.4.3).
pub mod bit {
    pub const CF: u64 = 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// Bit 1 reads as one.
    pub const FIXED: u64 = 2;
}

/// The RFLAGS register, kept materialised: bit 1 is always set, reserved bits are always clear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Flags(pub u64);

impl Flags {
    pub const fn new() -> Self {
        Self(bit::FIXED)
    }
    #[inline(always)]
    pub const fn has(self, mask: u64) -> bool {
        self.0 & mask != 0
    }
    #[inline(always)]
    pub fn put(&mut self, mask: u64, on: bool) {
        if on { self.0 |= mask } else { self.0 &= !mask }
    }
    /// Replaces the flags in `mask` by those of `value`.
    #[inline(always)]
    pub fn replace(&mut self, mask: u64, value: u64) {
        self.0 = (self.0 & !mask) | (value & mask)
    }
    /// I/O privilege level, 0..=3.
    #[inline(always)]
    pub const fn iopl(self) -> u8 {
        ((self.0 >> 12) & 3) as u8
    }
}

impl Default for Flags {
    fn default() -> Self {
        Self::new()
    }
}

impl crate::state::Field for Flags {
    fn put(&self, w: &mut crate::state::Writer) {
        self.0.put(w);
    }
    fn get(r: &mut crate::state::Reader<'_>) -> Result<Self, crate::state::StateError> {
        Ok(Self(u64::get(r)?))
    }
}

/// The bits of RFLAGS that exist and can be set (SDM vol. 1, figure 3-8), bit 1 aside.
pub const WRITABLE: u64 = bit::ARITH
    | bit::TF
    | bit::IF
    | bit::DF
    | bit::IOPL
    | bit::NT
    | bit::RF
    | bit::VM
    | bit::AC
    | bit::VIF
    | bit::VIP
    | bit::ID;
