//! What happens on a TLB miss and on every access that is not plain RAM: segment checks, translation, straddles,
//! device memory, traced writes.

use super::access::{canonical, segment_fault, slab};
use super::walk::{pf, walk};
use super::{Access, Paging, Privilege, View};
use crate::addr::Gpa;
use crate::ctx::Ctx;
use crate::exception::{Exception, vector};
use crate::mem::Target;
use crate::vcpu::{cr0, flags, segment::attr};

/// A translated piece of an access, inside one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub gpa: Gpa,
    pub target: Target,
}

impl Ctx<'_> {
    /// The view an access is checked with now.
    pub(super) fn view(&self, who: Privilege) -> View {
        match who {
            Privilege::System => View::Supervisor,
            Privilege::User => View::User,
            Privilege::Current => {
                let ac = self.cpu.flags.has(flags::bit::AC);
                match (self.cpu.mode.cpl == 3, ac) {
                    (true, true) if self.cpu.cr0 & cr0::AM != 0 => View::UserAligned,
                    (true, _) => View::User,
                    (false, true) => View::SupervisorAc,
                    (false, false) => View::Supervisor,
                }
            }
        }
    }

    /// Segment limit and rights checks of an access of `len` bytes (SDM vol. 3A, 5.3 to 5.5; real and v86 mode
    /// check only the limit).
    #[cold]
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

    /// Linear address of the page after the one of `lin`, wrapping where linear addresses do.
    fn next_page(&self, lin: u64) -> u64 {
        let next = (lin | 0xfff).wrapping_add(1);
        // Implicit accesses of compatibility mode may lie above 4 GiB.
        if lin <= self.cpu.mode.lin_mask { next & self.cpu.mode.lin_mask } else { next }
    }

    /// Translates one page's part of an access, with all side effects on the paging structures.
    fn resolve(&mut self, lin: u64, access: Access, view: View) -> Result<Place, Exception> {
        let paging = Paging::of(self.cpu);
        let mut w =
            walk(&self.sys.mem, &paging, lin).map_err(|m| paging.fault(lin, access, view, m.cause()))?;
        if !paging.allows(w.rights, access, view) {
            return Err(paging.fault(lin, access, view, pf::P));
        }
        w.set_accessed(&mut self.sys.mem, access == Access::Write);
        Ok(Place { gpa: w.gpa, target: self.sys.mem.map.lookup(w.gpa) })
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
        let view = self.view(who);
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

    /// Reads `len` (1 to 16) bytes, zero-extended.
    #[cold]
    #[inline(never)]
    pub(super) fn read_slow(&mut self, lin: u64, len: usize, who: Privilege) -> Result<u128, Exception> {
        let view = self.view(who);
        self.check_linear(lin, len as u64, view)?;
        let (a, first, b) = self.resolve_all(lin, len, Access::Read, view)?;
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
        let view = self.view(who);
        self.check_linear(lin, len as u64, view)?;
        let (a, first, b) = self.resolve_all(lin, len, Access::Write, view)?;
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
        let view = self.view(Privilege::Current);
        let p = self.resolve(lin, Access::Exec, view)?;
        Ok((p.gpa, slab(p.target)))
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
            Target::Ram(off) => self.write_ram(p.gpa, off, len, v),
            Target::Rom(_) => {}
            Target::Mmio => self.mmio_write(p.gpa, len, v),
        }
    }

    fn write_ram(&mut self, gpa: Gpa, off: usize, len: usize, v: u128) {
        let mem = &mut self.sys.mem;
        mem.note_write(gpa, off, len as u32);
        mem.ram.write_bytes(off, &v.to_le_bytes()[..len]);
        if !mem.code_writes.is_empty() {
            self.sys.end_block();
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
        self.sys.end_block();
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
        self.sys.end_block();
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
