//! `trace events`: a trace's records, for people one line each, for programs one JSON object each. The JSON fields are
//! described in docs/trace-export.md and stay as they are.

use super::{finish, open};
use crate::cmd::json::{Fields, hex, object, quoted};
use anyhow::{Result, bail};
use retrovisor_core::input::{InputEvent, Query, When};
use retrovisor_replay::format::describe::KINDS;
use retrovisor_replay::{Ending, Record, Trace, What};
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;

/// A point somebody names: an icount, or a guest time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    Icount(u64),
    /// Nanoseconds.
    Time(u64),
}

impl FromStr for Point {
    type Err = String;

    /// A number of instructions, or a time with a unit: `1200`, `1.5s`, `20ms`, `7us`, `3ns`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is no point: give an icount, or a guest time such as 1.5s, 20ms, 7us or 3ns")
        };
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let scale = match &text[digits..] {
            "" => return text.parse().map(Point::Icount).map_err(|_| wrong()),
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" => 1000,
            "ns" => 1,
            _ => return Err(wrong()),
        };
        decimal(&text[..digits], scale).map(Point::Time).ok_or_else(wrong)
    }
}

/// `text`, a decimal number, times `scale`, a power of ten; finer digits are dropped.
fn decimal(text: &str, scale: u64) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let mut value = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let mut unit = scale;
    for digit in part.chars() {
        unit /= 10;
        value = value.checked_add(u64::from(digit.to_digit(10)?) * unit)?;
    }
    Some(value)
}

/// Which records are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub from: Option<Point>,
    /// The last point wanted.
    pub to: Option<Point>,
    /// Kinds wanted; none named: all but hash points.
    pub kinds: Vec<String>,
}

impl Filter {
    /// Everything.
    pub fn all() -> Self {
        Self { kinds: vec!["all".to_owned()], ..Self::default() }
    }

    /// Refuses kinds that do not exist.
    pub fn check(&self) -> Result<()> {
        match self.kinds.iter().find(|k| *k != "all" && !KINDS.contains(&k.as_str())) {
            Some(unknown) => {
                bail!("--kind {unknown}: no such kind: give some of {}, or all", KINDS.join(", "))
            }
            None => Ok(()),
        }
    }

    fn before(&self, when: When) -> bool {
        match self.from {
            Some(Point::Icount(n)) => when.icount.0 < n,
            Some(Point::Time(t)) => when.time.0 < t,
            None => false,
        }
    }

    fn after(&self, when: When) -> bool {
        match self.to {
            Some(Point::Icount(n)) => when.icount.0 > n,
            Some(Point::Time(t)) => when.time.0 > t,
            None => false,
        }
    }

    fn has(&self, what: &What) -> bool {
        match &self.kinds[..] {
            [] => !matches!(what, What::Hash { .. }),
            kinds => kinds.iter().any(|k| k == "all" || k == what.kind()),
        }
    }

    /// Calls `each` for the records of `trace` that pass, in order.
    ///
    /// # Errors
    /// If the trace cannot be read to its end, or `each` fails.
    pub fn records(&self, trace: &Trace, each: &mut dyn FnMut(&Record) -> io::Result<()>) -> Result<()> {
        let from = match self.from {
            Some(Point::Icount(n)) => n,
            _ => 0,
        };
        for record in trace.records_from(retrovisor_core::Icount(from)) {
            let record = record?;
            if self.after(record.when) {
                break;
            }
            if !self.before(record.when) && self.has(&record.what) {
                each(&record)?;
            }
        }
        Ok(())
    }
}

/// `trace events`: one line a record.
///
/// # Errors
/// If the trace cannot be opened or read to its end, or `out` cannot be written.
pub fn events(path: &Path, filter: &Filter, json: bool, out: &mut dyn Write) -> Result<()> {
    filter.check()?;
    let trace = open(path)?;
    let mut out = io::BufWriter::new(out);
    finish(write_events(&trace, filter, json, &mut out))
}

fn write_events(trace: &Trace, filter: &Filter, json: bool, out: &mut dyn Write) -> Result<()> {
    filter.records(trace, &mut |r| match json {
        true => writeln!(out, "{}", object(event(r))),
        false => writeln!(out, "{r}"),
    })?;
    if let (Ending::Cut(cut), false) = (trace.ending(), json) {
        writeln!(out, "{}: {cut}", trace.name())?;
    }
    Ok(out.flush()?)
}

/// A record as JSON fields.
pub fn event(record: &Record) -> Fields {
    let mut fields = point("icount", "guest_ns", record.when);
    fields.push(("kind", quoted(record.what.kind())));
    fields.extend(details(&record.what));
    fields
}

/// A point as two JSON fields.
pub fn point(icount: &'static str, time: &'static str, when: When) -> Fields {
    vec![(icount, when.icount.0.to_string()), (time, when.time.0.to_string())]
}

/// The fields that a kind has of its own.
pub fn details(what: &What) -> Fields {
    let bytes = |b: &[u8]| ("bytes", hex(b));
    match what {
        What::Event(InputEvent::Serial { port, bytes: b }) => {
            let text = quoted(&b.escape_ascii().to_string());
            vec![("port", port.to_string()), bytes(b), ("text", text)]
        }
        What::Event(InputEvent::Key { bytes: b }) => vec![bytes(b)],
        What::Event(InputEvent::PowerButton | InputEvent::Reset | InputEvent::Nmi) => vec![],
        What::Event(InputEvent::Tick { time }) => vec![("time_ns", time.0.to_string())],
        What::Event(InputEvent::WritePhys { gpa, bytes: b }) => {
            vec![("address", quoted(&format!("{gpa:#x}"))), bytes(b)]
        }
        What::Event(InputEvent::WriteReg { vcpu, reg, value }) => vec![
            ("vcpu", vcpu.to_string()),
            ("register", reg.to_string()),
            ("value", quoted(&format!("{value:#x}"))),
        ],
        What::Answer { query: Query::HostTime, value } => vec![("time_ns", value.to_string())],
        What::Answer { query: Query::BootWallTime, value } => vec![("seconds", value.to_string())],
        What::Answer { query: Query::Random, value } => vec![("value", quoted(&format!("{value:#x}")))],
        What::Hash { hash, output } => {
            vec![("state", quoted(&hash.to_string())), ("output", quoted(&format!("{output:016x}")))]
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{shown, trace};
    use super::*;

    #[test]
    fn test_points_parse() {
        for (text, point) in [
            ("0", Point::Icount(0)),
            ("1200", Point::Icount(1200)),
            ("1.5s", Point::Time(1_500_000_000)),
            ("20ms", Point::Time(20_000_000)),
            ("7.25us", Point::Time(7250)),
            ("3ns", Point::Time(3)),
        ] {
            assert_eq!(text.parse(), Ok(point), "{text}");
        }
        for bad in ["", "s", "-1", "1.5", "1.5.2s", "1h", ".5s", "99999999999999999999", "99999999999999s"] {
            assert!(bad.parse::<Point>().is_err(), "{bad}");
        }
    }

    #[test]
    fn test_events_shows_one_line_an_input() {
        let path = trace("events.rvt", true);
        let text = shown(|out| events(&path, &Filter::default(), false, out));
        let kinds: Vec<_> = text.lines().map(|l| l.split_whitespace().nth(2).unwrap()).collect();
        assert_eq!(kinds, ["serial", "nmi", "key"]);
    }

    #[test]
    fn test_events_filtered_by_kind_and_point() {
        let path = trace("filter.rvt", true);
        let count = |from: Option<&str>, to: Option<&str>, kinds: &[&str]| {
            let point = |p: Option<&str>| p.map(|p| p.parse().unwrap());
            let kinds = kinds.iter().map(|k| (*k).to_owned()).collect();
            let filter = Filter { from: point(from), to: point(to), kinds };
            shown(|out| events(&path, &filter, true, out)).lines().count()
        };
        assert_eq!(count(None, None, &["all"]), 4);
        assert_eq!(count(None, None, &["hash", "key"]), 2);
        assert_eq!(count(Some("20"), Some("16777216"), &["all"]), 2);
        assert_eq!(count(Some("20ns"), Some("16.777216ms"), &["all"]), 2);
        assert_eq!(count(Some("21"), None, &[]), 1);
        let unknown = Filter { kinds: vec!["mouse".into()], ..Filter::default() };
        let e = events(&path, &unknown, false, &mut Vec::new()).unwrap_err().to_string();
        assert!(e.contains("--kind mouse") && e.contains("serial, key"), "{e}");
    }

    #[test]
    fn test_json_has_the_documented_fields() {
        let path = trace("json.rvt", true);
        let json = shown(|out| events(&path, &Filter::all(), true, out));
        let state = "0".repeat(31) + "7";
        let output = "0".repeat(16);
        let expected = [
            r#"{"icount":10,"guest_ns":10,"kind":"serial","port":0,"bytes":"6c730d","text":"ls\\r"}"#
                .to_owned(),
            r#"{"icount":20,"guest_ns":20,"kind":"nmi"}"#.to_owned(),
            format!(
                r#"{{"icount":16777216,"guest_ns":16777216,"kind":"hash","state":"{state}","output":"{output}"}}"#
            ),
            r#"{"icount":20000000,"guest_ns":20000000,"kind":"key","bytes":"1c9c"}"#.to_owned(),
        ];
        assert_eq!(json.lines().collect::<Vec<_>>(), expected);
    }
}
