//! What the host makes of what the manual leaves undefined: flags after shifts and multiplications, BSF of zero and the
//! like. The interpreter's definition is the specification; a form the host answers otherwise on some of many operands is
//! not translated, but called. Also which of the forms that are not on every host this one has.

use super::x87;
use crate::addr::Gpa;
use crate::clock::{Clock, ClockKind};
use crate::ctx::{Ctx, System};
use crate::engine::hooks::Observer;
use crate::input::NoInput;
use crate::isa::insn::Insn;
use crate::isa::{self, Translate};
use crate::jit::probe::{Probe, Thunk, Values, instruction};
use crate::machine::board::Board;
use crate::machine::config::MachineConfig;
use crate::mem::Memory;
use crate::mmu::Mmu;
use crate::output::NullSink;
use crate::vcpu::cpuid::CpuModel;
use crate::vcpu::flags::bit::ARITH;
use crate::vcpu::gpr;
use crate::vcpu::segment::attr;
use crate::vcpu::{Seg, Vcpu, cr0, efer};
use iced_x86::{Code, CpuidFeature as F, Encoder, Mnemonic, OpCodeOperandKind};
use std::sync::OnceLock;

/// What is known of a form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Answer {
    /// The manual leaves some flag undefined that the interpreter defines.
    undefined: bool,
    /// The host does what the interpreter does.
    agrees: bool,
    /// And does it with a memory operand in the place of a register, too.
    anywhere: bool,
}

/// The answers, by form.
static ANSWERS: OnceLock<Vec<Answer>> = OnceLock::new();

fn answer(code: Code) -> Answer {
    let all = ANSWERS.get_or_init(|| Survey::new().ok().map_or_else(|| survey(&mut |_| None), Survey::run));
    all.get(code as usize).copied().unwrap_or(Answer { undefined: true, agrees: false, anywhere: false })
}

/// Does the host do with form `code` what the interpreter does for guests of CPU model `model`?
pub fn agrees(code: Code, model: CpuModel) -> bool {
    answer(code).agrees && (!is_optional(code) || model == CpuModel::X86_64V2)
}

/// May a register operand of the form be replaced by memory that holds its value?
pub fn agrees_in_memory(code: Code) -> bool {
    answer(code).anywhere
}

/// Does the interpreter define what the manual leaves undefined?
pub fn is_undefined(code: Code) -> bool {
    answer(code).undefined
}

/// Is the form one that some hosts do not have, and guests of the newest CPU model only?
fn is_optional(code: Code) -> bool {
    code.cpuid_features().iter().any(|f| has(*f).is_some())
}

/// Does the host have a feature? `None`: every host has, or `jit::host_support` has asked.
fn has(f: F) -> Option<bool> {
    Some(match f {
        F::LZCNT => is_x86_feature_detected!("lzcnt"),
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::ADX => is_x86_feature_detected!("adx"),
        F::MOVBE => is_x86_feature_detected!("movbe"),
        _ => return None,
    })
}

/// The answers for all rows, where `judge` knows those of the forms with something undefined: (agrees, anywhere).
fn survey(judge: &mut dyn FnMut(Code) -> Option<(bool, bool)>) -> Vec<Answer> {
    let plain = Answer { undefined: false, agrees: true, anywhere: true };
    let mut all = vec![plain; Code::values().len()];
    for row in isa::rows().filter(|r| !matches!(r.translate, Translate::Call)) {
        let code = row.code;
        let sample = instruction(code, false, 2).or_else(|| instruction(code, true, 2));
        // The flags of a division are those from before it, whatever the host says.
        let divides = matches!(code.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
        // The x87 has a probe of its own, `jit::x87_probe`.
        let integer = x87::of(code) == x87::Use::No;
        let undefined = integer && !divides && sample.is_some_and(|i| i.rflags_undefined() != 0);
        let present = code.cpuid_features().iter().all(|f| has(*f) != Some(false));
        let (agrees, anywhere) = match (present, undefined) {
            (false, _) => (false, false),
            (true, true) => judge(code).unwrap_or_default(),
            (true, false) => (true, true),
        };
        all[code as usize] = Answer { undefined, agrees, anywhere };
    }
    all
}

/// Immediates and shift counts tried.
const IMMEDIATES: [i64; 9] = [1, 0, 2, 7, 15, 17, 31, 33, -1];

/// Where the interpreter's memory operand is.
const DATA: u64 = 0x1000;

/// Host and interpreter side by side.
struct Survey {
    probe: Probe,
    cpu: Vcpu,
    sys: System,
    samples: Vec<Values>,
}

impl Survey {
    fn new() -> std::io::Result<Self> {
        let config = MachineConfig::default();
        let sys = System {
            icount: 0,
            asked: 0,
            limit: u64::MAX,
            mem: Memory::new(1 << 20, 0)?,
            mmu: Mmu::new(),
            board: Board::new(&config),
            clock: Clock::new(ClockKind::Virtual),
            input: Box::new(NoInput),
            output: Box::new(NullSink),
            interrupts: Default::default(),
            observer: Observer::default(),
        };
        Ok(Self { probe: Probe::new()?, cpu: flat64(), sys, samples: samples() })
    }

    fn run(mut self) -> Vec<Answer> {
        Ctx { cpu: &mut self.cpu, sys: &mut self.sys }.mmu_switch();
        survey(&mut |code| Some(self.judge(code)))
    }

    /// (agrees, anywhere) of a form, after all immediates and samples.
    fn judge(&mut self, code: Code) -> (bool, bool) {
        let tried = if has_immediate(code) { &IMMEDIATES[..] } else { &IMMEDIATES[..1] };
        let (mut compared, mut anywhere) = (false, true);
        for imm in tried {
            for memory in [false, true] {
                let Some(thunk) = self.probe.thunk(code, memory, *imm) else { continue };
                match self.compare(&thunk, code, memory, *imm) {
                    None => return (false, false),
                    Some(same) => anywhere &= same,
                }
                compared = true;
            }
        }
        (compared, compared && anywhere)
    }

    /// Compares the thunk of an instruction with the interpreter on all samples; `None`: they differ somewhere. If the
    /// instruction has a memory operand: is the result also that of the register form?
    fn compare(&mut self, thunk: &Thunk, code: Code, memory: bool, imm: i64) -> Option<bool> {
        let insn = decoded(code, memory, imm)?;
        let register = decoded(code, false, imm).filter(|_| memory);
        // What is written with less than 64 bits keeps the rest, or (a register) does not.
        let size = instruction(code, true, imm).map_or(8, |i| i.memory_size().size());
        let mask = u64::MAX >> (64 - 8 * size.clamp(1, 8));
        let mut same = true;
        for n in 0..self.samples.len() {
            let start = self.samples[n];
            let host = self.probe.run(thunk, start);
            if self.interpret(&insn, start) != Some(host) {
                return None;
            }
            let Some(i) = &register else { continue };
            same &= self.interpret(i, Values { rsi: start.mem, ..start }).is_some_and(|r| {
                let moved = Values { mem: r.rsi & mask, rsi: host.rsi, ..r };
                moved == Values { mem: host.mem & mask, ..host }
            });
        }
        Some(same)
    }

    /// What the interpreter makes of `insn`; `None`: it faults.
    fn interpret(&mut self, insn: &Insn, start: Values) -> Option<Values> {
        let Self { cpu, sys, .. } = self;
        sys.mem.write_phys(Gpa(DATA), &start.mem.to_le_bytes());
        let g = &mut cpu.gpr;
        (g[gpr::RAX], g[gpr::RBX], g[gpr::RCX], g[gpr::RDX]) = (start.rax, start.rbx, start.rcx, start.rdx);
        (g[gpr::RSI], g[gpr::RDI]) = (start.rsi, DATA);
        cpu.flags.replace(ARITH, start.flags);
        Ctx { cpu: &mut *cpu, sys: &mut *sys }.execute(insn).ok()?;
        let mut mem = [0; 8];
        sys.mem.read_phys(Gpa(DATA), &mut mem);
        let g = &cpu.gpr;
        Some(Values {
            mem: u64::from_le_bytes(mem),
            rax: g[gpr::RAX],
            rbx: g[gpr::RBX],
            rcx: g[gpr::RCX],
            rdx: g[gpr::RDX],
            rsi: g[gpr::RSI],
            flags: cpu.flags.0 & ARITH,
        })
    }
}

/// 64-bit code in flat segments without paging: no instruction probed can tell that there is no such state.
fn flat64() -> Vcpu {
    let mut cpu = Vcpu::new(0, CpuModel::X86_64V2);
    cpu.cr0 = cr0::PE | cr0::ET;
    cpu.msr.efer |= efer::LME | efer::LMA;
    for (n, s) in cpu.seg.iter_mut().enumerate() {
        (s.base, s.limit) = (0, u32::MAX);
        let kind = if n == Seg::Cs as usize { attr::CODE | attr::L } else { attr::DB };
        s.attr = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::G | kind;
    }
    cpu.refresh();
    cpu
}

fn has_immediate(code: Code) -> bool {
    use OpCodeOperandKind as K;
    let op = code.op_code();
    (0..op.op_count()).any(|n| {
        matches!(
            op.op_kind(n),
            K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 | K::imm16 | K::imm32 | K::imm32sex64
        )
    })
}

/// The probed instruction as the interpreter executes it.
fn decoded(code: Code, memory: bool, imm: i64) -> Option<Insn> {
    let i = instruction(code, memory, imm)?;
    let mut e = Encoder::new(64);
    e.encode(&i, 0).ok()?;
    isa::decode(&e.take_buffer(), 64, 0, CpuModel::X86_64V2).map(|d| d.insn)
}

/// Operands: corners of every width, few bits, many bits; counts in RCX.
fn samples() -> Vec<Values> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let (kind, bit, any) = (state >> 60, state >> 54 & 63, state ^ state >> 29);
        match kind {
            0 => 0,
            1..4 => 1 << bit,
            4..6 => u64::MAX << bit,
            6..8 => !(1 << bit),
            8..10 => any & 0xff,
            10 => (any as i32) as u64,
            _ => any,
        }
    };
    (0..24)
        .map(|_| Values {
            mem: next(),
            rax: next(),
            rbx: next(),
            rcx: next(),
            rdx: next(),
            rsi: next(),
            flags: next() & ARITH,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_a_form_is_judged_by_what_it_does() {
        let mut s = Survey::new().unwrap();
        Ctx { cpu: &mut s.cpu, sys: &mut s.sys }.mmu_switch();
        assert_eq!(s.judge(Code::Mov_rm32_r32), (true, true));
        assert_eq!(s.judge(Code::Adc_rm8_imm8), (true, true));
        let (thunk, other) = (s.probe.thunk(Code::Add_rm32_r32, false, 0).unwrap(), Code::Sub_rm32_r32);
        assert_eq!(s.compare(&thunk, other, false, 0), None, "the host seems to subtract");
    }

    #[test]
    fn test_only_forms_with_something_undefined_are_in_question() {
        let undefined =
            [Code::Mul_rm8, Code::Shl_rm32_CL, Code::Bsf_r64_rm64, Code::Bt_rm16_imm8, Code::And_rm8_r8];
        let defined = [Code::Add_rm8_r8, Code::Inc_rm32, Code::Mov_r64_rm64, Code::Cmp_AL_imm8];
        assert!(undefined.into_iter().all(is_undefined));
        assert!(!defined.into_iter().any(is_undefined));
        assert!(defined.into_iter().all(|c| agrees(c, CpuModel::I486)));
    }

    #[test]
    fn test_what_an_old_model_does_not_have_is_not_translated() {
        assert!(!agrees(Code::Lzcnt_r32_rm32, CpuModel::Pentium3));
        assert_eq!(agrees(Code::Lzcnt_r32_rm32, CpuModel::X86_64V2), is_x86_feature_detected!("lzcnt"));
    }
}
