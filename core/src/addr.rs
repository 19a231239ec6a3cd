//! Address and time newtypes. Owns the rule that no bare `u64` of these kinds crosses a module boundary.

use std::fmt;

/// Bytes in a (small) page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($int:ty), $fmt:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $int);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, $fmt, self.0) }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, $fmt, self.0) }
        }
        impl std::ops::Add<$int> for $name {
            type Output = Self;
            fn add(self, n: $int) -> Self { Self(self.0.wrapping_add(n)) }
        }
        impl std::ops::Sub<$name> for $name {
            type Output = $int;
            fn sub(self, n: $name) -> $int { self.0.wrapping_sub(n.0) }
        }
    };
}

newtype!(
    /// Guest-virtual (linear) address.
    Gva(u64), "{:#x}");
newtype!(
    /// Guest-physical address.
    Gpa(u64), "{:#x}");
newtype!(
    /// Instructions retired by the whole VM; each REP iteration counts once, and so does each delivery of an
    /// exception or interrupt, so that every boundary has its own number. Orders everything.
    Icount(u64), "{}");
newtype!(
    /// Guest time in nanoseconds since power-on.
    GuestTime(u64), "{}ns");
newtype!(
    /// Address-space identifier: an index into the MMU's bounded pool of address spaces.
    Asid(u16), "{}");

impl Gva {
    /// Base of the 4 KiB page that holds this address.
    pub const fn page(self) -> Gva {
        Gva(self.0 & !(PAGE_SIZE - 1))
    }
    /// Offset inside the 4 KiB page.
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

impl Gpa {
    /// Base of the 4 KiB frame that holds this address.
    pub const fn page(self) -> Gpa {
        Gpa(self.0 & !(PAGE_SIZE - 1))
    }
    /// Offset inside the 4 KiB frame.
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
    /// Frame number.
    pub const fn frame(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }
}
