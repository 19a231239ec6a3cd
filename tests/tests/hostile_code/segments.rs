//! 32-bit code under segments that are not flat: bases, limits, expand-down, overrides, the code segment's limit; and
//! FS and GS bases in 64-bit code. Each access is first made often where it is right.

use super::machine::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Access bytes of data segments at DPL 0: read/write, read-only, expand-down.
const RW: u8 = 0x93;
const RO: u8 = 0x91;
const DOWN: u8 = 0x97;
/// Flags of descriptors: 32-bit, page granularity.
const BIG: u8 = 4;
const PAGES: u8 = 8;

/// Base of the segments.
const BASE: u32 = DATA as u32;

/// A guest that loads DS with a descriptor and does `access` with EBX = `good` 30 times, then with EBX = `bad`.
/// Gives the exception and how often ECX was incremented after the access.
fn access(limit: u32, kind: u8, flags: u8, good: u32, bad: u32, access: Build) -> (u64, u64, u64) {
    const AT: u64 = 0x9000;
    let r = run(|| {
        let mut g = Guest::flat32();
        let ds_ = g.descriptor(0, BASE, limit, kind, flags);
        g.asm(CODE, |a| {
            a.mov(eax, i32::from(ds_))?;
            a.mov(ds, eax)?;
            a.mov(ebp, 30)?;
            a.mov(ebx, good as i32)?;
            a.mov(esi, bad as i32)?;
            a.jmp(AT)
        });
        g.asm(AT, |a| {
            access(a)?;
            let mut good = a.create_label();
            a.inc(ecx)?;
            a.dec(ebp)?;
            a.jg(good)?;
            a.mov(ebx, esi)?;
            a.set_label(&mut good)?;
            a.jmp(AT)
        });
        g
    });
    let (vector, error, rip) = r.only();
    assert_eq!(rip, AT);
    (vector, error, r.gpr[1])
}

const READ: Build = |a| a.mov(eax, dword_ptr(ebx));
const WRITE: Build = |a| a.mov(dword_ptr(ebx), eax);
const RMW: Build = |a| a.add(dword_ptr(ebx), eax);
const BYTE: Build = |a| a.mov(al, byte_ptr(ebx));

#[test]
fn test_limit_of_an_expand_up_segment() {
    for f in [READ, WRITE, RMW] {
        assert_eq!(access(0xfff, RW, BIG, 0xffc, 0xffd, f), (13, 0, 30));
        assert_eq!(access(0xfff, RW, BIG, 0, 0xffff_ffff, f), (13, 0, 30));
        assert_eq!(access(0xfff, RW, BIG, 0, 0xffff_fffd, f), (13, 0, 30));
        // In pages.
        assert_eq!(access(1, RW, BIG | PAGES, 0x1ffc, 0x1ffd, f), (13, 0, 30));
    }
    assert_eq!(access(0xfff, RW, BIG, 0xfff, 0x1000, BYTE), (13, 0, 30));
    assert_eq!(access(0, RW, BIG, 0, 1, BYTE), (13, 0, 30));
}

#[test]
fn test_read_only_segment_refuses_writes() {
    const AT: u64 = 0x9000;
    for f in [WRITE, RMW] {
        let r = run(|| {
            let mut g = Guest::flat32();
            let (ok, ro) = (g.descriptor(0, BASE, 0xfff, RW, BIG), g.descriptor(1, BASE, 0xfff, RO, BIG));
            g.asm(CODE, |a| {
                a.mov(ebp, 30)?;
                a.mov(eax, i32::from(ok))?;
                a.mov(ds, eax)?;
                a.jmp(AT)
            });
            g.asm(AT, |a| {
                let mut more = a.create_label();
                f(a)?;
                a.inc(ecx)?;
                a.dec(ebp)?;
                a.jg(more)?;
                a.mov(eax, i32::from(ro))?;
                a.mov(ds, eax)?;
                // Reading is allowed.
                a.mov(edx, dword_ptr(ebx))?;
                a.set_label(&mut more)?;
                a.jmp(AT)
            });
            g
        });
        assert_eq!((r.only(), r.gpr[1]), ((13, 0, AT), 30));
    }
}

#[test]
fn test_expand_down_segments() {
    for f in [READ, WRITE, RMW] {
        // Valid: limit + 1 to FFFFFFFF, or to FFFF without B.
        assert_eq!(access(0xfff, DOWN, BIG, 0x1000, 0xfff, f), (13, 0, 30));
        assert_eq!(access(0xfff, DOWN, BIG, 0x1000, 0, f), (13, 0, 30));
        assert_eq!(access(0xfff, DOWN, 0, 0xfffc, 0xfffd, f), (13, 0, 30));
        assert_eq!(access(0xfff, DOWN, 0, 0xfffc, 0x1_0000, f), (13, 0, 30));
        assert_eq!(access(0xfff, DOWN, 0, 0x1000, 0xffd, f), (13, 0, 30));
    }
    // With B the upper end is FFFFFFFF, where BASE - 1 is.
    assert_eq!(access(0xfff, DOWN, BIG, 0xffff_ffff, 0xfff, BYTE), (13, 0, 30));
}

#[test]
fn test_segment_base_wraps_at_4_gib() {
    // Offset FFFFF000 of a segment at BASE is BASE - 0x1000.
    let r = run(|| {
        let mut g = Guest::flat32();
        let s = g.descriptor(0, BASE, 0xfffff, RW, BIG | PAGES);
        g.asm(CODE, |a| {
            let mut top = a.create_label();
            a.mov(eax, i32::from(s))?;
            a.mov(fs, eax)?;
            a.mov(ebp, 30)?;
            a.mov(ebx, 0xffff_f000u32)?;
            a.set_label(&mut top)?;
            a.inc(dword_ptr(ebx + 0x10).fs())?;
            a.inc(dword_ptr(ebx + 0x1010).fs())?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.hlt()
        });
        g.put(DATA - 0x1000 + 0x10, [0; 4]);
        g
    });
    assert_eq!((r.u32(DATA - 0x1000 + 0x10), r.u32(DATA + 0x10), r.seen.len()), (30, 30, 0));
}

#[test]
fn test_stack_segment_limit_is_a_stack_fault() {
    let r = run(|| {
        let mut g = Guest::flat32();
        let s = g.descriptor(0, 0, STACK as u32 + 0xfff, RW, BIG);
        g.asm(CODE, |a| {
            let mut top = a.create_label();
            a.mov(eax, i32::from(s))?;
            a.mov(ss, eax)?;
            a.mov(ebp, (STACK + 0xffc) as i32)?;
            a.mov(ecx, 30)?;
            a.set_label(&mut top)?;
            a.mov(eax, dword_ptr(ebp))?;
            a.inc(edx)?;
            a.dec(ecx)?;
            a.jnz(top)?;
            a.inc(ebp)?;
            a.inc(ecx)?;
            a.jmp(top)
        });
        g
    });
    let top = CODE + 5 + 2 + 5 + 5;
    assert_eq!((r.only(), r.gpr[2]), ((12, 0, top), 30));
}

#[test]
fn test_null_selector() {
    let r = run(|| {
        Guest::flat32().program(|a| {
            let mut top = a.create_label();
            a.mov(ebx, DATA as i32)?;
            a.mov(ecx, 30)?;
            a.set_label(&mut top)?;
            a.mov(eax, dword_ptr(ebx).gs())?;
            a.inc(edx)?;
            a.dec(ecx)?;
            a.jnz(top)?;
            a.xor(eax, eax)?;
            a.mov(gs, eax)?;
            a.jmp(top)
        })
    });
    assert_eq!((r.only(), r.gpr[2]), ((13, 0, CODE + 10), 30));
}

#[test]
fn test_code_segment_limit_in_straight_code() {
    // The same bytes under a flat CS and under one whose limit cuts them: the block may not be shared.
    const AT: u64 = 0x9000;
    let r = run(|| {
        let mut g = Guest::flat32();
        // The last byte that may be fetched is the second INC's last.
        let cs_ = g.descriptor(0, 0, AT as u32 + 3, 0x9b, BIG);
        g.asm(CODE, |a| {
            a.mov(ebp, 30)?;
            a.mov(esi, CODE as i32 + 0x100)?;
            a.jmp(AT)
        });
        g.asm(CODE + 0x100, |a| {
            let mut end = a.create_label();
            a.dec(ebp)?;
            a.jz(end)?;
            a.jmp(AT)?;
            a.set_label(&mut end)?;
            a.push(i32::from(cs_))?;
            a.push(AT as i32)?;
            a.retf()
        });
        g.asm(AT, |a| {
            // inc ebx, in two bytes; twice.
            a.db(&[0xff, 0xc3, 0xff, 0xc3])?;
            a.inc(ecx)?;
            a.jmp(esi)
        });
        g
    });
    assert_eq!(r.only(), (13, 0, AT + 4));
    assert_eq!((r.gpr[3], r.gpr[1]), (62, 30));
}

#[test]
fn test_code_segment_limit_inside_an_instruction_and_at_a_branch() {
    const AT: u64 = 0x9000;
    for (limit, code, rip) in [
        // Inside MOV EAX, imm32.
        (AT + 6, &[0xff, 0xc3, 0xb8, 1, 2, 3, 4, 0xf4][..], AT + 2 + 5),
        (AT + 5, &[0xff, 0xc3, 0xb8, 1, 2, 3, 4, 0xf4][..], AT + 2),
        // A jump to just beyond the limit, which is that of the jump.
        (AT + 3, &[0xff, 0xc3, 0xeb, 0, 0xf4][..], AT + 2),
        (AT + 3, &[0xff, 0xc3, 0xeb, 0x7f, 0xf4][..], AT + 2),
    ] {
        let r = run(|| {
            let mut g = Guest::flat32();
            let cs_ = g.descriptor(0, 0, limit as u32, 0x9b, BIG);
            g.asm(CODE, |a| {
                a.push(i32::from(cs_))?;
                a.push(AT as i32)?;
                a.retf()
            });
            g.put(AT, code);
            g
        });
        assert_eq!((r.only(), r.gpr[3]), ((13, 0, rip), 1), "limit {limit:#x}");
    }
}

#[test]
fn test_code_segment_with_a_base() {
    const AT: u64 = 0x9000;
    let r = run(|| {
        let mut g = Guest::flat32();
        let cs_ = g.descriptor(0, AT as u32, 0xfff, 0x9b, BIG);
        g.asm(CODE, |a| {
            a.mov(ebp, 30)?;
            a.push(i32::from(cs_))?;
            a.push(0)?;
            a.retf()
        });
        // Near branches stay in the segment; CS: reads it, from its base on.
        g.put(
            AT,
            assemble(32, 0, |a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.add(ebx, dword_ptr(0x100).cs())?;
                a.dec(ebp)?;
                a.jnz(top)?;
                a.mov(dword_ptr(0x100).cs(), ebx)
            }),
        );
        g.put(AT + 0x100, 3u32.to_le_bytes());
        g
    });
    // A code segment is never writable.
    assert_eq!((r.only(), r.gpr[3]), ((13, 0, 7 + 1 + 2), 90));
}

#[test]
fn test_fs_and_gs_bases_in_64_bit_code() {
    let r = run(|| {
        let mut g = Guest::long();
        g.vm.vcpus[0].seg[4].base = DATA;
        g.vm.vcpus[0].seg[5].base = 0u64.wrapping_sub(0x1000);
        g.refresh();
        g.asm(CODE, |a| {
            let mut top = a.create_label();
            a.mov(ebp, 30)?;
            a.mov(ebx, (DATA + 0x1000) as i32)?;
            a.set_label(&mut top)?;
            a.inc(dword_ptr(0x10).fs())?;
            // Wraps at 2^64.
            a.inc(dword_ptr(rbx + 0x20).gs())?;
            a.dec(ebp)?;
            a.jnz(top)?;
            // A base that makes the address non-canonical: DS and FS alike give #GP.
            a.mov(rbx, 0x7fff_ffff_f000u64)?;
            a.mov(eax, dword_ptr(rbx + 0x1000 - 0x7_1000).fs())
        });
        g
    });
    assert_eq!((r.u32(DATA + 0x10), r.u32(DATA + 0x20)), (30, 30));
    let (vector, error, _) = r.only();
    assert_eq!((vector, error), (13, 0));
}

#[test]
fn test_non_canonical_data_addresses() {
    for (bad, vector) in [(0x8000_0000_0000u64, 13), (0x7fff_ffff_fffd, 13), (0xffff_7fff_ffff_ffff, 13)] {
        // By DS and, with RSP or RBP as the base, by SS.
        for stack in [false, true] {
            let r = run(|| {
                Guest::long().program(|a| {
                    let mut top = a.create_label();
                    a.mov(rbx, DATA)?;
                    a.mov(rbp, DATA)?;
                    a.mov(ecx, 30)?;
                    a.set_label(&mut top)?;
                    match stack {
                        false => a.mov(eax, dword_ptr(rbx))?,
                        true => a.mov(eax, dword_ptr(rbp))?,
                    }
                    a.dec(ecx)?;
                    a.jnz(top)?;
                    a.mov(rbx, bad)?;
                    a.mov(rbp, bad)?;
                    a.inc(ecx)?;
                    a.jmp(top)
                })
            });
            let (v, error, _) = r.only();
            assert_eq!((v, error), (if stack { 12 } else { vector }, 0), "{bad:#x}");
        }
    }
}
