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
    irr, imr, isr, lines, elcr, base, lowest, icw, icw3, needs_icw4, single, read_isr, poll, special_mask,
    special_fully_nested, auto_eoi, rotate_on_auto_eoi,
});

impl Chip {
    const fn new() -> Self {
        Self {
            irr: 0,
            imr: 0,
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
    fn rank(&self, n: u8) -> u8 { n.wrapping_sub(self.lowest).wrapping_sub(1) & 7 }

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
        let Self { lines, elcr, base, imr: _, .. } = *self;
        // Edge detection starts afresh: an input already high must fall and rise again.
        *self = Self { lines, elcr, base, ..Self::new() };
        self.irr = lines & elcr;
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
    fn default() -> Self { Self::new() }
}

impl PicPair {
    pub const fn new() -> Self { Self { master: Chip::new(), slave: Chip::new() } }

    /// Power-on reset.
    pub fn reset(&mut self) { *self = Self::new(); }

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
    pub fn output(&self) -> bool { self.master.request().is_some() }

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
