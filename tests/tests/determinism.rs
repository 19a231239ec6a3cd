//! A run is a function of its machine, images and inputs: not of how it is sliced, polled, saved or watched.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retrovisor_core::addr::PAGE_SIZE;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{NoInput, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::{Gpa, Icount};
use retrovisor_replay::{ExitReason, Recording, Replay, Trace, VerifyOptions, verify};
use retrovisor_tests::guests::{self, Arch, Kernel};
use retrovisor_tests::initramfs;
use retrovisor_tests::program;
use retrovisor_tests::script::Session;
use retrovisor_tests::ticker::{self, Keys, Random};

fn vm(cadence: Option<u64>) -> Vm {
    Vm::new(
        ticker::config(ClockKind::Virtual),
        ticker::images(300),
        Box::new(Keys::new(cadence)),
        Box::new(NullSink),
    )
    .unwrap()
}

/// Where it ended, and in which state.
type End = (VmExit, When, StateHash);

fn end(vm: &mut Vm, exit: VmExit) -> End {
    (exit, vm.when(), vm.state_hash())
}

fn straight() -> End {
    let mut vm = vm(None);
    let exit = vm.run(None);
    assert_eq!(exit, VmExit::DebugExit(ticker::DONE));
    end(&mut vm, exit)
}

/// Runs to the end in random slices, doing `between` after each.
fn sliced(mut vm: Vm, seed: u64, mut between: impl FnMut(Vm, &mut Random) -> Vm) -> End {
    let mut random = Random(seed);
    loop {
        let to = vm.when().icount + random.slice(17);
        match vm.run(Some(to)) {
            VmExit::Reached => assert_eq!(vm.when().icount, to, "seed {seed}"),
            exit => return end(&mut vm, exit),
        }
        vm = between(vm, &mut random);
    }
}

#[test]
fn random_stops_change_nothing() {
    let whole = straight();
    for seed in 1..=8 {
        assert_eq!(sliced(vm(None), seed, |vm, _| vm), whole, "seed {seed}");
    }
}

#[test]
fn looking_at_the_state_changes_nothing() {
    let whole = straight();
    let looked = sliced(vm(None), 99, |mut vm, _| {
        vm.state_hash();
        vm.save_state();
        vm
    });
    assert_eq!(looked, whole);
}

#[test]
fn poll_cadence_changes_nothing() {
    let whole = straight();
    for cadence in [1, 7, 1000, 33_333] {
        let mut vm = vm(Some(cadence));
        let exit = vm.run(None);
        assert_eq!(end(&mut vm, exit), whole, "every {cadence} instructions");
    }
}

/// A new machine with the memory and the state of `old`.
fn moved(mut old: Vm) -> Vm {
    let (state, config) = (old.save_state(), old.config.clone());
    // Memory and state move, the port with what it has still to say comes along.
    let input = std::mem::replace(&mut old.sys.input, Box::new(NoInput));
    let mut new = Vm::new(config, old.images.clone(), input, Box::new(NullSink)).unwrap();
    let mut page = vec![0; PAGE_SIZE as usize];
    for at in (0..old.config.memory).step_by(PAGE_SIZE as usize) {
        old.sys.mem.read_phys(Gpa(at), &mut page);
        new.sys.mem.write_phys(Gpa(at), &page);
    }
    new.load_state(&state).unwrap();
    assert_eq!(new.state_hash(), old.state_hash());
    new
}

#[test]
fn a_restored_machine_goes_on_alike() {
    let whole = straight();
    for seed in 1..=3 {
        let mut moves = 0;
        let restored = sliced(vm(None), seed, |vm, random| {
            if random.draw() % 16 != 0 || moves >= 25 {
                return vm;
            }
            moves += 1;
            moved(vm)
        });
        assert_eq!(restored, whole, "seed {seed}");
        assert!(moves > 5, "{moves}");
    }
}

#[test]
fn recordings_replay_in_any_slices() {
    let (recording, file) =
        Recording::in_memory(&ticker::config(ClockKind::Virtual), &ticker::images(300)).unwrap();
    let (port, output) = (recording.port(Keys::new(None)), recording.output(NullSink));
    let mut vm =
        Vm::new(ticker::config(ClockKind::Virtual), ticker::images(300), Box::new(port), Box::new(output))
            .unwrap();
    let exit = vm.run(None);
    recording.finish_vm(&mut vm, ExitReason::from_exit(exit)).unwrap();
    let whole = end(&mut vm, exit);
    assert_eq!(whole, straight(), "recording changes nothing");
    let trace = Trace::from_bytes("t.rvt", file.bytes()).unwrap();
    let report = verify(&trace, VerifyOptions::default(), &mut |_| ()).unwrap();
    assert_eq!((report.when, report.hash), (whole.1, whole.2));
    for seed in 1..=4 {
        let mut replay = Replay::new(&trace, VerifyOptions::default(), Box::new(NullSink)).unwrap();
        let mut random = Random(seed);
        let report = loop {
            let to = replay.vm.when().icount + random.slice(17);
            let exit = replay.vm.run(Some(to));
            if let Some(report) = replay.conclude(exit) {
                break report.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            }
        };
        assert_eq!((report.when, report.hash), (whole.1, whole.2), "seed {seed}");
    }
}

#[test]
fn random_stops_change_nothing_in_the_demo_guest() {
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("guest.elf").display().to_string();
    program::run(&["demo", "--elf", &elf]).expect(0);
    let images = Images { kernel: Some(std::fs::read(elf).unwrap()), ..Images::default() };
    let config = MachineConfig { memory: 32 << 20, ..ticker::config(ClockKind::Virtual) };
    let vm = || Vm::new(config.clone(), images.clone(), Box::new(NoInput), Box::new(NullSink)).unwrap();
    let mut whole = vm();
    let exit = whole.run(None);
    assert!(matches!(exit, VmExit::DebugExit(_)), "{exit:?}");
    let whole = end(&mut whole, exit);
    for seed in 1..=3 {
        assert_eq!(sliced(vm(), seed, |vm, _| vm), whole, "seed {seed}");
    }
}

/// Linux on two vCPUs to its init and off.
fn smp_boot() -> End {
    let need = |r: Result<Vec<u8>, guests::Missing>| r.unwrap_or_else(|e| panic!("{e}"));
    let init = "#!/bin/sh\nmount -t proc proc /proc\ngrep -c ^processor /proc/cpuinfo\npoweroff -f\n";
    let images = Images {
        kernel: Some(need(guests::vmlinux(Kernel::CloudAmd64))),
        initrd: Some(initramfs::with_init(&need(guests::busybox(Arch::Amd64)), init)),
        cmdline: "console=ttyS0".into(),
        ..Images::default()
    };
    let config =
        MachineConfig { vcpus: 2, clock: ClockKind::Virtual, no_reboot: true, ..MachineConfig::default() };
    let done = Session::new(config, images, &[]).run(Icount(30_000_000_000));
    assert_eq!(done.exit, VmExit::PowerOff, "{}", done.screen);
    assert!(done.screen.contains("Brought up 1 node, 2 CPUs"), "{}", done.screen);
    assert!(done.screen.contains("\n2\r\n"), "{}", done.screen);
    (done.exit, done.when, done.hash)
}

#[test]
fn linux_on_two_vcpus_boots_the_same_way_twice() {
    assert_eq!(smp_boot(), smp_boot());
}
