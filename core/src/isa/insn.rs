//! A decoded guest instruction: the compact form both engines keep in their block caches, made from iced-x86's.

use crate::ctx::Ctx;
use crate::exception::Exec;
use crate::vcpu::ZERO;
use iced_x86::{Code, Instruction, OpCodeOperandKind as K, OpKind, Register};

/// Executes one decoded instruction. On entry `cpu.rip` is already the next instruction's address. On `Err` no
/// guest-visible state may have changed except as the manual says for that fault (the engine restores RIP).
pub type ExecFn = fn(&mut Ctx<'_>, &Insn) -> Exec;

/// [`Insn::rm`] of a memory operand.
pub const MEM: u8 = 0xff;
/// [`Insn::reg`], [`Insn::vvvv`] when there is no such operand.
pub const NONE: u8 = 0xfe;

/// Prefix bits of [`Insn::prefix`].
pub mod prefix {
    pub const LOCK: u8 = 1;
    pub const REP: u8 = 2;
    pub const REPNE: u8 = 4;
}

/// A decoded instruction.
#[derive(Clone, Copy)]
pub struct Insn {
    pub exec: ExecFn,
    /// Displacement, sign-extended; for RIP-relative operands the absolute address; for moffs the offset.
    pub disp: u64,
    /// First immediate, sign-extended to 64 bits from its encoded size as the operation requires (zero-extended for
    /// forms whose immediate is an unsigned byte such as INT n, shifts, SSE imm8). Near branch: the target offset
    /// (already truncated to 16 or 32 bits where the operand size says so). Far pointer: the offset.
    pub imm: u64,
    /// Mask of effective addresses: 0xffff, 0xffff_ffff or all ones.
    pub addr_mask: u64,
    /// Second immediate (ENTER), or the selector of a far pointer.
    pub imm2: u16,
    /// iced's `Code` as a number.
    pub code: u16,
    pub len: u8,
    /// Register of the ModRM.reg operand (or the only implicit accumulator beside a memory operand); [`NONE`].
    /// 8-bit: 16..=19 are AH, CH, DH, BH. Segment, control, debug, MMX, XMM registers: their plain number.
    pub reg: u8,
    /// Register of the ModRM.rm operand, of a register encoded in the opcode, or of an implicit accumulator when
    /// nothing else is there; [`MEM`] for memory; [`NONE`].
    pub rm: u8,
    /// Register of the VEX.vvvv operand, or [`NONE`].
    pub vvvv: u8,
    /// Base register or [`ZERO`].
    pub base: u8,
    /// Index register or [`ZERO`].
    pub index: u8,
    /// log2 of the scale.
    pub scale: u8,
    /// Segment of the memory operand (default or override), also for string instructions' source.
    pub seg: u8,
    pub prefix: u8,
    /// Code size in bits (16, 32, 64) the instruction was decoded for.
    pub bits: u8,
}

impl Insn {
    /// The iced opcode form.
    pub fn code(&self) -> Code {
        Code::try_from(self.code as usize).unwrap_or(Code::INVALID)
    }
    #[inline(always)]
    pub const fn has(&self, prefix: u8) -> bool {
        self.prefix & prefix != 0
    }
    #[inline(always)]
    pub const fn is_mem(&self) -> bool {
        self.rm == MEM
    }

    /// Makes the compact form of `i`, with `exec` from its row.
    pub fn new(i: &Instruction, bits: u8, exec: ExecFn) -> Self {
        let mut p = 0;
        if i.has_lock_prefix() {
            p |= prefix::LOCK;
        }
        if i.has_rep_prefix() {
            p |= prefix::REP;
        }
        if i.has_repne_prefix() {
            p |= prefix::REPNE;
        }
        let mut out = Self {
            exec,
            disp: 0,
            imm: 0,
            addr_mask: address_mask(i, bits),
            imm2: 0,
            code: i.code() as u16,
            len: i.len() as u8,
            reg: NONE,
            rm: NONE,
            vvvv: NONE,
            base: ZERO,
            index: ZERO,
            scale: 0,
            seg: if i.memory_segment() == Register::None { 3 } else { i.memory_segment().number() as u8 },
            prefix: p,
            bits,
        };
        if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            out.set_memory(i);
        }
        out.set_registers(i);
        out.set_immediates(i);
        out
    }

    fn set_memory(&mut self, i: &Instruction) {
        self.rm = MEM;
        self.disp = i.memory_displacement64();
        if !i.is_ip_rel_memory_operand() {
            if i.memory_base() != Register::None {
                self.base = i.memory_base().number() as u8;
            }
            if i.memory_index() != Register::None {
                self.index = i.memory_index().number() as u8;
            }
            self.scale = i.memory_index_scale().trailing_zeros() as u8;
        }
    }

    fn set_registers(&mut self, i: &Instruction) {
        let op_code = i.code().op_code();
        let mut implicit = None;
        for n in 0..i.op_count() {
            if i.op_kind(n) != OpKind::Register {
                continue;
            }
            let r = register_number(i.op_register(n));
            match slot(op_code.op_kind(n)) {
                Slot::Reg => self.reg = r,
                Slot::Rm => self.rm = r,
                Slot::Vvvv => self.vvvv = r,
                Slot::Accumulator => implicit = implicit.or(Some(r)),
                Slot::Other => {}
            }
        }
        if let Some(r) = implicit {
            if self.rm == NONE {
                self.rm = r;
            } else if self.reg == NONE {
                self.reg = r;
            }
        }
    }

    fn set_immediates(&mut self, i: &Instruction) {
        let mut seen = false;
        for n in 0..i.op_count() {
            match i.op_kind(n) {
                OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                    self.imm = i.near_branch_target()
                }
                OpKind::FarBranch16 => {
                    (self.imm, self.imm2) = (i.far_branch16().into(), i.far_branch_selector())
                }
                OpKind::FarBranch32 => {
                    (self.imm, self.imm2) = (i.far_branch32().into(), i.far_branch_selector())
                }
                OpKind::Immediate8_2nd => self.imm2 = i.immediate8_2nd().into(),
                k if is_immediate(k) && !seen => {
                    seen = true;
                    self.imm = i.immediate(n);
                }
                k if is_immediate(k) => self.imm2 = i.immediate(n) as u16,
                _ => {}
            }
        }
    }
}

impl std::fmt::Debug for Insn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} reg={} rm={} imm={:#x} disp={:#x}",
            self.code(),
            self.reg,
            self.rm,
            self.imm,
            self.disp
        )
    }
}

fn is_immediate(k: OpKind) -> bool {
    matches!(
        k,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

/// Number of a register inside its file; AH..BH are 16..=19.
fn register_number(r: Register) -> u8 {
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => 16 + (r as u8 - Register::AH as u8),
        _ if r.is_gpr8() => {
            let n = r as u8 - Register::AL as u8;
            if n < 4 { n } else { n - 4 }
        }
        _ => r.number() as u8,
    }
}

enum Slot {
    Reg,
    Rm,
    Vvvv,
    Accumulator,
    Other,
}

/// Where an operand of this encoding goes.
fn slot(k: K) -> Slot {
    match k {
        K::r8_reg
        | K::r16_reg
        | K::r16_reg_mem
        | K::r32_reg
        | K::r32_reg_mem
        | K::r64_reg
        | K::r64_reg_mem
        | K::seg_reg
        | K::cr_reg
        | K::dr_reg
        | K::tr_reg
        | K::mm_reg
        | K::xmm_reg
        | K::ymm_reg
        | K::k_reg => Slot::Reg,
        K::r8_or_mem
        | K::r16_or_mem
        | K::r32_or_mem
        | K::r32_or_mem_mpx
        | K::r64_or_mem
        | K::r64_or_mem_mpx
        | K::mm_or_mem
        | K::xmm_or_mem
        | K::ymm_or_mem
        | K::r16_rm
        | K::r32_rm
        | K::r64_rm
        | K::mm_rm
        | K::xmm_rm
        | K::ymm_rm
        | K::r8_opcode
        | K::r16_opcode
        | K::r32_opcode
        | K::r64_opcode
        | K::sti_opcode => Slot::Rm,
        K::r32_vvvv | K::r64_vvvv | K::xmm_vvvv | K::ymm_vvvv => Slot::Vvvv,
        K::al | K::ax | K::eax | K::rax => Slot::Accumulator,
        K::es | K::cs | K::ss | K::ds | K::fs | K::gs => Slot::Reg,
        _ => Slot::Other,
    }
}

/// Address size of memory operands, explicit or implicit.
fn address_mask(i: &Instruction, bits: u8) -> u64 {
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::Memory => {
                let r = if i.memory_base() != Register::None { i.memory_base() } else { i.memory_index() };
                return match r.size() {
                    2 => 0xffff,
                    4 => 0xffff_ffff,
                    8 => u64::MAX,
                    _ => match i.memory_displ_size() {
                        2 => 0xffff,
                        4 if bits != 64 || i.is_ip_rel_memory_operand() => 0xffff_ffff,
                        _ => u64::MAX,
                    },
                };
            }
            OpKind::MemorySegSI | OpKind::MemoryESDI | OpKind::MemorySegDI => return 0xffff,
            OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI => return 0xffff_ffff,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI | OpKind::MemorySegRDI => return u64::MAX,
            _ => {}
        }
    }
    match bits {
        16 => 0xffff,
        32 => 0xffff_ffff,
        _ => u64::MAX,
    }
}
