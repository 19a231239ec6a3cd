//! Extended arithmetic for what the host must not compute: 128-bit significands, truncating, and one rounding at the
//! end. Owns the classes of 80-bit operands and the rounding of results, with their exceptions.

use crate::vcpu::fpu::{Raw80, sw};

/// Class of an 80-bit operand (SDM vol. 1, tables 8-3 and 4-3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Zero,
    /// Normal, denormal or pseudo-denormal.
    Finite,
    Infinity,
    /// A NaN, or an encoding the x87 does not support.
    Other,
}

/// An operand taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub class: Class,
    pub negative: bool,
    /// Denormal or pseudo-denormal: raises #D.
    pub denormal: bool,
    /// Magnitude, if finite.
    pub value: Ext,
}

impl Operand {
    pub fn new((sig, se): Raw80) -> Self {
        let (e, negative) = (se & 0x7fff, se & 0x8000 != 0);
        let class = match e {
            0x7fff if sig == 1 << 63 => Class::Infinity,
            0x7fff => Class::Other,
            0 if sig == 0 => Class::Zero,
            0 => Class::Finite,
            _ if sig >> 63 == 0 => Class::Other,
            _ => Class::Finite,
        };
        let value = match class {
            Class::Finite => Ext::new(negative, i32::from(e.max(1)) - 0x3fff, u128::from(sig) << 64),
            _ => Ext { negative, ..Ext::ZERO },
        };
        Self { class, negative, denormal: e == 0 && sig != 0, value }
    }
    pub fn is_zero(&self) -> bool {
        self.class == Class::Zero
    }
    pub fn is_infinite(&self) -> bool {
        self.class == Class::Infinity
    }
    pub fn is_other(&self) -> bool {
        self.class == Class::Other
    }
}

/// (-1)^negative * sig * 2^(exp - 127); the top bit of `sig` is set unless the value is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ext {
    pub negative: bool,
    pub exp: i32,
    pub sig: u128,
}

/// High half of a 256-bit product.
pub fn mul_high(a: u128, b: u128) -> u128 {
    const LOW: u128 = u64::MAX as u128;
    let (ah, al, bh, bl) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let (ll, lh, hl, hh) = (al * bl, al * bh, ah * bl, ah * bh);
    let mid = (ll >> 64) + (lh & LOW) + (hl & LOW);
    hh + (lh >> 64) + (hl >> 64) + (mid >> 64)
}

#[allow(clippy::should_implement_trait)] // Truncating arithmetic, spelt out where it is used.
impl Ext {
    pub const ZERO: Self = Self { negative: false, exp: 0, sig: 0 };
    pub const ONE: Self = Self { negative: false, exp: 0, sig: 1 << 127 };

    /// Normalises.
    pub fn new(negative: bool, exp: i32, sig: u128) -> Self {
        if sig == 0 {
            return Self { negative, ..Self::ZERO };
        }
        let shift = sig.leading_zeros();
        Self { negative, exp: exp - shift as i32, sig: sig << shift }
    }
    /// An integer.
    pub fn int(v: i32) -> Self {
        Self::new(v < 0, 127, u128::from(v.unsigned_abs()))
    }
    pub fn is_zero(self) -> bool {
        self.sig == 0
    }
    pub fn abs(self) -> Self {
        Self { negative: false, ..self }
    }
    pub fn neg(self) -> Self {
        Self { negative: !self.negative, ..self }
    }
    pub fn with_sign(self, negative: bool) -> Self {
        Self { negative, ..self }
    }
    /// Multiplied by 2^n.
    pub fn scale(self, n: i32) -> Self {
        Self { exp: self.exp + n, ..self }
    }

    pub fn mul(self, o: Self) -> Self {
        let negative = self.negative != o.negative;
        Self::new(negative, self.exp + o.exp + 1, mul_high(self.sig, o.sig))
    }

    /// Quotient, truncated to at least 127 bits. The divisor is not zero.
    pub fn div(self, o: Self) -> Self {
        let (mut r, mut q) = (self.sig >> 1, 0u128);
        let d = o.sig >> 1;
        for _ in 0..128 {
            q <<= 1;
            if r >= d {
                r -= d;
                q |= 1;
            }
            r <<= 1;
        }
        Self::new(self.negative != o.negative, self.exp - o.exp, q)
    }

    /// Sum, truncated.
    pub fn add(self, o: Self) -> Self {
        let (a, b) = if self.less_in_magnitude(o) { (o, self) } else { (self, o) };
        if b.is_zero() {
            return a;
        }
        let shift = (a.exp - b.exp) as u32;
        let (x, y) = (a.sig >> 1, b.sig.checked_shr(shift + 1).unwrap_or(0));
        let sum = if a.negative == b.negative { x + y } else { x - y };
        // Equal exponents lose no bit that a cancellation would bring up: 64-bit operands have low zeros.
        Self::new(a.negative, a.exp + 1, sum)
    }

    pub fn sub(self, o: Self) -> Self {
        self.add(o.neg())
    }

    pub fn less_in_magnitude(self, o: Self) -> bool {
        match (self.is_zero(), o.is_zero()) {
            (_, true) => false,
            (true, false) => true,
            _ => (self.exp, self.sig) < (o.exp, o.sig),
        }
    }
}

/// A rounded result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rounded {
    pub value: Raw80,
    /// #O, #U, #P.
    pub flags: u16,
    /// Rounded away from zero (C1).
    pub up: bool,
}

/// Exponent adjustment of the response to unmasked overflow and underflow (SDM vol. 1, 8.5.4).
const WRAP: i32 = 24576;

/// Rounds to 64 bits under control word `fcw` (its rounding control and masks; precision control does not apply to
/// the instructions computed here). `exact`: `v` is the true value, not truncated from it.
pub fn round(v: Ext, fcw: u16, exact: bool) -> Rounded {
    let sign = if v.negative { 0x8000 } else { 0 };
    if v.is_zero() {
        return Rounded { value: (0, sign), flags: 0, up: false };
    }
    let mut flags = 0;
    let (mut exp, mut sig, mut sticky) = (v.exp + 0x3fff, v.sig, !exact);
    if exp < 1 {
        if fcw & sw::UE == 0 {
            flags |= sw::UE;
            exp += WRAP;
        } else {
            let shift = (1 - exp) as u32;
            let lost = if shift > 127 { sig } else { sig & ((1 << shift) - 1) };
            sticky |= lost != 0;
            sig = sig.checked_shr(shift).unwrap_or(0);
            exp = 0;
        }
    }
    let (mut top, low) = ((sig >> 64) as u64, sig as u64);
    let inexact = low != 0 || sticky;
    let up = inexact
        && match fcw >> 10 & 3 {
            0 => low > 1 << 63 || low == 1 << 63 && (sticky || top & 1 != 0),
            1 => v.negative,
            2 => !v.negative,
            _ => false,
        };
    if inexact {
        flags |= sw::PE;
        if exp == 0 {
            flags |= sw::UE;
        }
    }
    if up {
        let (sum, carry) = top.overflowing_add(1);
        top = if carry { 1 << 63 } else { sum };
        exp += i32::from(carry);
        if exp == 0 && top >> 63 != 0 {
            exp = 1;
        }
    }
    if exp >= 0x7fff {
        return overflow(sign, top, exp, fcw, flags, up);
    }
    Rounded { value: (top, sign | exp as u16), flags, up }
}

fn overflow(sign: u16, sig: u64, exp: i32, fcw: u16, flags: u16, up: bool) -> Rounded {
    if fcw & sw::OE == 0 {
        return Rounded { value: (sig, sign | (exp - WRAP) as u16 & 0x7fff), flags: flags | sw::OE, up };
    }
    let to_infinity = match fcw >> 10 & 3 {
        0 => true,
        1 => sign != 0,
        2 => sign == 0,
        _ => false,
    };
    let value = if to_infinity { (1 << 63, sign | 0x7fff) } else { (u64::MAX, sign | 0x7ffe) };
    Rounded { value, flags: flags | sw::OE | sw::PE, up: to_infinity }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic() {
        let three = Ext::int(3);
        assert_eq!(three.mul(Ext::int(-5)), Ext::int(-15));
        assert_eq!(Ext::int(21).div(Ext::int(7)), three);
        assert_eq!(Ext::int(100).add(Ext::int(-1)), Ext::int(99));
        assert_eq!(Ext::int(1).sub(Ext::int(1)).sig, 0);
        assert_eq!(Ext::int(5).sub(Ext::int(7)), Ext::int(-2));
        assert_eq!(mul_high(u128::MAX, u128::MAX), u128::MAX - 1);
    }

    #[test]
    fn rounding_modes_and_ties() {
        let v = Ext { negative: false, exp: 0, sig: 1 << 127 | 1 << 63 };
        let r = |v, rc: u16, exact| round(v, 0x33f | rc << 10, exact);
        assert_eq!(r(v, 0, true), Rounded { value: (1 << 63, 0x3fff), flags: sw::PE, up: false });
        assert_eq!(r(v, 0, false).value, (1 << 63 | 1, 0x3fff));
        assert_eq!(r(v, 1, true).value, (1 << 63, 0x3fff));
        assert_eq!(r(v, 2, true), Rounded { value: (1 << 63 | 1, 0x3fff), flags: sw::PE, up: true });
        assert_eq!(r(v.neg(), 1, true).value, (1 << 63 | 1, 0xbfff));
        assert_eq!(r(v.neg(), 3, true).value, (1 << 63, 0xbfff));
        assert_eq!(r(Ext { sig: u128::MAX, ..v }, 0, true).value, (1 << 63, 0x4000));
    }

    #[test]
    fn tiny_and_huge_results() {
        let tiny = Ext { negative: false, exp: -16383, sig: 1 << 127 };
        assert_eq!(round(tiny, 0x37f, true), Rounded { value: (1 << 62, 0), flags: 0, up: false });
        assert_eq!(round(tiny, 0x37f, false).flags, sw::PE | sw::UE);
        let wrapped = round(tiny, 0x37f & !sw::UE, true);
        assert_eq!((wrapped.value.1, wrapped.flags), (24576, sw::UE));
        assert_eq!(round(tiny.scale(-200), 0xb7f, false).value, (1, 0));
        let huge = Ext { negative: true, exp: 16384, sig: 1 << 127 };
        assert_eq!(round(huge, 0x37f, true).value, (1 << 63, 0xffff));
        assert_eq!(round(huge, 0xf7f, true).value, (u64::MAX, 0xfffe));
    }
}
