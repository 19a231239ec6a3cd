//! The local APIC of one vCPU, in xAPIC and x2APIC mode. Source: SDM vol. 3A, chapter 10.
//!
//! Owns the registers, priorities and the timer. Delivering inter-processor interrupts and EOI broadcasts is the
//! board's: a register write returns an [`Effect`]. The timer counts 1 ns bus cycles through its divider.

mod registers;
mod timer;

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
    pub const LVT_LINT0: u8 = 0x35;
    pub const LVT_LINT1: u8 = 0x36;
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
    fn put(&self, w: &mut Writer) {
        (*self as u8).put(w);
    }
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
fn get(bits: &[u32; 8], v: u8) -> bool {
    bits[usize::from(v >> 5)] >> (v & 31) & 1 != 0
}
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
    pub fn reset(&mut self) {
        *self = Self::new(self.index);
    }

    /// INIT (10.4.7.3): as power-on, but mode, base and ID stay, and the LVT is masked.
    pub fn init(&mut self) {
        let Self { index, mode, base, id, .. } = *self;
        *self = Self { mode, base, id, lvt: [LVT_MASKED; 6], ..Self::new(index) };
    }

    pub fn mode(&self) -> ApicMode {
        self.mode
    }
    /// Base address of the register page, from IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

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
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }
    pub fn set_cr8(&mut self, v: u8) {
        self.tpr = v << 4;
    }

    fn enabled(&self) -> bool {
        self.mode != ApicMode::Disabled && self.svr & SVR_ENABLE != 0
    }

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

    fn x2apic_ldr(&self) -> u32 {
        u32::from(self.index >> 4) << 16 | 1 << (self.index & 15)
    }

    /// End of interrupt: the vector to broadcast if it was level-triggered.
    pub fn eoi(&mut self) -> Effect {
        let Some(v) = highest(&self.isr) else { return Effect::None };
        put(&mut self.isr, v, false);
        if get(&self.tmr, v) { Effect::Eoi(v) } else { Effect::None }
    }
}

#[cfg(test)]
mod tests;
