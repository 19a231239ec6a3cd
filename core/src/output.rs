//! The one door through which guest output leaves the machine.

use crate::input::When;

/// Where guest output comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum OutputPort {
    /// Serial port n (0 = COM1).
    Serial(u8),
    /// Debug console, port 0xE9 (and SeaBIOS's 0x402).
    DebugCon,
}

/// Receives guest output. A replay hashes and compares it and never resends it.
pub trait OutputSink: Send {
    fn write(&mut self, when: When, port: OutputPort, bytes: &[u8]);
}

/// Drops all output.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullSink;

impl OutputSink for NullSink {
    fn write(&mut self, _when: When, _port: OutputPort, _bytes: &[u8]) {}
}

impl OutputSink for Box<dyn OutputSink> {
    fn write(&mut self, when: When, port: OutputPort, bytes: &[u8]) {
        (**self).write(when, port, bytes)
    }
}
