//! Guest loads and stores. The only path by which guest code touches guest memory, shared by both engines.
//! Here is what runs on a TLB hit; everything else is in `slow`.

use super::{Access, Privilege, View};
use crate::addr::Gpa;
use crate::ctx::Ctx;
use crate::exception::Exception;
use crate::mem::{Pod, Target};
use crate::vcpu::Seg;
use crate::vcpu::segment::Segment;

impl Ctx<'_> {
    /// Linear address of `seg:off` for an access of `len` bytes, after the segment's limit and rights checks
    /// (SDM vol. 3A, 5.3) and, in 64-bit mode, canonicality. #SS(0) for SS, else #GP(0).
    #[inline(always)]
    pub fn linear<const WRITE: bool>(&mut self, seg: u8, off: u64, len: u64) -> Result<u64, Exception> {
        let s = &self.cpu.seg[seg as usize];
        let lin = s.lin_base.wrapping_add(off) & self.cpu.mode.lin_mask;
        let need = if WRITE { Segment::FAST_WRITE } else { Segment::FAST_READ };
        if s.fast & need == 0 {
            self.check_segment(seg, off, len, WRITE)?;
        } else if !canonical(lin, len) {
            return Err(segment_fault(seg));
        }
        Ok(lin)
    }

    /// Loads a value from `seg:off`.
    #[inline(always)]
    pub fn load<T: Pod>(&mut self, seg: u8, off: u64) -> Result<T, Exception> {
        let s = &self.cpu.seg[seg as usize];
        if s.fast & Segment::FAST_READ != 0 {
            // A non-canonical address has no TLB entry.
            let lin = s.lin_base.wrapping_add(off) & self.cpu.mode.lin_mask;
            if let Some(at) = self.sys.mem.tlb.read_hit(self.cpu.tlb.0, lin, T::SIZE) {
                return Ok(self.sys.mem.ram.read(at));
            }
        }
        self.load_slow(seg, off)
    }

    /// Stores a value to `seg:off`.
    #[inline(always)]
    pub fn store<T: Pod>(&mut self, seg: u8, off: u64, v: T) -> Result<(), Exception> {
        let s = &self.cpu.seg[seg as usize];
        if s.fast & Segment::FAST_WRITE != 0 {
            let lin = s.lin_base.wrapping_add(off) & self.cpu.mode.lin_mask;
            if let Some(at) = self.sys.mem.tlb.write_hit(self.cpu.tlb.0, lin, T::SIZE) {
                self.sys.mem.ram.write(at, v);
                return Ok(());
            }
        }
        self.store_slow(seg, off, v)
    }

    /// Loads for a read-modify-write: all write checks are made first, so that the following [`Ctx::store`] to the
    /// same place cannot fault (and a fault has the W bit set).
    #[inline(always)]
    pub fn load_rmw<T: Pod>(&mut self, seg: u8, off: u64) -> Result<T, Exception> {
        let s = &self.cpu.seg[seg as usize];
        if s.fast & Segment::FAST_WRITE != 0 {
            let lin = s.lin_base.wrapping_add(off) & self.cpu.mode.lin_mask;
            // What may be written may be read, and a watched page has no write tag.
            if let Some(at) = self.sys.mem.tlb.write_hit(self.cpu.tlb.0, lin, T::SIZE) {
                return Ok(self.sys.mem.ram.read(at));
            }
        }
        self.load_rmw_slow(seg, off)
    }

    // The misses are calls in tail position, so that the hits need no stack frame.

    #[cold]
    #[inline(never)]
    fn load_slow<T: Pod>(&mut self, seg: u8, off: u64) -> Result<T, Exception> {
        let lin = self.linear::<false>(seg, off, T::SIZE as u64)?;
        self.read_lin(lin, Privilege::Current)
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Pod>(&mut self, seg: u8, off: u64, v: T) -> Result<(), Exception> {
        let lin = self.linear::<true>(seg, off, T::SIZE as u64)?;
        self.write_lin(lin, v, Privilege::Current)
    }

    #[cold]
    #[inline(never)]
    fn load_rmw_slow<T: Pod>(&mut self, seg: u8, off: u64) -> Result<T, Exception> {
        let lin = self.linear::<true>(seg, off, T::SIZE as u64)?;
        if let Some(at) = self.sys.mem.tlb.write_hit(self.cpu.tlb.0, lin, T::SIZE) {
            return Ok(self.sys.mem.ram.read(at));
        }
        self.probe_lin(lin, T::SIZE as u64, Access::Write, Privilege::Current)?;
        self.read_lin(lin, Privilege::Current)
    }

    /// Checks that an access of `len` bytes would not fault, without making it (A/D bits are set as it would).
    pub fn probe(&mut self, seg: u8, off: u64, len: u64, access: Access) -> Result<(), Exception> {
        if len == 0 {
            return Ok(());
        }
        let lin = match access {
            Access::Write => self.linear::<true>(seg, off, len)?,
            _ => self.linear::<false>(seg, off, len)?,
        };
        self.probe_lin(lin, len, access, Privilege::Current)
    }

    /// Reads a value at a linear address.
    #[inline(always)]
    pub fn read_lin<T: Pod>(&mut self, lin: u64, who: Privilege) -> Result<T, Exception> {
        if let Some(at) = self.sys.mem.tlb.read_hit(self.array(who), lin, T::SIZE) {
            return Ok(self.sys.mem.ram.read(at));
        }
        let v = self.read_slow(lin, T::SIZE, who)?;
        Ok(T::from_slice(&v.to_le_bytes()[..T::SIZE]))
    }

    /// Writes a value at a linear address. A value that straddles two pages is written only if both are writable.
    #[inline(always)]
    pub fn write_lin<T: Pod>(&mut self, lin: u64, v: T, who: Privilege) -> Result<(), Exception> {
        if let Some(at) = self.sys.mem.tlb.write_hit(self.array(who), lin, T::SIZE) {
            self.sys.mem.ram.write(at, v);
            return Ok(());
        }
        let mut b = [0u8; 16];
        v.to_slice(&mut b[..T::SIZE]);
        self.write_slow(lin, T::SIZE, u128::from_le_bytes(b), who)
    }

    /// Translates an instruction-fetch address; the fault is the one the fetch would raise.
    #[inline(always)]
    pub fn translate_fetch(&mut self, lin: u64) -> Result<Gpa, Exception> {
        Ok(self.fetch_target(lin)?.0)
    }

    /// Translates an instruction-fetch address: the guest-physical address, and where it lies in the slab (`None`:
    /// device memory). While `cpu.tlb` and [`crate::mmu::tlb::Tlb::epoch`] stay the same, so does the answer for
    /// every address of the page if it lies in the slab and the page tables in RAM or ROM.
    #[inline(always)]
    pub fn fetch_target(&mut self, lin: u64) -> Result<(Gpa, Option<usize>), Exception> {
        match self.sys.mem.tlb.exec_hit(self.cpu.tlb.0, lin) {
            Some((gpa, at)) => Ok((Gpa(gpa), Some(at))),
            None => self.fetch_slow(lin),
        }
    }

    /// A direct window on guest memory for string instructions: the slab offset of `lin` and the bytes left in its
    /// page. For reads the page is plain RAM or ROM; for writes it is plain RAM without traces or watches and is
    /// marked dirty. `None`: go element by element (which also raises the fault there may be).
    #[inline]
    pub fn bulk_page(&mut self, lin: u64, access: Access, who: Privilege) -> Option<(usize, usize)> {
        // With alignment checks no tag would hit, and a probe would set A/D bits that a misaligned element must not.
        if self.array(who) & 3 == View::UserAligned as u32 {
            return None;
        }
        let left = 0x1000 - (lin & 0xfff) as usize;
        let hit = |c: &Self| match access {
            Access::Read => c.sys.mem.tlb.read_hit(c.array(who), lin, 1),
            Access::Write => c.sys.mem.tlb.write_hit(c.array(who), lin, 1),
            Access::Exec => None,
        };
        if let Some(at) = hit(self) {
            return Some((at, left));
        }
        self.probe_lin(lin, 1, access, who).ok()?;
        hit(self).map(|at| (at, left))
    }

    /// The data array of an access.
    #[inline(always)]
    fn array(&self, who: Privilege) -> u32 {
        match who {
            Privilege::Current => self.cpu.tlb.0,
            Privilege::System => self.cpu.tlb.0 & !3 | View::Supervisor as u32,
            Privilege::User => self.cpu.tlb.0 & !3 | View::User as u32,
        }
    }
}

/// Are the first and last byte of an access canonical (48-bit linear addresses)?
#[inline(always)]
pub(super) const fn canonical(lin: u64, len: u64) -> bool {
    let first = lin.wrapping_add(1 << 47);
    let last = lin.wrapping_add((1 << 47) + len - 1);
    (first | last) >> 48 == 0
}

/// The fault of a failed segment check.
#[cold]
pub(super) const fn segment_fault(seg: u8) -> Exception {
    if seg == Seg::Ss as u8 { Exception::ss(0) } else { Exception::gp(0) }
}

/// Where an access goes: device memory has no place in the slab.
pub(super) const fn slab(target: Target) -> Option<usize> {
    match target {
        Target::Ram(off) | Target::Rom(off) => Some(off),
        Target::Mmio => None,
    }
}

/// Index of a segment register as used in decoded instructions.
impl From<Seg> for u8 {
    fn from(s: Seg) -> u8 {
        s as u8
    }
}
