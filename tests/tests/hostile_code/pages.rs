//! Code on page boundaries, in device memory and in ROM; fetch rights that change under running code.

use super::machine::*;
use iced_x86::code_asm::*;

/// Linear addresses of two pages that belong together, far from the rest.
const A: u64 = 0x4000_0000;
const B: u64 = A + 0x1000;
/// Frames for them.
const FA: u64 = 0x20_0000;
const FB: u64 = 0x20_1000;
const FC: u64 = 0x20_2000;
/// A linear page through which the tables of A and B are written.
const WINDOW: u64 = 0x5000_0000;

/// Maps A, and a window on its page table; gives the linear addresses of the entries of A and B.
fn windowed(g: &mut Guest, a: u64) -> (u64, u64) {
    let pte = g.map(A, a);
    g.map(WINDOW, pte & !0xfff | P | W);
    let at = WINDOW | pte & 0xfff;
    (at, at + 8)
}

#[test]
fn test_straddling_instruction_whose_second_page_is_unmapped() {
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(rax, A + 0xff8)?;
            a.jmp(rax)
        });
        g.map(A, FA | P | W);
        // inc ebx; inc ebx; nop; then MOV ECX, imm32 of which two bytes are here.
        g.put(FA + 0xff8, [0xff, 0xc3, 0xff, 0xc3, 0x90, 0x90, 0xb9, 1]);
        g
    });
    assert_eq!(r.page_fault(), (pf::ID, A + 0xffe, B));
    assert_eq!((r.gpr[1], r.gpr[3]), (0, 2));
}

#[test]
fn test_block_that_runs_into_an_unmapped_page() {
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(rax, A + 0xffc)?;
            a.jmp(rax)
        });
        g.map(A, FA | P | W);
        g.put(FA + 0xffc, [0xff, 0xc3, 0xff, 0xc3]);
        g
    });
    assert_eq!(r.page_fault(), (pf::ID, B, B));
    assert_eq!(r.gpr[3], 2);
}

#[test]
fn test_second_page_becomes_unmapped_under_a_hot_straddler() {
    let r = run(|| {
        let mut g = Guest::long();
        let (_, pte) = windowed(&mut g, FA | P | W);
        g.map(B, FB | P | W);
        g.asm(CODE, |a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.mov(ebp, 50)?;
            a.lea(rsi, ptr(back))?;
            a.mov(rdi, pte)?;
            a.set_label(&mut top)?;
            a.mov(rax, A + 0xffe)?;
            a.jmp(rax)?;
            a.set_label(&mut back)?;
            a.inc(ebx)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.mov(qword_ptr(rdi), 0)?;
            a.mov(rax, B)?;
            a.invlpg(ptr(rax))?;
            a.mov(ebp, 1)?;
            a.jmp(top)
        });
        // mov ecx, 0x04030201 straddles; jmp rsi.
        g.put(FA + 0xffe, [0xb9, 1]);
        g.put(FB, [2, 3, 4, 0xff, 0xe6]);
        g
    });
    assert_eq!(r.page_fault(), (pf::ID, A + 0xffe, B));
    assert_eq!((r.gpr[1], r.gpr[3]), (0x0403_0201, 50));
}

#[test]
fn test_second_page_is_remapped_to_and_fro() {
    let r = run(|| {
        let mut g = Guest::long();
        let (_, pte) = windowed(&mut g, FA | P | W);
        g.map(B, FB | P | W);
        g.asm(CODE, |a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.mov(ebp, 50)?;
            a.lea(rsi, ptr(back))?;
            a.mov(rdi, pte)?;
            a.mov(rdx, B)?;
            a.set_label(&mut top)?;
            a.mov(rax, A + 0xffe)?;
            a.jmp(rax)?;
            a.set_label(&mut back)?;
            a.add(ebx, ecx)?;
            a.xor(qword_ptr(rdi), (FB ^ FC) as i32)?;
            a.invlpg(ptr(rdx))?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        g.put(FA + 0xffe, [0xb9, 1]);
        g.put(FB, [0, 0, 0, 0xff, 0xe6]);
        g.put(FC, [1, 0, 0, 0xff, 0xe6]);
        g
    });
    assert_eq!(r.gpr[3], 25 + 25 * 0x101);
}

#[test]
fn test_execution_from_device_memory() {
    // Nothing answers at 3.5 GiB: all ones, FF FF, which is no instruction.
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(rax, A + 0x123)?;
            a.call(rax)
        });
        g.map(A, 0xe000_0000 | P | W);
        g
    });
    assert_eq!(r.only(), (6, 0, A + 0x123));
}

#[test]
fn test_instruction_that_straddles_into_device_memory() {
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(rax, A + 0xffd)?;
            a.jmp(rax)
        });
        // The last bytes of RAM.
        g.map(A, (RAM - 0x1000) | P | W);
        g.map(B, RAM | P | W);
        g.put(RAM - 3, [0xb9, 5, 6]);
        g
    });
    assert_eq!(r.only(), (6, 0, B + 2));
    assert_eq!(r.gpr[1], 0xffff_0605);
}

#[test]
fn test_rom_runs_and_ignores_stores_to_itself() {
    let r = run(|| {
        const AT: u64 = 0xf_8000;
        let code = assemble(64, AT, |a| {
            let mut top = a.create_label();
            a.mov(ebp, 50)?;
            a.set_label(&mut top)?;
            // Would make the INC that follows a DEC, and in the end everything HLT.
            a.mov(byte_ptr(AT + 5 + 8 + 1), 0xcb)?;
            a.inc(ebx)?;
            a.mov(edi, AT as i32)?;
            a.mov(eax, 0xf4)?;
            a.mov(ecx, 64)?;
            a.rep().stosb()?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        let mut rom = vec![0xf4; 0x1_0000];
        rom[0x8000..0x8000 + code.len()].copy_from_slice(&code);
        Guest::with_rom(rom).program(|a| a.jmp(AT))
    });
    assert_eq!((r.gpr[3], r.gpr[5], r.u32(0xf_8000) & 0xff), (50, 0, 0xbd));
    assert_eq!(r.seen, []);
}

#[test]
fn test_nx_set_in_the_middle_of_a_chained_run() {
    let r = run(|| {
        let mut g = Guest::long();
        let (pte, _) = windowed(&mut g, FA | P | W);
        g.asm(CODE, |a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.mov(ebp, 50)?;
            a.lea(rsi, ptr(back))?;
            a.mov(rdi, pte)?;
            a.mov(rax, A)?;
            a.set_label(&mut top)?;
            a.jmp(rax)?;
            a.set_label(&mut back)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.bts(qword_ptr(rdi), 63)?;
            a.invlpg(ptr(rax))?;
            a.jmp(rax)
        });
        g.put(FA, [0xff, 0xc3, 0xff, 0xe6]);
        g
    });
    assert_eq!(r.page_fault(), (pf::ID | pf::P, A, A));
    assert_eq!(r.gpr[3], 50);
}

#[test]
fn test_smep_switched_on_and_off_in_a_chained_run() {
    let r = run(|| {
        let mut g = Guest::long();
        // The program itself in a supervisor page; A is a user page.
        g.map(CODE, CODE | P | W);
        for page in [0x6000, STACK - 0x1000] {
            g.map(page, page | P | W);
        }
        g.map(A, FA | P | W | U);
        g.asm(CODE, |a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.lea(rsi, ptr(back))?;
            a.mov(rdx, A)?;
            a.set_label(&mut top)?;
            a.mov(ebp, 20)?;
            a.jmp(rdx)?;
            a.set_label(&mut back)?;
            a.dec(ebp)?;
            a.nop()?;
            let mut off = a.create_label();
            a.jz(off)?;
            a.jmp(rdx)?;
            a.set_label(&mut off)?;
            a.mov(rax, cr4)?;
            a.bts(rax, 20)?;
            a.mov(cr4, rax)?;
            a.jmp(rdx)
        });
        g.put(FA, [0xff, 0xc3, 0xff, 0xe6]);
        // After the fault: SMEP off, and once more.
        g.asm(CODE + 0x800, |a| {
            a.mov(rax, cr4)?;
            a.btr(rax, 20)?;
            a.mov(cr4, rax)?;
            a.lea(rsi, ptr(CODE + 0x900))?;
            a.jmp(rdx)
        });
        g.asm(CODE + 0x900, |a| a.hlt());
        g.resume(CODE + 0x800);
        g
    });
    assert_eq!(r.page_fault(), (pf::ID | pf::P, A, A));
    assert_eq!(r.gpr[3], 21);
}
