//! Moving in time: whichever way leads to a point, the state there is the same; what is found backwards is what a run
//! forwards meets; and a live run that was taken back and forth goes on as if nothing had happened.

#![allow(clippy::unwrap_used)]

use retrovisor_core::clock::ClockKind;
use retrovisor_core::engine::Engine;
use retrovisor_core::engine::hooks::{Hooks, Occurrence, Wanted, Watch, WatchAddr, WatchKind};
use retrovisor_core::exception::vector;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{NoInput, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::{Gpa, Gva, Icount};
use retrovisor_replay::search::Reason;
use retrovisor_replay::{Mailbox, Recording, Timeline, TimelineError};
use retrovisor_tests::program;
use retrovisor_tests::ticker::{self, Keys, Random};
use std::collections::{BTreeMap, HashMap};

const ENGINES: [Engine; 2] = [Engine::Jit, Engine::Interp];

/// The ticker, live, with a history.
fn live(engine: Engine, budget: u64) -> (Vm, Timeline) {
    let config = ticker::config(ClockKind::Virtual);
    let recording = Recording::unwritten(&config);
    let (port, output) = (recording.port(Keys::new(None)), recording.output(NullSink));
    let mut vm = Vm::new(config, ticker::images(300), Box::new(port), Box::new(output)).unwrap();
    vm.engine = engine;
    let timeline = Timeline::live(&mut vm, recording, Mailbox::new(), budget);
    (vm, timeline)
}

/// How a run ends that nobody disturbed.
fn straight() -> (VmExit, When, StateHash) {
    let mut vm = Vm::new(
        ticker::config(ClockKind::Virtual),
        ticker::images(300),
        Box::new(Keys::new(None)),
        Box::new(NullSink),
    )
    .unwrap();
    let exit = vm.run(None);
    (exit, vm.when(), vm.state_hash())
}

#[test]
fn a_random_walk_meets_one_state_at_each_point_and_changes_nothing() {
    for (engine, budget) in ENGINES.into_iter().zip([64 << 20, 256 << 10]) {
        let (mut vm, mut timeline) = live(engine, budget);
        let mut random = Random(0x7157);
        let mut seen: HashMap<u64, StateHash> = HashMap::new();
        let mut visits = 0;
        let exit = loop {
            let end = timeline.end(&vm).icount.0;
            let here = vm.when().icount.0;
            match random.below(10) {
                0..=2 => {
                    let exit = timeline.run(&mut vm, Some(Icount(here + random.slice(17))));
                    if exit != VmExit::Reached {
                        break exit;
                    }
                }
                3 => {
                    let exit = timeline.run(&mut vm, Some(Icount(end + random.slice(17))));
                    if exit != VmExit::Reached {
                        break exit;
                    }
                }
                4..=6 => match timeline.seek(&mut vm, Icount(random.below(end + 1))) {
                    Ok(()) => {}
                    Err(TimelineError::BeforeStart { .. }) => continue,
                    Err(e) => panic!("{e}"),
                },
                _ => {
                    for _ in 0..random.below(20) {
                        timeline.reverse_step(&mut vm, 0).unwrap();
                    }
                }
            }
            if timeline.in_past(&vm) {
                let (at, hash) = (vm.when().icount.0, vm.state_hash());
                visits += 1;
                assert_eq!(*seen.entry(at).or_insert(hash), hash, "at instruction {at}, visit {visits}");
            }
            assert!(timeline.history().bytes() <= budget.max(3 << 20), "{}", timeline.history().bytes());
        };
        assert_eq!((exit, vm.when(), vm.state_hash()), straight(), "{engine:?}");
        assert!(visits > 100, "{visits}");
    }
}

/// Every stop of a run forwards to `end`, by the point a search backwards would name.
fn stops(engine: Engine, hooks: &Hooks, end: Icount) -> Vec<(Icount, Reason)> {
    let mut vm = Vm::new(
        ticker::config(ClockKind::Virtual),
        ticker::images(300),
        Box::new(Keys::new(None)),
        Box::new(NullSink),
    )
    .unwrap();
    (vm.hooks, vm.engine) = (hooks.clone(), engine);
    let mut all = Vec::new();
    let mut exit = vm.run_here(Some(end));
    while exit != VmExit::Reached {
        let here = vm.when().icount;
        let (at, reason) = match exit {
            VmExit::Breakpoint(at) => (here, Reason::Breakpoint(at)),
            VmExit::Exception(e) => (here, Reason::Exception(e)),
            VmExit::Watchpoint(hit) => (Icount(here.0 - 1), Reason::Watchpoint(hit)),
            VmExit::Occurred(what) => (Icount(here.0 - 1), Reason::Occurred(what)),
            other => panic!("{other:?}"),
        };
        all.push((at, reason));
        let done = matches!(exit, VmExit::Watchpoint(_) | VmExit::Occurred(_));
        exit = if done { vm.run_here(Some(end)) } else { vm.run(Some(end)) };
    }
    all.retain(|(at, _)| *at < end);
    all
}

fn looking_for(what: Wanted) -> Hooks {
    Hooks { wanted: vec![what], ..Hooks::default() }
}

#[test]
fn what_is_found_backwards_is_what_was_met_forwards() {
    let end = Icount(4_000_000);
    let watch = |addr, kind| Watch { addr, len: 4, kind };
    let ticks = u64::from(ticker::TICKS);
    // The timer's handler, by the address its gate holds.
    let handler = {
        let (mut vm, _) = live(Engine::Jit, 1 << 24);
        vm.run(Some(Icount(100_000)));
        let mut gate = [0; 8];
        vm.sys.mem.read_phys(Gpa(u64::from(ticker::IDT) + 0x20 * 8), &mut gate);
        u64::from(u16::from_le_bytes([gate[0], gate[1]]))
            | u64::from(u16::from_le_bytes([gate[6], gate[7]])) << 16
    };
    let wanted: BTreeMap<&str, Hooks> = [
        ("breakpoint", Hooks { breakpoints: [handler].into(), ..Hooks::default() }),
        (
            "write, physical",
            Hooks {
                watches: vec![watch(WatchAddr::Physical(Gpa(ticks)), WatchKind::Write)],
                ..Hooks::default()
            },
        ),
        (
            "access, virtual",
            Hooks {
                watches: vec![watch(WatchAddr::Virtual(Gva(ticks + 12)), WatchKind::Access)],
                ..Hooks::default()
            },
        ),
        (
            "both at once",
            Hooks {
                breakpoints: [handler].into(),
                watches: vec![watch(WatchAddr::Virtual(Gva(ticks)), WatchKind::Read)],
                ..Hooks::default()
            },
        ),
        ("interrupts", looking_for(Wanted::Interrupt(None))),
        ("serial interrupts", looking_for(Wanted::Interrupt(Some(0x24)))),
        ("ports", looking_for(Wanted::Port(None))),
        ("one port", looking_for(Wanted::Port(Some(0x3f8)))),
        ("never", Hooks { breakpoints: [0x10].into(), stop_exceptions: 1 << vector::DE, ..Hooks::default() }),
    ]
    .into();
    for engine in ENGINES {
        let (mut vm, mut timeline) = live(engine, 64 << 20);
        assert_eq!(timeline.run(&mut vm, Some(end)), VmExit::Reached);
        for (name, hooks) in &wanted {
            let all = stops(engine, hooks, end);
            assert_eq!(all.is_empty(), *name == "never");
            let mut random = Random(9);
            // From the head, then from hit to hit, then from anywhere.
            let mut from = end;
            for turn in 0..40 {
                if turn % 8 == 0 {
                    from = if turn == 0 { end } else { Icount(random.below(end.0)) };
                    timeline.seek(&mut vm, from).unwrap();
                }
                vm.hooks = hooks.clone();
                let found = timeline.reverse_continue(&mut vm).unwrap().map(|h| (h.at, h.reason));
                let expected = all.iter().rev().find(|(at, _)| *at < from);
                assert_eq!(found.as_ref(), expected, "{name}, from {from}");
                from = vm.when().icount;
                assert_eq!(from, found.map_or(Icount(0), |f| f.0), "{name}");
                vm.hooks = Hooks::default();
            }
        }
        // Forward again to the head, and to the end.
        assert_eq!(timeline.run(&mut vm, Some(end)), VmExit::Reached);
        assert!(!timeline.in_past(&vm));
        let exit = timeline.run(&mut vm, None);
        assert_eq!((exit, vm.when(), vm.state_hash()), straight());
    }
}

/// The demo's kernel: paging, two user programs, a timer.
fn demo(engine: Engine) -> Vm {
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("guest.elf").display().to_string();
    program::run(&["demo", "--elf", &elf]).expect(0);
    let images = Images { kernel: Some(std::fs::read(elf).unwrap()), ..Images::default() };
    let config = MachineConfig { memory: 32 << 20, clock: ClockKind::Virtual, ..MachineConfig::default() };
    let mut vm = Vm::new(config, images, Box::new(NoInput), Box::new(NullSink)).unwrap();
    vm.engine = engine;
    vm
}

#[test]
fn each_change_of_address_space_and_privilege_is_told_at_its_instruction() {
    let (from, end) = (Icount(900_000), Icount(1_500_000));
    let wanted = [Wanted::Cr3, Wanted::Cpl, Wanted::Interrupt(None), Wanted::Mmio(None)];
    let told = |engine: Engine, wanted: &[Wanted]| -> Vec<(Icount, Occurrence)> {
        let mut vm = demo(engine);
        vm.run(Some(from));
        vm.hooks.wanted = wanted.to_vec();
        let mut all = Vec::new();
        loop {
            match vm.run(Some(end)) {
                VmExit::Reached => return all,
                VmExit::Occurred(what) => all.push((vm.when().icount, what)),
                other => panic!("{other:?}"),
            }
        }
    };
    // What single steps show.
    let mut vm = demo(Engine::Interp);
    vm.run(Some(from));
    let mut seen = Vec::new();
    while vm.when().icount < end {
        let before = (vm.vcpus[0].cr3, vm.vcpus[0].mode.cpl);
        vm.step();
        let after = (vm.vcpus[0].cr3, vm.vcpus[0].mode.cpl);
        let at = vm.when().icount;
        if before.0 != after.0 {
            seen.push((at, Occurrence::Cr3 { from: before.0, to: after.0 }));
        }
        if before.1 != after.1 {
            seen.push((at, Occurrence::Cpl { from: before.1, to: after.1 }));
        }
    }
    let switches = seen.iter().filter(|(_, o)| matches!(o, Occurrence::Cr3 { .. })).count();
    assert!(switches > 0 && seen.len() > 2 * switches, "{seen:?}");
    for engine in ENGINES {
        assert_eq!(told(engine, &wanted[..2]), seen, "{engine:?}");
    }
    let all = told(Engine::Jit, &wanted);
    assert_eq!(all, told(Engine::Interp, &wanted));
    assert!(all.iter().any(|(_, o)| *o == Occurrence::Interrupt(0x20)), "{all:?}");
}

#[test]
fn the_last_writer_is_found_and_the_machine_stays_where_it_is() {
    let (mut vm, mut timeline) = live(Engine::Jit, 64 << 20);
    timeline.run(&mut vm, Some(Icount(3_000_000)));
    let (before, hash) = (vm.when(), vm.state_hash());
    let gpa = Gpa(u64::from(ticker::TICKS));
    let at = timeline.last_write(&mut vm, gpa, 4).unwrap().unwrap();
    assert_eq!((vm.when(), vm.state_hash()), (before, hash));
    let word = |vm: &Vm| {
        let mut b = [0; 4];
        vm.sys.mem.read_phys(gpa, &mut b);
        u32::from_le_bytes(b)
    };
    let now = word(&vm);
    timeline.seek(&mut vm, at).unwrap();
    assert_eq!(word(&vm), now - 1);
    timeline.run(&mut vm, Some(at + 1));
    assert_eq!(word(&vm), now);
    // Code is written once, by the loader, before history begins.
    assert_eq!(timeline.last_write(&mut vm, Gpa(0x10_0040), 4).unwrap(), None);
}
