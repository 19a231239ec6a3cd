//! Decoded page walks for people: every level's entry with its flags by name. Reads physical memory only; sets no
//! accessed or dirty bit. Source: SDM vol. 3A, chapter 4.

use crate::inspect::Inspect;
use retrovisor_core::vcpu::{Vcpu, cr0, cr4, efer};
use retrovisor_core::{Gpa, Gva};
use std::fmt;

/// Paging modes (SDM vol. 3A, 4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paging {
    Off,
    Bits32,
    Pae,
    Level4,
}

/// One table entry met on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level {
    /// Name of the entry: "PML4E", "PDPTE", "PDE", "PTE".
    pub name: &'static str,
    /// Where it is; `None`: in a register (the PDPTEs of PAE paging).
    pub at: Option<Gpa>,
    /// Its value; `None`: it lies outside memory.
    pub entry: Option<u64>,
    /// It maps a page.
    pub leaf: bool,
    pub paging: Paging,
}

/// A walk: the entries, and where it ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walk {
    pub paging: Paging,
    pub cr3: u64,
    pub levels: Vec<Level>,
    /// The translation and the page's size in bytes.
    pub result: Result<(Gpa, u64), NotMapped>,
}

/// Why there is no translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotMapped {
    /// The entry of this name has P clear.
    NotPresent(&'static str),
    /// A table lies outside memory.
    OutsideMemory(&'static str),
    /// Bits 63:47 are not all equal.
    NotCanonical,
}

const P: u64 = 1;
const PS: u64 = 1 << 7;
const PAE_ADDR: u64 = 0x000f_ffff_ffff_f000;

/// The paging mode of a vCPU.
pub fn paging(cpu: &Vcpu) -> Paging {
    match () {
        _ if cpu.cr0 & cr0::PG == 0 => Paging::Off,
        _ if cpu.msr.efer & efer::LMA != 0 => Paging::Level4,
        _ if cpu.cr4 & cr4::PAE != 0 => Paging::Pae,
        _ => Paging::Bits32,
    }
}

struct Walker<'a, 'vm> {
    machine: &'a Inspect<'vm>,
    levels: Vec<Level>,
    paging: Paging,
}

impl Walker<'_, '_> {
    /// Reads the entry at `at`; an error if it is outside memory or not present.
    fn fetch(&mut self, name: &'static str, at: u64) -> Result<u64, NotMapped> {
        let mut buf = [0; 8];
        let size = if self.paging == Paging::Bits32 { 4 } else { 8 };
        let readable = self.machine.read_physical(Gpa(at), &mut buf[..size]) == size;
        let entry = readable.then_some(u64::from_le_bytes(buf));
        self.note(name, Some(Gpa(at)), entry)
    }

    fn note(&mut self, name: &'static str, at: Option<Gpa>, entry: Option<u64>) -> Result<u64, NotMapped> {
        self.levels.push(Level { name, at, entry, leaf: false, paging: self.paging });
        match entry {
            None => Err(NotMapped::OutsideMemory(name)),
            Some(e) if e & P == 0 => Err(NotMapped::NotPresent(name)),
            Some(e) => Ok(e),
        }
    }

    fn leaf(&mut self, base: u64, size: u64, lin: u64) -> Result<(Gpa, u64), NotMapped> {
        if let Some(level) = self.levels.last_mut() {
            level.leaf = true;
        }
        Ok((Gpa((base & !(size - 1)) | (lin & (size - 1))), size))
    }

    fn bits32(&mut self, cpu: &Vcpu, lin: u64) -> Result<(Gpa, u64), NotMapped> {
        let pde = self.fetch("PDE", (cpu.cr3 & 0xffff_f000) + (lin >> 22 & 0x3ff) * 4)?;
        if pde & PS != 0 && cpu.cr4 & cr4::PSE != 0 {
            // PSE-36: bits 20:13 are address bits 39:32.
            return self.leaf(pde & 0xffc0_0000 | (pde >> 13 & 0xff) << 32, 1 << 22, lin);
        }
        let pte = self.fetch("PTE", (pde & 0xffff_f000) + (lin >> 12 & 0x3ff) * 4)?;
        self.leaf(pte & 0xffff_f000, 1 << 12, lin)
    }

    fn pae(&mut self, cpu: &Vcpu, lin: u64) -> Result<(Gpa, u64), NotMapped> {
        let pdpte = self.note("PDPTE", None, Some(cpu.pdpte[(lin >> 30 & 3) as usize]))?;
        self.directory(pdpte, lin)
    }

    fn level4(&mut self, cpu: &Vcpu, lin: u64) -> Result<(Gpa, u64), NotMapped> {
        let sign = lin as i64 >> 47;
        if sign != 0 && sign != -1 {
            return Err(NotMapped::NotCanonical);
        }
        let pml4e = self.fetch("PML4E", (cpu.cr3 & PAE_ADDR) + (lin >> 39 & 0x1ff) * 8)?;
        let pdpte = self.fetch("PDPTE", (pml4e & PAE_ADDR) + (lin >> 30 & 0x1ff) * 8)?;
        if pdpte & PS != 0 {
            return self.leaf(pdpte & PAE_ADDR, 1 << 30, lin);
        }
        self.directory(pdpte, lin)
    }

    fn directory(&mut self, pdpte: u64, lin: u64) -> Result<(Gpa, u64), NotMapped> {
        let pde = self.fetch("PDE", (pdpte & PAE_ADDR) + (lin >> 21 & 0x1ff) * 8)?;
        if pde & PS != 0 {
            return self.leaf(pde & PAE_ADDR, 1 << 21, lin);
        }
        let pte = self.fetch("PTE", (pde & PAE_ADDR) + (lin >> 12 & 0x1ff) * 8)?;
        self.leaf(pte & PAE_ADDR, 1 << 12, lin)
    }
}

/// Walks the page tables of `cpu` for a linear address.
pub fn walk(machine: &Inspect<'_>, cpu: &Vcpu, gva: Gva) -> Walk {
    let paging = paging(cpu);
    let mut walker = Walker { machine, levels: Vec::new(), paging };
    let lin = if paging == Paging::Level4 { gva.0 } else { gva.0 & 0xffff_ffff };
    let result = match paging {
        Paging::Off => Ok((Gpa(lin), 1 << 12)),
        Paging::Bits32 => walker.bits32(cpu, lin),
        Paging::Pae => walker.pae(cpu, lin),
        Paging::Level4 => walker.level4(cpu, lin),
    };
    Walk { paging, cr3: cpu.cr3, levels: walker.levels, result }
}

/// Names of the flags set in an entry, in the manual's words.
pub fn flag_names(entry: u64, leaf: bool, name: &str, paging: Paging) -> String {
    let small = name == "PTE";
    let pae_pdpte = paging == Paging::Pae && name == "PDPTE";
    let mut out = Vec::new();
    let mut flag = |bit: u32, text: &'static str| {
        if entry >> bit & 1 != 0 {
            out.push(text);
        }
    };
    flag(0, "P");
    if !pae_pdpte {
        flag(1, "R/W");
        flag(2, "U/S");
    }
    flag(3, "PWT");
    flag(4, "PCD");
    if !pae_pdpte {
        flag(5, "A");
    }
    if leaf {
        flag(6, "D");
        flag(7, if small { "PAT" } else { "PS" });
        flag(8, "G");
        if !small {
            flag(12, "PAT");
        }
    }
    if paging != Paging::Bits32 {
        flag(63, "XD");
    }
    if out.is_empty() { "-".into() } else { out.join(" ") }
}

impl fmt::Display for NotMapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotMapped::NotPresent(name) => write!(f, "not mapped: {name} is not present"),
            NotMapped::OutsideMemory(name) => write!(f, "not mapped: the {name} lies outside memory"),
            NotMapped::NotCanonical => f.write_str("not mapped: the address is not canonical"),
        }
    }
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.paging {
            Paging::Off => return self.fmt_result(f, "paging is off"),
            Paging::Bits32 => "32-bit paging",
            Paging::Pae => "PAE paging",
            Paging::Level4 => "4-level paging",
        };
        writeln!(f, "{mode}, CR3 {:#x}", self.cr3)?;
        for level in &self.levels {
            let at = level.at.map_or("in a register".into(), |at| format!("at {at}"));
            match level.entry {
                Some(e) => {
                    let flags = flag_names(e, level.leaf, level.name, level.paging);
                    writeln!(f, "{:<6} {at:<22} {e:#018x}  {flags}", level.name)?;
                }
                None => writeln!(f, "{:<6} {at:<22} (no memory there)", level.name)?,
            }
        }
        self.fmt_result(f, "")
    }
}

impl Walk {
    fn fmt_result(&self, f: &mut fmt::Formatter<'_>, prefix: &str) -> fmt::Result {
        if !prefix.is_empty() {
            write!(f, "{prefix}: ")?;
        }
        match &self.result {
            Ok((gpa, size)) => {
                let size = match size >> 20 {
                    0 => format!("{} KiB", size >> 10),
                    1..1024 => format!("{} MiB", size >> 20),
                    _ => format!("{} GiB", size >> 30),
                };
                write!(f, "physical {gpa} ({size} page)")
            }
            Err(why) => write!(f, "{why}"),
        }
    }
}
