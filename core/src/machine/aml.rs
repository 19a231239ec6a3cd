//! A small AML encoder: just the terms the board's DSDT needs. Source: ACPI 6.4, chapter 20.

/// Encodes a length-prefixed body (PkgLength counts itself).
fn with_length(body: &[u8]) -> Vec<u8> {
    let n = body.len();
    let mut v = match n {
        0..=0x3e => vec![(n + 1) as u8],
        0x3f..=0xffd => vec![0x40 | ((n + 2) & 15) as u8, ((n + 2) >> 4) as u8],
        _ => vec![0x80 | ((n + 3) & 15) as u8, ((n + 3) >> 4) as u8, ((n + 3) >> 12) as u8],
    };
    v.extend_from_slice(body);
    v
}

/// A name path: `\` and segments of up to four characters separated by dots.
fn path(name: &str) -> Vec<u8> {
    let (root, rest) = match name.strip_prefix('\\') {
        Some(r) => (true, r),
        None => (false, name),
    };
    let segments: Vec<&str> = rest.split('.').filter(|s| !s.is_empty()).collect();
    let mut v = if root { vec![b'\\'] } else { Vec::new() };
    match segments.len() {
        0 => v.push(0),
        1 => {}
        2 => v.push(0x2e),
        n => v.extend([0x2f, n as u8]),
    }
    for s in segments {
        v.extend(s.bytes().chain(std::iter::repeat(b'_')).take(4));
    }
    v
}

/// An integer constant in its shortest form.
pub fn int(n: u32) -> Vec<u8> {
    match n {
        0 | 1 => vec![n as u8],
        2..=0xff => vec![0x0a, n as u8],
        0x100..=0xffff => [&[0x0b], &(n as u16).to_le_bytes()[..]].concat(),
        _ => [&[0x0c], &n.to_le_bytes()[..]].concat(),
    }
}

/// A compressed EISA identifier, like `PNP0A03` (19.3.4).
pub fn eisa_id(id: &str) -> Vec<u8> {
    let b = id.as_bytes();
    let letter = |i: usize| u32::from(b.get(i).copied().unwrap_or(b'@').wrapping_sub(0x40) & 0x1f);
    let hex = u32::from_str_radix(id.get(3..).unwrap_or("0"), 16).unwrap_or(0);
    let n = letter(0) << 26 | letter(1) << 21 | letter(2) << 16 | hex & 0xffff;
    [&[0x0c], &n.to_be_bytes()[..]].concat()
}

pub fn name(n: &str, value: Vec<u8>) -> Vec<u8> {
    [vec![0x08], path(n), value].concat()
}

pub fn scope(n: &str, body: &[Vec<u8>]) -> Vec<u8> {
    [vec![0x10], with_length(&[path(n), body.concat()].concat())].concat()
}

pub fn device(n: &str, body: &[Vec<u8>]) -> Vec<u8> {
    [vec![0x5b, 0x82], with_length(&[path(n), body.concat()].concat())].concat()
}

/// A package of up to 255 elements.
pub fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    [vec![0x12], with_length(&[vec![elements.len() as u8], elements.concat()].concat())].concat()
}

/// A resource template: descriptors, then an end tag.
pub fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    let bytes = [descriptors.concat(), vec![0x79, 0x00]].concat();
    [vec![0x11], with_length(&[int(bytes.len() as u32), bytes].concat())].concat()
}

/// I/O port descriptor, 16-bit decode (6.4.2.5).
pub fn io(base: u16, len: u8) -> Vec<u8> {
    let [l, h] = base.to_le_bytes();
    vec![0x47, 0x01, l, h, l, h, 0x01, len]
}

/// Edge-triggered, active-high, exclusive IRQ descriptor (6.4.2.1).
pub fn irq(n: u8) -> Vec<u8> {
    [&[0x22][..], &(1u16 << (n & 15)).to_le_bytes()].concat()
}

/// Word address-space descriptor of a producer (6.4.3.5.3): `kind` 1 I/O, 2 bus numbers.
pub fn word_space(kind: u8, min: u16, max: u16) -> Vec<u8> {
    let flags = if kind == 1 { 0x03 } else { 0x00 };
    let mut v = vec![0x88, 13, 0, kind, 0x0c, flags];
    for w in [0, min, max, 0, (u32::from(max) - u32::from(min) + 1) as u16] {
        v.extend(w.to_le_bytes());
    }
    v
}

/// Doubleword memory-space descriptor of a producer (6.4.3.5.2), read-write; `cacheable` for prefetchable windows.
pub fn dword_memory(min: u32, max: u32, cacheable: bool) -> Vec<u8> {
    let mut v = vec![0x87, 23, 0, 0, 0x0c, if cacheable { 0x03 } else { 0x01 }];
    for w in [0, min, max, 0, max - min + 1] {
        v.extend(w.to_le_bytes());
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_length_encodings() {
        assert_eq!(with_length(&[0; 0x3e])[..1], [0x3f]);
        assert_eq!(with_length(&[0; 0x3f])[..2], [0x41, 0x04]);
        assert_eq!(with_length(&[0; 0xffe])[..3], [0x81, 0x00, 0x01]);
    }

    #[test]
    fn eisa_id_of_the_pci_bus() {
        assert_eq!(eisa_id("PNP0A03"), [0x0c, 0x41, 0xd0, 0x0a, 0x03]);
    }

    #[test]
    fn name_paths() {
        assert_eq!(path("\\_S5"), b"\\_S5_");
        assert_eq!(path("PCI0"), b"PCI0");
        assert_eq!(path("\\_SB.PCI0"), b"\\\x2e_SB_PCI0");
    }
}
