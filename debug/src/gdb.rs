//! The gdb server: stock gdb, and whatever speaks its remote protocol, as a client of the session.
//!
//! Map: `address` where to listen | `server` listening and connections | `event_loop` one connection | `packet`
//! framing | `target` what the stub library asks of us | `registers` the target description | `breakpoints` | `reverse`.
//!
//! The protocol itself is the `gdbstub` crate's. Between it and the wire sits our own framing, so that broken or
//! hostile input is answered as the protocol says and never ends the session or the machine.

mod address;
mod breakpoints;
mod event_loop;
#[cfg(test)]
mod fuzz;
mod packet;
mod registers;
mod reverse;
mod server;
mod target;
#[cfg(test)]
mod tests;

pub use address::{AddressError, GdbAddress};
pub use registers::{Arch, RegId, Registers, target_xml};
pub use server::{BindError, GdbServer, Running};
