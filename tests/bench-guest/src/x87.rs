//! x87 arithmetic by inline assembly; only operations whose results are exactly rounded, so that every machine agrees.

use crate::integer::{Random, fold};
use std::arch::asm;

/// 1000 rounds of additions, multiplications, a division and a square root on the register stack: a unit.
pub fn arith(n: u64) -> u64 {
    let (start, mut out) = (1.25f64, 0f64);
    // SAFETY: reads `start`, writes `out`; every x87 register is declared clobbered and the stack is left empty.
    unsafe {
        asm!(
            "fld1",
            "fld qword ptr [{start}]",
            "2:",
            "fld st(0)",
            "fmul st(0), st(2)",
            "fadd st(0), st(2)",
            "fsqrt",
            "fadd st(2), st(0)",
            "fsubrp st(1), st(0)",
            "fld1",
            "fdiv st(0), st(2)",
            "fxch st(1)",
            "fabs",
            "faddp st(1), st(0)",
            "fxch st(1)",
            "fmul qword ptr [{start}]",
            "fld1",
            "faddp st(1), st(0)",
            "fsqrt",
            "fxch st(1)",
            "dec {n}",
            "jnz 2b",
            "fstp qword ptr [{out}]",
            "fstp st(0)",
            start = in(reg) &raw const start,
            out = in(reg) &raw mut out,
            n = inout(reg) n * 1000 => _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    fold(n, out.to_bits())
}

/// Dot products of arrays of 256 doubles, with integer loads and stores in between: a unit.
pub fn mem(n: u64) -> u64 {
    let mut random = Random(21);
    let a: Vec<f64> = (0..256).map(|_| (random.next() >> 44) as f64 / 1024.0).collect();
    let b: Vec<f64> = (0..256).map(|_| (random.next() >> 44) as f64 / 2048.0).collect();
    let (mut sum, mut whole) = (0f64, 1i64);
    for _ in 0..n {
        // SAFETY: the loop reads 256 doubles of `a` and `b`, then reads and writes `sum` and `whole`; every x87
        // register is declared clobbered and the stack is left empty.
        unsafe {
            asm!(
                "fldz",
                "2:",
                "fld qword ptr [{a} + {i} * 8 - 8]",
                "fmul qword ptr [{b} + {i} * 8 - 8]",
                "faddp st(1), st(0)",
                "dec {i}",
                "jnz 2b",
                "fild qword ptr [{whole}]",
                "fadd st(0), st(1)",
                "fistp qword ptr [{whole}]",
                "fadd qword ptr [{sum}]",
                "fstp qword ptr [{sum}]",
                a = in(reg) a.as_ptr(),
                b = in(reg) b.as_ptr(),
                i = inout(reg) 256u64 => _,
                whole = in(reg) &raw mut whole,
                sum = in(reg) &raw mut sum,
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            );
        }
    }
    fold(whole as u64, sum.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stay_ordinary_numbers() {
        let last = |n, checksum| f64::from_bits(checksum ^ fold(n, 0));
        assert!((1.0..10.0).contains(&last(1, arith(1))), "{}", last(1, arith(1)));
        assert_eq!(arith(2), arith(2));
        assert_ne!(mem(1), mem(2));
    }
}
