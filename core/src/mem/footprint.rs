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
    #[inline(always)]
    const fn place(address: u64) -> u16 {
        ((address >> PAGE_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS)) as u16
    }

    /// Adds the page of `address`.
    #[inline(always)]
    pub fn insert(&mut self, address: u64) {
        let n = Self::place(address);
        self.words[usize::from(n) / 64] |= 1 << (n % 64);
    }

    /// May the page of `address` be in the set?
    pub fn may_contain(&self, address: u64) -> bool {
        self.has(Self::place(address))
    }

    fn has(&self, n: u16) -> bool {
        self.words[usize::from(n) / 64] & 1 << (n % 64) != 0
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.words.iter_mut().zip(other.words.iter()).for_each(|(a, b)| *a |= b);
    }

    /// The bits that are set, ascending: a small form of a sparse filter.
    pub fn bits(&self) -> Vec<u16> {
        (0..=u16::MAX).filter(|n| self.has(*n)).collect()
    }

    /// The filter with these bits set.
    pub fn from_bits(bits: impl IntoIterator<Item = u16>) -> Self {
        let mut filter = Self::default();
        bits.into_iter().for_each(|n| filter.words[usize::from(n) / 64] |= 1 << (n % 64));
        filter
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

impl Footprint {
    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        self.fetched.merge(&other.fetched);
        self.accessed.merge(&other.accessed);
        self.frames.merge(&other.frames);
    }
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
        assert_eq!(PageFilter::from_bits(f.bits()), f);
        let mut other = PageFilter::default();
        other.insert(page(5000));
        other.merge(&f);
        assert!(other.may_contain(page(5000)) && other.may_contain(page(7)));
    }
}
