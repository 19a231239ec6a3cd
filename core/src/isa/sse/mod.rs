//! SSE to SSE4.2, AES-NI and PCLMULQDQ in their legacy encodings. Owns what every form shares: whether SSE may be
//! used, XMM operands, alignment. Source: SDM vol. 1, chapters 10 to 12; vol. 3A, 13.1; vol. 2, table 2-20 onward.
//!
//! Data movement and simple lane operations are plain Rust; everything else runs natively, see `native`. Results that
//! differ between CPU models (RCPPS, RSQRTPS) are computed in `approx`.

pub mod approx;
pub mod float;
pub mod gpr;
pub mod lanes;
pub mod mov;
pub mod mxcsr;
pub mod native;
pub mod packed;
pub mod strings;

use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::isa::insn::Insn;
use crate::mem::Pod;
use crate::mmu::Privilege;
use crate::vcpu::{cr0, cr4};

/// Memory operand of 16 bytes that must be aligned (the rule for legacy SSE).
pub const M128: u32 = 16;
/// Memory operand of 16 bytes at any address.
pub const U128: u32 = 0x110;
/// Memory operands of 8, 4 and 2 bytes.
pub const M64: u32 = 8;
pub const M32: u32 = 4;
pub const M16: u32 = 2;

impl Ctx<'_> {
    /// #UD or #NM if SSE instructions may not execute now (SDM vol. 3A, 13.1.1 to 13.1.4).
    #[inline(always)]
    pub fn sse_ready(&self) -> Exec {
        if self.cpu.cr0 & (cr0::EM | cr0::TS) == 0 && self.cpu.cr4 & cr4::OSFXSR != 0 {
            return Ok(());
        }
        self.sse_unready()
    }

    #[cold]
    fn sse_unready(&self) -> Exec {
        if self.cpu.cr0 & cr0::EM != 0 || self.cpu.cr4 & cr4::OSFXSR == 0 {
            return Err(Exception::ud());
        }
        Err(Exception::nm())
    }

    /// XMM register of the ModRM.reg operand.
    #[inline(always)]
    pub fn xmm_reg(&self, i: &Insn) -> u128 {
        self.cpu.fpu.xmm[(i.reg & 15) as usize]
    }
    #[inline(always)]
    pub fn set_xmm_reg(&mut self, i: &Insn, v: u128) {
        self.cpu.fpu.xmm[(i.reg & 15) as usize] = v
    }
    /// XMM register of the ModRM.rm operand, which must not be memory.
    #[inline(always)]
    pub fn xmm_rm(&self, i: &Insn) -> u128 {
        self.cpu.fpu.xmm[(i.rm & 15) as usize]
    }
    #[inline(always)]
    pub fn set_xmm_rm(&mut self, i: &Insn, v: u128) {
        self.cpu.fpu.xmm[(i.rm & 15) as usize] = v
    }

    /// The ModRM.rm operand: an XMM register, or memory of the size `M` says, zero-extended.
    #[inline(always)]
    pub fn xmm_src<const M: u32>(&mut self, i: &Insn) -> Result<u128, Exception> {
        if !i.is_mem() {
            return Ok(self.xmm_rm(i));
        }
        Ok(match M {
            M128 => self.load_aligned(i)?,
            M64 => u128::from(self.load::<u64>(i.seg, self.ea(i))?),
            M32 => u128::from(self.load::<u32>(i.seg, self.ea(i))?),
            M16 => u128::from(self.load::<u16>(i.seg, self.ea(i))?),
            _ => self.load(i.seg, self.ea(i))?,
        })
    }

    /// Loads the 16-byte memory operand; #GP(0) unless its linear address is aligned.
    #[inline(always)]
    pub fn load_aligned(&mut self, i: &Insn) -> Result<u128, Exception> {
        let lin = self.linear::<false>(i.seg, self.ea(i), 16)?;
        if lin & 15 != 0 {
            return Err(Exception::gp(0));
        }
        self.read_lin(lin, Privilege::Current)
    }

    /// Stores to the 16-byte memory operand; #GP(0) unless its linear address is aligned.
    #[inline(always)]
    pub fn store_aligned(&mut self, i: &Insn, v: u128) -> Exec {
        let lin = self.linear::<true>(i.seg, self.ea(i), 16)?;
        if lin & 15 != 0 {
            return Err(Exception::gp(0));
        }
        self.write_lin(lin, v, Privilege::Current)
    }

    /// Stores a value to the memory operand.
    #[inline(always)]
    pub fn store_operand<T: Pod>(&mut self, i: &Insn, v: T) -> Exec {
        self.store(i.seg, self.ea(i), v)
    }
    /// Loads the memory operand.
    #[inline(always)]
    pub fn load_operand<T: Pod>(&mut self, i: &Insn) -> Result<T, Exception> {
        self.load(i.seg, self.ea(i))
    }
}

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
