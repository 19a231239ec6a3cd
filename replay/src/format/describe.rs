//! One readable line for a logged input.

use super::record::{Record, What};
use retrovisor_core::input::{InputEvent, Query};
use std::fmt::{self, Display, Formatter};

/// Bytes shown of a longer byte string.
const SHOWN: usize = 48;

impl What {
    /// Short name of the kind, stable for scripts.
    pub const fn kind(&self) -> &'static str {
        match self {
            What::Event(event) => match event {
                InputEvent::Serial { .. } => "serial",
                InputEvent::Key { .. } => "key",
                InputEvent::PowerButton => "power-button",
                InputEvent::Reset => "reset",
                InputEvent::Nmi => "nmi",
                InputEvent::Tick { .. } => "tick",
                InputEvent::WritePhys { .. } => "write-memory",
                InputEvent::WriteReg { .. } => "write-register",
            },
            What::Answer { query, .. } => query_name(*query),
            What::Hash { .. } => "hash",
        }
    }
}

/// All kinds of records by name, in the order of their numbers in the file.
pub const KINDS: [&str; 12] = [
    "serial",
    "key",
    "power-button",
    "reset",
    "nmi",
    "tick",
    "write-memory",
    "write-register",
    "host-time",
    "boot-wall-time",
    "random",
    "hash",
];

/// Name of a query, stable for scripts.
pub const fn query_name(query: Query) -> &'static str {
    match query {
        Query::HostTime => "host-time",
        Query::BootWallTime => "boot-wall-time",
        Query::Random => "random",
    }
}

/// Bytes as a quoted string with escapes, cut at [`SHOWN`].
fn text(f: &mut Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    let shown = &bytes[..bytes.len().min(SHOWN)];
    write!(f, "\"{}\"", shown.escape_ascii())?;
    more(f, bytes)
}

/// Bytes in hexadecimal, cut at [`SHOWN`].
fn hex(f: &mut Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for (i, b) in bytes.iter().take(SHOWN).enumerate() {
        write!(f, "{}{b:02x}", if i == 0 { "" } else { " " })?;
    }
    more(f, bytes)
}

fn more(f: &mut Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    if bytes.len() > SHOWN { write!(f, " ... ({} bytes)", bytes.len()) } else { Ok(()) }
}

/// The fields after the kind, if it has any.
struct Fields<'a>(&'a What);

impl Display for Fields<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            What::Event(InputEvent::Serial { port, bytes }) => {
                write!(f, "COM{} ", u16::from(*port) + 1)?;
                text(f, bytes)
            }
            What::Event(InputEvent::Key { bytes }) => hex(f, bytes),
            What::Event(InputEvent::PowerButton | InputEvent::Reset | InputEvent::Nmi) => Ok(()),
            What::Event(InputEvent::Tick { time }) => write!(f, "{}", Seconds(time.0)),
            What::Event(InputEvent::WritePhys { gpa, bytes }) => {
                write!(f, "{gpa:#x}: ")?;
                hex(f, bytes)
            }
            What::Event(InputEvent::WriteReg { vcpu, reg, value }) => {
                write!(f, "vCPU {vcpu} register {reg} = {value:#x}")
            }
            What::Answer { query: Query::HostTime, value } => write!(f, "{}", Seconds(*value)),
            What::Answer { query: Query::BootWallTime, value } => write!(f, "{value} s"),
            What::Answer { query: Query::Random, value } => write!(f, "{value:#018x}"),
            What::Hash { hash, output } => write!(f, "{hash} output {output:016x}"),
        }
    }
}

impl Display for What {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let fields = Fields(self).to_string();
        write!(f, "{}{}{fields}", self.kind(), if fields.is_empty() { "" } else { " " })
    }
}

impl Display for Record {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let fields = Fields(&self.what).to_string();
        let (icount, time) = (self.when.icount, Seconds(self.when.time.0));
        let line = format!("{icount:>14} {time:>18} {:<14} {fields}", self.what.kind());
        f.write_str(line.trim_end())
    }
}

/// Guest nanoseconds shown as seconds.
pub struct Seconds(pub u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let s = format!("{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        f.pad(&s)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{at, every_kind};
    use super::*;

    #[test]
    fn test_every_kind_has_its_own_name_and_line() {
        let names: std::collections::BTreeSet<_> = every_kind().iter().map(|r| r.what.kind()).collect();
        assert_eq!(names, KINDS.into_iter().collect());
        for r in every_kind() {
            let line = r.to_string();
            assert!(line.contains(r.what.kind()) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn test_line_shows_point_and_text() {
        let event = InputEvent::Serial { port: 0, bytes: b"ls\r\x1b".to_vec() };
        let line = Record { when: at(42, 1_500_000_000), what: What::Event(event) }.to_string();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["42", "1.500000000s", "serial", "COM1", r#""ls\r\x1b""#]);
        let long = What::Event(InputEvent::Key { bytes: vec![0xab; 1000] }).to_string();
        assert!(long.len() < 200 && long.ends_with("(1000 bytes)"), "{long}");
    }
}
