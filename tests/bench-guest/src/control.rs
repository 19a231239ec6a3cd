//! Programs whose cost is control flow: indirect branches, virtual calls, deep recursion.

use crate::integer::{Random, fold};
use std::hint::black_box;

#[derive(Clone, Copy)]
enum Op {
    Push(i32),
    Load(u8),
    Store(u8),
    Add,
    Sub,
    Mul,
    Xor,
    Shr,
    And,
    Swap,
    Dup,
    /// Jumps if the top of the stack is zero.
    JumpZero(u16),
    Jump(u16),
    Halt,
}

/// The length of the Collatz sequences of 1 to 50, in bytecode: variables 0 n, 1 i, 2 steps.
const COLLATZ: &[Op] = &[
    Op::Push(50),
    Op::Store(1),
    // 2: next i
    Op::Load(1),
    Op::JumpZero(37),
    Op::Load(1),
    Op::Store(0),
    // 6: while n != 1
    Op::Load(0),
    Op::Push(1),
    Op::Xor,
    Op::JumpZero(32),
    Op::Load(2),
    Op::Push(1),
    Op::Add,
    Op::Store(2),
    Op::Load(0),
    Op::Dup,
    Op::Push(1),
    Op::And,
    Op::JumpZero(26),
    Op::Push(3),
    Op::Mul,
    Op::Push(1),
    Op::Swap,
    Op::Add,
    Op::Store(0),
    Op::Jump(6),
    // 26: even
    Op::Push(1),
    Op::Swap,
    Op::Swap,
    Op::Shr,
    Op::Store(0),
    Op::Jump(6),
    // 32: i -= 1
    Op::Load(1),
    Op::Push(1),
    Op::Sub,
    Op::Store(1),
    Op::Jump(2),
    // 37
    Op::Halt,
];

/// Runs a program of the stack machine; variable 2 is its result.
#[inline(never)]
fn execute(code: &[Op]) -> i32 {
    let (mut stack, mut vars) = ([0i32; 16], [0i32; 4]);
    let (mut sp, mut pc) = (0usize, 0usize);
    macro_rules! pop {
        () => {{
            sp = (sp - 1) & 15;
            stack[sp]
        }};
    }
    macro_rules! push {
        ($v:expr) => {{
            stack[sp] = $v;
            sp = (sp + 1) & 15;
        }};
    }
    macro_rules! binary {
        (|$a:ident, $b:ident| $e:expr) => {{
            let $b = pop!();
            let $a = pop!();
            push!($e);
        }};
    }
    loop {
        let op = code[pc];
        pc += 1;
        match op {
            Op::Push(v) => push!(v),
            Op::Load(n) => push!(vars[usize::from(n & 3)]),
            Op::Store(n) => vars[usize::from(n & 3)] = pop!(),
            Op::Add => binary!(|a, b| a.wrapping_add(b)),
            Op::Sub => binary!(|a, b| a.wrapping_sub(b)),
            Op::Mul => binary!(|a, b| a.wrapping_mul(b)),
            Op::Xor => binary!(|a, b| a ^ b),
            Op::Shr => binary!(|a, b| a >> (b & 31)),
            Op::And => binary!(|a, b| a & b),
            Op::Swap => {
                let (b, a) = (pop!(), pop!());
                push!(b);
                push!(a);
            }
            Op::Dup => {
                let a = pop!();
                push!(a);
                push!(a);
            }
            Op::JumpZero(to) => {
                if pop!() == 0 {
                    pc = usize::from(to);
                }
            }
            Op::Jump(to) => pc = usize::from(to),
            Op::Halt => return vars[2],
        }
    }
}

/// A bytecode interpreter: an indirect branch for each of some 23,000 operations a unit.
pub fn interp(n: u64) -> u64 {
    (0..n).fold(0, |sum, _| fold(sum, execute(black_box(COLLATZ)) as u64))
}

trait Shape {
    fn area(&self, x: u64) -> u64;
}

struct Square(u64);
struct Oblong(u64, u64);
struct Triangle(u64, u64);
struct Ring(u64, u64);

impl Shape for Square {
    fn area(&self, x: u64) -> u64 {
        (self.0 + x) * self.0
    }
}
impl Shape for Oblong {
    fn area(&self, x: u64) -> u64 {
        self.0 * self.1 + x
    }
}
impl Shape for Triangle {
    fn area(&self, x: u64) -> u64 {
        ((self.0 * self.1) / 2) ^ x
    }
}
impl Shape for Ring {
    fn area(&self, x: u64) -> u64 {
        (self.0 * self.0).abs_diff(self.1 * self.1) + (x >> 3)
    }
}

/// 2048 virtual calls in an order no predictor knows by heart, a unit.
pub fn virtual_calls(n: u64) -> u64 {
    let mut random = Random(8);
    let shapes: Vec<Box<dyn Shape>> = (0..2048)
        .map(|_| -> Box<dyn Shape> {
            let (a, b) = (random.next() % 1000, random.next() % 1000);
            match random.next() % 4 {
                0 => Box::new(Square(a)),
                1 => Box::new(Oblong(a, b)),
                2 => Box::new(Triangle(a, b)),
                _ => Box::new(Ring(a, b)),
            }
        })
        .collect();
    let mut sum = 0u64;
    for _ in 0..n {
        for s in black_box(&shapes) {
            sum = sum.wrapping_add(s.area(sum & 0xffff));
        }
    }
    sum
}

#[inline(never)]
fn fibonacci(n: u32) -> u64 {
    if n < 2 { u64::from(n) } else { black_box(fibonacci(n - 1)) + black_box(fibonacci(n - 2)) }
}

/// Recursive Fibonacci of 22 (57,313 calls), a unit.
pub fn fib(n: u64) -> u64 {
    (0..n).fold(0, |sum, _| fold(sum, fibonacci(black_box(22))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytecode_computes_collatz_lengths() {
        let length = |mut n: u64| {
            let mut steps = 0;
            while n != 1 {
                n = if n & 1 == 0 { n / 2 } else { 3 * n + 1 };
                steps += 1;
            }
            steps
        };
        assert_eq!(execute(COLLATZ), (1..=50).map(length).sum::<i32>());
    }

    #[test]
    fn fibonacci_of_22() {
        assert_eq!(fibonacci(22), 17_711);
    }
}
