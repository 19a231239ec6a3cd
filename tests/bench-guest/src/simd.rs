//! SSE2 by intrinsics: packed integers and packed doubles, on arrays that fit the first-level cache.

use crate::integer::{Random, fold};
use std::arch::x86_64::*;
use std::hint::black_box;

#[target_feature(enable = "sse2")]
fn words(seed: u64, len: usize) -> Vec<__m128i> {
    let mut random = Random(seed);
    (0..len).map(|_| _mm_set_epi64x(random.next() as i64, random.next() as i64)).collect()
}

#[target_feature(enable = "sse2")]
fn sum_of(v: __m128i) -> u64 {
    let high = _mm_unpackhi_epi64(v, v);
    fold(_mm_cvtsi128_si64(v) as u64, _mm_cvtsi128_si64(high) as u64)
}

/// Adds, multiplies, compares, shuffles, packs and sums of absolute differences on two arrays of 4 KiB: a unit.
pub fn integer(n: u64) -> u64 {
    // SAFETY: x86-64 has SSE2.
    unsafe { packed_integer(n) }
}

#[target_feature(enable = "sse2")]
fn packed_integer(n: u64) -> u64 {
    let mut a = words(11, 256);
    let b = words(12, 256);
    let mut sum = _mm_setzero_si128();
    for _ in 0..n {
        for (x, y) in black_box(&mut a).iter_mut().zip(&b) {
            let saturated = _mm_adds_epi16(*x, *y);
            let product = _mm_madd_epi16(saturated, *y);
            let larger = _mm_cmpgt_epi32(product, *x);
            let mixed = _mm_or_si128(_mm_and_si128(larger, *x), _mm_andnot_si128(larger, product));
            let shuffled = _mm_shuffle_epi32::<0b01_11_00_10>(_mm_xor_si128(mixed, _mm_slli_epi32::<3>(*y)));
            let packed = _mm_packus_epi16(_mm_srli_epi16::<4>(shuffled), _mm_avg_epu8(*x, *y));
            sum = _mm_add_epi64(sum, _mm_sad_epu8(packed, _mm_unpacklo_epi8(*x, *y)));
            *x = _mm_add_epi32(shuffled, _mm_sub_epi8(packed, *y));
        }
    }
    fold(sum_of(sum), sum_of(a[100]))
}

/// Multiplies, adds, divides, square roots, compares and conversions on two arrays of 4 KiB: a unit.
pub fn double(n: u64) -> u64 {
    // SAFETY: x86-64 has SSE2.
    unsafe { packed_double(n) }
}

#[target_feature(enable = "sse2")]
fn packed_double(n: u64) -> u64 {
    let mut random = Random(13);
    let mut number = || (random.next() >> 40) as f64 / 65536.0 + 0.5;
    let mut a: Vec<__m128d> = (0..256).map(|_| _mm_set_pd(number(), number())).collect();
    let b: Vec<__m128d> = (0..256).map(|_| _mm_set_pd(number(), number())).collect();
    let (mut sum, half) = (_mm_setzero_pd(), _mm_set1_pd(0.5));
    let mut count = _mm_setzero_si128();
    for _ in 0..n {
        for (i, (x, y)) in black_box(&mut a).iter_mut().zip(&b).enumerate() {
            let mut v = _mm_add_pd(_mm_mul_pd(*x, half), _mm_mul_pd(*y, half));
            if i % 8 == 0 {
                v = _mm_sqrt_pd(_mm_mul_pd(v, v));
                v = _mm_div_pd(v, _mm_add_pd(half, half));
            }
            let less = _mm_cmplt_pd(v, *y);
            v = _mm_or_pd(_mm_and_pd(less, _mm_max_pd(v, half)), _mm_andnot_pd(less, _mm_min_pd(v, *x)));
            count = _mm_add_epi32(count, _mm_cvtpd_epi32(v));
            sum = _mm_add_pd(sum, _mm_shuffle_pd::<1>(v, v));
            *x = v;
        }
    }
    fold(sum_of(_mm_castpd_si128(sum)), sum_of(count))
}
