//! Checked little-endian reads from an image. An offset outside the image gives `None`, never a panic.

/// The `N` bytes at `off`.
fn array<const N: usize>(b: &[u8], off: u64) -> Option<[u8; N]> {
    let off = usize::try_from(off).ok()?;
    b.get(off..off.checked_add(N)?)?.try_into().ok()
}

pub(super) fn u8_at(b: &[u8], off: u64) -> Option<u8> {
    array::<1>(b, off).map(|[v]| v)
}
pub(super) fn u16_at(b: &[u8], off: u64) -> Option<u16> {
    array(b, off).map(u16::from_le_bytes)
}
pub(super) fn u32_at(b: &[u8], off: u64) -> Option<u32> {
    array(b, off).map(u32::from_le_bytes)
}
pub(super) fn u64_at(b: &[u8], off: u64) -> Option<u64> {
    array(b, off).map(u64::from_le_bytes)
}

/// The `len` bytes at `off`.
pub(super) fn slice_at(b: &[u8], off: u64, len: u64) -> Option<&[u8]> {
    let (start, end) = (usize::try_from(off).ok()?, usize::try_from(off.checked_add(len)?).ok()?);
    b.get(start..end)
}

/// Appends little-endian fields to a structure being built.
#[derive(Default)]
pub(super) struct Build(pub Vec<u8>);

impl Build {
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }
    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }
    pub fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.0.extend_from_slice(v);
        self
    }
    /// Pads with zeros to a multiple of `align`.
    pub fn align(&mut self, align: usize) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(align), 0);
        self
    }
    /// Overwrites the four bytes at `off`.
    pub fn patch_u32(&mut self, off: usize, v: u32) {
        if let Some(b) = self.0.get_mut(off..off + 4) {
            b.copy_from_slice(&v.to_le_bytes());
        }
    }
}

/// The address as the 32-bit field of a structure that can only name memory below 4 GiB.
pub(super) fn low32(addr: u64) -> u32 {
    addr as u32
}

/// `text` as a C string. A NUL inside would end it early, so it is cut there.
pub(super) fn c_string(text: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = text.bytes().take_while(|&b| b != 0).collect();
    bytes.push(0);
    bytes
}
