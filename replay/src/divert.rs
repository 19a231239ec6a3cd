//! A diversion: a replayed machine that is poked no longer follows its trace. This port plays no more inputs; time
//! goes on as if nothing came in, and every answer is a function of the point, so that a diversion repeats exactly.

use crate::mailbox::Mailbox;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::input::{Idle, InputEvent, InputPort, Poll, Query, When};
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::{GuestTime, Icount};
use std::sync::Arc;

/// The port of a diversion that began at one point of a replay.
pub struct Diverted {
    mailbox: Arc<Mailbox>,
    from: When,
    clock: ClockKind,
    wall_time: u64,
    /// State of the generator behind `Query::Random`.
    random: u64,
    deadline: Option<GuestTime>,
}

impl Diverted {
    /// A diversion from `from`; `mailbox` is listened to for interrupts only.
    pub fn new(from: When, config: &MachineConfig, mailbox: Arc<Mailbox>) -> Self {
        let random = config.seed ^ from.icount.0;
        let (clock, wall_time) = (config.clock, config.wall_time);
        Self { mailbox, from, clock, wall_time, random, deadline: None }
    }

    /// Host clock: the time a live host would tell, a nanosecond an instruction.
    fn time(&self, now: When) -> u64 {
        let insns = now.icount.0.saturating_sub(self.from.icount.0);
        now.time.0.max(self.from.time.0.saturating_add(insns))
    }
}

impl InputPort for Diverted {
    fn poll(&mut self, now: When) -> Poll {
        if self.mailbox.take_interrupt() {
            return Poll::Interrupt;
        }
        let time = GuestTime(self.time(now));
        match self.deadline {
            Some(deadline) if self.clock == ClockKind::Host && time >= deadline => {
                self.deadline = None;
                Poll::Event(InputEvent::Tick { time })
            }
            _ => Poll::None,
        }
    }

    /// Host clock: the instruction at which the next timer is due, so that ticks do not depend on slices.
    fn next_poll(&self) -> Option<Icount> {
        let deadline = self.deadline.filter(|_| self.clock == ClockKind::Host)?;
        Some(self.from.icount + deadline.0.saturating_sub(self.from.time.0))
    }

    fn answer(&mut self, now: When, query: Query) -> u64 {
        match query {
            Query::HostTime => self.time(now),
            Query::BootWallTime => self.wall_time,
            Query::Random => {
                // SplitMix64.
                self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            }
        }
    }

    fn idle(&mut self, _now: When, deadline: Option<GuestTime>) -> Idle {
        if deadline.is_some() { Idle::Deadline } else { Idle::End }
    }

    fn set_deadline(&mut self, deadline: Option<GuestTime>) {
        self.deadline = deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::tests::at;

    #[test]
    fn test_diversion_repeats_and_ticks_when_due() {
        let config = MachineConfig { clock: ClockKind::Host, seed: 3, ..MachineConfig::default() };
        let run = || {
            let mut d = Diverted::new(at(100, 5000), &config, Mailbox::new());
            d.set_deadline(Some(GuestTime(5050)));
            assert_eq!(d.next_poll(), Some(Icount(150)));
            assert_eq!(d.poll(at(149, 5000)), Poll::None);
            assert_eq!(d.poll(at(150, 5000)), Poll::Event(InputEvent::Tick { time: GuestTime(5050) }));
            assert_eq!(d.poll(at(150, 5050)), Poll::None);
            let answers = [Query::Random, Query::Random, Query::HostTime, Query::BootWallTime];
            answers.map(|q| d.answer(at(160, 5050), q))
        };
        let first = run();
        assert_eq!(first, run());
        assert_ne!(first[0], first[1]);
        assert_eq!(first[2..], [5060, config.wall_time]);
    }

    #[test]
    fn test_diversion_listens_for_interrupts_only() {
        let m = Mailbox::new();
        let mut d = Diverted::new(at(0, 0), &MachineConfig::default(), Arc::clone(&m));
        m.push(InputEvent::Nmi);
        assert_eq!(d.poll(at(1, 1)), Poll::None);
        m.interrupt();
        assert_eq!(d.poll(at(2, 2)), Poll::Interrupt);
        assert_eq!(d.idle(at(3, 3), None), Idle::End);
    }
}
