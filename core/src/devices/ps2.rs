//! PS/2 keyboard and mouse: their command sets and queues. Source: IBM PS/2 Technical Reference, "Keyboards" and
//! "Mouse". Keys come in as set-1 codes, which is what the controller's translation shows; untranslated they are
//! turned into set 2.

use std::collections::VecDeque;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const TEST_PASSED: u8 = 0xaa;

/// Set-2 make codes of set-1 codes 0x00..=0x58 (0: none).
#[rustfmt::skip]
const SET2: [u8; 0x59] = [
    0x00, 0x76, 0x16, 0x1e, 0x26, 0x25, 0x2e, 0x36, 0x3d, 0x3e, 0x46, 0x45, 0x4e, 0x55, 0x66, 0x0d,
    0x15, 0x1d, 0x24, 0x2d, 0x2c, 0x35, 0x3c, 0x43, 0x44, 0x4d, 0x54, 0x5b, 0x5a, 0x14, 0x1c, 0x1b,
    0x23, 0x2b, 0x34, 0x33, 0x3b, 0x42, 0x4b, 0x4c, 0x52, 0x0e, 0x12, 0x5d, 0x1a, 0x22, 0x21, 0x2a,
    0x32, 0x31, 0x3a, 0x41, 0x49, 0x4a, 0x59, 0x7c, 0x11, 0x29, 0x58, 0x05, 0x06, 0x04, 0x0c, 0x03,
    0x0b, 0x83, 0x0a, 0x01, 0x09, 0x77, 0x7e, 0x6c, 0x75, 0x7d, 0x7b, 0x6b, 0x73, 0x74, 0x79, 0x69,
    0x72, 0x7a, 0x70, 0x71, 0x84, 0x00, 0x61, 0x78, 0x07,
];

/// The controller translates answers as if they were keys; these are the ones it changes (identification, scan-set
/// numbers).
fn translated(b: u8) -> u8 {
    match b {
        0x01 => 0x43,
        0x02 | 0x83 => 0x41,
        0x03 => 0x3f,
        b => b,
    }
}

/// The keyboard.
#[derive(Clone, Debug)]
pub struct Keyboard {
    /// Answers to commands; go before keys.
    replies: VecDeque<u8>,
    /// Set-1 codes of keys not yet sent, without bound (the outside is never told to stop).
    keys: VecDeque<u8>,
    /// Second byte of an untranslated break code.
    split: Option<u8>,
    /// Command waiting for its parameter; 0: none.
    command: u8,
    scanning: bool,
    leds: u8,
    scan_set: u8,
    /// The byte last sent, for the resend command.
    last: u8,
}

crate::impl_field!(Keyboard { replies, keys, split, command, scanning, leds, scan_set, last });

impl Keyboard {
    pub const fn new() -> Self {
        Self {
            replies: VecDeque::new(),
            keys: VecDeque::new(),
            split: None,
            command: 0,
            scanning: true,
            leds: 0,
            scan_set: 2,
            last: TEST_PASSED,
        }
    }

    /// Keys are pressed or released; lost while scanning is off.
    pub fn press(&mut self, set1: &[u8]) {
        if self.scanning {
            self.keys.extend(set1);
        }
    }

    /// The next byte to send.
    pub fn next(&mut self, translate: bool) -> Option<u8> {
        if let Some(b) = self.replies.pop_front() {
            let b = if translate { translated(b) } else { b };
            self.last = b;
            return Some(b);
        }
        if let Some(b) = self.split.take() {
            return Some(b);
        }
        let k = self.keys.pop_front()?;
        let b = match k {
            _ if translate || self.scan_set == 1 => k,
            0xe0 | 0xe1 => k,
            _ => {
                let make = SET2.get(usize::from(k & 0x7f)).copied().filter(|c| *c != 0).unwrap_or(k & 0x7f);
                if k & 0x80 != 0 {
                    self.split = Some(make);
                    0xf0
                } else {
                    make
                }
            }
        };
        self.last = b;
        Some(b)
    }

    /// A byte from the controller.
    pub fn write(&mut self, v: u8) {
        self.replies.clear();
        match std::mem::take(&mut self.command) {
            0xed if v < 0x80 => {
                self.leds = v & 7;
                self.replies.push_back(ACK);
            }
            0xf0 if v < 0x80 => self.select_set(v),
            0xf3 if v < 0x80 => self.replies.push_back(ACK),
            _ => self.command(v),
        }
    }

    fn select_set(&mut self, v: u8) {
        self.replies.push_back(ACK);
        match v {
            0 => self.replies.push_back(self.scan_set),
            1..=3 => self.scan_set = v,
            _ => {}
        }
    }

    fn command(&mut self, v: u8) {
        match v {
            0xed | 0xf0 | 0xf3 => {
                self.command = v;
                self.replies.push_back(ACK);
            }
            0xee => self.replies.push_back(0xee),
            0xf2 => self.replies.extend([ACK, 0xab, 0x83]),
            0xf4 => self.set_scanning(true),
            0xf5 => self.set_scanning(false),
            0xf6 => {
                self.set_scanning(true);
                self.scan_set = 2;
            }
            0xfe => self.replies.push_back(self.last),
            0xff => {
                *self = Self::new();
                self.replies.extend([ACK, TEST_PASSED]);
            }
            // Key-type commands of set 3.
            0xf7..=0xfd => self.replies.push_back(ACK),
            _ => self.replies.push_back(RESEND),
        }
    }

    fn set_scanning(&mut self, on: bool) {
        self.scanning = on;
        self.keys.clear();
        self.split = None;
        self.replies.push_back(ACK);
    }
}

impl Default for Keyboard {
    fn default() -> Self {
        Self::new()
    }
}

/// A standard three-byte mouse that nobody moves.
#[derive(Clone, Debug)]
pub struct Mouse {
    replies: VecDeque<u8>,
    /// Command waiting for its parameter; 0: none.
    command: u8,
    rate: u8,
    resolution: u8,
    /// Status byte: remote mode (0x40), reporting on (0x20), scaling 2:1 (0x10).
    status: u8,
    last: u8,
}

crate::impl_field!(Mouse { replies, command, rate, resolution, status, last });

impl Mouse {
    pub const fn new() -> Self {
        Self { replies: VecDeque::new(), command: 0, rate: 100, resolution: 2, status: 0, last: TEST_PASSED }
    }

    /// The next byte to send.
    pub fn next(&mut self) -> Option<u8> {
        let b = self.replies.pop_front()?;
        self.last = b;
        Some(b)
    }

    /// A byte from the controller.
    pub fn write(&mut self, v: u8) {
        self.replies.clear();
        match std::mem::take(&mut self.command) {
            0xe8 => self.resolution = v & 3,
            0xf3 => self.rate = v,
            _ => return self.command(v),
        }
        self.replies.push_back(ACK);
    }

    fn command(&mut self, v: u8) {
        self.replies.push_back(ACK);
        match v {
            0xe6 => self.status &= !0x10,
            0xe7 => self.status |= 0x10,
            0xe8 | 0xf3 => self.command = v,
            0xe9 => self.replies.extend([self.status, self.resolution, self.rate]),
            0xea => self.status &= !0x40,
            // Read data: no movement, no buttons.
            0xeb => self.replies.extend([0x08, 0, 0]),
            0xec | 0xee => {}
            0xf0 => self.status |= 0x40,
            0xf2 => self.replies.push_back(0),
            0xf4 => self.status |= 0x20,
            0xf5 => self.status &= !0x20,
            0xf6 => *self = Self { replies: VecDeque::from([ACK]), ..Self::new() },
            0xfe => {
                self.replies.clear();
                self.replies.push_back(self.last);
            }
            0xff => *self = Self { replies: VecDeque::from([ACK, TEST_PASSED, 0]), ..Self::new() },
            _ => {
                self.replies.clear();
                self.replies.push_back(RESEND);
            }
        }
    }
}

impl Default for Mouse {
    fn default() -> Self {
        Self::new()
    }
}
