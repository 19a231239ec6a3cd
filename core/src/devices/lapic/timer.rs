//! The local APIC's timer: one-shot, periodic and TSC-deadline (SDM vol. 3A, 10.5.4).

use super::{ApicMode, LVT_MASKED, Lapic, Lvt};
use crate::addr::GuestTime;

impl Lapic {
    fn timer_mode(&self) -> u32 {
        self.lvt[Lvt::Timer as usize] >> 17 & 3
    }
    pub(super) fn timer_masked(&self) -> bool {
        self.lvt[Lvt::Timer as usize] & LVT_MASKED != 0
    }

    /// log2 of the divider: bits 3, 1, 0 of the divide configuration register; 0b111 divides by one.
    fn divide_shift(&self) -> u32 {
        let n = self.divide & 3 | self.divide >> 1 & 4;
        (n + 1) & 7
    }

    /// Nanoseconds from initial count to zero.
    fn period(&self) -> u64 {
        u64::from(self.initial_count) << self.divide_shift()
    }

    pub(super) fn start_timer(&mut self, count: u32, now: GuestTime) {
        if self.timer_mode() >= 2 {
            return;
        }
        self.initial_count = count;
        self.deadline = (count != 0).then(|| GuestTime(now.0.saturating_add(self.period())));
    }

    pub(super) fn write_divide(&mut self, v: u32, now: GuestTime) {
        let left = self.current_count(now);
        self.divide = v;
        if self.timer_mode() < 2 && self.deadline.is_some() {
            let ns = u64::from(left) << self.divide_shift();
            self.deadline = (left != 0).then(|| GuestTime(now.0.saturating_add(ns)));
        }
    }

    /// Moves a deadline that passed unseen (masked) to what it would be now.
    pub(super) fn catch_up(&mut self, now: GuestTime) {
        let Some(at) = self.deadline.filter(|at| *at <= now && self.timer_mode() < 2) else { return };
        let period = self.period();
        self.deadline = (self.timer_mode() == 1 && period != 0).then(|| {
            let missed = ((now - at) / period).saturating_add(1);
            GuestTime(at.0.saturating_add(missed.saturating_mul(period)))
        });
    }

    /// The current-count register.
    pub(super) fn current_count(&mut self, now: GuestTime) -> u32 {
        if self.timer_mode() >= 2 {
            return 0;
        }
        let at = match self.deadline {
            // An expiry not yet serviced (its interrupt still has to be raised) shows zero, or the next period.
            Some(at) if at <= now && self.timer_mode() == 1 && self.period() != 0 => {
                let into = (now - at) % self.period();
                GuestTime(now.0.saturating_add(self.period() - into))
            }
            Some(at) => at,
            None => return 0,
        };
        let left = at.0.saturating_sub(now.0).div_ceil(1 << self.divide_shift());
        left.min(u64::from(self.initial_count)) as u32
    }

    /// When the timer next has something to do.
    pub fn deadline(&self) -> Option<GuestTime> {
        self.deadline.filter(|_| self.timer_mode() == 2 || !self.timer_masked())
    }

    /// Lets the timer expire if its deadline is not after `now`; several missed periods give one interrupt.
    pub fn expire(&mut self, now: GuestTime) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        if self.timer_mode() == 2 {
            self.deadline = None;
            self.tsc_deadline = 0;
        } else {
            self.catch_up(now);
            // A period that cannot be represented never ends.
            if self.deadline.is_some_and(|at| at <= now) {
                self.deadline = None;
            }
        }
        self.local(Lvt::Timer);
    }

    /// IA32_TSC_DEADLINE: zero unless armed.
    pub fn tsc_deadline(&self) -> u64 {
        if self.timer_mode() == 2 { self.tsc_deadline } else { 0 }
    }

    /// WRMSR of IA32_TSC_DEADLINE: ignored outside TSC-deadline mode; zero disarms.
    pub fn set_tsc_deadline(&mut self, tsc: u64, at: GuestTime) {
        if self.timer_mode() == 2 && self.mode != ApicMode::Disabled {
            self.tsc_deadline = tsc;
            self.deadline = (tsc != 0).then_some(at);
        }
    }
}
