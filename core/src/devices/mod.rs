//! Devices: each file a pure register model (registers in, registers and line levels out). Wiring is `machine::board`.
//!
//! A device never asks for the time, memory or an input: `now` is passed in, lines are read out, and what it wants
//! done outside is a return value. Each is a [`State`](crate::state::State) part and goes through `conformance`.

pub mod acpi_pm;
mod calendar;
#[cfg(test)]
pub(crate) mod conformance;
pub mod dma8237;
pub mod fw_cfg;
pub mod i8042;
pub mod i8259;
pub mod ioapic;
pub mod lapic;
pub mod pci;
pub mod pit;
mod ps2;
pub mod rtc;
pub mod sysctl;
pub mod testdev;
pub mod time;
pub mod uart;
pub mod vga;
