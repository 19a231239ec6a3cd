//! Which pages a stretch of a run touched: sets of page numbers that may say yes for a page that is not in them, but never
//! no for one that is. Whoever searches a history skips the stretches that cannot have touched what is looked for.

use crate::addr::PAGE_SHIFT;

/// log2 of the bits of a filter.
const BITS: u32 = 16;
const WORDS: usize = 1 << (BITS - 6);

/// A set of page numbers, 8 KiB.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageFilter {
    words: Box<[u64; WORDS]>,
}

impl Default for PageFilter {
    fn default() -> Self {
        Self { words: Box::new([0; WORDS]) }
    }
}

impl PageFilter {
    /// The bit that stands for the page of `address`.
    #[inline(always)]
    pub const fn bit(address: u64) -> u16 {
        ((address >> PAGE_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS)) as u16
    }

    /// Adds the page of `address`.
    #[inline(always)]
    pub fn insert(&mut self, address: u64) {
        let n = Self::bit(address);
        self.words[usize::from(n) / 64] |= 1 << (n % 64);
    }

    /// May the page of `address` be in the set?
    pub fn may_contain(&self, address: u64) -> bool {
        self.has(Self::bit(address))
    }

    fn has(&self, n: u16) -> bool {
        self.words[usize::from(n) / 64] & 1 << (n % 64) != 0
    }

    /// The bits that are set, ascending: a small form of a sparse filter, to be searched for [`PageFilter::bit`].
    pub fn bits(&self) -> Vec<u16> {
        let mut bits = Vec::new();
        for (n, word) in self.words.iter().enumerate().filter(|(_, w)| **w != 0) {
            let set = (0..64).filter(|b| word >> b & 1 != 0);
            bits.extend(set.map(|b| (n * 64 + b) as u16));
        }
        bits
    }
}

/// What a stretch of a run touched through the MMU. Writes are known exactly, from the pages' flags.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Footprint {
    /// Linear pages instructions were fetched from.
    pub fetched: PageFilter,
    /// Linear pages that were read or written.
    pub accessed: PageFilter,
    /// Guest-physical pages that were read or written.
    pub frames: PageFilter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_never_forgets_and_seldom_invents() {
        let mut f = PageFilter::default();
        let page = |n: u64| 0xffff_8000_0000_0000 + n * 0x3000;
        (0..1000).for_each(|n| f.insert(page(n) + n));
        assert!((0..1000).all(|n| f.may_contain(page(n) + 0xfff - n)));
        let invented = (1000..11_000).filter(|n| f.may_contain(page(*n))).count();
        assert!(invented < 300, "{invented} of 10,000");
        assert!((0..1000).all(|n| f.bits().binary_search(&PageFilter::bit(page(n))).is_ok()));
    }
}
