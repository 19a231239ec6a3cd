//! Multiboot 1. Owns its header, its information structure, and loading by the header's own addresses.
//! Source: Multiboot Specification 0.6.96.

use super::bytes::{Build, c_string, low32, slice_at, u32_at};
use super::elf::Elf;
use super::memory_map::{lower_upper_kib, memory_map};
use super::{Boot, LoadError, entry};
use crate::addr::PAGE_SIZE;
use crate::vcpu::gpr;

const WHAT: &str = "multiboot kernel";
const HEADER_MAGIC: u32 = 0x1bad_b002;
const BOOT_MAGIC: u64 = 0x2bad_b002;
/// The header lies in this many first bytes of the file.
const SEARCH: u64 = 8192;
/// Header flags: what the kernel demands (bits 0-15).
const WANTS_VIDEO: u32 = 1 << 2;
const UNDERSTOOD: u32 = 1 | 1 << 1 | WANTS_VIDEO;
/// Header flag: the header's own addresses say where to load.
const HAS_ADDRESSES: u32 = 1 << 16;
/// Information flags: memory sizes, command line, modules, memory map, loader name.
const INFO_FLAGS: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
/// Size of the information structure, the fields for APM, VBE and framebuffer (all absent) included.
const INFO_SIZE: usize = 116;

/// Load addresses given by a header instead of by ELF program headers (both multiboot versions).
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub header: u64,
    pub load: u64,
    /// End of the bytes to load; 0: the whole file.
    pub load_end: u64,
    /// End of the bss; 0: none.
    pub bss_end: u64,
}

/// A multiboot 1 header.
#[derive(Debug)]
pub(super) struct Header {
    /// File offset.
    offset: u64,
    flags: u32,
    /// Addresses and entry.
    addresses: Option<(Addresses, u64)>,
}

impl Header {
    /// The first header with a valid checksum in the first 8 KiB.
    pub fn find(file: &[u8]) -> Option<Self> {
        (0..SEARCH.min(file.len() as u64)).step_by(4).find_map(|at| Self::read(file, at))
    }

    fn read(file: &[u8], at: u64) -> Option<Self> {
        let word = |n: u64| u32_at(file, at + n * 4);
        let (magic, flags, checksum) = (word(0)?, word(1)?, word(2)?);
        if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
            return None;
        }
        let field = |n: u64| word(n).map(u64::from);
        let addresses = if flags & HAS_ADDRESSES != 0 {
            let a = Addresses { header: field(3)?, load: field(4)?, load_end: field(5)?, bss_end: field(6)? };
            Some((a, field(7)?))
        } else {
            None
        };
        Some(Self { offset: at, flags, addresses })
    }
}

impl Addresses {
    /// Loads `file`, whose header is at file offset `header_offset`.
    pub fn load(&self, file: &[u8], header_offset: u64, boot: &mut Boot<'_>) -> Result<(), LoadError> {
        let bad =
            |why: &str| LoadError::invalid(WHAT, format!("its header's addresses are inconsistent: {why}"));
        let before = self.header.checked_sub(self.load).ok_or_else(|| bad("header_addr below load_addr"))?;
        let start = header_offset.checked_sub(before).ok_or_else(|| bad("load_addr lies before the file"))?;
        let len = match self.load_end {
            0 => (file.len() as u64).saturating_sub(start),
            end => end.checked_sub(self.load).ok_or_else(|| bad("load_end_addr below load_addr"))?,
        };
        let bytes =
            slice_at(file, start, len).ok_or_else(|| bad("load_end_addr lies beyond the end of the file"))?;
        let end = self.load + len;
        let bss_end = if self.bss_end == 0 { end } else { self.bss_end };
        let bss = bss_end.checked_sub(end).ok_or_else(|| bad("bss_end_addr below load_end_addr"))?;
        boot.layout.claim(WHAT, self.load, len + bss)?;
        boot.layout.write(self.load, bytes)?;
        boot.layout.zero(end, bss)
    }
}

/// Loads a multiboot 1 kernel.
pub(super) fn load(file: &[u8], header: &Header, mut boot: Boot<'_>) -> Result<(), LoadError> {
    let unknown = header.flags & 0xffff & !UNDERSTOOD;
    if unknown != 0 {
        let why = format!("its multiboot header demands features {unknown:#06x} this loader does not know");
        return Err(LoadError::invalid(WHAT, why));
    }
    let rip = match &header.addresses {
        Some((addresses, entry)) => {
            addresses.load(file, header.offset, &mut boot)?;
            *entry
        }
        None => load_elf(&Elf::parse(file)?, &mut boot)?,
    };
    let info = write_info(&mut boot)?;
    let above = boot.layout.used_end();
    entry::protected_mode(&mut boot, entry::MULTIBOOT, rip, above)?;
    boot.cpu.gpr[gpr::RAX] = BOOT_MAGIC;
    boot.cpu.gpr[gpr::RBX] = info;
    Ok(())
}

/// Loads the ELF file of a multiboot kernel and returns its entry.
pub(super) fn load_elf(elf: &Elf<'_>, boot: &mut Boot<'_>) -> Result<u64, LoadError> {
    elf.load(&mut boot.layout)?;
    let rip = elf.physical_entry();
    if rip > u64::from(u32::MAX) {
        let why = format!("its entry {rip:#x} cannot be reached from 32-bit mode");
        return Err(LoadError::invalid(WHAT, why));
    }
    Ok(rip)
}

/// Name of the loader, as told to the guest.
pub(super) const LOADER_NAME: &str = "Retrovisor";

/// The command line with the kernel's name in front, as multiboot kernels expect it.
pub(super) fn command_line(boot: &Boot<'_>) -> String {
    let name = if boot.images.kernel_name.is_empty() { "kernel" } else { &boot.images.kernel_name };
    if boot.images.cmdline.is_empty() { name.to_string() } else { format!("{name} {}", boot.images.cmdline) }
}

/// Places the module, if there is one, page-aligned above everything loaded so far.
pub(super) fn place_module(boot: &mut Boot<'_>) -> Result<Option<(u64, u64)>, LoadError> {
    let Some(module) = boot.images.initrd.as_deref() else {
        return Ok(None);
    };
    let above = boot.layout.used_end();
    let at = boot.layout.put_low("--initrd", module, PAGE_SIZE, above)?;
    Ok(Some((at, module.len() as u64)))
}

/// Writes the information structure, and what it points to, above everything else; returns its address.
fn write_info(boot: &mut Boot<'_>) -> Result<u64, LoadError> {
    let module = place_module(boot)?;
    let above = boot.layout.used_end();
    let mut put = |bytes: &[u8]| boot.layout.put_low("multiboot information", bytes, 16, above);
    let loader = put(&c_string(LOADER_NAME))?;
    let module_name = put(&c_string("initrd"))?;
    let mut list = Build::default();
    if let Some((at, len)) = module {
        list.u32(low32(at)).u32(low32(at + len)).u32(low32(module_name)).u32(0);
    }
    let mods = put(&list.0)?;
    let cmdline = c_string(&command_line(boot));
    let cmdline = boot.layout.put_low("--append", &cmdline, 16, above)?;
    let mut map = Build::default();
    for e in memory_map(&boot.layout.mem.map) {
        map.u32(20).u64(e.start).u64(e.len).u32(e.kind as u32);
    }
    let map_at = boot.layout.put_low("multiboot information", &map.0, 16, above)?;
    let (lower, upper) = lower_upper_kib(&boot.layout.mem.map);
    let mut info = Build::default();
    info.u32(INFO_FLAGS).u32(lower).u32(upper).u32(0).u32(low32(cmdline));
    info.u32(u32::from(module.is_some())).u32(low32(mods));
    info.bytes(&[0; 16]).u32(map.0.len() as u32).u32(low32(map_at));
    info.bytes(&[0; 12]).u32(low32(loader));
    info.0.resize(INFO_SIZE, 0);
    boot.layout.put_low("multiboot information", &info.0, 16, above)
}
