//! Interrupt wiring: device lines to PIC and I/O APIC, messages between APICs, and what each vCPU sees of them.

use super::{Board, BoardEvent};
use crate::addr::GuestTime;
use crate::devices::ioapic::{Message, PINS};
use crate::devices::lapic::{Effect, Icr, LocalInterrupt, Lvt};

/// ISA interrupt lines.
pub(super) mod line {
    pub const PIT: u8 = 0;
    pub const KEYBOARD: u8 = 1;
    pub const COM1: u8 = 4;
    pub const RTC: u8 = 8;
    pub const SCI: u8 = 9;
    pub const MOUSE: u8 = 12;
}

/// Who drives a line; a line is asserted while any source asserts it.
pub(super) mod source {
    pub const DEVICE: u8 = 1;
    pub const TESTDEV: u8 = 2;
}

/// Levels of all interrupt lines, by source.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    levels: [u8; PINS],
}

crate::impl_state!(Lines, "irq-lines", 1, { levels });

impl Lines {
    pub const fn new() -> Self {
        Self { levels: [0; PINS] }
    }
}

impl Board {
    /// Drives line `irq` from `source`. ISA IRQ n is PIC input n and I/O APIC pin n, but for IRQ0, which is pin 2.
    pub(super) fn set_irq(&mut self, irq: u8, source: u8, level: bool) {
        let Some(l) = self.lines.levels.get_mut(usize::from(irq)) else { return };
        let before = *l != 0;
        *l = if level { *l | source } else { *l & !source };
        let after = *l != 0;
        if before == after {
            return;
        }
        if irq < 16 {
            self.pic.set_line(irq, after);
        }
        let pin = if irq == 0 { 2 } else { irq };
        if let Some(m) = self.ioapic.set_line(pin, after) {
            self.send_pin(pin, m);
        }
        self.refresh_intr();
    }

    /// Sends the message of an I/O APIC pin and notes its acceptance.
    pub(super) fn send_pin(&mut self, pin: u8, m: Message) {
        if self.deliver(m) {
            self.ioapic.accepted(pin);
        }
    }

    /// Delivers an I/O APIC message; false if no local APIC took it.
    fn deliver(&mut self, m: Message) -> bool {
        let targets = self.targets(None, m.logical, u32::from(m.dest), 0xff);
        self.dispatch(m.mode, m.vector, m.level, &targets)
    }

    /// Indices of the APICs a destination names, but for `except`.
    fn targets(&self, except: Option<usize>, logical: bool, dest: u32, broadcast: u32) -> Vec<usize> {
        (0..self.lapics.len())
            .filter(|i| Some(*i) != except && self.lapics[*i].addressed(logical, dest, broadcast))
            .collect()
    }

    /// Gives an interrupt of delivery mode `mode` to `targets`; false if nobody took it.
    fn dispatch(&mut self, mode: u8, vector: u8, level: bool, targets: &[usize]) -> bool {
        let mut taken = false;
        match mode {
            0 => {
                for i in targets {
                    taken |= self.lapics[*i].accept(vector, level);
                }
            }
            // Lowest priority: the first of those with the least processor priority.
            1 => {
                let mut order = targets.to_vec();
                order.sort_by_key(|i| self.lapics[*i].ppr());
                taken = order.iter().any(|i| self.lapics[*i].accept(vector, level));
            }
            4 => {
                taken = !targets.is_empty();
                self.events.extend(targets.iter().map(|i| BoardEvent::Nmi(*i as u8)));
            }
            5 => {
                taken = !targets.is_empty();
                for i in targets {
                    self.lapics[*i].init();
                    self.events.push(BoardEvent::Init(*i as u8));
                }
            }
            6 => self.events.extend(targets.iter().map(|i| BoardEvent::Sipi(*i as u8, vector))),
            // SMI: there is no system-management mode. ExtINT: the PIC reaches vCPU 0 through LINT0 only.
            _ => {}
        }
        taken
    }

    /// Carries out what a local APIC register write asks for, then refreshes what vCPUs see.
    #[inline]
    pub(super) fn apic_effect(&mut self, cpu: u8, effect: Effect) {
        match effect {
            Effect::None => self.refresh_intr_of(usize::from(cpu)),
            Effect::Eoi(vector) => {
                self.broadcast_eoi(vector);
                self.refresh_intr();
            }
            Effect::Ipi(icr) => {
                self.send_ipi(usize::from(cpu), icr);
                self.refresh_intr();
            }
        }
    }

    fn broadcast_eoi(&mut self, vector: u8) {
        let again = self.ioapic.eoi(vector);
        for pin in (0..PINS as u8).filter(|p| again >> p & 1 != 0) {
            if let Some(m) = self.ioapic.service(pin) {
                self.send_pin(pin, m);
            }
        }
    }

    fn send_ipi(&mut self, from: usize, icr: Icr) {
        let targets = match icr.shorthand {
            0 => self.targets(None, icr.logical, icr.dest, icr.broadcast),
            1 => vec![from],
            2 => self.targets(None, false, icr.broadcast, icr.broadcast),
            _ => self.targets(Some(from), false, icr.broadcast, icr.broadcast),
        };
        if !(icr.mode == 5 && icr.deassert) {
            self.dispatch(icr.mode, icr.vector, false, &targets);
        }
    }

    /// The user's NMI: the NMI line is wired to LINT1 of every local APIC, or straight to vCPU 0 without one.
    pub(super) fn send_nmi(&mut self) {
        if self.sysctl.nmi_masked {
            return;
        }
        for i in 0..self.lapics.len() {
            let apic = &mut self.lapics[i];
            let bypass = i == 0 && apic.mode() == crate::devices::lapic::ApicMode::Disabled;
            match apic.local(Lvt::Lint1) {
                _ if bypass => self.events.push(BoardEvent::Nmi(0)),
                LocalInterrupt::Nmi => self.events.push(BoardEvent::Nmi(i as u8)),
                LocalInterrupt::Init => {
                    apic.init();
                    self.events.push(BoardEvent::Init(i as u8));
                }
                LocalInterrupt::Done => {}
            }
        }
        self.refresh_intr();
    }

    /// Recomputes what every vCPU sees. Call after any change of the PIC or of several APICs.
    pub(super) fn refresh_intr(&mut self) {
        for i in 0..self.lapics.len() {
            self.refresh_intr_of(i);
        }
    }

    /// Recomputes what vCPU `i` sees.
    #[inline]
    pub(super) fn refresh_intr_of(&mut self, i: usize) {
        if let (Some(a), Some(intr)) = (self.lapics.get(i), self.intr.get_mut(i)) {
            *intr = a.pending().is_some() || (self.pic.output() && a.accepts_extint());
        }
    }

    /// Is a maskable interrupt waiting for vCPU `cpu` (above its task priority)?
    #[inline]
    pub fn intr(&self, cpu: u8) -> bool {
        self.intr.get(usize::from(cpu)).copied().unwrap_or(false)
    }

    /// Address of the byte that is nonzero if [`Board::intr`], for generated code; it stays where it is while the vCPU
    /// executes.
    pub(crate) fn intr_address(&self, cpu: u8) -> u64 {
        std::ptr::from_ref(self.intr.get(usize::from(cpu)).unwrap_or(&false)) as u64
    }

    /// Acknowledges the waiting interrupt and returns its vector. An external (8259) interrupt goes first.
    pub fn ack(&mut self, cpu: u8) -> u8 {
        let i = usize::from(cpu);
        let Some(apic) = self.lapics.get_mut(i) else { return 0xff };
        if apic.accepts_extint() && self.pic.output() {
            let v = self.pic.acknowledge();
            self.refresh_intr();
            return v;
        }
        let v = apic.acknowledge();
        self.refresh_intr_of(i);
        v
    }

    /// APIC MSRs: IA32_APIC_BASE is in `Vcpu::msr`; the board is told of its changes.
    pub fn set_apic_base(&mut self, cpu: u8, value: u64) {
        if let Some(a) = self.lapics.get_mut(usize::from(cpu)) {
            a.set_base(value);
        }
        self.refresh_intr();
        self.schedule();
    }

    /// CR8: bits 7:4 of the task-priority register.
    pub fn cr8(&self, cpu: u8) -> u8 {
        self.lapics.get(usize::from(cpu)).map_or(0, |a| a.cr8())
    }

    pub fn set_cr8(&mut self, cpu: u8, value: u8) {
        if let Some(a) = self.lapics.get_mut(usize::from(cpu)) {
            a.set_cr8(value);
        }
        self.refresh_intr_of(usize::from(cpu));
    }

    /// IA32_TSC_DEADLINE: zero unless armed.
    pub fn tsc_deadline(&self, cpu: u8) -> u64 {
        self.lapics.get(usize::from(cpu)).map_or(0, |a| a.tsc_deadline())
    }

    /// Arms (or with 0 disarms) the TSC-deadline timer: `tsc` is the MSR value, `at` the guest time it stands for.
    pub fn set_tsc_deadline(&mut self, cpu: u8, tsc: u64, at: GuestTime) {
        if let Some(a) = self.lapics.get_mut(usize::from(cpu)) {
            a.set_tsc_deadline(tsc, at);
        }
        self.schedule();
    }
}
