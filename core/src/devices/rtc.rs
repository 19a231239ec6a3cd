//! The MC146818 real-time clock with the PC's CMOS memory. Source: Motorola MC146818 datasheet; IBM PC/AT
//! Technical Reference for the memory's layout.
//!
//! The clock is a function of guest time: seconds turn at whole seconds after power-on. Flags of register C that
//! cannot interrupt are worked out when somebody looks.

use super::calendar::{Civil, from_bcd, to_bcd};
use super::time::{NS_PER_SEC, earlier};
use crate::addr::GuestTime;

/// Register numbers with a meaning.
mod reg {
    pub const SECONDS: u8 = 0x00;
    pub const SECONDS_ALARM: u8 = 0x01;
    pub const MINUTES: u8 = 0x02;
    pub const MINUTES_ALARM: u8 = 0x03;
    pub const HOURS: u8 = 0x04;
    pub const HOURS_ALARM: u8 = 0x05;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    pub const CENTURY: u8 = 0x32;
}

/// Register B: halt updates, and the data format.
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;
/// Flags of register C, enables of register B.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const IRQF: u8 = 0x80;
/// Update in progress is seen this long before the seconds turn.
const UIP_NS: u64 = 244_000;
const DAY_SECONDS: u64 = 86_400;

/// The clock and its 128 bytes.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: u8,
    /// All bytes; the time registers among them are current only while updates are halted.
    ram: [u8; 128],
    /// Unix time the running clock showed at `base`.
    base_seconds: u64,
    base: GuestTime,
    /// Added to the computed day of the week, modulo 7.
    weekday_shift: u8,
    /// Up to when register C's flags have been worked out.
    seen: GuestTime,
    /// Next moment an enabled interrupt's flag is set.
    next: Option<GuestTime>,
    /// What memory starts as (configuration).
    initial: Initial,
}

/// What the machine description says about the CMOS contents.
#[derive(Clone, Copy, Debug, Default)]
pub struct Initial {
    /// Unix time at power-on.
    pub wall_time: u64,
    /// RAM in bytes below 4 GiB and above.
    pub low_memory: u64,
    pub high_memory: u64,
    pub vcpus: u8,
}

crate::impl_state!(Rtc, "rtc", 1, {
    index, ram, base_seconds, base, weekday_shift, seen, next,
} skip { initial });

impl Rtc {
    pub fn new(initial: Initial) -> Self {
        let mut rtc = Self {
            index: 0,
            ram: [0; 128],
            base_seconds: initial.wall_time,
            base: GuestTime(0),
            weekday_shift: 0,
            seen: GuestTime(0),
            next: None,
            initial,
        };
        rtc.ram[usize::from(reg::A)] = 0x26;
        rtc.ram[usize::from(reg::B)] = B_24H;
        rtc.ram[usize::from(reg::D)] = 0x80;
        rtc.describe_machine();
        rtc
    }

    /// Memory sizes and equipment, as firmware leaves them.
    fn describe_machine(&mut self) {
        let Initial { low_memory, high_memory, vcpus, .. } = self.initial;
        // Equipment: mathematics coprocessor, PS/2 mouse, EGA or VGA.
        self.ram[0x14] = 0x06;
        self.word(0x15, 640);
        let extended_kib = (low_memory.saturating_sub(1 << 20) >> 10).min(0xffff);
        self.word(0x17, extended_kib);
        self.word(0x30, extended_kib);
        self.word(0x34, (low_memory.saturating_sub(16 << 20) >> 16).min(0xffff));
        let high = (high_memory >> 16).min(0xff_ffff);
        self.word(0x5b, high & 0xffff);
        self.ram[0x5d] = (high >> 16) as u8;
        self.ram[0x5f] = vcpus.saturating_sub(1);
    }

    fn word(&mut self, at: usize, v: u64) {
        self.ram[at..at + 2].copy_from_slice(&(v as u16).to_le_bytes());
    }

    /// System reset: interrupts off, flags clear. The battery keeps time and memory.
    pub fn reset(&mut self) {
        self.index = 0;
        self.ram[usize::from(reg::B)] &= !(PERIODIC | ALARM | UPDATE | 0x08);
        self.ram[usize::from(reg::C)] = 0;
        self.next = None;
    }

    /// Level of IRQ8.
    pub fn irq(&self) -> bool {
        self.ram[usize::from(reg::C)] & IRQF != 0
    }

    /// When an enabled interrupt is next due.
    pub fn deadline(&self) -> Option<GuestTime> {
        self.next
    }

    /// Sets the flags due by `now`.
    pub fn expire(&mut self, now: GuestTime) {
        self.sync(now);
        self.schedule(now);
    }

    /// Port 0x70: selects a register (bit 7 is the board's NMI mask).
    pub fn select(&mut self, v: u8) {
        self.index = v & 0x7f;
    }

    /// The shutdown byte and others without a clock function.
    pub fn peek(&self, index: u8) -> u8 {
        self.ram[usize::from(index & 0x7f)]
    }

    /// Whether a read of the selected register depends on the time.
    pub fn reads_time(&self) -> bool {
        matches!(self.index, 0..=reg::C | reg::CENTURY)
    }

    /// Port 0x71.
    pub fn read(&mut self, now: GuestTime) -> u8 {
        let i = self.index & 0x7f;
        match i {
            reg::SECONDS | reg::MINUTES | reg::HOURS | reg::WEEKDAY..=reg::YEAR | reg::CENTURY => {
                if !self.halted() {
                    self.materialise(now);
                }
                self.ram[usize::from(i)]
            }
            reg::A => self.ram[usize::from(i)] & 0x7f | u8::from(self.updating(now)) << 7,
            reg::C => {
                self.sync(now);
                let v = std::mem::take(&mut self.ram[usize::from(i)]);
                self.schedule(now);
                v
            }
            _ => self.ram[usize::from(i)],
        }
    }

    /// Port 0x71.
    pub fn write(&mut self, v: u8, now: GuestTime) {
        let i = self.index & 0x7f;
        let at = usize::from(i);
        match i {
            reg::SECONDS | reg::MINUTES | reg::HOURS | reg::WEEKDAY..=reg::YEAR | reg::CENTURY => {
                self.sync(now);
                if self.halted() {
                    self.ram[at] = v;
                } else {
                    self.materialise(now);
                    self.ram[at] = v;
                    self.adopt(now, self.phase(now));
                }
            }
            reg::A => {
                self.sync(now);
                let was = self.halted();
                self.pause(now);
                self.ram[at] = v & 0x7f;
                // The first update comes half a second after the divider leaves reset.
                self.resume(was, now, NS_PER_SEC / 2);
            }
            reg::B => {
                self.sync(now);
                let was = self.halted();
                self.pause(now);
                // Setting SET clears the update-ended enable.
                self.ram[at] = if v & B_SET != 0 { v & !UPDATE } else { v };
                self.raise();
                self.resume(was, now, 0);
            }
            // Flags and the valid-RAM bit are read-only.
            reg::C | reg::D => {}
            _ => {
                self.sync(now);
                self.ram[at] = v;
            }
        }
        self.schedule(now);
    }

    fn b(&self) -> u8 {
        self.ram[usize::from(reg::B)]
    }

    /// Updates are halted by SET or by holding the divider in reset.
    fn halted(&self) -> bool {
        self.b() & B_SET != 0 || self.ram[usize::from(reg::A)] & 0x60 == 0x60
    }

    /// Before a change that may halt the clock: freezes the time into the registers.
    fn pause(&mut self, now: GuestTime) {
        if !self.halted() {
            self.materialise(now);
        }
    }

    fn resume(&mut self, was_halted: bool, now: GuestTime, phase: u64) {
        if was_halted && !self.halted() {
            self.adopt(now, phase);
            self.seen = now;
        }
    }

    /// Nanoseconds into the current second.
    fn phase(&self, now: GuestTime) -> u64 {
        now.0.saturating_sub(self.base.0) % NS_PER_SEC
    }

    fn seconds(&self, now: GuestTime) -> u64 {
        self.base_seconds.saturating_add(now.0.saturating_sub(self.base.0) / NS_PER_SEC)
    }

    fn updating(&self, now: GuestTime) -> bool {
        !self.halted() && self.phase(now) >= NS_PER_SEC - UIP_NS
    }

    fn encode(&self, v: u64) -> u8 {
        if self.b() & B_BINARY != 0 { v as u8 } else { to_bcd(v as u8) }
    }
    fn decode(&self, v: u8) -> u64 {
        u64::from(if self.b() & B_BINARY != 0 { v } else { from_bcd(v) })
    }

    fn encode_hour(&self, hour: u64) -> u8 {
        if self.b() & B_24H != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { 0x80 } else { 0 };
        pm | self.encode(if hour.is_multiple_of(12) { 12 } else { hour % 12 })
    }

    fn decode_hour(&self, v: u8) -> u64 {
        if self.b() & B_24H != 0 {
            return self.decode(v);
        }
        self.decode(v & 0x7f) % 12 + if v & 0x80 != 0 { 12 } else { 0 }
    }

    /// Writes the time at `now` into the registers.
    fn materialise(&mut self, now: GuestTime) {
        let c = Civil::from_unix(self.seconds(now));
        let weekday = (c.weekday + u64::from(self.weekday_shift)) % 7 + 1;
        let set = [
            (reg::SECONDS, self.encode(c.second)),
            (reg::MINUTES, self.encode(c.minute)),
            (reg::HOURS, self.encode_hour(c.hour)),
            (reg::WEEKDAY, self.encode(weekday)),
            (reg::DAY, self.encode(c.day)),
            (reg::MONTH, self.encode(c.month)),
            (reg::YEAR, self.encode(c.year % 100)),
            (reg::CENTURY, self.encode(c.year / 100)),
        ];
        for (r, v) in set {
            self.ram[usize::from(r)] = v;
        }
    }

    /// Lets the clock run from what the registers say, `phase` nanoseconds into the second.
    fn adopt(&mut self, now: GuestTime, phase: u64) {
        let get = |r: u8| self.decode(self.ram[usize::from(r)]);
        let c = Civil {
            year: get(reg::CENTURY) * 100 + get(reg::YEAR),
            month: get(reg::MONTH),
            day: get(reg::DAY),
            hour: self.decode_hour(self.ram[usize::from(reg::HOURS)]),
            minute: get(reg::MINUTES),
            second: get(reg::SECONDS),
            weekday: 0,
        };
        let unix = c.to_unix();
        let shown = get(reg::WEEKDAY).saturating_sub(1) % 7;
        self.weekday_shift = ((shown + 7 - Civil::from_unix(unix).weekday) % 7) as u8;
        // `base` may lie up to a second before power-on: then start from the second boundary that follows.
        let ahead = phase % NS_PER_SEC;
        if now.0 >= ahead {
            self.base = GuestTime(now.0 - ahead);
            self.base_seconds = unix;
        } else {
            self.base = GuestTime(now.0.saturating_add(NS_PER_SEC - ahead));
            self.base_seconds = unix.saturating_add(1);
        }
    }

    /// Period of the periodic flag in nanoseconds, as a fraction of 2^-15 s; `None` when off.
    fn periodic_shift(&self) -> Option<u32> {
        match self.ram[usize::from(reg::A)] & 0x0f {
            0 => None,
            // Rates 1 and 2 give 256 and 128 Hz with the 32.768 kHz time base.
            n @ 1..=2 => Some(u32::from(n) + 6),
            n => Some(u32::from(n) - 1),
        }
    }

    /// Number of periodic edges since power-on.
    fn periods(t: GuestTime, shift: u32) -> u64 {
        let ticks = u128::from(t.0) * 32_768 / u128::from(NS_PER_SEC);
        (ticks >> shift) as u64
    }

    fn period_start(n: u64, shift: u32) -> GuestTime {
        let t = ((u128::from(n) << shift) * u128::from(NS_PER_SEC)).div_ceil(32_768);
        GuestTime(u64::try_from(t).unwrap_or(u64::MAX))
    }

    /// Seconds updates in `(seen, now]`: the first and last Unix time that began.
    fn updates(&self, now: GuestTime) -> Option<(u64, u64)> {
        let (a, b) = (self.seconds(self.seen), self.seconds(now));
        (!self.halted() && b > a).then(|| (a.saturating_add(1), b))
    }

    /// The first Unix second from `from` to `to` at which the alarm matches.
    fn alarm_between(&self, from: u64, to: u64) -> Option<u64> {
        let field = |r: u8| {
            let v = self.ram[usize::from(r)];
            // The two top bits set: any value matches.
            (v & 0xc0 != 0xc0).then_some(v)
        };
        let (s, m, h) = (field(reg::SECONDS_ALARM), field(reg::MINUTES_ALARM), field(reg::HOURS_ALARM));
        let s = s.map(|v| self.decode(v));
        let m = m.map(|v| self.decode(v));
        let h = h.map(|v| self.decode_hour(v));
        let matches = |t: u64| {
            let d = t % DAY_SECONDS;
            s.is_none_or(|s| s == d % 60)
                && m.is_none_or(|m| m == d / 60 % 60)
                && h.is_none_or(|h| h == d / 3600)
        };
        (from..=to.min(from.saturating_add(DAY_SECONDS - 1))).find(|t| matches(*t))
    }

    /// Works out the flags set by `now`.
    fn sync(&mut self, now: GuestTime) {
        if now <= self.seen {
            return;
        }
        let mut flags = 0;
        if let Some((first, last)) = self.updates(now) {
            flags |= UPDATE;
            if self.alarm_between(first, last).is_some() {
                flags |= ALARM;
            }
        }
        if let Some(shift) = self.periodic_shift() {
            flags |= if Self::periods(now, shift) > Self::periods(self.seen, shift) { PERIODIC } else { 0 };
        }
        self.seen = now;
        self.ram[usize::from(reg::C)] |= flags;
        self.raise();
    }

    /// IRQF follows the enabled flags.
    fn raise(&mut self) {
        let on = self.ram[usize::from(reg::C)] & self.b() & (PERIODIC | ALARM | UPDATE) != 0;
        let c = &mut self.ram[usize::from(reg::C)];
        *c = *c & !IRQF | if on { IRQF } else { 0 };
    }

    /// Finds when the next enabled flag is set. Nothing is due while the line is already asserted.
    fn schedule(&mut self, now: GuestTime) {
        self.next = None;
        if self.irq() {
            return;
        }
        let b = self.b();
        if let Some(shift) = self.periodic_shift().filter(|_| b & PERIODIC != 0) {
            self.next = Some(Self::period_start(Self::periods(now, shift).saturating_add(1), shift));
        }
        if self.halted() || b & (UPDATE | ALARM) == 0 {
            return;
        }
        let next_second = self.seconds(now).saturating_add(1);
        let target =
            if b & UPDATE != 0 { Some(next_second) } else { self.alarm_between(next_second, u64::MAX) };
        if let Some(t) = target {
            let ns = t.saturating_sub(self.base_seconds).saturating_mul(NS_PER_SEC);
            self.next = earlier(self.next, Some(GuestTime(self.base.0.saturating_add(ns))));
        }
        // A moment that cannot be represented never comes.
        self.next = self.next.filter(|t| *t > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW_YEAR_2024: u64 = 1_704_067_200;

    fn rtc() -> Rtc {
        Rtc::new(Initial { wall_time: NEW_YEAR_2024, low_memory: 256 << 20, high_memory: 1 << 30, vcpus: 2 })
    }

    fn get(r: &mut Rtc, i: u8, now: u64) -> u8 {
        r.select(i);
        r.read(GuestTime(now))
    }

    fn set(r: &mut Rtc, i: u8, v: u8, now: u64) {
        r.select(i);
        r.write(v, GuestTime(now));
    }

    fn time(r: &mut Rtc, now: u64) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|i| get(r, i, now))
    }

    #[test]
    fn rtc_shows_wall_time_in_bcd() {
        let mut r = rtc();
        let t = 45_296 * NS_PER_SEC; // 12:34:56
        assert_eq!(time(&mut r, t), [0x20, 0x24, 0x01, 0x01, 0x02, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn rtc_binary_and_12_hour_formats() {
        let mut r = rtc();
        set(&mut r, reg::B, B_24H | B_BINARY, 0);
        let t = (13 * 3600 + 45 * 60) * NS_PER_SEC;
        assert_eq!((get(&mut r, 4, t), get(&mut r, 2, t)), (13, 45));
        set(&mut r, reg::B, 0, 0);
        assert_eq!(get(&mut r, 4, t), 0x81, "1 pm");
        assert_eq!(get(&mut r, 4, 0), 0x12, "midnight is 12 am");
    }

    #[test]
    fn rtc_update_in_progress_before_the_second() {
        let mut r = rtc();
        assert_eq!(get(&mut r, reg::A, NS_PER_SEC - 244_001) & 0x80, 0);
        assert_eq!(get(&mut r, reg::A, NS_PER_SEC - 244_000) & 0x80, 0x80);
        assert_eq!(get(&mut r, reg::A, NS_PER_SEC) & 0x80, 0);
    }

    #[test]
    fn rtc_set_halts_and_adopts_the_time_written() {
        let mut r = rtc();
        set(&mut r, reg::B, B_SET | B_24H, 500);
        for (i, v) in
            [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (6, 0x06), (4, 0x23), (2, 0x59), (0, 0x58)]
        {
            set(&mut r, i, v, 600);
        }
        assert_eq!(get(&mut r, 0, 10 * NS_PER_SEC), 0x58, "halted");
        set(&mut r, reg::B, B_24H, 10 * NS_PER_SEC);
        assert_eq!(get(&mut r, 0, 11 * NS_PER_SEC), 0x59);
        assert_eq!(time(&mut r, 12 * NS_PER_SEC), [0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x00]);
    }

    #[test]
    fn rtc_running_clock_can_be_written() {
        let mut r = rtc();
        set(&mut r, 4, 0x07, 5 * NS_PER_SEC);
        assert_eq!((get(&mut r, 4, 6 * NS_PER_SEC), get(&mut r, 0, 6 * NS_PER_SEC)), (0x07, 0x06));
    }

    #[test]
    fn rtc_periodic_interrupt_at_1024_hz() {
        let mut r = rtc();
        set(&mut r, reg::B, B_24H | PERIODIC, 10);
        let period = 976_563; // 1/1024 s, rounded up
        assert_eq!(r.deadline(), Some(GuestTime(period)));
        r.expire(GuestTime(period - 1));
        assert!(!r.irq());
        r.expire(GuestTime(period));
        assert!(r.irq());
        assert_eq!(r.deadline(), None, "asserted until register C is read");
        assert_eq!(get(&mut r, reg::C, period + 5), 0xc0);
        assert!(!r.irq());
        assert_eq!(r.deadline(), Some(GuestTime(1_953_125)));
    }

    #[test]
    fn rtc_update_interrupt_each_second() {
        let mut r = rtc();
        set(&mut r, reg::B, B_24H | UPDATE, NS_PER_SEC / 2);
        get(&mut r, reg::C, NS_PER_SEC / 2);
        assert_eq!(r.deadline(), Some(GuestTime(NS_PER_SEC)));
        r.expire(GuestTime(NS_PER_SEC));
        assert_eq!(get(&mut r, reg::C, NS_PER_SEC) & 0x90, 0x90);
    }

    #[test]
    fn rtc_alarm_matches_once_a_day_and_with_wildcards() {
        let mut r = rtc();
        for (i, v) in [(5, 0x00), (3, 0x01), (1, 0x30)] {
            set(&mut r, i, v, 0);
        }
        set(&mut r, reg::B, B_24H | ALARM, 0);
        assert_eq!(r.deadline(), Some(GuestTime(90 * NS_PER_SEC)));
        r.expire(GuestTime(90 * NS_PER_SEC));
        assert_eq!(get(&mut r, reg::C, 90 * NS_PER_SEC) & 0xa0, 0xa0);
        assert_eq!(r.deadline(), Some(GuestTime((86_400 + 90) * NS_PER_SEC)));
        set(&mut r, 5, 0xff, 91 * NS_PER_SEC);
        assert_eq!(r.deadline(), Some(GuestTime((3600 + 90) * NS_PER_SEC)));
    }

    #[test]
    fn rtc_flags_without_enable_do_not_interrupt() {
        let mut r = rtc();
        assert_eq!(r.deadline(), None);
        assert_eq!(get(&mut r, reg::C, 2 * NS_PER_SEC) & 0xf0, PERIODIC | UPDATE);
        assert_eq!(get(&mut r, reg::C, 2 * NS_PER_SEC), 0, "reading clears");
    }

    #[test]
    fn cmos_describes_memory() {
        let mut r = rtc();
        let mut word = |i: u8| u16::from_le_bytes([get(&mut r, i, 0), get(&mut r, i + 1, 0)]);
        assert_eq!(word(0x15), 640);
        assert_eq!(word(0x17), 0xffff);
        assert_eq!(word(0x34), (240 << 20 >> 16) as u16);
        assert_eq!(word(0x5b), 0x4000);
        assert_eq!(get(&mut r, reg::D, 0), 0x80);
    }

    #[test]
    fn cmos_shutdown_byte_survives_reset() {
        let mut r = rtc();
        set(&mut r, 0x0f, 0x0a, 0);
        r.reset();
        assert_eq!(get(&mut r, 0x0f, 0), 0x0a);
    }
}
