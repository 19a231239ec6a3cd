//! Hostile guest code: what a program can do to confuse an engine that keeps decoded or translated code and cached
//! translations. Each guest runs on both engines and one instruction at a time; all must end in the same state, with
//! the exceptions the manual demands. Expected values are from the SDM; where it leaves a choice, a comment says so.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "hostile_code/decode.rs"]
mod decode;
#[path = "hostile_code/edges.rs"]
mod edges;
#[path = "hostile_code/machine.rs"]
mod machine;
#[path = "hostile_code/pages.rs"]
mod pages;
#[path = "hostile_code/remembered.rs"]
mod remembered;
#[path = "hostile_code/rewrite.rs"]
mod rewrite;
#[path = "hostile_code/segments.rs"]
mod segments;
#[path = "hostile_code/spaces.rs"]
mod spaces;
#[path = "hostile_code/targets.rs"]
mod targets;
