//! A small interrupt-driven guest, recorded with inputs from other threads, replays exactly on both clocks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use retrovisor_core::Icount;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::input::InputEvent;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_replay::{
    Ending, ExitReason, IdlePolicy, Live, Mailbox, Recording, Report, Trace, VerifyError, VerifyOptions,
    What, verify,
};
use retrovisor_tests::ticker::{DONE, config, guest};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

#[test]
fn test_interrupt_of_an_idle_wait_is_taken_once() {
    use iced_x86::code_asm::{al, eax};
    let kernel = retrovisor_tests::asm::multiboot(|a| {
        // The timer firmware left running stops: mode 0, and no count.
        a.mov(eax, 0x30).unwrap();
        a.out(0x43, al).unwrap();
        a.sti().unwrap();
        a.hlt().unwrap();
    });
    let images = Images { kernel: Some(kernel), ..Images::default() };
    let mailbox = Mailbox::new();
    let live = Live::new(Arc::clone(&mailbox), ClockKind::Virtual, IdlePolicy::RealTime);
    let mut vm = Vm::new(config(ClockKind::Virtual), images, Box::new(live), Box::new(NullSink)).unwrap();
    // Into the wait, with no look at the port before it ends.
    assert_eq!(vm.run(Some(Icount(4))), VmExit::Reached);
    mailbox.interrupt();
    // Out of the wait, then by the look at the port that follows.
    assert_eq!([vm.run(None), vm.run(None)], [VmExit::Interrupted; 2]);
    assert!(!mailbox.take_interrupt(), "taken");
}
