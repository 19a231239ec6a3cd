//! Random guest programs run in lockstep. A seed makes a program, its data, its mappings and its timer; the same seed
//! makes the same again. The guest's kernel mends, skips and counts what goes wrong, so that a program goes on whatever
//! happens to it.
//!
//! `layout` where everything is, and the machine's state at the start | `handlers` and `handlers32` the guest's kernel |
//! `program`, `pieces64` and `pieces32` what is random.

pub mod handlers;
mod handlers32;
pub mod layout;
mod pieces32;
mod pieces64;
pub mod program;

use crate::asm::multiboot;
use crate::random::Rng;
use handlers::Handlers;
use iced_x86::{Code, Decoder, DecoderOptions};
use layout::COUNTS;
use program::{Forms, Program};
use retrovisor_core::input::NoInput;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::mmu::Paging;
use retrovisor_core::mmu::walk::walk;
use retrovisor_core::output::NullSink;
use retrovisor_core::{Gpa, Icount};
use retrovisor_replay::{Machine, VerifyOptions};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A program with everything around it.
pub struct Guest {
    pub seed: u64,
    /// 32 or 64.
    pub bits: u32,
    pub handlers: Handlers,
    pub program: Program,
    /// The timer's divisor, and nanoseconds an instruction takes: how often it interrupts.
    pub timer: u16,
    pub ns_per_insn: u64,
}

impl Guest {
    /// The guest of a seed.
    pub fn new(forms: &Forms, seed: u64) -> Self {
        let rng = &mut Rng(seed);
        let program = program::program(forms, rng);
        let (timer, ns_per_insn) = (2 + rng.below(20) as u16, 1 + rng.below(60));
        let handlers = if forms.bits == 64 { handlers::handlers() } else { handlers32::handlers() };
        Self { seed, bits: forms.bits, handlers, program, timer, ns_per_insn }
    }

    /// The machine, before the program's first instruction.
    pub fn machine(&self, options: VerifyOptions) -> Machine {
        let config = MachineConfig {
            memory: 4 << 20,
            ns_per_insn: self.ns_per_insn,
            no_reboot: true,
            ..MachineConfig::default()
        };
        let kernel = multiboot(|a| a.nop().expect("assembles"));
        let images = Images { kernel: Some(kernel), kernel_name: "fuzz".into(), ..Images::default() };
        let mut machine =
            Machine::live(config, images, options, Box::new(NoInput), Box::new(NullSink)).expect("a machine");
        layout::install(&mut machine, self);
        if let Some(lockstep) = machine.lockstep() {
            layout::install(lockstep.reference(), self);
        }
        machine
    }
}

/// What a hunt covered.
#[derive(Default)]
pub struct Coverage {
    pub programs: u64,
    pub instructions: u64,
    /// Blocks of the translator, and how often translated code was entered: the rest was interpreted by it.
    pub blocks: u64,
    pub entries: u64,
    /// Instructions it translated by re-encoding, by sequences of its own, by calls.
    pub translated: [u64; 3],
    /// Forms executed.
    pub codes: BTreeSet<Code>,
    /// Events by vector.
    pub vectors: BTreeMap<usize, u64>,
    /// Blocks that died because their bytes were written.
    pub rewritten: u64,
    /// How programs ended.
    pub ends: BTreeMap<String, u64>,
    /// Forms that are not drawn.
    pub excluded: Vec<(Code, String)>,
}

impl Coverage {
    fn add(&mut self, machine: &mut Machine, exit: VmExit) {
        self.programs += 1;
        let insns = machine.when().icount.0;
        self.instructions += insns;
        *self.ends.entry(format!("{exit:?}")).or_default() += 1;
        let jit = machine.jit_stats();
        self.entries += jit.entries;
        for (sum, n) in self.translated.iter_mut().zip([jit.identical, jit.emitted, jit.called]) {
            *sum += n;
        }
        let Some(lockstep) = machine.lockstep() else { return };
        self.blocks += lockstep.stats().blocks;
        let reference = lockstep.reference();
        self.rewritten += jit.written.max(reference.cache.stats.invalidated);
        for v in 0..256 {
            let mut b = [0; 8];
            reference.sys.mem.read_phys(Gpa(COUNTS + 8 * v), &mut b);
            // The program may have written over a counter.
            let n = u64::from_le_bytes(b);
            if v <= 0x81 && n != 0 && n <= insns {
                *self.vectors.entry(v as usize).or_default() += n;
            }
        }
    }
}

impl std::fmt::Display for Coverage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            programs, instructions, blocks, entries, translated, codes, vectors, rewritten, ends, ..
        } = self;
        let [identical, emitted, called] = translated;
        let vectors: Vec<String> = vectors.iter().map(|(v, n)| format!("{v:#x}: {n}")).collect();
        writeln!(f, "{programs} programs, {instructions} instructions in {blocks} steps of one block")?;
        writeln!(f, "  {entries} entries into translated code; {rewritten} blocks rewritten")?;
        writeln!(f, "  translated instructions: {identical} identical, {emitted} emitted, {called} called")?;
        writeln!(f, "  {} instruction forms executed", codes.len())?;
        writeln!(f, "  events by vector: {}", vectors.join(", "))?;
        writeln!(f, "  ends: {ends:?}")?;
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        self.excluded.iter().for_each(|(_, why)| *reasons.entry(why).or_default() += 1);
        reasons.iter().try_for_each(|(why, n)| writeln!(f, "  {n} forms not drawn: {why}"))
    }
}

/// The code the next block has, for coverage: its forms, as memory has them now.
fn note_codes(vm: &Vm, seen: &mut HashSet<u64>, codes: &mut BTreeSet<Code>) {
    let cpu = &vm.vcpus[0];
    if !seen.insert(cpu.rip) {
        return;
    }
    let mut bytes = [0u8; 15];
    let Ok(w) = walk(&vm.sys.mem, &Paging::of(cpu), cpu.rip) else { return };
    let n = bytes.len().min(4096 - (cpu.rip & 4095) as usize);
    if vm.sys.mem.read_phys(w.gpa, &mut bytes[..n]) {
        codes.insert(
            Decoder::with_ip(cpu.mode.bits.into(), &bytes[..n], cpu.rip, DecoderOptions::NONE)
                .decode()
                .code(),
        );
    }
}

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Hunt {
    /// 32- or 64-bit programs.
    pub bits: u32,
    /// The first seed; others follow until so many instructions have been executed, so many of each program at most.
    pub seed: u64,
    pub instructions: u64,
    pub each: u64,
    /// Says which seed comes next, for when it takes the process with it.
    pub loud: bool,
}

/// Runs programs.
///
/// # Errors
/// The seed and the report of the first difference.
pub fn hunt(what: Hunt, options: VerifyOptions) -> Result<Coverage, String> {
    let Hunt { bits, seed: first, instructions, each, loud } = what;
    let mut forms = Forms::new(bits);
    let mut c = Coverage { excluded: std::mem::take(&mut forms.excluded), ..Coverage::default() };
    for seed in first.. {
        if c.instructions >= instructions {
            break;
        }
        if loud {
            eprintln!("seed {seed}");
        }
        let guest = Guest::new(&forms, seed);
        let mut machine = guest.machine(options);
        let exit = machine.run(Some(Icount(each)));
        if let Some(m) = machine.mismatch() {
            return Err(format!("{bits}-bit program, seed {seed}: {m}"));
        }
        c.add(&mut machine, exit);
        if seed % 16 == 0 {
            trace_codes(&guest, each.min(20_000), &mut c.codes);
        }
    }
    Ok(c)
}

/// Runs a program alone, instruction by instruction, for the forms it executes.
fn trace_codes(guest: &Guest, instructions: u64, codes: &mut BTreeSet<Code>) {
    let options =
        VerifyOptions { engine: retrovisor_core::engine::Engine::Interp, ..VerifyOptions::default() };
    let mut machine = guest.machine(options);
    let mut seen = HashSet::new();
    while machine.when().icount.0 < instructions {
        note_codes(&machine, &mut seen, codes);
        if machine.step() != VmExit::Reached {
            return;
        }
    }
}
