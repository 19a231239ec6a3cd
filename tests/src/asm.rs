//! Tiny guests assembled in place: a multiboot image around code written with iced-x86's assembler.

use iced_x86::code_asm::CodeAssembler;

/// Where [`multiboot`] images are loaded and entered.
pub const LOAD: u64 = 0x10_0000;

/// A multiboot-1 image of 32-bit protected-mode code, entered at `LOAD + 0x20` with flat segments, interrupts off.
pub fn multiboot(build: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).expect("32-bit assembler");
    build(&mut a);
    let code = a.assemble(LOAD + 0x20).expect("guest assembles");
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
