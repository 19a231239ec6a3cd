//! Writes a trace, append-only: each chunk with one write, so that a kill tears at most the last one.

use super::chunk::{self, Kind};
use super::end::EndRecord;
use super::header::{Header, present, total_size};
use super::record::{Predictor, Record};
use super::varint::{put, put_signed};
use super::{MAX_IMAGE_PIECE, MAX_IMAGES, MAX_STRING};
use retrovisor_core::input::When;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use std::io::{self, Write};

/// How hard to compress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effort {
    /// As little as does not hold up a run.
    Live,
    /// As much as there is.
    Most,
}

impl Effort {
    /// Level for images: most are compressed already.
    const fn images(self) -> i32 {
        match self {
            Effort::Live => 1,
            Effort::Most => chunk::BEST,
        }
    }

    /// Level for records.
    const fn records(self) -> i32 {
        match self {
            Effort::Live => 9,
            Effort::Most => chunk::BEST,
        }
    }

    /// Bytes of an image in one chunk.
    const fn piece(self) -> usize {
        match self {
            Effort::Live => 1 << 20,
            Effort::Most => MAX_IMAGE_PIECE,
        }
    }
}

/// Pending bytes at which a frame is written.
pub const FRAME_FULL: usize = 64 << 10;

/// One frame in the seek index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexEntry {
    /// The point the frame starts at.
    pub start: When,
    /// The frame's offset in the file.
    pub at: u64,
}

/// Encodes records into frames.
pub struct Frames {
    machine: MachineConfig,
    /// Where the frame being filled starts.
    start: When,
    predictor: Predictor,
    pending: Vec<u8>,
}

/// A complete frame.
pub struct EncodedFrame {
    pub start: When,
    pub end: When,
    /// The payload, uncompressed.
    pub raw: Vec<u8>,
}

impl Frames {
    /// Frames from `start` on.
    pub fn new(machine: &MachineConfig, start: When) -> Self {
        let predictor = Predictor::new(start, machine);
        Self { machine: machine.clone(), start, predictor, pending: Vec::new() }
    }

    /// Adds a record. False, and nothing is added, if its point lies before the last one.
    #[must_use]
    pub fn push(&mut self, record: &Record) -> bool {
        if record.when.icount < self.predictor.point().icount {
            return false;
        }
        self.predictor.put(&mut self.pending, record);
        true
    }

    /// Adds records that were logged before, and so are in order: inside a frame icounts never go back, and each begins where
    /// the one before it ended.
    pub fn push_logged<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) {
        for record in records {
            let added = self.push(record);
            debug_assert!(added);
        }
    }

    /// Bytes of records in the frame being filled.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Where the frame being filled starts.
    pub fn start(&self) -> When {
        self.start
    }

    /// Ends the frame at `now`, an instruction boundary, up to which it is complete.
    pub fn end(&mut self, now: When) -> EncodedFrame {
        let mut raw = Vec::with_capacity(self.pending.len() + 32);
        put(&mut raw, self.start.icount.0);
        put(&mut raw, self.start.time.0);
        put(&mut raw, now.icount - self.start.icount);
        put_signed(&mut raw, (now.time - self.start.time) as i64);
        raw.append(&mut self.pending);
        self.predictor = Predictor::new(now, &self.machine);
        EncodedFrame { start: std::mem::replace(&mut self.start, now), end: now, raw }
    }
}

/// Writes a trace to `W`.
pub struct TraceWriter {
    out: Box<dyn Write + Send>,
    effort: Effort,
    /// Bytes written.
    at: u64,
    index: Vec<IndexEntry>,
}

impl TraceWriter {
    /// Writes the header and the images.
    pub fn new(out: Box<dyn Write + Send>, machine: &MachineConfig, images: &Images) -> io::Result<Self> {
        Self::with_header(out, &Header::of(machine, images), images, Effort::Live)
    }

    /// Writes `header` and the images it lists.
    pub fn with_header(
        out: Box<dyn Write + Send>,
        header: &Header,
        images: &Images,
        effort: Effort,
    ) -> io::Result<Self> {
        let mut writer = Self::without_images(out, header, effort)?;
        let present = present(images);
        for (n, info) in header.images.iter().enumerate() {
            let bytes = present.iter().find(|(role, _)| *role == info.role).map_or(&[][..], |i| i.1);
            if header.stored_as(n) != n {
                continue;
            }
            for piece in bytes.chunks(effort.piece()) {
                let mut raw = Vec::with_capacity(piece.len() + 1);
                raw.push(n as u8);
                raw.extend_from_slice(piece);
                writer.append(&chunk::encode(Kind::Image, effort.images(), &raw)?)?;
            }
        }
        Ok(writer)
    }

    /// Writes `header`, which lists no image or whose images are appended by the caller.
    pub(crate) fn without_images(
        mut out: Box<dyn Write + Send>,
        header: &Header,
        effort: Effort,
    ) -> io::Result<Self> {
        check_limits(header)?;
        let bytes = header.to_bytes();
        out.write_all(&bytes)?;
        Ok(Self { out, effort, at: bytes.len() as u64, index: Vec::new() })
    }

    /// Writes a whole chunk, which is no frame.
    pub fn append(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.out.write_all(chunk)?;
        self.at += chunk.len() as u64;
        Ok(())
    }

    /// Writes a chunk of a checkpoint.
    pub fn checkpoint_chunk(&mut self, kind: Kind, raw: &[u8]) -> io::Result<()> {
        self.at += chunk::write(&mut self.out, kind, self.effort.records(), raw)?;
        Ok(())
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.at
    }

    /// Writes a frame.
    pub fn frame(&mut self, frame: &EncodedFrame) -> io::Result<()> {
        let entry = IndexEntry { start: frame.start, at: self.at };
        self.at += chunk::write(&mut self.out, Kind::Frame, self.effort.records(), &frame.raw)?;
        self.index.push(entry);
        Ok(())
    }

    /// Writes the end record, the index and the trailer; the last frame ended at the end's point.
    pub fn finish(&mut self, end: &EndRecord) -> io::Result<()> {
        let mut raw = Vec::new();
        end.put(&mut raw);
        self.at += chunk::write(&mut self.out, Kind::End, self.effort.records(), &raw)?;
        let index_at = self.at;
        let most = Kind::Index.max_raw() / 30;
        // A very long recording gets a sparser index, never a larger one.
        let stride = self.index.len().div_ceil(most).max(1);
        let mut raw = Vec::new();
        let mut last = IndexEntry { start: When::default(), at: 0 };
        for entry in self.index.iter().step_by(stride) {
            put(&mut raw, entry.start.icount - last.start.icount);
            put_signed(&mut raw, (entry.start.time - last.start.time) as i64);
            put(&mut raw, entry.at - last.at);
            last = *entry;
        }
        self.at += chunk::write(&mut self.out, Kind::Index, self.effort.records(), &raw)?;
        self.at +=
            chunk::write(&mut self.out, Kind::Trailer, self.effort.records(), &index_at.to_le_bytes())?;
        self.out.flush()
    }
}

/// Refuses what no reader would accept.
fn check_limits(header: &Header) -> io::Result<()> {
    let too_long = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    if total_size(&header.images) > MAX_IMAGES {
        return too_long(format!("its images are larger than a trace can hold ({MAX_IMAGES} bytes)"));
    }
    if header.cmdline.len().max(header.kernel_name.len()) > MAX_STRING {
        return too_long(format!("the command line is longer than {MAX_STRING} bytes"));
    }
    Ok(())
}
