//! The translator: guest code to host code, block by block. Owns what a block becomes; `jit` owns the memory the result
//! lives in and how it is entered.
//!
//! `mode` which code is translated | `unit` a block decoded and analysed | `emit` the order of a block's host code, guest
//! flags, budget | `exits` ways out and back | `window` memory operands | `identical` re-encoding, `stack`, `special`, `system`
//! and `rep` own sequences | `hot` blocks translated for speed | `adapt` which those are | `x87` the x87 and MMX | `recipe` flags
//! recomputed when somebody looks | `site` what happens where translated
//! code calls out | `cache` blocks, links, eviction | `jump_cache` indirect jumps | `host` what the host makes of what the manual leaves undefined |
//! `listing` blocks as text.

// `dynasm!` converts register numbers; sites are boxed because generated code holds their addresses.
#![allow(clippy::useless_conversion, clippy::vec_box)]

mod adapt;
pub mod cache;
pub mod emit;
mod exits;
mod host;
mod hot;
mod identical;
pub mod jump_cache;
mod listing;
pub mod mode;
mod recipe;
pub mod rep;
pub mod site;
pub mod special;
pub mod stack;
pub mod system;
pub mod unit;
mod window;
pub mod x87;

pub use cache::{Stats, Translator};

/// Instructions in one block at most. An engine that enters translated code with more than that left of its budget is
/// back in time.
pub const MAX_INSNS: usize = 64;

/// Conditional branches in the middle of a block at most: a block goes on where one that leads forward falls through.
pub const SIDE_EXITS: usize = 3;
/// In a block translated for speed.
pub const MAX_SIDE_EXITS: usize = 8;
