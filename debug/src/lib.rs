//! The debugger side of Retrovisor: one session that owns the machine, and the clients that talk to it.
//!
//! Map: `session` the door for every client (the VM thread, commands in, events out) | `stop` why it stopped |
//! `breakpoints` the shared set | `inspect` side-effect-free reading | `registers` names and values |
//! `pagewalk` decoded page walks | `monitor` text commands | `travel` the machine's history |
//! `gdb` the stub | `guest` machines under test.
//!
//! Nothing here changes guest state except through `Vm::inject`, so every change is a logged input.

pub mod breakpoints;
pub mod gdb;
pub mod guest;
pub mod inspect;
pub mod monitor;
pub mod pagewalk;
pub mod registers;
pub mod session;
pub mod stop;
#[cfg(test)]
mod testing;
pub mod travel;

pub use guest::Guest;
pub use inspect::Inspect;
pub use retrovisor_core::disasm;
pub use session::{Answer, Client, Options, Resume, Role, Session, SessionError, SessionHandle};
pub use stop::{Event, Exit, Stop, StopReason};
pub use travel::{CheckpointView, LastWrite, Marks, Sought, TimelineView};
