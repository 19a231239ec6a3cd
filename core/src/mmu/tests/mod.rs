//! Tests of the MMU against guest page tables built by hand.
#![allow(clippy::unwrap_used)]

mod arrays;
mod coherence;
mod paging;
mod random;
mod segments;
mod watch;

use crate::addr::Gpa;
use crate::clock::{Clock, ClockKind};
use crate::ctx::{Ctx, System};
use crate::engine::hooks::Observer;
use crate::exception::Exception;
use crate::input::NoInput;
use crate::machine::board::Board;
use crate::machine::config::MachineConfig;
use crate::mem::{Memory, Pod};
use crate::mmu::walk::Format;
use crate::mmu::{Access, Mmu, Privilege};
use crate::output::NullSink;
use crate::vcpu::cpuid::CpuModel;
use crate::vcpu::segment::{Segment, attr};
use crate::vcpu::{Vcpu, cr0, cr4, efer};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 0x20;
pub const D: u64 = 0x40;
pub const PS: u64 = 0x80;
pub const NX: u64 = 1 << 63;

/// Where tests build their root table.
pub const ROOT: u64 = 0x10_0000;

/// A vCPU and a system of 16 MiB without devices.
pub struct Rig {
    pub cpu: Vcpu,
    pub sys: System,
    /// Next free table page.
    next: u64,
}

impl Rig {
    pub fn new(format: Format) -> Self {
        Self::with_memory(format, 16 << 20)
    }

    pub fn with_memory(format: Format, memory: u64) -> Self {
        let config = MachineConfig { memory, ..MachineConfig::default() };
        let sys = System {
            icount: 0,
            asked: 0,
            limit: u64::MAX,
            mem: Memory::new(config.memory, 16).unwrap(),
            mmu: Mmu::new(),
            board: Board::new(&config),
            clock: Clock::new(ClockKind::Virtual),
            input: Box::new(NoInput),
            output: Box::new(NullSink),
            interrupts: Default::default(),
            observer: Observer::default(),
        };
        let mut rig = Self { cpu: Vcpu::new(0, CpuModel::default()), sys, next: ROOT + 0x1000 };
        rig.set_format(format);
        rig
    }

    /// Enters flat protected or 64-bit mode with paging of `format`, CPL 0, root table at [`ROOT`].
    pub fn set_format(&mut self, format: Format) {
        let c = &mut self.cpu;
        c.cr0 = cr0::PE | cr0::ET | if format == Format::Off { 0 } else { cr0::PG | cr0::WP };
        c.cr4 = match format {
            Format::Off | Format::Legacy => 0,
            Format::LegacyPse => cr4::PSE,
            Format::Pae | Format::Long => cr4::PAE,
        };
        c.msr.efer = match format {
            Format::Long => efer::LME | efer::LMA | efer::NXE,
            Format::Pae => efer::NXE,
            _ => 0,
        };
        c.cr3 = ROOT;
        c.pdpte = std::array::from_fn(|i| (ROOT + 0x1000 * i as u64) | P);
        if format == Format::Pae {
            self.next = ROOT + 0x4000;
        }
        self.set_cpl(0);
    }

    pub fn set_cpl(&mut self, cpl: u32) {
        let long = self.cpu.msr.efer & efer::LMA != 0;
        let a = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::G | cpl << 5;
        for s in &mut self.cpu.seg {
            *s = Segment { selector: 8, base: 0, limit: u32::MAX, attr: a | attr::DB, lin_base: 0, fast: 0 };
        }
        self.cpu.seg[1].attr = a | attr::CODE | if long { attr::L } else { attr::DB };
        self.cpu.refresh();
        self.ctx().mmu_switch();
    }

    pub fn ctx(&mut self) -> Ctx<'_> {
        Ctx { cpu: &mut self.cpu, sys: &mut self.sys }
    }

    pub fn format(&self) -> Format {
        crate::mmu::Paging::of(&self.cpu).format
    }

    /// Writes an entry as a device would.
    pub fn poke(&mut self, at: u64, e: u64) {
        let b = e.to_le_bytes();
        let n = 1 << self.format().entry_shift();
        assert!(self.sys.mem.write_phys(Gpa(at), &b[..n]));
    }

    pub fn peek(&self, at: u64) -> u64 {
        let mut b = [0; 8];
        let n = 1 << self.format().entry_shift();
        assert!(self.sys.mem.read_phys(Gpa(at), &mut b[..n]));
        u64::from_le_bytes(b)
    }

    /// Where the entry of `lin` at `level` lies; intermediate tables (all rights) are made as needed.
    pub fn entry_at(&mut self, lin: u64, level: u8) -> u64 {
        let f = self.format();
        let mut table = match f {
            Format::Pae => self.cpu.pdpte[(lin >> 30) as usize & 3] & !0xfff,
            _ => self.cpu.cr3 & !0xfff,
        };
        let mut l = f.top();
        loop {
            let at = table + ((f.index(lin, l) as u64) << f.entry_shift());
            if l == level {
                return at;
            }
            if self.peek(at) & P == 0 {
                let t = self.next;
                self.next += 0x1000;
                self.poke(at, t | P | W | U);
            }
            table = self.peek(at) & 0x7f_ffff_f000;
            l -= 1;
        }
    }

    /// Maps the 4-KiB page of `lin` with the given leaf entry; returns where the entry is.
    pub fn map(&mut self, lin: u64, entry: u64) -> u64 {
        let at = self.entry_at(lin, 1);
        self.poke(at, entry);
        at
    }

    pub fn read<T: Pod>(&mut self, lin: u64) -> Result<T, Exception> {
        self.ctx().load(3, lin)
    }
    pub fn write<T: Pod>(&mut self, lin: u64, v: T) -> Result<(), Exception> {
        self.ctx().store(3, lin, v)
    }
    pub fn fetch(&mut self, lin: u64) -> Result<u64, Exception> {
        self.ctx().translate_fetch(lin).map(|g| g.0)
    }

    /// The error code of the page fault an access raises, or `None`.
    pub fn error(&mut self, lin: u64, access: Access) -> Option<u32> {
        let r = match access {
            Access::Read => self.read::<u8>(lin).map(drop),
            Access::Write => self.write(lin, 0u8),
            Access::Exec => self.fetch(lin).map(drop),
        };
        let e = r.err()?;
        assert_eq!((e.vector, e.addr), (14, lin));
        Some(e.error)
    }

    pub fn read_system(&mut self, lin: u64) -> Result<u8, Exception> {
        self.ctx().read_lin(lin, Privilege::System)
    }
}

pub const PAGED: [Format; 4] = [Format::Legacy, Format::LegacyPse, Format::Pae, Format::Long];
