//! The test device of the public kernel-virtualisation unit tests: a port latch, a memory buffer that must take the
//! device path, and direct control of interrupt lines.

use crate::state::{Field, Reader, StateError, Writer};

/// The buffer's guest-physical address and size.
pub const BUFFER: u64 = 0xff00_0000;
pub const BUFFER_SIZE: usize = 0x1_0000;

#[derive(Clone)]
struct Buffer(Box<[u8]>);

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buffer")
    }
}

impl Field for Buffer {
    fn put(&self, w: &mut Writer) {
        w.bytes.extend_from_slice(&self.0);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        Ok(Self(r.take(BUFFER_SIZE)?.into()))
    }
}

/// Latch and buffer.
#[derive(Clone, Debug)]
pub struct TestDev {
    latch: u32,
    buffer: Buffer,
}

crate::impl_state!(TestDev, "testdev", 1, { latch, buffer });

impl Default for TestDev {
    fn default() -> Self {
        Self::new()
    }
}

impl TestDev {
    pub fn new() -> Self {
        Self { latch: 0, buffer: Buffer(vec![0; BUFFER_SIZE].into()) }
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Reads the latch at byte `offset` (0..=3), `size` bytes.
    pub fn read_latch(&self, offset: u16, size: u8) -> u32 {
        self.latch >> (8 * (offset & 3)) & mask(size)
    }

    pub fn write_latch(&mut self, offset: u16, size: u8, v: u32) {
        let shift = 8 * (offset & 3);
        let m = mask(size) << shift;
        self.latch = self.latch & !m | v << shift & m;
    }

    pub fn read_buffer(&self, offset: u64, size: u8) -> u64 {
        (0..u64::from(size.min(8))).rev().fold(0, |v, i| {
            v << 8 | u64::from(self.buffer.0[offset.wrapping_add(i) as usize & (BUFFER_SIZE - 1)])
        })
    }

    pub fn write_buffer(&mut self, offset: u64, size: u8, value: u64) {
        for i in 0..u64::from(size.min(8)) {
            self.buffer.0[offset.wrapping_add(i) as usize & (BUFFER_SIZE - 1)] = (value >> (8 * i)) as u8;
        }
    }
}

fn mask(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}
