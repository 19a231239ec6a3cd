//! What each protocol promises the kernel: memory contents and entry registers.

use super::images::{self, CODE, Seg, Setup};
use super::*;
use crate::loader::bzimage_payload;
use crate::vcpu::{Seg as SegReg, cr0, cr4, efer, gpr};

fn assert_flat_32(l: &Loaded) {
    let cpu = &l.cpu;
    assert_eq!((cpu.mode.bits, cpu.mode.cpl, cpu.mode.protected), (32, 0, true));
    assert_eq!(cpu.cr0 & (cr0::PE | cr0::PG), cr0::PE);
    assert_eq!(cpu.flags.0, 2);
    for s in &cpu.seg {
        assert_eq!((s.base, s.limit), (0, u32::MAX));
    }
    // The GDT in memory describes what the registers hold.
    let cs = l.u64(cpu.gdtr.base + u64::from(cpu.seg[SegReg::Cs as usize].selector));
    let ds = l.u64(cpu.gdtr.base + u64::from(cpu.seg[SegReg::Ds as usize].selector));
    assert_eq!((cs, ds), (0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff));
}

#[test]
fn bzimage_enters_64_bit_mode_with_zero_page() {
    let image = images::bzimage(&Setup::default());
    let l = loaded(&Images { initrd: Some(vec![7; 5000]), ..images(image) }, 64 * MIB);
    let cpu = &l.cpu;
    assert_eq!(cpu.rip, 2 * MIB + 0x200);
    assert_eq!((cpu.mode.bits, cpu.mode.long), (64, true));
    assert_eq!(cpu.msr.efer, efer::LME | efer::LMA);
    assert_eq!(cpu.cr4, cr4::PAE);
    assert_eq!((cpu.seg[1].selector, cpu.seg[3].selector), (0x10, 0x18));
    assert_eq!(l.bytes(2 * MIB, 4096), images::bzimage_body());
    // Identity map: the walk of 3 GiB + 6 MiB.
    let pdpt = l.u64(cpu.cr3) & !0xfff;
    let pd = l.u64(pdpt + 3 * 8) & !0xfff;
    assert_eq!(l.u64(pd + 3 * 8), 0xc060_0083);
    let params = cpu.gpr[gpr::RSI];
    assert_eq!(l.bytes(params + 0x202, 4), b"HdrS");
    assert_eq!(l.u16(params + 0x206), 0x20f);
    assert_eq!(l.u64(params + 0x70), RSDP);
    assert_eq!(l.text(u64::from(l.u32(params + 0x228))), "console=ttyS0 quiet");
    let (initrd, len) = (u64::from(l.u32(params + 0x218)), l.u32(params + 0x21c));
    assert_eq!((initrd, len), (64 * MIB - 0x2000, 5000));
    assert_eq!(l.bytes(initrd, 5000), vec![7; 5000]);
    let map = l.map(params + 0x2d0, u64::from(l.bytes(params + 0x1e8, 1)[0]), 20);
    let expected = [(0, 0x9fc00, 1), (0x9fc00, 0x400, 2), (0xe0000, 0x20000, 2), (MIB, 63 * MIB, 1)];
    assert_eq!(map, expected);
}

#[test]
fn bzimage_enters_32_bit_mode_without_the_64_bit_entry_or_long_mode() {
    let old = images::bzimage(&Setup { xloadflags: 0, ..Setup::default() });
    let new = images::bzimage(&Setup::default());
    for (image, model) in [(old, CpuModel::X86_64V2), (new, CpuModel::Pentium3)] {
        let l = try_load(&images(image), 64 * MIB, model).unwrap();
        assert_flat_32(&l);
        assert_eq!(l.cpu.rip, 2 * MIB);
        assert_eq!(l.u32(l.cpu.gpr[gpr::RSI] + 0x202), u32::from_le_bytes(*b"HdrS"));
    }
}

#[test]
fn bzimage_not_relocatable_loads_at_one_mebibyte() {
    let image = images::bzimage(&Setup { relocatable: false, version: 0x20a, ..Setup::default() });
    let l = loaded(&images(image), 16 * MIB);
    assert_eq!(l.cpu.rip, MIB);
    assert_eq!(l.bytes(MIB, 4096), images::bzimage_body());
}

#[test]
fn bzimage_initrd_respects_initrd_addr_max() {
    let image = images::bzimage(&Setup { initrd_max: 0x7f_ffff, ..Setup::default() });
    let l = loaded(&Images { initrd: Some(vec![1; 4097]), ..images(image) }, 64 * MIB);
    assert_eq!(l.u32(l.cpu.gpr[gpr::RSI] + 0x218), 0x7f_e000);
}

#[test]
fn memory_map_splits_at_the_pci_hole() {
    let l = loaded(&images(images::bzimage(&Setup::default())), 5 << 30);
    let params = l.cpu.gpr[gpr::RSI];
    let map = l.map(params + 0x2d0, u64::from(l.bytes(params + 0x1e8, 1)[0]), 20);
    assert_eq!(map[3..], [(MIB, 0xc000_0000 - MIB, 1), (1 << 32, 2 << 30, 1)]);
}

#[test]
fn bzimage_payload_is_found() {
    let image = images::bzimage(&Setup::default());
    assert_eq!(bzimage_payload(&image).unwrap(), &images::bzimage_body()[100..150]);
    assert!(bzimage_payload(&image[..1024]).is_err());
}

#[test]
fn plain_elf_gets_the_linux_entry_state() {
    let l = loaded(&images(images::plain_elf(true)), 16 * MIB);
    assert_eq!((l.cpu.mode.bits, l.cpu.rip), (64, MIB + 1));
    assert_eq!(l.bytes(MIB, CODE.len()), CODE);
    assert_eq!(l.u16(l.cpu.gpr[gpr::RSI] + 0x1fe), 0xaa55);
    let l = loaded(&images(images::plain_elf(false)), 16 * MIB);
    assert_flat_32(&l);
    assert_eq!(l.cpu.rip, MIB + 1);
}

#[test]
fn elf_is_loaded_by_physical_address_and_a_virtual_entry_is_translated() {
    let segment = Seg { vaddr: 0x8010_0000, ..Seg::load(MIB, CODE, 0x1000) };
    for entry in [0x8010_0002, MIB + 2] {
        let l = loaded(&images(images::elf(false, entry, std::slice::from_ref(&segment))), 16 * MIB);
        assert_eq!(l.cpu.rip, MIB + 2);
        assert_eq!(l.bytes(MIB, CODE.len()), CODE);
    }
}

#[test]
fn bss_is_zeroed_in_used_memory() {
    let i = images(images::plain_elf(true));
    let mut mem = Memory::new(16 * MIB, 0).unwrap();
    mem.write_phys(Gpa(MIB), &[0xff; 0x2000]);
    let mut cpu = Vcpu::new(0, CpuModel::X86_64V2);
    let config = MachineConfig { memory: 16 * MIB, ..MachineConfig::default() };
    load(&i, &config, &mut mem, &mut cpu, 0).unwrap();
    let mut b = vec![1; 0x1001 - CODE.len()];
    mem.read_phys(Gpa(MIB + CODE.len() as u64), &mut b);
    assert!(b[..b.len() - 1].iter().all(|&b| b == 0));
    assert_eq!(b[b.len() - 1], 0xff);
}

#[test]
fn pvh_enters_by_its_note_with_start_info() {
    let l = loaded(&Images { initrd: Some(vec![9; 100]), ..images(images::pvh()) }, 32 * MIB);
    assert_flat_32(&l);
    assert_eq!(l.cpu.rip, MIB + 0x20);
    let info = l.cpu.gpr[gpr::RBX];
    assert_eq!((l.u32(info), l.u32(info + 4), l.u32(info + 12)), (0x336e_c578, 1, 1));
    let module = l.u64(info + 16);
    assert_eq!((l.u64(module), l.u64(module + 8)), (32 * MIB - 0x1000, 100));
    assert_eq!(l.text(l.u64(info + 24)), "console=ttyS0 quiet");
    assert_eq!(l.u64(info + 32), RSDP);
    let map = l.map(l.u64(info + 40), u64::from(l.u32(info + 48)), 24);
    assert_eq!(map.last(), Some(&(MIB, 31 * MIB, 1)));
}

#[test]
fn multiboot_elf_gets_its_information() {
    let l =
        loaded(&Images { initrd: Some(b"NR_CPUS=1\n".to_vec()), ..images(images::multiboot(3)) }, 16 * MIB);
    assert_flat_32(&l);
    assert_eq!((l.cpu.rip, l.cpu.gpr[gpr::RAX]), (MIB + 12, 0x2bad_b002));
    // Kernels that load their own GDT before they reload CS count on this.
    assert_eq!((l.cpu.seg[1].selector, l.cpu.seg[3].selector), (0x08, 0x10));
    let info = l.cpu.gpr[gpr::RBX];
    assert!(info >= MIB + 0x2000, "{info:#x} lies in the image");
    let flags = l.u32(info);
    assert_eq!(flags & 0b100_1101, 0b100_1101);
    assert_eq!((l.u32(info + 4), l.u32(info + 8)), (639, 15 * 1024));
    assert_eq!(l.text(u64::from(l.u32(info + 16))), "guest.elf console=ttyS0 quiet");
    assert_eq!(l.u32(info + 20), 1);
    let module = u64::from(l.u32(info + 24));
    let (start, end) = (l.u32(module), l.u32(module + 4));
    assert_eq!((start % 4096, end - start), (0, 10));
    assert_eq!(l.bytes(u64::from(start), 10), b"NR_CPUS=1\n");
    assert_eq!(l.text(u64::from(l.u32(module + 8))), "initrd");
    let (len, map) = (l.u32(info + 44), u64::from(l.u32(info + 48)));
    assert_eq!((len, l.u32(map)), (4 * 24, 20));
    assert_eq!(l.map(map + 4, 4, 24)[3], (MIB, 15 * MIB, 1));
    assert_eq!(l.text(u64::from(l.u32(info + 64))), "Retrovisor");
}

#[test]
fn multiboot_header_addresses_win() {
    let base = 2 * MIB;
    let l = loaded(&images(images::multiboot_flat(0, base as u32 + 0x1000)), 16 * MIB);
    assert_eq!(l.cpu.rip, base + 48);
    assert_eq!(l.bytes(base, 16), [0xaa; 16]);
    assert_eq!(l.bytes(base + 48, CODE.len()), CODE);
    assert!(l.cpu.gpr[gpr::RBX] >= base + 0x1000);
}

#[test]
fn low_multiboot_image_does_not_meet_the_loader() {
    let mut bytes = images::words(&[0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002)]);
    bytes.extend(CODE);
    let l = loaded(&images(images::elf(false, 0x800c, &[Seg::load(0x8000, &bytes, 0x18000)])), 16 * MIB);
    assert!(l.cpu.gpr[gpr::RBX] >= 0x20000 && l.cpu.gdtr.base >= 0x20000);
    assert_eq!(l.bytes(0x800c, CODE.len()), CODE);
}

/// Finds a tag of the multiboot 2 information structure; its body.
fn tag(l: &Loaded, kind: u32) -> Option<Vec<u8>> {
    let info = l.cpu.gpr[gpr::RBX];
    let (end, mut at) = (info + u64::from(l.u32(info)), info + 8);
    while at < end {
        let len = l.u32(at + 4);
        if l.u32(at) == kind {
            return Some(l.bytes(at + 8, len as usize - 8));
        }
        at += u64::from(len).next_multiple_of(8);
    }
    None
}

#[test]
fn multiboot2_elf_gets_its_tags() {
    let request = images::words(&[1, 4, 6, 14]);
    let entry = images::words(&[MIB as u32 + 0x99]);
    let image = images::multiboot2(&[(1, 0, request), (3, 0, entry)]);
    let l = loaded(&Images { initrd: Some(vec![3; 33]), ..images(image) }, 16 * MIB);
    assert_flat_32(&l);
    assert_eq!((l.cpu.rip, l.cpu.gpr[gpr::RAX]), (MIB + 0x99, 0x36d7_6289));
    assert_eq!(l.cpu.gpr[gpr::RBX] % 8, 0);
    assert_eq!(tag(&l, 1).unwrap(), b"guest.elf console=ttyS0 quiet\0");
    assert_eq!(tag(&l, 4).unwrap(), images::words(&[639, 15 * 1024]));
    let module = tag(&l, 3).unwrap();
    let start = u32::from_le_bytes(module[..4].try_into().unwrap());
    assert_eq!(l.bytes(u64::from(start), 33), vec![3; 33]);
    assert_eq!(tag(&l, 6).unwrap().len(), 8 + 4 * 24);
    assert_eq!(tag(&l, 14).unwrap(), l.bytes(RSDP, 20));
    assert_eq!(tag(&l, 15).unwrap(), l.bytes(RSDP, 36));
    assert_eq!(tag(&l, 0).unwrap(), b"");
    assert_eq!(tag(&l, 21), None);
}

#[test]
fn multiboot2_hands_on_elf_sections() {
    let image =
        images::with_string_table(images::multiboot2(&[(1, 0, images::words(&[9]))]), b"\0.shstrtab\0");
    let l = loaded(&images(image), 16 * MIB);
    let body = tag(&l, 9).unwrap();
    let word = |n: usize| u32::from_le_bytes(body[n * 4..n * 4 + 4].try_into().unwrap());
    assert_eq!((word(0), word(1), word(2), body.len()), (2, 40, 1, 12 + 80));
    let address = word(3 + 10 + 3);
    assert!(u64::from(address) >= MIB + 0x3000);
    assert_eq!(l.bytes(u64::from(address), 11), b"\0.shstrtab\0");
}

#[test]
fn multiboot2_relocatable_tag_is_honoured_or_refused() {
    let within =
        |min: u32, max: u32| images(images::multiboot2(&[(10, 0, images::words(&[min, max, 4096, 0]))]));
    let l = loaded(&within(MIB as u32, 4 * MIB as u32), 16 * MIB);
    assert_eq!(tag(&l, 21).unwrap(), (MIB as u32).to_le_bytes());
    assert!(refused(&within(8 * MIB as u32, 9 * MIB as u32), 16 * MIB).contains("relocatable"));
}

#[test]
fn multiboot_1_wins_over_an_elf_note_and_multiboot_2() {
    let mut bytes = images::words(&[0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002), 0]);
    bytes.extend(vec![0; 4]);
    bytes.extend(images::multiboot2_header(&[]));
    let l = loaded(&images(images::elf(false, MIB, &[Seg::load(MIB, &bytes, 0x1000)])), 16 * MIB);
    assert_eq!(l.cpu.gpr[gpr::RAX], 0x2bad_b002);
}

#[test]
fn firmware_is_rom_below_4_gib_and_1_mib() {
    let mut bios = vec![0x90; 256 << 10];
    bios[(256 << 10) - 16] = 0xea;
    bios[128 << 10] = 0x77;
    let i = Images { bios: Some(bios), ..Images::default() };
    assert_eq!(rom_pages(&i), 64);
    let mut l = loaded(&i, 16 * MIB);
    assert_eq!(l.bytes(0xffff_fff0, 1), [0xea]);
    assert_eq!(l.bytes(0xf_fff0, 1), [0xea]);
    assert_eq!(l.bytes(0xe_0000, 1), [0x77]);
    assert_eq!(l.bytes(0xfffc_0000, 1), [0x90]);
    l.mem.write_phys(Gpa(0xf_fff0), &[0]);
    assert_eq!(l.bytes(0xffff_fff0, 1), [0xea]);
    assert_eq!((l.cpu.rip, l.cpu.seg[1].base), (0xfff0, 0xffff_0000));
    assert!(l.cpu.mode.real());
}
