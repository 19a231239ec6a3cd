//! Arguments of text commands: addresses, numbers, times and gdb-style formats.

use super::Context;
use crate::registers;
use retrovisor_core::{Gpa, GuestTime, Gva};

/// Evaluates an address: numbers and `$register`s joined by `+` and `-`.
pub fn address(ctx: &mut Context<'_, '_>, text: &str) -> Result<u64, String> {
    let mut sum = 0u64;
    let mut rest = text;
    let mut negative = false;
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let (term, tail) = rest.split_at(end);
        let value = self::term(ctx, term).map_err(|why| format!("`{text}`: {why}"))?;
        sum = if negative { sum.wrapping_sub(value) } else { sum.wrapping_add(value) };
        negative = match tail.chars().next() {
            None => return Ok(sum),
            Some(sign) => sign == '-',
        };
        rest = &tail[1..];
    }
}

fn term(ctx: &mut Context<'_, '_>, term: &str) -> Result<u64, String> {
    if let Some(name) = term.strip_prefix('$') {
        let reg = registers::by_name(name).ok_or_else(|| format!("there is no register ${name}"))?;
        let cr8 = ctx.machine.cr8(ctx.vcpu);
        let cpu = ctx.machine.vcpu(ctx.vcpu).ok_or("there is no such vCPU")?;
        return Ok(registers::read(cpu, cr8, reg.source) as u64);
    }
    let parsed = match term.strip_prefix("0x").or_else(|| term.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => term.parse(),
    };
    parsed.map_err(|_| format!("`{term}` is neither a number (0x.. or decimal) nor a $register"))
}

/// A whole number: decimal, with `_` between digits as one likes, or 0x...
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => text.replace('_', "").parse().ok(),
        None => None,
    }
}

/// A decimal number with a fraction, times `scale`, a power of ten; finer digits are dropped.
pub fn scaled(text: &str, scale: u64) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let (mut value, mut unit) = (number(whole)?.checked_mul(scale)?, scale);
    for digit in part.chars() {
        unit /= 10;
        value = value.checked_add(u64::from(digit.to_digit(10)?) * unit)?;
    }
    Some(value)
}

/// A guest time with its unit.
pub fn time(text: &str) -> Option<GuestTime> {
    let units = [("ms", 1_000_000), ("us", 1000), ("ns", 1), ("s", 1_000_000_000)];
    let (digits, scale) = units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)))?;
    scaled(digits, scale).map(GuestTime)
}

/// A linear address.
pub fn linear(ctx: &mut Context<'_, '_>, text: &str) -> Result<Gva, String> {
    address(ctx, text).map(Gva)
}

/// A physical address.
pub fn physical(ctx: &mut Context<'_, '_>, text: &str) -> Result<Gpa, String> {
    address(ctx, text).map(Gpa)
}

/// How to show memory: gdb's `/FMT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    pub count: usize,
    /// One of `x d u o t c a s i`.
    pub letter: char,
    /// Unit in bytes: 1, 2, 4 or 8.
    pub size: usize,
}

impl Default for Format {
    fn default() -> Self {
        Self { count: 1, letter: 'x', size: 4 }
    }
}

impl Format {
    /// Most units one command shows.
    pub const MAX_COUNT: usize = 4096;

    /// Parses the part after the slash: a count, a letter and a size, each optional.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut format = Self::default();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (count, letters) = text.split_at(digits);
        if !count.is_empty() {
            let n = count.parse().unwrap_or(usize::MAX);
            if n == 0 || n > Self::MAX_COUNT {
                return Err(format!("the count must be 1 to {}", Self::MAX_COUNT));
            }
            format.count = n;
        }
        for c in letters.chars() {
            match c {
                'x' | 'd' | 'u' | 'o' | 't' | 'c' | 's' | 'i' => format.letter = c,
                'a' => (format.letter, format.size) = ('a', 8),
                'b' => format.size = 1,
                'h' => format.size = 2,
                'w' => format.size = 4,
                'g' => format.size = 8,
                _ => return Err(format!("`{c}` is no format letter (x d u o t c a s i) or size (b h w g)")),
            }
        }
        if format.letter == 'c' && !letters.contains(['b', 'h', 'w', 'g']) {
            format.size = 1;
        }
        Ok(format)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn formats_parse_as_in_gdb() {
        assert_eq!(Format::parse("").unwrap(), Format { count: 1, letter: 'x', size: 4 });
        assert_eq!(Format::parse("16xb").unwrap(), Format { count: 16, letter: 'x', size: 1 });
        assert_eq!(Format::parse("gd").unwrap(), Format { count: 1, letter: 'd', size: 8 });
        assert_eq!(Format::parse("8c").unwrap(), Format { count: 8, letter: 'c', size: 1 });
        assert_eq!(Format::parse("2a").unwrap(), Format { count: 2, letter: 'a', size: 8 });
    }

    #[test]
    fn numbers_and_times_have_their_spellings() {
        assert_eq!([number("1_000"), number("0x10"), number("7")], [Some(1000), Some(16), Some(7)]);
        assert!(["", "_1", "1.5", "0xz", "ten", "-1"].into_iter().all(|bad| number(bad).is_none()));
        assert_eq!([scaled("12.5", 10_000), scaled("0.00001", 10_000)], [Some(125_000), Some(0)]);
        assert_eq!(time("1.5s"), Some(GuestTime(1_500_000_000)));
        assert_eq!([time("20ms"), time("3ns")], [Some(GuestTime(20_000_000)), Some(GuestTime(3))]);
        assert!(["20", "ms", "1.xs", "99999999999999s"].into_iter().all(|bad| time(bad).is_none()));
    }

    #[test]
    fn bad_formats_are_refused() {
        for bad in ["0x", "99999999999999999999x", "q", "4097b"] {
            assert!(Format::parse(bad).is_err(), "{bad}");
        }
    }
}
