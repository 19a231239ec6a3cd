//! Checkpoints into a trace: which pages changed, each content stored once in the file, many of them compressed together.
//! And the thread that does this for a machine that runs on.

use crate::format::checkpoint::{Contents, Entry, MapCoder, StoredCheckpoint};
use crate::format::chunk::{self, Kind};
use crate::format::{MAX_CHECKPOINT, TraceError};
use crate::history::{Checkpoint, Stretch};
use crate::pages::{PAGE, Page, PageMap, Unpacker};
use retrovisor_core::Icount;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread::JoinHandle;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_128;

/// Pages compressed together.
const TOGETHER: usize = 64;
/// Contents remembered to find equal ones; beyond, some are stored again.
const MAX_KNOWN: usize = 1 << 21;

/// Why a checkpoint could not be stored.
#[derive(Debug, Error)]
pub enum PersistError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Takes a chunk as bytes to where it belongs.
pub type Put<'a> = &'a mut dyn FnMut(Vec<u8>) -> io::Result<()>;

/// Makes chunks of the checkpoints of one run.
pub struct Persister {
    level: i32,
    /// Memory at the last checkpoint, and the number of the contents of each page.
    pages: Option<PageMap>,
    held: HashMap<usize, u64>,
    /// Numbers by the digest of contents.
    known: HashMap<u128, u64>,
    /// Contents so far.
    stored: u64,
    /// Those not yet put.
    pending: Vec<u8>,
    unpacker: Unpacker,
}

impl Persister {
    /// Chunks compressed at zstd's `level`.
    pub fn new(level: i32) -> Self {
        Self {
            level,
            pages: None,
            held: HashMap::new(),
            known: HashMap::new(),
            stored: 0,
            pending: Vec::new(),
            unpacker: Unpacker::new(),
        }
    }

    /// Stores a checkpoint that lies behind the last one, whose stretch reaches back to it.
    ///
    /// # Errors
    /// If a page cannot be read or `put` fails.
    pub fn add(&mut self, c: &Checkpoint, put: Put<'_>) -> Result<(), PersistError> {
        if c.state.len() > MAX_CHECKPOINT / 4 {
            return Err(io::Error::other("the machine's state is too large for a checkpoint").into());
        }
        let entries = self.entries(c, put)?;
        self.flush(put)?;
        let (mut coder, mut map) = (MapCoder::default(), Vec::new());
        for entry in &entries {
            if MapCoder::is_full(map.len()) {
                put(chunk::encode(Kind::Map, self.level, &std::mem::take(&mut map))?)?;
            }
            coder.put(&mut map, *entry);
        }
        if !map.is_empty() {
            put(chunk::encode(Kind::Map, self.level, &map)?)?;
        }
        let stored = StoredCheckpoint {
            at: c.at,
            output: c.output.value(),
            entries: entries.len() as u64,
            state: c.state.to_vec(),
            touched: c.stretch.touched(),
        };
        let raw = stored.to_bytes().ok_or_else(|| io::Error::other("a checkpoint is too large"))?;
        Ok(put(chunk::encode(Kind::Checkpoint, self.level, &raw)?)?)
    }

    /// The checkpoint's map; new contents are put, but for the last few.
    fn entries(&mut self, c: &Checkpoint, put: Put<'_>) -> Result<Vec<Entry>, PersistError> {
        let mut changed: Vec<(usize, Option<Arc<Page>>)> = Vec::new();
        let note = &mut |n: usize, page: Option<&Arc<Page>>| changed.push((n, page.cloned()));
        match &self.pages {
            Some(before) => before.diff(&c.pages, note),
            None => c.pages.each(&mut |n, page| note(n, Some(page))),
        }
        self.pages = Some(c.pages.clone());
        let mut entries = Vec::new();
        let mut written = c.stretch.written().iter().copied().peekable();
        let same = |page| Entry { page, contents: Contents::Same };
        for (n, page) in changed {
            while let Some(w) = written.next_if(|w| (*w as usize) <= n) {
                if (w as usize) < n {
                    entries.push(same(w));
                }
            }
            let contents = self.contents(n, page.as_deref(), put)?;
            entries.push(Entry { page: n as u32, contents });
        }
        entries.extend(written.map(same));
        Ok(entries)
    }

    /// What page `n`, which may have changed, holds.
    fn contents(&mut self, n: usize, page: Option<&Page>, put: Put<'_>) -> Result<Contents, PersistError> {
        let Some(page) = page else {
            self.held.remove(&n);
            return Ok(Contents::Zeroes);
        };
        let mut bytes = [0; PAGE];
        page.read(&mut self.unpacker, &mut bytes)?;
        let digest = xxh3_128(&bytes);
        let number = match self.known.get(&digest) {
            Some(number) => *number,
            None => self.store(digest, &bytes, put)?,
        };
        let same = self.held.insert(n, number) == Some(number);
        Ok(if same { Contents::Same } else { Contents::Stored(number) })
    }

    fn store(&mut self, digest: u128, bytes: &[u8; PAGE], put: Put<'_>) -> Result<u64, PersistError> {
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        let number = self.stored;
        self.stored += 1;
        self.known.insert(digest, number);
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= TOGETHER * PAGE {
            self.flush(put)?;
        }
        Ok(number)
    }

    fn flush(&mut self, put: Put<'_>) -> Result<(), PersistError> {
        if !self.pending.is_empty() {
            put(chunk::encode(Kind::Pages, self.level, &std::mem::take(&mut self.pending))?)?;
        }
        Ok(())
    }
}

/// Puts chunks where a live recording goes; false: it has ended.
pub type Append = Box<dyn FnMut(Vec<u8>) -> io::Result<()> + Send>;

/// zstd's level for checkpoints that are stored while the machine runs.
const LIVE_LEVEL: i32 = 1;

/// Stores checkpoints of a live run from a thread of its own. A run that outpaces it gets fewer of them.
pub struct Checkpointer {
    every: u64,
    next: u64,
    /// What happened since the last one stored.
    stretch: Stretch,
    thread: Option<(SyncSender<Checkpoint>, JoinHandle<()>)>,
}

impl Checkpointer {
    /// Stores one every `every` instructions, which is a multiple of the hash interval; the run stands at `at`.
    pub fn new(every: u64, at: Icount, mut append: Append) -> io::Result<Self> {
        let (tx, rx) = mpsc::sync_channel::<Checkpoint>(1);
        let mut persister = Persister::new(LIVE_LEVEL);
        // The recording knows, and says, when it can be written no more.
        let work = move || drop(rx.into_iter().try_for_each(|c| persister.add(&c, &mut append)));
        let handle = std::thread::Builder::new().name("checkpoints".into()).spawn(work)?;
        let next = (at.0 / every + 1) * every;
        Ok(Self { every, next, stretch: Stretch::begin(at), thread: Some((tx, handle)) })
    }

    /// icount at which it next wants a checkpoint.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Looks at a new checkpoint of the run, whose stretch reaches back to the one before.
    pub fn offer(&mut self, c: &Checkpoint) {
        let mut stretch = c.stretch.clone();
        stretch.extend_back(&self.stretch);
        self.stretch = stretch;
        let at = c.at.icount;
        if at.0 < self.next {
            return;
        }
        self.next = (at.0 / self.every + 1) * self.every;
        let Some((tx, _)) = self.thread.as_ref().filter(|_| at.0.is_multiple_of(self.every)) else { return };
        let stretch = std::mem::replace(&mut self.stretch, Stretch::begin(at));
        if let Err(TrySendError::Full(c)) = tx.try_send(Checkpoint { stretch, ..c.clone() }) {
            self.stretch = c.stretch;
        }
    }
}

impl Drop for Checkpointer {
    /// Waits until what was taken is stored.
    fn drop(&mut self) {
        if let Some((tx, handle)) = self.thread.take() {
            drop(tx);
            let _ = handle.join();
        }
    }
}
