//! ELF files, 32 and 64 bits. Owns parsing (segments, notes, symbols) and loading by physical address.
//! Source: System V ABI, chapters 4 and 5, and its i386 and x86-64 supplements.

use super::LoadError;
use super::bytes::{slice_at, u16_at, u32_at, u64_at};
use super::layout::Layout;

const WHAT: &str = "ELF kernel";
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
const SHT_NOBITS: u32 = 8;
const SHF_ALLOC: u64 = 2;
/// Longer symbol names are ignored, so that a table without terminators is not read over and over.
const MAX_NAME: usize = 4096;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Note "Xen", type 18: physical address of the PVH entry.
const XEN_PHYS32_ENTRY: u32 = 18;

/// A program header.
#[derive(Clone, Copy, Debug)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

/// A section header.
#[derive(Clone, Copy, Debug)]
struct Section {
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
    entsize: u64,
}

/// The section headers as a boot loader hands them on.
pub(super) struct SectionTable<'a> {
    /// The raw headers.
    pub headers: Vec<u8>,
    pub count: u64,
    /// Size of one header.
    pub entsize: u64,
    /// Index of the section that holds the sections' names.
    pub names: u16,
    /// Symbol and string tables that no segment loads: offset of their address field in `headers`, and their bytes.
    pub unloaded: Vec<(usize, &'a [u8])>,
}

/// A function or object named by the symbol table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbol<'a> {
    pub name: &'a str,
    pub value: u64,
    /// In bytes; 0 if unknown.
    pub size: u64,
    /// STT_FUNC is 2, STT_OBJECT 1, STT_NOTYPE 0.
    pub kind: u8,
}

/// A parsed ELF file. Its headers are known to lie within the file.
#[derive(Debug)]
pub struct Elf<'a> {
    file: &'a [u8],
    pub is_64: bool,
    /// `e_entry` as the file states it.
    pub entry: u64,
    segments: Vec<Segment>,
    /// Where the section headers are, their size and number.
    sections_at: (u64, u64, u64),
}

impl<'a> Elf<'a> {
    /// Whether the file has the ELF magic.
    pub fn is_elf(file: &[u8]) -> bool {
        file.starts_with(b"\x7fELF")
    }

    /// Parses the headers.
    ///
    /// # Errors
    /// [`LoadError::Invalid`] if the file is not a little-endian x86 executable or is cut short.
    pub fn parse(file: &'a [u8]) -> Result<Self, LoadError> {
        let truncated =
            || LoadError::invalid(WHAT, format!("truncated: {} bytes end inside its headers", file.len()));
        if !Self::is_elf(file) {
            return Err(LoadError::invalid(WHAT, "no ELF magic"));
        }
        let ident = slice_at(file, 4, 2).ok_or_else(truncated)?;
        let is_64 = match ident {
            [1, 1] => false,
            [2, 1] => true,
            _ => return Err(LoadError::invalid(WHAT, "neither a 32-bit nor a 64-bit little-endian file")),
        };
        let (kind, machine) =
            (u16_at(file, 16).ok_or_else(truncated)?, u16_at(file, 18).ok_or_else(truncated)?);
        if !matches!(kind, 2 | 3) {
            let name = if kind == 1 { "an object file (link it first)" } else { "not an executable" };
            return Err(LoadError::invalid(WHAT, format!("{name}, e_type {kind}")));
        }
        if !matches!((machine, is_64), (EM_386, false) | (EM_X86_64, _)) {
            return Err(LoadError::invalid(WHAT, format!("not for x86: e_machine is {machine}")));
        }
        Self::headers(file, is_64).ok_or_else(truncated)
    }

    fn headers(file: &'a [u8], is_64: bool) -> Option<Self> {
        let word = |at64: u64, at32: u64| {
            if is_64 { u64_at(file, at64) } else { u32_at(file, at32).map(u64::from) }
        };
        let half = |at64: u64, at32: u64| u16_at(file, if is_64 { at64 } else { at32 }).map(u64::from);
        let (phoff, phentsize, phnum) = (word(0x20, 0x1c)?, half(0x36, 0x2a)?, half(0x38, 0x2c)?);
        let mut segments = Vec::new();
        for i in 0..phnum {
            segments.push(Segment::read(file, is_64, phoff.checked_add(i * phentsize)?)?);
        }
        let sections_at = (word(0x28, 0x20)?, half(0x3a, 0x2e)?, half(0x3c, 0x30)?);
        Some(Self { file, is_64, entry: word(0x18, 0x18)?, segments, sections_at })
    }

    fn loadable(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|s| s.kind == PT_LOAD && s.memsz > 0)
    }

    /// Writes the PT_LOAD segments to their physical addresses and zeroes what the file does not fill.
    pub(super) fn load(&self, layout: &mut Layout<'_>) -> Result<(), LoadError> {
        if self.loadable().next().is_none() {
            return Err(LoadError::invalid(WHAT, "nothing to load: no PT_LOAD segment"));
        }
        for s in self.loadable() {
            if s.filesz > s.memsz {
                let why = format!(
                    "a segment has more bytes in the file ({:#x}) than in memory ({:#x})",
                    s.filesz, s.memsz
                );
                return Err(LoadError::invalid(WHAT, why));
            }
            let bytes = slice_at(self.file, s.offset, s.filesz).ok_or_else(|| {
                let why = format!("truncated: a segment's bytes at {:#x} lie outside the file", s.offset);
                LoadError::invalid(WHAT, why)
            })?;
            layout.claim(WHAT, s.paddr, s.memsz)?;
            layout.write(s.paddr, bytes)?;
            layout.zero(s.paddr + s.filesz, s.memsz - s.filesz)?;
        }
        Ok(())
    }

    /// The entry point as a physical address. `e_entry` may be a virtual address of an executable segment that is
    /// loaded elsewhere.
    pub(super) fn physical_entry(&self) -> u64 {
        let inside = |start: u64, len: u64| self.entry >= start && self.entry - start < len;
        if self.loadable().any(|s| inside(s.paddr, s.memsz)) {
            return self.entry;
        }
        let home = self.loadable().find(|s| s.flags & PF_X != 0 && inside(s.vaddr, s.memsz));
        home.map_or(self.entry, |s| (self.entry - s.vaddr).wrapping_add(s.paddr))
    }

    /// The PVH entry of the XEN_ELFNOTE_PHYS32_ENTRY note, if there is one.
    pub(super) fn pvh_entry(&self) -> Result<Option<u64>, LoadError> {
        for s in self.segments.iter().filter(|s| s.kind == PT_NOTE) {
            let Some(notes) = slice_at(self.file, s.offset, s.filesz) else {
                return Err(LoadError::invalid(WHAT, "truncated: a note segment lies outside the file"));
            };
            if let Some(entry) = pvh_note(notes, if s.align == 8 { 8 } else { 4 }) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn section(&self, index: u64) -> Option<Section> {
        let (shoff, entsize, count) = self.sections_at;
        if index >= count {
            return None;
        }
        Section::read(self.file, self.is_64, shoff.checked_add(index * entsize)?)
    }

    /// The section headers; `None` if there are none or they lie outside the file.
    pub(super) fn section_table(&self) -> Option<SectionTable<'a>> {
        let (shoff, entsize, count) = self.sections_at;
        let headers = slice_at(self.file, shoff, count.checked_mul(entsize)?)?.to_vec();
        let names = u16_at(self.file, if self.is_64 { 0x3e } else { 0x32 })?;
        if count == 0 || entsize != if self.is_64 { 64 } else { 40 } {
            return None;
        }
        let mut unloaded = Vec::new();
        for index in 0..count {
            let section = self.section(index)?;
            if section.flags & SHF_ALLOC == 0 && matches!(section.kind, SHT_SYMTAB | SHT_STRTAB) {
                let address = index * entsize + if self.is_64 { 16 } else { 12 };
                unloaded.push((address as usize, slice_at(self.file, section.offset, section.size)?));
            }
        }
        Some(SectionTable { headers, count, entsize, names, unloaded })
    }

    /// The symbols of `.symtab` that have a name and a value, in file order; empty if the file is stripped.
    pub fn symbols(&self) -> Vec<Symbol<'a>> {
        let mut sections = (0..self.sections_at.2).filter_map(|i| self.section(i));
        // There is one at most; a file that claims thousands is not believed.
        let table = sections.find(|s| s.kind == SHT_SYMTAB);
        table.and_then(|s| self.symbols_of(&s)).unwrap_or_default()
    }

    fn symbols_of(&self, table: &Section) -> Option<Vec<Symbol<'a>>> {
        let strings = self.section(u64::from(table.link)).filter(|s| s.kind != SHT_NOBITS)?;
        let strings = slice_at(self.file, strings.offset, strings.size)?;
        let bytes = slice_at(self.file, table.offset, table.size)?;
        let size = if self.is_64 { 24 } else { 16 };
        if table.entsize != size {
            return None;
        }
        let all = bytes.chunks_exact(size as usize);
        Some(all.filter_map(|b| symbol(b, self.is_64, strings)).collect())
    }
}

impl Segment {
    fn read(file: &[u8], is_64: bool, at: u64) -> Option<Self> {
        let b = slice_at(file, at, if is_64 { 56 } else { 32 })?;
        let w = |off: u64| u32_at(b, off).map(u64::from);
        let d = |off: u64| u64_at(b, off);
        let kind = u32_at(b, 0)?;
        Some(if is_64 {
            let (flags, offset, vaddr, paddr) = (u32_at(b, 4)?, d(8)?, d(16)?, d(24)?);
            Self { kind, flags, offset, vaddr, paddr, filesz: d(32)?, memsz: d(40)?, align: d(48)? }
        } else {
            let (offset, vaddr, paddr, flags) = (w(4)?, w(8)?, w(12)?, u32_at(b, 24)?);
            Self { kind, flags, offset, vaddr, paddr, filesz: w(16)?, memsz: w(20)?, align: w(28)? }
        })
    }
}

impl Section {
    fn read(file: &[u8], is_64: bool, at: u64) -> Option<Self> {
        let b = slice_at(file, at, if is_64 { 64 } else { 40 })?;
        let kind = u32_at(b, 4)?;
        Some(if is_64 {
            let (flags, offset, size, link) = (u64_at(b, 8)?, u64_at(b, 24)?, u64_at(b, 32)?, u32_at(b, 40)?);
            Self { kind, flags, offset, size, link, entsize: u64_at(b, 56)? }
        } else {
            let word = |off: u64| u32_at(b, off).map(u64::from);
            let (flags, offset, size, link) = (word(8)?, word(16)?, word(20)?, u32_at(b, 24)?);
            Self { kind, flags, offset, size, link, entsize: word(36)? }
        })
    }
}

/// One symbol-table entry; `None` for nameless and undefined ones, sections and files.
fn symbol<'a>(b: &[u8], is_64: bool, strings: &'a [u8]) -> Option<Symbol<'a>> {
    let (info, shndx, value, size) = if is_64 {
        (*b.get(4)?, u16_at(b, 6)?, u64_at(b, 8)?, u64_at(b, 16)?)
    } else {
        (*b.get(12)?, u16_at(b, 14)?, u64::from(u32_at(b, 4)?), u64::from(u32_at(b, 8)?))
    };
    let tail = strings.get(u32_at(b, 0)? as usize..)?;
    let len = tail.iter().take(MAX_NAME).position(|&c| c == 0)?;
    let name = std::str::from_utf8(tail.get(..len)?).ok()?;
    let kind = info & 15;
    (shndx != 0 && kind <= 2 && !name.is_empty()).then_some(Symbol { name, value, size, kind })
}

/// Looks for the PVH entry in a note segment.
fn pvh_note(notes: &[u8], align: u64) -> Option<u64> {
    let mut at = 0u64;
    loop {
        let (namesz, descsz) = (u64::from(u32_at(notes, at)?), u64::from(u32_at(notes, at + 4)?));
        let kind = u32_at(notes, at + 8)?;
        let name = at + 12;
        let desc = (name + namesz).next_multiple_of(align);
        if kind == XEN_PHYS32_ENTRY && slice_at(notes, name, namesz)? == b"Xen\0" {
            return match descsz {
                4 => u32_at(notes, desc).map(u64::from),
                8 => u64_at(notes, desc),
                _ => None,
            };
        }
        at = (desc + descsz).next_multiple_of(align);
    }
}
