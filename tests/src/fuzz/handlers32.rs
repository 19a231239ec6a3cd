//! The kernel of 32-bit programs, as [`super::handlers`] is that of 64-bit ones. The program runs at CPL 3, so every event
//! finds a stack; [`SERVICE`] does for it what needs CPL 0.

use super::handlers::{Handlers, MOVE_EVERY, TIMER, WITH_ERROR, here, record};
use super::layout::{
    COUNTS, CURSOR, HANDLERS, LAST_CR2, LAST_RIP, LEAVES, RECORD, RECORDS, RESUME, ROOT32, SPACE, TABLES,
    TURN, WINDOW, sel,
};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// The vector of the handlers' services; which one: AL, see [`service`].
pub const SERVICE: usize = 0x80;

pub mod service {
    /// To address space AH.
    pub const SPACE: i32 = 0;
    /// Flips CR0.TS.
    pub const TASK_SWITCHED: i32 = 1;
    /// INVLPG at EDX.
    pub const INVLPG: i32 = 2;
    /// Gives page AH of the window the low half of an entry, ECX.
    pub const MAP: i32 = 3;
}

/// Offsets in a handler's frame after everything is pushed: EIP, CS, EFLAGS, ESP, SS.
const FRAME: [i32; 5] = [28, 32, 36, 40, 44];

/// Assembles the handlers.
pub fn handlers() -> Handlers {
    build().expect("the handlers assemble")
}

fn build() -> Result<Handlers, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let mut labels = Vec::new();
    let mut common = a.create_label();
    for v in (0..32usize).chain([TIMER, SERVICE]) {
        labels.push((v, here(&mut a)?));
        if !WITH_ERROR.contains(&v) {
            a.push(0)?;
        }
        a.push(v as i32)?;
        a.jmp(common)?;
    }
    a.set_label(&mut common)?;
    dispatch(&mut a)?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let done = a.assemble_options(HANDLERS, options)?;
    let mut entries = vec![0; 256];
    for (v, l) in labels {
        entries[v] = done.label_ip(&l)?;
    }
    Ok(Handlers { code: done.inner.code_buffer, entries, syscall: 0 })
}

/// Vector and error code are on the stack.
fn dispatch(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut resume, mut back) = (a.create_label(), a.create_label());
    let (mut not_timer, mut not_service, mut not_debug) =
        (a.create_label(), a.create_label(), a.create_label());
    // Now: ES, DS, EDX, ECX, EAX, vector (+20), error, EIP (+28), CS, EFLAGS, ESP, SS.
    a.push(eax)?;
    a.push(ecx)?;
    a.push(edx)?;
    a.push(ds)?;
    a.push(es)?;
    a.mov(edx, i32::from(sel::DATA0))?;
    a.mov(ds, edx)?;
    a.mov(es, edx)?;
    a.mov(edx, dword_ptr(esp + 20))?;
    a.inc(dword_ptr(edx * 8 + COUNTS))?;
    a.inc(dword_ptr(TURN))?;
    a.cmp(edx, TIMER as i32)?;
    a.jne(not_timer)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.test(dword_ptr(COUNTS + 8 * TIMER as u64), MOVE_EVERY - 1)?;
    a.jz(resume)?;
    a.jmp(back)?;
    a.set_label(&mut not_timer)?;
    a.cmp(edx, SERVICE as i32)?;
    a.jne(not_service)?;
    serve(a, back)?;
    a.set_label(&mut not_service)?;
    a.cmp(edx, 1)?;
    a.jne(not_debug)?;
    a.test(dword_ptr(TURN), 7)?;
    a.jnz(back)?;
    a.jmp(resume)?;
    a.set_label(&mut not_debug)?;
    a.cmp(edx, 14)?;
    a.jne(resume)?;
    a.test(dword_ptr(TURN), 1)?;
    a.jz(resume)?;
    mend(a, resume)?;
    a.set_label(&mut back)?;
    leave(a)?;
    a.set_label(&mut resume)?;
    go_on(a)
}

/// Goes back to the program.
fn leave(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pop(es)?;
    a.pop(ds)?;
    a.pop(edx)?;
    a.pop(ecx)?;
    a.pop(eax)?;
    a.add(esp, 8)?;
    a.iretd()
}

/// Does what AL says; EAX, ECX and EDX are the program's but for EDX, which is on the stack.
fn serve(a: &mut CodeAssembler, back: CodeLabel) -> Result<(), IcedError> {
    let (mut ts, mut invlpg, mut map) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(edx, dword_ptr(esp + 8))?;
    a.and(eax, 0x3f03)?;
    a.cmp(al, service::TASK_SWITCHED)?;
    a.je(ts)?;
    a.cmp(al, service::INVLPG)?;
    a.je(invlpg)?;
    a.cmp(al, service::MAP)?;
    a.je(map)?;
    // Spaces beyond the last are the first again.
    let mut first = a.create_label();
    a.shr(eax, 8)?;
    a.cmp(eax, 2)?;
    a.jbe(first)?;
    a.xor(eax, eax)?;
    a.set_label(&mut first)?;
    a.imul_3(eax, eax, SPACE as i32)?;
    a.add(eax, (TABLES + ROOT32) as i32)?;
    a.mov(cr3, eax)?;
    a.jmp(back)?;
    a.set_label(&mut ts)?;
    a.mov(eax, cr0)?;
    a.xor(eax, 8)?;
    a.mov(cr0, eax)?;
    a.jmp(back)?;
    a.set_label(&mut invlpg)?;
    a.invlpg(ptr(edx))?;
    a.jmp(back)?;
    a.set_label(&mut map)?;
    a.shr(eax, 8)?;
    a.mov(edx, cr3)?;
    a.mov(dword_ptr(edx + eax * 8 + (LEAVES - ROOT32) as i32), ecx)?;
    a.jmp(back)
}

/// Makes the page at CR2 present, writable and the program's, unless that was done in vain.
fn mend(a: &mut CodeAssembler, resume: CodeLabel) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ecx, cr2)?;
    a.mov(eax, ecx)?;
    a.shr(eax, 21)?;
    a.cmp(eax, (WINDOW >> 21) as i32)?;
    a.jne(resume)?;
    a.mov(eax, dword_ptr(esp + FRAME[0]))?;
    a.cmp(eax, dword_ptr(LAST_RIP))?;
    a.mov(dword_ptr(LAST_RIP), eax)?;
    a.jne(again)?;
    a.cmp(ecx, dword_ptr(LAST_CR2))?;
    a.je(resume)?;
    a.set_label(&mut again)?;
    a.mov(dword_ptr(LAST_CR2), ecx)?;
    a.shr(ecx, 12)?;
    a.and(ecx, 511)?;
    a.mov(eax, cr3)?;
    a.lea(eax, dword_ptr(eax + ecx * 8 + (LEAVES - ROOT32) as i32))?;
    a.or(dword_ptr(eax), 7)?;
    a.and(dword_ptr(eax + 4), 0x7fff_ffff)
}

/// Lets the program go on as the next record says, with flat data segments.
fn go_on(a: &mut CodeAssembler) -> Result<(), IcedError> {
    use record::{CS, FCW, FLAGS, MXCSR, POINTERS, RIP, RSP, SS};
    a.mov(eax, dword_ptr(CURSOR))?;
    a.inc(dword_ptr(CURSOR))?;
    a.and(eax, RECORDS as i32 - 1)?;
    a.shl(eax, RECORD.trailing_zeros() as i32)?;
    a.lea(edx, dword_ptr(eax + RESUME as i32))?;
    for (from, to) in [RIP, CS, FLAGS, RSP, SS].into_iter().zip(FRAME) {
        a.mov(eax, dword_ptr(edx + from as i32))?;
        a.mov(dword_ptr(esp + to), eax)?;
    }
    a.clts()?;
    a.fninit()?;
    a.fldcw(word_ptr(edx + FCW as i32))?;
    a.ldmxcsr(dword_ptr(edx + MXCSR as i32))?;
    for (n, r) in [ebx, ebp, esi, edi].into_iter().enumerate() {
        a.mov(r, dword_ptr(edx + (POINTERS + 8 * n) as i32))?;
    }
    a.mov(dword_ptr(esp), i32::from(sel::DATA3))?;
    a.mov(dword_ptr(esp + 4), i32::from(sel::DATA3))?;
    leave(a)
}
