//! Recordings are of no engine: what one recorded the other replays exactly, on both clocks and in any slices.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retrovisor_core::Icount;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::engine::Engine;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{InputEvent, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_replay::{
    ExitReason, IdlePolicy, Live, Mailbox, Recording, Replay, Report, Trace, VerifyOptions, verify,
};
use retrovisor_tests::guests::{self, Kernel};
use retrovisor_tests::script::{Session, Step};
use retrovisor_tests::ticker::Random;
use retrovisor_tests::{program, ticker};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const CLOCKS: [ClockKind; 2] = [ClockKind::Virtual, ClockKind::Host];
const ENGINES: [Engine; 2] = [Engine::Jit, Engine::Interp];

/// The engine that did not record.
const fn other(engine: Engine) -> Engine {
    match engine {
        Engine::Jit => Engine::Interp,
        Engine::Interp => Engine::Jit,
    }
}

fn on(engine: Engine) -> VerifyOptions {
    VerifyOptions { engine, ..VerifyOptions::default() }
}

/// A recorded run: its trace, and where and how it ended.
struct Recorded {
    trace: Arc<Trace>,
    end: (When, StateHash),
    reason: ExitReason,
}

/// The demo's kernel: paging, user programs, timer interrupts, and a crash at the end.
fn demo_guest() -> Images {
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("guest.elf").display().to_string();
    program::run(&["demo", "--elf", &elf]).expect(0);
    Images { kernel: Some(std::fs::read(elf).unwrap()), kernel_name: "guest".into(), ..Images::default() }
}

/// Sessions with the small guests are no longer than this. On the virtual clock both end by themselves before; on the
/// host's, the demo's crash comes or does not.
const LONGEST: Icount = Icount(60_000_000);

/// Records a guest, with another thread at the keyboard.
fn record(engine: Engine, clock: ClockKind, images: &Images) -> Recorded {
    let config = MachineConfig {
        memory: 32 << 20,
        clock,
        debug_exit: Some((0xf4, 4)),
        no_reboot: true,
        hash_interval: 1 << 18,
        ..MachineConfig::default()
    };
    let (recording, file) = Recording::in_memory(&config, images).unwrap();
    let mailbox = Mailbox::new();
    let port = recording.port(Live::new(Arc::clone(&mailbox), clock, IdlePolicy::RealTime));
    let output = Box::new(recording.output(NullSink));
    let mut vm = Vm::new(config, images.clone(), Box::new(port), output).unwrap();
    vm.engine = engine;
    let over = AtomicBool::new(false);
    let exit = std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0u32.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                mailbox.push(InputEvent::Serial { port: 0, bytes: format!("line {n}\n").into_bytes() });
                std::thread::sleep(Duration::from_micros(700));
            }
        });
        let exit = vm.run(Some(LONGEST));
        over.store(true, Ordering::Relaxed);
        exit
    });
    let ended = matches!(exit, VmExit::DebugExit(_));
    assert!(ended || clock == ClockKind::Host && exit == VmExit::Reached, "{engine:?} {clock:?}: {exit:?}");
    assert_eq!(vm.jit_stats().entries > 0, engine == Engine::Jit, "the engine is the one asked for");
    let reason = ExitReason::from_exit(exit);
    recording.finish_vm(&mut vm, reason).unwrap();
    let trace = Trace::from_bytes("session.rvt", file.bytes()).unwrap();
    Recorded { trace, end: (vm.when(), vm.state_hash()), reason }
}

/// The recording replays exactly on `engine`.
#[track_caller]
fn verified(r: &Recorded, engine: Engine, hashes: u64) {
    let report = verify(&r.trace, on(engine), &mut |_| ()).unwrap_or_else(|e| panic!("on {engine:?}: {e}"));
    ended_alike(r, &report);
    assert!(report.hashes > hashes, "{} hashes", report.hashes);
}

#[track_caller]
fn ended_alike(r: &Recorded, report: &Report) {
    assert_eq!((report.when, report.hash), r.end);
    assert_eq!(report.reason, Some(r.reason));
    assert!(report.cut.is_none());
}

/// The recording replays exactly on the translator in random slices of about up to two to the power of `bits`.
fn sliced(r: &Recorded, bits: u64, seed: u64) {
    let mut replay = Replay::new(&r.trace, on(Engine::Jit), Box::new(NullSink)).unwrap();
    let mut random = Random(seed);
    let report = loop {
        let to = replay.vm.when().icount + random.slice(bits);
        let exit = replay.vm.run(Some(to));
        match replay.conclude(exit) {
            Some(report) => break report.unwrap_or_else(|e| panic!("seed {seed}: {e}")),
            None => assert_eq!((exit, replay.vm.when().icount), (VmExit::Reached, to), "seed {seed}"),
        }
    };
    ended_alike(r, &report);
}

/// The state of a replay at an instruction does not depend on the engine that went there, nor on where it stopped on
/// its way.
fn sought(r: &Recorded, seed: u64) {
    let mut random = Random(seed);
    let end = r.end.0.icount.0;
    for _ in 0..4 {
        let to = Icount(1 + random.draw() % (end - 1));
        let way = Icount(1 + random.draw() % to.0);
        let found =
            [(Engine::Interp, None), (Engine::Jit, None), (Engine::Jit, Some(way))].map(|(engine, way)| {
                let mut replay = Replay::new(&r.trace, on(engine), Box::new(NullSink)).unwrap();
                for to in way.into_iter().chain([to]) {
                    assert_eq!(replay.vm.run(Some(to)), VmExit::Reached, "{engine:?}");
                    assert_eq!(replay.vm.when().icount, to, "{engine:?}");
                }
                (replay.vm.when(), replay.vm.state_hash())
            });
        assert!(found.iter().all(|f| *f == found[0]), "at {to} by {way}: {found:?}");
    }
}

#[test]
fn what_one_engine_recorded_the_other_replays() {
    for images in [demo_guest(), ticker::images(100)] {
        for clock in CLOCKS {
            for engine in ENGINES {
                let r = record(engine, clock, &images);
                let typed = r.trace.records().filter(|r| r.as_ref().unwrap().what.kind() == "serial").count();
                assert!(typed > 3, "{typed} inputs");
                ENGINES.iter().for_each(|e| verified(&r, *e, 1));
            }
        }
    }
}

#[test]
fn replays_on_the_translator_end_alike_in_any_slices() {
    for (images, bits) in [(demo_guest(), 20), (ticker::images(100), 16)] {
        for clock in CLOCKS {
            for engine in ENGINES {
                let r = record(engine, clock, &images);
                (1..=2).for_each(|seed| sliced(&r, bits, seed));
                sliced(&r, 8, 3);
                sought(&r, 4);
            }
        }
    }
}

/// To the shell of a Debian kernel, a command, and off.
const LINES: &[Step] = &[("guest ready", "ls / | md5sum; exit\n")];

/// Records a Debian kernel up to its end, or up to `limit`.
fn boot(engine: Engine, clock: ClockKind, kernel: Kernel, limit: Option<Icount>) -> Recorded {
    let images = guests::shell(kernel).unwrap_or_else(|e| panic!("{e}"));
    let config = MachineConfig { clock, no_reboot: true, ..MachineConfig::default() };
    let mut session = Session::new(config, images, LINES);
    session.vm.engine = engine;
    let done = session.run(limit.unwrap_or(Icount(30_000_000_000)));
    let expected = if limit.is_some() { VmExit::Reached } else { VmExit::PowerOff };
    assert_eq!(done.exit, expected, "{}", done.screen);
    let trace = Trace::from_bytes("session.rvt", done.trace).unwrap();
    Recorded { trace, end: (done.when, done.hash), reason: ExitReason::from_exit(done.exit) }
}

#[test]
fn debian_amd64_recorded_on_one_engine_replays_on_the_other() {
    for (engine, clock) in [(Engine::Jit, ClockKind::Virtual), (Engine::Interp, ClockKind::Host)] {
        let r = boot(engine, clock, Kernel::CloudAmd64, None);
        verified(&r, other(engine), 40);
        sliced(&r, 26, 5);
    }
}

#[test]
fn debian_i686_recorded_on_one_engine_replays_on_the_other() {
    let r = boot(Engine::Jit, ClockKind::Host, Kernel::I686, None);
    verified(&r, Engine::Interp, 40);
    sliced(&r, 26, 6);
    // The other way round as far as a good part of the boot.
    let r = boot(Engine::Interp, ClockKind::Virtual, Kernel::I686, Some(Icount(1_500_000_000)));
    verified(&r, Engine::Jit, 40);
}
