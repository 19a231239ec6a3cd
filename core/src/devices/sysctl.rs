//! System control ports: 0x61 (speaker, counter 2's gate, refresh), 0x92 (A20, fast reset), 0xCF9 (reset control)
//! and the NMI mask of port 0x70. Source: PIIX3 datasheet (290550), sections 2.5 and 2.6.

use crate::addr::GuestTime;

/// The memory-refresh request toggles every 15.085 us.
const REFRESH_NS: u64 = 15_085;

/// The ports' state.
#[derive(Clone, Debug)]
pub struct SysCtl {
    /// Bits 3:0 of port 0x61.
    port61: u8,
    /// Port 0x92 but for A20.
    port92: u8,
    reset_control: u8,
    /// The A20 gate: one state, seen by port 0x92 and the keyboard controller's output port.
    pub a20: bool,
    /// Port 0x70 bit 7: NMI is masked.
    pub nmi_masked: bool,
}

crate::impl_state!(SysCtl, "sysctl", 1, { port61, port92, reset_control, a20, nmi_masked });

impl Default for SysCtl {
    fn default() -> Self {
        Self::new()
    }
}

impl SysCtl {
    /// A20 starts open, as firmware and every boot protocol leave it.
    pub const fn new() -> Self {
        Self { port61: 0, port92: 0, reset_control: 0, a20: true, nmi_masked: false }
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Port 0x61; `out2` is counter 2's output.
    pub fn read61(&self, out2: bool, now: GuestTime) -> u8 {
        let refresh = ((now.0 / REFRESH_NS) & 1) as u8;
        self.port61 | refresh << 4 | u8::from(out2) << 5
    }

    /// Port 0x61; returns counter 2's gate.
    pub fn write61(&mut self, v: u8) -> bool {
        self.port61 = v & 0x0f;
        v & 1 != 0
    }

    pub fn read92(&self) -> u8 {
        self.port92 | u8::from(self.a20) << 1
    }

    /// Port 0x92: sets A20; true for a fast reset (bit 0 rising).
    pub fn write92(&mut self, v: u8) -> bool {
        let rising = v & !self.port92 & 1 != 0;
        self.port92 = v & !2;
        self.a20 = v & 2 != 0;
        rising
    }

    pub fn read_reset_control(&self) -> u8 {
        self.reset_control
    }

    /// Port 0xCF9: true for a reset (bit 2 rising).
    pub fn write_reset_control(&mut self, v: u8) -> bool {
        let rising = v & !self.reset_control & 4 != 0;
        self.reset_control = v & 0x0e;
        rising
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port61_refresh_toggles_every_15_us() {
        let s = SysCtl::new();
        assert_eq!(s.read61(false, GuestTime(15_084)) & 0x10, 0);
        assert_eq!(s.read61(false, GuestTime(15_085)) & 0x10, 0x10);
        assert_eq!(s.read61(true, GuestTime(30_170)) & 0x30, 0x20);
    }

    #[test]
    fn port92_resets_on_a_rising_bit_only() {
        let mut s = SysCtl::new();
        assert_eq!(s.read92(), 2);
        assert!(s.write92(1));
        assert!(!s.a20);
        assert!(!s.write92(1));
        assert_eq!(s.read92(), 1);
    }

    #[test]
    fn reset_control_resets_on_bit_2_rising() {
        let mut s = SysCtl::new();
        assert!(!s.write_reset_control(0x02));
        assert!(s.write_reset_control(0x06));
        assert_eq!(s.read_reset_control(), 0x06);
    }
}
