//! A VGA reduced to what text consoles need: the register files read back, the attribute flip-flop, the palette,
//! and 128 KiB of display memory at 0xA0000. Source: IBM VGA/XGA Technical Reference, chapter 2.
//!
//! Memory is plain: planes and write modes are not modelled, so graphics modes show nothing useful.

use crate::state::{Field, Reader, StateError, Writer};

/// First byte and size of the display-memory window.
pub const WINDOW: u64 = 0xa0000;
pub const WINDOW_SIZE: usize = 0x20000;

/// Display memory: a fixed-size block, so that any offset inside the window is valid.
#[derive(Clone)]
struct Display(Box<[u8]>);

impl std::fmt::Debug for Display {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Display")
    }
}

impl Field for Display {
    fn put(&self, w: &mut Writer) {
        w.bytes.extend_from_slice(&self.0);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        Ok(Self(r.take(WINDOW_SIZE)?.into()))
    }
}

/// The adapter's registers and memory.
#[derive(Clone, Debug)]
pub struct Vga {
    misc: u8,
    feature: u8,
    sequencer_index: u8,
    sequencer: [u8; 8],
    graphics_index: u8,
    graphics: [u8; 16],
    attribute_index: u8,
    attribute: [u8; 32],
    /// The next write to 0x3C0 is data.
    attribute_data: bool,
    crtc_index: u8,
    crtc: [u8; 32],
    dac_mask: u8,
    /// Palette index times three plus colour component, for reads and for writes.
    dac_read: u16,
    dac_write: u16,
    dac: [u8; 768],
    /// Retrace bits toggle with each read of input status 1, so that waits for either state end.
    status: u8,
    display: Display,
}

crate::impl_state!(Vga, "vga", 1, {
    misc, feature, sequencer_index, sequencer, graphics_index, graphics, attribute_index, attribute, attribute_data,
    crtc_index, crtc, dac_mask, dac_read, dac_write, dac, status, display,
});

impl Default for Vga {
    fn default() -> Self {
        Self::new()
    }
}

impl Vga {
    /// In text mode 3, as firmware leaves it: 80x25, colour addresses, blank memory.
    pub fn new() -> Self {
        let mut v = Self {
            misc: 0x67,
            feature: 0,
            sequencer_index: 0,
            sequencer: [0x03, 0x00, 0x03, 0x00, 0x02, 0, 0, 0],
            graphics_index: 0,
            graphics: [0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff, 0, 0, 0, 0, 0, 0, 0],
            attribute_index: 0x20,
            attribute: [0; 32],
            attribute_data: false,
            crtc_index: 0,
            crtc: [0; 32],
            dac_mask: 0xff,
            dac_read: 0,
            dac_write: 0,
            dac: [0; 768],
            status: 0,
            display: Display(vec![0; WINDOW_SIZE].into()),
        };
        let crtc = [
            0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e,
            0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
        ];
        v.crtc[..crtc.len()].copy_from_slice(&crtc);
        v
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// The text screen's memory (0xB8000), for viewers.
    pub fn text(&self) -> &[u8] {
        &self.display.0[0x18000..]
    }

    /// Cursor position as a character offset from the start of display memory.
    pub fn cursor(&self) -> u16 {
        u16::from_be_bytes([self.crtc[14], self.crtc[15]])
    }

    /// Start of the displayed page, in characters.
    pub fn start(&self) -> u16 {
        u16::from_be_bytes([self.crtc[12], self.crtc[13]])
    }

    /// Reads display memory at `offset` of the window, little-endian.
    pub fn read_memory(&self, offset: u64, size: u8) -> u64 {
        (0..u64::from(size)).rev().fold(0, |v, i| {
            v << 8 | u64::from(self.display.0[(offset.wrapping_add(i)) as usize & (WINDOW_SIZE - 1)])
        })
    }

    pub fn write_memory(&mut self, offset: u64, size: u8, value: u64) {
        for i in 0..u64::from(size.min(8)) {
            self.display.0[offset.wrapping_add(i) as usize & (WINDOW_SIZE - 1)] = (value >> (8 * i)) as u8;
        }
    }

    /// Whether `port` belongs to the address range misc output bit 0 selects (0x3Dx) or not (0x3Bx).
    fn decodes(&self, port: u16) -> bool {
        match port {
            0x3b0..=0x3bf => self.misc & 1 == 0,
            0x3d0..=0x3df => self.misc & 1 != 0,
            _ => true,
        }
    }

    /// Reads a port of 0x3B0..=0x3DF.
    pub fn read(&mut self, port: u16) -> u8 {
        if !self.decodes(port) {
            return 0xff;
        }
        match port {
            0x3c0 => self.attribute_index,
            0x3c1 => self.attribute[usize::from(self.attribute_index & 0x1f)],
            // Input status 0: the monitor sense bit reads "colour".
            0x3c2 => 0x10,
            0x3c4 => self.sequencer_index,
            0x3c5 => self.sequencer[usize::from(self.sequencer_index & 7)],
            0x3c6 => self.dac_mask,
            0x3c7 => 0x03,
            0x3c8 => (self.dac_write / 3) as u8,
            0x3c9 => {
                let v = self.dac[usize::from(self.dac_read % 768)];
                self.dac_read = (self.dac_read % 768 + 1) % 768;
                v
            }
            0x3ca => self.feature,
            0x3cc => self.misc,
            0x3ce => self.graphics_index,
            0x3cf => self.graphics[usize::from(self.graphics_index & 15)],
            0x3b4 | 0x3d4 => self.crtc_index,
            0x3b5 | 0x3d5 => self.crtc[usize::from(self.crtc_index & 0x1f)],
            0x3ba | 0x3da => {
                self.attribute_data = false;
                self.status ^= 0x09;
                self.status
            }
            _ => 0xff,
        }
    }

    /// Writes a port of 0x3B0..=0x3DF.
    pub fn write(&mut self, port: u16, v: u8) {
        if !self.decodes(port) {
            return;
        }
        match port {
            0x3c0 => {
                if self.attribute_data {
                    self.attribute[usize::from(self.attribute_index & 0x1f)] = v;
                } else {
                    self.attribute_index = v & 0x3f;
                }
                self.attribute_data = !self.attribute_data;
            }
            0x3c2 => self.misc = v,
            0x3c4 => self.sequencer_index = v & 7,
            0x3c5 => self.sequencer[usize::from(self.sequencer_index & 7)] = v,
            0x3c6 => self.dac_mask = v,
            0x3c7 => self.dac_read = u16::from(v) * 3,
            0x3c8 => self.dac_write = u16::from(v) * 3,
            0x3c9 => {
                self.dac[usize::from(self.dac_write % 768)] = v & 0x3f;
                self.dac_write = (self.dac_write % 768 + 1) % 768;
            }
            0x3ce => self.graphics_index = v & 15,
            0x3cf => self.graphics[usize::from(self.graphics_index & 15)] = v,
            0x3b4 | 0x3d4 => self.crtc_index = v & 0x1f,
            0x3b5 | 0x3d5 => self.write_crtc(v),
            0x3ba | 0x3da => self.feature = v,
            _ => {}
        }
    }

    fn write_crtc(&mut self, v: u8) {
        let i = usize::from(self.crtc_index & 0x1f);
        // Vertical-retrace-end bit 7 protects registers 0 to 7, but for the line-compare bit of the overflow register.
        if self.crtc[0x11] & 0x80 != 0 && i < 8 {
            if i == 7 {
                self.crtc[7] = self.crtc[7] & !0x10 | v & 0x10;
            }
            return;
        }
        self.crtc[i] = v;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vga_crtc_registers_read_back() {
        let mut v = Vga::new();
        for (i, x) in [(14, 0x07), (15, 0xd0)] {
            v.write(0x3d4, i);
            v.write(0x3d5, x);
            assert_eq!((v.read(0x3d4), v.read(0x3d5)), (i, x));
        }
        assert_eq!(v.cursor(), 2000);
    }

    #[test]
    fn vga_crtc_protection_keeps_timing() {
        let mut v = Vga::new();
        v.write(0x3d4, 0);
        let before = v.read(0x3d5);
        v.write(0x3d5, 0x11);
        assert_eq!(v.read(0x3d5), before);
        v.write(0x3d4, 0x11);
        v.write(0x3d5, 0x0e);
        v.write(0x3d4, 0);
        v.write(0x3d5, 0x11);
        assert_eq!(v.read(0x3d5), 0x11);
    }

    #[test]
    fn vga_monochrome_ports_answer_only_when_selected() {
        let mut v = Vga::new();
        assert_eq!(v.read(0x3b4), 0xff);
        v.write(0x3c2, 0x66);
        assert_eq!((v.read(0x3d4), v.read(0x3b4)), (0xff, 0));
    }

    #[test]
    fn vga_attribute_flip_flop_is_reset_by_status() {
        let mut v = Vga::new();
        v.write(0x3c0, 0x10);
        v.read(0x3da);
        v.write(0x3c0, 0x11);
        v.write(0x3c0, 0x3f);
        assert_eq!((v.read(0x3c0), v.read(0x3c1)), (0x11, 0x3f));
    }

    #[test]
    fn vga_retrace_bits_move() {
        let mut v = Vga::new();
        let (a, b) = (v.read(0x3da) & 8, v.read(0x3da) & 8);
        assert_ne!(a, b);
    }

    #[test]
    fn vga_palette_advances() {
        let mut v = Vga::new();
        v.write(0x3c8, 1);
        (1..=3).for_each(|c| v.write(0x3c9, c));
        assert_eq!(v.read(0x3c8), 2);
        v.write(0x3c7, 1);
        assert_eq!([(); 3].map(|()| v.read(0x3c9)), [1, 2, 3]);
    }

    #[test]
    fn vga_text_memory_holds_what_is_written() {
        let mut v = Vga::new();
        v.write_memory(0x18000, 4, 0x0742_0741);
        assert_eq!(&v.text()[..4], b"A\x07B\x07");
        assert_eq!(v.read_memory(0x18001, 2), 0x4207);
    }
}
