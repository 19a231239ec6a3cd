//! State hashes: a 128-bit digest of everything guest-visible, cheap to take repeatedly.
//!
//! Memory's part is a sum of one term per page (XXH3-128 of the page, seeded with its number; zero for a page of
//! zeros), so that only pages written since the last time are hashed again, and untouched memory costs nothing.

use crate::mem::Memory;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Digest of the whole guest-visible state at one point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct StateHash(pub u128);

impl std::fmt::Display for StateHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The running digest of guest memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryHash {
    terms: Vec<u128>,
    sum: u128,
}

impl MemoryHash {
    /// Accounts for the pages (slab page numbers) written since the last update.
    pub fn update(&mut self, mem: &Memory, dirty: &[usize]) {
        self.terms.resize(mem.flags.len(), 0);
        for &page in dirty {
            let bytes = mem.ram.page(page);
            let zero = bytes.iter().all(|b| *b == 0);
            let term = if zero { 0 } else { xxh3_128_with_seed(bytes, page as u64) };
            let old = std::mem::replace(&mut self.terms[page], term);
            self.sum = self.sum.wrapping_sub(old).wrapping_add(term);
        }
    }

    /// The digest.
    pub fn value(&self) -> u128 {
        self.sum
    }
}
