//! `retrovisor trace info|events`: what a trace holds, for people and (with `--json`) for programs.

use anyhow::Result;
use retrovisor_core::Icount;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_replay::format::VERSION;
use retrovisor_replay::format::describe::Seconds;
use retrovisor_replay::format::machine::cpu_name;
use retrovisor_replay::{Ending, Record, Stats, Trace, What};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

/// What `trace events` shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventsOptions {
    /// One JSON object a line.
    pub json: bool,
    /// State hashes, too.
    pub hashes: bool,
    /// Only from this instruction on.
    pub from: Option<Icount>,
    /// Only up to and with this instruction.
    pub to: Option<Icount>,
}

/// `trace info`: header, images, counts, duration and ending.
///
/// # Errors
/// If the trace cannot be opened or `out` cannot be written.
pub fn info(path: &Path, json: bool, out: &mut dyn Write) -> Result<()> {
    let trace = Trace::open(path)?;
    let stats = Stats::of(&trace);
    let text = if json { info_json(&trace, &stats) } else { info_text(&trace, &stats) };
    finish(out.write_all(text.as_bytes()))
}

/// `trace events`: one line an input.
///
/// # Errors
/// If the trace cannot be opened or read to its end, or `out` cannot be written.
pub fn events(path: &Path, options: EventsOptions, out: &mut dyn Write) -> Result<()> {
    let trace = Trace::open(path)?;
    let mut out = io::BufWriter::new(out);
    let (from, to) = (options.from.unwrap_or_default(), options.to.unwrap_or(Icount(u64::MAX)));
    for record in trace.records_from(from) {
        let record = record?;
        if record.when.icount > to {
            break;
        }
        if record.when.icount < from || (!options.hashes && matches!(record.what, What::Hash { .. })) {
            continue;
        }
        let line = if options.json { event_json(&record) } else { record.to_string() };
        if let Err(e) = writeln!(out, "{line}") {
            return finish(Err(e));
        }
    }
    if let (Ending::Cut(cut), false) = (trace.ending(), options.json) {
        finish(writeln!(out, "{}: {cut}", trace.name()))?;
    }
    finish(out.flush())
}

/// A reader that has seen enough (`| head`) is no error.
fn finish(result: io::Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(()),
    }
}

/// 1234567 as 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that leaves no remainder.
fn size(bytes: u64) -> String {
    match bytes {
        b if b % (1 << 30) == 0 => format!("{} GiB", b >> 30),
        b if b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b => format!("{} KiB", b >> 10),
    }
}

fn machine_text(machine: &MachineConfig) -> String {
    let MachineConfig { memory, vcpus, cpu, ns_per_insn, seed, .. } = machine;
    let clock = match machine.clock {
        ClockKind::Virtual => format!("virtual clock ({ns_per_insn} ns an instruction)"),
        ClockKind::Host => "host clock".to_owned(),
    };
    let mut text = format!("{}, {vcpus} x {}, {clock}, seed {seed}", size(*memory), cpu_name(*cpu));
    if machine.no_reboot {
        text.push_str(", no reboot");
    }
    if let Some((base, size)) = machine.debug_exit {
        let _ = write!(text, ", isa-debug-exit {base:#x} ({size})");
    }
    if machine.testdev {
        text.push_str(", testdev");
    }
    text
}

fn info_text(trace: &Trace, stats: &Stats) -> String {
    let header = trace.header();
    let end = trace.ending().when();
    let mut rows = vec![
        (
            "trace",
            format!("{}: format {VERSION}, written by {}", trace.name(), header.creator.escape_debug()),
        ),
        ("machine", machine_text(&header.machine)),
        ("command line", header.cmdline.escape_debug().to_string()),
    ];
    for image in &header.images {
        rows.push((image.role.name(), format!("{} bytes, xxh3 {:032x}", grouped(image.size), image.digest)));
    }
    let (images, records, frames) = (trace.image_bytes(), trace.frame_bytes(), trace.frames());
    let parts = [trace.size(), images, records, frames as u64].map(grouped);
    let [total, images, records, frames] = parts;
    rows.push(("size", format!("{total} bytes: images {images}, records {records} in {frames} frames")));
    let duration = Seconds(end.time.0);
    rows.push(("run", format!("{} instructions, {duration} of guest time", grouped(end.icount.0))));
    for (kind, k) in &stats.kinds {
        rows.push((kind, format!("{} in {} bytes before compression", grouped(k.count), grouped(k.bytes))));
    }
    rows.push(("ending", ending_text(trace.ending())));
    if !trace.has_images() {
        rows.push(("warning", "its images are incomplete, so it cannot be replayed".to_owned()));
    }
    if let Some(e) = &stats.error {
        rows.push(("warning", e.to_string()));
    }
    rows.iter()
        .fold(String::new(), |text, (name, value)| text + format!("{name:<15} {value}").trim_end() + "\n")
}

fn ending_text(ending: &Ending) -> String {
    match ending {
        Ending::Complete(end) => format!("complete: {}, state hash {}", end.reason, end.hash),
        Ending::Cut(cut) => cut.to_string(),
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A JSON object from names and values that are JSON already.
fn object<N: AsRef<str>>(fields: impl IntoIterator<Item = (N, String)>) -> String {
    let fields: Vec<_> = fields.into_iter().map(|(n, v)| format!("{}:{v}", quoted(n.as_ref()))).collect();
    format!("{{{}}}", fields.join(","))
}

fn info_json(trace: &Trace, stats: &Stats) -> String {
    let header = trace.header();
    let machine = &header.machine;
    let end = trace.ending().when();
    let image = |i: &retrovisor_replay::format::header::ImageInfo| {
        let digest = quoted(&format!("{:032x}", i.digest));
        object([("role", quoted(i.role.name())), ("size", i.size.to_string()), ("xxh3", digest)])
    };
    let images: Vec<_> = header.images.iter().map(image).collect();
    let kinds = stats
        .kinds
        .iter()
        .map(|(kind, k)| (kind, object([("count", k.count.to_string()), ("bytes", k.bytes.to_string())])));
    let clock = if machine.clock == ClockKind::Host { "host" } else { "virtual" };
    let complete = matches!(trace.ending(), Ending::Complete(_));
    let fields = [
        ("file", quoted(trace.name())),
        ("format", VERSION.to_string()),
        ("creator", quoted(&header.creator)),
        ("memory", machine.memory.to_string()),
        ("vcpus", machine.vcpus.to_string()),
        ("cpu", quoted(cpu_name(machine.cpu))),
        ("clock", quoted(clock)),
        ("seed", machine.seed.to_string()),
        ("hash_interval", machine.hash_interval.to_string()),
        ("cmdline", quoted(&header.cmdline)),
        ("images", format!("[{}]", images.join(","))),
        ("size", trace.size().to_string()),
        ("image_bytes", trace.image_bytes().to_string()),
        ("record_bytes", trace.frame_bytes().to_string()),
        ("frames", trace.frames().to_string()),
        ("instructions", end.icount.0.to_string()),
        ("guest_ns", end.time.0.to_string()),
        ("records", object(kinds)),
        ("complete", complete.to_string()),
        ("replayable", trace.has_images().to_string()),
        ("ending", quoted(&ending_text(trace.ending()))),
    ];
    object(fields) + "\n"
}

fn event_json(record: &Record) -> String {
    object([
        ("icount", record.when.icount.0.to_string()),
        ("guest_ns", record.when.time.0.to_string()),
        ("kind", quoted(record.what.kind())),
        ("what", quoted(&record.what.to_string())),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use retrovisor_core::hash::StateHash;
    use retrovisor_core::input::{InputEvent, InputPort, NoInput, When};
    use retrovisor_core::loader::Images;
    use retrovisor_core::{GuestTime, Icount};
    use retrovisor_replay::{ExitReason, Recording};
    use std::path::PathBuf;

    fn at(icount: u64) -> When {
        When { icount: Icount(icount), time: GuestTime(icount) }
    }

    /// A file that goes away with the test.
    struct TempFile(PathBuf);

    impl std::ops::Deref for TempFile {
        type Target = Path;
        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// A trace of three inputs and a hash point, complete or cut before its end record.
    fn trace(name: &str, complete: bool) -> TempFile {
        let path = std::env::temp_dir().join(format!("retrovisor-{}-{name}", std::process::id()));
        let config = MachineConfig::default();
        let images = Images { kernel: Some(vec![1; 5000]), cmdline: "a \"b\"".into(), ..Images::default() };
        let recording = Recording::create(&path, &config, &images, Box::new(|_| ())).unwrap();
        let mut port = recording.port(NoInput);
        port.inject(at(10), &InputEvent::Serial { port: 0, bytes: b"ls\r".to_vec() });
        port.inject(at(20), &InputEvent::Nmi);
        port.check(at(1 << 24), StateHash(7));
        port.inject(at(20_000_000), &InputEvent::Key { bytes: vec![0x1c, 0x9c] });
        if complete {
            recording.finish(at(30_000_000), ExitReason::PowerOff, StateHash(8)).unwrap();
        } else {
            recording.flush(at(30_000_000));
        }
        TempFile(path)
    }

    fn shown(f: impl FnOnce(&mut dyn Write) -> Result<()>) -> String {
        let mut out = Vec::new();
        f(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn test_info_shows_machine_images_counts_and_ending() {
        let path = trace("info.rvt", true);
        let text = shown(|out| info(&path, false, out));
        for part in
            ["256 MiB", "5,000 bytes", "30,000,000 instructions", "0.030000000s", "complete: power-off"]
        {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let json = shown(|out| info(&path, true, out));
        assert!(json.starts_with('{') && json.trim_end().ends_with('}') && json.lines().count() == 1);
        for part in [r#""cmdline":"a \"b\"""#, r#""serial":{"count":1,"#, r#""complete":true"#] {
            assert!(json.contains(part), "{part} in\n{json}");
        }
    }

    #[test]
    fn test_events_shows_one_line_an_input() {
        let path = trace("events.rvt", true);
        let text = shown(|out| events(&path, EventsOptions::default(), out));
        let kinds: Vec<_> = text.lines().map(|l| l.split_whitespace().nth(2).unwrap()).collect();
        assert_eq!(kinds, ["serial", "nmi", "key"]);
        let all =
            EventsOptions { hashes: true, json: true, from: Some(Icount(20)), to: Some(Icount(1 << 24)) };
        let json = shown(|out| events(&path, all, out));
        assert_eq!(json.lines().count(), 2);
        assert!(json.starts_with(r#"{"icount":20,"guest_ns":20,"kind":"nmi","what":"nmi"}"#), "{json}");
    }

    #[test]
    fn test_cut_trace_says_so() {
        let path = trace("cut.rvt", false);
        for text in [shown(|o| info(&path, false, o)), shown(|o| events(&path, EventsOptions::default(), o))]
        {
            assert!(text.contains("complete up to instruction 30000000"), "{text}");
        }
    }

    #[test]
    fn test_grouped_and_size() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1 << 30, 3 << 20, 5000 << 10].map(size), ["1 GiB", "3 MiB", "5000 KiB"]);
    }
}
