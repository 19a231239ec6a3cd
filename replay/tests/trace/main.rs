//! Recording and replay against a small scripted machine: round trips, cuts at every byte, hostile files, divergences.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod chaos;
mod cuts;
mod divergence;
mod fake;
mod hostile;
mod roundtrip;
mod writing;
