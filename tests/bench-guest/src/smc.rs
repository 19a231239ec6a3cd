//! Self-modifying code.

use crate::code::{Code, add, store_next};
use crate::integer::fold;

/// A thousand times: rewrites a function and calls it. A unit.
pub fn call(n: u64) -> u64 {
    let mut code = Code::new(4096);
    let mut sum = 0;
    for i in 0..n * 1000 {
        code.write(64, &add(i as u32));
        sum = fold(sum, u64::from(code.call(64, 3)));
    }
    sum
}

/// A thousand calls of a function that rewrites its own next instruction, a unit.
pub fn next(n: u64) -> u64 {
    let mut code = Code::new(4096);
    code.write(64, &store_next());
    let mut sum = 0;
    for i in 0..n * 1000 {
        sum = fold(sum, u64::from(code.call(64, i as u32)));
    }
    sum
}
