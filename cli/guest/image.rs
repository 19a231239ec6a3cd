//! An assembler with named labels, and the ELF64 file it fills. Owns nothing about the guest itself.

use super::Result;
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::{CodeAssembler, CodeLabel};
use std::collections::BTreeMap;

/// A symbol of the file.
#[derive(Clone)]
pub struct Symbol {
    name: String,
    value: u64,
    size: u64,
    /// STT_OBJECT is 1, STT_FUNC 2.
    kind: u8,
}

impl Symbol {
    pub fn object(name: &str, value: u64, size: u64) -> Self {
        Self { name: name.into(), value, size, kind: 1 }
    }
}

/// Code of one section being assembled. The assembler's methods are reached through `asm`.
pub struct Code {
    pub asm: CodeAssembler,
    base: u64,
    labels: BTreeMap<&'static str, CodeLabel>,
    /// Functions in the order they were defined.
    functions: Vec<&'static str>,
}

/// Assembled code.
pub struct Assembled {
    base: u64,
    bytes: Vec<u8>,
    symbols: Vec<Symbol>,
}

impl Code {
    pub fn new(bits: u32, base: u64) -> Result<Self> {
        Ok(Self { asm: CodeAssembler::new(bits)?, base, labels: BTreeMap::new(), functions: Vec::new() })
    }

    /// The label of this name, defined already or later.
    pub fn label(&mut self, name: &'static str) -> CodeLabel {
        let asm = &mut self.asm;
        *self.labels.entry(name).or_insert_with(|| asm.create_label())
    }

    /// Defines function `name` here.
    pub fn function(&mut self, name: &'static str) -> Result<()> {
        let mut label = self.label(name);
        self.asm.set_label(&mut label)?;
        self.labels.insert(name, label);
        self.functions.push(name);
        Ok(())
    }

    /// A label for use inside a function.
    pub fn local(&mut self) -> CodeLabel {
        self.asm.create_label()
    }

    /// Defines a local label here.
    pub fn here(&mut self, label: &mut CodeLabel) -> Result<()> {
        Ok(self.asm.set_label(label)?)
    }

    /// Calls function `name`.
    pub fn call(&mut self, name: &'static str) -> Result<()> {
        let label = self.label(name);
        Ok(self.asm.call(label)?)
    }

    /// Jumps to function `name`.
    pub fn jump(&mut self, name: &'static str) -> Result<()> {
        let label = self.label(name);
        Ok(self.asm.jmp(label)?)
    }

    /// Encodes everything.
    pub fn finish(mut self) -> Result<Assembled> {
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = self.asm.assemble_options(self.base, options)?;
        let mut starts = Vec::new();
        for name in &self.functions {
            starts.push((*name, result.label_ip(&self.labels[name])?));
        }
        let bytes = result.inner.code_buffer;
        let end = self.base + bytes.len() as u64;
        let ends = starts.iter().skip(1).map(|&(_, at)| at).chain([end]);
        let symbols = starts.iter().zip(ends).map(|(&(name, value), end)| Symbol {
            name: name.into(),
            value,
            size: end - value,
            kind: 2,
        });
        Ok(Assembled { base: self.base, symbols: symbols.collect(), bytes })
    }
}

impl Assembled {
    /// Address of a function.
    pub fn address(&self, name: &str) -> Result<u64> {
        let symbol = self.symbols.iter().find(|s| s.name == name);
        Ok(symbol.ok_or_else(|| format!("no function {name}"))?.value)
    }
    /// Address of the first function, as 32 bits.
    pub fn start(&self) -> u32 {
        self.symbols.first().map_or(self.base, |s| s.value) as u32
    }
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A section of the file, and the segment that loads it.
pub struct Section {
    name: &'static str,
    virt: u64,
    phys: u64,
    /// Room until the next section.
    room: u64,
    /// SHF_WRITE 1, SHF_ALLOC 2, SHF_EXECINSTR 4.
    flags: u64,
    bytes: Vec<u8>,
    /// Size in memory (larger than the bytes for the bss).
    size: u64,
}

impl Section {
    fn new(name: &'static str, virt: u64, phys: u64, room: u64, flags: u64) -> Self {
        Self { name, virt, phys, room, flags, bytes: Vec::new(), size: 0 }
    }
    pub fn code(name: &'static str, virt: u64, phys: u64, room: u64) -> Self {
        Self::new(name, virt, phys, room, 6)
    }
    pub fn rodata(name: &'static str, virt: u64, phys: u64, room: u64) -> Self {
        Self::new(name, virt, phys, room, 2)
    }
    pub fn data(name: &'static str, virt: u64, phys: u64, room: u64) -> Self {
        Self::new(name, virt, phys, room, 3)
    }
}

/// The ELF file. File offsets follow physical addresses, so that the multiboot header's addresses describe it too.
pub struct Image {
    load: u64,
    entry: u64,
    sections: Vec<Section>,
    /// Each with its section's index in `sections`.
    symbols: Vec<(usize, Symbol)>,
}

/// File offset of the first byte loaded.
pub const FIRST_BYTE: u64 = 0x1000;

impl Image {
    /// A file loaded at physical address `load`.
    pub fn new(load: u64, entry: u64) -> Self {
        Self { load, entry, sections: Vec::new(), symbols: Vec::new() }
    }

    /// Adds a code section.
    pub fn section(&mut self, section: Section, code: &Assembled) -> Result<()> {
        if code.base != section.virt {
            return Err(format!("{} was assembled for {:#x}", section.name, code.base).into());
        }
        self.bytes(section, &code.bytes, code.symbols.clone())
    }

    /// Adds a section with these bytes and symbols.
    pub fn bytes(&mut self, mut section: Section, bytes: &[u8], symbols: Vec<Symbol>) -> Result<()> {
        if bytes.len() as u64 > section.room {
            return Err(format!("{}: {} bytes, room for {}", section.name, bytes.len(), section.room).into());
        }
        section.bytes = bytes.to_vec();
        section.size = bytes.len() as u64;
        let index = self.sections.len();
        self.sections.push(section);
        self.symbols.extend(symbols.into_iter().map(|s| (index, s)));
        Ok(())
    }

    /// Adds the zero-initialised section.
    pub fn bss(&mut self, name: &'static str, virt: u64, phys: u64, size: u64, symbols: Vec<Symbol>) {
        let index = self.sections.len();
        self.sections.push(Section { size, ..Section::data(name, virt, phys, size) });
        self.symbols.extend(symbols.into_iter().map(|s| (index, s)));
    }

    fn offset(&self, s: &Section) -> u64 {
        s.phys - self.load + FIRST_BYTE
    }

    /// The file.
    pub fn write(&self) -> Vec<u8> {
        let mut file = self.header_and_segments();
        for s in &self.sections {
            file.resize(self.offset(s) as usize, 0);
            file.extend(&s.bytes);
        }
        let (symtab, strtab) = self.symbol_table();
        file.resize(file.len().next_multiple_of(16), 0);
        let symtab_at = file.len() as u64;
        file.extend(&symtab);
        let strtab_at = file.len() as u64;
        file.extend(&strtab);
        let (names, offsets) = self.section_names();
        let names_at = file.len() as u64;
        file.extend(&names);
        file.resize(file.len().next_multiple_of(16), 0);
        let table_at = file.len() as u64;
        file.extend([0; 64]);
        for (s, name) in self.sections.iter().zip(&offsets) {
            let kind = if s.bytes.is_empty() { 8 } else { 1 };
            file.extend(section_header(*name, kind, s.flags, s.virt, self.offset(s), s.size, [0, 0, 0]));
        }
        let tail = &offsets[self.sections.len()..];
        let strtab_index = self.sections.len() as u64 + 2;
        let sym_len = symtab.len() as u64;
        file.extend(section_header(tail[0], 2, 0, 0, symtab_at, sym_len, [strtab_index, 1, 24]));
        file.extend(section_header(tail[1], 3, 0, 0, strtab_at, strtab.len() as u64, [0, 0, 0]));
        file.extend(section_header(tail[2], 3, 0, 0, names_at, names.len() as u64, [0, 0, 0]));
        file[0x28..0x30].copy_from_slice(&table_at.to_le_bytes());
        file
    }

    fn header_and_segments(&self) -> Vec<u8> {
        let mut f = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
        f.resize(16, 0);
        f.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for v in [self.entry, 64, 0] {
            f.extend(v.to_le_bytes());
        }
        f.extend(0u32.to_le_bytes());
        let (segments, sections) = (self.sections.len() as u16, self.sections.len() as u16 + 4);
        for half in [64, 56, segments, 64, sections, sections - 1] {
            f.extend(half.to_le_bytes());
        }
        for s in &self.sections {
            let flags: u32 = 4 | if s.flags & 1 != 0 { 2 } else { 0 } | if s.flags & 4 != 0 { 1 } else { 0 };
            f.extend(1u32.to_le_bytes());
            f.extend(flags.to_le_bytes());
            for v in [self.offset(s), s.virt, s.phys, s.bytes.len() as u64, s.size, 0x1000] {
                f.extend(v.to_le_bytes());
            }
        }
        f
    }

    fn symbol_table(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut table, mut strings) = (vec![0; 24], vec![0]);
        for (section, s) in &self.symbols {
            table.extend((strings.len() as u32).to_le_bytes());
            // Global binding; default visibility.
            table.extend([1 << 4 | s.kind, 0]);
            table.extend((*section as u16 + 1).to_le_bytes());
            table.extend(s.value.to_le_bytes());
            table.extend(s.size.to_le_bytes());
            strings.extend(s.name.bytes().chain([0]));
        }
        (table, strings)
    }

    /// The section-name table, and where each name starts in it.
    fn section_names(&self) -> (Vec<u8>, Vec<u32>) {
        let (mut names, mut offsets) = (vec![0], Vec::new());
        for name in self.sections.iter().map(|s| s.name).chain([".symtab", ".strtab", ".shstrtab"]) {
            offsets.push(names.len() as u32);
            names.extend(name.bytes().chain([0]));
        }
        (names, offsets)
    }
}

/// A section header; `links` are sh_link, sh_info and sh_entsize.
fn section_header(
    name: u32,
    kind: u32,
    flags: u64,
    addr: u64,
    offset: u64,
    size: u64,
    links: [u64; 3],
) -> Vec<u8> {
    let mut h = Vec::new();
    h.extend(name.to_le_bytes());
    h.extend(kind.to_le_bytes());
    for v in [flags, addr, offset, size] {
        h.extend(v.to_le_bytes());
    }
    h.extend((links[0] as u32).to_le_bytes());
    h.extend((links[1] as u32).to_le_bytes());
    h.extend(16u64.to_le_bytes());
    h.extend(links[2].to_le_bytes());
    h
}
