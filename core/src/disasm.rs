//! Disassembly in Intel syntax: of guest code for debuggers, of whatever else is to be shown to people.

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

/// One instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Address as given to [`disassemble`].
    pub ip: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Intel syntax; "(bad)" for what does not decode.
    pub text: String,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hex: String = self.bytes.iter().map(|b| format!("{b:02x} ")).collect();
        write!(f, "{:#018x}  {hex:<30} {}", self.ip, self.text)
    }
}

/// Disassembles up to `count` instructions of `bits` (16, 32 or 64) code from `bytes`, the first being at `ip`.
/// Stops early at an instruction cut off by the end of `bytes`.
pub fn disassemble(bytes: &[u8], bits: u8, ip: u64, count: usize) -> Vec<Line> {
    let bits = if matches!(bits, 16 | 32 | 64) { u32::from(bits) } else { 64 };
    let mut decoder = Decoder::with_ip(bits, bytes, ip, DecoderOptions::NONE);
    let mut formatter = formatter();
    let mut lines = Vec::new();
    while lines.len() < count && decoder.can_decode() {
        let from = decoder.position();
        let insn = decoder.decode();
        let cut = insn.is_invalid() && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes;
        if cut && bytes.len() - from < 15 && !lines.is_empty() {
            break;
        }
        let mut text = String::new();
        formatter.format(&insn, &mut text);
        let to = decoder.position();
        lines.push(Line { ip: insn.ip(), bytes: bytes.get(from..to).unwrap_or_default().to_vec(), text });
    }
    lines
}

fn formatter() -> IntelFormatter {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_small_hex_numbers_in_decimal(false);
    options.set_space_after_operand_separator(true);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(false);
    formatter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_size_decides_the_instruction() {
        let bytes = [0x48, 0x89, 0xd8]; // 64: mov rax, rbx; 32: dec eax; mov eax, ebx
        assert_eq!(disassemble(&bytes, 64, 0, 9)[0].text, "mov rax, rbx");
        let lines = disassemble(&bytes, 32, 0x10, 9);
        assert_eq!(
            lines.iter().map(|l| (l.ip, l.text.as_str())).collect::<Vec<_>>(),
            [(0x10, "dec eax"), (0x11, "mov eax, ebx"),]
        );
    }

    #[test]
    fn cut_off_instruction_ends_the_listing() {
        let lines = disassemble(&[0x90, 0xe8, 0x00], 64, 0, 9);
        assert_eq!(lines.len(), 1);
        assert_eq!(disassemble(&[0xe8], 64, 0, 9)[0].text, "(bad)");
    }
}
