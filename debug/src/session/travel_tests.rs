//! Sessions that go back and forth in their history, by resumptions and by commands.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::breakpoints::Point;
use crate::stop::StopReason;
use crate::testing::{COUNT, COUNTER, JUMP, LOOP, STORE, frozen, travelling};
use retrovisor_core::engine::Engine;
use retrovisor_core::engine::hooks::{Occurrence, Wanted};
use std::sync::mpsc::Receiver;

const ENGINES: [Engine; 2] = [Engine::Jit, Engine::Interp];
const PATIENCE: Duration = Duration::from_secs(30);

/// `inc eax; mov [COUNTER], eax; out 0x80, al; jmp LOOP`
const CHATTY: &[u8] = &[0x40, 0xa3, 0x00, 0x00, 0x20, 0x00, 0xe6, 0x80, 0xeb, 0xf6];

fn attach(session: &Session) -> (Client, Receiver<Event>) {
    let (tx, rx) = mpsc::channel();
    let client = session.handle().attach(Role::Debugger, Box::new(move |e| tx.send(*e).is_ok())).unwrap();
    (client, rx)
}

fn run(client: &Client, how: Resume) -> Stop {
    let run = client.resume(how).unwrap();
    client.wait_for_stop(run, PATIENCE).unwrap().unwrap()
}

/// Runs a command; its text and, if it moved the machine, the stop it led to.
fn ask(client: &Client, line: &str) -> (String, Option<Stop>) {
    let answer = client.monitor(0, line.into()).unwrap().unwrap_or_else(|why| panic!("{line}: {why}"));
    (answer.text, answer.run.map(|run| client.wait_for_stop(run, PATIENCE).unwrap().unwrap()))
}

fn refused(client: &Client, line: &str) -> String {
    client.monitor(0, line.into()).unwrap().unwrap_err()
}

/// Where a command led.
fn led(client: &Client, line: &str) -> (u64, StopReason) {
    let stop = ask(client, line).1.unwrap_or_else(|| panic!("`{line}` does not move the machine"));
    (stop.when.icount.0, stop.reason)
}

#[test]
fn steps_continues_and_seeks_go_both_ways_and_on_from_the_newest_point() {
    for engine in ENGINES {
        let session = travelling(COUNT, engine);
        let (client, _events) = attach(&session);
        let to = |n| Resume::Continue { until: Some(Icount(n)) };
        run(&client, to(3000));
        for back in 1..=7 {
            let stop = run(&client, Resume::ReverseStep { vcpu: 0 });
            assert_eq!((stop.reason, stop.when.icount), (StopReason::Step, Icount(3000 - back)));
        }
        let stop = run(&client, Resume::Seek { to: Icount(30) });
        assert_eq!((stop.reason, stop.pc), (StopReason::Reached, Gva(LOOP)));
        assert_eq!(client.read_physical(Gpa(COUNTER), 4).unwrap(), [10, 0, 0, 0]);
        let view = client.timeline().unwrap().unwrap();
        assert_eq!(
            (view.start, view.end.icount, view.here.icount),
            (Some(Icount(0)), Icount(3000), Icount(30))
        );
        assert!(view.in_past && view.budget == 64 << 20 && !view.checkpoints.is_empty());
        assert_eq!((view.thousandths(Icount(30)), view.portion(500_000)), (10, Icount(1500)));
        // Through the newest point and on.
        assert_eq!(run(&client, to(4000)).when.icount, Icount(4000));
        assert!(!client.timeline().unwrap().unwrap().in_past);
        assert_eq!(client.read_physical(Gpa(COUNTER), 4).unwrap(), 1333u32.to_le_bytes());
        let stop = run(&client, Resume::ReverseContinue);
        assert_eq!((stop.reason, stop.when.icount), (StopReason::HistoryStart, Icount(0)));
        let time = client.when().unwrap().time;
        let stop = run(&client, Resume::SeekTime { to: GuestTime(time.0 + 1234) });
        assert_eq!(stop.when.time, GuestTime(time.0 + 1234));
    }
}

#[test]
fn a_write_in_the_past_begins_a_branch_and_the_old_one_is_kept() {
    let session = travelling(COUNT, Engine::Jit);
    let (client, _events) = attach(&session);
    let to = |n| Resume::Continue { until: Some(Icount(n)) };
    let counter = || client.read_physical(Gpa(COUNTER), 4).unwrap();
    run(&client, to(3000));
    assert!(refused(&client, "branch").starts_with("this is the newest point"));
    run(&client, Resume::Seek { to: Icount(30) });
    client.write_physical(Gpa(0x20_0100), vec![7]).unwrap();
    let view = client.timeline().unwrap().unwrap();
    assert_eq!((view.end.icount, view.in_past, view.branches.len()), (Icount(30), false, 2));
    run(&client, to(600));
    assert_eq!(client.read_physical(Gpa(0x20_0100), 1).unwrap(), [7]);
    let listed = client.monitor(0, "branches".into()).unwrap().unwrap().text;
    assert_eq!(
        listed,
        "  1   from power-on, to icount 3000\n* 2   from branch 1 at icount 30, to icount 600\n"
    );
    assert_eq!(led(&client, "branch 1"), (3000, StopReason::Branch(1)));
    assert_eq!(client.read_physical(Gpa(0x20_0100), 1).unwrap(), [0]);
    assert_eq!(counter(), 1000u32.to_le_bytes());
    run(&client, Resume::Seek { to: Icount(300) });
    assert_eq!(led(&client, "branch"), (300, StopReason::Branch(3)));
    assert!(refused(&client, "branch 9").starts_with("there is no branch 9"));
    assert!(refused(&client, "unbranch 3").contains("is on this one"));
    client.monitor(0, "unbranch 2".into()).unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kept.rvt");
    let said = client.monitor(0, format!("save {}", file.display())).unwrap().unwrap().text;
    assert!(said.starts_with("saved: "), "{said}");
    let trace = retrovisor_replay::Trace::open(&file).unwrap();
    assert_eq!(trace.ending().when().icount, Icount(300), "the newest point of branch 3");
    assert!(refused(&client, "save").starts_with("the name of one file"));
    assert!(refused(&client, "save /nowhere/x.rvt").contains("/nowhere/x.rvt"));
    assert_eq!(client.timeline().unwrap().unwrap().branches.len(), 2);
}

#[test]
fn a_session_without_history_says_so() {
    let session = frozen();
    let (client, _events) = attach(&session);
    assert_eq!((client.travels(), client.timeline()), (Ok(false), Ok(None)));
    let none = |r: Result<u64, SessionError>| matches!(r, Err(SessionError::Timeline(_)));
    assert!(none(client.resume(Resume::ReverseContinue)) && none(client.seek(Icount(0))));
    assert!(matches!(client.last_write(Gpa(COUNTER), 4), Err(SessionError::Timeline(_))));
    for line in ["seek 0", "goto x", "back exception", "lastwrite 0x200000", "history", "events", "branches"]
    {
        assert!(refused(&client, line).starts_with("no history is kept"), "{line}");
    }
}

#[test]
fn occurrences_are_found_in_both_directions_and_breakpoints_do_not_count() {
    let port = |value| Occurrence::Port { port: 0x80, bytes: 1, write: true, value };
    for engine in ENGINES {
        let session = travelling(CHATTY, engine);
        let (client, _events) = attach(&session);
        client.insert(Point::Break(Gva(LOOP))).unwrap();
        assert_eq!(led(&client, "next io"), (3, StopReason::Occurred(port(1))));
        assert_eq!(led(&client, "next io 0x80"), (7, StopReason::Occurred(port(2))));
        // Backwards to before it, which is the one just met.
        assert_eq!(led(&client, "back io"), (6, StopReason::Occurred(port(2))));
        assert_eq!(led(&client, "back io 128"), (2, StopReason::Occurred(port(1))));
        assert_eq!(led(&client, "back io"), (2, StopReason::NotFound));
        assert_eq!(led(&client, "back io 0x70"), (2, StopReason::NotFound));
        let other = run(&client, Resume::Search { what: Sought::Occurrence(Wanted::Cpl), back: true });
        assert_eq!(other.reason, StopReason::NotFound);
        assert_eq!(led(&client, "next io"), (3, StopReason::Occurred(port(1))));
    }
}

#[test]
fn marks_are_set_listed_gone_to_and_forgotten() {
    let session = travelling(COUNT, Engine::Jit);
    let (client, _events) = attach(&session);
    run(&client, Resume::Continue { until: Some(Icount(1000)) });
    assert!(refused(&client, "marks").starts_with("there are no marks"));
    assert_eq!(ask(&client, "mark here").0, "mark `here` at icount 1000\n");
    assert_eq!(ask(&client, "mark half 50%").0, "mark `half` at icount 500\n");
    client.mark("first".into(), Some(Icount(3))).unwrap();
    assert_eq!(ask(&client, "mark first +5000").0, "mark `first` at icount 1000 (it was at 3)\n");
    assert_eq!(ask(&client, "unmark first").0, "mark `first` at icount 1000 is gone\n");
    assert_eq!(led(&client, "goto half").0, 500);
    assert_eq!(
        ask(&client, "when").0,
        format!(
            "{}\nin the past, 500 instructions before the newest point; 50.0% of the history\nmark `half`\n",
            crate::monitor::point(client.when().unwrap())
        )
    );
    let marks = ask(&client, "marks").0;
    assert_eq!(marks, "             500  half  (here)\n            1000  here  (500 ahead)\n");
    assert_eq!(client.timeline().unwrap().unwrap().marks.len(), 2);
    assert!(refused(&client, "goto nowhere").contains("there is no mark `nowhere`"));
    assert_eq!((client.unmark("half".into()), client.unmark("half".into())), (Ok(true), Ok(false)));
}

#[test]
fn seek_takes_every_way_to_name_a_point() {
    let session = travelling(COUNT, Engine::Jit);
    let (client, _events) = attach(&session);
    run(&client, Resume::Continue { until: Some(Icount(10_000)) });
    for (line, at) in [
        ("seek 5_000", 5000),
        ("seek +7", 5007),
        ("seek -0x10", 4991),
        ("seek 12.5%", 1250),
        ("seek start", 0),
        ("seek -1", 0),
        ("seek end", 10_000),
        ("seek 0", 0),
        ("seek live", 10_000),
        ("seek 2us", 2000),
        ("seek 99s", 10_000),
    ] {
        assert_eq!(led(&client, line), (at, StopReason::Reached), "{line}");
    }
    for line in ["seek", "seek x", "seek 1.5", "seek +", "seek %", "seek 1 2"] {
        assert!(refused(&client, line).ends_with("usage: seek TO"), "{line}");
    }
}

#[test]
fn the_last_writer_is_told_with_what_it_wrote() {
    for engine in ENGINES {
        let session = travelling(COUNT, engine);
        let (client, _events) = attach(&session);
        run(&client, Resume::Continue { until: Some(Icount(3001)) });
        let write = client.last_write(Gpa(COUNTER + 1), 2).unwrap().unwrap();
        assert_eq!((write.at.icount, write.pc, write.vcpu), (Icount(2998), Gva(STORE), 0));
        assert_eq!((write.old, write.new), (vec![3, 0], vec![3, 0]));
        assert_eq!(client.when().unwrap().icount, Icount(3001));
        let said = ask(&client, "lastwrite 0x200000 4").0;
        assert_eq!(said, ask(&client, "lastwrite/p 0x200000 4").0);
        let (first, rest) = said.split_once('\n').unwrap();
        assert!(first.starts_with("icount 2998, guest time ") && first.ends_with(", 3 instructions back"));
        assert_eq!(rest, "  0x100021  mov [0x200000], eax\n  0x000003e7 -> 0x000003e8\n");
        assert!(refused(&client, "lastwrite 0x210000").contains("not written since icount 0"));
        assert!(refused(&client, "lastwrite 0x400000").contains("is not mapped to RAM"));
        assert!(refused(&client, "lastwrite/p 0x400000").contains("is not RAM"));
        assert!(refused(&client, "lastwrite 0x200000 0").contains("must be 1 to"));
        assert_eq!(client.when().unwrap().icount, Icount(3001));
    }
}

#[test]
fn inputs_around_a_point_are_listed() {
    let session = travelling(COUNT, Engine::Jit);
    let (client, _events) = attach(&session);
    assert!(refused(&client, "events").contains("there are no such inputs"));
    for n in 1..=3 {
        run(&client, Resume::Continue { until: Some(Icount(n * 100)) });
        client.inject(InputEvent::WriteReg { vcpu: 0, reg: 3, value: n.into() }).unwrap();
    }
    run(&client, Resume::Continue { until: Some(Icount(1000)) });
    let icounts = |text: &str| -> Vec<String> {
        text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect()
    };
    assert_eq!(icounts(&ask(&client, "events").0), ["100", "200", "300", ">"]);
    led(&client, "seek 200");
    assert_eq!(icounts(&ask(&client, "events 1").0), ["100", ">", "200"]);
    assert_eq!(icounts(&ask(&client, "events 10 write-register").0), ["100", ">", "200", "300"]);
    assert!(refused(&client, "events 10 serial").contains("there are no such inputs"));
    assert!(refused(&client, "events 10 mouse").contains("`mouse` is no kind: serial, key"));
    assert!(ask(&client, "history").0.starts_with("from icount 0 to icount 1000, "));
}

#[test]
fn what_cannot_be_looked_for_is_said() {
    let session = travelling(COUNT, Engine::Jit);
    let (client, _events) = attach(&session);
    for (line, why) in [
        ("back", "what to look for is needed\nusage: back WHAT"),
        ("next rain", "`rain` cannot be looked for: exception, interrupt"),
        ("back exception 77", "`77` is no exception"),
        ("back interrupt 256", "0x100 is no vector: there are 256"),
        ("next io 0x10000", "0x10000 is no port: there are 65536"),
        ("back cr3 5", "`cr3` takes no value"),
    ] {
        assert!(refused(&client, line).contains(why), "{line}: {}", refused(&client, line));
    }
    assert_eq!(client.when().unwrap().icount, Icount(0));
    assert_eq!(run(&client, Resume::Step { vcpu: 0 }).pc, Gva(STORE));
    assert_eq!(run(&client, Resume::Step { vcpu: 0 }).pc, Gva(JUMP));
}

/// `lidt [LOOP + 8]` (an empty table, limit 0), then `ud2`.
const FAULTY: &[u8] = &[0x0f, 0x01, 0x1d, 0x28, 0x00, 0x10, 0x00, 0x0f, 0x0b, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn an_exception_found_backwards_is_gone_through_forwards() {
    for engine in ENGINES {
        let session = travelling(FAULTY, engine);
        let (client, _events) = attach(&session);
        let is_ud = |r: StopReason| matches!(r, StopReason::Exception(e) if e.vector == 6);
        let (at, reason) = led(&client, "next exception #UD");
        assert!(at == 1 && is_ud(reason), "{at} {reason}");
        assert_eq!(run(&client, Resume::Continue { until: None }).reason, StopReason::TripleFault);
        let (at, reason) = led(&client, "back exception 6");
        assert!(at == 1 && is_ud(reason), "{at} {reason}");
        client.stop_on_exceptions(1 << 6).unwrap();
        assert_eq!(run(&client, Resume::Continue { until: None }).reason, StopReason::TripleFault);
        assert!(is_ud(run(&client, Resume::ReverseContinue).reason));
    }
}
