//! A checkpoint's chunks: the payload of the checkpoint itself, and its map, which says what each page that was written
//! since the checkpoint before holds. Contents lie in chunks of their own and are numbered through the file.

use super::end::{get_point, put_point};
use super::varint::{Cursor, Malformed, put, put_bytes};
use super::{MAX_CHECKPOINT, MAX_MAP};
use retrovisor_core::input::When;

/// The three filters of what a stretch of the run touched: bits that are set, ascending.
pub type Touched = [Vec<u16>; 3];

/// A checkpoint but for memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredCheckpoint {
    /// A hash point: the machine has just arrived there.
    pub at: When,
    /// The output digest, the hash point's included.
    pub output: u64,
    /// Entries of its map.
    pub entries: u64,
    /// vCPUs, clock and devices, as `Vm::save_state` gives them.
    pub state: Vec<u8>,
    /// Linear pages fetched from, linear pages accessed and physical pages accessed since the checkpoint before.
    pub touched: Option<Touched>,
}

/// [`StoredCheckpoint::touched`] is there.
const TOUCHED: u8 = 1;

impl StoredCheckpoint {
    /// The payload; `None` if it is larger than a reader accepts.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let Self { at, output, entries, state, touched } = self;
        let mut out = Vec::new();
        put_point(&mut out, *at);
        out.extend_from_slice(&output.to_le_bytes());
        put(&mut out, *entries);
        put_bytes(&mut out, state);
        out.push(if touched.is_some() { TOUCHED } else { 0 });
        touched.iter().flatten().for_each(|bits| put_bits(&mut out, bits));
        (out.len() <= MAX_CHECKPOINT).then_some(out)
    }

    /// Reads a payload.
    pub fn from_bytes(raw: &[u8]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(raw);
        let at = get_point(&mut c)?;
        let (output, entries) = (c.u64()?, c.number()?);
        let state = c.bytes(MAX_CHECKPOINT)?.to_vec();
        let touched = match c.u8()? {
            0 => None,
            TOUCHED => Some([get_bits(&mut c)?, get_bits(&mut c)?, get_bits(&mut c)?]),
            _ => return Err("a checkpoint has unknown flags"),
        };
        if !c.is_empty() {
            return Err("a checkpoint is longer than its fields");
        }
        Ok(Self { at, output, entries, state, touched })
    }
}

/// Appends ascending numbers: how many, the first, and the differences.
fn put_bits(out: &mut Vec<u8>, bits: &[u16]) {
    put(out, bits.len() as u64);
    let mut last = 0;
    for bit in bits {
        put(out, u64::from(bit.wrapping_sub(last)));
        last = *bit;
    }
}

fn get_bits(c: &mut Cursor<'_>) -> Result<Vec<u16>, Malformed> {
    let n = c.number()?;
    let mut bits: Vec<u16> = Vec::new();
    for _ in 0..n {
        let difference = c.number()?;
        let next = u64::from(bits.last().copied().unwrap_or(0)).checked_add(difference);
        match next.and_then(|n| u16::try_from(n).ok()) {
            Some(next) if difference > 0 || bits.is_empty() => bits.push(next),
            _ => return Err("a set of pages is out of order"),
        }
    }
    Ok(bits)
}

/// What a page holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    Zeroes,
    /// What it held at the checkpoint before, although it was written since.
    Same,
    /// These, by their number in the file.
    Stored(u64),
}

/// A page that was written since the checkpoint before (or, in the first, may hold anything but zeroes).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Number of the page in the machine's memory.
    pub page: u32,
    pub contents: Contents,
}

/// What both sides of a map's coding know: pages ascend, and contents mostly follow each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapCoder {
    next_page: u64,
    next_contents: u64,
}

/// The most bytes an entry takes.
const ENTRY_ROOM: usize = 20;

impl MapCoder {
    /// Is a part of a map of `len` bytes full?
    pub const fn is_full(len: usize) -> bool {
        len + ENTRY_ROOM > MAX_MAP
    }

    /// Appends an entry, whose page lies behind that of the entry before.
    pub fn put(&mut self, out: &mut Vec<u8>, entry: Entry) {
        put(out, u64::from(entry.page).wrapping_sub(self.next_page));
        self.next_page = u64::from(entry.page) + 1;
        match entry.contents {
            Contents::Zeroes => put(out, 0),
            Contents::Same => put(out, 1),
            Contents::Stored(n) => {
                let difference = n.wrapping_sub(self.next_contents) as i64;
                put(out, 2 + (((difference << 1) ^ (difference >> 63)) as u64));
                self.next_contents = n + 1;
            }
        }
    }

    /// Reads an entry; contents must be among the first `stored` of the file.
    pub fn get(&mut self, c: &mut Cursor<'_>, stored: u64) -> Result<Entry, Malformed> {
        let page = self.next_page.checked_add(c.number()?).and_then(|n| u32::try_from(n).ok());
        let page = page.ok_or("a page's number is out of range")?;
        self.next_page = u64::from(page) + 1;
        let contents = match c.number()? {
            0 => Contents::Zeroes,
            1 => Contents::Same,
            n => {
                let coded = n - 2;
                let difference = (coded >> 1) as i64 ^ -((coded & 1) as i64);
                let n = self.next_contents.wrapping_add(difference as u64);
                if n >= stored {
                    return Err("a page's contents are missing");
                }
                self.next_contents = n + 1;
                Contents::Stored(n)
            }
        };
        Ok(Entry { page, contents })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::record::tests::at;
    use super::*;

    fn checkpoint() -> StoredCheckpoint {
        StoredCheckpoint {
            at: at(1 << 40, 77),
            output: u64::MAX - 1,
            entries: 12,
            state: vec![3; 100],
            touched: Some([vec![], vec![0, 1, 65_535], vec![7]]),
        }
    }

    #[test]
    fn test_checkpoint_round_trips_and_cut_returns_error() {
        let whole = checkpoint();
        for c in [whole.clone(), StoredCheckpoint { touched: None, ..whole }] {
            let bytes = c.to_bytes().unwrap();
            assert_eq!(StoredCheckpoint::from_bytes(&bytes).unwrap(), c);
            for n in 0..bytes.len() {
                assert!(StoredCheckpoint::from_bytes(&bytes[..n]).is_err());
            }
            assert!(StoredCheckpoint::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        }
        let huge = StoredCheckpoint { state: vec![0; MAX_CHECKPOINT], ..checkpoint() };
        assert_eq!(huge.to_bytes(), None);
    }

    #[test]
    fn test_checkpoint_hostile_sets_return_error() {
        for tail in [&[1, 2, 5, 0][..], &[1, 1, 0x80, 0x80, 4], &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 1], &[2]] {
            let mut bytes = StoredCheckpoint { touched: None, ..checkpoint() }.to_bytes().unwrap();
            bytes.pop();
            bytes.extend_from_slice(tail);
            assert!(StoredCheckpoint::from_bytes(&bytes).is_err(), "{tail:?}");
        }
    }

    #[test]
    fn test_map_round_trips_in_few_bytes() {
        let entry = |page, contents| Entry { page, contents };
        let entries = [
            entry(0, Contents::Stored(0)),
            entry(1, Contents::Stored(1)),
            entry(5, Contents::Same),
            entry(6, Contents::Zeroes),
            entry(7, Contents::Stored(2)),
            entry(9000, Contents::Stored(1)),
            entry(u32::MAX, Contents::Stored(99)),
        ];
        let (mut coder, mut out) = (MapCoder::default(), Vec::new());
        entries.iter().for_each(|e| coder.put(&mut out, *e));
        assert_eq!(out.len(), 5 * 2 + 3 + 7);
        let (mut coder, mut c) = (MapCoder::default(), Cursor::new(&out));
        for e in entries {
            assert_eq!(coder.get(&mut c, 100).unwrap(), e);
        }
        assert!(c.is_empty());
    }

    #[test]
    fn test_map_hostile_entries_return_error() {
        let mut coder = MapCoder::default();
        assert_eq!(coder.get(&mut Cursor::new(&[0, 2]), 0), Err("a page's contents are missing"));
        for bytes in [&[0, 3][..], &[0x80, 0x80, 0x80, 0x80, 0x10, 0], &[0]] {
            assert!(MapCoder::default().get(&mut Cursor::new(bytes), 10).is_err(), "{bytes:?}");
        }
    }
}
