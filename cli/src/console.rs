//! The guest's serial console on this process's standard input and output (or a file, or nowhere). Owns the
//! terminal's raw mode and gives it back on every way out: return, panic, and the signals that end a process.

use retrovisor_core::input::{InputEvent, When};
use retrovisor_core::output::{OutputPort, OutputSink};
use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::{Handle, Signals};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;

/// `--serial`: where COM1 goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Serial {
    #[default]
    Stdio,
    Null,
    File(PathBuf),
}

impl FromStr for Serial {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(format!("`{text}` is no serial port: give stdio, null or file:PATH")),
        }
    }
}

// --- the terminal ---

/// The terminal's settings from before raw mode, while raw mode is on.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

fn saved() -> MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the terminal on standard input into raw mode. Output processing stays as it is, so that our own messages
/// look right.
fn enter_raw() -> io::Result<()> {
    let stdin = rustix::stdio::stdin();
    let mut kept = saved();
    if kept.is_none() {
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes = before.output_modes;
        tcsetattr(stdin, OptionalActions::Now, &raw)?;
        *kept = Some(before);
    }
    Ok(())
}

/// Leaves raw mode, if it is on. Harmless to call at any time.
pub fn restore_terminal() {
    if let Some(before) = saved().take() {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
    }
}

/// Makes a panic restore the terminal before it prints its message.
fn hook_panics() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore_terminal();
            before(info);
        }));
    });
}

// --- keys ---

const CTRL_A: u8 = 1;

const HELP: &str = "\n\
    Ctrl-A x       end the run\n\
    Ctrl-A h       this help\n\
    Ctrl-A Ctrl-A  send Ctrl-A to the guest\n";

/// What a typed byte means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Key {
    /// For the guest.
    Byte(u8),
    Quit,
    Help,
    /// The beginning of an escape, or one that means nothing.
    Nothing,
}

/// Finds the escapes in what is typed.
#[derive(Clone, Copy, Debug, Default)]
struct Escapes {
    pending: bool,
}

impl Escapes {
    fn key(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.pending) {
            if byte != CTRL_A {
                return Key::Byte(byte);
            }
            self.pending = true;
            return Key::Nothing;
        }
        match byte {
            CTRL_A => Key::Byte(CTRL_A),
            b'x' | b'X' | 0x18 => Key::Quit,
            b'h' | b'H' | b'?' => Key::Help,
            _ => Key::Nothing,
        }
    }
}

/// Why the console wants the run to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Quit {
    /// Ctrl-A x.
    Escape,
    /// A signal; the conventional exit code is 128 + its number.
    Signal(i32),
}

impl Quit {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            Quit::Escape => 0,
            Quit::Signal(n) => 128u8.saturating_add(u8::try_from(n).unwrap_or(0)),
        }
    }
}

// --- the console ---

/// The console at work. Dropping it restores the terminal.
pub struct Console {
    signals: Handle,
    watcher: Option<JoinHandle<()>>,
}

impl Console {
    /// Reads standard input and sends it to the guest's COM1 by `send`, which is dropped at the end of the input (the
    /// guest runs on). `quit` is told when the user or a signal wants the run to end; a second signal ends the
    /// process at once.
    pub fn start(
        send: impl Fn(InputEvent) + Send + 'static,
        quit: impl Fn(Quit) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let quit = Arc::new(quit);
        let console = Self::watch_signals(Arc::clone(&quit))?;
        let terminal = rustix::termios::isatty(rustix::stdio::stdin());
        if terminal {
            enter_raw()?;
        }
        std::thread::Builder::new()
            .name("console".into())
            .spawn(move || read_input(terminal, &send, &*quit))?;
        Ok(console)
    }

    /// Only the signals, for a run whose serial port is elsewhere.
    pub fn without_input(quit: impl Fn(Quit) + Send + Sync + 'static) -> io::Result<Self> {
        Self::watch_signals(Arc::new(quit))
    }

    fn watch_signals(quit: Arc<impl Fn(Quit) + Send + Sync + 'static>) -> io::Result<Self> {
        hook_panics();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT])?;
        let handle = signals.handle();
        let watcher = std::thread::Builder::new().name("signals".into()).spawn(move || {
            let mut asked = false;
            for signal in &mut signals {
                match signal {
                    SIGTSTP => suspend(),
                    SIGCONT => {}
                    _ if asked => {
                        restore_terminal();
                        std::process::exit(128 + signal);
                    }
                    _ => {
                        asked = true;
                        restore_terminal();
                        quit(Quit::Signal(signal));
                    }
                }
            }
        })?;
        Ok(Self { signals: handle, watcher: Some(watcher) })
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.signals.close();
        if let Some(watcher) = self.watcher.take() {
            // A watcher that panicked has printed why.
            let _ = watcher.join();
        }
        restore_terminal();
    }
}

/// Stops the process like SIGTSTP does, with the terminal as it was; raw again when continued.
fn suspend() {
    let raw = saved().is_some();
    restore_terminal();
    if signal_hook::low_level::emulate_default_handler(SIGTSTP).is_ok() && raw {
        // A terminal that is gone meanwhile will show as end of input.
        let _ = enter_raw();
    }
}

/// Reads until the end of the input. Escapes are for people: piped bytes reach the guest as they are.
fn read_input(terminal: bool, send: &dyn Fn(InputEvent), quit: &dyn Fn(Quit)) {
    let mut escapes = Escapes::default();
    let mut buf = [0; 4096];
    let mut input = io::stdin().lock();
    loop {
        let n = match input.read(&mut buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        let mut bytes = Vec::with_capacity(n);
        for byte in &buf[..n] {
            match if terminal { escapes.key(*byte) } else { Key::Byte(*byte) } {
                Key::Byte(b) => bytes.push(b),
                Key::Help => eprint!("{HELP}"),
                Key::Quit => {
                    restore_terminal();
                    return quit(Quit::Escape);
                }
                Key::Nothing => {}
            }
        }
        if !bytes.is_empty() {
            send(InputEvent::Serial { port: 0, bytes });
        }
    }
}

// --- output ---

/// Most bytes waiting to be written before the guest has to wait.
const BACKLOG: usize = 1 << 20;

#[derive(Default)]
struct Backlog {
    bytes: Vec<u8>,
    /// The sink is gone: write what is left and end.
    closing: bool,
    /// The reader is gone: drop everything.
    broken: bool,
}

#[derive(Default)]
struct Shared {
    backlog: Mutex<Backlog>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn wait<'a>(&self, guard: MutexGuard<'a, Backlog>) -> MutexGuard<'a, Backlog> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes COM1's output to a stream from a thread of its own: bytes go out at once when the stream is idle, and in
/// batches when the guest is faster than it. Output of other ports is dropped. Dropping the sink writes what is left.
pub struct SerialSink {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl SerialSink {
    /// A sink for `serial`; `None` for `null`. A file is created or emptied.
    pub fn open(serial: &Serial) -> io::Result<Option<Self>> {
        match serial {
            Serial::Null => Ok(None),
            Serial::Stdio => Self::new(io::stdout()).map(Some),
            Serial::File(path) => Self::new(File::create(path)?).map(Some),
        }
    }

    /// A sink that writes to `out`.
    pub fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let writer =
            std::thread::Builder::new().name("serial-out".into()).spawn(move || write_output(&mine, out))?;
        Ok(Self { shared, writer: Some(writer) })
    }
}

impl OutputSink for SerialSink {
    fn write(&mut self, _when: When, port: OutputPort, bytes: &[u8]) {
        if port != OutputPort::Serial(0) {
            return;
        }
        let mut backlog = self.shared.lock();
        while backlog.bytes.len() >= BACKLOG && !backlog.broken {
            backlog = self.shared.wait(backlog);
        }
        if !backlog.broken {
            backlog.bytes.extend_from_slice(bytes);
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for SerialSink {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has printed why.
            let _ = writer.join();
        }
    }
}

fn write_output(shared: &Shared, mut out: impl Write) {
    loop {
        let mut backlog = shared.lock();
        while backlog.bytes.is_empty() && !backlog.closing {
            backlog = shared.wait(backlog);
        }
        let bytes = std::mem::take(&mut backlog.bytes);
        drop(backlog);
        if bytes.is_empty() {
            return; // closing, and all is written
        }
        shared.changed.notify_all();
        if write_all(&mut out, &bytes).is_err() {
            // Nobody reads (EPIPE) or the disk is full: the guest must not care.
            shared.lock().broken = true;
            shared.changed.notify_all();
            return;
        }
    }
}

/// Like `Write::write_all` and `flush`, but also for a stream somebody made non-blocking.
fn write_all(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait_writable()?,
            Err(e) => return Err(e),
        }
    }
    loop {
        match out.flush() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait_writable()?,
            done => return done,
        }
    }
}

/// Waits until standard output takes bytes (the only stream here that others can make non-blocking).
fn wait_writable() -> io::Result<()> {
    let stdout = rustix::stdio::stdout();
    match rustix::event::poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn typed(bytes: &[u8]) -> Vec<Key> {
        let mut escapes = Escapes::default();
        bytes.iter().map(|b| escapes.key(*b)).filter(|k| *k != Key::Nothing).collect()
    }

    #[test]
    fn escapes_are_found_and_everything_else_passes() {
        assert_eq!(typed(b"a\x03\x01\x01b"), [Key::Byte(b'a'), Key::Byte(3), Key::Byte(1), Key::Byte(b'b')]);
        assert_eq!(typed(b"\x01x"), [Key::Quit]);
        assert_eq!(typed(b"\x01h\x01qx"), [Key::Help, Key::Byte(b'x')]);
    }

    #[test]
    fn serial_targets_parse() {
        assert_eq!("stdio".parse(), Ok(Serial::Stdio));
        assert_eq!("null".parse(), Ok(Serial::Null));
        assert_eq!("file:/tmp/a:b".parse(), Ok(Serial::File("/tmp/a:b".into())));
        for bad in ["", "file", "file:", "stdio:x", "tty"] {
            assert!(bad.parse::<Serial>().is_err(), "{bad}");
        }
    }

    #[derive(Clone, Default)]
    struct Taken(Arc<Mutex<Vec<u8>>>);

    impl Write for Taken {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let n = buf.len().min(7);
            self.0.lock().unwrap().extend_from_slice(&buf[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn sink_writes_everything_of_com1_in_order_before_it_goes() {
        let taken = Taken::default();
        let mut sink = SerialSink::new(taken.clone()).unwrap();
        let mut want = Vec::new();
        for i in 0..1000u32 {
            let line = format!("line {i}\n");
            want.extend_from_slice(line.as_bytes());
            sink.write(When::default(), OutputPort::Serial(0), line.as_bytes());
            sink.write(When::default(), OutputPort::DebugCon, b"not this");
        }
        drop(sink);
        assert_eq!(*taken.0.lock().unwrap(), want);
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn broken_pipe_does_not_stop_the_guest() {
        let mut sink = SerialSink::new(Broken).unwrap();
        let chunk = vec![b'x'; BACKLOG];
        for _ in 0..8 {
            sink.write(When::default(), OutputPort::Serial(0), &chunk);
        }
    }
}
