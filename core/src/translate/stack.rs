//! Translation of pushes, pops, and near control transfers. Nothing of an instruction is done before every lookup it makes
//! has succeeded, so that a miss can leave the whole of it to the interpreter.

use super::emit::{Emitter, Unsupported, host};
use super::identical::{guest_register, is_high, like};
use super::jump_cache::{self, CODE};
use super::unit::{Item, MemRef};
use super::window::{Place, gpr64};
use crate::jit::frame::TARGET;
use crate::vcpu::descriptor::canonical;
use crate::vcpu::gpr::RSP;
use crate::vcpu::{Seg, ZERO};
use dynasmrt::{DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, OpKind, Register};

/// Host register of the guest's RSP and RBP.
const SP: u8 = 13;
const BP: u8 = 5;

impl Emitter<'_> {
    fn word(&self) -> i32 {
        if self.is64() { 8 } else { 4 }
    }

    /// RSP = host register `from` + `n`; RFLAGS stay.
    fn set_sp(&mut self, from: u8, n: i32) {
        match self.is64() {
            true => dynasm!(self.a ; .arch x64 ; lea Rq(SP), [Rq(from) + n]),
            false => dynasm!(self.a ; .arch x64 ; lea Rd(SP), [Rq(from) + n]),
        }
    }

    /// Host register `h` (a stack word of it) to memory.
    fn put_word(&mut self, p: &Place, h: u8) -> Result<(), Unsupported> {
        let (code, r) = match self.is64() {
            true => (Code::Mov_rm64_r64, gpr64(h)),
            false => (Code::Mov_rm32_r32, Register::EAX + u32::from(h)),
        };
        let i = Instruction::with2(code, p.operand(), r).map_err(|_| Unsupported)?;
        self.encode(&i)
    }

    /// A stack word from memory, zero-extended.
    fn get_word(&mut self, h: u8, p: &Place) -> Result<(), Unsupported> {
        let (code, r) = match self.is64() {
            true => (Code::Mov_r64_rm64, gpr64(h)),
            false => (Code::Mov_r32_rm32, Register::EAX + u32::from(h)),
        };
        let i = Instruction::with2(code, r, p.operand()).map_err(|_| Unsupported)?;
        self.encode(&i)
    }

    /// The stack word in RAX, pushed to the place looked up for it.
    pub(super) fn push_rax(&mut self, p: &Place) -> Result<(), Unsupported> {
        self.put_word(p, 0)?;
        let word = self.word();
        self.set_sp(SP, -word);
        Ok(())
    }

    /// A constant to memory. RAX may be lost.
    fn put_constant(&mut self, p: &Place, v: u64) -> Result<(), Unsupported> {
        let fits = i64::from(v as i32) as u64 == v;
        if self.is64() && !fits {
            dynasm!(self.a ; .arch x64 ; mov rax, QWORD v as i64);
            return self.put_word(p, 0);
        }
        let code = if self.is64() { Code::Mov_rm64_imm32 } else { Code::Mov_rm32_imm32 };
        let i = Instruction::with2(code, p.operand(), v as i32).map_err(|_| Unsupported)?;
        self.encode(&i)
    }

    /// A register's value into RAX.
    fn register_to_rax(&mut self, guest: u8) {
        match host(guest) {
            Some(h) if self.is64() => dynasm!(self.a ; .arch x64 ; mov rax, Rq(h)),
            Some(h) => dynasm!(self.a ; .arch x64 ; mov eax, Rd(h)),
            None => self.load_frame(0, guest),
        }
    }

    /// Leaves for the address in RAX; before that, nothing of the instruction has been done. `finish` does it.
    fn jump_indirect(
        &mut self,
        finish: impl FnOnce(&mut Self) -> Result<(), Unsupported>,
    ) -> Result<(), Unsupported> {
        self.windows.clear();
        self.before_clobber();
        self.check_budget_here();
        let miss = self.slow_label(self.k);
        if !self.options.jump_cache {
            dynasm!(self.a ; .arch x64 ; jmp =>miss);
            return Ok(());
        }
        jump_cache::lookup(self.a, miss);
        finish(self)
    }
}

fn memory(it: &Item) -> Result<MemRef, Unsupported> {
    it.mem.ok_or(Unsupported)
}

/// PUSH of a register, an immediate or memory, of the code's own size.
pub fn push(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    if it.i.op0_kind() == OpKind::Memory {
        return push_memory(e, it);
    }
    let p = e.access(&memory(it)?)?;
    match it.i.op0_kind() {
        OpKind::Register => {
            let r = guest_register(it.i.op0_register());
            match host(r) {
                Some(h) => e.put_word(&p, h)?,
                None => {
                    e.load_frame(0, r);
                    e.put_word(&p, 0)?;
                }
            }
        }
        _ => e.put_constant(&p, it.insn.imm)?,
    }
    let word = e.word();
    e.set_sp(SP, -word);
    e.move_window(it);
    Ok(())
}

fn push_memory(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let p = e.access(&memory(it)?)?;
    e.get_word(0, &p)?;
    dynasm!(e.a ; .arch x64 ; mov [BYTE rsp + TARGET], rax);
    // Not through a window: none has reckoned with this access.
    e.before_clobber();
    e.lose_r15();
    let p = e.access_once(&stack_word(e.word()))?;
    dynasm!(e.a ; .arch x64 ; mov rax, [BYTE rsp + TARGET]);
    e.put_word(&p, 0)?;
    let word = e.word();
    e.set_sp(SP, -word);
    e.move_window(it);
    Ok(())
}

/// The stack word a push writes.
fn stack_word(word: i32) -> MemRef {
    MemRef {
        seg: Seg::Ss as u8,
        base: RSP as u8,
        index: ZERO,
        scale: 0,
        disp: i64::from(-word),
        size: word as u16,
        write: true,
        aligned: false,
    }
}

/// POP of a register of the code's own size.
pub fn pop(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let r = guest_register(it.i.op0_register());
    if it.i.op0_kind() != OpKind::Register {
        return Err(Unsupported);
    }
    let p = e.access(&memory(it)?)?;
    if usize::from(r) == RSP {
        return e.get_word(SP, &p);
    }
    match host(r) {
        Some(h) => e.get_word(h, &p)?,
        None => {
            e.get_word(0, &p)?;
            e.store_frame(0, r);
        }
    }
    let word = e.word();
    e.set_sp(SP, word);
    e.move_window(it);
    Ok(())
}

/// LEAVE.
pub fn leave(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let p = e.access(&memory(it)?)?;
    e.get_word(0, &p)?;
    let word = e.word();
    e.set_sp(BP, word);
    dynasm!(e.a ; .arch x64 ; mov rbp, rax);
    Ok(())
}

/// Does `rip` lie where code can be?
fn reachable(e: &Emitter<'_>, rip: u64) -> Result<(), Unsupported> {
    let ok = if e.is64() { canonical(rip) } else { rip <= 0xffff_ffff };
    if ok { Ok(()) } else { Err(Unsupported) }
}

/// JMP to a constant.
pub fn jmp(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    reachable(e, it.insn.imm)?;
    if it.insn.imm != e.unit.key.rip || !e.loop_back(None) {
        e.jump_to(it.insn.imm);
    }
    Ok(())
}

/// Jcc.
pub fn jcc(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    reachable(e, it.insn.imm)?;
    let next = it.next(e.unit.key.mode);
    reachable(e, next)?;
    e.need_host();
    // Codes of conditions are in the opcode's low bits; iced-x86 numbers them in the same order, from `o` on.
    let cc = it.i.condition_code() as u8 - iced_x86::ConditionCode::o as u8;
    if it.end {
        if it.insn.imm != e.unit.key.rip || !e.loop_back(Some(cc)) {
            e.branch_to(cc, it.insn.imm);
        }
        e.jump_to(next);
    } else {
        e.side_exit(cc, it.insn.imm);
    }
    Ok(())
}

/// CALL of a constant.
pub fn call(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    reachable(e, it.insn.imm)?;
    let p = e.access(&memory(it)?)?;
    e.put_constant(&p, it.next(e.unit.key.mode))?;
    let word = e.word();
    e.set_sp(SP, -word);
    e.jump_to(it.insn.imm);
    Ok(())
}

/// RET, with or without an immediate.
pub fn ret(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let p = e.access(&memory(it)?)?;
    e.get_word(0, &p)?;
    let release = e.word() + (it.insn.imm & 0xffff) as i32;
    e.jump_indirect(|e| {
        e.set_sp(SP, release);
        dynasm!(e.a ; .arch x64 ; jmp QWORD [BYTE r15 + CODE]);
        Ok(())
    })
}

/// The target of an indirect transfer into RAX.
fn target(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    if it.i.op0_kind() == OpKind::Register {
        e.register_to_rax(guest_register(it.i.op0_register()));
        return Ok(());
    }
    let p = e.access(&memory(it)?)?;
    e.get_word(0, &p)
}

/// JMP through a register or memory.
pub fn jmp_indirect(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    target(e, it)?;
    e.jump_indirect(|e| {
        dynasm!(e.a ; .arch x64 ; jmp QWORD [BYTE r15 + CODE]);
        Ok(())
    })
}

/// CALL through a register or memory.
pub fn call_indirect(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    target(e, it)?;
    let word = e.word();
    let next = it.next(e.unit.key.mode);
    let stack = stack_word(word);
    e.jump_indirect(|e| {
        dynasm!(e.a ; .arch x64 ; mov rax, [BYTE r15 + CODE] ; mov [BYTE rsp + TARGET], rax);
        let p = e.access_once(&stack)?;
        e.put_constant(&p, next)?;
        e.set_sp(SP, -word);
        dynasm!(e.a ; .arch x64 ; jmp QWORD [BYTE rsp + TARGET]);
        Ok(())
    })
}

/// XCHG of a register and memory: no LOCK is needed.
pub fn xchg(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    if it.i.op0_kind() != OpKind::Memory {
        return e.identical_at(it, None);
    }
    let r = it.i.op1_register();
    let h = like(r, host(guest_register(r)).ok_or(Unsupported)?)?;
    if is_high(r) {
        return Err(Unsupported);
    }
    let p = e.access(&memory(it)?)?;
    let (load, store, acc) = match r.size() {
        1 => (Code::Mov_r8_rm8, Code::Mov_rm8_r8, Register::AL),
        2 => (Code::Mov_r16_rm16, Code::Mov_rm16_r16, Register::AX),
        4 => (Code::Mov_r32_rm32, Code::Mov_rm32_r32, Register::EAX),
        _ => (Code::Mov_r64_rm64, Code::Mov_rm64_r64, Register::RAX),
    };
    let steps = [
        Instruction::with2(load, acc, p.operand()),
        Instruction::with2(store, p.operand(), h),
        Instruction::with2(load, h, acc),
    ];
    for i in steps {
        e.encode(&i.map_err(|_| Unsupported)?)?;
    }
    e.move_window(it);
    Ok(())
}
