//! Moving in time: whichever way leads to a point, the state there is the same; what is found backwards is what a run
//! forwards meets; and a live run that was taken back and forth goes on as if nothing had happened.

#![allow(clippy::unwrap_used)]

use iced_x86::code_asm::*;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::engine::Engine;
use retrovisor_core::engine::hooks::{Hooks, Occurrence, Wanted, Watch, WatchAddr, WatchKind};
use retrovisor_core::exception::vector;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{InputEvent, NoInput, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::{Gpa, Gva, Icount};
use retrovisor_replay::search::Reason;
use retrovisor_replay::{
    ExitReason, Mailbox, Recording, Replay, Timeline, TimelineError, Trace, VerifyOptions, verify,
};
use retrovisor_tests::asm::multiboot;
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

/// The ticker, with nothing around it.
fn alone() -> Vm {
    let (config, images) = (ticker::config(ClockKind::Virtual), ticker::images(300));
    Vm::new(config, images, Box::new(Keys::new(None)), Box::new(NullSink)).unwrap()
}

/// How a run ends that nobody disturbed.
fn straight() -> (VmExit, When, StateHash) {
    let mut vm = alone();
    let exit = vm.run(None);
    (exit, vm.when(), vm.state_hash())
}

#[test]
fn a_random_walk_meets_one_state_at_each_point_and_changes_nothing() {
    for (engine, budget) in ENGINES.into_iter().zip([64 << 20, 1 << 20]) {
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
        };
        assert_eq!((exit, vm.when(), vm.state_hash()), straight(), "{engine:?}");
        assert!(visits > 100, "{visits}");
    }
}

/// Every stop of a run forwards to `end`, by the point a search backwards would name.
fn stops(engine: Engine, hooks: &Hooks, end: Icount) -> Vec<(Icount, Reason)> {
    let mut vm = alone();
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

/// Where the guest adds up what it was sent: a sum that stays small by itself.
const SUM: u64 = ticker::TICKS as u64 + 12;
const LARGE: u32 = 0x4000_0000;

/// A debugger makes the sum large: a logged input.
fn enlarge(vm: &mut Vm) {
    vm.inject(&InputEvent::WritePhys { gpa: SUM, bytes: LARGE.to_le_bytes().to_vec() });
}

fn is_large(vm: &Vm) -> bool {
    let mut b = [0; 4];
    vm.sys.mem.read_phys(Gpa(SUM), &mut b);
    u32::from_le_bytes(b) >= LARGE
}

#[test]
fn a_branch_goes_on_by_itself_and_the_old_one_is_kept() {
    let (mut vm, mut timeline) = live(Engine::Jit, 64 << 20);
    timeline.run(&mut vm, Some(Icount(3_000_000)));
    let head = (vm.when(), vm.state_hash());
    assert_eq!(timeline.branch(&mut vm).unwrap(), 1, "nothing to branch from at the head");
    timeline.seek(&mut vm, Icount(1_000_000)).unwrap();
    assert_eq!(timeline.branch(&mut vm).unwrap(), 2);
    assert!(!timeline.in_past(&vm));
    enlarge(&mut vm);
    timeline.run(&mut vm, Some(Icount(2_000_000)));
    let there = vm.state_hash();
    assert!(is_large(&vm));
    timeline.seek(&mut vm, Icount(1_500_000)).unwrap();
    assert!(timeline.in_past(&vm) && is_large(&vm));
    timeline.seek(&mut vm, Icount(999_999)).unwrap();
    assert!(!is_large(&vm), "before the fork both are the same");
    timeline.run(&mut vm, Some(Icount(2_000_000)));
    assert_eq!(vm.state_hash(), there);
    // The first branch is as it was left, there and back again.
    timeline.switch(&mut vm, 1).unwrap();
    assert_eq!((vm.when(), vm.state_hash()), head);
    timeline.seek(&mut vm, Icount(2_000_000)).unwrap();
    assert!(!is_large(&vm));
    timeline.switch(&mut vm, 2).unwrap();
    assert_eq!(vm.state_hash(), there);
    let ends: Vec<_> =
        timeline.branches(&vm).iter().map(|b| (b.id, b.parent, b.end.icount, b.current)).collect();
    let parent = Some((1, Icount(1_000_000)));
    assert_eq!(ends, [(1, None, head.0.icount, false), (2, parent, Icount(2_000_000), true)]);
    assert!(timeline.drop_branch(2).is_err() && timeline.drop_branch(7).is_err());
    // From the first one's head the run goes on to its own end.
    timeline.switch(&mut vm, 1).unwrap();
    timeline.drop_branch(2).unwrap();
    let exit = timeline.run(&mut vm, None);
    assert_eq!((exit, vm.state_hash()), (straight().0, straight().2));
}

#[test]
fn a_file_keeps_the_branch_it_was_begun_with() {
    let (config, images) = (ticker::config(ClockKind::Virtual), ticker::images(300));
    let (recording, file) = Recording::in_memory(&config, &images).unwrap();
    let (port, output) = (recording.port(Keys::new(None)), recording.output(NullSink));
    let mut vm = Vm::new(config, images, Box::new(port), Box::new(output)).unwrap();
    let mut timeline = Timeline::live(&mut vm, recording, Mailbox::new(), 64 << 20);
    timeline.run(&mut vm, Some(Icount(3_000_000)));
    let (head, hash) = (vm.when(), vm.state_hash());
    timeline.seek(&mut vm, Icount(2_000_000)).unwrap();
    timeline.branch(&mut vm).unwrap();
    timeline.run(&mut vm, Some(Icount(2_500_000)));
    timeline.finish(&mut vm, ExitReason::Quit).unwrap();
    let trace = Trace::from_bytes("t.rvt", file.bytes()).unwrap();
    let report = verify(&trace, VerifyOptions::default(), &mut |_| ()).unwrap();
    assert_eq!((report.when, report.hash, report.reason), (head, hash, Some(ExitReason::Quit)));
}

#[test]
fn a_replay_goes_anywhere_and_can_be_led_astray_and_back() {
    let (config, images) = (ticker::config(ClockKind::Virtual), ticker::images(300));
    let (recording, file) = Recording::in_memory(&config, &images).unwrap();
    let (port, output) = (recording.port(Keys::new(None)), recording.output(NullSink));
    let mut vm = Vm::new(config, images, Box::new(port), Box::new(output)).unwrap();
    let exit = vm.run(None);
    recording.finish_vm(&mut vm, ExitReason::from_exit(exit)).unwrap();
    let (end, hash) = (vm.when(), vm.state_hash());
    let trace = Trace::from_bytes("t.rvt", file.bytes()).unwrap();
    let mut replay =
        Replay::new(&trace, VerifyOptions::default(), Box::new(NullSink)).unwrap().with_history(64 << 20);
    let (timeline, vm) = replay.vm.travel().unwrap();
    timeline.seek(vm, Icount(3_000_000)).unwrap();
    let at = vm.state_hash();
    timeline.seek(vm, Icount(1_000_000)).unwrap();
    assert_eq!(timeline.branch(vm).unwrap(), 2);
    enlarge(vm);
    timeline.run(vm, Some(Icount(2_000_000)));
    assert!(is_large(vm));
    timeline.reverse_step(vm, 0).unwrap();
    timeline.switch(vm, 1).unwrap();
    assert_eq!(vm.when().icount, Icount(1_000_000));
    timeline.seek(vm, Icount(3_000_000)).unwrap();
    assert_eq!(vm.state_hash(), at);
    timeline.switch(vm, 2).unwrap();
    assert!(is_large(vm));
    timeline.switch(vm, 1).unwrap();
    let exit = replay.vm.run(None);
    let report = replay.conclude(exit).unwrap().unwrap();
    assert_eq!((report.when, report.hash), (end, hash));
}

/// Fills 16 MiB with noise, again and again.
fn noise() -> Vec<u8> {
    multiboot(|a| {
        let (mut again, mut next) = (a.create_label(), a.create_label());
        a.mov(eax, 0x1234_5678).unwrap();
        a.set_label(&mut again).unwrap();
        a.mov(edi, 0x20_0000).unwrap();
        a.set_label(&mut next).unwrap();
        for shift in [13, -17, 5] {
            a.mov(ebx, eax).unwrap();
            if shift > 0 {
                a.shl(ebx, shift).unwrap()
            } else {
                a.shr(ebx, -shift).unwrap()
            }
            a.xor(eax, ebx).unwrap();
        }
        a.mov(dword_ptr(edi), eax).unwrap();
        a.add(edi, 4).unwrap();
        a.cmp(edi, 0x120_0000).unwrap();
        a.jb(next).unwrap();
        a.jmp(again).unwrap();
    })
}

#[test]
fn a_guest_that_writes_all_its_memory_stays_within_the_budget() {
    let images = Images { kernel: Some(noise()), kernel_name: "noise".into(), ..Images::default() };
    for (budget, fits) in [(8 << 20, false), (24 << 20, true)] {
        let config = MachineConfig { memory: 32 << 20, ..MachineConfig::default() };
        let recording = Recording::unwritten(&config);
        let (port, output) = (recording.port(NoInput), recording.output(NullSink));
        let mut vm = Vm::new(config, images.clone(), Box::new(port), Box::new(output)).unwrap();
        let mut timeline = Timeline::live(&mut vm, recording, Mailbox::new(), budget);
        for n in 1..=100 {
            assert_eq!(timeline.run(&mut vm, Some(Icount(n * 30_000_000))), VmExit::Reached);
            assert!(timeline.history().bytes() <= budget, "{} of {budget}", timeline.history().bytes());
        }
        let head = (vm.when(), vm.state_hash());
        if fits {
            assert!(timeline.history().len() > 1);
            assert!(timeline.reverse_step(&mut vm, 0).unwrap());
            timeline.seek(&mut vm, Icount(5)).unwrap();
        } else {
            let none = timeline.reverse_step(&mut vm, 0);
            assert!(matches!(none, Err(TimelineError::NoHistory(_))), "{none:?}");
            assert!(timeline.reverse_continue(&mut vm).is_err());
        }
        timeline.seek(&mut vm, Icount(u64::MAX)).unwrap();
        assert_eq!((vm.when(), vm.state_hash()), head);
        assert_eq!(timeline.run(&mut vm, Some(Icount(3_100_000_000))), VmExit::Reached);
    }
}
