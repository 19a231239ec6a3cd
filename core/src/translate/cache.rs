//! The code cache: translated blocks, found by key, linked to each other, killed when their bytes are written, and evicted
//! segment by segment when the buffer is full.

use super::adapt::Adapted;
use super::emit::{self, Became, Need, Target, Tools};
use super::exits::Slot;
use super::hot::Lines;
use super::jump_cache::{JumpCache, JumpEntry};
use super::mode::ModeKey;
use super::site::{REPLACED, Site};
use super::unit::{Analyser, Key, Unit};
use crate::addr::Gpa;
use crate::engine::JitOptions;
use crate::isa;
use crate::jit::buffer::CodeBuffer;
use crate::jit::frame::{FrameStack, Remembered};
use crate::jit::stubs::{self, Stubs};
use crate::mem::blocks::{BlockIndex, Extent, Marks};
use crate::mem::{Memory, Traced};
use crate::mmu::tlb::{ENTRIES, Entry, token};
use crate::vcpu::cpuid::CpuModel;
use std::collections::HashMap;
use std::ops::Range;

/// Bytes of host code kept, unless told otherwise.
pub const BUFFER: usize = 128 << 20;
/// The buffer is evicted in this many pieces.
const SEGMENTS: usize = 8;
/// Room for the stubs at the start of the buffer.
const STUBS: usize = 4096;
/// Link slots of a block at most.
const SLOTS: u32 = super::MAX_SIDE_EXITS as u32 + 2;

/// A translated block.
#[derive(Debug)]
pub struct Block {
    pub key: Key,
    /// Guest bytes.
    pub len: u32,
    /// Frame of the second page, if its one instruction straddles two.
    pub second: Option<Gpa>,
    /// Guest instructions.
    pub insns: u32,
    pub became: Became,
    /// Offset and length of the host code in the buffer.
    pub at: usize,
    pub code_len: usize,
    /// Offset of each instruction's host code in the block's, and of what is off the straight path.
    pub starts: Vec<usize>,
    pub cold: usize,
    /// Addresses of the entries.
    pub host_entry: u64,
    pub saved_entry: u64,
    need: Need,
    slots: Vec<Slot>,
    /// Block each slot is linked to.
    linked: [Option<u32>; SLOTS as usize],
    /// Slots of other blocks that lead here.
    incoming: Vec<u32>,
    /// Reached by generated code through their addresses.
    _sites: Vec<Box<Site>>,
    /// Tells blocks that had the same number one after the other apart.
    serial: u64,
    /// It is translated for speed; the lines of the frame it uses for that.
    pub(super) hot: bool,
    pub(super) lines: Range<u32>,
    /// How often the budget was used up in it.
    pub(super) samples: u32,
    marks: Marks,
}

impl Block {
    /// The guest's bytes.
    pub fn extent(&self) -> Extent {
        Extent { gpa: self.key.gpa, len: self.len, second: self.second }
    }
}

/// Counts of what the translator did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks translated, and guest instructions and host bytes in them.
    pub translated: u64,
    pub insns: u64,
    pub bytes: u64,
    /// How many instructions became what.
    pub identical: u64,
    pub emitted: u64,
    pub called: u64,
    /// Blocks killed because their bytes were written, because of breakpoints, and to make room.
    pub written: u64,
    pub breakpoints: u64,
    pub evicted: u64,
    /// Blocks translated again because a lookup in them kept missing.
    pub adapted: u64,
    /// Blocks translated again because they run often.
    pub hot: u64,
    /// Links made.
    pub links: u64,
    /// Times generated code was entered.
    pub entries: u64,
}

/// Translates and keeps blocks.
pub struct Translator {
    analyser: Analyser,
    tools: Tools,
    buffer: CodeBuffer,
    pub(crate) stubs: Stubs,
    pub(crate) stack: FrameStack,
    pub(super) blocks: Vec<Option<Block>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// Direct-mapped in front of `by_key`.
    recent: Box<[u32]>,
    index: BlockIndex,
    /// Numbers and serials of the blocks put into each segment.
    in_segment: Vec<Vec<(u32, u64)>>,
    segment: usize,
    /// Offset of the next block.
    next: usize,
    jump_caches: Vec<Option<JumpCache>>,
    /// Blocks in which lookups kept missing.
    pub(super) adapted: HashMap<Key, Adapted>,
    pub(super) lines: Lines,
    pub options: JitOptions,
    pub stats: Stats,
    serial: u64,
}

const RECENT_BITS: u32 = 14;
const NONE: u32 = u32::MAX;

impl Translator {
    /// An empty cache of `bytes` of host code for guests of CPU model `model`.
    ///
    /// # Errors
    /// If executable memory is not to be had.
    pub fn new(model: CpuModel, options: JitOptions, bytes: usize) -> Result<Self, String> {
        let mut buffer = CodeBuffer::new(bytes).map_err(|e| e.to_string())?;
        let (code, stubs) = stubs::assemble(buffer.address(0)).map_err(|e| e.to_string())?;
        if code.len() > STUBS || !buffer.write(0, &code) {
            return Err("the stubs do not fit".into());
        }
        Ok(Self {
            analyser: Analyser::new(model, options.host_undefined),
            tools: Tools::default(),
            buffer,
            stubs,
            stack: FrameStack::new(&stubs).map_err(|e| e.to_string())?,
            blocks: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            recent: vec![NONE; 1 << RECENT_BITS].into_boxed_slice(),
            index: BlockIndex::default(),
            in_segment: vec![Vec::new(); SEGMENTS],
            segment: 0,
            next: STUBS,
            adapted: HashMap::new(),
            lines: Lines::default(),
            jump_caches: (0..ModeKey::COUNT).map(|_| None).collect(),
            options,
            stats: Stats::default(),
            serial: 0,
        })
    }

    fn recent_slot(key: &Key) -> usize {
        let h = (key.gpa.0 ^ key.rip.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (h >> (64 - RECENT_BITS)) as usize
    }

    /// The block of `key`, if it is translated.
    #[inline]
    pub fn find(&mut self, key: &Key) -> Option<u32> {
        let slot = Self::recent_slot(key);
        let id = self.recent[slot];
        if self.blocks.get(id as usize).and_then(Option::as_ref).is_some_and(|b| b.key == *key) {
            return Some(id);
        }
        let id = *self.by_key.get(key)?;
        self.recent[slot] = id;
        Some(id)
    }

    /// Block number `id`.
    pub fn block(&self, id: u32) -> Option<&Block> {
        self.blocks.get(id as usize)?.as_ref()
    }

    /// The live blocks with their numbers.
    pub fn blocks(&self) -> impl Iterator<Item = (u32, &Block)> {
        (0..).zip(&self.blocks).filter_map(|(n, b)| Some((n, b.as_ref()?)))
    }

    /// The host code of block `id`, and its address.
    pub fn host_code(&self, id: u32) -> Option<(u64, Vec<u8>)> {
        let b = self.block(id)?;
        Some((self.buffer.address(b.at), self.buffer.read(b.at, b.code_len)))
    }

    /// Address of the jump cache of a mode.
    pub(crate) fn jump_cache(&mut self, mode: ModeKey) -> u64 {
        let n = usize::from(mode.0);
        let address = self.jump_caches[n].get_or_insert_with(JumpCache::default).address();
        self.stack.get().jump_caches[n] = address;
        address
    }

    /// Makes indirect jumps find block `id`.
    pub(crate) fn note_target(&mut self, id: u32) {
        let Some(b) = self.blocks.get(id as usize).and_then(Option::as_ref) else { return };
        let e = JumpEntry {
            rip: b.key.rip,
            token: token(b.key.rip, b.key.gpa.0),
            slot: fetch_slot(b.key.rip),
            code: b.saved_entry,
        };
        self.jump_caches[usize::from(b.key.mode.0)].get_or_insert_with(JumpCache::default).insert(e);
    }

    /// Translates the block at `key`; if `second` is given, the one instruction there that straddles into that frame.
    /// `stop` holds for instructions before which to end. `None`: the interpreter has to execute what is there.
    pub(crate) fn translate(
        &mut self,
        key: Key,
        mem: &mut Memory,
        second: Option<Gpa>,
        stop: &dyn Fn(u64) -> bool,
    ) -> Option<u32> {
        let unit = match second {
            Some(s) => self.straddling(key, mem, s.page())?,
            None => {
                let sides = if self.is_hot(&key) { super::MAX_SIDE_EXITS } else { super::SIDE_EXITS };
                self.analyser.unit(key, mem.code_bytes(key.gpa)?, sides, stop)
            }
        };
        if unit.items.is_empty() { None } else { self.add(unit, mem) }
    }

    /// Does the instruction at `key` leave its page?
    pub(crate) fn straddles(&self, key: &Key, mem: &Memory) -> bool {
        let (bits, model) = (key.mode.bits(), self.analyser.model);
        mem.code_bytes(key.gpa).is_some_and(|b| isa::leaves_page(b, bits, key.rip, model))
    }

    /// The one instruction at `key` that straddles into the frame at `second`.
    fn straddling(&mut self, key: Key, mem: &Memory, second: Gpa) -> Option<Unit> {
        if !key.mode.is64() && key.rip > u64::from(u32::MAX) - 15 {
            return None;
        }
        let (bytes, first) = mem.straddling_bytes(key.gpa, second)?;
        let mut unit = self.analyser.unit(key, &bytes, 0, &|_| true);
        if unit.items.first()?.insn.code == 0 || unit.len as usize <= first {
            return None;
        }
        unit.second = Some(second);
        Some(unit)
    }

    fn add(&mut self, mut unit: Unit, mem: &mut Memory) -> Option<u32> {
        let id = self.free.pop().unwrap_or_else(|| {
            self.blocks.push(None);
            (self.blocks.len() - 1) as u32
        });
        let mut options = self.options;
        if let Some(a) = self.adapted.get(&unit.key) {
            options.windows &= !a.no_windows;
            let called = (0..).zip(&mut unit.items).filter(|(n, it)| a.called >> n & 1 != 0 && !it.end);
            called.for_each(|(_, it)| it.make_call());
        }
        let hot = self.is_hot(&unit.key).then(|| self.plan(&unit, mem));
        let given = hot.as_ref().map_or(0..0, |p| p.lines.clone());
        let target = Target { options, first_slot: id * SLOTS, hot };
        let code = emit::translate(&mut self.tools, &mut unit, &target);
        let used = code.as_ref().map_or(given.start, |c| c.lines.end.max(given.start));
        self.lines.give_back(used..given.end);
        if code.as_ref().is_ok_and(|c| !self.fits(c.bytes.len())) {
            self.next_segment(mem);
        }
        let Some(code) = code.ok().filter(|c| self.fits(c.bytes.len()) && c.slots.len() <= SLOTS as usize)
        else {
            self.lines.give_back(given.start..used);
            self.free.push(id);
            return None;
        };
        self.install(id, &unit, code, mem);
        Some(id)
    }

    fn install(&mut self, id: u32, unit: &Unit, mut code: emit::Code, mem: &mut Memory) {
        let at = self.next;
        let address = self.buffer.address(at);
        code.sites.iter_mut().for_each(|s| s.resume += address);
        self.buffer.write(at, &code.bytes);
        self.next = (at + code.bytes.len()).next_multiple_of(16);
        self.serial += 1;
        let s = &mut self.stats;
        s.translated += 1;
        s.insns += unit.items.len() as u64;
        s.bytes += code.bytes.len() as u64;
        s.identical += u64::from(code.became.identical);
        s.emitted += u64::from(code.became.emitted);
        s.called += u64::from(code.became.called);
        let key = unit.key;
        let extent = Extent { gpa: key.gpa, len: unit.len, second: unit.second };
        let marks = self.index.insert(id, &extent, mem);
        let hot = self.is_hot(&key);
        let mine = code.lines.start as usize..code.lines.end as usize;
        if let Some(l) = self.stack.get().remembered.get_mut(mine) {
            l.fill(Remembered { left: REPLACED, ..Remembered::default() });
        }
        self.in_segment[self.segment].push((id, self.serial));
        self.by_key.insert(key, id);
        self.recent[Self::recent_slot(&key)] = id;
        self.blocks[id as usize] = Some(Block {
            key,
            len: unit.len,
            second: unit.second,
            insns: unit.items.len() as u32,
            became: code.became,
            at,
            code_len: code.bytes.len(),
            starts: code.starts,
            cold: code.cold,
            host_entry: self.buffer.address(at + code.host_entry),
            saved_entry: self.buffer.address(at + code.saved_entry),
            need: code.need,
            slots: code.slots,
            linked: [None; SLOTS as usize],
            incoming: Vec::new(),
            _sites: code.sites,
            serial: self.serial,
            hot,
            lines: code.lines,
            samples: 0,
            marks,
        });
    }

    fn fits(&self, len: usize) -> bool {
        self.next + len <= self.segment_end()
    }

    fn segment_end(&self) -> usize {
        self.buffer.len() / SEGMENTS * (self.segment + 1)
    }

    /// Goes on to the next segment and evicts what is there.
    fn next_segment(&mut self, mem: &mut Memory) {
        self.segment = (self.segment + 1) % SEGMENTS;
        self.next = (self.buffer.len() / SEGMENTS * self.segment).max(STUBS);
        for (id, serial) in std::mem::take(&mut self.in_segment[self.segment]) {
            // Some have died since, and their numbers may have been given again.
            if self.block(id).is_some_and(|b| b.serial == serial) {
                self.stats.evicted += 1;
                self.kill(id, mem);
            }
        }
    }

    /// RIP link slot `n` leads to, and a ticket for [`Translator::link`].
    pub(crate) fn slot(&self, n: u32) -> Option<(u64, Ticket)> {
        let b = self.block(n / SLOTS)?;
        Some((b.slots.get((n % SLOTS) as usize)?.rip, Ticket { slot: n, serial: b.serial }))
    }

    /// Makes the slot of `ticket` jump to block `to` directly, if its block still lives.
    pub(crate) fn link(&mut self, ticket: Ticket, to: u32) {
        let from = ticket.slot / SLOTS;
        let n = (ticket.slot % SLOTS) as usize;
        let Some(target) = self.block(to) else { return };
        let (need, key) = (target.need, target.key);
        let (host_entry, saved_entry) = (target.host_entry, target.saved_entry);
        let Some(source) = self.blocks.get_mut(from as usize).and_then(Option::as_mut) else { return };
        let Some(slot) = source.slots.get(n).copied() else { return };
        let crosses = slot.token.is_none() && slot.rip >> 12 != key.rip >> 12;
        if source.serial != ticket.serial
            || source.linked[n].is_some()
            || source.key.mode != key.mode
            || crosses
        {
            return;
        }
        source.linked[n] = Some(to);
        let entry = match need {
            Need::Host if slot.host => host_entry,
            _ if slot.saved => saved_entry,
            _ => host_entry,
        };
        let at = source.at;
        self.patch_jump(at + slot.jump, entry);
        if let Some(t) = slot.token {
            self.buffer.write(at + t, &token(key.rip, key.gpa.0).to_le_bytes());
        }
        if let Some(b) = self.blocks.get_mut(to as usize).and_then(Option::as_mut) {
            b.incoming.push(ticket.slot);
        }
        self.stats.links += 1;
    }

    /// Lets the jump whose displacement is at offset `at` go to address `to`.
    fn patch_jump(&mut self, at: usize, to: u64) {
        let from = self.buffer.address(at + 4);
        let d = to.wrapping_sub(from) as i32;
        self.buffer.write(at, &d.to_le_bytes());
    }

    fn unlink(&mut self, slot: u32) {
        let n = (slot % SLOTS) as usize;
        let Some(b) = self.blocks.get_mut((slot / SLOTS) as usize).and_then(Option::as_mut) else { return };
        b.linked[n] = None;
        let (at, s) = (b.at, b.slots[n]);
        let cold = self.buffer.address(at + s.cold);
        self.patch_jump(at + s.jump, cold);
    }

    pub(super) fn kill(&mut self, id: u32, mem: &mut Memory) {
        let Some(b) = self.blocks.get_mut(id as usize).and_then(Option::take) else { return };
        self.by_key.remove(&b.key);
        for slot in &b.incoming {
            if slot / SLOTS != id {
                self.unlink(*slot);
            }
        }
        for (n, to) in (0..).zip(b.linked) {
            if let Some(t) = to.and_then(|t| self.blocks.get_mut(t as usize)).and_then(Option::as_mut) {
                t.incoming.retain(|s| *s != id * SLOTS + n);
            }
        }
        if let Some(c) = &mut self.jump_caches[usize::from(b.key.mode.0)] {
            c.remove(b.key.rip, b.saved_entry);
        }
        self.lines.give_back(b.lines.clone());
        self.index.remove(id, &b.extent(), b.marks, mem);
        self.free.push(id);
    }

    /// Kills the blocks overlapped by `writes`.
    pub(crate) fn invalidate(&mut self, writes: &[Traced], mem: &mut Memory) {
        for w in writes {
            let hit = self.index.touched(w, |id| self.block(id).map(Block::extent));
            for id in hit {
                self.stats.written += 1;
                self.kill(id, mem);
            }
        }
    }

    /// Kills the blocks with an instruction at one of `addresses`.
    pub(crate) fn breakpoints_changed(&mut self, addresses: &[u64], mem: &mut Memory) {
        let hit: Vec<u32> = self
            .blocks()
            .filter(|(_, b)| addresses.iter().any(|a| a.wrapping_sub(b.key.rip) < u64::from(b.len)))
            .map(|(id, _)| id)
            .collect();
        for id in hit {
            self.stats.breakpoints += 1;
            self.kill(id, mem);
        }
    }

    /// Drops every block.
    pub(crate) fn flush(&mut self, mem: &mut Memory) {
        for b in self.blocks.drain(..).flatten() {
            mem.unmark(b.marks);
        }
        self.free.clear();
        self.by_key.clear();
        self.recent.fill(NONE);
        self.index.clear();
        self.lines = Lines::default();
        self.in_segment.iter_mut().for_each(Vec::clear);
        self.jump_caches.fill_with(|| None);
        self.stack.get().jump_caches = [0; ModeKey::COUNT];
        (self.segment, self.next) = (0, STUBS);
    }
}

/// Names a link slot of a block that may have died.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    slot: u32,
    serial: u64,
}

/// Offset in a fetch TLB array of the entry for the page of `rip`.
fn fetch_slot(rip: u64) -> u64 {
    (rip >> 12 & (ENTRIES as u64 - 1)) * size_of::<Entry>() as u64
}
