//! `retrovisor trace` on real recordings: what it prints is what is recorded, in words other programs understand.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "cli/guest.rs"]
mod guest;

use guest::Folder;
use retrovisor_replay::{Ending, Record, Trace, What};
use retrovisor_tests::json::Json;
use retrovisor_tests::program::{self, Running};
use rustix::process::Signal;
use std::fs;
use std::process::Stdio;

/// A session with input: what is typed arrives in a guest that takes no notice.
fn session(f: &Folder) -> String {
    let (kernel, path) = (f.file("guest", &guest::loops()), f.path("session.rvt"));
    let args =
        ["run", "--kernel", &kernel, "--record", &path, "--clock", "host", "--append", "a \"b\" \u{fc}"];
    let mut running = Running::spawn(program::command(&args).stdin(Stdio::piped()));
    running.wait_for("hello");
    running.send("ls \"\\\u{1b}\r");
    while !fs::read(&path).is_ok_and(|b| Trace::from_bytes("t", b).is_ok_and(|t| serial(&t) > 0)) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    running.signal(Signal::INT);
    running.finish().expect(130);
    path
}

fn serial(trace: &Trace) -> usize {
    trace.records().filter(|r| r.as_ref().is_ok_and(|r| r.what.kind() == "serial")).count()
}

fn parsed(lines: &str) -> Vec<Json> {
    lines.lines().map(|l| Json::parse(l).unwrap_or_else(|e| panic!("{e}\n{l}"))).collect()
}

/// What every record says, found again in its JSON.
#[track_caller]
fn compare(record: &Record, json: &Json) {
    assert_eq!(json.text("icount"), record.when.icount.0.to_string());
    assert_eq!(json.text("guest_ns"), record.when.time.0.to_string());
    assert_eq!(json.text("kind"), record.what.kind());
    match &record.what {
        What::Hash { hash, output } => {
            assert_eq!(
                (json.text("state"), json.text("output")),
                (hash.to_string(), format!("{output:016x}"))
            );
        }
        What::Answer { value, .. } => {
            let fields = ["time_ns", "seconds", "value"];
            let field = fields.into_iter().find(|n| json.get(n).is_some()).unwrap();
            let text = json.text(field);
            let said = text.strip_prefix("0x").map_or(text.parse(), |h| u64::from_str_radix(h, 16));
            assert_eq!(said, Ok(*value));
        }
        What::Event(retrovisor_core::input::InputEvent::Serial { port, bytes }) => {
            assert_eq!(json.text("port"), port.to_string());
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(json.text("bytes"), hex);
            assert_eq!(json.text("text"), bytes.escape_ascii().to_string());
        }
        What::Event(_) => {}
    }
}

#[test]
fn exports_say_what_is_recorded() {
    let f = Folder::new();
    let path = session(&f);
    let trace = Trace::open(path.as_ref()).unwrap();
    let records: Vec<Record> = trace.records().collect::<Result<_, _>>().unwrap();
    assert!(serial(&trace) > 0 && records.len() > 2);
    let lines = parsed(&program::run(&["trace", "export", &path]).expect(0).stdout);
    assert_eq!(lines.len(), records.len() + 2);
    assert_eq!((lines[0].text("kind"), lines[0].text("cmdline")), ("trace".into(), "a \"b\" \u{fc}".into()));
    records.iter().zip(&lines[1..]).for_each(|(r, json)| compare(r, json));
    let Ending::Complete(end) = trace.ending() else { panic!("{:?}", trace.ending()) };
    let last = &lines[lines.len() - 1];
    assert_eq!((last.text("kind"), last.text("reason")), ("end".into(), "quit".into()));
    assert_eq!(
        (last.text("state"), last.text("icount")),
        (end.hash.to_string(), end.when.icount.0.to_string())
    );

    let all = program::run(&["trace", "events", "--json", "--kind", "all", &path]);
    assert_eq!(parsed(&all.expect(0).stdout), lines[1..lines.len() - 1]);
    let info = Json::parse(&program::run(&["trace", "info", "--json", &path]).expect(0).stdout).unwrap();
    assert_eq!(info.text("instructions"), end.when.icount.0.to_string());
    assert_eq!(info.get("images").unwrap().items().len(), 1);
    assert_eq!(info.get("ending"), Some(last));
}

#[test]
fn the_timeline_has_every_record_at_its_guest_time() {
    let f = Folder::new();
    let (path, to) = (session(&f), f.path("timeline.json"));
    let done = program::run(&["trace", "export", "--format", "perfetto", "-o", &to, &path]);
    assert_eq!((done.expect(0).stdout.as_str(), done.stderr.as_str()), ("", ""));
    let timeline = Json::parse(&fs::read_to_string(&to).unwrap()).unwrap();
    let events = timeline.get("traceEvents").unwrap().items();
    let trace = Trace::open(path.as_ref()).unwrap();
    let instants: Vec<_> = events.iter().filter(|e| e.text("ph") == "i").collect();
    assert_eq!(instants.len(), trace.records().count() + 1, "and the end");
    for (record, event) in trace.records().zip(&instants) {
        let record = record.unwrap();
        let ns = record.when.time.0;
        assert_eq!(event.text("ts"), format!("{}.{:03}", ns / 1000, ns % 1000));
        assert_eq!(event.get("args").unwrap().text("icount"), record.when.icount.0.to_string());
    }
    let names = events.iter().filter(|e| e.text("name") == "thread_name");
    let rows: Vec<_> = names.map(|e| e.text("tid")).collect();
    assert!(events.iter().all(|e| e.text("ph") != "i" || rows.contains(&e.text("tid"))));
    let bars = events.iter().filter(|e| e.text("ph") == "X");
    let insns: u64 = bars.map(|e| e.get("args").unwrap().text("instructions").parse::<u64>().unwrap()).sum();
    assert_eq!(insns, trace.ending().when().icount.0, "the bars cover the run");
}

#[test]
fn a_packed_trace_verifies_alike_and_an_unpacked_one_has_its_images() {
    let f = Folder::new();
    let (path, packed, folder) = (session(&f), f.path("packed.rvt"), f.path("unpacked"));
    let verified = |path: &str| {
        let done = program::run(&["verify", path]);
        done.expect(0).stdout.replace(path, "")
    };
    let exact = verified(&path);
    program::run(&["trace", "pack", &path, "-o", &packed]).expect(0);
    assert_eq!(verified(&packed), exact);
    assert!(fs::metadata(&packed).unwrap().len() <= fs::metadata(&path).unwrap().len());
    // In place, too.
    program::run(&["trace", "pack", &path, "-o", &path]).expect(0);
    assert_eq!(fs::read(&path).unwrap(), fs::read(&packed).unwrap());
    program::run(&["trace", "unpack", &packed, "-o", &folder]).expect(0);
    assert_eq!(fs::read(format!("{folder}/kernel")).unwrap(), guest::loops());
    let events = fs::read_to_string(format!("{folder}/events.jsonl")).unwrap();
    assert_eq!(events, program::run(&["trace", "export", &path]).stdout);
    let header = Json::parse(&fs::read_to_string(format!("{folder}/header.json")).unwrap()).unwrap();
    assert_eq!(header.text("kernel_name"), "guest");
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let f = Folder::new();
    let (good, text) = (f.file("good.rvt", &guest::trace()), f.file("text", b"hello"));
    let old = f.file("old.rvt", &{
        let mut bytes = guest::trace();
        bytes[4] = 1;
        bytes
    });
    let (new, dir) = (f.path("new"), f.dir());
    for (args, part) in [
        (&["events", "--kind", "mouse", &good][..], "--kind mouse: no such kind"),
        (&["events", "--from", "soon", &good], "--from: `soon` is no point"),
        (&["events", "--to", "1h", &good], "--to: `1h` is no point"),
        (&["export", "-o", &good, &good], "would be overwritten"),
        (&["export", "-o", "/dev/full", &good], "/dev/full: No space"),
        (&["export", "-o", "/nonexistent/x", &good], "/nonexistent/x: No such file"),
        (&["export", &text], "not a Retrovisor trace"),
        (&["pack", &good, "-o", &text], "not a trace"),
        (&["pack", &good, "-o", "/dev/full"], "/dev/full: cannot be written: No space"),
        (&["pack", &text, "-o", &new], "not a Retrovisor trace"),
        (&["unpack", &good, "-o", dir], "not empty"),
        (&["unpack", &good, "-o", &text], "File exists"),
        (&["info", &old], "was written by an older version"),
    ] {
        let done = program::run(&[&["trace"], args].concat());
        done.expect(2);
        assert!(done.stderr.contains(part) && done.stderr.lines().count() == 1, "{args:?}: {}", done.stderr);
    }
    assert_eq!(fs::read(&good).unwrap(), guest::trace());
    assert_eq!(fs::read_dir(dir).unwrap().count(), 3, "nothing is left over");
}
