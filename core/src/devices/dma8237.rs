//! The two 8237A DMA controllers and the page registers as register files: no device of the board uses DMA
//! channels, but firmware and kernels program them and read them back. Source: Intel 8237A datasheet (231466).

/// One controller.
#[derive(Clone, Debug, Default)]
struct Controller {
    /// Base and current address and count of channels 0..=3, interleaved.
    base: [u16; 8],
    current: [u16; 8],
    /// The byte pointer flip-flop: the next access is to the high byte.
    high: bool,
    command: u8,
    request: u8,
    mode: [u8; 4],
    mask: u8,
}

crate::impl_field!(Controller { base, current, high, command, request, mode, mask });

impl Controller {
    fn new() -> Self {
        Self { mask: 0x0f, ..Self::default() }
    }

    fn read(&mut self, r: u8) -> u8 {
        match r & 15 {
            n @ 0..=7 => {
                let v = self.current[usize::from(n)].to_le_bytes()[usize::from(self.high)];
                self.high = !self.high;
                v
            }
            // Status: no channel has reached terminal count; requests in the upper half.
            8 => self.request << 4,
            15 => 0xf0 | self.mask,
            // Temporary register.
            _ => 0,
        }
    }

    fn write(&mut self, r: u8, v: u8) {
        let bit = 1 << (v & 3);
        match r & 15 {
            n @ 0..=7 => {
                let n = usize::from(n);
                let mut b = self.base[n].to_le_bytes();
                b[usize::from(self.high)] = v;
                self.base[n] = u16::from_le_bytes(b);
                self.current[n] = self.base[n];
                self.high = !self.high;
            }
            8 => self.command = v,
            9 => self.request = if v & 4 != 0 { self.request | bit } else { self.request & !bit },
            10 => self.mask = if v & 4 != 0 { self.mask | bit } else { self.mask & !bit },
            11 => self.mode[usize::from(v & 3)] = v,
            12 => self.high = false,
            13 => *self = Self { base: self.base, current: self.current, mode: self.mode, ..Self::new() },
            14 => self.mask = 0,
            _ => self.mask = v & 15,
        }
    }
}

/// Both controllers and the page registers.
#[derive(Clone, Debug)]
pub struct Dma {
    controllers: [Controller; 2],
    /// Ports 0x80..=0x8F; 0x80 is also where power-on self tests write their progress.
    pages: [u8; 16],
}

crate::impl_state!(Dma, "dma8237", 1, { controllers, pages });

impl Default for Dma {
    fn default() -> Self {
        Self::new()
    }
}

impl Dma {
    pub fn new() -> Self {
        Self { controllers: [Controller::new(), Controller::new()], pages: [0; 16] }
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// The last POST code.
    pub fn post_code(&self) -> u8 {
        self.pages[0]
    }

    /// Reads port 0x00..=0x0F, 0x80..=0x8F or 0xC0..=0xDF.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            0x00..=0x0f => self.controllers[0].read(port as u8),
            0x80..=0x8f => self.pages[usize::from(port & 15)],
            // The second controller's registers are two ports apart.
            0xc0..=0xdf => self.controllers[1].read((port as u8 & 0x1f) >> 1),
            _ => 0xff,
        }
    }

    pub fn write(&mut self, port: u16, v: u8) {
        match port {
            0x00..=0x0f => self.controllers[0].write(port as u8, v),
            0x80..=0x8f => self.pages[usize::from(port & 15)] = v,
            0xc0..=0xdf => self.controllers[1].write((port as u8 & 0x1f) >> 1, v),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dma_count_reads_back_through_the_flip_flop() {
        let mut d = Dma::new();
        d.write(0x0c, 0);
        d.write(0x03, 0x34);
        d.write(0x03, 0x12);
        assert_eq!((d.read(0x03), d.read(0x03)), (0x34, 0x12));
        d.write(0xd8, 0);
        d.write(0xc0, 0xaa);
        d.write(0xd8, 0);
        assert_eq!(d.read(0xc0), 0xaa);
    }

    #[test]
    fn dma_masks_follow_single_and_all_mask_writes() {
        let mut d = Dma::new();
        assert_eq!(d.read(0x0f), 0xff);
        d.write(0x0a, 0x02);
        assert_eq!(d.read(0x0f), 0xfb);
        d.write(0x0e, 0);
        assert_eq!(d.read(0x0f), 0xf0);
        d.write(0x0d, 0);
        assert_eq!(d.read(0x0f), 0xff);
    }

    #[test]
    fn page_registers_hold_post_codes() {
        let mut d = Dma::new();
        d.write(0x80, 0x5a);
        d.write(0x87, 0x11);
        assert_eq!((d.post_code(), d.read(0x80), d.read(0x87)), (0x5a, 0x5a, 0x11));
    }
}
