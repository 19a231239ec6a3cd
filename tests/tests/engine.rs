//! The engine's own promises: exact landing, stops, idle time, self-modifying code, resets, saved state.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use iced_x86::code_asm::*;
use retrovisor_core::engine::hooks::{Watch, WatchAddr, WatchKind};
use retrovisor_core::input::NoInput;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::{Gpa, Gva, Icount};
use retrovisor_tests::asm::{self, LOAD};

/// First instruction of a guest.
const ENTRY: u64 = LOAD + 0x20;

fn vm_with(config: MachineConfig, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vm {
    let kernel = asm::multiboot(|a| build(a).unwrap());
    let images = Images { kernel: Some(kernel), kernel_name: "guest".into(), ..Images::default() };
    Vm::new(config, images, Box::new(NoInput), Box::new(NullSink)).unwrap()
}

fn vm(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vm {
    vm_with(MachineConfig { memory: 4 << 20, no_reboot: true, ..MachineConfig::default() }, build)
}

/// A loop with REP strings, memory traffic, and a divide error handled by an IDT in the guest.
fn busy(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(esp, 0x20_0000)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.mov(edi, 0x18_0000)?;
    a.mov(ecx, 37)?;
    a.mov(eax, ebx)?;
    a.rep().stosd()?;
    a.mov(esi, 0x18_0000)?;
    a.mov(edi, 0x19_0000)?;
    a.mov(ecx, 100)?;
    a.rep().movsb()?;
    a.add(ebx, dword_ptr(0x19_0010))?;
    a.push(ebx)?;
    a.pop(edx)?;
    a.inc(ebx)?;
    a.jmp(top)
}

#[test]
fn test_run_lands_exactly_on_any_icount() {
    let mut one = vm(busy);
    assert_eq!(one.run(Some(Icount(10_000))), VmExit::Reached);
    let (at_end, hash) = (one.when(), one.state_hash());
    let mut other = vm(busy);
    let mut at = 0;
    let mut step = 1;
    while at < 10_000 {
        at = (at + step).min(10_000);
        step = step * 7 % 61 + 1;
        assert_eq!(other.run(Some(Icount(at))), VmExit::Reached);
        assert_eq!(other.when().icount, Icount(at));
    }
    assert_eq!((other.when(), other.state_hash()), (at_end, hash));
}

#[test]
fn test_single_steps_equal_a_run() {
    let mut one = vm(busy);
    one.run(Some(Icount(3000)));
    let mut other = vm(busy);
    for _ in 0..3000 {
        assert_eq!(other.step(), VmExit::Reached);
    }
    assert_eq!(one.state_hash(), other.state_hash());
}

#[test]
fn test_breakpoint_stops_before_and_resumes() {
    let mut m = vm(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax)?; // 2 bytes
        a.set_label(&mut top)?;
        a.inc(eax)?;
        a.jmp(top)
    });
    m.hooks.breakpoints.insert(ENTRY + 2);
    for n in 0..5 {
        assert_eq!(m.run(None), VmExit::Breakpoint(Gva(ENTRY + 2)));
        assert_eq!(m.vcpus[0].gpr[0], n);
    }
    m.hooks.breakpoints.clear();
    let at = m.when().icount;
    assert_eq!(m.run(Some(at + 100)), VmExit::Reached);
}

#[test]
fn test_store_into_the_next_instruction_is_seen() {
    // Rewrites the immediate of the very next instruction, in the same block, again and again.
    let mut m = vm(|a| {
        let mut top = a.create_label();
        a.xor(ebx, ebx)?;
        a.xor(edx, edx)?;
        a.set_label(&mut top)?;
        a.inc(ebx)?;
        // The immediate of the next MOV: 11 bytes of code and its opcode come before it.
        a.mov(dword_ptr(ENTRY + 12), ebx)?;
        a.mov(eax, 0)?;
        a.add(edx, eax)?;
        a.cmp(ebx, 1000)?;
        a.jb(top)?;
        a.cli()?;
        a.hlt()
    });
    assert_eq!(m.run(None), VmExit::Dead);
    assert_eq!(m.vcpus[0].gpr[2], 1000 * 1001 / 2);
    let killed = m.cache.stats.invalidated + m.jit_stats().written;
    assert!(killed >= 999, "{killed} blocks killed");
}

#[test]
fn test_straddling_instruction_sees_writes_to_its_second_page() {
    let mut m = vm(|a| {
        let (mut top, mut far) = (a.create_label(), a.create_label());
        a.xor(edx, edx)?;
        a.mov(ebx, 1)?;
        a.set_label(&mut top)?;
        // Bytes 3.. of the MOV at 0x101ffe lie in the next page.
        a.mov(byte_ptr(0x10_2000), bl)?;
        a.call(far)?;
        a.add(edx, eax)?;
        a.inc(ebx)?;
        a.cmp(ebx, 100)?;
        a.jbe(top)?;
        a.cli()?;
        a.hlt()?;
        let used = a.assemble(ENTRY).unwrap().len() as u64;
        for _ in used..0x10_1fff - ENTRY {
            a.nop()?;
        }
        a.set_label(&mut far)?;
        a.mov(eax, 0)?;
        a.ret()
    });
    m.vcpus[0].gpr[4] = 0x20_0000;
    m.vcpus[0].refresh();
    assert_eq!(m.run(Some(Icount(100_000))), VmExit::Dead);
    assert_eq!(m.vcpus[0].gpr[2], 5050);
}

#[test]
fn test_debugger_write_into_decoded_code_is_seen() {
    let mut m = vm(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(eax, 1)?;
        a.jmp(top)
    });
    m.run(Some(Icount(1000)));
    m.inject(&retrovisor_core::input::InputEvent::WritePhys { gpa: ENTRY + 1, bytes: vec![7] });
    m.run(Some(Icount(1010)));
    assert_eq!(m.vcpus[0].gpr[0], 7);
}

#[test]
fn test_watchpoints_stop_after_the_access() {
    let mut m = vm(busy);
    let watch = |addr, kind| Watch { addr, len: 4, kind };
    let w = watch(WatchAddr::Physical(Gpa(0x19_0010)), WatchKind::Write);
    m.hooks.watches = vec![w];
    let VmExit::Watchpoint(hit) = m.run(Some(Icount(100_000))) else { panic!("not hit") };
    assert_eq!((hit.watch, hit.write), (w, true));
    let r = watch(WatchAddr::Virtual(Gva(0x19_0010)), WatchKind::Read);
    m.hooks.watches = vec![r];
    let VmExit::Watchpoint(hit) = m.run(Some(Icount(100_000))) else { panic!("not hit") };
    assert_eq!((hit.watch, hit.write), (r, false));
    m.hooks.watches.clear();
    assert_eq!(m.run(Some(Icount(100_000))), VmExit::Reached);
}

#[test]
fn test_watching_changes_nothing() {
    let mut plain = vm(busy);
    plain.run(Some(Icount(50_000)));
    let mut watched = vm(busy);
    let w = Watch { addr: WatchAddr::Virtual(Gva(0x18_0000)), len: 8, kind: WatchKind::Access };
    watched.hooks.watches = vec![w];
    let mut hits = 0;
    while let VmExit::Watchpoint(_) = watched.run(Some(Icount(50_000))) {
        hits += 1;
    }
    assert!(hits > 100);
    assert_eq!(plain.state_hash(), watched.state_hash());
}

#[test]
fn test_halted_for_good_is_said() {
    let mut m = vm(|a| {
        a.cli()?;
        a.hlt()
    });
    assert_eq!(m.run(None), VmExit::Dead);
}

#[test]
fn test_triple_fault_ends_or_reboots() {
    let fault = |a: &mut CodeAssembler| a.ud2();
    assert_eq!(vm(fault).run(None), VmExit::TripleFault);
    let mut m = vm_with(MachineConfig { memory: 4 << 20, ..MachineConfig::default() }, fault);
    // Rebooted for ever; each round is a fault or two.
    assert_eq!(m.run(Some(Icount(1000))), VmExit::Reached);
    m.hooks.stop_triple_fault = true;
    assert_eq!(m.run(Some(Icount(2000))), VmExit::TripleFault);
    assert_eq!(m.vcpus[0].rip, ENTRY, "the registers are those of the fault");
}

#[test]
fn test_debug_exit_and_reset_are_exits() {
    let mut m = vm_with(
        MachineConfig { memory: 4 << 20, debug_exit: Some((0xf4, 4)), ..MachineConfig::default() },
        |a| {
            a.mov(eax, 0x21)?;
            a.out(0xf4, eax)
        },
    );
    assert_eq!(m.run(None), VmExit::DebugExit(0x21));
    let mut m = vm(|a| {
        a.mov(al, 0xfe)?;
        a.out(0x64, al)?;
        a.hlt()
    });
    assert_eq!(m.run(None), VmExit::Reset);
}

/// Programs PIC and PIT for 1 kHz and counts ticks in a handler, halting in between.
fn ticker(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut over, mut wait) = (a.create_label(), a.create_label());
    a.mov(esp, 0x20_0000)?;
    // The call pushes the handler's address.
    a.call(over)?;
    a.inc(dword_ptr(0x18_0000))?;
    a.push(eax)?;
    a.mov(al, 0x20)?;
    a.out(0x20, al)?;
    a.pop(eax)?;
    a.iretd()?;
    a.set_label(&mut over)?;
    // A GDT of our own (the boot protocol promises none): code at both places CS may have been loaded from. Then one
    // IDT gate for vector 0x20.
    for (at, low, high) in
        [(0x17_0000, 0u32, 0u32), (0x17_0008, 0xffff, 0xcf_9a00), (0x17_0010, 0xffff, 0xcf_9a00)]
    {
        a.mov(dword_ptr(at), low)?;
        a.mov(dword_ptr(at + 4), high)?;
    }
    a.mov(word_ptr(0x17_0100), 0x17)?;
    a.mov(dword_ptr(0x17_0102), 0x17_0000)?;
    a.lgdt(ptr(0x17_0100))?;
    a.pop(eax)?;
    a.mov(ebx, eax)?;
    a.and(eax, 0xffff)?;
    a.or(eax, 0x8_0000)?;
    a.mov(dword_ptr(0x16_0100), eax)?;
    a.and(ebx, 0xffff_0000u32)?;
    a.or(ebx, 0x8e00)?;
    a.mov(dword_ptr(0x16_0104), ebx)?;
    a.mov(word_ptr(0x17_0108), 0x7ff)?;
    a.mov(dword_ptr(0x17_010a), 0x16_0000)?;
    a.lidt(ptr(0x17_0108))?;
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe), (0x43, 0x34)] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    for value in [(1193 & 0xff), (1193 >> 8)] {
        a.mov(al, value)?;
        a.out(0x40, al)?;
    }
    a.set_label(&mut wait)?;
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    a.cmp(dword_ptr(0x18_0000), 100)?;
    a.jb(wait)?;
    a.hlt()
}

#[test]
fn test_idle_time_is_skipped_and_ticks_are_exact() {
    let mut m = vm(ticker);
    assert_eq!(m.run(None), VmExit::Dead);
    let ms = m.when().time.0 as f64 / 1e6;
    assert!((99.0..101.0).contains(&ms), "100 ticks of a 1 kHz timer took {ms} ms of guest time");
    assert!(m.when().icount.0 < 5000, "halted time costs no instructions");
}

#[test]
fn test_saved_state_continues_alike() {
    let mut m = vm(ticker);
    m.run(Some(Icount(700)));
    let state = m.save_state();
    let ram = m.sys.mem.ram.as_slice().to_vec();
    let mut copy = vm(ticker);
    copy.sys.mem.ram.as_mut_slice().copy_from_slice(&ram);
    (0..copy.sys.mem.flags.len()).for_each(|p| copy.sys.mem.set_flags(p, retrovisor_core::mem::page::DIRTY));
    copy.load_state(&state).unwrap();
    assert_eq!(copy.save_state(), state);
    assert_eq!((m.run(None), copy.run(None)), (VmExit::Dead, VmExit::Dead));
    assert_eq!(m.state_hash(), copy.state_hash());
}

#[test]
fn test_load_state_corrupted_is_refused() {
    let mut m = vm(ticker);
    m.run(Some(Icount(700)));
    let state = m.save_state();
    let mut copy = vm(ticker);
    for n in 0..state.len() {
        assert!(copy.load_state(&state[..n]).is_err(), "cut at {n}");
    }
    let mut extended = state;
    extended.push(0);
    assert!(m.load_state(&extended).is_err());
}

#[test]
fn test_saved_state_keeps_what_devices_asked_for() {
    let guest = |a: &mut CodeAssembler| {
        a.mov(eax, 0x21)?;
        a.out(0xf4, eax)
    };
    let config =
        || MachineConfig { memory: 4 << 20, debug_exit: Some((0xf4, 4)), ..MachineConfig::default() };
    let mut m = vm_with(config(), guest);
    assert_eq!(m.run(Some(Icount(2))), VmExit::Reached);
    let mut copy = vm_with(config(), guest);
    copy.load_state(&m.save_state()).unwrap();
    assert_eq!((m.run(None), copy.run(None)), (VmExit::DebugExit(0x21), VmExit::DebugExit(0x21)));
}
