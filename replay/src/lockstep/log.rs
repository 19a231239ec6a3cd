//! One live run as the input of two machines: a port that remembers what it let in, and a port that gives a second
//! machine the same at the same points. The second machine never gets ahead of the first.

use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use retrovisor_core::{GuestTime, Icount};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct Log {
    events: VecDeque<(When, InputEvent)>,
    answers: VecDeque<(When, Query, u64)>,
    /// Where the run ended for want of input.
    end: Option<When>,
    /// What the second machine asked that the first had not.
    stray: Option<String>,
}

/// What the first machine was told and the second is yet to hear. Clones share it.
#[derive(Clone, Default)]
pub struct InputLog {
    log: Arc<Mutex<Log>>,
}

impl InputLog {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first machine's port: `inner`, remembered.
    pub fn leader<P: InputPort>(&self, inner: P) -> Leader<P> {
        Leader { inner, log: self.clone() }
    }

    /// The second machine's port.
    pub fn follower(&self) -> Follower {
        Follower { log: self.clone() }
    }

    /// What the second machine asked first that the first machine had not asked, if anything.
    pub fn stray(&self) -> Option<String> {
        self.lock().stray.clone()
    }
}

/// The port of the machine that goes first.
pub struct Leader<P> {
    inner: P,
    log: InputLog,
}

impl<P: InputPort> InputPort for Leader<P> {
    fn poll(&mut self, now: When) -> Poll {
        let said = self.inner.poll(now);
        match &said {
            Poll::Event(event) => self.log.lock().events.push_back((now, event.clone())),
            Poll::End => self.log.lock().end = Some(now),
            Poll::None | Poll::Interrupt => {}
        }
        said
    }

    fn next_poll(&self) -> Option<Icount> {
        self.inner.next_poll()
    }

    fn answer(&mut self, now: When, query: Query) -> u64 {
        let value = self.inner.answer(now, query);
        self.log.lock().answers.push_back((now, query, value));
        value
    }

    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        let said = self.inner.idle(now, deadline);
        if said == Idle::End {
            self.log.lock().end = Some(now);
        }
        said
    }

    fn set_deadline(&mut self, deadline: Option<GuestTime>) {
        self.inner.set_deadline(deadline)
    }

    fn resume(&mut self, now: When) {
        self.inner.resume(now)
    }

    fn inject(&mut self, now: When, event: &InputEvent) {
        self.log.lock().events.push_back((now, event.clone()));
        self.inner.inject(now, event);
    }

    fn check(&mut self, now: When, hash: StateHash) -> bool {
        self.inner.check(now, hash)
    }
}

/// The port of the machine that follows.
pub struct Follower {
    log: InputLog,
}

impl InputPort for Follower {
    fn poll(&mut self, now: When) -> Poll {
        let mut log = self.log.lock();
        match (log.events.front(), log.end) {
            (Some((when, _)), _) if *when <= now => match log.events.pop_front() {
                Some((_, event)) => Poll::Event(event),
                None => Poll::None,
            },
            (None, Some(end)) if end <= now => Poll::End,
            _ if log.stray.is_some() => Poll::End,
            _ => Poll::None,
        }
    }

    fn next_poll(&self) -> Option<Icount> {
        let log = self.log.lock();
        let event = log.events.front().map(|(when, _)| when.icount);
        let next = event.or(log.end.map(|end| end.icount)).unwrap_or(Icount(u64::MAX));
        Some(if log.stray.is_some() { Icount(0) } else { next })
    }

    fn answer(&mut self, now: When, query: Query) -> u64 {
        let mut log = self.log.lock();
        match log.answers.front() {
            Some((when, q, value)) if (*when, *q) == (now, query) => {
                let value = *value;
                log.answers.pop_front();
                value
            }
            other => {
                let expected = other.map(|(when, q, _)| format!("{q:?} at instruction {}", when.icount));
                let text = format!(
                    "the interpreter asks for {query:?} at instruction {}, the translator asked for {}",
                    now.icount,
                    expected.unwrap_or_else(|| "nothing".into())
                );
                log.stray.get_or_insert(text);
                if query == Query::HostTime { now.time.0 } else { 0 }
            }
        }
    }

    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        let log = self.log.lock();
        let next = log.events.front().map(|(when, _)| *when).filter(|w| w.icount == now.icount);
        match (next, deadline) {
            (Some(event), Some(d)) if event.time >= d => Idle::Deadline,
            (Some(event), _) => Idle::Input(event.time.max(now.time)),
            (None, Some(_)) if log.end.is_none_or(|end| end > now) => Idle::Deadline,
            (None, Some(_)) => Idle::End,
            (None, None) => Idle::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::tests::at;

    /// Says what it is given.
    #[derive(Default)]
    struct Said(VecDeque<Poll>);

    impl InputPort for Said {
        fn poll(&mut self, _now: When) -> Poll {
            self.0.pop_front().unwrap_or(Poll::None)
        }
        fn next_poll(&self) -> Option<Icount> {
            None
        }
        fn answer(&mut self, now: When, _query: Query) -> u64 {
            now.time.0 + 7
        }
        fn idle(&mut self, _now: When, deadline: Option<GuestTime>) -> Idle {
            if deadline.is_some() { Idle::Deadline } else { Idle::End }
        }
    }

    #[test]
    fn test_follower_hears_each_event_at_its_point_and_once() {
        let log = InputLog::default();
        let said = [Poll::None, Poll::Event(InputEvent::Nmi), Poll::Interrupt];
        let (mut a, mut b) = (log.leader(Said(said.into())), log.follower());
        for icount in [10, 20, 30] {
            a.poll(at(icount, icount));
        }
        a.inject(at(40, 41), &InputEvent::Reset);
        assert_eq!((b.next_poll(), b.poll(at(19, 19))), (Some(Icount(20)), Poll::None));
        assert_eq!(b.poll(at(20, 20)), Poll::Event(InputEvent::Nmi));
        assert_eq!((b.next_poll(), b.poll(at(20, 20))), (Some(Icount(40)), Poll::None));
        // It waits as long as the first machine did.
        assert_eq!(b.idle(at(40, 30), Some(GuestTime(35))), Idle::Deadline);
        assert_eq!(b.idle(at(40, 35), Some(GuestTime(50))), Idle::Input(GuestTime(41)));
        assert_eq!(b.poll(at(40, 41)), Poll::Event(InputEvent::Reset));
        assert_eq!(b.idle(at(40, 41), Some(GuestTime(50))), Idle::Deadline);
        assert_eq!(b.next_poll(), Some(Icount(u64::MAX)));
    }

    #[test]
    fn test_follower_gets_the_same_answers_and_others_are_noted() {
        let log = InputLog::default();
        let (mut a, mut b) = (log.leader(Said::default()), log.follower());
        let value = a.answer(at(5, 5), Query::HostTime);
        assert_eq!(b.answer(at(5, 5), Query::HostTime), value);
        assert_eq!((b.poll(at(6, 6)), log.stray()), (Poll::None, None));
        a.answer(at(9, 9), Query::HostTime);
        b.answer(at(8, 8), Query::HostTime);
        assert_eq!((b.next_poll(), b.poll(at(9, 9))), (Some(Icount(0)), Poll::End));
        assert!(log.stray().is_some_and(|s| s.contains("instruction 8") && s.contains("instruction 9")));
    }

    #[test]
    fn test_end_of_input_ends_both() {
        let log = InputLog::default();
        let (mut a, mut b) = (log.leader(Said([Poll::End].into())), log.follower());
        assert_eq!(
            (a.poll(at(7, 7)), b.poll(at(6, 6)), b.poll(at(7, 7))),
            (Poll::End, Poll::None, Poll::End)
        );
        assert_eq!((a.idle(at(9, 9), None), b.idle(at(9, 9), None)), (Idle::End, Idle::End));
    }
}
