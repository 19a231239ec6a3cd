//! Random programs in lockstep: both engines agree after every block, whatever a program does.
//!
//! `RETROVISOR_FUZZ_SEED` is the first seed (1), `RETROVISOR_FUZZ_INSNS` how many instructions are executed in each code
//! size (6,000,000), `RETROVISOR_FUZZ_EACH` how many of a program at most (20,000), `RETROVISOR_FUZZ_BLOCKS` after how
//! many blocks the engines are compared (1); 0: after 1000 instructions, with blocks linked. A failure prints the seed of
//! its program and the whole difference. With `RETROVISOR_FUZZ_LOUD=1` and `--nocapture` each seed is printed before it
//! runs.
#![allow(clippy::expect_used)]

use retrovisor_replay::{Stride, VerifyOptions};
use retrovisor_tests::fuzz::{self, Coverage, Hunt};

const INSNS: u64 = 6_000_000;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Hunts as the environment says; with the usual amount, sees to it that every kind of event occurred.
fn hunt(bits: u32, stride: Stride, jit: &str, vectors: &[usize]) -> Coverage {
    let stride = match env("RETROVISOR_FUZZ_BLOCKS", 1) {
        0 => Stride::Instructions(1000),
        1 => stride,
        n => Stride::Blocks(n as u32),
    };
    let jit = jit.parse().expect("a list of switches");
    let options = VerifyOptions { lockstep: Some(stride), jit, ..VerifyOptions::default() };
    let what = Hunt {
        bits,
        seed: env("RETROVISOR_FUZZ_SEED", 1),
        instructions: env("RETROVISOR_FUZZ_INSNS", INSNS),
        each: env("RETROVISOR_FUZZ_EACH", 20_000),
        loud: env("RETROVISOR_FUZZ_LOUD", 0) != 0,
    };
    let coverage = fuzz::hunt(what, options).unwrap_or_else(|e| panic!("{e}"));
    println!("{bits}-bit: {coverage}");
    if what.instructions >= INSNS {
        for v in vectors {
            assert!(coverage.vectors.get(v).is_some_and(|n| *n >= 10), "few of vector {v:#x}:\n{coverage}");
        }
        assert!(coverage.codes.len() > 700, "{coverage}");
        assert!(coverage.rewritten > 1000, "{coverage}");
        assert!(coverage.entries > 200_000 || stride != Stride::Blocks(1), "{coverage}");
    }
    coverage
}

#[test]
fn random_64_bit_programs_agree_after_every_block() {
    let vectors = [0, 1, 3, 6, 7, 11, 12, 13, 14, 16, 17, 19, 0x20, 0x80, 0x81];
    hunt(64, Stride::Blocks(1), "", &vectors);
}

#[test]
fn random_32_bit_programs_agree_after_every_block() {
    hunt(32, Stride::Blocks(1), "", &[0, 1, 3, 4, 6, 7, 11, 13, 14, 16, 17, 19, 0x20, 0x80]);
}

#[test]
fn linked_blocks_agree_every_thousand_instructions() {
    hunt(64, Stride::Instructions(1000), "", &[14]);
    hunt(32, Stride::Instructions(1000), "", &[14]);
}

#[test]
fn blocks_translated_for_speed_agree() {
    hunt(64, Stride::Blocks(1), "no-sample", &[14]);
    hunt(32, Stride::Instructions(1000), "no-sample", &[14]);
    hunt(64, Stride::Instructions(1000), "no-sample", &[14]);
}
