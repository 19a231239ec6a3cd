//! A small flat machine for instruction tests: 32-bit protected mode, paging off, code at 0x1000.

#![allow(clippy::unwrap_used)]

use crate::clock::{Clock, ClockKind};
use crate::ctx::{Ctx, System};
use crate::engine::hooks::Observer;
use crate::exception::Exception;
use crate::input::NoInput;
use crate::machine::board::Board;
use crate::machine::config::MachineConfig;
use crate::mem::Memory;
use crate::mmu::Mmu;
use crate::output::NullSink;
use crate::vcpu::cpuid::CpuModel;
use crate::vcpu::segment::attr;
use crate::vcpu::{Vcpu, cr0, cr4};
use iced_x86::code_asm::CodeAssembler;

pub const CODE: u64 = 0x1000;
pub const DATA: u64 = 0x4000;

pub struct Machine {
    pub cpu: Vcpu,
    pub sys: System,
}

impl Machine {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let mut cpu = Vcpu::new(0, CpuModel::X86_64V2);
        cpu.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::MP;
        cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        cpu.xcr0 = 3;
        for (n, s) in cpu.seg.iter_mut().enumerate() {
            let kind = if n == 1 { attr::CODE | attr::RW } else { attr::RW };
            s.selector = 8 * (1 + n as u16);
            s.base = 0;
            s.limit = u32::MAX;
            s.attr = attr::P | attr::S | attr::DB | attr::G | attr::ACCESSED | kind;
        }
        cpu.refresh();
        cpu.fpu.init();
        let sys = System {
            icount: 0,
            asked: 0,
            limit: u64::MAX,
            mem: Memory::new(1 << 20, 0).unwrap(),
            mmu: Mmu::new(),
            board: Board::new(&MachineConfig::default()),
            clock: Clock::new(ClockKind::Virtual),
            input: Box::new(NoInput),
            output: Box::new(NullSink),
            interrupts: Default::default(),
            observer: Observer::default(),
        };
        Self { cpu, sys }
    }

    pub fn ctx(&mut self) -> Ctx<'_> {
        Ctx { cpu: &mut self.cpu, sys: &mut self.sys }
    }

    /// Assembles with `f` (for 32-bit code) and executes every instruction, up to the first fault.
    pub fn run(&mut self, f: impl FnOnce(&mut CodeAssembler)) -> Result<(), Exception> {
        let mut a = CodeAssembler::new(32).unwrap();
        f(&mut a);
        let code = a.assemble(CODE).unwrap();
        self.bytes(&code)
    }

    /// Executes the given machine code.
    pub fn bytes(&mut self, code: &[u8]) -> Result<(), Exception> {
        self.sys.mem.write_phys(crate::addr::Gpa(CODE), code);
        let mut ctx = self.ctx();
        ctx.mmu_switch();
        ctx.cpu.rip = CODE;
        while ctx.cpu.rip < CODE + code.len() as u64 {
            ctx.step_insn()?;
        }
        Ok(())
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        assert!(self.sys.mem.write_phys(crate::addr::Gpa(at), bytes))
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut b = [0; N];
        assert!(self.sys.mem.read_phys(crate::addr::Gpa(at), &mut b));
        b
    }
}
