//! Which TLB arrays a vCPU uses: chosen again whenever a control register, the CPL or EFLAGS.AC changes. A switch
//! between known address spaces or privileges swaps an index and flushes nothing.

use super::{Mmu, Paging, Privilege, TlbRef, View};
use crate::addr::Asid;
use crate::ctx::Ctx;
use crate::mem::Memory;
use crate::vcpu::{Vcpu, cr0, cr4, efer, flags};

/// The registers translation depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Controls {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    pdpte: [u64; 4],
}

impl Controls {
    #[inline(always)]
    fn of(cpu: &Vcpu) -> Self {
        Self {
            cr0: cpu.cr0 & (cr0::PG | cr0::WP),
            cr3: cpu.cr3,
            cr4: cpu.cr4 & (cr4::PAE | cr4::PSE | cr4::SMEP | cr4::SMAP),
            efer: cpu.msr.efer & (efer::LMA | efer::NXE),
            pdpte: cpu.pdpte,
        }
    }
}

/// Address spaces a vCPU remembers besides the one it runs in: kernels with page-table isolation change CR3 twice
/// for each system call.
const RECENT: usize = 8;

/// The address space a vCPU runs in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuSpace {
    /// `None`: to be looked up at the next switch.
    now: Option<(Controls, Asid)>,
    /// By table page number; tables used in turn are often neighbours.
    recent: [Option<(Controls, Asid)>; RECENT],
}

impl CpuSpace {
    const fn place(c: &Controls) -> usize {
        (c.cr3 >> 12) as usize % RECENT
    }

    fn forget(&mut self, asid: Asid) {
        for p in self.recent.iter_mut().chain([&mut self.now]) {
            if p.is_some_and(|(_, a)| a == asid) {
                *p = None;
            }
        }
    }
}

/// The data array of an ASID and view.
pub(super) const fn array(asid: Asid, view: View) -> u32 {
    (asid.0 as u32) << 3 | view as u32
}

impl Ctx<'_> {
    /// Tells the MMU that CR0, CR3, CR4, EFER, CPL, EFLAGS.AC or a PDPTE changed, or that this vCPU was scheduled:
    /// selects the vCPU's TLB array again.
    #[inline]
    pub fn mmu_switch(&mut self) {
        self.sys.mem.check_a20();
        let now = Controls::of(self.cpu);
        let asid = match self.sys.mmu.cpus.get(self.cpu.index as usize).and_then(|c| c.now.as_ref()) {
            Some((c, asid)) if *c == now => *asid,
            _ => self.switch_space(now),
        };
        self.cpu.tlb = TlbRef(array(asid, self.view(Privilege::Current)));
        if self.sys.observer.active() {
            self.note_space();
        }
    }

    /// Tells the debugger if CR3 or the CPL changed.
    #[cold]
    fn note_space(&mut self) {
        let cpu = &self.cpu;
        if self.sys.observer.note_space(cpu.index.into(), cpu.cr3, cpu.mode.cpl) {
            self.sys.end_block();
        }
    }

    /// Tells the MMU that DR0-DR3 or DR7 changed.
    pub fn refresh_debug_regs(&mut self) {
        self.sys.mmu.watches.set_debug(&mut self.sys.mem, self.cpu);
    }

    #[inline(never)]
    fn switch_space(&mut self, now: Controls) -> Asid {
        match self.sys.mmu.reenter(self.cpu.index as usize, now) {
            Some(asid) => asid,
            None => self.switch_slow(now),
        }
    }

    #[cold]
    #[inline(never)]
    fn switch_slow(&mut self, now: Controls) -> Asid {
        // A vCPU that was just restored has debug registers nobody told us about.
        self.refresh_debug_regs();
        let paging = Paging::of(self.cpu);
        self.sys.mmu.enter(&mut self.sys.mem, self.cpu.index as usize, now, paging)
    }

    /// The view an access is checked with now.
    #[inline]
    pub(super) fn view(&self, who: Privilege) -> View {
        match who {
            Privilege::System => View::Supervisor,
            Privilege::User => View::User,
            Privilege::Current => {
                let (cpu, ac) = (&self.cpu, self.cpu.flags.has(flags::bit::AC));
                match cpu.mode.cpl == 3 {
                    true if ac && cpu.cr0 & cr0::AM != 0 => View::UserAligned,
                    true => View::User,
                    false if ac && cpu.cr4 & cr4::SMAP != 0 => View::SupervisorAc,
                    false => View::Supervisor,
                }
            }
        }
    }
}

impl Mmu {
    /// The ASID vCPU `index` had when it last ran with these controls, if that is remembered.
    fn reenter(&mut self, index: usize, controls: Controls) -> Option<Asid> {
        let cpu = self.cpus.get_mut(index)?;
        let known = cpu.recent[CpuSpace::place(&controls)].filter(|(c, _)| *c == controls)?;
        cpu.now = Some(known);
        self.spaces.touch(known.1);
        Some(known.1)
    }

    /// The ASID of `paging` for vCPU `index`, recycling one if need be.
    fn enter(&mut self, mem: &mut Memory, index: usize, controls: Controls, paging: Paging) -> Asid {
        if self.cpus.len() <= index {
            self.cpus.resize(index + 1, CpuSpace::default());
        }
        // The space it leaves may be recycled.
        self.cpus[index].now = None;
        let asid = match self.spaces.find(&paging) {
            Some(a) => a,
            None => self.assign(mem, paging),
        };
        let cpu = &mut self.cpus[index];
        cpu.now = Some((controls, asid));
        cpu.recent[CpuSpace::place(&controls)] = cpu.now;
        asid
    }

    fn assign(&mut self, mem: &mut Memory, paging: Paging) -> Asid {
        let busy = self.cpus.iter().filter_map(|c| c.now).fold(0, |m, (_, asid)| m | 1u64 << asid.0);
        let Some(victim) = self.spaces.victim(busy) else { return self.spaces.assign(None, paging) };
        self.counters.recycled += 1;
        self.sync(mem);
        self.shadow.release(&mut self.spaces, mem, victim);
        self.cpus.iter_mut().for_each(|c| c.forget(victim));
        self.spaces.assign(Some(victim), paging)
    }

    /// Applies what happened to table pages and the map since the last translation.
    #[inline]
    pub(super) fn sync(&mut self, mem: &mut Memory) {
        if mem.remapped {
            mem.remapped = false;
            mem.tlb.flush();
            self.shadow.drop_all(&mut self.spaces, mem);
        }
        if !mem.table_writes.is_empty() {
            self.shadow.drain(&mut self.spaces, mem);
        }
    }

    /// The address space vCPU `index` runs in.
    pub(super) fn current(&self, index: u8) -> Asid {
        self.cpus.get(index as usize).and_then(|c| c.now).map_or(Asid(0), |(_, asid)| asid)
    }
}
