//! Blocks translated for speed, because they run often: those that branch back to their start become loops of host code,
//! and their lookups remember the page they found last.
//!
//! A remembered page is a line of the frame (`jit::frame::Remembered`), one for each lookup: linear page, host address, and
//! the offsets an access may begin at. A block uses its lines only while they are stamped with the TLB array and the
//! epoch they were filled under; the entry compares the stamps, and empties the lines if they differ. From there to the
//! block's end nothing is revoked: only helpers revoke, and they leave the block when they did. So a page is
//! remembered exactly as long as a window may be open.

use super::emit::{Emitter, FlagState};
use super::exits::Cold;
use super::identical::recipe;
use super::recipe::Recipe;
use super::site::What;
use super::system::selects_arrays;
use super::unit::Unit;
use super::window::{Constant, HOST_PAGE, lookup};
use crate::engine::JitOptions;
use crate::jit::frame::{
    FIRST, PAGES, REMEMBER, REMEMBERED, RESUME, Remembered, SCRATCH, SSE, STAMP, STAMP_SSE,
};
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use std::ops::Range;

const LINE: i32 = size_of::<Remembered>() as i32;
const TAG: i32 = std::mem::offset_of!(Remembered, tag) as i32;
const LIMIT: i32 = std::mem::offset_of!(Remembered, limit) as i32;
const HOST: i32 = std::mem::offset_of!(Remembered, host) as i32;
const ROOM: i32 = std::mem::offset_of!(Remembered, room) as i32;
const LEFT: i32 = std::mem::offset_of!(Remembered, left) as i32;

/// Offset of line `n` in the frame.
fn line(n: u32) -> i32 {
    PAGES + n as i32 * LINE
}

/// What is special about a block translated for speed.
pub(super) struct Hot {
    /// Where it begins again, if it is a loop.
    head: Option<DynamicLabel>,
    /// How the flags at its branch back follow from registers, if nobody but a fault sees them.
    back: Option<Recipe>,
    /// The lines it may use: the first holds the stamp. Empty: none.
    lines: Range<u32>,
    /// The first line not in use.
    next: u32,
    /// Lines for addresses known now: they hold a host address, or 0.
    constants: Vec<u32>,
    /// Instructions whose lookups remember nothing, a bit each.
    plain: u64,
}

/// What was decided about a block to be translated for speed.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub lines: Range<u32>,
    pub plain: u64,
}

impl Plan {
    /// Lines a block may need.
    pub fn demand(unit: &Unit) -> u32 {
        // An indirect call and a push of memory make two lookups.
        1 + unit
            .items
            .iter()
            .filter(|it| it.mem.is_some())
            .map(|it| 1 + u32::from(it.attrs & crate::isa::END != 0))
            .sum::<u32>()
    }
}

/// What is wrong at the top of a block: its SSE registers are not in the host's, or its stamp is another.
pub(super) struct Entered {
    from: DynamicLabel,
    load: DynamicLabel,
    ready: DynamicLabel,
    forget: DynamicLabel,
    back: DynamicLabel,
    first: u32,
}

/// A lookup that found another page than the one remembered.
pub(super) struct Refill {
    from: DynamicLabel,
    back: DynamicLabel,
    line: u32,
    /// Offset of the tag in a TLB entry.
    tag: i8,
    room: i32,
    miss: DynamicLabel,
}

impl Hot {
    /// `None`: there is nothing to gain.
    pub fn new(unit: &Unit, options: &JitOptions, plan: &Plan) -> Option<Self> {
        let remembers =
            options.remember && options.inline_tlb && unit.items.iter().any(|it| it.mem.is_some());
        let remembers = remembers && !unit.items.iter().any(selects_arrays);
        let lines = if remembers { plan.lines.clone() } else { 0..0 };
        let next = lines.start + u32::from(!lines.is_empty());
        let hot = Self { head: None, back: None, lines, next, constants: Vec::new(), plain: plan.plain };
        (options.loops && is_loop(unit) || !hot.lines.is_empty()).then_some(hot)
    }

    /// The lines in use.
    pub fn used(&self) -> Range<u32> {
        self.lines.start..self.next
    }
}

/// Does a unit end with a branch to its start?
fn is_loop(unit: &Unit) -> bool {
    let last = unit.items.last();
    let back = last.is_some_and(|it| {
        let branch = it.i.is_jcc_short_or_near() || it.i.is_jmp_short_or_near();
        it.end && branch && !it.is_call() && it.insn.imm == unit.key.rip
    });
    back && unit.second.is_none()
}

impl Emitter<'_> {
    /// The top of a block translated for speed, where the flags are saved: everything that need not be done again in the
    /// next iteration.
    pub(super) fn top(&mut self) {
        self.check_budget_here();
        let sse = self.items().first().is_some_and(|it| it.enters_sse);
        if self.hot.as_ref().is_some_and(|h| !h.lines.is_empty()) {
            self.check_stamp(sse);
        } else if sse {
            self.enter_sse();
        }
        if !self.options.loops || !is_loop(self.unit) {
            return;
        }
        let (head, back) = (self.a.new_dynamic_label(), self.flags_at_back());
        if back.is_some() {
            dynasm!(self.a ; .arch x64 ; mov [rsp + FIRST], r12);
        }
        dynasm!(self.a ; .arch x64 ; =>head);
        self.flags.later = back;
        if let Some(h) = &mut self.hot {
            (h.head, h.back) = (Some(head), back);
        }
    }

    /// Forgets what was remembered under another stamp. `sse`: and makes sure the guest's SSE registers are in the host's.
    fn check_stamp(&mut self, sse: bool) {
        let Some(first) = self.hot.as_ref().map(|h| h.lines.start) else { return };
        let site = self.site(What::Budget);
        self.sites[site].line = Some(first);
        let (from, back) = (self.a.new_dynamic_label(), self.a.new_dynamic_label());
        let (at, stamp) = (line(first) + TAG, if sse { STAMP_SSE } else { STAMP });
        dynasm!(self.a ; .arch x64
            ; mov rax, [rsp + stamp]
            ; cmp rax, [rsp + at]
            ; jne =>from
            ; =>back
        );
        if !sse {
            self.cold.push(Cold::Forget { from, back, site });
            return;
        }
        let count = self.items().len() as u32;
        let enter = self.site(What::Finish { count });
        let [load, ready, forget] = std::array::from_fn(|_| self.a.new_dynamic_label());
        self.cold.push(Cold::Entered(Entered { from, load, ready, forget, back, first }));
        self.cold.push(Cold::Sse { from: load, site: enter, back: ready });
        self.cold.push(Cold::Forget { from: forget, back, site });
    }

    /// Something is wrong at the top: SSE registers, or the stamp.
    pub(super) fn cold_entered(&mut self, e: &Entered) {
        dynasm!(self.a ; .arch x64
            ; =>e.from
            ; cmp DWORD [rsp + SSE], 0
            ; je =>e.load
            ; =>e.ready
            ; mov rax, [rsp + STAMP]
            ; cmp rax, [rsp + line(e.first) + TAG]
            ; je =>e.back
            ; jmp =>e.forget
        );
    }

    /// RAX is the stamp.
    pub(super) fn cold_forget(&mut self, from: DynamicLabel, back: DynamicLabel, site: usize) {
        let Some(h) = &self.hot else { return };
        let (used, constants) = (h.used(), h.constants.clone());
        let first = line(used.start);
        let leave = self.a.new_dynamic_label();
        dynasm!(self.a ; .arch x64
            ; =>from
            ; dec DWORD [rsp + first + LEFT]
            ; js =>leave
            ; mov [rsp + first + TAG], rax
        );
        for n in used.skip(1) {
            let word = if constants.contains(&n) { HOST } else { LIMIT };
            dynasm!(self.a ; .arch x64 ; mov QWORD [rsp + line(n) + word], 0);
        }
        dynasm!(self.a ; .arch x64 ; jmp =>back ; =>leave);
        self.go_slow(site);
    }

    /// How the flags at the branch back follow from registers, if the block overwrites them before anyone but a fault
    /// needs them.
    fn flags_at_back(&self) -> Option<Recipe> {
        let r = self.items().iter().fold(None, |before: Option<Recipe>, it| match it.writes {
            _ if it.is_call() => None,
            0 => before.filter(|r| !r.uses(it.gpr_written)),
            _ => recipe(it, before),
        })?;
        (self.options.lazy_flags && self.recipe_suffices(&r)).then_some(r)
    }

    /// The branch back of a loop, on condition `cc` (flags in RFLAGS; else falls through), or always. False: the block is
    /// none.
    pub(crate) fn loop_back(&mut self, cc: Option<u8>) -> bool {
        let Some((head, back)) = self.hot.as_ref().and_then(|h| Some((h.head?, h.back))) else {
            return false;
        };
        let flags = self.flags;
        let out = self.a.new_dynamic_label();
        if let Some(cc) = cc {
            self.jcc(cc ^ 1, out);
        }
        if back.is_none() && !flags.saved {
            self.emit_save();
        }
        self.flags = FlagState { later: back, ..FlagState::SAVED };
        let k = std::mem::take(&mut self.k);
        let site = self.site(What::Budget);
        self.k = k;
        let from = self.a.new_dynamic_label();
        self.cold.push(Cold::Slow { from, site, resume: None });
        let n = self.items().len() as i8;
        dynasm!(self.a ; .arch x64 ; sub r12, BYTE n ; jns =>head ; jmp =>from ; =>out);
        self.flags = flags;
        true
    }

    /// A line for a lookup of the current instruction.
    pub(super) fn remember(&mut self) -> Option<u32> {
        let k = self.k;
        let h = self.hot.as_mut().filter(|h| h.next < h.lines.end && h.plain >> (k & 63) & 1 == 0)?;
        h.next += 1;
        Some(h.next - 1)
    }

    /// The lookup of the linear address in R15 through line `n`: R15 becomes the host address. RFLAGS and RAX are lost.
    pub(super) fn check_remembered(&mut self, n: u32, tag: i8, room: i32, miss: DynamicLabel) {
        let (from, back) = (self.a.new_dynamic_label(), self.a.new_dynamic_label());
        let at = line(n);
        dynasm!(self.a ; .arch x64
            ; sub r15, [rsp + at + TAG]
            ; cmp r15, [rsp + at + LIMIT]
            ; jae =>from
            ; =>back
            ; add r15, [rsp + at + HOST]
        );
        self.cold.push(Cold::Refill(Refill { from, back, line: n, tag, room, miss }));
    }

    /// The lookup of an address known now: R15 becomes its host address. RFLAGS and RAX are lost.
    pub(super) fn check_constant_remembered(&mut self, n: u32, c: Constant) {
        let (from, back) = (self.a.new_dynamic_label(), self.a.new_dynamic_label());
        dynasm!(self.a ; .arch x64 ; mov r15, [rsp + line(n) + HOST] ; test r15, r15 ; je =>from ; =>back);
        if let Some(h) = &mut self.hot {
            h.constants.push(n);
        }
        self.cold.push(Cold::Constant { from, back, line: n, lookup: c });
    }

    pub(super) fn cold_constant(&mut self, from: DynamicLabel, back: DynamicLabel, n: u32, c: &Constant) {
        dynasm!(self.a ; .arch x64 ; =>from);
        self.check_constant(c);
        dynasm!(self.a ; .arch x64 ; mov [rsp + line(n) + HOST], r15 ; jmp =>back);
    }

    pub(super) fn cold_refill(&mut self, r: &Refill) {
        let Refill { from, back, line: n, tag, room, miss } = *r;
        let at = line(n);
        dynasm!(self.a ; .arch x64
            ; =>from
            ; add r15, [rsp + at + TAG]
            ; dec DWORD [rsp + at + LEFT]
            ; js =>miss
        );
        lookup(self.a, self.bmi2, tag, room, miss);
        dynasm!(self.a ; .arch x64
            ; mov [rsp + SCRATCH], r15
            ; lea r15, [=>back]
            ; mov [rsp + RESUME], r15
            ; mov r15, [BYTE rax + tag]
            ; mov rax, [BYTE rax + HOST_PAGE]
            ; mov [rsp + SCRATCH + 8], rax
            ; mov DWORD [rsp + at + ROOM], room
            ; lea rax, [rsp + at]
            ; jmp QWORD [rsp + REMEMBER]
        );
    }
}

/// Which lines of the frame are in use.
pub struct Lines {
    taken: Vec<bool>,
    free: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self { taken: vec![false; REMEMBERED], free: REMEMBERED }
    }
}

impl Lines {
    /// `n` lines, if so many are free side by side.
    pub fn take(&mut self, n: u32) -> Option<Range<u32>> {
        if self.free < n as usize {
            return None;
        }
        let mut run = 0;
        let end = (0u32..).zip(&self.taken).find_map(|(i, taken)| {
            run = if *taken { 0 } else { run + 1 };
            (run == n).then_some(i + 1)
        })?;
        self.set(end - n..end, true);
        Some(end - n..end)
    }

    pub fn give_back(&mut self, lines: Range<u32>) {
        self.set(lines, false);
    }

    fn set(&mut self, lines: Range<u32>, taken: bool) {
        if let Some(all) = self.taken.get_mut(lines.start as usize..lines.end as usize) {
            let changed = all.iter().filter(|t| **t != taken).count();
            self.free = if taken { self.free - changed } else { self.free + changed };
            all.fill(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_lines_are_given_to_one_at_a_time() {
        let mut l = Lines::default();
        let all = l.take(REMEMBERED as u32).unwrap();
        assert_eq!(l.take(1), None);
        l.give_back(3..7);
        assert_eq!(l.take(5), None);
        assert_eq!(l.take(3), Some(3..6));
        assert_eq!(l.take(1), Some(6..7));
        l.give_back(all);
        assert_eq!(l.take(8), Some(0..8));
    }
}
