//! Tests every device must pass, as one macro: reset is idempotent, state survives a round trip, damaged state is
//! refused or harmless, no register access panics, and loading changes no line.
//!
//! A device is described by four closures: `fresh` builds it, `reset` resets it, `poke` makes one random register
//! access (or input, or expiry), and `lines` samples its outputs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::addr::GuestTime;
use crate::state::{Reader, State, Writer};

/// A small deterministic generator (xorshift64*).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    /// A byte, often one of the values that mean something.
    pub fn byte(&mut self) -> u8 {
        match self.below(4) {
            0 => [0, 1, 2, 0x10, 0x80, 0xff, 0x30, 0xb0][self.below(8) as usize],
            _ => self.next() as u8,
        }
    }
    /// Later than `t`, by anything from nothing to minutes.
    pub fn later(&mut self, t: GuestTime) -> GuestTime {
        let span = 1u64 << self.below(36);
        t + self.below(span)
    }
}

pub fn bytes<T: State>(d: &T) -> Vec<u8> {
    let mut w = Writer::default();
    d.save(&mut w);
    w.bytes
}

/// Pokes `n` times with time moving on; returns the time reached.
pub fn exercise<T>(d: &mut T, poke: &dyn Fn(&mut T, &mut Rng, GuestTime), seed: u64, n: u32) -> GuestTime {
    let mut rng = Rng::new(seed);
    let mut now = GuestTime(0);
    for _ in 0..n {
        now = rng.later(now);
        poke(d, &mut rng, now);
    }
    now
}

/// Round trip: save, load into a fresh device, save again; and the lines are the same.
pub fn round_trip<T: State>(
    fresh: &dyn Fn() -> T,
    poke: &dyn Fn(&mut T, &mut Rng, GuestTime),
    lines: &dyn Fn(&T) -> u64,
) {
    for seed in 1..20 {
        let mut d = fresh();
        exercise(&mut d, poke, seed * 0x9e37_79b9, 500);
        let saved = bytes(&d);
        let mut e = fresh();
        e.load(&mut Reader::new(&saved)).expect("own state loads");
        assert_eq!(bytes(&e), saved, "seed {seed}: state changed in a round trip");
        assert_eq!(lines(&e), lines(&d), "seed {seed}: loading changed a line");
        // Both go on alike.
        let mut rng = (Rng::new(seed), Rng::new(seed));
        let mut now = GuestTime(1 << 45);
        for _ in 0..200 {
            now = rng.0.later(now);
            let _ = rng.1.later(GuestTime(0));
            poke(&mut d, &mut rng.0, now);
            poke(&mut e, &mut rng.1, now);
        }
        assert_eq!(bytes(&e), bytes(&d), "seed {seed}: restored device behaves differently");
    }
}

/// Truncated state errs; flipped bits err or give a device that still does not panic.
pub fn damaged_state<T: State>(fresh: &dyn Fn() -> T, poke: &dyn Fn(&mut T, &mut Rng, GuestTime)) {
    let mut d = fresh();
    exercise(&mut d, poke, 77, 300);
    let saved = bytes(&d);
    let header = T::NAME.len() + 7;
    let step = (saved.len() / 200).max(1);
    for cut in (0..header).chain((header..saved.len()).step_by(step)) {
        assert!(fresh().load(&mut Reader::new(&saved[..cut])).is_err(), "cut at {cut} was accepted");
    }
    let mut rng = Rng::new(99);
    for round in 0..400 {
        let mut bad = saved.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bad.len() as u64) as usize;
            bad[at] = rng.next() as u8;
        }
        let mut e = fresh();
        if e.load(&mut Reader::new(&bad)).is_ok() {
            exercise(&mut e, poke, round, 60);
        }
    }
}

/// Another version's state is refused by name.
pub fn other_version<T: State>(fresh: &dyn Fn() -> T) {
    let mut saved = bytes(&fresh());
    let at = 1 + T::NAME.len();
    saved[at] = saved[at].wrapping_add(1);
    let e = fresh().load(&mut Reader::new(&saved));
    assert!(matches!(e, Err(crate::state::StateError::Version { .. })), "{e:?}");
}

macro_rules! device_conformance {
    ($module:ident, $ty:ty, fresh: $fresh:expr, reset: $reset:expr, poke: $poke:expr, lines: $lines:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;
            use crate::devices::conformance as suite;

            fn fresh() -> $ty {
                ($fresh)()
            }
            fn poke(d: &mut $ty, rng: &mut suite::Rng, now: crate::addr::GuestTime) {
                let f: fn(&mut $ty, &mut suite::Rng, crate::addr::GuestTime) = $poke;
                f(d, rng, now)
            }
            fn lines(d: &$ty) -> u64 {
                let f: fn(&$ty) -> u64 = $lines;
                f(d)
            }

            #[test]
            fn reset_is_idempotent() {
                let reset: fn(&mut $ty) = $reset;
                let mut d = fresh();
                suite::exercise(&mut d, &poke, 5, 1000);
                reset(&mut d);
                let once = suite::bytes(&d);
                reset(&mut d);
                assert_eq!(suite::bytes(&d), once);
            }
            #[test]
            fn random_accesses_never_panic() {
                for seed in 1..10 {
                    suite::exercise(&mut fresh(), &poke, seed, 4000);
                }
            }
            #[test]
            fn state_round_trips_and_raises_no_edge() {
                suite::round_trip(&fresh, &poke, &lines);
            }
            #[test]
            fn damaged_state_is_refused_or_harmless() {
                suite::damaged_state(&fresh, &poke);
            }
            #[test]
            fn other_version_is_refused() {
                suite::other_version(&fresh);
            }
        }
    };
}

// Instances: one line of behaviour per device.
#[cfg(test)]
mod devices {
    use crate::devices::rtc::Initial;
    use crate::devices::*;

    device_conformance!(pic, i8259::PicPair, fresh: i8259::PicPair::new, reset: |d| d.reset(),
        poke: |d, r, _| {
            let ports = [0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1];
            let port = ports[r.below(6) as usize];
            match r.below(4) {
                0 => { d.read(port); }
                1 => d.set_line(r.below(16) as u8, r.below(2) == 0),
                2 => { d.acknowledge(); }
                _ => d.write(port, r.byte()),
            }
        },
        lines: |d| u64::from(d.output()));

    device_conformance!(ioapic_device, ioapic::IoApic, fresh: ioapic::IoApic::new, reset: |d| d.reset(),
        poke: |d, r, _| match r.below(5) {
            0 => { d.read(r.below(8) << 3); }
            1 => {
                if d.set_line(r.below(40) as u8, r.below(2) == 0).is_some_and(|m| m.level) {
                    d.accepted(r.below(30) as u8);
                }
            }
            2 => { d.eoi(r.byte()); }
            3 => { d.write(0, r.below(0x48) as u32); }
            _ => { d.write(0x10, r.next() as u32); }
        },
        lines: |d| (0..24).filter(|p| d.service(*p).is_some()).fold(0, |m, p| m | 1 << p));

    device_conformance!(lapic_device, lapic::Lapic, fresh: || lapic::Lapic::new(0), reset: |d| d.reset(),
        poke: |d, r, now| match r.below(10) {
            0 => { d.mmio_read(r.byte(), now); }
            1 => { d.x2apic_read(r.byte(), now); }
            2 => { d.x2apic_write(r.below(0x40) as u8, r.next() & 0xfff, now); }
            3 => d.set_base(0xfee0_0000 | r.below(4) << 10),
            4 => { d.accept(r.byte(), r.below(2) == 0); }
            5 => { d.acknowledge(); }
            6 => d.expire(now),
            7 => d.set_tsc_deadline(r.next(), now + r.below(1 << 20)),
            8 => { d.mmio_write(lapic::reg::SVR, 0x1ff, now); }
            _ => { d.mmio_write(r.below(0x40) as u8, r.next() as u32, now); }
        },
        lines: |d| u64::from(d.pending().unwrap_or(0)) | u64::from(d.accepts_extint()) << 8);

    device_conformance!(pit_device, pit::Pit, fresh: pit::Pit::new, reset: |d| d.reset(),
        poke: |d, r, now| match r.below(6) {
            0 => { d.read(r.below(4) as u8, now); }
            1 => d.set_gate2(r.below(2) == 0, now),
            2 => { d.expire(now); }
            3 => { d.write(3, r.byte(), now); }
            4 => { d.out2(now); }
            _ => { d.write(r.below(4) as u8, r.byte(), now); }
        },
        lines: |d| d.deadline().map_or(0, |t| t.0));

    device_conformance!(rtc_device, rtc::Rtc,
        fresh: || rtc::Rtc::new(Initial { wall_time: 1_704_067_200, low_memory: 256 << 20, high_memory: 0, vcpus: 1 }),
        reset: |d| d.reset(),
        poke: |d, r, now| match r.below(6) {
            0 => { d.read(now); }
            1 => d.expire(now),
            2 => d.select(10 + r.below(4) as u8),
            3 => d.select(r.byte()),
            _ => d.write(r.byte(), now),
        },
        lines: |d| u64::from(d.irq()) | d.deadline().map_or(0, |t| t.0) << 1);

    device_conformance!(uart_device, uart::Uart, fresh: uart::Uart::new, reset: |d| d.reset(),
        poke: |d, r, _| match r.below(8) {
            0..=2 => { d.read(r.byte()); }
            3 => d.receive(&[r.byte(), r.byte()]),
            _ => { d.write(r.byte(), r.byte()); }
        },
        lines: |d| u64::from(d.irq()));

    device_conformance!(i8042_device, i8042::I8042, fresh: i8042::I8042::new, reset: |d| d.reset(),
        poke: |d, r, _| match r.below(8) {
            0 => { d.read_status(); }
            1 => { d.read_data(); }
            2 => d.keys(&[r.byte(), r.byte()]),
            3 => { let v = 0xa0 | r.byte(); d.write_command(v, true); }
            4 => { d.write_command(r.byte(), false); }
            5 => { let v = 0xe0 | r.byte(); d.write_data(v); }
            6 => d.refill(),
            _ => { d.write_data(r.byte()); }
        },
        lines: |d| u64::from(d.irq1()) | u64::from(d.irq12()) << 1);

    device_conformance!(pci_device, pci::Pci, fresh: pci::Pci::new, reset: |d| d.reset(),
        poke: |d, r, _| match r.below(4) {
            0 => d.write_address(0x8000_0000 | r.below(0x1000) as u32),
            1 => d.write_address(r.next() as u32),
            2 => { d.read_data(r.byte()); }
            _ => d.write_data(r.byte(), r.byte()),
        },
        lines: |d| u64::from(d.pm_base().unwrap_or(0)));

    device_conformance!(acpi_pm_device, acpi_pm::AcpiPm, fresh: acpi_pm::AcpiPm::new, reset: |d| d.reset(),
        poke: |d, r, now| match r.below(6) {
            0 => { d.read(r.byte().into(), now); }
            1 => d.expire(now),
            2 => d.press_power_button(),
            3 => d.write_apm(0, 0xf0 | r.byte()),
            _ => { d.write(r.below(0x40) as u16, r.byte(), now); }
        },
        lines: |d| u64::from(d.sci()) | d.deadline().map_or(0, |t| t.0) << 1);

    device_conformance!(fw_cfg_device, fw_cfg::FwCfg, fresh: || fw_cfg::FwCfg::new(5 << 30, 3 << 30, 2),
        reset: |d| d.reset(),
        poke: |d, r, _| match r.below(3) {
            0 => d.select(r.below(0x30) as u16),
            1 => d.select(r.next() as u16),
            _ => { d.read(); }
        },
        lines: |_| 0);

    device_conformance!(vga_device, vga::Vga, fresh: vga::Vga::new, reset: |d| d.reset(),
        poke: |d, r, _| match r.below(4) {
            0 => { d.read(0x3b0 + r.below(0x30) as u16); }
            1 => { d.read_memory(r.next(), 1 << r.below(4)); }
            2 => d.write_memory(r.next(), 1 << r.below(4), r.next()),
            _ => d.write(0x3b0 + r.below(0x30) as u16, r.byte()),
        },
        lines: |d| u64::from(d.cursor()));

    device_conformance!(dma_device, dma8237::Dma, fresh: dma8237::Dma::new, reset: |d| d.reset(),
        poke: |d, r, _| {
            let port = [r.below(16), 0x80 + r.below(16), 0xc0 + r.below(32)][r.below(3) as usize] as u16;
            if r.below(2) == 0 { d.read(port); } else { d.write(port, r.byte()) }
        },
        lines: |d| u64::from(d.post_code()));

    device_conformance!(sysctl_device, sysctl::SysCtl, fresh: sysctl::SysCtl::new, reset: |d| d.reset(),
        poke: |d, r, now| match r.below(4) {
            0 => { d.write61(r.byte()); }
            1 => { d.write92(r.byte()); }
            2 => { d.write_reset_control(r.byte()); }
            _ => { d.read61(r.below(2) == 0, now); }
        },
        lines: |d| u64::from(d.a20));

    device_conformance!(testdev_device, testdev::TestDev, fresh: testdev::TestDev::new, reset: |d| d.reset(),
        poke: |d, r, _| match r.below(4) {
            0 => { d.read_latch(r.next() as u16, 1 << r.below(3)); }
            1 => { d.read_buffer(r.next(), 1 << r.below(4)); }
            2 => d.write_buffer(r.next(), 1 << r.below(4), r.next()),
            _ => d.write_latch(r.next() as u16, 1 << r.below(3), r.next() as u32),
        },
        lines: |_| 0);
}
