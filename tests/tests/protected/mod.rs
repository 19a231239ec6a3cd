//! A 32-bit protected-mode machine built in RAM for tests: GDT, LDT, IDT, TSSs, two privilege levels. Instructions
//! run one at a time on the interpreter, with delivery, as the engine runs them.
#![allow(clippy::unwrap_used, dead_code)]

use retrovisor_core::addr::Gpa;
use retrovisor_core::clock::{Clock, ClockKind};
use retrovisor_core::input::NoInput;
use retrovisor_core::machine::board::Board;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::mem::{Memory, Pod};
use retrovisor_core::mmu::Mmu;
use retrovisor_core::output::NullSink;
use retrovisor_core::vcpu::cpuid::CpuModel;
use retrovisor_core::vcpu::flags::bit;
use retrovisor_core::vcpu::segment::{Segment, TableReg};
use retrovisor_core::vcpu::{Seg, Vcpu, cr0, cr4, efer, gpr};
use retrovisor_core::{Ctx, Exception, System};

pub const GDT: u64 = 0x1000;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const TSS2: u64 = 0x3400;
pub const TSS16: u64 = 0x3800;
pub const LDT: u64 = 0x3c00;
pub const CODE: u64 = 0x10000;
pub const STACK0: u64 = 0x20000;
pub const STACK3: u64 = 0x30000;
pub const DATA: u64 = 0x38000;
/// Handler of vector v: HANDLER + 16 v; also where gates lead.
pub const HANDLER: u64 = 0x40000;
pub const GATE_TARGET: u64 = 0x50000;

/// Selectors of the GDT.
pub mod sel {
    pub const CODE0: u16 = 0x08;
    pub const DATA0: u16 = 0x10;
    pub const CODE3: u16 = 0x1b;
    pub const DATA3: u16 = 0x23;
    pub const TSS: u16 = 0x28;
    pub const LDT: u16 = 0x30;
    /// Conforming, DPL 0.
    pub const CONFORMING: u16 = 0x38;
    pub const ABSENT: u16 = 0x43;
    /// Read-only data, DPL 3.
    pub const READONLY: u16 = 0x4b;
    pub const GATE: u16 = 0x53;
    /// Execute-only code, DPL 3.
    pub const EXEC_ONLY: u16 = 0x5b;
    pub const TSS16: u16 = 0x60;
    pub const TSS2: u16 = 0x68;
    pub const TASK_GATE: u16 = 0x73;
    /// Call gate with two parameters.
    pub const GATE2: u16 = 0x7b;
    /// 286 call gate.
    pub const GATE16: u16 = 0x83;
    pub const CODE64: u16 = 0x88;
    pub const CODE64_3: u16 = 0x93;
    /// In the LDT: data, DPL 3.
    pub const LDT_DATA: u16 = 0x07;
    pub const BEYOND: u16 = 0x1f0;
}

/// A vCPU and its system.
pub struct Machine {
    pub cpu: Vcpu,
    pub sys: System,
}

/// A code or data descriptor: `access` is byte 5, `flags` the upper nibble of byte 6.
pub fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xf) << 48
        | u64::from(flags) << 52
        | (base >> 24) << 56
}

pub fn gate(selector: u16, offset: u32, access: u8, params: u8) -> u64 {
    let offset = u64::from(offset);
    offset & 0xffff
        | u64::from(selector) << 16
        | u64::from(params) << 32
        | u64::from(access) << 40
        | (offset >> 16) << 48
}

impl Machine {
    /// A machine in real mode with empty memory.
    pub fn real(model: CpuModel) -> Self {
        let config = MachineConfig { memory: 4 << 20, cpu: model, ..MachineConfig::default() };
        let sys = System {
            icount: 0,
            asked: 0,
            limit: u64::MAX,
            mem: Memory::new(config.memory, 0).unwrap(),
            mmu: Mmu::new(),
            board: Board::new(&config),
            clock: Clock::new(ClockKind::Virtual),
            input: Box::new(NoInput),
            output: Box::new(NullSink),
            observer: retrovisor_core::engine::hooks::Observer::default(),
            interrupts: Default::default(),
        };
        let mut cpu = Vcpu::new(0, model);
        cpu.seg[Seg::Cs as usize] = Segment::real(0x1000);
        cpu.rip = 0;
        cpu.refresh();
        Self { cpu, sys }
    }

    /// 32-bit protected mode without paging at CPL `cpl` (0 or 3), about to execute `code` at [`CODE`].
    pub fn protected(cpl: u8, code: &[u8]) -> Self {
        let mut m = Self::real(CpuModel::default());
        m.write_tables();
        m.cpu.cr0 |= cr0::PE;
        m.cpu.gdtr = TableReg { base: GDT, limit: 0xff };
        m.cpu.idtr = TableReg { base: IDT, limit: 0x7ff };
        m.cpu.ldtr = m.segment(sel::LDT);
        m.cpu.tr = m.segment(sel::TSS);
        m.cpu.tr.attr |= 2;
        m.load_level(cpl);
        m.code(code);
        m
    }

    /// Flat segments and a stack for `cpl`.
    pub fn load_level(&mut self, cpl: u8) {
        let (cs, data, sp) =
            if cpl == 3 { (sel::CODE3, sel::DATA3, STACK3) } else { (sel::CODE0, sel::DATA0, STACK0) };
        for n in 0..6 {
            self.cpu.seg[n] = self.segment(if n == Seg::Cs as usize { cs } else { data });
        }
        self.cpu.gpr[gpr::RSP] = sp;
        self.cpu.refresh();
        self.ctx(|c| c.mmu_switch());
    }

    /// 64-bit mode at CPL `cpl`, identity-mapped with 1 GiB pages at 0x60000.
    pub fn long(cpl: u8, code: &[u8]) -> Self {
        let mut m = Self::protected(0, code);
        m.put(0x60000, 0x61007u64);
        m.put(0x61000, 0x87u64);
        m.cpu.cr3 = 0x60000;
        m.cpu.cr4 |= cr4::PAE;
        m.cpu.msr.efer |= efer::LME | efer::LMA | efer::NXE;
        m.cpu.cr0 |= cr0::PG;
        for v in 0..128 {
            let kind = if v == 0x40 { 0xee } else { 0x8e };
            m.put(IDT + 16 * v, gate(sel::CODE64, (HANDLER + 16 * v) as u32, kind, 0));
            m.put(IDT + 16 * v + 8, 0u64);
        }
        m.put(TSS + 4, STACK0);
        m.put(TSS + 0x24, STACK0 - 0x1000 + 7);
        if cpl == 3 {
            m.load_level(3);
            m.cpu.seg[Seg::Cs as usize] = m.segment(sel::CODE64_3);
        } else {
            m.cpu.seg[Seg::Cs as usize] = m.segment(sel::CODE64);
        }
        m.cpu.refresh();
        m.ctx(|c| c.mmu_switch());
        m
    }

    fn write_tables(&mut self) {
        let gdt = [
            0,
            descriptor(0, 0xfffff, 0x9b, 0xc),
            descriptor(0, 0xfffff, 0x93, 0xc),
            descriptor(0, 0xfffff, 0xfb, 0xc),
            descriptor(0, 0xfffff, 0xf3, 0xc),
            descriptor(TSS as u32, 0x3ff, 0x8b, 0),
            descriptor(LDT as u32, 0x1f, 0x82, 0),
            descriptor(0, 0xfffff, 0x9f, 0xc),
            descriptor(0, 0xfffff, 0x73, 0xc),
            descriptor(0, 0x12345, 0xf1, 0x4),
            gate(sel::CODE0, GATE_TARGET as u32, 0xec, 0),
            descriptor(0, 0xfffff, 0xf9, 0xc),
            descriptor(TSS16 as u32, 0x2b, 0x81, 0),
            descriptor(TSS2 as u32, 0x67, 0x89, 0),
            gate(sel::TSS2, 0, 0xe5, 0),
            gate(sel::CODE0, GATE_TARGET as u32, 0xec, 2),
            gate(sel::CODE0, 0xdead_0000 | 0x5000, 0xe4, 0),
            descriptor(0, 0xfffff, 0x9b, 0xa),
            descriptor(0, 0xfffff, 0xfb, 0xa),
        ];
        for (n, d) in gdt.into_iter().enumerate() {
            self.put(GDT + 8 * n as u64, d);
        }
        self.put(LDT, descriptor(0, 0xfffff, 0xf3, 0xc));
        for v in 0..256 {
            let access = if v == 0x80 { 0xef } else { 0x8e };
            self.put(IDT + 8 * v, gate(sel::CODE0, (HANDLER + 16 * v) as u32, access, 0));
        }
        self.put(IDT + 8 * 0x81, gate(sel::TSS2, 0, 0xe5, 0));
        self.put(TSS + 4, STACK0 as u32);
        self.put(TSS + 8, u32::from(sel::DATA0));
        self.put(TSS + 0x66, 0x88u16);
        self.write_tss2();
    }

    /// TSS2: a ring-0 task at [`GATE_TARGET`].
    fn write_tss2(&mut self) {
        self.put(TSS2 + 0x20, GATE_TARGET as u32);
        self.put(TSS2 + 0x24, 2u32);
        self.put(TSS2 + 0x38, STACK0 as u32 - 0x800);
        for (n, s) in
            [sel::DATA0, sel::CODE0, sel::DATA0, sel::DATA0, sel::DATA0, sel::DATA0].iter().enumerate()
        {
            self.put(TSS2 + 0x48 + 4 * n as u64, u32::from(*s));
        }
        self.put(TSS2 + 0x60, u32::from(sel::LDT));
    }

    /// The segment register that loading `selector` from the GDT gives.
    pub fn segment(&self, selector: u16) -> Segment {
        let lo: u64 = self.get(GDT + u64::from(selector & !7));
        retrovisor_core::vcpu::descriptor::Descriptor { lo, hi: 0, lin: 0 }.segment(selector)
    }

    pub fn code(&mut self, code: &[u8]) {
        self.cpu.rip = CODE;
        assert!(self.sys.mem.write_phys(Gpa(CODE), code));
    }

    pub fn put<T: Pod>(&mut self, at: u64, v: T) {
        let mut b = vec![0; T::SIZE];
        v.to_slice(&mut b);
        assert!(self.sys.mem.write_phys(Gpa(at), &b));
    }

    pub fn get<T: Pod>(&self, at: u64) -> T {
        let mut b = vec![0; T::SIZE];
        assert!(self.sys.mem.read_phys(Gpa(at), &mut b));
        T::from_slice(&b)
    }

    pub fn ctx<R>(&mut self, f: impl FnOnce(&mut Ctx<'_>) -> R) -> R {
        f(&mut Ctx { cpu: &mut self.cpu, sys: &mut self.sys })
    }

    /// Executes one instruction; the exception it raised, if any, undelivered.
    pub fn execute(&mut self) -> Result<(), Exception> {
        self.sys.limit = u64::MAX;
        let tf = self.cpu.flags.has(bit::TF);
        self.ctx(|c| {
            c.begin_insn()?;
            c.step_insn()?;
            match c.trap_boundary(tf) {
                Some(e) => Err(e),
                None => Ok(()),
            }
        })
    }

    /// Executes one instruction and delivers what it raised.
    pub fn step(&mut self) -> Option<Exception> {
        let e = self.execute().err()?;
        self.ctx(|c| c.deliver_exception(e));
        Some(e)
    }

    /// The 32-bit word `n` words above the stack pointer.
    pub fn stack(&self, n: u64) -> u32 {
        self.get(self.cpu.gpr[gpr::RSP] + 4 * n)
    }

    pub fn stack64(&self, n: u64) -> u64 {
        self.get(self.cpu.gpr[gpr::RSP] + 8 * n)
    }

    pub fn selector(&self, seg: Seg) -> u16 {
        self.cpu.seg[seg as usize].selector
    }

    pub fn flag(&self, mask: u64) -> bool {
        self.cpu.flags.has(mask)
    }
}
