//! Keeping a run that nobody recorded: the log of a machine's history, written as a complete trace.

use crate::disk::TraceFile;
use crate::format::end::{EndRecord, ExitReason};
use crate::format::writer::{Frames, TraceWriter};
use crate::record::RecordError;
use crate::timeline::{Timeline, TimelineError};
use retrovisor_core::Icount;
use retrovisor_core::machine::vm::{Vm, VmExit};
use std::io;
use std::path::Path;

impl Timeline {
    /// Writes the branch the machine is on, from power-on to its newest point, to `path`: a complete trace with its images,
    /// as a recording of it would have been. `reason` is why the run ended there if it did; a replay's own end counts more.
    /// The machine stays where it is. What is at `path` is replaced if it is a trace, and never if it is something else.
    ///
    /// # Errors
    /// If the file cannot be created or written, or the history cannot be read or replayed to its newest point.
    pub fn save(&mut self, vm: &mut Vm, path: &Path, reason: ExitReason) -> Result<(), TimelineError> {
        let here = vm.when();
        let in_past = self.in_past(vm);
        let hooks = std::mem::take(&mut vm.hooks);
        let end = self.end_record(vm, reason);
        let written = end.and_then(|end| self.write(vm, path, &end));
        let back = if in_past { self.seek(vm, here.icount) } else { Ok(()) };
        vm.hooks = hooks;
        written.and(back)
    }

    /// Puts the machine to the newest point; the record of an end there.
    fn end_record(&mut self, vm: &mut Vm, reason: ExitReason) -> Result<EndRecord, TimelineError> {
        self.seek(vm, Icount(u64::MAX))?;
        let Some(trace) = self.trace.clone() else {
            if !reason.is_own() {
                // A replay learns at its poll that the trace ends, and a boundary has more before that.
                vm.arrive();
            }
            let when = vm.when();
            self.recording.flush(when);
            let output = self.recording.digest().value();
            return Ok(EndRecord { when, reason, hash: vm.state_hash(), output });
        };
        // The machine arrived there; what the trace has at that point, and the guest's own end, come now.
        loop {
            match vm.run(None) {
                VmExit::Interrupted => self.check_cancel()?,
                VmExit::Diverged => return Err(TimelineError::Diverged { at: vm.when().icount }),
                _ => break,
            }
        }
        let reason = trace.end().own.unwrap_or(ExitReason::Quit);
        Ok(EndRecord { when: vm.when(), reason, hash: vm.state_hash(), output: self.digest.value() })
    }

    fn write(&self, vm: &Vm, path: &Path, end: &EndRecord) -> Result<(), TimelineError> {
        let file = path.display().to_string();
        let create = |e: io::Error| RecordError::Create { file: file.clone(), why: e.to_string() };
        let out = TraceFile::create(path).map_err(create)?;
        let mut writer = TraceWriter::new(Box::new(out.clone()), &vm.config, &vm.images).map_err(create)?;
        let mut icount = Icount(0);
        let mut stopped = |at: Icount| {
            let (file, icount) = (file.clone(), std::mem::replace(&mut icount, at));
            move |e: io::Error| RecordError::Write { file, why: e.to_string(), icount }
        };
        let log = self.log();
        for n in 0..log.frames() {
            let Some(frame) = log.frame(n)? else { break };
            let mut again = Frames::new(&vm.config, frame.start);
            again.push_logged(&frame.records);
            writer.frame(&again.end(frame.end)).map_err(stopped(frame.end.icount))?;
        }
        writer.finish(end).map_err(stopped(end.when.icount))?;
        Ok(out.publish().map_err(create)?)
    }
}
