//! Guest images: bytes in, memory and boot registers out. No file I/O, bounded, never panics on hostile images.
//!
//! Owns the choice of the boot protocol and what each protocol promises the kernel. Every size and offset an image
//! states is checked against the file and against the guest's RAM before anything is written.
//!
//! A kernel that fits several protocols is loaded by the first of: multiboot 1, Linux bzImage, multiboot 2, PVH,
//! plain ELF. A plain ELF gets the entry state of the Linux boot protocol, which is what an uncompressed `vmlinux`
//! expects and does not disturb anything else.

mod bios;
mod bytes;
mod bzimage;
mod elf;
mod entry;
mod layout;
mod linux;
mod memory_map;
mod multiboot;
mod multiboot2;
mod pvh;
#[cfg(test)]
mod tests;

pub use bios::rom_pages;
pub use bzimage::bzimage_payload;
pub use elf::{Elf, Symbol};
pub use memory_map::{MapEntry, MapKind, memory_map};

use crate::machine::config::MachineConfig;
use crate::mem::Memory;
use crate::vcpu::Vcpu;
use layout::Layout;
use thiserror::Error;

/// The guest's images, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// bzImage, ELF (plain, multiboot 1/2, PVH), or any file with a multiboot header that carries load addresses.
    pub kernel: Option<Vec<u8>>,
    /// Linux initrd, or the multiboot modules.
    pub initrd: Option<Vec<u8>>,
    pub cmdline: String,
    /// Name the kernel was given by (multiboot guests expect it as the first word of the command line).
    pub kernel_name: String,
    /// Firmware, mapped below 4 GiB and (its last 128 KiB) below 1 MiB.
    pub bios: Option<Vec<u8>>,
}

/// Why an image could not be loaded. One line, naming what is wrong and what to do.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum LoadError {
    #[error("nothing to boot: give --kernel or --bios")]
    NothingToBoot,
    #[error("{what}: {why}")]
    Invalid { what: &'static str, why: String },
    #[error("{what} needs {need} bytes of memory, the machine has {have}: give a larger --memory")]
    TooLarge { what: &'static str, need: u64, have: u64 },
    /// The host cannot execute what the CPU model shows; see [`crate::jit::host_support`].
    #[error("{0}")]
    HostCpu(String),
    #[error("cannot allocate guest memory: {0}")]
    Host(String),
}

impl LoadError {
    fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }
}

/// What every protocol's loader works on.
struct Boot<'a> {
    images: &'a Images,
    layout: Layout<'a>,
    cpu: &'a mut Vcpu,
    /// Guest-physical address of the ACPI root pointer; 0 if the board has none.
    rsdp: u64,
}

/// Loads `images` into fresh memory and puts vCPU 0 into the state the boot protocol asks for.
/// `rsdp` is where the board put its ACPI root pointer (0: nowhere); it must be in memory already, since multiboot 2
/// hands out a copy of it. A firmware image needs [`rom_pages`] pages of ROM in `mem`.
pub fn load(
    images: &Images,
    config: &MachineConfig,
    mem: &mut Memory,
    cpu: &mut Vcpu,
    rsdp: u64,
) -> Result<(), LoadError> {
    match (&images.kernel, &images.bios) {
        (None, None) => Err(LoadError::NothingToBoot),
        (Some(_), Some(_)) => {
            Err(LoadError::invalid("--bios", "cannot be used together with --kernel: give one of them"))
        }
        (None, Some(bios)) => bios::load(bios, mem),
        (Some(kernel), None) => {
            let layout = Layout::new(mem, config.memory);
            load_kernel(kernel, Boot { images, layout, cpu, rsdp })
        }
    }
}

/// Chooses the protocol by what the file says of itself.
fn load_kernel(kernel: &[u8], mut boot: Boot<'_>) -> Result<(), LoadError> {
    if kernel.is_empty() {
        return Err(LoadError::invalid("kernel image", "the file is empty"));
    }
    entry::write_bios_data_area(&mut boot.layout);
    if let Some(header) = multiboot::Header::find(kernel) {
        return multiboot::load(kernel, &header, boot);
    }
    if bzimage::is_bzimage(kernel) {
        return bzimage::load(kernel, boot);
    }
    let multiboot2 = multiboot2::Header::find(kernel)?;
    if !Elf::is_elf(kernel) {
        return match multiboot2 {
            Some(header) => multiboot2::load(kernel, None, &header, boot),
            None => Err(unknown(kernel)),
        };
    }
    let elf = Elf::parse(kernel)?;
    match (multiboot2, elf.pvh_entry()?) {
        (Some(header), _) => multiboot2::load(kernel, Some(&elf), &header, boot),
        (None, Some(entry)) => pvh::load(&elf, entry, boot),
        (None, None) => linux::load_elf(&elf, boot),
    }
}

/// The error for a file of no known format; says what its first bytes look like.
fn unknown(kernel: &[u8]) -> LoadError {
    let looks = match kernel {
        [0x1f, 0x8b, ..] => "gzip data: uncompress it first".to_string(),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz data: uncompress it first".to_string(),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd data: uncompress it first".to_string(),
        [b'B', b'Z', b'h', ..] => "bzip2 data: uncompress it first".to_string(),
        [b'M', b'Z', ..] => "a DOS or EFI program without a Linux header".to_string(),
        [b'0', b'7', b'0', b'7', b'0', ..] => "a cpio archive: is it the --initrd?".to_string(),
        _ if kernel.get(510..512) == Some(&[0x55, 0xaa]) => {
            "a boot sector or disk image: give it as --drive".into()
        }
        _ => {
            let first: Vec<String> = kernel.iter().take(8).map(|b| format!("{b:02x}")).collect();
            format!("{} bytes beginning {}", kernel.len(), first.join(" "))
        }
    };
    LoadError::invalid(
        "kernel image",
        format!("expected a Linux bzImage, an ELF file or a multiboot kernel, found {looks}"),
    )
}
