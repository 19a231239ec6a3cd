//! Names for addresses, from an ELF file's symbol table.

use anyhow::Result;
use retrovisor_core::loader::{Elf, Symbol};

/// STT_FUNC.
const FUNCTION: u8 = 2;

/// The symbols of a guest, by address.
#[derive(Debug)]
pub struct Symbols<'a> {
    sorted: Vec<Symbol<'a>>,
}

impl<'a> Symbols<'a> {
    /// The symbols of an ELF file.
    ///
    /// # Errors
    /// If it is not an ELF file this machine could load.
    pub fn of(elf: &'a [u8]) -> Result<Self> {
        let mut sorted = Elf::parse(elf)?.symbols();
        sorted.sort_by_key(|s| s.value);
        Ok(Self { sorted })
    }

    /// The symbol `address` lies in. A symbol without a size reaches up to the next one.
    pub fn at(&self, address: u64) -> Option<&Symbol<'a>> {
        let after = self.sorted.partition_point(|s| s.value <= address);
        let symbol = self.sorted.get(after.checked_sub(1)?)?;
        (symbol.size == 0 || address - symbol.value < symbol.size).then_some(symbol)
    }

    /// The function `address` lies in.
    pub fn function(&self, address: u64) -> Option<&Symbol<'a>> {
        self.at(address).filter(|s| s.kind == FUNCTION)
    }

    /// `name`, `name+0x12`, or the bare address.
    pub fn describe(&self, address: u64) -> String {
        match self.at(address) {
            Some(s) if s.value == address => s.name.to_string(),
            Some(s) => format!("{}+{:#x}", s.name, address - s.value),
            None => format!("{address:#x}"),
        }
    }

    /// Address of the symbol of this name.
    #[cfg(test)]
    pub fn address(&self, name: &str) -> Option<u64> {
        self.sorted.iter().find(|s| s.name == name).map(|s| s.value)
    }
}
