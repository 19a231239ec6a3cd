//! The software TLB: direct-mapped arrays that map a linear page straight to the slab: for each ASID and view one
//! for data and one for fetches, so that code and data pages never evict each other.
//!
//! A data entry has a tag per kind of access; a tag that matches says that the access is allowed, needs no A/D update,
//! no trace, no watch, and goes to RAM (or ROM, for reads). A fetch entry has a [`token`]. The entries of a slab page
//! are linked, so that whoever sets a flag on a page (`mem::page`) can revoke exactly the write tags that page has:
//! "a page that is clean or has a SLOW flag has no write tag" is kept by [`crate::mem::Memory`], which therefore owns
//! the TLB.
//!
//! All arrays are allocated at once, as words of zeroes the host backs when they are touched: they never move, so
//! generated code may look into them at fixed addresses (see [`Tlb::base`]).

use super::asid::ASIDS;
use super::walk::MAXPHYADDR;
use crate::addr::Asid;
use crate::vcpu::descriptor::canonical;
use std::ops::Range;

/// log2 of the entries of an array.
pub const ENTRY_BITS: u32 = 13;
/// Entries of an array.
pub const ENTRIES: usize = 1 << ENTRY_BITS;
/// Entries of a 64th of an array.
const CHUNK: usize = ENTRIES / 64;
/// Views of an ASID, see [`super::View`].
pub const VIEWS: usize = 4;
/// Arrays of an ASID: number `asid << 3 | view` for data, and with [`FETCH`] for fetches.
pub const ARRAYS: usize = 2 * VIEWS;
/// The bit that makes the number of a data array that of the fetch array of the same ASID and view.
pub const FETCH: u32 = 4;

const PAGE: u64 = !0xfff;

/// A TLB entry as it is stored. In a data array `read` and `write` are tags: the base of the linear page, or
/// [`empty`]; in a fetch array `exec` is a [`token`], or 0.
///
/// An access of `size` bytes at `lin` is allowed, and stays in the page, if `lin - tag <= 4096 - size`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    pub read: u64,
    pub write: u64,
    pub exec: u64,
    /// Host address of the page.
    pub host: u64,
}

/// An entry, for views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Base of the linear page.
    pub page: u64,
    /// Base of the guest-physical page.
    pub gpa: u64,
    pub read: bool,
    pub write: bool,
    pub exec: bool,
}

/// [`Entry`] as an array of integers, because only of such does `vec!` take zeroed memory as it comes.
type Words = [u64; 4];
const READ: usize = 0;
const WRITE: usize = 1;
const EXEC: usize = 2;
const HOST: usize = 3;
const _: () = assert!(
    size_of::<Words>() == size_of::<Entry>()
        && std::mem::offset_of!(Entry, read) == 8 * READ
        && std::mem::offset_of!(Entry, write) == 8 * WRITE
        && std::mem::offset_of!(Entry, exec) == 8 * EXEC
        && std::mem::offset_of!(Entry, host) == 8 * HOST
);

/// The tag of entry `i` that allows nothing: a page whose accesses look at another entry. Zero but for the first entry
/// of an array.
const fn empty(i: usize) -> u64 {
    if i & (ENTRIES - 1) == 0 { 0x1000 } else { 0 }
}

/// Does a tag allow an access of `size` bytes at `lin`?
#[inline(always)]
const fn allows(tag: u64, lin: u64, size: usize) -> bool {
    lin.wrapping_sub(tag) <= 4096 - size as u64
}

/// Set in every token, so that an empty entry holds none.
const TOKEN: u64 = 1 << 27;
const _: () = assert!(MAXPHYADDR - 12 <= 27);

/// What the fetch entry of an address space and view holds if linear page `lin` is executable there and is
/// guest-physical page `gpa`: bits 47:12 of `lin` in bits 63:28, bit 27 set, bits 38:12 of `gpa` in bits 26:0. Never 0.
///
/// It does not tell a linear address from the one that differs in bits 63:48 only: whoever compares tokens has
/// checked that `lin` is canonical.
#[inline(always)]
pub const fn token(lin: u64, gpa: u64) -> u64 {
    (lin & PAGE) << 16 | TOKEN | gpa >> 12
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
    /// Rights: in a data array the first two count, in a fetch array the last.
    pub read: bool,
    pub write: bool,
    pub exec: bool,
}

/// The cold half of an entry: guest-physical frame, and the neighbours in the list of the slab page (entry number + 1,
/// 0 = none).
type Info = [u32; 3];
const FRAME: usize = 0;
const NEXT: usize = 1;
const PREV: usize = 2;

/// All TLB arrays of a VM.
pub struct Tlb {
    entries: Vec<Words>,
    infos: Vec<Info>,
    /// First entry of each slab page; entry number + 1, 0 = none.
    heads: Vec<u32>,
    /// For each array: bit n is set if any of its n-th 64 entries was filled since they were cleared.
    used: Vec<u64>,
    /// Host address of the slab.
    host: u64,
    epoch: u64,
    /// An entry with a write tag was replaced since the epoch last changed.
    replaced_write: bool,
}

impl Tlb {
    /// An empty TLB over a slab of `pages` pages at host address `host`.
    pub fn new(pages: usize, host: u64) -> Self {
        let arrays = ASIDS * ARRAYS;
        let mut entries: Vec<Words> = vec![[0; 4]; arrays << ENTRY_BITS];
        for a in (0..arrays).filter(|a| *a as u32 & FETCH == 0) {
            entries[a << ENTRY_BITS] = [empty(0), empty(0), 0, 0];
        }
        Self {
            entries,
            infos: vec![[0; 3]; arrays << ENTRY_BITS],
            heads: vec![0; pages],
            used: vec![0; arrays],
            host,
            epoch: 0,
            replaced_write: false,
        }
    }

    /// The first of the [`ENTRIES`] entries of an array. It stays where it is as long as the TLB lives.
    pub fn base(&self, array: u32) -> *const Entry {
        let first = (array as usize % (ASIDS * ARRAYS)) << ENTRY_BITS;
        self.entries.as_ptr().wrapping_add(first).cast()
    }

    /// Changes whenever a translation or a right that anybody may have used is revoked: what was looked up in one
    /// array is right as long as the epoch is the same, even if its entry has been replaced by another page's since.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    fn revoked(&mut self) {
        self.epoch += 1;
        self.replaced_write = false;
    }

    /// The slab offset of `lin` if a read tag allows a read of `size` bytes.
    #[inline(always)]
    pub fn read_hit(&self, array: u32, lin: u64, size: usize) -> Option<usize> {
        let e = self.entries.get(slot(array, lin))?;
        allows(e[READ], lin, size).then(|| self.offset(e, lin))
    }

    /// The slab offset of `lin` if a write tag allows a write of `size` bytes.
    #[inline(always)]
    pub fn write_hit(&self, array: u32, lin: u64, size: usize) -> Option<usize> {
        let e = self.entries.get(slot(array, lin))?;
        allows(e[WRITE], lin, size).then(|| self.offset(e, lin))
    }

    /// The guest-physical address and slab offset of `lin` if it may be fetched from; `array` is the number of the
    /// data array.
    #[inline(always)]
    pub fn exec_hit(&self, array: u32, lin: u64) -> Option<(u64, usize)> {
        let e = self.entries.get(slot(array | FETCH, lin))?;
        // What is left of the right token is the frame.
        let frame = e[EXEC] ^ token(lin, 0);
        (frame < TOKEN && canonical(lin)).then(|| (frame << 12 | lin & 0xfff, self.offset(e, lin)))
    }

    #[inline(always)]
    fn offset(&self, e: &Words, lin: u64) -> usize {
        e[HOST].wrapping_sub(self.host) as usize | (lin & 0xfff) as usize
    }

    /// Installs (or replaces) the entry of a page.
    pub fn fill(&mut self, array: u32, f: Fill) {
        let a = array as usize;
        if a >= self.used.len() {
            return;
        }
        let i = slot(array, f.lin);
        let (data, lin) = (array & FETCH == 0, f.lin & PAGE);
        let tag = |on: bool| if on && data { lin } else { empty(i) };
        let exec = if f.exec && !data { token(lin, f.gpa) } else { 0 };
        let host = ((f.slab as u64) << 12).wrapping_add(self.host);
        let words: Words = [tag(f.read), tag(f.write), exec, host];
        let frame = (f.gpa >> 12) as u32;
        if self.entries[i] == words && self.infos[i][FRAME] == frame {
            return;
        }
        self.replaced_write |= self.has_write(i);
        self.clear(i);
        if page(i, &words).is_none() {
            return;
        }
        self.used[a] |= 1 << ((i & (ENTRIES - 1)) / CHUNK);
        self.entries[i] = words;
        self.link(i, f.slab, frame);
    }

    /// Numbers of the entries of array `a` that may hold something.
    fn filled(&self, a: usize) -> impl Iterator<Item = usize> + use<> {
        let (used, first) = (self.used.get(a).copied().unwrap_or(0), a << ENTRY_BITS);
        let chunks = (0..64usize).filter(move |c| used >> c & 1 != 0);
        chunks.flat_map(move |c| (first + c * CHUNK)..(first + (c + 1) * CHUNK))
    }

    /// Revokes the write tags of a slab page.
    pub fn drop_write(&mut self, slab: usize) {
        let mut n = self.heads[slab];
        let mut revoked = self.replaced_write;
        while n != 0 {
            let i = n as usize - 1;
            n = self.infos[i][NEXT];
            revoked |= self.clear_write(i);
        }
        if revoked {
            self.revoked();
        }
    }

    /// Revokes all tags of a slab page.
    pub fn drop_page(&mut self, slab: usize) {
        while self.heads[slab] != 0 {
            self.clear(self.heads[slab] as usize - 1);
        }
        self.revoked();
    }

    /// Revokes every write tag.
    pub fn drop_all_writes(&mut self) {
        for a in (0..self.used.len()).filter(|a| *a as u32 & FETCH == 0) {
            for i in self.filled(a) {
                self.clear_write(i);
            }
        }
        self.revoked();
    }

    /// Revokes all tags of a linear page in every array.
    pub fn drop_linear(&mut self, lin: u64) {
        for a in 0..self.used.len() {
            let i = slot(a as u32, lin);
            if page(i, &self.entries[i]) == Some(lin & PAGE) {
                self.clear(i);
            }
        }
        self.revoked();
    }

    /// Revokes all tags of `pages` linear pages from `base` in one array.
    pub fn clear_range(&mut self, array: u32, base: u64, pages: u64) {
        self.revoked();
        if self.used.get(array as usize).is_none_or(|u| *u == 0) {
            return;
        }
        let inside =
            |t: &Self, i: usize| page(i, &t.entries[i]).is_some_and(|p| p.wrapping_sub(base) >> 12 < pages);
        if pages < ENTRIES as u64 {
            for n in 0..pages {
                let i = slot(array, base.wrapping_add(n << 12));
                if inside(self, i) {
                    self.clear(i);
                }
            }
            return;
        }
        for i in self.filled(array as usize) {
            if inside(self, i) {
                self.clear(i);
            }
        }
    }

    /// Empties one array.
    pub fn clear_array(&mut self, array: u32) {
        self.revoked();
        let a = array as usize;
        if self.used.get(a).is_some_and(|u| *u != 0) {
            for i in self.filled(a) {
                self.clear(i);
            }
            self.used[a] = 0;
        }
    }

    /// Empties every array.
    pub fn flush(&mut self) {
        for a in 0..self.used.len() {
            self.clear_array(a as u32);
        }
    }

    /// The entries of an array that hold something.
    pub fn entries(&self, array: u32) -> impl Iterator<Item = Held> {
        self.filled(array as usize).filter_map(move |i| {
            let (w, fetch) = (&self.entries[i], array & FETCH != 0);
            Some(Held {
                page: page(i, w)?,
                gpa: u64::from(self.infos[i][FRAME]) << 12,
                read: !fetch && w[READ] != empty(i),
                write: !fetch && w[WRITE] != empty(i),
                exec: w[EXEC] != 0,
            })
        })
    }

    fn clear(&mut self, i: usize) {
        if let Some(page) = page(i, &self.entries[i]) {
            let slab = self.offset(&self.entries[i], page) >> 12;
            self.unlink(i, slab);
            self.entries[i] = [empty(i), empty(i), 0, 0];
        }
    }

    fn has_write(&self, i: usize) -> bool {
        !is_fetch(i) && self.entries[i][WRITE] != empty(i)
    }

    /// Clears the write tag of an entry; says whether it had one.
    fn clear_write(&mut self, i: usize) -> bool {
        let had = self.has_write(i);
        if had && self.entries[i][READ] == empty(i) {
            self.clear(i);
        } else if had {
            self.entries[i][WRITE] = empty(i);
        }
        had
    }

    fn link(&mut self, i: usize, slab: usize, frame: u32) {
        let head = std::mem::replace(&mut self.heads[slab], i as u32 + 1);
        self.infos[i] = [frame, head, 0];
        if head != 0 {
            self.infos[head as usize - 1][PREV] = i as u32 + 1;
        }
    }

    fn unlink(&mut self, i: usize, slab: usize) {
        let [_, next, prev] = self.infos[i];
        match prev {
            0 => self.heads[slab] = next,
            p => self.infos[p as usize - 1][NEXT] = next,
        }
        if next != 0 {
            self.infos[next as usize - 1][PREV] = prev;
        }
    }
}

/// Is entry `i` in a fetch array?
const fn is_fetch(i: usize) -> bool {
    (i >> ENTRY_BITS) as u32 & FETCH != 0
}

/// Base of the linear page entry `i` is for; `None` if it is empty.
const fn page(i: usize, w: &Words) -> Option<u64> {
    if is_fetch(i) {
        return if w[EXEC] == 0 { None } else { Some((w[EXEC] as i64 >> 16) as u64 & PAGE) };
    }
    if w[READ] != empty(i) {
        Some(w[READ])
    } else if w[WRITE] != empty(i) {
        Some(w[WRITE])
    } else {
        None
    }
}

/// The numbers of the arrays of an ASID.
pub fn arrays(asid: Asid) -> Range<u32> {
    let first = u32::from(asid.0) * ARRAYS as u32;
    first..first + ARRAYS as u32
}

/// Number of the entry that may hold `lin`.
#[inline(always)]
const fn slot(array: u32, lin: u64) -> usize {
    (array as usize) << ENTRY_BITS | (lin >> 12) as usize & (ENTRIES - 1)
}
