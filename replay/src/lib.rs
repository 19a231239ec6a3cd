//! Recording and replay: the trace file, the ports that write and read it, and the check that a replay is exact.
//!
//! Map: `format` the `.rvt` file (reader and writer together) | `mailbox` how other threads reach the VM thread |
//! `live` inputs from the host | `record` a port that logs another port | `play` inputs from a trace |
//! `disk` the file a recording is written to | `divert` a port that plays no more inputs | `output` the running digest of guest output |
//! `compare` a machine built from a trace, and `verify` | `segments` the same on several threads | `bisect` from a
//! divergence to its instruction | `mutation` a divergence made on purpose | `lockstep` two engines in step |
//! `machine` a machine with its history or another in lockstep.
//!
//! Moving in time: `timeline` | `search` backwards | `history` checkpoints and which to keep | `pages` memory as values |
//! `log` what is played | `keep` checkpoints without a history | `persist` checkpoints into a trace | `stored` and out of
//! it | `rewrite` a trace with checkpoints, or a part of one.
//!
//! Nothing here knows how the machine works inside: the only doors are `InputPort`, `OutputSink` and `Vm`.

pub mod bisect;
pub mod branch;
pub mod compare;
pub mod disk;
pub mod divert;
pub mod format;
pub mod history;
pub mod keep;
pub mod live;
pub mod lockstep;
pub mod log;
pub mod machine;
pub mod mailbox;
pub mod mutation;
pub mod output;
pub mod pages;
pub mod persist;
pub mod play;
pub mod record;
pub mod rewrite;
pub mod save;
pub mod scan;
pub mod search;
pub mod segments;
pub mod stored;
pub mod timeline;

pub use bisect::{Finding, bisect};
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
pub use mutation::Mutation;
pub use output::{HashedOutput, OutputDigest, OutputState};
pub use play::{Divergence, PlayMonitor, Player};
pub use record::{RecordError, Recorder, Recording};
pub use scan::Write;
pub use search::{Hit, Reason};
pub use segments::{Spread, spread, verify_spread};
pub use timeline::{Timeline, TimelineError};
