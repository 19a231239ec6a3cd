//! The 82093AA I/O APIC: 24 redirection entries. Source: Intel 82093AA datasheet (290566).
//!
//! A pin's level is an *assertion*: the polarity bit is stored and read back but does not invert, since every line
//! of the board is described by whether it asks for service.

/// Number of input pins.
pub const PINS: usize = 24;
/// IOAPICVER: version 0x11, maximum redirection entry 23.
const VERSION: u32 = 0x0017_0011;

mod rte {
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASK: u64 = 1 << 16;
    /// Delivery status (always idle) and remote IRR are read-only; bits 17-55 are reserved.
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
}

/// An interrupt message to the local APICs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    pub vector: u8,
    /// Delivery mode: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT.
    pub mode: u8,
    /// Destination mode: logical instead of physical.
    pub logical: bool,
    pub dest: u8,
    /// Level-triggered: an EOI comes back.
    pub level: bool,
}

/// The I/O APIC's registers.
#[derive(Clone, Debug)]
pub struct IoApic {
    /// IOREGSEL.
    select: u8,
    /// Bits 27:24 of IOAPICID.
    id: u8,
    table: [u64; PINS],
    /// Bit n: pin n is asserted.
    lines: u32,
}

crate::impl_state!(IoApic, "ioapic", 1, { select, id, table, lines });

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    pub const fn new() -> Self {
        Self { select: 0, id: 0, table: [rte::MASK; PINS], lines: 0 }
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Changes pin `pin`; the message to send, if that asks for one. Tell [`IoApic::accepted`] if it was taken.
    pub fn set_line(&mut self, pin: u8, level: bool) -> Option<Message> {
        let m = 1u32.checked_shl(u32::from(pin)).filter(|_| usize::from(pin) < PINS)?;
        let rising = level && self.lines & m == 0;
        if level {
            self.lines |= m;
        } else {
            self.lines &= !m;
        }
        let e = *self.table.get(usize::from(pin))?;
        if e & rte::LEVEL != 0 {
            return self.service(pin);
        }
        // An edge on a masked pin is lost (82093AA, 3.2.4, interrupt mask).
        (rising && e & rte::MASK == 0).then(|| Self::message(e))
    }

    /// The message a level-triggered pin has to send now, if any.
    pub fn service(&self, pin: u8) -> Option<Message> {
        let e = *self.table.get(usize::from(pin))?;
        let asserted = self.lines >> pin & 1 != 0;
        let ready = e & (rte::LEVEL | rte::MASK | rte::REMOTE_IRR) == rte::LEVEL;
        (asserted && ready).then(|| Self::message(e))
    }

    /// A local APIC accepted the message of `pin`: sets remote IRR if the pin is level-triggered.
    pub fn accepted(&mut self, pin: u8) {
        if let Some(e) = self.table.get_mut(usize::from(pin)).filter(|e| **e & rte::LEVEL != 0) {
            *e |= rte::REMOTE_IRR;
        }
    }

    /// An EOI message: clears remote IRR of the level-triggered pins with `vector`; returns the mask of pins that
    /// have to be serviced again.
    pub fn eoi(&mut self, vector: u8) -> u32 {
        let mut again = 0;
        for (pin, e) in self.table.iter_mut().enumerate() {
            if *e as u8 == vector && *e & rte::REMOTE_IRR != 0 {
                *e &= !rte::REMOTE_IRR;
                again |= 1 << pin;
            }
        }
        again & self.lines
    }

    fn message(e: u64) -> Message {
        Message {
            vector: e as u8,
            mode: (e >> 8) as u8 & 7,
            logical: e >> 11 & 1 != 0,
            dest: (e >> 56) as u8,
            level: e & rte::LEVEL != 0,
        }
    }

    /// Reads the 32-bit register at byte `offset` of the APIC's page.
    pub fn read(&self, offset: u64) -> u32 {
        match offset & 0xfff {
            0x00 => u32::from(self.select),
            0x10 => self.read_register(),
            _ => 0,
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            n @ 0x10..=0x3f => {
                let e = self.table.get(usize::from(n - 0x10) / 2).copied().unwrap_or(0);
                if n & 1 == 0 { e as u32 } else { (e >> 32) as u32 }
            }
            _ => 0,
        }
    }

    /// Writes the 32-bit register at byte `offset`; a pin to [`IoApic::service`], if its entry changed.
    pub fn write(&mut self, offset: u64, v: u32) -> Option<u8> {
        match offset & 0xfff {
            0x00 => self.select = v as u8,
            0x10 => return self.write_register(v),
            _ => {}
        }
        None
    }

    fn write_register(&mut self, v: u32) -> Option<u8> {
        match self.select {
            0 => {
                self.id = (v >> 24) as u8 & 0xf;
                None
            }
            n @ 0x10..=0x3f => {
                let pin = (n - 0x10) / 2;
                let e = self.table.get_mut(usize::from(pin))?;
                let v = u64::from(v);
                let new = if n & 1 == 0 { *e & !0xffff_ffff | v } else { *e & 0xffff_ffff | v << 32 };
                *e = new & rte::WRITABLE | *e & rte::REMOTE_IRR;
                if *e & rte::LEVEL == 0 {
                    *e &= !rte::REMOTE_IRR;
                }
                Some(pin)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(io: &mut IoApic, pin: u8, v: u64) {
        io.write(0, u32::from(0x10 + 2 * pin));
        io.write(0x10, v as u32);
        io.write(0, u32::from(0x11 + 2 * pin));
        io.write(0x10, (v >> 32) as u32);
    }

    #[test]
    fn ioapic_identifies_24_pins() {
        let mut io = IoApic::new();
        io.write(0, 1);
        assert_eq!(io.read(0x10), 0x0017_0011);
    }

    #[test]
    fn ioapic_edge_sends_once_per_rise() {
        let mut io = IoApic::new();
        entry(&mut io, 4, 0x0300_0000_0000_0831);
        let m = Message { vector: 0x31, mode: 0, logical: true, dest: 3, level: false };
        assert_eq!(io.set_line(4, true), Some(m));
        assert_eq!(io.set_line(4, true), None);
        assert_eq!(io.set_line(4, false), None);
        assert_eq!(io.set_line(4, true), Some(m));
    }

    #[test]
    fn ioapic_edge_on_masked_pin_is_lost() {
        let mut io = IoApic::new();
        entry(&mut io, 4, 0x1_0031);
        assert_eq!(io.set_line(4, true), None);
        entry(&mut io, 4, 0x31);
        assert_eq!(io.service(4), None);
    }

    #[test]
    fn ioapic_level_waits_for_eoi_and_asks_again() {
        let mut io = IoApic::new();
        entry(&mut io, 9, 0x8029);
        assert!(io.set_line(9, true).is_some());
        io.accepted(9);
        io.write(0, 0x10 + 18);
        assert_eq!(io.read(0x10), 0xc029, "remote IRR");
        assert_eq!(io.service(9), None);
        assert_eq!(io.eoi(0x28), 0);
        assert_eq!(io.eoi(0x29), 1 << 9);
        assert!(io.service(9).is_some());
        io.set_line(9, false);
        assert_eq!(io.service(9), None);
    }

    #[test]
    fn ioapic_level_is_sent_when_unmasked() {
        let mut io = IoApic::new();
        entry(&mut io, 9, 0x1_8029);
        assert_eq!(io.set_line(9, true), None);
        io.write(0, 0x10 + 18);
        assert_eq!(io.write(0x10, 0x8029), Some(9));
        assert!(io.service(9).is_some());
    }

    #[test]
    fn ioapic_edge_mode_clears_remote_irr() {
        let mut io = IoApic::new();
        entry(&mut io, 9, 0x8029);
        io.set_line(9, true);
        io.accepted(9);
        entry(&mut io, 9, 0x1_0029);
        entry(&mut io, 9, 0x8029);
        assert!(io.service(9).is_some());
    }

    #[test]
    fn ioapic_read_only_bits_ignore_writes() {
        let mut io = IoApic::new();
        entry(&mut io, 0, u64::MAX);
        io.write(0, 0x10);
        assert_eq!(io.read(0x10), 0x0001_afff);
        io.write(0, 0x11);
        assert_eq!(io.read(0x10), 0xff00_0000);
    }
}
