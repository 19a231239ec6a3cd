//! Code that changes while it runs: by its own stores, through other mappings, by remapping itself, by DMA and by a
//! debugger. A store is seen by the next instruction; so is a page-table write, which real processors may see later.

use super::machine::*;
use iced_x86::code_asm::*;
use retrovisor_core::input::InputEvent;

const A: u64 = 0x4000_0000;
const B: u64 = 0x4800_0000;
const FA: u64 = 0x20_0000;
const FB: u64 = 0x20_1000;

#[test]
fn test_stores_ahead_and_behind_in_the_running_block() {
    let r = run(|| {
        Guest::long().program(|a| {
            let (mut top, mut imm0) = (a.create_label(), a.create_label());
            let (mut imm1, mut imm2) = (a.create_label(), a.create_label());
            a.xor(ebx, ebx)?;
            a.mov(ebp, 100)?;
            a.set_label(&mut top)?;
            // Behind: the immediate of an instruction that comes again in the next round.
            // MOV EDX, imm32.
            a.db(&[0xba])?;
            a.set_label(&mut imm0)?;
            a.dd(&[0])?;
            a.add(ebx, edx)?;
            a.mov(dword_ptr(imm0), ebp)?;
            // Ahead: the next instruction, and one after it.
            a.mov(dword_ptr(imm1), ebp)?;
            a.db(&[0xb8])?;
            a.set_label(&mut imm1)?;
            a.dd(&[0])?;
            a.add(ebx, eax)?;
            a.mov(dword_ptr(imm2), ebp)?;
            a.nop()?;
            a.nop()?;
            a.db(&[0xb9])?;
            a.set_label(&mut imm2)?;
            a.dd(&[0])?;
            a.add(ebx, ecx)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        })
    });
    // Behind lags by one round: 0 + 100 + ... + 2.
    assert_eq!(r.gpr[3], 5050 * 2 + 5050 - 1);
}

#[test]
fn test_store_that_straddles_into_the_next_page_of_running_code() {
    let r = run(|| {
        Guest::long()
            .program(|a| {
                let mut top = a.create_label();
                let mut fill = a.create_label();
                a.mov(ebp, 60)?;
                a.set_label(&mut top)?;
                // Eight bytes from four before the page's end: NOPs, then INC EBX or DEC EBX in the new page.
                a.mov(rax, 0xc3ff_9090_9090_9090u64)?;
                a.test(bpl, 1)?;
                a.jz(fill)?;
                a.mov(rcx, 0x0800_0000_0000_0000u64)?;
                a.xor(rax, rcx)?;
                a.set_label(&mut fill)?;
                a.jmp(CODE + 0xff0)
            })
            .then(|g| {
                g.asm(CODE + 0xff0, |a| {
                    // 8 bytes, so that the store ends four before the boundary; 8 bytes of target follow.
                    a.mov(qword_ptr(CODE + 0xffa), rax)?;
                    a.nop()?;
                    a.nop()
                });
                g.put(CODE + 0xffa, [0x90; 8]);
                g.asm(CODE + 0x1002, |a| {
                    a.dec(ebp)?;
                    let mut end = a.create_label();
                    a.jz(end)?;
                    a.jmp(CODE + 5)?;
                    a.set_label(&mut end)?;
                    a.hlt()
                });
            })
    });
    assert_eq!((r.gpr[3], r.gpr[5]), (0, 0));
    assert_eq!(r.u64(CODE + 0xffa), 0xcbff_9090_9090_9090, "the last round was odd");
}

#[test]
fn test_store_that_begins_in_data_and_ends_in_code() {
    // Data up to X and code from there on, in one page; the store covers the last four bytes of the one and the
    // first four of the other. Stores to the data alone change nothing.
    const X: u64 = 0x9800;
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.mov(ebp, 60)?;
            a.lea(rsi, ptr(back))?;
            // INC EBX or INC ECX, and JMP RSI.
            a.mov(r8, 0xe6ff_c3ff_0000_0000u64)?;
            a.mov(r9, 0xe6ff_c1ff_0000_0000u64)?;
            a.set_label(&mut top)?;
            a.mov(qword_ptr(X - 4), r8)?;
            a.xchg(r8, r9)?;
            a.mov(qword_ptr(X - 0x48), rbp)?;
            a.jmp(X)?;
            a.set_label(&mut back)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        g.put(X, [0xff, 0xc3, 0xff, 0xe6]);
        g
    });
    assert_eq!((r.gpr[3], r.gpr[1], r.seen.len()), (30, 30, 0));
}

#[test]
fn test_rep_stos_over_itself() {
    // The first iteration makes the prefix a NOP; STOSB makes itself one. A processor may finish iterations it has
    // begun; ours looks at its own bytes again after each.
    let r = run(|| {
        Guest::long().program(|a| {
            let mut over = a.create_label();
            a.mov(eax, 0x90)?;
            a.mov(ecx, 64)?;
            a.lea(rdi, ptr(over))?;
            a.set_label(&mut over)?;
            a.rep().stosb()?;
            for _ in 0..62 {
                a.inc(eax)?;
            }
            a.hlt()
        })
    });
    assert_eq!((r.gpr[1], r.gpr[0], r.seen.len()), (63, 0x90 + 62, 0));
}

#[test]
fn test_code_written_through_another_linear_address() {
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            let (mut top, mut one, mut two) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(ebp, 50)?;
            a.mov(rdi, A)?;
            a.mov(r8, B)?;
            a.set_label(&mut top)?;
            // Written at B, run at A; then written at A, run at B.
            a.mov(dword_ptr(r8 + 1), ebp)?;
            a.lea(rsi, ptr(one))?;
            a.jmp(rdi)?;
            a.set_label(&mut one)?;
            a.add(ebx, eax)?;
            a.mov(r9, rdx)?;
            a.inc(dword_ptr(rdi + 1))?;
            a.lea(rsi, ptr(two))?;
            a.jmp(r8)?;
            a.set_label(&mut two)?;
            a.add(ebx, eax)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        g.map(A, FA | P | W);
        g.map(B, FA | P | W);
        let code = assemble(64, A, |a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.mov(eax, 0)?;
            a.lea(rdx, ptr(here))?;
            a.jmp(rsi)
        });
        g.put(FA, code);
        g
    });
    assert_eq!(r.gpr[3], 2 * 1275 + 50);
    // The same bytes name their own address.
    assert_eq!((r.gpr[9], r.gpr[2]), (A, B));
}

/// A guest whose tables map themselves: entry 510 of the root. Gives where the PTE of `A` is in linear memory.
fn self_mapped() -> (Guest, u64) {
    let mut g = Guest::long();
    g.map(A, FA | P | W);
    g.put(ROOT + 510 * 8, (ROOT | P | W).to_le_bytes());
    let window = 0xffff_ff00_0000_0000;
    (g, window | (A >> 9 & 0x7f_ffff_fff8))
}

#[test]
fn test_code_remaps_itself_through_self_mapped_tables() {
    let r = run(|| {
        let (mut g, pte) = self_mapped();
        g.asm(CODE, |a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.mov(ebp, 60)?;
            a.mov(rdi, pte)?;
            a.mov(rax, A)?;
            a.lea(rsi, ptr(back))?;
            a.set_label(&mut top)?;
            a.jmp(rax)?;
            a.set_label(&mut back)?;
            a.shl(rbx, 1)?;
            a.add(rbx, rcx)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        for (frame, n) in [(FA, 0), (FB, 1)] {
            let code = assemble(64, A, |a| {
                a.xor(qword_ptr(rdi), (FA ^ FB) as i32)?;
                // From the other frame.
                a.mov(ecx, n)?;
                a.jmp(rsi)
            });
            g.put(frame, code);
        }
        g
    });
    // Run from FA, the instruction after the write is FB's, and the other way round.
    assert_eq!(r.gpr[3], 0xaaa_aaaa_aaaa_aaaa);
    assert_eq!(r.seen, []);
}

#[test]
fn test_code_unmaps_itself() {
    let r = run(|| {
        let (mut g, pte) = self_mapped();
        g.asm(CODE, |a| {
            a.mov(rdi, pte)?;
            a.mov(rax, A)?;
            a.jmp(rax)
        });
        g.put(
            FA,
            assemble(64, A, |a| {
                a.mov(qword_ptr(rdi), 0)?;
                a.inc(ebx)?;
                a.hlt()
            }),
        );
        g
    });
    assert_eq!(r.page_fault(), (pf::ID, A + 7, A + 7));
    assert_eq!(r.gpr[3], 0);
}

#[test]
fn test_code_makes_itself_not_executable() {
    let r = run(|| {
        let (mut g, pte) = self_mapped();
        g.asm(CODE, |a| {
            a.mov(rdi, pte + 7)?;
            a.mov(rax, A)?;
            a.jmp(rax)
        });
        g.put(
            FA,
            assemble(64, A, |a| {
                a.mov(byte_ptr(rdi), 0x80)?;
                a.inc(ebx)?;
                a.hlt()
            }),
        );
        g
    });
    assert_eq!(r.page_fault(), (pf::ID | pf::P, A + 3, A + 3));
    assert_eq!(r.gpr[3], 0);
}

#[test]
fn test_call_pushes_its_return_address_over_its_own_page_table_entry() {
    // A stack on the page tables: the CALL's own push unmaps the target's page.
    // Below the entry lie those of 256 other pages, for the fault's own frame.
    const AT: u64 = A + 0x10_0000;
    let r = run(|| {
        let (mut g, pte) = self_mapped();
        g.map(AT, FA | P | W);
        g.asm(CODE, |a| {
            a.mov(rsp, pte + 0x800 + 8)?;
            a.mov(rax, AT)?;
            a.call(rax)
        });
        g.put(FA, [0xf4]);
        g
    });
    // The return address is even: an entry that is not present.
    assert_eq!(r.page_fault(), (pf::ID, AT, AT));
}

/// fw_cfg DMA: reads 4 bytes of item 0 ("QEMU") to `to`; the descriptor lies at [`DATA`].
fn dma_descriptor(g: &mut Guest, to: u64) {
    let control = 2u32 | 8;
    let d = [&control.to_be_bytes()[..], &4u32.to_be_bytes(), &to.to_be_bytes()].concat();
    g.put(DATA, d);
}

fn start_dma(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(edx, 0x518)?;
    a.mov(eax, (DATA as u32).swap_bytes())?;
    a.out(dx, eax)
}

#[test]
fn test_dma_rewrites_the_next_instruction() {
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(ebp, 2)?;
            a.jmp(0x9000u64)
        });
        g.asm(0x9000, start_dma);
        let next = 0x9000 + assemble(64, 0x9000, start_dma).len() as u64;
        // NOPs become PUSH RCX; PUSH R13 ("QEMU", the first REX prefix without effect).
        g.put(next, [0x90; 4]);
        g.asm(next + 4, |a| {
            let mut end = a.create_label();
            a.mov(rbx, rsp)?;
            a.dec(ebp)?;
            a.jz(end)?;
            a.jmp(0x9000u64)?;
            a.set_label(&mut end)?;
            a.hlt()
        });
        dma_descriptor(&mut g, next);
        g
    });
    assert_eq!(r.seen, []);
    assert_eq!(r.gpr[3], STACK - 32, "both times");
}

#[test]
fn test_dma_remaps_the_running_code_to_device_memory() {
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(rax, A)?;
            a.jmp(rax)
        });
        let pte = g.map(A, FA | P | W);
        g.put(FA, assemble(64, A, start_dma));
        g.put(FA + 11, [0xf4]);
        // "QEMU" is a present entry of frame 0x554d4000, where nothing is: all ones, no instruction.
        dma_descriptor(&mut g, pte);
        g
    });
    let len = assemble(64, A, start_dma).len() as u64;
    assert_eq!(r.only(), (6, 0, A + len));
}

#[test]
fn test_debugger_write_changes_a_hot_loop() {
    // inc ebx becomes inc ecx, then the loop is left.
    const LOOP: u64 = CODE + 10;
    let write = |gpa, bytes: &[u8]| InputEvent::WritePhys { gpa, bytes: bytes.to_vec() };
    let events = [(2_000, write(LOOP, &[0xff, 0xc1])), (5_000, write(LOOP + 2, &[0xf4, 0xf4]))];
    let r = run_with(
        || {
            let mut g = Guest::long();
            g.put(CODE, [0x90; 10]);
            g.put(LOOP, [0xff, 0xc3, 0xeb, 0xfc]);
            g
        },
        &events,
    );
    let (before, after) = (r.gpr[3], r.gpr[1]);
    // At icount 2000 ten NOPs and 1990 instructions of the loop have run; half are INC. The last INC is followed by
    // HLT.
    assert_eq!((before, after), (995, 1501));
}

#[test]
fn test_debugger_write_remaps_a_hot_loop() {
    let pte = {
        let mut g = Guest::long();
        g.map(A, FA | P | W)
    };
    let events = [(1_000, InputEvent::WritePhys { gpa: pte, bytes: (FB | P).to_le_bytes().to_vec() })];
    let r = run_with(
        || {
            let mut g = Guest::long().program(|a| {
                a.mov(rax, A)?;
                a.jmp(rax)
            });
            g.map(A, FA | P | W);
            g.put(FA, [0xff, 0xc3, 0xeb, 0xfc]);
            g.put(FB, [0xf4, 0x90, 0xf4, 0x90]);
            g
        },
        &events,
    );
    assert_eq!((r.gpr[3], r.seen.len()), (499, 0));
}
