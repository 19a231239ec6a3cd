//! The functions themselves, on finite operands, to about 2^-118 relative error, so that the rounded 64-bit result is
//! the correctly rounded one but for one case in 2^50. Each is a power series in fixed point after an argument
//! reduction; arguments of sine and cosine are reduced with 256 bits of 2/pi, exactly enough for every operand below
//! 2^63. The series are deterministic integer arithmetic: the same on every host.

use crate::isa::x87::ext::{Ext, mul_high};

/// One in fixed point with 126 fraction bits.
const ONE: u128 = 1 << 126;

/// pi/2, ln 2, log2 e.
const HALF_PI: Ext = Ext { negative: false, exp: 0, sig: 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1 };
const LN2: Ext = Ext { negative: false, exp: -1, sig: 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af };
const LOG2_E: Ext = Ext { negative: false, exp: 0, sig: 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e88 };
/// 2/pi, 256 fraction bits, least significant word first.
const TWO_OVER_PI: [u64; 4] =
    [0xfe51_63ab_debb_c561, 0xdb62_9599_3c43_9041, 0xfc27_57d1_f534_ddc0, 0xa2f9_836e_4e44_1529];

/// pi, pi/2, pi/4, 3pi/4 as results of FPATAN.
pub const fn pi_quarters(n: u8) -> Ext {
    const THREE_QUARTERS: Ext =
        Ext { negative: false, exp: 1, sig: 0x96cb_e3f9_990e_91a7_9394_c9e8_a0a5_159c };
    match n {
        1 => Ext { exp: -1, ..HALF_PI },
        2 => HALF_PI,
        3 => THREE_QUARTERS,
        _ => Ext { exp: 1, ..HALF_PI },
    }
}

/// Product in fixed point.
fn mul(a: u128, b: u128) -> u128 {
    mul_high(a, b) << 2
}

/// |v| < 4 as fixed point, truncated.
fn fixed(v: Ext) -> u128 {
    let shift = 1 - v.exp;
    if shift < 0 { u128::MAX } else { v.sig.checked_shr(shift as u32).unwrap_or(0) }
}

/// Fixed point as [`Ext`].
fn ext(v: u128) -> Ext {
    Ext::new(false, 1, v)
}

/// 1 - x for a factor that truly is below one: never rounds to one.
fn below_one(x: u128) -> u128 {
    ONE - x.max(1)
}

/// sin r, |r| <= pi/4.
fn sin_reduced(r: Ext) -> Ext {
    let z = fixed(r.mul(r));
    let p = (1..=17u128).rev().fold(ONE, |p, k| below_one(mul(z, p) / (2 * k * (2 * k + 1))));
    r.mul(ext(p))
}

/// cos r, |r| <= pi/4.
fn cos_reduced(r: Ext) -> Ext {
    let z = fixed(r.mul(r));
    ext((1..=17u128).rev().fold(ONE, |p, k| below_one(mul(z, p) / (2 * k * (2 * k - 1)))))
}

/// x = n * pi/2 + r with |r| <= pi/4: (n mod 4, r). |x| < 2^63, 64 significant bits.
fn reduce(x: Ext) -> (u8, Ext) {
    if x.exp < -1 {
        return (0, x);
    }
    // The product of the significand and 2/pi: 320 bits, the binary point at bit 319 - exp.
    let m = u128::from((x.sig >> 64) as u64);
    let mut product = [0u64; 5];
    let mut carry = 0u128;
    for (p, w) in product.iter_mut().zip(TWO_OVER_PI) {
        let t = m * u128::from(w) + carry;
        *p = t as u64;
        carry = t >> 64;
    }
    product[4] = carry as u64;
    // Shift left so that the binary point is at bit 319: what falls out above are multiples of 2 pi times 4.
    let point = (1 + x.exp) as u32;
    let integer = if point == 0 { 0 } else { product[4] >> (64 - point) };
    let mut fraction = shift_left(product, point);
    let mut n = integer as u8 & 3;
    let mut negative = x.negative;
    if fraction[4] >> 63 != 0 {
        n = (n + 1) & 3;
        negative = !negative;
        complement(&mut fraction);
    }
    if x.negative {
        n = n.wrapping_neg() & 3;
    }
    (n, normalise(negative, fraction).mul(HALF_PI))
}

/// Shifts 320 bits left by up to 63.
fn shift_left(v: [u64; 5], by: u32) -> [u64; 5] {
    let mut r = v;
    let mut low = 0;
    for (r, v) in r.iter_mut().zip(v) {
        *r = v << by | low;
        low = if by == 0 { 0 } else { v >> (64 - by) };
    }
    r
}

/// 1 - fraction (to the last of 320 bits).
fn complement(v: &mut [u64; 5]) {
    v.iter_mut().for_each(|w| *w = !*w)
}

/// A 320-bit fraction as [`Ext`].
fn normalise(negative: bool, mut v: [u64; 5]) -> Ext {
    let mut exp = -1;
    for _ in 0..2 {
        if v[4] == 0 {
            v = [0, v[0], v[1], v[2], v[3]];
            exp -= 64;
        }
    }
    let shift = v[4].leading_zeros().min(63);
    let v = shift_left(v, shift);
    Ext::new(negative, exp - shift as i32, u128::from(v[4]) << 64 | u128::from(v[3]))
}

/// (sin x, cos x) for 0 < |x| < 2^63.
pub fn sin_cos(x: Ext) -> (Ext, Ext) {
    let (n, r) = reduce(x);
    let (s, c) = (sin_reduced(r), cos_reduced(r));
    match n {
        0 => (s, c),
        1 => (c, s.neg()),
        2 => (s.neg(), c.neg()),
        _ => (c.neg(), s),
    }
}

/// 2^x - 1 for 0 < |x| <= 1.
pub fn exp2_m1(x: Ext) -> Ext {
    // expm1(y) = y (1 + y/2 (1 + y/3 (1 + ...)))
    let y = x.mul(LN2);
    let m = fixed(y.abs());
    let p = (2..=34u128).rev().fold(ONE, |p, k| {
        let t = mul(m, p) / k;
        if y.negative { ONE - t } else { ONE + t }
    });
    y.mul(ext(p))
}

/// atanh(s) / s for |s| <= 0.18.
fn atanh_over(s: Ext) -> Ext {
    let z = fixed(s.mul(s));
    ext((0..=26u128).rev().fold(0, |p, k| ONE / (2 * k + 1) + mul(z, p)))
}

/// log2((1+s) / (1-s)).
fn log2_ratio(s: Ext) -> Ext {
    s.scale(1).mul(atanh_over(s)).mul(LOG2_E)
}

/// log2 x for x > 0.
pub fn log2(x: Ext) -> Ext {
    const SQRT2: u128 = 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
    let e = if x.sig > SQRT2 { x.exp + 1 } else { x.exp };
    let m = x.scale(-e);
    let s = m.sub(Ext::ONE).div(m.add(Ext::ONE));
    if s.is_zero() {
        return Ext::int(e);
    }
    Ext::int(e).add(log2_ratio(s))
}

/// log2(1 + x) for -1 < x, x not 0.
pub fn log2_1p(x: Ext) -> Ext {
    // 1 + x would lose bits of a small x; s = x / (2 + x) does not.
    if x.exp < -2 { log2_ratio(x.div(x.add(Ext::int(2)))) } else { log2(Ext::ONE.add(x)) }
}

/// atan q for 0 < q <= 1.
fn atan_unit(q: Ext) -> Ext {
    // tan(pi/8) = 0.4142...: above it, atan q = pi/4 + atan((q-1)/(q+1)).
    const TAN_PI_8: Ext = Ext { negative: false, exp: -2, sig: 0xd413_cccf_e779_9211_65f6_26cd_d52a_fa7c };
    if TAN_PI_8.less_in_magnitude(q) {
        let t = q.sub(Ext::ONE).div(q.add(Ext::ONE));
        return pi_quarters(1).add(atan_series(t));
    }
    atan_series(q)
}

fn atan_series(q: Ext) -> Ext {
    if q.is_zero() {
        return q;
    }
    let z = fixed(q.mul(q));
    let p = (1..=52u128).rev().fold(0, |p, k| ONE / (2 * k + 1) - mul(z, p));
    q.mul(ext(below_one(mul(z, p))))
}

/// The angle of the point (x, y), neither coordinate zero: sign of y, in (-pi, pi).
pub fn atan2(y: Ext, x: Ext) -> Ext {
    let (ay, ax) = (y.abs(), x.abs());
    let first_quadrant = if ax.less_in_magnitude(ay) {
        pi_quarters(2).sub(atan_unit(ax.div(ay)))
    } else {
        atan_unit(ay.div(ax))
    };
    let angle = if x.negative { pi_quarters(4).sub(first_quadrant) } else { first_quadrant };
    angle.with_sign(y.negative)
}
