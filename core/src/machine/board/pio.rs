//! I/O ports. Devices with wide registers see the access whole; to all others a wide access is its bytes.

use super::irq::source;
use super::{Board, BoardEvent, BusCtx};
use crate::devices::acpi_pm::{self, AcpiPm};
use crate::devices::i8042::Request;
use crate::devices::ioapic::PINS;
use crate::output::OutputPort;

/// What reads of the debug console give, so that guests can tell it is there.
const DEBUG_CONSOLE: u8 = 0xe9;
/// Interrupt lines of the test device.
const TEST_LINES: u16 = 0x2000;
const TEST_LINES_END: u16 = TEST_LINES + PINS as u16;

fn low_bits(size: u8) -> u32 {
    if size >= 4 { u32::MAX } else { (1 << (8 * size)) - 1 }
}

impl Board {
    /// Port read of 1, 2 or 4 bytes by vCPU `cpu`; unclaimed ports read as all ones.
    pub fn pio_read(&mut self, _cpu: u8, port: u16, size: u8, bus: &mut BusCtx<'_>) -> u32 {
        if size == 1 && matches!(port, 0x3f8..=0x3ff) {
            return self.uart_read(port);
        }
        if let Some(v) = self.read_wide(port, size, bus) {
            return v & low_bits(size);
        }
        (0..u16::from(size.min(4)))
            .rev()
            .fold(0, |v, i| v << 8 | u32::from(self.read_byte(port.wrapping_add(i), bus)))
    }

    pub fn pio_write(&mut self, _cpu: u8, port: u16, size: u8, value: u32, bus: &mut BusCtx<'_>) {
        if self.write_wide(port, size, value & low_bits(size), bus) {
            return;
        }
        for (i, b) in (0..u16::from(size.min(4))).zip(value.to_le_bytes()) {
            self.write_byte(port.wrapping_add(i), b, bus);
        }
    }

    /// Offset in the power-management block, if the whole access lies in it.
    fn pm_offset(&self, port: u16, size: u8) -> Option<u16> {
        let o = port.checked_sub(self.pm_base?)?;
        (o < acpi_pm::SIZE && o + u16::from(size) <= acpi_pm::SIZE).then_some(o)
    }

    /// Whether isa-debug-exit decodes `port`.
    fn is_debug_exit(&self, port: u16) -> bool {
        self.debug_exit.is_some_and(|(base, size)| port.checked_sub(base).is_some_and(|o| o < size))
    }

    fn read_wide(&mut self, port: u16, size: u8, bus: &mut BusCtx<'_>) -> Option<u32> {
        if let Some(o) = self.pm_offset(port, size) {
            let now = if AcpiPm::reads_time(o) { bus.now() } else { bus.when.time };
            let v = (0..u16::from(size)).rev().fold(0, |v, i| v << 8 | u32::from(self.pm.read(o + i, now)));
            // Reading the status may find that the timer overflowed.
            if o < 2 {
                self.update_pm();
                self.schedule();
            }
            return Some(v);
        }
        match (port, size) {
            (0xcf8, 4) => Some(self.pci.read_address()),
            (0xe0..=0xe3, _) => self.testdev.as_ref().map(|t| t.read_latch(port & 3, size)),
            _ if self.is_debug_exit(port) => Some(0),
            _ => None,
        }
    }

    /// True if a device took the access whole.
    fn write_wide(&mut self, port: u16, size: u8, v: u32, bus: &mut BusCtx<'_>) -> bool {
        if let Some(o) = self.pm_offset(port, size) {
            self.write_pm(o, size, v, bus);
            return true;
        }
        match (port, size) {
            (0xcf8, 4) => self.pci.write_address(v),
            (0x510, 2..) => self.fw_cfg.select(v as u16),
            (0x514, 4) => self.fw_cfg.write_dma(0, v, bus.mem),
            (0x518, 4) => self.fw_cfg.write_dma(1, v, bus.mem),
            (0xe0..=0xe3, _) => match &mut self.testdev {
                Some(t) => t.write_latch(port & 3, size, v),
                None => return false,
            },
            (TEST_LINES..TEST_LINES_END, _) if self.testdev.is_some() => {
                self.set_irq((port - TEST_LINES) as u8, source::TESTDEV, v != 0);
            }
            _ if self.is_debug_exit(port) => self.events.push(BoardEvent::DebugExit(v)),
            _ => return false,
        }
        true
    }

    fn write_pm(&mut self, offset: u16, size: u8, v: u32, bus: &mut BusCtx<'_>) {
        let now = if offset < 4 { bus.now() } else { bus.when.time };
        for (i, b) in (0..u16::from(size)).zip(v.to_le_bytes()) {
            if self.pm.write(offset + i, b, now) {
                self.events.push(BoardEvent::PowerOff);
            }
        }
        self.update_pm();
        self.schedule();
    }

    fn uart_read(&mut self, port: u16) -> u32 {
        let v = self.uart.read(port as u8 & 7);
        // Line and modem status polls are the hot path; they too can change the line.
        self.update_uart();
        u32::from(v)
    }

    fn read_byte(&mut self, port: u16, bus: &mut BusCtx<'_>) -> u8 {
        match port {
            0x00..=0x0f | 0x80..=0x8f | 0xc0..=0xdf => self.dma.read(port),
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                let v = self.pic.read(port);
                // A poll acknowledges.
                self.refresh_intr();
                v
            }
            0x40..=0x43 => self.pit.read((port & 3) as u8, bus.now()),
            0x60 => {
                let v = self.i8042.read_data();
                self.update_i8042();
                v
            }
            0x61 => {
                let now = bus.now();
                let out2 = self.pit.out2(now);
                self.sysctl.read61(out2, now)
            }
            0x64 => self.i8042.read_status(),
            0x71 => self.read_cmos(bus),
            0x92 => self.sysctl.read92(),
            0xb2 | 0xb3 => self.pm.read_apm(port & 1),
            0xe8..=0xeb if self.testdev.is_some() => {
                self.testdev.as_ref().map_or(0xff, |t| t.read_latch(port & 3, 1) as u8)
            }
            0xe9 | 0x402 => DEBUG_CONSOLE,
            0x3b0..=0x3df => self.vga.read(port),
            0x3f8..=0x3ff => self.uart_read(port) as u8,
            0x511 => self.fw_cfg.read(),
            0x514..=0x51b => self.fw_cfg.read_dma(port - 0x514),
            0xcf9 => self.sysctl.read_reset_control(),
            0xcfc..=0xcff => self.pci.read_data((port & 3) as u8),
            _ => 0xff,
        }
    }

    fn read_cmos(&mut self, bus: &mut BusCtx<'_>) -> u8 {
        let now = if self.rtc.reads_time() { bus.now() } else { bus.when.time };
        let v = self.rtc.read(now);
        self.update_rtc();
        self.schedule();
        v
    }

    fn write_byte(&mut self, port: u16, v: u8, bus: &mut BusCtx<'_>) {
        match port {
            0x00..=0x0f | 0x80..=0x8f | 0xc0..=0xdf => self.dma.write(port, v),
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => {
                self.pic.write(port, v);
                self.refresh_intr();
            }
            0x40..=0x43 => self.write_pit(port, v, bus),
            0x60 => {
                let request = self.i8042.write_data(v);
                self.i8042_request(request, bus);
            }
            0x61 => {
                let gate = self.sysctl.write61(v);
                let now = bus.now();
                self.pit.set_gate2(gate, now);
            }
            0x64 => {
                let request = self.i8042.write_command(v, self.sysctl.a20);
                self.i8042_request(request, bus);
            }
            0x70 => {
                self.sysctl.nmi_masked = v & 0x80 != 0;
                self.rtc.select(v);
            }
            0x71 => {
                let now = bus.now();
                self.rtc.write(v, now);
                self.update_rtc();
                self.schedule();
            }
            0x92 => {
                if self.sysctl.write92(v) {
                    self.events.push(BoardEvent::Reset);
                }
                self.set_a20(v & 2 != 0, bus);
            }
            0xb2 | 0xb3 => {
                self.pm.write_apm(port & 1, v);
                self.update_pm();
            }
            _ => self.write_byte_high(port, v, bus),
        }
    }

    fn write_byte_high(&mut self, port: u16, v: u8, bus: &mut BusCtx<'_>) {
        match port {
            0xe8..=0xeb if self.testdev.is_some() => {
                if let Some(t) = &mut self.testdev {
                    t.write_latch(port & 3, 1, u32::from(v));
                }
            }
            0xe9 | 0x402 => bus.output.write(bus.when, OutputPort::DebugCon, &[v]),
            0x3b0..=0x3df => self.vga.write(port, v),
            0x3f8..=0x3ff => {
                if let Some(b) = self.uart.write(port as u8 & 7, v) {
                    bus.output.write(bus.when, OutputPort::Serial(0), &[b]);
                }
                self.update_uart();
            }
            0xcf9 if self.sysctl.write_reset_control(v) => self.events.push(BoardEvent::Reset),
            0xcfc..=0xcff => {
                self.pci.write_data((port & 3) as u8, v);
                self.pm_base = self.pci.pm_base();
                bus.mem.set_shadow(&self.pci.shadow());
            }
            _ => {}
        }
    }

    fn write_pit(&mut self, port: u16, v: u8, bus: &mut BusCtx<'_>) {
        use super::irq::line;
        let now = bus.now();
        if self.pit.write((port & 3) as u8, v, now) {
            self.set_irq(line::PIT, source::DEVICE, false);
        }
        self.schedule();
    }

    fn i8042_request(&mut self, request: Option<Request>, bus: &mut BusCtx<'_>) {
        match request {
            Some(Request::A20(on)) => self.set_a20(on, bus),
            Some(Request::Reset) => self.events.push(BoardEvent::Reset),
            None => {}
        }
        self.update_i8042();
    }
}
