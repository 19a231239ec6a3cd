//! Branches to where nothing may execute: non-canonical addresses, beyond the code segment's limit.

use super::machine::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Not canonical, with the low 48 bits of a page that is mapped and executable.
const ALIASES: [u64; 4] =
    [0x0001_0000_0000_9000, 0x8000_0000_0000_9000, 0xffff_0000_0000_9000, 0x0000_8000_0000_0000];

/// Runs `hot` often with RAX = 0x9000, which comes back through RSI, and then once with RAX = `bad`, expecting #GP(0)
/// at the label it sets, with `stack` bytes on the stack and nothing pushed or popped.
fn faults(bad: u64, stack: u64, hot: impl Fn(&mut CodeAssembler, &mut CodeLabel) -> Result<(), IcedError>) {
    let at = std::cell::Cell::new(0);
    let r = run(|| {
        let mut g = Guest::long();
        g.put(0x9000, [0xff, 0xe6]);
        let mut a = CodeAssembler::new(64).unwrap();
        let (mut top, mut back, mut insn) = (a.create_label(), a.create_label(), a.create_label());
        let mut build = || -> Result<(), IcedError> {
            a.mov(ebp, 30)?;
            a.mov(eax, 0x9000)?;
            a.lea(rsi, ptr(back))?;
            a.set_label(&mut top)?;
            a.mov(rsp, STACK)?;
            hot(&mut a, &mut insn)?;
            a.set_label(&mut back)?;
            a.dec(ebp)?;
            a.jg(top)?;
            a.mov(rax, bad)?;
            a.jmp(top)
        };
        build().unwrap();
        let code =
            a.assemble_options(CODE, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS).unwrap();
        at.set(code.label_ip(&insn).unwrap());
        g.put(CODE, code.inner.code_buffer);
        g
    });
    assert_eq!(r.only(), (13, 0, at.get()), "target {bad:#x}");
    assert_eq!((r.seen[0].rsp, r.seen[0].cs), (STACK - stack, sel::CODE64.into()), "target {bad:#x}");
    assert_eq!(r.gpr[5] as u32, 0, "only the last round faulted");
}

#[test]
fn test_jmp_to_a_non_canonical_address() {
    for bad in ALIASES {
        faults(bad, 0, |a, insn| {
            a.set_label(insn)?;
            a.jmp(rax)
        });
    }
}

#[test]
fn test_jmp_through_memory_to_a_non_canonical_address() {
    for bad in ALIASES {
        faults(bad, 0, |a, insn| {
            a.mov(qword_ptr(DATA), rax)?;
            a.set_label(insn)?;
            a.jmp(qword_ptr(DATA))
        });
    }
}

#[test]
fn test_call_to_a_non_canonical_address_pushes_nothing() {
    for bad in ALIASES {
        faults(bad, 0, |a, insn| {
            a.mov(dword_ptr(STACK - 8), 0)?;
            a.set_label(insn)?;
            a.call(rax)
        });
    }
}

#[test]
fn test_ret_to_a_non_canonical_address() {
    for bad in ALIASES {
        faults(bad, 8, |a, insn| {
            a.push(rax)?;
            a.set_label(insn)?;
            a.ret()
        });
        faults(bad, 8, |a, insn| {
            a.push(rax)?;
            a.set_label(insn)?;
            a.ret_1(16)
        });
    }
}

#[test]
fn test_iret_to_a_non_canonical_address() {
    for bad in ALIASES {
        faults(bad, 40, |a, insn| {
            a.push(i32::from(sel::DATA))?;
            a.push(STACK as i32)?;
            a.push(2)?;
            a.push(i32::from(sel::CODE64))?;
            a.push(rax)?;
            a.set_label(insn)?;
            a.iretq()
        });
    }
}

#[test]
fn test_far_return_to_a_non_canonical_address() {
    for bad in ALIASES {
        faults(bad, 16, |a, insn| {
            a.push(i32::from(sel::CODE64))?;
            a.push(rax)?;
            a.nop()?;
            a.set_label(insn)?;
            // RETFQ.
            a.db(&[0x48, 0xcb])
        });
    }
}

#[test]
fn test_sysret_to_a_non_canonical_address_faults_at_cpl_0() {
    for bad in ALIASES {
        let r = run(|| {
            let mut g = Guest::long();
            g.vm.vcpus[0].msr.star = 0x18 << 48 | 0x08 << 32;
            g.asm(CODE, |a| {
                a.mov(rcx, bad)?;
                a.mov(r11d, 2)?;
                a.sysretq()
            });
            g
        });
        assert_eq!(r.only(), (13, 0, CODE + 16));
        // Raised before the switch: with the supervisor's CS.
        assert_eq!((r.seen[0].cs, r.seen[0].rsp), (sel::CODE64.into(), STACK));
    }
}

/// The last page below the non-canonical range.
const EDGE: u64 = 0x7fff_ffff_f000;

#[test]
fn test_running_off_the_canonical_range() {
    // The page that has the same 48 bits as the next linear address is mapped: it must not be what is fetched.
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(rax, EDGE + 0xffc)?;
            a.jmp(rax)
        });
        g.map(EDGE, 0x20_0000 | P | W);
        g.map(0xffff_8000_0000_0000, 0x20_1000 | P | W);
        g.put(0x20_0ffc, [0xff, 0xc3, 0xff, 0xc3]);
        g.put(0x20_1000, [0xf4]);
        g.asm(CODE + 0x800, |a| {
            a.mov(rax, 0xffff_8000_0000_0000u64)?;
            a.jmp(rax)
        });
        g
    });
    assert_eq!(r.only(), (13, 0, EDGE + 0x1000));
    assert_eq!(r.gpr[3], 2);
}

#[test]
fn test_upper_half_is_executed_only_under_its_own_address() {
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            let mut back = a.create_label();
            let mut top = a.create_label();
            a.mov(ebp, 20)?;
            a.lea(rsi, ptr(back))?;
            a.mov(rax, 0xffff_8000_0000_0000u64)?;
            a.set_label(&mut top)?;
            a.jmp(rax)?;
            a.set_label(&mut back)?;
            a.dec(ebp)?;
            a.jnz(top)?;
            a.mov(rax, EDGE + 0xffe)?;
            a.jmp(rax)
        });
        g.map(EDGE, 0x20_0000 | P | W);
        g.map(0xffff_8000_0000_0000, 0x20_1000 | P | W);
        g.put(0x20_0ffe, [0xff, 0xc3]);
        g.put(0x20_1000, [0xff, 0xc3, 0xff, 0xe6]);
        g
    });
    assert_eq!(r.only(), (13, 0, EDGE + 0x1000));
    assert_eq!(r.gpr[3], 21);
}

#[test]
fn test_instruction_that_straddles_the_edge_of_the_canonical_range() {
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(rax, EDGE + 0xffd)?;
            a.jmp(rax)
        });
        g.map(EDGE, 0x20_0000 | P | W);
        g.map(0xffff_8000_0000_0000, 0x20_1000 | P | W);
        g.put(0x20_0ffd, [0xff, 0xc3, 0xb9]);
        g
    });
    assert_eq!(r.only(), (13, 0, EDGE + 0xfff));
    assert_eq!(r.gpr[3], 1);
}

#[test]
fn test_syscall_returns_to_just_beyond_the_canonical_range() {
    // SYSCALL as the last instruction below the edge: RCX is not canonical, and SYSRET to it faults.
    let r = run(|| {
        let mut g = Guest::long().program(|a| {
            a.mov(rax, EDGE + 0xffe)?;
            a.jmp(rax)
        });
        g.vm.vcpus[0].msr.star = 0x18 << 48 | 0x08 << 32;
        g.vm.vcpus[0].msr.lstar = 0x9000;
        g.map(EDGE, 0x20_0000 | P | W);
        g.put(0x20_0ffe, [0x0f, 0x05]);
        g.asm(0x9000, |a| a.sysretq());
        g
    });
    assert_eq!(r.only(), (13, 0, 0x9000));
    assert_eq!(r.gpr[1], EDGE + 0x1000);
}
