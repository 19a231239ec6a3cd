//! The machine: description, board wiring, firmware tables, and the VM that ties vCPUs, memory and devices together.

mod aml;
pub mod board;
pub mod config;
mod firmware;
pub mod tables;
pub mod vm;
