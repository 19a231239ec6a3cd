//! Runs real gdb against a session.

use crate::guest::{Program, config, machine, program};
use retrovisor_core::clock::ClockKind;
use retrovisor_core::engine::Engine;
use retrovisor_core::output::NullSink;
use retrovisor_debug::gdb::{GdbAddress, GdbServer, Running};
use retrovisor_debug::{Options, Session};
use retrovisor_replay::{IdlePolicy, Live, Machine, Mailbox, Recording, Timeline};
use std::io::{PipeReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest a gdb may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest under a session with a gdb server on a free port.
pub struct Bench {
    pub program: Program,
    pub session: Session,
    pub server: Running,
}

impl Bench {
    /// Frozen before its first instruction, or running.
    pub fn new(freeze: bool) -> Self {
        let program = program().expect("the guest assembles");
        let mailbox = Mailbox::new();
        let input = Live::new(Arc::clone(&mailbox), ClockKind::Virtual, IdlePolicy::RealTime);
        let vm = machine(&program, Box::new(input));
        Self::with(program, vm, mailbox, freeze)
    }

    /// Frozen before its first instruction, on this engine, with a history.
    pub fn travelling(engine: Engine) -> Self {
        let program = program().expect("the guest assembles");
        let mailbox = Mailbox::new();
        let input = Live::new(Arc::clone(&mailbox), ClockKind::Virtual, IdlePolicy::RealTime);
        let recording = Recording::unwritten(&config());
        let mut vm = machine(&program, Box::new(recording.port(input)));
        vm.sys.output = Box::new(recording.output(NullSink));
        vm.engine = engine;
        let inbox = Arc::clone(&mailbox);
        let vm = Machine::from(vm).with_timeline(|vm| Timeline::live(vm, recording, inbox, 64 << 20));
        Self::with(program, vm, mailbox, true)
    }

    fn with(program: Program, vm: impl Into<Machine>, mailbox: Arc<Mailbox>, freeze: bool) -> Self {
        let options = Options { freeze, ..Options::default() };
        let session = Session::spawn(vm, move || mailbox.interrupt(), options).expect("the session starts");
        let address: GdbAddress = ":0".parse().expect("an address");
        let server = GdbServer::bind(&address).expect("a free port");
        let server = server.serve(session.handle(), |_| {}).expect("the server starts");
        Self { program, session, server }
    }

    /// Starts gdb with `before`, the connection, then `after`, as -ex commands.
    pub fn spawn(&self, before: &[&str], after: &[&str]) -> Gdb {
        let connect = format!("target remote {}", self.server.address());
        let setup = ["set confirm off", "set pagination off", "set width 0", "set style enabled off"];
        let commands =
            setup.iter().chain(before).copied().chain([connect.as_str()]).chain(after.iter().copied());
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch"]);
        commands.for_each(|c| {
            gdb.args(["-ex", c]);
        });
        // One pipe for both streams keeps what they say in order.
        let (reading, writing) = std::io::pipe().expect("a pipe");
        let also = writing.try_clone().expect("a pipe's other name");
        gdb.stdin(Stdio::null()).stdout(writing).stderr(also);
        let spawned = gdb.spawn();
        drop(gdb);
        match spawned {
            Ok(child) => Gdb::new(child, reading),
            Err(e) => panic!("gdb is needed for this test ({e}): install it, e.g. `apt-get install gdb`"),
        }
    }

    /// Runs gdb to its end; its output.
    pub fn gdb(&self, commands: &[&str]) -> String {
        self.spawn(&[], commands).finish()
    }

    pub fn finish(self) {
        self.session.handle().kill().expect("the session lives");
        self.server.finish();
        self.session.join().expect("no internal bug");
    }
}

/// A running gdb.
pub struct Gdb {
    child: Child,
    output: std::sync::mpsc::Receiver<Vec<u8>>,
    seen: String,
    started: Instant,
}

impl Gdb {
    fn new(child: Child, mut reading: PipeReader) -> Self {
        let (tx, output) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = reading.read(&mut buf) {
                if tx.send(buf[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, output, seen: String::new(), started: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let left = PATIENCE.saturating_sub(self.started.elapsed());
        match self.output.recv_timeout(left) {
            Ok(bytes) => {
                self.seen += &String::from_utf8_lossy(&bytes);
                true
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => false,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                let _ = self.child.kill();
                panic!("gdb takes too long; so far it said:\n{}", self.seen);
            }
        }
    }

    /// Waits until gdb has printed `text`.
    pub fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            assert!(self.take(), "gdb ended without saying `{text}`:\n{}", self.seen);
        }
    }

    /// Presses Ctrl-C.
    pub fn interrupt(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("gdb lives");
    }

    /// Waits for its end; all it said.
    pub fn finish(mut self) -> String {
        while self.take() {}
        self.child.wait().expect("gdb ends");
        self.seen
    }
}

/// Asserts that `output` has the lines' texts in this order.
#[track_caller]
pub fn assert_in_order(output: &str, texts: &[&str]) {
    let mut rest = output;
    for text in texts {
        match rest.find(text) {
            Some(at) => rest = &rest[at + text.len()..],
            None => panic!("`{text}` is missing (in this order) in what gdb said:\n{output}"),
        }
    }
}
