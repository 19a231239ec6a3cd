//! A kernel of 94 bytes for examples: prints `hello` on COM1, adds up the bytes it is sent there, and leaves by
//! isa-debug-exit at port 0xf4 behind a `q`.

use retrovisor_core::Gva;

/// Where it adds up what it is sent: 32 bits.
pub const SUM: u64 = 0x20_0000;
/// The instruction that adds: `add [SUM], eax`.
pub const ADD: Gva = Gva(0x10_0045);

/// A multiboot image: a header that says where it goes, then 32-bit code.
#[rustfmt::skip]
pub const KERNEL: &[u8] = &[
    0x02, 0xb0, 0xad, 0x1b, 0x00, 0x00, 0x01, 0x00, 0xfe, 0x4f, 0x51, 0xe4, // magic, flags, checksum
    0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x10, 0x00, // header and image at 1 MiB
    0x5e, 0x00, 0x10, 0x00, 0x5e, 0x00, 0x10, 0x00, // up to here
    0x20, 0x00, 0x10, 0x00,                         // the entry: the next byte
    0xbe, 0x58, 0x00, 0x10, 0x00,       //        mov esi, text
    0xba, 0xf8, 0x03, 0x00, 0x00,       //        mov edx, 0x3f8
    0xac,                               // print: lodsb
    0x84, 0xc0,                         //        test al, al
    0x74, 0x03,                         //        jz poll
    0xee,                               //        out dx, al
    0xeb, 0xf8,                         //        jmp print
    0xba, 0xfd, 0x03, 0x00, 0x00,       // poll:  mov edx, 0x3fd
    0xec,                               //        in al, dx
    0xa8, 0x01,                         //        test al, 1
    0x74, 0xf6,                         //        jz poll
    0xba, 0xf8, 0x03, 0x00, 0x00,       //        mov edx, 0x3f8
    0xec,                               //        in al, dx
    0x0f, 0xb6, 0xc0,                   //        movzx eax, al
    0x01, 0x05, 0x00, 0x00, 0x20, 0x00, // ADD:   add [SUM], eax
    0x3c, b'q',                         //        cmp al, 'q'
    0x75, 0xe3,                         //        jne poll
    0x31, 0xc0,                         //        xor eax, eax
    0xba, 0xf4, 0x00, 0x00, 0x00,       //        mov edx, 0xf4
    0xef,                               //        out dx, eax
    0xf4,                               //        hlt
    b'h', b'e', b'l', b'l', b'o', 0,    // text
];
