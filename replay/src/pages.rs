//! The contents of guest memory as values: pages, and maps of pages that share everything they have in common. Owns the
//! memory that checkpoints take, and the thread that compresses it.
//!
//! A [`PageMap`] is a tree that is never changed in place once it is shared, so a checkpoint is a clone, and what differs
//! between two checkpoints is found by comparing pointers. A page is kept as it is at first, so that taking a checkpoint
//! costs a copy; a thread of its own compresses it and merges pages with equal contents.

use crate::format::TraceError;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use zstd::bulk::{Compressor, Decompressor};

/// Bytes of a page.
pub const PAGE: usize = 4096;
const ZERO: [u8; PAGE] = [0; PAGE];
/// Speed matters more than size here.
const LEVEL: i32 = 1;
/// Slots of a node of a map.
const FANOUT: usize = 32;

/// Uncompressed pages kept for the next ones: fresh memory costs more than what is copied into it.
const SPARE: usize = 4096;

/// Bytes held by pages, by state, and memory for more. Shared by all pages of a store.
#[derive(Debug, Default)]
struct Account {
    raw: AtomicI64,
    packed: AtomicI64,
    spare: Mutex<Vec<Box<[u8; PAGE]>>>,
}

impl Account {
    fn take(&self) -> Box<[u8; PAGE]> {
        self.raw.fetch_add(PAGE as i64, Ordering::Relaxed);
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| Box::new([0; PAGE]))
    }

    fn give_back(&self, page: Box<[u8; PAGE]>) {
        self.raw.fetch_sub(PAGE as i64, Ordering::Relaxed);
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE {
            spare.push(page);
        }
    }

    fn load(counter: &AtomicI64) -> u64 {
        u64::try_from(counter.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// Compressed contents, perhaps of several pages.
#[derive(Debug)]
struct Packed {
    bytes: Box<[u8]>,
    account: Arc<Account>,
}

impl Packed {
    /// What it takes, with its bookkeeping.
    fn cost(bytes: &[u8]) -> i64 {
        bytes.len() as i64 + 64
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        self.account.packed.fetch_sub(Self::cost(&self.bytes), Ordering::Relaxed);
    }
}

/// Where pages lie that are not in memory.
pub trait PageSource: Send + Sync + std::fmt::Debug {
    /// Copies the contents of page `n` out.
    ///
    /// # Errors
    /// If they cannot be read.
    fn read(&self, n: u64, out: &mut [u8; PAGE]) -> Result<(), TraceError>;
}

#[derive(Debug)]
enum Data {
    Raw(Box<[u8; PAGE]>),
    Packed(Arc<Packed>),
    /// Not in memory: page so-and-so of a source.
    Stored(Arc<dyn PageSource>, u64),
    Dropped,
}

/// The contents of one page; a page of zeroes is none.
#[derive(Debug)]
pub struct Page {
    data: Mutex<Data>,
    account: Arc<Account>,
}

impl Page {
    fn lock(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Page `n` of `source`, read when it is needed; accounted for by `store`, where it takes nothing.
    pub fn stored(store: &PageStore, source: Arc<dyn PageSource>, n: u64) -> Arc<Self> {
        Arc::new(Self { data: Mutex::new(Data::Stored(source, n)), account: Arc::clone(&store.work.account) })
    }

    /// Its number in the source it lies in, if it does: who reads many reads them in this order.
    pub fn place(&self) -> Option<u64> {
        match &*self.lock() {
            Data::Stored(_, n) => Some(*n),
            _ => None,
        }
    }

    /// Copies the contents out.
    ///
    /// # Errors
    /// If they are in a file that cannot be read.
    pub fn read(&self, unpacker: &mut Unpacker, out: &mut [u8; PAGE]) -> Result<(), TraceError> {
        let (source, n) = match &*self.lock() {
            Data::Raw(bytes) => {
                out.copy_from_slice(&bytes[..]);
                return Ok(());
            }
            Data::Packed(p) => {
                unpacker.unpack(&p.bytes, out);
                return Ok(());
            }
            Data::Stored(source, n) => (Arc::clone(source), *n),
            Data::Dropped => return Ok(()),
        };
        source.read(n, out)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Data::Raw(page) = std::mem::replace(&mut *self.lock(), Data::Dropped) {
            self.account.give_back(page);
        }
    }
}

/// Uncompresses pages.
pub struct Unpacker(Option<Decompressor<'static>>);

impl Unpacker {
    pub fn new() -> Self {
        Self(None)
    }

    fn unpack(&mut self, bytes: &[u8], out: &mut [u8; PAGE]) {
        if self.0.is_none() {
            self.0 = Decompressor::new().ok();
        }
        // Only what `pack` made gets here, so this cannot fail but for want of memory.
        let got = self.0.as_mut().and_then(|d| d.decompress_to_buffer(bytes, &mut out[..]).ok());
        debug_assert_eq!(got, Some(PAGE));
    }
}

impl Default for Unpacker {
    fn default() -> Self {
        Self::new()
    }
}

/// Compresses pages, and knows the compressed contents that are alive. Equal contents compress to equal bytes.
#[derive(Default)]
struct Packer {
    known: HashMap<u64, Weak<Packed>>,
    compressor: Option<Compressor<'static>>,
    /// Size of `known` at which dead entries are swept.
    sweep_at: usize,
}

/// What waits to be compressed, and who does it. Apart, so that adding to the queue waits for nobody.
#[derive(Default)]
struct Work {
    account: Arc<Account>,
    /// Bytes of pages that may stay as they are: while there is room compressing costs time for nothing.
    keep: u64,
    queue: Mutex<VecDeque<Weak<Page>>>,
    packer: Mutex<Packer>,
}

impl Work {
    /// Compresses the page that has waited longest; false if none waits.
    fn turn(&self) -> bool {
        let mut packer = self.packer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(page) = self.queue().pop_front() else { return false };
        if let Some(page) = page.upgrade() {
            packer.pack(&page);
        }
        true
    }

    /// Are there more uncompressed pages than may stay?
    fn due(&self) -> bool {
        Account::load(&self.account.raw) > self.keep
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Weak<Page>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Packer {
    fn pack(&mut self, page: &Page) {
        if self.compressor.is_none() {
            self.compressor = Compressor::new(LEVEL).ok();
        }
        // The contents of a page never change, so it is compressed without holding its lock.
        let raw = match &*page.lock() {
            Data::Raw(bytes) => bytes.clone(),
            Data::Packed(_) | Data::Stored(..) | Data::Dropped => return,
        };
        let Some(bytes) = self.compressor.as_mut().and_then(|c| c.compress(&raw[..]).ok()) else { return };
        if bytes.len() >= PAGE {
            return;
        }
        let packed = self.shared(bytes, &page.account);
        if let Data::Raw(raw) = std::mem::replace(&mut *page.lock(), Data::Packed(packed)) {
            page.account.give_back(raw);
        }
    }

    fn shared(&mut self, bytes: Vec<u8>, account: &Arc<Account>) -> Arc<Packed> {
        let key = xxhash_rust::xxh3::xxh3_64(&bytes);
        if let Some(same) = self.known.get(&key).and_then(Weak::upgrade)
            && same.bytes[..] == bytes[..]
        {
            return same;
        }
        account.packed.fetch_add(Packed::cost(&bytes), Ordering::Relaxed);
        let packed = Arc::new(Packed { bytes: bytes.into_boxed_slice(), account: Arc::clone(account) });
        self.known.insert(key, Arc::downgrade(&packed));
        if self.known.len() > self.sweep_at {
            self.known.retain(|_, w| w.strong_count() > 0);
            self.sweep_at = 2 * self.known.len() + 1024;
        }
        packed
    }
}

/// Makes pages, and has them compressed.
#[derive(Default)]
pub struct PageStore {
    work: Arc<Work>,
    /// Pages made and not yet handed on.
    batch: Vec<Weak<Page>>,
    /// Wakes the thread.
    thread: Option<mpsc::Sender<()>>,
}

impl PageStore {
    /// A store that leaves `keep` bytes of the newest pages uncompressed.
    pub fn new(keep: u64) -> Self {
        Self { work: Arc::new(Work { keep, ..Work::default() }), ..Self::default() }
    }

    /// The page with these contents; `None` if they are zeroes.
    pub fn page(&mut self, bytes: &[u8]) -> Option<Arc<Page>> {
        let bytes = bytes.get(..PAGE)?;
        if *bytes == ZERO {
            return None;
        }
        let mut raw = self.work.account.take();
        raw.copy_from_slice(bytes);
        let page =
            Arc::new(Page { data: Mutex::new(Data::Raw(raw)), account: Arc::clone(&self.work.account) });
        self.batch.push(Arc::downgrade(&page));
        Some(page)
    }

    /// Has the thread compress what is too much, the oldest pages first.
    pub fn hand_on(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.work.queue().extend(self.batch.drain(..));
        if self.work.due() {
            let thread = self.thread.get_or_insert_with(|| spawn(Arc::clone(&self.work)));
            // Without a thread, `settle` compresses.
            let _ = thread.send(());
        }
    }

    /// Compresses what has not been compressed yet, here and now.
    pub fn settle(&mut self) {
        self.hand_on();
        while self.work.turn() {}
    }

    /// Bytes all living pages take, as they are and compressed.
    pub fn bytes(&self) -> (u64, u64) {
        (Account::load(&self.work.account.raw), Account::load(&self.work.account.packed))
    }
}

/// The compressing thread; it ends when the store does.
fn spawn(work: Arc<Work>) -> mpsc::Sender<()> {
    let (tx, rx) = mpsc::channel();
    let body = move || rx.into_iter().for_each(|()| while work.due() && work.turn() {});
    // A host without a thread to spare drops the receiver.
    let _ = std::thread::Builder::new().name("checkpoints".into()).spawn(body);
    tx
}

type Slot = Option<Arc<Page>>;

#[derive(Clone, Debug, Default)]
enum Node {
    #[default]
    Empty,
    Inner(Arc<[Node; FANOUT]>),
    Leaf(Arc<[Slot; FANOUT]>),
}

static NOTHING: Node = Node::Empty;
static ZEROES: [Slot; FANOUT] = [const { None }; FANOUT];

impl Node {
    fn same(&self, other: &Node) -> bool {
        match (self, other) {
            (Node::Empty, Node::Empty) => true,
            (Node::Inner(a), Node::Inner(b)) => Arc::ptr_eq(a, b),
            (Node::Leaf(a), Node::Leaf(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    fn child(&self, i: usize) -> &Node {
        match self {
            Node::Inner(children) => &children[i],
            _ => &NOTHING,
        }
    }

    fn slots(&self) -> &[Slot; FANOUT] {
        match self {
            Node::Leaf(slots) => slots,
            _ => &ZEROES,
        }
    }
}

/// Which page lies where. Cloning is cheap; clones share what they have in common.
#[derive(Clone, Debug)]
pub struct PageMap {
    root: Node,
    /// Levels of inner nodes.
    levels: u32,
}

impl PageMap {
    /// `pages` pages of zeroes.
    pub fn new(pages: usize) -> Self {
        let (mut levels, mut reach) = (0, FANOUT);
        while reach < pages {
            levels += 1;
            reach = reach.saturating_mul(FANOUT);
        }
        Self { root: Node::Empty, levels }
    }

    fn index(page: usize, level: u32) -> usize {
        page >> (level * FANOUT.ilog2()) & (FANOUT - 1)
    }

    /// The page at `page`; `None`: zeroes.
    pub fn get(&self, page: usize) -> Option<&Arc<Page>> {
        let mut node = &self.root;
        for level in (1..=self.levels).rev() {
            node = node.child(Self::index(page, level));
        }
        node.slots()[Self::index(page, 0)].as_ref()
    }

    /// Puts contents at `page`.
    pub fn set(&mut self, page: usize, contents: Slot) {
        let mut node = &mut self.root;
        for level in (1..=self.levels).rev() {
            if !matches!(node, Node::Inner(_)) {
                *node = Node::Inner(Arc::new(std::array::from_fn(|_| Node::Empty)));
            }
            let Node::Inner(children) = node else { return };
            node = &mut Arc::make_mut(children)[Self::index(page, level)];
        }
        if !matches!(node, Node::Leaf(_)) {
            *node = Node::Leaf(Arc::new(ZEROES.clone()));
        }
        if let Node::Leaf(slots) = node {
            Arc::make_mut(slots)[Self::index(page, 0)] = contents;
        }
    }

    /// Calls `f` with each page that is not the same in `other`, ascending, and what it is there.
    pub fn diff(&self, other: &Self, f: &mut dyn FnMut(usize, Option<&Arc<Page>>)) {
        differ(&self.root, &other.root, self.levels, 0, f);
    }

    /// Calls `f` with each page that is not zero, ascending.
    pub fn each(&self, f: &mut dyn FnMut(usize, &Arc<Page>)) {
        let nothing = Self { root: Node::Empty, levels: self.levels };
        nothing.diff(self, &mut |n, page| {
            if let Some(page) = page {
                f(n, page);
            }
        });
    }
}

fn differ(a: &Node, b: &Node, level: u32, first: usize, f: &mut dyn FnMut(usize, Option<&Arc<Page>>)) {
    if a.same(b) {
        return;
    }
    for i in 0..FANOUT {
        let at = first * FANOUT + i;
        if level > 0 {
            differ(a.child(i), b.child(i), level - 1, at, f);
            continue;
        }
        match (&a.slots()[i], &b.slots()[i]) {
            (None, None) => {}
            (Some(x), Some(y)) if Arc::ptr_eq(x, y) => {}
            (_, there) => f(at, there.as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeMap;

    fn contents(seed: u64) -> [u8; PAGE] {
        std::array::from_fn(|i| (seed.wrapping_mul(0x9e37_79b9) >> (i % 29)) as u8)
    }

    #[test]
    fn a_map_is_what_was_put_into_it_and_its_clones_stay_as_they_were() {
        let mut store = PageStore::default();
        let mut map = PageMap::new(100_000);
        let mut model: BTreeMap<usize, u64> = BTreeMap::new();
        let mut past = Vec::new();
        let mut x = 1u64;
        for round in 0..40 {
            for _ in 0..50 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (page, seed) = ((x >> 33) as usize % 100_000, x >> 40 & 7);
                if seed == 0 {
                    map.set(page, None);
                    model.remove(&page);
                } else {
                    map.set(page, store.page(&contents(seed)));
                    model.insert(page, seed);
                }
            }
            if round == 20 {
                store.settle();
            }
            past.push((map.clone(), model.clone()));
        }
        let (mut unpacker, mut out) = (Unpacker::new(), [0; PAGE]);
        for (map, model) in &past {
            let mut got = BTreeMap::new();
            map.each(&mut |n, page| {
                page.read(&mut unpacker, &mut out).unwrap();
                got.insert(n, (1..8).find(|s| contents(*s) == out).unwrap());
            });
            assert_eq!(got, *model);
            assert!(model.keys().all(|n| map.get(*n).is_some()));
        }
        // Walking the differences leads from any map to any other.
        for (a, b) in [(0, 39), (39, 0), (13, 14), (7, 7)] {
            let mut walked = past[a].1.clone();
            past[a].0.diff(&past[b].0, &mut |n, page| match page {
                None => {
                    walked.remove(&n);
                }
                Some(page) => {
                    page.read(&mut unpacker, &mut out).unwrap();
                    walked.insert(n, (1..8).find(|s| contents(*s) == out).unwrap());
                }
            });
            assert_eq!(walked, past[b].1, "{a} to {b}");
        }
    }

    #[test]
    fn equal_pages_are_kept_once_and_dropped_ones_cost_nothing() {
        let mut store = PageStore::default();
        let mut map = PageMap::new(1 << 20);
        for n in 0..1000 {
            map.set(n * 7, store.page(&contents(n as u64 % 4 + 1)));
        }
        assert_eq!(store.bytes().0, 1000 * PAGE as u64);
        store.settle();
        let (raw, packed) = store.bytes();
        assert_eq!(raw, 0);
        assert!(packed < 4 * PAGE as u64, "{packed}");
        assert!(store.page(&[0; PAGE]).is_none());
        drop(map);
        // The thread may hold the last page it looked at for a moment.
        while store.bytes() != (0, 0) {
            std::thread::yield_now();
        }
    }
}
