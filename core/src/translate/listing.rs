//! Translated blocks for people: each guest instruction, and below it the host instructions it became.

use super::cache::{Block, Translator};
use crate::disasm::disassemble;
use crate::mem::Memory;
use std::fmt::Write;

impl Block {
    /// Lies `rip` in the block?
    pub fn contains(&self, rip: u64) -> bool {
        rip.wrapping_sub(self.key.rip) < u64::from(self.len)
    }

    /// The guest's bytes as memory has them now.
    fn guest_bytes(&self, mem: &Memory) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        let mut rest = &mut bytes[..];
        for (gpa, len) in self.extent().parts() {
            let (piece, behind) = rest.split_at_mut(rest.len().min(len as usize));
            mem.read_phys(gpa, piece);
            rest = behind;
        }
        bytes
    }

    /// The block in one line: where it lies, how much it is, what its instructions became.
    pub fn summary(&self) -> String {
        let b = self.became;
        format!(
            "block at {:#x}, gpa {:#x} ({}): {} instructions in {} bytes, {} identical, {} emitted, {} called; {} bytes \
             of host code",
            self.key.rip,
            self.key.gpa.0,
            self.key.mode.name(),
            self.insns,
            self.len,
            b.identical,
            b.emitted,
            b.called,
            self.code_len
        )
    }
}

impl Translator {
    /// What block `id` became, instruction by instruction; then what is off the straight path. Host addresses are
    /// offsets in the code cache, at whose start are the stubs translated code calls.
    pub fn listing(&self, id: u32, mem: &Memory) -> Option<String> {
        let b = self.block(id)?;
        let (address, host) = self.host_code(id)?;
        let entry = |e: u64| b.at as u64 + e.wrapping_sub(address);
        let mut out = format!("{}\n", b.summary());
        let (live, saved) = (entry(b.host_entry), entry(b.saved_entry));
        let _ = writeln!(out, "entered at {live:#x} with flags in RFLAGS, at {saved:#x} with flags saved:");
        let part = |out: &mut String, from: usize, to: usize| {
            let code = host.get(from..to).unwrap_or_default();
            for line in disassemble(code, 64, (b.at + from) as u64, usize::MAX) {
                let hex: String = line.bytes.iter().map(|b| format!("{b:02x}")).collect();
                let _ = writeln!(out, "      {:#x}  {hex:<22} {}", line.ip, line.text);
            }
        };
        part(&mut out, 0, b.starts.first().copied().unwrap_or(b.cold));
        let guest = disassemble(&b.guest_bytes(mem), b.key.mode.bits(), b.key.rip, b.starts.len());
        for (n, from) in b.starts.iter().enumerate() {
            let _ = match guest.get(n) {
                Some(line) => writeln!(out, "  {line}"),
                None => writeln!(out, "  (written over since)"),
            };
            part(&mut out, *from, b.starts.get(n + 1).copied().unwrap_or(b.cold));
        }
        if b.cold < host.len() {
            let _ = writeln!(out, "  off the straight path:");
            part(&mut out, b.cold, host.len());
        }
        Some(out)
    }
}
