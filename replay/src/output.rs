//! The running digest of guest output, and the sink that keeps it while passing output on.

use retrovisor_core::input::When;
use retrovisor_core::output::{OutputPort, OutputSink};
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::Xxh3;

#[derive(Default)]
struct State {
    hash: Xxh3,
    /// The port of the last byte; a change of port is part of the digest, the length of a write is not.
    port: Option<OutputPort>,
    bytes: u64,
}

/// XXH3-64 of everything the guest has put out. Clones share one state.
#[derive(Clone, Default)]
pub struct OutputDigest {
    state: Arc<Mutex<State>>,
}

impl OutputDigest {
    /// Adds output.
    pub fn add(&self, port: OutputPort, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.port != Some(port) {
            state.port = Some(port);
            let tag = match port {
                OutputPort::Serial(n) => [1, n],
                OutputPort::DebugCon => [2, 0],
            };
            let so_far = state.bytes;
            state.hash.update(&tag);
            state.hash.update(&so_far.to_le_bytes());
        }
        state.bytes += bytes.len() as u64;
        state.hash.update(bytes);
    }

    /// The digest now.
    pub fn value(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).hash.digest()
    }
}

/// Passes output on to `S` and keeps the digest.
pub struct HashedOutput<S> {
    inner: S,
    digest: OutputDigest,
}

impl<S: OutputSink> HashedOutput<S> {
    /// A sink that feeds `digest`; get one from a `Recording` or a `Player`.
    pub fn new(inner: S, digest: OutputDigest) -> Self {
        Self { inner, digest }
    }
}

impl<S: OutputSink> OutputSink for HashedOutput<S> {
    fn write(&mut self, when: When, port: OutputPort, bytes: &[u8]) {
        self.digest.add(port, bytes);
        self.inner.write(when, port, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(writes: &[(OutputPort, &[u8])]) -> u64 {
        let d = OutputDigest::default();
        writes.iter().for_each(|(p, b)| d.add(*p, b));
        d.value()
    }

    #[test]
    fn test_digest_depends_on_bytes_and_ports_not_on_write_sizes() {
        use OutputPort::{DebugCon, Serial};
        let one = digest(&[(Serial(0), b"hello")]);
        assert_eq!(one, digest(&[(Serial(0), b"he"), (Serial(0), b""), (Serial(0), b"llo")]));
        assert_ne!(one, digest(&[(Serial(0), b"hellp")]));
        assert_ne!(one, digest(&[(Serial(1), b"hello")]));
        assert_ne!(one, digest(&[(DebugCon, b"hello")]));
        let split = digest(&[(Serial(0), b"he"), (DebugCon, b"x"), (Serial(0), b"llo")]);
        assert_ne!(split, digest(&[(Serial(0), b"hel"), (DebugCon, b"x"), (Serial(0), b"lo")]));
    }
}
