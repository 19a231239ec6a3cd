//! One subcommand a file.

mod board;
pub mod demo;
pub mod inspect;
mod json;
pub mod live;
mod replay;
mod report;
pub mod run;
mod trace;
mod verify;
