//! Thunks for SIMD instructions: load the operands from a block, execute the one instruction re-encoded with fixed
//! registers, store the results. Owns the operand block's layout and the register assignment.
//!
//! ModRM.reg operand: XMM1, MM1 or RAX. ModRM.rm operand: XMM2, MM2 or RAX. Implicit XMM0, RAX, RDX, RCX: themselves.
//! A memory operand has been loaded by the caller into `rm`, so the register form runs.

use super::entry::Uses;
use iced_x86::code_asm::{
    CodeAssembler, IcedError, dword_ptr, eax, mm1, mm2, qword_ptr, rax, rcx, rdi, rdx, xmm0, xmm1, xmm2,
    xmmword_ptr,
};
use iced_x86::{Code, Instruction, OpCodeOperandKind as K, Register};

/// Operands and results of one SIMD instruction.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub struct Operands {
    /// ModRM.reg operand if XMM or MMX; in and out.
    pub reg: u128,
    /// ModRM.rm operand (register or memory) if XMM or MMX; in, and out for shifts by an immediate.
    pub rm: u128,
    /// Implicit XMM0; in and out.
    pub xmm0: u128,
    /// The general-register operand, and implicit RAX; in and out.
    pub rax: u64,
    /// Implicit RDX; in.
    pub rdx: u64,
    /// Implicit RCX; out.
    pub rcx: u64,
    /// RFLAGS after the instruction.
    pub flags: u64,
    /// MXCSR to run under; every exception must be masked.
    pub mxcsr_in: u32,
    /// MXCSR afterwards: control bits and sticky flags of `mxcsr_in`, plus the flags raised.
    pub mxcsr_out: u32,
    /// MXCSR of our own code.
    pub mxcsr_host: u32,
}

/// MXCSR of Rust code.
pub const HOST_MXCSR: u32 = 0x1f80;

const REG: i32 = std::mem::offset_of!(Operands, reg) as i32;
const RM: i32 = std::mem::offset_of!(Operands, rm) as i32;
const XMM0: i32 = std::mem::offset_of!(Operands, xmm0) as i32;
const RAX: i32 = std::mem::offset_of!(Operands, rax) as i32;
const RDX: i32 = std::mem::offset_of!(Operands, rdx) as i32;
const RCX: i32 = std::mem::offset_of!(Operands, rcx) as i32;
const FLAGS: i32 = std::mem::offset_of!(Operands, flags) as i32;
const MXCSR_IN: i32 = std::mem::offset_of!(Operands, mxcsr_in) as i32;
const MXCSR_OUT: i32 = std::mem::offset_of!(Operands, mxcsr_out) as i32;
const MXCSR_HOST: i32 = std::mem::offset_of!(Operands, mxcsr_host) as i32;

/// What a form reads and writes, from its operand kinds.
#[derive(Default)]
struct Shape {
    xmm_reg: bool,
    xmm_rm: bool,
    mm_reg: bool,
    mm_rm: bool,
    gpr: bool,
    /// The destination is ModRM.rm.
    rm_written: bool,
    /// Uses XMM0, RAX, RDX, RCX beside its operands.
    implicit: bool,
    flags: bool,
}

fn shape(code: Code) -> Shape {
    let op = code.op_code();
    let mut s = Shape::default();
    for n in 0..op.op_count() {
        match op.op_kind(n) {
            K::xmm_reg => s.xmm_reg = true,
            K::xmm_or_mem | K::xmm_rm => s.xmm_rm = true,
            K::mm_reg => s.mm_reg = true,
            K::mm_or_mem | K::mm_rm => s.mm_rm = true,
            K::r32_reg | K::r64_reg | K::r32_or_mem | K::r64_or_mem => s.gpr = true,
            _ => {}
        }
    }
    s.rm_written = matches!(op.op_kind(0), K::xmm_rm | K::mm_rm);
    use Code as C;
    let strings = matches!(
        code,
        C::Pcmpestrm_xmm_xmmm128_imm8
            | C::Pcmpestrm64_xmm_xmmm128_imm8
            | C::Pcmpestri_xmm_xmmm128_imm8
            | C::Pcmpestri64_xmm_xmmm128_imm8
            | C::Pcmpistrm_xmm_xmmm128_imm8
            | C::Pcmpistri_xmm_xmmm128_imm8
    );
    let blend = matches!(code, C::Pblendvb_xmm_xmmm128 | C::Blendvps_xmm_xmmm128 | C::Blendvpd_xmm_xmmm128);
    s.implicit = strings || blend;
    s.flags = strings
        || matches!(
            code,
            C::Ucomiss_xmm_xmmm32
                | C::Ucomisd_xmm_xmmm64
                | C::Comiss_xmm_xmmm32
                | C::Comisd_xmm_xmmm64
                | C::Ptest_xmm_xmmm128
        );
    s
}

/// The instruction with our registers instead of the guest's.
fn rename(code: Code, imm: u8) -> Result<Instruction, IcedError> {
    let op = code.op_code();
    let mut i = Instruction::default();
    i.set_code(code);
    for n in 0..op.op_count() {
        let r = match op.op_kind(n) {
            K::xmm_reg => Register::XMM1,
            K::xmm_or_mem | K::xmm_rm => Register::XMM2,
            K::mm_reg => Register::MM1,
            K::mm_or_mem | K::mm_rm => Register::MM2,
            K::r32_reg | K::r32_or_mem => Register::EAX,
            K::r64_reg | K::r64_or_mem => Register::RAX,
            _ => {
                i.set_op_kind(n, iced_x86::OpKind::Immediate8);
                i.set_immediate8(imm);
                continue;
            }
        };
        i.set_op_kind(n, iced_x86::OpKind::Register);
        i.set_op_register(n, r);
    }
    Ok(i)
}

/// Machine code of the thunk of form `code` with immediate byte `imm`.
pub fn assemble(code: u16, imm: u8, uses: Uses) -> Result<Vec<u8>, String> {
    let code = Code::try_from(code as usize).map_err(|e| e.to_string())?;
    sequence(code, imm, uses).map_err(|e| format!("{code:?}: {e}"))
}

fn sequence(code: Code, imm: u8, uses: Uses) -> Result<Vec<u8>, IcedError> {
    let s = shape(code);
    let mut a = CodeAssembler::new(64)?;
    if uses == Uses::Mxcsr {
        // LDMXCSR only if the control bits or sticky flags differ from what the host register holds.
        let mut same = a.create_label();
        a.mov(eax, dword_ptr(rdi + MXCSR_IN))?;
        a.stmxcsr(dword_ptr(rdi + MXCSR_OUT))?;
        a.cmp(eax, dword_ptr(rdi + MXCSR_OUT))?;
        a.je(same)?;
        a.ldmxcsr(dword_ptr(rdi + MXCSR_IN))?;
        a.set_label(&mut same)?;
    }
    load(&mut a, &s)?;
    a.add_instruction(rename(code, imm)?)?;
    store(&mut a, &s)?;
    if uses == Uses::Mxcsr {
        // Our own code needs the default control bits; flags may stay.
        let mut same = a.create_label();
        a.stmxcsr(dword_ptr(rdi + MXCSR_OUT))?;
        a.mov(eax, dword_ptr(rdi + MXCSR_IN))?;
        a.and(eax, 0xffc0)?;
        a.cmp(eax, HOST_MXCSR as i32)?;
        a.je(same)?;
        a.ldmxcsr(dword_ptr(rdi + MXCSR_HOST))?;
        a.set_label(&mut same)?;
    }
    a.ret()?;
    a.assemble(0)
}

fn load(a: &mut CodeAssembler, s: &Shape) -> Result<(), IcedError> {
    if s.xmm_reg {
        a.movaps(xmm1, xmmword_ptr(rdi + REG))?;
    }
    if s.xmm_rm {
        a.movaps(xmm2, xmmword_ptr(rdi + RM))?;
    }
    if s.mm_reg {
        a.movq(mm1, qword_ptr(rdi + REG))?;
    }
    if s.mm_rm {
        a.movq(mm2, qword_ptr(rdi + RM))?;
    }
    if s.gpr || s.implicit {
        a.mov(rax, qword_ptr(rdi + RAX))?;
    }
    if s.implicit {
        a.movaps(xmm0, xmmword_ptr(rdi + XMM0))?;
        a.mov(rdx, qword_ptr(rdi + RDX))?;
        a.mov(rcx, qword_ptr(rdi + RCX))?;
    }
    Ok(())
}

fn store(a: &mut CodeAssembler, s: &Shape) -> Result<(), IcedError> {
    if s.flags {
        a.pushfq()?;
        a.pop(rdx)?;
        a.mov(qword_ptr(rdi + FLAGS), rdx)?;
    }
    match (s.rm_written, s.xmm_reg, s.mm_reg) {
        (true, ..) if s.xmm_rm => a.movaps(xmmword_ptr(rdi + RM), xmm2)?,
        (true, ..) => a.movq(qword_ptr(rdi + RM), mm2)?,
        (_, true, _) => a.movaps(xmmword_ptr(rdi + REG), xmm1)?,
        (_, _, true) => a.movq(qword_ptr(rdi + REG), mm1)?,
        _ => {}
    }
    if s.gpr {
        a.mov(qword_ptr(rdi + RAX), rax)?;
    }
    if s.implicit {
        a.movaps(xmmword_ptr(rdi + XMM0), xmm0)?;
        a.mov(qword_ptr(rdi + RCX), rcx)?;
    }
    if s.mm_reg || s.mm_rm {
        a.emms()?;
    }
    Ok(())
}
