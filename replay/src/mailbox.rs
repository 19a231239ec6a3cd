//! How other threads reach the VM thread: inputs, and requests to leave `Vm::run`.

use retrovisor_core::input::InputEvent;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// A queue of inputs and an interrupt flag. Shared by `Arc`; every method may be called from any thread.
#[derive(Debug, Default)]
pub struct Mailbox {
    queue: Mutex<VecDeque<InputEvent>>,
    changed: Condvar,
    /// Something is in the queue or the interrupt flag is set: what the VM thread looks at most of the time.
    pending: AtomicBool,
    interrupt: AtomicBool,
    sources: AtomicUsize,
}

/// Why a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// An input is in the queue.
    Input,
    /// An interrupt was requested (it stays requested until [`Mailbox::take_interrupt`]).
    Interrupt,
    /// The time is up.
    Time,
    /// No time was given and every source is gone: nothing can come any more.
    Closed,
}

impl Mailbox {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<InputEvent>> {
        // A panicking sender leaves a queue that is still a queue.
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Queues an input. Serial bytes for the same port are joined while they wait.
    pub fn push(&self, event: InputEvent) {
        let mut queue = self.lock();
        match (queue.back_mut(), event) {
            (Some(InputEvent::Serial { port: last, bytes: waiting }), InputEvent::Serial { port, bytes })
                if *last == port =>
            {
                waiting.extend(bytes)
            }
            (_, event) => queue.push_back(event),
        }
        self.pending.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Makes `Vm::run` return with `VmExit::Interrupted` soon, also out of an idle wait.
    pub fn interrupt(&self) {
        let _queue = self.lock();
        self.interrupt.store(true, Ordering::Release);
        self.pending.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Takes the next input, if there is one. One atomic load when there is not.
    pub fn take(&self) -> Option<InputEvent> {
        if !self.pending.load(Ordering::Acquire) {
            return None;
        }
        let mut queue = self.lock();
        let event = queue.pop_front();
        let more = !queue.is_empty() || self.interrupt.load(Ordering::Acquire);
        self.pending.store(more, Ordering::Release);
        event
    }

    /// Takes the interrupt request, if there is one.
    pub fn take_interrupt(&self) -> bool {
        if !self.pending.load(Ordering::Acquire) {
            return false;
        }
        let queue = self.lock();
        let asked = self.interrupt.swap(false, Ordering::AcqRel);
        self.pending.store(!queue.is_empty(), Ordering::Release);
        asked
    }

    /// Registers a source of inputs; while any is alive, a guest that waits without a timer waits for it.
    pub fn source(self: &Arc<Self>) -> InputSource {
        self.sources.fetch_add(1, Ordering::AcqRel);
        InputSource { mailbox: Arc::clone(self) }
    }

    /// Waits for an input, an interrupt, or `until` (`None`: no limit).
    pub fn wait(&self, until: Option<Instant>) -> Woken {
        let mut queue = self.lock();
        loop {
            if !queue.is_empty() {
                return Woken::Input;
            }
            if self.interrupt.load(Ordering::Acquire) {
                return Woken::Interrupt;
            }
            let poisoned = std::sync::PoisonError::into_inner;
            queue = match until {
                None if self.sources.load(Ordering::Acquire) == 0 => return Woken::Closed,
                None => self.changed.wait(queue).unwrap_or_else(poisoned),
                Some(until) => match until.checked_duration_since(Instant::now()) {
                    None => return Woken::Time,
                    Some(left) if left.is_zero() => return Woken::Time,
                    Some(left) => match self.changed.wait_timeout(queue, left) {
                        Ok((queue, _)) => queue,
                        Err(e) => e.into_inner().0,
                    },
                },
            };
        }
    }
}

/// A source of inputs, such as the thread that reads the terminal. Dropping it says that no more will come from it.
#[derive(Debug)]
pub struct InputSource {
    mailbox: Arc<Mailbox>,
}

impl InputSource {
    /// Queues an input.
    pub fn push(&self, event: InputEvent) {
        self.mailbox.push(event)
    }
}

impl Clone for InputSource {
    fn clone(&self) -> Self {
        self.mailbox.source()
    }
}

impl Drop for InputSource {
    fn drop(&mut self) {
        let _queue = self.mailbox.lock();
        self.mailbox.sources.fetch_sub(1, Ordering::AcqRel);
        self.mailbox.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn serial(port: u8, bytes: &[u8]) -> InputEvent {
        InputEvent::Serial { port, bytes: bytes.to_vec() }
    }

    #[test]
    fn test_serial_bytes_join_per_port_and_order_is_kept() {
        let m = Mailbox::new();
        for e in [serial(0, b"a"), serial(0, b"b"), serial(1, b"c"), InputEvent::Nmi, serial(1, b"d")] {
            m.push(e);
        }
        let got: Vec<_> = std::iter::from_fn(|| m.take()).collect();
        assert_eq!(got, [serial(0, b"ab"), serial(1, b"c"), InputEvent::Nmi, serial(1, b"d")]);
    }

    #[test]
    fn test_interrupt_is_taken_once_and_keeps_inputs() {
        let m = Mailbox::new();
        assert!(!m.take_interrupt());
        m.push(InputEvent::Nmi);
        m.interrupt();
        assert!(m.take_interrupt());
        assert!(!m.take_interrupt());
        assert_eq!(m.take(), Some(InputEvent::Nmi));
        m.interrupt();
        assert_eq!(m.take(), None);
        assert!(m.take_interrupt());
    }

    #[test]
    fn test_wait_ends_when_last_source_goes() {
        let m = Mailbox::new();
        assert_eq!(m.wait(None), Woken::Closed);
        let source = m.source();
        let second = source.clone();
        drop(source);
        let t = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(second);
        });
        assert_eq!(m.wait(None), Woken::Closed);
        t.join().ok();
    }

    #[test]
    fn test_wait_wakes_on_input_interrupt_and_time() {
        let m = Mailbox::new();
        assert_eq!(m.wait(Some(Instant::now())), Woken::Time);
        let sender = Arc::clone(&m);
        let t = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            sender.push(InputEvent::Nmi);
        });
        assert_eq!(m.wait(Some(Instant::now() + Duration::from_secs(60))), Woken::Input);
        t.join().ok();
        m.take();
        m.interrupt();
        assert_eq!(m.wait(None), Woken::Interrupt);
    }
}
