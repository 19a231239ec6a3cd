//! The register states kernels are entered in. Owns the boot GDT and the identity page tables.
//! Sources: Linux boot protocol (32-bit and 64-bit entry), Multiboot 1 (3.2), PVH entry; SDM vol. 3A, chapters 3, 4.

use super::bytes::Build;
use super::layout::Layout;
use super::{Boot, LoadError};
use crate::addr::{Gpa, PAGE_SIZE};
use crate::vcpu::cpuid::CpuModel;
use crate::vcpu::flags::Flags;
use crate::vcpu::segment::{Segment, TableReg, attr};
use crate::vcpu::{Seg, Vcpu, cr0, cr4, efer};

/// Where the boot GDT has its two flat segments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selectors {
    code: u16,
    data: u16,
}

/// `__BOOT_CS` and `__BOOT_DS` of the Linux boot protocol. GRUB enters multiboot 2 kernels with the same.
pub(super) const LINUX: Selectors = Selectors { code: 0x10, data: 0x18 };
/// Multiboot 1 leaves the selectors open, and yet there are kernels (xv6) that load a GDT of their own and rely on the
/// old CS still naming its code segment: the first one, as QEMU's loader has it and boot sectors usually do.
pub(super) const MULTIBOOT: Selectors = Selectors { code: 0x08, data: 0x10 };

const CODE: u32 = attr::P | attr::S | attr::CODE | attr::RW | attr::ACCESSED | attr::G;
const DATA: u32 = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::G | attr::DB;
/// A present, busy 32-bit TSS.
const BUSY_TSS: u32 = attr::P | 0xb;

/// A page-table entry: present, writable.
const PRESENT_RW: u64 = 3;
/// A 2 MiB page.
const LARGE: u64 = 1 << 7;
/// The identity map covers this many GiB.
const IDENTITY_GIB: u64 = 4;

/// Whether vCPUs of this model have long mode.
pub(super) fn has_long_mode(model: CpuModel) -> bool {
    model == CpuModel::X86_64V2
}

/// A flat segment with the given attributes (as in [`attr`]).
fn flat(selector: u16, attr: u32) -> Segment {
    Segment { selector, limit: u32::MAX, attr, ..Segment::real(0) }
}

/// The eight bytes of a flat segment's descriptor.
fn descriptor(attr: u32) -> u64 {
    let a = u64::from(attr);
    0x000f_0000_0000_ffff | (a & 0xff) << 40 | (a & 0xf000) << 40
}

/// Writes a GDT with flat segments at `at` to free memory from `above` on, and loads GDTR and the segment registers.
fn load_gdt(boot: &mut Boot<'_>, at: Selectors, code: u32, above: u64) -> Result<(), LoadError> {
    let mut gdt = Build::default();
    for selector in (0..=at.data).step_by(8) {
        gdt.u64(match selector {
            s if s == at.code => descriptor(code),
            s if s == at.data => descriptor(DATA),
            _ => 0,
        });
    }
    let base = boot.layout.put_low("boot GDT", &gdt.0, 16, above)?;
    boot.cpu.gdtr = TableReg { base, limit: gdt.0.len() as u16 - 1 };
    boot.cpu.idtr = TableReg { base: 0, limit: 0 };
    boot.cpu.seg = [flat(at.data, DATA); 6];
    boot.cpu.seg[Seg::Cs as usize] = flat(at.code, code);
    boot.cpu.tr = Segment { limit: 0x67, ..Segment::unusable(BUSY_TSS) };
    boot.cpu.flags = Flags::new();
    Ok(())
}

fn finish(cpu: &mut Vcpu, rip: u64) {
    cpu.rip = rip;
    cpu.insn_rip = rip;
    cpu.refresh();
}

/// 32-bit protected mode, paging off, flat segments, interrupts off, about to execute at `rip`.
/// The GDT goes to free memory from `above` on.
pub(super) fn protected_mode(
    boot: &mut Boot<'_>,
    at: Selectors,
    rip: u64,
    above: u64,
) -> Result<(), LoadError> {
    load_gdt(boot, at, CODE | attr::DB, above)?;
    boot.cpu.gpr = [0; 21];
    boot.cpu.cr0 = cr0::PE | cr0::ET;
    finish(boot.cpu, rip);
    Ok(())
}

/// 64-bit mode with the first 4 GiB identity-mapped, flat segments, interrupts off, about to execute at `rip`.
pub(super) fn long_mode(boot: &mut Boot<'_>, rip: u64) -> Result<(), LoadError> {
    load_gdt(boot, LINUX, CODE | attr::L, 0)?;
    boot.cpu.gpr = [0; 21];
    boot.cpu.cr3 = identity_tables(&mut boot.layout)?;
    boot.cpu.cr4 = cr4::PAE;
    boot.cpu.cr0 = cr0::PE | cr0::ET | cr0::PG;
    boot.cpu.msr.efer = efer::LME | efer::LMA;
    finish(boot.cpu, rip);
    Ok(())
}

/// Builds four-level tables of 2 MiB pages: a PML4, a page-directory-pointer table and a page directory per GiB.
fn identity_tables(layout: &mut Layout<'_>) -> Result<u64, LoadError> {
    let pages = 2 + IDENTITY_GIB;
    let base = layout.place_low("boot page tables", pages * PAGE_SIZE, PAGE_SIZE, 0, 1 << 32)?;
    layout.zero(base, pages * PAGE_SIZE)?;
    let page = |n: u64| base + n * PAGE_SIZE;
    layout.write(page(0), &(page(1) | PRESENT_RW).to_le_bytes())?;
    for gib in 0..IDENTITY_GIB {
        layout.write(page(1) + gib * 8, &(page(2 + gib) | PRESENT_RW).to_le_bytes())?;
        let mut directory = Build::default();
        for n in 0..512 {
            directory.u64(gib << 30 | n << 21 | PRESENT_RW | LARGE);
        }
        layout.write(page(2 + gib), &directory.0)?;
    }
    Ok(base)
}

/// What a BIOS would have left at 0x400 for those who look: COM1, the EBDA's segment, the size of conventional
/// memory, the text mode. Best effort: an image that loads there simply overwrites it.
pub(super) fn write_bios_data_area(layout: &mut Layout<'_>) {
    let mut put = |at: u64, value: u16| layout.mem.write_phys(Gpa(at), &value.to_le_bytes());
    put(0x400, 0x3f8);
    put(0x40e, 0x9fc0);
    put(0x413, 639);
    put(0x449, 80 << 8 | 3);
    put(0x463, 0x3d4);
}
