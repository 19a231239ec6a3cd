//! The table format of `tests/insn/*.ins`: one instruction, the state before, the state the manual says comes after.
//!
//! ```text
//! # a comment
//! case AAA adjusts a digit above nine
//! mode 32                          real, 16, 32 or 64
//! code 37 ; aaa                    hex bytes; what they disassemble to (checked)
//! in   eax=000a af=0               registers, flags, memory, limits before; all numbers are hexadecimal
//! out  eax=0100 af=1 cf=1          what changes; everything not named must stay as it was
//! undef of sf zf pf                flags the manual leaves undefined
//! ```
//! Names: general registers by any of their 64-, 32- or 16-bit names (always the whole register), `rip`, the flags
//! `cf pf af zf sf df of`, `m<address>=<hex bytes>`, `cs.limit` `ss.limit` `ds.limit`, `limit` (icount at which the
//! engine wants to stop), and in `out` also `icount` and `fault=#GP(0)`. The code lies at 1000; `rip` is there before, and
//! after the instruction if `out` does not say otherwise.

use crate::small::CodeSize;
use std::collections::BTreeMap;

/// Where the code of a case lies.
pub const CODE_AT: u64 = 0x1000;

/// A parsed case.
#[derive(Clone, Debug)]
pub struct InsCase {
    pub name: String,
    /// Line of its `case`.
    pub line: usize,
    pub mode: CodeSize,
    pub code: Vec<u8>,
    /// The disassembly the file claims.
    pub text: String,
    pub before: Values,
    pub after: Values,
    /// Flags that are not compared.
    pub undefined: u64,
    pub fault: Option<String>,
}

/// Named values of `in` and `out`.
#[derive(Clone, Debug, Default)]
pub struct Values {
    pub gpr: BTreeMap<usize, u64>,
    pub rip: Option<u64>,
    /// Flag mask to on or off.
    pub flags: BTreeMap<u64, bool>,
    pub memory: BTreeMap<u64, Vec<u8>>,
    /// Segment index to limit.
    pub limits: BTreeMap<usize, u32>,
    pub limit: Option<u64>,
    pub icount: Option<u64>,
}

/// Parses a file; errors name the line.
pub fn parse(text: &str) -> Result<Vec<InsCase>, String> {
    let mut cases: Vec<InsCase> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if word.is_empty() || word.starts_with('#') {
            continue;
        }
        let at = |e: String| format!("line {}: {e}", n + 1);
        if word == "case" {
            cases.push(empty(rest.trim(), n + 1));
            continue;
        }
        let c = cases.last_mut().ok_or_else(|| at("nothing before the first `case`".into()))?;
        directive(c, word, rest.trim()).map_err(at)?;
    }
    Ok(cases)
}

fn empty(name: &str, line: usize) -> InsCase {
    InsCase {
        name: name.into(),
        line,
        mode: CodeSize::Bits64,
        code: Vec::new(),
        text: String::new(),
        before: Values::default(),
        after: Values::default(),
        undefined: 0,
        fault: None,
    }
}

fn directive(c: &mut InsCase, word: &str, rest: &str) -> Result<(), String> {
    match word {
        "mode" => {
            c.mode = match rest {
                "real" => CodeSize::Real,
                "16" => CodeSize::Bits16,
                "32" => CodeSize::Bits32,
                "64" => CodeSize::Bits64,
                _ => return Err(format!("unknown mode {rest}")),
            }
        }
        "code" => {
            let (bytes, text) = rest.split_once(';').ok_or("code needs its disassembly after `;`")?;
            c.code = hex_bytes(bytes)?;
            c.text = text.trim().into();
        }
        "in" => rest.split_whitespace().try_for_each(|t| value(&mut c.before, t))?,
        "out" => {
            for t in rest.split_whitespace() {
                match t.strip_prefix("fault=") {
                    Some(f) => c.fault = Some(f.into()),
                    None => value(&mut c.after, t)?,
                }
            }
        }
        "undef" => {
            for t in rest.split_whitespace() {
                c.undefined |= flag(t).ok_or_else(|| format!("unknown flag {t}"))?;
            }
        }
        _ => return Err(format!("unknown word {word}")),
    }
    Ok(())
}

fn value(v: &mut Values, token: &str) -> Result<(), String> {
    let (name, text) = token.split_once('=').ok_or_else(|| format!("{token} is not name=value"))?;
    if let Some(at) = name.strip_prefix('m').and_then(|a| u64::from_str_radix(a, 16).ok()) {
        v.memory.insert(at, hex_bytes(text)?);
        return Ok(());
    }
    let n = u64::from_str_radix(text, 16).map_err(|e| format!("{token}: {e}"))?;
    if let Some(f) = flag(name) {
        v.flags.insert(f, n != 0);
    } else if let Some(r) = register(name) {
        v.gpr.insert(r, n);
    } else if let Some(s) = name.strip_suffix(".limit").and_then(segment) {
        v.limits.insert(s, n as u32);
    } else {
        match name {
            "rip" | "eip" | "ip" => v.rip = Some(n),
            "limit" => v.limit = Some(n),
            "icount" => v.icount = Some(n),
            _ => return Err(format!("unknown name {name}")),
        }
    }
    Ok(())
}

fn hex_bytes(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits
        .chunks(2)
        .map(|c| u8::from_str_radix(&c.iter().collect::<String>(), 16).map_err(|e| format!("{text}: {e}")))
        .collect()
}

fn flag(name: &str) -> Option<u64> {
    Some(match name {
        "cf" => 1,
        "pf" => 1 << 2,
        "af" => 1 << 4,
        "zf" => 1 << 6,
        "sf" => 1 << 7,
        "df" => 1 << 10,
        "of" => 1 << 11,
        _ => return None,
    })
}

fn segment(name: &str) -> Option<usize> {
    ["es", "cs", "ss", "ds", "fs", "gs"].iter().position(|n| *n == name)
}

fn register(name: &str) -> Option<usize> {
    const LEGACY: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
    let base = name.strip_prefix(['r', 'e']).filter(|b| LEGACY.contains(b)).unwrap_or(name);
    let numbered = || name.strip_prefix('r').and_then(|n| n.parse().ok()).filter(|n| (8..16).contains(n));
    LEGACY.iter().position(|n| *n == base).or_else(numbered)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_parse_reads_every_kind_of_value() {
        let text = "# c\ncase one\nmode 16\ncode 0f a2 ; x\nin eax=1f cf=1 m200=00ff ss.limit=fff\nout fault=#GP(0)\nundef of";
        let c = &parse(text).unwrap()[0];
        assert_eq!((c.name.as_str(), c.line, c.mode), ("one", 2, CodeSize::Bits16));
        assert_eq!(c.code, [0x0f, 0xa2]);
        assert_eq!(c.before.gpr[&0], 0x1f);
        assert_eq!(c.before.memory[&0x200], [0, 0xff]);
        assert_eq!(c.before.limits[&2], 0xfff);
        assert_eq!((c.undefined, c.fault.as_deref()), (1 << 11, Some("#GP(0)")));
    }

    #[test]
    fn test_parse_errors_name_the_line() {
        assert!(parse("case x\nin foo=1").unwrap_err().starts_with("line 2"));
        assert!(parse("in eax=1").is_err());
        assert!(parse("case x\ncode 37").is_err());
    }
}
