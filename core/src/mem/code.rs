//! Where in RAM decoded and translated code lies: which 64-byte pieces of each page, and how many blocks. Tells a
//! store of data that shares a page with code from one that changes code. Knows nothing of what a block is.

use crate::addr::{PAGE_SHIFT, PAGE_SIZE};

/// log2 of the bytes of a piece: 64 pieces make a page.
const PIECE_SHIFT: u32 = 6;

/// Per page of the slab; lazily backed.
pub(super) struct CodeMap {
    /// Bit n: piece n has been code since the page last had none.
    pieces: Vec<u64>,
    /// Blocks made from bytes of the page.
    blocks: Vec<u32>,
}

impl CodeMap {
    pub fn new(pages: usize) -> Self {
        Self { pieces: vec![0; pages], blocks: vec![0; pages] }
    }

    /// A block was made from `len` bytes at offset `start` of a page.
    pub fn mark(&mut self, page: usize, start: usize, len: usize) {
        if let (Some(p), Some(n)) = (self.pieces.get_mut(page), self.blocks.get_mut(page)) {
            *p |= mask(start, len);
            *n += 1;
        }
    }

    /// A block of the page died. True if it was the last.
    pub fn unmark(&mut self, page: usize) -> bool {
        let (Some(p), Some(n)) = (self.pieces.get_mut(page), self.blocks.get_mut(page)) else { return false };
        *n = n.saturating_sub(1);
        if *n == 0 {
            *p = 0;
        }
        *n == 0
    }

    /// May any of `len` bytes (inside one page) at slab offset `off` be code?
    #[inline]
    pub fn overlaps(&self, off: usize, len: u32) -> bool {
        let pieces = self.pieces.get(off >> PAGE_SHIFT).copied().unwrap_or(0);
        pieces & mask(off & (PAGE_SIZE as usize - 1), len as usize) != 0
    }
}

/// The pieces that `len` bytes from offset `start` of a page touch, up to the end of the page.
const fn mask(start: usize, len: usize) -> u64 {
    let last = if len == 0 { start } else { start + len - 1 };
    let (first, last) = (start >> PIECE_SHIFT, last >> PIECE_SHIFT);
    let upto = if last >= 63 { u64::MAX } else { (2 << last) - 1 };
    upto & (u64::MAX << (first & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_mask_has_every_piece_touched_and_no_other() {
        for (start, len, want) in [
            (0, 1, 1),
            (63, 1, 1),
            (63, 2, 3),
            (64, 64, 2),
            (0, 4096, u64::MAX),
            (4095, 1, 1 << 63),
            (4095, 15, 1 << 63),
            (0xfc0, 64, 1 << 63),
            (0xfbf, 2, 3 << 62),
        ] {
            assert_eq!(mask(start, len), want, "{start:#x} {len}");
        }
    }

    #[test]
    fn test_page_is_code_until_its_last_block_dies() {
        let mut m = CodeMap::new(4);
        m.mark(2, 0x100, 16);
        m.mark(2, 0x400, 16);
        assert!(m.overlaps(0x2100, 1) && m.overlaps(0x20ff, 2) && m.overlaps(0x2400, 8));
        assert!(!m.overlaps(0x20fe, 2) && !m.overlaps(0x2140, 0x2c0) && !m.overlaps(0x3100, 1));
        assert!(!m.unmark(2));
        assert!(m.overlaps(0x2100, 1) && m.overlaps(0x2400, 1));
        assert!(m.unmark(2));
        assert!(!m.overlaps(0x2000, 4096));
    }

    #[test]
    fn test_pages_outside_the_slab_are_ignored() {
        let mut m = CodeMap::new(1);
        m.mark(7, 0, 1);
        assert!(!m.unmark(7) && !m.overlaps(0x7000, 4096));
    }
}
