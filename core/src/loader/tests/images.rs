//! Builders of synthetic images: the smallest files each protocol accepts.

use super::MIB;

/// Little-endian bytes of 32-bit words.
pub fn words(w: &[u32]) -> Vec<u8> {
    w.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A loadable or note segment of a synthetic ELF file.
#[derive(Clone)]
pub struct Seg {
    pub kind: u32,
    pub vaddr: u64,
    pub paddr: u64,
    pub bytes: Vec<u8>,
    pub memsz: u64,
}

impl Seg {
    pub fn load(at: u64, bytes: &[u8], memsz: u64) -> Self {
        Self { kind: 1, vaddr: at, paddr: at, bytes: bytes.to_vec(), memsz }
    }
    pub fn note(bytes: Vec<u8>) -> Self {
        Self { kind: 4, vaddr: 0, paddr: 0, memsz: bytes.len() as u64, bytes }
    }
}

/// The code the ELF images carry; recognised in memory by the tests.
pub const CODE: &[u8] = b"\xf4\xeb\xfdSYNTHETIC KERNEL CODE";

/// An ELF executable with the given entry and segments, whose bytes follow the headers in order.
pub fn elf(is_64: bool, entry: u64, segments: &[Seg]) -> Vec<u8> {
    let (ehdr, phdr) = if is_64 { (64, 56) } else { (52, 32) };
    let word = |v: u64| if is_64 { v.to_le_bytes().to_vec() } else { (v as u32).to_le_bytes().to_vec() };
    let mut f = vec![0x7f, b'E', b'L', b'F', if is_64 { 2 } else { 1 }, 1, 1];
    f.resize(16, 0);
    f.extend(2u16.to_le_bytes());
    f.extend((if is_64 { 62u16 } else { 3 }).to_le_bytes());
    f.extend(1u32.to_le_bytes());
    f.extend(word(entry));
    f.extend(word(ehdr as u64));
    f.extend(word(0));
    f.extend(0u32.to_le_bytes());
    for half in [ehdr as u16, phdr as u16, segments.len() as u16, 0, 0, 0] {
        f.extend(half.to_le_bytes());
    }
    assert_eq!(f.len(), ehdr);
    let mut offset = (ehdr + phdr * segments.len()) as u64;
    for s in segments {
        let (flags, len) = (7u32.to_le_bytes(), s.bytes.len() as u64);
        f.extend(s.kind.to_le_bytes());
        if is_64 {
            f.extend(flags);
        }
        for v in [offset, s.vaddr, s.paddr, len, s.memsz] {
            f.extend(word(v));
        }
        if !is_64 {
            f.extend(flags);
        }
        f.extend(word(4));
        offset += len;
    }
    segments.iter().for_each(|s| f.extend(&s.bytes));
    f
}

/// A plain ELF at 1 MiB with a page of bss.
pub fn plain_elf(is_64: bool) -> Vec<u8> {
    elf(is_64, MIB + 1, &[Seg::load(MIB, CODE, 0x1000)])
}

/// A PVH kernel: a 64-bit ELF with the Xen note.
pub fn pvh() -> Vec<u8> {
    let mut note = words(&[4, 4, 6]);
    note.extend(b"GNU\0\x11\x22\x33\x44");
    note.extend(words(&[4, 4, 18]));
    note.extend(b"Xen\0");
    note.extend((MIB as u32 + 0x20).to_le_bytes());
    elf(true, MIB, &[Seg::load(MIB, CODE, 0x1000), Seg::note(note)])
}

fn multiboot_header(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    words(&[magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags)])
}

/// A multiboot 1 kernel: an ELF32 file with the header at the start of its segment.
pub fn multiboot(flags: u32) -> Vec<u8> {
    let mut bytes = multiboot_header(flags);
    bytes.extend(CODE);
    elf(false, MIB + 12, &[Seg::load(MIB, &bytes, 0x2000)])
}

/// A flat multiboot 1 kernel with addresses in its header, which lies 16 bytes into the file.
pub fn multiboot_flat(load_end: u32, bss_end: u32) -> Vec<u8> {
    let base = 2 * MIB as u32;
    let mut f = vec![0xaa; 16];
    f.extend(multiboot_header(1 << 16));
    f.extend(words(&[base + 16, base, load_end, bss_end, base + 48]));
    f.extend(CODE);
    f
}

/// A multiboot 2 header with the given tags (type, flags, body).
pub fn multiboot2_header(tags: &[(u16, u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, flags, b) in tags.iter().chain([&(0, 0, Vec::new())]) {
        body.extend(kind.to_le_bytes());
        body.extend(flags.to_le_bytes());
        body.extend((b.len() as u32 + 8).to_le_bytes());
        body.extend(b);
        body.resize(body.len().next_multiple_of(8), 0);
    }
    let (magic, len) = (0xe852_50d6u32, body.len() as u32 + 16);
    let mut header = words(&[magic, 0, len, 0u32.wrapping_sub(magic).wrapping_sub(len)]);
    header.extend(body);
    header
}

/// A multiboot 2 kernel as an ELF file. Its header lies at an offset that is a multiple of 8.
pub fn multiboot2(tags: &[(u16, u16, Vec<u8>)]) -> Vec<u8> {
    let headers = 52 + 32u64;
    let mut bytes = vec![0; (headers.next_multiple_of(8) - headers) as usize];
    bytes.extend(multiboot2_header(tags));
    bytes.extend(CODE);
    elf(false, MIB, &[Seg::load(MIB, &bytes, 0x3000)])
}

/// What a synthetic bzImage says of itself.
#[derive(Clone)]
pub struct Setup {
    pub version: u16,
    pub relocatable: bool,
    pub xloadflags: u16,
    pub pref: u64,
    pub init_size: u32,
    pub initrd_max: u32,
}

impl Default for Setup {
    fn default() -> Self {
        let (pref, init_size) = (2 * MIB, 0x8_0000);
        Self { version: 0x20f, relocatable: true, xloadflags: 1, pref, init_size, initrd_max: 0x7fff_ffff }
    }
}

/// The protected-mode part of the synthetic bzImage.
pub fn bzimage_body() -> Vec<u8> {
    (0..4096u32).map(|i| (i % 251) as u8).collect()
}

/// A bzImage with one setup sector besides the boot sector, and a payload at offset 100 of its kernel.
pub fn bzimage(s: &Setup) -> Vec<u8> {
    let mut f = vec![0u8; 1024];
    let body = bzimage_body();
    let mut put = |at: usize, b: &[u8]| f[at..at + b.len()].copy_from_slice(b);
    put(0x1f1, &[1]);
    put(0x1f4, &(body.len() as u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &s.version.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &s.initrd_max.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[s.relocatable.into(), 21]);
    put(0x236, &s.xloadflags.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &100u32.to_le_bytes());
    put(0x24c, &50u32.to_le_bytes());
    put(0x258, &s.pref.to_le_bytes());
    put(0x260, &s.init_size.to_le_bytes());
    f.extend(body);
    f
}

/// Appends section headers to an ELF32 file: null, and a string table that no segment loads.
pub fn with_string_table(mut elf: Vec<u8>, strings: &[u8]) -> Vec<u8> {
    let strings_at = elf.len() as u32;
    elf.extend(strings);
    let headers_at = elf.len() as u32;
    elf.extend(vec![0; 40]);
    elf.extend(words(&[1, 3, 0, 0, strings_at, strings.len() as u32, 0, 0, 1, 0]));
    elf[0x20..0x24].copy_from_slice(&headers_at.to_le_bytes());
    for (at, half) in [(0x2e, 40u16), (0x30, 2), (0x32, 1)] {
        elf[at..at + 2].copy_from_slice(&half.to_le_bytes());
    }
    elf
}
