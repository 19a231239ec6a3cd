//! State hashes: a 128-bit digest of everything guest-visible, cheap to take repeatedly.

/// Digest of the whole guest-visible state at one point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct StateHash(pub u128);

impl std::fmt::Display for StateHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{:032x}", self.0) }
}
