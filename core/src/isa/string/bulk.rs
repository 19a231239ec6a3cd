//! REP MOVS, REP STOS and REP SCAS by spans: as many elements as lie in one page of each operand, moved in slab memory at once.
//!
//! Every function returns `None` when the next element must go the ordinary way: it straddles a page or an address
//! wrap, is not plain memory, or would fault. A span is exactly what the elements one by one would have done.

use crate::addr::PAGE_SIZE;
use crate::ctx::Ctx;
use crate::isa::alu::arith::sub;
use crate::isa::insn::{Insn, prefix};
use crate::isa::traits::Width;
use crate::mmu::{Access, Privilege};
use crate::vcpu::Seg;
use crate::vcpu::flags::bit::{ARITH, DF};
use crate::vcpu::gpr::{RAX, RDI, RSI};

/// Elements worth a span: below this the set-up costs more than it saves.
const WORTH: u64 = 4;
/// Elements SCAS looks at at once.
const GROUP: usize = 64;

impl Ctx<'_> {
    /// The slab offset of `seg:off` and how many elements of width `W`, at most `n`, follow it upwards in the same
    /// page, segment and address space.
    #[inline(always)]
    fn span<W: Width, const WRITE: bool>(&mut self, seg: u8, off: u64, n: u64) -> Option<(usize, u64)> {
        let size = W::SIZE as u64;
        // Within a page of offsets nothing wraps: every address mask ends at a page's end.
        let in_page = (PAGE_SIZE - (off & (PAGE_SIZE - 1))) / size;
        let n = n.min(in_page);
        if n < WORTH {
            return None;
        }
        let lin = self.linear::<WRITE>(seg, off, n * size).ok()?;
        let access = if WRITE { Access::Write } else { Access::Read };
        let (at, left) = self.bulk_page(lin, access, Privilege::Current)?;
        Some((at, n.min(left as u64 / size)))
    }

    /// Up to `n` elements of REP STOS, upwards.
    #[inline]
    pub(super) fn bulk_stos<W: Width>(&mut self, i: &Insn, n: u64) -> Option<u64> {
        if n < WORTH || self.cpu.flags.has(DF) {
            return None;
        }
        let di = self.indexed(RDI, i.addr_mask);
        let (at, n) = self.span::<W, true>(Seg::Es as u8, di, n)?;
        let bytes = n as usize * W::SIZE;
        let dst = self.sys.mem.ram.as_mut_slice().get_mut(at..at.checked_add(bytes)?)?;
        let v = W::reg(self.cpu, RAX as u8);
        fill(dst, v);
        self.set_indexed(RDI, i.addr_mask, di.wrapping_add(bytes as u64));
        (n > 0).then_some(n)
    }

    /// Up to `n` elements of REPE or REPNE SCAS, upwards; the flags are those of the last one's comparison, which ends the
    /// repetition or not.
    #[inline]
    pub(super) fn bulk_scas<W: Width>(&mut self, i: &Insn, n: u64) -> Option<u64> {
        if n < WORTH || self.cpu.flags.has(DF) {
            return None;
        }
        let di = self.indexed(RDI, i.addr_mask);
        let (at, n) = self.span::<W, false>(Seg::Es as u8, di, n)?;
        let acc = W::reg(self.cpu, RAX as u8);
        let memory = self.sys.mem.ram.as_slice().get(at..at.checked_add(n as usize * W::SIZE)?)?;
        let goes_on = |e: &[u8]| (W::from_slice(e) == acc) == i.has(prefix::REP);
        let elements = memory.chunks_exact(W::SIZE);
        // Whole groups first: a loop without a way out is one the compiler turns into vector instructions.
        let group = GROUP * W::SIZE;
        let whole = memory.chunks_exact(group);
        let clear =
            whole.take_while(|g| g.chunks_exact(W::SIZE).fold(true, |all, e| all & goes_on(e))).count();
        let rest = memory.get(clear * group..)?.chunks_exact(W::SIZE);
        let equal = (clear * GROUP + rest.take_while(|e| goes_on(e)).count()) as u64;
        let done = (equal + 1).min(n);
        let last = elements.skip(done as usize - 1).map(W::from_slice).next()?;
        let (_, f) = sub::<W>(acc.u(), last.u(), 0);
        self.cpu.flags.replace(ARITH, f);
        self.set_indexed(RDI, i.addr_mask, di.wrapping_add(done * W::SIZE as u64));
        Some(done)
    }

    /// Up to `n` elements of REP MOVS, upwards. Overlapping operands, where a later element reads what an earlier
    /// one wrote, go the ordinary way.
    #[inline]
    pub(super) fn bulk_movs<W: Width>(&mut self, i: &Insn, n: u64) -> Option<u64> {
        if n < WORTH || self.cpu.flags.has(DF) {
            return None;
        }
        let (si, di) = (self.indexed(RSI, i.addr_mask), self.indexed(RDI, i.addr_mask));
        let (src, n) = self.span::<W, false>(i.seg, si, n)?;
        let (dst, n) = self.span::<W, true>(Seg::Es as u8, di, n)?;
        let bytes = n as usize * W::SIZE;
        if n == 0 || (src < dst && dst < src.checked_add(bytes)?) {
            return None;
        }
        let ram = self.sys.mem.ram.as_mut_slice();
        if src.checked_add(bytes)? > ram.len() || dst.checked_add(bytes)? > ram.len() {
            return None;
        }
        ram.copy_within(src..src + bytes, dst);
        self.set_indexed(RSI, i.addr_mask, si.wrapping_add(bytes as u64));
        self.set_indexed(RDI, i.addr_mask, di.wrapping_add(bytes as u64));
        Some(n)
    }
}

/// Fills `dst` (whole elements) with `v`: what is filled already is copied on, in ever larger pieces.
#[inline]
fn fill<W: Width>(dst: &mut [u8], v: W) {
    let pattern = v.u().to_le_bytes();
    if pattern[..W::SIZE].iter().all(|b| *b == pattern[0]) {
        dst.fill(pattern[0]);
        return;
    }
    let mut done = W::SIZE.min(dst.len());
    dst[..done].copy_from_slice(&pattern[..done]);
    while done < dst.len() {
        let n = done.min(dst.len() - done);
        dst.copy_within(..n, done);
        done += n;
    }
}
