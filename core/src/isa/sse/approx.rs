//! RCPPS, RCPSS, RSQRTPS, RSQRTSS. Their results differ between CPU models within the architectural error bound of
//! 1.5 * 2^-12, so they are defined here: the exact value rounded toward zero to 13 significand bits (error below
//! 2^-12). They neither read nor write MXCSR's flags and rounding control; denormal inputs count as zeros and tiny
//! results are flushed to zero. Source: SDM vol. 2B, RCPPS and RSQRTPS; vol. 1, 10.4.

use super::{M32, M128};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::isa::insn::Insn;
use crate::isa::{Row, row};
use iced_x86::Code as C;

const SIGN: u32 = 0x8000_0000;
const INF: u32 = 0x7f80_0000;
const QUIET: u32 = 0x0040_0000;
const DEFAULT_NAN: u32 = 0xffc0_0000;
/// Significand bits kept below the leading one.
const KEPT: u32 = 0x7f_f800;

/// 1/x.
pub fn rcp(x: u32) -> u32 {
    let (sign, magnitude) = (x & SIGN, x & !SIGN);
    let exponent = (magnitude >> 23) as i32;
    match exponent {
        0xff if magnitude > INF => return x | QUIET,
        0xff => return sign,
        0 => return sign | INF,
        _ => {}
    }
    // x = m * 2^(exponent - 150) with 2^23 <= m < 2^24; 1/x = (2^47 / m) * 2^(103 - exponent), 2^23 < q <= 2^24.
    let m = u64::from(magnitude & 0x7f_ffff | 0x80_0000);
    let q = (1u64 << 47) / m;
    let (q, e) = if q == 1 << 24 { (1u64 << 23, 254 - exponent) } else { (q, 253 - exponent) };
    if e <= 0 { sign } else { sign | (e as u32) << 23 | q as u32 & KEPT }
}

/// 1/sqrt(x).
pub fn rsqrt(x: u32) -> u32 {
    let (sign, magnitude) = (x & SIGN, x & !SIGN);
    let exponent = (magnitude >> 23) as i32;
    match exponent {
        0xff if magnitude > INF => return x | QUIET,
        0 => return sign | INF,
        _ if sign != 0 => return DEFAULT_NAN,
        0xff => return 0,
        _ => {}
    }
    // x = m * 2^k with k even and 2^23 <= m < 2^25; 1/sqrt(x) = sqrt(2^71 / m) * 2^(-k/2) / 2^35.5: choose 2^72 so
    // that the root has 24 or 25 bits: 2^47 < 2^72 / m <= 2^49.
    let mut m = u128::from(magnitude & 0x7f_ffff | 0x80_0000);
    let mut k = exponent - 150;
    if k & 1 != 0 {
        m <<= 1;
        k -= 1;
    }
    let root = ((1u128 << 72) / m).isqrt() as u32;
    let shift = 8 - root.leading_zeros() as i32;
    // root * 2^-36 * 2^(-k/2), normalised to 24 bits.
    let (q, e) = (root >> shift, 150 - 36 - k / 2 + shift);
    (e as u32) << 23 | q & KEPT
}

fn packed(ctx: &mut Ctx<'_>, i: &Insn, f: fn(u32) -> u32) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_src::<M128>(i)?;
    let r = (0..4).fold(0, |r, n| r | u128::from(f((v >> (32 * n)) as u32)) << (32 * n));
    ctx.set_xmm_reg(i, r);
    Ok(())
}

fn scalar(ctx: &mut Ctx<'_>, i: &Insn, f: fn(u32) -> u32) -> Exec {
    ctx.sse_ready()?;
    let v = ctx.xmm_src::<M32>(i)? as u32;
    let r = ctx.xmm_reg(i) >> 32 << 32 | u128::from(f(v));
    ctx.set_xmm_reg(i, r);
    Ok(())
}

pub const ROWS: &[Row] = &[
    row(C::Rcpps_xmm_xmmm128, |c, i| packed(c, i, rcp)),
    row(C::Rcpss_xmm_xmmm32, |c, i| scalar(c, i, rcp)),
    row(C::Rsqrtps_xmm_xmmm128, |c, i| packed(c, i, rsqrt)),
    row(C::Rsqrtss_xmm_xmmm32, |c, i| scalar(c, i, rsqrt)),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Every exponent, a spread of significands: inside the architectural bound.
    #[test]
    fn relative_error_is_within_the_bound() {
        for e in 1..255u32 {
            for m in (0..0x80_0000u32).step_by(0x1357) {
                let x = e << 23 | m;
                let v = f64::from(f32::from_bits(x));
                let s = f64::from(f32::from_bits(rsqrt(x)));
                assert!((s * v.sqrt() - 1.0).abs() < 1.5 / 4096.0, "rsqrt {x:#x}");
                let r = f64::from(f32::from_bits(rcp(x)));
                if e < 253 {
                    assert!((r * v - 1.0).abs() < 1.5 / 4096.0, "rcp {x:#x}");
                }
            }
        }
    }

    #[test]
    fn powers_of_two_are_exact() {
        assert_eq!(rcp(1f32.to_bits()), 1f32.to_bits());
        assert_eq!(rcp((-4f32).to_bits()), (-0.25f32).to_bits());
        assert_eq!(rsqrt(16f32.to_bits()), 0.25f32.to_bits());
        assert_eq!(rsqrt(0.25f32.to_bits()), 2f32.to_bits());
    }

    #[test]
    fn special_operands() {
        assert_eq!(rcp(0x8000_0000), 0xff80_0000);
        assert_eq!(rcp(1), INF);
        assert_eq!(rcp(0xff80_0000), 0x8000_0000);
        assert_eq!(rcp(0x7f80_0001), 0x7fc0_0001);
        assert_eq!(rsqrt(0x8000_0000), 0xff80_0000);
        assert_eq!(rsqrt((-1f32).to_bits()), DEFAULT_NAN);
        assert_eq!(rsqrt(INF), 0);
        assert_eq!(rsqrt(0xff80_0000), DEFAULT_NAN);
    }
}
