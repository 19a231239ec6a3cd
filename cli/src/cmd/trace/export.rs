//! `trace export`: a whole trace for other programs, as JSON lines or as a timeline for Perfetto's trace viewer. What is
//! written is described in docs/trace-export.md.

use super::events::{Filter, details, event, point};
use super::info::{ending, header};
use super::{open, output};
use crate::args::ExportFormat;
use crate::cmd::json::{Fields, object, quoted};
use anyhow::Result;
use retrovisor_core::input::{InputEvent, When};
use retrovisor_replay::{Record, Trace, What};
use std::io::{self, Write};
use std::path::Path;

/// `trace export`: to `to`, or to `out`.
///
/// # Errors
/// If the trace cannot be opened or read to its end, or the output cannot be written.
pub fn export(path: &Path, format: ExportFormat, to: Option<&Path>, out: &mut dyn Write) -> Result<()> {
    let trace = open(path)?;
    output(to, out, &mut |out| match format {
        ExportFormat::Jsonl => jsonl(&trace, out),
        ExportFormat::Perfetto => perfetto(&trace, out),
    })
}

/// A line for the header, one a record, one for the ending.
pub fn jsonl(trace: &Trace, out: &mut dyn Write) -> Result<()> {
    let mut first = vec![("kind", quoted("trace"))];
    first.extend(header(trace));
    writeln!(out, "{}", object(first))?;
    Filter::all().records(trace, &mut |r| writeln!(out, "{}", object(event(r))))?;
    writeln!(out, "{}", object(ending(trace.ending())))?;
    Ok(())
}

/// The rows of the timeline, top down; the number is the thread in the trace event format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Track {
    Inputs = 1,
    Debugger = 2,
    Ticks = 3,
    Answers = 4,
    HashPoints = 5,
}

impl Track {
    const ALL: [(Track, &'static str); 5] = [
        (Track::Inputs, "inputs"),
        (Track::Debugger, "debugger writes"),
        (Track::Ticks, "timer ticks"),
        (Track::Answers, "answers (time, random)"),
        (Track::HashPoints, "hash points"),
    ];

    const fn of(what: &What) -> Self {
        match what {
            What::Event(InputEvent::Tick { .. }) => Track::Ticks,
            What::Event(InputEvent::WritePhys { .. } | InputEvent::WriteReg { .. }) => Track::Debugger,
            What::Event(_) => Track::Inputs,
            What::Answer { .. } => Track::Answers,
            What::Hash { .. } => Track::HashPoints,
        }
    }
}

/// The JSON trace event format: guest time as the time axis, a row a kind of input, instructions as arguments.
fn perfetto(trace: &Trace, out: &mut dyn Write) -> Result<()> {
    let mut first = vec![("kind", quoted("trace"))];
    first.extend(header(trace));
    writeln!(out, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{},\"traceEvents\":[", object(first))?;
    meta(out, "process_name", 0, trace.name())?;
    for (track, name) in Track::ALL {
        meta(out, "thread_name", track as u64, name)?;
        let order = object([("sort_index", (track as u64).to_string())]);
        emit(out, "thread_sort_index", "M", track as u64, vec![("args", order)])?;
    }
    let mut last = When::default();
    Filter::all().records(trace, &mut |r| {
        if matches!(r.what, What::Hash { .. }) {
            interval(out, last, r.when)?;
            last = r.when;
        }
        instant(out, r)
    })?;
    let end = trace.ending().when();
    interval(out, last, end)?;
    let mut fields = vec![("ts", micros(end.time.0)), ("s", quoted("p"))];
    fields.push(("args", object(ending(trace.ending()))));
    // The last event has no comma behind it.
    let last = event_object("end of the trace", "i", Track::HashPoints as u64, fields);
    writeln!(out, "{last}\n]}}")?;
    Ok(())
}

/// Nanoseconds as the format's microseconds.
fn micros(ns: u64) -> String {
    format!("{}.{:03}", ns / 1000, ns % 1000)
}

fn event_object(name: &str, phase: &'static str, tid: u64, more: Fields) -> String {
    let mut fields = vec![("name", quoted(name)), ("ph", quoted(phase)), ("pid", "1".to_owned())];
    fields.push(("tid", tid.to_string()));
    fields.extend(more);
    object(fields)
}

fn emit(out: &mut dyn Write, name: &str, phase: &'static str, tid: u64, more: Fields) -> io::Result<()> {
    writeln!(out, "{},", event_object(name, phase, tid, more))
}

fn meta(out: &mut dyn Write, what: &str, tid: u64, name: &str) -> io::Result<()> {
    emit(out, what, "M", tid, vec![("args", object([("name", quoted(name))]))])
}

/// A record as an instant on its row.
fn instant(out: &mut dyn Write, r: &Record) -> io::Result<()> {
    let name = match &r.what {
        What::Event(InputEvent::Serial { .. } | InputEvent::Key { .. }) => r.what.to_string(),
        other => other.kind().to_owned(),
    };
    let mut args = vec![("icount", r.when.icount.0.to_string())];
    args.extend(details(&r.what));
    let fields = vec![("ts", micros(r.when.time.0)), ("s", quoted("t")), ("args", object(args))];
    emit(out, &name, "i", Track::of(&r.what) as u64, fields)
}

/// What lies between two hash points: a bar, and the instructions executed in a microsecond of guest time, which tell
/// how busy the guest was.
fn interval(out: &mut dyn Write, from: When, to: When) -> io::Result<()> {
    let (ns, insns) = (to.time.0.saturating_sub(from.time.0), to.icount - from.icount);
    let name = format!("{} to {}", from.icount, to.icount);
    let mut args = point("from_icount", "from_ns", from);
    args.extend(point("to_icount", "to_ns", to));
    args.push(("instructions", insns.to_string()));
    let fields = vec![("ts", micros(from.time.0)), ("dur", micros(ns)), ("args", object(args))];
    emit(out, &name, "X", Track::HashPoints as u64, fields)?;
    if ns == 0 {
        // Under the host clock guest time may stand while the guest runs.
        return Ok(());
    }
    let milli = u128::from(insns) * 1_000_000 / u128::from(ns);
    let rate = object([("instructions", format!("{}.{:03}", milli / 1000, milli % 1000))]);
    emit(out, "instructions a microsecond", "C", 0, vec![("ts", micros(from.time.0)), ("args", rate)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{shown, trace};
    use super::*;

    #[test]
    fn test_jsonl_has_header_records_and_ending() {
        for (complete, last) in [(true, r#""kind":"end""#), (false, r#""kind":"cut""#)] {
            let path = trace(&format!("export-{complete}.rvt"), complete);
            let text = shown(|out| export(&path, ExportFormat::Jsonl, None, out));
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines.len(), 6);
            assert!(lines[0].starts_with(r#"{"kind":"trace","format":"#), "{}", lines[0]);
            assert!(lines[5].contains(last), "{}", lines[5]);
        }
    }

    #[test]
    fn test_perfetto_has_a_row_a_kind_and_bars_between_hash_points() {
        let path = trace("perfetto.rvt", true);
        let text = shown(|out| export(&path, ExportFormat::Perfetto, None, out));
        for part in [
            r#""name":"thread_name","ph":"M","pid":1,"tid":1,"args":{"name":"inputs"}"#,
            r#""name":"serial COM1 \"ls\\r\"","ph":"i","pid":1,"tid":1,"ts":0.010,"s":"t","args":{"icount":10,"#,
            r#""name":"0 to 16777216","ph":"X","pid":1,"tid":5,"ts":0.000,"dur":16777.216"#,
            r#""name":"16777216 to 30000000","ph":"X""#,
            r#""args":{"instructions":1000.000}"#,
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(text.ends_with("\n]}\n") && !text.contains(",\n]"), "{text}");
    }

    #[test]
    fn test_micros_keep_nanoseconds() {
        assert_eq!([0, 7, 1_234_567].map(micros), ["0.000", "0.007", "1234.567"]);
    }
}
