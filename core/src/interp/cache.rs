//! The decoded-block cache. Blocks are keyed on (guest-physical address, RIP, code size) and die when any of their bytes
//! is written. A block stays in its page, but for a block of one instruction that straddles two.

use crate::addr::Gpa;
use crate::isa::{self, insn::Insn};
use crate::mem::blocks::{BlockIndex, Extent, Marks};
use crate::mem::{Memory, Traced};
use crate::vcpu::cpuid::CpuModel;

/// What makes a block unique.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    pub gpa: Gpa,
    pub rip: u64,
    pub bits: u8,
}

struct Block {
    key: Key,
    /// Bytes the block was decoded from.
    len: u32,
    /// Frame base of the second page of an instruction that straddles two.
    second: Option<Gpa>,
    insns: Box<[Insn]>,
    live: bool,
}

/// A block lies in one cache line, which every dispatch touches.
const _: () = assert!(size_of::<Block>() <= 64);

impl Block {
    fn extent(&self) -> Extent {
        Extent { gpa: self.key.gpa, len: self.len, second: self.second }
    }
}

/// Counters of a block cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks decoded.
    pub built: u64,
    /// Blocks killed because their bytes were written.
    pub invalidated: u64,
    /// Times the whole cache was dropped because it was full.
    pub flushes: u64,
}

/// Decoded blocks, bounded.
pub struct BlockCache {
    model: CpuModel,
    blocks: Vec<Block>,
    /// By block.
    marks: Vec<Marks>,
    free: Vec<u32>,
    /// Direct-mapped: hash of the key to block number.
    table: Box<[u32]>,
    index: BlockIndex,
    insns: usize,
    pub stats: CacheStats,
}

const TABLE_BITS: u32 = 16;
const EMPTY: u32 = u32::MAX;
/// Instructions in one block at most.
const MAX_BLOCK: usize = 64;
/// Decoded instructions kept at most (48 bytes each).
const MAX_INSNS: usize = 4 << 20;

impl BlockCache {
    /// An empty cache of blocks decoded for `model`.
    pub fn new(model: CpuModel) -> Self {
        Self {
            model,
            blocks: Vec::new(),
            marks: Vec::new(),
            free: Vec::new(),
            table: vec![EMPTY; 1 << TABLE_BITS].into_boxed_slice(),
            index: BlockIndex::default(),
            insns: 0,
            stats: CacheStats::default(),
        }
    }

    #[inline(always)]
    fn slot(key: Key) -> usize {
        let h = (key.gpa.0 ^ key.rip.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (h >> (64 - TABLE_BITS)) as usize
    }

    #[inline(always)]
    pub fn find(&self, key: Key) -> Option<u32> {
        let b = self.table[Self::slot(key)];
        match self.blocks.get(b as usize) {
            Some(block) if block.key == key && block.live => Some(b),
            _ => None,
        }
    }

    #[inline(always)]
    pub fn insns(&self, block: u32) -> &[Insn] {
        &self.blocks[block as usize].insns
    }

    /// RIP of the block's last byte.
    #[inline(always)]
    pub fn last_rip(&self, block: u32) -> u64 {
        let b = &self.blocks[block as usize];
        b.key.rip.wrapping_add(u64::from(b.len) - 1)
    }

    /// Frame the block's second page must be mapped to, if it has one.
    #[inline(always)]
    pub fn second(&self, block: u32) -> Option<Gpa> {
        self.blocks[block as usize].second
    }

    /// Decodes the block at `key`; `None` if its first instruction leaves the page or is not in RAM or ROM.
    pub fn build(&mut self, key: Key, mem: &mut Memory) -> Option<u32> {
        let (insns, len) = decode_block(mem.code_bytes(key.gpa)?, key, self.model);
        if insns.is_empty() { None } else { Some(self.add(key, insns, len, None, mem)) }
    }

    /// Does the instruction at `key`, in RAM or ROM, leave its page?
    pub fn straddles(&self, key: Key, mem: &Memory) -> bool {
        mem.code_bytes(key.gpa).is_some_and(|b| isa::leaves_page(b, key.bits, key.rip, self.model))
    }

    /// Decodes the one instruction at `key` that straddles into the frame at `second`.
    pub fn build_straddling(&mut self, key: Key, second: Gpa, mem: &mut Memory) -> Option<u32> {
        let (bytes, first) = mem.straddling_bytes(key.gpa, second)?;
        let d = isa::decode(&bytes, key.bits, key.rip, self.model)?;
        let len = usize::from(d.insn.len);
        if d.insn.code == 0 || len <= first {
            return None;
        }
        Some(self.add(key, vec![d.insn], len as u32, Some(second), mem))
    }

    fn add(&mut self, key: Key, insns: Vec<Insn>, len: u32, second: Option<Gpa>, mem: &mut Memory) -> u32 {
        if self.insns + insns.len() > MAX_INSNS {
            self.flush(mem);
            self.stats.flushes += 1;
        }
        self.insns += insns.len();
        self.stats.built += 1;
        let insns = insns.into_boxed_slice();
        let block = Block { key, len, second, insns, live: true };
        let extent = block.extent();
        let id = self.insert(block);
        self.marks[id as usize] = self.index.insert(id, &extent, mem);
        self.table[Self::slot(key)] = id;
        id
    }

    fn insert(&mut self, block: Block) -> u32 {
        if let Some(id) = self.free.pop() {
            self.blocks[id as usize] = block;
            return id;
        }
        self.blocks.push(block);
        self.marks.push(Marks::default());
        (self.blocks.len() - 1) as u32
    }

    /// Kills the blocks overlapped by `writes`.
    pub fn invalidate(&mut self, writes: &[Traced], mem: &mut Memory) {
        for w in writes {
            let hit = self.index.touched(w, |id| self.blocks.get(id as usize).map(Block::extent));
            for id in hit {
                self.kill(id, mem);
            }
        }
    }

    fn kill(&mut self, id: u32, mem: &mut Memory) {
        let b = &mut self.blocks[id as usize];
        b.live = false;
        self.insns -= b.insns.len();
        b.insns = Box::default();
        self.stats.invalidated += 1;
        let (extent, marks) = (b.extent(), std::mem::take(&mut self.marks[id as usize]));
        self.index.remove(id, &extent, marks, mem);
        self.free.push(id);
    }

    /// Drops everything.
    pub fn flush(&mut self, mem: &mut Memory) {
        self.blocks.clear();
        // Dead blocks have none.
        self.marks.drain(..).for_each(|m| mem.unmark(m));
        self.free.clear();
        self.index.clear();
        self.table.fill(EMPTY);
        self.insns = 0;
    }
}

/// Decodes up to the first block-ending instruction, the end of `bytes`, or [`MAX_BLOCK`] instructions.
fn decode_block(bytes: &[u8], key: Key, model: CpuModel) -> (Vec<Insn>, u32) {
    let mut insns = Vec::with_capacity(8);
    let mut at = 0usize;
    while insns.len() < MAX_BLOCK {
        // Outside 64-bit mode the instruction pointer wraps at 4 GiB: leave that to single steps.
        let rip = key.rip.wrapping_add(at as u64);
        if key.bits != 64 && rip > u64::from(u32::MAX) - 15 {
            break;
        }
        let Some(d) = isa::decode(&bytes[at..], key.bits, rip, model) else { break };
        // An undefined instruction depends on every byte the decoder may have looked at.
        let undefined = d.insn.code == 0;
        at += if undefined { (bytes.len() - at).min(15) } else { usize::from(d.insn.len) };
        insns.push(d.insn);
        if d.attrs & isa::END != 0 {
            break;
        }
    }
    (insns, at as u32)
}
