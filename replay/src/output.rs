//! The running digest of guest output, and the sink that keeps it while passing output on.
//!
//! The digest is a chain with a link for each stretch between two hash points, so that whoever knows its value at one
//! hash point can go on from there without the output before it.

use retrovisor_core::input::When;
use retrovisor_core::output::{OutputPort, OutputSink};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::Xxh3;

/// Output since the last hash point.
#[derive(Clone)]
struct Pending {
    /// Began with the digest at that hash point.
    hash: Box<Xxh3>,
    /// The port of the last byte; a change of port is part of the digest, the length of a write is not.
    port: Option<OutputPort>,
    bytes: u64,
}

/// The digest as a value: what [`OutputDigest::snapshot`] keeps and [`OutputDigest::restore`] brings back.
#[derive(Clone, Default)]
pub struct OutputState {
    /// The digest at the last hash point, 0 at power-on.
    chain: u64,
    /// `None`: no output since.
    pending: Option<Pending>,
}

impl OutputState {
    /// The state right after a hash point at which the digest was `chain`.
    pub fn at_hash_point(chain: u64) -> Self {
        Self { chain, pending: None }
    }

    /// Adds output.
    fn add(&mut self, port: OutputPort, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let pending = self.pending.get_or_insert_with(|| {
            let mut hash = Box::new(Xxh3::new());
            hash.update(&self.chain.to_le_bytes());
            Pending { hash, port: None, bytes: 0 }
        });
        if pending.port != Some(port) {
            pending.port = Some(port);
            let tag = match port {
                OutputPort::Serial(n) => [1, n],
                OutputPort::DebugCon => [2, 0],
            };
            pending.hash.update(&tag);
            pending.hash.update(&pending.bytes.to_le_bytes());
        }
        pending.bytes += bytes.len() as u64;
        pending.hash.update(bytes);
    }

    /// The digest if a hash point were here.
    pub fn value(&self) -> u64 {
        self.pending.as_ref().map_or(self.chain, |p| p.hash.digest())
    }
}

/// The digest of everything the guest has put out. Clones share one state.
#[derive(Clone, Default)]
pub struct OutputDigest {
    state: Arc<Mutex<OutputState>>,
}

impl OutputDigest {
    fn lock(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds output.
    pub fn add(&self, port: OutputPort, bytes: &[u8]) {
        self.lock().add(port, bytes)
    }

    /// The digest now, without closing the stretch: what a hash point or the end of the run here would say.
    pub fn value(&self) -> u64 {
        self.lock().value()
    }

    /// A hash point: the digest, which begins the next stretch. Without output since the hash point before it stays.
    pub fn close(&self) -> u64 {
        let mut state = self.lock();
        *state = OutputState::at_hash_point(state.value());
        state.chain
    }

    /// The state now, to come back to.
    pub fn snapshot(&self) -> OutputState {
        self.lock().clone()
    }

    /// Goes back (or on) to a state taken with [`OutputDigest::snapshot`].
    pub fn restore(&self, state: OutputState) {
        *self.lock() = state
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
    use OutputPort::{DebugCon, Serial};
    use xxhash_rust::xxh3::xxh3_64;

    fn digest(writes: &[(OutputPort, &[u8])]) -> u64 {
        let d = OutputDigest::default();
        writes.iter().for_each(|(p, b)| d.add(*p, b));
        d.value()
    }

    #[test]
    fn test_digest_depends_on_bytes_and_ports_not_on_write_sizes() {
        let one = digest(&[(Serial(0), b"hello")]);
        assert_eq!(one, digest(&[(Serial(0), b"he"), (Serial(0), b""), (Serial(0), b"llo")]));
        assert_ne!(one, digest(&[(Serial(0), b"hellp")]));
        assert_ne!(one, digest(&[(Serial(1), b"hello")]));
        assert_ne!(one, digest(&[(DebugCon, b"hello")]));
        let split = digest(&[(Serial(0), b"he"), (DebugCon, b"x"), (Serial(0), b"llo")]);
        assert_ne!(split, digest(&[(Serial(0), b"hel"), (DebugCon, b"x"), (Serial(0), b"lo")]));
    }

    #[test]
    fn test_chain_is_what_the_format_says() {
        let d = OutputDigest::default();
        assert_eq!(d.close(), 0, "no output yet");
        d.add(Serial(0), b"hi");
        d.add(DebugCon, b"!");
        let first = xxh3_64(b"\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0hi\x02\0\x02\0\0\0\0\0\0\0!");
        assert_eq!((d.value(), d.close(), d.close(), d.value()), (first, first, first, first));
        d.add(DebugCon, b"?");
        let second = [&first.to_le_bytes()[..], b"\x02\0\0\0\0\0\0\0\0\0?"].concat();
        assert_eq!(d.close(), xxh3_64(&second));
    }

    #[test]
    fn test_hash_points_are_part_of_the_chain_and_states_come_back() {
        let d = OutputDigest::default();
        d.add(Serial(0), b"a");
        let middle = d.snapshot();
        d.add(Serial(0), b"b");
        let (whole, clone) = (d.value(), d.clone());
        d.restore(middle);
        let half = clone.close();
        assert_ne!(half, whole, "clones share a state");
        d.add(Serial(0), b"b");
        assert_ne!(d.value(), whole, "a hash point lies between");
        let elsewhere = OutputDigest::default();
        elsewhere.restore(OutputState::at_hash_point(half));
        elsewhere.add(Serial(0), b"b");
        assert_eq!(elsewhere.value(), d.value());
    }
}
