//! The checkpoints of an open trace: where their chunks are, and reading them one at a time.

use super::{Place, Trace};
use crate::format::checkpoint::{Entry, MapCoder, StoredCheckpoint};
use crate::format::chunk::{HEAD, Kind};
use crate::format::varint::{Cursor, Malformed};
use crate::format::{MAX_CHECKPOINTS, TraceError};
use crate::pages::PAGE;
use std::io;
use std::ops::Range;

/// Where a checkpoint is.
#[derive(Clone, Debug)]
struct Stored {
    place: Place,
    /// The parts of its map, in [`Checkpoints::maps`].
    maps: Range<usize>,
    /// Pages whose contents stand before it in the file.
    contents: u64,
}

/// The chunks of checkpoints.
#[derive(Default)]
pub(super) struct Checkpoints {
    /// Chunks of contents, and the number of the first page in each.
    pages: Vec<(u64, Place)>,
    maps: Vec<Place>,
    list: Vec<Stored>,
}

impl Checkpoints {
    /// Pages whose contents are in the file.
    fn contents(&self) -> u64 {
        self.pages.last().map_or(0, |(first, place)| first + pages_in(place))
    }

    /// Files a chunk.
    pub(super) fn take(&mut self, place: Place) -> Result<(), Malformed> {
        if self.list.len() == MAX_CHECKPOINTS {
            return Ok(());
        }
        match place.head.kind {
            Kind::Pages if !(place.head.raw as usize).is_multiple_of(PAGE) => {
                return Err("pages that are not whole");
            }
            Kind::Pages => self.pages.push((self.contents(), place)),
            Kind::Map => self.maps.push(place),
            _ => {
                let from = self.list.last().map_or(0, |c| c.maps.end);
                let (maps, contents) = (from..self.maps.len(), self.contents());
                self.list.push(Stored { place, maps, contents });
            }
        }
        Ok(())
    }
}

fn pages_in(place: &Place) -> u64 {
    u64::from(place.head.raw) / PAGE as u64
}

impl Trace {
    /// Number of checkpoints, of whatever use.
    pub fn checkpoints(&self) -> usize {
        self.checkpoints.list.len()
    }
    /// Bytes that checkpoints take in the file and uncompressed.
    pub fn checkpoint_bytes(&self) -> (u64, u64) {
        let c = &self.checkpoints;
        let places = c.pages.iter().map(|p| &p.1).chain(&c.maps).chain(c.list.iter().map(|s| &s.place));
        places.fold((0, 0), |(stored, raw), p| {
            (stored + HEAD + u64::from(p.head.stored), raw + u64::from(p.head.raw))
        })
    }
    /// Reads checkpoint `n`, but for its map; `None` after the last.
    ///
    /// # Errors
    /// If it makes no sense although its checksum is right, or the file cannot be read.
    pub fn checkpoint(&self, n: usize) -> Result<Option<StoredCheckpoint>, TraceError> {
        let Some(Stored { place, .. }) = self.checkpoints.list.get(n) else { return Ok(None) };
        let raw = self.payload(place)?;
        StoredCheckpoint::from_bytes(&raw).map(Some).map_err(|why| self.damaged(place.at, why))
    }

    /// Calls `f` with each entry of checkpoint `n`'s map, ascending; how many there are.
    ///
    /// # Errors
    /// As [`Trace::checkpoint`].
    pub fn checkpoint_map(&self, n: usize, f: &mut dyn FnMut(Entry)) -> Result<u64, TraceError> {
        let Some(Stored { maps, contents, .. }) = self.checkpoints.list.get(n) else { return Ok(0) };
        let (mut coder, mut entries) = (MapCoder::default(), 0);
        for place in self.checkpoints.maps.get(maps.clone()).unwrap_or_default() {
            let raw = self.payload(place)?;
            let mut c = Cursor::new(&raw);
            while !c.is_empty() {
                f(coder.get(&mut c, *contents).map_err(|why| self.damaged(place.at, why))?);
                entries += 1;
            }
        }
        Ok(entries)
    }

    /// The chunk that page contents number `n` are in, and their place in it.
    pub fn contents_at(&self, n: u64) -> Option<(usize, usize)> {
        let pages = &self.checkpoints.pages;
        let chunk = pages.partition_point(|(first, _)| *first <= n).checked_sub(1)?;
        let (first, place) = pages.get(chunk)?;
        Some((chunk, (n - first) as usize)).filter(|(_, at)| (*at as u64) < pages_in(place))
    }

    /// The contents in chunk `n` of pages, one page behind the other.
    ///
    /// # Errors
    /// As [`Trace::checkpoint`].
    pub fn contents(&self, n: usize) -> Result<Vec<u8>, TraceError> {
        self.checkpoints.pages.get(n).map_or(Ok(Vec::new()), |(_, place)| self.payload(place))
    }

    /// Calls `f` with all chunks of checkpoints, uncompressed, in their order.
    pub(crate) fn checkpoint_chunks(
        &self,
        f: &mut dyn FnMut(Kind, Vec<u8>) -> io::Result<()>,
    ) -> Result<io::Result<()>, TraceError> {
        let c = &self.checkpoints;
        let all = c.pages.iter().map(|p| &p.1).chain(&c.maps).chain(c.list.iter().map(|s| &s.place));
        let mut all: Vec<&Place> = all.collect();
        all.sort_unstable_by_key(|p| p.at);
        for place in all {
            if let Err(e) = f(place.head.kind, self.payload(place)?) {
                return Ok(Err(e));
            }
        }
        Ok(Ok(()))
    }
}
