//! The guest page walk in every paging mode: presence, reserved bits, rights, accessed and dirty bits.
//! Pure with respect to caches: knows nothing of TLBs or shadow tables. Source: SDM vol. 3A, chapter 4.
//!
//! Accessed and dirty bits are set only by a walk that ends in a permitted access, in every level at once; a walk
//! that faults changes nothing. Entries that lie outside RAM and ROM read as all ones, as a floating bus does;
//! accessed and dirty updates of entries in ROM are dropped.

use super::{Access, View};
use crate::addr::Gpa;
use crate::exception::Exception;
use crate::mem::{Memory, Target};
use crate::vcpu::{Vcpu, cr0, cr4, efer};

/// Physical-address width of the CPU model (CPUID.80000008H:EAX[7:0]).
pub const MAXPHYADDR: u32 = 39;
/// 1-GiB pages are supported (CPUID.80000001H:EDX[26]).
pub const PAGE_1G: bool = true;

/// Paging-structure entry bits (SDM vol. 3A, tables 4-4 to 4-20).
pub mod pte {
    pub const P: u64 = 1;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
}

/// Page-fault error-code bits (SDM vol. 3A, figure 4-12).
pub mod pf {
    pub const P: u32 = 1;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const ID: u32 = 1 << 4;
}

/// Bits 51:MAXPHYADDR.
const HIGH_ADDR: u64 = ((1 << 52) - 1) & !((1 << MAXPHYADDR) - 1);
/// Bits MAXPHYADDR-1:12 of an 8-byte entry.
const FRAME: u64 = ((1 << MAXPHYADDR) - 1) & !0xfff;

/// Format of the paging structures.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Format {
    /// CR0.PG = 0.
    #[default]
    Off,
    /// 32-bit paging without CR4.PSE.
    Legacy,
    /// 32-bit paging with CR4.PSE: 4-MiB pages, with PSE-36 addresses.
    LegacyPse,
    Pae,
    /// 4-level paging.
    Long,
}

impl Format {
    /// log2 of the bytes an entry of `level` (1 = page table) covers.
    pub const fn shift(self, level: u8) -> u32 {
        match self {
            Format::Legacy | Format::LegacyPse => 12 + 10 * (level as u32 - 1),
            _ => 12 + 9 * (level as u32 - 1),
        }
    }
    /// Entries in a table.
    pub const fn entries(self) -> usize {
        match self {
            Format::Legacy | Format::LegacyPse => 1024,
            _ => 512,
        }
    }
    /// log2 of the bytes of an entry.
    pub const fn entry_shift(self) -> u32 {
        match self {
            Format::Legacy | Format::LegacyPse => 2,
            _ => 3,
        }
    }
    /// Level of the tables a walk starts in (PAE: the page directories the PDPTE registers point to).
    pub const fn top(self) -> u8 {
        match self {
            Format::Long => 4,
            _ => 2,
        }
    }
    /// Index of `lin` in a table of `level`.
    #[inline]
    pub const fn index(self, lin: u64, level: u8) -> usize {
        (lin >> self.shift(level)) as usize & (self.entries() - 1)
    }
    /// Does a present entry of `level` map a page?
    pub const fn is_leaf(self, level: u8, e: u64) -> bool {
        match (level, self) {
            (1, _) => true,
            (2, Format::Legacy) => false,
            (2, _) => e & pte::PS != 0,
            (3, _) => PAGE_1G && e & pte::PS != 0,
            _ => false,
        }
    }
    /// Physical base of the page a leaf entry of `level` maps.
    pub const fn page_base(self, level: u8, e: u64) -> u64 {
        match (self, level) {
            (Format::LegacyPse, 2) => (e & 0xffc0_0000) | ((e >> 13) & 0xff) << 32,
            (Format::Legacy | Format::LegacyPse, _) => e & 0xffff_f000,
            _ => e & FRAME & !((1 << self.shift(level)) - 1),
        }
    }
    /// Physical base of the table an entry points to.
    const fn table_base(self, e: u64) -> u64 {
        match self {
            Format::Legacy | Format::LegacyPse => e & 0xffff_f000,
            _ => e & FRAME,
        }
    }
    /// Reserved bits of a present entry of `level`.
    const fn reserved(self, level: u8, e: u64, nxe: bool) -> u64 {
        let nx = if nxe { 0 } else { pte::NX };
        let leaf = self.is_leaf(level, e);
        match self {
            Format::Off | Format::Legacy => 0,
            // Bits 21:(MAXPHYADDR-19) of a 4-MiB page's entry.
            Format::LegacyPse if level == 2 && leaf => ((1 << 22) - 1) & !((1 << (MAXPHYADDR - 19)) - 1),
            Format::LegacyPse => 0,
            Format::Pae | Format::Long => {
                let high = match self {
                    Format::Pae => HIGH_ADDR | 0x7ff << 52,
                    _ => HIGH_ADDR,
                };
                // Bit 12 of a large page's entry is PAT.
                let low = match level {
                    4 => pte::PS,
                    3 if !leaf => pte::PS,
                    2 | 3 if leaf => ((1 << self.shift(level)) - 1) & !0x1fff,
                    _ => 0,
                };
                high | low | nx
            }
        }
    }
}

/// Everything translation depends on besides memory: the identity of an address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Paging {
    pub format: Format,
    /// CR0.WP.
    pub wp: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// EFER.NXE (only with 8-byte entries).
    pub nxe: bool,
    /// Physical base of the root table; 0 when paging is off and in PAE mode.
    pub root: u64,
    /// The PDPTE registers, in PAE mode only.
    pub pdpte: [u64; 4],
}

impl Paging {
    /// The address space `cpu` runs in.
    pub fn of(cpu: &Vcpu) -> Self {
        if cpu.cr0 & cr0::PG == 0 {
            return Self::default();
        }
        let format = match () {
            _ if cpu.cr4 & cr4::PAE == 0 && cpu.cr4 & cr4::PSE == 0 => Format::Legacy,
            _ if cpu.cr4 & cr4::PAE == 0 => Format::LegacyPse,
            _ if cpu.msr.efer & efer::LMA == 0 => Format::Pae,
            _ => Format::Long,
        };
        let wide = matches!(format, Format::Pae | Format::Long);
        Self {
            format,
            wp: cpu.cr0 & cr0::WP != 0,
            smep: cpu.cr4 & cr4::SMEP != 0,
            smap: cpu.cr4 & cr4::SMAP != 0,
            nxe: wide && cpu.msr.efer & efer::NXE != 0,
            root: match format {
                Format::Pae => 0,
                Format::Long => cpu.cr3 & FRAME,
                _ => cpu.cr3 & 0xffff_f000,
            },
            pdpte: if format == Format::Pae { cpu.pdpte } else { [0; 4] },
        }
    }

    /// Is `access` through `view` allowed on a page with these rights (SDM vol. 3A, 4.6.1)?
    pub const fn allows(&self, rights: Rights, access: Access, view: View) -> bool {
        if matches!(self.format, Format::Off) {
            return true;
        }
        if view.is_user() {
            return rights.user
                && match access {
                    Access::Read => true,
                    Access::Write => rights.write,
                    Access::Exec => !rights.nx,
                };
        }
        let smap = self.smap && rights.user && !matches!(view, View::SupervisorAc);
        match access {
            Access::Read => !smap,
            Access::Write => !smap && (rights.write || !self.wp),
            Access::Exec => !(rights.nx || self.smep && rights.user),
        }
    }

    /// The page fault of `access` to `lin`; `cause` is 0 (not present), P (rights) or P|RSVD.
    pub const fn fault(&self, lin: u64, access: Access, view: View, cause: u32) -> Exception {
        let mut error = cause;
        if view.is_user() {
            error |= pf::U;
        }
        match access {
            Access::Write => error |= pf::W,
            Access::Exec if self.nxe || self.smep => error |= pf::ID,
            _ => {}
        }
        Exception::pf(lin, error)
    }
}

/// Rights of a page: the combination of all levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    pub write: bool,
    pub user: bool,
    pub nx: bool,
}

impl Rights {
    /// Rights before the first level.
    pub const ALL: Rights = Rights { write: true, user: true, nx: false };
    /// Restricts the rights by those of entry `e` (bit 63 counts only if NXE is set: else it is reserved).
    pub const fn and(self, e: u64) -> Rights {
        Rights {
            write: self.write && e & pte::RW != 0,
            user: self.user && e & pte::US != 0,
            nx: self.nx || e & pte::NX != 0,
        }
    }
}

/// One level of a walk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// 1 = page table.
    pub level: u8,
    /// Where the entry lies.
    pub gpa: Gpa,
    pub target: Target,
    pub entry: u64,
}

/// A completed walk.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    steps: [Step; 4],
    len: u8,
    /// The translated address, A20 mask applied.
    pub gpa: Gpa,
    pub rights: Rights,
}

impl Walk {
    /// The entries used, root first; empty when paging is off.
    pub fn steps(&self) -> &[Step] {
        &self.steps[..self.len as usize]
    }
    /// Does the leaf entry have its dirty bit set? True when paging is off.
    pub fn dirty(&self) -> bool {
        self.steps().last().is_none_or(|s| s.entry & pte::D != 0)
    }
    /// Every entry lies in RAM or ROM, so that writes to it can be traced.
    pub fn cacheable(&self) -> bool {
        self.steps().iter().all(|s| s.target != Target::Mmio)
    }

    /// Sets the accessed bits, and for a write the leaf's dirty bit, where they are clear.
    ///
    /// Shadow entries made from other uses of the same entries stay valid: a cached entry has its accessed bit set
    /// already, and one with a clear dirty bit gives no write access. So these writes are not traced as table
    /// writes, except where the byte is not the low one of an entry in every format: the upper half of 8 bytes.
    pub fn set_accessed(&mut self, mem: &mut Memory, write: bool) {
        let last = self.len;
        for (i, s) in self.steps[..last as usize].iter_mut().enumerate() {
            let dirty = if write && i + 1 == last as usize { pte::D } else { 0 };
            let new = s.entry | pte::A | dirty;
            if new != s.entry {
                s.entry = new;
                if let Target::Ram(off) = s.target
                    && !mem.read_only(off)
                {
                    mem.note_accessed(s.gpa, off, s.gpa.0 & 7 != 0);
                    mem.ram.write(off, new as u8);
                }
            }
        }
    }
}

/// Why a walk ended early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Miss {
    NotPresent,
    Reserved,
}

impl Miss {
    /// The cause bits of the page-fault error code.
    pub const fn cause(self) -> u32 {
        match self {
            Miss::NotPresent => 0,
            Miss::Reserved => pf::P | pf::RSVD,
        }
    }
}

/// Walks the tables for `lin` without side effects; rights are collected, not checked.
pub fn walk(mem: &Memory, paging: &Paging, lin: u64) -> Result<Walk, Miss> {
    let format = paging.format;
    let none = Step { level: 0, gpa: Gpa(0), target: Target::Mmio, entry: 0 };
    let mut w = Walk { steps: [none; 4], len: 0, gpa: Gpa(lin & mem.a20_mask), rights: Rights::ALL };
    let mut table = match format {
        Format::Off => return Ok(w),
        Format::Pae => {
            let e = paging.pdpte[(lin >> 30) as usize & 3];
            if e & pte::P == 0 {
                return Err(Miss::NotPresent);
            }
            e & FRAME
        }
        _ => paging.root,
    };
    let mut level = format.top();
    loop {
        let gpa = Gpa((table + ((format.index(lin, level) as u64) << format.entry_shift())) & mem.a20_mask);
        let (target, e) = read_entry(mem, gpa, format);
        if e & pte::P == 0 {
            return Err(Miss::NotPresent);
        }
        if e & format.reserved(level, e, paging.nxe) != 0 {
            return Err(Miss::Reserved);
        }
        w.rights = w.rights.and(e);
        w.steps[w.len as usize & 3] = Step { level, gpa, target, entry: e };
        w.len += 1;
        if format.is_leaf(level, e) {
            let offset = lin & ((1 << format.shift(level)) - 1);
            w.gpa = Gpa((format.page_base(level, e) | offset) & mem.a20_mask);
            return Ok(w);
        }
        table = format.table_base(e);
        level -= 1;
    }
}

fn read_entry(mem: &Memory, gpa: Gpa, format: Format) -> (Target, u64) {
    let target = mem.map.lookup(gpa);
    let e = match (target, format.entry_shift()) {
        (Target::Ram(off) | Target::Rom(off), 2) => u64::from(mem.ram.read::<u32>(off)),
        (Target::Ram(off) | Target::Rom(off), _) => mem.ram.read(off),
        (Target::Mmio, 2) => u64::from(u32::MAX),
        (Target::Mmio, _) => u64::MAX,
    };
    (target, e)
}
