//! Inputs from the host: what other threads push, host time, random numbers.

use crate::format::MAX_POINT;
use crate::mailbox::{Mailbox, Woken};
use retrovisor_core::GuestTime;
use retrovisor_core::Icount;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What an idle guest does under the virtual clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IdlePolicy {
    /// A nanosecond of guest time takes a nanosecond of host time.
    #[default]
    RealTime,
    /// Jump to the next deadline at once, unless an input is waiting.
    Skip,
}

/// The host's side of the input port.
pub struct Live {
    mailbox: Arc<Mailbox>,
    clock: ClockKind,
    policy: IdlePolicy,
    /// Host time 0: the first time anybody needs it.
    epoch: Option<Instant>,
    /// Host clock: when a device next has something to do.
    deadline: Option<GuestTime>,
    /// Virtual clock: the idle wait in progress and when it began, kept across interruptions.
    waiting: Option<(When, Instant)>,
    random: Option<File>,
}

impl Live {
    pub fn new(mailbox: Arc<Mailbox>, clock: ClockKind, policy: IdlePolicy) -> Self {
        Self { mailbox, clock, policy, epoch: None, deadline: None, waiting: None, random: None }
    }

    /// Host nanoseconds since the start.
    fn host_ns(&mut self) -> u64 {
        let epoch = *self.epoch.get_or_insert_with(Instant::now);
        u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// An instant and the guest time that belongs to it, from which guest time passes like host time.
    fn base(&mut self, now: When) -> (Instant, u64) {
        if self.clock == ClockKind::Host {
            return (*self.epoch.get_or_insert_with(Instant::now), 0);
        }
        let began = match self.waiting {
            Some((when, began)) if when == now => began,
            _ => Instant::now(),
        };
        self.waiting = Some((now, began));
        (began, now.time.0)
    }

    /// Guest time of an input that arrives now, strictly between `now` and `deadline`; `None` if there is no room.
    fn input_time(base: (Instant, u64), now: When, deadline: Option<GuestTime>) -> Option<GuestTime> {
        let passed = u64::try_from(base.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let first = now.time.0.saturating_add(1);
        let last = deadline.map_or(MAX_POINT, |d| d.0.saturating_sub(1));
        (first <= last).then(|| GuestTime(base.1.saturating_add(passed).clamp(first, last)))
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        if self.random.is_none() {
            self.random = File::open("/dev/urandom").ok();
        }
        match self.random.as_mut().map(|f| f.read_exact(&mut bytes)) {
            Some(Ok(())) => u64::from_le_bytes(bytes),
            // Hash maps are seeded by the operating system, too.
            _ => std::collections::hash_map::RandomState::new().build_hasher().finish(),
        }
    }
}

impl InputPort for Live {
    fn poll(&mut self, now: When) -> Poll {
        if let Some(event) = self.mailbox.take() {
            return Poll::Event(event);
        }
        if self.mailbox.take_interrupt() {
            return Poll::Interrupt;
        }
        if self.clock == ClockKind::Host
            && let Some(deadline) = self.deadline
        {
            let time = GuestTime(self.host_ns().max(now.time.0));
            if time >= deadline {
                self.deadline = None;
                return Poll::Event(InputEvent::Tick { time });
            }
        }
        Poll::None
    }

    fn next_poll(&self) -> Option<Icount> {
        None
    }

    fn set_deadline(&mut self, deadline: Option<GuestTime>) {
        self.epoch.get_or_insert_with(Instant::now);
        self.deadline = deadline;
    }

    fn resume(&mut self, now: When) {
        self.waiting = None;
        // Host time 0 is so long ago.
        self.epoch = Instant::now().checked_sub(Duration::from_nanos(now.time.0));
    }

    fn answer(&mut self, _now: When, query: Query) -> u64 {
        match query {
            Query::HostTime => self.host_ns(),
            Query::BootWallTime => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            Query::Random => self.random(),
        }
    }

    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        let base = self.base(now);
        let skip = self.clock == ClockKind::Virtual && self.policy == IdlePolicy::Skip;
        let until = match deadline {
            Some(_) if skip => Some(Instant::now()),
            Some(d) => base.0.checked_add(Duration::from_nanos(d.0.saturating_sub(base.1))),
            None => None,
        };
        let woken = self.mailbox.wait(until);
        if woken != Woken::Interrupt {
            self.waiting = None;
        }
        match woken {
            Woken::Input => match Self::input_time(base, now, deadline) {
                Some(time) => Idle::Input(time),
                None => Idle::Deadline,
            },
            Woken::Interrupt => Idle::Interrupted,
            Woken::Time => Idle::Deadline,
            Woken::Closed => {
                if deadline.is_some() {
                    Idle::Deadline
                } else {
                    Idle::End
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::tests::at;

    fn live(clock: ClockKind, policy: IdlePolicy) -> (Arc<Mailbox>, Live) {
        let m = Mailbox::new();
        (Arc::clone(&m), Live::new(m, clock, policy))
    }

    #[test]
    fn test_skip_reaches_any_deadline_at_once() {
        let (m, mut l) = live(ClockKind::Virtual, IdlePolicy::Skip);
        assert_eq!(l.idle(at(5, 5), Some(GuestTime(u64::MAX / 4))), Idle::Deadline);
        assert_eq!(l.idle(at(5, 5), None), Idle::End, "no source, no timer");
        m.push(InputEvent::Nmi);
        assert!(matches!(l.idle(at(5, 5), Some(GuestTime(1000))), Idle::Input(t) if t.0 > 5 && t.0 < 1000));
        assert_eq!(l.poll(at(5, 6)), Poll::Event(InputEvent::Nmi));
        assert_eq!(l.poll(at(5, 6)), Poll::None);
    }

    #[test]
    fn test_idle_without_room_before_deadline_returns_deadline() {
        let (m, mut l) = live(ClockKind::Virtual, IdlePolicy::RealTime);
        m.push(InputEvent::Nmi);
        assert_eq!(l.idle(at(5, 5), Some(GuestTime(6))), Idle::Deadline);
        assert_eq!(l.idle(at(5, 5), Some(GuestTime(7))), Idle::Input(GuestTime(6)));
    }

    #[test]
    fn test_real_time_idle_waits_and_survives_interrupts() {
        let (m, mut l) = live(ClockKind::Virtual, IdlePolicy::RealTime);
        let began = Instant::now();
        let gap = 30_000_000;
        m.interrupt();
        assert_eq!(l.idle(at(9, 100), Some(GuestTime(100 + gap))), Idle::Interrupted);
        assert!(m.take_interrupt());
        assert_eq!(l.idle(at(9, 100), Some(GuestTime(100 + gap))), Idle::Deadline);
        assert!(began.elapsed() >= Duration::from_nanos(gap));
    }

    #[test]
    fn test_host_clock_ticks_once_a_deadline() {
        let (_m, mut l) = live(ClockKind::Host, IdlePolicy::RealTime);
        l.set_deadline(None);
        assert_eq!(l.poll(at(0, 0)), Poll::None);
        l.set_deadline(Some(GuestTime(1)));
        std::thread::sleep(Duration::from_millis(1));
        let Poll::Event(InputEvent::Tick { time }) = l.poll(at(10, 0)) else { panic!("no tick") };
        assert!(time >= GuestTime(1_000_000));
        assert_eq!(l.poll(at(10, time.0)), Poll::None);
        assert!(l.answer(at(11, time.0), Query::HostTime) >= time.0);
        assert_eq!(l.idle(at(11, time.0), Some(GuestTime(time.0 + 1))), Idle::Deadline);
    }

    #[test]
    fn test_time_stands_while_the_machine_does() {
        let (_m, mut l) = live(ClockKind::Host, IdlePolicy::RealTime);
        let hour = 3_600_000_000_000;
        l.resume(at(4, hour));
        assert!(l.answer(at(4, hour), Query::HostTime) >= hour);
        l.resume(at(5, 1000));
        assert!((1000..hour).contains(&l.answer(at(5, 1000), Query::HostTime)));
    }

    #[test]
    fn test_answers_are_plausible() {
        let (_m, mut l) = live(ClockKind::Host, IdlePolicy::RealTime);
        assert!(l.answer(at(0, 0), Query::BootWallTime) > 1_700_000_000);
        assert_ne!(l.answer(at(0, 0), Query::Random), l.answer(at(0, 0), Query::Random));
    }
}
