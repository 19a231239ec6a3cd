//! Programs with a size: how cost grows with the number of processes and with the amount of code.

use crate::code::{Code, MIXER, mixer};
use crate::integer::fold;
use crate::programs::Context;
use crate::sys;

/// Hops of the token at scale 100.
const HOPS: u64 = 20_000;
/// Pages each process of the ring touches when the token comes by.
const WORKING_SET: usize = 16;

/// `ring:N`: a token goes round N processes through pipes; each touches a working set of its own.
pub fn ring(c: &mut Context<'_>) {
    let n = c.parameter.max(2) as usize;
    let pipes: Vec<(i32, i32)> = (0..n).map(|_| sys::pipe()).collect();
    let children: Vec<i32> = (1..n)
        .map(|i| {
            sys::fork(|| {
                // The end of the stream must reach every process: nobody else may hold a write end.
                let (from, to) = (pipes[i - 1].0, pipes[i].1);
                close_all_but(&pipes, from, to);
                pass(from, to);
                0
            })
        })
        .collect();
    let (to, from) = (pipes[0].1, pipes[n - 1].0);
    close_all_but(&pipes, from, to);
    let rounds = (c.scaled(HOPS) / n as u64).max(1);
    let mut pages = sys::Pages::new(WORKING_SET);
    go_round(to, from, 2, &mut pages);
    c.timed(c.name, || go_round(to, from, rounds, &mut pages));
    sys::close(to);
    children.into_iter().for_each(|pid| assert!(sys::wait(pid) == 0));
    sys::close(from);
}

fn close_all_but(pipes: &[(i32, i32)], a: i32, b: i32) {
    pipes.iter().flat_map(|p| [p.0, p.1]).filter(|fd| *fd != a && *fd != b).for_each(sys::close);
}

fn pass(from: i32, to: i32) {
    let mut pages = sys::Pages::new(WORKING_SET);
    let mut token = [0u8; 8];
    while sys::read(from, &mut token) == 8 {
        let value = u64::from_le_bytes(token);
        let next = fold(value, pages.touch(value & 0xff));
        sys::write(to, &next.to_le_bytes());
    }
}

fn go_round(to: i32, from: i32, rounds: u64, pages: &mut sys::Pages) -> u64 {
    let mut token = 1u64.to_le_bytes();
    for _ in 0..rounds {
        sys::write(to, &token);
        sys::read(from, &mut token);
        let value = u64::from_le_bytes(token);
        token = fold(value, pages.touch(value & 0xff)).to_le_bytes();
    }
    u64::from_le_bytes(token)
}

/// Calls at scale 100.
const CALLS: u64 = 4_000_000;

/// `code:KIB`: calls every function of so much generated code once (`code-cold`), then all in turn for a fixed number of
/// calls (`code-hot`).
pub fn code(c: &mut Context<'_>) {
    let functions = (c.parameter.max(1) as usize * 1024 / MIXER).max(1);
    let mut code = Code::new(functions * MIXER);
    for i in 0..functions {
        code.write(i * MIXER, &mixer((i as u32).wrapping_mul(0x9e37_79b9)));
    }
    let calls = |n: u64| {
        let mut value = 1;
        let mut at = 0;
        for _ in 0..n {
            value = code.call(at * MIXER, value);
            at = if at + 1 == functions { 0 } else { at + 1 };
        }
        u64::from(value)
    };
    c.timed(&format!("code-cold:{}", c.parameter), || calls(functions as u64));
    c.timed(&format!("code-hot:{}", c.parameter), || calls(c.scaled(CALLS)));
}
