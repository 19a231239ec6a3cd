//! The time that is measured: what a clock on the wall shows, or the CPU time a process has used, which other work on the
//! machine disturbs less.
#![allow(unsafe_code, reason = "the CPU clock of another process is to be had from libc only")]

use std::time::Instant;

/// Seconds of a process since its start.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    Wall(Instant),
    /// The CPU time of all threads of a process.
    Cpu(libc::clockid_t),
}

impl Clock {
    /// The clock of process `pid`, which began at `start`.
    pub fn of(pid: u32, start: Instant, cpu_time: bool) -> Self {
        let mut id = 0;
        // SAFETY: writes `id`.
        let found = cpu_time && unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut id) } == 0;
        if found { Clock::Cpu(id) } else { Clock::Wall(start) }
    }

    pub fn seconds(self) -> f64 {
        match self {
            Clock::Wall(start) => start.elapsed().as_secs_f64(),
            Clock::Cpu(id) => {
                let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                // SAFETY: writes `t`; of a process that has ended it stays zero.
                unsafe { libc::clock_gettime(id, &mut t) };
                t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_advances_with_work_only() {
        let clock = Clock::of(std::process::id(), Instant::now(), true);
        assert!(matches!(clock, Clock::Cpu(_)));
        let before = clock.seconds();
        std::hint::black_box((0..1_000_000u64).fold(1, |a, b| std::hint::black_box(a ^ b)));
        assert!(clock.seconds() > before);
    }
}
