//! The memory map a kernel is told of (what a BIOS answers to INT 15h, AX=E820h). Owns its ranges and types.

use super::layout::{CONVENTIONAL_END, EXTENDED_START};
use crate::mem::{MemMap, RegionKind};

/// What a range of the map may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum MapKind {
    Ram = 1,
    Reserved = 2,
}

/// A range of the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapEntry {
    pub start: u64,
    pub len: u64,
    pub kind: MapKind,
}

/// Start of the firmware area, where the board's ACPI and MP tables are.
const FIRMWARE_START: u64 = 0xe_0000;
const VGA_START: u64 = 0xa_0000;

/// The map of a machine, ascending. The PCI hole below 4 GiB is simply absent from it.
pub fn memory_map(map: &MemMap) -> Vec<MapEntry> {
    let mut out = Vec::new();
    let mut add = |start: u64, end: u64, kind| {
        if end > start {
            out.push(MapEntry { start, len: end - start, kind });
        }
    };
    for r in map.regions().iter().filter(|r| r.kind == RegionKind::Ram) {
        if r.start < VGA_START {
            add(r.start, r.end.min(CONVENTIONAL_END), MapKind::Ram);
            add(r.start.max(CONVENTIONAL_END), r.end, MapKind::Reserved);
        } else {
            add(r.start.max(FIRMWARE_START), r.end.min(EXTENDED_START), MapKind::Reserved);
            add(r.start.max(EXTENDED_START), r.end, MapKind::Ram);
        }
    }
    out
}

/// KiB of RAM below 640 KiB, and from 1 MiB up to the first hole, as the multiboot protocols report them.
pub(super) fn lower_upper_kib(map: &MemMap) -> (u32, u32) {
    let entries = memory_map(map);
    let kib = |at: u64| {
        let ram = entries.iter().find(|e| e.start == at && e.kind == MapKind::Ram);
        ram.map_or(0, |e| u32::try_from(e.len >> 10).unwrap_or(u32::MAX))
    };
    (kib(0), kib(EXTENDED_START))
}
