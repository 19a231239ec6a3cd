//! Watchpoints: the debugger's, and the guest's own data breakpoints in DR0-DR3. A watched page gets no TLB tags of
//! the watched kind, so the slow path sees its accesses; where nothing is watched they cost nothing.
//! Source for debug registers: SDM vol. 3B, 18.2.

use crate::addr::{Gpa, Gva, PAGE_SHIFT};
use crate::engine::hooks::{Watch, WatchAddr, WatchHit, WatchKind};
use crate::mem::{Memory, page};
use crate::vcpu::Vcpu;

/// A data breakpoint that is enabled in DR7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DebugWatch {
    addr: u64,
    len: u64,
    reads: bool,
}

/// An inclusive range of pages and whether reads of it are watched too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pages {
    first: u64,
    last: u64,
    reads: bool,
}

impl Pages {
    fn of(addr: u64, len: u64, reads: bool) -> Self {
        let last = addr.saturating_add(len.max(1) - 1);
        Self { first: addr >> PAGE_SHIFT, last: last >> PAGE_SHIFT, reads }
    }
    const fn has(&self, page: u64) -> bool {
        self.first <= page && page <= self.last
    }
}

/// All that is watched.
#[derive(Default)]
pub(super) struct Watches {
    list: Vec<Watch>,
    /// Per vCPU.
    debug: Vec<[Option<DebugWatch>; 4]>,
    /// Linear pages watched by anyone.
    linear: Vec<Pages>,
    /// Guest-physical pages watched.
    physical: Vec<Pages>,
    /// Slab pages that carry [`page::WATCH`] for us.
    flagged: Vec<usize>,
}

impl Watches {
    /// The debugger's watches.
    pub fn list(&self) -> &[Watch] {
        &self.list
    }

    /// Is there anything to check?
    #[inline]
    pub fn any(&self) -> bool {
        !self.linear.is_empty() || !self.physical.is_empty()
    }

    /// May a TLB entry for this page have (read, write) tags?
    pub fn tags(&self, lin: u64, gpa: Gpa) -> (bool, bool) {
        let lin = self.linear.iter().filter(|p| p.has(lin >> PAGE_SHIFT));
        let phys = self.physical.iter().filter(|p| p.has(gpa.frame()));
        lin.chain(phys).fold((true, true), |(read, _), p| (read && !p.reads, false))
    }

    /// Replaces the debugger's watches.
    pub fn set(&mut self, mem: &mut Memory, watches: &[Watch]) {
        self.list = watches.to_vec();
        self.rebuild(mem);
    }

    /// Rereads the debug registers of a vCPU.
    pub fn set_debug(&mut self, mem: &mut Memory, cpu: &Vcpu) {
        let i = cpu.index as usize;
        if self.debug.len() <= i {
            self.debug.resize(i + 1, [None; 4]);
        }
        let new = std::array::from_fn(|n| data_breakpoint(cpu, n));
        if self.debug[i] != new {
            self.debug[i] = new;
            self.rebuild(mem);
        }
    }

    fn rebuild(&mut self, mem: &mut Memory) {
        for p in self.flagged.drain(..) {
            mem.clear_flags(p, page::WATCH);
        }
        self.linear.clear();
        self.physical.clear();
        for w in &self.list {
            match w.addr {
                WatchAddr::Virtual(a) => self.linear.push(Pages::of(a.0, w.len, w.kind != WatchKind::Write)),
                WatchAddr::Physical(a) => {
                    self.physical.push(Pages::of(a.0, w.len, w.kind != WatchKind::Write))
                }
            }
        }
        for d in self.debug.iter().flatten().flatten() {
            self.linear.push(Pages::of(d.addr, d.len, d.reads));
        }
        for r in mem.map.regions().to_vec() {
            for p in &self.physical {
                let first = p.first.max(r.start >> PAGE_SHIFT);
                let last = p.last.min((r.end >> PAGE_SHIFT).saturating_sub(1));
                for frame in first..=last {
                    let slab = ((frame << PAGE_SHIFT) - r.start + r.offset) >> PAGE_SHIFT;
                    mem.set_flags(slab as usize, page::WATCH);
                    self.flagged.push(slab as usize);
                }
            }
        }
        // Changing watches is rare; one flush covers every page and kind.
        mem.tlb.flush();
    }

    /// The first of the debugger's watches that an access overlaps. `lin` is `None` for device accesses.
    pub fn hit(&self, lin: Option<u64>, gpa: Gpa, len: u64, write: bool) -> Option<WatchHit> {
        let watched = |w: &&Watch| {
            let (start, place) = match w.addr {
                WatchAddr::Virtual(a) => (a.0, lin),
                WatchAddr::Physical(a) => (a.0, Some(gpa.0)),
            };
            let kind = match w.kind {
                WatchKind::Read => !write,
                WatchKind::Write => write,
                WatchKind::Access => true,
            };
            kind && place.is_some_and(|p| overlap(p, len, start, w.len))
        };
        let watch = *self.list.iter().find(watched)?;
        Some(WatchHit { watch, gva: Gva(lin.unwrap_or(gpa.0)), write })
    }

    /// DR6 bits of the data breakpoints of vCPU `cpu` an access overlaps.
    pub fn debug_bits(&self, cpu: u8, lin: u64, len: u64, write: bool) -> u64 {
        let Some(d) = self.debug.get(cpu as usize) else { return 0 };
        let bit = |(n, d): (usize, &Option<DebugWatch>)| {
            let hit = d.is_some_and(|d| (write || d.reads) && overlap(lin, len, d.addr, d.len));
            u64::from(hit) << n
        };
        d.iter().enumerate().map(bit).sum()
    }
}

/// Do `[a, a+alen)` and `[b, b+blen)` share a byte? Ranges may end at the top of the address space.
const fn overlap(a: u64, alen: u64, b: u64, blen: u64) -> bool {
    a.wrapping_sub(b) < blen || b.wrapping_sub(a) < alen
}

/// The enabled data breakpoint in DR`n`, if that is what it is.
fn data_breakpoint(cpu: &Vcpu, n: usize) -> Option<DebugWatch> {
    let (enable, rw) = (cpu.dr7 >> (2 * n) & 3, cpu.dr7 >> (16 + 4 * n) & 3);
    // 00: execution; 10: I/O (with CR4.DE; undefined without).
    if enable == 0 || rw & 1 == 0 {
        return None;
    }
    let len = match cpu.dr7 >> (18 + 4 * n) & 3 {
        0 => 1,
        1 => 2,
        2 => 8,
        _ => 4,
    };
    Some(DebugWatch { addr: cpu.dr[n] & !(len - 1), len, reads: rw == 3 })
}
