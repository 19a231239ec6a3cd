//! The LZ4 "legacy" frame in which some Debian kernels are packed. Owns its decoding, for trusted images only.
//! Source: the LZ4 block and frame format descriptions.

const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Whether `data` is such a frame.
pub fn is_lz4(data: &[u8]) -> bool {
    data.starts_with(&MAGIC)
}

/// Decodes a frame: blocks of up to 8 MiB, each independent, each preceded by its size. `None` if it is damaged.
/// What follows the last block (the kernel's build appends the unpacked size) ends it.
pub fn decode(data: &[u8]) -> Option<Vec<u8>> {
    let mut rest = data.strip_prefix(&MAGIC)?;
    let mut out = Vec::new();
    while let Some((size, more)) = rest.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let Some((block, after)) = more.split_at_checked(size) else { break };
        decode_block(block, &mut out)?;
        rest = after;
    }
    Some(out)
}

/// A length field goes on while its bytes are 255.
fn length(nibble: u8, input: &mut &[u8]) -> Option<usize> {
    let mut n = usize::from(nibble);
    while n >= 15 {
        let (b, rest) = input.split_first()?;
        *input = rest;
        n += usize::from(*b);
        if *b != 255 {
            break;
        }
    }
    Some(n)
}

/// Sequences of (literals, match); the last one has no match.
fn decode_block(mut input: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    while let Some((token, rest)) = input.split_first() {
        input = rest;
        let literals = length(token >> 4, &mut input)?;
        let (bytes, rest) = input.split_at_checked(literals)?;
        out.extend_from_slice(bytes);
        let Some((offset, rest)) = rest.split_first_chunk::<2>() else { break };
        input = rest;
        let offset = usize::from(u16::from_le_bytes(*offset));
        let len = length(token & 15, &mut input)? + 4;
        let from = out.len().checked_sub(offset).filter(|f| *f >= start && offset > 0)?;
        // A match may overlap what it produces.
        for n in from..from + len {
            out.push(out[n]);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(block: &[u8]) -> Vec<u8> {
        let size = (block.len() as u32).to_le_bytes();
        [&MAGIC[..], &size, block, &7u32.to_le_bytes()].concat()
    }

    #[test]
    fn literals_and_overlapping_matches_are_decoded() {
        // "ab", then 4 + 5 bytes from two back, then the literal "!".
        assert_eq!(
            decode(&frame(&[0x25, b'a', b'b', 2, 0, 0x10, b'!'])).as_deref(),
            Some(&b"abababababa!"[..])
        );
        // 15 + 2 literals.
        let long = [&[0xf0, 2][..], &[b'x'; 17]].concat();
        assert_eq!(decode(&frame(&long)), Some(vec![b'x'; 17]));
    }

    #[test]
    fn damaged_frames_are_refused() {
        assert_eq!(decode(b"nothing"), None);
        assert_eq!(decode(&frame(&[0x15, b'a', 9, 0])), None, "a match from before the beginning");
        assert_eq!(decode(&frame(&[0x50, b'a'])), None, "too few literals");
    }
}
