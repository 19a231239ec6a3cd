//! Deadlines: the earliest of all timers, kept at hand, and their expiry in order.

use super::irq::{line, source};
use super::{Board, BusCtx};
use crate::addr::GuestTime;
use crate::devices::time::earlier;

impl Board {
    /// The next guest time at which a timer has something to do.
    #[inline]
    pub fn deadline(&self) -> Option<GuestTime> {
        self.next
    }

    /// Recomputes the earliest deadline. Call after anything that may arm or disarm a timer.
    pub(super) fn schedule(&mut self) {
        let board = earlier(self.pit.deadline(), earlier(self.rtc.deadline(), self.pm.deadline()));
        self.next = self.lapics.iter().map(|a| a.deadline()).fold(board, earlier);
    }

    /// Lets every timer whose deadline is not after `bus.when.time` expire, in deadline order. Periods missed since
    /// the last call (the host clock moves in jumps) give one interrupt. Changes nothing if nothing is due.
    pub fn advance(&mut self, bus: &mut BusCtx<'_>) {
        let now = bus.when.time;
        while let Some(due) = self.next.filter(|t| *t <= now) {
            self.expire(due, now);
            self.schedule();
        }
    }

    /// Expires the timers due at exactly `due`; each leaves with a deadline after `now`.
    fn expire(&mut self, due: GuestTime, now: GuestTime) {
        if self.pit.deadline() == Some(due) && self.pit.expire(now) {
            // OUT falls and rises again between two expiries.
            self.set_irq(line::PIT, source::DEVICE, false);
            self.set_irq(line::PIT, source::DEVICE, true);
        }
        if self.rtc.deadline() == Some(due) {
            self.rtc.expire(now);
            self.update_rtc();
        }
        if self.pm.deadline() == Some(due) {
            self.pm.expire(now);
            self.update_pm();
        }
        for i in 0..self.lapics.len() {
            if self.lapics[i].deadline() == Some(due) {
                self.lapics[i].expire(now);
                self.refresh_intr_of(i);
            }
        }
    }

    pub(super) fn update_uart(&mut self) {
        self.set_irq(line::COM1, source::DEVICE, self.uart.irq());
    }

    pub(super) fn update_rtc(&mut self) {
        self.set_irq(line::RTC, source::DEVICE, self.rtc.irq());
    }

    pub(super) fn update_pm(&mut self) {
        self.set_irq(line::SCI, source::DEVICE, self.pm.sci());
    }

    /// Samples the keyboard controller's lines, lets the next byte in, and samples them again: so each byte is an
    /// edge.
    pub(super) fn update_i8042(&mut self) {
        for _ in 0..2 {
            self.set_irq(line::KEYBOARD, source::DEVICE, self.i8042.irq1());
            self.set_irq(line::MOUSE, source::DEVICE, self.i8042.irq12());
            self.i8042.refill();
        }
    }
}
