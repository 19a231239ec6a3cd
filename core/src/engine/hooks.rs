//! What a debugger asks of the engine: breakpoints, watchpoints, stops on what the machine does. Never part of guest state.

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

/// Something the machine did that a debugger can be told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Occurrence {
    /// An external interrupt, or an NMI (vector 2), was delivered.
    Interrupt(u8),
    /// A port was read or written.
    Port { port: u16, bytes: u8, write: bool, value: u32 },
    /// A device was accessed through memory.
    Mmio { gpa: Gpa, bytes: u8, write: bool },
    /// CR3 has another value.
    Cr3 { from: u64, to: u64 },
    /// The vCPU runs at another privilege level.
    Cpl { from: u8, to: u8 },
}

/// What kind of [`Occurrence`] to stop after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Of this vector, or any.
    Interrupt(Option<u8>),
    /// That touches this port, or any.
    Port(Option<u16>),
    /// That touches the byte at this address, or any.
    Mmio(Option<Gpa>),
    Cr3,
    Cpl,
}

impl Wanted {
    /// Is `o` what is wanted?
    pub fn matches(self, o: &Occurrence) -> bool {
        match (self, *o) {
            (Wanted::Interrupt(v), Occurrence::Interrupt(vector)) => v.is_none_or(|v| v == vector),
            (Wanted::Port(p), Occurrence::Port { port, bytes, .. }) => {
                p.is_none_or(|p| p.wrapping_sub(port) < bytes.into())
            }
            (Wanted::Mmio(a), Occurrence::Mmio { gpa, bytes, .. }) => {
                a.is_none_or(|a| a.0.wrapping_sub(gpa.0) < bytes.into())
            }
            (Wanted::Cr3, Occurrence::Cr3 { .. }) | (Wanted::Cpl, Occurrence::Cpl { .. }) => true,
            _ => false,
        }
    }
}

/// Looks out for occurrences. Where nothing is wanted it costs one test at each place that could report one.
#[derive(Default)]
pub struct Observer {
    wanted: Vec<Wanted>,
    /// The first since the engine asked last.
    seen: Option<Occurrence>,
    /// CR3 and CPL of each vCPU when last looked at.
    spaces: Vec<(u64, u8)>,
}

impl Observer {
    #[inline]
    pub fn active(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Begins to look out for `wanted`, with the vCPUs as they are.
    pub fn begin(&mut self, wanted: &[Wanted], spaces: impl Iterator<Item = (u64, u8)>) {
        self.wanted.clear();
        self.wanted.extend_from_slice(wanted);
        self.seen = None;
        self.spaces.clear();
        self.spaces.extend(spaces);
    }

    pub fn wanted(&self) -> &[Wanted] {
        &self.wanted
    }

    /// Something happened. True if that is wanted.
    pub fn note(&mut self, o: Occurrence) -> bool {
        let matches = self.wanted.iter().any(|w| w.matches(&o));
        if matches && self.seen.is_none() {
            self.seen = Some(o);
        }
        matches
    }

    /// A vCPU's CR3 and CPL may be others now. True if so, and that is wanted.
    pub fn note_space(&mut self, vcpu: usize, cr3: u64, cpl: u8) -> bool {
        let Some(known) = self.spaces.get_mut(vcpu) else { return false };
        let (old_cr3, old_cpl) = std::mem::replace(known, (cr3, cpl));
        let space = cr3 != old_cr3 && self.note(Occurrence::Cr3 { from: old_cr3, to: cr3 });
        let level = cpl != old_cpl && self.note(Occurrence::Cpl { from: old_cpl, to: cpl });
        space || level
    }

    /// What was wanted and happened since the last time.
    pub fn take(&mut self) -> Option<Occurrence> {
        self.seen.take()
    }
}

/// Debugger requests, consulted by the engine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Hooks {
    /// Linear addresses before whose execution to stop.
    pub breakpoints: BTreeSet<u64>,
    /// Places whose accesses to stop after.
    pub watches: Vec<Watch>,
    /// Bit n: stop before exception n is delivered.
    pub stop_exceptions: u32,
    /// Stop before a triple fault shuts down or resets the machine.
    pub stop_triple_fault: bool,
    /// What to stop after.
    pub wanted: Vec<Wanted>,
}
