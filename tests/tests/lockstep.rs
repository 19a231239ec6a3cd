//! The engines in lockstep: whole runs without a difference, and planted differences that are found and well told.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retrovisor_core::clock::ClockKind;
use retrovisor_core::input::{InputEvent, InputPort, NoInput};
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::{Gpa, Icount};
use retrovisor_replay::{
    ExitReason, IdlePolicy, Live, Machine, Mailbox, Mismatch, Recording, Stride, Trace, VerifyError,
    VerifyOptions, verify,
};
use retrovisor_tests::guests::{self, Kernel};
use retrovisor_tests::script::{Session, Step};
use retrovisor_tests::ticker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const TICKS: u32 = 40;

fn every(stride: Stride) -> VerifyOptions {
    VerifyOptions { lockstep: Some(stride), ..VerifyOptions::default() }
}

fn machine(options: VerifyOptions, input: Box<dyn InputPort>) -> Machine {
    Machine::live(
        ticker::config(ClockKind::Virtual),
        ticker::images(TICKS),
        options,
        input,
        Box::new(NullSink),
    )
    .unwrap()
}

const STRIDES: [Stride; 6] = [
    Stride::Blocks(1),
    Stride::Blocks(16),
    Stride::Instructions(1),
    Stride::Instructions(7),
    Stride::Instructions(1000),
    Stride::Instructions(1 << 20),
];

#[test]
fn a_guest_runs_in_lockstep_as_it_runs_alone() {
    let mut alone = machine(VerifyOptions::default(), Box::new(NoInput));
    assert_eq!(alone.run(None), VmExit::DebugExit(ticker::DONE));
    let end = (alone.when(), alone.state_hash());
    for stride in STRIDES {
        let mut vm = machine(every(stride), Box::new(NoInput));
        let exit = vm.run(None);
        assert!(vm.mismatch().is_none(), "{stride:?}: {}", vm.mismatch().unwrap());
        assert_eq!(exit, VmExit::DebugExit(ticker::DONE), "{stride:?}");
        assert_eq!((vm.when(), vm.state_hash()), end, "{stride:?}");
        let reference = vm.lockstep().unwrap().reference();
        assert_eq!((reference.when(), reference.state_hash()), end, "{stride:?}");
        assert!(vm.lockstep().unwrap().stats().pages > 30, "{:?}", vm.lockstep().unwrap().stats());
    }
}

#[test]
fn runs_end_exactly_where_they_are_told_to() {
    for stride in STRIDES {
        let mut vm = machine(every(stride), Box::new(NoInput));
        for to in [1, 2, 1000, 70_000, 200_001, 200_001, 300_000] {
            assert_eq!(vm.run(Some(Icount(to))), VmExit::Reached);
            assert_eq!(vm.when().icount, Icount(to), "{stride:?}");
        }
        assert_eq!(vm.step(), VmExit::Reached);
        assert_eq!(vm.when().icount, Icount(300_001));
    }
}

/// Runs with another thread at the keyboard and a debugger that writes now and then.
fn live(vm: &mut Machine, mailbox: &Arc<Mailbox>) -> VmExit {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
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
        let mut stops = 0u64;
        let exit = loop {
            match vm.run(None) {
                VmExit::Interrupted => {
                    stops += 1;
                    let bytes = stops.to_le_bytes().to_vec();
                    vm.inject(&InputEvent::WritePhys { gpa: 0x1c_0000 + stops % 64 * 8, bytes });
                    vm.inject(&InputEvent::WriteReg { vcpu: 0, reg: 5, value: stops.into() });
                }
                exit => break exit,
            }
        };
        over.store(true, Ordering::Relaxed);
        assert!(stops > 3, "{stops}");
        exit
    })
}

#[test]
fn both_machines_hear_a_live_run_and_its_recording_verifies_in_lockstep() {
    for clock in [ClockKind::Virtual, ClockKind::Host] {
        for stride in [Stride::Blocks(1), Stride::Instructions(100)] {
            let (config, images) = (ticker::config(clock), ticker::images(TICKS));
            let (recording, file) = Recording::in_memory(&config, &images).unwrap();
            let mailbox = Mailbox::new();
            let port = recording.port(Live::new(Arc::clone(&mailbox), clock, IdlePolicy::RealTime));
            let output = Box::new(recording.output(NullSink));
            let mut vm = Machine::live(config, images, every(stride), Box::new(port), output).unwrap();
            let exit = live(&mut vm, &mailbox);
            assert!(vm.mismatch().is_none(), "{clock:?} {stride:?}: {}", vm.mismatch().unwrap());
            assert_eq!(exit, VmExit::DebugExit(ticker::DONE), "{clock:?} {stride:?}");
            recording.finish_vm(&mut vm, ExitReason::from_exit(exit)).unwrap();
            let trace = Trace::from_bytes("session.rvt", file.bytes()).unwrap();
            for options in [VerifyOptions::default(), every(stride), every(Stride::Blocks(9))] {
                let report = verify(&trace, options, &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!((report.when, report.hash), (vm.when(), vm.state_hash()));
            }
        }
    }
}

#[test]
fn a_trace_of_another_machine_diverges_from_the_trace_not_in_lockstep() {
    let (mut config, images) = (ticker::config(ClockKind::Virtual), ticker::images(TICKS));
    let (recording, file) = Recording::in_memory(&config, &images).unwrap();
    let output = Box::new(recording.output(NullSink));
    config.ns_per_insn = 2;
    let mut vm = Vm::new(config, images, Box::new(recording.port(NoInput)), output).unwrap();
    let exit = vm.run(None);
    recording.finish_vm(&mut vm, ExitReason::from_exit(exit)).unwrap();
    let trace = Trace::from_bytes("t", file.bytes()).unwrap();
    let e = verify(&trace, every(Stride::Blocks(1)), &mut |_| ()).unwrap_err();
    assert!(matches!(e, VerifyError::Diverged { .. }), "{e}");
}

/// Runs 100,000 instructions, lets `plant` change something, and runs on: what is said about it.
fn planted(stride: Stride, plant: impl FnOnce(&mut Machine)) -> Mismatch {
    let mut vm = machine(every(stride), Box::new(NoInput));
    assert_eq!(vm.run(Some(Icount(100_000))), VmExit::Reached);
    plant(&mut vm);
    assert_eq!(vm.run(None), VmExit::Diverged, "{stride:?}: not found");
    assert_eq!(vm.run(None), VmExit::Diverged, "for good");
    vm.mismatch().unwrap().clone()
}

/// The marked lines of a report.
fn marked(m: &Mismatch) -> Vec<&str> {
    m.details.lines().filter(|l| l.contains("<<")).collect()
}

/// The names of the registers they are about.
fn names(m: &Mismatch) -> Vec<&str> {
    marked(m).iter().map(|l| l.split_whitespace().next().unwrap()).collect()
}

#[test]
fn a_planted_register_is_found_in_the_very_step_and_told() {
    let m = planted(Stride::Blocks(1), |vm| vm.vcpus[0].gpr[15] ^= 0x40);
    assert_eq!(m.from, Icount(100_000), "{m}");
    assert!(m.at > m.from && m.at < m.from + 100, "{m}");
    assert_eq!(names(&m), ["r15"], "{m}");
    assert!(marked(&m)[0].contains("0000000000000040"), "{m}");
    assert!(m.headline().ends_with(": r15"), "{m}");
    // The listing begins with the instruction the step began with: address, bytes, text.
    let code = m.details.lines().skip_while(|l| !l.starts_with("guest code")).nth(1).unwrap();
    assert!(code.trim_start().starts_with("0x000000000010"), "{m}");
    assert!(m.details.contains("rip") && m.details.contains("32-bit code, CPL 0"), "{m}");
    // Below it what the block became: each guest instruction, and indented the host's.
    let host: Vec<&str> = m.details.lines().skip_while(|l| *l != "translated code:").skip(1).collect();
    let first = code.split_whitespace().next().unwrap();
    let rip = u64::from_str_radix(first.trim_start_matches("0x"), 16).unwrap();
    assert!(host[0].starts_with(&format!("block at {rip:#x}, ")), "{m}");
    let at = host.iter().position(|l| *l == code).unwrap_or_else(|| panic!("{m}"));
    assert!(host[at + 1].starts_with("      0x"), "{m}");
    assert!(host.contains(&"  off the straight path:"), "{m}");
    // The other machine's register.
    let m = planted(Stride::Blocks(1), |vm| vm.lockstep().unwrap().reference().vcpus[0].gpr[15] ^= 0x40);
    assert_eq!(names(&m), ["r15"], "{m}");
}

#[test]
fn planted_state_of_every_kind_is_found() {
    for stride in [Stride::Blocks(1), Stride::Blocks(40), Stride::Instructions(25)] {
        let m = planted(stride, |vm| vm.vcpus[0].fpu.xmm[9] ^= 1 << 77);
        assert_eq!(names(&m), ["xmm9"], "{m}");
        let m = planted(stride, |vm| vm.vcpus[0].msr.sysenter_eip ^= 1 << 7);
        assert_eq!(names(&m), ["sysenter_eip"], "{m}");
        let m = planted(stride, |vm| vm.vcpus[0].seg[5].limit ^= 1 << 7);
        assert_eq!(names(&m), ["gs.limit"], "{m}");
        let m = planted(stride, |vm| vm.vcpus[0].flags.0 ^= 1 << 21);
        assert_eq!(names(&m), ["rflags"], "{m}");
        assert!(marked(&m)[0].contains("ID"), "{m}");
        let m = planted(stride, |vm| vm.sys.clock.skew += 5);
        assert!(m.headline().contains("guest time"), "{m}");
    }
}

#[test]
fn a_planted_byte_of_memory_is_found_and_told() {
    let noted = |vm: &mut Machine| {
        vm.sys.mem.write_phys(Gpa(0x30_0123), &[0x5a]);
    };
    for stride in [Stride::Blocks(1), Stride::Blocks(16), Stride::Instructions(300)] {
        let m = planted(stride, noted);
        assert_eq!(m.from, Icount(100_000), "{m}");
        assert!(m.headline().ends_with("1 bytes of memory from gpa 0x300123 on"), "{m}");
        assert!(m.details.contains("gpa 0x300123: interpreter 00"), "{m}");
        assert!(m.details.contains("translator 5a"), "{m}");
        assert!(marked(&m).is_empty(), "{m}");
    }
    // A write nobody noted is found when all of memory is compared: here at the end.
    let m = planted(Stride::Blocks(64), |vm| vm.sys.mem.ram.write_bytes(0x30_0123, &[0x5a]));
    assert!(m.headline().contains("DebugExit") || m.headline().contains("gpa 0x300123"), "{m}");
}

#[test]
fn a_planted_device_state_is_found_and_named() {
    // The PCI host bridge's configuration address: nothing in the guest looks at it.
    let m = planted(Stride::Instructions(1000), |vm| {
        let vm: &mut Vm = vm;
        let (board, mut bus) = vm.sys.bus();
        board.pio_write(0, 0xcf8, 4, 0x8000_0040, &mut bus);
    });
    assert!(m.headline().contains("state of pci"), "{m}");
    assert!(m.details.contains("saved state of pci"), "{m}");
}

#[test]
fn machines_that_end_differently_are_told_apart() {
    let m = planted(Stride::Blocks(1), |vm| {
        // The translator's machine is switched off by a reset line only it has.
        vm.sys.board.events.push(retrovisor_core::machine::board::BoardEvent::Reset);
    });
    assert!(m.headline().contains("interpreter Reached, translator Reset"), "{m}");
}

/// To the init of a Debian kernel, some commands, and off.
const LINES: &[Step] =
    &[("guest ready", "ls /; dd if=/dev/zero bs=64k count=1 2>/dev/null | sha256sum; exit\n")];

/// A session recorded on the translator, verified in lockstep.
fn boots_in_lockstep(kernel: Kernel, clock: ClockKind, stride: Stride) {
    let images = guests::shell(kernel).unwrap_or_else(|e| panic!("{e}"));
    let config = MachineConfig { clock, no_reboot: true, ..MachineConfig::default() };
    let done = Session::new(config, images, LINES).run(Icount(30_000_000_000));
    assert_eq!(done.exit, VmExit::PowerOff, "{}", done.screen);
    let trace = Trace::from_bytes("session.rvt", done.trace).unwrap();
    let report = verify(&trace, every(stride), &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((report.when, report.hash), (done.when, done.hash));
}

#[test]
fn debian_amd64_in_lockstep() {
    boots_in_lockstep(Kernel::CloudAmd64, ClockKind::Virtual, Stride::Blocks(16))
}

#[test]
fn debian_i686_in_lockstep() {
    boots_in_lockstep(Kernel::I686, ClockKind::Host, Stride::Instructions(1000))
}
