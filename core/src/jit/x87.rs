//! Thunks for x87 instructions whose result is exact by definition: load control word and stack operands from a
//! block, execute the one instruction, store result, memory operand and status word.
//!
//! The guest's own exception masks are in force while the instruction runs, so wrapped results of unmasked overflow
//! and the suppression of results are the host's. That is safe because x87 exceptions are deferred to the next
//! waiting instruction, and FNCLEX, which does not wait, comes before it.

use crate::vcpu::fpu::sw;
use iced_x86::code_asm::{
    CodeAssembler, IcedError, ax, eax, ecx, qword_ptr, rdi, rdx, st0, tbyte_ptr, word_ptr,
};
use iced_x86::{Code, Instruction, MemoryOperand, OpCodeOperandKind as K, OpKind, Register};

/// An 80-bit register image: significand, then sign and exponent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Image {
    pub sig: u64,
    pub se: u16,
}

/// Operands and results of one x87 instruction.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub struct X87Operands {
    /// ST(0); in, and out unless the form pops it.
    pub st0: Image,
    /// ST(1); in.
    pub st1: Image,
    /// Memory operand; in or out. A store that an unmasked exception suppresses leaves it unchanged.
    pub mem: u128,
    /// Control word to run under.
    pub cw: u16,
    /// Status word afterwards. Its exception flags are those raised, and maybe some of the sticky ones.
    pub sw: u16,
    /// Exception flags that must be clear before the instruction: all but the guest's sticky ones if every exception
    /// is masked (then they need not be told apart from new ones), all otherwise.
    pub clear: u16,
    /// Control word of our own code.
    pub cw_host: u16,
    /// RFLAGS after the instruction.
    pub flags: u64,
}

/// Control word of the System V ABI.
pub const HOST_CW: u16 = 0x37f;

const ST0: i32 = std::mem::offset_of!(X87Operands, st0) as i32;
const ST1: i32 = std::mem::offset_of!(X87Operands, st1) as i32;
const MEM: i64 = std::mem::offset_of!(X87Operands, mem) as i64;
const CW: i32 = std::mem::offset_of!(X87Operands, cw) as i32;
const SW: i32 = std::mem::offset_of!(X87Operands, sw) as i32;
const CLEAR: i32 = std::mem::offset_of!(X87Operands, clear) as i32;
const CW_HOST: i32 = std::mem::offset_of!(X87Operands, cw_host) as i32;
const FLAGS: i32 = std::mem::offset_of!(X87Operands, flags) as i32;

/// Forms that pop by themselves (and do not, if an unmasked exception suppresses them).
fn pops(code: Code) -> bool {
    matches!(
        code,
        Code::Fistp_m64int
            | Code::Fisttp_m16int
            | Code::Fisttp_m32int
            | Code::Fisttp_m64int
            | Code::Fbstp_m80bcd
    )
}

/// The instruction with ST(1) and the block's memory operand instead of the guest's.
fn rename(code: Code) -> Result<Instruction, IcedError> {
    let op = code.op_code();
    match (op.op_count(), op.op_kind(0)) {
        (0, _) => Ok(Instruction::with(code)),
        (_, K::mem) => {
            let m = MemoryOperand::with_base_displ_size(Register::RDI, MEM, 1);
            Instruction::with1(code, m)
        }
        _ => {
            let mut i = Instruction::default();
            i.set_code(code);
            for (n, r) in [(0, Register::ST0), (1, Register::ST1)] {
                i.set_op_kind(n, OpKind::Register);
                i.set_op_register(n, r);
            }
            Ok(i)
        }
    }
}

/// Machine code of the thunk of form `code`.
pub fn assemble(code: u16) -> Result<Vec<u8>, String> {
    let code = Code::try_from(code as usize).map_err(|e| e.to_string())?;
    sequence(code).map_err(|e| format!("{code:?}: {e}"))
}

fn sequence(code: Code) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    // FNCLEX is slow and sticky flags are common: only if there are foreign ones.
    let mut clean = a.create_label();
    a.fnstsw(ax)?;
    a.test(word_ptr(rdi + CLEAR), ax)?;
    a.je(clean)?;
    a.fnclex()?;
    a.set_label(&mut clean)?;
    let mut default_cw = a.create_label();
    a.movzx(ecx, word_ptr(rdi + CW))?;
    a.cmp(ecx, i32::from(HOST_CW))?;
    a.je(default_cw)?;
    a.fldcw(word_ptr(rdi + CW))?;
    a.set_label(&mut default_cw)?;
    a.fld(tbyte_ptr(rdi + ST1))?;
    a.fld(tbyte_ptr(rdi + ST0))?;
    a.add_instruction(rename(code)?)?;
    if matches!(code, Code::Fcomi_st0_sti | Code::Fucomi_st0_sti) {
        a.pushfq()?;
        a.pop(rdx)?;
        a.mov(qword_ptr(rdi + FLAGS), rdx)?;
    }
    a.fnstsw(ax)?;
    a.mov(word_ptr(rdi + SW), ax)?;
    // An unmasked exception must go before the next waiting instruction.
    let mut quiet = a.create_label();
    a.test(eax, i32::from(sw::ES))?;
    a.je(quiet)?;
    a.fnclex()?;
    a.set_label(&mut quiet)?;
    if pops(code) {
        a.emms()?;
    } else {
        a.fstp(tbyte_ptr(rdi + ST0))?;
        a.fstp(st0)?;
    }
    let mut done = a.create_label();
    a.cmp(ecx, i32::from(HOST_CW))?;
    a.je(done)?;
    a.fldcw(word_ptr(rdi + CW_HOST))?;
    a.set_label(&mut done)?;
    a.ret()?;
    a.assemble(0)
}
