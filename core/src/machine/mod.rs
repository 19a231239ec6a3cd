//! The machine: description, board wiring, firmware tables, and the VM that ties vCPUs, memory and devices together.

pub mod board;
pub mod config;
pub mod vm;
