//! Privileged machinery as the manual says: event delivery, double and triple faults, task switches, call gates,
//! IRET, SYSCALL, control registers, MSRs, debug exceptions, port permissions.
#![allow(clippy::unwrap_used)]

mod protected;

use protected::{CODE, DATA, GATE_TARGET, GDT, HANDLER, IDT, Machine, STACK0, STACK3, TSS, TSS2, TSS16, sel};
use protected::{descriptor, gate};
use retrovisor_core::Exception;
use retrovisor_core::exception::vector;
use retrovisor_core::vcpu::cpuid::CpuModel;
use retrovisor_core::vcpu::debug::dr6;
use retrovisor_core::vcpu::flags::bit;
use retrovisor_core::vcpu::segment::{Segment, TableReg};
use retrovisor_core::vcpu::{Activity, Seg, Shadow, cr0, cr4, efer, gpr};

const UD2: [u8; 2] = [0x0f, 0x0b];

fn far(opcode: u8, selector: u16) -> Vec<u8> {
    let mut code = vec![opcode, 0, 0, 0, 0];
    code.extend(selector.to_le_bytes());
    code
}

fn vectors(m: &Machine) -> Vec<u8> {
    m.cpu.fault_chain.iter().map(|e| e.vector).collect()
}

// Delivery

#[test]
fn test_fault_from_cpl3_pushes_error_code_and_rf() {
    let mut m = Machine::protected(3, &[0xfa]);
    assert_eq!(m.step(), Some(Exception::gp(0)));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP]), (HANDLER + 16 * 13, STACK0 - 24));
    let frame: Vec<u32> = (0..6).map(|n| m.stack(n)).collect();
    let flags = (bit::RF | 2) as u32;
    assert_eq!(frame, [0, CODE as u32, sel::CODE3.into(), flags, STACK3 as u32, sel::DATA3.into()]);
    assert_eq!(m.selector(Seg::Ss), sel::DATA0);
}

#[test]
fn test_interrupt_gate_clears_if_tf_nt_rf() {
    let mut m = Machine::protected(0, &[0x90]);
    m.cpu.flags.0 |= bit::IF | bit::TF | bit::NT | bit::RF;
    m.ctx(|c| c.deliver_external(0x20));
    assert_eq!(m.cpu.flags.0, 2);
    assert_eq!(u64::from(m.stack(2)), 2 | bit::IF | bit::TF | bit::NT | bit::RF);
}

#[test]
fn test_286_gate_pushes_words_and_ignores_upper_offset() {
    let mut m = Machine::protected(0, &[0x90]);
    m.put(IDT + 8 * 0x20, gate(sel::CODE0, 0xdead_4444, 0x86, 0));
    m.ctx(|c| c.deliver_external(0x20));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP]), (0x4444, STACK0 - 6));
    assert_eq!(m.get::<u16>(STACK0 - 6), CODE as u16);
}

#[test]
fn test_external_interrupt_wakes_and_clears_shadow() {
    let mut m = Machine::protected(0, &[0xf4]);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.cpu.activity, Activity::Halted);
    m.cpu.shadow = Shadow::Sti;
    m.ctx(|c| c.deliver_external(0x20));
    assert_eq!((m.cpu.activity, m.cpu.shadow), (Activity::Running, Shadow::None));
    assert_eq!(m.stack(0), CODE as u32 + 1);
}

#[test]
fn test_delivery_faults_carry_ext() {
    let mut m = Machine::protected(0, &[0x90]);
    // Not present.
    m.put(IDT + 8 * 0x20, gate(sel::CODE0, 0, 0x0e, 0));
    m.ctx(|c| c.deliver_external(0x20));
    assert_eq!((m.cpu.rip, m.stack(0)), (HANDLER + 16 * 11, 0x20 << 3 | 3));
    // Beyond the limit.
    let mut m = Machine::protected(0, &[0x90]);
    m.cpu.idtr.limit = 0x20 * 8 + 6;
    m.ctx(|c| c.deliver_external(0x20));
    assert_eq!((m.cpu.rip, m.stack(0)), (HANDLER + 16 * 13, 0x20 << 3 | 3));
    // Gate to a data segment.
    let mut m = Machine::protected(0, &[0x90]);
    m.put(IDT + 8 * 0x20, gate(sel::DATA0, 0, 0x8e, 0));
    m.ctx(|c| c.deliver_external(0x20));
    assert_eq!(m.stack(0), u32::from(sel::DATA0) | 1);
}

#[test]
fn test_bad_ring0_stack_is_ts_with_nothing_changed() {
    let mut m = Machine::protected(3, &[0xcd, 0x80]);
    m.put(TSS + 8, u32::from(sel::DATA3));
    assert_eq!(m.execute(), Err(Exception::ts(0x20)));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP], m.cpu.mode.cpl), (CODE, STACK3, 3));
    m.put(TSS + 8, 0u32);
    assert_eq!(m.execute(), Err(Exception::ts(0)));
    m.cpu.tr.limit = 8;
    assert_eq!(m.execute(), Err(Exception::ts(sel::TSS.into())));
}

#[test]
fn test_ring0_stack_overflow_is_ss_with_selector() {
    let mut m = Machine::protected(3, &[0xcd, 0x80]);
    // Expand-down, valid above 0x1fff only.
    m.put(GDT + u64::from(sel::DATA0), descriptor(0, 1, 0x97, 0xc));
    m.put(TSS + 4, 0x2008u32);
    assert_eq!(m.execute(), Err(Exception::ss(sel::DATA0.into())));
    assert_eq!(m.cpu.mode.cpl, 3);
}

#[test]
fn test_double_fault() {
    let mut m = Machine::protected(0, &[0xf7, 0xf1]);
    m.put(IDT, gate(sel::CODE0, 0, 0x0e, 0));
    m.ctx(|c| c.deliver_exception(Exception::de()));
    assert_eq!((m.cpu.rip, m.stack(0)), (HANDLER + 16 * 8, 0));
    assert_eq!(vectors(&m), [vector::DE, vector::NP, vector::DF]);
}

#[test]
fn test_benign_then_contributory_is_serial() {
    let mut m = Machine::protected(0, &UD2);
    m.put(IDT + 8 * 6, gate(sel::CODE0, 0, 0x0e, 0));
    assert_eq!(m.step(), Some(Exception::ud()));
    assert_eq!((m.cpu.rip, m.stack(0)), (HANDLER + 16 * 11, 6 << 3 | 3));
    assert_eq!(vectors(&m), [vector::UD, vector::NP]);
}

#[test]
fn test_triple_fault_shuts_down_and_names_the_chain() {
    let mut m = Machine::protected(3, &[0xfa]);
    m.cpu.idtr.limit = 0;
    m.step();
    assert_eq!(m.cpu.activity, Activity::Shutdown);
    assert_eq!(vectors(&m), [vector::GP, vector::GP, vector::DF, vector::GP]);
}

#[test]
fn test_page_fault_sets_cr2() {
    let mut m = Machine::protected(0, &[0x90]);
    m.ctx(|c| c.deliver_exception(Exception::pf(0x1234_5000, 2)));
    assert_eq!((m.cpu.cr2, m.stack(0)), (0x1234_5000, 2));
}

#[test]
fn test_nmi_blocks_until_iret() {
    let mut m = Machine::protected(0, &[0x90]);
    m.cpu.nmi_pending = true;
    m.ctx(|c| c.deliver_nmi());
    assert!(m.cpu.nmi_blocked && !m.cpu.nmi_pending);
    assert_eq!(m.cpu.rip, HANDLER + 32);
    m.put(m.cpu.rip, 0xcfu8);
    assert_eq!(m.execute(), Ok(()));
    assert!(!m.cpu.nmi_blocked);
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP]), (CODE, STACK0));
}

#[test]
fn test_real_mode_int_and_iret() {
    let mut m = Machine::real(CpuModel::I486);
    m.cpu.seg[Seg::Cs as usize] = Segment::real((CODE >> 4) as u16);
    m.cpu.seg[Seg::Ss as usize] = Segment::real(0x2000);
    m.cpu.gpr[gpr::RSP] = 0x1234_0000;
    m.cpu.flags.0 |= bit::IF | bit::CF;
    m.put(0x21 * 4, 0x4000_0010u32);
    m.put(CODE, 0x21cdu16);
    m.cpu.refresh();
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.selector(Seg::Cs), m.cpu.gpr[gpr::RSP]), (0x10, 0x4000, 0x1234_fffa));
    assert!(!m.flag(bit::IF));
    assert_eq!(m.get::<u16>(0x2fffe), (2 | bit::IF | bit::CF) as u16);
    m.put(0x40010, 0xcfu8);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.selector(Seg::Cs), m.cpu.gpr[gpr::RSP]), (2, 0x1000, 0x1234_0000));
    assert!(m.flag(bit::IF));
}

#[test]
fn test_real_mode_zero_idt_triple_faults() {
    let mut m = Machine::real(CpuModel::default());
    m.cpu.idtr = TableReg { base: 0, limit: 0 };
    m.ctx(|c| c.deliver_exception(Exception::ud()));
    assert_eq!(m.cpu.activity, Activity::Shutdown);
}

// v86 mode

/// A v86 program at CODE with IOPL `iopl`.
fn v86(iopl: u64, code: &[u8]) -> Machine {
    let mut m = Machine::protected(0, &[0xcf]);
    let sp = m.cpu.gpr[gpr::RSP] - 0x100;
    let flags = (bit::VM | 2 | iopl << 12 | bit::IF) as u32;
    let frame = [0, (CODE >> 4) as u32, flags, 0xfff0, 0x3000, 1, 2, 3, 4];
    for (n, v) in frame.into_iter().enumerate() {
        m.put(sp + 4 * n as u64, v);
    }
    m.cpu.gpr[gpr::RSP] = sp;
    assert_eq!(m.execute(), Ok(()));
    assert!(m.cpu.mode.v86);
    assert_eq!(
        (m.selector(Seg::Es), m.selector(Seg::Ds), m.selector(Seg::Fs), m.selector(Seg::Gs)),
        (1, 2, 3, 4)
    );
    let r = m.cpu.rip;
    m.code(code);
    m.cpu.rip = r;
    m
}

#[test]
fn test_v86_interrupt_pushes_data_segments() {
    let mut m = v86(3, &[0xcd, 0x30]);
    // IOPL 3: INT n goes through the IDT, whose gate must have DPL 3.
    assert_eq!(m.execute(), Err(Exception::gp(0x30 << 3 | 2)));
    m.put(IDT + 8 * 0x30, gate(sel::CODE0, HANDLER as u32, 0xee, 0));
    assert_eq!(m.execute(), Ok(()));
    let frame: Vec<u32> = (0..9).map(|n| m.stack(n)).collect();
    let flags = (bit::VM | 2 | 3 << 12 | bit::IF) as u32;
    assert_eq!(frame, [2, (CODE >> 4) as u32, flags, 0xfff0, 0x3000, 1, 2, 3, 4]);
    assert!(m.cpu.mode.protected && m.cpu.mode.cpl == 0 && m.cpu.mode.bits == 32);
    assert_eq!(m.selector(Seg::Ds), 0);
}

#[test]
fn test_v86_iopl_sensitive_instructions() {
    for code in [&[0xcd, 0x30][..], &[0xfa], &[0xfb], &[0x9c], &[0x9d], &[0xcf]] {
        assert_eq!(v86(0, code).execute(), Err(Exception::gp(0)), "{code:x?}");
    }
    // INT3 is not.
    let mut m = v86(0, &[0xcc]);
    m.put(IDT + 8 * 3, gate(sel::CODE0, HANDLER as u32, 0xee, 0));
    assert_eq!(m.execute(), Ok(()));
}

#[test]
fn test_vme_redirects_and_virtualises_if() {
    let mut m = v86(0, &[0xcd, 0x30]);
    m.cpu.cr4 |= cr4::VME;
    m.put(0x30 * 4, 0x5000_0040u32);
    // All redirection bits clear: to the program's own vector table; VIF (clear) shows as IF.
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.selector(Seg::Cs)), (0x40, 0x5000));
    assert!(m.cpu.mode.v86);
    assert_eq!(m.get::<u16>(0x30000 + 0xffee), (2 | 3 << 12) as u16);
    // Bit set: #GP for the monitor.
    let mut m = v86(0, &[0xcd, 0x30]);
    m.cpu.cr4 |= cr4::VME;
    m.put(TSS + 0x88 - 32 + 6, 1u8);
    assert_eq!(m.execute(), Err(Exception::gp(0)));
    // STI sets VIF, not IF; with VIP it faults.
    let mut m = v86(0, &[0xfb, 0xfb]);
    m.cpu.cr4 |= cr4::VME;
    m.cpu.flags.0 &= !bit::IF;
    assert_eq!(m.execute(), Ok(()));
    assert!(m.flag(bit::VIF) && !m.flag(bit::IF));
    m.cpu.flags.0 |= bit::VIP;
    assert_eq!(m.execute(), Err(Exception::gp(0)));
}

// Task switches

#[test]
fn test_task_call_and_iret_round_trip() {
    let mut m = Machine::protected(0, &far(0x9a, sel::TSS2));
    m.cpu.gpr[gpr::RBX] = 0x1111_2222;
    m.put(TSS2 + 0x34, 0x3333_4444u32);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.tr.selector, m.cpu.gpr[gpr::RBX]), (GATE_TARGET, sel::TSS2, 0x3333_4444));
    assert!(m.flag(bit::NT) && m.cpu.cr0 & cr0::TS != 0);
    assert_eq!(m.get::<u16>(TSS2), sel::TSS);
    assert_eq!(m.get::<u32>(TSS + 0x20), CODE as u32 + 7);
    // Both busy now.
    assert_eq!((m.get::<u8>(GDT + 0x2d) & 2, m.get::<u8>(GDT + 0x6d) & 2), (2, 2));
    m.put(GATE_TARGET, 0xcfu8);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.tr.selector, m.cpu.gpr[gpr::RBX]), (CODE + 7, sel::TSS, 0x1111_2222));
    assert!(!m.flag(bit::NT));
    assert_eq!((m.get::<u8>(GDT + 0x2d) & 2, m.get::<u8>(GDT + 0x6d) & 2), (2, 0));
    assert_eq!(m.get::<u32>(TSS2 + 0x24) & bit::NT as u32, 0);
}

#[test]
fn test_task_jump_moves_the_busy_bit() {
    let mut m = Machine::protected(3, &far(0xea, sel::TASK_GATE));
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.mode.cpl), (GATE_TARGET, 0));
    assert!(!m.flag(bit::NT));
    assert_eq!((m.get::<u8>(GDT + 0x2d) & 2, m.get::<u8>(GDT + 0x6d) & 2), (0, 2));
    assert_eq!(m.get::<u32>(TSS + 0x4c), sel::CODE3.into());
    // Jumping to a busy task.
    let mut m = Machine::protected(0, &far(0xea, sel::TSS));
    assert_eq!(m.execute(), Err(Exception::gp(sel::TSS.into())));
}

#[test]
fn test_task_gate_exception_pushes_error_on_new_stack() {
    let mut m = Machine::protected(3, &[0xfa]);
    m.put(IDT + 8 * 13, gate(sel::TSS2, 0, 0x85, 0));
    assert_eq!(m.step(), Some(Exception::gp(0)));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP]), (GATE_TARGET, STACK0 - 0x804));
    assert_eq!(m.stack(0), 0);
    assert_eq!(m.get::<u32>(TSS + 0x24), (bit::RF | 2) as u32);
    assert_eq!(m.get::<u32>(TSS + 0x20), CODE as u32);
}

#[test]
fn test_task_with_bad_segment_faults_in_its_own_context() {
    let mut m = Machine::protected(0, &far(0xea, sel::TSS2));
    m.put(TSS2 + 0x54, u32::from(sel::ABSENT));
    assert_eq!(m.execute(), Ok(()));
    // #NP delivered in the new task, returning to its first instruction.
    assert_eq!((m.cpu.rip, m.cpu.tr.selector), (HANDLER + 16 * 11, sel::TSS2));
    assert_eq!((m.stack(0), m.stack(1)), (0x40, GATE_TARGET as u32));
    // A stack of the wrong privilege: #TS.
    let mut m = Machine::protected(0, &far(0xea, sel::TSS2));
    m.put(TSS2 + 0x50, u32::from(sel::DATA3));
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(vectors(&m)[0], vector::TS);
}

#[test]
fn test_task_debug_trap_bit() {
    let mut m = Machine::protected(0, &far(0xea, sel::TSS2));
    m.put(TSS2 + 0x64, 1u16);
    assert_eq!(m.step(), Some(Exception::db(dr6::BT)));
    assert_eq!(m.stack(0), GATE_TARGET as u32);
    assert_eq!(m.cpu.dr6, dr6::FIXED | dr6::BT);
}

#[test]
fn test_286_task() {
    let mut m = Machine::protected(0, &far(0xea, sel::TSS16));
    m.put(GDT + u64::from(sel::CODE0), descriptor(0, 0xfffff, 0x9b, 0xc));
    m.put(TSS16 + 0x0e, 0x1234u16);
    m.put(TSS16 + 0x10, 0x46u16);
    m.put(TSS16 + 0x12, 0xbeefu16);
    for (n, s) in [sel::DATA0, sel::CODE0, sel::DATA0, sel::DATA0].into_iter().enumerate() {
        m.put(TSS16 + 0x22 + 2 * n as u64, s);
    }
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RAX], m.cpu.flags.0), (0x1234, 0xffff_beef, 0x46));
    assert_eq!(m.selector(Seg::Fs), 0);
}

#[test]
fn test_small_tss_is_ts_before_anything_changes() {
    let mut m = Machine::protected(0, &far(0x9a, sel::TSS2));
    m.put(GDT + u64::from(sel::TSS2), descriptor(TSS2 as u32, 0x66, 0x89, 0));
    assert_eq!(m.execute(), Err(Exception::ts(sel::TSS2.into())));
    assert_eq!((m.cpu.tr.selector, m.cpu.rip), (sel::TSS, CODE));
}

// Call gates and returns

#[test]
fn test_call_gate_copies_parameters_and_retf_releases_them() {
    let mut m = Machine::protected(3, &far(0x9a, sel::GATE2));
    m.cpu.gpr[gpr::RSP] -= 8;
    m.put(STACK3 - 8, 0x0bad_cafe_0000_0001u64);
    assert_eq!(m.execute(), Ok(()));
    let frame: Vec<u32> = (0..6).map(|n| m.stack(n)).collect();
    let sp3 = STACK3 as u32 - 8;
    assert_eq!(frame, [CODE as u32 + 7, sel::CODE3.into(), 1, 0x0bad_cafe, sp3, sel::DATA3.into()]);
    m.put(GATE_TARGET, 0x08cau32);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP], m.cpu.mode.cpl), (CODE + 7, STACK3, 3));
}

#[test]
fn test_286_call_gate() {
    let mut m = Machine::protected(3, &far(0x9a, sel::GATE16));
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP]), (0x5000, STACK0 - 8));
    assert_eq!(m.get::<u16>(STACK0 - 4), STACK3 as u16);
}

#[test]
fn test_gate_errors() {
    let call = |access: u8, target: u16| {
        let mut m = Machine::protected(3, &far(0x9a, sel::GATE));
        m.put(GDT + 0x50, gate(target, 0, access, 0));
        m.execute()
    };
    assert_eq!(call(0x8c, sel::CODE0), Err(Exception::gp(0x50)));
    assert_eq!(call(0x6c, sel::CODE0), Err(Exception::np(0x50)));
    assert_eq!(call(0xec, 0), Err(Exception::gp(0)));
    assert_eq!(call(0xec, sel::DATA0), Err(Exception::gp(0x10)));
    assert_eq!(call(0xec, sel::BEYOND), Err(Exception::gp(0x1f0)));
}

#[test]
fn test_far_call_sets_accessed_bit() {
    let mut m = Machine::protected(0, &far(0xea, sel::CODE0));
    m.put(GDT + 8, descriptor(0, 0xfffff, 0x9a, 0xc));
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.get::<u8>(GDT + 13), 0x9b);
}

// IRET

fn iret_frame(m: &mut Machine, frame: [u32; 5]) {
    let sp = STACK0 - 0x100;
    m.cpu.gpr[gpr::RSP] = sp;
    for (n, v) in frame.into_iter().enumerate() {
        m.put(sp + 4 * n as u64, v);
    }
}

#[test]
fn test_iret_to_cpl3_loads_all_flags() {
    let mut m = Machine::protected(0, &[0xcf]);
    let flags = (bit::IF | 3 << 12 | bit::AC | bit::ID | bit::RF | 2) as u32;
    iret_frame(&mut m, [0x1000, sel::CODE3.into(), flags, 0x2000, sel::DATA3.into()]);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP], m.cpu.mode.cpl), (0x1000, 0x2000, 3));
    assert_eq!(m.cpu.flags.0, u64::from(flags));
}

#[test]
fn test_iret_stack_checks() {
    let run = |cs: u16, ss: u16| {
        let mut m = Machine::protected(0, &[0xcf]);
        iret_frame(&mut m, [0x1000, cs.into(), 2, 0x2000, ss.into()]);
        m.execute()
    };
    assert_eq!(run(sel::CODE3, sel::DATA0), Err(Exception::gp(0x10)));
    assert_eq!(run(sel::CODE3, 0), Err(Exception::gp(0)));
    assert_eq!(run(sel::CODE3, sel::READONLY), Err(Exception::gp(0x48)));
    assert_eq!(run(0, 0), Err(Exception::gp(0)));
    assert_eq!(run(sel::DATA0, 0), Err(Exception::gp(0x10)));
    assert_eq!(run(sel::CODE0 | 3, sel::DATA3), Err(Exception::gp(8)));
}

#[test]
fn test_iret_nt_without_task_is_ts() {
    let mut m = Machine::protected(0, &[0xcf]);
    m.cpu.flags.0 |= bit::NT;
    m.put(TSS, sel::TSS2);
    // TSS2 is not busy.
    assert_eq!(m.execute(), Err(Exception::ts(sel::TSS2.into())));
}

// Long mode

#[test]
fn test_long_interrupt_from_cpl3_aligns_and_nulls_ss() {
    let mut m = Machine::long(3, &[0xcd, 0x40]);
    m.cpu.gpr[gpr::RSP] = STACK3 + 3;
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP]), (HANDLER + 0x400, STACK0 - 40));
    assert_eq!((m.selector(Seg::Ss), m.cpu.mode.cpl), (0, 0));
    let frame: Vec<u64> = (0..5).map(|n| m.stack64(n)).collect();
    assert_eq!(frame, [CODE + 2, sel::CODE64_3.into(), 2, STACK3 + 3, sel::DATA3.into()]);
    // And back.
    m.put(m.cpu.rip, 0xcf48u16);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP], m.cpu.mode.cpl), (CODE + 2, STACK3 + 3, 3));
}

#[test]
fn test_long_ist_and_same_level_alignment() {
    let mut m = Machine::long(0, &[0x90]);
    m.cpu.gpr[gpr::RSP] = STACK0 - 5;
    m.ctx(|c| c.deliver_external(0x20));
    assert_eq!(m.cpu.gpr[gpr::RSP], (STACK0 - 16) - 40);
    let mut m = Machine::long(0, &[0x90]);
    m.put(IDT + 16 * 0x20 + 4, 1u8);
    m.ctx(|c| c.deliver_external(0x20));
    assert_eq!(m.cpu.gpr[gpr::RSP], (STACK0 - 0x1000) - 40);
}

#[test]
fn test_long_iret_null_ss_rule() {
    let run = |cs: u16, ss: u16| {
        let mut m = Machine::long(0, &[0x48, 0xcf]);
        m.put(GDT + 0xa0, descriptor(0, 0xfffff, 0xbb, 0xa));
        let sp = STACK0 - 0x100;
        m.cpu.gpr[gpr::RSP] = sp;
        for (n, v) in [0x1000, u64::from(cs), 2, 0x2000, u64::from(ss)].into_iter().enumerate() {
            m.put(sp + 8 * n as u64, v);
        }
        m.execute()
    };
    assert_eq!(run(sel::CODE64, 0), Ok(()));
    assert_eq!(run(sel::CODE64, 1), Err(Exception::gp(0)));
    assert_eq!(run(0xa1, 1), Ok(()));
    assert_eq!(run(sel::CODE64_3, 3), Err(Exception::gp(0)));
    assert_eq!(run(sel::CODE64_3, sel::DATA3), Ok(()));
    // To 32-bit compatibility code a null SS is never allowed.
    assert_eq!(run(sel::CODE0, 0), Err(Exception::gp(0)));
}

#[test]
fn test_long_gate_to_32_bit_code_and_non_canonical_target() {
    let mut m = Machine::long(0, &[0xcd, 0x20]);
    m.put(IDT + 0x200, gate(sel::CODE0, HANDLER as u32, 0x8e, 0));
    assert_eq!(m.execute(), Err(Exception::gp(sel::CODE0.into())));
    m.put(IDT + 0x200, gate(sel::CODE64, HANDLER as u32, 0x8e, 0));
    m.put(IDT + 0x208, 0x8000u64);
    assert_eq!(m.execute(), Err(Exception::gp(0)));
}

#[test]
fn test_syscall_and_sysret() {
    let mut m = Machine::long(3, &[0x0f, 0x05]);
    assert_eq!(m.execute(), Err(Exception::ud()));
    m.cpu.msr.efer |= efer::SCE;
    m.cpu.msr.star = 0x0013_0088u64 << 32;
    m.cpu.msr.lstar = GATE_TARGET;
    m.cpu.msr.sfmask = bit::IF | bit::TF;
    m.cpu.flags.0 |= bit::IF | bit::TF | bit::ZF;
    assert_eq!(m.execute(), Ok(()), "TF masked: no trap");
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RCX], m.cpu.mode.cpl), (GATE_TARGET, CODE + 2, 0));
    assert_eq!((m.selector(Seg::Cs), m.selector(Seg::Ss)), (0x88, 0x90));
    assert_eq!(m.cpu.gpr[11], 2 | bit::IF | bit::TF | bit::ZF);
    assert_eq!(m.cpu.flags.0, 2 | bit::ZF);
    m.cpu.gpr[11] &= !bit::TF;
    m.put(GATE_TARGET, 0x07_0f48u32);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.selector(Seg::Cs), m.selector(Seg::Ss)), (CODE + 2, 0x23, 0x1b));
    assert!(m.flag(bit::IF) && m.cpu.mode.is64() && m.cpu.mode.cpl == 3);
    // SYSRET that sets TF traps before the instruction it returns to.
    let mut m = Machine::long(0, &[0x48, 0x0f, 0x07]);
    m.cpu.msr.efer |= efer::SCE;
    m.cpu.gpr[gpr::RCX] = GATE_TARGET;
    m.cpu.gpr[11] = bit::TF;
    assert_eq!(m.execute(), Err(Exception::db(dr6::BS)));
    assert_eq!((m.cpu.rip, m.cpu.mode.cpl), (GATE_TARGET, 3));
    // Non-canonical return address: #GP at CPL 0.
    let mut m = Machine::long(0, &[0x48, 0x0f, 0x07]);
    m.cpu.msr.efer |= efer::SCE;
    m.cpu.gpr[gpr::RCX] = 1 << 47;
    assert_eq!(m.execute(), Err(Exception::gp(0)));
    assert_eq!(m.cpu.mode.cpl, 0);
}

#[test]
fn test_sysenter_and_sysexit() {
    let mut m = Machine::protected(3, &[0x0f, 0x34]);
    assert_eq!(m.execute(), Err(Exception::gp(0)));
    m.cpu.msr.sysenter_cs = 8;
    m.cpu.msr.sysenter_esp = STACK0;
    m.cpu.msr.sysenter_eip = GATE_TARGET;
    m.cpu.flags.0 |= bit::IF;
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP], m.cpu.mode.cpl), (GATE_TARGET, STACK0, 0));
    assert_eq!((m.selector(Seg::Cs), m.selector(Seg::Ss), m.flag(bit::IF)), (8, 16, false));
    m.cpu.gpr[gpr::RCX] = STACK3;
    m.cpu.gpr[gpr::RDX] = CODE + 2;
    m.put(GATE_TARGET, 0x350fu16);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP], m.selector(Seg::Cs)), (CODE + 2, STACK3, 0x1b));
}

#[test]
fn test_call_gate_64() {
    let mut m = Machine::long(3, &[0xff, 0x1c, 0x25, 0, 0x80, 0x03, 0]);
    m.put(GDT + 0xa0, gate(sel::CODE64, GATE_TARGET as u32, 0xec, 0));
    m.put(DATA + 4, 0xa3u16);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.cpu.gpr[gpr::RSP], m.cpu.mode.cpl), (GATE_TARGET, STACK0 - 32, 0));
    let frame: Vec<u64> = (0..4).map(|n| m.stack64(n)).collect();
    assert_eq!(frame, [CODE + 7, sel::CODE64_3.into(), STACK3, sel::DATA3.into()]);
    // The upper half's type field must be zero.
    let mut m = Machine::long(3, &[0xff, 0x1c, 0x25, 0, 0x80, 0x03, 0]);
    m.put(GDT + 0xa0, gate(sel::CODE64, GATE_TARGET as u32, 0xec, 0));
    m.put(GDT + 0xa8, 0x100_0000_0000u64);
    m.put(DATA + 4, 0xa3u16);
    assert_eq!(m.execute(), Err(Exception::gp(0xa0)));
}

#[test]
fn test_return_to_cpl3_nulls_gs_but_keeps_its_base() {
    let mut m = Machine::long(0, &[0x48, 0xcf]);
    m.cpu.seg[Seg::Gs as usize].base = 0x7000;
    m.cpu.refresh();
    let sp = STACK0 - 0x100;
    m.cpu.gpr[gpr::RSP] = sp;
    let frame = [0x1000, u64::from(sel::CODE64_3), 2, 0x2000, u64::from(sel::DATA3)];
    for (n, v) in frame.into_iter().enumerate() {
        m.put(sp + 8 * n as u64, v);
    }
    assert_eq!(m.execute(), Ok(()));
    let gs = m.cpu.seg[Seg::Gs as usize];
    assert_eq!((gs.selector, gs.lin_base), (0, 0x7000));
}

#[test]
fn test_swapgs_and_fsgsbase() {
    let mut m = Machine::long(0, &[0x0f, 0x01, 0xf8]);
    m.cpu.msr.kernel_gs_base = 0xffff_8000_0000_0000;
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.cpu.seg[Seg::Gs as usize].lin_base, 0xffff_8000_0000_0000);
    assert_eq!(Machine::long(3, &[0x0f, 0x01, 0xf8]).execute(), Err(Exception::gp(0)));
    // wrfsbase rax.
    let mut m = Machine::long(3, &[0xf3, 0x48, 0x0f, 0xae, 0xd0]);
    assert_eq!(m.execute(), Err(Exception::ud()));
    m.cpu.cr4 |= cr4::FSGSBASE;
    m.cpu.gpr[gpr::RAX] = 1 << 47;
    assert_eq!(m.execute(), Err(Exception::gp(0)));
    m.cpu.gpr[gpr::RAX] = 0x7000;
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.cpu.seg[Seg::Fs as usize].lin_base, 0x7000);
}

// Control registers

/// MOV CRn, EAX with the machine prepared by `setup`.
fn mov_cr(n: u8, v: u64, setup: impl Fn(&mut Machine)) -> (Result<(), Exception>, Machine) {
    let mut m = Machine::protected(0, &[0x0f, 0x22, 0xc0 | n << 3]);
    m.cpu.gpr[gpr::RAX] = v;
    setup(&mut m);
    (m.execute(), m)
}

#[test]
fn test_cr0_combinations() {
    let gp = Err(Exception::gp(0));
    assert_eq!(mov_cr(0, cr0::PG, |_| {}).0, gp);
    assert_eq!(mov_cr(0, cr0::PE | cr0::NW, |_| {}).0, gp);
    let (r, m) = mov_cr(0, cr0::PE | 1 << 8, |_| {});
    assert_eq!((r, m.cpu.cr0), (Ok(()), cr0::PE | cr0::ET));
    assert_eq!(mov_cr(1, 0, |_| {}).0, Err(Exception::ud()));
    let mut m = Machine::protected(3, &[0x0f, 0x22, 0xc0]);
    assert_eq!(m.execute(), gp);
}

#[test]
fn test_long_mode_activation() {
    let on = cr0::PE | cr0::PG;
    let lme = |m: &mut Machine| m.cpu.msr.efer |= efer::LME;
    assert_eq!(mov_cr(0, on, lme).0, Err(Exception::gp(0)), "needs PAE");
    let ready = |m: &mut Machine| {
        m.put(0x60000, 0x61007u64);
        m.put(0x61000, 0x87u64);
        m.cpu.cr3 = 0x60000;
        m.cpu.msr.efer |= efer::LME;
        m.cpu.cr4 |= cr4::PAE;
    };
    let (r, m) = mov_cr(0, on, ready);
    assert_eq!(r, Ok(()));
    assert!(m.cpu.mode.long && m.cpu.msr.efer & efer::LMA != 0 && m.cpu.mode.bits == 32);
    let (r, _) = mov_cr(0, on, |m| {
        ready(m);
        m.cpu.tr.attr = 0x83;
    });
    assert_eq!(r, Err(Exception::gp(0)), "286 TSS");
    // LME cannot change with paging on.
    let mut m = m;
    assert_eq!(m.ctx(|c| c.write_msr(0xc000_0080, 0)), Err(Exception::gp(0)));
    // Paging cannot go off in 64-bit mode.
    let mut m = Machine::long(0, &[0x0f, 0x22, 0xc0]);
    m.cpu.gpr[gpr::RAX] = cr0::PE;
    assert_eq!(m.execute(), Err(Exception::gp(0)));
}

#[test]
fn test_pae_pdptes_are_loaded_and_checked() {
    let pae = |entry: u64| {
        move |m: &mut Machine| {
            m.cpu.cr4 |= cr4::PAE;
            m.cpu.cr3 = 0x60020;
            m.put(0x60020, entry);
            m.put(0x61000, 0x83u64);
        }
    };
    let (r, m) = mov_cr(0, cr0::PE | cr0::PG, pae(0x61001));
    assert_eq!((r, m.cpu.pdpte[0]), (Ok(()), 0x61001));
    let (r, m) = mov_cr(0, cr0::PE | cr0::PG, pae(0x61003));
    assert_eq!((r, m.cpu.pdpte[0], m.cpu.cr0 & cr0::PG), (Err(Exception::gp(0)), 0, 0));
}

#[test]
fn test_cr4_checks() {
    let gp = Err(Exception::gp(0));
    assert_eq!(mov_cr(4, cr4::LA57, |_| {}).0, gp);
    assert_eq!(mov_cr(4, cr4::PCIDE, |_| {}).0, gp);
    assert_eq!(mov_cr(4, cr4::VME, |m| m.cpu.model = CpuModel::I486).0, gp);
    assert_eq!(mov_cr(4, cr4::SMEP | cr4::SMAP | cr4::UMIP | cr4::OSXSAVE, |_| {}).0, Ok(()));
    let mut m = Machine::long(0, &[0x0f, 0x22, 0xe0]);
    m.cpu.gpr[gpr::RAX] = 0;
    assert_eq!(m.execute(), gp, "PAE in long mode");
    m.cpu.gpr[gpr::RAX] = cr4::PAE | cr4::PCIDE;
    assert_eq!(m.execute(), Ok(()));
}

#[test]
fn test_mov_dr_general_detect_and_aliases() {
    // mov eax, dr7 with GD.
    let mut m = Machine::protected(0, &[0x0f, 0x21, 0xf8]);
    m.cpu.dr7 |= 1 << 13;
    assert_eq!(m.step(), Some(Exception::db(dr6::BD)));
    assert_eq!((m.cpu.dr6 & dr6::BD, m.cpu.dr7, m.stack(0)), (dr6::BD, 0x400, CODE as u32));
    // DR4 is DR6 unless CR4.DE.
    let mut m = Machine::protected(0, &[0x0f, 0x21, 0xe0]);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.cpu.gpr[gpr::RAX], dr6::FIXED);
    m.cpu.rip = CODE;
    m.cpu.cr4 |= cr4::DE;
    assert_eq!(m.execute(), Err(Exception::ud()));
    // Upper half of DR7.
    let mut m = Machine::long(0, &[0x0f, 0x23, 0xf8]);
    m.cpu.gpr[gpr::RAX] = 1 << 32;
    assert_eq!(m.execute(), Err(Exception::gp(0)));
}

// MSRs

#[test]
fn test_msr_checks() {
    let mut m = Machine::protected(0, &[0x0f, 0x30]);
    let mut w = |msr: u32, v: u64| m.ctx(|c| c.write_msr(msr, v).is_ok());
    assert!(w(0x277, 0x0007_0406_0007_0406) && !w(0x277, 2) && !w(0x277, 0x0300));
    assert!(w(0xc000_0082, 0xffff_8000_0000_0000) && !w(0xc000_0082, 1 << 47));
    assert!(w(0x175, 0x1000) && !w(0x175, 1 << 63));
    assert!(!w(0xc000_0080, 1 << 1) && w(0xc000_0080, efer::SCE | efer::NXE));
    assert!(w(0x2ff, 0xc06) && !w(0x2ff, 0xc02) && !w(0x2ff, 0x1006));
    assert!(w(0x200, 0x6) && !w(0x200, 0x106) && !w(0x201, 1 << 39) && w(0x201, 1 << 38 | 0x800));
    assert!(w(0x250, 0x0606_0606_0606_0606) && !w(0x250, 3));
    assert!(!w(0xfe, 0) && !w(0xc000_0104, 0) && !w(0x10a, 0));
    assert!(!w(0xc000_0103, 1 << 32));
    let mut m = Machine::protected(3, &[0x0f, 0x32]);
    assert_eq!(m.execute(), Err(Exception::gp(0)));
}

#[test]
fn test_apic_base_state_machine() {
    let mut m = Machine::protected(0, &[]);
    let mut w = |v: u64| m.ctx(|c| c.write_msr(0x1b, v).is_ok());
    let base = 0xfee0_0100u64;
    assert!(!w(base | 1 << 10), "EXTD without EN");
    assert!(w(base | 3 << 10));
    assert!(!w(base | 1 << 11), "x2APIC to xAPIC");
    assert!(w(base));
    assert!(!w(base | 3 << 10), "disabled to x2APIC");
    assert!(w(base | 1 << 11) && !w(base | 1 << 11 | 1 << 9) && !w(base | 1 << 11 | 1 << 39));
}

#[test]
fn test_tsc_and_adjust_move_together() {
    let mut m = Machine::protected(0, &[0x0f, 0x31]);
    m.sys.icount = 5000;
    m.ctx(|c| {
        assert_eq!(c.read_msr(0x10), Ok(5000));
        assert_eq!(c.write_msr(0x10, 15_000), Ok(()));
        assert_eq!(c.read_msr(0x3b), Ok(10_000));
        assert_eq!(c.write_msr(0x3b, 1), Ok(()));
        assert_eq!(c.read_msr(0x10), Ok(5001));
        assert_eq!(c.cpu.tsc_to_time(6001).0, 6000);
    });
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.cpu.gpr[gpr::RAX], 5001);
    // CR4.TSD.
    let mut m = Machine::protected(3, &[0x0f, 0x31]);
    m.cpu.cr4 |= cr4::TSD;
    assert_eq!(m.execute(), Err(Exception::gp(0)));
}

// Debug exceptions

#[test]
fn test_single_step_and_int_n() {
    let mut m = Machine::protected(0, &[0x0f, 0xa2, 0xcd, 0x80]);
    m.cpu.flags.0 |= bit::TF;
    assert_eq!(m.execute(), Err(Exception::db(dr6::BS)), "after CPUID");
    assert_eq!(m.cpu.rip, CODE + 2);
    assert_eq!(m.execute(), Ok(()), "INT n clears TF");
    assert_eq!(m.cpu.rip, HANDLER + 0x800);
    assert_eq!(u64::from(m.stack(2)), 2 | bit::TF);
}

#[test]
fn test_mov_ss_holds_debug_traps() {
    // mov ss, eax; cpuid
    let mut m = Machine::protected(0, &[0x8e, 0xd0, 0x0f, 0xa2]);
    m.cpu.gpr[gpr::RAX] = sel::DATA0.into();
    m.cpu.flags.0 |= bit::TF;
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.cpu.shadow, Shadow::MovSs);
    m.cpu.pending_db |= 1;
    assert_eq!(m.execute(), Err(Exception::db(dr6::BS | 1)));
}

#[test]
fn test_int1_absorbs_held_traps_and_int_n_does_not() {
    for (code, absorbed) in [(&[0x8e, 0xd0, 0xf1][..], true), (&[0x8e, 0xd0, 0xcd, 0x80], false)] {
        let mut m = Machine::protected(0, code);
        m.cpu.gpr[gpr::RAX] = sel::DATA0.into();
        assert_eq!(m.execute(), Ok(()));
        m.cpu.pending_db |= 1;
        let r = m.execute();
        assert_eq!(r, if absorbed { Ok(()) } else { Err(Exception::db(1)) });
        assert_eq!(m.cpu.dr6 & 1, u64::from(absorbed));
        assert_eq!(m.cpu.rip, HANDLER + if absorbed { 16 } else { 0x800 });
    }
}

#[test]
fn test_instruction_breakpoint_and_rf() {
    let mut m = Machine::protected(0, &[0x0f, 0xa2]);
    m.cpu.dr[2] = CODE;
    m.cpu.dr7 |= 1 << 4;
    assert_eq!(m.step(), Some(Exception::db(4)));
    assert_eq!((m.cpu.dr6, m.stack(0), m.stack(2)), (dr6::FIXED | 4, CODE as u32, 2));
    // Returned to with RF: executes, and RF is gone.
    let mut m = Machine::protected(0, &[0x0f, 0xa2]);
    m.cpu.dr[2] = CODE;
    m.cpu.dr7 |= 1 << 4;
    m.cpu.flags.0 |= bit::RF;
    assert_eq!(m.execute(), Ok(()));
    assert!(!m.flag(bit::RF));
}

#[test]
fn test_data_breakpoint_traps_after_the_store() {
    // mov dr0, ecx; mov dr7, eax; sgdt [DATA]
    let mut m =
        Machine::protected(0, &[0x0f, 0x23, 0xc1, 0x0f, 0x23, 0xf8, 0x0f, 0x01, 0x05, 0, 0x80, 0x03, 0]);
    m.cpu.gpr[gpr::RCX] = DATA + 2;
    m.cpu.gpr[gpr::RAX] = 1 | 0b1101 << 16;
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.execute(), Err(Exception::db(1)));
    assert_eq!(m.cpu.rip, CODE + 13);
}

// Ports

#[test]
fn test_port_permission_bitmap() {
    // in al, 0x71
    let run = |iopl: u64, bits: u8, limit: u32| {
        let mut m = Machine::protected(3, &[0xe4, 0x71]);
        m.cpu.flags.0 |= iopl << 12;
        m.put(TSS + 0x88 + 0xe, bits);
        m.cpu.tr.limit = limit;
        m.execute()
    };
    assert_eq!(run(0, 0, 0x3ff), Ok(()));
    assert_eq!(run(0, 2, 0x3ff), Err(Exception::gp(0)));
    assert_eq!(run(3, 2, 0x3ff), Ok(()));
    assert_eq!(run(0, 0, 0x88 + 0xe), Err(Exception::gp(0)), "the byte after must be inside too");
    assert_eq!(run(0, 0, 0x88 + 0xf), Ok(()));
}

#[test]
fn test_rep_insb_counts_iterations_and_stops_at_limit() {
    let mut m = Machine::protected(0, &[0xf3, 0x6c]);
    m.cpu.gpr[gpr::RCX] = 10;
    m.cpu.gpr[gpr::RDI] = DATA;
    m.sys.limit = 4;
    assert_eq!(m.ctx(|c| c.step_insn()), Ok(()));
    // Four iterations done and counted.
    assert_eq!((m.cpu.gpr[gpr::RCX], m.cpu.gpr[gpr::RDI], m.sys.icount), (6, DATA + 4, 4));
    assert!(m.cpu.rip == CODE && !m.flag(bit::RF));
    m.sys.limit = u64::MAX;
    assert_eq!(m.ctx(|c| c.step_insn()), Ok(()));
    assert_eq!((m.cpu.gpr[gpr::RCX], m.sys.icount, m.cpu.rip), (0, 10, CODE + 2));
}

#[test]
fn test_suspended_repeat_sets_rf_if_there_are_breakpoints() {
    let mut m = Machine::protected(0, &[0xf3, 0x6c]);
    m.cpu.gpr[gpr::RCX] = 3;
    m.cpu.gpr[gpr::RDI] = DATA;
    m.cpu.dr[0] = CODE;
    m.cpu.dr7 |= 1;
    assert_eq!(m.execute(), Err(Exception::db(1)));
    m.cpu.flags.0 |= bit::RF;
    m.sys.limit = 1;
    m.ctx(|c| {
        c.begin_insn()?;
        c.step_insn()
    })
    .unwrap();
    assert!(m.flag(bit::RF) && m.cpu.rip == CODE && m.cpu.gpr[gpr::RCX] == 2);
    // No second #DB for the iterations that follow.
    assert_eq!(m.execute(), Ok(()));
    assert_eq!((m.cpu.rip, m.flag(bit::RF)), (CODE + 2, false));
}

#[test]
fn test_sti_shadow_only_if_if_was_clear() {
    let mut m = Machine::protected(0, &[0xfb, 0xfb]);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.cpu.shadow, Shadow::Sti);
    assert_eq!(m.execute(), Ok(()));
    assert_eq!(m.cpu.shadow, Shadow::None);
}

#[test]
fn test_ltr_and_lldt() {
    let run = |op: u8, selector: u16| {
        let mut m = Machine::protected(0, &[0x0f, 0x00, op]);
        m.cpu.gpr[gpr::RAX] = selector.into();
        let r = m.execute();
        (r, m)
    };
    let (r, m) = run(0xd8, sel::TSS2);
    assert_eq!((r, m.cpu.tr.selector, m.get::<u8>(GDT + 0x6d)), (Ok(()), sel::TSS2, 0x8b));
    assert_eq!(run(0xd8, sel::TSS).0, Err(Exception::gp(sel::TSS.into())), "busy");
    assert_eq!(run(0xd8, 0).0, Err(Exception::gp(0)));
    assert_eq!(run(0xd0, sel::TSS2).0, Err(Exception::gp(sel::TSS2.into())));
    assert_eq!(run(0xd0, 0).0, Ok(()));
    let mut m = Machine::real(CpuModel::default());
    m.put(0x10000, 0xd8_000fu32);
    assert_eq!(m.execute(), Err(Exception::ud()));
}
