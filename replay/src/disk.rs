//! A trace file on disk while it is written: created without harm to others, locked, and synced as it grows.
//!
//! A new trace takes its name at once; one that replaces another is written beside it and takes the name when its
//! header and images are complete, so that a failed start leaves the old trace, and whoever reads the old one is not
//! disturbed. What is not a trace is never overwritten. An advisory lock keeps a second recorder away.
//!
//! The thread that writes never waits for the disk: another one syncs every few seconds, and `flush` syncs the end.

use crate::format::MAGIC;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Written data is on its way to the disk no later than this.
const SYNC_EVERY: Duration = Duration::from_secs(3);
/// Attempts to open a file that others replace at the same time.
const ATTEMPTS: u32 = 16;

/// A file being written. Clones share it.
#[derive(Clone)]
pub struct TraceFile {
    inner: Arc<Inner>,
}

struct Inner {
    file: Arc<File>,
    /// `None` for a device or a pipe, where there is nothing to sync, lock or replace.
    regular: Option<Regular>,
}

struct Regular {
    /// The file's final name, without symbolic links.
    path: PathBuf,
    naming: Mutex<Naming>,
    syncer: Syncer,
}

/// Under which name a file stands.
enum Naming {
    /// The final one; it was made for this recording and goes if the recording cannot begin.
    Fresh,
    /// This one until it is complete enough to replace the old trace, which stays locked until then.
    Beside { temporary: PathBuf, _old: File },
    /// The final one, for good.
    Published,
}

impl TraceFile {
    /// Creates `path`, or prepares to replace the trace that is there.
    ///
    /// # Errors
    /// If it cannot be written, is being recorded to, or exists and is not a trace.
    pub fn create(path: &Path) -> io::Result<Self> {
        if fs::metadata(path).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
            let file = Arc::new(OpenOptions::new().write(true).open(path)?);
            return Ok(Self { inner: Arc::new(Inner { file, regular: None }) });
        }
        let mut file = open_locked(path)?;
        let path = fs::canonicalize(path)?;
        let naming = if is_empty(&file)? {
            Naming::Fresh
        } else {
            must_be_trace(&file)?;
            let (temporary, new) = create_beside(&path)?;
            Naming::Beside { temporary, _old: std::mem::replace(&mut file, new) }
        };
        let file = Arc::new(file);
        let synced = Arc::clone(&file);
        let syncer = Syncer::start(move || synced.sync_data())?;
        let regular = Regular { path, naming: Mutex::new(naming), syncer };
        Ok(Self { inner: Arc::new(Inner { file, regular: Some(regular) }) })
    }

    /// Gives the file its final name for good: header and images are written.
    ///
    /// # Errors
    /// If the old trace cannot be replaced.
    pub fn publish(&self) -> io::Result<()> {
        let Some(regular) = &self.inner.regular else { return Ok(()) };
        let mut naming = regular.naming.lock().unwrap_or_else(PoisonError::into_inner);
        if let Naming::Beside { temporary, .. } = &*naming {
            // The old trace goes only when this much of the new one is safe.
            self.inner.file.sync_data()?;
            fs::rename(temporary, &regular.path)?;
        }
        *naming = Naming::Published;
        // After a power loss the name, too, must be there. Not every file system can do this.
        if let Some(Ok(folder)) = regular.path.parent().map(File::open) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Write for TraceFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(regular) = &self.inner.regular else { return (&*self.inner.file).write(buf) };
        regular.syncer.check()?;
        let n = (&*self.inner.file).write(buf)?;
        regular.syncer.written();
        Ok(n)
    }

    /// Returns when everything is on the disk.
    fn flush(&mut self) -> io::Result<()> {
        let Some(regular) = &self.inner.regular else { return Ok(()) };
        regular.syncer.check()?;
        self.inner.file.sync_all()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(regular) = &self.regular else { return };
        let naming = regular.naming.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be removed is a leftover, no more.
        let _ = match &*naming {
            Naming::Fresh => fs::remove_file(&regular.path),
            Naming::Beside { temporary, .. } => fs::remove_file(temporary),
            Naming::Published => Ok(()),
        };
        // The syncing thread may keep the file open a little longer.
        let _ = self.file.unlock();
    }
}

/// Opens `path` for writing, created if need be and otherwise as it is, with its lock held.
fn open_locked(path: &Path) -> io::Result<File> {
    for _ in 0..ATTEMPTS {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        lock(&file)?;
        // Another recorder may have put a new file there before this one was locked.
        let (ours, there) = (file.metadata()?, fs::metadata(path));
        if there.is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
    Err(in_use())
}

fn in_use() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "another process is recording to it, give another file")
}

fn lock(file: &File) -> io::Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(in_use()),
        // A file system without locks is no reason not to record.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

fn is_empty(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.len() == 0)
}

fn begins_as_trace(mut file: &File) -> bool {
    let mut first = [0; MAGIC.len()];
    file.read_exact(&mut first).is_ok() && first == MAGIC
}

/// Is `path` a file that begins as a trace does, whole or not?
pub fn is_trace(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file()) && File::open(path).is_ok_and(|f| begins_as_trace(&f))
}

fn must_be_trace(file: &File) -> io::Result<()> {
    if begins_as_trace(file) {
        return Ok(());
    }
    let why = "it exists and is not a trace: remove it or give another file";
    Err(io::Error::new(io::ErrorKind::AlreadyExists, why))
}

/// A new, locked file in the folder of `path`.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for n in 0..ATTEMPTS {
        let temporary = path.with_file_name(format!(".{name}.{}.{n}.new", std::process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).open(&temporary) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
            Ok(file) => {
                lock(&file)?;
                return Ok((temporary, file));
            }
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[derive(Default)]
struct SyncState {
    /// Something was written since the last sync began.
    dirty: bool,
    closing: bool,
    error: Option<io::Error>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<SyncState>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, SyncState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that syncs what was written, at most every [`SYNC_EVERY`].
struct Syncer {
    shared: Arc<Shared>,
}

impl Syncer {
    fn start(sync: impl Fn() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("trace-sync".into())
            .spawn(move || while sync_next(&mine, &sync) {})?;
        Ok(Self { shared })
    }

    /// Something was written.
    fn written(&self) {
        let mut state = self.shared.lock();
        if !std::mem::replace(&mut state.dirty, true) {
            self.shared.changed.notify_all();
        }
    }

    /// The error of a sync, once: data that was thought written may be lost.
    fn check(&self) -> io::Result<()> {
        self.shared.lock().error.take().map_or(Ok(()), Err)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
    }
}

/// Waits until something was written, syncs it, and rests. False when it is time to end.
fn sync_next(shared: &Shared, sync: &impl Fn() -> io::Result<()>) -> bool {
    let idle = |s: &mut SyncState| !s.dirty && !s.closing;
    let poisoned = PoisonError::into_inner;
    let mut state = shared.changed.wait_while(shared.lock(), idle).unwrap_or_else(poisoned);
    if state.closing {
        return false;
    }
    state.dirty = false;
    drop(state);
    let began = Instant::now();
    if let Err(e) = sync() {
        shared.lock().error = Some(e);
    }
    // A disk that is busy for long gets as long a rest.
    let rest = SYNC_EVERY.max(began.elapsed());
    drop(shared.changed.wait_timeout_while(shared.lock(), rest, |s| !s.closing));
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn test_syncer_syncs_what_was_written_and_tells_errors_once() {
        let (tell, synced) = mpsc::channel();
        let syncer = Syncer::start(move || {
            tell.send(()).ok();
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap();
        assert!(synced.try_recv().is_err() && syncer.check().is_ok());
        syncer.written();
        synced.recv().unwrap();
        let e = loop {
            match syncer.check() {
                Ok(()) => std::thread::yield_now(),
                Err(e) => break e,
            }
        };
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
        assert!(syncer.check().is_ok());
        drop(syncer);
        assert!(synced.recv().is_err(), "the thread ends");
    }

    fn trace() -> Vec<u8> {
        [&MAGIC[..], b"old"].concat()
    }

    #[test]
    fn test_old_trace_stays_until_the_new_one_has_begun() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rvt");
        fs::write(&path, trace()).unwrap();
        let mut new = TraceFile::create(&path).unwrap();
        new.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), trace());
        drop(new);
        assert_eq!(fs::read(&path).unwrap(), trace(), "a start that failed");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "and left nothing");
        let mut new = TraceFile::create(&path).unwrap();
        let mut reader = File::open(&path).unwrap();
        new.write_all(b"new").unwrap();
        new.publish().unwrap();
        new.write_all(b", more").unwrap();
        new.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new, more");
        let mut seen = Vec::new();
        reader.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, trace(), "who reads the old trace goes on");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn test_fresh_file_goes_if_recording_cannot_begin() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rvt");
        drop(TraceFile::create(&path).unwrap());
        assert!(!path.exists());
        let kept = TraceFile::create(&path).unwrap();
        kept.publish().unwrap();
        drop(kept);
        assert!(path.exists());
    }

    #[test]
    fn test_second_recorder_is_kept_away_before_and_after_publishing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.rvt");
        let link = dir.path().join("link.rvt");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        for old in [false, true] {
            if old {
                fs::write(&path, trace()).unwrap();
            }
            let mut first = TraceFile::create(&link).unwrap();
            let refused = || match TraceFile::create(&path) {
                Err(e) => assert!(e.to_string().contains("another process"), "{e}"),
                Ok(_) => panic!("two recorders"),
            };
            refused();
            first.write_all(&trace()).unwrap();
            first.publish().unwrap();
            refused();
            drop(first);
            assert!(link.is_symlink() && fs::read(&path).unwrap() == trace());
        }
        assert!(TraceFile::create(&path).is_ok(), "locks go with their owners");
    }

    #[test]
    fn test_what_is_no_trace_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thesis.tex");
        for text in ["RV", "hello, world"] {
            fs::write(&path, text).unwrap();
            let e = TraceFile::create(&path).err().unwrap();
            assert!(e.to_string().contains("not a trace"), "{e}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert!(TraceFile::create(dir.path()).is_err());
    }

    #[test]
    fn test_devices_are_written_as_they_are() {
        let mut full = TraceFile::create(Path::new("/dev/full")).unwrap();
        assert_eq!(full.write_all(b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
        let mut null = TraceFile::create(Path::new("/dev/null")).unwrap();
        null.write_all(b"x").unwrap();
        null.publish().unwrap();
        null.flush().unwrap();
    }
}
