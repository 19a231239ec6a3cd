//! Recording: a port that logs everything another port lets in, as it runs.
//!
//! The log is written in frames: when 64 KiB are pending, at the first boundary a second after the last frame, and
//! before an idle wait. If writing fails (a full disk) recording stops with one clear message, the run goes on, and
//! what was written stays readable.

use crate::disk::TraceFile;
use crate::format::end::{EndRecord, ExitReason};
use crate::format::record::{Record, What, split};
use crate::format::writer::{FRAME_FULL, Frames, TraceWriter};
use crate::log::Tape;
use crate::output::{HashedOutput, OutputDigest};
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::output::OutputSink;
use retrovisor_core::{GuestTime, Icount};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Pending records are written at the first boundary this long after the last frame.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// ... and before an idle wait this long after it, so that what was typed is soon on disk.
const FLUSH_IDLE_AFTER: Duration = Duration::from_millis(250);
/// A frame is written at the first boundary this long after the last one even if nothing happened.
const FLUSH_ANYWAY: Duration = Duration::from_secs(10);

/// Why recording could not start or has stopped.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum RecordError {
    #[error("{file}: cannot be created: {why}")]
    Create { file: String, why: String },
    #[error("{file}: recording stopped, cannot be written: {why}; it replays up to instruction {icount}")]
    Write { file: String, why: String, icount: Icount },
    #[error("{file}: recording stopped at instruction {icount}: the run went back to an earlier point")]
    WentBack { file: String, icount: Icount },
}

/// Told once when recording stops before its end.
pub type OnError = Box<dyn FnMut(&RecordError) + Send>;

struct State {
    file: String,
    frames: Frames,
    /// `None`: the log is kept in memory only.
    writer: Option<TraceWriter>,
    tape: Tape,
    last_frame: Instant,
    /// Point up to which the file is complete.
    written: When,
    failed: Option<RecordError>,
    finished: bool,
    on_error: OnError,
    /// The last hash point.
    hashed: Option<Icount>,
}

/// A recording in progress: the log of a run, in memory and perhaps in a file. Clones share one log.
#[derive(Clone)]
pub struct Recording {
    state: Arc<Mutex<State>>,
    output: OutputDigest,
}

/// The log of one branch of a run, apart from the recording that fills it.
pub(crate) struct Track(Box<State>);

impl Track {
    /// Goes on from `start`, where `tape` ends, in memory only.
    pub fn new(machine: &MachineConfig, tape: Tape, start: When) -> Self {
        Self(Box::new(State {
            file: "the history".into(),
            written: start,
            frames: Frames::new(machine, start),
            writer: None,
            tape,
            last_frame: Instant::now(),
            failed: None,
            finished: false,
            on_error: Box::new(|_| ()),
            hashed: None,
        }))
    }

    pub fn into_tape(self) -> Tape {
        self.0.tape
    }

    /// Ends the file of this log, if it has one, with `end`, where the branch was left.
    ///
    /// # Errors
    /// As [`Recording::finish`].
    pub fn finish(&mut self, end: &EndRecord) -> Result<(), RecordError> {
        self.0.finish(end)
    }
}

impl Recording {
    /// Creates a trace file, or replaces an old trace ([`disk`](crate::disk) says how), and writes the header and the
    /// images. `on_error` hears, once, why recording stopped if it does before [`Recording::finish`].
    ///
    /// # Errors
    /// If the file cannot be created or written, is being recorded to, or exists and is not a trace.
    pub fn create(
        path: &Path,
        machine: &MachineConfig,
        images: &Images,
        on_error: OnError,
    ) -> Result<Self, RecordError> {
        let file = path.display().to_string();
        let fail = |e: io::Error| RecordError::Create { file: file.clone(), why: e.to_string() };
        let out = TraceFile::create(path).map_err(fail)?;
        let recording = Self::to_writer(file.clone(), Box::new(out.clone()), machine, images, on_error)?;
        out.publish().map_err(fail)?;
        Ok(recording)
    }

    /// Records into memory: the second value gives the bytes at any time.
    ///
    /// # Errors
    /// If the description or the images exceed what a trace can hold.
    pub fn in_memory(machine: &MachineConfig, images: &Images) -> Result<(Self, MemoryFile), RecordError> {
        let memory = MemoryFile::default();
        let out = Box::new(memory.clone());
        let recording = Self::to_writer("memory".into(), out, machine, images, Box::new(|_| ()))?;
        Ok((recording, memory))
    }

    /// Records to anything that can be written; `file` is what errors call it.
    ///
    /// # Errors
    /// If the header and the images cannot be written.
    pub fn to_writer(
        file: String,
        out: Box<dyn Write + Send>,
        machine: &MachineConfig,
        images: &Images,
        on_error: OnError,
    ) -> Result<Self, RecordError> {
        match TraceWriter::new(out, machine, images) {
            Ok(writer) => {
                let mut track = Track::new(machine, Tape::new(machine), When::default());
                (track.0.file, track.0.writer, track.0.on_error) = (file, Some(writer), on_error);
                Ok(track.into())
            }
            Err(e) => Err(RecordError::Create { file, why: e.to_string() }),
        }
    }

    /// Keeps the log of a run from power-on in memory only.
    pub fn unwritten(machine: &MachineConfig) -> Self {
        Track::new(machine, Tape::new(machine), When::default()).into()
    }

    /// Goes on filling another log, and gives out the one filled so far.
    pub(crate) fn swap(&self, track: &mut Track) {
        std::mem::swap(&mut *self.lock(), &mut *track.0);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A port that plays `inner` and logs what it says.
    pub fn port<P: InputPort>(&self, inner: P) -> Recorder<P> {
        Recorder { inner, to: self.clone() }
    }

    /// A sink that passes output on to `inner` and keeps the digest that hash points carry.
    pub fn output<S: OutputSink>(&self, inner: S) -> HashedOutput<S> {
        HashedOutput::new(inner, self.output.clone())
    }

    /// Why recording stopped early, if it did.
    pub fn error(&self) -> Option<RecordError> {
        self.lock().failed.clone()
    }

    /// Bytes written to the file so far.
    pub fn bytes(&self) -> u64 {
        self.lock().writer.as_ref().map_or(0, TraceWriter::written)
    }

    /// The log in memory, complete up to the last [`Recording::flush`].
    pub fn tape(&self) -> Tape {
        self.lock().tape.clone()
    }

    /// The digest of the run's output.
    pub(crate) fn digest(&self) -> &OutputDigest {
        &self.output
    }

    /// Writes what is pending up to `now`, an instruction boundary, so that the file can be replayed up to here.
    pub fn flush(&self, now: When) {
        self.lock().flush(now)
    }

    /// Ends the recording: the run ended at `now` for `reason` with state `hash`. Later calls do nothing.
    ///
    /// # Errors
    /// If the file could not be written to its end; it replays up to the point the error names.
    pub fn finish(&self, now: When, reason: ExitReason, hash: StateHash) -> Result<(), RecordError> {
        let end = EndRecord { when: now, reason, hash, output: self.output.value() };
        self.lock().finish(&end)
    }

    /// Ends the recording of `vm` where it stands, for `reason`. Later calls do nothing.
    ///
    /// # Errors
    /// As [`Recording::finish`].
    pub fn finish_vm(&self, vm: &mut Vm, reason: ExitReason) -> Result<(), RecordError> {
        if !reason.is_own() {
            // A replay learns at its poll that the trace ends, and a boundary has more before that.
            vm.arrive();
        }
        let hash = vm.state_hash();
        self.finish(vm.when(), reason, hash)
    }

    fn log(&self, when: When, what: What) {
        self.lock().push(when, what)
    }

    fn log_event(&self, when: When, event: &InputEvent) {
        for part in split(event) {
            self.log(when, What::Event(part));
        }
    }
}

impl From<Track> for Recording {
    fn from(track: Track) -> Self {
        Self { state: Arc::new(Mutex::new(*track.0)), output: OutputDigest::default() }
    }
}

impl State {
    fn finish(&mut self, end: &EndRecord) -> Result<(), RecordError> {
        if self.finished {
            return Ok(());
        }
        self.flush(end.when);
        self.finished = true;
        match (&mut self.writer, &self.failed) {
            (_, Some(e)) => Err(e.clone()),
            (None, None) => Ok(()),
            (Some(writer), None) => writer.finish(end).map_err(|e| self.write_error(&e)),
        }
    }

    fn write_error(&self, e: &io::Error) -> RecordError {
        RecordError::Write { file: self.file.clone(), why: e.to_string(), icount: self.written.icount }
    }

    fn fail(&mut self, e: RecordError) {
        (self.on_error)(&e);
        self.failed = Some(e);
    }

    fn push(&mut self, when: When, what: What) {
        if !self.finished && !self.frames.push(&Record { when, what }) {
            let e = RecordError::WentBack { file: self.file.clone(), icount: self.written.icount };
            self.fail(e);
            self.finished = true;
        }
    }

    /// At an instruction boundary: writes a frame if one is due.
    fn boundary(&mut self, now: When, after: Duration) {
        let pending = self.frames.pending();
        let since = self.last_frame.elapsed();
        if pending >= FRAME_FULL || (pending > 0 && since >= after) || since >= FLUSH_ANYWAY {
            self.flush(now);
        }
    }

    /// Ends a frame. If it cannot be written the log goes on in memory.
    fn flush(&mut self, now: When) {
        if self.finished || now < self.frames.start() {
            return;
        }
        let frame = self.frames.end(now);
        self.last_frame = Instant::now();
        self.tape.push(now, &frame.raw);
        let State { writer: Some(writer), failed: None, .. } = self else { return };
        match writer.frame(&frame) {
            Ok(()) => self.written = now,
            Err(e) => {
                let e = self.write_error(&e);
                self.fail(e);
            }
        }
    }
}

/// An input port that plays `P` and logs what it says.
pub struct Recorder<P> {
    inner: P,
    to: Recording,
}

impl<P: InputPort> InputPort for Recorder<P> {
    fn poll(&mut self, now: When) -> Poll {
        let said = self.inner.poll(now);
        if let Poll::Event(event) = &said {
            self.to.log_event(now, event);
        }
        self.to.lock().boundary(now, FLUSH_AFTER);
        said
    }

    fn next_poll(&self) -> Option<Icount> {
        self.inner.next_poll()
    }

    fn answer(&mut self, now: When, query: Query) -> u64 {
        let value = self.inner.answer(now, query);
        self.to.log(now, What::Answer { query, value });
        value
    }

    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        self.to.lock().boundary(now, FLUSH_IDLE_AFTER);
        self.inner.idle(now, deadline)
    }

    fn set_deadline(&mut self, deadline: Option<GuestTime>) {
        self.inner.set_deadline(deadline)
    }

    fn resume(&mut self, now: When) {
        self.inner.resume(now)
    }

    fn inject(&mut self, now: When, event: &InputEvent) {
        self.to.log_event(now, event);
        self.inner.inject(now, event);
    }

    fn check(&mut self, now: When, hash: StateHash) -> bool {
        let good = self.inner.check(now, hash);
        // An engine that is stopped at a hash point may take it again when it goes on.
        let taken = self.to.lock().hashed.replace(now.icount);
        if taken != Some(now.icount) {
            self.to.log(now, What::Hash { hash, output: self.to.output.close() });
        }
        self.to.lock().boundary(now, FLUSH_AFTER);
        good
    }
}

/// A trace in memory that can be read while it is written. Clones share the bytes.
#[derive(Clone, Debug, Default)]
pub struct MemoryFile {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl MemoryFile {
    /// The bytes so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Write for MemoryFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
