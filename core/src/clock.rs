//! Guest time. Owns the relation between icount and nanoseconds, for both clocks.
//!
//! Virtual: guest time = icount × ns-per-instruction + skew, where skew grows when an idle guest jumps to its
//! next deadline. Host: guest time only moves when the input port says so (each read and tick is a logged input).

use crate::addr::{GuestTime, Icount};
use crate::input::{InputPort, Query, When};

/// Which source guest time follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClockKind {
    /// A function of icount: deterministic without a log.
    Virtual,
    /// Host time, logged.
    Host,
}

/// The VM's clock.
#[derive(Clone, Debug)]
pub struct Clock {
    pub kind: ClockKind,
    /// Virtual: nanoseconds added to icount (idle time skipped so far). Host: the last time told by the input port.
    pub skew: u64,
    /// Virtual: nanoseconds an instruction takes.
    pub ns_per_insn: u64,
}

impl Clock {
    pub fn new(kind: ClockKind) -> Self {
        Self { kind, skew: 0, ns_per_insn: 1 }
    }

    /// Guest time at `icount`, without asking anybody.
    #[inline]
    pub fn now(&self, icount: u64) -> GuestTime {
        match self.kind {
            ClockKind::Virtual => GuestTime(icount * self.ns_per_insn + self.skew),
            ClockKind::Host => GuestTime(self.skew),
        }
    }

    /// Guest time as a timer register read sees it. Host clock: asks the input port (logged), never goes back.
    pub fn read(&mut self, when: When, input: &mut dyn InputPort) -> GuestTime {
        if self.kind == ClockKind::Host {
            self.skew = self.skew.max(input.answer(when, Query::HostTime));
        }
        self.now(when.icount.0)
    }

    /// Moves guest time forward to `t` (idle skip, or a host tick). Never goes back.
    pub fn advance_to(&mut self, icount: u64, t: GuestTime) {
        let now = self.now(icount);
        if t > now {
            self.skew += t - now;
        }
    }

    /// First icount at which guest time reaches `t` if nothing else moves it; `None` for the host clock.
    pub fn icount_at(&self, t: GuestTime) -> Option<Icount> {
        match self.kind {
            ClockKind::Virtual => Some(Icount(t.0.saturating_sub(self.skew).div_ceil(self.ns_per_insn))),
            ClockKind::Host => None,
        }
    }
}

crate::impl_state!(Clock, "clock", 1, { skew, ns_per_insn } skip { kind });
