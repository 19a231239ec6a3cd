//! Sessions on a small live machine.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::breakpoints::Point;
use crate::stop::{Stop, StopReason};
use crate::testing::{COUNTER, JUMP, LOOP, STORE, frozen, session};
use retrovisor_core::engine::hooks::{Watch, WatchAddr, WatchKind};
use retrovisor_core::vcpu::regs::num;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// A client and what it hears.
fn attach(session: &Session, role: Role) -> (Client, Receiver<Event>) {
    let (tx, rx) = mpsc::channel();
    let client = session.handle().attach(role, Box::new(move |e| tx.send(*e).is_ok())).unwrap();
    (client, rx)
}

fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(Duration::from_secs(30)).unwrap()
}

/// Resumes and waits for the stop that ends that run.
fn run(client: &Client, events: &Receiver<Event>, how: Resume) -> Stop {
    let run = client.resume(how).unwrap();
    loop {
        match next(events) {
            Event::Stopped(stop) if stop.run == run => return stop,
            Event::Exited(exit) => panic!("{exit}"),
            _ => {}
        }
    }
}

const CONTINUE: Resume = Resume::Continue { until: None };
const STEP: Resume = Resume::Step { vcpu: 0 };

#[test]
fn frozen_session_waits_and_tells_a_new_client_so() {
    let session = frozen();
    let (client, events) = attach(&session, Role::Debugger);
    let Event::Stopped(stop) = next(&events) else { panic!("not stopped") };
    assert_eq!((stop.reason, stop.pc, stop.run), (StopReason::Frozen, Gva(LOOP), 0));
    assert_eq!(client.when().unwrap().icount, Icount(0));
}

#[test]
fn step_executes_one_instruction() {
    let session = frozen();
    let (client, events) = attach(&session, Role::Debugger);
    for (pc, icount) in [(STORE, 1), (JUMP, 2), (LOOP, 3)] {
        let stop = run(&client, &events, STEP);
        assert_eq!((stop.reason, stop.pc, stop.when.icount), (StopReason::Step, Gva(pc), Icount(icount)));
    }
}

#[test]
fn breakpoint_stops_before_its_instruction_each_time_round() {
    let session = frozen();
    let (client, events) = attach(&session, Role::Debugger);
    client.insert(Point::Break(Gva(LOOP))).unwrap();
    for round in 1..=3 {
        let stop = run(&client, &events, CONTINUE);
        assert_eq!((stop.reason, stop.when.icount), (StopReason::Breakpoint(Gva(LOOP)), Icount(3 * round)));
    }
    assert!(client.remove(Point::Break(Gva(LOOP))).unwrap());
    let stop = run(&client, &events, Resume::Continue { until: Some(Icount(100)) });
    assert_eq!((stop.reason, stop.when.icount), (StopReason::Reached, Icount(100)));
}

#[test]
fn breakpoint_of_another_client_counts_too_and_goes_with_it() {
    let session = frozen();
    let (mine, events) = attach(&session, Role::Debugger);
    let (other, _keep) = attach(&session, Role::Debugger);
    other.insert(Point::Break(Gva(STORE))).unwrap();
    assert_eq!(run(&mine, &events, CONTINUE).pc, Gva(STORE));
    drop(other);
    let stop = run(&mine, &events, Resume::Continue { until: Some(Icount(50)) });
    assert_eq!(stop.reason, StopReason::Reached);
}

#[test]
fn step_range_leaves_the_range_or_meets_a_breakpoint() {
    let session = frozen();
    let (client, events) = attach(&session, Role::Debugger);
    let range = Resume::StepRange { vcpu: 0, start: LOOP, end: JUMP };
    assert_eq!(run(&client, &events, range).pc, Gva(JUMP));
    client.insert(Point::Break(Gva(STORE))).unwrap();
    let all = Resume::StepRange { vcpu: 0, start: LOOP, end: JUMP + 2 };
    assert_eq!(run(&client, &events, all).reason, StopReason::Breakpoint(Gva(STORE)));
}

#[test]
fn pause_stops_a_running_guest_for_every_client() {
    let session = session(crate::testing::COUNT, Options::default());
    let (client, events) = attach(&session, Role::Debugger);
    let (_watching, seen) = attach(&session, Role::Observer);
    assert_eq!(next(&events), Event::Running(1));
    client.pause().unwrap();
    for events in [&events, &seen] {
        let stop = std::iter::from_fn(|| Some(next(events))).find_map(|e| match e {
            Event::Stopped(stop) => Some(stop),
            _ => None,
        });
        assert_eq!(stop.unwrap().reason, StopReason::Paused);
    }
    let here = client.when().unwrap();
    assert_eq!(client.when().unwrap(), here, "a stopped guest stays where it is");
}

#[test]
fn running_guest_is_served_without_being_stopped() {
    let session = session(crate::testing::COUNT, Options::default());
    let (client, events) = attach(&session, Role::Observer);
    assert_eq!(next(&events), Event::Running(1));
    let counts: Vec<u32> = (0..20)
        .map(|_| {
            let bytes = client.read_virtual(0, Gva(COUNTER), 4).unwrap();
            u32::from_le_bytes(bytes.try_into().unwrap())
        })
        .collect();
    assert!(counts.is_sorted());
    while client.when().unwrap().icount < Icount(1000) {}
    assert!(events.try_recv().is_err(), "reading is no event");
}

#[test]
fn writes_reach_the_guest() {
    let session = frozen();
    let (client, events) = attach(&session, Role::Debugger);
    client.write_register(0, 0, 41).unwrap();
    let nops = vec![0x90; 6];
    client.write_virtual(0, Gva(LOOP + 1), nops).unwrap();
    run(&client, &events, STEP);
    assert_eq!(client.inspect(|m| m.vcpu(0).unwrap().gpr[0]).unwrap(), 42);
    run(&client, &events, STEP);
    assert_eq!(client.inspect(|m| m.pc(0)).unwrap(), Gva(LOOP + 2));
    client.write_register(0, num::RIP, u128::from(LOOP)).unwrap();
    assert_eq!(client.inspect(|m| m.pc(0)).unwrap(), Gva(LOOP));
}

#[test]
fn impossible_commands_say_why() {
    let session = frozen();
    let handle = session.handle();
    assert_eq!(handle.write_physical(Gpa(4 << 20), vec![1]), Err(SessionError::NotRam(Gpa(4 << 20))));
    assert_eq!(
        handle.write_virtual(0, Gva(0xffff_f000), vec![1]),
        Err(SessionError::Unmapped(Gva(0xffff_f000)))
    );
    // A write that leaves memory half way writes nothing.
    let edge = (4 << 20) - 2;
    assert!(handle.write_physical(Gpa(edge), vec![1; 4]).is_err());
    assert_eq!(handle.read_physical(Gpa(edge), 4).unwrap(), [0, 0]);
    assert_eq!(handle.write_register(1, 0, 0), Err(SessionError::NoVcpu(1)));
    assert_eq!(handle.resume(Resume::Step { vcpu: 7 }), Err(SessionError::NoVcpu(7)));
    assert_eq!(handle.read_physical(Gpa(u64::MAX - 1), 8).unwrap(), []);
}

#[test]
fn replays_refuse_writes() {
    let session = session(crate::testing::COUNT, Options { freeze: true, read_only: true });
    let handle = session.handle();
    assert_eq!(handle.write_register(0, 0, 1), Err(SessionError::ReadOnly));
    assert_eq!(handle.write_physical(Gpa(0), vec![1]), Err(SessionError::ReadOnly));
}

#[test]
fn watchpoint_stops_after_the_store() {
    let session = frozen();
    let (client, events) = attach(&session, Role::Debugger);
    let watch = Watch { addr: WatchAddr::Virtual(Gva(COUNTER)), len: 4, kind: WatchKind::Write };
    client.insert(Point::Watch(watch)).unwrap();
    let stop = run(&client, &events, CONTINUE);
    assert!(matches!(stop.reason, StopReason::Watchpoint(hit) if hit.watch == watch && hit.write), "{stop}");
    assert_eq!((stop.pc, stop.when.icount), (Gva(JUMP), Icount(2)));
    client.remove(Point::Watch(watch)).unwrap();
    let stop = run(&client, &events, Resume::Continue { until: Some(Icount(60)) });
    assert_eq!(stop.reason, StopReason::Reached);
}

/// `lidt [LOOP + 8]` (an empty table, limit 0), then `ud2`.
const TRIPLE: &[u8] = &[0x0f, 0x01, 0x1d, 0x28, 0x00, 0x10, 0x00, 0x0f, 0x0b, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn triple_fault_stops_with_a_debugger_and_ends_the_run_when_resumed() {
    let session = session(TRIPLE, Options { freeze: true, read_only: false });
    let (client, events) = attach(&session, Role::Debugger);
    let stop = run(&client, &events, CONTINUE);
    assert_eq!((stop.reason, stop.pc), (StopReason::TripleFault, Gva(LOOP + 7)));
    client.cont().unwrap();
    assert_eq!(session.wait(), Exit::TripleFault);
    assert_eq!(client.cont(), Err(SessionError::Exited(Exit::TripleFault)));
    assert_eq!(client.read_physical(Gpa(LOOP), 2).unwrap(), [0x0f, 0x01], "it can still be looked at");
}

#[test]
fn triple_fault_ends_the_run_without_a_debugger() {
    let session = session(TRIPLE, Options::default());
    assert_eq!(session.wait(), Exit::TripleFault);
}

/// `cli; hlt`
const DEAD: &[u8] = &[0xfa, 0xf4];

#[test]
fn dead_machine_stops_with_a_debugger_and_ends_without() {
    let session1 = session(DEAD, Options { freeze: true, read_only: false });
    let (client, events) = attach(&session1, Role::Debugger);
    assert_eq!(run(&client, &events, CONTINUE).reason, StopReason::Dead);
    let session2 = session(DEAD, Options::default());
    assert_eq!(session2.wait(), Exit::Dead);
}

#[test]
fn detach_lets_the_guest_run_unless_another_debugger_is_there() {
    let session = frozen();
    let (first, _events) = attach(&session, Role::Debugger);
    let (second, events) = attach(&session, Role::Debugger);
    first.detach_and_continue();
    assert!(matches!(session.handle().state(), Ok(Event::Stopped(_))));
    drop(events);
    second.detach_and_continue();
    assert!(matches!(session.handle().state(), Ok(Event::Running(_))));
}

#[test]
fn join_gives_the_machine_back() {
    let session = frozen();
    let handle = session.handle();
    let vm = session.join().unwrap();
    assert_eq!(vm.when().icount, Icount(0));
    assert_eq!(handle.when(), Err(SessionError::Gone));
}
