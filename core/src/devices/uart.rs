//! The 16550A UART. Source: National Semiconductor PC16550D datasheet.
//!
//! A transmitted byte leaves at once, so the transmitter is always empty. Received bytes wait outside, in a queue
//! without bound, and enter the receiver FIFO only while the guest listens: when receive interrupts are enabled, or
//! when it has read the line status several times in a row without writing any register. So input given before the
//! guest is ready (a pipe) is not lost, there is no overrun, and nothing depends on a baud rate.

use std::collections::VecDeque;

/// Line-status reads in a row, with no write in between, that show a polling receiver. Drivers that send, probe or
/// initialise write something every few reads.
const POLLS_TO_LISTEN: u8 = 16;
const FIFO_SIZE: usize = 16;

mod ier {
    pub const RECEIVED: u8 = 1;
    pub const THR_EMPTY: u8 = 2;
    pub const LINE_STATUS: u8 = 4;
    pub const MODEM_STATUS: u8 = 8;
}

mod lsr {
    pub const DATA_READY: u8 = 0x01;
    pub const OVERRUN: u8 = 0x02;
    pub const ERRORS: u8 = 0x1e;
    /// Transmitter holding register and transmitter empty.
    pub const TX_EMPTY: u8 = 0x60;
}

mod mcr {
    pub const DTR: u8 = 0x01;
    pub const RTS: u8 = 0x02;
    pub const OUT1: u8 = 0x04;
    pub const OUT2: u8 = 0x08;
    pub const LOOP: u8 = 0x10;
}

/// Line control: divisor latch access.
const DLAB: u8 = 0x80;
/// A connected peer: CTS, DSR and DCD.
const PEER_READY: u8 = 0xb0;

/// The UART's registers.
#[derive(Clone, Debug)]
pub struct Uart {
    ier: u8,
    /// FIFO control: enable and trigger bits.
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Error bits of the line status; the rest is computed.
    errors: u8,
    /// Delta bits of the modem status.
    deltas: u8,
    scratch: u8,
    divisor: u16,
    fifo: VecDeque<u8>,
    /// Bytes the outside has sent and the receiver has not taken yet.
    incoming: VecDeque<u8>,
    thr_empty_pending: bool,
    polls: u8,
}

crate::impl_state!(Uart, "uart", 1, {
    ier, fcr, lcr, mcr, errors, deltas, scratch, divisor, fifo, incoming, thr_empty_pending, polls,
});

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl Uart {
    pub const fn new() -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            errors: 0,
            deltas: 0,
            scratch: 0,
            divisor: 12,
            fifo: VecDeque::new(),
            incoming: VecDeque::new(),
            thr_empty_pending: false,
            polls: 0,
        }
    }

    /// Reset; bytes the outside has sent stay on the line.
    pub fn reset(&mut self) {
        let incoming = std::mem::take(&mut self.incoming);
        *self = Self { incoming, ..Self::new() };
    }

    /// Bytes arrive from outside.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.incoming.extend(bytes);
        self.feed();
    }

    fn fifos_on(&self) -> bool {
        self.fcr & 1 != 0
    }
    fn looped(&self) -> bool {
        self.mcr & mcr::LOOP != 0
    }

    /// Moves waiting bytes into the receiver if the guest listens and there is room.
    fn feed(&mut self) {
        let listening = self.ier & ier::RECEIVED != 0 || self.polls >= POLLS_TO_LISTEN;
        let room = if self.fifos_on() { FIFO_SIZE } else { 1 };
        while listening && !self.looped() && self.fifo.len() < room {
            let Some(b) = self.incoming.pop_front() else { break };
            self.fifo.push_back(b);
        }
    }

    /// Receiver FIFO trigger level in bytes.
    fn trigger(&self) -> usize {
        if !self.fifos_on() {
            return 1;
        }
        [1, 4, 8, 14][usize::from(self.fcr >> 6)]
    }

    /// Interrupt identification, highest priority first (table 4 of the datasheet), without the FIFO bits. Below
    /// the trigger level the character timeout is reported at once, since no further byte is on its way.
    fn cause(&self) -> u8 {
        match () {
            _ if self.ier & ier::LINE_STATUS != 0 && self.errors & lsr::ERRORS != 0 => 0x06,
            _ if self.ier & ier::RECEIVED != 0 && self.fifo.len() >= self.trigger() => 0x04,
            _ if self.ier & ier::RECEIVED != 0 && !self.fifo.is_empty() => 0x0c,
            _ if self.ier & ier::THR_EMPTY != 0 && self.thr_empty_pending => 0x02,
            _ if self.ier & ier::MODEM_STATUS != 0 && self.deltas != 0 => 0x00,
            _ => 0x01,
        }
    }

    /// Level of the interrupt output. It is not gated by OUT2, as guests exist that never set it.
    pub fn irq(&self) -> bool {
        self.cause() != 0x01
    }

    /// The modem status lines: the peer's, or the own outputs in loopback.
    fn modem_lines(&self) -> u8 {
        if !self.looped() {
            return PEER_READY;
        }
        let bit = |m: u8, to: u8| if self.mcr & m != 0 { to } else { 0 };
        bit(mcr::RTS, 0x10) | bit(mcr::DTR, 0x20) | bit(mcr::OUT1, 0x40) | bit(mcr::OUT2, 0x80)
    }

    /// Reads register `r` (0..=7).
    pub fn read(&mut self, r: u8) -> u8 {
        match (r & 7, self.lcr & DLAB != 0) {
            (0, true) => self.divisor as u8,
            (1, true) => (self.divisor >> 8) as u8,
            (0, _) => {
                let b = self.fifo.pop_front().unwrap_or(0);
                self.feed();
                b
            }
            (1, _) => self.ier,
            (2, _) => {
                let cause = self.cause();
                if cause == 0x02 {
                    self.thr_empty_pending = false;
                }
                cause | if self.fifos_on() { 0xc0 } else { 0 }
            }
            (3, _) => self.lcr,
            (4, _) => self.mcr,
            (5, _) => self.read_line_status(),
            (6, _) => {
                let v = self.modem_lines() | self.deltas;
                self.deltas = 0;
                v
            }
            _ => self.scratch,
        }
    }

    fn read_line_status(&mut self) -> u8 {
        self.polls = self.polls.saturating_add(1);
        self.feed();
        let ready = if self.fifo.is_empty() { 0 } else { lsr::DATA_READY };
        let v = lsr::TX_EMPTY | ready | self.errors;
        self.errors = 0;
        v
    }

    /// Writes register `r` (0..=7); the byte transmitted, if any.
    pub fn write(&mut self, r: u8, v: u8) -> Option<u8> {
        self.polls = 0;
        match (r & 7, self.lcr & DLAB != 0) {
            (0, true) => self.divisor = self.divisor & 0xff00 | u16::from(v),
            (1, true) => self.divisor = self.divisor & 0x00ff | u16::from(v) << 8,
            (0, _) => return self.transmit(v),
            (1, _) => {
                // Enabling the THR-empty interrupt while the register is empty raises it.
                if v & !self.ier & ier::THR_EMPTY != 0 {
                    self.thr_empty_pending = true;
                }
                self.ier = v & 0x0f;
                self.feed();
            }
            (2, _) => self.write_fifo_control(v),
            (3, _) => self.lcr = v,
            (4, _) => {
                let before = self.modem_lines();
                self.mcr = v & 0x1f;
                let now = self.modem_lines();
                let changed = before ^ now;
                // Ring indicator: only its trailing edge counts.
                let trailing_ri = before & !now & 0x40;
                self.deltas |= (changed & 0xb0 | trailing_ri) >> 4;
                self.feed();
            }
            // Line and modem status are read-only.
            (5 | 6, _) => {}
            _ => self.scratch = v,
        }
        None
    }

    fn transmit(&mut self, v: u8) -> Option<u8> {
        self.thr_empty_pending = true;
        if !self.looped() {
            return Some(v);
        }
        let room = if self.fifos_on() { FIFO_SIZE } else { 1 };
        if self.fifo.len() < room {
            self.fifo.push_back(v);
        } else {
            self.errors |= lsr::OVERRUN;
        }
        None
    }

    fn write_fifo_control(&mut self, v: u8) {
        // Switching the FIFOs on or off clears them.
        if (v ^ self.fcr) & 1 != 0 || v & 2 != 0 {
            self.fifo.clear();
        }
        if v & 4 != 0 {
            self.thr_empty_pending = true;
        }
        self.fcr = if v & 1 != 0 { v & 0xc9 } else { 0 };
        self.feed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THR: u8 = 0;
    const IER: u8 = 1;
    const IIR: u8 = 2;
    const LCR: u8 = 3;
    const MCR: u8 = 4;
    const LSR: u8 = 5;
    const MSR: u8 = 6;

    fn with_fifos() -> Uart {
        let mut u = Uart::new();
        u.write(IIR, 0xc7);
        u
    }

    #[test]
    fn uart_transmits_at_once() {
        let mut u = Uart::new();
        assert_eq!(u.write(THR, b'x'), Some(b'x'));
        assert_eq!(u.read(LSR), 0x60);
    }

    #[test]
    fn uart_divisor_latch_hides_data_and_enable() {
        let mut u = Uart::new();
        u.write(LCR, 0x83);
        assert_eq!(u.write(THR, 0x01), None);
        u.write(IER, 0x02);
        assert_eq!((u.read(THR), u.read(IER)), (0x01, 0x02));
        u.write(LCR, 0x03);
        assert_eq!(u.read(IER), 0);
    }

    #[test]
    fn uart_invalid_enable_bits_read_zero() {
        let mut u = Uart::new();
        u.write(IER, 0xff);
        assert_eq!(u.read(IER), 0x0f);
    }

    #[test]
    fn uart_thr_empty_interrupt_sequence() {
        let mut u = with_fifos();
        u.read(IIR);
        assert!(!u.irq());
        u.write(IER, 0x02);
        assert!(u.irq(), "enabling it raises it");
        assert_eq!(u.read(IIR), 0xc2);
        assert!(!u.irq(), "reading the identification clears it");
        assert_eq!(u.read(IIR), 0xc1);
        u.write(THR, b'a');
        assert!(u.irq(), "the byte has left already");
    }

    #[test]
    fn uart_receive_interrupt_and_timeout() {
        let mut u = with_fifos();
        u.write(IER, 0x01);
        u.receive(b"ab");
        assert_eq!(u.read(IIR), 0xcc, "below the trigger of 14: character timeout");
        u.receive(&[b'.'; 20]);
        assert_eq!(u.read(IIR), 0xc4);
        let got: Vec<u8> = (0..22).map(|_| u.read(THR)).collect();
        assert_eq!(&got[..3], b"ab.");
        assert!(!u.irq());
        assert_eq!(u.read(LSR) & 1, 0);
    }

    #[test]
    fn uart_receive_goes_before_thr_empty() {
        let mut u = with_fifos();
        u.write(IER, 0x03);
        u.receive(b"a");
        assert_eq!(u.read(IIR), 0xcc);
        u.read(THR);
        assert_eq!(u.read(IIR), 0xc2);
    }

    #[test]
    fn uart_input_waits_until_the_guest_listens() {
        let mut u = with_fifos();
        u.receive(b"early");
        assert_eq!(u.read(LSR) & 1, 0);
        u.write(IIR, 0x07);
        u.write(IER, 0x01);
        assert_eq!((u.read(LSR) & 1, u.read(THR)), (1, b'e'));
    }

    #[test]
    fn uart_polling_receiver_is_fed() {
        let mut u = Uart::new();
        u.receive(b"k");
        for _ in 1..POLLS_TO_LISTEN {
            assert_eq!(u.read(LSR) & 1, 0);
        }
        assert_eq!(u.read(LSR) & 1, 1);
        assert_eq!(u.read(THR), b'k');
    }

    #[test]
    fn uart_console_output_does_not_look_like_polling() {
        let mut u = Uart::new();
        u.receive(b"k");
        for _ in 0..100 {
            assert_eq!(u.read(LSR) & 1, 0);
            u.write(THR, b'.');
        }
    }

    #[test]
    fn uart_driver_initialisation_takes_no_input() {
        let mut u = with_fifos();
        u.receive(b"typed early");
        // A driver clears the FIFOs and reads every register once, several times over, before it enables interrupts.
        for _ in 0..20 {
            u.write(IIR, 0x07);
            assert_eq!((u.read(LSR) & 1, u.read(THR)), (0, 0));
            u.read(IIR);
            u.read(MSR);
        }
        u.write(IER, 0x05);
        assert_eq!(u.read(THR), b't');
    }

    #[test]
    fn uart_loopback_returns_data_and_modem_lines() {
        let mut u = Uart::new();
        u.write(MCR, 0x1a);
        assert_eq!(u.read(MSR) & 0xf0, 0x90, "RTS shows as CTS, OUT2 as DCD");
        assert_eq!(u.write(THR, 0x5a), None);
        assert_eq!((u.read(LSR) & 1, u.read(THR)), (1, 0x5a));
    }

    #[test]
    fn uart_loopback_overrun_is_reported_once() {
        let mut u = Uart::new();
        u.write(MCR, 0x10);
        u.write(IER, 0x04);
        u.write(THR, 1);
        u.write(THR, 2);
        assert_eq!(u.read(IIR), 0x06);
        assert_eq!(u.read(LSR) & 2, 2);
        assert_eq!(u.read(LSR) & 2, 0);
    }

    #[test]
    fn uart_modem_status_deltas_clear_on_read() {
        let mut u = Uart::new();
        assert_eq!(u.read(MSR), 0xb0);
        u.write(IER, 0x08);
        u.write(MCR, 0x10);
        assert_eq!(u.read(IIR), 0x00);
        assert_eq!(u.read(MSR), 0x0b);
        assert_eq!(u.read(MSR), 0x00);
        assert!(!u.irq());
    }

    #[test]
    fn uart_identification_shows_fifos() {
        let mut u = Uart::new();
        assert_eq!(u.read(IIR), 0x01);
        u.write(IIR, 0x01);
        assert_eq!(u.read(IIR), 0xc1);
    }

    #[test]
    fn uart_scratch_reads_back() {
        let mut u = Uart::new();
        u.write(7, 0xa5);
        assert_eq!(u.read(7), 0xa5);
    }
}
