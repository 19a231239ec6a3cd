//! The line by which the benchmark reports. Owns how a line leaves at once: a process writes to standard output, init
//! writes to COM1's registers itself, because the kernel's tty layer would send it some interrupts later.

use crate::sys;
use std::io::Write;
use std::time::Instant;

/// COM1's transmit register.
const COM1: u16 = 0x3f8;

/// Where lines go.
pub enum Console {
    /// The serial port, byte by byte.
    Port,
    /// Standard output, with wall time.
    Stdout,
    /// The same, with CPU time.
    StdoutCpu,
}

impl Console {
    /// Runs `body`; its result, and the nanoseconds it took if this machine's clock is the one that counts.
    pub fn clocked<T>(&self, body: impl FnOnce() -> T) -> (T, Option<u64>) {
        match self {
            Console::Port => (body(), None),
            Console::Stdout => {
                let start = Instant::now();
                (body(), Some(start.elapsed().as_nanos() as u64))
            }
            Console::StdoutCpu => {
                let start = sys::cpu_nanos();
                (body(), Some(sys::cpu_nanos() - start))
            }
        }
    }

    /// Sends one line; it has left when this returns.
    pub fn line(&self, text: &str) {
        match self {
            Console::Port => sys::with_ports(COM1, 8, || {
                text.bytes().chain([b'\n']).for_each(|b| sys::serial_send(COM1, b));
            }),
            Console::Stdout | Console::StdoutCpu => {
                let mut out = std::io::stdout().lock();
                // Nobody reads: then nobody measures.
                let _ = writeln!(out, "{text}").and_then(|()| out.flush());
            }
        }
    }
}
