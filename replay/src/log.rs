//! What a player plays: frames of records, from a trace or from the run that is going on.

use crate::format::end::ExitReason;
use crate::format::reader::{Ending, Frame, Trace, parse_frame};
use crate::format::record::What;
use crate::format::{Problem, TraceError};
use retrovisor_core::Icount;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::When;
use retrovisor_core::machine::config::MachineConfig;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Compression of frames in memory...
const LEVEL: i32 = 3;
/// ...of at least so many bytes.
const WORTHWHILE: usize = 1024;

/// Where a log ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogEnd {
    pub when: When,
    /// The reason, if the machine comes to that end by itself.
    pub own: Option<ExitReason>,
    /// More may have happened at the end's point than the log has.
    pub open: bool,
}

/// Frames of records in order, each beginning where the one before it ends.
pub trait Log: Send + Sync {
    /// Frame `n`; `None` after the last.
    ///
    /// # Errors
    /// If it cannot be read or makes no sense.
    fn frame(&self, n: usize) -> Result<Option<Frame>, TraceError>;
    /// Frames there are.
    fn frames(&self) -> usize;
    fn end(&self) -> LogEnd;
    /// The error for frame `n` not beginning where the one before it ended.
    fn out_of_order(&self, n: usize) -> TraceError;

    /// What is recorded of the hash point at `icount`: where it is, the state hash and the output digest.
    ///
    /// # Errors
    /// As [`Log::frame`].
    fn hash_at(&self, icount: Icount) -> Result<Option<(When, StateHash, u64)>, TraceError> {
        for n in self.frame_at(icount)?.. {
            let Some(frame) = self.frame(n)?.filter(|f| f.start.icount <= icount) else { break };
            for record in frame.records {
                if let (true, What::Hash { hash, output }) = (record.when.icount == icount, record.what) {
                    return Ok(Some((record.when, hash, output)));
                }
            }
        }
        Ok(None)
    }

    /// The number of the first frame that ends at `icount` or after it.
    ///
    /// # Errors
    /// As [`Log::frame`].
    fn frame_at(&self, icount: Icount) -> Result<usize, TraceError> {
        let (mut low, mut high) = (0, self.frames());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.frame(middle)? {
                Some(f) if f.end.icount < icount => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

impl Log for Trace {
    fn frame(&self, n: usize) -> Result<Option<Frame>, TraceError> {
        Trace::frame(self, n)
    }
    fn frames(&self) -> usize {
        Trace::frames(self)
    }
    fn end(&self) -> LogEnd {
        let (when, own, open) = match self.ending() {
            Ending::Complete(end) => (end.when, Some(end.reason).filter(|r| r.is_own()), false),
            Ending::Cut(cut) => (cut.when, None, true),
        };
        LogEnd { when, own, open }
    }
    fn out_of_order(&self, n: usize) -> TraceError {
        Trace::out_of_order(self, n)
    }
}

/// One frame in memory.
#[derive(Clone)]
struct Piece {
    end: When,
    bytes: Arc<[u8]>,
    /// Its size before it was compressed, if it was.
    raw: Option<usize>,
}

struct State {
    machine: MachineConfig,
    /// The first frames are those of another log.
    base: Option<(Arc<dyn Log>, usize)>,
    pieces: Vec<Piece>,
    bytes: u64,
}

impl State {
    fn inherited(&self) -> usize {
        self.base.as_ref().map_or(0, |(_, n)| *n)
    }
}

/// A log in memory that grows at its end. Clones share it.
#[derive(Clone)]
pub struct Tape {
    state: Arc<Mutex<State>>,
}

impl Tape {
    /// An empty log of a machine's run from power-on.
    pub fn new(machine: &MachineConfig) -> Self {
        let state = State { machine: machine.clone(), base: None, pieces: Vec::new(), bytes: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A log that begins with the first `frames` frames of `log`.
    pub fn fork(machine: &MachineConfig, log: Arc<dyn Log>, frames: usize) -> Self {
        let tape = Self::new(machine);
        tape.lock().base = Some((log, frames));
        tape
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a frame (its payload, uncompressed) that ends at `end`.
    pub fn push(&self, end: When, raw: &[u8]) {
        let packed = (raw.len() >= WORTHWHILE).then(|| zstd::bulk::compress(raw, LEVEL).ok()).flatten();
        let size = packed.as_ref().map(|_| raw.len());
        let bytes: Arc<[u8]> = packed.map_or_else(|| raw.into(), Arc::from);
        let mut state = self.lock();
        state.bytes += bytes.len() as u64 + size_of::<Piece>() as u64;
        state.pieces.push(Piece { end, bytes, raw: size });
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }
}

/// The name of a log in memory in errors.
const NAME: &str = "the history in memory";

impl Log for Tape {
    fn frame(&self, n: usize) -> Result<Option<Frame>, TraceError> {
        let (piece, machine) = {
            let state = self.lock();
            match (&state.base, n.checked_sub(state.inherited())) {
                (Some((base, _)), None) => {
                    let base = Arc::clone(base);
                    drop(state);
                    return base.frame(n);
                }
                (_, n) => match n.and_then(|n| state.pieces.get(n)) {
                    Some(p) => (p.clone(), state.machine.clone()),
                    None => return Ok(None),
                },
            }
        };
        let bad =
            |why: String| TraceError { file: NAME.into(), problem: Problem::Damaged { at: n as u64, why } };
        let unpacked = match piece.raw {
            Some(size) => Some(zstd::bulk::decompress(&piece.bytes, size).map_err(|e| bad(e.to_string()))?),
            None => None,
        };
        parse_frame(unpacked.as_deref().unwrap_or(&piece.bytes), &machine)
            .map(Some)
            .map_err(|why| bad(why.into()))
    }
    fn frames(&self) -> usize {
        let state = self.lock();
        state.inherited() + state.pieces.len()
    }
    fn end(&self) -> LogEnd {
        // A fork begins with a frame of its own.
        let when = self.lock().pieces.last().map_or_else(When::default, |p| p.end);
        LogEnd { when, own: None, open: true }
    }
    fn frame_at(&self, icount: Icount) -> Result<usize, TraceError> {
        let state = self.lock();
        let own = state.pieces.partition_point(|p| p.end.icount < icount);
        match &state.base {
            Some((base, frames)) if own == 0 => {
                let (base, frames) = (Arc::clone(base), *frames);
                drop(state);
                Ok(base.frame_at(icount)?.min(frames))
            }
            _ => Ok(state.inherited() + own),
        }
    }
    fn out_of_order(&self, n: usize) -> TraceError {
        let problem = Problem::Damaged { at: n as u64, why: "a frame is out of order".into() };
        TraceError { file: NAME.into(), problem }
    }
}
