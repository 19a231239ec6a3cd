//! REP MOVS, STOS, SCAS and CMPS by spans: as many elements as lie in one page of each operand, moved in slab memory at once.
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
/// No page table is written with so many bytes at once.
const DATA_LIKE: u64 = 64;
/// Elements SCAS and CMPS look at at once.
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
        let page = self.bulk_page(lin, access, Privilege::Current);
        let (at, left) = match page {
            None if WRITE && n * size >= DATA_LIKE && self.untrace(lin) => {
                self.bulk_page(lin, access, Privilege::Current)?
            }
            page => page?,
        };
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
        let equal = i.has(prefix::REP);
        let v = acc.u().to_le_bytes();
        let ends = match W::SIZE {
            1 => first(memory, &[v[0]], !equal),
            2 => first(memory, &[v[0], v[1]], !equal),
            4 => first(memory, &[v[0], v[1], v[2], v[3]], !equal),
            _ => first(memory, &v, !equal),
        };
        let done = (ends as u64 + 1).min(n);
        let last = memory.chunks_exact(W::SIZE).nth(done as usize - 1).map(W::from_slice)?;
        let (_, f) = sub::<W>(acc.u(), last.u(), 0);
        self.cpu.flags.replace(ARITH, f);
        self.set_indexed(RDI, i.addr_mask, di.wrapping_add(done * W::SIZE as u64));
        Some(done)
    }

    /// Up to `n` elements of REPE or REPNE CMPS, upwards; the flags are those of the last comparison.
    #[inline]
    pub(super) fn bulk_cmps<W: Width>(&mut self, i: &Insn, n: u64) -> Option<u64> {
        if n < WORTH || self.cpu.flags.has(DF) {
            return None;
        }
        let (si, di) = (self.indexed(RSI, i.addr_mask), self.indexed(RDI, i.addr_mask));
        let (src, n) = self.span::<W, false>(i.seg, si, n)?;
        let (dst, n) = self.span::<W, false>(Seg::Es as u8, di, n)?;
        let (ram, bytes) = (self.sys.mem.ram.as_slice(), n as usize * W::SIZE);
        let (a, b) = (ram.get(src..src.checked_add(bytes)?)?, ram.get(dst..dst.checked_add(bytes)?)?);
        let equal = i.has(prefix::REP);
        let ends = match W::SIZE {
            1 => first_pair::<1>(a, b, !equal),
            2 => first_pair::<2>(a, b, !equal),
            4 => first_pair::<4>(a, b, !equal),
            _ => first_pair::<8>(a, b, !equal),
        };
        let done = (ends as u64 + 1).min(n);
        let last = |m: &[u8]| m.chunks_exact(W::SIZE).nth(done as usize - 1).map(W::from_slice);
        let (_, f) = sub::<W>(last(a)?.u(), last(b)?.u(), 0);
        self.cpu.flags.replace(ARITH, f);
        self.set_indexed(RSI, i.addr_mask, si.wrapping_add(done * W::SIZE as u64));
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

/// How many elements come before the first that is `equal` to `v` (or not).
#[inline]
fn first<const N: usize>(memory: &[u8], v: &[u8; N], equal: bool) -> usize {
    let (elements, _) = memory.as_chunks::<N>();
    let hit = |e: &[u8; N]| (e == v) == equal;
    // Whole groups first: a loop without a way out is one the compiler turns into vector instructions.
    let clear = |g: &&[[u8; N]]| !g.iter().fold(false, |any, e| any | hit(e));
    let skip = GROUP * elements.chunks_exact(GROUP).take_while(clear).count();
    skip + elements[skip..].iter().take_while(|e| !hit(e)).count()
}

/// How many pairs of elements come before the first that are `equal` (or not).
#[inline]
fn first_pair<const N: usize>(a: &[u8], b: &[u8], equal: bool) -> usize {
    let ((a, _), (b, _)) = (a.as_chunks::<N>(), b.as_chunks::<N>());
    let hit = |(x, y): (&[u8; N], &[u8; N])| (x == y) == equal;
    let groups = a.chunks_exact(GROUP).zip(b.chunks_exact(GROUP));
    let clear =
        |(a, b): &(&[[u8; N]], &[[u8; N]])| !a.iter().zip(b.iter()).fold(false, |any, pair| any | hit(pair));
    let skip = GROUP * groups.take_while(clear).count();
    skip + a[skip..].iter().zip(&b[skip..]).take_while(|pair| !hit(*pair)).count()
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
