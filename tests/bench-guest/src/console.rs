//! The line by which the benchmark reports. Owns how a line leaves at once: a process writes to standard output, init
//! writes to COM1's registers itself, because the kernel's tty layer would send it some interrupts later.

use crate::sys;
use std::io::Write;

/// COM1's transmit register.
const COM1: u16 = 0x3f8;

/// Where lines go.
pub enum Console {
    /// The serial port, byte by byte.
    Port,
    Stdout,
}

impl Console {
    /// Is this a process of the host, whose clock is the one that counts?
    pub fn is_on_host(&self) -> bool {
        matches!(self, Console::Stdout)
    }

    /// Sends one line; it has left when this returns.
    pub fn line(&self, text: &str) {
        match self {
            Console::Port => sys::with_ports(COM1, 8, || {
                text.bytes().chain([b'\n']).for_each(|b| sys::serial_send(COM1, b));
            }),
            Console::Stdout => {
                let mut out = std::io::stdout().lock();
                // Nobody reads: then nobody measures.
                let _ = writeln!(out, "{text}").and_then(|()| out.flush());
            }
        }
    }
}
