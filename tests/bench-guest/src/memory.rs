//! Memory: a pointer chase within the first-level cache, copies and fills as SSE loops, and the string instructions on
//! 4 KiB.

use crate::integer::{Random, fold};
use std::arch::asm;

const LEN: usize = 4096;

/// 1024 dependent loads within 16 KiB, a unit.
pub fn chase(n: u64) -> u64 {
    const N: usize = 2048;
    let mut random = Random(31);
    let mut order: Vec<usize> = (0..N).collect();
    (1..N).rev().for_each(|i| order.swap(i, (random.next() % (i as u64 + 1)) as usize));
    let mut cells = vec![0usize; N];
    let base = cells.as_mut_ptr();
    for i in 0..N {
        cells[order[i]] = base.wrapping_add(order[(i + 1) % N]) as usize;
    }
    let mut at = base as usize;
    // SAFETY: every cell holds the address of a cell, and `at` starts as one; the loop only reads cells.
    unsafe {
        asm!(
            "2:",
            "mov {at}, [{at}]", "mov {at}, [{at}]", "mov {at}, [{at}]", "mov {at}, [{at}]",
            "mov {at}, [{at}]", "mov {at}, [{at}]", "mov {at}, [{at}]", "mov {at}, [{at}]",
            "sub {n}, 8",
            "jnz 2b",
            at = inout(reg) at,
            n = inout(reg) n * 1024 + 8 => _,
            options(nostack, readonly),
        );
    }
    (at - base as usize) as u64
}

/// Source and destination, 4 KiB each, aligned to 16 bytes.
#[repr(align(64))]
struct Buffers {
    from: [u8; LEN],
    to: [u8; LEN],
}

impl Buffers {
    fn new() -> Box<Self> {
        let mut random = Random(32);
        Box::new(Self { from: std::array::from_fn(|_| random.next() as u8 | 1), to: [0; LEN] })
    }

    fn checksum(&self) -> u64 {
        self.to.iter().fold(0, |s, b| fold(s, u64::from(*b)))
    }
}

/// Runs one string instruction with its RDI, RSI and RCX, and gives RDI back.
macro_rules! string {
    ($insn:literal, $al:expr, $to:expr, $from:expr, $count:expr) => {{
        let end: u64;
        // SAFETY: the callers' pointers and counts stay within their buffers; DF is clear in Rust code.
        unsafe {
            asm!(
                $insn,
                inout("rdi") $to => end,
                inout("rsi") $from => _,
                inout("rcx") $count as u64 => _,
                in("rax") $al as u64,
                options(nostack),
            );
        }
        end
    }};
}

/// A thousand copies of 4 KiB by 16-byte loads and stores, a unit.
pub fn copy(n: u64) -> u64 {
    let mut b = Buffers::new();
    for i in 0..n * 1000 {
        b.from[i as usize % LEN] ^= 2;
        // SAFETY: copies the LEN bytes of `from` to `to`, from the end down.
        unsafe {
            asm!(
                "2:",
                "movups {a}, [{from} + {i} - 16]",
                "movups {b}, [{from} + {i} - 32]",
                "movups {c}, [{from} + {i} - 48]",
                "movups {d}, [{from} + {i} - 64]",
                "movups [{to} + {i} - 16], {a}",
                "movups [{to} + {i} - 32], {b}",
                "movups [{to} + {i} - 48], {c}",
                "movups [{to} + {i} - 64], {d}",
                "sub {i}, 64",
                "jnz 2b",
                from = in(reg) b.from.as_ptr(),
                to = in(reg) b.to.as_mut_ptr(),
                i = inout(reg) LEN => _,
                a = out(xmm_reg) _, b = out(xmm_reg) _, c = out(xmm_reg) _, d = out(xmm_reg) _,
                options(nostack),
            );
        }
    }
    b.checksum()
}

/// A thousand fills of 4 KiB by 16-byte stores, a unit.
pub fn fill(n: u64) -> u64 {
    let mut b = Buffers::new();
    for i in 0..n * 1000 {
        let pattern = i.wrapping_mul(0x0101_0101_0101_0101);
        // SAFETY: writes the LEN bytes of `to`, which is aligned.
        unsafe {
            asm!(
                "movq {x}, {pattern}",
                "punpcklqdq {x}, {x}",
                "2:",
                "movaps [{to} + {i} - 16], {x}",
                "movaps [{to} + {i} - 32], {x}",
                "movaps [{to} + {i} - 48], {x}",
                "movaps [{to} + {i} - 64], {x}",
                "sub {i}, 64",
                "jnz 2b",
                pattern = in(reg) pattern,
                to = in(reg) b.to.as_mut_ptr(),
                i = inout(reg) LEN => _,
                x = out(xmm_reg) _,
                options(nostack),
            );
        }
    }
    b.checksum()
}

/// A thousand `rep movsb` of 4 KiB, a unit.
pub fn movsb(n: u64) -> u64 {
    let mut b = Buffers::new();
    for i in 0..n * 1000 {
        b.from[i as usize % LEN] ^= 2;
        string!("rep movsb", 0, b.to.as_mut_ptr(), b.from.as_ptr(), LEN);
    }
    b.checksum()
}

/// A thousand `rep movsq` of 4 KiB, a unit.
pub fn movsq(n: u64) -> u64 {
    let mut b = Buffers::new();
    for i in 0..n * 1000 {
        b.from[i as usize % LEN] ^= 2;
        string!("rep movsq", 0, b.to.as_mut_ptr(), b.from.as_ptr(), LEN / 8);
    }
    b.checksum()
}

/// A thousand `rep stosb` of 4 KiB, a unit.
pub fn stosb(n: u64) -> u64 {
    let mut b = Buffers::new();
    for i in 0..n * 1000 {
        string!("rep stosb", i & 0xff, b.to.as_mut_ptr(), 0, LEN);
    }
    b.checksum()
}

/// A hundred `repne scasb` that find their byte at the end of 4 KiB, a unit.
pub fn scasb(n: u64) -> u64 {
    let mut b = Buffers::new();
    let mut found = 0;
    for i in 0..n * 100 {
        let at = LEN - 1 - (i % 64) as usize;
        b.from[at] = 0;
        let start = b.from.as_ptr();
        found += string!("repne scasb", 0, start, 0, LEN) - start as u64;
        b.from[at] = 1;
    }
    found
}
