//! Serial output by polling, and numbers as text.

use super::Result;
use super::image::Code;
use super::layout::Vars;
use iced_x86::code_asm::*;

const COM1: u32 = 0x3f8;
const LINE_STATUS: u32 = COM1 + 5;
const TRANSMITTER_EMPTY: u32 = 0x20;

/// `serial_init`, `putc` (AL), `puts` (RDI: zero-terminated), `put_hex` (RDI), `put_dec` (RDI). All keep RBX, RBP, R12-R15.
pub fn emit(c: &mut Code, _v: &Vars) -> Result<()> {
    c.function("serial_init")?;
    // Interrupts off; 115200 baud by the divisor latch; 8N1; FIFOs on.
    for (offset, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7)] {
        c.asm.mov(edx, COM1 + offset)?;
        c.asm.mov(eax, value)?;
        c.asm.out(dx, al)?;
    }
    c.asm.ret()?;
    emit_putc(c)?;
    emit_puts(c)?;
    emit_hex(c)?;
    emit_dec(c)
}

fn emit_putc(c: &mut Code) -> Result<()> {
    c.function("putc")?;
    let mut wait = c.local();
    c.asm.mov(ecx, eax)?;
    c.asm.mov(edx, LINE_STATUS)?;
    c.here(&mut wait)?;
    let a = &mut c.asm;
    a.in_(al, dx)?;
    a.test(al, TRANSMITTER_EMPTY)?;
    a.jz(wait)?;
    a.mov(edx, COM1)?;
    a.mov(eax, ecx)?;
    a.out(dx, al)?;
    a.ret()?;
    Ok(())
}

fn emit_puts(c: &mut Code) -> Result<()> {
    c.function("puts")?;
    let mut end = c.local();
    c.asm.movzx(eax, byte_ptr(rdi))?;
    c.asm.test(al, al)?;
    c.asm.jz(end)?;
    c.call("putc")?;
    c.asm.inc(rdi)?;
    c.jump("puts")?;
    c.here(&mut end)?;
    c.asm.ret()?;
    Ok(())
}

/// Sixteen digits, high nibble first.
fn emit_hex(c: &mut Code) -> Result<()> {
    c.function("put_hex")?;
    let (mut next, mut digit) = (c.local(), c.local());
    c.asm.mov(r8d, 16)?;
    c.here(&mut next)?;
    c.asm.rol(rdi, 4)?;
    c.asm.mov(eax, edi)?;
    c.asm.and(eax, 15)?;
    c.asm.add(eax, b'0' as i32)?;
    c.asm.cmp(eax, b'9' as i32)?;
    c.asm.jbe(digit)?;
    c.asm.add(eax, (b'a' - b'9' - 1) as i32)?;
    c.here(&mut digit)?;
    c.call("putc")?;
    c.asm.dec(r8d)?;
    c.asm.jnz(next)?;
    c.asm.ret()?;
    Ok(())
}

/// Digits are divided off onto the stack, a zero below them.
fn emit_dec(c: &mut Code) -> Result<()> {
    c.function("put_dec")?;
    let (mut divide, mut print, mut end) = (c.local(), c.local(), c.local());
    c.asm.push(0)?;
    c.asm.mov(rax, rdi)?;
    c.asm.mov(r8d, 10)?;
    c.here(&mut divide)?;
    c.asm.xor(edx, edx)?;
    c.asm.div(r8)?;
    c.asm.add(edx, b'0' as i32)?;
    c.asm.push(rdx)?;
    c.asm.test(rax, rax)?;
    c.asm.jnz(divide)?;
    c.here(&mut print)?;
    c.asm.pop(rax)?;
    c.asm.test(eax, eax)?;
    c.asm.jz(end)?;
    c.call("putc")?;
    c.asm.jmp(print)?;
    c.here(&mut end)?;
    c.asm.ret()?;
    Ok(())
}
