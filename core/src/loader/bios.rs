//! Firmware images: ROM that ends at 4 GiB, its last 128 KiB also ending at 1 MiB until the guest
//! switches shadow RAM in over it. The vCPU keeps its reset state.

use super::{Images, LoadError};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE};
use crate::mem::{Memory, page};

/// Largest image accepted: what real boards decode below 4 GiB.
const MAX: u64 = 16 << 20;
const LOW_ALIAS: u64 = 128 << 10;
const WHAT: &str = "--bios image";

/// ROM pages [`Memory::new`] must reserve for `images`.
pub fn rom_pages(images: &Images) -> u64 {
    images.bios.as_ref().map_or(0, |b| (b.len() as u64).min(MAX).div_ceil(PAGE_SIZE))
}

/// Maps `image` as ROM.
pub(super) fn load(image: &[u8], mem: &mut Memory) -> Result<(), LoadError> {
    let len = image.len() as u64;
    if len == 0 {
        return Err(LoadError::invalid(WHAT, "the file is empty"));
    }
    if len > MAX || !len.is_multiple_of(PAGE_SIZE) {
        let why = format!("{len} bytes: expected a multiple of 4096, at most 16 MiB");
        return Err(LoadError::invalid(WHAT, why));
    }
    let offset = mem.map.ram_size;
    if offset.saturating_add(len) > mem.ram.len() as u64 {
        return Err(LoadError::Host(format!("no room was kept for {len} bytes of ROM")));
    }
    mem.ram.write_bytes(offset as usize, image);
    let first = (offset >> PAGE_SHIFT) as usize;
    for flags in mem.flags.iter_mut().skip(first).take((len >> PAGE_SHIFT) as usize) {
        *flags |= page::ROM | page::DIRTY;
    }
    let alias = len.min(LOW_ALIAS);
    mem.map.map_rom((1 << 32) - len, len, offset);
    mem.map_low_rom((1 << 20) - alias, offset + len - alias);
    Ok(())
}
