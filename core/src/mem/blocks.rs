//! Where blocks of code lie: the bytes each was made from, and the blocks of each frame. Shared by the block caches of both
//! engines; what a block is, and its number, is theirs.

use super::{Memory, Target, Traced};
use crate::addr::{Gpa, PAGE_SHIFT, PAGE_SIZE};
use std::collections::HashMap;

/// Bytes in one page, or (one instruction) at the end of one and the beginning of another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    pub gpa: Gpa,
    pub len: u32,
    /// Frame base of the second page, if there is one.
    pub second: Option<Gpa>,
}

/// The slab pages marked as code for a block.
pub type Marks = [Option<u32>; 2];

impl Extent {
    /// The pieces: where, and how many bytes.
    pub fn parts(&self) -> impl Iterator<Item = (Gpa, u32)> + use<> {
        let first = match self.second {
            None => self.len,
            Some(_) => (PAGE_SIZE - self.gpa.offset()) as u32,
        };
        let rest = self.len.saturating_sub(first);
        [Some((self.gpa, first)), self.second.map(|s| (s, rest))].into_iter().flatten()
    }

    /// Does a write (inside one frame) touch the bytes?
    fn overlaps(&self, w: &Traced) -> bool {
        let (start, end) = (w.gpa.0, w.gpa.0 + u64::from(w.len));
        self.parts().any(|(gpa, len)| gpa.0 < end && start < gpa.0 + u64::from(len))
    }
}

/// The blocks of each frame that has any.
#[derive(Debug, Default)]
pub struct BlockIndex {
    by_frame: HashMap<u64, Vec<u32>>,
}

impl BlockIndex {
    /// Enters block `id` and marks its bytes as code.
    pub fn insert(&mut self, id: u32, e: &Extent, mem: &mut Memory) -> Marks {
        let mut marks = Marks::default();
        for (mark, (gpa, len)) in marks.iter_mut().zip(e.parts()) {
            self.by_frame.entry(gpa.frame()).or_default().push(id);
            if let Target::Ram(off) = mem.map.lookup(gpa) {
                mem.mark_code(off >> PAGE_SHIFT, gpa.offset() as usize, len as usize);
                *mark = Some((off >> PAGE_SHIFT) as u32);
            }
        }
        marks
    }

    /// Takes block `id` out.
    pub fn remove(&mut self, id: u32, e: &Extent, marks: Marks, mem: &mut Memory) {
        for (gpa, _) in e.parts() {
            if let Some(ids) = self.by_frame.get_mut(&gpa.frame()) {
                ids.retain(|i| *i != id);
                if ids.is_empty() {
                    self.by_frame.remove(&gpa.frame());
                }
            }
        }
        mem.unmark(marks);
    }

    /// The blocks a write touches; `extent` gives a block's.
    pub fn touched(&self, w: &Traced, extent: impl Fn(u32) -> Option<Extent>) -> Vec<u32> {
        let ids = self.by_frame.get(&w.gpa.frame()).map_or(&[][..], Vec::as_slice);
        ids.iter().copied().filter(|id| extent(*id).is_some_and(|e| e.overlaps(w))).collect()
    }

    /// Forgets all blocks; whoever keeps their marks takes those away with [`Memory::unmark`].
    pub fn clear(&mut self) {
        self.by_frame.clear();
    }
}

impl Memory {
    /// Takes away what [`BlockIndex::insert`] marked.
    pub fn unmark(&mut self, marks: Marks) {
        marks.into_iter().flatten().for_each(|p| self.unmark_code(p as usize));
    }

    /// What lies from `gpa` to the end of its page, if that is RAM or ROM.
    pub fn code_bytes(&self, gpa: Gpa) -> Option<&[u8]> {
        let (Target::Ram(off) | Target::Rom(off)) = self.map.lookup(gpa) else { return None };
        Some(&self.ram.as_slice()[off..off + (PAGE_SIZE - gpa.offset()) as usize])
    }

    /// The 15 bytes from `gpa` on, which go on in the frame at `second`, and how many lie before it; `None` if all do,
    /// or if part is neither RAM nor ROM.
    pub fn straddling_bytes(&self, gpa: Gpa, second: Gpa) -> Option<([u8; 15], usize)> {
        let first = (PAGE_SIZE - gpa.offset()) as usize;
        let mut bytes = [0u8; 15];
        let (a, b) = bytes.split_at_mut_checked(first).filter(|(_, b)| !b.is_empty())?;
        (self.read_phys(gpa, a) && self.read_phys(second, b)).then_some((bytes, first))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_blocks_are_touched_by_writes_to_their_bytes_only() {
        let mut mem = Memory::new(1 << 20, 0).unwrap();
        let mut index = BlockIndex::default();
        let blocks = [
            Extent { gpa: Gpa(0x3010), len: 0x20, second: None },
            Extent { gpa: Gpa(0x3ffc), len: 7, second: Some(Gpa(0x8000)) },
        ];
        let marks: Vec<Marks> = (0..).zip(&blocks).map(|(id, e)| index.insert(id, e, &mut mem)).collect();
        assert_eq!(marks, [[Some(3), None], [Some(3), Some(8)]]);
        let at = |gpa, len| index.touched(&Traced { gpa: Gpa(gpa), len }, |id| Some(blocks[id as usize]));
        assert_eq!(
            (at(0x300f, 1), at(0x300f, 2), at(0x302f, 1), at(0x3030, 8)),
            (vec![], vec![0], vec![0], vec![])
        );
        assert_eq!(
            (at(0x3ffb, 1), at(0x3ffb, 2), at(0x8002, 1), at(0x8003, 1)),
            (vec![], vec![1], vec![1], vec![])
        );
        assert_eq!(at(0x3000, 0x1000), [0, 1]);
        index.remove(1, &blocks[1], marks[1], &mut mem);
        assert!(index.touched(&Traced { gpa: Gpa(0x8000), len: 4 }, |_| Some(blocks[1])).is_empty());
    }

    #[test]
    fn test_straddling_bytes_come_from_both_frames() {
        let mut mem = Memory::new(1 << 20, 0).unwrap();
        mem.write_phys(Gpa(0x3ffd), &[1, 2, 3]);
        mem.write_phys(Gpa(0x8000), &[4; 12]);
        let (bytes, first) = mem.straddling_bytes(Gpa(0x3ffd), Gpa(0x8000)).unwrap();
        assert_eq!((&bytes[..4], first), (&[1, 2, 3, 4][..], 3));
        assert_eq!(
            mem.straddling_bytes(Gpa(0x3ff1), Gpa(0x8000)),
            None,
            "all 15 bytes lie in the first page"
        );
        assert_eq!(mem.code_bytes(Gpa(0x3ffd)), Some(&[1, 2, 3][..]));
    }
}
