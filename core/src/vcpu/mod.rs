//! The architectural state of one virtual CPU, and the values derived from it that make execution fast.
//! Owns no behaviour of instructions: those live in `isa`.

pub mod cpuid;
pub mod debug;
pub mod descriptor;
pub mod flags;
pub mod fpu;
pub mod gate;
pub mod interrupt;
pub mod mode;
pub mod msr;
pub mod newstack;
pub mod regs;
pub mod reset;
pub mod segment;
pub mod task;

use crate::mmu::TlbRef;
use flags::Flags;
use fpu::Fpu;
use mode::Mode;
use msr::Msrs;
use segment::{Segment, TableReg};

/// Index of a register that always reads zero (absent base or index).
pub const ZERO: u8 = 20;

/// General-register numbers, in encoding order.
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// CR0 bits (SDM vol. 3A, 2.5).
pub mod cr0 {
    pub const PE: u64 = 1;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// CR4 bits (SDM vol. 3A, 2.5).
pub mod cr4 {
    pub const VME: u64 = 1;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
}

/// EFER bits (SDM vol. 3A, 2.2.1).
pub mod efer {
    pub const SCE: u64 = 1;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// What the vCPU is doing when it is not executing instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activity {
    Running,
    /// After HLT, until an interrupt, NMI, INIT or SMI.
    Halted,
    /// An application processor after INIT.
    WaitForSipi,
    /// After a triple fault.
    Shutdown,
}

/// Interrupt shadow: what the next instruction boundary must not deliver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shadow {
    None,
    /// After STI with IF clear before: maskable interrupts are held for one instruction.
    Sti,
    /// After MOV SS or POP SS: interrupts, NMI and debug traps are held for one instruction.
    MovSs,
}

/// One virtual CPU.
#[derive(Clone, Debug)]
pub struct Vcpu {
    /// General registers in encoding order (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15); [`ZERO`] is always 0.
    pub gpr: [u64; 21],
    /// While an instruction executes: address of the *next* instruction; at boundaries: of the one to execute.
    pub rip: u64,
    /// Address of the instruction being executed.
    pub insn_rip: u64,
    pub flags: Flags,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// Derived from CR0, EFER, CS, SS and RFLAGS.VM by [`Vcpu::refresh`].
    pub mode: Mode,
    /// Which TLB array accesses go to; derived, see `mmu`.
    pub tlb: TlbRef,

    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: TableReg,
    pub idtr: TableReg,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    /// PAE mode (not long mode): the four page-directory-pointer entries loaded by MOV CR3 (SDM vol. 3A, 4.4.1).
    pub pdpte: [u64; 4],
    pub xcr0: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub msr: Msrs,
    pub fpu: Fpu,

    pub activity: Activity,
    pub shadow: Shadow,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// An NMI waits for delivery.
    pub nmi_pending: bool,
    /// DR6 bits of debug traps collected during the current instruction, delivered as #DB at its boundary.
    pub pending_db: u64,
    /// The exceptions of the last delivery, for debuggers; not state.
    pub fault_chain: interrupt::FaultChain,

    /// Index among the VM's vCPUs (configuration); also the initial APIC ID.
    pub index: u8,
    /// vCPUs in the machine (configuration), as CPUID shows it; 1 unless the machine says otherwise.
    pub count: u8,
    /// Which CPUID model this vCPU shows (configuration).
    pub model: cpuid::CpuModel,
}

/// Segment-register indices, in encoding order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Seg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

impl Vcpu {
    /// A vCPU in its power-on state (SDM vol. 3A, table 9-1). vCPU 0 runs, the others wait for SIPI.
    pub fn new(index: u8, model: cpuid::CpuModel) -> Self {
        let mut cpu = Self {
            gpr: [0; 21],
            rip: 0xfff0,
            insn_rip: 0xfff0,
            flags: Flags::new(),
            seg: [Segment::real(0); 6],
            mode: Mode::default(),
            tlb: TlbRef::default(),
            ldtr: Segment::unusable(0x82),
            tr: Segment::unusable(0x8b),
            gdtr: TableReg { base: 0, limit: 0xffff },
            idtr: TableReg { base: 0, limit: 0xffff },
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            pdpte: [0; 4],
            xcr0: 1,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            msr: Msrs::new(index),
            fpu: Fpu::new(),
            activity: if index == 0 { Activity::Running } else { Activity::WaitForSipi },
            shadow: Shadow::None,
            nmi_blocked: false,
            nmi_pending: false,
            pending_db: 0,
            fault_chain: interrupt::FaultChain::default(),
            index,
            count: 1,
            model,
        };
        cpu.gpr[gpr::RDX] = u64::from(model.signature());
        cpu.seg[Seg::Cs as usize] = Segment { selector: 0xf000, base: 0xffff_0000, ..Segment::real(0xf000) };
        cpu.refresh();
        cpu
    }
}

impl crate::state::Field for Activity {
    fn put(&self, w: &mut crate::state::Writer) {
        (*self as u8).put(w);
    }
    fn get(r: &mut crate::state::Reader<'_>) -> Result<Self, crate::state::StateError> {
        Ok(match u8::get(r)? {
            0 => Activity::Running,
            1 => Activity::Halted,
            2 => Activity::WaitForSipi,
            3 => Activity::Shutdown,
            _ => return Err(r.invalid()),
        })
    }
}

impl crate::state::Field for Shadow {
    fn put(&self, w: &mut crate::state::Writer) {
        (*self as u8).put(w);
    }
    fn get(r: &mut crate::state::Reader<'_>) -> Result<Self, crate::state::StateError> {
        Ok(match u8::get(r)? {
            0 => Shadow::None,
            1 => Shadow::Sti,
            2 => Shadow::MovSs,
            _ => return Err(r.invalid()),
        })
    }
}

// After a load the owner calls `Vcpu::refresh` and `Mmu::switch` to rebuild what is derived.
crate::impl_state!(Vcpu, "vcpu", 1, {
    gpr, rip, flags, seg, ldtr, tr, gdtr, idtr, cr0, cr2, cr3, cr4, pdpte, xcr0, dr, dr6, dr7, msr, fpu,
    activity, shadow, nmi_blocked, nmi_pending, pending_db,
} skip { insn_rip, mode, tlb, fault_chain, index, count, model });
