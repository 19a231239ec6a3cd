//! Where things go in guest RAM. Owns the rule that nothing a loader places overlaps anything else it placed, and
//! that everything lies in RAM a kernel may use (not in the VGA hole, the EBDA or the firmware area).

use super::LoadError;
use crate::addr::{Gpa, PAGE_SIZE};
use crate::mem::{Memory, RegionKind};

/// End of the conventional memory a kernel may use; the EBDA follows.
pub(super) const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Start of extended memory.
pub(super) const EXTENDED_START: u64 = 0x10_0000;
/// Structures of the loader's own stay above the real-mode vector table and BIOS data area.
const FIRST_FREE: u64 = 0x1000;

/// A half-open range of guest-physical addresses.
type Span = (u64, u64);

/// Guest RAM with the ranges taken so far.
pub(super) struct Layout<'m> {
    pub mem: &'m mut Memory,
    /// RAM size in bytes, for messages.
    ram_size: u64,
    /// Usable RAM, ascending.
    ram: Vec<Span>,
    /// Ranges taken, ascending.
    used: Vec<Span>,
}

impl<'m> Layout<'m> {
    pub fn new(mem: &'m mut Memory, ram_size: u64) -> Self {
        let mut ram = Vec::new();
        for r in mem.map.regions().iter().filter(|r| r.kind == RegionKind::Ram) {
            if r.start < CONVENTIONAL_END {
                ram.push((r.start, r.end.min(CONVENTIONAL_END)));
            }
            if r.end > EXTENDED_START {
                ram.push((r.start.max(EXTENDED_START), r.end));
            }
        }
        Self { mem, ram_size, ram, used: Vec::new() }
    }

    /// Takes `[start, start + len)` for `what`.
    pub fn claim(&mut self, what: &'static str, start: u64, len: u64) -> Result<(), LoadError> {
        let end = start.checked_add(len).ok_or_else(|| {
            LoadError::invalid(what, format!("address {start:#x} plus size {len:#x} wraps around"))
        })?;
        if len == 0 {
            return Ok(());
        }
        if !self.ram.iter().any(|&(s, e)| s <= start && end <= e) {
            return Err(self.outside(what, start, end));
        }
        if let Some(&(s, e)) = self.used.iter().find(|&&(s, e)| s < end && start < e) {
            let why = format!("{start:#x}-{end:#x} overlaps {s:#x}-{e:#x}, which is already taken");
            return Err(LoadError::invalid(what, why));
        }
        let at = self.used.partition_point(|&(s, _)| s < start);
        self.used.insert(at, (start, end));
        Ok(())
    }

    /// Why `[start, end)` is not all RAM: too little of it, or a hole.
    fn outside(&self, what: &'static str, start: u64, end: u64) -> LoadError {
        let top = self.ram.last().map_or(0, |&(_, e)| e);
        if end > top {
            return self.too_large(what, end);
        }
        LoadError::invalid(
            what,
            format!("{start:#x}-{end:#x} is not usable RAM (device or firmware addresses)"),
        )
    }

    /// The error for something that needs RAM up to `need`.
    pub fn too_large(&self, what: &'static str, need: u64) -> LoadError {
        LoadError::TooLarge { what, need, have: self.ram_size }
    }

    /// Takes the highest free `len` bytes that end at or below `below`.
    pub fn place_high(
        &mut self,
        what: &'static str,
        len: u64,
        align: u64,
        below: u64,
    ) -> Result<u64, LoadError> {
        let found = self.free(len).into_iter().rev().find_map(|(s, e)| {
            let start = e.min(below).checked_sub(len)? & !(align - 1);
            (start >= s).then_some(start)
        });
        self.take(what, found, len)
    }

    /// Takes the lowest free `len` bytes that start at or above `above` and end at or below `below`.
    pub fn place_low(
        &mut self,
        what: &'static str,
        len: u64,
        align: u64,
        above: u64,
        below: u64,
    ) -> Result<u64, LoadError> {
        let found = self.free(len).into_iter().find_map(|(s, e)| {
            let start = s.max(above).max(FIRST_FREE).checked_next_multiple_of(align)?;
            let end = start.checked_add(len)?;
            (end <= e.min(below)).then_some(start)
        });
        self.take(what, found, len)
    }

    fn take(&mut self, what: &'static str, found: Option<u64>, len: u64) -> Result<u64, LoadError> {
        let used: u64 = self.used.iter().map(|&(s, e)| e - s).sum();
        let start = found.ok_or_else(|| self.too_large(what, used.saturating_add(len)))?;
        self.claim(what, start, len)?;
        Ok(start)
    }

    /// Free ranges of at least `len` bytes, ascending.
    fn free(&self, len: u64) -> Vec<Span> {
        let mut out = Vec::new();
        for &(start, end) in &self.ram {
            let mut at = start;
            for &(s, e) in self.used.iter().filter(|&&(s, e)| s < end && start < e) {
                out.push((at, s));
                at = e;
            }
            out.push((at, end));
        }
        out.retain(|&(s, e)| e > s && e - s >= len.max(1));
        out
    }

    /// First address of everything placed so far.
    pub fn used_start(&self) -> u64 {
        self.used.first().map_or(0, |&(s, _)| s)
    }

    /// First address above everything placed so far.
    pub fn used_end(&self) -> u64 {
        self.used.iter().map(|&(_, e)| e).max().unwrap_or(0)
    }

    /// Writes `bytes` at `start`, a place taken before.
    pub fn write(&mut self, start: u64, bytes: &[u8]) -> Result<(), LoadError> {
        if self.mem.write_phys(Gpa(start), bytes) {
            Ok(())
        } else {
            Err(LoadError::invalid("guest image", format!("nothing to write to at {start:#x}")))
        }
    }

    /// Takes space for `bytes` in the lowest free memory from `above` on (and below 4 GiB), or if that is full in the
    /// lowest free memory at all, and writes them.
    pub fn put_low(
        &mut self,
        what: &'static str,
        bytes: &[u8],
        align: u64,
        above: u64,
    ) -> Result<u64, LoadError> {
        let len = bytes.len() as u64;
        let at = match self.place_low(what, len, align, above, 1 << 32) {
            Err(_) if above > 0 => self.place_low(what, len, align, 0, 1 << 32)?,
            placed => placed?,
        };
        self.write(at, bytes)?;
        Ok(at)
    }

    /// Zeroes `len` bytes from `start`; pages that are zero already stay untouched (and unbacked).
    pub fn zero(&mut self, start: u64, len: u64) -> Result<(), LoadError> {
        let mut page = [0u8; PAGE_SIZE as usize];
        let end = start.saturating_add(len);
        let mut at = start;
        while at < end {
            let n = (PAGE_SIZE - Gpa(at).offset()).min(end - at) as usize;
            let chunk = &mut page[..n];
            if self.mem.read_phys(Gpa(at), chunk) && chunk.iter().any(|&b| b != 0) {
                chunk.fill(0);
                self.mem.write_phys(Gpa(at), chunk);
            }
            at += n as u64;
        }
        Ok(())
    }
}
