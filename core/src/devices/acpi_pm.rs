//! ACPI power management as the PIIX4 lays it out: PM1 events and control, the PM timer, GPE0, and the APM port
//! that stands in for SMM's ACPI enable. Source: PIIX4 datasheet (290562), section 6; ACPI 6.4, section 4.8.

use super::time::Frequency;
use crate::addr::GuestTime;

/// The PM timer's clock.
pub const CLOCK: Frequency = Frequency { hz: 3_579_545 };
/// Bytes of I/O space the block takes.
pub const SIZE: u16 = 0x40;
/// Values of the SMI command port that switch ACPI mode on and off (FADT).
pub const ACPI_ENABLE: u8 = 0xf1;
pub const ACPI_DISABLE: u8 = 0xf0;

/// PM1 status and enable bits.
mod pm1 {
    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const RTC: u16 = 1 << 10;
    pub const WAKE: u16 = 1 << 15;
    pub const STATUS: u16 = TIMER | 1 << 4 | GLOBAL | POWER_BUTTON | 1 << 9 | RTC | WAKE;
    pub const ENABLE: u16 = TIMER | GLOBAL | POWER_BUTTON | 1 << 9 | RTC;
}

mod control {
    pub const SCI_EN: u16 = 1;
    pub const SLP_TYP: u16 = 7 << 10;
    pub const SLP_EN: u16 = 1 << 13;
    pub const WRITABLE: u16 = 0x1c07;
}

/// SLP_TYP of S5, as `\_S5` in the DSDT says.
pub const S5: u16 = 0;

/// The power-management registers.
#[derive(Clone, Debug)]
pub struct AcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// APM control and status (ports 0xB2, 0xB3).
    apm: [u8; 2],
    /// Half-periods of the timer (toggles of bit 23) already turned into status.
    toggles: u64,
    /// Next toggle, while its interrupt is enabled.
    next: Option<GuestTime>,
}

crate::impl_state!(AcpiPm, "acpi-pm", 1, {
    status, enable, control, gpe_status, gpe_enable, apm, toggles, next,
});

impl Default for AcpiPm {
    fn default() -> Self {
        Self::new()
    }
}

impl AcpiPm {
    pub const fn new() -> Self {
        Self {
            status: 0,
            enable: 0,
            control: 0,
            gpe_status: 0,
            gpe_enable: 0,
            apm: [0; 2],
            toggles: 0,
            next: None,
        }
    }

    /// Reset.
    pub fn reset(&mut self) {
        let toggles = self.toggles;
        *self = Self { toggles, ..Self::new() };
    }

    /// The free-running 24-bit timer.
    pub fn timer(now: GuestTime) -> u32 {
        CLOCK.ticks(now) as u32 & 0x00ff_ffff
    }

    /// The power button was pressed.
    pub fn press_power_button(&mut self) {
        self.status |= pm1::POWER_BUTTON;
    }

    /// Level of the SCI.
    pub fn sci(&self) -> bool {
        let pm1 = self.status & self.enable & pm1::ENABLE != 0;
        let gpe = self.gpe_status & self.gpe_enable != 0;
        self.control & control::SCI_EN != 0 && (pm1 || gpe)
    }

    /// When the timer's status bit next interrupts.
    pub fn deadline(&self) -> Option<GuestTime> {
        self.next
    }

    /// Sets the timer status if bit 23 toggled by `now`.
    pub fn expire(&mut self, now: GuestTime) {
        let n = CLOCK.ticks(now) >> 23;
        if n > self.toggles {
            self.toggles = n;
            self.status |= pm1::TIMER;
        }
        self.next = (self.enable & !self.status & pm1::TIMER != 0)
            .then(|| CLOCK.time_of(n.saturating_add(1).saturating_mul(1 << 23)));
    }

    /// Whether a read at `offset` depends on the time.
    pub fn reads_time(offset: u16) -> bool {
        matches!(offset, 0 | 1 | 8..=11)
    }

    /// Reads the byte at `offset` from the block's base.
    pub fn read(&mut self, offset: u16, now: GuestTime) -> u8 {
        let byte = |v: u32, at: u16| (v >> (8 * (offset - at))) as u8;
        match offset {
            0 | 1 => {
                self.expire(now);
                byte(u32::from(self.status), 0)
            }
            2 | 3 => byte(u32::from(self.enable), 2),
            4 | 5 => byte(u32::from(self.control), 4),
            8..=11 => byte(Self::timer(now), 8),
            12 | 13 => byte(u32::from(self.gpe_status), 12),
            14 | 15 => byte(u32::from(self.gpe_enable), 14),
            _ => 0,
        }
    }

    /// Writes the byte at `offset`; true if it switches the machine off.
    pub fn write(&mut self, offset: u16, v: u8, now: GuestTime) -> bool {
        let (mask, value) =
            if offset & 1 == 0 { (0x00ff, u16::from(v)) } else { (0xff00, u16::from(v) << 8) };
        match offset {
            // Status bits are cleared by writing ones.
            0 | 1 => {
                self.expire(now);
                self.status &= !(value & pm1::STATUS);
                self.expire(now);
            }
            2 | 3 => {
                self.expire(now);
                self.enable = self.enable & !mask | value & mask & pm1::ENABLE;
                self.expire(now);
            }
            4 | 5 => return self.write_control(mask, value),
            12 | 13 => self.gpe_status &= !value,
            14 | 15 => self.gpe_enable = self.gpe_enable & !mask | value,
            _ => {}
        }
        false
    }

    fn write_control(&mut self, mask: u16, value: u16) -> bool {
        self.control = self.control & !mask | value & mask & control::WRITABLE;
        value & control::SLP_EN != 0 && (self.control & control::SLP_TYP) >> 10 == S5
    }

    /// Reads port 0xB2 (0) or 0xB3 (1).
    pub fn read_apm(&self, n: u16) -> u8 {
        self.apm[usize::from(n & 1)]
    }

    /// Writes port 0xB2 or 0xB3. What firmware's SMI handler would do for the ACPI commands happens here.
    pub fn write_apm(&mut self, n: u16, v: u8) {
        self.apm[usize::from(n & 1)] = v;
        match (n & 1, v) {
            (0, ACPI_ENABLE) => self.control |= control::SCI_EN,
            (0, ACPI_DISABLE) => self.control &= !control::SCI_EN,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read16(p: &mut AcpiPm, o: u16, now: GuestTime) -> u16 {
        u16::from_le_bytes([p.read(o, now), p.read(o + 1, now)])
    }

    fn write16(p: &mut AcpiPm, o: u16, v: u16, now: GuestTime) -> bool {
        let [l, h] = v.to_le_bytes();
        p.write(o, l, now) | p.write(o + 1, h, now)
    }

    #[test]
    fn pm_timer_runs_at_3_579545_mhz_in_24_bits() {
        assert_eq!(AcpiPm::timer(GuestTime(1_000_000_000)), 3_579_545);
        let wrap = CLOCK.time_of(1 << 24);
        assert_eq!((AcpiPm::timer(wrap), AcpiPm::timer(GuestTime(wrap.0 - 1))), (0, 0xff_ffff));
    }

    #[test]
    fn pm_timer_overflow_raises_the_sci() {
        let mut p = AcpiPm::new();
        p.write_apm(0, ACPI_ENABLE);
        write16(&mut p, 2, pm1::TIMER, GuestTime(0));
        let half = CLOCK.time_of(1 << 23);
        assert_eq!(p.deadline(), Some(half));
        p.expire(half);
        assert!(p.sci());
        assert_eq!(p.deadline(), None);
        write16(&mut p, 0, pm1::TIMER, half);
        assert!(!p.sci());
        assert_eq!(p.deadline(), Some(CLOCK.time_of(1 << 24)));
    }

    #[test]
    fn pm_power_button_needs_enable_and_acpi_mode() {
        let mut p = AcpiPm::new();
        let t = GuestTime(5);
        p.press_power_button();
        assert_eq!(read16(&mut p, 0, t), pm1::POWER_BUTTON);
        write16(&mut p, 2, pm1::POWER_BUTTON, t);
        assert!(!p.sci(), "legacy mode");
        p.write_apm(0, ACPI_ENABLE);
        assert!(p.sci());
        assert_eq!(read16(&mut p, 4, t), 1);
        write16(&mut p, 0, pm1::POWER_BUTTON, t);
        assert!(!p.sci());
        p.write_apm(0, ACPI_DISABLE);
        assert_eq!(read16(&mut p, 4, t), 0);
    }

    #[test]
    fn pm_sleep_enable_with_s5_powers_off() {
        let mut p = AcpiPm::new();
        let t = GuestTime(0);
        assert!(!write16(&mut p, 4, S5 << 10, t), "the type alone does nothing");
        assert!(write16(&mut p, 4, S5 << 10 | control::SLP_EN, t));
        assert!(!write16(&mut p, 4, 5 << 10 | control::SLP_EN, t), "another state");
        assert_eq!(read16(&mut p, 4, t) & control::SLP_EN, 0, "write-only");
    }

    #[test]
    fn pm_invalid_offset_reads_zero() {
        assert_eq!(AcpiPm::new().read(0x30, GuestTime(9)), 0);
    }
}
