//! The 8254 programmable interval timer: three counters at 1.193182 MHz. Source: Intel 82C54 datasheet (231244).
//!
//! Counters are functions of guest time; nothing ticks. Counter 0's output is the board's IRQ0, counter 2's gate
//! and output belong to port 0x61.

use super::time::Frequency;
use crate::addr::GuestTime;

/// Input clock.
pub const CLOCK: Frequency = Frequency { hz: 1_193_182 };

/// Which byte a two-byte access stands at, and what is latched.
#[derive(Clone, Debug)]
struct Counter {
    /// 0..=5.
    mode: u8,
    bcd: bool,
    /// 1 low byte, 2 high byte, 3 low then high.
    access: u8,
    gate: bool,
    /// Programmed by a control word, and waiting for its count.
    null_count: bool,
    /// A count has been loaded since the control word.
    loaded: bool,
    /// Modulus: 1..=0x10000 (10000 in BCD).
    reload: u32,
    /// Tick at which the count was loaded, or the gate triggered it.
    start: u64,
    /// Ticks already counted when the gate stopped the counter.
    stopped_at: Option<u64>,
    /// Modes 2 and 3: count to use from the end of this period on.
    next_reload: Option<u32>,
    /// The low byte of a two-byte write.
    write_low: Option<u8>,
    /// The next read gives the high byte.
    read_high: bool,
    latch: Option<u16>,
    status_latch: Option<u8>,
    /// Counter 0: tick of the next rising edge of OUT.
    edge: Option<u64>,
}

crate::impl_field!(Counter {
    mode,
    bcd,
    access,
    gate,
    null_count,
    loaded,
    reload,
    start,
    stopped_at,
    next_reload,
    write_low,
    read_high,
    latch,
    status_latch,
    edge,
});

impl Counter {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: 3,
            gate,
            null_count: true,
            loaded: false,
            reload: 0x10000,
            start: 0,
            stopped_at: None,
            next_reload: None,
            write_low: None,
            read_high: false,
            latch: None,
            status_latch: None,
            edge: None,
        }
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }
    /// Modes started by a rising gate rather than by the count's arrival.
    fn triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }
    fn modulus(&self) -> u64 {
        u64::from(self.reload.clamp(1, 0x10000))
    }

    /// Ticks counted since the load.
    fn elapsed(&self, tick: u64) -> u64 {
        self.stopped_at.unwrap_or_else(|| tick.saturating_sub(self.start))
    }

    /// Applies a count written during the previous period.
    fn sync(&mut self, tick: u64) {
        let Some(next) = self.next_reload else { return };
        let n = self.elapsed(tick);
        if self.stopped_at.is_none() && n >= self.modulus() {
            // The first period boundary after the write: the write cleared earlier ones.
            self.start = self.start.saturating_add(self.modulus());
            self.reload = next;
            self.next_reload = None;
            self.null_count = false;
        }
    }

    /// Makes `start` the beginning of the current period.
    fn rebase(&mut self, tick: u64) {
        if self.periodic() && self.stopped_at.is_none() {
            let n = self.elapsed(tick);
            self.start = self.start.saturating_add(n - n % self.modulus());
        }
    }

    /// Level of OUT.
    fn out(&self, tick: u64) -> bool {
        if !self.loaded {
            // Mode 0 starts low, all others high.
            return self.mode != 0;
        }
        let (n, m) = (self.elapsed(tick), self.modulus());
        match self.mode {
            0 | 1 => n >= m,
            2 => !self.gate || n % m != m - 1,
            3 => !self.gate || n % m < m.div_ceil(2),
            _ => n != m,
        }
    }

    /// The counting element as the bus sees it.
    fn count(&self, tick: u64) -> u16 {
        if !self.loaded {
            return 0;
        }
        let (n, m) = (self.elapsed(tick), self.modulus());
        let wrap = if self.bcd { 10_000 } else { 0x10000 };
        let c = match self.mode {
            2 => m - n % m,
            // Counts down by two, twice a period; an odd count is one longer in its first half.
            3 => {
                let (k, half) = (n % m, m.div_ceil(2));
                let even = m & !1;
                let k = if k < half { k.saturating_sub(m & 1) } else { k - half };
                if even == 0 { 0 } else { even - (2 * k) % even }
            }
            _ => (m % wrap + wrap - n % wrap) % wrap,
        };
        if self.bcd { to_bcd(c) } else { c as u16 }
    }

    fn control(&mut self, v: u8) {
        self.mode = match v >> 1 & 7 {
            m @ 6..=7 => m - 4,
            m => m,
        };
        self.bcd = v & 1 != 0;
        self.access = v >> 4 & 3;
        self.null_count = true;
        self.loaded = false;
        self.next_reload = None;
        self.stopped_at = None;
        self.write_low = None;
        self.read_high = false;
        self.latch = None;
        self.status_latch = None;
        self.edge = None;
    }

    fn latch_count(&mut self, tick: u64) {
        if self.latch.is_none() {
            self.latch = Some(self.count(tick));
        }
    }

    fn latch_status(&mut self, tick: u64) {
        if self.status_latch.is_none() {
            let out = u8::from(self.out(tick)) << 7;
            let null = u8::from(self.null_count) << 6;
            self.status_latch = Some(out | null | self.access << 4 | self.mode << 1 | u8::from(self.bcd));
        }
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(s) = self.status_latch.take() {
            return s;
        }
        let c = self.latch.unwrap_or_else(|| self.count(tick));
        let [low, high] = c.to_le_bytes();
        let last;
        let byte = match self.access {
            1 => {
                last = true;
                low
            }
            2 => {
                last = true;
                high
            }
            _ => {
                last = self.read_high;
                self.read_high = !self.read_high;
                if last { high } else { low }
            }
        };
        if last {
            self.latch = None;
        }
        byte
    }

    fn write(&mut self, v: u8, tick: u64) {
        let value = match self.access {
            1 => u16::from(v),
            2 => u16::from(v) << 8,
            _ => match self.write_low.take() {
                None => {
                    self.write_low = Some(v);
                    if self.mode == 0 {
                        // The first byte of a two-byte count stops the counter.
                        self.loaded = false;
                        self.edge = None;
                    }
                    return;
                }
                Some(low) => u16::from_le_bytes([low, v]),
            },
        };
        self.load_count(value, tick);
    }

    fn load_count(&mut self, value: u16, tick: u64) {
        let n = if self.bcd { from_bcd(value) } else { u32::from(value) };
        let n = match n {
            0 if self.bcd => 10_000,
            0 => 0x10000,
            n => n,
        };
        if self.periodic() && self.loaded {
            self.rebase(tick);
            self.next_reload = Some(n);
            self.null_count = true;
            return;
        }
        self.reload = n;
        self.null_count = false;
        if self.triggered() {
            return;
        }
        self.loaded = true;
        self.start = tick;
        self.stopped_at = (!self.gate).then_some(0);
    }

    fn set_gate(&mut self, gate: bool, tick: u64) {
        if self.gate == gate {
            return;
        }
        self.sync(tick);
        match (self.mode, gate) {
            (1 | 5, true) => {
                self.loaded = true;
                self.start = tick;
            }
            (1 | 5, false) => {}
            // A rising gate reloads modes 2 and 3 and resumes modes 0 and 4.
            (2 | 3, true) => {
                self.start = tick;
                self.stopped_at = None;
            }
            (_, true) => {
                if let Some(n) = self.stopped_at.take() {
                    self.start = tick.saturating_sub(n);
                }
            }
            (_, false) => self.stopped_at = Some(self.elapsed(tick)),
        }
        self.gate = gate;
    }

    /// Tick of the next rising edge of OUT after `tick`.
    fn next_edge(&self, tick: u64) -> Option<u64> {
        if !self.loaded || self.stopped_at.is_some() {
            return None;
        }
        let (n, m) = (self.elapsed(tick), self.modulus());
        if self.periodic() {
            return Some(self.start.saturating_add((n / m + 1).saturating_mul(m)));
        }
        // Modes 4 and 5 strobe low for one clock at terminal count; OUT rises after it.
        let rise = m + u64::from(self.mode >= 4);
        (n < rise).then(|| self.start.saturating_add(rise))
    }
}

fn to_bcd(n: u64) -> u16 {
    let n = n % 10_000;
    ((n % 10) | ((n / 10 % 10) << 4) | ((n / 100 % 10) << 8) | ((n / 1000) << 12)) as u16
}

fn from_bcd(v: u16) -> u32 {
    let v = u32::from(v);
    (v & 15) + (v >> 4 & 15) * 10 + (v >> 8 & 15) * 100 + (v >> 12) * 1000
}

/// The 8254.
#[derive(Clone, Debug)]
pub struct Pit {
    counters: [Counter; 3],
}

crate::impl_state!(Pit, "pit", 1, { counters });

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// Counters 0 and 1 have their gates tied high.
    pub const fn new() -> Self {
        Self { counters: [Counter::new(true), Counter::new(true), Counter::new(false)] }
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Reads counter `n` (port 0x40 + `n`); the control port 0x43 cannot be read.
    pub fn read(&mut self, n: u8, now: GuestTime) -> u8 {
        let tick = CLOCK.ticks(now);
        match self.counters.get_mut(usize::from(n)) {
            Some(c) => {
                c.sync(tick);
                c.read(tick)
            }
            None => 0xff,
        }
    }

    /// Writes counter `n`, or the control word (3). True if counter 0's output falls because of it.
    pub fn write(&mut self, n: u8, v: u8, now: GuestTime) -> bool {
        let tick = CLOCK.ticks(now);
        if n == 3 {
            return self.control(v, tick);
        }
        let Some(c) = self.counters.get_mut(usize::from(n)) else { return false };
        c.sync(tick);
        c.write(v, tick);
        self.arm(tick);
        n == 0 && !self.counters[0].out(tick)
    }

    fn control(&mut self, v: u8, tick: u64) -> bool {
        if v >> 6 == 3 {
            for (i, c) in self.counters.iter_mut().enumerate() {
                if v >> (i + 1) & 1 != 0 {
                    c.sync(tick);
                    if v & 0x20 == 0 {
                        c.latch_count(tick);
                    }
                    if v & 0x10 == 0 {
                        c.latch_status(tick);
                    }
                }
            }
            return false;
        }
        let c = &mut self.counters[usize::from(v >> 6)];
        c.sync(tick);
        if v & 0x30 == 0 {
            c.latch_count(tick);
            return false;
        }
        c.control(v);
        v >> 6 == 0 && c.mode == 0
    }

    fn arm(&mut self, tick: u64) {
        let c = &mut self.counters[0];
        c.edge = c.next_edge(tick);
    }

    /// Counter 2's gate (port 0x61 bit 0).
    pub fn set_gate2(&mut self, gate: bool, now: GuestTime) {
        self.counters[2].set_gate(gate, CLOCK.ticks(now));
    }

    /// Counter 2's output (port 0x61 bit 5).
    pub fn out2(&mut self, now: GuestTime) -> bool {
        let tick = CLOCK.ticks(now);
        self.counters[2].sync(tick);
        self.counters[2].out(tick)
    }

    /// When counter 0's output next rises.
    pub fn deadline(&self) -> Option<GuestTime> {
        self.counters[0].edge.map(|t| CLOCK.time_of(t))
    }

    /// True if counter 0's output rose since the last call; several missed periods count as one.
    pub fn expire(&mut self, now: GuestTime) -> bool {
        let tick = CLOCK.ticks(now);
        let c = &mut self.counters[0];
        if c.edge.is_none_or(|e| e > tick) {
            return false;
        }
        c.sync(tick);
        c.edge = c.next_edge(tick).filter(|e| *e > tick);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time `n` ticks after power-on.
    fn at(n: u64) -> GuestTime {
        CLOCK.time_of(n)
    }

    fn load(p: &mut Pit, n: u8, control: u8, count: u16, tick: u64) {
        p.write(3, control, at(tick));
        p.write(n, count as u8, at(tick));
        p.write(n, (count >> 8) as u8, at(tick));
    }

    fn read16(p: &mut Pit, n: u8, tick: u64) -> u16 {
        u16::from_le_bytes([p.read(n, at(tick)), p.read(n, at(tick))])
    }

    fn status(p: &mut Pit, n: u8, tick: u64) -> u8 {
        p.write(3, 0xe0 | 2 << n, at(tick));
        p.read(n, at(tick))
    }

    #[test]
    fn pit_mode0_counts_to_terminal_count_once() {
        let mut p = Pit::new();
        load(&mut p, 0, 0x30, 1000, 10);
        assert_eq!(read16(&mut p, 0, 10), 1000);
        assert_eq!(read16(&mut p, 0, 110), 900);
        assert_eq!(p.deadline(), Some(at(1010)));
        assert!(!p.expire(at(1009)));
        assert_eq!(status(&mut p, 0, 1009) & 0x80, 0);
        assert!(p.expire(at(1010)));
        assert_eq!(status(&mut p, 0, 1010) & 0x80, 0x80);
        assert_eq!(p.deadline(), None);
        assert_eq!(read16(&mut p, 0, 1011), 0xffff, "it goes on counting");
    }

    #[test]
    fn pit_mode2_reloads_every_period() {
        let mut p = Pit::new();
        load(&mut p, 0, 0x34, 100, 0);
        assert_eq!(p.deadline(), Some(at(100)));
        assert!(p.expire(at(100)));
        assert_eq!(p.deadline(), Some(at(200)));
        assert_eq!(read16(&mut p, 0, 199), 1);
        assert_eq!(status(&mut p, 0, 199) & 0x80, 0, "low for the last clock");
        assert_eq!(read16(&mut p, 0, 200), 100);
        assert!(p.expire(at(1050)), "missed periods give one edge");
        assert_eq!(p.deadline(), Some(at(1100)));
    }

    #[test]
    fn pit_mode3_counts_by_two_and_is_square() {
        let mut p = Pit::new();
        load(&mut p, 2, 0xb6, 100, 0);
        p.set_gate2(true, at(0));
        assert_eq!(read16(&mut p, 2, 0), 100);
        assert_eq!(read16(&mut p, 2, 10), 80);
        assert_eq!(read16(&mut p, 2, 60), 80);
        assert!(p.out2(at(49)) && !p.out2(at(50)) && p.out2(at(100)));
        load(&mut p, 2, 0xb6, 5, 1000);
        assert!(
            p.out2(at(1002)) && !p.out2(at(1003)) && p.out2(at(1005)),
            "an odd count is high one clock longer"
        );
    }

    #[test]
    fn pit_mode4_strobes_after_terminal_count() {
        let mut p = Pit::new();
        load(&mut p, 0, 0x38, 50, 0);
        assert_eq!(status(&mut p, 0, 49) & 0x80, 0x80);
        assert_eq!(status(&mut p, 0, 50) & 0x80, 0);
        assert_eq!(p.deadline(), Some(at(51)));
        assert!(p.expire(at(51)));
        assert_eq!(p.deadline(), None);
    }

    #[test]
    fn pit_mode1_waits_for_the_gate() {
        let mut p = Pit::new();
        load(&mut p, 2, 0xb2, 20, 0);
        assert!(p.out2(at(100)));
        p.set_gate2(true, at(100));
        assert!(!p.out2(at(119)) && p.out2(at(120)));
        p.set_gate2(false, at(130));
        p.set_gate2(true, at(200));
        assert!(!p.out2(at(219)), "retriggered");
    }

    #[test]
    fn pit_gate_low_stops_mode0() {
        let mut p = Pit::new();
        p.set_gate2(true, at(0));
        load(&mut p, 2, 0xb0, 1000, 0);
        p.set_gate2(false, at(400));
        assert_eq!(read16(&mut p, 2, 900), 600);
        p.set_gate2(true, at(1000));
        assert_eq!(read16(&mut p, 2, 1100), 500);
        assert!(!p.out2(at(1599)) && p.out2(at(1600)));
    }

    #[test]
    fn pit_latch_holds_until_read() {
        let mut p = Pit::new();
        load(&mut p, 0, 0x34, 5000, 0);
        p.write(3, 0x00, at(100));
        p.write(3, 0x00, at(200));
        assert_eq!(read16(&mut p, 0, 300), 4900, "the second latch is ignored");
        assert_eq!(read16(&mut p, 0, 300), 4700);
    }

    #[test]
    fn pit_read_back_gives_status_then_count() {
        let mut p = Pit::new();
        p.write(3, 0x34, at(0));
        p.write(3, 0xc2, at(0));
        assert_eq!(p.read(0, at(0)) & 0x7f, 0x74, "null count, both bytes, mode 2");
        p.read(0, at(0));
        p.read(0, at(0));
        p.write(0, 100, at(0));
        p.write(0, 0, at(0));
        assert_eq!(status(&mut p, 0, 1), 0xb4);
    }

    #[test]
    fn pit_bcd_counts_in_decimal() {
        let mut p = Pit::new();
        load(&mut p, 0, 0x35, 0x1000, 0);
        assert_eq!(read16(&mut p, 0, 1), 0x0999);
        load(&mut p, 0, 0x35, 0, 0);
        assert_eq!(read16(&mut p, 0, 1), 0x9999);
    }

    #[test]
    fn pit_zero_means_65536() {
        let mut p = Pit::new();
        load(&mut p, 0, 0x34, 0, 0);
        assert_eq!(p.deadline(), Some(at(0x10000)));
    }

    #[test]
    fn pit_new_count_of_mode2_waits_for_the_period() {
        let mut p = Pit::new();
        load(&mut p, 0, 0x34, 100, 0);
        p.write(0, 50, at(130));
        p.write(0, 0, at(130));
        assert_eq!(p.deadline(), Some(at(200)));
        assert!(p.expire(at(200)));
        assert_eq!(p.deadline(), Some(at(250)));
    }

    #[test]
    fn pit_control_port_reads_ones() {
        assert_eq!(Pit::new().read(3, at(5)), 0xff);
    }
}
