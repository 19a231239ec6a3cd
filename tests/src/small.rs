//! A small machine for instruction tests: one vCPU, a little RAM, no paging, no devices, any code size.

use crate::native::{DATA, DATA_LEN, INSN};
use crate::{Fault, Outcome, State, USER_FLAGS};
use retrovisor_core::addr::Gpa;
use retrovisor_core::clock::{Clock, ClockKind};
use retrovisor_core::engine::hooks::Observer;
use retrovisor_core::exception::{Exception, vector};
use retrovisor_core::input::NoInput;
use retrovisor_core::machine::board::Board;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::mem::Memory;
use retrovisor_core::mmu::Mmu;
use retrovisor_core::output::NullSink;
use retrovisor_core::vcpu::cpuid::CpuModel;
use retrovisor_core::vcpu::segment::{Segment, attr};
use retrovisor_core::vcpu::{Seg, Vcpu, cr0, cr4, efer};
use retrovisor_core::{Ctx, System};

/// Bytes of RAM.
pub const RAM: u64 = 4 << 20;

/// The machine.
pub struct Small {
    pub cpu: Vcpu,
    pub sys: System,
}

/// Kinds of code a [`Small`] runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodeSize {
    /// Real-address mode.
    Real,
    /// Protected mode, 16-bit code and stack, 64 KiB segments at base 0.
    Bits16,
    /// Protected mode, flat 32-bit segments.
    Bits32,
    /// 64-bit mode. Without paging, so that linear addresses are physical ones: no real processor has this state, no
    /// instruction tested here can tell.
    Bits64,
}

impl Small {
    /// A machine at CPL 3 (real mode: 0), RIP at [`INSN`] or the part of it that 16 bits hold.
    pub fn new(size: CodeSize) -> std::io::Result<Self> {
        let config = MachineConfig { memory: RAM, ..MachineConfig::default() };
        let sys = System {
            icount: 0,
            asked: 0,
            limit: u64::MAX,
            mem: Memory::new(RAM, 0)?,
            mmu: Mmu::new(),
            board: Board::new(&config),
            clock: Clock::new(ClockKind::Virtual),
            input: Box::new(NoInput),
            output: Box::new(NullSink),
            interrupts: Default::default(),
            observer: Observer::default(),
        };
        Ok(Self { cpu: vcpu(size), sys })
    }

    /// Executes one instruction and updates `state` and `data`, as `Native::run` does.
    pub fn run(
        &mut self,
        code: &[u8],
        state: &mut State,
        data: &mut [u8; DATA_LEN],
    ) -> (Outcome, Option<Exception>) {
        self.sys.mem.write_phys(Gpa(INSN), code);
        self.sys.mem.write_phys(Gpa(DATA), data);
        load(&mut self.cpu, state);
        self.cpu.rip = INSN;
        let r = self.step();
        self.store(state);
        self.sys.mem.read_phys(Gpa(DATA), data);
        match r {
            Ok(()) => (Outcome::Retired, None),
            Err(e) => (Outcome::Fault(class(e)), Some(e)),
        }
    }

    /// Executes the instruction at RIP. A repeated one runs to its end.
    pub fn step(&mut self) -> Result<(), Exception> {
        self.step_until(u64::MAX)
    }

    /// Executes the instruction at RIP; a repeated one stops where the icount reaches `limit`.
    pub fn step_until(&mut self, limit: u64) -> Result<(), Exception> {
        self.sys.limit = limit;
        Ctx { cpu: &mut self.cpu, sys: &mut self.sys }.step_insn()
    }

    fn store(&self, s: &mut State) {
        s.gpr.copy_from_slice(&self.cpu.gpr[..16]);
        s.rip = self.cpu.rip;
        s.flags = self.cpu.flags.0 & USER_FLAGS;
        let f = &self.cpu.fpu;
        (s.fcw, s.fsw, s.ftw, s.mxcsr, s.xmm) = (f.fcw, f.fsw, f.ftw, f.mxcsr, f.xmm);
        let top = usize::from(s.fsw >> 11) & 7;
        for (n, v) in s.st.iter_mut().enumerate() {
            *v = f.r[(top + n) & 7];
        }
    }
}

/// A vCPU in the mode, without paging, with SSE and x87 ready for use.
pub fn vcpu(size: CodeSize) -> Vcpu {
    let mut cpu = Vcpu::new(0, CpuModel::X86_64V2);
    cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
    cpu.cr0 = cr0::ET | cr0::MP | cr0::NE;
    set_mode(&mut cpu, size);
    cpu
}

/// Puts everything but RIP of a state into a vCPU.
pub fn load(cpu: &mut Vcpu, s: &State) {
    cpu.gpr[..16].copy_from_slice(&s.gpr);
    cpu.flags.0 = (s.flags & USER_FLAGS) | 0x202;
    let f = &mut cpu.fpu;
    (f.fcw, f.fsw, f.ftw, f.mxcsr, f.xmm) = (s.fcw, s.fsw, s.ftw, s.mxcsr, s.xmm);
    let top = usize::from(s.fsw >> 11) & 7;
    for (n, v) in s.st.into_iter().enumerate() {
        f.r[(top + n) & 7] = v;
    }
}

/// The class a host signal would tell.
fn class(e: Exception) -> Fault {
    match e.vector {
        vector::UD => Fault::Undefined,
        vector::DE | vector::MF | vector::XM => Fault::Arithmetic,
        _ => Fault::Memory,
    }
}

/// Puts the vCPU into the mode.
fn set_mode(cpu: &mut Vcpu, size: CodeSize) {
    let dpl = if size == CodeSize::Real { 0 } else { 3 };
    let (bits, limit) = match size {
        CodeSize::Real | CodeSize::Bits16 => (0, 0xffff),
        CodeSize::Bits32 => (attr::DB | attr::G, u32::MAX),
        CodeSize::Bits64 => (attr::L | attr::G, u32::MAX),
    };
    let base = attr::P | attr::S | attr::RW | attr::ACCESSED | dpl << 5;
    let stack = if size == CodeSize::Bits64 { attr::DB | attr::G } else { bits };
    for (n, s) in cpu.seg.iter_mut().enumerate() {
        let code = n == Seg::Cs as usize && size != CodeSize::Real;
        *s = Segment::real(0);
        s.limit = limit;
        s.attr = base | if code { attr::CODE | bits } else { stack };
        s.selector = ((8 * (n as u16 + 1)) | dpl as u16) * u16::from(size != CodeSize::Real);
    }
    if size != CodeSize::Real {
        cpu.cr0 |= cr0::PE;
    }
    if size == CodeSize::Bits64 {
        cpu.msr.efer |= efer::LMA | efer::LME;
        cpu.cr4 |= cr4::PAE;
    }
    cpu.rip = INSN & if size == CodeSize::Bits64 || size == CodeSize::Bits32 { u64::MAX } else { 0xffff };
    cpu.refresh();
}
