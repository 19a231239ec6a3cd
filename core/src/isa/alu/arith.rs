//! Pure arithmetic: results and arithmetic flags, branch-free, generic over the operand width.
//!
//! Every function takes zero-extended operands and returns the zero-extended result with the six arithmetic flags at
//! their RFLAGS positions and nothing else. Source: SDM vol. 1, 3.4.3.1.

use crate::isa::traits::Width;
use crate::vcpu::flags::bit::{CF, PF};

/// PF of each result byte.
static PARITY: [u8; 256] = {
    let mut t = [0; 256];
    let mut i = 0;
    while i < 256 {
        t[i] = if (i as u32).count_ones() & 1 == 0 { PF as u8 } else { 0 };
        i += 1;
    }
    t
};

/// PF of a result.
#[inline(always)]
pub fn pf(r: u64) -> u64 {
    u64::from(PARITY[(r & 0xff) as usize])
}

/// SF, ZF and PF of a result, which must be zero-extended.
#[inline(always)]
pub fn szp<W: Width>(r: u64) -> u64 {
    (u64::from(r == 0) << 6) | ((r >> (W::BITS - 1)) << 7) | pf(r)
}

/// CF and OF from the vector of carries (or borrows) out of each bit: OF is the carry into the sign bit xor the one
/// out of it.
#[inline(always)]
fn carry_flags<W: Width>(carries: u64) -> u64 {
    let out = carries >> (W::BITS - 1);
    let into = carries >> (W::BITS - 2);
    (out & CF) | (((out ^ into) & 1) << 11)
}

/// `a + b + cf`.
#[inline(always)]
pub fn add<W: Width>(a: u64, b: u64, cf: u64) -> (u64, u64) {
    let r = a.wrapping_add(b).wrapping_add(cf) & W::MASK;
    let carries = (a & b) | ((a | b) & !r);
    (r, carry_flags::<W>(carries) | ((a ^ b ^ r) & 0x10) | szp::<W>(r))
}

/// `a - b - cf`.
#[inline(always)]
pub fn sub<W: Width>(a: u64, b: u64, cf: u64) -> (u64, u64) {
    let r = a.wrapping_sub(b).wrapping_sub(cf) & W::MASK;
    let borrows = (!a & b) | ((!a | b) & r);
    (r, carry_flags::<W>(borrows) | ((a ^ b ^ r) & 0x10) | szp::<W>(r))
}

/// Flags of AND, OR, XOR, TEST: CF and OF are clear; AF is undefined, clear here as on Intel processors.
#[inline(always)]
pub fn logic<W: Width>(r: u64) -> (u64, u64) {
    (r, szp::<W>(r))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::flags::bit::{AF, OF, SF, ZF};

    #[test]
    fn test_add_carry_chain_and_overflow() {
        assert_eq!(add::<u8>(0xff, 0, 1), (0, CF | AF | ZF | PF));
        assert_eq!(add::<u8>(0x7f, 1, 0), (0x80, OF | AF | SF));
        assert_eq!(add::<u64>(u64::MAX, u64::MAX, 1), (u64::MAX, CF | AF | SF | PF));
        assert_eq!(add::<u32>(0x8000_0000, 0x8000_0000, 0), (0, CF | OF | ZF | PF));
    }

    #[test]
    fn test_sub_borrow_and_overflow() {
        assert_eq!(sub::<u8>(0, 1, 0), (0xff, CF | AF | SF | PF));
        assert_eq!(sub::<u16>(0x8000, 1, 0), (0x7fff, OF | AF | PF));
        assert_eq!(sub::<u64>(5, 4, 1), (0, ZF | PF));
        assert_eq!(sub::<u8>(0, 0xff, 1), (0, CF | AF | ZF | PF));
    }

    /// All 8-bit operands against wide arithmetic.
    #[test]
    fn test_add_sub_exhaustive_8_bit() {
        for a in 0..256u64 {
            for b in 0..256u64 {
                for c in 0..2 {
                    let signed = |v: u64| i64::from(v as u8 as i8);
                    let (r, f) = add::<u8>(a, b, c);
                    assert_eq!(r, (a + b + c) & 0xff);
                    assert_eq!(f & CF != 0, a + b + c > 0xff);
                    assert_eq!(f & OF != 0, !(-128..128).contains(&(signed(a) + signed(b) + c as i64)));
                    assert_eq!(f & AF != 0, (a & 15) + (b & 15) + c > 15);
                    let (r, f) = sub::<u8>(a, b, c);
                    assert_eq!(r, a.wrapping_sub(b).wrapping_sub(c) & 0xff);
                    assert_eq!(f & CF != 0, a < b + c);
                    assert_eq!(f & OF != 0, !(-128..128).contains(&(signed(a) - signed(b) - c as i64)));
                    assert_eq!(f & AF != 0, (a & 15) < (b & 15) + c);
                }
            }
        }
    }
}
