//! Tasks, their address spaces, and the round-robin scheduler on the PIT's tick.

use super::Result;
use super::image::{Assembled, Code};
use super::layout::{Data, HOUSEKEEPING_TICKS, KERNEL_BASE, PAGE, TASKS, Vars, at, sel, space, task};
use super::traps::frame;
use iced_x86::code_asm::*;

/// Page-table entry bits for user pages: present, (writable,) user.
const USER_RW: i32 = 7;
const USER_RO: i32 = 5;
/// RFLAGS of a new task: interrupts on.
const TASK_FLAGS: i32 = 0x202;

const PIC1: u32 = 0x20;
const PIC2: u32 = 0xa0;
const EOI: u32 = 0x20;
/// 1193182 Hz / 1193 = 1000 Hz.
const PIT_DIVISOR: u32 = 1193;
/// Both PICs re-initialised to vectors 32-47, all lines but the timer masked; PIT channel 0 in mode 2.
#[rustfmt::skip]
const TIMER_SETUP: [(u32, u32); 13] = [
    (PIC1, 0x11), (PIC1 + 1, 32), (PIC1 + 1, 4), (PIC1 + 1, 1),
    (PIC2, 0x11), (PIC2 + 1, 40), (PIC2 + 1, 2), (PIC2 + 1, 1),
    (PIC1 + 1, 0xfe), (PIC2 + 1, 0xff),
    (0x43, 0x34), (0x40, PIT_DIVISOR & 0xff), (0x40, PIT_DIVISOR >> 8),
];

pub fn emit(c: &mut Code, v: &Vars, data: &mut Data, user: &Assembled) -> Result<()> {
    c.function("timer_init")?;
    for (port, value) in TIMER_SETUP {
        c.asm.mov(eax, value)?;
        c.asm.out(port as i32, al)?;
    }
    c.asm.ret()?;
    emit_tasks_init(c, v, data, user)?;
    emit_task_create(c, v, user.len().div_ceil(PAGE))?;
    emit_sched(c, v)
}

fn emit_tasks_init(c: &mut Code, v: &Vars, data: &mut Data, user: &Assembled) -> Result<()> {
    c.function("tasks_init")?;
    for (index, (name, entry)) in
        [("primes", "user_primes"), ("sorter", "user_sorter"), ("hasher", "user_hasher")]
            .into_iter()
            .enumerate()
    {
        let index = index as u64;
        let slot = |n: u64| v.tasks + n % TASKS * task::SIZE;
        c.asm.mov(rbx, slot(index))?;
        c.asm.mov(rax, slot(index + 1))?;
        c.asm.mov(qword_ptr(rbx + task::NEXT), rax)?;
        c.asm.mov(rax, data.string(name))?;
        c.asm.mov(qword_ptr(rbx + task::NAME), rax)?;
        c.asm.mov(rax, v.kernel_stacks + (index + 1) * PAGE)?;
        c.asm.mov(qword_ptr(rbx + task::KSTACK_TOP), rax)?;
        c.asm.mov(rdi, v.spaces + index * space::PAGES * PAGE)?;
        c.asm.mov(rsi, user.address(entry)?)?;
        c.call("task_create")?;
    }
    c.asm.ret()?;
    Ok(())
}

/// RBX: task, RDI: its address space's pages, RSI: its entry point. Fills the tables and the first frame.
fn emit_task_create(c: &mut Code, v: &Vars, user_pages: u64) -> Result<()> {
    c.function("task_create")?;
    let page = |n: u64| n * PAGE;
    // The kernel half is the same in every address space.
    c.asm.mov(rax, qword_ptr(v.kernel_pml4 + 511 * 8))?;
    c.asm.mov(qword_ptr(rdi + page(space::PML4) + 511 * 8), rax)?;
    // RCX: physical address of the pages.
    c.asm.mov(rax, KERNEL_BASE)?;
    c.asm.mov(rcx, rdi)?;
    c.asm.sub(rcx, rax)?;
    c.asm.mov(qword_ptr(rbx + task::CR3), rcx)?;
    let directory = at::USER_VIRTUAL >> 21;
    let slot = |virt: u64| page(space::PT) + (virt >> 12 & 511) * 8;
    for (at, target) in [
        (page(space::PML4), space::PDPT),
        (page(space::PDPT), space::PD),
        (page(space::PD) + directory * 8, space::PT),
        (slot(at::USER_DATA), space::DATA),
        (slot(at::USER_STACK_TOP - PAGE), space::STACK),
    ] {
        c.asm.lea(rax, ptr(rcx + page(target) + USER_RW))?;
        c.asm.mov(qword_ptr(rdi + at), rax)?;
    }
    for n in 0..user_pages {
        let entry = (at::USER + page(n)) as i32 | USER_RO;
        c.asm.mov(qword_ptr(rdi + slot(at::USER_VIRTUAL + page(n))), entry)?;
    }
    // The frame trap_return will pop.
    c.asm.mov(rax, qword_ptr(rbx + task::KSTACK_TOP))?;
    c.asm.sub(rax, frame::SIZE as i32)?;
    c.asm.mov(qword_ptr(rbx + task::KSP), rax)?;
    c.asm.mov(qword_ptr(rax + frame::RIP), rsi)?;
    for (field, value) in [
        (frame::CS, sel::USER_CODE as i32),
        (frame::RFLAGS, TASK_FLAGS),
        (frame::RSP, at::USER_STACK_TOP as i32),
        (frame::SS, sel::USER_DATA as i32),
    ] {
        c.asm.mov(qword_ptr(rax + field), value)?;
    }
    // The record of a new task is its physical CR3.
    c.asm.mov(rdi, rcx)?;
    c.jump("klog_put")?;
    Ok(())
}

fn emit_sched(c: &mut Code, v: &Vars) -> Result<()> {
    c.function("sched_start")?;
    c.asm.mov(rax, v.tasks)?;
    c.call("switch_to")?;
    c.asm.mov(rsp, rax)?;
    c.jump("trap_return")?;

    // RDI: the interrupted frame. Returns the frame to continue with.
    c.function("timer_tick")?;
    let mut not_due = c.local();
    c.asm.push(rdi)?;
    c.asm.mov(eax, EOI)?;
    c.asm.out(PIC1 as i32, al)?;
    c.asm.inc(qword_ptr(v.ticks))?;
    c.asm.mov(rax, qword_ptr(v.ticks))?;
    c.asm.cmp(rax, qword_ptr(v.next_housekeeping))?;
    c.asm.jb(not_due)?;
    c.asm.add(qword_ptr(v.next_housekeeping), HOUSEKEEPING_TICKS as i32)?;
    c.asm.call(qword_ptr(v.housekeeping_hook))?;
    c.here(&mut not_due)?;
    c.asm.pop(rdi)?;
    c.jump("schedule")?;

    // RDI: frame of the current task. Gives the CPU to the next one; returns its frame.
    c.function("schedule")?;
    c.asm.mov(rax, qword_ptr(v.current))?;
    c.asm.mov(qword_ptr(rax + task::KSP), rdi)?;
    c.asm.mov(rax, qword_ptr(rax + task::NEXT))?;

    // RAX: task. Makes it the current one; returns its frame.
    c.function("switch_to")?;
    c.asm.mov(qword_ptr(v.current), rax)?;
    c.asm.mov(rcx, qword_ptr(rax + task::KSTACK_TOP))?;
    // RSP0 of the TSS.
    c.asm.mov(qword_ptr(v.tss + 4), rcx)?;
    c.asm.mov(rcx, qword_ptr(rax + task::CR3))?;
    c.asm.mov(cr3, rcx)?;
    c.asm.mov(rax, qword_ptr(rax + task::KSP))?;
    c.asm.ret()?;
    Ok(())
}
