//! The 8259A programmable interrupt controllers, master and slave, with the PC's edge/level control registers.
//! Source: Intel 8259A datasheet (231468); ELCR: PIIX3 datasheet, section 2.5.
//!
//! Owns the two chips and the cascade between them; which line reaches which input is the board's business.

/// One 8259A.
#[derive(Clone, Debug)]
struct Chip {
    /// Interrupt request register.
    irr: u8,
    /// Interrupt mask register (OCW1).
    imr: u8,
    /// In-service register.
    isr: u8,
    /// Levels of the input pins.
    lines: u8,
    /// Edge/level control: bit set = level-triggered.
    elcr: u8,
    /// ICW2: vector of IR0.
    base: u8,
    /// The input with the lowest priority; 7 after ICW1.
    lowest: u8,
    /// The initialisation word expected next at A0=1 (2, 3 or 4); 0: OCW1.
    icw: u8,
    icw3: u8,
    needs_icw4: bool,
    single: bool,
    /// Reads at A0=0 give ISR instead of IRR (OCW3).
    read_isr: bool,
    /// The next read is a poll (OCW3).
    poll: bool,
    special_mask: bool,
    special_fully_nested: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
}

crate::impl_field!(Chip {
    irr,
    imr,
    isr,
    lines,
    elcr,
    base,
    lowest,
    icw,
    icw3,
    needs_icw4,
    single,
    read_isr,
    poll,
    special_mask,
    special_fully_nested,
    auto_eoi,
    rotate_on_auto_eoi,
});

impl Chip {
    /// Before ICW1 a chip's behaviour is undefined: it is fully masked here, as firmware leaves it.
    const fn new() -> Self {
        Self {
            irr: 0,
            imr: 0xff,
            isr: 0,
            lines: 0,
            elcr: 0,
            base: 0,
            lowest: 7,
            icw: 0,
            icw3: 0,
            needs_icw4: false,
            single: false,
            read_isr: false,
            poll: false,
            special_mask: false,
            special_fully_nested: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
        }
    }

    /// Distance from the highest priority: 0 is served first.
    fn rank(&self, n: u8) -> u8 {
        n.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// The highest-priority input among `bits`.
    fn highest(&self, bits: u8) -> Option<u8> {
        if bits == 0 {
            return None;
        }
        let first = self.lowest.wrapping_add(1) & 7;
        let n = bits.rotate_right(u32::from(first)).trailing_zeros() as u8;
        Some(n.wrapping_add(first) & 7)
    }

    /// The input INT is asserted for, if any.
    fn request(&self) -> Option<u8> {
        let n = self.highest(self.irr & !self.imr)?;
        let mut serving = self.isr;
        if self.special_mask {
            serving &= !self.imr;
        }
        if self.special_fully_nested {
            // A slave with an interrupt in service may still ask for one of higher priority.
            serving &= !(1 << n);
        }
        match self.highest(serving) {
            Some(s) if self.rank(s) <= self.rank(n) => None,
            _ => Some(n),
        }
    }

    /// INTA for input `n`.
    fn acknowledge(&mut self, n: u8) {
        let m = 1 << (n & 7);
        if self.elcr & m == 0 {
            self.irr &= !m;
        }
        if !self.auto_eoi {
            self.isr |= m;
        } else if self.rotate_on_auto_eoi {
            self.lowest = n & 7;
        }
    }

    fn set_line(&mut self, n: u8, level: bool) {
        let m = 1 << (n & 7);
        if !level {
            self.lines &= !m;
            self.irr &= !m;
        } else {
            if self.elcr & m != 0 || self.lines & m == 0 {
                self.irr |= m;
            }
            self.lines |= m;
        }
    }

    fn write_command(&mut self, v: u8) {
        if v & 0x10 != 0 {
            self.initialise(v);
        } else if v & 0x08 != 0 {
            if v & 0x40 != 0 {
                self.special_mask = v & 0x20 != 0;
            }
            self.poll = v & 0x04 != 0;
            if v & 0x02 != 0 {
                self.read_isr = v & 0x01 != 0;
            }
        } else {
            self.operation(v);
        }
    }

    /// ICW1.
    fn initialise(&mut self, v: u8) {
        let Self { lines, elcr, base, .. } = *self;
        // Edge detection starts afresh: an input already high must fall and rise again.
        *self = Self { lines, elcr, base, irr: lines & elcr, imr: 0, ..Self::new() };
        self.icw = 2;
        self.single = v & 0x02 != 0;
        self.needs_icw4 = v & 0x01 != 0;
    }

    /// OCW2: end of interrupt and rotation.
    fn operation(&mut self, v: u8) {
        let level = v & 7;
        match v >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            op @ (1 | 5) => {
                let visible = if self.special_mask { self.isr & !self.imr } else { self.isr };
                if let Some(n) = self.highest(visible) {
                    self.isr &= !(1 << n);
                    if op == 5 {
                        self.lowest = n;
                    }
                }
            }
            3 => self.isr &= !(1 << level),
            7 => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            6 => self.lowest = level,
            _ => {}
        }
    }

    fn write_data(&mut self, v: u8) {
        let after = if self.needs_icw4 { 4 } else { 0 };
        match self.icw {
            2 => {
                self.base = v & 0xf8;
                self.icw = if self.single { after } else { 3 };
            }
            3 => {
                self.icw3 = v;
                self.icw = after;
            }
            4 => {
                self.special_fully_nested = v & 0x10 != 0;
                self.auto_eoi = v & 0x02 != 0;
                self.icw = 0;
            }
            _ => self.imr = v,
        }
    }

    fn read(&mut self, a0: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.request() {
                Some(n) => {
                    self.acknowledge(n);
                    0x80 | n
                }
                None => 0,
            };
        }
        match (a0, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }
}

/// The PC's two 8259As: the slave's INT drives the master's IR2.
#[derive(Clone, Debug)]
pub struct PicPair {
    master: Chip,
    slave: Chip,
}

crate::impl_state!(PicPair, "i8259", 1, { master, slave });

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl PicPair {
    pub const fn new() -> Self {
        Self { master: Chip::new(), slave: Chip::new() }
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Sets ISA interrupt line `n` (0..=15; 2 is the cascade and not an input).
    pub fn set_line(&mut self, n: u8, level: bool) {
        match n {
            2 => {}
            0..=7 => self.master.set_line(n, level),
            _ => self.slave.set_line(n & 7, level),
        }
        self.cascade();
    }

    /// Drives the master's IR2 from the slave's INT. IR2 follows the slave without edge detection, because the
    /// slave drops and raises INT between two requests faster than any access.
    fn cascade(&mut self) {
        if self.slave.request().is_some() {
            self.master.irr |= 4;
        } else {
            self.master.irr &= !4;
        }
    }

    /// Level of the master's INT output.
    pub fn output(&self) -> bool {
        self.master.request().is_some()
    }

    /// The INTA sequence: returns the vector. Without a request it is a spurious IR7 of the chip that was asked.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.request() {
            None => self.master.base | 7,
            Some(2) => {
                self.master.acknowledge(2);
                match self.slave.request() {
                    None => self.slave.base | 7,
                    Some(n) => {
                        self.slave.acknowledge(n);
                        self.slave.base | n
                    }
                }
            }
            Some(n) => {
                self.master.acknowledge(n);
                self.master.base | n
            }
        };
        self.cascade();
        vector
    }

    /// Reads port 0x20, 0x21, 0xA0, 0xA1, 0x4D0 or 0x4D1.
    pub fn read(&mut self, port: u16) -> u8 {
        let v = match port {
            0x20 | 0x21 => self.master.read(port & 1 != 0),
            0xa0 | 0xa1 => self.slave.read(port & 1 != 0),
            0x4d0 => self.master.elcr,
            0x4d1 => self.slave.elcr,
            _ => 0xff,
        };
        self.cascade();
        v
    }

    /// Writes port 0x20, 0x21, 0xA0, 0xA1, 0x4D0 or 0x4D1.
    pub fn write(&mut self, port: u16, v: u8) {
        match port {
            0x20 => self.master.write_command(v),
            0x21 => self.master.write_data(v),
            0xa0 => self.slave.write_command(v),
            0xa1 => self.slave.write_data(v),
            // IRQ0, 1, 2, 8 and 13 are always edge-triggered.
            0x4d0 => Self::set_elcr(&mut self.master, v & 0xf8),
            0x4d1 => Self::set_elcr(&mut self.slave, v & 0xde),
            _ => {}
        }
        self.cascade();
    }

    fn set_elcr(chip: &mut Chip, v: u8) {
        chip.elcr = v;
        chip.irr |= chip.lines & v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux and firmware program it: vectors 0x20 and 0x28, nothing masked.
    fn initialised(icw4: u8) -> PicPair {
        let mut p = PicPair::new();
        for (port, v) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, icw4)] {
            p.write(port, v);
        }
        for (port, v) in [(0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, icw4)] {
            p.write(port, v);
        }
        p
    }

    fn pulse(p: &mut PicPair, n: u8) {
        p.set_line(n, false);
        p.set_line(n, true);
    }

    #[test]
    fn pic_lower_numbers_have_priority_and_nest() {
        let mut p = initialised(1);
        pulse(&mut p, 4);
        assert_eq!(p.acknowledge(), 0x24);
        pulse(&mut p, 5);
        assert!(!p.output(), "a lower priority waits");
        pulse(&mut p, 1);
        assert_eq!(p.acknowledge(), 0x21, "a higher one nests");
        p.write(0x20, 0x20);
        assert!(!p.output());
        p.write(0x20, 0x20);
        assert_eq!(p.acknowledge(), 0x25);
    }

    #[test]
    fn pic_slave_interrupts_go_through_the_cascade() {
        let mut p = initialised(1);
        pulse(&mut p, 14);
        pulse(&mut p, 3);
        assert_eq!(p.acknowledge(), 0x2e, "the slave has the priority of IR2");
        p.write(0x20, 0x0b);
        assert_eq!(p.read(0x20), 0x04, "the master's IR2 is in service");
        p.write(0xa0, 0x20);
        p.write(0x20, 0x20);
        assert_eq!(p.acknowledge(), 0x23);
    }

    #[test]
    fn pic_request_withdrawn_is_spurious_ir7() {
        let mut p = initialised(1);
        p.set_line(5, true);
        assert!(p.output());
        p.set_line(5, false);
        assert_eq!(p.acknowledge(), 0x27);
        p.write(0x20, 0x0b);
        assert_eq!(p.read(0x20), 0, "a spurious interrupt is not in service");
    }

    #[test]
    fn pic_slave_request_masked_meanwhile_gives_no_interrupt() {
        let mut p = initialised(1);
        p.set_line(9, true);
        p.write(0xa1, 0x02);
        assert!(!p.output());
    }

    #[test]
    fn pic_edge_mode_needs_a_rising_edge() {
        let mut p = initialised(1);
        p.set_line(1, true);
        p.acknowledge();
        p.write(0x20, 0x20);
        assert!(!p.output(), "still high, but no new edge");
        pulse(&mut p, 1);
        assert!(p.output());
    }

    #[test]
    fn pic_level_mode_asks_again_while_high() {
        let mut p = initialised(1);
        p.write(0x4d1, 0x02);
        p.set_line(9, true);
        assert_eq!(p.acknowledge(), 0x29);
        p.write(0xa0, 0x20);
        p.write(0x20, 0x20);
        assert_eq!(p.acknowledge(), 0x29);
        p.set_line(9, false);
        p.write(0xa0, 0x20);
        p.write(0x20, 0x20);
        assert!(!p.output());
    }

    #[test]
    fn pic_elcr_of_system_lines_is_fixed() {
        let mut p = PicPair::new();
        p.write(0x4d0, 0xff);
        p.write(0x4d1, 0xff);
        assert_eq!((p.read(0x4d0), p.read(0x4d1)), (0xf8, 0xde));
    }

    #[test]
    fn pic_auto_eoi_leaves_nothing_in_service() {
        let mut p = initialised(3);
        pulse(&mut p, 6);
        p.acknowledge();
        p.write(0x20, 0x0b);
        assert_eq!(p.read(0x20), 0);
    }

    #[test]
    fn pic_rotating_eoi_makes_the_served_input_lowest() {
        let mut p = initialised(1);
        pulse(&mut p, 4);
        p.acknowledge();
        p.write(0x20, 0xa0);
        pulse(&mut p, 4);
        pulse(&mut p, 6);
        assert_eq!(p.acknowledge(), 0x26);
    }

    #[test]
    fn pic_special_mask_mode_lets_lower_priorities_through() {
        let mut p = initialised(1);
        pulse(&mut p, 1);
        p.acknowledge();
        pulse(&mut p, 5);
        assert!(!p.output());
        p.write(0x21, 0x02);
        p.write(0x20, 0x68);
        assert_eq!(p.acknowledge(), 0x25);
    }

    #[test]
    fn pic_poll_acknowledges() {
        let mut p = initialised(1);
        pulse(&mut p, 3);
        p.write(0x20, 0x0c);
        assert_eq!(p.read(0x20), 0x83);
        p.write(0x20, 0x0c);
        assert_eq!(p.read(0x20), 0);
    }

    #[test]
    fn pic_mask_reads_back() {
        let mut p = initialised(1);
        p.write(0x21, 0xfb);
        p.write(0xa1, 0x5a);
        assert_eq!((p.read(0x21), p.read(0xa1)), (0xfb, 0x5a));
    }
}
