//! The slab of host memory behind guest RAM and ROM. Owns bounds checking; lazily backed by the kernel.

use memmap2::MmapMut;

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

/// Anonymous, zero-filled, lazily backed memory.
pub struct Ram {
    map: MmapMut,
}

impl Ram {
    pub fn new(bytes: u64) -> std::io::Result<Self> {
        let len = usize::try_from(bytes.max(4096)).map_err(std::io::Error::other)?;
        Ok(Self { map: memmap2::MmapOptions::new().len(len).map_anon()? })
    }
    pub fn len(&self) -> usize { self.map.len() }
    pub fn is_empty(&self) -> bool { self.map.is_empty() }
    /// Reads a value at slab offset `off`; zero outside the slab (which no caller can reach).
    #[inline(always)]
    pub fn read<T: Pod>(&self, off: usize) -> T {
        match self.map.get(off..off.wrapping_add(T::SIZE)) {
            Some(b) => T::from_slice(b),
            None => T::default(),
        }
    }
    /// Writes a value at slab offset `off`.
    #[inline(always)]
    pub fn write<T: Pod>(&mut self, off: usize, v: T) {
        if let Some(b) = self.map.get_mut(off..off.wrapping_add(T::SIZE)) {
            v.to_slice(b);
        }
    }
    pub fn read_bytes(&self, off: usize, buf: &mut [u8]) { buf.copy_from_slice(&self.map[off..off + buf.len()]); }
    pub fn write_bytes(&mut self, off: usize, bytes: &[u8]) { self.map[off..off + bytes.len()].copy_from_slice(bytes); }
    /// The bytes of one 4 KiB page of the slab.
    pub fn page(&self, index: usize) -> &[u8] { &self.map[index << 12..(index + 1) << 12] }
    pub fn as_slice(&self) -> &[u8] { &self.map }
    pub fn as_mut_slice(&mut self) -> &mut [u8] { &mut self.map }
}
