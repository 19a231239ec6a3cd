//! Where something is in a guest: a virtual or physical address, or a symbol.

use super::{Error, Symbols};
use retrovisor_core::{Gpa, Gva};
use std::fmt;

/// A place in a guest's memory. Numbers and [`Gva`] are virtual (linear) addresses, [`Gpa`] is a physical one, and text is
/// the name of a symbol, perhaps with an offset: `"jiffies"`, `"tasks+0x18"`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    Virtual(Gva),
    Physical(Gpa),
    Symbol(String),
}

impl From<u64> for Place {
    fn from(at: u64) -> Self {
        Place::Virtual(Gva(at))
    }
}
impl From<Gva> for Place {
    fn from(at: Gva) -> Self {
        Place::Virtual(at)
    }
}
impl From<Gpa> for Place {
    fn from(at: Gpa) -> Self {
        Place::Physical(at)
    }
}
impl From<&str> for Place {
    fn from(name: &str) -> Self {
        Place::Symbol(name.into())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Virtual(at) => write!(f, "address {at}"),
            Place::Physical(at) => write!(f, "physical address {at}"),
            Place::Symbol(name) => write!(f, "`{name}`"),
        }
    }
}

/// An address without names.
pub(super) enum Address {
    Virtual(Gva),
    Physical(Gpa),
}

impl Place {
    pub(super) fn resolve(&self, symbols: &Symbols) -> Result<Address, Error> {
        match self {
            Place::Virtual(at) => Ok(Address::Virtual(*at)),
            Place::Physical(at) => Ok(Address::Physical(*at)),
            Place::Symbol(text) => {
                let (name, offset) = match text.split_once('+') {
                    Some((name, offset)) => (name, number(offset)),
                    None => (text.as_str(), Some(0)),
                };
                match (symbols.address(name), offset) {
                    (Some(at), Some(offset)) => Ok(Address::Virtual(Gva(at.wrapping_add(offset)))),
                    _ => Err(Error::NoSymbol(text.clone())),
                }
            }
        }
    }

    /// The address of an instruction.
    pub(super) fn code(&self, symbols: &Symbols) -> Result<u64, Error> {
        match self.resolve(symbols)? {
            Address::Virtual(at) => Ok(at.0),
            Address::Physical(at) => Ok(at.0),
        }
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}
