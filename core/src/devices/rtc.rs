//! The MC146818 real-time clock with the PC's CMOS memory. Source: Motorola MC146818 datasheet; IBM PC/AT
//! Technical Reference for the memory's layout.
//!
//! The clock is a function of guest time: seconds turn at whole seconds after power-on. Flags of register C that
//! cannot interrupt are worked out when somebody looks.

use super::calendar::{Civil, from_bcd, to_bcd};
use super::time::NS_PER_SEC;
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

    fn word(&mut self, at: usize, v: u64) { self.ram[at..at + 2].copy_from_slice(&(v as u16).to_le_bytes()); }

    /// System reset: interrupts off, flags clear. The battery keeps time and memory.
    pub fn reset(&mut self) {
        self.index = 0;
        self.ram[usize::from(reg::B)] &= !(PERIODIC | ALARM | UPDATE | 0x08);
        self.ram[usize::from(reg::C)] = 0;
        self.next = None;
    }

    /// Level of IRQ8.
    pub fn irq(&self) -> bool { self.ram[usize::from(reg::C)] & IRQF != 0 }

    /// When an enabled interrupt is next due.
    pub fn deadline(&self) -> Option<GuestTime> { self.next }

    /// Sets the flags due by `now`.
    pub fn expire(&mut self, now: GuestTime) {
        self.sync(now);
        self.schedule(now);
    }

    /// Port 0x70: selects a register (bit 7 is the board's NMI mask).
    pub fn select(&mut self, v: u8) { self.index = v & 0x7f; }

    /// The shutdown byte and others without a clock function.
    pub fn peek(&self, index: u8) -> u8 { self.ram[usize::from(index & 0x7f)] }

    /// Whether a read of the selected register depends on the time.
    pub fn reads_time(&self) -> bool { matches!(self.index, 0..=reg::C | reg::CENTURY) }

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

    fn b(&self) -> u8 { self.ram[usize::from(reg::B)] }

    /// Updates are halted by SET or by holding the divider in reset.
    fn halted(&self) -> bool { self.b() & B_SET != 0 || self.ram[usize::from(reg::A)] & 0x60 == 0x60 }

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
    fn phase(&self, now: GuestTime) -> u64 { now.0.saturating_sub(self.base.0) % NS_PER_SEC }

    fn seconds(&self, now: GuestTime) -> u64 {
        self.base_seconds.saturating_add(now.0.saturating_sub(self.base.0) / NS_PER_SEC)
    }

    fn updating(&self, now: GuestTime) -> bool { !self.halted() && self.phase(now) >= NS_PER_SEC - UIP_NS }

    fn encode(&self, v: u64) -> u8 { if self.b() & B_BINARY != 0 { v as u8 } else { to_bcd(v as u8) } }
    fn decode(&self, v: u8) -> u64 { u64::from(if self.b() & B_BINARY != 0 { v } else { from_bcd(v) }) }

    fn encode_hour(&self, hour: u64) -> u8 {
        if self.b() & B_24H != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { 0x80 } else { 0 };
        pm | self.encode(if hour % 12 == 0 { 12 } else { hour % 12 })
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
            s.is_none_or(|s| s == d % 60) && m.is_none_or(|m| m == d / 60 % 60) && h.is_none_or(|h| h == d / 3600)
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
            if Self::periods(now, shift) > Self::periods(self.seen, shift) {
                flags |= PERIODIC;
            }
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
        let mut at = |t: GuestTime| {
            if t > now && self.next.is_none_or(|n| t < n) {
                self.next = Some(t);
            }
        };
        let periodic = (b & PERIODIC != 0).then_some(()).and(match self.ram[usize::from(reg::A)] & 0x0f {
            0 => None,
            n @ 1..=2 => Some(u32::from(n) + 6),
            n => Some(u32::from(n) - 1),
        });
        if let Some(shift) = periodic {
            at(Self::period_start(Self::periods(now, shift).saturating_add(1), shift));
        }
        if self.halted() || b & (UPDATE | ALARM) == 0 {
            return;
        }
        let next_second = self.seconds(now).saturating_add(1);
        let target = if b & UPDATE != 0 {
            Some(next_second)
        } else {
            self.alarm_between(next_second, u64::MAX)
        };
        if let Some(t) = target {
            let ns = t.saturating_sub(self.base_seconds).saturating_mul(NS_PER_SEC);
            let t = GuestTime(self.base.0.saturating_add(ns));
            if t > now && self.next.is_none_or(|n| t < n) {
                self.next = Some(t);
            }
        }
    }
}
