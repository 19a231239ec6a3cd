//! The engine: budgets, exact landing on an icount, interrupts at boundaries, debugger stops.

pub mod hooks;
