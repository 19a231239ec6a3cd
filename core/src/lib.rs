//! The Retrovisor machine: vCPUs, memory, devices and the engines that run them.
//!
//! This crate is a pure function from (machine description, images, inputs at their icounts) to guest-visible
//! state. It knows nothing of recording, debuggers or screens: everything nondeterministic enters through one
//! trait, [`input::InputPort`], and everything the guest says leaves through [`output::OutputSink`].
//!
//! Map: `addr` newtypes | `vcpu` architectural state | `isa` decoding and one row per instruction form |
//! `interp` the reference engine | `engine` budget, dispatch, exact landing | `mmu` paging, TLB, shadow tables
//! and the only guest load/store path | `mem` guest-physical memory | `devices` pure register models |
//! `machine` the board and the VM | `loader` guest images (bytes in, no file I/O) | `jit` executable memory |
//! `disasm` disassembly for people.

pub mod addr;
pub mod bug;
pub mod clock;
pub mod ctx;
pub mod devices;
pub mod disasm;
pub mod engine;
pub mod exception;
pub mod hash;
pub mod input;
pub mod interp;
pub mod isa;
pub mod jit;
pub mod loader;
pub mod machine;
pub mod mem;
pub mod mmu;
pub mod output;
pub mod state;
pub mod translate;
pub mod vcpu;

pub use addr::{Asid, Gpa, GuestTime, Gva, Icount};
pub use ctx::{Ctx, System};
pub use exception::{Exception, Exec};
