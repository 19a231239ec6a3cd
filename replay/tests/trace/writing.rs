//! Errors while recording: the run goes on, the file stays readable, the message is one line.

use crate::chaos::{Chaos, config, images, replay};
use crate::fake::Fake;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::machine::vm::VmExit;
use retrovisor_core::output::NullSink;
use retrovisor_replay::record::MemoryFile;
use retrovisor_replay::{Ending, ExitReason, RecordError, Recording, Trace};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

/// A disk with room for so many bytes.
struct SmallDisk {
    file: MemoryFile,
    left: usize,
}

impl Write for SmallDisk {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let n = self.file.write(&buf[..buf.len().min(self.left)])?;
        self.left -= n;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn test_full_disk_stops_recording_and_leaves_a_readable_file() {
    let config = config(1, ClockKind::Host);
    let file = MemoryFile::default();
    let disk = SmallDisk { file: file.clone(), left: 6000 };
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    let on_error = Box::new(move |e: &RecordError| ear.lock().unwrap().push(e.to_string()));
    let recording =
        Recording::to_writer("f.rvt".into(), Box::new(disk), &config, &images(), on_error).unwrap();
    let port = recording.port(Chaos::new(1, ClockKind::Host));
    let mut vm = Fake::new(&config, Box::new(port), Box::new(recording.output(NullSink)));
    for n in 1..60 {
        while vm.run(Some(n * 1000)) == VmExit::Interrupted {}
        recording.flush(vm.when());
    }
    assert_eq!(vm.icount, 59_000, "the run went on");
    vm.arrive();
    let e = recording.finish(vm.when(), ExitReason::Quit, vm.hash()).unwrap_err();
    assert_eq!(*heard.lock().unwrap(), [e.to_string()], "told once");
    let RecordError::Write { icount, .. } = e else { panic!("{e}") };
    let trace = Trace::from_bytes("f.rvt", file.bytes()).unwrap();
    let Ending::Cut(cut) = trace.ending() else { panic!("complete?") };
    assert_eq!(cut.when.icount, icount);
    assert!(icount.0 >= 1000);
    let r = replay(&trace, 100, None, None);
    assert_eq!((r.exit, r.monitor.divergence(), r.vm.when()), (VmExit::InputEnded, None, cut.when));
}

#[test]
fn test_uncreatable_file_returns_one_line() {
    let config = config(1, ClockKind::Virtual);
    let path = std::path::Path::new("/nonexistent/dir/f.rvt");
    let e = Recording::create(path, &config, &images(), Box::new(|_| ())).err().unwrap();
    assert!(e.to_string().starts_with("/nonexistent/dir/f.rvt: "), "{e}");
}

#[test]
fn test_recording_goes_to_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.rvt");
    let config = config(1, ClockKind::Virtual);
    let recording = Recording::create(&path, &config, &images(), Box::new(|_| ())).unwrap();
    let port = recording.port(Chaos::new(1, ClockKind::Virtual));
    let mut vm = Fake::new(&config, Box::new(port), Box::new(recording.output(NullSink)));
    while vm.run(Some(5000)) == VmExit::Interrupted {}
    recording.flush(vm.when());
    let early = Trace::open(&path).unwrap();
    assert!(matches!(early.ending(), Ending::Cut(c) if c.when == vm.when()), "readable while it is written");
    vm.arrive();
    recording.finish(vm.when(), ExitReason::Quit, vm.hash()).unwrap();
    vm.arrive();
    recording.finish(vm.when(), ExitReason::Quit, vm.hash()).unwrap();
    let trace = Trace::open(&path).unwrap();
    assert_eq!(trace.size(), recording.bytes());
    assert_eq!(replay(&trace, 9, None, None).vm.when(), vm.when());
    assert!(Trace::open(dir.path()).unwrap_err().to_string().contains("regular file"));
    assert!(Trace::open(&dir.path().join("none")).is_err());
}
