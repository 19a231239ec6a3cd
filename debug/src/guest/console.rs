//! What a guest printed, with the instruction that printed it; and the doors through which a test waits for a text.

use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use retrovisor_core::output::{OutputPort, OutputSink};
use retrovisor_core::{GuestTime, Icount};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// icount of the instruction that printed each byte.
    at: Vec<u64>,
    /// The text waited for.
    wanted: Vec<u8>,
}

impl Text {
    /// Bytes printed before `icount`.
    fn before(&self, icount: Icount) -> usize {
        self.at.partition_point(|at| *at < icount.0)
    }

    fn shows_wanted(&self) -> bool {
        !self.wanted.is_empty() && self.bytes.ends_with(&self.wanted)
    }
}

/// Everything printed on COM1 up to the newest point. Clones share it.
#[derive(Clone, Default)]
pub struct Console {
    text: Arc<Mutex<Text>>,
    /// The text waited for has just appeared.
    shown: Arc<AtomicBool>,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was printed before `icount`.
    pub fn before(&self, icount: Icount) -> String {
        let text = self.lock();
        String::from_utf8_lossy(&text.bytes[..text.before(icount)]).into_owned()
    }

    /// The point behind the instruction that completed `wanted` first after `from`, if that is known to have happened.
    pub fn find(&self, wanted: &str, from: Icount) -> Option<Icount> {
        let (text, wanted) = (self.lock(), wanted.as_bytes());
        let mut ends = text.before(from)..text.bytes.len();
        let end = ends.find(|n| text.bytes[..=*n].ends_with(wanted))?;
        text.at.get(end).map(|at| Icount(at + 1))
    }

    /// From now on stops the machine behind the instruction that completes `wanted`; if that is empty, no more.
    pub fn wait_for(&self, wanted: &str) {
        self.lock().wanted = wanted.as_bytes().to_vec();
        self.shown.store(false, Ordering::Relaxed);
    }

    /// Forgets what was printed from `icount` on: the run goes on from there in another way.
    pub fn forget_from(&self, icount: Icount) {
        let mut text = self.lock();
        let n = text.before(icount);
        text.bytes.truncate(n);
        text.at.truncate(n);
    }

    /// The port `inner`, interrupted when the text waited for appears.
    pub fn port<P: InputPort>(&self, inner: P) -> Door<P> {
        Door { inner, shown: Arc::clone(&self.shown) }
    }
}

impl OutputSink for Console {
    fn write(&mut self, when: When, port: OutputPort, bytes: &[u8]) {
        let mut text = self.lock();
        let at = when.icount.0;
        // A replay says again what is known.
        if port != OutputPort::Serial(0) || text.at.last().is_some_and(|last| at <= *last) {
            return;
        }
        text.bytes.extend_from_slice(bytes);
        let n = text.bytes.len();
        text.at.resize(n, at);
        if text.shows_wanted() {
            self.shown.store(true, Ordering::Relaxed);
        }
    }
}

/// An input port that is interrupted at the first boundary after the text waited for was printed.
pub struct Door<P> {
    inner: P,
    shown: Arc<AtomicBool>,
}

impl<P: InputPort> InputPort for Door<P> {
    fn poll(&mut self, now: When) -> Poll {
        match self.shown.swap(false, Ordering::Relaxed) {
            true => Poll::Interrupt,
            false => self.inner.poll(now),
        }
    }
    fn next_poll(&self) -> Option<Icount> {
        match self.shown.load(Ordering::Relaxed) {
            true => Some(Icount(0)),
            false => self.inner.next_poll(),
        }
    }
    fn answer(&mut self, now: When, query: Query) -> u64 {
        self.inner.answer(now, query)
    }
    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        self.inner.idle(now, deadline)
    }
    fn set_deadline(&mut self, deadline: Option<GuestTime>) {
        self.inner.set_deadline(deadline)
    }
    fn inject(&mut self, now: When, event: &InputEvent) {
        self.inner.inject(now, event)
    }
    fn check(&mut self, now: When, hash: StateHash) -> bool {
        self.inner.check(now, hash)
    }
}
