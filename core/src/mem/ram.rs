//! The slab of host memory behind guest RAM and ROM. Owns bounds checking; lazily backed by the kernel.
//!
//! Value accesses are on the path of every guest load and store, so they are bounded by a mask instead of a
//! compare: the reservation is a power of two plus slack, and an offset is masked before use. A wrong offset can
//! therefore reach other guest bytes or the zero-filled tail, never anything outside the mapping. Pages are
//! reserved without backing (MAP_NORESERVE) and cost nothing until touched.
#![allow(unsafe_code)]

use memmap2::{MmapMut, MmapOptions};

/// Plain little-endian values guest memory holds.
pub trait Pod: Copy + Default + 'static {
    const SIZE: usize;
    fn from_slice(b: &[u8]) -> Self;
    fn to_slice(self, b: &mut [u8]);
}

macro_rules! pod {
    ($($t:ty),*) => {$(
        impl Pod for $t {
            const SIZE: usize = size_of::<$t>();
            #[inline(always)]
            fn from_slice(b: &[u8]) -> Self {
                let mut a = [0u8; size_of::<$t>()];
                a.copy_from_slice(b);
                <$t>::from_le_bytes(a)
            }
            #[inline(always)]
            fn to_slice(self, b: &mut [u8]) { b.copy_from_slice(&self.to_le_bytes()); }
        }
    )*};
}
pod!(u8, u16, u32, u64, u128);

/// Bytes mapped beyond the power of two, so that a value at the last masked offset still lies inside the mapping.
const SLACK: usize = 4096;

/// Anonymous, zero-filled, lazily backed memory.
pub struct Ram {
    /// `mask + 1 + SLACK` bytes.
    map: MmapMut,
    /// Bytes in use, at most `mask + 1`.
    len: usize,
    /// A power of two minus one.
    mask: usize,
}

impl Ram {
    /// Reserves `bytes` (at least a page) of zeroes.
    pub fn new(bytes: u64) -> std::io::Result<Self> {
        let too_big =
            || std::io::Error::new(std::io::ErrorKind::OutOfMemory, "guest memory exceeds the address space");
        let len = usize::try_from(bytes.max(4096)).map_err(|_| too_big())?;
        let size = len.checked_next_power_of_two().ok_or_else(too_big)?;
        let total = size.checked_add(SLACK).ok_or_else(too_big)?;
        let map = MmapOptions::new().len(total).no_reserve_swap().map_anon()?;
        Ok(Self { map, len, mask: size - 1 })
    }

    /// Bytes of guest memory.
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Host address of the slab, the same as long as it lives.
    pub fn host(&self) -> u64 {
        self.map.as_ptr() as u64
    }

    /// Reads a value at slab offset `off`.
    #[inline(always)]
    pub fn read<T: Pod>(&self, off: usize) -> T {
        const { assert!(T::SIZE <= SLACK) };
        debug_assert!(off <= self.len && T::SIZE <= self.len - off, "offset {off:#x} outside the slab");
        // SAFETY: the masked offset is at most `mask`, and `mask + 1 + SLACK` bytes are mapped, so all T::SIZE (at
        // most SLACK) bytes are inside the mapping, which lives as long as `self`; they are initialised (anonymous
        // memory is zero-filled) and only reached through `self`, borrowed here.
        let b = unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(off & self.mask), T::SIZE) };
        T::from_slice(b)
    }

    /// Writes a value at slab offset `off`.
    #[inline(always)]
    pub fn write<T: Pod>(&mut self, off: usize, v: T) {
        const { assert!(T::SIZE <= SLACK) };
        debug_assert!(off <= self.len && T::SIZE <= self.len - off, "offset {off:#x} outside the slab");
        // SAFETY: as in `read`; `self` is borrowed mutably, so the slice is unique.
        let b =
            unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(off & self.mask), T::SIZE) };
        v.to_slice(b);
    }

    /// Reads bytes at slab offset `off`; the range must lie in the slab.
    pub fn read_bytes(&self, off: usize, buf: &mut [u8]) {
        buf.copy_from_slice(&self.map[off..off + buf.len()]);
    }
    /// Writes bytes at slab offset `off`; the range must lie in the slab.
    pub fn write_bytes(&mut self, off: usize, bytes: &[u8]) {
        self.map[off..off + bytes.len()].copy_from_slice(bytes);
    }
    /// Copies `len` bytes inside the slab as if by a forward or backward byte loop that does not overlap badly
    /// (memmove); both ranges must lie in the slab.
    pub fn copy(&mut self, from: usize, to: usize, len: usize) {
        self.map.copy_within(from..from + len, to);
    }
    /// The bytes of one 4 KiB page of the slab.
    pub fn page(&self, index: usize) -> &[u8] {
        &self.map[index << 12..(index + 1) << 12]
    }
    pub fn as_slice(&self) -> &[u8] {
        &self.map[..self.len]
    }
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_and_bytes_agree_at_any_alignment() {
        let mut r = Ram::new(0x3000).unwrap();
        r.write(0x1ffd, 0x1122_3344_5566_7788u64);
        let mut b = [0; 8];
        r.read_bytes(0x1ffd, &mut b);
        assert_eq!(b, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(r.read::<u16>(0x1fff), 0x5566);
        r.write(0x2ff0, u128::MAX);
        assert_eq!(r.read::<u128>(0x2ff0), u128::MAX);
        assert_eq!(r.as_slice().len(), 0x3000);
    }

    #[test]
    fn huge_memory_costs_nothing_until_touched() {
        let mut r = Ram::new(64 << 30).unwrap();
        r.write((64usize << 30) - 8, 7u64);
        assert_eq!(r.read::<u64>((64usize << 30) - 8), 7);
    }
}
