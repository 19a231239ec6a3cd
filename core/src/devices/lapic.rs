//! The local APIC of one vCPU, in xAPIC and x2APIC mode. Source: SDM vol. 3A, chapter 10.
//!
//! Owns the registers, priorities and the timer. Delivering inter-processor interrupts and EOI broadcasts is the
//! board's: a register write returns an [`Effect`]. The timer counts 1 ns bus cycles through its divider.

use crate::addr::GuestTime;
use crate::state::{Field, Reader, StateError, Writer};

/// Register numbers: MMIO offset divided by 16, or x2APIC MSR minus 0x800.
pub mod reg {
    pub const ID: u8 = 0x02;
    pub const VERSION: u8 = 0x03;
    pub const TPR: u8 = 0x08;
    pub const APR: u8 = 0x09;
    pub const PPR: u8 = 0x0a;
    pub const EOI: u8 = 0x0b;
    pub const RRD: u8 = 0x0c;
    pub const LDR: u8 = 0x0d;
    pub const DFR: u8 = 0x0e;
    pub const SVR: u8 = 0x0f;
    pub const ISR: u8 = 0x10;
    pub const TMR: u8 = 0x18;
    pub const IRR: u8 = 0x20;
    pub const ESR: u8 = 0x28;
    pub const ICR: u8 = 0x30;
    pub const ICR_HIGH: u8 = 0x31;
    pub const LVT_TIMER: u8 = 0x32;
    pub const LVT_ERROR: u8 = 0x37;
    pub const INITIAL_COUNT: u8 = 0x38;
    pub const CURRENT_COUNT: u8 = 0x39;
    pub const DIVIDE: u8 = 0x3e;
    pub const SELF_IPI: u8 = 0x3f;
}

/// Entries of the local vector table, in register order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lvt {
    Timer = 0,
    Thermal = 1,
    PerfCounter = 2,
    Lint0 = 3,
    Lint1 = 4,
    Error = 5,
}

/// Version 0x14, six LVT entries.
const VERSION: u32 = 0x0005_0014;
const LVT_MASKED: u32 = 1 << 16;
/// Writable bits of each LVT entry: vector, (delivery mode), (polarity, trigger), mask, (timer mode).
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
const SVR_ENABLE: u32 = 1 << 8;
/// SVR: vector, software enable, focus checking.
const SVR_WRITABLE: u32 = 0x3ff;

/// Error-status bits.
mod esr {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Operating mode, from IA32_APIC_BASE bits 11 and 10.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ApicMode {
    Disabled,
    XApic,
    X2Apic,
}

impl Field for ApicMode {
    fn put(&self, w: &mut Writer) { (*self as u8).put(w); }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        Ok(match u8::get(r)? {
            0 => ApicMode::Disabled,
            1 => ApicMode::XApic,
            2 => ApicMode::X2Apic,
            _ => return Err(r.invalid()),
        })
    }
}

/// What the board has to do after a register write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    None,
    /// Broadcast an EOI of this level-triggered vector to the I/O APIC.
    Eoi(u8),
    /// Send the interrupt described by the interrupt command register.
    Ipi(Icr),
}

/// A decoded interrupt command (SDM vol. 3A, 10.6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Icr {
    pub vector: u8,
    /// Delivery mode: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 6 start-up.
    pub mode: u8,
    pub logical: bool,
    /// INIT level de-assert: accepted and ignored, as on every processor since the Pentium 4.
    pub deassert: bool,
    /// 0 none, 1 self, 2 all including self, 3 all excluding self.
    pub shorthand: u8,
    pub dest: u32,
    /// The destination that means everybody.
    pub broadcast: u32,
}

/// What arrived at a local interrupt pin leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LocalInterrupt {
    /// Masked, or accepted into IRR.
    Done,
    Nmi,
    Init,
}

/// One local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    /// Index of the vCPU: the initial and the x2APIC ID (configuration).
    index: u8,
    mode: ApicMode,
    base: u64,
    /// The xAPIC-mode ID register (writable).
    id: u8,
    tpr: u8,
    ldr: u8,
    dfr: u32,
    svr: u32,
    isr: [u32; 8],
    tmr: [u32; 8],
    irr: [u32; 8],
    /// What reads of ESR show, and the errors collected since it was last written.
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; 6],
    initial_count: u32,
    divide: u32,
    /// When the running timer reaches zero (or its TSC deadline).
    deadline: Option<GuestTime>,
    /// IA32_TSC_DEADLINE.
    tsc_deadline: u64,
}

crate::impl_state!(Lapic, "lapic", 1, {
    mode, base, id, tpr, ldr, dfr, svr, isr, tmr, irr, esr, errors, icr, lvt, initial_count, divide, deadline,
    tsc_deadline,
} skip { index });

/// Highest vector set in a 256-bit register.
#[inline]
fn highest(bits: &[u32; 8]) -> Option<u8> {
    for (i, w) in bits.iter().enumerate().rev() {
        if *w != 0 {
            return Some((i as u8) << 5 | (31 - w.leading_zeros()) as u8);
        }
    }
    None
}

#[inline]
fn get(bits: &[u32; 8], v: u8) -> bool { bits[usize::from(v >> 5)] >> (v & 31) & 1 != 0 }
#[inline]
fn put(bits: &mut [u32; 8], v: u8, on: bool) {
    let w = &mut bits[usize::from(v >> 5)];
    *w = *w & !(1 << (v & 31)) | u32::from(on) << (v & 31);
}

impl Lapic {
    /// Power-on state of vCPU `index`'s APIC.
    pub fn new(index: u8) -> Self {
        let mut a = Self {
            index,
            mode: ApicMode::XApic,
            base: 0xfee0_0000,
            id: index,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: [0; 8],
            tmr: [0; 8],
            irr: [0; 8],
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [LVT_MASKED; 6],
            initial_count: 0,
            divide: 0,
            deadline: None,
            tsc_deadline: 0,
        };
        if index == 0 {
            // Virtual wire mode (MP spec. 3.6.2.2), which firmware sets up on every PC: guests entered without
            // firmware rely on it too.
            a.lvt[Lvt::Lint0 as usize] = 0x700;
            a.lvt[Lvt::Lint1 as usize] = 0x400;
        }
        a
    }

    /// Power-on reset.
    pub fn reset(&mut self) { *self = Self::new(self.index); }

    /// INIT (10.4.7.3): as power-on, but mode, base and ID stay, and the LVT is masked.
    pub fn init(&mut self) {
        let Self { index, mode, base, id, .. } = *self;
        *self = Self { mode, base, id, lvt: [LVT_MASKED; 6], ..Self::new(index) };
    }

    pub fn mode(&self) -> ApicMode { self.mode }
    /// Base address of the register page, from IA32_APIC_BASE.
    pub fn base(&self) -> u64 { self.base }

    /// IA32_APIC_BASE was written. Disabling loses all state (10.4.3).
    pub fn set_base(&mut self, msr: u64) {
        let mode = match (msr >> 11 & 1, msr >> 10 & 1) {
            (0, _) => ApicMode::Disabled,
            (_, 0) => ApicMode::XApic,
            _ => ApicMode::X2Apic,
        };
        if mode == ApicMode::Disabled && self.mode != ApicMode::Disabled {
            let tpr = self.tpr;
            self.init();
            self.tpr = tpr;
        }
        if mode == ApicMode::X2Apic || self.mode == ApicMode::X2Apic {
            self.id = self.index;
        }
        self.mode = mode;
        self.base = msr & 0x000f_ffff_ffff_f000;
    }

    /// CR8 is bits 7:4 of the task-priority register (10.8.6.1).
    pub fn cr8(&self) -> u8 { self.tpr >> 4 }
    pub fn set_cr8(&mut self, v: u8) { self.tpr = v << 4; }

    fn enabled(&self) -> bool { self.mode != ApicMode::Disabled && self.svr & SVR_ENABLE != 0 }

    /// Processor priority (10.8.3.1).
    pub fn ppr(&self) -> u8 {
        let serving = highest(&self.isr).unwrap_or(0);
        if self.tpr >> 4 >= serving >> 4 { self.tpr } else { serving & 0xf0 }
    }

    /// The vector that would be delivered now.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        if self.mode == ApicMode::Disabled {
            return None;
        }
        let v = highest(&self.irr)?;
        (v >> 4 > self.ppr() >> 4).then_some(v)
    }

    /// Whether the 8259's INTR reaches this vCPU: through LINT0 as ExtINT, or (vCPU 0) directly with the APIC off.
    pub fn accepts_extint(&self) -> bool {
        match self.mode {
            ApicMode::Disabled => self.index == 0,
            _ => self.lvt[Lvt::Lint0 as usize] & (LVT_MASKED | 0x700) == 0x700,
        }
    }

    /// Delivers the pending vector to the processor: IRR to ISR. The spurious vector if there is none.
    pub fn acknowledge(&mut self) -> u8 {
        match self.pending() {
            Some(v) => {
                put(&mut self.irr, v, false);
                put(&mut self.isr, v, true);
                v
            }
            None => self.svr as u8,
        }
    }

    /// Takes a fixed interrupt into IRR; false if the APIC is off or software-disabled.
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.enabled() {
            return false;
        }
        if vector < 16 {
            self.error(esr::RECEIVE_ILLEGAL_VECTOR);
            return true;
        }
        put(&mut self.irr, vector, true);
        put(&mut self.tmr, vector, level);
        true
    }

    /// Records an error and raises the error interrupt if it is unmasked and its vector is legal.
    fn error(&mut self, bit: u32) {
        self.errors |= bit;
        let lvt = self.lvt[Lvt::Error as usize];
        if lvt & LVT_MASKED == 0 && lvt as u8 >= 16 && self.enabled() {
            put(&mut self.irr, lvt as u8, true);
            put(&mut self.tmr, lvt as u8, false);
        }
    }

    /// A local interrupt source fired.
    pub fn local(&mut self, source: Lvt) -> LocalInterrupt {
        let lvt = self.lvt[source as usize];
        if lvt & LVT_MASKED != 0 || self.mode == ApicMode::Disabled {
            return LocalInterrupt::Done;
        }
        match lvt >> 8 & 7 {
            4 => LocalInterrupt::Nmi,
            5 => LocalInterrupt::Init,
            0 => {
                self.accept(lvt as u8, false);
                LocalInterrupt::Done
            }
            _ => LocalInterrupt::Done,
        }
    }

    /// Does a message with this destination address this APIC (10.6.2)?
    pub fn addressed(&self, logical: bool, dest: u32, broadcast: u32) -> bool {
        if self.mode == ApicMode::Disabled {
            return false;
        }
        if dest == broadcast {
            return true;
        }
        match (self.mode, logical) {
            (ApicMode::X2Apic, false) => dest == u32::from(self.index),
            (ApicMode::X2Apic, true) => {
                let ldr = self.x2apic_ldr();
                dest >> 16 == ldr >> 16 && dest & ldr & 0xffff != 0
            }
            (_, false) => dest == u32::from(self.id),
            (_, true) if self.dfr >> 28 == 0xf => dest & u32::from(self.ldr) != 0,
            (_, true) => dest >> 4 == u32::from(self.ldr >> 4) && dest & u32::from(self.ldr) & 0xf != 0,
        }
    }

    fn x2apic_ldr(&self) -> u32 { u32::from(self.index >> 4) << 16 | 1 << (self.index & 15) }

    /// End of interrupt: the vector to broadcast if it was level-triggered.
    pub fn eoi(&mut self) -> Effect {
        let Some(v) = highest(&self.isr) else { return Effect::None };
        put(&mut self.isr, v, false);
        if get(&self.tmr, v) { Effect::Eoi(v) } else { Effect::None }
    }
}

// The register file.
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
            self.catch_up(now);
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

// The timer (10.5.4).
impl Lapic {
    fn timer_mode(&self) -> u32 { self.lvt[Lvt::Timer as usize] >> 17 & 3 }
    fn timer_masked(&self) -> bool { self.lvt[Lvt::Timer as usize] & LVT_MASKED != 0 }

    /// log2 of the divider: bits 3, 1, 0 of the divide configuration register; 0b111 divides by one.
    fn divide_shift(&self) -> u32 {
        let n = self.divide & 3 | self.divide >> 1 & 4;
        (n + 1) & 7
    }

    /// Nanoseconds from initial count to zero.
    fn period(&self) -> u64 { u64::from(self.initial_count) << self.divide_shift() }

    fn start_timer(&mut self, count: u32, now: GuestTime) {
        if self.timer_mode() >= 2 {
            return;
        }
        self.initial_count = count;
        self.deadline = (count != 0).then(|| GuestTime(now.0.saturating_add(self.period())));
    }

    fn write_divide(&mut self, v: u32, now: GuestTime) {
        let left = self.current_count(now);
        self.divide = v;
        if self.timer_mode() < 2 && self.deadline.is_some() {
            let ns = u64::from(left) << self.divide_shift();
            self.deadline = (left != 0).then(|| GuestTime(now.0.saturating_add(ns)));
        }
    }

    /// Moves a deadline that passed unseen (masked) to what it would be now.
    fn catch_up(&mut self, now: GuestTime) {
        let Some(at) = self.deadline.filter(|at| *at <= now && self.timer_mode() < 2) else { return };
        let period = self.period();
        self.deadline = (self.timer_mode() == 1 && period != 0).then(|| {
            let missed = ((now - at) / period).saturating_add(1);
            GuestTime(at.0.saturating_add(missed.saturating_mul(period)))
        });
    }

    fn current_count(&mut self, now: GuestTime) -> u32 {
        if self.timer_mode() >= 2 {
            return 0;
        }
        let at = match self.deadline {
            // An expiry not yet serviced (its interrupt still has to be raised) shows zero, or the next period.
            Some(at) if at <= now && self.timer_mode() == 1 && self.period() != 0 => {
                let into = (now - at) % self.period();
                GuestTime(now.0.saturating_add(self.period() - into))
            }
            Some(at) => at,
            None => return 0,
        };
        let left = at.0.saturating_sub(now.0).div_ceil(1 << self.divide_shift());
        left.min(u64::from(self.initial_count)) as u32
    }

    /// When the timer next has something to do.
    pub fn deadline(&self) -> Option<GuestTime> {
        self.deadline.filter(|_| self.timer_mode() == 2 || !self.timer_masked())
    }

    /// Lets the timer expire if its deadline is not after `now`; several missed periods give one interrupt.
    pub fn expire(&mut self, now: GuestTime) {
        if self.deadline().is_none_or(|at| at > now) {
            return;
        }
        if self.timer_mode() == 2 {
            self.deadline = None;
            self.tsc_deadline = 0;
        } else {
            self.catch_up(now);
            // A period that cannot be represented never ends.
            if self.deadline.is_some_and(|at| at <= now) {
                self.deadline = None;
            }
        }
        self.local(Lvt::Timer);
    }

    /// IA32_TSC_DEADLINE: zero unless armed.
    pub fn tsc_deadline(&self) -> u64 { if self.timer_mode() == 2 { self.tsc_deadline } else { 0 } }

    /// WRMSR of IA32_TSC_DEADLINE: ignored outside TSC-deadline mode; zero disarms.
    pub fn set_tsc_deadline(&mut self, tsc: u64, at: GuestTime) {
        if self.timer_mode() == 2 && self.mode != ApicMode::Disabled {
            self.tsc_deadline = tsc;
            self.deadline = (tsc != 0).then_some(at);
        }
    }
}
