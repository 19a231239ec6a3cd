//! Multiboot 2. Owns its header tags and its information tags.
//! Source: Multiboot2 Specification version 2.0.

use super::bytes::{Build, c_string, low32, slice_at, u16_at, u32_at};
use super::elf::Elf;
use super::memory_map::{lower_upper_kib, memory_map};
use super::multiboot::{self, Addresses, LOADER_NAME};
use super::{Boot, LoadError, entry};
use crate::addr::Gpa;
use crate::vcpu::gpr;

const WHAT: &str = "multiboot2 kernel";
const HEADER_MAGIC: u32 = 0xe852_50d6;
const BOOT_MAGIC: u64 = 0x36d7_6289;
const SEARCH: u64 = 32 << 10;
/// Architecture field: 32-bit protected mode of i386.
const ARCH_I386: u32 = 0;

/// Header tags.
mod tag {
    pub const END: u16 = 0;
    pub const INFORMATION_REQUEST: u16 = 1;
    pub const ADDRESS: u16 = 2;
    pub const ENTRY: u16 = 3;
    pub const CONSOLE: u16 = 4;
    pub const FRAMEBUFFER: u16 = 5;
    pub const MODULE_ALIGN: u16 = 6;
    pub const EFI_BOOT_SERVICES: u16 = 7;
    pub const EFI_ENTRY_32: u16 = 8;
    pub const EFI_ENTRY_64: u16 = 9;
    pub const RELOCATABLE: u16 = 10;
    /// Flag: a loader that does not know the tag may go on.
    pub const OPTIONAL: u16 = 1;
}

/// Information tags.
mod info {
    pub const END: u32 = 0;
    pub const CMDLINE: u32 = 1;
    pub const LOADER: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const BASIC_MEMORY: u32 = 4;
    pub const MEMORY_MAP: u32 = 6;
    pub const FRAMEBUFFER: u32 = 8;
    pub const ELF_SECTIONS: u32 = 9;
    pub const ACPI_OLD: u32 = 14;
    pub const ACPI_NEW: u32 = 15;
    pub const LOAD_BASE: u32 = 21;
    /// Tags a kernel may demand: those this loader gives whenever they apply.
    #[rustfmt::skip]
    pub const KNOWN: [u32; 10] = [
        CMDLINE, LOADER, MODULE, BASIC_MEMORY, MEMORY_MAP, FRAMEBUFFER, ELF_SECTIONS, ACPI_OLD, ACPI_NEW, LOAD_BASE,
    ];
}

/// A multiboot 2 header.
#[derive(Debug, Default)]
pub(super) struct Header {
    /// File offset.
    offset: u64,
    addresses: Option<Addresses>,
    entry: Option<u64>,
    /// The image may be placed anywhere in this range (first and last byte); it is loaded where it was linked.
    relocatable: Option<(u64, u64)>,
}

impl Header {
    /// The first header with a valid checksum in the first 32 KiB.
    ///
    /// # Errors
    /// [`LoadError::Invalid`] if its tags are malformed or demand what this loader does not give.
    pub fn find(file: &[u8]) -> Result<Option<Self>, LoadError> {
        for at in (0..SEARCH.min(file.len() as u64)).step_by(8) {
            let word = |n: u64| u32_at(file, at + n * 4);
            let (Some(HEADER_MAGIC), Some(arch), Some(len), Some(sum)) = (word(0), word(1), word(2), word(3))
            else {
                continue;
            };
            if HEADER_MAGIC.wrapping_add(arch).wrapping_add(len).wrapping_add(sum) != 0 {
                continue;
            }
            if arch != ARCH_I386 {
                return Err(LoadError::invalid(
                    WHAT,
                    format!("not for x86: its header names architecture {arch}"),
                ));
            }
            let tags = slice_at(file, at, u64::from(len))
                .ok_or_else(|| LoadError::invalid(WHAT, "truncated: its header reaches beyond the file"))?;
            return Self::read(tags, at).map(Some);
        }
        Ok(None)
    }

    /// Reads the tags of `header`, which lies at file offset `offset`.
    fn read(header: &[u8], offset: u64) -> Result<Self, LoadError> {
        let mut out = Self { offset, ..Self::default() };
        let mut at = 16u64;
        loop {
            let (Some(kind), Some(flags), Some(size)) =
                (u16_at(header, at), u16_at(header, at + 2), u32_at(header, at + 4))
            else {
                return Err(LoadError::invalid(WHAT, "its header has no end tag"));
            };
            if kind == tag::END {
                return Ok(out);
            }
            let body =
                u64::from(size).checked_sub(8).and_then(|len| slice_at(header, at + 8, len)).ok_or_else(
                    || LoadError::invalid(WHAT, format!("header tag {kind} has a bad size, {size}")),
                )?;
            out.apply(kind, flags & tag::OPTIONAL != 0, body)?;
            at += u64::from(size).next_multiple_of(8);
        }
    }

    fn apply(&mut self, kind: u16, optional: bool, body: &[u8]) -> Result<(), LoadError> {
        let short = || LoadError::invalid(WHAT, format!("header tag {kind} is too short"));
        let word = |n: u64| u32_at(body, n * 4).map(u64::from).ok_or_else(short);
        match kind {
            tag::INFORMATION_REQUEST if !optional => {
                let wanted = body.chunks_exact(4).filter_map(|b| u32_at(b, 0));
                if let Some(t) = wanted.into_iter().find(|t| !info::KNOWN.contains(t)) {
                    return Err(LoadError::invalid(
                        WHAT,
                        format!("demands information tag {t}, which is not given"),
                    ));
                }
            }
            tag::ADDRESS => {
                let (header, load, load_end, bss_end) = (word(0)?, word(1)?, word(2)?, word(3)?);
                self.addresses = Some(Addresses { header, load, load_end, bss_end });
            }
            tag::ENTRY => self.entry = Some(word(0)?),
            tag::RELOCATABLE => self.relocatable = Some((word(0)?, word(1)?)),
            tag::INFORMATION_REQUEST
            | tag::CONSOLE
            | tag::FRAMEBUFFER
            | tag::MODULE_ALIGN
            | tag::EFI_BOOT_SERVICES
            | tag::EFI_ENTRY_32
            | tag::EFI_ENTRY_64 => {}
            _ if optional => {}
            _ => {
                return Err(LoadError::invalid(
                    WHAT,
                    format!("its header demands tag {kind}, which is not known"),
                ));
            }
        }
        Ok(())
    }
}

/// Loads a multiboot 2 kernel; `elf` is the file if it is one.
pub(super) fn load(
    file: &[u8],
    elf: Option<&Elf<'_>>,
    header: &Header,
    mut boot: Boot<'_>,
) -> Result<(), LoadError> {
    let elf_entry = match (&header.addresses, elf) {
        (Some(addresses), _) => {
            addresses.load(file, header.offset, &mut boot)?;
            None
        }
        (None, Some(elf)) => Some(multiboot::load_elf(elf, &mut boot)?),
        (None, None) => {
            return Err(LoadError::invalid(WHAT, "neither an ELF file nor a header with an address tag"));
        }
    };
    let rip =
        header.entry.or(elf_entry).ok_or_else(|| LoadError::invalid(WHAT, "has no entry address tag"))?;
    let base = load_base(header, &boot)?;
    let module = multiboot::place_module(&mut boot)?;
    let sections = elf.filter(|_| header.addresses.is_none()).and_then(|elf| elf_sections(elf, &mut boot));
    let information = information(&boot, module, base, sections);
    let above = boot.layout.used_end();
    let at = boot.layout.put_low("multiboot2 information", &information, 16, above)?;
    let above = boot.layout.used_end();
    entry::protected_mode(&mut boot, entry::LINUX, rip, above)?;
    boot.cpu.gpr[gpr::RAX] = BOOT_MAGIC;
    boot.cpu.gpr[gpr::RBX] = at;
    Ok(())
}

/// Where a relocatable image was loaded: the address it was linked for, which must be one it accepts.
fn load_base(header: &Header, boot: &Boot<'_>) -> Result<Option<u64>, LoadError> {
    let Some((min, max)) = header.relocatable else {
        return Ok(None);
    };
    let (base, end) = (boot.layout.used_start(), boot.layout.used_end());
    if base < min || end.saturating_sub(1) > max {
        let why = format!(
            "linked for {base:#x}-{end:#x}, outside the range its relocatable tag allows ({min:#x}-{max:#x})"
        );
        return Err(LoadError::invalid(WHAT, why));
    }
    Ok(Some(base))
}

/// Appends a tag.
fn put(out: &mut Build, kind: u32, body: &[u8]) {
    out.align(8).u32(kind).u32(body.len() as u32 + 8).bytes(body);
}

/// Builds the information structure.
fn information(
    boot: &Boot<'_>,
    module: Option<(u64, u64)>,
    base: Option<u64>,
    sections: Option<Vec<u8>>,
) -> Vec<u8> {
    let mut out = Build::default();
    out.u64(0);
    put(&mut out, info::CMDLINE, &c_string(&multiboot::command_line(boot)));
    put(&mut out, info::LOADER, &c_string(LOADER_NAME));
    let mut body = Build::default();
    if let Some((at, len)) = module {
        body.u32(low32(at)).u32(low32(at + len)).bytes(&c_string("initrd"));
        put(&mut out, info::MODULE, &body.0);
    }
    let (lower, upper) = lower_upper_kib(&boot.layout.mem.map);
    put(&mut out, info::BASIC_MEMORY, Build::default().u32(lower).u32(upper).0.as_slice());
    let mut map = Build::default();
    map.u32(24).u32(0);
    for e in memory_map(&boot.layout.mem.map) {
        map.u64(e.start).u64(e.len).u32(e.kind as u32).u32(0);
    }
    put(&mut out, info::MEMORY_MAP, &map.0);
    // The VGA text screen: address, pitch, columns, rows, bits per cell, type 2 (EGA text).
    let mut screen = Build::default();
    screen.u64(0xb8000).u32(160).u32(80).u32(25).u8(16).u8(2).u16(0);
    put(&mut out, info::FRAMEBUFFER, &screen.0);
    if let Some(sections) = sections {
        put(&mut out, info::ELF_SECTIONS, &sections);
    }
    acpi(boot, &mut out);
    if let Some(base) = base {
        put(&mut out, info::LOAD_BASE, &low32(base).to_le_bytes());
    }
    put(&mut out, info::END, &[]);
    let len = out.0.len() as u32;
    out.patch_u32(0, len);
    out.0
}

/// The body of the ELF-sections tag. Symbol and string tables, which no segment loads, are placed above everything
/// else and their headers' addresses set; `None` if there are no sections or no room.
fn elf_sections(elf: &Elf<'_>, boot: &mut Boot<'_>) -> Option<Vec<u8>> {
    let mut table = elf.section_table()?;
    for (address, bytes) in table.unloaded {
        let above = boot.layout.used_end();
        let at = boot.layout.put_low("ELF sections", bytes, 16, above).ok()?;
        table.headers.get_mut(address..address + 4)?.copy_from_slice(&low32(at).to_le_bytes());
    }
    let mut body = Build::default();
    body.u32(table.count as u32).u32(table.entsize as u32).u32(u32::from(table.names)).bytes(&table.headers);
    Some(body.0)
}

/// Copies of the ACPI root pointer: its first 20 bytes as the ACPI 1.0 one, and the whole of it if it is newer.
fn acpi(boot: &Boot<'_>, out: &mut Build) {
    let mut rsdp = [0u8; 36];
    if boot.rsdp == 0
        || !boot.layout.mem.read_phys(Gpa(boot.rsdp), &mut rsdp)
        || !rsdp.starts_with(b"RSD PTR ")
    {
        return;
    }
    put(out, info::ACPI_OLD, &rsdp[..20]);
    if rsdp[15] >= 2 {
        put(out, info::ACPI_NEW, &rsdp);
    }
}
