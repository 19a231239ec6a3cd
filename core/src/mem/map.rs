//! The guest-physical map: which addresses are RAM, ROM or device memory.

use crate::addr::Gpa;

/// What backs a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionKind {
    Ram,
    Rom,
}

/// A mapped range. Everything outside all regions is MMIO (and reads as all ones if no device claims it).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    pub start: u64,
    /// Exclusive.
    pub end: u64,
    /// Offset of `start` in the slab.
    pub offset: u64,
    pub kind: RegionKind,
}

/// What an address leads to; RAM and ROM carry the offset in the slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Ram(usize),
    Rom(usize),
    Mmio,
}

/// End of low RAM: the PCI hole is 3 GiB to 4 GiB.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Start of high RAM.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// How a [`SHADOW`] range answers: the bits of the 440FX's PAM registers.
pub mod pam {
    /// Reads come from RAM; else from the firmware ROM.
    pub const READ: u8 = 1;
    /// Writes go to RAM; else they are dropped.
    pub const WRITE: u8 = 2;
}

/// Ranges whose RAM can be switched in over the firmware ROM (start, length), as the PAM registers order them.
pub const SHADOW: [(u64, u64); 13] = [
    (0xf_0000, 0x1_0000),
    (0xc_0000, 0x4000),
    (0xc_4000, 0x4000),
    (0xc_8000, 0x4000),
    (0xc_c000, 0x4000),
    (0xd_0000, 0x4000),
    (0xd_4000, 0x4000),
    (0xd_8000, 0x4000),
    (0xd_c000, 0x4000),
    (0xe_0000, 0x4000),
    (0xe_4000, 0x4000),
    (0xe_8000, 0x4000),
    (0xe_c000, 0x4000),
];

/// [`pam`] bits of each [`SHADOW`] range.
pub type Shadow = [u8; SHADOW.len()];

/// Sorted, non-overlapping regions.
#[derive(Clone, Debug)]
pub struct MemMap {
    regions: Vec<Region>,
    /// RAM size in bytes.
    pub ram_size: u64,
    /// The firmware ROM that ends at 1 MiB: its start and slab offset. Without one, [`SHADOW`] is RAM.
    pub low_rom: Option<(u64, u64)>,
}

impl MemMap {
    /// RAM everywhere up to `size`, with holes at 0xA0000-0xBFFFF (VGA) and 3-4 GiB.
    pub fn new(size: u64) -> Self {
        let mut regions = Vec::new();
        let ram = |start: u64, end: u64, offset: u64| Region { start, end, offset, kind: RegionKind::Ram };
        let low = size.min(LOW_RAM_END);
        regions.push(ram(0, low.min(0xa0000), 0));
        if low > 0xc0000 {
            regions.push(ram(0xc0000, low, 0xc0000));
        }
        if size > LOW_RAM_END {
            regions.push(ram(HIGH_RAM_START, HIGH_RAM_START + size - LOW_RAM_END, LOW_RAM_END));
        }
        Self { regions, ram_size: size, low_rom: None }
    }

    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Replaces what `[start, start+len)` maps to by ROM at slab offset `offset`.
    pub fn map_rom(&mut self, start: u64, len: u64, offset: u64) {
        self.replace(start, len, Some((offset, RegionKind::Rom)));
    }

    /// Replaces what `[start, start+len)` maps to: by slab memory from an offset on, or by nothing.
    fn replace(&mut self, start: u64, len: u64, by: Option<(u64, RegionKind)>) {
        let end = start + len;
        let mut out = Vec::new();
        for r in &self.regions {
            if r.start < start {
                out.push(Region { end: r.end.min(start), ..*r });
            }
            if r.end > end {
                let s = r.start.max(end);
                out.push(Region { start: s, offset: r.offset + (s - r.start), ..*r });
            }
        }
        if let Some((offset, kind)) = by {
            out.push(Region { start, end, offset, kind });
        }
        out.retain(|r| r.start < r.end);
        out.sort_by_key(|r| r.start);
        self.regions = out;
    }

    /// Switches [`SHADOW`] range `n`; see [`pam`]. Reads from ROM together with writes to RAM are not modelled: such a
    /// range drops its writes. Does nothing without firmware ROM, or where there is no RAM to switch in.
    pub(super) fn set_shadow(&mut self, n: usize, bits: u8) {
        let (start, len) = SHADOW[n];
        let Some((rom, offset)) = self.low_rom.filter(|_| start + len <= self.ram_size) else { return };
        let by = match (bits & pam::READ != 0, bits & pam::WRITE != 0) {
            (true, true) => Some((start, RegionKind::Ram)),
            (true, false) => Some((start, RegionKind::Rom)),
            (false, _) => start.checked_sub(rom).map(|o| (offset + o, RegionKind::Rom)),
        };
        self.replace(start, len, by);
    }

    /// The guest-physical address of the RAM at slab offset `off` (whether it is switched in or not); `None` beyond RAM.
    pub const fn ram_at(&self, off: usize) -> Option<Gpa> {
        match off as u64 {
            off if off >= self.ram_size => None,
            off if off < LOW_RAM_END => Some(Gpa(off)),
            off => Some(Gpa(off - LOW_RAM_END + HIGH_RAM_START)),
        }
    }

    /// What `gpa` leads to.
    pub fn lookup(&self, gpa: Gpa) -> Target {
        for r in &self.regions {
            if gpa.0 >= r.start && gpa.0 < r.end {
                let off = (gpa.0 - r.start + r.offset) as usize;
                return match r.kind {
                    RegionKind::Ram => Target::Ram(off),
                    RegionKind::Rom => Target::Rom(off),
                };
            }
        }
        Target::Mmio
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_has_its_holes() {
        let m = MemMap::new(5 << 30);
        assert_eq!(m.lookup(Gpa(0x9_ffff)), Target::Ram(0x9_ffff));
        assert_eq!(m.lookup(Gpa(0xa_0000)), Target::Mmio);
        assert_eq!(m.lookup(Gpa(0xb_ffff)), Target::Mmio);
        assert_eq!(m.lookup(Gpa(0xc_0000)), Target::Ram(0xc_0000));
        assert_eq!(m.lookup(Gpa(LOW_RAM_END - 1)), Target::Ram(LOW_RAM_END as usize - 1));
        assert_eq!(m.lookup(Gpa(LOW_RAM_END)), Target::Mmio);
        assert_eq!(m.lookup(Gpa(HIGH_RAM_START)), Target::Ram(LOW_RAM_END as usize));
        assert_eq!(m.lookup(Gpa(HIGH_RAM_START + (2 << 30) - 1)), Target::Ram((5 << 30) - 1));
        assert_eq!(m.lookup(Gpa(HIGH_RAM_START + (2 << 30))), Target::Mmio);
    }

    #[test]
    fn rom_replaces_the_middle_of_ram() {
        let mut m = MemMap::new(16 << 20);
        m.map_rom(0xf_0000, 0x1_0000, 16 << 20);
        m.map_rom(0xffff_0000, 0x1_0000, 16 << 20);
        assert_eq!(m.lookup(Gpa(0xe_ffff)), Target::Ram(0xe_ffff));
        assert_eq!(m.lookup(Gpa(0xf_0010)), Target::Rom((16 << 20) + 0x10));
        assert_eq!(m.lookup(Gpa(0x10_0000)), Target::Ram(0x10_0000));
        assert_eq!(m.lookup(Gpa(0xffff_fff0)), Target::Rom((16 << 20) + 0xfff0));
        assert!(m.regions().windows(2).all(|w| w[0].end <= w[1].start));
    }

    #[test]
    fn shadow_ranges_switch_between_rom_and_ram() {
        let slab = 16u64 << 20;
        let mut m = MemMap::new(slab);
        m.set_shadow(0, 0);
        assert_eq!(m.lookup(Gpa(0xf_0000)), Target::Ram(0xf_0000), "no firmware");
        m.low_rom = Some((0xe_0000, slab));
        (0..SHADOW.len()).for_each(|n| m.set_shadow(n, 0));
        assert_eq!(m.lookup(Gpa(0xf_0010)), Target::Rom(slab as usize + 0x1_0010));
        assert_eq!(m.lookup(Gpa(0xe_c010)), Target::Rom(slab as usize + 0xc010));
        assert_eq!(m.lookup(Gpa(0xd_ffff)), Target::Mmio, "no ROM there");
        m.set_shadow(0, pam::READ | pam::WRITE);
        assert_eq!(m.lookup(Gpa(0xf_0010)), Target::Ram(0xf_0010));
        assert_eq!(m.lookup(Gpa(0xe_ffff)), Target::Rom(slab as usize + 0xffff), "its neighbour");
        m.set_shadow(0, pam::READ);
        assert_eq!(m.lookup(Gpa(0xf_0010)), Target::Rom(0xf_0010), "write-protected RAM");
        assert_eq!(m.lookup(Gpa(0x10_0000)), Target::Ram(0x10_0000));
    }

    #[test]
    fn shadow_ranges_cover_c0000_to_1_mib() {
        let mut ranges = SHADOW;
        ranges.sort_unstable();
        let end = ranges.iter().fold(0xc_0000, |at, (start, len)| if *start == at { at + len } else { 0 });
        assert_eq!(end, 0x10_0000);
    }
}
