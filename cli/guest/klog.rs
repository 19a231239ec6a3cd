//! The ring of milestones, the housekeeping hook behind it, and the bug.

use super::Result;
use super::image::Code;
use super::layout::{KLOG_ENTRIES, Vars};
use iced_x86::code_asm::*;

/// `klog_init`, `klog_put` (RDI: the record), `housekeeping`.
pub fn emit(c: &mut Code, v: &Vars) -> Result<()> {
    c.function("klog_init")?;
    let housekeeping = c.label("housekeeping");
    c.asm.lea(rax, ptr(housekeeping))?;
    c.asm.mov(qword_ptr(v.housekeeping_hook), rax)?;
    c.asm.mov(qword_ptr(v.klog_next), 0)?;
    c.asm.ret()?;

    c.function("klog_put")?;
    let mut fits = c.local();
    c.asm.mov(rax, qword_ptr(v.klog_next))?;
    c.asm.cmp(rax, KLOG_ENTRIES as i32)?;
    // THE BUG: `jb` would be right. Index 16 passes, and its slot is the housekeeping hook.
    c.asm.jbe(fits)?;
    c.asm.xor(eax, eax)?;
    c.here(&mut fits)?;
    c.asm.mov(rcx, v.klog_ring)?;
    c.asm.mov(qword_ptr(rcx + rax * 8), rdi)?;
    c.asm.inc(rax)?;
    c.asm.mov(qword_ptr(v.klog_next), rax)?;
    c.asm.ret()?;

    // What the hook should lead to: forget old milestones.
    c.function("housekeeping")?;
    let mut next = c.local();
    c.asm.mov(rcx, v.klog_ring)?;
    c.asm.xor(eax, eax)?;
    c.here(&mut next)?;
    c.asm.mov(qword_ptr(rcx + rax * 8), 0)?;
    c.asm.inc(rax)?;
    c.asm.cmp(rax, KLOG_ENTRIES as i32)?;
    c.asm.jb(next)?;
    c.asm.mov(qword_ptr(v.klog_next), 0)?;
    c.asm.ret()?;
    Ok(())
}
