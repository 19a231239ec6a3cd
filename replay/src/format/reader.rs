//! Reads a trace: opens files of any origin, stops at the last complete chunk and says so.
//!
//! Opening walks all chunks and checks their checksums (a cut or a flipped bit is found at once); records and images
//! are uncompressed only when asked for, one chunk at a time.

use super::chunk::{HEAD, Head, Kind};
use super::end::{EndRecord, get_point};
use super::header::{Header, ImageInfo, Role};
use super::record::{Predictor, Record};
use super::varint::{Cursor, Malformed};
use super::writer::IndexEntry;
use super::{MAX_POINT, PREAMBLE, Problem, TraceError};
use retrovisor_core::input::When;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::{GuestTime, Icount};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// Bytes that can be read at any offset.
pub trait ReadAt: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `buf` from `at`.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        let meta = self.metadata()?;
        if meta.is_file() { Ok(meta.len()) } else { Err(io::Error::other("it is not a regular file")) }
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, at)
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Where and why a trace stops without an end record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// Offset in the file of the first byte that is not part of a complete chunk.
    pub at: u64,
    /// The point up to which the recording is complete.
    pub when: When,
    /// `None`: the file ends there (the recorder was killed, or writes on); otherwise what is damaged.
    pub damage: Option<&'static str>,
}

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let When { icount, .. } = self.when;
        match self.damage {
            None => write!(f, "cut at byte {}: complete up to instruction {icount}", self.at),
            Some(why) => {
                write!(f, "damaged at byte {} ({why}): complete up to instruction {icount}", self.at)
            }
        }
    }
}

/// How a trace ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// With an end record.
    Complete(EndRecord),
    /// Without one: killed while recording, still being recorded, or damaged.
    Cut(Cut),
}

impl Ending {
    /// The point up to which the trace can be replayed.
    pub fn when(&self) -> When {
        match self {
            Ending::Complete(end) => end.when,
            Ending::Cut(cut) => cut.when,
        }
    }
}

/// A chunk's place in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Offset of its head.
    at: u64,
    head: Head,
}

/// A decoded frame: what happened from `start` to `end`, completely.
#[derive(Clone, Debug)]
pub struct Frame {
    pub start: When,
    pub end: When,
    pub records: Vec<Record>,
}

/// An open trace.
pub struct Trace {
    name: String,
    source: Box<dyn ReadAt>,
    /// File size when it was opened.
    size: u64,
    header: Header,
    /// Offset after the header.
    body: u64,
    images: Vec<Place>,
    frames: Vec<Place>,
    index: Vec<IndexEntry>,
    ending: Ending,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace")
            .field("name", &self.name)
            .field("ending", &self.ending)
            .finish_non_exhaustive()
    }
}

impl Trace {
    /// Opens a trace file.
    ///
    /// # Errors
    /// If it cannot be read, is no trace, has another version or a damaged header. A trace that is cut or damaged
    /// after its header opens; see [`Trace::ending`].
    pub fn open(path: &Path) -> Result<Arc<Self>, TraceError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Self::from_source(name, Box::new(file)),
            Err(e) => Err(TraceError { file: name, problem: Problem::Io(e.to_string()) }),
        }
    }

    /// Opens a trace in memory; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Trace::open`].
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<Arc<Self>, TraceError> {
        Self::from_source(name.into(), Box::new(bytes))
    }

    /// Opens a trace from anything readable.
    ///
    /// # Errors
    /// As [`Trace::open`].
    pub fn from_source(name: String, source: Box<dyn ReadAt>) -> Result<Arc<Self>, TraceError> {
        let fail = |problem| TraceError { file: name.clone(), problem };
        let io = |e: io::Error| fail(Problem::Io(e.to_string()));
        let size = source.size().map_err(io)?;
        let mut first = vec![0; size.min(PREAMBLE) as usize];
        source.read_at(0, &mut first).map_err(io)?;
        let (len, crc) = Header::preamble(&first).map_err(fail)?;
        let body = PREAMBLE + u64::from(len);
        if body > size {
            return Err(fail(Problem::CutHeader));
        }
        let mut bytes = vec![0; len as usize];
        source.read_at(PREAMBLE, &mut bytes).map_err(io)?;
        let header = Header::from_body(&bytes, crc).map_err(fail)?;
        let ending = Ending::Cut(Cut { at: body, when: When::default(), damage: None });
        let (images, frames, index) = (Vec::new(), Vec::new(), Vec::new());
        let mut trace = Self { name, source, size, header, body, images, frames, index, ending };
        trace.scan()?;
        Ok(Arc::new(trace))
    }

    /// The name the trace was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Size of the file in bytes when it was opened.
    pub fn size(&self) -> u64 {
        self.size
    }
    pub fn header(&self) -> &Header {
        &self.header
    }
    pub fn config(&self) -> &MachineConfig {
        &self.header.machine
    }
    pub fn ending(&self) -> &Ending {
        &self.ending
    }
    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }
    /// Bytes that images take in the file.
    pub fn image_bytes(&self) -> u64 {
        stored_bytes(&self.images)
    }
    /// Bytes that records take in the file.
    pub fn frame_bytes(&self) -> u64 {
        stored_bytes(&self.frames)
    }

    /// Bytes that images take uncompressed.
    pub fn image_raw_bytes(&self) -> u64 {
        raw_bytes(&self.images)
    }
    /// Bytes that records take uncompressed.
    pub fn frame_raw_bytes(&self) -> u64 {
        raw_bytes(&self.frames)
    }
    /// Does the trace have a seek index?
    pub fn indexed(&self) -> bool {
        !self.index.is_empty()
    }

    /// Does the trace hold all pieces of its images, so that it can be replayed?
    pub fn has_images(&self) -> bool {
        let need = |n: usize| self.header.images.get(n).map_or(0, |i| i.size);
        let stored = (0..self.header.images.len()).filter(|&n| self.header.stored_as(n) == n).map(need);
        let have: u64 = self.images.iter().map(|p| u64::from(p.head.raw).saturating_sub(1)).sum();
        stored.sum::<u64>() <= have
    }

    /// The machine description and the images.
    ///
    /// # Errors
    /// If an image is incomplete (the file is cut in it) or differs from its digest.
    pub fn machine(&self) -> Result<(MachineConfig, Images), TraceError> {
        let mut images = Images {
            cmdline: self.header.cmdline.clone(),
            kernel_name: self.header.kernel_name.clone(),
            ..Images::default()
        };
        for (n, info) in self.header.images.iter().enumerate() {
            let bytes = Some(self.image(self.header.stored_as(n), info)?);
            match info.role {
                Role::Kernel => images.kernel = bytes,
                Role::Initrd => images.initrd = bytes,
                Role::Bios => images.bios = bytes,
            }
        }
        Ok((self.header.machine.clone(), images))
    }

    /// Uncompresses image `n`.
    fn image(&self, n: usize, info: &ImageInfo) -> Result<Vec<u8>, TraceError> {
        let image = info.role.name();
        let mut bytes = Vec::new();
        for place in &self.images {
            let raw = self.payload(place)?;
            match raw.split_first() {
                Some((&tag, piece)) if usize::from(tag) == n => bytes.extend_from_slice(piece),
                _ => {}
            }
            if bytes.len() as u64 > info.size {
                return Err(self.fail(Problem::ImageDigest { image }));
            }
        }
        if (bytes.len() as u64) < info.size {
            let at = match &self.ending {
                Ending::Cut(cut) => cut.at,
                Ending::Complete(_) => self.size,
            };
            return Err(self.fail(Problem::ImageCut { image, at }));
        }
        if xxh3_128(&bytes) != info.digest {
            return Err(self.fail(Problem::ImageDigest { image }));
        }
        Ok(bytes)
    }

    /// Decodes frame `n`; `None` after the last.
    ///
    /// # Errors
    /// If the frame's contents make no sense although its checksum is right, or the file cannot be read.
    pub fn frame(&self, n: usize) -> Result<Option<Frame>, TraceError> {
        let Some(place) = self.frames.get(n) else { return Ok(None) };
        let raw = self.payload(place)?;
        match parse_frame(&raw, &self.header.machine) {
            Ok(frame) => Ok(Some(frame)),
            Err(why) => Err(self.damaged(place.at, why)),
        }
    }

    /// Bytes of frame `n` uncompressed.
    pub(crate) fn frame_raw(&self, n: usize) -> usize {
        self.frames.get(n).map_or(0, |p| p.head.raw as usize)
    }

    /// The error for frame `n` not beginning where the one before ended.
    pub(crate) fn out_of_order(&self, n: usize) -> TraceError {
        self.damaged(self.frames.get(n).map_or(self.size, |p| p.at), "a frame is out of order")
    }

    /// All records in order. Ends after the first error.
    pub fn records(&self) -> Records<'_> {
        Records { trace: self, next: 0, queue: Vec::new().into_iter() }
    }

    /// The records from the last indexed frame that starts at or before `icount` (all of them without an index).
    pub fn records_from(&self, icount: Icount) -> Records<'_> {
        let i = self.index.partition_point(|e| e.start.icount < icount);
        let at = i.checked_sub(1).and_then(|i| self.index.get(i)).map_or(0, |e| e.at);
        let next = self.frames.iter().position(|p| p.at >= at).unwrap_or(0);
        Records { trace: self, next, queue: Vec::new().into_iter() }
    }

    fn fail(&self, problem: Problem) -> TraceError {
        TraceError { file: self.name.clone(), problem }
    }

    fn damaged(&self, at: u64, why: Malformed) -> TraceError {
        self.fail(Problem::Damaged { at, why: why.to_owned() })
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), TraceError> {
        self.source.read_at(at, buf).map_err(|e| self.fail(Problem::Io(e.to_string())))
    }

    /// Reads and uncompresses a chunk that `scan` accepted.
    fn payload(&self, place: &Place) -> Result<Vec<u8>, TraceError> {
        let mut stored = vec![0; place.head.stored as usize];
        self.read(place.at + HEAD, &mut stored)?;
        place.head.decode(stored).map_err(|why| self.damaged(place.at, why))
    }

    /// Walks all chunks; sets images, frames, index and ending.
    fn scan(&mut self) -> Result<(), TraceError> {
        let mut at = self.body;
        let mut end = None;
        let mut damage = None;
        while at < self.size {
            let place = match self.scan_chunk(at)? {
                Ok(Some(place)) => place,
                Ok(None) => break,
                Err(why) => {
                    damage = Some(why);
                    break;
                }
            };
            match self.take_chunk(place, &mut end)? {
                Ok(()) => at += HEAD + u64::from(place.head.stored),
                Err(why) => {
                    damage = Some(why);
                    break;
                }
            }
        }
        self.ending = match end {
            Some(end) => Ending::Complete(end),
            None => Ending::Cut(self.cut(at, damage)?),
        };
        Ok(())
    }

    /// Checks the chunk at `at`. `Ok(None)`: the file ends inside it. The inner error: it is damaged.
    fn scan_chunk(&self, at: u64) -> Result<Result<Option<Place>, Malformed>, TraceError> {
        let mut head = [0; HEAD as usize];
        if self.size - at < HEAD {
            return Ok(Ok(None));
        }
        self.read(at, &mut head)?;
        let place = match Head::parse(&head) {
            Ok(head) => Place { at, head },
            Err(why) => return Ok(Err(why)),
        };
        let mut left = u64::from(place.head.stored);
        if self.size - at - HEAD < left {
            return Ok(Ok(None));
        }
        let mut crc = Head::hasher(&head);
        let mut buf = vec![0; left.min(64 << 10) as usize];
        let mut from = at + HEAD;
        while left > 0 {
            let n = left.min(buf.len() as u64) as usize;
            self.read(from, &mut buf[..n])?;
            crc.update(&buf[..n]);
            from += n as u64;
            left -= n as u64;
        }
        Ok(if crc.finalize() == place.head.crc { Ok(Some(place)) } else { Err("its checksum differs") })
    }

    /// Files a checked chunk. The inner error: it does not belong where it stands.
    fn take_chunk(
        &mut self,
        place: Place,
        end: &mut Option<EndRecord>,
    ) -> Result<Result<(), Malformed>, TraceError> {
        match place.head.kind {
            Kind::Image | Kind::Frame | Kind::End if end.is_some() => {
                return Ok(Err("a chunk after the end record"));
            }
            Kind::Image => self.images.push(place),
            Kind::Frame => self.frames.push(place),
            Kind::End => {
                let parsed = self.payload(&place).map(|raw| EndRecord::get(&mut Cursor::new(&raw)));
                match parsed {
                    Ok(Ok(record)) if self.last_point() != Some(record.when) => {
                        return Ok(Err("an end record out of place"));
                    }
                    Ok(Ok(record)) => *end = Some(record),
                    Ok(Err(why)) => return Ok(Err(why)),
                    Err(_) => return Ok(Err("its compressed data is invalid")),
                }
            }
            // The index is a help: without it every frame is read.
            Kind::Index => {
                self.index =
                    self.payload(&place).ok().and_then(|raw| parse_index(&raw).ok()).unwrap_or_default();
            }
            Kind::Trailer => {}
        }
        Ok(Ok(()))
    }

    /// The end point of the last frame.
    fn last_point(&self) -> Option<When> {
        Some(self.frame(self.frames.len().checked_sub(1)?).ok()??.end)
    }

    /// The cut at `at`, going back over frames that make no sense.
    fn cut(&mut self, at: u64, damage: Option<Malformed>) -> Result<Cut, TraceError> {
        let mut cut = Cut { at, when: When::default(), damage };
        while let Some(place) = self.frames.last().copied() {
            match self.frame(self.frames.len() - 1) {
                Ok(frame) => {
                    cut.when = frame.map_or(cut.when, |f| f.end);
                    break;
                }
                Err(TraceError { problem: Problem::Damaged { .. }, .. }) => {
                    self.frames.pop();
                    (cut.at, cut.damage) = (place.at, Some("a frame makes no sense"));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(cut)
    }
}

fn stored_bytes(places: &[Place]) -> u64 {
    places.iter().map(|p| HEAD + u64::from(p.head.stored)).sum()
}

fn raw_bytes(places: &[Place]) -> u64 {
    places.iter().map(|p| u64::from(p.head.raw)).sum()
}

/// Reads a point `(icount difference, time difference)` after `from`.
fn get_after(c: &mut Cursor<'_>, from: When) -> Result<When, Malformed> {
    let icount = from.icount.0.checked_add(c.number()?).ok_or("a point is out of range")?;
    let time = from.time.0.wrapping_add(c.signed()? as u64);
    if icount > MAX_POINT || time > MAX_POINT {
        return Err("a point is out of range");
    }
    Ok(When { icount: Icount(icount), time: GuestTime(time) })
}

/// Decodes a frame's payload.
pub(crate) fn parse_frame(raw: &[u8], machine: &MachineConfig) -> Result<Frame, Malformed> {
    let mut c = Cursor::new(raw);
    let start = get_point(&mut c)?;
    let end = get_after(&mut c, start)?;
    let mut predictor = Predictor::new(start, machine);
    let mut records = Vec::new();
    while !c.is_empty() {
        let record = predictor.get(&mut c)?;
        if record.when.icount > end.icount {
            return Err("a record lies outside its frame");
        }
        records.push(record);
    }
    Ok(Frame { start, end, records })
}

fn parse_index(raw: &[u8]) -> Result<Vec<IndexEntry>, Malformed> {
    let mut c = Cursor::new(raw);
    let mut entries: Vec<IndexEntry> = Vec::new();
    while !c.is_empty() {
        let last = entries.last().copied().unwrap_or(IndexEntry { start: When::default(), at: 0 });
        let start = get_after(&mut c, last.start)?;
        let at = last.at.checked_add(c.number()?).ok_or("an offset is out of range")?;
        entries.push(IndexEntry { start, at });
    }
    Ok(entries)
}

/// Iterator over a trace's records.
#[derive(Debug)]
pub struct Records<'a> {
    trace: &'a Trace,
    next: usize,
    queue: std::vec::IntoIter<Record>,
}

impl Iterator for Records<'_> {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.queue.next() {
                return Some(Ok(record));
            }
            match self.trace.frame(self.next) {
                Ok(Some(frame)) => {
                    self.next += 1;
                    self.queue = frame.records.into_iter();
                }
                Ok(None) => return None,
                Err(e) => {
                    self.next = usize::MAX;
                    return Some(Err(e));
                }
            }
        }
    }
}
