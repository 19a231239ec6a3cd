//! The real `retrovisor` program, as a user runs it: built if need be, started with pipes or a terminal, waited for.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Longest anything may take before a test gives up. Not a measurement: no test is near it.
const PATIENCE: Duration = Duration::from_secs(400);

/// The program of this build, made once a test process, so that it is never an old one.
pub fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let me = std::env::current_exe().expect("the test's own path");
        let folder = me.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--quiet", "--workspace", "--bin", "retrovisor"])
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.status().expect("cargo runs");
        assert!(status.success(), "the program builds");
        folder.join("retrovisor")
    })
}

/// The program with these arguments.
pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut c = Command::new(path());
    c.args(args);
    c
}

/// What a finished run left.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// Asserts the exit code and that nothing looks like a crash.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// Runs to the end without input.
pub fn run<S: AsRef<OsStr>>(args: &[S]) -> Done {
    let mut child = Running::spawn(command(args).stdin(Stdio::null()));
    child.finish()
}

/// A started program: its output as it comes.
pub struct Running {
    child: Child,
    terminal: Option<std::fs::File>,
    events: Receiver<(bool, Vec<u8>)>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Where `wait_for` looks on.
    from: usize,
    started: Instant,
}

impl Running {
    /// With pipes; standard input as the command says.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let (tx, events) = std::sync::mpsc::channel();
        if let Some(out) = child.stdout.take() {
            pump(out, false, tx.clone());
        }
        if let Some(err) = child.stderr.take() {
            pump(err, true, tx);
        }
        Self {
            child,
            terminal: None,
            events,
            stdout: Vec::new(),
            stderr: Vec::new(),
            from: 0,
            started: Instant::now(),
        }
    }

    /// On a terminal of its own.
    pub fn on_terminal(command: &mut Command) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pty");
        grantpt(&ours).expect("a pty");
        unlockpt(&ours).expect("a pty");
        let name = ptsname(&ours, Vec::new()).expect("a pty's name");
        let open = || -> OwnedFd {
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
            rustix::fs::open(&name, flags, rustix::fs::Mode::empty()).expect("the pty's other side")
        };
        let child = command.stdin(open()).stdout(open()).stderr(Stdio::piped()).spawn();
        // The command keeps the terminal's descriptors open; closing them lets its end be seen.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = child.expect("the program starts");
        let (tx, events) = std::sync::mpsc::channel();
        if let Some(err) = child.stderr.take() {
            pump(err, true, tx.clone());
        }
        let terminal = std::fs::File::from(ours);
        pump(terminal.try_clone().expect("a descriptor"), false, tx);
        Self {
            child,
            terminal: Some(terminal),
            events,
            stdout: Vec::new(),
            stderr: Vec::new(),
            from: 0,
            started: Instant::now(),
        }
    }

    fn take(&mut self) -> bool {
        match self.events.recv_timeout(PATIENCE.saturating_sub(self.started.elapsed())) {
            Ok((false, bytes)) => self.stdout.extend_from_slice(&bytes),
            Ok((true, bytes)) => self.stderr.extend_from_slice(&bytes),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => {
                let _ = self.child.kill();
                panic!("the program hangs; it said:\n{}\n{}", self.stdout(), self.stderr());
            }
        }
        true
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Waits until `text` appears on standard output, after what was waited for before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        loop {
            let new = &self.stdout[self.from..];
            if let Some(at) = new.windows(text.len()).position(|w| w == text.as_bytes()) {
                self.from += at + text.len();
                return;
            }
            assert!(self.take(), "ended without `{text}`:\n{}\n{}", self.stdout(), self.stderr());
        }
    }

    /// Waits until `text` appears on standard error.
    #[track_caller]
    pub fn wait_for_stderr(&mut self, text: &str) {
        while !self.stderr().contains(text) {
            assert!(self.take(), "ended without `{text}`:\n{}\n{}", self.stdout(), self.stderr());
        }
    }

    /// Types on the terminal, or writes to the pipe at standard input.
    pub fn send(&mut self, text: &str) {
        let sent = match (&mut self.terminal, &mut self.child.stdin) {
            (Some(t), _) => t.write_all(text.as_bytes()),
            (None, Some(pipe)) => pipe.write_all(text.as_bytes()).and_then(|()| pipe.flush()),
            (None, None) => panic!("the program has no standard input"),
        };
        sent.expect("the program reads its input");
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the program lives");
    }

    /// From now on its files may not grow beyond so many bytes.
    pub fn limit_files(&self, bytes: u64) {
        use rustix::process::{Pid, Resource, Rlimit, prlimit};
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Fsize, limit).expect("the program lives");
    }

    /// Waits for the end.
    pub fn finish(&mut self) -> Done {
        while self.take() {}
        let status: ExitStatus = self.child.wait().expect("the program ends");
        Done { code: status.code(), stdout: self.stdout(), stderr: self.stderr() }
    }
}

/// A failing test leaves no guest behind.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pump(mut from: impl Read + Send + 'static, is_err: bool, to: std::sync::mpsc::Sender<(bool, Vec<u8>)>) {
    std::thread::spawn(move || {
        let mut buf = [0; 8192];
        // A terminal whose other side is closed reads as an error.
        while let Ok(n @ 1..) = from.read(&mut buf) {
            if to.send((is_err, buf[..n].to_vec())).is_err() {
                break;
            }
        }
    });
}
