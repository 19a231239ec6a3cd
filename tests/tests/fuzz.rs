//! Random programs in lockstep: both engines agree after every block, whatever a program does.
//!
//! `RETROVISOR_FUZZ_SEED` is the first seed (1), `RETROVISOR_FUZZ_INSNS` how many instructions are executed
//! (10,000,000), `RETROVISOR_FUZZ_EACH` how many of a program at most (20,000), `RETROVISOR_FUZZ_BLOCKS` after how many
//! blocks the engines are compared (1). A failure prints the seed of its program and the whole difference.
#![allow(clippy::expect_used)]

use retrovisor_replay::{Stride, VerifyOptions};
use retrovisor_tests::fuzz;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn random_programs_agree_after_every_block() {
    let seed = env("RETROVISOR_FUZZ_SEED", 1);
    let blocks = env("RETROVISOR_FUZZ_BLOCKS", 1) as u32;
    let options = VerifyOptions { lockstep: Some(Stride::Blocks(blocks)), ..VerifyOptions::default() };
    let insns = env("RETROVISOR_FUZZ_INSNS", 10_000_000);
    let coverage = fuzz::hunt(seed, insns, env("RETROVISOR_FUZZ_EACH", 20_000), options)
        .unwrap_or_else(|e| panic!("{e}"));
    println!("{coverage}");
    if insns < 10_000_000 {
        return;
    }
    let vectors = [0, 1, 3, 6, 7, 11, 12, 13, 14, 16, 17, 19, 0x20, 0x80, 0x81];
    for v in vectors {
        assert!(coverage.vectors.get(&v).is_some_and(|n| *n > 10), "too few of vector {v:#x}:\n{coverage}");
    }
    assert!(coverage.codes.len() > 800, "{coverage}");
    assert!(coverage.rewritten > 1000, "{coverage}");
    assert!(coverage.blocks > 500_000, "{coverage}");
}
