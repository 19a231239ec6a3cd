//! The checkpoints of a run: what each holds, which to keep under a budget, and what is known of the stretch of the run
//! between two of them.

use crate::output::OutputState;
use crate::pages::{PageMap, PageStore};
use retrovisor_core::engine::hooks::{Hooks, Watch, WatchAddr, WatchKind};
use retrovisor_core::input::When;
use retrovisor_core::mem::{Footprint, MemMap, PageFilter, Target};
use retrovisor_core::{Gpa, Icount};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a changed page costs in the nodes of a page map, about, in bytes.
const NODE_SHARE: u64 = 96;
/// What a compressed page takes, about, in bytes.
const PACKED: u64 = 1024;
/// A watchpoint on more pages than this may be hit anywhere.
const MAX_WATCHED: u64 = 64;

/// What the run did between two icounts. May claim too much, never too little.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    /// It covers what happened from here on...
    from: u64,
    /// ...but for parts of which nothing is known.
    gap: bool,
    /// Slab pages that were written, ascending.
    written: Vec<u32>,
    /// Bits of the filters of a [`Footprint`], ascending.
    fetched: Vec<u16>,
    accessed: Vec<u16>,
    frames: Vec<u16>,
}

/// Merges two ascending lists.
fn merged<T: Ord + Copy>(a: &[T], b: &[T]) -> Vec<T> {
    let mut all = [a, b].concat();
    // The stable sort finds that there are two runs.
    all.sort();
    all.dedup();
    all
}

impl Stretch {
    /// An empty stretch that begins at `from`.
    pub fn begin(from: Icount) -> Self {
        Self { from: from.0, ..Self::default() }
    }

    /// What a trace says about the stretch that begins at `from`: the pages written, and the bits of the footprint's three
    /// filters if they are known; all of them ascending.
    pub fn told(from: Icount, written: Vec<u32>, touched: Option<[Vec<u16>; 3]>) -> Self {
        let gap = touched.is_none();
        let [fetched, accessed, frames] = touched.unwrap_or_default();
        Self { from: from.0, gap, written, fetched, accessed, frames }
    }

    /// The bits of the three filters of a footprint: fetched, accessed, frames; `None` if part of them is not known.
    pub fn touched(&self) -> Option<[Vec<u16>; 3]> {
        (!self.gap).then(|| [self.fetched.clone(), self.accessed.clone(), self.frames.clone()])
    }

    /// Adds what was written (slab pages) and touched.
    pub fn add(&mut self, written: &[usize], touched: &Footprint) {
        let pages: Vec<u32> = written.iter().map(|p| *p as u32).collect();
        self.written = merged(&self.written, &pages);
        self.fetched = merged(&self.fetched, &touched.fetched.bits());
        self.accessed = merged(&self.accessed, &touched.accessed.bits());
        self.frames = merged(&self.frames, &touched.frames.bits());
    }

    /// Goes back to where `earlier` begins.
    pub fn extend_back(&mut self, earlier: &Self) {
        self.from = self.from.min(earlier.from);
        self.gap |= earlier.gap;
        self.written = merged(&self.written, &earlier.written);
        self.fetched = merged(&self.fetched, &earlier.fetched);
        self.accessed = merged(&self.accessed, &earlier.accessed);
        self.frames = merged(&self.frames, &earlier.frames);
    }

    fn cost(&self) -> u64 {
        (4 * self.written.len() + 2 * (self.fetched.len() + self.accessed.len() + self.frames.len())) as u64
    }

    /// Slab pages that were written, ascending.
    pub fn written(&self) -> &[u32] {
        &self.written
    }

    /// Can the debugger's `hooks` have stopped the run in this stretch?
    pub fn may_stop(&self, hooks: &Hooks, map: &MemMap) -> bool {
        let fetched = |at: &u64| has(&self.fetched, *at);
        self.gap
            || hooks.stop_exceptions != 0
            || !hooks.wanted.is_empty()
            || hooks.breakpoints.iter().any(fetched)
            || hooks.watches.iter().any(|w| self.may_hit(w, map))
    }

    fn may_hit(&self, watch: &Watch, map: &MemMap) -> bool {
        let start = match watch.addr {
            WatchAddr::Virtual(a) => a.0,
            WatchAddr::Physical(a) => a.0,
        };
        let pages = (start & 0xfff).saturating_add(watch.len.max(1)).div_ceil(0x1000);
        let mut at = (0..pages.min(MAX_WATCHED)).map(|n| (start & !0xfff).wrapping_add(n << 12));
        pages > MAX_WATCHED
            || at.any(|page| match watch.addr {
                WatchAddr::Virtual(_) => has(&self.accessed, page),
                WatchAddr::Physical(_) => self.may_touch(page, watch.kind, map),
            })
    }

    fn may_touch(&self, gpa: u64, kind: WatchKind, map: &MemMap) -> bool {
        match map.lookup(Gpa(gpa)) {
            Target::Ram(off) if self.written.binary_search(&((off >> 12) as u32)).is_ok() => true,
            // Devices write RAM without the MMU; `written` knows.
            Target::Ram(_) if kind == WatchKind::Write => false,
            _ => has(&self.frames, gpa),
        }
    }
}

fn has(bits: &[u16], address: u64) -> bool {
    bits.binary_search(&PageFilter::bit(address)).is_ok()
}

/// A machine's whole state when it first arrived at an icount.
#[derive(Clone)]
pub struct Checkpoint {
    pub at: When,
    /// vCPUs, clock and devices.
    pub state: Arc<[u8]>,
    pub pages: PageMap,
    pub output: OutputState,
    /// What happened since the checkpoint before it, or longer.
    pub stretch: Stretch,
    /// Taken for the sake of the cursor, not of the history.
    pub dense: bool,
    /// Taken from the machine; a checkpoint that a file holds is proven when its hash is the recorded one.
    pub proven: bool,
}

impl Checkpoint {
    fn cost(&self) -> u64 {
        self.state.len() as u64 + self.stretch.cost() + NODE_SHARE * self.stretch.written.len() as u64 + 256
    }
}

/// How many dense checkpoints are kept.
const DENSE: usize = 48;

/// The checkpoints of one run, by icount.
pub struct History {
    checkpoints: BTreeMap<u64, Checkpoint>,
    pub store: PageStore,
    /// Bytes it may take.
    budget: u64,
    /// What the checkpoints cost beside their pages.
    fixed: u64,
}

impl History {
    /// An empty history that keeps itself below `budget` bytes.
    pub fn new(budget: u64) -> Self {
        Self { checkpoints: BTreeMap::new(), store: PageStore::new(budget / 4), budget, fixed: 0 }
    }

    /// A history with what this one has up to `icount`. This one keeps all it has; all pages now count for the new one.
    pub fn fork(&mut self, icount: Icount) -> Self {
        let shared: BTreeMap<u64, Checkpoint> =
            self.checkpoints.range(..=icount.0).map(|(n, c)| (*n, c.clone())).collect();
        let fixed = shared.values().map(Checkpoint::cost).sum();
        let store = std::mem::take(&mut self.store);
        Self { checkpoints: shared, store, budget: self.budget, fixed }
    }

    /// From now on all pages count for this history.
    pub fn adopt(&mut self, from: &mut Self) {
        self.store = std::mem::take(&mut from.store);
    }

    /// Drops checkpoints until there are about `n`, at even distances.
    pub fn keep(&mut self, n: usize) {
        let stride = self.len().div_ceil(n.max(1)).max(1);
        let drop: Vec<u64> =
            self.checkpoints.keys().enumerate().filter(|(i, _)| i % stride != 0).map(|(_, n)| *n).collect();
        drop.into_iter().for_each(|at| self.remove(at));
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> u64 {
        let (raw, packed) = self.store.bytes();
        raw + packed + self.fixed
    }

    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// All checkpoints, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Checkpoint> {
        self.checkpoints.values()
    }

    pub fn len(&self) -> usize {
        self.checkpoints.len()
    }

    pub fn is_empty(&self) -> bool {
        self.checkpoints.is_empty()
    }

    /// The icount history begins at.
    pub fn start(&self) -> Option<Icount> {
        self.checkpoints.keys().next().map(|n| Icount(*n))
    }

    /// The last checkpoint at or before `icount`.
    pub fn before(&self, icount: Icount) -> Option<&Checkpoint> {
        self.checkpoints.range(..=icount.0).next_back().map(|(_, c)| c)
    }

    /// The first checkpoint after `icount`.
    pub fn after(&self, icount: Icount) -> Option<&Checkpoint> {
        self.checkpoints.range(icount.0 + 1..).next().map(|(_, c)| c)
    }

    /// The checkpoint at `icount`.
    pub fn get(&self, icount: Icount) -> Option<&Checkpoint> {
        self.checkpoints.get(&icount.0)
    }

    /// Adds a checkpoint, whose stretch must reach back to the one before it; if there is one at its place already, the
    /// old one stays and learns the shorter stretch. Then drops what `cursor` can best do without until the budget is met.
    pub fn insert(&mut self, mut new: Checkpoint, cursor: Icount) {
        let at = new.at.icount.0;
        if let Some(old) = self.checkpoints.get_mut(&at) {
            self.fixed -= old.cost();
            if new.stretch.from > old.stretch.from {
                old.stretch = new.stretch;
            }
            old.dense &= new.dense;
            if new.proven && !old.proven {
                (old.state, old.pages, old.proven) = (new.state, new.pages, true);
            }
            self.fixed += old.cost();
            return;
        }
        let before = self.before(Icount(at)).map(|c| c.at.icount.0);
        if before.is_some_and(|b| new.stretch.from > b) {
            new.stretch.gap = true;
        }
        self.fixed += new.cost();
        let grows = !new.dense;
        self.checkpoints.insert(at, new);
        self.thin_dense(cursor);
        // What is kept besides while the machine is in the past goes again.
        if grows {
            self.thin(cursor);
        }
    }

    /// The checkpoint at `icount` is what it claims to be.
    pub fn prove(&mut self, icount: Icount) {
        if let Some(c) = self.checkpoints.get_mut(&icount.0) {
            c.proven = true;
        }
    }

    /// Drops the checkpoint at `icount`, which could not be used, if it is not proven; false if it is.
    pub fn distrust(&mut self, icount: Icount) -> bool {
        let unproven = self.get(icount).is_some_and(|c| !c.proven);
        if unproven {
            self.remove(icount.0);
        }
        unproven
    }

    /// Drops all checkpoints.
    pub fn clear(&mut self) {
        self.checkpoints.clear();
        self.fixed = 0;
    }

    /// Drops a checkpoint; the stretch of the next one grows.
    fn remove(&mut self, at: u64) {
        let Some(gone) = self.checkpoints.remove(&at) else { return };
        self.fixed -= gone.cost();
        if let Some((_, next)) = self.checkpoints.range_mut(at + 1..).next() {
            self.fixed -= next.cost();
            next.stretch.extend_back(&gone.stretch);
            self.fixed += next.cost();
        }
    }

    fn thin_dense(&mut self, cursor: Icount) {
        while self.iter().filter(|c| c.dense).count() > DENSE {
            let far = |c: &&Checkpoint| c.at.icount.0.abs_diff(cursor.0);
            let Some(at) = self.iter().filter(|c| c.dense).max_by_key(far).map(|c| c.at.icount.0) else {
                return;
            };
            self.remove(at);
        }
    }

    fn thin(&mut self, cursor: Icount) {
        if self.bytes() <= self.budget {
            return;
        }
        // Most of what is too much may only not be compressed yet.
        self.store.settle();
        while self.bytes() > self.budget {
            let Some(at) = self.dispensable(cursor) else { return };
            self.remove(at);
        }
    }

    /// The checkpoint whose loss costs least for what it frees: it leaves a small gap, as gaps far from the cursor are seen.
    /// Those that are dense go last, but for the first, which goes when it is one of two and frees pages; the very last never.
    fn dispensable(&self, cursor: Icount) -> Option<u64> {
        let all: Vec<&Checkpoint> = self.checkpoints.values().collect();
        let at = |c: &Checkpoint| c.at.icount.0;
        let cost = |w: &[&Checkpoint]| {
            let pages = common(&w[1].stretch.written, &w[2].stretch.written) as u64;
            let freed = (w[1].cost() + pages * PACKED) as f64;
            let distance = at(w[1]).abs_diff(cursor.0).max(1 << 20);
            let gap = (at(w[2]) - at(w[0])) as f64 / (distance as f64).sqrt();
            (w[1].dense, gap / freed, at(w[1]))
        };
        let order = |a: &(bool, f64, u64), b: &(bool, f64, u64)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1));
        match (all.windows(3).map(cost).min_by(order), &all[..]) {
            (Some((.., at)), _) => Some(at),
            (None, [first, second]) if common(&first.stretch.written, &second.stretch.written) > 0 => {
                Some(at(first))
            }
            _ => None,
        }
    }
}

/// How many numbers two ascending lists have in common.
fn common(a: &[u32], b: &[u32]) -> usize {
    let (mut i, mut n) = (0, 0);
    for x in a {
        while b.get(i).is_some_and(|y| y < x) {
            i += 1;
        }
        n += usize::from(b.get(i) == Some(x));
    }
    n
}
