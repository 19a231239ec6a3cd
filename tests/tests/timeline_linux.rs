//! Moving in time over the boot of a Debian kernel: a long random walk, on both engines, with histories of different density.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retrovisor_core::clock::ClockKind;
use retrovisor_core::engine::Engine;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::NoInput;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::{Gpa, Icount};
use retrovisor_replay::{IdlePolicy, Live, Mailbox, Recording, Timeline};
use retrovisor_tests::guests::{self, Kernel};
use retrovisor_tests::initramfs;
use retrovisor_tests::script::{Screen, Script};
use retrovisor_tests::ticker::Random;
use std::collections::HashMap;

/// Steps of a walk; more with RETROVISOR_WALK.
fn steps() -> usize {
    std::env::var("RETROVISOR_WALK").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

/// A machine that boots `kernel` to a shell that works a little, and its history.
fn boot(kernel: Kernel, vcpus: u8, clock: ClockKind, budget: u64) -> (Vm, Timeline) {
    let busybox = guests::busybox(kernel.arch()).unwrap_or_else(|e| panic!("{e}"));
    let init = "#!/bin/sh\nmount -t proc proc /proc\nls -l /proc >/dev/null; ps; echo the-end\n\
                while true; do sleep 1; done\n";
    let images = Images {
        kernel: Some(guests::vmlinux(kernel).unwrap_or_else(|e| panic!("{e}"))),
        initrd: Some(initramfs::with_init(&busybox, init)),
        cmdline: "console=ttyS0 quiet".into(),
        ..Images::default()
    };
    let config = MachineConfig { vcpus, clock, ..MachineConfig::default() };
    let recording = Recording::unwritten(&config);
    let (screen, mailbox) = (Screen::default(), Mailbox::new());
    let output = Box::new(recording.output(screen.clone()));
    let mut vm = match clock {
        ClockKind::Virtual => {
            let port = recording.port(Script::new(NoInput, &[], screen.clone()));
            Vm::new(config, images, Box::new(port), output).unwrap()
        }
        ClockKind::Host => {
            let port = recording.port(Live::new(mailbox.clone(), clock, IdlePolicy::RealTime));
            Vm::new(config, images, Box::new(port), output).unwrap()
        }
    };
    let mut timeline = Timeline::live(&mut vm, recording, mailbox, budget);
    while !screen.text().contains("the-end") {
        let at = vm.when().icount + 20_000_000;
        assert_eq!(timeline.run(&mut vm, Some(at)), VmExit::Reached, "{}", screen.text());
    }
    (vm, timeline)
}

/// Walks about; the states met are the same as those in `seen`, which has them by icount.
fn walk(vm: &mut Vm, timeline: &mut Timeline, seed: u64, steps: usize, seen: &mut HashMap<u64, StateHash>) {
    let (mut random, start) = (Random(seed), vm.engine);
    let points: Vec<u64> = (0..8).map(|_| random.below(timeline.end(vm).icount.0)).collect();
    for step in 0..steps {
        let (here, end) = (vm.when().icount.0, timeline.end(vm).icount.0);
        match random.below(8) {
            // Places come up again and again, by other ways.
            0..=2 => timeline.seek(vm, Icount(points[random.below(8) as usize])).unwrap(),
            3 => timeline.seek(vm, Icount(random.below(end))).unwrap(),
            4 => {
                // The interpreter goes some of the way.
                vm.engine = Engine::Interp;
                let to = Icount((here + random.below(1 << 20)).min(end - 1));
                timeline.run(vm, Some(to.max(Icount(here))));
                vm.engine = start;
            }
            5 => {
                let to = points.iter().copied().filter(|p| *p > here).min().unwrap_or(here);
                timeline.run(vm, Some(Icount(to)));
            }
            6 => (0..random.below(12)).for_each(|_| assert!(timeline.reverse_step(vm, vm.current).unwrap())),
            _ => {
                let gpa = Gpa(random.below(1 << 24) & !7);
                let (at, hash) = (vm.when(), vm.state_hash());
                timeline.last_write(vm, gpa, 8).unwrap();
                assert_eq!((vm.when(), vm.state_hash()), (at, hash), "step {step}");
            }
        }
        if timeline.in_past(vm) {
            let (at, hash) = (vm.when().icount.0, vm.state_hash());
            assert_eq!(*seen.entry(at).or_insert(hash), hash, "at instruction {at}, step {step}");
        }
    }
}

#[test]
fn a_walk_over_a_boot_meets_one_state_at_each_point() {
    let mut seen = HashMap::new();
    // The second history has room for few checkpoints.
    for (seed, budget) in [(11, 512 << 20), (12, 40 << 20)] {
        let (mut vm, mut timeline) = boot(Kernel::CloudAmd64, 1, ClockKind::Virtual, budget);
        let head = (vm.when(), vm.state_hash());
        walk(&mut vm, &mut timeline, 11, steps(), &mut seen);
        walk(&mut vm, &mut timeline, seed, steps() / 2, &mut seen);
        timeline.seek(&mut vm, Icount(u64::MAX)).unwrap();
        assert_eq!((vm.when(), vm.state_hash()), head);
        assert_eq!(timeline.run(&mut vm, Some(head.0.icount + 1_000_000)), VmExit::Reached);
    }
    assert!(seen.len() > 20, "{}", seen.len());
}

#[test]
fn vcpus_that_take_turns_and_a_clock_that_runs_are_no_different() {
    for (vcpus, clock) in [(2, ClockKind::Virtual), (1, ClockKind::Host)] {
        let (mut vm, mut timeline) = boot(Kernel::CloudAmd64, vcpus, clock, 256 << 20);
        walk(&mut vm, &mut timeline, 5, steps() / 2, &mut HashMap::new());
        timeline.seek(&mut vm, Icount(u64::MAX)).unwrap();
        let end = vm.when().icount + 1_000_000;
        assert_eq!(timeline.run(&mut vm, Some(end)), VmExit::Reached);
    }
}
