//! Guests in tests: a machine one boots (or a trace one opens), runs to an event, looks at, moves back and forth in time,
//! and asks about its whole history. Owns the [`Guest`] type; `build` makes one, `run` moves it, `look` reads it, `history`
//! asks about what happened, `place` says where, `symbols` names addresses, `console` keeps what was printed, `failure`
//! keeps the run when a test panics.
//!
//! ```
//! use retrovisor_debug::guest::{Guest, VmExit, sample};
//!
//! let mut guest = Guest::builder().kernel(sample::KERNEL).memory_mib(4).debug_exit(0xf4).boot()?;
//! guest.run_until_console("hello", 100_000)?;
//! assert_eq!(guest.console(), "hello");
//! assert_eq!(guest.reg("edx")?, 0x3f8);
//!
//! // Type something; the guest adds up what it is sent, until it is sent a `q`.
//! guest.type_text("abq")?;
//! assert_eq!(guest.run_to_exit(1_000_000)?, VmExit::DebugExit(0));
//! assert_eq!(guest.read::<u32>(sample::SUM)?, u32::from(b'a') + u32::from(b'b') + u32::from(b'q'));
//!
//! // Who wrote the sum last? Go there: the instruction is about to execute.
//! let write = guest.last_write(sample::SUM, 4)?.expect("somebody did");
//! assert_eq!(write.pc, sample::ADD);
//! guest.seek(write.at)?;
//! assert_eq!(guest.read::<u32>(sample::SUM)?, u32::from(b'a') + u32::from(b'b'));
//! guest.reverse_to(sample::ADD)?;
//! assert_eq!(guest.read::<u32>(sample::SUM)?, u32::from(b'a'));
//! # Ok::<(), retrovisor_debug::guest::Error>(())
//! ```
//!
//! Every guest has its history; nothing has to be recorded beforehand. If a test panics, the run is written to
//! `target/retrovisor/<test>.rvt` (or into the directory `RETROVISOR_TRACES` names), and one line says how to replay it. A
//! test that returns `Err` does not panic: `unwrap` what should not fail, or call [`Guest::save`].
//!
//! With the default virtual clock a run depends on nothing but what the test does: idle time is skipped, and what is typed
//! arrives at the very instruction the guest stands at.

mod build;
mod console;
mod error;
mod failure;
mod history;
mod look;
mod place;
mod run;
pub mod sample;
mod symbols;

/// The examples of the guide and of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/testing-api.md")]
mod guide {}
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}

pub use build::Builder;
pub use error::Error;
pub use history::{History, Points};
pub use look::{Look, Scalar};
pub use place::Place;
pub use retrovisor_core::clock::ClockKind;
pub use retrovisor_core::engine::Engine;
pub use retrovisor_core::engine::interrupts::OffStretch;
pub use retrovisor_core::machine::vm::VmExit;
pub use retrovisor_core::vcpu::cpuid::CpuModel;
pub use retrovisor_core::{Gpa, GuestTime, Gva, Icount};
pub use retrovisor_replay::Write;
pub use symbols::Symbols;

use console::Console;
use retrovisor_core::machine::vm::Vm;
use retrovisor_replay::{ExitReason, Machine, Timeline};
use std::path::{Path, PathBuf};

/// A machine under test. It stands at one point of its run; see the [module](self).
pub struct Guest {
    machine: Machine,
    console: Console,
    symbols: Symbols,
    /// Instructions a run without a limit of its own may take.
    limit: u64,
    /// How the run ended, if the machine stands at its end.
    ended: Option<(Icount, VmExit)>,
    /// What a trace of it is called.
    name: String,
    /// The trace that is replayed.
    trace: Option<PathBuf>,
}

impl Guest {
    /// A guest to be booted.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Replays a trace; the machine stands before its first instruction.
    ///
    /// # Errors
    /// If the file cannot be read or is not a trace, or its machine cannot be built.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::builder().open(path)
    }

    /// What is known of the addresses.
    pub fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Adds symbols: an ELF file, or lines as in `System.map` and `/proc/kallsyms`.
    ///
    /// # Errors
    /// If it is an ELF file that makes no sense.
    pub fn add_symbols(&mut self, file: &[u8]) -> Result<(), Error> {
        self.symbols.add(file)
    }

    /// Writes the run, from power-on to its newest point, to a trace.
    ///
    /// # Errors
    /// If the file cannot be written, or the history not be read.
    pub fn save(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let reason = self.ended.map_or(ExitReason::Quit, |(_, exit)| ExitReason::from_exit(exit));
        let (timeline, vm) = self.parts()?;
        Ok(timeline.save(vm, path.as_ref(), reason)?)
    }

    fn parts(&mut self) -> Result<(&mut Timeline, &mut Vm), Error> {
        Ok(self.machine.travel()?)
    }
}
