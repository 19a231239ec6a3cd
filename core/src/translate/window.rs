//! Memory operands in generated code: the inline TLB lookup, and windows: accesses off one base that share one.
//!
//! A lookup leaves the operand's host address in R15. It subtracts the tag of the TLB entry for the kind of access (see
//! `mmu::tlb`) from the linear address: if what is left is at most the size of a page less that of the access, it is
//! the offset in the page, which is added to the page's host address. So an access stays in that page of the slab.

use super::emit::{Asm, Emitter, Unsupported, host};
use super::unit::{Item, MemRef};
use crate::addr::Gpa;
use crate::jit::frame::{Frame, ITLB, OPEN, TLB, WINDOWS, has_base};
use crate::mmu::tlb::{ENTRIES, Entry, token};
use crate::vcpu::ZERO;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// R15's number.
const R15: u8 = 15;

/// Bytes a window spans at most.
const SPAN: i64 = 1024;
/// Instructions a window spans at most.
const REACH: usize = 32;

const READ: i8 = std::mem::offset_of!(Entry, read) as i8;
const WRITE: i8 = std::mem::offset_of!(Entry, write) as i8;
const EXEC: i8 = std::mem::offset_of!(Entry, exec) as i8;
pub(super) const HOST_PAGE: i8 = std::mem::offset_of!(Entry, host) as i8;
/// log2 of an entry's size.
const ENTRY_SHIFT: i8 = 5;
const _: () = assert!(size_of::<Entry>() == 1 << ENTRY_SHIFT);
/// Shift from an address to its entry's offset, and the mask of offsets.
const INDEX_SHIFT: i8 = 12 - ENTRY_SHIFT;
const INDEX_MASK: i32 = ((ENTRIES as i32) - 1) << ENTRY_SHIFT;

/// A host address is known for the byte at displacement `low` of `of`'s base as it was when the window was opened: in R15
/// or in the frame.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    of: MemRef,
    low: i64,
    /// What has been added to the base since.
    moved: i64,
    /// The last instruction with an access in it.
    pub until: usize,
    in_r15: bool,
    /// Where in the frame it is kept.
    slot: Option<u8>,
}

/// A host memory operand: R15 plus a displacement.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub disp: i64,
}

impl Place {
    pub fn operand(&self) -> MemoryOperand {
        let size = u32::from(self.disp != 0);
        MemoryOperand::new(Register::R15, Register::None, 1, self.disp, size, false, Register::None)
    }
}

/// Host register number `h` as iced-x86 names it, 64 bits.
pub fn gpr64(h: u8) -> Register {
    Register::RAX + u32::from(h)
}

/// What a lookup checks: `low` to `low + size`, relative to the operand's base.
struct Check {
    low: i64,
    size: i64,
    write: bool,
    /// `low` must be a multiple of 16.
    aligned: bool,
}

/// The lookup of an address known now.
#[derive(Clone, Copy)]
pub(super) struct Constant {
    low: i64,
    /// Offset of the tag in a TLB entry.
    tag: i8,
    /// A page less the size of the access.
    room: i32,
    miss: DynamicLabel,
}

/// Instructions that share a lookup.
#[derive(Clone, Copy)]
struct Span {
    /// The last of them, and how many make an access.
    until: usize,
    count: u32,
    /// Displacements covered.
    low: i64,
    high: i64,
    write: bool,
    /// A displacement that must be aligned, and all that must be differ from it by a multiple of 16.
    aligned: Option<i64>,
}

impl Span {
    fn of(m: &MemRef, k: usize) -> Self {
        Self {
            until: k,
            count: 0,
            low: m.disp,
            high: m.disp.wrapping_add(i64::from(m.size)),
            write: m.write,
            aligned: m.aligned.then_some(m.disp),
        }
    }

    /// With access `o` of instruction `n`, whose base has moved by `moved`, too.
    fn with(self, o: &MemRef, n: usize, moved: i64) -> Option<Self> {
        let at = o.disp.wrapping_add(moved);
        let aligned = self.aligned.or(o.aligned.then_some(at));
        let clash = o.aligned && aligned.is_some_and(|a| at.wrapping_sub(a) & 15 != 0);
        let s = Self {
            until: n,
            count: self.count + 1,
            low: self.low.min(at),
            high: self.high.max(at.wrapping_add(i64::from(o.size))),
            write: self.write || o.write,
            aligned,
        };
        (!clash && (0..=SPAN).contains(&s.high.wrapping_sub(s.low))).then_some(s)
    }

    /// If something in it must be aligned, the beginning is moved down to where it must be, too, which is in the same
    /// page.
    fn check(&self) -> Check {
        let low = self.low.wrapping_sub(self.aligned.map_or(0, |a| self.low.wrapping_sub(a) & 15));
        let size = self.high.wrapping_sub(low);
        Check { low, size, write: self.write, aligned: self.aligned.is_some() }
    }
}

/// The data TLB entry of linear address R15 into RAX. RFLAGS are lost.
fn entry(a: &mut Asm, bmi2: bool) {
    if bmi2 {
        // RORX EAX, R15D, INDEX_SHIFT: the index is in the low half.
        a.extend(&[0xc4, 0xc3, 0x7b, 0xf0, 0xc7, INDEX_SHIFT as u8]);
    } else {
        dynasm!(a ; .arch x64 ; mov eax, r15d ; shr eax, INDEX_SHIFT);
    }
    dynasm!(a ; .arch x64 ; and eax, INDEX_MASK ; add rax, [BYTE rsp + TLB]);
}

/// The lookup of the linear address in R15: R15 becomes the offset in the page whose entry is at RAX. RFLAGS are lost.
pub(super) fn lookup(a: &mut Asm, bmi2: bool, tag: i8, room: i32, miss: DynamicLabel) {
    entry(a, bmi2);
    dynasm!(a ; .arch x64
        ; sub r15, [BYTE rax + tag]
        ; cmp r15, room
        ; ja =>miss
    );
}

impl Emitter<'_> {
    /// Looks up the memory operand of the current instruction. RFLAGS, RAX and R15 are lost; RAX is free afterwards.
    /// If the lookup misses, the instruction is interpreted.
    pub(crate) fn access(&mut self, m: &MemRef) -> Result<Place, Unsupported> {
        if !self.options.inline_tlb {
            return Err(Unsupported);
        }
        if let Some(n) = self.windows.iter().position(|w| w.of.same_base(m)) {
            self.fetch_window(n);
            let w = &self.windows[n];
            return Ok(Place { disp: m.disp + w.moved - w.low });
        }
        self.before_clobber();
        self.check_budget_here();
        self.lose_r15();
        let span = self.span(m);
        if span.count < 2 {
            return self.access_once(m);
        }
        let miss = self.miss_label(span.until);
        let c = span.check();
        self.check(m, &c, miss)?;
        let (low, until) = (c.low, span.until);
        self.windows.push(Window { of: *m, low, moved: 0, until, in_r15: true, slot: None });
        Ok(Place { disp: m.disp - low })
    }

    /// Gets window `n` into R15.
    fn fetch_window(&mut self, n: usize) {
        if self.windows[n].in_r15 {
            return;
        }
        self.lose_r15();
        if let Some(slot) = self.windows[n].slot {
            let at = OPEN + 8 * slot as i8;
            dynasm!(self.a ; .arch x64 ; mov r15, [BYTE rsp + at]);
            self.windows[n].in_r15 = true;
        }
    }

    /// Before R15 is overwritten: the window in it is kept in the frame, or closed if there is no room.
    pub(crate) fn lose_r15(&mut self) {
        let Some(n) = self.windows.iter().position(|w| w.in_r15) else { return };
        let free = (0..WINDOWS as u8).find(|s| self.windows.iter().all(|w| w.slot != Some(*s)));
        let w = &mut self.windows[n];
        w.in_r15 = false;
        if w.slot.is_some() || w.until <= self.k {
            return;
        }
        let Some(slot) = free else {
            self.windows.remove(n);
            return;
        };
        w.slot = Some(slot);
        let at = OPEN + 8 * slot as i8;
        dynasm!(self.a ; .arch x64 ; mov [BYTE rsp + at], r15);
    }

    /// After instruction `k`: windows without further accesses are closed.
    pub(super) fn close_windows(&mut self) {
        let k = self.k;
        self.windows.retain(|w| w.until > k);
    }

    /// [`Emitter::access`] outside any window, budget checked and flags saved already.
    pub(super) fn access_once(&mut self, m: &MemRef) -> Result<Place, Unsupported> {
        let miss = self.miss_label(self.k);
        let c = Span::of(m, self.k).check();
        self.check(m, &c, miss)?;
        Ok(Place { disp: m.disp.wrapping_sub(c.low) })
    }

    /// Follows what instruction `it` added to the base of an open window: called after it.
    pub(super) fn move_window(&mut self, it: &Item) {
        for w in &mut self.windows {
            if w.of.base != ZERO
                && let Some(d) = it.adds(w.of.base)
            {
                w.moved += d;
            }
        }
    }

    /// The instructions whose accesses can share a lookup with `m`, from the current one on.
    ///
    /// A miss interprets all of them and comes back behind the last, where no window opened on the way may be open.
    fn span(&self, m: &MemRef) -> Span {
        let mut best = Span::of(m, self.k);
        if !self.options.windows {
            return best;
        }
        let last = self.windows.iter().map(|w| w.until).fold(self.k + REACH, usize::min);
        let constant = self.is_constant(m);
        let mut moved = 0i64;
        for (n, it) in self.items().iter().enumerate().take(last + 1).skip(self.k) {
            if n > self.k && it.enters_sse || it.x87_native() && !self.x87 {
                break;
            }
            if let Some(o) = it.mem.as_ref().filter(|o| o.same_base(m)) {
                let misaligned = constant && o.aligned && o.disp & 15 != 0;
                match best.with(o, n, moved).filter(|_| !misaligned) {
                    Some(s) => best = s,
                    None => break,
                }
            }
            if it.gpr_written & m.registers() != 0 {
                match it.adds(m.base) {
                    Some(d) if m.index == ZERO => moved += d,
                    _ => break,
                }
            }
            if it.end || it.is_call() || it.barrier {
                break;
            }
        }
        best
    }

    /// The operand's linear address with displacement `disp` into R15; RAX and RFLAGS are lost.
    fn linear(&mut self, m: &MemRef, disp: i64) -> Result<(), Unsupported> {
        let in_frame = |r: u8| r != ZERO && host(r).is_none();
        let index = |h: u8| Some((h, m.scale));
        match (m.base, m.index) {
            (b, i) if in_frame(b) && in_frame(i) => {
                self.load_frame(R15, b);
                self.load_frame(0, i);
                self.lea(R15, Some(R15), index(0), disp)?;
            }
            (b, i) if in_frame(b) => {
                self.load_frame(R15, b);
                self.lea(R15, Some(R15), host(i).and_then(index), disp)?;
            }
            (b, i) if in_frame(i) => {
                self.load_frame(R15, i);
                self.lea(R15, host(b), index(R15), disp)?;
            }
            (b, i) => self.lea(R15, host(b), host(i).and_then(index), disp)?,
        }
        if has_base(m.seg) {
            let base = Frame::seg_offset(m.seg);
            match self.is64() {
                true => dynasm!(self.a ; .arch x64 ; add r15, [BYTE rsp + base]),
                false => dynasm!(self.a ; .arch x64 ; add r15d, [BYTE rsp + base]),
            }
        }
        Ok(())
    }

    /// Guest register `r`, which lives in the frame, into host register `h`.
    pub(crate) fn load_frame(&mut self, h: u8, r: u8) {
        let at = Frame::high_offset(r);
        dynasm!(self.a ; .arch x64 ; mov Rq(h), [BYTE rsp + at]);
    }

    /// Host register `h` into guest register `r`, which lives in the frame.
    pub(crate) fn store_frame(&mut self, h: u8, r: u8) {
        let at = Frame::high_offset(r);
        dynasm!(self.a ; .arch x64 ; mov [BYTE rsp + at], Rq(h));
    }

    /// LEA of host registers; in 32-bit code the result wraps at 4 GiB.
    pub(crate) fn lea(
        &mut self,
        to: u8,
        base: Option<u8>,
        index: Option<(u8, u8)>,
        disp: i64,
    ) -> Result<(), Unsupported> {
        let is64 = self.is64();
        if base.is_none() && index.is_none() {
            let v = if is64 { disp } else { disp & 0xffff_ffff };
            dynasm!(self.a ; .arch x64 ; mov Rq(to), QWORD v);
            return Ok(());
        }
        let (base, index) = match (base, index) {
            (None, Some((i, 0))) => (Some(i), None),
            other => other,
        };
        if let (Some(b), None, 0, true) = (base, index, disp, is64) {
            if b != to {
                dynasm!(self.a ; .arch x64 ; mov Rq(to), Rq(b));
            }
            return Ok(());
        }
        let b = base.map_or(Register::None, gpr64);
        let (i, scale) = index.map_or((Register::None, 1), |(h, s)| (gpr64(h), 1 << s));
        // A 32-bit displacement means the same modulo 4 GiB whatever its sign.
        let disp = if is64 { disp } else { i64::from(disp as i32) };
        let size = if b == Register::None { 8 } else { u32::from(disp != 0) };
        let m = MemoryOperand::new(b, i, scale, disp, size, false, Register::None);
        let (code, r) = match is64 {
            true => (Code::Lea_r64_m, gpr64(to)),
            false => (Code::Lea_r32_m, Register::EAX + u32::from(to)),
        };
        let i = Instruction::with2(code, r, m).map_err(|_| Unsupported)?;
        self.encode(&i)
    }

    /// The lookup: R15 becomes the host address of displacement `c.low`. RAX and RFLAGS are lost.
    fn check(&mut self, m: &MemRef, c: &Check, miss: DynamicLabel) -> Result<(), Unsupported> {
        let tag = if c.write { WRITE } else { READ };
        if self.is_constant(m) {
            if c.aligned && c.low & 15 != 0 {
                return Err(Unsupported);
            }
            let c = Constant { low: c.low, tag, room: 4096 - c.size as i32, miss };
            match self.remember() {
                Some(n) => self.check_constant_remembered(n, c),
                None => self.check_constant(&c),
            }
            return Ok(());
        }
        self.linear(m, c.low)?;
        if c.aligned {
            dynasm!(self.a ; .arch x64 ; test r15b, 15 ; jne =>miss);
        }
        let room = 4096 - c.size as i32;
        match self.remember() {
            Some(n) => {
                if let Some(s) = self.sites.last_mut() {
                    s.line = Some(n);
                }
                self.check_remembered(n, tag, room, miss);
            }
            None => {
                lookup(self.a, self.bmi2, tag, room, miss);
                dynasm!(self.a ; .arch x64 ; add r15, [BYTE rax + HOST_PAGE]);
            }
        }
        Ok(())
    }

    /// The lookup of the page where `m` begins: RAX becomes the host address, R15 the bytes from there to the page's end.
    /// RFLAGS are lost.
    pub(super) fn page(&mut self, m: &MemRef, miss: DynamicLabel) -> Result<(), Unsupported> {
        let tag = if m.write { WRITE } else { READ };
        self.linear(m, m.disp)?;
        entry(self.a, self.bmi2);
        dynasm!(self.a ; .arch x64
            ; sub r15, [BYTE rax + tag]
            ; cmp r15, 4095
            ; ja =>miss
            ; mov rax, [BYTE rax + HOST_PAGE]
            ; add rax, r15
            ; neg r15
            ; add r15, 4096
        );
        Ok(())
    }

    /// The lookup for word `offset >> log2(bits)`, signed, of a bit string at `m`, where `offset` is the value of host
    /// register `h` in the size of `m`. R15 becomes the word's host address; RAX and RFLAGS are lost.
    pub(super) fn lookup_bits(&mut self, m: &MemRef, h: u8) -> Result<(), Unsupported> {
        if !self.options.inline_tlb {
            return Err(Unsupported);
        }
        let miss = self.miss_label(self.k);
        self.linear(m, m.disp)?;
        match m.size {
            2 => dynasm!(self.a ; .arch x64 ; movsx rax, Rw(h) ; sar rax, 4 ; lea r15, [r15 + rax * 2]),
            4 => dynasm!(self.a ; .arch x64 ; movsxd rax, Rd(h) ; sar rax, 5 ; lea r15, [r15 + rax * 4]),
            _ => dynasm!(self.a ; .arch x64 ; mov rax, Rq(h) ; sar rax, 6 ; lea r15, [r15 + rax * 8]),
        }
        if !self.is64() {
            dynasm!(self.a ; .arch x64 ; mov r15d, r15d);
        }
        let (tag, room) = (if m.write { WRITE } else { READ }, 4096 - i32::from(m.size));
        lookup(self.a, self.bmi2, tag, room, miss);
        dynasm!(self.a ; .arch x64 ; add r15, [BYTE rax + HOST_PAGE]);
        Ok(())
    }

    /// Is the linear address known now?
    fn is_constant(&self, m: &MemRef) -> bool {
        m.base == ZERO && m.index == ZERO && self.is64() && !has_base(m.seg)
    }

    /// The lookup of an address known now.
    pub(super) fn check_constant(&mut self, c: &Constant) {
        let at = (c.low as u64 >> INDEX_SHIFT) as i32 & INDEX_MASK;
        let (tag, page) = (at + i32::from(c.tag), at + i32::from(HOST_PAGE));
        let (room, miss) = (c.room, c.miss);
        dynasm!(self.a ; .arch x64
            ; mov rax, [BYTE rsp + TLB]
            ; mov r15, QWORD c.low
            ; sub r15, [rax + tag]
            ; cmp r15, room
            ; ja =>miss
            ; add r15, [rax + page]
        );
    }

    /// Checks that the page of `rip` is mapped for fetching to the frame `token` names; to `miss` if not. RFLAGS, RAX and
    /// R15 are lost. Returns the offset of the token in the code.
    pub(super) fn token_check(&mut self, rip: u64, token: u64, miss: DynamicLabel) -> usize {
        let at = ((rip >> INDEX_SHIFT) as i32 & INDEX_MASK) + i32::from(EXEC);
        dynasm!(self.a ; .arch x64 ; mov r15, [BYTE rsp + ITLB] ; mov rax, QWORD token as i64);
        let offset = self.a.offset().0 - 8;
        dynasm!(self.a ; .arch x64 ; cmp rax, [r15 + at] ; jne =>miss);
        offset
    }

    /// At the entry of a block in two pages: leaves unless the second is in frame `second`. The flags are saved.
    pub(super) fn check_second_page(&mut self, second: Gpa) {
        let leave = self.leave_label();
        let next = (self.unit.key.rip | 0xfff).wrapping_add(1);
        let next = if self.is64() { next } else { next & 0xffff_ffff };
        self.token_check(next, token(next, second.0), leave);
    }
}
