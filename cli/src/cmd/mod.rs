//! One subcommand a file.

pub mod demo;
pub mod inspect;
pub mod live;
mod replay;
mod report;
pub mod run;
mod trace;
mod verify;
