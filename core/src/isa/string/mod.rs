//! String instructions MOVS, STOS, LODS, SCAS, CMPS with REP, REPE, REPNE, and the loop that all repeated
//! instructions share. `bulk` does whole spans of pages at once.
//! Source: SDM vol. 1, 7.3.9, and vol. 2, REP.

pub mod bulk;

use super::alu::arith::sub;
use super::insn::{Insn, prefix};
use super::traits::{Width, emitted, rows};
use super::{Row, end};
use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::translate::rep;
use crate::vcpu::Seg;
use crate::vcpu::flags::bit::{ARITH, DF, ZF};
use crate::vcpu::gpr::{RAX, RCX, RDI, RSI};
use iced_x86::Code;

const ES: u8 = Seg::Es as u8;

impl Ctx<'_> {
    /// Index or count register `r` as an instruction with address mask `mask` sees it.
    #[inline(always)]
    fn indexed(&self, r: usize, mask: u64) -> u64 {
        self.cpu.gpr[r] & mask
    }

    /// Writes an index or count register at the address size: 16 bits keep the rest, 32 bits clear the upper half.
    #[inline(always)]
    fn set_indexed(&mut self, r: usize, mask: u64, v: u64) {
        let g = &mut self.cpu.gpr[r];
        *g = if mask == 0xffff { (*g & !0xffff) | (v & mask) } else { v & mask };
    }

    /// Before a repeated MOVS or STOS: 32-bit addresses clear the upper half of the index register even if the count
    /// is zero (undocumented; as Intel processors have it).
    #[inline(always)]
    fn truncate_index(&mut self, i: &Insn, r: usize) {
        if i.has(prefix::REP | prefix::REPNE) {
            let v = self.indexed(r, i.addr_mask);
            self.set_indexed(r, i.addr_mask, v);
        }
    }

    /// Moves an index register one element of `size` bytes in the direction of DF.
    #[inline(always)]
    fn advance(&mut self, r: usize, mask: u64, size: usize) {
        let d = if self.cpu.flags.has(DF) { (size as u64).wrapping_neg() } else { size as u64 };
        let v = self.indexed(r, mask).wrapping_add(d);
        self.set_indexed(r, mask, v);
    }

    /// Repeats `step` under the instruction's REP prefix, with the icount accounting of
    /// [`Ctx::rep_may_continue`]. `step` is given how many elements it may handle (at least one) and returns how many
    /// it did; `ZF_ENDS` makes REPE and REPNE look at ZF after each step. A fault is raised with the registers
    /// standing before the faulting element.
    #[inline(always)]
    pub fn repeat<const ZF_ENDS: bool>(
        &mut self,
        i: &Insn,
        mut step: impl FnMut(&mut Self, u64) -> Result<u64, crate::exception::Exception>,
    ) -> Exec {
        if !i.has(prefix::REP | prefix::REPNE) {
            return step(self, 1).map(|_| ());
        }
        let mut left = self.indexed(RCX, i.addr_mask);
        self.set_indexed(RCX, i.addr_mask, left); // a zero count clears the upper half too
        let mut done = 0;
        while left != 0 {
            if !self.rep_may_continue(done) {
                self.cpu.suspend_repeat();
                break;
            }
            // Never past the limit: the boundary there must be seen exactly.
            let room = self.sys.limit.saturating_sub(self.sys.icount.saturating_add(done)).max(1);
            let n = match step(self, left.min(room)) {
                Ok(n) => n,
                Err(e) => {
                    self.sys.icount += done;
                    return Err(e);
                }
            };
            done += n;
            left -= n;
            self.set_indexed(RCX, i.addr_mask, left);
            if ZF_ENDS && self.cpu.flags.has(ZF) != i.has(prefix::REP) {
                break;
            }
        }
        self.sys.icount += done.saturating_sub(1);
        Ok(())
    }
}

fn movs<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.truncate_index(i, RSI);
    ctx.truncate_index(i, RDI);
    ctx.repeat::<false>(i, |ctx, n| {
        if n > 1
            && let Some(n) = ctx.bulk_movs::<W>(i, n)
        {
            return Ok(n);
        }
        let v: W = ctx.load(i.seg, ctx.indexed(RSI, i.addr_mask))?;
        ctx.store(ES, ctx.indexed(RDI, i.addr_mask), v)?;
        ctx.advance(RSI, i.addr_mask, W::SIZE);
        ctx.advance(RDI, i.addr_mask, W::SIZE);
        Ok(1)
    })
}

fn stos<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.truncate_index(i, RDI);
    ctx.repeat::<false>(i, |ctx, n| {
        if n > 1
            && let Some(n) = ctx.bulk_stos::<W>(i, n)
        {
            return Ok(n);
        }
        ctx.store(ES, ctx.indexed(RDI, i.addr_mask), W::reg(ctx.cpu, RAX as u8))?;
        ctx.advance(RDI, i.addr_mask, W::SIZE);
        Ok(1)
    })
}

fn lods<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.repeat::<false>(i, |ctx, _| {
        let v: W = ctx.load(i.seg, ctx.indexed(RSI, i.addr_mask))?;
        W::set_reg(ctx.cpu, RAX as u8, v);
        ctx.advance(RSI, i.addr_mask, W::SIZE);
        Ok(1)
    })
}

fn scas<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.repeat::<true>(i, |ctx, n| {
        if n > 1
            && let Some(n) = ctx.bulk_scas::<W>(i, n)
        {
            return Ok(n);
        }
        let v: W = ctx.load(ES, ctx.indexed(RDI, i.addr_mask))?;
        let (_, f) = sub::<W>(W::reg(ctx.cpu, RAX as u8).u(), v.u(), 0);
        ctx.cpu.flags.replace(ARITH, f);
        ctx.advance(RDI, i.addr_mask, W::SIZE);
        Ok(1)
    })
}

fn cmps<W: Width>(ctx: &mut Ctx<'_>, i: &Insn) -> Exec {
    ctx.repeat::<true>(i, |ctx, n| {
        if n > 1
            && let Some(n) = ctx.bulk_cmps::<W>(i, n)
        {
            return Ok(n);
        }
        let a: W = ctx.load(i.seg, ctx.indexed(RSI, i.addr_mask))?;
        let b: W = ctx.load(ES, ctx.indexed(RDI, i.addr_mask))?;
        let (_, f) = sub::<W>(a.u(), b.u(), 0);
        ctx.cpu.flags.replace(ARITH, f);
        ctx.advance(RSI, i.addr_mask, W::SIZE);
        ctx.advance(RDI, i.addr_mask, W::SIZE);
        Ok(1)
    })
}

emitted! {
    moves = end, rep::rep;
}

#[rustfmt::skip]
pub const ROWS: &[Row] = rows! {
    moves movs<> 4: Movsb_m8_m8 Movsw_m16_m16 Movsd_m32_m32 Movsq_m64_m64;
    moves stos<> 4: Stosb_m8_AL Stosw_m16_AX Stosd_m32_EAX Stosq_m64_RAX;
    end lods<> 4: Lodsb_AL_m8 Lodsw_AX_m16 Lodsd_EAX_m32 Lodsq_RAX_m64;
    end scas<> 4: Scasb_AL_m8 Scasw_AX_m16 Scasd_EAX_m32 Scasq_RAX_m64;
    end cmps<> 4: Cmpsb_m8_m8 Cmpsw_m16_m16 Cmpsd_m32_m32 Cmpsq_m64_m64;
};
