//! What a guest's crash says about its cause: the fault, the code around it, and the word in memory behind it.

use super::grouped;
use super::symbols::Symbols;
use anyhow::Result;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use retrovisor_core::exception::{self, Exception, vector};
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::vcpu::{Vcpu, gpr};
use retrovisor_core::{Gpa, Gva, Icount};
use retrovisor_debug::Inspect;
use retrovisor_debug::disasm::disassemble;
use std::io::Write;

/// Exceptions a correct kernel does not raise in itself, as `Hooks::stop_exceptions` wants them.
pub const FAULTS: u32 = 1 << vector::DE
    | 1 << vector::UD
    | 1 << vector::DF
    | 1 << vector::NP
    | 1 << vector::SS
    | 1 << vector::GP
    | 1 << vector::PF;

/// The word in memory a wild branch took its target from.
#[derive(Clone, Debug)]
pub struct Suspect {
    /// The branch.
    pub branch: Gva,
    pub branch_text: String,
    /// The word it read.
    pub gva: Gva,
    pub gpa: Gpa,
    /// In bytes.
    pub len: u64,
    pub value: u64,
}

/// A fault the kernel took, at the point before its delivery.
#[derive(Clone, Debug)]
pub struct Crash {
    pub icount: Icount,
    pub exception: Exception,
    pub rip: Gva,
    pub rsp: u64,
    pub cr3: u64,
    pub suspect: Option<Suspect>,
}

impl Crash {
    /// Looks at `vm`, which is about to deliver `e`; `None` if the fault is a user program's.
    pub fn look(vm: &mut Vm, e: &Exception, symbols: &Symbols<'_>) -> Option<Self> {
        let icount = vm.when().icount;
        let index = vm.current;
        let cpu = vm.vcpus.get(index)?.clone();
        if cpu.mode.cpl != 0 {
            return None;
        }
        let mut view = Inspect::new(vm);
        let suspect = suspect(&mut view, index, &cpu, symbols);
        let (rip, rsp) = (Gva(cpu.rip), cpu.gpr[gpr::RSP]);
        Some(Self { icount, exception: *e, rip, rsp, cr3: cpu.cr3, suspect })
    }

    /// Tells what happened.
    pub fn print(&self, symbols: &Symbols<'_>, out: &mut dyn Write) -> Result<()> {
        let e = &self.exception;
        let at = grouped(self.icount.0);
        writeln!(
            out,
            "3. The crash: {} at instruction {at}, rip {}.\n",
            exception::name(e.vector),
            self.rip
        )?;
        if e.vector == vector::PF {
            writeln!(out, "   Error code {:#x}, faulting address {:#x}.", e.error, e.addr)?;
        } else if e.has_error {
            writeln!(out, "   Error code {:#x}.", e.error)?;
        }
        writeln!(out, "   rip is in {}, rsp {:#x}, cr3 {:#x}.", self.place(symbols), self.rsp, self.cr3)?;
        if let Some(s) = &self.suspect {
            writeln!(out, "   It came from {}:  {}", symbols.describe(s.branch.0), s.branch_text)?;
            writeln!(
                out,
                "   which read its target from {} (physical {}),",
                symbols.describe(s.gva.0),
                s.gpa
            )?;
            writeln!(out, "   and that word holds {:#x}: no code of this kernel.", s.value)?;
        }
        writeln!(out)?;
        Ok(())
    }

    fn place(&self, symbols: &Symbols<'_>) -> String {
        match symbols.function(self.rip.0) {
            Some(_) => symbols.describe(self.rip.0),
            None => "no function".into(),
        }
    }
}

/// Finds the word a wild call or jump read its target from: the faulting instruction itself (a target that is not
/// canonical), or, if the fetch at the target faulted, the call that pushed the address on top of the stack.
fn suspect(view: &mut Inspect<'_>, index: usize, cpu: &Vcpu, symbols: &Symbols<'_>) -> Option<Suspect> {
    let branch = match symbols.function(cpu.rip) {
        Some(_) => decode_at(view, index, cpu, cpu.rip)?,
        None => {
            let ret = read_word(view, index, cpu.gpr[gpr::RSP])?;
            call_before(view, index, cpu, ret)?
        }
    };
    let indirect = branch.is_call_near_indirect() || branch.is_jmp_near_indirect();
    if !indirect || branch.op0_kind() != OpKind::Memory {
        return None;
    }
    let gva = Gva(branch.virtual_address(0, 0, |register, _, _| register_value(cpu, register))?);
    let len = branch.memory_size().size() as u64;
    let gpa = view.translate(index, gva)?;
    let value = read_word(view, index, gva.0)?;
    let text = text(view, index, cpu, branch.ip());
    Some(Suspect { branch: Gva(branch.ip()), branch_text: text, gva, gpa, len, value })
}

/// The eight bytes at a linear address.
pub fn read_word(view: &mut Inspect<'_>, index: usize, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    (view.read_virtual(index, Gva(at), &mut bytes) == bytes.len()).then(|| u64::from_le_bytes(bytes))
}

/// The instruction at `rip`.
fn decode_at(view: &mut Inspect<'_>, index: usize, cpu: &Vcpu, rip: u64) -> Option<Instruction> {
    let mut bytes = [0; 15];
    let len = view.read_virtual(index, Gva(rip), &mut bytes);
    let mut decoder = Decoder::with_ip(u32::from(cpu.mode.bits), &bytes[..len], rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// The call that ends where `ret` points: the shortest one whose bytes fit.
pub fn call_before(view: &mut Inspect<'_>, index: usize, cpu: &Vcpu, ret: u64) -> Option<Instruction> {
    (2..=8u64).find_map(|len| {
        let call = decode_at(view, index, cpu, ret.checked_sub(len)?)?;
        let is_call = call.is_call_near() || call.is_call_near_indirect();
        (is_call && call.len() as u64 == len).then_some(call)
    })
}

/// Intel-syntax text of the instruction at `rip`.
fn text(view: &mut Inspect<'_>, index: usize, cpu: &Vcpu, rip: u64) -> String {
    let mut bytes = [0; 15];
    let len = view.read_virtual(index, Gva(rip), &mut bytes);
    let lines = disassemble(&bytes[..len], cpu.mode.bits, rip, 1);
    lines.first().map_or_else(String::new, |l| l.text.clone())
}

/// Value of a register as an address is made from it; segment registers give their bases.
fn register_value(cpu: &Vcpu, register: Register) -> Option<u64> {
    if register.is_segment_register() {
        return cpu.seg.get(register.number()).map(|s| s.lin_base);
    }
    let value = *cpu.gpr.get(register.number())?;
    match register.size() {
        8 => Some(value),
        4 => Some(value & 0xffff_ffff),
        2 => Some(value & 0xffff),
        _ => None,
    }
}
