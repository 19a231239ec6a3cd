//! A small interrupt-driven guest, recorded with inputs from other threads, replays exactly on both clocks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use iced_x86::code_asm::*;
use retrovisor_core::Icount;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::input::InputEvent;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_replay::{
    Ending, ExitReason, IdlePolicy, Live, Mailbox, Recording, Report, Trace, VerifyError, VerifyOptions,
    What, verify,
};
use retrovisor_tests::asm::multiboot;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const TICKS: u32 = 0x1a_0000;
const IDT: u32 = 0x18_0000;
const TABLES: u32 = 0x17_0000;
/// What the guest writes to isa-debug-exit.
const DONE: u32 = 0x15;

fn out8(a: &mut CodeAssembler, port: u16, value: u32) {
    a.mov(edx, u32::from(port)).unwrap();
    a.mov(eax, value).unwrap();
    a.out(dx, al).unwrap();
}

/// EAX becomes the address of `code`, which is stepped over.
fn address_of(a: &mut CodeAssembler, code: impl FnOnce(&mut CodeAssembler)) {
    let mut after = a.create_label();
    a.call(after).unwrap();
    code(a);
    a.set_label(&mut after).unwrap();
    a.pop(eax).unwrap();
}

/// An interrupt gate for `handler`.
fn gate(a: &mut CodeAssembler, vector: u32, handler: impl FnOnce(&mut CodeAssembler)) {
    address_of(a, handler);
    a.mov(ebx, eax).unwrap();
    a.and(ebx, 0xffff).unwrap();
    a.or(ebx, 0x8_0000).unwrap();
    a.mov(dword_ptr(IDT + vector * 8), ebx).unwrap();
    a.and(eax, 0xffff_0000u32 as i32).unwrap();
    a.or(eax, 0x8e00).unwrap();
    a.mov(dword_ptr(IDT + vector * 8 + 4), eax).unwrap();
}

fn timer(a: &mut CodeAssembler) {
    a.push(eax).unwrap();
    a.push(edx).unwrap();
    a.inc(dword_ptr(TICKS)).unwrap();
    out8(a, 0x43, 0);
    a.mov(edx, 0x40).unwrap();
    a.in_(al, dx).unwrap();
    a.add(dword_ptr(TICKS + 8), eax).unwrap();
    out8(a, 0xe9, u32::from(b'.'));
    out8(a, 0x20, 0x20);
    a.pop(edx).unwrap();
    a.pop(eax).unwrap();
    a.iretd().unwrap();
}

fn serial(a: &mut CodeAssembler) {
    let (mut more, mut done) = (a.create_label(), a.create_label());
    a.push(eax).unwrap();
    a.push(edx).unwrap();
    a.set_label(&mut more).unwrap();
    a.mov(edx, 0x3fd).unwrap();
    a.in_(al, dx).unwrap();
    a.test(al, 1).unwrap();
    a.jz(done).unwrap();
    a.mov(edx, 0x3f8).unwrap();
    a.in_(al, dx).unwrap();
    a.out(dx, al).unwrap();
    a.add(dword_ptr(TICKS + 12), eax).unwrap();
    a.jmp(more).unwrap();
    a.set_label(&mut done).unwrap();
    out8(a, 0x20, 0x20);
    a.pop(edx).unwrap();
    a.pop(eax).unwrap();
    a.iretd().unwrap();
}

/// Flat segments, an IDT, the PICs at 0x20, IRQ 0 and 4 open.
fn set_up(a: &mut CodeAssembler) {
    a.mov(esp, 0x16_0000u32).unwrap();
    let tables = [
        (8, 0x0000_ffffu32),
        (12, 0x00cf_9b00),
        (16, 0x0000_ffff),
        (20, 0x00cf_9300),
        (0x100, (TABLES & 0xffff) << 16 | 23),
        (0x104, TABLES >> 16),
        (0x110, (IDT & 0xffff) << 16 | 0x1ff),
        (0x114, IDT >> 16),
    ];
    for (at, value) in tables {
        a.mov(dword_ptr(TABLES + at), value).unwrap();
    }
    a.lgdt(ptr(TABLES + 0x100)).unwrap();
    // A far return to the instruction after the call loads CS.
    let mut flat = a.create_label();
    a.call(flat).unwrap();
    let mut here = a.create_label();
    a.jmp(here).unwrap();
    a.set_label(&mut flat).unwrap();
    a.pop(eax).unwrap();
    a.push(8).unwrap();
    a.push(eax).unwrap();
    a.retf().unwrap();
    a.set_label(&mut here).unwrap();
    a.mov(eax, 16).unwrap();
    a.mov(ds, eax).unwrap();
    a.mov(es, eax).unwrap();
    a.mov(ss, eax).unwrap();
    gate(a, 0x20, timer);
    gate(a, 0x24, serial);
    a.lidt(ptr(TABLES + 0x110)).unwrap();
    for (port, value) in
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2)]
    {
        out8(a, port, value);
    }
    // 10 kHz from the PIT, receive interrupts from COM1.
    let rest = [
        (0xa1, 1),
        (0x21, 0xee),
        (0xa1, 0xff),
        (0x43, 0x34),
        (0x40, 119),
        (0x40, 0),
        (0x3f9, 1),
        (0x3fc, 11),
    ];
    for (port, value) in rest {
        out8(a, port, value);
    }
}

/// Computes, reads the TSC, halts; counts timer ticks, echoes serial input; after `ticks` leaves by isa-debug-exit.
fn guest(ticks: u32) -> Vec<u8> {
    multiboot(|a| {
        set_up(a);
        let (mut again, mut inner) = (a.create_label(), a.create_label());
        a.sti().unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(ecx, 3000).unwrap();
        a.set_label(&mut inner).unwrap();
        a.imul_3(esi, esi, 0x343fd).unwrap();
        a.add(esi, 0x26_9ec3).unwrap();
        a.mov(ebx, esi).unwrap();
        a.and(ebx, 0xfffc).unwrap();
        a.add(dword_ptr(ebx + 0x1b_0000), esi).unwrap();
        // Time is read in the middle of straight code, too, where no boundary follows by itself.
        let mut skip = a.create_label();
        a.test(ecx, 15).unwrap();
        a.jnz(skip).unwrap();
        a.rdtsc().unwrap();
        a.add(esi, eax).unwrap();
        a.set_label(&mut skip).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(inner).unwrap();
        a.rdtsc().unwrap();
        a.add(esi, eax).unwrap();
        a.hlt().unwrap();
        a.cmp(dword_ptr(TICKS), ticks).unwrap();
        a.jb(again).unwrap();
        a.mov(edx, 0xf4).unwrap();
        a.mov(eax, DONE).unwrap();
        a.out(dx, eax).unwrap();
        a.cli().unwrap();
        a.hlt().unwrap();
    })
}

fn config(clock: ClockKind) -> MachineConfig {
    MachineConfig {
        memory: 8 << 20,
        clock,
        debug_exit: Some((0xf4, 4)),
        no_reboot: true,
        hash_interval: 1 << 16,
        ..MachineConfig::default()
    }
}

/// How a session is recorded.
#[derive(Clone, Copy)]
struct Session {
    clock: ClockKind,
    ticks: u32,
    /// A debugger writes now and then.
    pokes: bool,
    /// The user ends it after so many interruptions.
    quit_after: Option<u32>,
}

/// Records a session with another thread at the keyboard; returns the file and the exit.
fn record(s: Session) -> (Vec<u8>, VmExit) {
    let config = config(s.clock);
    let images = Images { kernel: Some(guest(s.ticks)), kernel_name: "guest".into(), ..Images::default() };
    let (recording, file) = Recording::in_memory(&config, &images).unwrap();
    let mailbox = Mailbox::new();
    let live = Live::new(Arc::clone(&mailbox), s.clock, IdlePolicy::RealTime);
    let (port, output) = (recording.port(live), recording.output(NullSink));
    let mut vm = Vm::new(config, images, Box::new(port), Box::new(output)).unwrap();
    let over = AtomicBool::new(false);
    let exit = std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0u32.. {
                std::thread::sleep(Duration::from_micros(700));
                if over.load(Ordering::Relaxed) {
                    break;
                }
                mailbox.push(InputEvent::Serial { port: 0, bytes: format!("line {n}\n").into_bytes() });
                mailbox.interrupt();
            }
        });
        let exit = drive(&mut vm, s);
        over.store(true, Ordering::Relaxed);
        exit
    });
    recording.finish_vm(&mut vm, ExitReason::from_exit(exit)).unwrap();
    (file.bytes(), exit)
}

fn drive(vm: &mut Vm, s: Session) -> VmExit {
    for stops in 0u32.. {
        match vm.run(None) {
            // Quits where the guest happens to be, at a hash point, or after one more instruction.
            VmExit::Interrupted if s.quit_after == Some(stops) => {
                let at = vm.when().icount.0;
                return match stops % 3 {
                    0 => VmExit::Interrupted,
                    1 => vm.run(Some(Icount(((at >> 16) + 1) << 16))),
                    _ => vm.step(),
                };
            }
            VmExit::Interrupted if s.pokes => {
                let bytes = stops.to_le_bytes().to_vec();
                vm.inject(&InputEvent::WritePhys { gpa: 0x1c_0000 + u64::from(stops % 64) * 4, bytes });
                // Stops at a hash point and on odd places, too.
                let at = vm.when().icount.0;
                let target = if stops.is_multiple_of(2) { ((at >> 16) + 1) << 16 } else { at + 1 };
                match vm.run(Some(Icount(target))) {
                    VmExit::Reached | VmExit::Interrupted => {}
                    exit => return exit,
                }
                vm.inject(&InputEvent::WriteReg { vcpu: 0, reg: 5, value: u128::from(stops) });
            }
            VmExit::Interrupted => {}
            exit => return exit,
        }
    }
    VmExit::Interrupted
}

fn check(bytes: Vec<u8>) -> Result<Report, VerifyError> {
    let trace = Trace::from_bytes("session.rvt", bytes).unwrap();
    verify(&trace, VerifyOptions::default(), &mut |_| ())
}

fn session(clock: ClockKind) -> Session {
    Session { clock, ticks: 150, pokes: false, quit_after: None }
}

#[test]
fn test_sessions_replay_exactly_on_both_clocks() {
    for clock in [ClockKind::Virtual, ClockKind::Host] {
        for pokes in [false, true] {
            let (bytes, exit) = record(Session { pokes, ..session(clock) });
            assert_eq!(exit, VmExit::DebugExit(DONE), "{clock:?} pokes {pokes}");
            let trace = Trace::from_bytes("t", bytes.clone()).unwrap();
            let serial = |r: &retrovisor_replay::Record| r.what.kind() == "serial";
            let inputs = trace.records().filter(|r| serial(r.as_ref().unwrap())).count();
            assert!(inputs > 3, "{inputs} inputs");
            let report = check(bytes).unwrap_or_else(|e| panic!("{clock:?} pokes {pokes}: {e}"));
            assert_eq!(report.reason, Some(ExitReason::DebugExit(DONE)));
            assert_eq!(report.when, trace.ending().when());
            let hashes =
                trace.records().filter(|r| matches!(r.as_ref().unwrap().what, What::Hash { .. })).count();
            assert_eq!(report.hashes, hashes as u64);
            assert!(hashes > 2);
        }
    }
}

#[test]
fn test_session_ended_by_the_user_replays_to_its_end() {
    for clock in [ClockKind::Virtual, ClockKind::Host] {
        for quit_after in 2..8 {
            let (bytes, exit) = record(Session { quit_after: Some(quit_after), ..session(clock) });
            assert!(matches!(exit, VmExit::Interrupted | VmExit::Reached), "{exit:?}");
            let report = check(bytes).unwrap_or_else(|e| panic!("{clock:?} {quit_after}: {e}"));
            assert_eq!(report.reason, Some(ExitReason::Quit));
        }
    }
}

#[test]
fn test_cut_session_replays_up_to_the_cut() {
    for clock in [ClockKind::Virtual, ClockKind::Host] {
        let (bytes, _) = record(session(clock));
        let whole = Trace::from_bytes("t", bytes.clone()).unwrap();
        assert!(matches!(whole.ending(), Ending::Complete(_)));
        for part in 1..8 {
            let n = bytes.len() - part * whole.frame_bytes() as usize / 8;
            let report = check(bytes[..n].to_vec()).unwrap();
            assert!(report.cut.is_some());
        }
    }
}

#[test]
fn test_another_machine_diverges() {
    let (bytes, _) = record(session(ClockKind::Virtual));
    let trace = Trace::from_bytes("t", bytes).unwrap();
    let (mut machine, images) = trace.machine().unwrap();
    machine.ns_per_insn = 2;
    // The same inputs in the file of a machine with another clock rate.
    let (recording, file) = Recording::in_memory(&machine, &images).unwrap();
    let mut port = recording.port(retrovisor_core::input::NoInput);
    use retrovisor_core::input::InputPort;
    for r in trace.records() {
        let r = r.unwrap();
        match r.what {
            What::Event(e) => port.inject(r.when, &e),
            What::Hash { hash, .. } => {
                port.check(r.when, hash);
            }
            What::Answer { .. } => {}
        }
    }
    recording.flush(trace.ending().when());
    let e = check(file.bytes()).unwrap_err();
    assert!(matches!(e, VerifyError::Diverged { .. }), "{e}");
}
