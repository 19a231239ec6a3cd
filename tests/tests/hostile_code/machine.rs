//! A bare machine with paging on, in 64-bit or 32-bit mode at CPL 0, whose exception handlers keep a log.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use retrovisor_core::Icount;
use retrovisor_core::addr::Gpa;
use retrovisor_core::engine::Engine;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{InputEvent, NoInput};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::vcpu::segment::{Segment, TableReg, attr};
use retrovisor_core::vcpu::{cr0, cr4, efer};
use retrovisor_tests::asm;

pub const RAM: u64 = 4 << 20;
const GDT: u64 = 0x2000;
const IDT: u64 = 0x3000;
const TSS: u64 = 0x4000;
/// Where the next log entry goes; entries follow.
const LOG: u64 = 0x5000;
const ENTRIES: u64 = 0x5100;
const ENTRY: u64 = 48;
/// Address exceptions return to, in the order they come, if any; else the handler halts. The first word is the
/// address of the next.
const RESUME: u64 = 0x5008;
const RESUMES: u64 = 0x5800;
const STUBS: u64 = 0x6000;
/// Where programs begin.
pub const CODE: u64 = 0x8000;
pub const STACK: u64 = 0x7_0000;
/// Free for data.
pub const DATA: u64 = 0x7_1000;
/// Root of the page tables; tables follow.
pub const ROOT: u64 = 0x10_0000;

/// Selectors of the GDT.
pub mod sel {
    pub const CODE64: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const CODE32: u16 = 0x18;
    pub const DATA3: u16 = 0x23;
    pub const CODE64_3: u16 = 0x2b;
    pub const TSS: u16 = 0x38;
    /// The first of those [`super::Guest::descriptor`] sets.
    pub const FREE: u16 = 0x48;
}

/// Page-table entry bits.
pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;

/// Page-fault error-code bits.
pub mod pf {
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const ID: u64 = 0x10;
}

/// An exception a handler saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    /// CR2 at that time.
    pub cr2: u64,
    pub cs: u64,
    /// 64-bit mode: RSP at that time; else 0.
    pub rsp: u64,
}

/// What a guest came to.
#[derive(Debug)]
pub struct Report {
    pub gpr: [u64; 16],
    pub seen: Vec<Seen>,
    memory: Vec<u8>,
}

impl Report {
    pub fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.memory[at as usize..at as usize + 4].try_into().unwrap())
    }
    pub fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.memory[at as usize..at as usize + 8].try_into().unwrap())
    }
    /// The one exception there was: vector, error code, RIP.
    pub fn only(&self) -> (u64, u64, u64) {
        assert_eq!(self.seen.len(), 1, "{:x?}", self.seen);
        (self.seen[0].vector, self.seen[0].error, self.seen[0].rip)
    }
    /// The one exception there was is a page fault: error code, RIP, CR2.
    pub fn page_fault(&self) -> (u64, u64, u64) {
        let (vector, error, rip) = self.only();
        assert_eq!(vector, 14, "{:x?}", self.seen);
        (error, rip, self.seen[0].cr2)
    }
}

/// A machine being prepared.
pub struct Guest {
    pub vm: Vm,
    long: bool,
    /// Next free table page.
    next: u64,
    resumes: u64,
}

impl Guest {
    /// 64-bit mode, the first 4 MiB mapped onto themselves: user, writable.
    pub fn long() -> Self {
        Self::new(true, None)
    }
    /// 32-bit protected mode with 32-bit paging, mapped likewise.
    pub fn flat32() -> Self {
        Self::new(false, None)
    }
    /// As [`Guest::long`], with a firmware ROM that ends at 1 MiB and at 4 GiB.
    pub fn with_rom(rom: Vec<u8>) -> Self {
        Self::new(true, Some(rom))
    }

    fn new(long: bool, bios: Option<Vec<u8>>) -> Self {
        let images = Images {
            kernel: bios.is_none().then(|| asm::multiboot(|a| a.nop().unwrap())),
            bios,
            ..Images::default()
        };
        let config = MachineConfig { memory: RAM, no_reboot: true, ..MachineConfig::default() };
        let vm = Vm::new(config, images, Box::new(NoInput), Box::new(NullSink)).unwrap();
        let mut g = Self { vm, long, next: ROOT + 0x1000, resumes: 0 };
        g.tables();
        g.handlers();
        for page in 0..RAM >> 12 {
            g.map(page << 12, page << 12 | P | W | U);
        }
        g.registers();
        g
    }

    fn tables(&mut self) {
        let gdt = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            TSS << 16 | 0x0000_8b00_0000_0fff,
            0,
        ];
        for (n, d) in gdt.into_iter().enumerate() {
            self.put(GDT + 8 * n as u64, u64::to_le_bytes(d));
        }
        for v in 0..32 {
            let handler = STUBS + 16 * v;
            match self.long {
                true => self.put(IDT + 16 * v, (handler | 0x8e00_0008_0000).to_le_bytes()),
                false => self.put(IDT + 8 * v, (handler | 0x8e00_0018_0000).to_le_bytes()),
            }
        }
        // The stack of CPL 0.
        self.put(TSS + 4, STACK.to_le_bytes());
        self.put(LOG, ENTRIES.to_le_bytes());
        self.put(RESUME, RESUMES.to_le_bytes());
    }

    /// One stub a vector, which pushes an error code if the processor did not, and the vector.
    fn handlers(&mut self) {
        const COMMON: u64 = STUBS + 16 * 32;
        for v in 0..32u64 {
            let coded = matches!(v, 8 | 10..=14 | 17);
            self.asm(STUBS + 16 * v, |a| {
                if !coded {
                    a.push(0)?;
                }
                a.push(v as i32)?;
                a.jmp(COMMON)
            });
        }
        match self.long {
            true => self.asm(COMMON, common64),
            false => self.asm(COMMON, common32),
        }
    }

    fn registers(&mut self) {
        let cpu = &mut self.vm.vcpus[0];
        cpu.gdtr = TableReg { base: GDT, limit: 0xff };
        cpu.idtr = TableReg { base: IDT, limit: 0x7ff };
        let p = attr::P | attr::S | attr::ACCESSED | attr::RW | attr::G;
        let seg = |selector, attr| Segment { selector, base: 0, limit: u32::MAX, attr, lin_base: 0, fast: 0 };
        cpu.seg = [seg(sel::DATA, p | attr::DB); 6];
        cpu.seg[1] = match self.long {
            true => seg(sel::CODE64, p | attr::CODE | attr::L),
            false => seg(sel::CODE32, p | attr::CODE | attr::DB),
        };
        cpu.tr = Segment { selector: sel::TSS, base: TSS, limit: 0xfff, attr: 0x8b, lin_base: TSS, fast: 0 };
        if !self.long {
            self.vm.sys.mem.write_phys(Gpa(TSS + 8), &[sel::DATA as u8, 0]);
        }
        cpu.cr0 = cr0::ET | cr0::NE | cr0::PE | cr0::PG | cr0::WP;
        cpu.cr4 = if self.long { cr4::PAE | cr4::OSFXSR } else { 0 };
        cpu.msr.efer = if self.long { efer::LME | efer::LMA | efer::NXE | efer::SCE } else { 0 };
        cpu.cr3 = ROOT;
        cpu.gpr = Default::default();
        cpu.gpr[4] = STACK;
        cpu.rip = CODE;
        cpu.flags.0 = 2;
        self.refresh();
    }

    /// To be called after a change of the vCPU's registers.
    pub fn refresh(&mut self) {
        self.vm.vcpus[0].refresh();
        self.vm.ctx(0).unwrap().mmu_switch();
    }

    pub fn put(&mut self, at: u64, bytes: impl AsRef<[u8]>) {
        assert!(self.vm.sys.mem.write_phys(Gpa(at), bytes.as_ref()));
    }

    fn peek(&self, at: u64) -> u64 {
        let mut b = [0; 8];
        assert!(self.vm.sys.mem.read_phys(Gpa(at), &mut b));
        if self.long { u64::from_le_bytes(b) } else { u64::from_le_bytes(b) & 0xffff_ffff }
    }

    /// Code at `at`, in the mode the guest begins in.
    pub fn asm(&mut self, at: u64, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let code = assemble(if self.long { 64 } else { 32 }, at, build);
        self.put(at, code);
    }

    /// The program.
    pub fn program(mut self, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        self.asm(CODE, build);
        self
    }

    /// More of the guest.
    pub fn then(mut self, more: impl FnOnce(&mut Self)) -> Self {
        more(&mut self);
        self
    }

    /// The next exception returns to `rip`.
    pub fn resume(&mut self, rip: u64) {
        self.put(RESUMES + 8 * self.resumes, rip.to_le_bytes());
        self.resumes += 1;
    }

    /// Sets descriptor `n` from [`sel::FREE`] on; gives its selector.
    pub fn descriptor(&mut self, n: u16, base: u32, limit: u32, access: u8, flags: u8) -> u16 {
        let (b, l) = (u64::from(base), u64::from(limit));
        let d = l & 0xffff
            | (b & 0xff_ffff) << 16
            | u64::from(access) << 40
            | (l >> 16 & 0xf) << 48
            | u64::from(flags) << 52
            | (b >> 24) << 56;
        let selector = sel::FREE + 8 * n;
        self.put(GDT + u64::from(selector), d.to_le_bytes());
        selector
    }

    /// Maps the page of `lin` in the tables at [`ROOT`]; gives the physical address of the entry.
    pub fn map(&mut self, lin: u64, entry: u64) -> u64 {
        self.map_in(ROOT, lin, entry)
    }

    /// Maps the page of `lin` in the tables at `root`.
    pub fn map_in(&mut self, root: u64, lin: u64, entry: u64) -> u64 {
        let (levels, bits, size) = if self.long { (4, 9, 3) } else { (2, 10, 2) };
        let mut table = root;
        for level in (1..=levels).rev() {
            let index = lin >> (12 + bits * (level - 1)) & ((1 << bits) - 1);
            let at = table + (index << size);
            if level == 1 {
                self.put(at, &entry.to_le_bytes()[..1 << size]);
                return at;
            }
            if self.peek(at) & P == 0 {
                let new = self.table();
                self.put(at, &(new | P | W | U).to_le_bytes()[..1 << size]);
            }
            table = self.peek(at) & 0xf_ffff_f000;
        }
        unreachable!()
    }

    /// A page of zeroes for a table.
    pub fn table(&mut self) -> u64 {
        let new = self.next;
        self.next += 0x1000;
        assert!(self.next <= 0x18_0000);
        self.put(new, [0; 0x1000]);
        new
    }
}

/// Assembles code.
pub fn assemble(
    bits: u32,
    at: u64,
    build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    build(&mut a).unwrap();
    a.assemble(at).unwrap()
}

fn common64(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut halt = a.create_label();
    a.push(rax)?;
    a.push(rbx)?;
    a.mov(rbx, qword_ptr(LOG))?;
    // Vector, error code, RIP, CS.
    for n in 0..4 {
        a.mov(rax, qword_ptr(rsp + 16 + 8 * n))?;
        a.mov(qword_ptr(rbx + 8 * n), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rbx + 32), rax)?;
    a.mov(rax, qword_ptr(rsp + 56))?;
    a.mov(qword_ptr(rbx + 40), rax)?;
    a.add(qword_ptr(LOG), ENTRY as i32)?;
    a.mov(rbx, qword_ptr(RESUME))?;
    a.add(qword_ptr(RESUME), 8)?;
    a.mov(rax, qword_ptr(rbx))?;
    a.test(rax, rax)?;
    a.jz(halt)?;
    a.mov(qword_ptr(rsp + 32), rax)?;
    a.pop(rbx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(&mut halt)?;
    a.pop(rbx)?;
    a.pop(rax)?;
    a.hlt()
}

fn common32(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut halt = a.create_label();
    a.push(eax)?;
    a.push(ebx)?;
    a.push(ds)?;
    a.mov(eax, i32::from(sel::DATA))?;
    a.mov(ds, eax)?;
    a.mov(ebx, dword_ptr(LOG))?;
    for n in 0..4 {
        a.mov(eax, dword_ptr(esp + 12 + 4 * n))?;
        a.mov(dword_ptr(ebx + 8 * n), eax)?;
    }
    a.mov(eax, cr2)?;
    a.mov(dword_ptr(ebx + 32), eax)?;
    a.add(dword_ptr(LOG), ENTRY as i32)?;
    a.mov(ebx, dword_ptr(RESUME))?;
    a.add(dword_ptr(RESUME), 8)?;
    a.mov(eax, dword_ptr(ebx))?;
    a.test(eax, eax)?;
    a.jz(halt)?;
    a.mov(dword_ptr(esp + 20), eax)?;
    a.pop(ds)?;
    a.pop(ebx)?;
    a.pop(eax)?;
    a.add(esp, 8)?;
    a.iretd()?;
    a.set_label(&mut halt)?;
    a.pop(ds)?;
    a.pop(ebx)?;
    a.pop(eax)?;
    a.hlt()
}

/// Instructions a guest may take.
const PATIENCE: u64 = 200_000;

/// How a guest is run.
#[derive(Clone, Copy, Debug)]
enum How {
    Engine(Engine),
    /// The translator, every block translated for speed.
    Hot,
    /// One instruction at a time.
    Steps,
}

fn finish(mut g: Guest, how: How, events: &[(u64, InputEvent)]) -> (Report, StateHash, Icount) {
    let vm = &mut g.vm;
    vm.engine = match how {
        How::Engine(e) => e,
        How::Hot => Engine::Jit,
        How::Steps => Engine::Interp,
    };
    vm.jit_options.sample = !matches!(how, How::Hot);
    let advance = |vm: &mut Vm, until: u64| loop {
        let to = match how {
            How::Steps => vm.when().icount + 1,
            How::Engine(_) | How::Hot => Icount(until),
        };
        match vm.run(Some(to)) {
            VmExit::Reached if vm.when().icount.0 >= until => return VmExit::Reached,
            VmExit::Reached => {}
            other => return other,
        }
    };
    for (at, event) in events {
        assert_eq!(advance(vm, *at), VmExit::Reached, "{how:?}");
        vm.inject(event);
    }
    let exit = advance(vm, PATIENCE);
    assert_eq!(exit, VmExit::Dead, "{how:?}: RIP {:#x}", vm.vcpus[0].rip);
    let gpr = vm.vcpus[0].gpr[..16].try_into().unwrap();
    let (hash, icount) = (vm.state_hash(), vm.when().icount);
    let mut memory = vec![0; RAM as usize];
    for (n, page) in memory.chunks_mut(0x1000).enumerate() {
        // Device memory stays zero.
        vm.sys.mem.read_phys(Gpa(n as u64 * 0x1000), page);
    }
    let mut report = Report { gpr, seen: Vec::new(), memory };
    for at in (ENTRIES..report.u64(LOG)).step_by(ENTRY as usize) {
        let w = [0, 1, 2, 3, 4, 5].map(|n| report.u64(at + 8 * n));
        report.seen.push(Seen { vector: w[0], error: w[1], rip: w[2], cs: w[3], cr2: w[4], rsp: w[5] });
    }
    (report, hash, icount)
}

/// Runs a guest until it halts, every way there is; all must agree.
pub fn run(build: impl Fn() -> Guest) -> Report {
    run_with(build, &[])
}

/// As [`run`], with inputs at icounts.
pub fn run_with(build: impl Fn() -> Guest, events: &[(u64, InputEvent)]) -> Report {
    let (report, hash, icount) = finish(build(), How::Engine(Engine::Interp), events);
    for how in [How::Engine(Engine::Jit), How::Hot, How::Steps] {
        let (r, h, i) = finish(build(), how, events);
        assert_eq!((&r.seen, r.gpr), (&report.seen, report.gpr), "{how:?}");
        assert_eq!((h, i), (hash, icount), "{how:?}");
    }
    report
}
