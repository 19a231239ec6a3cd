//! The software TLB: direct-mapped arrays, one per ASID and view, that map a linear page straight to the slab.
//!
//! An entry has a tag per kind of access; a tag that matches says that the access is allowed, needs no A/D update,
//! no trace, no watch, and goes to RAM (or ROM, for reads). The entries of a slab page are linked, so that whoever
//! sets a flag on a page (`mem::page`) can revoke exactly the write tags that page has: "a page that is clean or has
//! a SLOW flag has no write tag" is kept by [`crate::mem::Memory`], which therefore owns the TLB.

/// log2 of the entries of an array.
pub const ENTRY_BITS: u32 = 10;
/// Entries of an array.
pub const ENTRIES: usize = 1 << ENTRY_BITS;
/// Arrays of an ASID, see [`super::View`].
pub const VIEWS: usize = 4;

const PAGE: u64 = !0xfff;

/// A TLB entry. A tag is the linear page with its low 12 bits set; 0 never matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    pub read: u64,
    pub write: u64,
    pub exec: u64,
    /// Slab offset minus linear address.
    pub addend: u64,
}

impl Entry {
    /// Base of the linear page; `None` if the entry is empty.
    pub const fn page(&self) -> Option<u64> {
        let any = self.read | self.write | self.exec;
        if any == 0 { None } else { Some(any & PAGE) }
    }
    const fn slab_page(&self) -> usize {
        let any = self.read | self.write | self.exec;
        ((any & PAGE).wrapping_add(self.addend) >> 12) as usize
    }
}

/// The tag an access of `size` bytes at `lin` must find; a straddling access matches no entry.
#[inline(always)]
pub const fn tag(lin: u64, size: usize) -> u64 {
    lin.wrapping_add(size as u64 - 1) | 0xfff
}

/// The cold half of an entry.
#[derive(Clone, Copy, Debug, Default)]
struct Info {
    /// Guest-physical page.
    gpa: u64,
    /// Neighbours in the list of the slab page; entry number + 1, 0 = none.
    next: u32,
    prev: u32,
}

/// What a fill installs.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// Linear page.
    pub lin: u64,
    /// Guest-physical page.
    pub gpa: u64,
    /// Slab page number.
    pub slab: usize,
    pub read: bool,
    pub write: bool,
    pub exec: bool,
}

/// All TLB arrays of a VM.
pub struct Tlb {
    entries: Vec<Entry>,
    infos: Vec<Info>,
    /// First entry of each slab page; entry number + 1, 0 = none.
    heads: Vec<u32>,
    /// Arrays filled since they were cleared.
    used: Vec<bool>,
    epoch: u64,
}

impl Tlb {
    /// An empty TLB over a slab of `pages` pages.
    pub fn new(pages: usize) -> Self {
        Self { entries: Vec::new(), infos: Vec::new(), heads: vec![0; pages], used: Vec::new(), epoch: 0 }
    }

    /// Changes whenever an exec tag is revoked: a cache of fetch translations made under the same `TlbRef` and the
    /// same epoch is still right.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The slab offset of `lin` if a read tag allows a read of `size` bytes.
    #[inline(always)]
    pub fn read_hit(&self, array: u32, lin: u64, size: usize) -> Option<usize> {
        let e = self.entries.get(slot(array, lin))?;
        (e.read == tag(lin, size)).then(|| lin.wrapping_add(e.addend) as usize)
    }

    /// The slab offset of `lin` if a write tag allows a write of `size` bytes.
    #[inline(always)]
    pub fn write_hit(&self, array: u32, lin: u64, size: usize) -> Option<usize> {
        let e = self.entries.get(slot(array, lin))?;
        (e.write == tag(lin, size)).then(|| lin.wrapping_add(e.addend) as usize)
    }

    /// The guest-physical address and slab offset of `lin` if an exec tag allows a fetch.
    #[inline(always)]
    pub fn exec_hit(&self, array: u32, lin: u64) -> Option<(u64, usize)> {
        let i = slot(array, lin);
        let e = self.entries.get(i)?;
        let info = self.infos.get(i)?;
        (e.exec == lin | 0xfff).then(|| (info.gpa | (lin & 0xfff), lin.wrapping_add(e.addend) as usize))
    }

    /// Installs (or replaces) the entry of a page.
    pub fn fill(&mut self, array: u32, f: Fill) {
        let a = array as usize;
        if self.used.len() <= a {
            self.used.resize(a + 1, false);
            self.entries.resize((a + 1) << ENTRY_BITS, Entry::default());
            self.infos.resize((a + 1) << ENTRY_BITS, Info::default());
        }
        let i = slot(array, f.lin);
        let tag = |on: bool| if on { f.lin | 0xfff } else { 0 };
        let addend = ((f.slab as u64) << 12).wrapping_sub(f.lin & PAGE);
        let entry = Entry { read: tag(f.read), write: tag(f.write), exec: tag(f.exec), addend };
        if self.entries[i] == entry && self.infos[i].gpa == f.gpa & PAGE {
            return;
        }
        self.clear(i);
        if entry.page().is_none() {
            return;
        }
        self.used[a] = true;
        self.entries[i] = entry;
        self.link(i, f.slab, f.gpa & PAGE);
    }

    /// Revokes the write tags of a slab page.
    pub fn drop_write(&mut self, slab: usize) {
        let mut n = self.heads[slab];
        while n != 0 {
            let i = n as usize - 1;
            n = self.infos[i].next;
            let e = &mut self.entries[i];
            if e.read | e.exec == 0 {
                self.clear(i);
            } else {
                e.write = 0;
            }
        }
    }

    /// Revokes all tags of a slab page.
    pub fn drop_page(&mut self, slab: usize) {
        while self.heads[slab] != 0 {
            self.clear(self.heads[slab] as usize - 1);
        }
    }

    /// Revokes every write tag.
    pub fn drop_all_writes(&mut self) {
        for a in 0..self.used.len() {
            if self.used[a] {
                for i in a << ENTRY_BITS..(a + 1) << ENTRY_BITS {
                    let e = &mut self.entries[i];
                    if e.write != 0 {
                        if e.read | e.exec == 0 {
                            self.clear(i);
                        } else {
                            e.write = 0;
                        }
                    }
                }
            }
        }
    }

    /// Revokes all tags of a linear page in every array.
    pub fn drop_linear(&mut self, lin: u64) {
        for a in 0..self.used.len() {
            let i = slot(a as u32, lin);
            if self.entries[i].page() == Some(lin & PAGE) {
                self.clear(i);
            }
        }
    }

    /// Revokes all tags of `pages` linear pages from `base` in one array.
    pub fn clear_range(&mut self, array: u32, base: u64, pages: u64) {
        if !self.used.get(array as usize).is_some_and(|u| *u) {
            return;
        }
        let inside = |e: &Entry| e.page().is_some_and(|p| p.wrapping_sub(base) >> 12 < pages);
        if pages < ENTRIES as u64 {
            for n in 0..pages {
                let i = slot(array, base.wrapping_add(n << 12));
                if inside(&self.entries[i]) {
                    self.clear(i);
                }
            }
            return;
        }
        let first = (array as usize) << ENTRY_BITS;
        for i in first..first + ENTRIES {
            if inside(&self.entries[i]) {
                self.clear(i);
            }
        }
    }

    /// Empties one array.
    pub fn clear_array(&mut self, array: u32) {
        let a = array as usize;
        if self.used.get(a).is_some_and(|u| *u) {
            for i in a << ENTRY_BITS..(a + 1) << ENTRY_BITS {
                self.clear(i);
            }
            self.used[a] = false;
        }
    }

    /// Empties every array.
    pub fn flush(&mut self) {
        for a in 0..self.used.len() {
            self.clear_array(a as u32);
        }
    }

    /// The entries of an array that hold something, with their guest-physical pages.
    pub fn entries(&self, array: u32) -> impl Iterator<Item = (&Entry, u64)> {
        let first = ((array as usize) << ENTRY_BITS).min(self.entries.len());
        let last = (first + ENTRIES).min(self.entries.len());
        let both = self.entries[first..last].iter().zip(&self.infos[first..last]);
        both.filter(|(e, _)| e.page().is_some()).map(|(e, i)| (e, i.gpa))
    }

    fn clear(&mut self, i: usize) {
        let e = self.entries[i];
        if e.page().is_some() {
            self.epoch += u64::from(e.exec != 0);
            self.unlink(i, e.slab_page());
            self.entries[i] = Entry::default();
        }
    }

    fn link(&mut self, i: usize, slab: usize, gpa: u64) {
        let head = std::mem::replace(&mut self.heads[slab], i as u32 + 1);
        self.infos[i] = Info { gpa, next: head, prev: 0 };
        if head != 0 {
            self.infos[head as usize - 1].prev = i as u32 + 1;
        }
    }

    fn unlink(&mut self, i: usize, slab: usize) {
        let Info { next, prev, .. } = self.infos[i];
        match prev {
            0 => self.heads[slab] = next,
            p => self.infos[p as usize - 1].next = next,
        }
        if next != 0 {
            self.infos[next as usize - 1].prev = prev;
        }
    }
}

/// Number of the entry that may hold `lin`.
#[inline(always)]
const fn slot(array: u32, lin: u64) -> usize {
    (array as usize) << ENTRY_BITS | (lin >> 12) as usize & (ENTRIES - 1)
}
