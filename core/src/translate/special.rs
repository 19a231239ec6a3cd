//! Translation of instructions with fixed registers (guest RAX is not in the host's), of division, whose faults must be
//! the guest's, and of LEA and NOP.

use super::emit::{Emitter, Unsupported, host};
use super::identical::{guest_register, is_high, like, redirect, strip_prefixes};
use super::unit::{Item, operand};
use super::window::Place;
use crate::isa::sse::native::mxcsr;
use crate::vcpu::{ZERO, gpr::RAX};
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// Host register of the guest's RAX.
const ACC: u8 = 14;

/// Nothing to do.
pub fn nop(_: &mut Emitter<'_>, _: &Item) -> Result<(), Unsupported> {
    Ok(())
}

/// LEA.
pub fn lea(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let insn = &it.insn;
    let wide = if e.is64() { u64::MAX } else { 0xffff_ffff };
    if insn.addr_mask != wide {
        return Err(Unsupported);
    }
    let in_frame = |r: u8| r != ZERO && host(r).is_none();
    let dest = it.i.op0_register();
    let guest = guest_register(dest);
    let index = |h: u8| (insn.index != ZERO).then_some((h, insn.scale));
    let (mut base, mut idx) = (host(insn.base), host(insn.index).and_then(index));
    if in_frame(insn.base) && in_frame(insn.index) {
        e.lose_r15();
        e.load_frame(15, insn.base);
        e.load_frame(0, insn.index);
        (base, idx) = (Some(15), index(0));
    } else if in_frame(insn.base) {
        e.load_frame(0, insn.base);
        base = Some(0);
    } else if in_frame(insn.index) {
        e.load_frame(0, insn.index);
        idx = index(0);
    }
    let direct = host(guest).filter(|_| dest.size() == 8 || dest.size() == 4 && !e.is64());
    e.lea(direct.unwrap_or(0), base, idx, insn.disp as i64)?;
    if direct.is_none() {
        // Truncated to 32 or 16 bits, or on its way to the frame.
        match (host(guest), dest.size()) {
            (Some(h), 8) => dynasm!(e.a ; .arch x64 ; mov Rq(h), rax),
            (Some(h), 4) => dynasm!(e.a ; .arch x64 ; mov Rd(h), eax),
            (Some(h), _) => dynasm!(e.a ; .arch x64 ; mov Rw(h), ax),
            (None, 2) => {
                let at = crate::jit::frame::Frame::high_offset(guest);
                dynasm!(e.a ; .arch x64 ; mov [BYTE rsp + at], ax);
            }
            (None, n) => {
                if n == 4 {
                    dynasm!(e.a ; .arch x64 ; mov eax, eax);
                }
                e.store_frame(0, guest);
            }
        }
    }
    e.move_window(it);
    Ok(())
}

/// CBW, CWDE, CDQE, CWD, CDQ, CQO. No flag changes.
pub fn extend(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    match it.i.mnemonic() {
        Mnemonic::Cdqe => dynasm!(e.a ; .arch x64 ; movsxd r14, r14d),
        Mnemonic::Cwde => dynasm!(e.a ; .arch x64 ; movsx r14d, r14w),
        Mnemonic::Cbw => dynasm!(e.a ; .arch x64 ; mov eax, r14d ; cbw ; mov r14w, ax),
        Mnemonic::Cwd => dynasm!(e.a ; .arch x64 ; mov eax, r14d ; cwd),
        Mnemonic::Cdq => dynasm!(e.a ; .arch x64 ; mov eax, r14d ; cdq),
        Mnemonic::Cqo => dynasm!(e.a ; .arch x64 ; mov rax, r14 ; cqo),
        _ => return Err(Unsupported),
    }
    Ok(())
}

/// LAHF.
pub fn lahf(e: &mut Emitter<'_>, _: &Item) -> Result<(), Unsupported> {
    e.need_host();
    dynasm!(e.a ; .arch x64 ; mov rax, r14 ; lahf ; mov r14, rax);
    Ok(())
}

/// SAHF.
pub fn sahf(e: &mut Emitter<'_>, _: &Item) -> Result<(), Unsupported> {
    e.need_host();
    dynasm!(e.a ; .arch x64 ; mov rax, r14 ; sahf);
    e.flags_written(None);
    Ok(())
}

/// The one explicit operand of a multiplication or division as the host sees it: the instruction with it replaced.
fn with_operand(e: &mut Emitter<'_>, it: &Item) -> Result<Instruction, Unsupported> {
    let mut i = it.i;
    if i.op0_kind() == OpKind::Memory {
        let p = e.access(&it.mem.ok_or(Unsupported)?)?;
        redirect(&mut i, &p);
        return Ok(i);
    }
    let r = i.op0_register();
    let guest = guest_register(r);
    if is_high(r) {
        return Err(Unsupported);
    }
    let h = match host(guest) {
        Some(h) => h,
        None => {
            e.lose_r15();
            e.load_frame(15, guest);
            15
        }
    };
    i.set_op0_register(like(r, h)?);
    Ok(i)
}

/// The accumulator into RAX, and back at the size of the operation (8 bits: AX).
fn load_acc(e: &mut Emitter<'_>) {
    dynasm!(e.a ; .arch x64 ; mov rax, Rq(ACC));
}
fn store_acc(e: &mut Emitter<'_>, size: usize) {
    match size {
        1 | 2 => dynasm!(e.a ; .arch x64 ; mov Rw(ACC), ax),
        4 => dynasm!(e.a ; .arch x64 ; mov Rd(ACC), eax),
        _ => dynasm!(e.a ; .arch x64 ; mov Rq(ACC), rax),
    }
}

fn operand_size(it: &Item) -> usize {
    match it.i.op0_kind() {
        OpKind::Memory => it.i.memory_size().size(),
        _ => it.i.op0_register().size(),
    }
}

/// MUL and the one-operand IMUL.
pub fn multiply(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let i = with_operand(e, it)?;
    load_acc(e);
    e.encode(&i)?;
    store_acc(e, operand_size(it));
    e.flags_written(None);
    Ok(())
}

/// DIV and IDIV of 32 or 64 bits. What could fault, or is rare, is left to the interpreter; the flags do not change.
pub fn divide(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let size = operand_size(it);
    if size < 4 {
        return Err(Unsupported);
    }
    e.before_clobber();
    e.check_budget_here();
    let i = with_operand(e, it)?;
    // The slow path does not keep R15.
    e.lose_r15();
    let miss = e.slow_label(e.k);
    let (rax, rdx, one) = match size {
        4 => (Register::EAX, Register::EDX, Code::Mov_r32_rm32),
        _ => (Register::RAX, Register::RDX, Code::Mov_r64_rm64),
    };
    if it.i.mnemonic() == Mnemonic::Div {
        // The quotient fits exactly if the high half is below the divisor.
        let code = if size == 4 { Code::Cmp_r32_rm32 } else { Code::Cmp_r64_rm64 };
        e.encode(&two(code, rdx, &i)?)?;
        dynasm!(e.a ; .arch x64 ; jae =>miss);
    } else {
        e.encode(&two(one, rax, &i)?)?;
        check_signed(e, size, miss);
    }
    load_acc(e);
    e.encode(&i)?;
    store_acc(e, size);
    Ok(())
}

/// Sends IDIV to `miss` unless the dividend's high half is the sign of its low half, and the divisor (in RAX) neither 0
/// nor -1.
fn check_signed(e: &mut Emitter<'_>, size: usize, miss: DynamicLabel) {
    match size {
        4 => dynasm!(e.a ; .arch x64
            ; add eax, 1 ; cmp eax, 1 ; jbe =>miss
            ; mov eax, Rd(ACC) ; sar eax, 31 ; cmp eax, edx ; jne =>miss),
        _ => dynasm!(e.a ; .arch x64
            ; add rax, 1 ; cmp rax, 1 ; jbe =>miss
            ; mov rax, Rq(ACC) ; sar rax, 63 ; cmp rax, rdx ; jne =>miss),
    }
}

/// `code` of register `r` with the operand of `i`.
fn two(code: Code, r: Register, i: &Instruction) -> Result<Instruction, Unsupported> {
    match i.op0_kind() {
        OpKind::Memory => {
            let m = iced_x86::MemoryOperand::new(
                i.memory_base(),
                i.memory_index(),
                i.memory_index_scale(),
                i.memory_displacement64() as i64,
                i.memory_displ_size(),
                false,
                Register::None,
            );
            Instruction::with2(code, r, m)
        }
        _ => Instruction::with2(code, r, i.op0_register()),
    }
    .map_err(|_| Unsupported)
}

/// CMPXCHG.
pub fn cmpxchg(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let fits = |r: Register| {
        let guest = guest_register(r);
        host(guest).filter(|_| !is_high(r) && usize::from(guest) != RAX).ok_or(Unsupported)
    };
    let mut i = it.i;
    strip_prefixes(&mut i);
    i.set_op1_register(like(it.i.op1_register(), fits(it.i.op1_register())?)?);
    if i.op0_kind() == OpKind::Memory {
        let p = e.access(&it.mem.ok_or(Unsupported)?)?;
        redirect(&mut i, &p);
    } else {
        i.set_op0_register(like(it.i.op0_register(), fits(it.i.op0_register())?)?);
    }
    dynasm!(e.a ; .arch x64 ; mov rax, Rq(ACC));
    e.encode(&i)?;
    dynasm!(e.a ; .arch x64 ; mov Rq(ACC), rax);
    e.flags_written(None);
    Ok(())
}

/// CMPXCHG8B and CMPXCHG16B.
pub fn cmpxchg_pair(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let mut i = it.i;
    strip_prefixes(&mut i);
    let p = e.access(&it.mem.ok_or(Unsupported)?)?;
    redirect(&mut i, &p);
    // It changes ZF only.
    if !e.unobserved(e.k) {
        e.need_host();
    }
    dynasm!(e.a ; .arch x64 ; mov rax, Rq(ACC));
    e.encode(&i)?;
    dynasm!(e.a ; .arch x64 ; mov Rq(ACC), rax);
    e.flags_written(None);
    e.move_window(it);
    Ok(())
}

/// BT, BTS, BTR, BTC with the bit in a register. With memory it is a bit string, whose word is looked up.
pub fn bit_string(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    if it.i.op0_kind() == OpKind::Register {
        return e.identical_at(it, None);
    }
    let r = it.i.op1_register();
    let offset = like(r, host(guest_register(r)).ok_or(Unsupported)?)?;
    e.before_clobber();
    e.check_budget_here();
    e.lose_r15();
    e.lookup_bits(&operand(it), offset.number() as u8)?;
    if !e.unobserved(e.k) {
        e.need_host();
    }
    let (load, store) = match r.size() {
        2 => (Code::Mov_r16_rm16, Code::Mov_rm16_r16),
        4 => (Code::Mov_r32_rm32, Code::Mov_rm32_r32),
        _ => (Code::Mov_r64_rm64, Code::Mov_rm64_r64),
    };
    let (word, acc) = (Place { disp: 0 }.operand(), like(r, 0)?);
    e.encode(&Instruction::with2(load, acc, word).map_err(|_| Unsupported)?)?;
    let mut i = it.i;
    strip_prefixes(&mut i);
    i.set_segment_prefix(Register::None);
    i.set_op0_kind(OpKind::Register);
    i.set_op0_register(acc);
    i.set_op1_register(offset);
    e.encode(&i)?;
    if it.i.mnemonic() != Mnemonic::Bt {
        e.encode(&Instruction::with2(store, word, acc).map_err(|_| Unsupported)?)?;
    }
    e.flags_written(None);
    Ok(())
}

/// PCMPESTRI and PCMPESTRM: one length is in RAX.
pub fn pcmpestr(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    let place = it.mem.as_ref().map(|m| e.access(m)).transpose()?;
    dynasm!(e.a ; .arch x64 ; mov rax, Rq(ACC));
    e.identical_at(it, place)
}

/// LDMXCSR. A value that is not allowed, or unmasks an exception, is left to the interpreter.
pub fn ldmxcsr(e: &mut Emitter<'_>, it: &Item) -> Result<(), Unsupported> {
    const INVALID: i32 = !(mxcsr::VALID as i32);
    const MASKS: i32 = mxcsr::MASKS as i32;
    e.before_clobber();
    e.check_budget_here();
    let place = e.access(&it.mem.ok_or(Unsupported)?)?;
    // The slow path does not keep R15.
    e.lose_r15();
    let miss = e.slow_label(e.k);
    let load = Instruction::with2(Code::Mov_r32_rm32, Register::EAX, place.operand());
    e.encode(&load.map_err(|_| Unsupported)?)?;
    dynasm!(e.a ; .arch x64 ; and eax, INVALID | MASKS ; cmp eax, MASKS ; jne =>miss);
    e.identical_at(it, Some(place))
}
