//! Every instruction form that is translated, or called in the middle of a block, against the interpreter: random operands,
//! in a small loop of random neighbours, under the translator with every fast path and with each of them off. Same
//! registers, memory, exceptions and icount after.
//!
//! `RETROVISOR_TRANSLATED_CASES` cases a form (12), from `RETROVISOR_TRANSLATED_SEED` (1), of the forms whose name contains
//! `RETROVISOR_TRANSLATED_ROW`. A failure prints everything needed to see it.
#![allow(clippy::expect_used)]

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter, OpKind};
use retrovisor_core::Icount;
use retrovisor_core::addr::Gpa;
use retrovisor_core::engine::{Engine, JitOptions};
use retrovisor_core::input::NoInput;
use retrovisor_core::isa::{self, Translate};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::vcpu::{Seg, Vcpu, cr0};
use retrovisor_tests::asm;
use retrovisor_tests::native::{DATA, INSN, TAKEN};
use retrovisor_tests::random::{Case, Rng, case};
use retrovisor_tests::small::{self, CodeSize};

const _: () = assert!(INSN & !0xfff == TAKEN & !0xfff, "the code of a trial is in one page");
/// The two pages the data window is in.
const PAGES: u64 = DATA & !0xfff;
const PAGES_LEN: usize = 0x2000;
/// Where the page tables are: not mapped themselves.
const TABLES: u64 = 0x60_0000;
/// Bytes of a set of page tables.
const SET: u64 = 0x6000;
const MEMORY: u64 = 8 << 20;

/// Which accesses to the two data pages are allowed. Each has page tables of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Map {
    All,
    SecondAbsent,
    SecondReadOnly,
    FirstReadOnly,
}
const MAPS: [Map; 4] = [Map::All, Map::SecondAbsent, Map::SecondReadOnly, Map::FirstReadOnly];

impl Map {
    /// Low bits of the entry of page `page`: present, writable, user; accessed and dirty are left to the MMU.
    fn entry(self, page: u64) -> u64 {
        let second = PAGES + 0x1000;
        match self {
            _ if page == INSN & !0xfff => 5,
            Map::SecondAbsent if page == second => 0,
            Map::SecondReadOnly if page == second => 5,
            Map::FirstReadOnly if page == PAGES => 5,
            _ if (PAGES..PAGES + PAGES_LEN as u64).contains(&page) => 7,
            _ => 0,
        }
    }

    /// CR3 for it.
    fn tables(self, bits: u32) -> u64 {
        TABLES + SET * (2 * self as u64 + u64::from(bits == 64))
    }
}

/// Writes the page tables of a map: four levels for 64-bit code, two for 32-bit code.
fn write_tables(vm: &mut Vm, map: Map, bits: u32) {
    let (at, wide) = (map.tables(bits), bits == 64);
    let mut put = |table: u64, n: u64, v: u64| {
        let (size, bytes) = if wide { (8, v.to_le_bytes()) } else { (4, v.to_le_bytes()) };
        vm.sys.mem.write_phys(Gpa(at + table * 0x1000 + n * size), &bytes[..size as usize]);
    };
    let levels = if wide { 3 } else { 1 };
    for level in 0..levels {
        put(level, 0, (at + (level + 1) * 0x1000) | 7);
    }
    // In 64-bit code two tables of 512 entries, in 32-bit code one of 1024.
    for page in 0..1024 {
        let v = page << 12 | map.entry(page << 12);
        match wide {
            true => put(3 + (page >> 9), page & 511, v),
            false => put(1, page, v),
        }
    }
    if wide {
        put(2, 1, (at + 4 * 0x1000) | 7);
    }
}

/// A machine to run cases on.
struct Machine {
    name: String,
    vm: Vm,
}

fn machine(name: &str, engine: Engine, options: JitOptions, bits: u32) -> Machine {
    let config = MachineConfig { memory: MEMORY, no_reboot: true, ..MachineConfig::default() };
    let kernel = asm::multiboot(|a| a.nop().expect("nop"));
    let images = Images { kernel: Some(kernel), kernel_name: "guest".into(), ..Images::default() };
    let mut vm = Vm::new(config, images, Box::new(NoInput), Box::new(NullSink)).expect("machine");
    (vm.engine, vm.jit_options) = (engine, options);
    vm.hooks.stop_exceptions = u32::MAX;
    MAPS.into_iter().for_each(|m| write_tables(&mut vm, m, bits));
    Machine { name: name.into(), vm }
}

/// A case with all that is chosen around it.
struct Trial {
    case: Case,
    map: Map,
    /// Code, and where it begins.
    code: Vec<u8>,
    at: u64,
    /// Code at [`TAKEN`].
    taken: Vec<u8>,
    cpu: Vcpu,
    steps: u64,
}

/// Instructions that write flags, read flags, or use memory, the same in 32- and 64-bit code; none writes a general
/// register.
#[rustfmt::skip]
const NEIGHBOURS: &[&[u8]] = &[
    &[0x39, 0xc8],                                     // cmp eax, ecx
    &[0x85, 0xd3],                                     // test ebx, edx
    &[0xf9],                                           // stc
    &[0xf5],                                           // cmc
    &[0x0f, 0xa3, 0xc8],                               // bt eax, ecx
    &[0x3c, 0x10],                                     // cmp al, 10h
    &[0x70, 0x00],                                     // jo to the next
    &[0x76, 0x00],                                     // jbe to the next
    &[0x7a, 0x00],                                     // jp to the next
    &[0x7c, 0x00],                                     // jl to the next
    &[0x71, 0x02, 0x39, 0xc8],                         // jno over cmp eax, ecx
    &[0x73, 0x04, 0x66, 0x0f, 0xef, 0xdb],             // jae over pxor xmm3, xmm3
    &[0x66, 0x0f, 0xef, 0xdb],                         // pxor xmm3, xmm3
    &[0x0f, 0x58, 0xca],                               // addps xmm1, xmm2
    &[0x90],                                           // nop
    &[0xd9, 0xe0],                                     // fchs
];

fn neighbours(rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    while !rng.once_in(3) && out.len() < 16 {
        out.extend_from_slice(NEIGHBOURS[rng.below(NEIGHBOURS.len() as u64) as usize]);
    }
    out
}

/// The neighbours after the instruction, then perhaps a branch and in any case a jump back to `to`; all of it at `from`.
fn tail(rng: &mut Rng, from: u64, to: u64) -> Vec<u8> {
    let mut code = neighbours(rng);
    if rng.once_in(2) {
        let next = from + code.len() as u64 + 6;
        code.extend([0x0f, 0x80 | rng.below(16) as u8]);
        code.extend((to.wrapping_sub(next) as u32).to_le_bytes());
    }
    let next = from + code.len() as u64 + 5;
    code.push(0xe9);
    code.extend((to.wrapping_sub(next) as u32).to_le_bytes());
    code
}

fn trial(mut case: Case, bits: u32, template: &Vcpu, rng: &mut Rng) -> Trial {
    let map = if rng.once_in(3) { MAPS[rng.below(4) as usize] } else { Map::All };
    let mut cpu = template.clone();
    cpu.cr3 = map.tables(bits);
    if rng.once_in(16) {
        // One SIMD exception is not masked.
        case.state.mxcsr &= !(0x80 << rng.below(6));
    }
    if rng.once_in(30) {
        // x87 and SSE are switched off.
        cpu.cr0 |= if rng.once_in(2) { cr0::TS } else { cr0::EM };
    }
    let memory = (0..case.insn.op_count()).any(|n| case.insn.op_kind(n) == OpKind::Memory);
    if memory && rng.once_in(6) {
        case.bytes.insert(0, 0x64);
        cpu.seg[Seg::Fs as usize].base = if rng.once_in(2) { 0x10 } else { 0 };
    }
    small::load(&mut cpu, &case.state);
    cpu.flags.put(retrovisor_core::vcpu::flags::bit::IF, false);
    cpu.refresh();
    let mut code = neighbours(rng);
    let at = INSN - code.len() as u64;
    code.extend_from_slice(&case.bytes);
    code.extend(tail(rng, at + code.len() as u64, at));
    let taken = tail(rng, TAKEN, at);
    cpu.rip = at;
    let steps = 130 + rng.below(200);
    Trial { case, map, code, at, taken, cpu, steps }
}

/// What a run ends with.
struct End {
    exit: VmExit,
    icount: u64,
    cpu: Vcpu,
    data: Vec<u8>,
}

fn run(m: &mut Machine, t: &Trial, number: u64) -> End {
    let vm = &mut m.vm;
    // Cases begin at icounts of their own.
    vm.sys.icount = number << 12;
    vm.sys.mem.write_phys(Gpa(t.at), &t.code);
    vm.sys.mem.write_phys(Gpa(TAKEN), &t.taken);
    vm.sys.mem.write_phys(Gpa(PAGES), &vec![0xa5; PAGES_LEN]);
    vm.sys.mem.write_phys(Gpa(DATA), &t.case.data);
    vm.vcpus[0] = t.cpu.clone();
    if let Some(mut c) = vm.ctx(0) {
        c.mmu_switch();
    }
    let exit = vm.run(Some(Icount((number << 12) + t.steps)));
    let mut data = vec![0; PAGES_LEN];
    vm.sys.mem.read_phys(Gpa(PAGES), &mut data);
    End { exit, icount: vm.when().icount.0 - (number << 12), cpu: vm.vcpus[0].clone(), data }
}

/// The lines by which two ends differ.
fn differences(want: &End, got: &End) -> Vec<String> {
    let mut out = Vec::new();
    let mut line = |name: String, w: u128, g: u128| {
        if w != g {
            out.push(format!("    {name}: interpreter {w:#x}, translator {g:#x}"));
        }
    };
    let (a, b) = (&want.cpu, &got.cpu);
    for n in 0..16 {
        line(format!("gpr {n}"), a.gpr[n].into(), b.gpr[n].into());
        line(format!("xmm {n}"), a.fpu.xmm[n], b.fpu.xmm[n]);
    }
    line("rip".into(), a.rip.into(), b.rip.into());
    line("flags".into(), a.flags.0.into(), b.flags.0.into());
    line("cr2".into(), a.cr2.into(), b.cr2.into());
    line("mxcsr".into(), a.fpu.mxcsr.into(), b.fpu.mxcsr.into());
    line("icount".into(), want.icount.into(), got.icount.into());
    if want.exit != got.exit {
        out.push(format!("    exit: interpreter {:?}, translator {:?}", want.exit, got.exit));
    }
    if a.fpu != b.fpu && a.fpu.xmm == b.fpu.xmm && a.fpu.mxcsr == b.fpu.mxcsr {
        out.push(format!("    x87: interpreter {:x?}, translator {:x?}", a.fpu, b.fpu));
    }
    if let Some(n) = (0..PAGES_LEN).find(|n| want.data[*n] != got.data[*n]) {
        let bytes = |d: &[u8]| format!("{:02x?}", &d[n..(n + 16).min(PAGES_LEN)]);
        let (w, g) = (bytes(&want.data), bytes(&got.data));
        out.push(format!("    memory {:#x}: interpreter {w}, translator {g}", PAGES + n as u64));
    }
    out
}

fn disassembly(bits: u32, code: &[u8], at: u64) -> String {
    let mut d = Decoder::with_ip(bits, code, at, DecoderOptions::NONE);
    let (mut f, mut out) = (NasmFormatter::new(), String::new());
    while d.can_decode() {
        let i = d.decode();
        let mut text = String::new();
        f.format(&i, &mut text);
        out.push_str(&format!("        {:x} {text}\n", i.ip()));
    }
    out
}

/// Everything about a trial that went wrong.
fn report(t: &Trial, m: &Machine, bits: u32, lines: &[String]) -> String {
    let s = &t.case.state;
    let mut out = format!(
        "    on \"{}\", {:?}, {} steps, cr0 {:#x}, before: gpr {:x?} flags {:#x} mxcsr {:#x}\n{}\n",
        m.name,
        t.map,
        t.steps,
        t.cpu.cr0,
        s.gpr,
        s.flags,
        s.mxcsr,
        lines.join("\n")
    );
    out.push_str(&disassembly(bits, &t.code, t.at));
    if let Some(tr) = m.vm.translator() {
        for (id, b) in tr.blocks().filter(|(_, b)| b.key.rip == t.at) {
            if let Some((at, code)) = tr.host_code(id) {
                out.push_str(&format!("      host code of {:?}:\n{}", b.key, disassembly(64, &code, at)));
            }
        }
    }
    out
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// All the machines of one code size.
struct Bench {
    bits: u32,
    reference: Machine,
    /// With all fast paths: blocks translated for speed when they run often, and at once.
    all: [Machine; 2],
    /// Two for each switch, with that fast path off.
    off: Vec<Machine>,
    template: Vcpu,
    ran: u64,
}

impl Bench {
    fn new(bits: u32, size: CodeSize) -> Self {
        let make = |without: &[&str]| {
            let mut o = JitOptions::default();
            without.iter().for_each(|name| assert!(o.set(name, false)));
            machine(&format!("without {without:?}"), Engine::Jit, o, bits)
        };
        let off = |name: &&'static str| [make(&[name]), make(&["sample", name])];
        let reference = machine("interpreter", Engine::Interp, JitOptions::default(), bits);
        let mut template = small::vcpu(size);
        template.cr0 |= cr0::PG | cr0::WP;
        template.refresh();
        Self {
            bits,
            reference,
            all: [make(&[]), make(&["sample"])],
            off: JitOptions::NAMES.iter().flat_map(off).collect(),
            template,
            ran: 0,
        }
    }

    fn compare(&mut self, case: Case, rng: &mut Rng) -> Result<(), String> {
        let t = trial(case, self.bits, &self.template, rng);
        self.ran += 1;
        let want = run(&mut self.reference, &t, self.ran);
        let other = self.ran as usize % self.off.len();
        for m in self.all.iter_mut().chain([&mut self.off[other]]) {
            let got = run(m, &t, self.ran);
            let lines = differences(&want, &got);
            if !lines.is_empty() {
                return Err(report(&t, m, self.bits, &lines));
            }
        }
        Ok(())
    }
}

/// Compares every row a block can go on behind in `bits`-bit code; panics with all that differ.
fn sweep(bits: u32, size: CodeSize) {
    let cases = env("RETROVISOR_TRANSLATED_CASES", 12);
    let seed = env("RETROVISOR_TRANSLATED_SEED", 1);
    let only = std::env::var("RETROVISOR_TRANSLATED_ROW").unwrap_or_default();
    let mut bench = Bench::new(bits, size);
    let (mut compared, mut failures) = (0, Vec::new());
    for row in isa::rows().filter(|r| !matches!(r.translate, Translate::Call) || r.attrs & isa::END == 0) {
        let op = row.code.op_code();
        if !format!("{:?}", row.code).contains(&only) || !(if bits == 64 { op.mode64() } else { op.mode32() })
        {
            continue;
        }
        let mut made = false;
        for n in 0..cases {
            let mut rng = Rng(Rng(seed ^ (row.code as u64) << 40 ^ n << 8).bits());
            let Ok(c) = case(row.code, bits, &mut rng) else { continue };
            made = true;
            if let Err(e) = bench.compare(c, &mut rng) {
                failures.push(format!("{:?}, case {n} of seed {seed}:\n{e}", row.code));
                break;
            }
        }
        compared += usize::from(made);
    }
    println!("{bits}-bit code: {compared} forms compared, {cases} cases each");
    assert!(failures.is_empty(), "{} forms differ:\n{}", failures.len(), failures.join("\n"));
    assert!(compared > 400 || !only.is_empty(), "{compared} forms compared");
}

#[test]
fn test_translated_rows_agree_with_the_interpreter_in_64_bit_code() {
    sweep(64, CodeSize::Bits64)
}

#[test]
fn test_translated_rows_agree_with_the_interpreter_in_32_bit_code() {
    sweep(32, CodeSize::Bits32)
}
