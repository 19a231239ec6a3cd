//! Bad input: one clear line, no panic, no write outside RAM.

use super::images::{self, CODE, Seg, Setup};
use super::*;

#[test]
fn nothing_to_boot() {
    assert_eq!(refused(&Images::default(), 16 * MIB), "nothing to boot: give --kernel or --bios");
}

#[test]
fn unknown_files_are_described() {
    for (file, says) in [
        (&b""[..], "empty"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"070701", "cpio"),
        (b"MZ\0\0", "EFI"),
        (b"#!/bin/sh\n", "beginning 23 21 2f 62"),
        (b"\x7fELF", "truncated"),
    ] {
        let line = refused(&images(file.to_vec()), 16 * MIB);
        assert!(line.contains(says), "{line}");
    }
}

#[test]
fn truncated_files_are_refused() {
    // The last 16-byte paragraph of a bzImage may be cut: its header counts whole ones.
    let bzimage = images::bzimage(&Setup::default());
    let flat = images::multiboot_flat((2 * MIB) as u32 + 48 + CODE.len() as u32, 0);
    for (image, end) in [
        (&bzimage, bzimage.len() - 16),
        (&images::plain_elf(true), usize::MAX),
        (&images::plain_elf(false), usize::MAX),
        (&images::pvh(), usize::MAX),
        (&images::multiboot(3), usize::MAX),
        (&flat, usize::MAX),
    ] {
        for len in 0..image.len().min(end) {
            refused(&images(image[..len].to_vec()), 16 * MIB);
        }
    }
}

#[test]
fn what_does_not_fit_says_what_is_needed() {
    let bz = images(images::bzimage(&Setup { init_size: 0x4000_0000, ..Setup::default() }));
    assert!(refused(&bz, 64 * MIB).contains("give a larger --memory"));
    let initrd = vec![0; 20 << 20];
    let big = Images { initrd: Some(initrd), ..images(images::bzimage(&Setup::default())) };
    assert!(refused(&big, 16 * MIB).starts_with("--initrd needs"));
    let module = Images { initrd: Some(vec![0; 20 << 20]), ..images(images::multiboot(3)) };
    assert!(refused(&module, 16 * MIB).starts_with("--initrd needs"));
}

#[test]
fn segments_outside_ram_or_overlapping_are_refused() {
    let at = |segments: &[Seg]| refused(&images(images::elf(true, MIB, segments)), 16 * MIB);
    assert!(at(&[Seg::load(0xb8000, CODE, 0x1000)]).contains("not usable RAM"));
    assert!(at(&[Seg::load(15 * MIB, CODE, 2 * MIB)]).contains("larger --memory"));
    assert!(at(&[Seg::load(u64::MAX - 8, CODE, 0x1000)]).contains("wraps around"));
    assert!(at(&[Seg::load(MIB, CODE, 0x1000), Seg::load(MIB + 0xfff, CODE, 0x1000)]).contains("overlaps"));
    assert!(at(&[Seg::load(MIB, CODE, 4)]).contains("more bytes in the file"));
    assert!(at(&[]).contains("nothing to load"));
}

#[test]
fn kernels_that_ask_for_the_unknown_are_refused() {
    assert!(refused(&images(images::multiboot(1 << 7)), 16 * MIB).contains("0x0080"));
    let tags = |t| refused(&images(images::multiboot2(&[t])), 16 * MIB);
    assert!(tags((99, 0, vec![])).contains("tag 99"));
    assert!(tags((1, 0, images::words(&[12]))).contains("information tag 12"));
    // The same as options are fine.
    loaded(&images(images::multiboot2(&[(99, 1, vec![]), (1, 1, images::words(&[12]))])), 16 * MIB);
    let long = Images { cmdline: "x".repeat(3000), ..images(images::bzimage(&Setup::default())) };
    assert!(refused(&long, 16 * MIB).starts_with("--append"));
    let both = Images { bios: Some(vec![0; 4096]), ..images(images::plain_elf(true)) };
    assert!(refused(&both, 16 * MIB).contains("together"));
    assert!(refused(&Images { bios: Some(vec![0; 100]), ..Images::default() }, 16 * MIB).contains("4096"));
}

#[test]
fn tiny_memory_is_an_error_not_a_panic() {
    for memory in [0, 4096, 0x9f000, 0xa0000, MIB] {
        for image in [images::bzimage(&Setup::default()), images::pvh(), images::multiboot(3)] {
            refused(&images(image), memory);
        }
    }
}

/// xorshift64*: seeded, so a failing case is found again by its number.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Changes a few bytes, preferring values that are extreme as sizes and offsets.
fn mutate(image: &[u8], rng: &mut Rng) -> Vec<u8> {
    const VALUES: [u32; 8] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff_fff0, 0x10_0000, 0xa_0000];
    let mut out = image.to_vec();
    for _ in 0..=rng.below(4) {
        let at = rng.below(out.len());
        match rng.below(4) {
            0 => out[at] = rng.next() as u8,
            1 => out[at] ^= 1 << rng.below(8),
            2 => {
                let value = VALUES[rng.below(VALUES.len())].to_le_bytes();
                out[at & !3..].iter_mut().zip(value).for_each(|(b, v)| *b = v);
            }
            _ => {
                if rng.below(8) == 0 {
                    out.truncate(at.max(1));
                }
            }
        }
    }
    out
}

#[test]
fn mutated_images_never_panic() {
    const MEMORY: u64 = 4 * MIB;
    let relocated = images::words(&[MIB as u32, 4 * MIB as u32, 4096, 0]);
    let kinds: Vec<Vec<u8>> = vec![
        images::bzimage(&Setup::default()),
        images::bzimage(&Setup { relocatable: false, ..Setup::default() }),
        images::plain_elf(true),
        images::plain_elf(false),
        images::pvh(),
        images::multiboot(3),
        images::multiboot_flat(0, 0),
        images::with_string_table(
            images::multiboot2(&[(1, 0, images::words(&[1, 4])), (10, 0, relocated)]),
            b"\0.shstrtab\0",
        ),
    ];
    let config = MachineConfig { memory: MEMORY, ..MachineConfig::default() };
    let mut mem = Memory::new(MEMORY, 0).unwrap();
    let mut accepted = 0;
    for (kind, image) in kinds.iter().enumerate() {
        // Most of a bzImage is payload: mutate its headers.
        let head = image.len().min(700);
        let mut rng = Rng(0x5eed + kind as u64);
        for _ in 0..10_000 {
            let mut mutant = mutate(&image[..head], &mut rng);
            if mutant.len() == head {
                mutant.extend(&image[head..]);
            }
            let mut cpu = Vcpu::new(0, CpuModel::X86_64V2);
            let i = Images { initrd: Some(vec![1; 100]), ..images(mutant.clone()) };
            accepted += u64::from(load(&i, &config, &mut mem, &mut cpu, RSDP).is_ok());
            let _ = crate::loader::bzimage_payload(&mutant);
            if let Ok(elf) = crate::loader::Elf::parse(&mutant) {
                elf.symbols();
            }
        }
    }
    assert!(accepted > 10_000, "the mutations are too coarse: only {accepted} images still load");
}
