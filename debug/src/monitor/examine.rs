//! `xp`, `xl`, `dis`: memory as numbers, text or instructions.

use super::args::{Format, address, linear, physical};
use super::{Context, Error, Output};
use crate::disasm;
use retrovisor_core::{Gpa, Gva};

/// Longest instruction in bytes.
const MAX_INSN: usize = 15;
/// Longest string shown by the `s` format.
const MAX_STRING: usize = 200;

#[derive(Clone, Copy)]
enum Space {
    Physical,
    Linear,
}

impl Space {
    fn read(self, ctx: &mut Context<'_, '_>, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        let got = match self {
            Space::Physical => ctx.machine.read_physical(Gpa(at), &mut buf),
            Space::Linear => ctx.machine.read_virtual(ctx.vcpu, Gva(at), &mut buf),
        };
        buf.truncate(got);
        buf
    }

    fn unreadable(self, at: u64) -> String {
        match self {
            Space::Physical => format!("physical address {at:#x} is neither RAM nor ROM"),
            Space::Linear => format!("linear address {at:#x} is not mapped to memory"),
        }
    }
}

/// `xp [/FMT] ADDR`
pub fn xp(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let (format, rest) = split_format(args)?;
    let [text] = rest else { return Err("one address is needed".into()) };
    let at = physical(ctx, text)?;
    examine(ctx, Space::Physical, format, at.0)
}

/// `xl [/FMT] ADDR`
pub fn xl(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let (format, rest) = split_format(args)?;
    let [text] = rest else { return Err("one address is needed".into()) };
    let at = linear(ctx, text)?;
    examine(ctx, Space::Linear, format, at.0)
}

/// `dis [ADDR [COUNT]]`
pub fn dis(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let at = match args.first() {
        Some(text) => linear(ctx, text)?,
        None => ctx.machine.pc(ctx.vcpu),
    };
    let count = match args.get(1) {
        Some(text) => address(ctx, text)?.clamp(1, Format::MAX_COUNT as u64) as usize,
        None => 10,
    };
    instructions(ctx, Space::Linear, count, at.0)
}

fn split_format<'a, 'b>(args: &'a [&'b str]) -> Result<(Format, &'a [&'b str]), String> {
    match args {
        [format, rest @ ..] if format.starts_with('/') => Ok((Format::parse(&format[1..])?, rest)),
        rest => Ok((Format::default(), rest)),
    }
}

fn examine(ctx: &mut Context<'_, '_>, space: Space, format: Format, at: u64) -> Output {
    match format.letter {
        'i' => instructions(ctx, space, format.count, at),
        's' => strings(ctx, space, format.count, at),
        _ => numbers(ctx, space, format, at),
    }
}

fn numbers(ctx: &mut Context<'_, '_>, space: Space, format: Format, at: u64) -> Output {
    let bytes = space.read(ctx, at, format.count * format.size);
    let whole = bytes.len() / format.size;
    if whole == 0 {
        return Err(Error::Nothing(space.unreadable(at)));
    }
    let per_line = (16 / format.size).min(8);
    let mut text = String::new();
    for (i, unit) in bytes.chunks_exact(format.size).enumerate() {
        if i % per_line == 0 {
            if i > 0 {
                text.push('\n');
            }
            text += &format!("{:#x}:", at.wrapping_add((i * format.size) as u64));
        }
        text.push('\t');
        text += &number(unit, format);
    }
    text.push('\n');
    if whole < format.count {
        text += &format!("{}\n", space.unreadable(at.wrapping_add((whole * format.size) as u64)));
    }
    Ok(text)
}

/// One unit, as gdb shows it.
fn number(unit: &[u8], format: Format) -> String {
    let mut wide = [0; 8];
    wide[..unit.len()].copy_from_slice(unit);
    let v = u64::from_le_bytes(wide);
    let shift = 64 - 8 * unit.len() as u32;
    match format.letter {
        'd' => ((v << shift) as i64 >> shift).to_string(),
        'u' => v.to_string(),
        'o' => format!("{v:#o}"),
        't' => format!("{v:0width$b}", width = unit.len() * 8),
        'a' => format!("{v:#x}"),
        'c' => match v as u8 {
            b @ 0x20..=0x7e => format!("{b} '{}'", b as char),
            b => format!("{b} '\\{b:03o}'"),
        },
        _ => format!("{v:#0width$x}", width = unit.len() * 2 + 2),
    }
}

fn strings(ctx: &mut Context<'_, '_>, space: Space, count: usize, mut at: u64) -> Output {
    let mut text = String::new();
    for _ in 0..count {
        let bytes = space.read(ctx, at, MAX_STRING);
        if bytes.is_empty() {
            if text.is_empty() {
                return Err(Error::Nothing(space.unreadable(at)));
            }
            text += &format!("{}\n", space.unreadable(at));
            break;
        }
        let end = bytes.iter().position(|b| *b == 0);
        let shown = bytes[..end.unwrap_or(bytes.len())].escape_ascii();
        text += &format!("{at:#x}:\t\"{shown}\"{}\n", if end.is_none() { "..." } else { "" });
        at = at.wrapping_add(end.map_or(bytes.len(), |e| e + 1) as u64);
    }
    Ok(text)
}

fn instructions(ctx: &mut Context<'_, '_>, space: Space, count: usize, at: u64) -> Output {
    let bits = ctx.machine.vcpu(ctx.vcpu).map_or(64, |cpu| cpu.mode.bits);
    let bytes = space.read(ctx, at, count * MAX_INSN);
    if bytes.is_empty() {
        return Err(Error::Nothing(space.unreadable(at)));
    }
    Ok(disasm::disassemble(&bytes, bits, at, count).iter().map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_are_shown_as_gdb_does() {
        let show = |bytes: &[u8], f: &str| number(bytes, Format::parse(f).unwrap());
        assert_eq!(show(&[0xff], "xb"), "0xff");
        assert_eq!(show(&[0xff], "db"), "-1");
        assert_eq!(show(&[0xff, 0xff], "uh"), "65535");
        assert_eq!(show(&[1, 0, 0, 0], "xw"), "0x00000001");
        assert_eq!(show(&[5], "tb"), "00000101");
        assert_eq!(show(b"A", "c"), "65 'A'");
    }
}
