//! Random x87 and MMX programs on the translator and on the interpreter in lockstep: stack overflow and underflow, unmasked
//! exceptions, state saved and loaded in the middle, CR0.TS, page faults at operands, MMX and x87 in turn, lost TLB entries.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use iced_x86::code_asm::*;
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Formatter, Instruction, IntelFormatter, MemoryOperand, Mnemonic,
    OpCodeOperandKind as K, OpKind, Register,
};
use retrovisor_core::engine::Engine;
use retrovisor_core::input::NoInput;
use retrovisor_core::isa;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::{Gpa, Icount};
use retrovisor_tests::asm;
use retrovisor_tests::random::Rng;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
/// Pointers to GDT, IDT and the code.
const POINTERS: u64 = 0x3000;
const TABLES: u64 = 0x4000;
/// The page table of the data's region.
const PT: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;
const STACK: u64 = 0x20_0000;
const CODE: u64 = 0x30_0000;
/// Operands; page-wise mapped.
const DATA: u64 = 0x60_0000;
const PAGES: u64 = 8;
/// State images and control words, behind the operands.
const AREA: u64 = DATA + PAGES * 0x1000;
const WORDS: u64 = AREA + 0x800;
const COUNT: u64 = AREA + 0x900;

/// Control words: most mask everything.
const CONTROL: [u16; 8] = [0x37f, 0x27f, 0xc7f, 0x7f, 0xf7f, 0x1b7f, 0x37b, 0x340];

/// Page tables: 2 or 4 MiB pages, each equal to its address, but for the region of the data.
fn tables(vm: &mut Vm, bits: u32) {
    let size = if bits == 64 { 8 } else { 4 };
    let mut put = |at: u64, v: u64| vm.sys.mem.write_phys(Gpa(at), &v.to_le_bytes()[..size as usize]);
    let large = if bits == 64 { 0x20_0000 } else { 0x40_0000 };
    let directory = TABLES + if bits == 64 { 0x2000 } else { 0 };
    if bits == 64 {
        put(TABLES, TABLES + 0x1003);
        put(TABLES + 0x1000, TABLES + 0x2003);
    }
    let at = DATA / large;
    for n in 0..at {
        put(directory + n * size, (n * large) | 0x83);
    }
    put(directory + at * size, PT | 3);
    for n in 0..large / 0x1000 {
        put(PT + n * size, (at * large + n * 0x1000) | 3);
    }
}

/// Address of the page-table entry of a data page.
fn entry(bits: u32, page: u64) -> u64 {
    let (size, large) = if bits == 64 { (8, 0x20_0000) } else { (4, 0x40_0000) };
    PT + (DATA % large / 0x1000 + page) * size
}

fn descriptors(vm: &mut Vm, bits: u32) {
    let code = if bits == 64 { 0x00af_9b00_0000_ffffu64 } else { 0x00cf_9b00_0000_ffff };
    let data = 0x00cf_9300_0000_ffff;
    for (n, d) in [0, code, data, data].into_iter().enumerate() {
        vm.sys.mem.write_phys(Gpa(GDT + 8 * n as u64), &d.to_le_bytes());
    }
    for (n, vector) in (0..).zip([7u64, 14, 16]) {
        let at = HANDLERS + 0x100 * n;
        let gate = at & 0xffff | 8 << 16 | 0x8e00 << 32 | at >> 16 << 48;
        let place = IDT + vector * if bits == 64 { 16 } else { 8 };
        vm.sys.mem.write_phys(Gpa(place), &gate.to_le_bytes());
    }
    for (at, limit, base) in [(0, 0x1f, GDT), (8, 0xfff, IDT)] {
        vm.sys.mem.write_phys(Gpa(POINTERS + at), &(limit | base << 16).to_le_bytes());
    }
    vm.sys.mem.write_phys(Gpa(POINTERS + 16), &(CODE | 8 << 32).to_le_bytes());
}

fn assemble(bits: u32, at: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    f(&mut a).unwrap();
    a.assemble(at).unwrap()
}

/// #NM allows the FPU, #PF maps the page, #MF clears the flags; all go back to the instruction.
fn handlers(vm: &mut Vm, bits: u32) {
    let nm = |a: &mut CodeAssembler| {
        a.clts()?;
        if bits == 64 { a.iretq() } else { a.iretd() }
    };
    let pf = |a: &mut CodeAssembler| {
        if bits == 64 {
            a.push(rax)?;
            a.mov(rax, cr2)?;
            a.shr(eax, 12)?;
            a.and(eax, 0x1ff)?;
            a.or(dword_ptr(rax * 8 + PT), 1)?;
            a.pop(rax)?;
            a.add(rsp, 8)?;
            return a.iretq();
        }
        a.push(eax)?;
        a.mov(eax, cr2)?;
        a.shr(eax, 12)?;
        a.and(eax, 0x3ff)?;
        a.or(dword_ptr(eax * 4 + PT), 1)?;
        a.pop(eax)?;
        a.add(esp, 4)?;
        a.iretd()
    };
    let mf = |a: &mut CodeAssembler| {
        a.fnclex()?;
        if bits == 64 { a.iretq() } else { a.iretd() }
    };
    for (n, code) in [
        assemble(bits, HANDLERS, nm),
        assemble(bits, HANDLERS + 0x100, pf),
        assemble(bits, HANDLERS + 0x200, mf),
    ]
    .iter()
    .enumerate()
    {
        vm.sys.mem.write_phys(Gpa(HANDLERS + 0x100 * n as u64), code);
    }
}

/// From the boot loader's state to the program.
fn boot(a: &mut CodeAssembler, bits: u32) -> Result<(), IcedError> {
    a.lgdt(fword_ptr(POINTERS))?;
    a.lidt(fword_ptr(POINTERS + 8))?;
    a.mov(eax, 0x10)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(eax, 0x18)?;
    a.mov(ss, eax)?;
    a.mov(esp, STACK as u32)?;
    a.mov(eax, if bits == 64 { 0x620 } else { 0x610 })?;
    a.mov(cr4, eax)?;
    a.mov(eax, TABLES as u32)?;
    a.mov(cr3, eax)?;
    if bits == 64 {
        a.mov(ecx, 0xc000_0080u32)?;
        a.mov(eax, 0x100)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
    }
    // PG, WP, NE, MP, PE.
    a.mov(eax, 0x8001_0023u32)?;
    a.mov(cr0, eax)?;
    a.fninit()?;
    a.jmp(fword_ptr(POINTERS + 16))
}

fn vm(bits: u32, code: &[u8], data: &[u8], engine: Engine, options: &str) -> Vm {
    let config = MachineConfig { memory: 8 << 20, no_reboot: true, ..MachineConfig::default() };
    let kernel = asm::multiboot(|a| boot(a, bits).unwrap());
    let images = Images { kernel: Some(kernel), kernel_name: "guest".into(), ..Images::default() };
    let mut vm = Vm::new(config, images, Box::new(NoInput), Box::new(NullSink)).unwrap();
    vm.engine = engine;
    vm.jit_options = options.parse().unwrap();
    tables(&mut vm, bits);
    descriptors(&mut vm, bits);
    handlers(&mut vm, bits);
    vm.sys.mem.write_phys(Gpa(CODE), code);
    vm.sys.mem.write_phys(Gpa(DATA), data);
    for (n, w) in (0..).zip(CONTROL) {
        vm.sys.mem.write_phys(Gpa(WORDS + 2 * n), &w.to_le_bytes());
    }
    vm
}

/// Writes a random program.
struct Writer<'a> {
    bits: u32,
    rng: &'a mut Rng,
    x87: Vec<Code>,
    mmx: Vec<Code>,
    out: Vec<u8>,
}

impl Writer<'_> {
    fn put(&mut self, i: &Instruction) {
        let mut e = Encoder::new(self.bits);
        if e.encode(i, CODE + self.out.len() as u64).is_ok() {
            self.out.extend(e.take_buffer());
        }
    }

    fn asm(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let at = CODE + self.out.len() as u64;
        self.out.extend(assemble(self.bits, at, f));
    }

    /// A pointer into the data: RBX, RSI, RBP, RDI; in 64-bit code R13 and R14, too.
    fn pointer(&mut self) -> Register {
        let all = [3u32, 6, 5, 7, 13, 14];
        let n = all[self.rng.below(if self.bits == 64 { 6 } else { 4 }) as usize];
        (if self.bits == 64 { Register::RAX } else { Register::EAX }) + n
    }

    fn memory(&mut self) -> MemoryOperand {
        let disp = self.rng.below(0x1000) as i64 - 0x800;
        let (base, wide) = (self.pointer(), if self.bits == 64 { Register::RAX } else { Register::EAX });
        match self.rng.below(10) {
            0 => MemoryOperand::with_displ(DATA + self.rng.below(PAGES * 0x1000 - 16), self.bits / 8),
            1 if self.bits == 64 => {
                MemoryOperand::with_base_displ(Register::RIP, (DATA + self.rng.below(0x7000)) as i64)
            }
            2 => {
                // The index is zero.
                let index = if self.bits == 64 { Register::R15 } else { wide + 2 };
                MemoryOperand::with_base_index_scale_displ_size(base, index, 4, disp, 4)
            }
            _ => {
                MemoryOperand::with_base_displ_size(base, disp & if self.rng.once_in(2) { !7 } else { !0 }, 4)
            }
        }
    }

    /// A random instruction of form `code`.
    fn form(&mut self, code: Code) {
        let op = code.op_code();
        let mut i = Instruction::default();
        i.set_code(code);
        let scratch = [0u32, 1, 9, 11];
        for n in 0..op.op_count() {
            // Sixteen bytes would have to be aligned.
            let aligned = matches!(code.mnemonic(), Mnemonic::Cvtpd2pi | Mnemonic::Cvttpd2pi);
            let register = self.rng.once_in(2) || aligned;
            let any = self.rng.below(8) as u32;
            let gpr = scratch[self.rng.below(if self.bits == 64 { 4 } else { 2 }) as usize];
            let r = match op.op_kind(n) {
                K::mem => None,
                K::mm_or_mem | K::r32_or_mem | K::r64_or_mem | K::r32_reg_mem | K::xmm_or_mem
                    if !register =>
                {
                    None
                }
                K::r32_reg_mem | K::r64_reg_mem if !register => None,
                K::mm_reg | K::mm_or_mem | K::mm_rm => Some(Register::MM0 + any),
                K::xmm_reg | K::xmm_or_mem | K::xmm_rm => Some(Register::XMM0 + any),
                K::st0 => Some(Register::ST0),
                K::sti_opcode => Some(Register::ST0 + any),
                K::r32_reg | K::r32_or_mem | K::r32_rm | K::r32_reg_mem => Some(Register::EAX + gpr),
                K::r64_reg | K::r64_or_mem | K::r64_rm | K::r64_reg_mem => Some(Register::RAX + gpr),
                K::ax => Some(Register::AX),
                K::imm8 => {
                    i.set_op_kind(n, OpKind::Immediate8);
                    i.set_immediate8(self.rng.bits() as u8);
                    continue;
                }
                _ => return,
            };
            if let Some(r) = r {
                i.set_op_kind(n, OpKind::Register);
                i.set_op_register(n, r);
                continue;
            }
            let m = self.memory();
            i.set_op_kind(n, OpKind::Memory);
            i.set_memory_base(m.base);
            i.set_memory_index(m.index);
            i.set_memory_index_scale(m.scale);
            i.set_memory_displacement64(m.displacement as u64);
            i.set_memory_displ_size(m.displ_size);
        }
        self.put(&i);
    }

    /// Something between the x87 instructions.
    fn integer(&mut self) {
        let p = self.pointer();
        let (is64, d) = (self.bits == 64, self.rng.below(64) as i32 - 32);
        match self.rng.below(9) {
            0 | 1 => {
                let code = if is64 { Code::Add_rm64_imm8 } else { Code::Add_rm32_imm8 };
                self.put(&Instruction::with2(code, p, d).unwrap());
            }
            2 => {
                let code = if is64 { Code::Lea_r64_m } else { Code::Lea_r32_m };
                let m = MemoryOperand::with_base_displ(p, d.into());
                self.put(&Instruction::with2(code, p, m).unwrap());
            }
            3 => {
                // Not an addition of a constant.
                let from = (if is64 { Register::RAX } else { Register::EAX }) + 3;
                let code = if is64 { Code::Mov_r64_rm64 } else { Code::Mov_r32_rm32 };
                self.put(&Instruction::with2(code, p, from).unwrap());
            }
            4 => self.asm(|a| a.cmp(eax, d)),
            5 => self.asm(|a| {
                let mut next = a.create_label();
                a.jb(next)?;
                a.set_label(&mut next)?;
                a.nop()
            }),
            6 if is64 => self.asm(|a| {
                a.push(rax)?;
                a.pop(rcx)
            }),
            6 => self.asm(|a| {
                a.push(eax)?;
                a.pop(ecx)
            }),
            7 => self.asm(|a| a.add(eax, dword_ptr(DATA + 8 * (d as u64 & 63)))),
            _ => self.asm(|a| a.sahf()),
        }
    }

    /// Something that disturbs the x87 state, or where it is.
    fn disturb(&mut self) {
        let area = AREA + 0x400 * self.rng.below(2);
        let page = self.rng.below(PAGES);
        let (pte, word) = (entry(self.bits, page), WORDS + 2 * self.rng.below(8));
        let m = dword_ptr(area);
        match self.rng.below(16) {
            0 => self.asm(|a| a.fninit()),
            1..4 => self.asm(|a| a.fldcw(word_ptr(word))),
            4 => self.asm(|a| a.fnsave(m)),
            5 => self.asm(|a| a.frstor(m)),
            6 => self.asm(|a| {
                a.fnstenv(m)?;
                a.fldenv(m)
            }),
            7 => self.asm(|a| a.fxsave(dword_ptr(area + 0x100))),
            8 => self.asm(|a| a.fxrstor(dword_ptr(area + 0x100))),
            9 if self.bits == 64 => self.asm(|a| {
                a.mov(rax, cr0)?;
                a.or(eax, 8)?;
                a.mov(cr0, rax)
            }),
            9 => self.asm(|a| {
                a.mov(eax, cr0)?;
                a.or(eax, 8)?;
                a.mov(cr0, eax)
            }),
            10 | 11 => self.asm(|a| {
                a.and(dword_ptr(pte), !1)?;
                a.invlpg(byte_ptr(DATA + page * 0x1000))
            }),
            12 | 13 => self.asm(|a| a.invlpg(byte_ptr(DATA + page * 0x1000))),
            14 => self.asm(|a| a.emms()),
            _ => self.asm(|a| {
                a.mov(edx, 0)?;
                a.xchg(eax, ecx)?;
                a.cld()
            }),
        }
    }

    fn program(&mut self, length: usize) {
        let is64 = self.bits == 64;
        self.asm(|a| {
            a.mov(dword_ptr(COUNT), 12)?;
            for n in [0, 0x400] {
                a.fxsave(dword_ptr(AREA + n + 0x100))?;
                a.fnsave(dword_ptr(AREA + n))?;
            }
            a.frstor(dword_ptr(AREA))
        });
        let top = CODE + self.out.len() as u64;
        for (n, r) in (0..).zip([ebx, esi, ebp, edi]) {
            self.asm(|a| a.mov(r, DATA as u32 + 0x1000 + 0x1000 * n));
        }
        self.asm(|a| a.mov(edx, 0));
        if is64 {
            self.asm(|a| {
                a.mov(r13d, DATA as u32 + 0x3800)?;
                a.mov(r14d, DATA as u32 + 0x5800)?;
                a.xor(r15d, r15d)
            });
        }
        let mut mmx = false;
        for _ in 0..length {
            match self.rng.below(20) {
                0 => self.disturb(),
                1..6 => self.integer(),
                6 if self.rng.once_in(3) => mmx = !mmx,
                _ => {
                    let pool = if mmx { &self.mmx } else { &self.x87 };
                    let code = pool[self.rng.below(pool.len() as u64) as usize];
                    self.form(code);
                }
            }
        }
        self.asm(|a| a.dec(dword_ptr(COUNT)));
        self.put(
            &Instruction::with_branch(if is64 { Code::Jne_rel32_64 } else { Code::Jne_rel32_32 }, top)
                .unwrap(),
        );
        self.asm(|a| {
            a.cli()?;
            a.hlt()
        });
    }
}

/// Forms whose operands need more than a place in memory, or that `Writer::disturb` writes itself.
fn excluded(code: Code) -> bool {
    matches!(
        code.mnemonic(),
        Mnemonic::Maskmovq
            | Mnemonic::Fldcw
            | Mnemonic::Fldenv
            | Mnemonic::Frstor
            | Mnemonic::Fnstenv
            | Mnemonic::Fnsave
            | Mnemonic::Fninit
            | Mnemonic::Emms
    )
}

fn pool(families: &[&[isa::Row]]) -> Vec<Code> {
    families.iter().copied().flatten().map(|r| r.code).filter(|c| !excluded(*c)).collect()
}

fn listing(bits: u32, code: &[u8], from: u64, count: usize) -> String {
    let at = (from - CODE) as usize;
    let mut f = IntelFormatter::new();
    Decoder::with_ip(bits, &code[at.min(code.len())..], from, DecoderOptions::NONE)
        .iter()
        .take(count)
        .map(|i| {
            let mut s = String::new();
            f.format(&i, &mut s);
            format!("  {:#x} {s}\n", i.ip())
        })
        .collect()
}

/// Runs program `seed` on both engines; `slice`: block by block (0), or by up to so many instructions.
fn compare(seed: u64, bits: u32, slice: u64, options: &str) {
    let mut rng = Rng(seed);
    let data: Vec<u8> = (0..PAGES * 0x1000 / 16)
        .flat_map(|_| if rng.once_in(3) { rng.bits().into() } else { rng.vector() }.to_le_bytes())
        .collect();
    let mut w = Writer {
        bits,
        rng: &mut rng,
        x87: pool(&[
            isa::x87::arith::ROWS,
            isa::x87::arith::ROWS,
            isa::x87::compare::ROWS,
            isa::x87::control::ROWS,
            isa::x87::convert::ROWS,
            isa::x87::convert::ROWS,
            isa::x87::env::ROWS,
            isa::x87::stack::ROWS,
            isa::x87::transcendental::ROWS,
        ]),
        mmx: pool(&[isa::mmx::mov::ROWS, isa::mmx::native::ROWS]),
        out: Vec::new(),
    };
    w.program(150);
    let code = w.out;
    let mut j = vm(bits, &code, &data, Engine::Jit, options);
    let mut i = vm(bits, &code, &data, Engine::Interp, "");
    let mut picks = Rng(seed ^ 1);
    loop {
        let (at, rip) = (j.when().icount.0, j.vcpus[0].rip);
        let before = j.vcpus[0].fpu;
        let end = match slice {
            0 => j.run_block(None),
            n => j.run(Some(Icount(at + 1 + picks.below(n)))),
        };
        let to = j.when().icount;
        let mut other = i.run(Some(if to.0 == at { Icount(at + 1) } else { to }));
        if end == VmExit::Dead {
            other = i.run(None);
        }
        let (a, b) = (&j.vcpus[0], &i.vcpus[0]);
        if (a.gpr, a.rip, a.flags, a.fpu, a.cr0, a.cr2) != (b.gpr, b.rip, b.flags, b.fpu, b.cr0, b.cr2) {
            panic!(
                "seed {seed}, {bits} bits, slice {slice}, from {at} to {to:?}\nbefore {before:x?}\njit    {:x?}\ninterp {:x?}\n\
                 rip {:#x} {:#x} flags {:x} {:x}\ngpr {:x?}\n    {:x?}\n{}",
                a.fpu,
                b.fpu,
                a.rip,
                b.rip,
                a.flags.0,
                b.flags.0,
                a.gpr,
                b.gpr,
                if rip >= CODE { listing(bits, &code, rip, (to.0 - at) as usize + 1) } else { String::new() }
            );
        }
        if end != VmExit::Reached || other != VmExit::Reached {
            assert_eq!(
                (&end, &other),
                (&VmExit::Dead, &VmExit::Dead),
                "seed {seed}: {:x?}\n{}",
                j.vcpus[0].fault_chain,
                listing(bits, &code, j.vcpus[0].rip.max(CODE), 3)
            );
            break;
        }
    }
    assert!(j.when().icount.0 > 1000, "seed {seed}");
    assert_eq!(j.state_hash(), i.state_hash(), "seed {seed}");
}

fn seeds() -> std::ops::Range<u64> {
    let n = |name, other| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(other);
    let from = n("X87_FROM", 0);
    from..from + n("X87_SEEDS", 25)
}

#[test]
fn test_blocks_of_32_bit_code() {
    seeds().for_each(|s| compare(s, 32, 0, ""));
}

#[test]
fn test_blocks_of_64_bit_code() {
    seeds().for_each(|s| compare(s, 64, 0, ""));
}

#[test]
fn test_chained_32_bit_code() {
    seeds().for_each(|s| compare(s, 32, 700, ""));
}

#[test]
fn test_chained_64_bit_code() {
    seeds().for_each(|s| compare(s, 64, 700, ""));
}

#[test]
fn test_fast_paths_off() {
    for options in ["no-x87", "no-windows", "no-lazy-flags", "no-inline-tlb", "no-sse", "no-sample"] {
        seeds().take(5).for_each(|s| compare(s, 64, 300, options));
    }
}
