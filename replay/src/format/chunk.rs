//! Chunks: everything after the header. Owns framing, checksum and compression, all with bounded allocation.
//!
//! A chunk is 16 bytes (kind u8, codec u8, zero u16, stored length u32, raw length u32, CRC-32 u32 of the twelve bytes
//! before it and the stored bytes), then the stored bytes. Little-endian.

use super::varint::{Cursor, Malformed};
use super::{MAX_FRAME, MAX_IMAGE_PIECE};
use std::io::{self, Write};

/// Bytes before a chunk's payload.
pub const HEAD: u64 = 16;

/// What a chunk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A piece of an image: the image's number (one byte), then up to [`MAX_IMAGE_PIECE`] bytes of it.
    Image,
    /// Records.
    Frame,
    /// The seek index.
    Index,
    /// The end record.
    End,
    /// The file offset of the index; always the last chunk.
    Trailer,
}

impl Kind {
    const ALL: [(u8, Kind); 5] =
        [(1, Kind::Image), (2, Kind::Frame), (3, Kind::Index), (4, Kind::End), (5, Kind::Trailer)];

    fn code(self) -> u8 {
        Self::ALL.iter().find(|k| k.1 == self).map_or(0, |k| k.0)
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.iter().find(|k| k.0 == code).map(|k| k.1)
    }

    /// The most bytes a chunk of this kind holds uncompressed.
    pub const fn max_raw(self) -> usize {
        match self {
            Kind::Image => MAX_IMAGE_PIECE + 1,
            Kind::Frame => MAX_FRAME,
            Kind::Index => 1 << 20,
            Kind::End => 256,
            Kind::Trailer => 8,
        }
    }
}

const RAW: u8 = 0;
const ZSTD: u8 = 1;

/// A chunk's first 16 bytes, checked for sanity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub kind: Kind,
    zstd: bool,
    /// Payload bytes in the file.
    pub stored: u32,
    /// Payload bytes uncompressed.
    pub raw: u32,
    /// CRC-32 of the head's first twelve bytes and the stored payload.
    pub crc: u32,
}

impl Head {
    /// Reads and checks a head.
    pub fn parse(bytes: &[u8; HEAD as usize]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(bytes);
        let kind = Kind::from_code(c.u8()?).ok_or("a chunk of unknown kind")?;
        let codec = c.u8()?;
        if codec > ZSTD || c.u16()? != 0 {
            return Err("a chunk of unknown coding");
        }
        let (stored, raw, crc) = (c.u32()?, c.u32()?, c.u32()?);
        if raw as usize > kind.max_raw() || stored > raw {
            return Err("a chunk's length is out of range");
        }
        if codec == RAW && stored != raw {
            return Err("a chunk's lengths disagree");
        }
        Ok(Self { kind, zstd: codec == ZSTD, stored, raw, crc })
    }

    /// The checksum's first part; feed it the stored payload, then compare with `crc`.
    pub fn hasher(bytes: &[u8; HEAD as usize]) -> crc32fast::Hasher {
        let mut h = crc32fast::Hasher::new();
        h.update(&bytes[..12]);
        h
    }

    /// Uncompresses a stored payload.
    pub fn decode(&self, stored: Vec<u8>) -> Result<Vec<u8>, Malformed> {
        let raw = if self.zstd {
            // The buffer is as large as the head says, which `parse` bounded.
            zstd::bulk::decompress(&stored, self.raw as usize)
                .map_err(|_| "its compressed data is invalid")?
        } else {
            stored
        };
        if raw.len() == self.raw as usize { Ok(raw) } else { Err("its uncompressed length is wrong") }
    }
}

/// The highest compression level.
pub const BEST: i32 = 22;

fn compress(raw: &[u8], level: i32) -> io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(level)?;
    if level == BEST {
        compressor.set_parameter(zstd::zstd_safe::CParameter::EnableLongDistanceMatching(true))?;
    }
    compressor.compress(raw)
}

/// Writes one chunk with a single `write_all`, compressed at `level` where that makes it smaller; returns its size.
pub fn write(out: &mut dyn Write, kind: Kind, level: i32, raw: &[u8]) -> io::Result<u64> {
    let packed = compress(raw, level)?;
    let (codec, payload) = if packed.len() < raw.len() { (ZSTD, &packed[..]) } else { (RAW, raw) };
    let mut bytes = vec![kind.code(), codec, 0, 0];
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    let mut h = crc32fast::Hasher::new();
    h.update(&bytes);
    h.update(payload);
    bytes.extend_from_slice(&h.finalize().to_le_bytes());
    bytes.extend_from_slice(payload);
    out.write_all(&bytes)?;
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parts(bytes: &[u8]) -> (Head, Vec<u8>) {
        let head = bytes[..16].try_into().unwrap();
        (Head::parse(head).unwrap(), bytes[16..].to_vec())
    }

    #[test]
    fn test_chunk_round_trips_compressed_and_raw() {
        let raws = [vec![7u8; 5000], vec![], (0..100u32).map(|i| ((i * i * 37) >> 3) as u8).collect()];
        for (raw, level) in raws.into_iter().flat_map(|raw| [(raw.clone(), 3), (raw, BEST)]) {
            let mut out = Vec::new();
            let n = write(&mut out, Kind::Frame, level, &raw).unwrap();
            assert_eq!(n as usize, out.len());
            let (head, stored) = parts(&out);
            assert_eq!(head.stored as usize, stored.len());
            let mut h = Head::hasher(out[..16].try_into().unwrap());
            h.update(&stored);
            assert_eq!(h.finalize(), head.crc);
            assert_eq!(head.decode(stored).unwrap(), raw);
        }
    }

    #[test]
    fn test_head_hostile_lengths_return_error() {
        let mut out = Vec::new();
        write(&mut out, Kind::Frame, 3, &[7; 5000]).unwrap();
        let good: [u8; 16] = out[..16].try_into().unwrap();
        assert!(Head::parse(&good).is_ok());
        for (at, value) in [(0, 0), (0, 6), (1, 2), (2, 1), (7, 0xff), (11, 0xff)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Head::parse(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn test_decode_longer_than_head_says_returns_error() {
        let mut out = Vec::new();
        write(&mut out, Kind::Frame, 3, &[7; 5000]).unwrap();
        let (mut head, stored) = parts(&out);
        for raw in [4999, 5001] {
            head.raw = raw;
            assert!(head.decode(stored.clone()).is_err());
        }
    }
}
