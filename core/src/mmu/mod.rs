//! The memory-management unit: guest-virtual to guest-physical to host. Owns the page walk, the ASID pool, the
//! software TLBs and the shadow page tables; `access` is the only guest load/store path of both engines.

//!
//! A miss goes: TLB, shadow tables, guest walk. All three are coherent with guest memory at every access: a page
//! table write, by whomever, is seen at once, so INVLPG and CR3 writes have nothing to flush and neither the TLB nor
//! the shadow tables are part of the guest's state.

pub mod access;
pub mod asid;
mod quiet;
pub mod shadow;
mod slow;
mod switch;
pub mod tlb;
pub mod walk;
mod watch;

#[cfg(test)]
mod tests;

pub use walk::{MAXPHYADDR, PAGE_1G, Paging};

use crate::addr::{Asid, Gva};
use crate::engine::hooks::{Watch, WatchHit};
use crate::mem::{Footprint, Memory};
use asid::Spaces;
use shadow::{Shadow, ShadowStep};
use switch::CpuSpace;
use watch::Watches;

/// Which TLB arrays a vCPU's accesses use now: the number of the data array, `asid << 3 | view`; that of the fetch array
/// is this with [`tlb::FETCH`]. Derived from (ASID, privilege); never saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TlbRef(pub u32);

/// What an access wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    Exec,
}

/// On whose behalf an access is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// The current CPL decides.
    Current,
    /// Implicit supervisor access: descriptor tables, TSS, IDT, interrupt stack pushes at CPL < 3
    /// (SDM vol. 3A, 4.6.1). Never subject to AC override of SMAP.
    System,
    /// A user access whatever the CPL (pushes onto a user stack, WRUSS-like).
    User,
}

/// The privilege an access is checked with: each ASID has two TLB arrays for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum View {
    /// Supervisor access under SMAP.
    Supervisor = 0,
    User = 1,
    /// Supervisor access with EFLAGS.AC overriding SMAP.
    SupervisorAc = 2,
    /// User access with alignment checks (CR0.AM and EFLAGS.AC): its array holds no data entries, so that every
    /// access takes the slow path, which checks alignment.
    UserAligned = 3,
}

impl View {
    /// Is this a user-mode access in the sense of the page-fault error code?
    pub const fn is_user(self) -> bool {
        matches!(self, View::User | View::UserAligned)
    }
}

/// Counts of what the MMU did; TLB hits are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Accesses that needed a translation beyond the TLB arrays.
    pub misses: u64,
    /// Misses answered by the shadow tables.
    pub shadow_hits: u64,
    /// Walks of guest page tables.
    pub walks: u64,
    /// TLB entries installed.
    pub fills: u64,
    /// Page faults raised.
    pub faults: u64,
    /// Address spaces recycled.
    pub recycled: u64,
}

/// How much of what the MMU has is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Address spaces, at most [`asid::ASIDS`] - 1.
    pub asids: usize,
    /// Guest pages whose writes are traced because they hold page tables.
    pub traced_pages: usize,
    /// Shadow tables, at most [`shadow::MAX_NODES`].
    pub nodes: usize,
}

/// An address space, for views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsidView {
    pub asid: Asid,
    pub paging: Paging,
    /// Greater is more recent.
    pub last_used: u64,
    /// TLB entries in its data arrays, by [`View`].
    pub entries: [usize; tlb::VIEWS],
    /// TLB entries in its fetch arrays, by [`View`].
    pub fetch_entries: [usize; tlb::VIEWS],
}

/// The VM's MMU state: all derived, never saved, dropped on restore.
pub struct Mmu {
    spaces: Spaces,
    shadow: Shadow,
    /// What each vCPU runs in.
    cpus: Vec<CpuSpace>,
    watches: Watches,
    /// What was touched since [`Mmu::take_footprint`], if anybody wants to know.
    footprint: Option<Box<Footprint>>,
    /// The first watchpoint hit since the engine took it.
    pub watch_hit: Option<WatchHit>,
    pub counters: Counters,
}

impl Mmu {
    pub fn new() -> Self {
        Self {
            spaces: Spaces::default(),
            shadow: Shadow::default(),
            cpus: Vec::new(),
            watches: Watches::default(),
            footprint: None,
            watch_hit: None,
            counters: Counters::default(),
        }
    }

    /// Drops everything derived from guest memory and registers (after a restore or any change of memory behind the
    /// back of [`Memory::write_phys`]). Each vCPU then calls [`crate::Ctx::mmu_switch`] before it runs.
    pub fn reset(&mut self, mem: &mut Memory) {
        mem.tlb.flush();
        self.shadow.drop_all(&mut self.spaces, mem);
        self.spaces = Spaces::default();
        self.cpus.clear();
        self.watch_hit = None;
        mem.watch_writes.clear();
        mem.remapped = false;
    }

    /// The debugger's watchpoints.
    pub fn watches(&self) -> &[Watch] {
        self.watches.list()
    }

    /// Replaces the debugger's watchpoints.
    pub(crate) fn set_watches(&mut self, mem: &mut Memory, watches: &[Watch]) {
        self.watches.set(mem, watches);
    }

    /// Takes the first watchpoint hit, by an instruction or by a device, since the last call.
    pub fn take_watch_hit(&mut self, mem: &mut Memory) -> Option<WatchHit> {
        for w in mem.watch_writes.drain(..) {
            if self.watch_hit.is_none() {
                self.watch_hit = self.watches.hit(None, w.gpa, u64::from(w.len), true);
            }
        }
        self.watch_hit.take()
    }

    /// What was touched since the last call (nothing at the first); from now on notes it. Empties the TLB, so that the
    /// first access to each page is seen.
    pub fn take_footprint(&mut self, mem: &mut Memory) -> Footprint {
        mem.tlb.flush();
        self.footprint.replace(Box::default()).map(|f| *f).unwrap_or_default()
    }

    /// What is in use now.
    pub fn usage(&self) -> Usage {
        Usage {
            asids: self.spaces.iter().count(),
            traced_pages: self.shadow.traced_pages(),
            nodes: self.shadow.len(),
        }
    }

    /// The live address spaces.
    pub fn asids(&self, mem: &Memory) -> Vec<AsidView> {
        let count = |asid: Asid, fetch: u32| {
            std::array::from_fn(|v| mem.tlb.entries(tlb::arrays(asid).start | fetch | v as u32).count())
        };
        let view = |(asid, s): (Asid, &asid::Space)| AsidView {
            asid,
            paging: s.paging,
            last_used: self.spaces.last_used(asid),
            entries: count(asid, 0),
            fetch_entries: count(asid, tlb::FETCH),
        };
        self.spaces.iter().map(view).collect()
    }

    /// What the shadow tables of an address space hold for a linear address, root first. The guest's own tables are
    /// the business of [`walk::walk`].
    pub fn shadow_walk(&self, asid: Asid, gva: Gva) -> Vec<ShadowStep> {
        match self.spaces.iter().any(|(a, _)| a == asid) {
            true => self.shadow.path(&self.spaces, asid, gva.0),
            false => Vec::new(),
        }
    }

    /// The shadow tables, for counters and views.
    pub fn shadow(&self) -> &Shadow {
        &self.shadow
    }
}

impl Default for Mmu {
    fn default() -> Self {
        Self::new()
    }
}
