//! Packing: the same trace in fewer bytes. Same header, images, records and ending; frames are merged and everything is
//! compressed as well as it can be, which takes too long to do while recording.

use super::reader::{Ending, Trace};
use super::writer::{Effort, Frames, TraceWriter};
use super::{MAX_FRAME, TraceError};
use crate::disk::TraceFile;
use std::io::{self, Write};
use std::path::Path;
use thiserror::Error;

/// What a frame's first fields and a longer first difference may take, generously.
const FRAME_ROOM: usize = 64;

/// Why a trace could not be packed.
#[derive(Debug, Error)]
pub enum PackError {
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("{file}: cannot be written: {why}")]
    Write { file: String, why: io::Error },
}

/// Writes `trace` to the file `to`, packed; it may be the same file.
///
/// # Errors
/// If the trace is damaged or `to` cannot be written; what was there before stays then.
pub fn pack_file(trace: &Trace, to: &Path) -> Result<u64, PackError> {
    let file = to.display().to_string();
    let fail = |why| PackError::Write { file: file.clone(), why };
    let mut out = TraceFile::create(to).map_err(fail)?;
    let size = pack(trace, Box::new(out.clone()), &file)?;
    out.flush().map_err(fail)?;
    out.publish().map_err(fail)?;
    Ok(size)
}

/// Writes `trace` to `out`, packed; `file` is what errors call `out`. Returns the bytes written.
///
/// # Errors
/// If the trace's images or frames are damaged, or `out` cannot be written.
pub fn pack(trace: &Trace, out: Box<dyn Write + Send>, file: &str) -> Result<u64, PackError> {
    let fail = |why| PackError::Write { file: file.to_owned(), why };
    let (_, images) = trace.machine()?;
    let mut writer = TraceWriter::with_header(out, trace.header(), &images, Effort::Most).map_err(fail)?;
    // A trimmed trace cannot do without its first checkpoint, wherever it is cut again.
    trace.checkpoint_chunks(&mut |kind, raw| writer.checkpoint_chunk(kind, &raw))?.map_err(fail)?;
    let mut at = trace.start();
    let mut frames = Frames::new(trace.config(), at);
    for n in 0..trace.frames() {
        let Some(frame) = trace.frame(n)? else { break };
        if frame.start != at {
            return Err(trace.out_of_order(n).into());
        }
        // Measured alone, as it is in its own file; its records take no more behind others.
        let size = trace.frame_raw(n) + FRAME_ROOM;
        if frames.pending() > 0 && frames.pending() + size > MAX_FRAME {
            writer.frame(&frames.end(at)).map_err(fail)?;
        }
        frames.push_logged(&frame.records);
        at = frame.end;
    }
    if trace.frames() > 0 {
        writer.frame(&frames.end(at)).map_err(fail)?;
    }
    if let Ending::Complete(end) = trace.ending() {
        writer.finish(end).map_err(fail)?;
    }
    Ok(writer.written())
}
