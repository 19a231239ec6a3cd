//! Names of addresses, from an ELF file or a kernel's map.

use super::Error;
use retrovisor_core::loader::Elf;
use std::collections::{BTreeMap, HashMap};

/// A guest's symbols.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    by_name: HashMap<String, u64>,
    by_address: BTreeMap<u64, String>,
}

impl Symbols {
    pub(super) fn add(&mut self, file: &[u8]) -> Result<(), Error> {
        if Elf::is_elf(file) {
            for s in Elf::parse(file)?.symbols() {
                self.insert(s.name, s.value);
            }
            return Ok(());
        }
        for line in String::from_utf8_lossy(file).lines() {
            let mut words = line.split_whitespace();
            let (Some(at), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            if let (Ok(at), 1) = (u64::from_str_radix(at, 16), kind.len()) {
                self.insert(name, at);
            }
        }
        Ok(())
    }

    /// The symbols of a kernel image, if it is a file that can have them.
    pub(super) fn add_if_elf(&mut self, image: &[u8]) -> Result<(), Error> {
        if Elf::is_elf(image) { self.add(image) } else { Ok(()) }
    }

    /// Of several symbols with one name or address the first counts.
    fn insert(&mut self, name: &str, at: u64) {
        if !name.is_empty() {
            self.by_name.entry(name.to_owned()).or_insert(at);
            self.by_address.entry(at).or_insert_with(|| name.to_owned());
        }
    }

    /// The address of a symbol.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    /// `name`, `name+0x12`, or the bare address.
    pub fn describe(&self, address: u64) -> String {
        match self.by_address.range(..=address).next_back() {
            Some((at, name)) if *at == address => name.clone(),
            Some((at, name)) if address - at < 1 << 20 => format!("{name}+{:#x}", address - at),
            _ => format!("{address:#x}"),
        }
    }
}
