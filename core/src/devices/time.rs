//! Fixed-frequency counters driven by guest time. Owns the rounding: a counter shows tick n from the first
//! nanosecond at which n whole periods have passed.

use crate::addr::GuestTime;
use crate::state::{Field, Reader, StateError, Writer};

/// Nanoseconds in a second.
pub const NS_PER_SEC: u64 = 1_000_000_000;

/// A clock input of a fixed frequency, phase-locked to power-on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frequency {
    /// Cycles per second, never zero.
    pub hz: u64,
}

impl Frequency {
    /// Whole cycles since power-on at time `t`.
    pub fn ticks(self, t: GuestTime) -> u64 {
        let n = u128::from(t.0) * u128::from(self.hz) / u128::from(NS_PER_SEC);
        u64::try_from(n).unwrap_or(u64::MAX)
    }

    /// First time at which [`Frequency::ticks`] is at least `tick` (saturating).
    pub fn time_of(self, tick: u64) -> GuestTime {
        let t = (u128::from(tick) * u128::from(NS_PER_SEC)).div_ceil(u128::from(self.hz));
        GuestTime(u64::try_from(t).unwrap_or(u64::MAX))
    }
}

impl Field for GuestTime {
    fn put(&self, w: &mut Writer) {
        self.0.put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        Ok(Self(u64::get(r)?))
    }
}

/// The earlier of two optional deadlines.
pub fn earlier(a: Option<GuestTime>, b: Option<GuestTime>) -> Option<GuestTime> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_is_the_first_nanosecond_of_a_tick() {
        let f = Frequency { hz: 3_579_545 };
        for tick in [1, 2, 1000, 3_579_545, 1 << 40] {
            let t = f.time_of(tick);
            assert_eq!(f.ticks(t), tick);
            assert_eq!(f.ticks(GuestTime(t.0 - 1)), tick - 1);
        }
        assert_eq!(f.ticks(GuestTime(NS_PER_SEC)), 3_579_545);
    }
}
