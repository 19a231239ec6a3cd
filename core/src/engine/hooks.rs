//! What a debugger asks of the engine: breakpoints, watchpoints, stops on events. Never part of guest state.

use crate::addr::{Gpa, Gva};
use std::collections::BTreeSet;

/// Kind of access a watchpoint stops on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WatchKind {
    Read,
    Write,
    Access,
}

/// Where a watchpoint looks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WatchAddr {
    Virtual(Gva),
    /// Seen whatever mapping or device makes the access.
    Physical(Gpa),
}

/// A watchpoint: `len` bytes from `addr`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Watch {
    pub addr: WatchAddr,
    pub len: u64,
    pub kind: WatchKind,
}

/// A watchpoint that was hit by the instruction just executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatchHit {
    pub watch: Watch,
    /// The linear address accessed.
    pub gva: Gva,
    pub write: bool,
}

/// Debugger requests, consulted by the engine.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// Linear addresses before whose execution to stop.
    pub breakpoints: BTreeSet<u64>,
    /// Places whose accesses to stop after.
    pub watches: Vec<Watch>,
    /// Bit n: stop before exception n is delivered.
    pub stop_exceptions: u32,
    /// Stop before a triple fault shuts down or resets the machine.
    pub stop_triple_fault: bool,
}
