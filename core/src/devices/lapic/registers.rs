//! The local APIC's register file, through its memory page and as x2APIC MSRs (SDM vol. 3A, 10.4.1 and 10.12.1).

use super::{
    ApicMode, Effect, Icr, LVT_MASKED, LVT_WRITABLE, Lapic, Lvt, SVR_ENABLE, SVR_WRITABLE, VERSION, esr, reg,
};
use crate::addr::GuestTime;

impl Lapic {
    /// Reads register `r` (32 bits) at time `now`; `None` if there is none.
    pub fn read(&mut self, r: u8, now: GuestTime) -> Option<u32> {
        let word = usize::from(r & 7);
        Some(match r {
            reg::ID if self.mode == ApicMode::X2Apic => u32::from(self.index),
            reg::ID => u32::from(self.id) << 24,
            reg::VERSION => VERSION,
            reg::TPR => u32::from(self.tpr),
            reg::PPR => u32::from(self.ppr()),
            reg::APR | reg::EOI | reg::RRD if self.mode == ApicMode::XApic => 0,
            reg::LDR if self.mode == ApicMode::X2Apic => self.x2apic_ldr(),
            reg::LDR => u32::from(self.ldr) << 24,
            reg::DFR if self.mode == ApicMode::XApic => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..=0x17 => self.isr[word],
            reg::TMR..=0x1f => self.tmr[word],
            reg::IRR..=0x27 => self.irr[word],
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH if self.mode == ApicMode::XApic => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[usize::from(r - reg::LVT_TIMER)],
            reg::INITIAL_COUNT => self.initial_count,
            reg::CURRENT_COUNT => self.current_count(now),
            reg::DIVIDE => self.divide,
            _ => return None,
        })
    }

    /// Reads a register through the memory page: an illegal one reads zero and is an error.
    pub fn mmio_read(&mut self, r: u8, now: GuestTime) -> u32 {
        match self.read(r, now) {
            Some(v) => v,
            None => {
                self.error(esr::ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes a register through the memory page.
    pub fn mmio_write(&mut self, r: u8, v: u32, now: GuestTime) -> Effect {
        match r {
            reg::ID => self.id = (v >> 24) as u8,
            reg::EOI => return self.eoi(),
            reg::LDR => self.ldr = (v >> 24) as u8,
            reg::DFR => self.dfr = v | 0x0fff_ffff,
            reg::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(v & 0xff00_0000) << 32,
            reg::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(v & 0x000c_cfff);
                return self.command();
            }
            _ => return self.write_common(r, v, now),
        }
        Effect::None
    }

    /// Reads an x2APIC MSR (0x800 + `r`); `None`: #GP.
    pub fn x2apic_read(&mut self, r: u8, now: GuestTime) -> Option<u64> {
        match (self.mode, r) {
            (ApicMode::X2Apic, reg::ICR) => Some(self.icr),
            (ApicMode::X2Apic, _) => self.read(r, now).map(u64::from),
            _ => None,
        }
    }

    /// Writes an x2APIC MSR; `None`: #GP (reserved bits, read-only or absent registers, 10.12.1.2).
    pub fn x2apic_write(&mut self, r: u8, v: u64, now: GuestTime) -> Option<Effect> {
        if self.mode != ApicMode::X2Apic || v & !Self::x2apic_writable(r)? != 0 {
            return None;
        }
        match r {
            reg::EOI => Some(self.eoi()),
            reg::ICR => {
                self.icr = v;
                Some(self.command())
            }
            reg::SELF_IPI => {
                self.icr = v & 0xff | 1 << 18;
                Some(self.command())
            }
            _ => Some(self.write_common(r, v as u32, now)),
        }
    }

    /// Bits of an x2APIC register that may be written as one; `None` if it cannot be written.
    fn x2apic_writable(r: u8) -> Option<u64> {
        Some(match r {
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::EOI | reg::ESR => 0,
            reg::SVR => u64::from(SVR_WRITABLE),
            reg::ICR => 0xffff_ffff_000c_cfff,
            // Delivery status and remote IRR are read-only and ignored, not reserved.
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                let i = usize::from(r - reg::LVT_TIMER);
                u64::from(LVT_WRITABLE[i] | 1 << 12 | if i == 3 || i == 4 { 1 << 14 } else { 0 })
            }
            reg::INITIAL_COUNT => 0xffff_ffff,
            reg::DIVIDE => 0xb,
            _ => return None,
        })
    }

    /// Writes of registers that behave alike in both modes.
    fn write_common(&mut self, r: u8, v: u32, now: GuestTime) -> Effect {
        match r {
            reg::TPR => self.tpr = v as u8,
            reg::SVR => {
                self.svr = v & SVR_WRITABLE;
                if v & SVR_ENABLE == 0 {
                    self.lvt.iter_mut().for_each(|l| *l |= LVT_MASKED);
                }
            }
            reg::ESR => {
                self.esr = self.errors;
                self.errors = 0;
            }
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt(usize::from(r - reg::LVT_TIMER), v, now),
            reg::INITIAL_COUNT => self.start_timer(v, now),
            reg::DIVIDE => self.write_divide(v & 0xb, now),
            // Read-only registers ignore writes.
            reg::ID..=reg::IRR | 0x21..=0x27 | reg::CURRENT_COUNT => {}
            _ => self.error(esr::ILLEGAL_REGISTER),
        }
        Effect::None
    }

    fn write_lvt(&mut self, i: usize, v: u32, now: GuestTime) {
        let mut v = v & LVT_WRITABLE[i];
        if self.svr & SVR_ENABLE == 0 {
            v |= LVT_MASKED;
        }
        if i == Lvt::Timer as usize {
            if self.timer_masked() {
                self.catch_up(now);
            }
            // Entering or leaving TSC-deadline mode disarms the timer (10.5.4.1).
            if (self.lvt[i] ^ v) & 1 << 18 != 0 {
                self.deadline = None;
                self.tsc_deadline = 0;
                self.initial_count = 0;
            }
        }
        self.lvt[i] = v;
    }

    /// The interrupt command just written.
    fn command(&mut self) -> Effect {
        let v = self.icr;
        let x2 = self.mode == ApicMode::X2Apic;
        let icr = Icr {
            vector: v as u8,
            mode: (v >> 8) as u8 & 7,
            logical: v >> 11 & 1 != 0,
            deassert: v >> 14 & 3 == 2,
            shorthand: (v >> 18) as u8 & 3,
            dest: if x2 { (v >> 32) as u32 } else { (v >> 56) as u32 },
            broadcast: if x2 { u32::MAX } else { 0xff },
        };
        if icr.mode <= 1 && icr.vector < 16 {
            self.error(esr::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        Effect::Ipi(icr)
    }
}
