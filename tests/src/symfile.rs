//! A symbol file for gdb: an ELF file with nothing but symbols. Owns its layout.

/// A function: name and address. It reaches to the next symbol.
pub type Symbol = (String, u64);

/// Word size of the program the symbols belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Elf32,
    Elf64,
}

/// Reads the guest's `/proc/kallsyms`: text symbols only, by address.
pub fn from_kallsyms(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = text
        .lines()
        .filter_map(|l| {
            let mut words = l.split_whitespace();
            let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
            let address = u64::from_str_radix(address, 16).ok()?;
            matches!(kind, "t" | "T").then(|| (name.to_owned(), address))
        })
        .collect();
    symbols.sort_by_key(|s| s.1);
    symbols
}

/// Appends little-endian words of the class's size.
struct Out {
    class: Class,
    bytes: Vec<u8>,
}

impl Out {
    fn half(&mut self, v: u16) -> &mut Self {
        self.bytes.extend_from_slice(&v.to_le_bytes());
        self
    }
    fn word(&mut self, v: u32) -> &mut Self {
        self.bytes.extend_from_slice(&v.to_le_bytes());
        self
    }
    /// An address, offset or size.
    fn addr(&mut self, v: u64) -> &mut Self {
        match self.class {
            Class::Elf32 => self.bytes.extend_from_slice(&(v as u32).to_le_bytes()),
            Class::Elf64 => self.bytes.extend_from_slice(&v.to_le_bytes()),
        }
        self
    }
}

/// A section header's fields that differ.
#[derive(Clone, Copy, Default)]
struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    addr: u64,
    offset: u64,
    size: u64,
    link: u32,
    info: u32,
    entry: u64,
}

/// Section names, and where each begins.
const NAMES: &[u8] = b"\0.text\0.symtab\0.strtab\0";
const HEADER: [u64; 2] = [52, 64];

/// The file. `.text` spans all symbols and has no contents.
pub fn elf(class: Class, symbols: &[Symbol]) -> Vec<u8> {
    let is_64 = class == Class::Elf64;
    let low = symbols.first().map_or(0, |s| s.1);
    let high = symbols.last().map_or(0, |s| s.1 + 16);
    let (table, names) = tables(class, symbols);
    let at_table = HEADER[usize::from(is_64)];
    let at_names = at_table + table.len() as u64;
    let at_sections = at_names + names.len() as u64;
    let headers = at_sections + NAMES.len() as u64;
    let (nobits, entry) = (8, if is_64 { 24 } else { 16 });
    let sections = [
        Section::default(),
        Section { name: 1, kind: nobits, flags: 6, addr: low, size: high - low, ..Section::default() },
        Section {
            name: 7,
            kind: 2,
            offset: at_table,
            size: table.len() as u64,
            link: 3,
            info: 1,
            entry,
            ..Section::default()
        },
        Section { name: 15, kind: 3, offset: at_names, size: names.len() as u64, ..Section::default() },
        Section { name: 15, kind: 3, offset: at_sections, size: NAMES.len() as u64, ..Section::default() },
    ];
    let mut out = Out { class, bytes: file_header(class, low, headers) };
    for part in [&table[..], &names, NAMES] {
        out.bytes.extend_from_slice(part);
    }
    for s in sections {
        out.word(s.name).word(s.kind).addr(s.flags).addr(s.addr).addr(s.offset).addr(s.size);
        out.word(s.link).word(s.info).addr(1).addr(s.entry);
    }
    out.bytes
}

/// The symbol table and its names.
fn tables(class: Class, symbols: &[Symbol]) -> (Vec<u8>, Vec<u8>) {
    let mut names = vec![0u8];
    let mut out = Out { class, bytes: vec![0; if class == Class::Elf64 { 24 } else { 16 }] };
    for (n, (name, value)) in symbols.iter().enumerate() {
        let size = symbols.get(n + 1).map_or(16, |next| next.1 - value);
        let at = names.len() as u32;
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        // A global function in section 1.
        match class {
            Class::Elf32 => out.word(at).addr(*value).addr(size).half(0x12).half(1),
            Class::Elf64 => out.word(at).half(0x12).half(1).addr(*value).addr(size),
        };
    }
    (out.bytes, names)
}

fn file_header(class: Class, entry: u64, sections: u64) -> Vec<u8> {
    let is_64 = class == Class::Elf64;
    let mut bytes = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes[4] = if is_64 { 2 } else { 1 };
    let mut out = Out { class, bytes };
    out.half(2).half(if is_64 { 62 } else { 3 }).word(1).addr(entry).addr(0).addr(sections).word(0);
    let (header, section) = if is_64 { (64, 64) } else { (52, 40) };
    out.half(header).half(0).half(0).half(section).half(5).half(4);
    out.bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kallsyms_gives_sorted_functions() {
        let text = "c1000010 T b\nc1000000 t a\nc2000000 D data\nc8000000 t m [module]\nnonsense\n";
        let names: Vec<_> = from_kallsyms(text).into_iter().map(|s| s.0).collect();
        assert_eq!(names, ["a", "b", "m"]);
    }

    #[test]
    fn our_own_loader_reads_the_symbols() {
        let symbols = [("first".to_owned(), 0x1000), ("second".to_owned(), 0x1040)];
        for class in [Class::Elf32, Class::Elf64] {
            let file = elf(class, &symbols);
            let parsed = retrovisor_core::loader::Elf::parse(&file).expect("an ELF file");
            let found: Vec<_> = parsed.symbols().iter().map(|s| (s.name.to_owned(), s.value)).collect();
            assert_eq!(found, symbols, "{class:?}");
        }
    }
}
