//! Tests of the loaders, on synthetic images of each kind.
#![allow(clippy::unwrap_used)]

mod hostile;
mod images;
mod protocols;

use super::{Images, LoadError, load, rom_pages};
use crate::addr::Gpa;
use crate::machine::config::MachineConfig;
use crate::mem::Memory;
use crate::vcpu::Vcpu;
use crate::vcpu::cpuid::CpuModel;

const MIB: u64 = 1 << 20;
/// Where the tests' board puts its ACPI root pointer.
const RSDP: u64 = 0xe0000;

/// A machine after loading.
struct Loaded {
    mem: Memory,
    cpu: Vcpu,
}

impl Loaded {
    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut b = vec![0; len];
        assert!(self.mem.read_phys(Gpa(at), &mut b), "{at:#x} is not memory");
        b
    }
    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.bytes(at, 2).try_into().unwrap())
    }
    fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }
    fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at, 8).try_into().unwrap())
    }
    /// The C string at `at`.
    fn text(&self, at: u64) -> String {
        let bytes: Vec<u8> = (at..).map(|a| self.bytes(a, 1)[0]).take_while(|&b| b != 0).collect();
        String::from_utf8(bytes).unwrap()
    }
    /// (start, length, type) of the zero page's or PVH's memory-map entries.
    fn map(&self, at: u64, count: u64, stride: u64) -> Vec<(u64, u64, u32)> {
        (0..count)
            .map(|i| at + i * stride)
            .map(|a| (self.u64(a), self.u64(a + 8), self.u32(a + 16)))
            .collect()
    }
}

fn images(kernel: Vec<u8>) -> Images {
    Images {
        kernel: Some(kernel),
        cmdline: "console=ttyS0 quiet".into(),
        kernel_name: "guest.elf".into(),
        ..Images::default()
    }
}

fn try_load(images: &Images, memory: u64, model: CpuModel) -> Result<Loaded, LoadError> {
    let config = MachineConfig { memory, cpu: model, ..MachineConfig::default() };
    let mut mem = Memory::new(memory, rom_pages(images)).unwrap();
    let mut rsdp = *b"RSD PTR \0TESTER\x02\x11\x22\x33\x44\x24\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    rsdp[35] = 0x5a;
    mem.write_phys(Gpa(RSDP), &rsdp);
    let mut cpu = Vcpu::new(0, model);
    load(images, &config, &mut mem, &mut cpu, RSDP)?;
    Ok(Loaded { mem, cpu })
}

fn loaded(images: &Images, memory: u64) -> Loaded {
    try_load(images, memory, CpuModel::X86_64V2).unwrap()
}

/// The error's line.
fn refused(images: &Images, memory: u64) -> String {
    match try_load(images, memory, CpuModel::X86_64V2) {
        Ok(_) => panic!("loaded"),
        Err(e) => {
            let line = e.to_string();
            assert!(!line.contains('\n'), "more than one line: {line}");
            line
        }
    }
}
