//! Runs single integer instructions on the host, to see what it makes of what the manual leaves undefined. Owns the
//! operands they get: ModRM.reg: RBX. ModRM.rm: RSI, or memory at RDI. VEX.vvvv: RCX. Others as the instruction says.

#![allow(unsafe_code)]

use super::buffer::CodeBuffer;
use iced_x86::code_asm::{CodeAssembler, IcedError, qword_ptr, rax, rbx, rcx, rdi, rdx, rsi};
use iced_x86::{Code, Encoder, FlowControl, Instruction, Mnemonic, OpCodeOperandKind as K, OpKind, Register};

/// What an instruction starts from and ends with. RDI points to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Values {
    /// The memory operand.
    pub mem: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    /// The arithmetic flags.
    pub flags: u64,
}

const RAX: i32 = std::mem::offset_of!(Values, rax) as i32;
const RBX: i32 = std::mem::offset_of!(Values, rbx) as i32;
const RCX: i32 = std::mem::offset_of!(Values, rcx) as i32;
const RDX: i32 = std::mem::offset_of!(Values, rdx) as i32;
const RSI: i32 = std::mem::offset_of!(Values, rsi) as i32;
const FLAGS: i32 = std::mem::offset_of!(Values, flags) as i32;

/// RFLAGS in which every arithmetic flag is as in a [`Values`] and nothing else is set.
const FIXED: u64 = 0x202;
const ARITH: u64 = 0x8d5;

/// Form `code` with the operands of this file and immediate `imm`; `memory`: with its memory operand. `None`: it has
/// others.
pub fn instruction(code: Code, memory: bool, imm: i64) -> Option<Instruction> {
    let op = code.op_code();
    let mut i = Instruction::default();
    i.set_code(code);
    for n in 0..op.op_count() {
        let r = match op.op_kind(n) {
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mem if memory => {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_base(Register::RDI);
                i.set_memory_index_scale(1);
                continue;
            }
            K::r8_or_mem => Register::SIL,
            K::r16_or_mem => Register::SI,
            K::r32_or_mem => Register::ESI,
            K::r64_or_mem => Register::RSI,
            K::r8_reg => Register::BL,
            K::r16_reg => Register::BX,
            K::r32_reg => Register::EBX,
            K::r64_reg => Register::RBX,
            K::r32_vvvv => Register::ECX,
            K::r64_vvvv => Register::RCX,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            k => {
                immediate(&mut i, n, k, imm)?;
                continue;
            }
        };
        i.set_op_kind(n, OpKind::Register);
        i.set_op_register(n, r);
    }
    Some(i)
}

fn immediate(i: &mut Instruction, n: u32, kind: K, imm: i64) -> Option<()> {
    let kind = match kind {
        K::imm8 | K::imm8_const_1 => OpKind::Immediate8,
        K::imm8sex16 => OpKind::Immediate8to16,
        K::imm8sex32 => OpKind::Immediate8to32,
        K::imm8sex64 => OpKind::Immediate8to64,
        K::imm16 => OpKind::Immediate16,
        K::imm32 => OpKind::Immediate32,
        K::imm32sex64 => OpKind::Immediate32to64,
        _ => return None,
    };
    i.set_op_kind(n, kind);
    match kind {
        OpKind::Immediate8 => i.set_immediate8(imm as u8),
        OpKind::Immediate8to16 => i.set_immediate8to16(i16::from(imm as i8)),
        OpKind::Immediate8to32 => i.set_immediate8to32(i32::from(imm as i8)),
        OpKind::Immediate8to64 => i.set_immediate8to64(i64::from(imm as i8)),
        OpKind::Immediate16 => i.set_immediate16(imm as u16),
        OpKind::Immediate32 => i.set_immediate32(imm as u32),
        _ => i.set_immediate32to64(i64::from(imm as i32)),
    }
    Some(())
}

/// Thunks of instructions.
pub struct Probe {
    buffer: CodeBuffer,
    thunks: Vec<*const u8>,
    /// What comes before and after the instruction.
    before: Vec<u8>,
    after: Vec<u8>,
    encoder: Encoder,
}

/// Names a thunk of a [`Probe`].
pub struct Thunk(usize);

impl Probe {
    /// # Errors
    /// If executable memory is not to be had.
    pub fn new() -> std::io::Result<Self> {
        let other = |e: IcedError| std::io::Error::other(e.to_string());
        Ok(Self {
            buffer: CodeBuffer::new(1 << 20)?,
            thunks: Vec::new(),
            before: before().map_err(other)?,
            after: after().map_err(other)?,
            encoder: Encoder::new(64),
        })
    }

    /// Makes a thunk; `None`: the form has operands of other kinds, may fault, or does more than compute.
    pub fn thunk(&mut self, code: Code, memory: bool, imm: i64) -> Option<Thunk> {
        let i = instruction(code, memory, imm)?;
        let op = code.op_code();
        let computes =
            i.flow_control() == FlowControl::Next && !op.is_privileged() && !i.is_stack_instruction();
        let has_memory = (0..op.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        // Of a bit string, memory anywhere.
        let string = memory && (0..op.op_count()).any(|n| is_bit_offset(code, op.op_kind(n)));
        let faults = matches!(code.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
        if !op.mode64() || faults || !computes || has_memory != memory || string || i.memory_size().size() > 8
        {
            return None;
        }
        self.encoder.encode(&i, 0).ok()?;
        let bytes = [&self.before[..], &self.encoder.take_buffer(), &self.after].concat();
        self.thunks.push(self.buffer.publish(&bytes)?);
        Some(Thunk(self.thunks.len() - 1))
    }

    /// What the host makes of `values`.
    pub fn run(&mut self, thunk: &Thunk, mut values: Values) -> Values {
        let Some(code) = self.thunks.get(thunk.0) else { return values };
        values.flags = values.flags & ARITH | FIXED;
        // SAFETY: what is in `thunks` was published by `thunk`, into a buffer that lives as long as `self`, and made for
        // this signature: it keeps the ABI's callee-saved registers, leaves DF clear, and touches `values` and the stack
        // only, as the instruction's one memory operand is at most the first 8 bytes of `values`.
        unsafe {
            let f: unsafe extern "sysv64" fn(*mut Values) = std::mem::transmute(*code);
            f(&raw mut values);
        }
        values.flags &= ARITH;
        values
    }
}

/// Is this operand of BT and its kin the register that says which bit?
fn is_bit_offset(code: Code, kind: K) -> bool {
    use iced_x86::Mnemonic as M;
    matches!(code.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && matches!(kind, K::r16_reg | K::r32_reg | K::r64_reg)
}

fn before() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.push(rbx)?;
    a.mov(rax, qword_ptr(rdi + RAX))?;
    a.mov(rbx, qword_ptr(rdi + RBX))?;
    a.mov(rcx, qword_ptr(rdi + RCX))?;
    a.mov(rdx, qword_ptr(rdi + RDX))?;
    a.mov(rsi, qword_ptr(rdi + RSI))?;
    a.push(qword_ptr(rdi + FLAGS))?;
    a.popfq()?;
    a.assemble(0)
}

fn after() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.pushfq()?;
    a.pop(qword_ptr(rdi + FLAGS))?;
    a.mov(qword_ptr(rdi + RAX), rax)?;
    a.mov(qword_ptr(rdi + RBX), rbx)?;
    a.mov(qword_ptr(rdi + RCX), rcx)?;
    a.mov(qword_ptr(rdi + RDX), rdx)?;
    a.mov(qword_ptr(rdi + RSI), rsi)?;
    a.pop(rbx)?;
    a.ret()?;
    a.assemble(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_an_addition_on_the_host() {
        let mut p = Probe::new().unwrap();
        let start = Values { rbx: 0xff, rsi: 1, mem: 3, flags: 0x40, ..Values::default() };
        let t = p.thunk(Code::Add_rm8_r8, false, 0).unwrap();
        let v = p.run(&t, start);
        assert_eq!((v.rsi, v.flags), (0, 0x55), "CF PF AF ZF");
        let t = p.thunk(Code::Adc_rm64_imm8, true, -3).unwrap();
        let v = p.run(&t, start);
        assert_eq!((v.mem, v.rsi, v.rbx), (0, 1, 0xff));
    }

    #[test]
    fn test_what_does_more_than_compute_is_refused() {
        let mut p = Probe::new().unwrap();
        for code in [
            Code::Bt_rm32_r32,
            Code::Jmp_rm64,
            Code::Push_rm64,
            Code::Hlt,
            Code::Call_rel32_64,
            Code::Div_rm8,
        ] {
            assert!(p.thunk(code, true, 0).is_none(), "{code:?}");
        }
    }
}
