//! Guest-physical memory: the host-backed slab, the map from guest-physical addresses onto it, page flags, and the
//! TLB arrays whose write tags are the other half of those flags: "a page that is clean or has a [`page::SLOW`] flag
//! has no write tag". So every writer of memory can revoke what its write makes stale, whoever else is running.
//! Knows nothing of paging or instructions. Every write to RAM by anyone passes a check of the page's flags.

pub mod blocks;
mod code;
pub mod footprint;
pub mod map;
pub mod ram;

use code::CodeMap;
pub use footprint::{Footprint, PageFilter};
pub use map::{MemMap, Region, RegionKind, Shadow, Target};
pub use ram::{Pod, Ram};

use crate::addr::{Gpa, PAGE_SHIFT, PAGE_SIZE};
use crate::mmu::tlb::Tlb;

/// Per-page flags; a page with any of [`page::SLOW`] set has no write entry in any TLB.
pub mod page {
    /// Written since somebody last looked, see [`super::Written`]. May be set by an access that was checked for writing and
    /// then not made.
    pub const DIRTY: u8 = 1;
    /// Holds bytes some decoded or translated block was made from. Changed by [`super::Memory::mark_code`] and
    /// [`super::Memory::unmark_code`].
    pub const CODE: u8 = 2;
    /// Is a guest page table with shadow entries made from it: writes are traced.
    pub const TABLE: u8 = 4;
    /// A debugger watches bytes of this page.
    pub const WATCH: u8 = 8;
    /// Read-only (ROM): writes are dropped.
    pub const ROM: u8 = 16;
    /// Was DIRTY when somebody else cleared that flag: still to be hashed...
    pub const UNHASHED: u8 = 32;
    /// ...or still to be saved in a checkpoint.
    pub const UNSAVED: u8 = 64;
    /// A write must take the slow path if one of these is set...
    pub const SLOW: u8 = CODE | TABLE | WATCH | ROM;
    // ...or if DIRTY is clear.
}

/// Who asks which pages were written: each gets every page written since it last asked, whoever else does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Written {
    ToHash = page::UNHASHED,
    ToSave = page::UNSAVED,
}

/// What of a page is still owed to those who ask.
const OWED: u8 = page::UNHASHED | page::UNSAVED;

/// A write the owner of derived state has to look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Traced {
    pub gpa: Gpa,
    pub len: u32,
}

/// Guest-physical memory.
pub struct Memory {
    pub ram: Ram,
    pub map: MemMap,
    /// One byte per page of the slab, see [`page`]. Changed by [`Memory::set_flags`] and [`Memory::clear_flags`].
    pub flags: Vec<u8>,
    /// What the pages flagged CODE hold of code.
    code: CodeMap,
    /// AND-mask of physical addresses (A20 gate). Changed by [`Memory::set_a20`].
    pub a20_mask: u64,
    /// The software TLB of all vCPUs.
    pub tlb: Tlb,
    /// Writes to the parts of CODE pages that hold code, since the engine last drained them.
    pub code_writes: Vec<Traced>,
    /// Writes to TABLE pages since the MMU last drained them (drained before the next translation).
    pub table_writes: Vec<Traced>,
    /// Writes to WATCH pages by anyone but a vCPU's store, since the MMU last looked.
    pub watch_writes: Vec<Traced>,
    /// Slab pages that became DIRTY since [`Memory::take_written`], if anybody wants to know.
    written: Option<Vec<usize>>,
    /// The map or the A20 mask changed: the MMU drops all shadow tables before the next translation.
    pub(crate) remapped: bool,
    /// The `a20_mask` everything derived was made with.
    a20_seen: u64,
    /// What the map was made with: a copy of the chipset's registers.
    shadow: Option<Shadow>,
}

impl Memory {
    /// RAM of `size` bytes: below 3 GiB, then from 4 GiB on. `rom_pages` more pages are kept for ROM images.
    pub fn new(size: u64, rom_pages: u64) -> std::io::Result<Self> {
        let pages = (size >> PAGE_SHIFT) + rom_pages;
        let ram = Ram::new(pages << PAGE_SHIFT)?;
        Ok(Self {
            tlb: Tlb::new(pages as usize, ram.host()),
            ram,
            map: MemMap::new(size),
            flags: vec![0; pages as usize],
            code: CodeMap::new(pages as usize),
            a20_mask: u64::MAX,
            code_writes: Vec::new(),
            table_writes: Vec::new(),
            watch_writes: Vec::new(),
            written: None,
            remapped: false,
            a20_seen: u64::MAX,
            shadow: None,
        })
    }

    /// Reads RAM or ROM without side effects; false (and `buf` untouched from there on) if part is neither.
    pub fn read_phys(&self, gpa: Gpa, buf: &mut [u8]) -> bool {
        let mut at = 0;
        while at < buf.len() {
            let g = gpa + at as u64;
            let n = (buf.len() - at).min((PAGE_SIZE - g.offset()) as usize);
            match self.map.lookup(g) {
                Target::Ram(off) | Target::Rom(off) => self.ram.read_bytes(off, &mut buf[at..at + n]),
                Target::Mmio => return false,
            }
            at += n;
        }
        true
    }

    /// Writes RAM as a device or loader does: marks pages dirty and reports traced pages. ROM bytes are dropped;
    /// false if part is neither RAM nor ROM.
    pub fn write_phys(&mut self, gpa: Gpa, bytes: &[u8]) -> bool {
        let mut at = 0;
        while at < bytes.len() {
            let g = gpa + at as u64;
            let n = (bytes.len() - at).min((PAGE_SIZE - g.offset()) as usize);
            match self.map.lookup(g) {
                Target::Ram(off) if self.read_only(off) => {}
                Target::Ram(off) => {
                    self.note_write(g, off, n as u32);
                    self.ram.write_bytes(off, &bytes[at..at + n]);
                }
                Target::Rom(_) => {}
                Target::Mmio => return false,
            }
            at += n;
        }
        true
    }

    /// Is the slab page of offset `off` flagged [`page::ROM`]?
    #[inline]
    pub(crate) fn read_only(&self, off: usize) -> bool {
        self.flags[off >> PAGE_SHIFT] & page::ROM != 0
    }

    /// Bookkeeping of a write of `len` bytes at `gpa` (inside one page, slab offset `off`) by anyone but a vCPU's
    /// store. A write to a table page empties the TLB, so that the MMU sees it before the next access.
    #[inline]
    pub fn note_write(&mut self, gpa: Gpa, off: usize, len: u32) {
        let f = self.note_store(gpa, off, len);
        if f & (page::TABLE | page::WATCH) != 0 {
            if f & page::TABLE != 0 {
                self.tlb.flush();
            }
            if f & page::WATCH != 0 {
                self.watch_writes.push(Traced { gpa, len });
            }
        }
    }

    /// Bookkeeping of a vCPU's store, whose caller drains `table_writes` after it. Returns the page's flags, CODE
    /// only if the bytes written may be code.
    #[inline]
    pub(crate) fn note_store(&mut self, gpa: Gpa, off: usize, len: u32) -> u8 {
        let mut f = self.mark_dirty(off >> PAGE_SHIFT);
        if f & page::CODE != 0 {
            if self.code.overlaps(off, len) {
                self.code_writes.push(Traced { gpa, len });
            } else {
                f &= !page::CODE;
            }
        }
        if f & page::TABLE != 0 {
            self.table_writes.push(Traced { gpa, len });
        }
        f
    }

    /// Bookkeeping of the page walk's update of an accessed or dirty bit: one byte, a table write only if `trace`
    /// (see [`crate::mmu::walk::Walk::set_accessed`]); the walk drains `table_writes`.
    pub(crate) fn note_accessed(&mut self, gpa: Gpa, off: usize, trace: bool) {
        let f = self.mark_dirty(off >> PAGE_SHIFT);
        if f & page::CODE != 0 && self.code.overlaps(off, 1) {
            self.code_writes.push(Traced { gpa, len: 1 });
        }
        if trace && f & page::TABLE != 0 {
            self.table_writes.push(Traced { gpa, len: 1 });
        }
        if f & page::WATCH != 0 {
            self.watch_writes.push(Traced { gpa, len: 1 });
        }
    }

    /// Marks a slab page dirty; its flags.
    #[inline]
    fn mark_dirty(&mut self, slab_page: usize) -> u8 {
        let f = &mut self.flags[slab_page];
        if *f & page::DIRTY == 0 {
            *f |= page::DIRTY;
            if let Some(w) = &mut self.written {
                w.push(slab_page);
            }
        }
        *f
    }

    /// A block was made from `len` bytes at offset `start` of a slab page (what lies beyond the page is not meant).
    /// Whoever keeps blocks calls this once for each block and page, and [`Memory::unmark_code`] when the block
    /// dies: a page is code until no cache has a block of it left.
    pub fn mark_code(&mut self, slab_page: usize, start: usize, len: usize) {
        self.code.mark(slab_page, start, len);
        self.set_flags(slab_page, page::CODE);
    }

    /// A block that was marked on a slab page died.
    pub fn unmark_code(&mut self, slab_page: usize) {
        if self.code.unmark(slab_page) {
            self.clear_flags(slab_page, page::CODE);
        }
    }

    /// Sets flags of a slab page. Flags that trace writes revoke the page's write tags.
    pub fn set_flags(&mut self, slab_page: usize, flags: u8) {
        if let Some(f) = self.flags.get_mut(slab_page) {
            let new = flags & !*f;
            *f |= flags;
            if new & page::SLOW != 0 {
                self.tlb.drop_write(slab_page);
            }
            if new & page::DIRTY != 0
                && let Some(w) = &mut self.written
            {
                w.push(slab_page);
            }
        }
    }

    /// Clears flags of a slab page. Clearing DIRTY revokes the page's write tags.
    pub fn clear_flags(&mut self, slab_page: usize, flags: u8) {
        if let Some(f) = self.flags.get_mut(slab_page) {
            *f &= !flags;
            if flags & page::DIRTY != 0 {
                self.tlb.drop_write(slab_page);
            }
        }
    }

    /// The slab pages written since `who` last asked, in ascending order. The next write to each is noted again.
    pub fn take_dirty(&mut self, who: Written) -> Vec<usize> {
        let (mut out, mut clean) = (Vec::new(), Vec::new());
        let asked = page::DIRTY | who as u8;
        for (c, chunk) in self.flags.chunks_mut(64).enumerate() {
            // Most chunks have no dirty page; this test is one vector operation.
            if chunk.iter().fold(0, |a, f| a | f) & asked == 0 {
                continue;
            }
            for (i, f) in chunk.iter_mut().enumerate().filter(|(_, f)| **f & asked != 0) {
                if *f & page::DIRTY != 0 {
                    *f = *f & !page::DIRTY | OWED;
                    clean.push(c * 64 + i);
                }
                *f &= !(who as u8);
                out.push(c * 64 + i);
            }
        }
        if clean.len() > 64 {
            self.tlb.drop_all_writes();
        } else {
            clean.iter().for_each(|p| self.tlb.drop_write(*p));
        }
        out
    }

    /// Gives a slab page other contents behind the back of the guest and of every TLB entry: its owner drops all derived
    /// state but decoded and translated blocks, which die by `code_writes`.
    pub(crate) fn restore_page(&mut self, slab_page: usize, bytes: &[u8]) {
        let Some(f) = self.flags.get_mut(slab_page) else { return };
        *f = *f & !(page::DIRTY | page::UNSAVED) | page::UNHASHED;
        self.ram.write_bytes(slab_page << PAGE_SHIFT, bytes);
        if let Some(gpa) = self.map.ram_at(slab_page << PAGE_SHIFT) {
            self.code_writes.push(Traced { gpa, len: PAGE_SIZE as u32 });
        }
    }

    /// From now on notes which pages are written, for [`Memory::take_written`].
    pub fn note_written(&mut self) {
        self.written = Some(Vec::new());
        for f in self.flags.iter_mut().filter(|f| **f & page::DIRTY != 0) {
            *f = *f & !page::DIRTY | OWED;
        }
        self.tlb.drop_all_writes();
    }

    /// Appends to `out` the slab pages written since the last call, some perhaps twice. Costs nothing for pages that
    /// were not written, and takes nothing away from [`Memory::take_dirty`].
    pub fn take_written(&mut self, out: &mut Vec<usize>) {
        let Some(written) = &mut self.written else { return };
        for page in written.drain(..) {
            let f = &mut self.flags[page];
            if *f & page::DIRTY != 0 {
                *f = *f & !page::DIRTY | OWED;
                self.tlb.drop_write(page);
            }
            out.push(page);
        }
    }

    /// Opens (`true`) or closes the A20 gate: closed, bit 20 of every physical address the vCPUs use is zero.
    pub fn set_a20(&mut self, open: bool) {
        self.a20_mask = if open { u64::MAX } else { !(1 << 20) };
        self.check_a20();
    }

    /// Notices a change of `a20_mask` that did not go through [`Memory::set_a20`]. Called at every MMU switch and
    /// before every translation.
    #[inline(always)]
    pub(crate) fn check_a20(&mut self) {
        if self.a20_mask != self.a20_seen {
            self.a20_seen = self.a20_mask;
            self.map_changed();
        }
    }

    /// Maps the firmware ROM that ends at 1 MiB, from slab offset `offset` on, with no RAM switched in over it.
    pub fn map_low_rom(&mut self, start: u64, offset: u64) {
        self.map.low_rom = Some((start, offset));
        self.shadow = None;
        self.set_shadow(&Shadow::default());
    }

    /// Switches RAM in over the firmware ROM as `want` says. Code decoded from what was there before dies.
    pub fn set_shadow(&mut self, want: &Shadow) {
        if self.map.low_rom.is_none() || self.shadow.as_ref() == Some(want) {
            return;
        }
        let old = self.shadow.replace(*want);
        for (n, (start, len)) in map::SHADOW.into_iter().enumerate() {
            if old.is_some_and(|o| o[n] == want[n]) {
                continue;
            }
            self.map.set_shadow(n, want[n]);
            let pages = (start..start + len).step_by(PAGE_SIZE as usize);
            self.code_writes.extend(pages.map(|p| Traced { gpa: Gpa(p), len: PAGE_SIZE as u32 }));
        }
        self.map_changed();
    }

    /// To be called after any change of `map` on a machine that has run: drops everything derived from it.
    #[cold]
    pub fn map_changed(&mut self) {
        self.tlb.flush();
        self.remapped = true;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn physical_access_stops_at_device_memory() {
        let mut m = Memory::new(16 << 20, 1).unwrap();
        assert!(m.write_phys(Gpa(0x9_fff8), &[7; 8]));
        assert!(!m.write_phys(Gpa(0x9_fffc), &[8; 8]));
        let mut b = [0; 8];
        assert!(!m.read_phys(Gpa(0x9_fffc), &mut b));
        assert_eq!(b, [8, 8, 8, 8, 0, 0, 0, 0]);
        assert!(m.read_phys(Gpa(0x9_fff8), &mut b));
        assert_eq!(b, [7, 7, 7, 7, 8, 8, 8, 8]);
    }

    #[test]
    fn writes_are_noted_by_page() {
        let mut m = Memory::new(16 << 20, 1).unwrap();
        m.mark_code(3, 0x40, 1);
        m.set_flags(4, page::TABLE | page::WATCH);
        m.write_phys(Gpa(0x2ff0), &[1; 0x2020]);
        assert_eq!(m.take_dirty(Written::ToHash), [2, 3, 4, 5]);
        assert!(m.take_dirty(Written::ToHash).is_empty());
        assert_eq!(m.code_writes, [Traced { gpa: Gpa(0x3000), len: 0x1000 }]);
        assert_eq!(m.table_writes, [Traced { gpa: Gpa(0x4000), len: 0x1000 }]);
        assert_eq!(m.watch_writes, m.table_writes);
    }

    #[test]
    fn written_pages_are_noted_apart_from_dirty_ones() {
        let mut m = Memory::new(16 << 20, 0).unwrap();
        let taken = |m: &mut Memory| {
            let mut out = Vec::new();
            m.take_written(&mut out);
            out
        };
        m.write_phys(Gpa(0x1000), &[1]);
        assert!(taken(&mut m).is_empty(), "nobody asked");
        m.note_written();
        m.write_phys(Gpa(0x3000), &[1]);
        m.set_flags(2, page::DIRTY);
        m.write_phys(Gpa(0x3008), &[1]);
        assert_eq!(taken(&mut m), [3, 2]);
        m.write_phys(Gpa(0x3000), &[2]);
        assert_eq!(m.take_dirty(Written::ToHash), [1, 2, 3]);
        m.write_phys(Gpa(0x3000), &[3]);
        assert_eq!(taken(&mut m), [3, 3], "hashing between two writes loses neither");
        assert_eq!((taken(&mut m), m.take_dirty(Written::ToHash)), (vec![], vec![3]));
    }

    #[test]
    fn rom_drops_writes_without_a_trace() {
        let mut m = Memory::new(16 << 20, 1).unwrap();
        m.map.map_rom(0xf_f000, 0x1000, 16 << 20);
        assert!(m.write_phys(Gpa(0xf_f000), &[1]));
        let mut b = [9];
        assert!(m.read_phys(Gpa(0xf_f000), &mut b));
        assert_eq!(b, [0]);
        assert!(m.take_dirty(Written::ToHash).is_empty());
    }

    #[test]
    fn shadow_ram_keeps_what_is_written_while_it_is_writable() {
        let mut m = Memory::new(1 << 20, 32).unwrap();
        m.map_low_rom(0xe_0000, 1 << 20);
        let byte = |m: &Memory| {
            let mut b = [0xee];
            m.read_phys(Gpa(0xf_0000), &mut b).then_some(b[0])
        };
        m.ram.write_bytes((1 << 20) + 0x1_0000, &[0x55]);
        let mut shadow = Shadow::default();
        for (bits, write, read) in [(0, 1, 0x55), (3, 2, 2), (1, 3, 2), (0, 4, 0x55), (3, 5, 5)] {
            shadow[0] = bits;
            m.set_shadow(&shadow);
            assert!(m.write_phys(Gpa(0xf_0000), &[write]));
            assert_eq!(byte(&m), Some(read), "PAM0 = {bits}");
        }
        m.code_writes.clear();
        m.set_shadow(&shadow);
        assert!(m.code_writes.is_empty(), "nothing changed");
        shadow[0] = 0;
        m.set_shadow(&shadow);
        assert_eq!(m.code_writes.first(), Some(&Traced { gpa: Gpa(0xf_0000), len: 0x1000 }));
    }
}
