//! Shadow page tables: what the MMU remembers of the guest's tables, and the write traces that keep it true.
//!
//! A *node* shadows one guest table page, read as a table of one level and format. Nodes are keyed on the slab page
//! they shadow, so address spaces that share tables (kernel halves) share nodes. A slot caches one entry of a
//! completed walk; not-present entries are never cached. Every slab page with a node has `page::TABLE` set, so each
//! write to it is reported; a written slot and every TLB entry derived from it, through any path of any address
//! space, go before the next access. A node nothing points to, or whose page is written like data, is dropped.

use super::asid::Spaces;
use super::tlb;
use super::walk::{Format, Rights, Walk, pte};
use crate::addr::Asid;
use crate::mem::{Memory, Target, Traced, page};
use std::collections::BTreeMap;

/// Most nodes kept.
pub const MAX_NODES: usize = 4096;
/// A node whose page is written this often without a use in between holds no table any more.
const DATA_LIKE_WRITES: u32 = 32;
/// Most places a node may appear at before an invalidation flushes the whole TLB instead of each of them.
const MAX_PATHS: usize = 256;

/// Index of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct NodeId(u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    /// Slab page of the shadowed table.
    page: u32,
    /// 1 = page table.
    level: u8,
    format: Format,
    nxe: bool,
}

/// One cached entry; `entry` 0: none.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    entry: u64,
    /// The node of the table the entry points to; none for a leaf.
    child: Option<NodeId>,
}

struct Node {
    key: Key,
    slots: Box<[Slot]>,
    parents: Vec<(NodeId, u16)>,
    /// Bit n: a root of ASID n.
    asids: u64,
    /// When a lookup last used it.
    used: u64,
    /// Traced writes since then.
    writes: u32,
    live: bool,
}

/// A translation found in the shadow tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Before the A20 mask.
    pub gpa: u64,
    pub rights: Rights,
    pub dirty: bool,
}

/// One level of a shadow walk, for views.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShadowStep {
    pub level: u8,
    /// Index in the table.
    pub index: usize,
    /// Slab page of the guest table this node shadows.
    pub page: usize,
    /// The cached entry; `None` if a walk would be needed from here on.
    pub entry: Option<u64>,
    /// Address spaces this node is the root of, as a bit mask.
    pub root_of: u64,
    /// Tables that point here.
    pub parents: usize,
}

/// Counts of what the shadow tables did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowCounters {
    /// Writes to traced table pages.
    pub traced_writes: u64,
    /// Slots dropped because their entry was written.
    pub invalidated: u64,
    /// Nodes dropped because their page was written like data.
    pub data_like: u64,
    /// Nodes dropped to stay within [`MAX_NODES`].
    pub evicted: u64,
}

/// The shadow page tables of a VM.
#[derive(Default)]
pub struct Shadow {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    /// Nodes of each shadowed slab page.
    frames: BTreeMap<u32, Vec<NodeId>>,
    clock: u64,
    pub counters: ShadowCounters,
}

impl Shadow {
    /// Nodes in use.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds the translation of `lin` without looking at guest memory.
    pub fn lookup(&mut self, spaces: &Spaces, asid: Asid, lin: u64) -> Option<Leaf> {
        let space = spaces.get(asid);
        let format = space.paging.format;
        let mut id = space.roots[Spaces::root_index(format, lin)]?;
        self.clock += 1;
        let mut rights = Rights::ALL;
        loop {
            let node = &mut self.nodes[id.0 as usize];
            let level = node.key.level;
            let s = node.slots[format.index(lin, level)];
            if s.entry == 0 {
                return None;
            }
            node.used = self.clock;
            node.writes = 0;
            rights = rights.and(s.entry);
            match s.child {
                Some(c) => id = c,
                None => {
                    let offset = lin & ((1 << format.shift(level)) - 1);
                    let gpa = format.page_base(level, s.entry) | offset;
                    return Some(Leaf { gpa, rights, dirty: s.entry & pte::D != 0 });
                }
            }
        }
    }

    /// The path a lookup of `lin` takes, for views; ends at the first slot that is not cached.
    pub fn path(&self, spaces: &Spaces, asid: Asid, lin: u64) -> Vec<ShadowStep> {
        let space = spaces.get(asid);
        let format = space.paging.format;
        let mut out = Vec::new();
        let mut next = space.roots[Spaces::root_index(format, lin)];
        while let Some(id) = next {
            let node = &self.nodes[id.0 as usize];
            let index = format.index(lin, node.key.level);
            let s = node.slots[index];
            out.push(ShadowStep {
                level: node.key.level,
                index,
                page: node.key.page as usize,
                entry: (s.entry != 0).then_some(s.entry),
                root_of: node.asids,
                parents: node.parents.len(),
            });
            next = s.child;
        }
        out
    }

    /// Remembers a completed walk of `lin` whose accessed bits are set.
    pub fn install(&mut self, spaces: &mut Spaces, mem: &mut Memory, asid: Asid, lin: u64, walk: &Walk) {
        self.make_room(spaces, mem);
        let paging = spaces.get(asid).paging;
        let format = paging.format;
        let steps = walk.steps();
        let Some(first) = steps.first() else { return };
        let key = |level: u8, target: Target| {
            Some(Key { page: (slab(target)? >> 12) as u32, level, format, nxe: paging.nxe })
        };
        let Some(root) = key(first.level, first.target) else { return };
        let mut id = self.node(mem, root);
        let slot = Spaces::root_index(format, lin);
        if spaces.get(asid).roots[slot] != Some(id) {
            spaces.set_root(asid, slot, Some(id));
            self.nodes[id.0 as usize].asids |= 1 << asid.0;
        }
        self.clock += 1;
        for (i, s) in steps.iter().enumerate() {
            let child = steps.get(i + 1).and_then(|n| key(n.level, n.target)).map(|k| self.node(mem, k));
            let set =
                self.set_slot(spaces, mem, id, format.index(lin, s.level), Slot { entry: s.entry, child });
            match child {
                Some(c) if set => id = c,
                _ => return,
            }
        }
    }

    /// Sets a slot. False, and the slot is emptied, if it held something else: memory was then changed behind our
    /// back, and what hung there must not be linked again.
    fn set_slot(
        &mut self,
        spaces: &mut Spaces,
        mem: &mut Memory,
        id: NodeId,
        index: usize,
        new: Slot,
    ) -> bool {
        let old = self.nodes[id.0 as usize].slots[index];
        let same = old.child == new.child && (old.entry ^ new.entry) & !(pte::A | pte::D) == 0;
        if old.entry != 0 && !same {
            self.invalidate(spaces, mem, id, index);
            return false;
        }
        let (used, node) = (self.clock, &mut self.nodes[id.0 as usize]);
        node.slots[index] = new;
        node.used = used;
        node.writes = 0;
        if let (Some(c), 0) = (new.child, old.entry) {
            self.nodes[c.0 as usize].parents.push((id, index as u16));
        }
        true
    }

    /// Applies the traced writes reported since the last call. Must run before any use of the shadow tables.
    pub fn drain(&mut self, spaces: &mut Spaces, mem: &mut Memory) {
        let mut writes = std::mem::take(&mut mem.table_writes);
        for w in writes.drain(..) {
            self.table_written(spaces, mem, w);
        }
        // Keeps the queue's allocation.
        mem.table_writes = writes;
    }

    fn table_written(&mut self, spaces: &mut Spaces, mem: &mut Memory, w: Traced) {
        let Some(off) = slab(mem.map.lookup(w.gpa)) else { return };
        let frame = (off >> 12) as u32;
        self.counters.traced_writes += 1;
        let mut n = 0;
        while let Some(id) = self.node_of(frame, n) {
            let node = &mut self.nodes[id.0 as usize];
            node.writes += 1;
            // No table is written with stores wider than an entry.
            if node.writes > DATA_LIKE_WRITES || w.len > 8 {
                self.counters.data_like += 1;
                self.drop_node(spaces, mem, id);
            } else {
                self.entries_written(spaces, mem, id, off & 0xfff, w.len);
            }
            // Other nodes of the page may have gone with it: then begin again, what was looked at is harmless.
            n = if self.node_of(frame, n) == Some(id) { n + 1 } else { 0 };
        }
    }

    /// The `n`th node that shadows a slab page.
    fn node_of(&self, frame: u32, n: usize) -> Option<NodeId> {
        self.frames.get(&frame)?.get(n).copied()
    }

    /// Invalidates the slots of `id` whose entries overlap `len` bytes from `offset` of the page.
    fn entries_written(
        &mut self,
        spaces: &mut Spaces,
        mem: &mut Memory,
        id: NodeId,
        offset: usize,
        len: u32,
    ) {
        let shift = self.nodes[id.0 as usize].key.format.entry_shift();
        for index in offset >> shift..=(offset + len.max(1) as usize - 1) >> shift {
            if self.nodes[id.0 as usize].slots.get(index).is_some_and(|s| s.entry != 0) {
                self.counters.invalidated += 1;
                self.invalidate(spaces, mem, id, index);
            }
        }
    }

    /// Drops one slot and the TLB entries derived from it.
    fn invalidate(&mut self, spaces: &mut Spaces, mem: &mut Memory, id: NodeId, index: usize) {
        let key = self.nodes[id.0 as usize].key;
        let shift = key.format.shift(key.level);
        self.revoke(spaces, mem, id, (index as u64) << shift, 1 << (shift - 12));
        let slot = std::mem::take(&mut self.nodes[id.0 as usize].slots[index]);
        if let Some(c) = slot.child {
            self.unlink(spaces, mem, c, id, index);
        }
    }

    /// Drops the TLB entries of `pages` pages from `start` inside what `id` maps, wherever it appears.
    fn revoke(&self, spaces: &Spaces, mem: &mut Memory, id: NodeId, start: u64, pages: u64) {
        let mut places = Vec::new();
        let mut budget = 4 * MAX_PATHS;
        if !self.places(spaces, id, start, &mut places, &mut budget) {
            mem.tlb.flush();
            return;
        }
        for (asid, lin) in places {
            for a in tlb::arrays(asid) {
                mem.tlb.clear_range(a, lin, pages);
            }
        }
    }

    /// Collects the linear addresses at which offset `start` of node `id` appears; false if there are too many.
    fn places(
        &self,
        spaces: &Spaces,
        id: NodeId,
        start: u64,
        out: &mut Vec<(Asid, u64)>,
        budget: &mut usize,
    ) -> bool {
        if *budget == 0 || out.len() > MAX_PATHS {
            return false;
        }
        *budget -= 1;
        let node = &self.nodes[id.0 as usize];
        let mut mask = node.asids;
        while mask != 0 {
            let asid = Asid(mask.trailing_zeros() as u16);
            mask &= mask - 1;
            out.extend(spaces.bases(asid, id).map(|b| (asid, sign_extend(node.key.format, b | start))));
        }
        node.parents.iter().all(|&(p, index)| {
            let level = self.nodes[p.0 as usize].key.level;
            let at = start | (u64::from(index) << node.key.format.shift(level));
            self.places(spaces, p, at, out, budget)
        })
    }

    /// Removes the link from slot `index` of `parent` to `child`, and `child` if nothing points to it any more.
    fn unlink(&mut self, spaces: &mut Spaces, mem: &mut Memory, child: NodeId, parent: NodeId, index: usize) {
        let c = &mut self.nodes[child.0 as usize];
        c.parents.retain(|p| *p != (parent, index as u16));
        if c.live && c.parents.is_empty() && c.asids == 0 {
            self.drop_node(spaces, mem, child);
        }
    }

    /// Drops a node, what is derived from it, and its trace.
    fn drop_node(&mut self, spaces: &mut Spaces, mem: &mut Memory, id: NodeId) {
        let key = self.nodes[id.0 as usize].key;
        let pages = (key.format.entries() as u64) << (key.format.shift(key.level) - 12);
        self.revoke(spaces, mem, id, 0, pages);
        let node = &mut self.nodes[id.0 as usize];
        node.live = false;
        let mut mask = std::mem::take(&mut node.asids);
        let mut slots = std::mem::take(&mut node.slots);
        for (p, index) in std::mem::take(&mut node.parents) {
            if let Some(s) = self.nodes[p.0 as usize].slots.get_mut(index as usize) {
                *s = Slot::default();
            }
        }
        while mask != 0 {
            spaces.unroot(Asid(mask.trailing_zeros() as u16), id);
            mask &= mask - 1;
        }
        for (index, s) in slots.iter_mut().enumerate() {
            if let Some(c) = std::mem::take(s).child {
                self.unlink(spaces, mem, c, id, index);
            }
        }
        // Kept, empty, for the next node.
        self.nodes[id.0 as usize].slots = slots;
        if let Some(f) = self.frames.get_mut(&key.page) {
            f.retain(|n| *n != id);
            if f.is_empty() {
                self.frames.remove(&key.page);
                mem.clear_flags(key.page as usize, page::TABLE);
            }
        }
        self.free.push(id);
    }

    /// The node of `key`, made and traced if it does not exist.
    fn node(&mut self, mem: &mut Memory, key: Key) -> NodeId {
        let frame = self.frames.entry(key.page).or_default();
        if let Some(id) = frame.iter().find(|n| self.nodes[n.0 as usize].key == key) {
            return *id;
        }
        if frame.is_empty() {
            mem.set_flags(key.page as usize, page::TABLE);
        }
        let node = |slots| Node {
            key,
            slots,
            parents: Vec::new(),
            asids: 0,
            used: self.clock,
            writes: 0,
            live: true,
        };
        let empty = || vec![Slot::default(); key.format.entries()].into_boxed_slice();
        let id = match self.free.pop() {
            Some(id) => {
                let old = &mut self.nodes[id.0 as usize];
                let slots = std::mem::take(&mut old.slots);
                *old = node(if slots.len() == key.format.entries() { slots } else { empty() });
                id
            }
            None => {
                self.nodes.push(node(empty()));
                NodeId(self.nodes.len() as u32 - 1)
            }
        };
        frame.push(id);
        id
    }

    /// Evicts the least recently used eighth of the nodes if one more path might not fit.
    fn make_room(&mut self, spaces: &mut Spaces, mem: &mut Memory) {
        if self.len() + 4 <= MAX_NODES {
            return;
        }
        let mut by_age: Vec<(u64, NodeId)> = (0..self.nodes.len() as u32)
            .map(NodeId)
            .filter(|n| self.nodes[n.0 as usize].live)
            .map(|n| (self.nodes[n.0 as usize].used, n))
            .collect();
        by_age.sort_unstable();
        for (_, id) in by_age.into_iter().take(MAX_NODES / 8) {
            // It may have gone with a parent.
            if self.nodes[id.0 as usize].live {
                self.counters.evicted += 1;
                self.drop_node(spaces, mem, id);
            }
        }
    }

    /// Forgets that `asid` uses these tables, and the tables nobody else uses. Its TLB arrays are emptied too.
    pub fn release(&mut self, spaces: &mut Spaces, mem: &mut Memory, asid: Asid) {
        for a in tlb::arrays(asid) {
            mem.tlb.clear_array(a);
        }
        for root in spaces.get(asid).roots.into_iter().flatten() {
            spaces.unroot(asid, root);
            let node = &mut self.nodes[root.0 as usize];
            node.asids &= !(1 << asid.0);
            if node.live && node.asids == 0 && node.parents.is_empty() {
                self.drop_node(spaces, mem, root);
            }
        }
    }

    /// Drops all nodes and traces; the caller flushes the TLB.
    pub fn drop_all(&mut self, spaces: &mut Spaces, mem: &mut Memory) {
        for page_number in std::mem::take(&mut self.frames).into_keys() {
            mem.clear_flags(page_number as usize, page::TABLE);
        }
        self.nodes.clear();
        self.free.clear();
        mem.table_writes.clear();
        spaces.forget_roots();
    }

    /// Slab pages traced now.
    pub fn traced_pages(&self) -> usize {
        self.frames.len()
    }
}

fn slab(target: Target) -> Option<usize> {
    super::access::slab(target)
}

/// Linear addresses of 4-level paging are sign-extended from bit 47.
const fn sign_extend(format: Format, lin: u64) -> u64 {
    match format {
        Format::Long => ((lin << 16) as i64 >> 16) as u64,
        _ => lin,
    }
}
