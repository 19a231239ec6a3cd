//! Device memory: the APIC pages, the VGA window and the test buffer.

use super::{Board, BusCtx};
use crate::addr::Gpa;
use crate::devices::lapic::{ApicMode, reg};
use crate::devices::{testdev, vga};

/// The I/O APIC's page.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;

const PAGE: u64 = !0xfff;
const VGA_END: u64 = vga::WINDOW + vga::WINDOW_SIZE as u64;
const TESTDEV_END: u64 = testdev::BUFFER + testdev::BUFFER_SIZE as u64;

/// Whether register `r` starts or changes the timer, so that its write needs the exact time.
fn sets_timer(r: u8) -> bool {
    matches!(r, reg::LVT_TIMER | reg::INITIAL_COUNT | reg::DIVIDE | reg::SVR)
}

impl Board {
    /// Whether vCPU `cpu`'s own APIC page is at `gpa`.
    #[inline]
    fn is_lapic(&self, cpu: u8, gpa: Gpa) -> bool {
        self.lapics
            .get(usize::from(cpu))
            .is_some_and(|a| a.base() == gpa.0 & PAGE && a.mode() == ApicMode::XApic)
    }

    /// Device-memory read of 1, 2, 4 or 8 bytes by vCPU `cpu`; unclaimed addresses read as all ones.
    pub fn mmio_read(&mut self, cpu: u8, gpa: Gpa, size: u8, bus: &mut BusCtx<'_>) -> u64 {
        if self.is_lapic(cpu, gpa) {
            return self.lapic_read(cpu, gpa.offset(), bus);
        }
        match gpa.0 {
            vga::WINDOW..VGA_END => self.vga.read_memory(gpa.0 - vga::WINDOW, size.min(8)),
            _ if gpa.0 & PAGE == IOAPIC_BASE => u64::from(self.ioapic.read(gpa.offset())),
            testdev::BUFFER..TESTDEV_END => match &self.testdev {
                Some(t) => t.read_buffer(gpa.0 - testdev::BUFFER, size),
                None => u64::MAX,
            },
            _ => u64::MAX,
        }
    }

    pub fn mmio_write(&mut self, cpu: u8, gpa: Gpa, size: u8, value: u64, bus: &mut BusCtx<'_>) {
        if self.is_lapic(cpu, gpa) {
            // Registers are written as aligned doublewords only (SDM vol. 3A, 10.4.1).
            if size >= 4 && gpa.0 & 15 == 0 {
                self.lapic_write(cpu, (gpa.offset() >> 4) as u8, value as u32, bus);
            }
            return;
        }
        match gpa.0 {
            vga::WINDOW..VGA_END => self.vga.write_memory(gpa.0 - vga::WINDOW, size, value),
            _ if gpa.0 & PAGE == IOAPIC_BASE => {
                if let Some(pin) = self.ioapic.write(gpa.offset(), value as u32) {
                    if let Some(m) = self.ioapic.service(pin) {
                        self.send_pin(pin, m);
                    }
                    self.refresh_intr();
                }
            }
            testdev::BUFFER..TESTDEV_END => {
                if let Some(t) = &mut self.testdev {
                    t.write_buffer(gpa.0 - testdev::BUFFER, size, value);
                }
            }
            _ => {}
        }
    }

    fn lapic_read(&mut self, cpu: u8, offset: u64, bus: &mut BusCtx<'_>) -> u64 {
        let Some(apic) = self.lapics.get_mut(usize::from(cpu)) else { return u64::MAX };
        let r = (offset >> 4) as u8;
        let now = if r == reg::CURRENT_COUNT { bus.now() } else { bus.when.time };
        // Only the first doubleword of each 16 bytes is a register.
        if offset & 12 != 0 { 0 } else { u64::from(apic.mmio_read(r, now) >> (8 * (offset & 3))) }
    }

    #[inline]
    fn lapic_write(&mut self, cpu: u8, r: u8, v: u32, bus: &mut BusCtx<'_>) {
        let timer = sets_timer(r);
        let now = if timer { bus.now() } else { bus.when.time };
        let Some(apic) = self.lapics.get_mut(usize::from(cpu)) else { return };
        let effect = apic.mmio_write(r, v, now);
        self.apic_effect(cpu, effect);
        if timer {
            self.schedule();
        }
    }

    /// x2APIC MSR 0x800 + `reg`; `None`: #GP.
    pub fn x2apic_read(&mut self, cpu: u8, reg: u8, bus: &mut BusCtx<'_>) -> Option<u64> {
        let now = if reg == reg::CURRENT_COUNT { bus.now() } else { bus.when.time };
        self.lapics.get_mut(usize::from(cpu))?.x2apic_read(reg, now)
    }

    /// x2APIC MSR write; false: #GP.
    pub fn x2apic_write(&mut self, cpu: u8, reg: u8, value: u64, bus: &mut BusCtx<'_>) -> bool {
        let timer = sets_timer(reg);
        let now = if timer { bus.now() } else { bus.when.time };
        let Some(apic) = self.lapics.get_mut(usize::from(cpu)) else { return false };
        let Some(effect) = apic.x2apic_write(reg, value, now) else { return false };
        self.apic_effect(cpu, effect);
        if timer {
            self.schedule();
        }
        true
    }
}
