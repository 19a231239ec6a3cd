//! A set of addresses whose `contains` is a bit test for nearly every address that is not in it.

use std::collections::BTreeSet;

const BITS: usize = 1 << 14;

/// Addresses to stop at.
#[derive(Clone, Debug)]
pub struct AddressFilter {
    bits: Box<[u64]>,
    set: BTreeSet<u64>,
}

impl Default for AddressFilter {
    fn default() -> Self {
        Self { bits: vec![0; BITS / 64].into_boxed_slice(), set: BTreeSet::new() }
    }
}

impl AddressFilter {
    /// Makes the filter equal to `set`; cheap if it already is. Returns the addresses that came or went.
    pub fn sync(&mut self, set: &BTreeSet<u64>) -> Vec<u64> {
        if self.set == *set {
            return Vec::new();
        }
        let changed = self.set.symmetric_difference(set).copied().collect();
        self.bits.fill(0);
        for a in set {
            let h = Self::hash(*a);
            self.bits[h / 64] |= 1 << (h % 64);
        }
        self.set.clone_from(set);
        changed
    }

    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    #[inline(always)]
    pub fn contains(&self, addr: u64) -> bool {
        let h = Self::hash(addr);
        self.bits[h / 64] & 1 << (h % 64) != 0 && self.set.contains(&addr)
    }

    #[inline(always)]
    fn hash(addr: u64) -> usize {
        (addr.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_agrees_with_its_set() {
        let set: BTreeSet<u64> = (0..500).map(|n: u64| n * 0x1357).collect();
        let mut f = AddressFilter::default();
        f.sync(&set);
        for a in 0..100_000 {
            assert_eq!(f.contains(a), set.contains(&a), "{a:#x}");
        }
        f.sync(&BTreeSet::new());
        assert!((0..100_000).all(|a| !f.contains(a)) && f.is_empty());
    }
}
