//! From multiboot's 32-bit entry to 64-bit code in the kernel half.

use super::Result;
use super::image::{Assembled, Code};
use super::layout::{Data, HOUSEKEEPING_TICKS, KERNEL_BASE, LOAD, Vars, at, phys32, sel};
use iced_x86::code_asm::*;

/// Page-table entry bits: present, writable; 2 MiB page.
const PRESENT_RW: u32 = 3;
const LARGE: u32 = 0x80;
/// 2 MiB pages of the kernel's map: the first 16 MiB of memory.
const KERNEL_PAGES: u32 = 8;
const MULTIBOOT_MAGIC: u32 = 0x1bad_b002;
/// Page-align modules, give memory sizes, load by this header's addresses.
const MULTIBOOT_FLAGS: u32 = 1 << 16 | 3;
/// Size of the multiboot header.
const HEADER_SIZE: u32 = 32;

const CR0_PE_WP_PG: u32 = 0x8001_0001;
const CR4_PAE: u32 = 0x20;
const MSR_EFER: u32 = 0xc000_0080;
const EFER_LME: u32 = 0x100;

/// The multiboot header and `_start`.
pub fn emit_32(v: &Vars, bss_end: u64) -> Result<Assembled> {
    let load = LOAD as u32;
    let checksum = 0u32.wrapping_sub(MULTIBOOT_MAGIC).wrapping_sub(MULTIBOOT_FLAGS);
    let mut c = Code::new(32, LOAD)?;
    let entry = load + HEADER_SIZE;
    c.asm.dd(&[
        MULTIBOOT_MAGIC,
        MULTIBOOT_FLAGS,
        checksum,
        load,
        load,
        at::BSS as u32,
        bss_end as u32,
        entry,
    ])?;

    c.function("_start")?;
    c.asm.cli()?;
    c.asm.mov(esp, phys32(v.boot_stack_top))?;
    c.asm.mov(dword_ptr(phys32(v.boot_info)), ebx)?;
    emit_tables(&mut c, v)?;

    c.function("enter_long_mode")?;
    let a = &mut c.asm;
    a.mov(eax, cr4)?;
    a.or(eax, CR4_PAE)?;
    a.mov(cr4, eax)?;
    a.mov(eax, phys32(v.kernel_pml4))?;
    a.mov(cr3, eax)?;
    a.mov(ecx, MSR_EFER)?;
    a.rdmsr()?;
    a.or(eax, EFER_LME)?;
    a.wrmsr()?;
    a.mov(eax, cr0)?;
    a.or(eax, CR0_PE_WP_PG)?;
    a.mov(cr0, eax)?;
    // Compatibility mode now; a far return to a 64-bit code segment makes it 64-bit mode.
    a.lgdt(ptr(phys32(v.gdtr_32)))?;
    a.push(sel::KERNEL_CODE)?;
    a.push(at::TEXT as u32)?;
    a.retf()?;
    c.finish()
}

/// The first 16 MiB appear at 0 (until the kernel has left it) and in the kernel half.
fn emit_tables(c: &mut Code, v: &Vars) -> Result<()> {
    c.function("build_page_tables")?;
    let entry = |table: u64| phys32(table) | PRESENT_RW;
    let mut next = c.local();
    let a = &mut c.asm;
    a.mov(dword_ptr(phys32(v.kernel_pml4)), entry(v.low_pdpt))?;
    a.mov(dword_ptr(phys32(v.kernel_pml4) + 511 * 8), entry(v.kernel_pdpt))?;
    a.mov(dword_ptr(phys32(v.low_pdpt)), entry(v.kernel_pd))?;
    a.mov(dword_ptr(phys32(v.kernel_pdpt) + 510 * 8), entry(v.kernel_pd))?;
    a.xor(ecx, ecx)?;
    a.mov(eax, PRESENT_RW | LARGE)?;
    c.here(&mut next)?;
    let a = &mut c.asm;
    a.mov(dword_ptr(ecx * 8 + phys32(v.kernel_pd)), eax)?;
    a.add(eax, 1 << 21)?;
    a.inc(ecx)?;
    a.cmp(ecx, KERNEL_PAGES)?;
    a.jb(next)?;
    Ok(())
}

/// `long_start` (first in the section, executed at its physical address) and `kernel_main`.
pub fn emit_64(c: &mut Code, v: &Vars, data: &mut Data) -> Result<()> {
    c.function("long_start")?;
    let main = c.label("kernel_main");
    let a = &mut c.asm;
    a.lea(rax, ptr(main))?;
    a.mov(rcx, KERNEL_BASE)?;
    a.or(rax, rcx)?;
    a.jmp(rax)?;

    c.function("kernel_main")?;
    let a = &mut c.asm;
    a.mov(rsp, v.boot_stack_top)?;
    a.lgdt(ptr(v.gdtr))?;
    a.mov(eax, sel::KERNEL_DATA)?;
    for segment in [ds, es, ss, fs, gs] {
        a.mov(segment, eax)?;
    }
    a.mov(eax, sel::TSS)?;
    a.ltr(ax)?;
    // User space starts empty: the identity map goes.
    a.mov(qword_ptr(v.kernel_pml4), 0)?;
    a.mov(rax, cr3)?;
    a.mov(cr3, rax)?;
    emit_start_up(c, v, data)
}

fn emit_start_up(c: &mut Code, v: &Vars, data: &mut Data) -> Result<()> {
    c.call("serial_init")?;
    c.call("klog_init")?;
    say(c, data.string("rearview: a small kernel with one bug\n[boot ] long mode, paging on, "))?;
    c.asm.mov(ebx, dword_ptr(v.boot_info))?;
    c.asm.mov(rax, KERNEL_BASE)?;
    // Multiboot's mem_upper is in KiB above the first MiB.
    c.asm.mov(edi, dword_ptr(rbx + rax + 8))?;
    c.asm.shr(edi, 10)?;
    c.asm.inc(edi)?;
    c.call("put_dec")?;
    say(c, data.string(" MiB of memory\n[boot ] kernel half at "))?;
    c.asm.mov(rdi, KERNEL_BASE)?;
    c.call("put_hex")?;
    step(c, data, 1, "\n")?;
    c.call("traps_init")?;
    step(c, data, 2, "[traps] IDT loaded\n")?;
    c.call("timer_init")?;
    step(c, data, 3, "[timer] PIC at vectors 32-47, PIT at 1000 Hz\n")?;
    c.call("tasks_init")?;
    step(c, data, 4, "[tasks] 3 tasks in 3 address spaces, kernel half shared\n")?;
    c.asm.mov(qword_ptr(v.next_housekeeping), HOUSEKEEPING_TICKS as i32)?;
    step(c, data, 5, "[sched] round robin, every tick\n")?;
    c.jump("sched_start")
}

fn say(c: &mut Code, text: u64) -> Result<()> {
    c.asm.mov(rdi, text)?;
    c.call("puts")
}

/// Says that step `number` of the start is done, and notes it.
fn step(c: &mut Code, data: &mut Data, number: u32, text: &str) -> Result<()> {
    say(c, data.string(text))?;
    c.asm.mov(edi, number)?;
    c.call("klog_put")
}
