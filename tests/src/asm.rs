//! Tiny guests assembled in place: a multiboot 1, multiboot 2 or PVH image around code written with iced-x86's assembler.

use iced_x86::code_asm::CodeAssembler;

/// Where [`multiboot`] images are loaded and entered.
pub const LOAD: u64 = 0x10_0000;

/// A multiboot-1 image of 32-bit protected-mode code, entered at `LOAD + 0x20` with flat segments, interrupts off.
pub fn multiboot(build: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let code = code32(LOAD + 0x20, build);
    let end = LOAD as u32 + 0x20 + code.len() as u32;
    let (magic, flags) = (0x1bad_b002u32, 0x0001_0000u32);
    let header = [
        magic,
        flags,
        0u32.wrapping_sub(magic).wrapping_sub(flags),
        LOAD as u32,
        LOAD as u32,
        end,
        end + 0x1_0000,
        LOAD as u32 + 0x20,
    ];
    let mut image: Vec<u8> = header.iter().flat_map(|w| w.to_le_bytes()).collect();
    image.extend_from_slice(&code);
    image
}

/// A multiboot-2 image of 32-bit code, entered at `LOAD + 0x40` as [`multiboot`] enters its own.
pub fn multiboot2(build: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let code = code32(LOAD + 0x40, build);
    let end = LOAD as u32 + 0x40 + code.len() as u32;
    let (magic, length) = (0xe852_50d6u32, 0x40u32);
    let start = [magic, 0, length, 0u32.wrapping_sub(magic).wrapping_sub(length)];
    // Tags: address, entry, end.
    let address = [2, 24, LOAD as u32, LOAD as u32, end, end];
    let header = [start.as_slice(), &address, &[3, 12, LOAD as u32 + 0x40, 0], &[0, 8]];
    let mut image: Vec<u8> = header.concat().iter().flat_map(|w| w.to_le_bytes()).collect();
    image.resize(0x40, 0);
    image.extend_from_slice(&code);
    image
}

/// A PVH kernel: an ELF64 file with one segment at `LOAD`, entered there by its Xen note in 32-bit protected mode.
pub fn pvh(build: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE: u64 = 20;
    const LOADABLE: (u32, u32) = (1, 7);
    const NOTES: (u32, u32) = (4, 4);
    let code = code32(LOAD, build);
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend([LOAD, 64, 0].iter().flat_map(|v| v.to_le_bytes()));
    image.extend(0u32.to_le_bytes());
    image.extend([64u16, 56, 2, 0, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
    let segments = [(LOADABLE, HEADERS + NOTE, LOAD, code.len() as u64), (NOTES, HEADERS, 0, NOTE)];
    for ((kind, flags), offset, at, len) in segments {
        image.extend([kind, flags].iter().flat_map(|v| v.to_le_bytes()));
        image.extend([offset, at, at, len, len, 4].iter().flat_map(|v| v.to_le_bytes()));
    }
    // XEN_ELFNOTE_PHYS32_ENTRY.
    image.extend([4u32, 4, 18].iter().flat_map(|v| v.to_le_bytes()));
    image.extend(b"Xen\0");
    image.extend((LOAD as u32).to_le_bytes());
    image.extend(code);
    image
}

/// Assembles 32-bit code for address `at`.
fn code32(at: u64, build: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).expect("32-bit assembler");
    build(&mut a);
    a.assemble(at).expect("guest assembles")
}
