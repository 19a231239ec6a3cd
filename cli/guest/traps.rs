//! Interrupt entries, system calls, and the panic screen.

use super::Result;
use super::image::Code;
use super::layout::{Data, Vars, sel, task};
use iced_x86::code_asm::*;

/// Exceptions with their entry points; true: the CPU pushes an error code.
#[rustfmt::skip]
const EXCEPTIONS: [(u32, &str, bool); 18] = [
    (0, "trap_de", false), (1, "trap_db", false), (2, "trap_nmi", false), (3, "trap_bp", false),
    (4, "trap_of", false), (5, "trap_br", false), (6, "trap_ud", false), (7, "trap_nm", false),
    (8, "trap_df", true), (10, "trap_ts", true), (11, "trap_np", true), (12, "trap_ss", true),
    (13, "trap_gp", true), (14, "trap_pf", true), (16, "trap_mf", false), (17, "trap_ac", true),
    (18, "trap_mc", false), (19, "trap_xm", false),
];

const PAGE_FAULT: i32 = 14;
const TIMER_VECTOR: u32 = 32;
pub const SYSCALL_VECTOR: u32 = 0x80;
/// System calls, in EAX.
pub const SYS_REPORT: u32 = 1;
pub const SYS_YIELD: u32 = 2;

/// Gate types: interrupt gate for the kernel, and one that ring 3 may use.
const GATE: u32 = 0x8e;
const USER_GATE: u32 = 0xee;

/// isa-debug-exit, and what a panic writes to it.
const DEBUG_EXIT: u32 = 0xf4;
const PANIC_CODE: u32 = 0x2a;

/// What an interrupt entry leaves on the stack: 15 registers (R15 lowest), vector, error code, the CPU's frame.
pub mod frame {
    pub const RSI: u64 = 80;
    pub const RDI: u64 = 72;
    pub const RAX: u64 = 112;
    pub const VECTOR: u64 = 120;
    pub const ERROR: u64 = 128;
    pub const RIP: u64 = 136;
    pub const CS: u64 = 144;
    pub const RFLAGS: u64 = 152;
    pub const RSP: u64 = 160;
    pub const SS: u64 = 168;
    pub const SIZE: u64 = 176;
}

const SAVED: [AsmRegister64; 15] = [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15];

pub fn emit(c: &mut Code, v: &Vars, data: &mut Data) -> Result<()> {
    emit_init(c, v)?;
    for (vector, name, has_error) in EXCEPTIONS {
        emit_entry(c, name, vector, has_error)?;
    }
    emit_entry(c, "irq_timer", TIMER_VECTOR, false)?;
    emit_entry(c, "int_syscall", SYSCALL_VECTOR, false)?;
    emit_common(c)?;
    emit_dispatch(c)?;
    emit_report(c, v, data)?;
    emit_panic(c, v, data)
}

fn emit_init(c: &mut Code, v: &Vars) -> Result<()> {
    c.function("traps_init")?;
    let exceptions = EXCEPTIONS.iter().map(|&(vector, name, _)| (vector, name, GATE));
    for (vector, name, gate) in
        exceptions.chain([(TIMER_VECTOR, "irq_timer", GATE), (SYSCALL_VECTOR, "int_syscall", USER_GATE)])
    {
        let entry = c.label(name);
        c.asm.lea(rdi, ptr(entry))?;
        c.asm.mov(esi, vector)?;
        c.asm.mov(edx, gate)?;
        c.call("idt_set")?;
    }
    c.asm.lidt(ptr(v.idtr))?;
    c.asm.ret()?;

    // RDI: entry, ESI: vector, EDX: gate type.
    c.function("idt_set")?;
    let a = &mut c.asm;
    a.shl(esi, 4)?;
    a.mov(rcx, v.idt)?;
    a.add(rcx, rsi)?;
    a.mov(word_ptr(rcx), di)?;
    a.mov(word_ptr(rcx + 2), sel::KERNEL_CODE)?;
    a.mov(byte_ptr(rcx + 4), 0)?;
    a.mov(byte_ptr(rcx + 5), dl)?;
    a.shr(rdi, 16)?;
    a.mov(word_ptr(rcx + 6), di)?;
    a.shr(rdi, 16)?;
    a.mov(qword_ptr(rcx + 8), rdi)?;
    a.ret()?;
    Ok(())
}

fn emit_entry(c: &mut Code, name: &'static str, vector: u32, has_error: bool) -> Result<()> {
    c.function(name)?;
    if !has_error {
        c.asm.push(0)?;
    }
    c.asm.push(vector as i32)?;
    c.jump("trap_entry")
}

/// `trap_entry` builds the frame and asks `trap_dispatch` which frame to return to; `trap_return` does that.
fn emit_common(c: &mut Code) -> Result<()> {
    c.function("trap_entry")?;
    for register in SAVED {
        c.asm.push(register)?;
    }
    c.asm.cld()?;
    c.asm.mov(rdi, rsp)?;
    c.call("trap_dispatch")?;
    c.asm.mov(rsp, rax)?;
    c.function("trap_return")?;
    for register in SAVED.into_iter().rev() {
        c.asm.pop(register)?;
    }
    c.asm.add(rsp, 16)?;
    c.asm.iretq()?;
    Ok(())
}

/// RDI: frame. Returns the frame to continue with in RAX.
fn emit_dispatch(c: &mut Code) -> Result<()> {
    c.function("trap_dispatch")?;
    let (mut syscall, mut report) = (c.local(), c.local());
    let panic = c.label("panic");
    let a = &mut c.asm;
    a.mov(eax, dword_ptr(rdi + frame::VECTOR))?;
    a.cmp(eax, SYSCALL_VECTOR)?;
    a.je(syscall)?;
    a.cmp(eax, TIMER_VECTOR)?;
    a.jne(panic)?;
    c.jump("timer_tick")?;

    c.here(&mut syscall)?;
    let a = &mut c.asm;
    a.mov(eax, dword_ptr(rdi + frame::RAX))?;
    a.cmp(eax, SYS_REPORT)?;
    a.je(report)?;
    a.cmp(eax, SYS_YIELD)?;
    a.jne(panic)?;
    c.jump("schedule")?;

    c.here(&mut report)?;
    c.jump("sys_report")
}

/// A task tells of a milestone: RDI in its frame is the text, RSI the number. Prints it and notes it in the ring.
fn emit_report(c: &mut Code, v: &Vars, data: &mut Data) -> Result<()> {
    c.function("sys_report")?;
    c.asm.push(rbx)?;
    c.asm.mov(rbx, rdi)?;
    say(c, data.string("["))?;
    c.asm.mov(rdi, qword_ptr(v.ticks))?;
    c.call("put_dec")?;
    say(c, data.string(" ms] "))?;
    c.asm.mov(rax, qword_ptr(v.current))?;
    c.asm.inc(qword_ptr(rax + task::REPORTS))?;
    c.asm.mov(rdi, qword_ptr(rax + task::NAME))?;
    c.call("puts")?;
    say(c, data.string(": "))?;
    c.asm.mov(rdi, qword_ptr(rbx + frame::RDI))?;
    c.call("puts")?;
    c.asm.mov(edi, dword_ptr(rbx + frame::RSI))?;
    c.call("put_dec")?;
    say(c, data.string("\n"))?;
    // The record: time in the upper half, the number in the lower.
    c.asm.mov(edi, dword_ptr(rbx + frame::RSI))?;
    c.asm.mov(rax, qword_ptr(v.ticks))?;
    c.asm.shl(rax, 32)?;
    c.asm.or(rdi, rax)?;
    c.call("klog_put")?;
    c.asm.mov(rax, rbx)?;
    c.asm.pop(rbx)?;
    c.asm.ret()?;
    Ok(())
}

fn say(c: &mut Code, text: u64) -> Result<()> {
    c.asm.mov(rdi, text)?;
    c.call("puts")
}

/// RDI: frame. Says what happened and switches the machine off.
fn emit_panic(c: &mut Code, v: &Vars, data: &mut Data) -> Result<()> {
    c.function("panic")?;
    c.asm.mov(rbx, rdi)?;
    let (mut other, mut named) = (c.local(), c.local());
    say(c, data.string("\n*** kernel panic: "))?;
    c.asm.cmp(dword_ptr(rbx + frame::VECTOR), PAGE_FAULT)?;
    c.asm.jne(other)?;
    say(c, data.string("page fault"))?;
    c.asm.jmp(named)?;
    c.here(&mut other)?;
    say(c, data.string("exception "))?;
    c.asm.mov(edi, dword_ptr(rbx + frame::VECTOR))?;
    c.call("put_dec")?;
    c.here(&mut named)?;
    say(c, data.string(", error code "))?;
    c.asm.mov(edi, dword_ptr(rbx + frame::ERROR))?;
    c.call("put_dec")?;
    for (name, offset) in [("\n    rip ", frame::RIP), ("  rsp ", frame::RSP)] {
        say(c, data.string(name))?;
        c.asm.mov(rdi, qword_ptr(rbx + offset))?;
        c.call("put_hex")?;
    }
    say(c, data.string("\n    faulting address "))?;
    c.asm.mov(rdi, cr2)?;
    c.call("put_hex")?;
    say(c, data.string("\n    while running "))?;
    c.asm.mov(rax, qword_ptr(v.current))?;
    c.asm.mov(rdi, qword_ptr(rax + task::NAME))?;
    c.call("puts")?;
    say(c, data.string(" at "))?;
    c.asm.mov(rdi, qword_ptr(v.ticks))?;
    c.call("put_dec")?;
    say(c, data.string(" ms. Halting.\n"))?;
    let mut forever = c.local();
    c.asm.mov(edx, DEBUG_EXIT)?;
    c.asm.mov(eax, PANIC_CODE)?;
    c.asm.out(dx, al)?;
    c.here(&mut forever)?;
    c.asm.cli()?;
    c.asm.hlt()?;
    c.asm.jmp(forever)?;
    Ok(())
}
