//! The checkpoints that a trace holds, as checkpoints of its history. Their maps and their states are read at once, the pages
//! when a machine is put there.

use crate::format::checkpoint::{Contents, StoredCheckpoint};
use crate::format::reader::Trace;
use crate::format::{Problem, TraceError};
use crate::history::{Checkpoint, Stretch};
use crate::log::Log;
use crate::output::OutputState;
use crate::pages::{PAGE, Page, PageMap, PageSource, PageStore};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of uncompressed pages kept at hand.
const AT_HAND: usize = 4 << 20;

/// Where the pages of a trace's checkpoints are read.
#[derive(Debug)]
pub struct StoredPages {
    trace: Arc<Trace>,
    /// Chunks by number, the newest first.
    at_hand: Mutex<VecDeque<(usize, Arc<Vec<u8>>)>>,
}

impl StoredPages {
    pub fn new(trace: &Arc<Trace>) -> Arc<Self> {
        Arc::new(Self { trace: Arc::clone(trace), at_hand: Mutex::default() })
    }

    fn chunk(&self, n: usize) -> Result<Arc<Vec<u8>>, TraceError> {
        let mut chunks = self.at_hand.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, chunk)) = chunks.iter().find(|c| c.0 == n) {
            return Ok(Arc::clone(chunk));
        }
        let chunk = Arc::new(self.trace.contents(n)?);
        chunks.push_front((n, Arc::clone(&chunk)));
        while chunks.len() > 1 && chunks.iter().map(|c| c.1.len()).sum::<usize>() > AT_HAND {
            chunks.pop_back();
        }
        Ok(chunk)
    }
}

impl PageSource for StoredPages {
    fn read(&self, n: u64, out: &mut [u8; PAGE]) -> Result<(), TraceError> {
        let missing = || {
            let why = "a page of a checkpoint is missing".to_owned();
            self.trace.fail(Problem::Damaged { at: self.trace.size(), why })
        };
        let (chunk, at) = self.trace.contents_at(n).ok_or_else(missing)?;
        let chunk = self.chunk(chunk)?;
        out.copy_from_slice(chunk.get(at * PAGE..(at + 1) * PAGE).ok_or_else(missing)?);
        Ok(())
    }
}

/// Reads a trace's checkpoints in turn.
pub struct StoredCheckpoints {
    trace: Arc<Trace>,
    source: Arc<StoredPages>,
    /// Pages of the machine.
    pages: usize,
    map: PageMap,
    next: usize,
    /// Where the last one was.
    from: Option<u64>,
}

impl StoredCheckpoints {
    /// For a machine of `pages` pages.
    pub fn new(trace: &Arc<Trace>, pages: usize) -> Self {
        let (source, map) = (StoredPages::new(trace), PageMap::new(pages));
        Self { trace: Arc::clone(trace), source, pages, map, next: 0, from: None }
    }

    /// The next checkpoint of use; `None` after the last. Its pages are accounted for by `store`.
    ///
    /// # Errors
    /// If it makes no sense: what follows is of no use then.
    pub fn next(&mut self, store: &PageStore) -> Result<Option<Checkpoint>, TraceError> {
        let Some(stored) = self.trace.checkpoint(self.next)? else { return Ok(None) };
        // What is not yet in the frames of a trace that was cut.
        if stored.at > self.trace.end().when {
            return Ok(None);
        }
        let written = self.read_map(&stored, store)?;
        self.next += 1;
        let StoredCheckpoint { at, output, state, touched, .. } = stored;
        // The first may claim to know what happened since power-on, not since a trimmed trace begins.
        let from = self.from.replace(at.icount.0).unwrap_or(0);
        Ok(Some(Checkpoint {
            at,
            state: state.into(),
            pages: self.map.clone(),
            output: OutputState::at_hash_point(output),
            stretch: Stretch::told(retrovisor_core::Icount(from), written, touched),
            dense: false,
            proven: false,
        }))
    }

    /// Goes on to the memory of the next checkpoint; the pages written since the last one.
    fn read_map(&mut self, stored: &StoredCheckpoint, store: &PageStore) -> Result<Vec<u32>, TraceError> {
        let bad = |why: &str| {
            let why = format!("the checkpoint at instruction {}: {why}", stored.at.icount);
            self.trace.fail(Problem::Damaged { at: self.trace.size(), why })
        };
        let interval = self.trace.config().hash_interval.max(1);
        if self.from.is_some_and(|f| f >= stored.at.icount.0) || !stored.at.icount.0.is_multiple_of(interval)
        {
            return Err(bad("it is out of place"));
        }
        // The state begins with the icount.
        if !stored.state.starts_with(&stored.at.icount.0.to_le_bytes()) {
            return Err(bad("its state is of another point"));
        }
        let (mut map, mut written, mut beyond) = (self.map.clone(), Vec::new(), false);
        let entries = self.trace.checkpoint_map(self.next, &mut |entry| {
            if entry.page as usize >= self.pages {
                beyond = true;
                return;
            }
            written.push(entry.page);
            match entry.contents {
                Contents::Same => {}
                Contents::Zeroes => map.set(entry.page as usize, None),
                Contents::Stored(n) => {
                    let source: Arc<dyn PageSource> = Arc::<StoredPages>::clone(&self.source);
                    map.set(entry.page as usize, Some(Page::stored(store, source, n)));
                }
            }
        })?;
        if beyond || entries != stored.entries {
            return Err(bad("its map is not of this machine"));
        }
        self.map = map;
        Ok(written)
    }
}
