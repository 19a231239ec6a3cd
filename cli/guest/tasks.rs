//! The user programs. Each runs in ring 3 at the same addresses, with data and stack pages of its own.

use super::Result;
use super::image::Code;
use super::layout::{PAGE, at};
use super::traps::{SYS_REPORT, SYS_YIELD, SYSCALL_VECTOR};
use iced_x86::code_asm::*;

/// Primes between two reports.
const PRIMES: i32 = 1000;
/// Numbers the sorter sorts, and sorts between two reports.
const NUMBERS: i32 = 512;
const SORTS: i32 = 6;
/// Passes of the hasher between two reports.
const PASSES: i32 = 500;

pub fn emit(c: &mut Code) -> Result<()> {
    emit_primes(c)?;
    emit_sorter(c)?;
    emit_hasher(c)
}

/// Reports: `text` (a label of a string) and the number in ESI.
fn report(c: &mut Code, text: CodeLabel) -> Result<()> {
    c.asm.lea(rdi, ptr(text))?;
    c.asm.mov(eax, SYS_REPORT)?;
    Ok(c.asm.int(SYSCALL_VECTOR as i32)?)
}

fn string(c: &mut Code, label: &mut CodeLabel, text: &str) -> Result<()> {
    c.here(label)?;
    let bytes: Vec<u8> = text.bytes().chain([0]).collect();
    Ok(c.asm.db(&bytes)?)
}

/// Counts primes by trial division. R12: candidate, R13: primes until the next report.
fn emit_primes(c: &mut Code) -> Result<()> {
    c.function("user_primes")?;
    let (mut next, mut divide, mut prime, mut text) = (c.local(), c.local(), c.local(), c.local());
    c.asm.mov(r12d, 1)?;
    // 2 is counted already.
    c.asm.mov(r13d, PRIMES - 1)?;
    c.here(&mut next)?;
    c.asm.add(r12, 2)?;
    c.asm.mov(ecx, 3)?;
    c.here(&mut divide)?;
    let a = &mut c.asm;
    a.mov(rax, rcx)?;
    a.imul_2(rax, rcx)?;
    a.cmp(rax, r12)?;
    a.ja(prime)?;
    a.mov(rax, r12)?;
    a.xor(edx, edx)?;
    a.div(rcx)?;
    a.add(rcx, 2)?;
    a.test(edx, edx)?;
    a.jnz(divide)?;
    a.jmp(next)?;
    c.here(&mut prime)?;
    c.asm.dec(r13d)?;
    c.asm.jnz(next)?;
    c.asm.mov(r13d, PRIMES)?;
    c.asm.mov(esi, r12d)?;
    report(c, text)?;
    c.asm.jmp(next)?;
    string(c, &mut text, "1000 more primes, the last is ")
}

/// Fills an array from a linear congruential generator (R12) and sorts it by insertion.
fn emit_sorter(c: &mut Code) -> Result<()> {
    c.function("user_sorter")?;
    let (mut round, mut fill, mut text) = (c.local(), c.local(), c.local());
    c.asm.mov(r12d, 12345)?;
    c.asm.mov(r13d, SORTS)?;
    c.asm.mov(rbx, at::USER_DATA)?;
    c.here(&mut round)?;
    c.asm.xor(ecx, ecx)?;
    c.here(&mut fill)?;
    let a = &mut c.asm;
    a.imul_3(r12d, r12d, 1_103_515_245)?;
    a.add(r12d, 12345)?;
    a.mov(eax, r12d)?;
    a.shr(eax, 8)?;
    a.mov(dword_ptr(rbx + rcx * 4), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, NUMBERS)?;
    a.jb(fill)?;
    c.call("insertion_sort")?;
    c.asm.mov(eax, SYS_YIELD)?;
    c.asm.int(SYSCALL_VECTOR as i32)?;
    c.asm.dec(r13d)?;
    c.asm.jnz(round)?;
    c.asm.mov(r13d, SORTS)?;
    c.asm.mov(esi, dword_ptr(rbx + NUMBERS / 2 * 4))?;
    report(c, text)?;
    c.asm.jmp(round)?;
    string(c, &mut text, "sorted 6 arrays, the last median is ")?;
    emit_insertion_sort(c)
}

/// RBX: the array.
fn emit_insertion_sort(c: &mut Code) -> Result<()> {
    c.function("insertion_sort")?;
    let (mut next, mut shift, mut place) = (c.local(), c.local(), c.local());
    c.asm.mov(ecx, 1)?;
    c.here(&mut next)?;
    c.asm.mov(eax, dword_ptr(rbx + rcx * 4))?;
    c.asm.mov(edx, ecx)?;
    c.here(&mut shift)?;
    let a = &mut c.asm;
    a.mov(esi, dword_ptr(rbx + rdx * 4 - 4))?;
    a.cmp(esi, eax)?;
    a.jbe(place)?;
    a.mov(dword_ptr(rbx + rdx * 4), esi)?;
    a.dec(edx)?;
    a.jnz(shift)?;
    c.here(&mut place)?;
    let a = &mut c.asm;
    a.mov(dword_ptr(rbx + rdx * 4), eax)?;
    a.inc(ecx)?;
    a.cmp(ecx, NUMBERS)?;
    a.jb(next)?;
    a.ret()?;
    Ok(())
}

/// Stirs its data page. R12: the hash, R13: passes until the next report.
fn emit_hasher(c: &mut Code) -> Result<()> {
    c.function("user_hasher")?;
    let (mut pass, mut word, mut text) = (c.local(), c.local(), c.local());
    c.asm.mov(r12, 0xcbf2_9ce4_8422_2325u64)?;
    c.asm.mov(r14, 0x0000_0100_0000_01b3u64)?;
    c.asm.mov(r13d, PASSES)?;
    c.asm.mov(rbx, at::USER_DATA)?;
    c.here(&mut pass)?;
    c.asm.xor(ecx, ecx)?;
    c.here(&mut word)?;
    let a = &mut c.asm;
    a.xor(r12, qword_ptr(rbx + rcx * 8))?;
    a.imul_2(r12, r14)?;
    a.rol(r12, 29)?;
    a.mov(qword_ptr(rbx + rcx * 8), r12)?;
    a.inc(ecx)?;
    a.cmp(ecx, (PAGE / 8) as i32)?;
    a.jb(word)?;
    a.dec(r13d)?;
    a.jnz(pass)?;
    a.mov(r13d, PASSES)?;
    a.mov(esi, r12d)?;
    report(c, text)?;
    c.asm.jmp(pass)?;
    string(c, &mut text, "500 passes over my page, digest ")
}
