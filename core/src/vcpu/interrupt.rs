//! Delivery of exceptions and interrupts through the IDT or IVT. Source: SDM vol. 3A, chapter 6.
//!
//! Nothing of the vCPU changes before the last access that can fault: `gate` builds the frame on a
//! [`NewStack`](super::newstack::NewStack) and commits it at the end.

use super::debug::dr6;
use super::{Activity, Shadow, flags::bit};
use crate::ctx::Ctx;
use crate::exception::{Exception, Exec, vector};

/// What is being delivered; decides privilege checks, error codes and the EXT bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// A fault or trap raised by an instruction.
    Exception,
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
    /// INT1: like a hardware exception, no DPL check.
    Icebp,
    /// An external interrupt or NMI.
    External,
}

/// An event on its way through the IDT.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub vector: u8,
    pub source: Source,
    /// Pushed after the return address, in protected and long mode.
    pub error: Option<u32>,
    /// The RFLAGS image to push.
    pub flags: u64,
}

impl Event {
    /// EXT bit of error codes raised while this event is delivered (SDM vol. 3A, 6.13).
    pub const fn ext(&self) -> u32 {
        match self.source {
            Source::Software => 0,
            _ => 1,
        }
    }

    /// Error code that names this event's IDT entry.
    pub const fn idt_error(&self) -> u32 {
        (self.vector as u32) << 3 | 2 | self.ext()
    }
}

/// The exceptions of one delivery, oldest first. More than one means that delivering one raised the next; after a
/// triple fault the last is the one that shut the vCPU down. For debuggers only: not state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultChain {
    faults: [Option<Exception>; 4],
}

impl FaultChain {
    pub fn iter(&self) -> impl Iterator<Item = Exception> + '_ {
        self.faults.iter().flatten().copied()
    }

    /// Appends `e`; a chain longer than there is room for loses its second-oldest.
    fn push(&mut self, e: Exception) {
        match self.faults.iter_mut().find(|f| f.is_none()) {
            Some(free) => *free = Some(e),
            None => {
                self.faults[1..].rotate_left(1);
                self.faults[3] = Some(e);
            }
        }
    }
}

/// What a second exception during the delivery of a first one becomes (SDM vol. 3A, table 6-5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Combined {
    Serial,
    DoubleFault,
    TripleFault,
}

const fn contributory(v: u8) -> bool {
    matches!(v, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
}

const fn combine(first: u8, second: u8) -> Combined {
    let serious = contributory(second) || second == vector::PF;
    match first {
        vector::DF if serious => Combined::TripleFault,
        vector::PF if serious => Combined::DoubleFault,
        v if contributory(v) && contributory(second) => Combined::DoubleFault,
        _ => Combined::Serial,
    }
}

impl Ctx<'_> {
    /// Delivers `e` with double- and triple-fault handling. RIP is the address to return to: the faulting
    /// instruction, or for traps the next one. Never fails: a triple fault puts the vCPU into
    /// [`Activity::Shutdown`]; [`Vcpu::fault_chain`](super::Vcpu::fault_chain) tells what led there.
    pub fn deliver_exception(&mut self, e: Exception) {
        self.deliver_exception_here(e);
        self.sys.end_block();
    }

    /// [`Ctx::deliver_exception`] without asking for the engine's attention: for who looks around himself.
    pub(crate) fn deliver_exception_here(&mut self, e: Exception) {
        self.cpu.pending_db = 0;
        self.cpu.fault_chain = FaultChain::default();
        self.deliver_chain(e);
    }

    fn deliver_chain(&mut self, first: Exception) {
        let mut e = first;
        loop {
            self.cpu.fault_chain.push(e);
            let Err(next) = self.deliver_one(e) else { return };
            e = match combine(e.vector, next.vector) {
                Combined::Serial => next,
                Combined::DoubleFault => {
                    self.note_fault(next);
                    self.cpu.fault_chain.push(next);
                    Exception::with_error(vector::DF, 0)
                }
                Combined::TripleFault => {
                    self.note_fault(next);
                    self.cpu.fault_chain.push(next);
                    self.cpu.activity = Activity::Shutdown;
                    self.cpu.shadow = Shadow::None;
                    self.sys.end_block();
                    return;
                }
            };
        }
    }

    /// Register effects of raising `e`, delivered or not: CR2, DR6, DR7.GD.
    fn note_fault(&mut self, e: Exception) {
        match e.vector {
            vector::PF => self.cpu.cr2 = e.addr,
            vector::DB => self.cpu.note_debug_exception(e.addr),
            _ => {}
        }
    }

    fn deliver_one(&mut self, e: Exception) -> Exec {
        self.note_fault(e);
        // Faults return to the instruction with RF set, so that an instruction breakpoint on it hits only once.
        // #DB is a fault for instruction breakpoints (RF stays as it is) and for general detect.
        let fault = match e.vector {
            vector::DB => e.addr & dr6::BD != 0,
            vector::NMI | vector::BP | vector::OF | vector::DF | vector::MC => false,
            _ => true,
        };
        let flags = self.cpu.flags.0 | if fault { bit::RF } else { 0 };
        let error = e.has_error.then_some(e.error);
        self.deliver_event(&Event { vector: e.vector, source: Source::Exception, error, flags })
    }

    /// Delivers an external interrupt at the current boundary, where RIP is the next instruction.
    pub fn deliver_external(&mut self, vector: u8) {
        self.cpu.fault_chain = FaultChain::default();
        let event = Event { vector, source: Source::External, error: None, flags: self.cpu.flags.0 };
        if let Err(e) = self.deliver_event(&event) {
            self.deliver_chain(e);
        }
        self.sys.end_block();
    }

    /// Delivers the pending NMI at the current boundary: further ones are blocked until IRET.
    pub fn deliver_nmi(&mut self) {
        self.cpu.nmi_pending = false;
        self.cpu.nmi_blocked = true;
        self.deliver_external(vector::NMI);
    }

    /// INT n, INT3, INTO, INT1: delivers `vector` with RIP already at the next instruction. A fault on the way is
    /// returned, with nothing changed. The v86-mode checks of INT n come before (see `isa::int`).
    pub fn software_interrupt(&mut self, vector: u8, source: Source) -> Exec {
        let flags = self.cpu.flags.0 & !bit::RF;
        if self.cpu.flags.has(bit::TF) {
            self.cpu.suppress_single_step();
        }
        self.deliver_event(&Event { vector, source, error: None, flags })?;
        let held = self.cpu.pending_db & dr6::WRITABLE;
        if source == Source::Icebp && held != 0 {
            // Traps held back by MOV SS merge into the #DB of INT1.
            self.cpu.pending_db &= !held;
            self.note_fault(Exception::db(held));
        }
        self.attend();
        Ok(())
    }

    /// Delivers one event in the current mode.
    fn deliver_event(&mut self, event: &Event) -> Exec {
        if self.cpu.mode.real() {
            self.deliver_real(event.vector, 0, event.flags)?;
        } else if self.cpu.mode.long {
            self.deliver_long(event)?;
        } else {
            self.deliver_protected(event)?;
        }
        self.cpu.shadow = Shadow::None;
        self.cpu.activity = Activity::Running;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_combine_follows_table_6_5() {
        assert_eq!(combine(vector::DE, vector::GP), Combined::DoubleFault);
        assert_eq!(combine(vector::GP, vector::PF), Combined::Serial);
        assert_eq!(combine(vector::PF, vector::PF), Combined::DoubleFault);
        assert_eq!(combine(vector::PF, vector::NP), Combined::DoubleFault);
        assert_eq!(combine(vector::UD, vector::GP), Combined::Serial);
        assert_eq!(combine(vector::DF, vector::PF), Combined::TripleFault);
        assert_eq!(combine(0x80, vector::NP), Combined::Serial);
    }

    #[test]
    fn test_fault_chain_keeps_first_and_newest() {
        let mut c = FaultChain::default();
        for v in [1, 2, 3, 4, 5] {
            c.push(Exception::plain(v));
        }
        assert_eq!(c.iter().map(|e| e.vector).collect::<Vec<_>>(), [1, 3, 4, 5]);
    }
}
