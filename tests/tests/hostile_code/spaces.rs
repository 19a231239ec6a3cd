//! Address spaces: the same linear address on different frames, and CR3 switched in the middle of hot code.

use super::machine::*;
use iced_x86::code_asm::*;

const A: u64 = 0x4000_0000;
const FA: u64 = 0x20_0000;
const FB: u64 = 0x20_1000;

/// A second set of tables that differs in the frame of `A` only; gives its root.
fn second_space(g: &mut Guest) -> u64 {
    g.map(A, FA | P | W);
    let root = g.table();
    for page in 0..RAM >> 12 {
        g.map_in(root, page << 12, page << 12 | P | W | U);
    }
    g.map_in(root, A, FB | P | W);
    root
}

/// Runs code at `A` in two spaces in turn, 50 times each; `cr3` makes the two values of CR3 of the roots.
fn take_turns(pcid: bool, cr3s: fn(u64) -> (u64, u64)) {
    let r = run(|| {
        let mut g = Guest::long();
        let root = second_space(&mut g);
        let (one, two) = cr3s(root);
        g.asm(CODE, |a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            if pcid {
                a.mov(rax, cr4)?;
                a.bts(rax, 17)?;
                a.mov(cr4, rax)?;
            }
            a.mov(ebp, 100)?;
            a.mov(r8, one)?;
            a.mov(r9, two)?;
            a.mov(rdi, A)?;
            a.lea(rsi, ptr(back))?;
            a.set_label(&mut top)?;
            a.jmp(rdi)?;
            a.set_label(&mut back)?;
            a.mov(cr3, r9)?;
            a.xchg(r8, r9)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        // inc ebx; jmp rsi, and inc ecx; jmp rsi.
        g.put(FA, [0xff, 0xc3, 0xff, 0xe6]);
        g.put(FB, [0xff, 0xc1, 0xff, 0xe6]);
        g
    });
    assert_eq!((r.gpr[3], r.gpr[1], r.seen.len()), (50, 50, 0));
}

#[test]
fn test_two_spaces_take_turns_at_one_address() {
    take_turns(false, |root| (ROOT, root));
}

#[test]
fn test_two_spaces_take_turns_with_pcids() {
    take_turns(true, |root| (ROOT | 1, root | 2));
    // Without flushing (bit 63), and both spaces under one PCID, flushed by each write.
    take_turns(true, |root| (ROOT | 1 | 1 << 63, root | 2 | 1 << 63));
    take_turns(true, |root| (ROOT | 5, root | 5));
}

#[test]
fn test_instruction_after_a_cr3_write_comes_from_the_new_space() {
    let r = run(|| {
        let mut g = Guest::long();
        let root = second_space(&mut g);
        g.asm(CODE, |a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.mov(ebp, 60)?;
            a.mov(r8, ROOT)?;
            a.mov(r9, root)?;
            a.mov(rdi, A)?;
            a.lea(rsi, ptr(back))?;
            a.set_label(&mut top)?;
            a.jmp(rdi)?;
            a.set_label(&mut back)?;
            a.shl(rbx, 1)?;
            a.add(rbx, rcx)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        for (frame, n) in [(FA, 0), (FB, 1)] {
            let code = assemble(64, A, |a| {
                a.xchg(r8, r9)?;
                a.mov(cr3, r8)?;
                a.mov(ecx, n)?;
                a.jmp(rsi)
            });
            g.put(frame, code);
        }
        g
    });
    assert_eq!(r.gpr[3], 0xaaa_aaaa_aaaa_aaaa);
    assert_eq!(r.seen, []);
}

#[test]
fn test_page_that_is_missing_in_one_space_faults_there_only() {
    let r = run(|| {
        let mut g = Guest::long();
        let root = second_space(&mut g);
        g.map_in(root, A, 0);
        g.asm(CODE, |a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.mov(ebp, 30)?;
            a.mov(rdi, A)?;
            a.lea(rsi, ptr(back))?;
            a.set_label(&mut top)?;
            a.jmp(rdi)?;
            a.set_label(&mut back)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.mov(rax, root)?;
            a.mov(cr3, rax)?;
            a.jmp(rdi)
        });
        g.put(FA, [0xff, 0xc3, 0xff, 0xe6]);
        // The handler goes on here, in the first space again.
        g.asm(CODE + 0x800, |a| {
            a.mov(eax, ROOT as i32)?;
            a.mov(cr3, rax)?;
            a.mov(ebp, 2)?;
            a.lea(rsi, ptr(CODE + 0x900))?;
            a.jmp(rdi)
        });
        g.asm(CODE + 0x900, |a| a.hlt());
        g.resume(CODE + 0x800);
        g
    });
    assert_eq!(r.page_fault(), (pf::ID, A, A));
    assert_eq!(r.gpr[3], 31);
}

#[test]
fn test_user_and_supervisor_code_share_a_page_but_not_its_rights() {
    // The same page of data is written at CPL 0 and then at CPL 3, from the same code.
    const X: u64 = 0x9000;
    let r = run(|| {
        let mut g = Guest::long();
        g.map(DATA, DATA | P | W);
        g.asm(CODE, |a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.mov(ebp, 30)?;
            a.lea(rsi, ptr(back))?;
            a.set_label(&mut top)?;
            a.jmp(X)?;
            a.set_label(&mut back)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            for value in [i32::from(sel::DATA3), STACK as i32 - 0x100, 2, i32::from(sel::CODE64_3), X as i32]
            {
                a.push(value)?;
            }
            a.iretq()
        });
        g.asm(X, |a| {
            a.inc(ebx)?;
            a.inc(dword_ptr(DATA))?;
            a.jmp(rsi)
        });
        g
    });
    // User, write, present.
    assert_eq!(r.page_fault(), (4 | pf::W | pf::P, X + 2, DATA));
    assert_eq!((r.u32(DATA), r.gpr[3]), (30, 31));
}
