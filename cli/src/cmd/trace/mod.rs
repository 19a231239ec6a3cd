//! `retrovisor trace`: what a trace holds, for people and for programs, and the same trace in another shape.

mod events;
mod export;
mod info;
mod pack;

pub use events::{Filter, Point, events};
pub use export::export;
pub use info::info;
pub use pack::{pack, unpack};

use anyhow::{Context, Result, bail};
use retrovisor_replay::Trace;
use retrovisor_replay::disk::is_trace;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

fn open(path: &Path) -> Result<Arc<Trace>> {
    Ok(Trace::open(path)?)
}

/// A reader that has seen enough (`| head`) is no error.
fn finish(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(())
        }
        done => done,
    }
}

/// Writes to the file `to` if one is given, else to `out`. A trace is never overwritten by something that is none.
fn output(
    to: Option<&Path>,
    out: &mut dyn Write,
    write: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let Some(path) = to else {
        let mut out = BufWriter::new(out);
        return finish(write(&mut out).and_then(|()| Ok(out.flush()?)));
    };
    let name = || path.display().to_string();
    if is_trace(path) {
        bail!("{}: it is a trace and would be overwritten: give another file", name());
    }
    let mut file = BufWriter::new(File::create(path).with_context(name)?);
    let done = write(&mut file).and_then(|()| Ok(file.flush()?));
    // A trace that cannot be read names itself.
    done.map_err(|e| if e.is::<io::Error>() { e.context(name()) } else { e })
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use retrovisor_core::hash::StateHash;
    use retrovisor_core::input::{InputEvent, InputPort, NoInput, When};
    use retrovisor_core::loader::Images;
    use retrovisor_core::machine::config::MachineConfig;
    use retrovisor_core::{GuestTime, Icount};
    use retrovisor_replay::{ExitReason, Recording};
    use std::path::PathBuf;

    fn at(icount: u64) -> When {
        When { icount: Icount(icount), time: GuestTime(icount) }
    }

    /// A file that goes away with the test.
    pub struct TempFile(PathBuf);

    impl std::ops::Deref for TempFile {
        type Target = Path;
        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// A trace of three inputs and a hash point, complete or cut before its end record.
    pub fn trace(name: &str, complete: bool) -> TempFile {
        let path = std::env::temp_dir().join(format!("retrovisor-{}-{name}", std::process::id()));
        let config = MachineConfig::default();
        let images = Images { kernel: Some(vec![1; 5000]), cmdline: "a \"b\"".into(), ..Images::default() };
        let recording = Recording::create(&path, &config, &images, Box::new(|_| ())).unwrap();
        let mut port = recording.port(NoInput);
        port.inject(at(10), &InputEvent::Serial { port: 0, bytes: b"ls\r".to_vec() });
        port.inject(at(20), &InputEvent::Nmi);
        port.check(at(1 << 24), StateHash(7));
        port.inject(at(20_000_000), &InputEvent::Key { bytes: vec![0x1c, 0x9c] });
        if complete {
            recording.finish(at(30_000_000), ExitReason::PowerOff, StateHash(8)).unwrap();
        } else {
            recording.flush(at(30_000_000));
        }
        TempFile(path)
    }

    pub fn shown(f: impl FnOnce(&mut dyn Write) -> Result<()>) -> String {
        let mut out = Vec::new();
        f(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn test_cut_trace_says_so() {
        let path = trace("cut.rvt", false);
        let all = Filter::all();
        for text in [shown(|o| info(&path, false, o)), shown(|o| events(&path, &all, false, o))] {
            assert!(text.contains("complete up to instruction 30000000"), "{text}");
        }
    }

    #[test]
    fn test_output_never_replaces_a_trace() {
        let path = trace("kept.rvt", true);
        let before = std::fs::read(&*path).unwrap();
        let e = output(Some(&path), &mut Vec::new(), &mut |_| Ok(())).unwrap_err();
        assert!(e.to_string().contains("is a trace"), "{e}");
        assert_eq!(std::fs::read(&*path).unwrap(), before);
        let full = output(Some(Path::new("/dev/full")), &mut Vec::new(), &mut |o| Ok(o.write_all(b"x")?));
        assert!(full.unwrap_err().to_string().starts_with("/dev/full"));
    }
}
