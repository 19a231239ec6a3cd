//! An input port that can be interrupted from another thread, around any port that cannot (a replay's, a test's).

use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use retrovisor_core::{GuestTime, Icount};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Asks the engine to leave `Vm::run`. Sticky: a request made while the guest is not running ends the next run.
#[derive(Clone, Debug, Default)]
pub struct InterruptFlag(Arc<AtomicBool>);

impl InterruptFlag {
    /// Makes the next poll answer `Poll::Interrupt`.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// `P`, interruptible. For ports whose `idle` does not block: an interrupt is seen at the next poll.
pub struct Interruptible<P> {
    port: P,
    flag: InterruptFlag,
}

impl<P: InputPort> Interruptible<P> {
    /// Wraps `port`; the flag interrupts it.
    pub fn new(port: P) -> (Self, InterruptFlag) {
        let flag = InterruptFlag::default();
        (Self { port, flag: flag.clone() }, flag)
    }
}

impl<P: InputPort> InputPort for Interruptible<P> {
    fn poll(&mut self, now: When) -> Poll {
        if self.flag.take() { Poll::Interrupt } else { self.port.poll(now) }
    }
    fn next_poll(&self) -> Option<Icount> {
        self.port.next_poll()
    }
    fn answer(&mut self, now: When, query: Query) -> u64 {
        self.port.answer(now, query)
    }
    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        if self.flag.take() { Idle::Interrupted } else { self.port.idle(now, deadline) }
    }
    fn set_deadline(&mut self, deadline: Option<GuestTime>) {
        self.port.set_deadline(deadline);
    }
    fn inject(&mut self, now: When, event: &InputEvent) {
        self.port.inject(now, event);
    }
    fn check(&mut self, now: When, hash: StateHash) -> bool {
        self.port.check(now, hash)
    }
}
