//! The sensitive but unprivileged IA-32 instructions, which a trap-and-emulate monitor gets wrong: each at CPL 0 and
//! CPL 3, in 32-bit protected mode.
#![allow(clippy::unwrap_used)]

mod protected;

use protected::{CODE, DATA, GATE_TARGET, GDT, HANDLER, IDT, Machine, STACK0, STACK3, sel};
use retrovisor_core::Exception;
use retrovisor_core::vcpu::flags::bit;
use retrovisor_core::vcpu::{Seg, cr0, cr4, gpr};

/// Executes `code` at both levels, with `setup` and `check` told the CPL.
fn both(
    code: &[u8],
    setup: impl Fn(&mut Machine, u8),
    check: impl Fn(&mut Machine, Result<(), Exception>, u8),
) {
    for cpl in [0, 3] {
        let mut m = Machine::protected(cpl, code);
        setup(&mut m, cpl);
        let r = m.execute();
        check(&mut m, r, cpl);
    }
}

fn nothing(_: &mut Machine, _: u8) {}

/// Executes a store to [`DATA`] (disp32 form) at both levels; at CPL 3 also under UMIP, which makes it #GP(0).
fn stores(code: &[u8], check: impl Fn(&Machine)) {
    both(code, nothing, |m, r, _| {
        assert_eq!(r, Ok(()));
        check(m);
    });
    both(
        code,
        |m, _| m.cpu.cr4 |= cr4::UMIP,
        |m, r, cpl| {
            if cpl == 0 {
                assert_eq!(r, Ok(()));
                check(m);
            } else {
                assert_eq!(r, Err(Exception::gp(0)));
                assert_eq!(m.cpu.rip, CODE);
            }
        },
    );
}

#[test]
fn test_sgdt() {
    stores(&[0x0f, 0x01, 0x05, 0, 0x80, 0x03, 0], |m| {
        assert_eq!((m.get::<u16>(DATA), m.get::<u32>(DATA + 2)), (0xff, GDT as u32));
    });
}

#[test]
fn test_sidt() {
    stores(&[0x0f, 0x01, 0x0d, 0, 0x80, 0x03, 0], |m| {
        assert_eq!((m.get::<u16>(DATA), m.get::<u32>(DATA + 2)), (0x7ff, IDT as u32));
    });
}

#[test]
fn test_sldt() {
    stores(&[0x0f, 0x00, 0x05, 0, 0x80, 0x03, 0], |m| assert_eq!(m.get::<u32>(DATA), u32::from(sel::LDT)));
}

#[test]
fn test_str() {
    stores(&[0x0f, 0x00, 0x0d, 0, 0x80, 0x03, 0], |m| assert_eq!(m.get::<u32>(DATA), u32::from(sel::TSS)));
}

#[test]
fn test_smsw() {
    // smsw eax: all 32 bits of CR0.
    stores(&[0x0f, 0x01, 0xe0], |m| assert_eq!(m.cpu.gpr[gpr::RAX], m.cpu.cr0));
    // smsw [mem]: 16 bits.
    stores(&[0x0f, 0x01, 0x25, 0, 0x80, 0x03, 0], |m| {
        assert_eq!(m.get::<u32>(DATA), (m.cpu.cr0 & 0xffff) as u32);
        assert_ne!(m.cpu.cr0 & cr0::CD, 0);
    });
}

#[test]
fn test_pushf_shows_real_iopl_and_if_and_hides_rf_vm() {
    both(
        &[0x9c],
        |m, _| m.cpu.flags.0 |= bit::IF | bit::IOPL & (1 << 12) | bit::RF,
        |m, r, _| {
            assert_eq!(r, Ok(()));
            assert_eq!(u64::from(m.stack(0)), 2 | bit::IF | 1 << 12);
        },
    );
}

#[test]
fn test_popf_ignores_if_and_iopl_without_privilege() {
    let image = (bit::IF | bit::IOPL | bit::CF | bit::VM | bit::RF | bit::VIF | bit::VIP | 2) as u32;
    both(
        &[0x9d],
        |m, _| m.put(m.cpu.gpr[gpr::RSP], image),
        |m, r, cpl| {
            assert_eq!(r, Ok(()));
            let expect = if cpl == 0 { bit::IF | bit::IOPL } else { 0 };
            assert_eq!(m.cpu.flags.0, 2 | bit::CF | expect);
        },
    );
    // IOPL 3: IF can be changed at CPL 3, IOPL still not.
    let mut m = Machine::protected(3, &[0x9d]);
    m.cpu.flags.0 |= bit::IOPL;
    m.put(STACK3, bit::IF as u32);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.cpu.flags.0, 2 | bit::IF | bit::IOPL);
}

/// Runs a two-operand descriptor query `0F op C3` (reg EAX, rm EBX) on `selector`; ZF and EAX.
fn query(op: u8, cpl: u8, selector: u16) -> (bool, u64) {
    let mut m = Machine::protected(cpl, &[0x0f, op, 0xc3]);
    m.cpu.gpr[gpr::RAX] = 0x5555_5555;
    m.cpu.gpr[gpr::RBX] = selector.into();
    assert_eq!(m.execute(), Ok(()));
    (m.flag(bit::ZF), m.cpu.gpr[gpr::RAX])
}

#[test]
fn test_lar() {
    assert_eq!(query(0x02, 0, sel::DATA0), (true, 0x00c0_9300));
    assert_eq!(query(0x02, 3, sel::DATA0), (false, 0x5555_5555));
    assert_eq!(query(0x02, 3, sel::DATA3), (true, 0x00c0_f300));
    assert_eq!(query(0x02, 3, sel::CONFORMING), (true, 0x00c0_9f00));
    assert_eq!(query(0x02, 3, sel::GATE), (true, 0xec00));
    assert_eq!(query(0x02, 0, 0), (false, 0x5555_5555));
    assert_eq!(query(0x02, 0, sel::BEYOND), (false, 0x5555_5555));
}

#[test]
fn test_lsl() {
    assert_eq!(query(0x03, 0, sel::DATA0), (true, 0xffff_ffff));
    assert_eq!(query(0x03, 3, sel::DATA0), (false, 0x5555_5555));
    assert_eq!(query(0x03, 3, sel::READONLY), (true, 0x12345));
    assert_eq!(query(0x03, 0, sel::TSS), (true, 0x3ff));
    // A call gate has no limit.
    assert_eq!(query(0x03, 0, sel::GATE & !3), (false, 0x5555_5555));
}

/// Runs VERR (reg field 4) or VERW (5) on `selector`.
fn verify(field: u8, cpl: u8, selector: u16) -> bool {
    let mut m = Machine::protected(cpl, &[0x0f, 0x00, 0xc3 | field << 3]);
    m.cpu.gpr[gpr::RBX] = selector.into();
    assert_eq!(m.execute(), Ok(()));
    m.flag(bit::ZF)
}

#[test]
fn test_verr() {
    assert!(verify(4, 0, sel::DATA0) && !verify(4, 3, sel::DATA0));
    assert!(verify(4, 3, sel::DATA3) && verify(4, 3, sel::CONFORMING));
    assert!(!verify(4, 0, sel::EXEC_ONLY) && !verify(4, 0, sel::TSS) && !verify(4, 0, 0));
    // RPL 3 lowers the privilege of CPL 0.
    assert!(!verify(4, 0, sel::DATA0 | 3));
}

#[test]
fn test_verw() {
    assert!(verify(5, 0, sel::DATA0) && !verify(5, 3, sel::DATA0));
    assert!(verify(5, 3, sel::DATA3) && !verify(5, 3, sel::READONLY));
    assert!(!verify(5, 0, sel::CODE0));
}

#[test]
fn test_push_segment_shows_cpl() {
    both(&[0x0e], nothing, |m, r, cpl| {
        assert_eq!(r, Ok(()));
        assert_eq!(m.stack(0) as u16, if cpl == 0 { sel::CODE0 } else { sel::CODE3 });
    });
}

#[test]
fn test_pop_segment() {
    both(
        &[0x07],
        |m, _| m.put(m.cpu.gpr[gpr::RSP], u32::from(sel::DATA0)),
        |m, r, cpl| {
            if cpl == 0 {
                assert_eq!((r, m.selector(Seg::Es)), (Ok(()), sel::DATA0));
                assert_eq!(m.cpu.gpr[gpr::RSP], STACK0 + 4);
            } else {
                assert_eq!((r, m.selector(Seg::Es)), (Err(Exception::gp(0x10)), sel::DATA3));
                assert_eq!(m.cpu.gpr[gpr::RSP], STACK3);
            }
        },
    );
}

#[test]
fn test_mov_segment() {
    // mov eax, cs shows the CPL.
    both(&[0x8c, 0xc8], nothing, |m, r, cpl| {
        assert_eq!(r, Ok(()));
        assert_eq!(m.cpu.gpr[gpr::RAX], u64::from(if cpl == 0 { sel::CODE0 } else { sel::CODE3 }));
    });
    // mov ds, eax.
    let load = |cpl, selector: u16| {
        let mut m = Machine::protected(cpl, &[0x8e, 0xd8]);
        m.cpu.gpr[gpr::RAX] = selector.into();
        m.execute()
    };
    assert_eq!(load(0, sel::DATA0), Ok(()));
    assert_eq!(load(3, sel::DATA0), Err(Exception::gp(0x10)));
    assert_eq!(load(3, 0), Ok(()));
    assert_eq!(load(0, sel::ABSENT), Err(Exception::np(0x40)));
    assert_eq!(load(0, sel::EXEC_ONLY), Err(Exception::gp(0x58)));
    assert_eq!(load(0, sel::BEYOND), Err(Exception::gp(0x1f0)));
    assert_eq!(load(3, sel::LDT_DATA), Ok(()));
    assert_eq!(load(0, 0x27), Err(Exception::gp(0x24)));
    // mov ss, eax.
    let stack = |cpl, selector: u16| {
        let mut m = Machine::protected(cpl, &[0x8e, 0xd0]);
        m.cpu.gpr[gpr::RAX] = selector.into();
        m.execute()
    };
    assert_eq!(stack(0, sel::DATA0), Ok(()));
    assert_eq!(stack(0, 0), Err(Exception::gp(0)));
    assert_eq!(stack(0, sel::DATA3), Err(Exception::gp(0x20)));
    assert_eq!(stack(3, sel::DATA3), Ok(()));
    assert_eq!(stack(3, sel::READONLY), Err(Exception::gp(0x48)));
}

/// `opcode` followed by a 16:32 far pointer.
fn far(opcode: u8, selector: u16, offset: u32) -> Vec<u8> {
    let mut code = vec![opcode];
    code.extend(offset.to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

#[test]
fn test_far_call() {
    // Same level: selector and offset are pushed, CPL shows in the pushed CS.
    for (cpl, cs, sp) in [(0, sel::CODE0, STACK0), (3, sel::CODE3, STACK3)] {
        let mut m = Machine::protected(cpl, &far(0x9a, cs, 0x12345));
        assert_eq!(m.execute(), Ok(()));
        assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP]), (0x12345, sp - 8));
        assert_eq!((m.stack(0), m.stack(1)), (CODE as u32 + 7, cs.into()));
    }
    // Through a gate: from CPL 3 onto the ring-0 stack, from CPL 0 on the same one.
    both(&far(0x9a, sel::GATE, 0xdead), nothing, |m, r, cpl| {
        assert_eq!(r, Ok(()));
        assert_eq!((m.cpu.rip, m.selector(Seg::Cs), m.cpu.mode.cpl), (GATE_TARGET, sel::CODE0, 0));
        let pushed = if cpl == 0 { 2 } else { 4 };
        assert_eq!(m.cpu.gpr[gpr::RSP], STACK0 - 4 * pushed);
        if cpl == 3 {
            assert_eq!((m.stack(2), m.stack(3)), (STACK3 as u32, sel::DATA3.into()));
        }
    });
    // Ring-0 code is out of reach without the gate.
    let mut m = Machine::protected(3, &far(0x9a, sel::CODE0, 0));
    assert_eq!(m.execute(), Err(Exception::gp(8)));
    assert_eq!(m.cpu.gpr[gpr::RSP], STACK3);
}

#[test]
fn test_far_jump() {
    both(&far(0xea, sel::CONFORMING, 0x777), nothing, |m, r, cpl| {
        assert_eq!((r, m.cpu.rip, m.cpu.mode.cpl), (Ok(()), 0x777, cpl));
        assert_eq!(m.selector(Seg::Cs), sel::CONFORMING | u16::from(cpl));
    });
    both(&far(0xea, sel::CODE0, 0x777), nothing, |m, r, cpl| {
        if cpl == 0 {
            assert_eq!((r, m.cpu.rip), (Ok(()), 0x777));
        } else {
            assert_eq!((r, m.cpu.rip), (Err(Exception::gp(8)), CODE));
        }
    });
    // A gate cannot be jumped through to a more privileged segment.
    both(&far(0xea, sel::GATE, 0), nothing, |m, r, cpl| {
        if cpl == 0 {
            assert_eq!((r, m.cpu.rip), (Ok(()), GATE_TARGET));
        } else {
            assert_eq!(r, Err(Exception::gp(8)));
        }
    });
}

#[test]
fn test_int_n() {
    // DPL 3 gate: allowed at both levels; a trap gate leaves IF alone.
    both(
        &[0xcd, 0x80],
        |m, _| m.cpu.flags.0 |= bit::IF,
        |m, r, cpl| {
            assert_eq!((r, m.cpu.rip, m.cpu.mode.cpl), (Ok(()), HANDLER + 16 * 0x80, 0));
            assert!(m.flag(bit::IF));
            assert_eq!(m.stack(0), CODE as u32 + 2);
            assert_eq!(m.stack(1) & 3, u32::from(cpl));
            assert_eq!(m.stack(2), (2 | bit::IF) as u32);
            if cpl == 3 {
                assert_eq!((m.stack(3), m.stack(4)), (STACK3 as u32, sel::DATA3.into()));
            }
        },
    );
    // DPL 0 gate: #GP naming the IDT entry, EXT clear.
    both(
        &[0xcd, 0x30],
        |m, _| m.cpu.flags.0 |= bit::IF,
        |m, r, cpl| {
            if cpl == 0 {
                assert_eq!((r, m.flag(bit::IF)), (Ok(()), false));
            } else {
                assert_eq!((r, m.cpu.rip), (Err(Exception::gp(0x30 << 3 | 2)), CODE));
            }
        },
    );
}

#[test]
fn test_far_return() {
    let frame = |m: &mut Machine, cs: u16| {
        let sp = m.cpu.gpr[gpr::RSP];
        for (n, v) in
            [0x4321, u32::from(cs), STACK3 as u32 - 0x100, sel::DATA3.into()].into_iter().enumerate()
        {
            m.put(sp + 4 * n as u64, v);
        }
    };
    // To CPL 3: the outer stack is loaded, ring-0 data segments are nulled.
    both(
        &[0xcb],
        |m, _| frame(m, sel::CODE3),
        |m, r, cpl| {
            assert_eq!((r, m.cpu.rip, m.cpu.mode.cpl), (Ok(()), 0x4321, 3));
            if cpl == 0 {
                assert_eq!((m.cpu.gpr[gpr::RSP], m.selector(Seg::Ds)), (STACK3 - 0x100, 0));
            } else {
                assert_eq!((m.cpu.gpr[gpr::RSP], m.selector(Seg::Ds)), (STACK3 + 8, sel::DATA3));
            }
        },
    );
    // To CPL 0: never from CPL 3.
    both(
        &[0xcb],
        |m, _| frame(m, sel::CODE0),
        |m, r, cpl| {
            let expect = if cpl == 0 { Ok(()) } else { Err(Exception::gp(8)) };
            assert_eq!((r, m.cpu.mode.cpl), (expect, cpl));
        },
    );
}
