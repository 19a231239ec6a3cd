//! MMX, and the SSE to SSSE3 forms with MMX operands. Owns the aliasing of MMX registers onto the x87 registers.
//! Source: SDM vol. 1, chapter 9; vol. 3A, chapter 12.

pub mod mov;
pub mod native;

use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::isa::insn::Insn;
use crate::vcpu::cr0;

impl Ctx<'_> {
    /// #UD, #NM or a pending #MF, in this order (SDM vol. 3A, 12.1 and 12.5).
    #[inline(always)]
    pub fn mmx_ready(&mut self) -> Exec {
        if self.cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(if self.cpu.cr0 & cr0::EM != 0 { Exception::ud() } else { Exception::nm() });
        }
        self.x87_pending()
    }

    /// What every MMX instruction but EMMS does to the x87 state: TOP = 0, all registers valid. Called when the
    /// instruction can no longer fault.
    #[inline(always)]
    pub fn mmx_enter(&mut self) {
        self.cpu.fpu.set_top(0);
        self.cpu.fpu.ftw = 0xff;
    }

    /// MMX register `n` (REX.R and REX.B are ignored).
    #[inline(always)]
    pub fn mm(&self, n: u8) -> u64 {
        self.cpu.fpu.r[(n & 7) as usize].0
    }

    /// Writes MMX register `n`: the aliased register's sign and exponent become all ones.
    #[inline(always)]
    pub fn set_mm(&mut self, n: u8, v: u64) {
        self.cpu.fpu.r[(n & 7) as usize] = (v, 0xffff)
    }

    /// The ModRM.rm operand: an MMX register or 64 bits of memory.
    #[inline(always)]
    pub fn mm_src(&mut self, i: &Insn) -> Result<u64, Exception> {
        if i.is_mem() { self.load_operand(i) } else { Ok(self.mm(i.rm)) }
    }
}
