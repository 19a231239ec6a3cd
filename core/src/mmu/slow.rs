//! What happens on a TLB miss and on every access that is not plain RAM: segment checks, translation, straddles,
//! device memory, traced writes.

use super::access::{canonical, segment_fault, slab};
use super::shadow::Leaf;
use super::switch::array;
use super::tlb::{FETCH, Fill};
use super::walk::{Format, Miss, Rights, pf, walk};
use super::{Access, Mmu, Paging, Privilege, View};
use crate::addr::{Asid, Gpa, PAGE_SHIFT, PAGE_SIZE};
use crate::ctx::Ctx;
use crate::engine::hooks::Occurrence;
use crate::exception::{Exception, vector};
use crate::mem::{Memory, Target, Traced, page};
use crate::vcpu::segment::attr;

/// A translated piece of an access, inside one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub gpa: Gpa,
    pub target: Target,
}

/// A translation, before the access is checked against its rights.
struct Found {
    gpa: Gpa,
    rights: Rights,
    /// The leaf's dirty bit is set.
    dirty: bool,
    /// Made from entries whose writes are traced.
    cacheable: bool,
}

impl Ctx<'_> {
    /// Segment limit and rights checks of an access of `len` bytes (SDM vol. 3A, 5.3 to 5.5; real and v86 mode
    /// check only the limit).
    #[inline(never)]
    pub(super) fn check_segment(&self, seg: u8, off: u64, len: u64, write: bool) -> Result<(), Exception> {
        let s = &self.cpu.seg[seg as usize];
        let a = s.attr;
        let code = a & attr::CODE != 0;
        if self.cpu.mode.protected {
            if a & (attr::UNUSABLE | attr::P | attr::S) != attr::P | attr::S {
                return Err(segment_fault(seg));
            }
            let allowed = if write { !code && a & attr::RW != 0 } else { !code || a & attr::RW != 0 };
            if !allowed {
                return Err(segment_fault(seg));
            }
        }
        let last = off.wrapping_add(len - 1);
        let inside = if !code && a & attr::DC != 0 {
            let top = if a & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
            off > u64::from(s.limit) && last <= top
        } else {
            last <= u64::from(s.limit)
        };
        if inside && off <= last { Ok(()) } else { Err(segment_fault(seg)) }
    }

    /// Canonicality and alignment of an access by linear address.
    fn check_linear(&self, lin: u64, len: u64, view: View) -> Result<(), Exception> {
        if !canonical(lin, len) {
            return Err(Exception::gp(0));
        }
        if view == View::UserAligned && lin & (len.min(8).next_power_of_two() - 1) != 0 {
            return Err(Exception::with_error(vector::AC, 0));
        }
        Ok(())
    }

    /// Outside long mode linear addresses have 32 bits, also those of implicit accesses.
    fn wrap(&self, lin: u64) -> u64 {
        if self.cpu.mode.long { lin } else { lin & 0xffff_ffff }
    }

    /// Linear address of the page after the one of `lin`, wrapping where linear addresses do.
    fn next_page(&self, lin: u64) -> u64 {
        let next = (lin | 0xfff).wrapping_add(1);
        // Implicit accesses of compatibility mode may lie above 4 GiB.
        if lin <= self.cpu.mode.lin_mask { next & self.cpu.mode.lin_mask } else { next }
    }

    /// Translates one page's part of an access, with all side effects on the paging structures, and fills the TLB.
    fn resolve(&mut self, lin: u64, access: Access, view: View) -> Result<Place, Exception> {
        let epoch = self.sys.mem.tlb.epoch();
        // Also heals a `TlbRef` whose inputs changed without `mmu_switch`.
        self.mmu_switch();
        let asid = self.sys.mmu.current(self.cpu.index);
        let (mmu, mem) = (&mut self.sys.mmu, &mut self.sys.mem);
        mmu.sync(mem);
        mmu.counters.misses += 1;
        let found = mmu.translate(mem, asid, lin, access, view);
        // An accessed or dirty bit lies in code or in a watched page, or a translation has gone.
        if !mem.code_writes.is_empty() || !mem.watch_writes.is_empty() {
            self.sys.end_block();
        } else if mem.tlb.epoch() != epoch {
            self.sys.refetch();
        }
        found
    }

    /// Translates an access that may straddle two pages: the first place with its length, and the second.
    fn resolve_all(
        &mut self,
        lin: u64,
        len: usize,
        access: Access,
        view: View,
    ) -> Result<(Place, usize, Option<Place>), Exception> {
        let first = len.min(0x1000 - (lin & 0xfff) as usize);
        let a = self.resolve(lin, access, view)?;
        if first == len {
            return Ok((a, len, None));
        }
        let b = self.resolve(self.next_page(lin), access, view)?;
        Ok((a, first, Some(b)))
    }

    /// Checks (and sets A/D bits for) an access of `len` bytes at a linear address without making it.
    #[inline(never)]
    pub fn probe_lin(&mut self, lin: u64, len: u64, access: Access, who: Privilege) -> Result<(), Exception> {
        let (view, lin) = (self.view(who), self.wrap(lin));
        if len == 0 {
            return Ok(());
        }
        if !canonical(lin, len) {
            return Err(Exception::gp(0));
        }
        if len <= 16 && access != Access::Exec {
            self.check_linear(lin, len, view)?;
        }
        let mut at = lin;
        let mut left = len;
        loop {
            self.resolve(at, access, view)?;
            let here = 0x1000 - (at & 0xfff);
            if here >= left {
                return Ok(());
            }
            left -= here;
            at = self.next_page(at);
        }
    }

    /// The page of `lin`, which may be written, is about to be written like data: if it was traced as a page table, what
    /// was derived from it goes, and true is returned.
    #[cold]
    pub(crate) fn untrace(&mut self, lin: u64) -> bool {
        let (view, lin) = (self.view(Privilege::Current), self.wrap(lin));
        // A misaligned element would have to fault before anything happens.
        if view == View::UserAligned {
            return false;
        }
        let Ok(Place { gpa, target: Target::Ram(off) }) = self.resolve(lin, Access::Write, view) else {
            return false;
        };
        let mem = &mut self.sys.mem;
        if mem.flags[off >> PAGE_SHIFT] & page::TABLE == 0 {
            return false;
        }
        mem.table_writes.push(Traced { gpa: gpa.page(), len: PAGE_SIZE as u32 });
        self.sys.mmu.sync(mem);
        self.sys.refetch();
        true
    }

    /// Reads `len` (1 to 16) bytes, zero-extended.
    #[cold]
    #[inline(never)]
    pub(super) fn read_slow(&mut self, lin: u64, len: usize, who: Privilege) -> Result<u128, Exception> {
        let (view, lin) = (self.view(who), self.wrap(lin));
        self.check_linear(lin, len as u64, view)?;
        let (a, first, b) = self.resolve_all(lin, len, Access::Read, view)?;
        self.watch(lin, len, false, &[(Some(a), 0, first), (b, first, len - first)]);
        let mut v = self.read_place(a, first);
        if let Some(b) = b {
            v |= self.read_place(b, len - first) << (first * 8);
        }
        Ok(v)
    }

    /// Writes the low `len` (1 to 16) bytes of `v`.
    #[cold]
    #[inline(never)]
    pub(super) fn write_slow(
        &mut self,
        lin: u64,
        len: usize,
        v: u128,
        who: Privilege,
    ) -> Result<(), Exception> {
        let (view, lin) = (self.view(who), self.wrap(lin));
        self.check_linear(lin, len as u64, view)?;
        let (a, first, b) = self.resolve_all(lin, len, Access::Write, view)?;
        self.watch(lin, len, true, &[(Some(a), 0, first), (b, first, len - first)]);
        self.write_place(a, first, v);
        if let Some(b) = b {
            self.write_place(b, len - first, v >> (first * 8));
        }
        Ok(())
    }

    /// Translates for an instruction fetch.
    #[cold]
    #[inline(never)]
    pub(super) fn fetch_slow(&mut self, lin: u64) -> Result<(Gpa, Option<usize>), Exception> {
        if !canonical(lin, 1) {
            return Err(Exception::gp(0));
        }
        let (view, lin) = (self.view(Privilege::Current), self.wrap(lin));
        let p = self.resolve(lin, Access::Exec, view)?;
        Ok((p.gpa, slab(p.target)))
    }

    /// Looks whether an access hits a watchpoint or a data breakpoint. `parts`: place, offset in the access, length.
    #[inline]
    fn watch(&mut self, lin: u64, len: usize, write: bool, parts: &[(Option<Place>, usize, usize)]) {
        if self.sys.mmu.watches.any() {
            self.watch_hits(lin, len, write, parts);
        }
    }

    #[cold]
    fn watch_hits(&mut self, lin: u64, len: usize, write: bool, parts: &[(Option<Place>, usize, usize)]) {
        let mmu = &mut self.sys.mmu;
        for (place, at, n) in parts {
            let (Some(place), None) = (place, mmu.watch_hit) else { continue };
            let at = lin.wrapping_add(*at as u64);
            mmu.watch_hit = mmu.watches.hit(Some(at), place.gpa, *n as u64, write);
        }
        let bits = mmu.watches.debug_bits(self.cpu.index, lin, len as u64, write);
        self.cpu.pending_db |= bits;
        if bits != 0 || mmu.watch_hit.is_some() {
            self.sys.end_block();
        }
    }

    fn read_place(&mut self, p: Place, len: usize) -> u128 {
        match slab(p.target) {
            Some(off) => {
                let mut b = [0u8; 16];
                self.sys.mem.ram.read_bytes(off, &mut b[..len]);
                u128::from_le_bytes(b)
            }
            None => self.mmio_read(p.gpa, len),
        }
    }

    fn write_place(&mut self, p: Place, len: usize, v: u128) {
        match p.target {
            Target::Ram(off) if self.sys.mem.read_only(off) => {}
            Target::Ram(off) => self.write_ram(p.gpa, off, len, v),
            Target::Rom(_) => {}
            Target::Mmio => self.mmio_write(p.gpa, len, v),
        }
    }

    fn write_ram(&mut self, gpa: Gpa, off: usize, len: usize, v: u128) {
        let mem = &mut self.sys.mem;
        let epoch = mem.tlb.epoch();
        let flags = mem.note_store(gpa, off, len as u32);
        mem.ram.write_bytes(off, &v.to_le_bytes()[..len]);
        if flags & page::TABLE != 0 {
            self.sys.mmu.sync(mem);
        }
        // Code was overwritten, or a translation has gone that the next instruction may be fetched through.
        if flags & page::CODE != 0 {
            self.sys.end_block();
        } else if mem.tlb.epoch() != epoch {
            self.sys.refetch();
        }
    }

    /// Device reads, in naturally aligned pieces of at most 8 bytes.
    fn mmio_read(&mut self, gpa: Gpa, len: usize) -> u128 {
        let index = self.cpu.index;
        let (board, mut bus) = self.sys.bus();
        let mut v = 0u128;
        let mut at = 0;
        while at < len {
            let n = piece(gpa.0 + at as u64, len - at);
            let mask = u64::MAX >> (64 - 8 * n);
            let x = board.mmio_read(index, gpa + at as u64, n as u8, &mut bus) & mask;
            v |= u128::from(x) << (8 * at);
            at += n;
        }
        self.after_device();
        self.sys.occurred(|| Occurrence::Mmio { gpa, bytes: len as u8, write: false });
        v
    }

    fn mmio_write(&mut self, gpa: Gpa, len: usize, v: u128) {
        let index = self.cpu.index;
        let (board, mut bus) = self.sys.bus();
        let mut at = 0;
        while at < len {
            let n = piece(gpa.0 + at as u64, len - at);
            let mask = u64::MAX >> (64 - 8 * n);
            board.mmio_write(index, gpa + at as u64, n as u8, (v >> (8 * at)) as u64 & mask, &mut bus);
            at += n;
        }
        self.after_device();
        self.sys.occurred(|| Occurrence::Mmio { gpa, bytes: len as u8, write: true });
    }

    /// A device may have raised a line or written memory.
    fn after_device(&mut self) {
        self.sys.mmu.sync(&mut self.sys.mem);
        self.sys.end_block();
    }
}

impl Mmu {
    /// Translates `lin`, checks rights, and fills the TLB.
    fn translate(
        &mut self,
        mem: &mut Memory,
        asid: Asid,
        lin: u64,
        access: Access,
        view: View,
    ) -> Result<Place, Exception> {
        let paging = self.spaces.get(asid).paging;
        let found = match self.find(mem, asid, &paging, lin, access, view) {
            Ok(f) if paging.allows(f.rights, access, view) => f,
            Ok(_) => return Err(self.fault(&paging, lin, access, view, pf::P)),
            Err(miss) => return Err(self.fault(&paging, lin, access, view, miss.cause())),
        };
        if let Some(f) = &mut self.footprint {
            match access {
                Access::Exec => f.fetched.insert(lin),
                Access::Read | Access::Write => {
                    f.accessed.insert(lin);
                    f.frames.insert(found.gpa.0);
                }
            }
        }
        let target = mem.map.lookup(found.gpa);
        if let (Target::Ram(off), Access::Write) = (target, access) {
            mem.set_flags(off >> PAGE_SHIFT, page::DIRTY);
        }
        if found.cacheable {
            self.fill(mem, asid, lin, access, view, &found, target);
        }
        Ok(Place { gpa: found.gpa, target })
    }

    /// Finds what `lin` maps to: from the shadow tables if they know, else by a guest walk, which, if the access is
    /// allowed, sets A/D bits and is remembered.
    fn find(
        &mut self,
        mem: &mut Memory,
        asid: Asid,
        paging: &Paging,
        lin: u64,
        access: Access,
        view: View,
    ) -> Result<Found, Miss> {
        let known = match paging.format {
            Format::Off => Some(Leaf { gpa: lin, rights: Rights::ALL, dirty: true }),
            _ => self.shadow.lookup(&self.spaces, asid, lin),
        };
        let write = access == Access::Write;
        if let Some(l) = known
            && (l.dirty || !write)
        {
            self.counters.shadow_hits += 1;
            let gpa = Gpa(l.gpa & mem.a20_mask);
            return Ok(Found { gpa, rights: l.rights, dirty: l.dirty, cacheable: true });
        }
        self.counters.walks += 1;
        let mut w = walk(mem, paging, lin)?;
        if paging.allows(w.rights, access, view) {
            w.set_accessed(mem, write);
            self.sync(mem);
            if w.cacheable() {
                self.shadow.install(&mut self.spaces, mem, asid, lin, &w);
            }
        }
        Ok(Found { gpa: w.gpa, rights: w.rights, dirty: w.dirty(), cacheable: w.cacheable() })
    }

    /// Installs the TLB entry of a page: for a fetch its token, else a tag for each kind of data access that may go
    /// straight to the slab.
    fn fill(
        &mut self,
        mem: &mut Memory,
        asid: Asid,
        lin: u64,
        access: Access,
        view: View,
        found: &Found,
        target: Target,
    ) {
        let Some(off) = slab(target) else { return };
        let slab_page = off >> PAGE_SHIFT;
        let exec = access == Access::Exec;
        let paging = self.spaces.get(asid).paging;
        let can = |a| paging.allows(found.rights, a, view);
        let plain = matches!(target, Target::Ram(_))
            && mem.flags[slab_page] & (page::SLOW | page::DIRTY) == page::DIRTY;
        let data = !exec && view != View::UserAligned;
        let (read, write) = if self.watches.any() { self.watches.tags(lin, found.gpa) } else { (true, true) };
        self.counters.fills += 1;
        let fill = Fill {
            lin: lin & !0xfff,
            gpa: found.gpa.page().0,
            slab: slab_page,
            read: data && read && can(Access::Read),
            write: data && write && found.dirty && plain && can(Access::Write),
            exec,
        };
        mem.tlb.fill(array(asid, view) | if exec { FETCH } else { 0 }, fill);
    }

    #[cold]
    fn fault(&mut self, paging: &Paging, lin: u64, access: Access, view: View, cause: u32) -> Exception {
        self.counters.faults += 1;
        paging.fault(lin, access, view, cause)
    }
}

/// Size of the next device access: a whole access of 1, 2, 4 or 8 bytes goes through as it is; what a straddle or a
/// 16-byte access leaves is cut into naturally aligned pieces.
const fn piece(gpa: u64, left: usize) -> usize {
    match left {
        1 | 2 | 4 | 8 => left,
        _ => {
            let mut n = 8;
            while n > left || gpa & (n as u64 - 1) != 0 && n > 1 {
                n /= 2;
            }
            n
        }
    }
}
