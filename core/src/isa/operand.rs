//! Operand access: effective addresses, register-or-memory reads and writes, stack pushes and pops.

use super::insn::Insn;
use super::traits::Width;
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec};
use crate::vcpu::cpuid::CpuModel;
use crate::vcpu::{Seg, gpr::RSP};

impl Ctx<'_> {
    /// Effective address of the memory operand: offset within its segment.
    #[inline(always)]
    pub fn ea(&self, i: &Insn) -> u64 {
        let g = |r: u8| self.cpu.gpr.get(r as usize).copied().unwrap_or(0);
        (g(i.index) << (i.scale & 3)).wrapping_add(g(i.base)).wrapping_add(i.disp) & i.addr_mask
    }

    /// Reads the r/m operand and does `f` with it. The memory case is kept out of line, so that the register case
    /// stays a handful of host instructions without a stack frame.
    #[inline(always)]
    pub fn with_rm<W: Width>(&mut self, i: &Insn, f: impl FnOnce(&mut Self, W)) -> Exec {
        if i.is_mem() {
            return self.with_mem(i, f);
        }
        let v = W::reg(self.cpu, i.rm);
        f(self, v);
        Ok(())
    }

    #[inline(never)]
    fn with_mem<W: Width>(&mut self, i: &Insn, f: impl FnOnce(&mut Self, W)) -> Exec {
        let v = self.load(i.seg, self.ea(i))?;
        f(self, v);
        Ok(())
    }

    /// Replaces the r/m operand by what `f` makes of it. `f` may change flags: it runs after every check that could
    /// fault. Out of line for memory, as [`Ctx::with_rm`].
    #[inline(always)]
    pub fn update_rm<W: Width>(&mut self, i: &Insn, f: impl FnOnce(&mut Self, W) -> W) -> Exec {
        if i.is_mem() {
            return self.update_mem(i, f);
        }
        let v = W::reg(self.cpu, i.rm);
        let r = f(self, v);
        W::set_reg(self.cpu, i.rm, r);
        Ok(())
    }

    #[inline(never)]
    fn update_mem<W: Width>(&mut self, i: &Insn, f: impl FnOnce(&mut Self, W) -> W) -> Exec {
        let ea = self.ea(i);
        let v = self.load_rmw(i.seg, ea)?;
        let r = f(self, v);
        self.store(i.seg, ea, r)
    }

    /// Writes the r/m operand, out of line for memory.
    #[inline(always)]
    pub fn put_rm<W: Width>(&mut self, i: &Insn, v: W) -> Exec {
        if i.is_mem() {
            return self.put_mem(i, v);
        }
        W::set_reg(self.cpu, i.rm, v);
        Ok(())
    }

    #[inline(never)]
    fn put_mem<W: Width>(&mut self, i: &Insn, v: W) -> Exec {
        self.store(i.seg, self.ea(i), v)
    }

    /// Is the CPU model `first` or a later one? Later models have everything earlier ones have.
    #[inline(always)]
    pub fn is_since(&self, first: CpuModel) -> bool {
        self.cpu.model as u8 >= first as u8
    }

    /// Reads the r/m operand.
    #[inline(always)]
    pub fn rm<W: Width>(&mut self, i: &Insn) -> Result<W, Exception> {
        if i.is_mem() { self.load(i.seg, self.ea(i)) } else { Ok(W::reg(self.cpu, i.rm)) }
    }

    /// Writes the r/m operand.
    #[inline(always)]
    pub fn set_rm<W: Width>(&mut self, i: &Insn, v: W) -> Exec {
        if i.is_mem() {
            self.store(i.seg, self.ea(i), v)
        } else {
            W::set_reg(self.cpu, i.rm, v);
            Ok(())
        }
    }

    /// Reads the r/m operand that will be written back: a memory fault is a write fault.
    #[inline(always)]
    pub fn rmw<W: Width>(&mut self, i: &Insn) -> Result<W, Exception> {
        if i.is_mem() { self.load_rmw(i.seg, self.ea(i)) } else { Ok(W::reg(self.cpu, i.rm)) }
    }

    /// Register operand (ModRM.reg).
    #[inline(always)]
    pub fn reg<W: Width>(&self, i: &Insn) -> W {
        W::reg(self.cpu, i.reg)
    }

    #[inline(always)]
    pub fn set_reg<W: Width>(&mut self, i: &Insn, v: W) {
        W::set_reg(self.cpu, i.reg, v)
    }

    /// Sets the stack pointer, keeping the bits the stack size does not cover.
    #[inline(always)]
    pub fn set_sp(&mut self, sp: u64) {
        let m = self.cpu.mode.stack_mask;
        let r = &mut self.cpu.gpr[RSP];
        // A 32-bit stack pointer write clears the upper half (it is a 32-bit register write).
        *r = if m == 0xffff { (*r & !0xffff) | (sp & 0xffff) } else { sp & m };
    }

    /// Pushes a value of the width's size onto the current stack.
    #[inline(always)]
    pub fn push<W: Width>(&mut self, v: W) -> Exec {
        let sp = self.cpu.gpr[RSP].wrapping_sub(W::SIZE as u64) & self.cpu.mode.stack_mask;
        self.store(Seg::Ss as u8, sp, v)?;
        self.set_sp(sp);
        Ok(())
    }

    /// Pops a value of the width's size. RSP is changed only on success.
    #[inline(always)]
    pub fn pop<W: Width>(&mut self) -> Result<W, Exception> {
        let sp = self.cpu.gpr[RSP] & self.cpu.mode.stack_mask;
        let v = self.load::<W>(Seg::Ss as u8, sp)?;
        self.set_sp(sp.wrapping_add(W::SIZE as u64));
        Ok(v)
    }
}

impl Ctx<'_> {
    /// May a REP-prefixed instruction that has completed `done` iterations do one more? The first is always allowed.
    ///
    /// Accounting: an instruction that completed `n` iterations adds `n - 1` to `sys.icount` itself (the engine adds
    /// one for the instruction); if iterations remain it sets RIP back to `insn_rip`. One that faults after `n`
    /// completed iterations (registers updated for those) adds `n` and returns the fault. A zero count ticks once.
    #[inline(always)]
    pub fn rep_may_continue(&self, done: u64) -> bool {
        done == 0 || self.sys.icount + done < self.sys.limit
    }
}
