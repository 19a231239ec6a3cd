//! PVH direct boot. Owns the `hvm_start_info` structure.
//! Source: the Xen public header arch-x86/hvm/start_info.h and docs/misc/pvh.

use super::bytes::{Build, c_string};
use super::elf::Elf;
use super::memory_map::memory_map;
use super::{Boot, LoadError, entry, linux};
use crate::vcpu::gpr;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// Loads `elf` and enters it at `pvh_entry` with EBX pointing to the start info.
pub(super) fn load(elf: &Elf<'_>, pvh_entry: u64, mut boot: Boot<'_>) -> Result<(), LoadError> {
    if pvh_entry > u64::from(u32::MAX) {
        return Err(LoadError::invalid("ELF kernel", format!("PVH entry {pvh_entry:#x} is above 4 GiB")));
    }
    elf.load(&mut boot.layout)?;
    let module = linux::place_initrd(&mut boot, linux::initrd_max(elf))?;
    let cmdline = boot.layout.put_low("--append", &c_string(&boot.images.cmdline), 16, 0)?;
    let mut list = Build::default();
    if let Some((at, len)) = module {
        list.u64(at).u64(len).u64(0).u64(0);
    }
    let modules = boot.layout.put_low("PVH module list", &list.0, 16, 0)?;
    let map = memory_map(&boot.layout.mem.map);
    let mut entries = Build::default();
    for e in &map {
        entries.u64(e.start).u64(e.len).u32(e.kind as u32).u32(0);
    }
    let entries_at = boot.layout.put_low("PVH memory map", &entries.0, 16, 0)?;
    let mut info = Build::default();
    info.u32(MAGIC).u32(VERSION).u32(0).u32(u32::from(module.is_some()));
    info.u64(if module.is_some() { modules } else { 0 }).u64(cmdline).u64(boot.rsdp);
    info.u64(entries_at).u32(map.len() as u32).u32(0);
    let info = boot.layout.put_low("PVH start info", &info.0, 16, 0)?;
    entry::protected_mode(&mut boot, entry::LINUX, pvh_entry, 0)?;
    boot.cpu.gpr[gpr::RBX] = info;
    Ok(())
}
