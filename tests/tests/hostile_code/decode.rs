//! Bytes that are several programs: jumps into the middle of instructions, overlapping code, code of two modes.

use super::machine::*;
use iced_x86::code_asm::*;

#[test]
fn test_jump_into_the_middle_of_an_instruction() {
    const M: u64 = 0x9000;
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            let (mut top, mut one, mut two) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(ebp, 60)?;
            a.xor(ebx, ebx)?;
            a.set_label(&mut top)?;
            a.lea(rdi, ptr(one))?;
            a.jmp(M)?;
            a.set_label(&mut one)?;
            a.lea(rsi, ptr(two))?;
            a.jmp(M + 1)?;
            a.set_label(&mut two)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        // mov eax, 0xe6ffc3ff; jmp rdi. From the second byte: inc ebx; jmp rsi.
        g.put(M, [0xb8, 0xff, 0xc3, 0xff, 0xe6, 0xff, 0xe7]);
        g
    });
    assert_eq!((r.gpr[0], r.gpr[3]), (0xe6ff_c3ff, 60));
}

/// What entering `sled` at `at` leaves in EAX: a run of B8 bytes is MOV EAX, imm32 after MOV EAX, imm32.
fn sled_result(sled: &[u8], mut at: usize) -> u32 {
    let mut result = 0;
    while sled[at] != 0x90 {
        assert_eq!(sled[at], 0xb8);
        result = u32::from_le_bytes(sled[at + 1..at + 5].try_into().unwrap());
        at += 5;
    }
    result
}

#[test]
fn test_overlapping_code_entered_at_every_offset() {
    const M: u64 = 0x9000 - 7;
    let mut sled = [0xb8; 24].to_vec();
    sled.extend([0x90; 6]);
    let want = (0..24).fold(0u32, |sum, at| sum.rotate_left(5) ^ sled_result(&sled, at));
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            let (mut again, mut top, mut back) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(ebp, 5)?;
            a.lea(rsi, ptr(back))?;
            a.set_label(&mut again)?;
            a.xor(ebx, ebx)?;
            a.mov(rdi, M)?;
            a.set_label(&mut top)?;
            a.xor(eax, eax)?;
            a.jmp(rdi)?;
            a.set_label(&mut back)?;
            a.rol(ebx, 5)?;
            a.xor(ebx, eax)?;
            a.inc(rdi)?;
            a.cmp(rdi, M as i32 + 24)?;
            a.jb(top)?;
            a.dec(ebp)?;
            a.jnz(again)?;
            a.hlt()
        });
        g.put(M, &sled);
        g.put(M + sled.len() as u64, [0xff, 0xe6]);
        g
    });
    assert_eq!(r.gpr[3] as u32, want);
}

#[test]
fn test_same_bytes_as_64_bit_and_32_bit_code() {
    const X: u64 = 0x9000;
    const BACK32: u64 = 0x9800;
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            let (mut top, mut one, mut two) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(ebp, 40)?;
            a.xor(eax, eax)?;
            a.xor(ebx, ebx)?;
            a.lea(rdx, ptr(two))?;
            a.set_label(&mut top)?;
            a.lea(rsi, ptr(one))?;
            a.jmp(X)?;
            a.set_label(&mut one)?;
            a.mov(esi, BACK32 as i32)?;
            a.push(i32::from(sel::CODE32))?;
            a.push(X as i32)?;
            a.db(&[0x48, 0xcb])?; // RETFQ
            a.set_label(&mut two)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        // 64-bit: inc ebx (with a REX prefix); jmp rsi. 32-bit: inc eax; inc ebx; jmp esi.
        g.put(X, [0x40, 0xff, 0xc3, 0xff, 0xe6]);
        g.put(
            BACK32,
            assemble(32, BACK32, |a| {
                a.push(i32::from(sel::CODE64))?;
                a.push(edx)?;
                a.retf()
            }),
        );
        g
    });
    assert_eq!((r.gpr[0], r.gpr[3]), (40, 80));
    assert_eq!(r.seen, []);
}

#[test]
fn test_undefined_opcode_in_the_middle_of_a_hot_block() {
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            let mut top = a.create_label();
            a.mov(ebp, 30)?;
            a.set_label(&mut top)?;
            a.inc(eax)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.inc(eax)?;
            a.ud2()?;
            a.inc(eax)
        });
        g.asm(0x9000, |a| a.hlt());
        g.resume(0x9000);
        g
    });
    let (vector, error, rip) = r.only();
    assert_eq!((vector, error, r.gpr[0]), (6, 0, 31));
    assert_eq!(r.u32(rip) & 0xffff, 0x0b0f);
}

/// The one exception of NOPs up to `at` and then `bytes`.
fn exception_of(at: u64, bytes: &[u8]) -> (u64, u64, u64) {
    let r = run(|| {
        let mut g = Guest::long().program(|a| a.jmp(at - 4));
        g.put(at - 4, [0x90; 4]);
        g.put(at, bytes);
        g
    });
    r.only()
}

#[test]
fn test_instruction_length_limit() {
    // 14 prefixes and NOP are an instruction; with one more it is too long (SDM vol. 2A, 2.3.11). Also where the 15th
    // byte is the first of the next page.
    for at in [0x9000, 0x9ff2, 0xa000 - 15, 0xa000 - 3] {
        let nop = |prefixes| [vec![0x66; prefixes], vec![0x90, 0x0f, 0x0b]].concat();
        assert_eq!(exception_of(at, &nop(14)), (6, 0, at + 15), "{at:#x}");
        assert_eq!(exception_of(at, &nop(15)), (13, 0, at), "{at:#x}");
        assert_eq!(exception_of(at, &nop(30)), (13, 0, at), "{at:#x}");
        // 12 prefixes, an undefined opcode of two bytes and its ModRM byte are 15 bytes: undefined.
        let undefined = [vec![0x66; 12], vec![0x0f, 0x04, 0]].concat();
        assert_eq!(exception_of(at, &undefined), (6, 0, at), "{at:#x}");
        // LOCK is undefined with MOV, but that the instruction is too long comes first.
        let locked = [vec![0xf0], vec![0x66; 12], vec![0xc7, 0x05, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(exception_of(at, &locked), (13, 0, at), "{at:#x}");
    }
}
