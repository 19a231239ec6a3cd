//! Stock gdb as a child process: commands in, what it says out.

use std::io::{PipeReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Longest a gdb may take. Not a measurement: no test is near it.
const PATIENCE: Duration = Duration::from_secs(400);

/// A gdb that is typed to.
pub struct Gdb {
    child: Child,
    output: Receiver<Vec<u8>>,
    said: String,
    /// Where `expect` looks on.
    from: usize,
    started: Instant,
    asked: usize,
}

impl Gdb {
    /// Without init files, pagination and colours.
    pub fn start() -> Self {
        // One pipe for both streams keeps what they say in order.
        let (reading, writing) = std::io::pipe().expect("a pipe");
        let also = writing.try_clone().expect("a pipe's other name");
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-q"]).stdin(Stdio::piped()).stdout(writing).stderr(also);
        let spawned = gdb.spawn();
        drop(gdb);
        let child = spawned.unwrap_or_else(|e| {
            panic!("gdb is needed for this test ({e}): install it, e.g. `apt-get install gdb`")
        });
        let mut gdb = Self {
            child,
            output: pump(reading),
            said: String::new(),
            from: 0,
            started: Instant::now(),
            asked: 0,
        };
        for c in
            ["set confirm off", "set pagination off", "set width 0", "set style enabled off", "set prompt"]
        {
            gdb.send(c);
        }
        gdb
    }

    fn take(&mut self) -> bool {
        match self.output.recv_timeout(PATIENCE.saturating_sub(self.started.elapsed())) {
            Ok(bytes) => {
                self.said += &String::from_utf8_lossy(&bytes);
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                let _ = self.child.kill();
                panic!("gdb takes too long; so far it said:\n{}", self.said);
            }
        }
    }

    /// Types a command without waiting.
    pub fn send(&mut self, command: &str) {
        let pipe = self.child.stdin.as_mut().expect("gdb reads a pipe");
        writeln!(pipe, "{command}").expect("gdb lives");
    }

    /// Waits for `text` after what was expected before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        loop {
            if let Some(at) = self.said[self.from..].find(text) {
                self.from += at + text.len();
                return;
            }
            assert!(self.take(), "gdb ended without saying `{text}`:\n{}", self.said);
        }
    }

    /// Runs a command to its end; what it said.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        self.asked += 1;
        let end = format!("[done {}]", self.asked);
        self.send(command);
        self.send(&format!("echo {end}\\n"));
        let from = self.from;
        self.expect(&end);
        self.said[from..self.from - end.len()].to_owned()
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("gdb lives");
    }

    /// Leaves gdb.
    pub fn quit(mut self) -> String {
        self.send("quit");
        while self.take() {}
        self.child.wait().expect("gdb ends");
        std::mem::take(&mut self.said)
    }
}

/// A failing test leaves no gdb behind.
impl Drop for Gdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pump(mut from: PipeReader) -> Receiver<Vec<u8>> {
    let (tx, output) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buf) {
            if tx.send(buf[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    output
}
