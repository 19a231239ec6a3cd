//! The jump cache: where indirect jumps and returns find translated code. Direct-mapped by RIP; one for each mode.
//! Of two that belong at the same place one may be beside it, where only the stub `dispatch` looks.
//!
//! An entry is right as long as its block lives; that its RIP still maps to the block's frame is checked at each use, by
//! the fetch token in the TLB of the address space.

use super::emit::Asm;
use crate::jit::frame::{ITLB, JUMP_CACHE, OPEN};
use crate::mmu::tlb::Entry;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};

const EXEC: i8 = std::mem::offset_of!(Entry, exec) as i8;

/// An entry.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct JumpEntry {
    pub rip: u64,
    /// What the fetch TLB must hold for the page of `rip`.
    pub token: u64,
    /// Offset in the fetch TLB array of the entry of that page.
    pub slot: u64,
    /// Address of the entry for saved flags.
    pub code: u64,
}

const BITS: u32 = 15;
/// Mask of entry numbers.
pub const MASK: i32 = (1 << BITS) - 1;
/// log2 of an entry's size.
pub const SHIFT: i8 = 5;
const _: () = assert!(size_of::<JumpEntry>() == 1 << SHIFT);

pub const RIP: i8 = std::mem::offset_of!(JumpEntry, rip) as i8;
pub const TOKEN: i8 = std::mem::offset_of!(JumpEntry, token) as i8;
pub const SLOT: i8 = std::mem::offset_of!(JumpEntry, slot) as i8;
pub const CODE: i8 = std::mem::offset_of!(JumpEntry, code) as i8;

/// An empty entry. A guest may try to jump to any address, canonical or not: it is the token that no fetch entry holds,
/// neither an empty one (0) nor a filled one, which has bit 27 set.
const EMPTY: JumpEntry = JumpEntry { rip: 1 << 63, token: 1, slot: 0, code: 0 };

/// Emits a lookup of RAX, a guest RIP; to `miss` if it is not there. Leaves the entry's address in R15; RFLAGS and RAX
/// are lost.
pub(crate) fn lookup(a: &mut Asm, miss: DynamicLabel) {
    place(a);
    compare(a, miss);
}

/// The same, beside its place; the two entries change places.
pub(crate) fn lookup_beside(a: &mut Asm, miss: DynamicLabel) {
    const OTHER: i8 = 1 << SHIFT;
    place(a);
    dynasm!(a ; .arch x64 ; xor r15d, BYTE OTHER);
    compare(a, miss);
    for word in [RIP, TOKEN, SLOT, CODE] {
        dynasm!(a ; .arch x64
            ; mov rax, [BYTE r15 + word]
            ; mov [BYTE rsp + OPEN], rax
            ; xor r15, BYTE OTHER
            ; mov rax, [BYTE r15 + word]
            ; xor r15, BYTE OTHER
            ; mov [BYTE r15 + word], rax
            ; xor r15, BYTE OTHER
            ; mov rax, [BYTE rsp + OPEN]
            ; mov [BYTE r15 + word], rax
            ; xor r15, BYTE OTHER
        );
    }
    dynasm!(a ; .arch x64 ; xor r15, BYTE OTHER);
}

/// The offset of the entry for RAX into R15.
fn place(a: &mut Asm) {
    dynasm!(a ; .arch x64
        ; mov r15d, eax ; shr r15d, 12 ; xor r15d, eax ; and r15d, MASK ; shl r15d, SHIFT
    );
}

fn compare(a: &mut Asm, miss: DynamicLabel) {
    dynasm!(a ; .arch x64
        ; add r15, [BYTE rsp + JUMP_CACHE]
        ; cmp rax, [BYTE r15 + RIP] ; jne =>miss
        ; mov rax, [BYTE r15 + SLOT] ; add rax, [BYTE rsp + ITLB] ; mov rax, [BYTE rax + EXEC]
        ; cmp rax, [BYTE r15 + TOKEN] ; jne =>miss
    );
}

/// A cache.
#[derive(Debug)]
pub struct JumpCache {
    pairs: Box<[Pair]>,
}

/// Two entries beside each other: their addresses differ in one bit.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Pair([JumpEntry; 2]);
const _: () = assert!(size_of::<Pair>() == 2 << SHIFT && align_of::<Pair>() == 2 << SHIFT);

impl Default for JumpCache {
    fn default() -> Self {
        Self { pairs: vec![Pair([EMPTY; 2]); 1 << (BITS - 1)].into_boxed_slice() }
    }
}

impl JumpCache {
    /// Number of the entry for `rip`; generated code computes the same.
    fn slot(rip: u64) -> usize {
        let low = rip as u32;
        ((low ^ low >> 12) & MASK as u32) as usize
    }

    fn entry(&mut self, n: usize) -> &mut JumpEntry {
        &mut self.pairs[n >> 1].0[n & 1]
    }

    pub fn insert(&mut self, e: JumpEntry) {
        let n = Self::slot(e.rip);
        let old = std::mem::replace(self.entry(n), e);
        let same = (old.rip, old.token) == (e.rip, e.token);
        // What was there goes beside, unless what is there belongs there.
        let beside = self.entry(n ^ 1);
        if !same && old.code != EMPTY.code && (beside.code == EMPTY.code || Self::slot(beside.rip) == n) {
            *beside = old;
        }
    }

    /// Forgets the code at `code` for `rip`.
    pub fn remove(&mut self, rip: u64, code: u64) {
        let n = Self::slot(rip);
        for n in [n, n ^ 1] {
            let e = self.entry(n);
            if e.rip == rip && e.code == code {
                *e = EMPTY;
            }
        }
    }

    /// Address of the first entry.
    pub fn address(&self) -> u64 {
        self.pairs.as_ptr() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmu::tlb::token;

    #[test]
    fn test_an_empty_entry_matches_no_fetch_entry() {
        let mut c = JumpCache::default();
        let full = JumpEntry { rip: 0x1234, token: token(0x1000, 0), slot: 32, code: 77 };
        c.insert(full);
        c.remove(full.rip, full.code);
        for e in c.pairs.iter().flat_map(|p| p.0) {
            assert_ne!(e.token, 0, "what an empty fetch entry holds");
            assert_eq!(e.token & token(0, 0), 0, "a bit that every token has");
        }
    }
}
