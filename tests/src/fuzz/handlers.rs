//! The fuzzing guest's kernel for 64-bit programs: handlers that count what happens and let the program go on, wherever it was.
//!
//! A page fault in the window is mended every other time: the page is made present and writable, and the instruction
//! runs again. After any other fault the program goes on as the next record at [`RESUME`] says: RIP, RSP, RFLAGS,
//! CS, SS, MXCSR, FCW, then a value for each pointer register. Everything runs on IST1 with interrupts off.

use super::layout::{
    COUNTS, CURSOR, HANDLERS, LAST_CR2, LAST_RIP, LEAVES, RECORD, RECORDS, RESUME, TURN, WINDOW, sel,
};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Offsets in a record at [`RESUME`].
pub mod record {
    pub const RIP: usize = 0;
    pub const RSP: usize = 8;
    pub const FLAGS: usize = 16;
    pub const CS: usize = 24;
    pub const SS: usize = 32;
    pub const MXCSR: usize = 40;
    pub const FCW: usize = 44;
    /// RBX, RBP, RSI, RDI, R12, R13.
    pub const POINTERS: usize = 48;
}

/// The vector of the timer.
pub const TIMER: usize = 0x20;
/// The vector that leads to CPL 0.
pub const TO_CPL0: usize = 0x80;

/// The assembled handlers.
pub struct Handlers {
    pub code: Vec<u8>,
    /// Entry of each vector; 0: none.
    pub entries: Vec<u64>,
    /// Where SYSCALL leads.
    pub syscall: u64,
}

/// Vectors whose delivery pushes an error code.
pub(super) const WITH_ERROR: [usize; 8] = [8, 10, 11, 12, 13, 14, 17, 21];
/// Timer ticks between two that move the program elsewhere, so that no loop keeps it.
pub(super) const MOVE_EVERY: i32 = 64;

/// Assembles the handlers.
pub fn handlers() -> Handlers {
    build().expect("the handlers assemble")
}

fn build() -> Result<Handlers, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut labels = Vec::new();
    let (mut common, mut resume) = (a.create_label(), a.create_label());
    for v in 0..32usize {
        labels.push((v, here(&mut a)?));
        if !WITH_ERROR.contains(&v) {
            a.push(0)?;
        }
        a.push(v as i32)?;
        a.jmp(common)?;
    }
    labels.push((TIMER, here(&mut a)?));
    timer(&mut a, resume)?;
    labels.push((TO_CPL0, here(&mut a)?));
    to_cpl0(&mut a)?;
    let syscall = here(&mut a)?;
    syscall_entry(&mut a)?;
    a.set_label(&mut common)?;
    dispatch(&mut a, resume)?;
    a.set_label(&mut resume)?;
    go_on(&mut a)?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let done = a.assemble_options(HANDLERS, options)?;
    let mut entries = vec![0; 256];
    for (v, l) in labels {
        entries[v] = done.label_ip(&l)?;
    }
    let syscall = done.label_ip(&syscall)?;
    Ok(Handlers { code: done.inner.code_buffer, entries, syscall })
}

pub(super) fn here(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let mut l = a.create_label();
    a.set_label(&mut l)?;
    a.zero_bytes()?;
    Ok(l)
}

/// Counts, acknowledges, and goes back or, now and then, elsewhere.
fn timer(a: &mut CodeAssembler, resume: CodeLabel) -> Result<(), IcedError> {
    let mut back = a.create_label();
    a.push(rax)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.mov(rax, qword_ptr(COUNTS + 8 * TIMER as u64))?;
    a.inc(rax)?;
    a.mov(qword_ptr(COUNTS + 8 * TIMER as u64), rax)?;
    a.test(eax, MOVE_EVERY - 1)?;
    a.jnz(back)?;
    a.pop(rax)?;
    a.push(0)?;
    a.push(TIMER as i32)?;
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    a.jmp(resume)?;
    a.set_label(&mut back)?;
    a.pop(rax)?;
    a.iretq()
}

/// Goes back at CPL 0.
fn to_cpl0(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(qword_ptr(COUNTS + 8 * TO_CPL0 as u64))?;
    a.mov(qword_ptr(rsp + 8), i32::from(sel::CODE0))?;
    a.mov(qword_ptr(rsp + 32), i32::from(sel::DATA0))?;
    a.iretq()
}

/// SYSCALL: goes back at CPL 0 with the flags it came with.
fn syscall_entry(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.inc(qword_ptr(COUNTS + 8 * 0x81))?;
    a.push(r11)?;
    a.popfq()?;
    a.jmp(rcx)
}

/// Vector and error code are on the stack: counts the event, mends page faults.
fn dispatch(a: &mut CodeAssembler, resume: CodeLabel) -> Result<(), IcedError> {
    let (mut other, mut retry) = (a.create_label(), a.create_label());
    // Now: RDX, RCX, RAX, vector, error, RIP (+40), CS, RFLAGS, RSP, SS.
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    a.mov(rdx, qword_ptr(rsp + 24))?;
    a.inc(qword_ptr(COUNTS + rdx * 8))?;
    a.inc(dword_ptr(TURN))?;
    a.cmp(edx, 1)?;
    a.jne(other)?;
    // #DB: mostly goes back, with TF as it was.
    a.test(dword_ptr(TURN), 7)?;
    a.jnz(retry)?;
    a.jmp(resume)?;
    a.set_label(&mut other)?;
    a.cmp(edx, 14)?;
    a.jne(resume)?;
    a.test(dword_ptr(TURN), 1)?;
    a.jz(resume)?;
    mend(a, resume)?;
    a.set_label(&mut retry)?;
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()
}

/// Makes the page at CR2 present, writable, executable and the program's, unless that was done in vain.
fn mend(a: &mut CodeAssembler, resume: CodeLabel) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rcx, cr2)?;
    a.mov(rax, rcx)?;
    a.shr(rax, 21)?;
    a.cmp(rax, (WINDOW >> 21) as i32)?;
    a.jne(resume)?;
    a.mov(rax, qword_ptr(rsp + 40))?;
    a.cmp(rax, qword_ptr(LAST_RIP))?;
    a.mov(qword_ptr(LAST_RIP), rax)?;
    a.jne(again)?;
    a.cmp(rcx, qword_ptr(LAST_CR2))?;
    a.je(resume)?;
    a.set_label(&mut again)?;
    a.mov(qword_ptr(LAST_CR2), rcx)?;
    a.shr(ecx, 12)?;
    a.and(ecx, 511)?;
    a.mov(rax, cr3)?;
    a.lea(rax, qword_ptr(rax + rcx * 8 + LEAVES))?;
    a.or(qword_ptr(rax), 7)?;
    a.btr(qword_ptr(rax), 63)
}

/// Lets the program go on as the next record says.
fn go_on(a: &mut CodeAssembler) -> Result<(), IcedError> {
    use record::{CS, FCW, FLAGS, MXCSR, POINTERS, RIP, RSP, SS};
    a.mov(eax, dword_ptr(CURSOR))?;
    a.inc(dword_ptr(CURSOR))?;
    a.and(eax, RECORDS as i32 - 1)?;
    a.shl(eax, RECORD.trailing_zeros() as i32)?;
    a.lea(rdx, qword_ptr(rax + RESUME))?;
    for (from, to) in [(RIP, 40), (CS, 48), (FLAGS, 56), (RSP, 64), (SS, 72)] {
        a.mov(rax, qword_ptr(rdx + from))?;
        a.mov(qword_ptr(rsp + to), rax)?;
    }
    a.clts()?;
    a.fninit()?;
    a.fldcw(word_ptr(rdx + FCW))?;
    a.ldmxcsr(dword_ptr(rdx + MXCSR))?;
    for (n, r) in [rbx, rbp, rsi, rdi, r12, r13].into_iter().enumerate() {
        a.mov(r, qword_ptr(rdx + POINTERS + 8 * n))?;
    }
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()
}
