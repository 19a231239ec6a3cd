//! The `.rvt` trace file. Owns every byte of the format; `docs/trace-format.md` describes it for other readers.
//!
//! `varint` numbers | `header` what stands first | `machine` the machine description | `chunk` framing, checksum
//! and compression | `record` one input, delta-coded | `describe` as a line of text | `end` how a run ended |
//! `writer` | `reader` | `stats` counts by kind | `pack` the same in fewer bytes.
//!
//! The reader is fed hostile files: no length is trusted, every allocation has a bound from this file, nothing panics.

pub mod chunk;
pub mod describe;
pub mod end;
pub mod header;
pub mod machine;
pub mod pack;
pub mod reader;
pub mod record;
pub mod stats;
pub mod varint;
pub mod writer;

use thiserror::Error;

/// First bytes of every trace.
pub const MAGIC: [u8; 4] = *b"RVT\x1a";
/// The only version this build reads and writes.
pub const VERSION: u32 = 2;
/// Bytes before the header's body: magic, version, body length, body checksum.
pub const PREAMBLE: u64 = 16;
/// Largest header body: two strings of at most 64 KiB and a few small fields.
pub const MAX_HEADER: u32 = 256 << 10;
/// Longest string in a header (command line, kernel name).
pub const MAX_STRING: usize = 64 << 10;
/// Most bytes of an image in one chunk.
pub const MAX_IMAGE_PIECE: usize = 16 << 20;
/// Most bytes of all images together.
pub const MAX_IMAGES: u64 = 1 << 30;
/// Largest uncompressed frame of records.
pub const MAX_FRAME: usize = 256 << 10;
/// Longest byte string in one record; longer inputs are split.
pub const MAX_RECORD_BYTES: usize = 32 << 10;
/// Largest icount and largest guest time in a trace, so that sums of them cannot overflow.
pub const MAX_POINT: u64 = 1 << 62;

/// What is wrong with a trace.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Problem {
    #[error("cannot be read: {0}")]
    Io(String),
    #[error("is empty: nothing was recorded in it")]
    Empty,
    #[error(
        "is not a Retrovisor trace (it does not begin with \"RVT\"): give a file written by `run --record`"
    )]
    NotATrace,
    #[error(
        "was written by an older version of Retrovisor (trace format version {found}, this build reads version \
         {VERSION}): use the retrovisor that wrote it, or record again"
    )]
    OldVersion { found: u32 },
    #[error(
        "has trace format version {found}, this build reads version {VERSION}: use the retrovisor that wrote it"
    )]
    Version { found: u32 },
    #[error("ends inside its header: the recording was cut before it began, record again")]
    CutHeader,
    #[error("has a damaged header ({0}): restore the file from a good copy")]
    Header(String),
    #[error("lacks part of its {image}: the file ends or is damaged at byte {at}, so it cannot be replayed")]
    ImageCut { image: &'static str, at: u64 },
    #[error("has a damaged {image} (its digest differs): restore the file from a good copy")]
    ImageDigest { image: &'static str },
    #[error("is damaged at byte {at} ({why})")]
    Damaged { at: u64, why: String },
}

/// A trace that cannot be used, by file name.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{file}: {problem}")]
pub struct TraceError {
    /// The name the trace was opened by.
    pub file: String,
    pub problem: Problem,
}
