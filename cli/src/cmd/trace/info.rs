//! `trace info`: what a trace is, as a table and as one JSON object.

use super::events::point;
use super::{finish, open};
use crate::cmd::json::{Fields, array, object, quoted};
use anyhow::Result;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_replay::format::VERSION;
use retrovisor_replay::format::describe::Seconds;
use retrovisor_replay::format::header::ImageInfo;
use retrovisor_replay::format::machine::cpu_name;
use retrovisor_replay::{Ending, Stats, Trace};
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

/// `trace info`: header, images, counts, duration and ending.
///
/// # Errors
/// If the trace cannot be opened or `out` cannot be written.
pub fn info(path: &Path, json: bool, out: &mut dyn Write) -> Result<()> {
    let trace = open(path)?;
    let stats = Stats::of(&trace);
    let text = if json { info_json(&trace, &stats) } else { info_text(&trace, &stats) };
    finish(out.write_all(text.as_bytes()).map_err(Into::into))
}

/// 1234567 as 1,234,567.
pub fn grouped(n: u64) -> String {
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

/// How many times smaller `stored` is than `raw`.
fn ratio(raw: u64, stored: u64) -> String {
    let tenths = raw.saturating_mul(10) / stored.max(1);
    format!("{}.{}x", tenths / 10, tenths % 10)
}

/// The rows on what takes how much of the file.
fn size_rows(trace: &Trace) -> [(&'static str, String); 3] {
    let row = |stored: u64, raw: u64, what: String| {
        format!(
            "{} bytes, {} before compression ({}){what}",
            grouped(stored),
            grouped(raw),
            ratio(raw, stored)
        )
    };
    let (icount, time) = (trace.ending().when().icount.0, trace.ending().when().time.0);
    let per = |unit: u64, n: u64| {
        let bytes = u128::from(trace.frame_bytes()) * u128::from(unit) / u128::from(n.max(1));
        grouped(u64::try_from(bytes).unwrap_or(u64::MAX))
    };
    let frames = format!(
        " in {} frame{}; {} a billion instructions, {} a second",
        grouped(trace.frames() as u64),
        if trace.frames() == 1 { "" } else { "s" },
        per(1_000_000_000, icount),
        per(1_000_000_000, time)
    );
    [
        (
            "size",
            format!(
                "{} bytes{}",
                grouped(trace.size()),
                if trace.indexed() { ", with a seek index" } else { "" }
            ),
        ),
        ("images", row(trace.image_bytes(), trace.image_raw_bytes(), String::new())),
        ("records", row(trace.frame_bytes(), trace.frame_raw_bytes(), frames)),
    ]
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
    rows.extend(size_rows(trace));
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

/// How a trace ends, as JSON fields.
pub fn ending(ending: &Ending) -> Fields {
    let mut fields = point("icount", "guest_ns", ending.when());
    match ending {
        Ending::Complete(end) => fields.extend([
            ("kind", quoted("end")),
            ("reason", quoted(end.reason.name())),
            ("value", end.reason.value().to_string()),
            ("state", quoted(&end.hash.to_string())),
            ("output", quoted(&format!("{:016x}", end.output))),
        ]),
        Ending::Cut(cut) => fields.extend([
            ("kind", quoted("cut")),
            ("byte", cut.at.to_string()),
            ("damage", cut.damage.map_or("null".to_owned(), quoted)),
        ]),
    }
    fields
}

/// The header as JSON fields: the machine and its images.
pub fn header(trace: &Trace) -> Fields {
    let header = trace.header();
    let MachineConfig {
        memory,
        vcpus,
        cpu,
        clock,
        ns_per_insn,
        wall_time,
        seed,
        no_reboot,
        debug_exit,
        testdev,
        hash_interval,
        slice,
    } = &header.machine;
    let image = |i: &ImageInfo| {
        let digest = quoted(&format!("{:032x}", i.digest));
        object([("role", quoted(i.role.name())), ("size", i.size.to_string()), ("xxh3", digest)])
    };
    let port = |(base, size): &(u16, u16)| object([("base", base.to_string()), ("size", size.to_string())]);
    let clock = if *clock == ClockKind::Host { "host" } else { "virtual" };
    vec![
        ("format", VERSION.to_string()),
        ("creator", quoted(&header.creator)),
        ("memory", memory.to_string()),
        ("vcpus", vcpus.to_string()),
        ("cpu", quoted(cpu_name(*cpu))),
        ("clock", quoted(clock)),
        ("ns_per_instruction", ns_per_insn.to_string()),
        ("wall_time", wall_time.to_string()),
        ("seed", quoted(&format!("{seed:#x}"))),
        ("no_reboot", no_reboot.to_string()),
        ("testdev", testdev.to_string()),
        ("isa_debug_exit", debug_exit.as_ref().map_or("null".to_owned(), port)),
        ("hash_interval", hash_interval.to_string()),
        ("slice", slice.to_string()),
        ("cmdline", quoted(&header.cmdline)),
        ("kernel_name", quoted(&header.kernel_name)),
        ("images", array(header.images.iter().map(image))),
    ]
}

fn info_json(trace: &Trace, stats: &Stats) -> String {
    let kinds = stats
        .kinds
        .iter()
        .map(|(kind, k)| (kind, object([("count", k.count.to_string()), ("bytes", k.bytes.to_string())])));
    let end = trace.ending().when();
    let mut fields = vec![("file", quoted(trace.name()))];
    fields.extend(header(trace));
    fields.extend([
        ("size", trace.size().to_string()),
        ("image_bytes", trace.image_bytes().to_string()),
        ("image_raw_bytes", trace.image_raw_bytes().to_string()),
        ("record_bytes", trace.frame_bytes().to_string()),
        ("record_raw_bytes", trace.frame_raw_bytes().to_string()),
        ("frames", trace.frames().to_string()),
        ("indexed", trace.indexed().to_string()),
        ("instructions", end.icount.0.to_string()),
        ("guest_ns", end.time.0.to_string()),
        ("records", object(kinds)),
        ("complete", matches!(trace.ending(), Ending::Complete(_)).to_string()),
        ("replayable", trace.has_images().to_string()),
        ("ending", object(ending(trace.ending()))),
        ("warning", stats.error.as_ref().map_or("null".to_owned(), |e| quoted(&e.to_string()))),
    ]);
    object(fields) + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::tests::{shown, trace};
    use super::*;

    #[test]
    fn test_info_shows_machine_images_counts_and_ending() {
        let path = trace("info.rvt", true);
        let text = shown(|out| info(&path, false, out));
        for part in [
            "256 MiB",
            "5,000 bytes",
            "5,001 before compression",
            "30,000,000 instructions",
            "0.030000000s",
            "with a seek index",
            "complete: power-off",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let json = shown(|out| info(&path, true, out));
        assert!(json.starts_with('{') && json.trim_end().ends_with('}') && json.lines().count() == 1);
        for part in [
            r#""cmdline":"a \"b\"""#,
            r#""serial":{"count":1,"#,
            r#""complete":true"#,
            r#""reason":"power-off","value":0"#,
        ] {
            assert!(json.contains(part), "{part} in\n{json}");
        }
    }

    #[test]
    fn test_grouped_size_and_ratio() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([1 << 30, 3 << 20, 5000 << 10].map(size), ["1 GiB", "3 MiB", "5000 KiB"]);
        assert_eq!([ratio(25, 10), ratio(10, 0), ratio(1, 3)], ["2.5x", "10.0x", "0.3x"]);
    }
}
