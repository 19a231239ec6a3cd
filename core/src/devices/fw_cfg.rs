//! The firmware configuration device at ports 0x510 to 0x51B: items selected by key, read bytewise or by DMA.
//! Source: the published fw_cfg device specification.

use crate::addr::Gpa;
use crate::mem::Memory;

/// Item keys.
pub mod key {
    pub const SIGNATURE: u16 = 0x00;
    pub const ID: u16 = 0x01;
    pub const RAM_SIZE: u16 = 0x03;
    pub const CPUS: u16 = 0x05;
    pub const MAX_CPUS: u16 = 0x0f;
    pub const DIRECTORY: u16 = 0x19;
    pub const FILES: u16 = 0x20;
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// "QEMU CFG" as the DMA address register reads.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Largest transfer moved at a time.
const CHUNK: usize = 4096;

mod dma {
    pub const ERROR: u32 = 1;
    pub const READ: u32 = 2;
    pub const SKIP: u32 = 4;
    pub const SELECT: u32 = 8;
    pub const WRITE: u32 = 16;
}

/// The device: a selector over read-only items.
#[derive(Clone, Debug)]
pub struct FwCfg {
    selector: u16,
    offset: u32,
    /// High half of the DMA address, as written.
    dma_high: u32,
    /// Items in key order (configuration).
    items: Vec<(u16, Vec<u8>)>,
}

crate::impl_state!(FwCfg, "fw-cfg", 1, { selector, offset, dma_high } skip { items });

impl FwCfg {
    /// The items of a machine with `ram` bytes of memory (`low` of them below 4 GiB) and `vcpus` processors.
    pub fn new(ram: u64, low: u64, vcpus: u8) -> Self {
        let files = [("etc/e820", e820(low, ram.saturating_sub(low)))];
        let mut items = vec![
            (key::SIGNATURE, b"QEMU".to_vec()),
            (key::ID, 3u32.to_le_bytes().to_vec()),
            (key::RAM_SIZE, ram.to_le_bytes().to_vec()),
            (key::CPUS, u16::from(vcpus).to_le_bytes().to_vec()),
            (key::MAX_CPUS, u16::from(vcpus).to_le_bytes().to_vec()),
            (key::DIRECTORY, directory(&files)),
        ];
        for (key, (_, bytes)) in (key::FILES..).zip(files) {
            items.push((key, bytes));
        }
        items.push((key::IRQ0_OVERRIDE, 1u32.to_le_bytes().to_vec()));
        Self { selector: 0, offset: 0, dma_high: 0, items }
    }

    /// Reset.
    pub fn reset(&mut self) {
        self.selector = 0;
        self.offset = 0;
        self.dma_high = 0;
    }

    /// Port 0x510, 16 bits.
    pub fn select(&mut self, key: u16) {
        self.selector = key;
        self.offset = 0;
    }

    /// Port 0x511: the next byte of the item; zero past its end and for unknown keys.
    pub fn read(&mut self) -> u8 {
        let at = self.offset as usize;
        self.offset = self.offset.saturating_add(1);
        self.item().get(at).copied().unwrap_or(0)
    }

    fn item(&self) -> &[u8] {
        self.items.iter().find(|(k, _)| *k == self.selector).map_or(&[], |(_, b)| b.as_slice())
    }

    /// Byte `n` of the DMA address register.
    pub fn read_dma(&self, n: u16) -> u8 {
        DMA_SIGNATURE[usize::from(n & 7)]
    }

    /// Writes half of the (big-endian) DMA address: 0 the high half, 1 the low half, which starts the transfer.
    pub fn write_dma(&mut self, half: u8, v: u32, mem: &mut Memory) {
        if half == 0 {
            self.dma_high = u32::from_be(v);
            return;
        }
        let at = Gpa(u64::from(std::mem::take(&mut self.dma_high)) << 32 | u64::from(u32::from_be(v)));
        let mut descriptor = [0; 16];
        if !mem.read_phys(at, &mut descriptor) {
            return;
        }
        let word = |i: usize| {
            u32::from_be_bytes([descriptor[i], descriptor[i + 1], descriptor[i + 2], descriptor[i + 3]])
        };
        let to = Gpa(u64::from(word(8)) << 32 | u64::from(word(12)));
        let ok = self.transfer(word(0), word(4), to, mem);
        mem.write_phys(at, &if ok { 0u32 } else { dma::ERROR }.to_be_bytes());
    }

    fn transfer(&mut self, control: u32, length: u32, to: Gpa, mem: &mut Memory) -> bool {
        if control & dma::SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & dma::READ != 0 {
            return self.read_into(length, to, mem);
        }
        if control & dma::SKIP != 0 {
            self.offset = self.offset.saturating_add(length);
        }
        // No item is writable.
        control & dma::WRITE == 0
    }

    fn read_into(&mut self, length: u32, to: Gpa, mem: &mut Memory) -> bool {
        let mut done = 0u32;
        let mut buf = [0u8; CHUNK];
        while done < length {
            let n = (length - done).min(CHUNK as u32);
            let part = &mut buf[..n as usize];
            part.fill(0);
            let rest = self.item().get(self.offset as usize..).unwrap_or(&[]);
            let m = rest.len().min(part.len());
            part[..m].copy_from_slice(&rest[..m]);
            if !mem.write_phys(to + u64::from(done), part) {
                return false;
            }
            self.offset = self.offset.saturating_add(n);
            done += n;
        }
        true
    }
}

/// The file directory: count, then size, key, reserved and name of each file, big-endian.
fn directory(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut d = (files.len() as u32).to_be_bytes().to_vec();
    for (key, (name, bytes)) in (key::FILES..).zip(files) {
        d.extend((bytes.len() as u32).to_be_bytes());
        d.extend(key.to_be_bytes());
        d.extend([0, 0]);
        let mut padded = [0u8; 56];
        for (to, from) in padded.iter_mut().take(55).zip(name.bytes()) {
            *to = from;
        }
        d.extend(padded);
    }
    d
}

/// RAM ranges above and below 4 GiB: address, length, type 1.
fn e820(low: u64, high: u64) -> Vec<u8> {
    let mut v = Vec::new();
    for (start, len) in [(0, low), (1 << 32, high)] {
        if len != 0 {
            v.extend(u64::to_le_bytes(start));
            v.extend(len.to_le_bytes());
            v.extend(1u32.to_le_bytes());
        }
    }
    v
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn device() -> FwCfg {
        FwCfg::new(4 << 30, 3 << 30, 2)
    }

    fn read<const N: usize>(f: &mut FwCfg, key: u16) -> [u8; N] {
        f.select(key);
        [0; N].map(|_| f.read())
    }

    #[test]
    fn fw_cfg_items() {
        let mut f = device();
        assert_eq!(&read::<4>(&mut f, key::SIGNATURE), b"QEMU");
        assert_eq!(read::<4>(&mut f, key::ID), [3, 0, 0, 0]);
        assert_eq!(read::<2>(&mut f, key::CPUS), [2, 0]);
        assert_eq!(u64::from_le_bytes(read(&mut f, key::RAM_SIZE)), 4 << 30);
    }

    #[test]
    fn fw_cfg_unknown_key_and_past_end_read_zero() {
        let mut f = device();
        assert_eq!(read::<4>(&mut f, 0x1234), [0; 4]);
        assert_eq!(read::<4>(&mut f, key::CPUS), [2, 0, 0, 0]);
    }

    #[test]
    fn fw_cfg_directory_names_the_memory_map() {
        let mut f = device();
        let d: [u8; 68] = read(&mut f, key::DIRECTORY);
        assert_eq!(d[..4], [0, 0, 0, 1]);
        assert_eq!(d[4..8], [0, 0, 0, 40]);
        assert_eq!(&d[12..20], b"etc/e820");
        let file = u16::from_be_bytes([d[8], d[9]]);
        let e: [u8; 40] = read(&mut f, file);
        assert_eq!(u64::from_le_bytes(e[20..28].try_into().unwrap()), 1 << 32);
        assert_eq!(u64::from_le_bytes(e[28..36].try_into().unwrap()), 1 << 30);
    }

    fn descriptor(control: u32, length: u32, to: u64) -> Vec<u8> {
        [&control.to_be_bytes()[..], &length.to_be_bytes(), &to.to_be_bytes()].concat()
    }

    fn run(f: &mut FwCfg, mem: &mut Memory, d: &[u8]) -> u32 {
        mem.write_phys(Gpa(0x1000), d);
        f.write_dma(0, 0, mem);
        f.write_dma(1, 0x1000u32.to_be(), mem);
        let mut b = [0; 4];
        mem.read_phys(Gpa(0x1000), &mut b);
        u32::from_be_bytes(b)
    }

    #[test]
    fn fw_cfg_dma_selects_and_reads() {
        let (mut f, mut mem) = (device(), Memory::new(1 << 20, 0).unwrap());
        let control = u32::from(key::SIGNATURE) << 16 | dma::SELECT | dma::READ;
        assert_eq!(run(&mut f, &mut mem, &descriptor(control, 4, 0x2000)), 0);
        let mut b = [0; 4];
        mem.read_phys(Gpa(0x2000), &mut b);
        assert_eq!(&b, b"QEMU");
        assert_eq!(f.read(), 0, "the position moved on");
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|n| f.read_dma(n)), DMA_SIGNATURE);
    }

    #[test]
    fn fw_cfg_dma_invalid_transfers_report_errors() {
        let (mut f, mut mem) = (device(), Memory::new(1 << 20, 0).unwrap());
        assert_eq!(
            run(&mut f, &mut mem, &descriptor(dma::READ, u32::MAX, 0x2000)),
            dma::ERROR,
            "past memory"
        );
        assert_eq!(run(&mut f, &mut mem, &descriptor(dma::WRITE, 4, 0x2000)), dma::ERROR, "read-only");
        assert_eq!(run(&mut f, &mut mem, &descriptor(dma::READ, 4, u64::MAX)), dma::ERROR);
    }
}
