//! The x87 FPU. Owns what its instructions share: availability, pending exceptions, the pointers to the last
//! instruction and operand, stack faults, and the way back from a natively executed instruction.
//! Source: SDM vol. 1, chapter 8; vol. 2 for each instruction.
//!
//! Arithmetic whose result IEEE 754 or the manual defines exactly runs natively (`arith`, `compare`, `convert`).
//! What differs between CPU models, the transcendentals and partial remainders, is computed in software.

pub mod arith;
pub mod compare;
pub mod control;
pub mod convert;
pub mod env;
pub mod ext;
pub mod remainder;
pub mod stack;
pub mod transcendental;

use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};
use crate::isa::insn::Insn;
use crate::jit::entry;
use crate::jit::x87::{HOST_CW, Image, X87Operands};
use crate::mmu::Access;
use crate::vcpu::fpu::{INDEFINITE, Raw80, sw};
use crate::vcpu::{Seg, cr0};

/// Exceptions found before computing: unmasked, they suppress the result.
const BEFORE: u16 = sw::IE | sw::DE | sw::ZE;

impl Ctx<'_> {
    /// #NM if the x87 may not be used (SDM vol. 3A, 2.5: CR0.EM and CR0.TS).
    #[inline(always)]
    pub fn x87_available(&self) -> Exec {
        if self.cpu.cr0 & (cr0::EM | cr0::TS) != 0 { Err(Exception::nm()) } else { Ok(()) }
    }

    /// #MF if an unmasked x87 exception is pending.
    ///
    /// With CR0.NE = 0 the CPU would assert FERR# instead (IRQ 13 through the board's latch, cleared by a write to
    /// port 0xF0) and wait for it unless IGNNE# is asserted. The board has no such latch: IGNNE# counts as asserted,
    /// and the instruction executes. This is the one place a FERR# line would be driven from.
    #[inline(always)]
    pub fn x87_pending(&self) -> Exec {
        if self.cpu.fpu.fsw & sw::ES != 0 && self.cpu.cr0 & cr0::NE != 0 {
            return Err(Exception::plain(vector::MF));
        }
        Ok(())
    }

    /// Both checks: the start of every waiting instruction.
    #[inline(always)]
    pub fn x87_ready(&self) -> Exec {
        self.x87_available()?;
        self.x87_pending()
    }

    /// Records the pointers to this (non-control) instruction and its memory operand. Called when nothing can fault
    /// any more.
    #[inline(always)]
    pub fn x87_note(&mut self, i: &Insn) {
        let f = &mut self.cpu.fpu;
        f.fip = self.cpu.insn_rip;
        f.fcs = self.cpu.seg[Seg::Cs as usize].selector;
        if i.is_mem() {
            let ea = self.ea(i);
            let f = &mut self.cpu.fpu;
            f.fdp = ea;
            f.fds = self.cpu.seg[(i.seg % 6) as usize].selector;
        }
    }

    /// Sets exception flags; an unmasked one makes the opcode of this instruction the recorded one.
    #[inline(always)]
    pub fn x87_raise(&mut self, flags: u16) {
        if flags != 0 {
            self.cpu.fpu.raise(flags);
            if flags & self.cpu.fpu.unmasked() != 0 {
                self.x87_record_opcode();
            }
        }
    }

    /// FOP: the last 11 bits of the opcode and ModRM bytes, read again from the instruction's bytes.
    #[cold]
    fn x87_record_opcode(&mut self) {
        let base = self.cpu.seg[Seg::Cs as usize].lin_base;
        let mut escape = None;
        for n in 0..15 {
            let lin = base.wrapping_add(self.cpu.insn_rip.wrapping_add(n)) & self.cpu.mode.lin_mask;
            let mut byte = [0u8];
            let Ok(gpa) = self.translate_fetch(lin) else { return };
            self.sys.mem.read_phys(gpa, &mut byte);
            match escape {
                Some(e) => {
                    self.cpu.fpu.fop = u16::from(e & 7) << 8 | u16::from(byte[0]);
                    return;
                }
                None if byte[0] & 0xf8 == 0xd8 => escape = Some(byte[0]),
                None => {}
            }
        }
    }

    /// Stack underflow: an operand was empty. True if the masked response (the indefinite value) is to be written.
    #[cold]
    fn x87_underflow(&mut self) -> bool {
        self.cpu.fpu.set_cc(sw::C1, 0);
        self.x87_raise(sw::IE | sw::SF);
        self.cpu.fpu.unmasked() & sw::IE == 0
    }

    /// Stack overflow: the register to be pushed onto is not empty. Pushes the masked response.
    #[cold]
    fn x87_overflow(&mut self) {
        self.x87_raise(sw::IE | sw::SF);
        self.cpu.fpu.set_cc(sw::C1, sw::C1);
        if self.cpu.fpu.unmasked() & sw::IE == 0 {
            self.cpu.fpu.push(INDEFINITE);
        }
    }

    /// Pushes a value: C1 = 0, or a stack overflow.
    #[inline(always)]
    fn x87_push(&mut self, v: Raw80) {
        if !self.cpu.fpu.is_empty(7) {
            return self.x87_overflow();
        }
        self.cpu.fpu.set_cc(sw::C1, 0);
        self.cpu.fpu.push(v);
    }

    /// Runs form `code` natively with the guest's control word.
    #[inline(always)]
    fn x87_native(&self, code: u16, st0: Raw80, st1: Raw80, mem: u128) -> X87Operands {
        let mut o = X87Operands {
            st0: Image { sig: st0.0, se: st0.1 },
            st1: Image { sig: st1.0, se: st1.1 },
            mem,
            cw: self.cpu.fpu.fcw,
            sw: 0,
            clear: if self.cpu.fpu.unmasked() == 0 { 0xff & !(self.cpu.fpu.fsw & sw::FLAGS) } else { 0xff },
            cw_host: HOST_CW,
            flags: 0,
        };
        entry::x87(code, &mut o);
        o
    }

    /// Takes over flags and C1 of a native run; false if an unmasked exception suppressed the result.
    #[inline(always)]
    fn x87_complete(&mut self, o: &X87Operands) -> bool {
        self.cpu.fpu.set_cc(sw::C1, o.sw);
        let raised = o.sw & sw::FLAGS;
        self.x87_raise(raised);
        raised & self.cpu.fpu.unmasked() & BEFORE == 0
    }

    /// Stores bytes at `seg:off`, all or nothing.
    pub(crate) fn store_block(&mut self, seg: u8, off: u64, mask: u64, bytes: &[u8]) -> Exec {
        self.probe(seg, off, bytes.len() as u64, Access::Write)?;
        let mut at = off;
        let (words, rest) = bytes.as_chunks::<8>();
        for w in words {
            self.store(seg, at & mask, u64::from_le_bytes(*w))?;
            at = at.wrapping_add(8);
        }
        for b in rest {
            self.store(seg, at & mask, *b)?;
            at = at.wrapping_add(1);
        }
        Ok(())
    }

    /// Loads bytes from `seg:off`.
    pub(crate) fn load_block(&mut self, seg: u8, off: u64, mask: u64, bytes: &mut [u8]) -> Exec {
        let mut at = off;
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for w in words {
            *w = self.load::<u64>(seg, at & mask)?.to_le_bytes();
            at = at.wrapping_add(8);
        }
        for b in rest {
            *b = self.load(seg, at & mask)?;
            at = at.wrapping_add(1);
        }
        Ok(())
    }
}

fn raw(v: Image) -> Raw80 {
    (v.sig, v.se)
}

impl Ctx<'_> {
    /// Stack overflow of an instruction with two results: both become the indefinite, if masked.
    #[cold]
    fn x87_overflow_both(&mut self) {
        self.x87_raise(sw::IE | sw::SF);
        self.cpu.fpu.set_cc(sw::C1, sw::C1);
        if self.cpu.fpu.unmasked() & sw::IE == 0 {
            self.cpu.fpu.set_st(0, INDEFINITE);
            self.cpu.fpu.push(INDEFINITE);
        }
    }
}

#[cfg(test)]
mod tests;
