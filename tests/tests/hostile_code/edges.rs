//! The ends of things: of RAM, of the linear address space, of pages whose neighbour has other rights.

use super::machine::*;
use iced_x86::code_asm::*;

const A: u64 = 0x4000_0000;
const FA: u64 = 0x20_0000;

#[test]
fn test_accesses_across_the_end_of_ram() {
    let r = run(|| {
        let mut g = Guest::long();
        g.map(A, (RAM - 0x1000) | P | W);
        g.map(A + 0x1000, RAM | P | W);
        g.put(RAM - 8, 0x8877_6655_4433_2211u64.to_le_bytes());
        g.asm(CODE, |a| {
            let mut top = a.create_label();
            a.mov(ebp, 30)?;
            a.mov(rdi, A + 0xff8)?;
            a.set_label(&mut top)?;
            // The last 8 bytes; 4 of them and 4 beyond; all beyond.
            a.mov(rax, qword_ptr(rdi))?;
            a.mov(rbx, qword_ptr(rdi + 4))?;
            a.mov(rcx, qword_ptr(rdi + 8))?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.mov(rdx, 0x0102_0304_0506_0708u64)?;
            a.mov(qword_ptr(rdi + 4), rdx)?;
            a.mov(qword_ptr(rdi + 8), rdx)?;
            a.lock().add(dword_ptr(rdi + 6), edx)?;
            a.mov(rdx, qword_ptr(rdi))?;
            a.hlt()
        });
        g
    });
    assert_eq!(r.seen, []);
    // Where nothing answers, reads are all ones and writes are lost.
    assert_eq!(r.gpr[0], 0x8877_6655_4433_2211);
    assert_eq!(r.gpr[3], 0xffff_ffff_8877_6655);
    assert_eq!(r.gpr[1], u64::MAX);
    // 0x0506_0708 at the end, then the low half of FFFF0506 + 05060708 in its upper half.
    assert_eq!(r.gpr[2], 0x0c0e_0708_4433_2211);
    assert_eq!(r.u64(RAM - 8), r.gpr[2]);
}

#[test]
fn test_string_copy_over_the_end_of_ram() {
    let r = run(|| {
        let mut g = Guest::long();
        g.map(A, (RAM - 0x1000) | P | W);
        g.map(A + 0x1000, RAM | P | W);
        g.asm(CODE, |a| {
            a.mov(rdi, A + 0xff0)?;
            a.mov(ecx, 0x40)?;
            a.mov(eax, 0x5a)?;
            a.rep().stosb()?;
            a.mov(rsi, A + 0xff0)?;
            a.mov(rdi, DATA)?;
            a.mov(ecx, 4)?;
            a.rep().movsq()?;
            a.hlt()
        });
        g
    });
    assert_eq!((r.seen.len(), r.gpr[1], r.gpr[7]), (0, 0, DATA + 32));
    assert_eq!(
        [0, 8, 16, 24].map(|n| r.u64(DATA + n)),
        [0x5a5a_5a5a_5a5a_5a5a, 0x5a5a_5a5a_5a5a_5a5a, u64::MAX, u64::MAX]
    );
}

#[test]
fn test_pages_beyond_the_physical_addresses_of_ram() {
    // Every frame between RAM and the devices, and the top of physical memory: all ones, wherever RAM lies in the host.
    for frame in [RAM, RAM + 0x1000, 0x1000_0000, 0xbfff_f000, 0x1_0000_0000, 0x7f_ffff_f000] {
        let r = run(|| {
            let mut g = Guest::long();
            g.map(A, frame | P | W);
            g.asm(CODE, |a| {
                let mut top = a.create_label();
                a.mov(ebp, 10)?;
                a.mov(rdi, A)?;
                a.set_label(&mut top)?;
                a.mov(qword_ptr(rdi + 8), rbp)?;
                a.mov(rax, qword_ptr(rdi + 8))?;
                a.movups(xmm0, xmmword_ptr(rdi))?;
                a.movups(xmmword_ptr(rdi + 16), xmm0)?;
                a.dec(ebp)?;
                a.jnz(top)?;
                a.movq(rbx, xmm0)?;
                a.hlt()
            });
            g
        });
        assert_eq!((r.gpr[0], r.gpr[3], r.seen.len()), (u64::MAX, u64::MAX, 0), "{frame:#x}");
    }
}

#[test]
fn test_reserved_physical_address_bits_fault() {
    // 39 physical address bits (CPUID.80000008H): bit 39 of an entry is reserved.
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(rdi, A)?;
            a.mov(rax, qword_ptr(rdi))
        });
        g.map(A, 1 << 39 | P | W);
        g
    });
    assert_eq!(r.page_fault(), (pf::P | 8, CODE + 10, A));
}

#[test]
fn test_data_wraps_at_4_gib_in_flat_32_bit_code() {
    // An access that wraps a 4-GiB limit may fault or wrap (SDM vol. 3A, 5.3); ours wraps.
    let r = run(|| {
        let mut g = Guest::flat32();
        g.map(0xffff_f000, FA | P | W);
        g.put(FA + 0xffc, 0x4433_2211u32.to_le_bytes());
        g.put(0, 0x8877_6655u32.to_le_bytes());
        g.asm(CODE, |a| {
            let mut top = a.create_label();
            a.mov(ebp, 30)?;
            a.mov(ebx, -2)?;
            a.mov(esi, 0x10)?;
            a.set_label(&mut top)?;
            a.mov(eax, dword_ptr(ebx))?;
            a.mov(ecx, dword_ptr(esi - 0x14))?;
            // An effective address wraps by itself.
            a.mov(edx, dword_ptr(ebx + esi * 1 - 0xe))?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.mov(dword_ptr(ebx), 0x1234_5678)?;
            a.hlt()
        });
        g
    });
    assert_eq!(r.seen, []);
    assert_eq!((r.gpr[0], r.gpr[1], r.gpr[2]), (0x6655_4433, 0x4433_2211, 0x8877_6655));
    assert_eq!((r.u32(FA + 0xffc), r.u32(0)), (0x5678_2211, 0x8877_1234));
}

#[test]
fn test_wrapping_store_faults_before_it_writes_anything() {
    let r = run(|| {
        let mut g = Guest::flat32();
        g.map(0xffff_f000, FA | P | W);
        g.map(0, P);
        g.put(FA + 0xffc, [0xee; 4]);
        g.asm(CODE, |a| {
            a.mov(ebx, -2)?;
            a.mov(dword_ptr(ebx), 0x1234_5678)
        });
        g
    });
    assert_eq!(r.page_fault(), (pf::P | pf::W, CODE + 5, 0));
    assert_eq!(r.u32(FA + 0xffc), 0xeeee_eeee);
}

#[test]
fn test_code_at_the_top_of_32_bit_linear_memory_goes_on_at_zero() {
    let r = run(|| {
        let mut g = Guest::flat32().program(|a| {
            a.mov(ebp, 30)?;
            a.mov(esi, -8)?;
            a.jmp(esi)
        });
        g.map(0xffff_f000, FA | P | W);
        g.put(FA + 0xff8, [0xff, 0xc3, 0xff, 0xc3, 0xff, 0xc3, 0xff, 0xc3]);
        g.asm(0, |a| {
            let mut end = a.create_label();
            a.dec(ebp)?;
            a.jz(end)?;
            a.jmp(esi)?;
            a.set_label(&mut end)?;
            a.hlt()
        });
        g
    });
    assert_eq!((r.gpr[3], r.seen.len()), (120, 0));
}

#[test]
fn test_branches_wrap_at_4_gib_in_32_bit_code() {
    let r = run(|| {
        let mut g = Guest::flat32().program(|a| {
            a.mov(ebp, 30)?;
            a.mov(esi, 0xffff_fffcu32)?;
            a.jmp(esi)
        });
        g.map(0xffff_f000, FA | P | W);
        // jmp short +0x10, at FFFFFFFC: to 0xe; back with jmp short to FFFFFFFC.
        g.put(FA + 0xffc, [0xeb, 0x10]);
        g.put(0xe, [0xff, 0xc3, 0x4d, 0x74, 0x02, 0xeb, 0xe7, 0xf4]);
        g
    });
    assert_eq!((r.gpr[3], r.gpr[5], r.seen.len()), (30, 0, 0));
}

#[test]
fn test_data_wraps_at_the_top_of_64_bit_linear_memory() {
    let r = run(|| {
        let mut g = Guest::long();
        g.map(0xffff_ffff_ffff_f000, FA | P | W);
        g.put(FA + 0xffc, 0x4433_2211u32.to_le_bytes());
        g.put(0, 0x8877_6655u32.to_le_bytes());
        g.asm(CODE, |a| {
            let mut top = a.create_label();
            a.mov(ebp, 30)?;
            a.mov(rbx, -4i64 as u64)?;
            a.set_label(&mut top)?;
            // Both ends are canonical.
            a.mov(rax, qword_ptr(rbx))?;
            a.mov(ecx, dword_ptr(rbx))?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        g
    });
    assert_eq!((r.gpr[0], r.gpr[1], r.seen.len()), (0x8877_6655_4433_2211, 0x4433_2211, 0));
}

#[test]
fn test_straddling_store_into_a_read_only_page_writes_nothing() {
    let r = run(|| {
        let mut g = Guest::long();
        g.map(A, FA | P | W);
        g.map(A + 0x1000, (FA + 0x1000) | P);
        g.put(FA + 0xff8, [0xee; 16]);
        g.asm(CODE, |a| {
            let mut top = a.create_label();
            a.mov(rdi, A + 0xff0)?;
            a.mov(ebp, 9)?;
            a.set_label(&mut top)?;
            // The ninth straddles.
            a.mov(qword_ptr(rdi), rbp)?;
            a.inc(rdi)?;
            a.dec(ebp)?;
            a.jmp(top)
        });
        g
    });
    let (error, _, at) = r.page_fault();
    assert_eq!((error, at, r.gpr[7]), (pf::P | pf::W, A + 0x1000, A + 0xff9));
    // The eighth and what came before are there, of the tenth nothing.
    assert_eq!(r.u64(FA + 0xff8), 1);
    assert_eq!(r.u64(FA + 0x1000), 0xeeee_eeee_eeee_eeee);
}
