//! Recording and replay: the trace file, the ports that write and read it, and the check that a replay is exact.
//!
//! Map: `format` the `.rvt` file (reader and writer together) | `mailbox` how other threads reach the VM thread |
//! `live` inputs from the host | `record` a port that logs another port | `play` inputs from a trace |
//! `disk` the file a recording is written to | `divert` a port that plays no more inputs | `output` the running digest of guest output |
//! `compare` a machine built from a trace, and `verify` | `lockstep` two engines in step |
//! `machine` a machine with or without another in lockstep.
//!
//! Nothing here knows how the machine works inside: the only doors are `InputPort`, `OutputSink` and `Vm`.

pub mod branch;
pub mod compare;
pub mod disk;
pub mod divert;
pub mod format;
pub mod history;
pub mod live;
pub mod lockstep;
pub mod log;
pub mod machine;
pub mod mailbox;
pub mod output;
pub mod pages;
pub mod play;
pub mod record;
pub mod search;
pub mod timeline;

pub use branch::BranchInfo;
pub use compare::{Replay, Report, VerifyError, VerifyOptions, verify};
pub use divert::Diverted;
pub use format::end::{EndRecord, ExitReason};
pub use format::reader::{Cut, Ending, Trace};
pub use format::record::{Record, What};
pub use format::stats::Stats;
pub use format::{Problem, TraceError};
pub use live::{IdlePolicy, Live};
pub use lockstep::{InputLog, Lockstep, Mismatch, Stride};
pub use log::{Log, Tape};
pub use machine::Machine;
pub use mailbox::{InputSource, Mailbox};
pub use output::{HashedOutput, OutputDigest, OutputState};
pub use play::{Divergence, PlayMonitor, Player};
pub use record::{RecordError, Recorder, Recording};
pub use search::{Hit, Reason};
pub use timeline::{Timeline, TimelineError};
