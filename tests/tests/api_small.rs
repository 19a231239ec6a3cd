//! The API for tests of kernels, on small guests: moving, looking, questions about the history, and what a failed test leaves
//! behind. The ticker is a guest driven by interrupts: a timer counts up, and the main loop computes and halts.

#![allow(clippy::unwrap_used)]

use retrovisor_debug::guest::{
    Engine, Error, Gpa, Guest, Gva, Icount, OffStretch, Place, Points, VmExit, sample,
};
use retrovisor_replay::{Trace, VerifyOptions, verify};
use retrovisor_tests::ticker;
use std::path::Path;
use std::process::Command;

const TICKS: u64 = ticker::TICKS as u64;
const LIMIT: u64 = 100_000_000;
/// What the ticker's test wants to know by name.
const MAP: &[u8] = b"001a0000 D ticks\n00100020 T start\n";

fn ticker(engine: Engine, ticks: u32) -> Guest {
    let guest = Guest::builder()
        .kernel(ticker::guest(ticks))
        .memory_mib(8)
        .debug_exit(0xf4)
        .engine(engine)
        .symbols(MAP)
        .configure(|c| c.hash_interval = 1 << 16);
    guest.boot().unwrap()
}

fn sample() -> Guest {
    Guest::builder().kernel(sample::KERNEL).memory_mib(4).debug_exit(0xf4).boot().unwrap()
}

#[test]
fn a_guest_is_run_to_events_and_back() {
    let mut guest = ticker(Engine::Jit, 100);
    guest.run_to_write("ticks", 4).unwrap();
    let first = guest.icount();
    assert_eq!(guest.read::<u32>("ticks").unwrap(), 1);
    guest.reverse_step().unwrap();
    assert_eq!(guest.read::<u32>(Gpa(TICKS)).unwrap(), 0);
    let handler = guest.pc();
    guest.run_to_breakpoint(handler).unwrap();
    guest.run_to_breakpoint(handler).unwrap();
    assert_eq!(guest.read::<u32>("ticks").unwrap(), 2);
    guest.reverse_to_write("ticks", 4).unwrap();
    assert_eq!((guest.pc(), guest.read::<u32>("ticks").unwrap()), (handler, 1));
    guest.reverse_to_write("ticks", 4).unwrap();
    assert_eq!(guest.icount() + 1, first);
    let start = "start".into();
    let never = Error::NeverBefore { what: "the execution of `nowhere`".into(), before: guest.icount() };
    guest.add_symbols(b"00000010 T nowhere").unwrap();
    assert_eq!(guest.reverse_to("nowhere"), Err(never));
    assert_eq!(guest.icount() + 1, first, "a search without a result leaves the machine where it is");
    guest.reverse_to(Place::clone(&start)).unwrap();
    assert_eq!(guest.icount(), Icount(0));
    // Forwards again, through the past, to the end.
    assert_eq!(guest.run_to_exit(LIMIT), Ok(VmExit::DebugExit(ticker::DONE)));
    assert!(!guest.in_past() && guest.read::<u32>("ticks").unwrap() >= 100);
}

#[test]
fn mistakes_are_told_in_one_line() {
    let mut guest = sample();
    guest.run_to(Icount(1000)).unwrap();
    let errors = [
        guest.reg("rox").unwrap_err(),
        guest.read::<u64>("nobody").unwrap_err(),
        guest.read::<u64>(Gpa(1 << 40)).unwrap_err(),
        guest.run_to(Icount(10)).unwrap_err(),
        guest.run_until_console("never printed", 1000).unwrap_err(),
        guest.run_to_exit(10).unwrap_err(),
        Guest::open("/nonexistent.rvt").err().unwrap(),
        Guest::builder().kernel(vec![1; 5000]).boot().err().unwrap(),
        Guest::builder().kernel_file("/nonexistent").boot().err().unwrap(),
    ];
    for e in errors.map(|e| e.to_string()) {
        assert!(!e.is_empty() && !e.contains('\n'), "{e:?}");
    }
    guest.seek(Icount(500)).unwrap();
    assert_eq!(guest.type_text("x"), Err(Error::InPast { at: Icount(500) }));
}

#[test]
fn the_console_is_known_at_every_point() {
    let mut guest = sample();
    guest.run_until_console("ell", LIMIT).unwrap();
    assert_eq!(guest.console(), "hell");
    let there = guest.icount();
    guest.run_until_console("o", LIMIT).unwrap();
    assert_eq!((guest.console().as_str(), guest.console_at(there).as_str()), ("hello", "hell"));
    guest.run_to(Icount(10_000)).unwrap();
    guest.seek(Icount(0)).unwrap();
    assert_eq!(guest.console(), "");
    guest.run_until_console("ell", LIMIT).unwrap();
    assert_eq!(guest.icount(), there, "the same point from the past");
    // From the past, on to what is not known yet: the end comes first.
    guest.seek_end().unwrap();
    guest.type_text("q").unwrap();
    let e = guest.run_until_console("never", LIMIT).unwrap_err();
    assert!(matches!(e, Error::Ended { exit: VmExit::DebugExit(0), .. }), "{e}");
}

/// The longest stretch with interrupts off, found by looking at each instruction.
fn by_stepping(guest: &mut Guest, from: Icount, to: Icount) -> Option<OffStretch> {
    let (mut since, mut longest): (Option<(Icount, Gva)>, Option<OffStretch>) = (None, None);
    let mut look_at = |at: Icount, pc: Gva, off: bool| match since {
        None if off => since = Some((at, pc)),
        Some((from, from_pc)) if !off || at == to => {
            let s = OffStretch { vcpu: 0, from, from_pc, to: at, to_pc: pc, open: off };
            longest = Some(longest.filter(|l| l.insns() >= s.insns()).unwrap_or(s));
            since = None;
        }
        _ => {}
    };
    let mut history = guest.history().since(from).until(to);
    history
        .never(|m| {
            look_at(m.icount(), m.pc(), !m.interrupts_on());
            false
        })
        .unwrap();
    longest
}

#[test]
fn interrupts_off_are_measured_exactly_on_both_engines() {
    let mut found = Vec::new();
    for engine in [Engine::Jit, Engine::Interp] {
        let mut guest = ticker(engine, 100);
        guest.run_to(Icount(900_000)).unwrap();
        let whole = guest.history().max_interrupts_off().unwrap().unwrap();
        // It boots with interrupts off; then a handler has them off.
        assert_eq!(
            (whole.from, whole.from_pc),
            (Icount(0), guest.symbols().address("start").map(Gva).unwrap())
        );
        let mut parts = vec![whole];
        for (from, to) in [(whole.to.0, 900_000), (0, 60_000), (200_000, 300_017), (431_007, 433_000)] {
            let (from, to) = (Icount(from), Icount(to));
            let part = guest.history().since(from).until(to).max_interrupts_off().unwrap();
            if to.0 < 900_000 {
                assert_eq!(part, by_stepping(&mut guest, from, to), "{from} to {to}");
            }
            parts.extend(part);
        }
        assert!(parts.len() > 3);
        let longest = parts[1].insns();
        assert!((10..200).contains(&longest), "{longest}");
        guest.history().since(whole.to).interrupts_off_at_most(longest).unwrap();
        assert_eq!(guest.icount(), Icount(900_000));
        found.push(parts);
    }
    assert_eq!(found[0], found[1]);
}

#[test]
fn what_happened_is_listed_and_asserted() {
    let mut guest = ticker(Engine::Jit, 60);
    guest.run_to_exit(LIMIT).unwrap();
    let (end, ticks) = (guest.icount(), guest.read::<u32>("ticks").unwrap());
    let writes = guest.history().writes("ticks", 4).unwrap();
    assert_eq!(writes.len() as u32, ticks);
    for (n, w) in writes.iter().enumerate() {
        let value = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap());
        assert_eq!((value(&w.old), value(&w.new), w.pc, w.vcpu), (n as u32, n as u32 + 1, writes[0].pc, 0));
    }
    assert_eq!(guest.last_write("ticks", 4).unwrap().as_ref(), writes.last());
    let (third, fourth) = (writes[2].at, writes[3].at);
    let some = guest.history().since(third).until(fourth).writes("ticks", 4).unwrap();
    assert_eq!(some, writes[2..3], "the first point counts, the last does not");
    guest.history().since(third + 1).until(fourth).not_written("ticks", 4).unwrap();
    guest.history().not_written(0x10_0040, 4).unwrap();
    assert_eq!(guest.history().exceptions().unwrap().len(), 0);
    // The timer and nothing else.
    assert_eq!(guest.history().interrupts().unwrap(), [(0x20, u64::from(ticks))].into());
    // Predicates, at some points or at all.
    let executed = Points::Executed(writes[0].pc.into());
    assert_eq!(guest.history().at(executed.clone()).count().unwrap(), u64::from(ticks));
    guest.history().at(executed).always(|m| !m.interrupts_on()).unwrap();
    let written = Points::Written("ticks".into(), 4);
    let five = guest.history().at(written).find(|m| m.read::<u32>("ticks") == Ok(5)).unwrap();
    assert_eq!(five, Some(writes[4].at + 1));
    guest.history().until(third).never(|m| m.read::<u32>("ticks") == Ok(3)).unwrap();
    let at = guest.history().since(third).find(|m| m.read::<u32>("ticks") == Ok(3)).unwrap();
    assert_eq!((at, guest.icount()), (Some(third + 1), end));
}

#[test]
fn a_run_that_nobody_recorded_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.rvt");
    let check = |guest: &mut Guest, own: bool| {
        guest.save(&path).unwrap();
        let trace = Trace::open(&path).unwrap();
        let report = verify(&trace, VerifyOptions::default(), &mut |_| ()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report.reason.unwrap().is_own(), own);
        (report.when, report.hash)
    };
    // At the head, in the past, at the end, from a trace, on a branch.
    let mut guest = ticker(Engine::Jit, 60);
    guest.run_to(Icount(300_000)).unwrap();
    guest.type_text("abc").unwrap();
    guest.run_to(Icount(500_000)).unwrap();
    let head = check(&mut guest, false);
    assert_eq!(head.0.icount, Icount(500_000));
    guest.seek(Icount(400_000)).unwrap();
    assert_eq!(check(&mut guest, false), head);
    assert_eq!(guest.icount(), Icount(400_000));
    let mut again = Guest::open(&path).unwrap();
    again.run_until_console("abc", LIMIT).unwrap();
    assert_eq!(check(&mut again, false), head);
    assert_eq!(guest.run_to_exit(LIMIT), Ok(VmExit::DebugExit(ticker::DONE)));
    let end = check(&mut guest, true);
    assert_eq!(end.0.icount, guest.icount());
    let mut again = Guest::open(&path).unwrap();
    again.run_to(Icount(200_000)).unwrap();
    assert_eq!(check(&mut again, true), end);
    guest.seek(Icount(200_000)).unwrap();
    guest.branch().unwrap();
    guest.type_text("other").unwrap();
    guest.run_until_console("other", LIMIT).unwrap();
    let branch = check(&mut guest, false);
    assert_eq!(branch.0.icount, guest.icount());
    assert!(!guest.console().contains("abc"));
}

/// Fails on purpose, in a process of its own.
#[test]
#[ignore = "run by the test below"]
fn fails_on_purpose() {
    let mut guest = sample();
    guest.run_until_console("hello", LIMIT).unwrap();
    guest.type_text("ab").unwrap();
    guest.run_to_write(sample::SUM, 4).unwrap();
    guest.history().not_written(sample::SUM, 4).unwrap();
}

#[test]
fn a_failed_test_leaves_its_trace_and_says_how_to_replay_it() {
    let dir = tempfile::tempdir().unwrap();
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "fails_on_purpose", "--ignored", "--nocapture"])
        .env("RETROVISOR_TRACES", dir.path())
        .output()
        .unwrap();
    assert!(!done.status.success());
    let said = String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
    let path = dir.path().join("fails_on_purpose.rvt");
    let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("retrovisor: ")).collect();
    let [line] = lines[..] else { panic!("{said}") };
    let command = format!("retrovisor replay {} --gdb --freeze", path.display());
    assert!(line.contains(&command), "{line}");
    // The assertion put the machine before the write, and that is where the replay can go.
    let at = line.split("monitor seek ").nth(1).unwrap().trim().parse().unwrap();
    assert!(said.contains(&format!("at instruction {at}, ")), "{said}");
    let mut again = Guest::open(Path::new(&path)).unwrap();
    again.run_to(Icount(at)).unwrap();
    assert_eq!((again.pc(), again.console().as_str()), (sample::ADD, "hello"));
    assert_eq!(again.read::<u32>(sample::SUM).unwrap(), 0);
    again.step().unwrap();
    assert_eq!(again.read::<u32>(sample::SUM).unwrap(), u32::from(b'a'));
}
