//! The 8042 keyboard controller: command set, output port, and the single output buffer the keyboard and the mouse
//! share. Source: IBM PC/AT Technical Reference, "Keyboard Controller"; IBM PS/2 Technical Reference.

use super::ps2::{Keyboard, Mouse};

mod status {
    pub const OUTPUT_FULL: u8 = 0x01;
    pub const SYSTEM: u8 = 0x04;
    pub const COMMAND: u8 = 0x08;
    /// The keyboard is not locked.
    pub const UNLOCKED: u8 = 0x10;
    pub const AUX: u8 = 0x20;
}

mod config {
    pub const KEYBOARD_IRQ: u8 = 0x01;
    pub const AUX_IRQ: u8 = 0x02;
    pub const SYSTEM: u8 = 0x04;
    pub const KEYBOARD_OFF: u8 = 0x10;
    pub const AUX_OFF: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
    /// What firmware leaves: keyboard on with IRQ and translation, mouse off.
    pub const DEFAULT: u8 = KEYBOARD_IRQ | SYSTEM | AUX_OFF | TRANSLATE;
}

/// A line of the output port the guest drove.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Set the A20 gate.
    A20(bool),
    /// Pulse the processors' reset.
    Reset,
}

/// The controller with its two devices.
#[derive(Clone, Debug)]
pub struct I8042 {
    config: u8,
    /// Output buffer: byte, and whether it is the mouse's.
    output: Option<(u8, bool)>,
    /// What the output buffer last held: an empty one still reads so.
    last: u8,
    /// Bytes of the controller itself waiting for the output buffer.
    reply: Option<(u8, bool)>,
    /// Command waiting for its parameter byte at port 0x60; 0: none.
    command: u8,
    /// The last write went to port 0x64.
    last_was_command: bool,
    keyboard: Keyboard,
    mouse: Mouse,
}

crate::impl_state!(I8042, "i8042", 1, {
    config, output, last, reply, command, last_was_command, keyboard, mouse,
});

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    pub const fn new() -> Self {
        Self {
            config: config::DEFAULT,
            output: None,
            last: 0,
            reply: None,
            command: 0,
            last_was_command: false,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
        }
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Scan codes (set 1) arrive from the keyboard's keys.
    pub fn keys(&mut self, bytes: &[u8]) {
        self.keyboard.press(bytes);
    }

    /// Moves the next waiting byte into the output buffer if that is free. Call after sampling the lines, so that
    /// the board sees them fall between two bytes.
    pub fn refill(&mut self) {
        if self.output.is_some() {
            return;
        }
        let translate = self.config & config::TRANSLATE != 0;
        let keyboard_on = self.config & config::KEYBOARD_OFF == 0;
        let aux_on = self.config & config::AUX_OFF == 0;
        self.output = self.reply.take();
        if self.output.is_none() && keyboard_on {
            self.output = self.keyboard.next(translate).map(|b| (b, false));
        }
        if self.output.is_none() && aux_on {
            self.output = self.mouse.next().map(|b| (b, true));
        }
    }

    /// Level of IRQ1.
    pub fn irq1(&self) -> bool {
        matches!(self.output, Some((_, false))) && self.config & config::KEYBOARD_IRQ != 0
    }

    /// Level of IRQ12.
    pub fn irq12(&self) -> bool {
        matches!(self.output, Some((_, true))) && self.config & config::AUX_IRQ != 0
    }

    /// Port 0x64.
    pub fn read_status(&self) -> u8 {
        let full = match self.output {
            Some((_, true)) => status::OUTPUT_FULL | status::AUX,
            Some((_, false)) => status::OUTPUT_FULL,
            None => 0,
        };
        let system = if self.config & config::SYSTEM != 0 { status::SYSTEM } else { 0 };
        let command = if self.last_was_command { status::COMMAND } else { 0 };
        full | system | command | status::UNLOCKED
    }

    /// Port 0x60: empties the output buffer. An empty one gives its last byte again.
    pub fn read_data(&mut self) -> u8 {
        if let Some((b, _)) = self.output.take() {
            self.last = b;
        }
        self.last
    }

    /// Port 0x64: a controller command. `a20` is the gate's state, part of the output port.
    pub fn write_command(&mut self, v: u8, a20: bool) -> Option<Request> {
        self.last_was_command = true;
        self.command = 0;
        match v {
            0x20 => self.answer(self.config),
            0x60 | 0xd1..=0xd4 => self.command = v,
            0xa7 => self.config |= config::AUX_OFF,
            0xa8 => self.config &= !config::AUX_OFF,
            // Interface tests: no error. Self test: passed.
            0xa9 | 0xab => self.answer(0),
            0xaa => {
                self.config |= config::SYSTEM;
                self.answer(0x55);
            }
            0xad => self.config |= config::KEYBOARD_OFF,
            0xae => self.config &= !config::KEYBOARD_OFF,
            // Input port: not inhibited, colour display, no jumper.
            0xc0 => self.answer(0x80),
            0xd0 => self.answer(self.output_port(a20)),
            0xdd => return Some(Request::A20(false)),
            0xdf => return Some(Request::A20(true)),
            // Pulse output-port lines: bit 0 clear pulses reset.
            0xf0..=0xff if v & 1 == 0 => return Some(Request::Reset),
            _ => {}
        }
        None
    }

    fn output_port(&self, a20: bool) -> u8 {
        0xc1 | u8::from(a20) << 1 | u8::from(self.irq1()) << 4 | u8::from(self.irq12()) << 5
    }

    fn answer(&mut self, v: u8) {
        // The answer displaces what waits in the output buffer, as the controller's firmware does.
        self.output = None;
        self.reply = Some((v, false));
    }

    /// Port 0x60: a parameter, or a byte for the keyboard.
    pub fn write_data(&mut self, v: u8) -> Option<Request> {
        self.last_was_command = false;
        match std::mem::take(&mut self.command) {
            0x60 => self.config = v,
            0xd1 if v & 1 == 0 => return Some(Request::Reset),
            0xd1 => return Some(Request::A20(v & 2 != 0)),
            0xd2 => self.reply = Some((v, false)),
            0xd3 => self.reply = Some((v, true)),
            0xd4 => {
                self.config &= !config::AUX_OFF;
                self.mouse.write(v);
            }
            _ => {
                // Writing to the keyboard switches it on.
                self.config &= !config::KEYBOARD_OFF;
                self.keyboard.write(v);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads all bytes there are, with the status each had.
    fn drain(k: &mut I8042) -> Vec<u8> {
        let mut v = Vec::new();
        k.refill();
        while k.read_status() & 1 != 0 {
            v.push(k.read_data());
            k.refill();
        }
        v
    }

    fn command(k: &mut I8042, c: u8) -> Vec<u8> {
        assert_eq!(k.write_command(c, true), None);
        drain(k)
    }

    fn keyboard(k: &mut I8042, c: u8) -> Vec<u8> {
        k.write_data(c);
        drain(k)
    }

    fn mouse(k: &mut I8042, c: u8) -> Vec<u8> {
        k.write_command(0xd4, true);
        k.write_data(c);
        drain(k)
    }

    #[test]
    fn i8042_self_tests_pass() {
        let mut k = I8042::new();
        assert_eq!(command(&mut k, 0xaa), [0x55]);
        assert_eq!(command(&mut k, 0xab), [0x00]);
        assert_eq!(command(&mut k, 0xa9), [0x00]);
    }

    #[test]
    fn i8042_config_byte_reads_back() {
        let mut k = I8042::new();
        k.write_command(0x60, true);
        assert_eq!(k.read_status() & 8, 8);
        k.write_data(0x47);
        assert_eq!(k.read_status() & 8, 0);
        assert_eq!(command(&mut k, 0x20), [0x47]);
        command(&mut k, 0xa7);
        assert_eq!(command(&mut k, 0x20), [0x67]);
    }

    #[test]
    fn i8042_output_port_drives_a20_and_reset() {
        let mut k = I8042::new();
        k.write_command(0xd1, true);
        assert_eq!(k.write_data(0xdd), Some(Request::A20(false)));
        k.write_command(0xd1, true);
        assert_eq!(k.write_data(0xdf), Some(Request::A20(true)));
        k.write_command(0xd1, true);
        assert_eq!(k.write_data(0xde), Some(Request::Reset));
        assert_eq!(k.write_command(0xfe, true), Some(Request::Reset));
        assert_eq!(k.write_command(0xff, true), None);
        assert_eq!(command(&mut k, 0xd0)[0] & 3, 3);
    }

    #[test]
    fn i8042_keys_arrive_one_by_one_with_irq1() {
        let mut k = I8042::new();
        k.keys(&[0x1e, 0x9e]);
        assert!(!k.irq1());
        k.refill();
        assert!(k.irq1() && !k.irq12());
        assert_eq!(k.read_data(), 0x1e);
        assert!(!k.irq1());
        k.refill();
        assert_eq!((k.irq1(), k.read_data()), (true, 0x9e));
        k.refill();
        assert!(!k.irq1());
    }

    #[test]
    fn i8042_disabled_keyboard_keeps_its_byte() {
        let mut k = I8042::new();
        command(&mut k, 0xad);
        k.keys(&[0x1e]);
        assert_eq!(drain(&mut k), []);
        assert_eq!(command(&mut k, 0xae), [0x1e]);
    }

    #[test]
    fn keyboard_answers_its_commands() {
        let mut k = I8042::new();
        assert_eq!(keyboard(&mut k, 0xff), [0xfa, 0xaa]);
        assert_eq!(keyboard(&mut k, 0xf2), [0xfa, 0xab, 0x41], "translated");
        assert_eq!(keyboard(&mut k, 0xed), [0xfa]);
        assert_eq!(keyboard(&mut k, 0x07), [0xfa]);
        assert_eq!(keyboard(&mut k, 0xee), [0xee]);
        assert_eq!(keyboard(&mut k, 0x00), [0xfe]);
        assert_eq!(keyboard(&mut k, 0xf0), [0xfa]);
        assert_eq!(keyboard(&mut k, 0x00), [0xfa, 0x41], "set 2, translated");
    }

    #[test]
    fn keyboard_not_scanning_drops_keys() {
        let mut k = I8042::new();
        assert_eq!(keyboard(&mut k, 0xf5), [0xfa]);
        k.keys(&[0x1e]);
        assert_eq!(drain(&mut k), []);
        assert_eq!(keyboard(&mut k, 0xf4), [0xfa]);
        k.keys(&[0x1e]);
        assert_eq!(drain(&mut k), [0x1e]);
    }

    #[test]
    fn keyboard_untranslated_sends_set_2() {
        let mut k = I8042::new();
        k.write_command(0x60, true);
        k.write_data(0x05);
        k.keys(&[0x1e, 0x9e, 0xe0, 0x48, 0xe0, 0xc8]);
        assert_eq!(drain(&mut k), [0x1c, 0xf0, 0x1c, 0xe0, 0x75, 0xe0, 0xf0, 0x75]);
        assert_eq!(keyboard(&mut k, 0xf2), [0xfa, 0xab, 0x83]);
    }

    #[test]
    fn mouse_answers_on_the_auxiliary_side() {
        let mut k = I8042::new();
        k.write_command(0x60, true);
        k.write_data(0x47);
        k.write_command(0xd4, true);
        k.write_data(0xf2);
        k.refill();
        assert!(k.irq12() && !k.irq1());
        assert_eq!(k.read_status() & 0x21, 0x21);
        assert_eq!(drain(&mut k), [0xfa, 0x00]);
        assert_eq!(mouse(&mut k, 0xff), [0xfa, 0xaa, 0x00]);
        assert_eq!(mouse(&mut k, 0xf3), [0xfa]);
        assert_eq!(mouse(&mut k, 40), [0xfa]);
        assert_eq!(mouse(&mut k, 0xe9), [0xfa, 0, 2, 40]);
    }

    #[test]
    fn i8042_auxiliary_loopback() {
        let mut k = I8042::new();
        k.write_command(0xd3, true);
        k.write_data(0x5a);
        k.refill();
        assert_eq!(k.read_status() & 0x21, 0x21);
        assert_eq!(k.read_data(), 0x5a);
    }

    #[test]
    fn i8042_empty_buffer_reads_its_last_byte() {
        let mut k = I8042::new();
        assert_eq!(k.read_data(), 0);
        assert_eq!(command(&mut k, 0xaa), [0x55]);
        assert_eq!((k.read_status() & 1, k.read_data()), (0, 0x55));
    }
}
