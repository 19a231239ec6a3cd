//! Finding who wrote a word: run with a watchpoint on it and note every write.

use super::crash::{call_before, read_word};
use super::grouped;
use super::symbols::Symbols;
use anyhow::{Result, bail};
use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory};
use retrovisor_core::engine::hooks::{Watch, WatchAddr, WatchKind};
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::vcpu::{Vcpu, gpr};
use retrovisor_core::{Gpa, Gva, Icount};
use retrovisor_debug::Inspect;
use retrovisor_debug::disasm::{Line, disassemble};

/// Stack words looked at for return addresses, and callers kept.
const STACK_WORDS: u64 = 32;
const CALLERS: usize = 4;
/// Longest way from the start of a function to the writing instruction for which code before it is shown, in bytes.
const FUNCTION: u64 = 4096;
/// Instructions shown.
const LINES: usize = 5;

/// A write to the watched word.
#[derive(Clone, Debug)]
pub struct Write {
    /// Of the writing instruction.
    pub icount: Icount,
    pub rip: Gva,
    pub old: u64,
    pub new: u64,
    /// The code that wrote, the writing instruction last.
    pub listing: Vec<Line>,
    /// Return addresses found on the stack, innermost first.
    pub callers: Vec<Gva>,
    /// The general registers the instruction used and their values after it, as one line.
    pub registers: String,
}

impl Write {
    /// One line: when, where, what.
    pub fn line(&self, symbols: &Symbols<'_>) -> String {
        let (at, place) = (grouped(self.icount.0), symbols.describe(self.rip.0));
        format!(
            "instruction {at:>12}  {place:<18} {} -> {}",
            symbols.describe(self.old),
            symbols.describe(self.new)
        )
    }
}

/// Runs `vm` up to `until` and returns every write to the `len` (at most 8) bytes at `gpa`, in order.
///
/// # Errors
/// If the machine ends before `until`.
pub fn writes_to(
    vm: &mut Vm,
    symbols: &Symbols<'_>,
    gpa: Gpa,
    len: u64,
    until: Icount,
) -> Result<Vec<Write>> {
    let watch = Watch { addr: WatchAddr::Physical(gpa), len, kind: WatchKind::Write };
    vm.hooks.watches = vec![watch];
    let mut writes = Vec::new();
    let mut old = word(vm, gpa, len);
    loop {
        match vm.run(Some(until)) {
            VmExit::Reached => break,
            VmExit::Watchpoint(_) => {
                let new = word(vm, gpa, len);
                writes.push(look(vm, symbols, old, new));
                old = new;
            }
            other => bail!("the replay ended early: {other:?} at instruction {}", vm.when().icount),
        }
    }
    vm.hooks.watches.clear();
    Ok(writes)
}

/// The `len` bytes at `gpa` as a little-endian number.
fn word(vm: &Vm, gpa: Gpa, len: u64) -> u64 {
    let mut bytes = [0; 8];
    let len = usize::try_from(len.min(8)).unwrap_or(8);
    vm.sys.mem.read_phys(gpa, &mut bytes[..len]);
    u64::from_le_bytes(bytes)
}

/// Describes the write the instruction just executed made.
fn look(vm: &mut Vm, symbols: &Symbols<'_>, old: u64, new: u64) -> Write {
    let index = vm.current;
    let icount = Icount(vm.when().icount.0.saturating_sub(1));
    let cpu = vm.vcpus[index].clone();
    let rip = Gva(cpu.insn_rip);
    let mut view = Inspect::new(vm);
    let listing = listing(&mut view, index, cpu.mode.bits, rip, symbols);
    let mut callers = Vec::new();
    for n in 0..STACK_WORDS {
        let Some(ret) = read_word(&mut view, index, cpu.gpr[gpr::RSP].wrapping_add(n * 8)) else { break };
        if let Some(call) = call_before(&mut view, index, &cpu, ret) {
            callers.push(Gva(call.ip()));
        }
    }
    callers.truncate(CALLERS);
    let registers = listing.last().map_or_else(String::new, |line| used_registers(&cpu, line, symbols));
    Write { icount, rip, old, new, listing, callers, registers }
}

/// The instructions that lead up to the one at `rip`, decoded from the start of its function; just that one if the
/// function is unknown or starts far away.
fn listing(view: &mut Inspect<'_>, index: usize, bits: u8, rip: Gva, symbols: &Symbols<'_>) -> Vec<Line> {
    let start = symbols.function(rip.0).map_or(rip.0, |f| f.value);
    let start = if rip.0 - start > FUNCTION { rip.0 } else { start };
    let mut bytes = vec![0; (rip.0 - start) as usize + 15];
    let len = view.read_virtual(index, Gva(start), &mut bytes);
    let mut lines = disassemble(&bytes[..len], bits, start, bytes.len());
    lines.retain(|l| l.ip <= rip.0);
    lines.split_off(lines.len().saturating_sub(LINES))
}

/// The general registers an instruction used, with their values, symbolic where they lie in a symbol.
fn used_registers(cpu: &Vcpu, line: &Line, symbols: &Symbols<'_>) -> String {
    let bits = u32::from(cpu.mode.bits);
    let instruction = Decoder::with_ip(bits, &line.bytes, line.ip, DecoderOptions::NONE).decode();
    let mut factory = InstructionInfoFactory::new();
    let mut shown: Vec<String> = Vec::new();
    for used in factory.info(&instruction).used_registers() {
        let register = used.register().full_register();
        if let (true, Some(&value)) = (register.is_gpr(), cpu.gpr.get(register.number())) {
            let text = format!("{} = {}", format!("{register:?}").to_lowercase(), symbols.describe(value));
            if !shown.contains(&text) {
                shown.push(text);
            }
        }
    }
    shown.join(", ")
}
