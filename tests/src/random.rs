//! Random instruction cases: for a form, an encoding with random operands and a state in which it makes sense.
//! The same seed gives the same case.

use crate::native::{DATA, DATA_LEN, INSN, TAKEN};
use crate::{State, USER_FLAGS};
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpCodeOperandKind as K, OpKind, Register,
};

/// A small, fast, seeded generator (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }
    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A 64-bit value of the kinds that find mistakes: corners of every width, few bits, many bits, plain random.
    pub fn value(&mut self) -> u64 {
        let corner = 1u64 << self.below(64);
        match self.below(8) {
            0 => self.below(4).wrapping_sub(2),
            1 => corner,
            2 => corner.wrapping_sub(1),
            3 => !corner,
            4 => self.below(0x100),
            5 => (self.bits() as i32) as u64,
            _ => self.bits(),
        }
    }

    /// Two or four lanes of floating-point values, corners included, or plain bits.
    pub fn vector(&mut self) -> u128 {
        let lanes = match self.below(3) {
            0 => (self.bits(), self.bits()),
            1 => (self.double().to_bits(), self.double().to_bits()),
            _ => (self.singles(), self.singles()),
        };
        u128::from(lanes.0) << 64 | u128::from(lanes.1)
    }

    fn singles(&mut self) -> u64 {
        let (a, b) = (self.single(), self.single());
        u64::from(a.to_bits()) << 32 | u64::from(b.to_bits())
    }

    fn double(&mut self) -> f64 {
        match self.below(10) {
            0 => 0.0,
            1 => -0.0,
            2 => f64::INFINITY,
            3 => f64::from_bits(0x7ff0_0000_0000_0001 | self.bits() >> 13),
            4 => f64::from_bits(self.bits() >> 13),
            5 => self.below(1000) as f64 - 500.5,
            6 => (self.bits() as i64) as f64,
            _ => f64::from_bits((self.bits() & 0x800f_ffff_ffff_ffff) | (0x3f0 + self.below(0x20)) << 52),
        }
    }

    fn single(&mut self) -> f32 {
        match self.below(10) {
            0 => 0.0,
            1 => -0.0,
            2 => f32::NEG_INFINITY,
            3 => f32::from_bits(0x7f80_0001 | self.bits() as u32 >> 10),
            4 => f32::from_bits(self.bits() as u32 >> 10),
            5 => self.below(1000) as f32 - 500.5,
            6 => (self.bits() as i32) as f32,
            _ => f32::from_bits((self.bits() as u32 & 0x807f_ffff) | (0x70 + self.below(0x20) as u32) << 23),
        }
    }
}

/// One case.
#[derive(Clone)]
pub struct Case {
    pub insn: Instruction,
    pub bytes: Vec<u8>,
    pub state: State,
    pub data: [u8; DATA_LEN],
}

/// A case of `code` for 32- or 64-bit code. The error says why this form cannot be made.
pub fn case(code: Code, bits: u32, rng: &mut Rng) -> Result<Case, String> {
    let mut why = String::new();
    for _ in 0..200 {
        let mut maker = Maker::new(code, bits, rng);
        maker.randomize();
        match maker.build() {
            Ok(bytes) => {
                let (insn, state) = (maker.insn, maker.state);
                let mut out = Case { insn, bytes, state, data: [0; DATA_LEN] };
                fill_data(&mut out, rng);
                return Ok(out);
            }
            Err(e) => why = e,
        }
    }
    Err(why)
}

/// Registers that programs use as pointers: encoding numbers. The last two exist in 64-bit code only.
pub const POINTERS: [usize; 6] = [3, 5, 6, 7, 12, 13];

/// An instruction of form `code` for a running program: its memory operands go through whatever the registers in
/// [`POINTERS`] hold, or near `window`. RSP is mostly left alone. The error says why this form cannot be made.
pub fn live(code: Code, bits: u32, window: u64, rng: &mut Rng) -> Result<Instruction, String> {
    let mut why = String::new();
    for _ in 0..20 {
        let mut maker = Maker::new(code, bits, rng);
        maker.window = Some(window);
        match maker.build_live() {
            Ok(insn) => return Ok(insn),
            Err(e) => why = e,
        }
    }
    Err(why)
}

fn fill_data(c: &mut Case, rng: &mut Rng) {
    for d in c.data.chunks_exact_mut(16) {
        let v = if rng.once_in(2) {
            rng.vector()
        } else {
            u128::from(rng.value()) << 64 | u128::from(rng.value())
        };
        d.copy_from_slice(&v.to_le_bytes());
    }
    // An indirect branch or a return must come back to us.
    let at = match c.insn.mnemonic() {
        Mnemonic::Ret => Some(c.state.gpr[4]),
        Mnemonic::Jmp | Mnemonic::Call if c.insn.op0_kind() == OpKind::Memory => address(&c.insn, &c.state),
        _ => None,
    };
    if let Some(at) = at.and_then(|a| a.checked_sub(DATA)).map(|a| a as usize)
        && let Some(d) = c.data.get_mut(at..at + 8)
    {
        d.copy_from_slice(&TAKEN.to_le_bytes());
    }
}

/// The effective address of the memory operand.
fn address(i: &Instruction, s: &State) -> Option<u64> {
    i.virtual_address(0, 0, |r, _, _| match r {
        _ if r.is_segment_register() => Some(0),
        Register::RIP | Register::EIP => Some(INSN),
        _ if r.is_gpr64() => Some(s.gpr[r.number()]),
        _ if r.is_gpr32() => Some(s.gpr[r.number()] & 0xffff_ffff),
        _ => None,
    })
}

/// Builds one case of a form.
struct Maker<'a> {
    code: Code,
    /// Code size: 32 or 64.
    bits: u32,
    rng: &'a mut Rng,
    state: State,
    insn: Instruction,
    /// General registers whose value the encoding already depends on.
    fixed: Vec<usize>,
    /// String instructions use 32-bit addresses.
    narrow: bool,
    /// For running programs, see [`live`]: what absolute addresses are near.
    window: Option<u64>,
}

impl<'a> Maker<'a> {
    fn new(code: Code, bits: u32, rng: &'a mut Rng) -> Self {
        let (state, insn) = (State::default(), Instruction::default());
        Self { code, bits, rng, state, insn, fixed: Vec::new(), narrow: bits == 32, window: None }
    }
}

impl Maker<'_> {
    /// General and XMM registers there are.
    fn registers(&self) -> u64 {
        if self.bits == 64 { 16 } else { 8 }
    }

    fn randomize(&mut self) {
        let s = &mut self.state;
        let r = &mut *self.rng;
        s.gpr = std::array::from_fn(|_| r.value());
        s.flags = r.bits() & USER_FLAGS;
        s.xmm = std::array::from_fn(|_| r.vector());
        s.fcw = 0x7f | (r.bits() as u16 & 0xc00) | [0x000, 0x200, 0x300][r.below(3) as usize];
        s.fsw = (r.bits() as u16) & 0x7f00;
        s.fsw &= !0x80;
        s.ftw = r.bits() as u8 | r.bits() as u8;
        s.mxcsr = 0x1f80 | (r.bits() as u32 & 0x603f) | if r.once_in(4) { 0x8040 } else { 0 };
        for v in &mut s.st {
            *v = extended(r);
        }
        s.gpr[4] = DATA + 0x700 + 8 * r.below(64);
        self.narrow = self.bits == 32 || r.once_in(4);
        if self.bits == 32 {
            s.gpr[8..].fill(0);
            s.xmm[8..].fill(0);
        }
    }

    /// Encodes; the state is adjusted to the operands.
    fn build(&mut self) -> Result<Vec<u8>, String> {
        self.insn.set_code(self.code);
        let op = self.code.op_code();
        for n in 0..op.op_count() {
            self.operand(n, op.op_kind(n))?;
        }
        self.repeat();
        self.adjust()?;
        if self.bits == 32 {
            self.state.gpr = self.state.gpr.map(|v| v & 0xffff_ffff);
        }
        let mut e = Encoder::new(self.bits);
        let len = e.encode(&self.insn, INSN).map_err(|e| e.to_string())?;
        let bytes = e.take_buffer();
        self.insn = Decoder::with_ip(self.bits, &bytes, INSN, DecoderOptions::NONE).decode();
        if self.insn.code() != self.code || self.insn.len() != len {
            return Err(format!("{:?}: its encoding decodes as {:?}", self.code, self.insn.code()));
        }
        Ok(bytes)
    }

    /// As [`Maker::build`], but registers hold what they hold.
    fn build_live(&mut self) -> Result<Instruction, String> {
        self.narrow = self.bits == 32 || self.rng.once_in(8);
        self.insn.set_code(self.code);
        let op = self.code.op_code();
        for n in 0..op.op_count() {
            self.operand(n, op.op_kind(n))?;
        }
        self.repeat();
        if op.can_use_lock_prefix() && self.insn.op0_kind() == OpKind::Memory && self.rng.once_in(4) {
            self.insn.set_has_lock_prefix(true);
        }
        if self.code.mnemonic() == Mnemonic::Enter {
            self.insn.set_immediate16(self.rng.below(64) as u16);
            self.insn.set_immediate8_2nd(self.rng.below(4) as u8);
        }
        Encoder::new(self.bits).encode(&self.insn, INSN).map_err(|e| e.to_string())?;
        Ok(self.insn)
    }

    /// A memory operand through a pointer, sometimes with an index, off the stack pointer, or absolute.
    fn live_memory(&mut self, n: u32, moffs: bool, window: u64) {
        let wide = if self.bits == 64 { 8 } else { 4 };
        let near = window.wrapping_add(self.rng.below(0x2_0000));
        let way = if moffs { 0 } else { self.rng.below(32) };
        let disp = match self.rng.below(8) {
            0..4 => self.rng.below(16) as i64 * 8,
            4 | 5 => i64::from(self.rng.bits() as i8),
            6 => self.rng.below(0x2000) as i64 - 0x1000,
            _ => 0,
        };
        let i = &mut self.insn;
        i.set_op_kind(n, OpKind::Memory);
        if way < 2 {
            if way == 1 && self.bits == 64 {
                i.set_memory_base(Register::RIP);
            }
            i.set_memory_displ_size(wide);
            i.set_memory_displacement64(near);
            return;
        }
        let narrow = self.bits == 32 || way == 2;
        let first = if narrow { Register::EAX } else { Register::RAX };
        let pick = |k: usize| Register::try_from(first as usize + k).unwrap_or(first);
        let pointers = if self.bits == 64 { POINTERS.len() } else { 4 };
        let base = if way < 8 { 4 } else { POINTERS[self.rng.below(pointers as u64) as usize] };
        i.set_memory_base(pick(base));
        i.set_memory_displ_size(if disp == 0 {
            0
        } else if disp == i64::from(disp as i8) {
            1
        } else if narrow {
            4
        } else {
            8
        });
        i.set_memory_displacement64(if narrow { disp as u64 & 0xffff_ffff } else { disp as u64 });
        if way == 31 {
            i.set_memory_index(pick(1));
            i.set_memory_index_scale(1 << self.rng.below(4));
        }
        if way == 30 {
            i.set_segment_prefix([Register::FS, Register::GS][self.rng.below(2) as usize]);
        }
    }

    fn register(&mut self, n: u32, r: Register) {
        self.insn.set_op_kind(n, OpKind::Register);
        self.insn.set_op_register(n, r);
    }

    /// A random register of a file of `count` registers that starts with `first`.
    fn any(&mut self, n: u32, first: Register, count: u64) {
        let mut pick = || {
            let r = first as u32 + self.rng.below(count) as u32;
            Register::try_from(r as usize).unwrap_or(first)
        };
        let mut r = pick();
        if self.window.is_some() {
            // What is written first would soon be no pointer any more.
            let keep = |r: Register| {
                let full = r.full_register();
                full == Register::RSP || n == 0 && full.is_gpr() && POINTERS.contains(&full.number())
            };
            for _ in 0..3 {
                r = if keep(r) { pick() } else { r };
            }
        }
        self.register(n, r);
    }

    fn operand(&mut self, n: u32, kind: K) -> Result<(), String> {
        use Register as R;
        let memory = !self.rng.once_in(2);
        match kind {
            K::mem | K::mem_offs => self.memory(n, kind == K::mem_offs),
            K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem | K::mm_or_mem | K::xmm_or_mem
                if memory =>
            {
                self.memory(n, false)
            }
            K::r8_or_mem | K::r8_reg | K::r8_opcode => {
                self.any(n, R::AL, if self.bits == 64 { 20 } else { 8 })
            }
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
                self.any(n, R::AX, self.registers())
            }
            K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
                self.any(n, R::EAX, self.registers())
            }
            K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
                self.any(n, R::RAX, self.registers())
            }
            K::mm_or_mem | K::mm_reg | K::mm_rm => self.any(n, R::MM0, 8),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv => self.any(n, R::XMM0, self.registers()),
            K::al => self.register(n, R::AL),
            K::cl => self.register(n, R::CL),
            K::ax => self.register(n, R::AX),
            K::eax => self.register(n, R::EAX),
            K::rax => self.register(n, R::RAX),
            K::st0 => self.register(n, R::ST0),
            K::sti_opcode => self.any(n, R::ST0, 8),
            K::imm8
            | K::imm8_const_1
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm16
            | K::imm32
            | K::imm32sex64
            | K::imm64 => self.immediate(n, kind),
            K::br64_1 | K::br64_4 => {
                self.insn.set_op_kind(n, OpKind::NearBranch64);
                self.insn.set_near_branch64(TAKEN);
            }
            K::br32_1 | K::br32_4 if self.bits == 32 => {
                self.insn.set_op_kind(n, OpKind::NearBranch32);
                self.insn.set_near_branch32(TAKEN as u32);
            }
            K::seg_rSI => self.string_pointer(n, OpKind::MemorySegRSI, OpKind::MemorySegESI, 6),
            K::es_rDI => self.string_pointer(n, OpKind::MemoryESRDI, OpKind::MemoryESEDI, 7),
            K::seg_rDI => self.string_pointer(n, OpKind::MemorySegRDI, OpKind::MemorySegEDI, 7),
            K::seg_rBX_al => {
                self.insn.set_op_kind(n, OpKind::Memory);
                self.insn.set_memory_base(if self.bits == 64 { R::RBX } else { R::EBX });
                self.insn.set_memory_index(R::AL);
                self.state.gpr[3] = DATA + 0x400 + self.rng.below(0x700);
            }
            k => return Err(format!("no operands of kind {k:?} are made")),
        }
        Ok(())
    }

    fn immediate(&mut self, n: u32, kind: K) {
        let v = self.rng.value();
        match kind {
            K::imm8_const_1 => {
                self.insn.set_op_kind(n, OpKind::Immediate8);
                self.insn.set_immediate8(1);
            }
            K::imm8 if n > 0 && self.insn.op_kind(n - 1) == OpKind::Immediate16 => {
                self.insn.set_op_kind(n, OpKind::Immediate8_2nd);
                self.insn.set_immediate8_2nd(v as u8);
            }
            K::imm8 => {
                self.insn.set_op_kind(n, OpKind::Immediate8);
                self.insn.set_immediate8(v as u8);
            }
            K::imm8sex16 => {
                self.insn.set_op_kind(n, OpKind::Immediate8to16);
                self.insn.set_immediate8to16(i16::from(v as i8));
            }
            K::imm8sex32 => {
                self.insn.set_op_kind(n, OpKind::Immediate8to32);
                self.insn.set_immediate8to32(i32::from(v as i8));
            }
            K::imm8sex64 => {
                self.insn.set_op_kind(n, OpKind::Immediate8to64);
                self.insn.set_immediate8to64(i64::from(v as i8));
            }
            K::imm16 => {
                self.insn.set_op_kind(n, OpKind::Immediate16);
                self.insn.set_immediate16(v as u16);
            }
            K::imm32 => {
                self.insn.set_op_kind(n, OpKind::Immediate32);
                self.insn.set_immediate32(v as u32);
            }
            K::imm32sex64 => {
                self.insn.set_op_kind(n, OpKind::Immediate32to64);
                self.insn.set_immediate32to64(i64::from(v as i32));
            }
            _ => {
                self.insn.set_op_kind(n, OpKind::Immediate64);
                self.insn.set_immediate64(v);
            }
        }
    }

    /// A place for an operand of up to 64 bytes; mostly aligned, sometimes across the page boundary.
    fn place(&mut self) -> u64 {
        match self.rng.below(8) {
            0 => DATA + 0x800 - self.rng.below(16),
            1 => DATA + 0x400 + self.rng.below(0x800),
            _ => DATA + 0x400 + 16 * self.rng.below(0x80),
        }
    }

    /// A memory operand inside the window, with a random way to address it.
    fn memory(&mut self, n: u32, moffs: bool) {
        if let Some(window) = self.window {
            return self.live_memory(n, moffs, window);
        }
        let at = self.place();
        let i = &mut self.insn;
        i.set_op_kind(n, OpKind::Memory);
        let wide = if self.bits == 64 { 8 } else { 4 };
        let way = if moffs { 3 } else { self.rng.below(8) };
        match way {
            3 => {
                i.set_memory_displ_size(if moffs && self.rng.once_in(3) { 4 } else { wide });
                i.set_memory_displacement64(at);
            }
            4 if self.bits == 64 => {
                i.set_memory_base(Register::RIP);
                i.set_memory_displ_size(8);
                i.set_memory_displacement64(at);
            }
            _ => self.based(at, way),
        }
    }

    /// Base, maybe index, displacement; with 32-bit addresses when `way` is 5.
    fn based(&mut self, at: u64, way: u64) {
        let narrow = way == 5 || self.bits == 32;
        let first = if narrow { Register::EAX } else { Register::RAX };
        let pick = |k: usize| Register::try_from(first as usize + k).unwrap_or(first);
        let base = self.rng.below(self.registers()) as usize;
        let disp = match self.rng.below(3) {
            0 => 0i64,
            1 => i64::from(self.rng.bits() as i8),
            _ => i64::from(self.rng.bits() as i32 >> 4),
        };
        // RSP stays inside the window, for what uses the stack as well.
        let disp = if base == 4 { at.wrapping_sub(self.state.gpr[4]) as i64 } else { disp };
        let mut rest = at.wrapping_sub(disp as u64);
        let index = self.rng.below(self.registers()) as usize;
        if way > 5 && index != 4 && base != 4 && index != base {
            let scale = self.rng.below(4);
            self.insn.set_memory_index(pick(index));
            self.insn.set_memory_index_scale(1 << scale);
            rest = rest.wrapping_sub(self.state.gpr[index] << scale);
            self.fixed.push(index);
        }
        self.insn.set_memory_base(pick(base));
        self.insn.set_memory_displ_size(if disp == 0 {
            0
        } else if disp == i64::from(disp as i8) {
            1
        } else {
            if narrow { 4 } else { 8 }
        });
        self.insn.set_memory_displacement64(if narrow { disp as u64 & 0xffff_ffff } else { disp as u64 });
        self.state.gpr[base] =
            if narrow { rest & 0xffff_ffff | self.state.gpr[base] & !0xffff_ffff } else { rest };
        self.fixed.push(base);
    }

    fn string_pointer(&mut self, n: u32, wide: OpKind, narrow: OpKind, reg: usize) {
        self.insn.set_op_kind(n, if self.narrow { narrow } else { wide });
        let at = DATA + 0x400 + self.rng.below(0x800);
        self.state.gpr[reg] = if self.narrow && self.bits == 64 { at | self.rng.bits() << 32 } else { at };
    }

    /// Sometimes a REP prefix, where allowed, with a small count.
    fn repeat(&mut self) {
        let op = self.code.op_code();
        if !op.can_use_rep_prefix() || !self.code_is_string() {
            return;
        }
        match self.rng.below(3) {
            0 => self.insn.set_has_rep_prefix(true),
            1 if op.can_use_repne_prefix() => self.insn.set_has_repne_prefix(true),
            _ => return,
        }
        let count = self.rng.below(12);
        self.state.gpr[1] =
            if self.narrow && self.bits == 64 { count | self.rng.bits() << 32 } else { count };
    }

    fn code_is_string(&self) -> bool {
        let op = self.code.op_code();
        (0..op.op_count()).any(|n| matches!(op.op_kind(n), K::seg_rSI | K::es_rDI))
    }

    /// Adjusts register values to what the instruction needs to stay inside the window.
    fn adjust(&mut self) -> Result<(), String> {
        match self.code.mnemonic() {
            Mnemonic::Enter => {
                self.insn.set_immediate16(self.rng.below(0x200) as u16);
                self.state.gpr[5] = DATA + 0x700 + 8 * self.rng.below(64);
            }
            Mnemonic::Leave => self.state.gpr[5] = self.place(),
            Mnemonic::Ret if self.insn.op_count() > 0 => {}
            Mnemonic::Jmp | Mnemonic::Call if self.insn.op0_kind() == OpKind::Register => {
                let r = self.insn.op0_register().number();
                if r == 4 {
                    return Err("RSP cannot hold the target".into());
                }
                self.state.gpr[r] = TAKEN;
            }
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => self.bit_offset()?,
            Mnemonic::Div | Mnemonic::Idiv if !self.fixed.contains(&2) && self.rng.once_in(2) => {
                self.state.gpr[2] = (self.state.gpr[0] as i64 >> 63) as u64 & self.rng.value();
            }
            _ => {}
        }
        Ok(())
    }

    /// A bit string's offset must not reach beyond the window.
    fn bit_offset(&mut self) -> Result<(), String> {
        if self.insn.op0_kind() != OpKind::Memory || self.insn.op1_kind() != OpKind::Register {
            return Ok(());
        }
        let r = self.insn.op1_register().number();
        if self.fixed.contains(&r) {
            return Err("the bit offset addresses".into());
        }
        let offset = self.rng.below(0x1000).wrapping_sub(0x800);
        let keep = match self.insn.op1_register().size() {
            2 => !0xffff,
            4 => !0xffff_ffff,
            _ => 0,
        };
        self.state.gpr[r] = offset & !keep | self.rng.bits() & keep;
        Ok(())
    }
}

/// A valid 80-bit value: zero, normal, denormal, infinity, NaN.
fn extended(r: &mut Rng) -> (u64, u16) {
    let sign = (r.bits() as u16) & 0x8000;
    let significand = r.value() | 1 << 63;
    match r.below(8) {
        0 => (0, sign),
        1 => (1 << 63, sign | 0x7fff),
        2 => (significand | 1 << 62, sign | 0x7fff),
        3 => (significand & !(1 << 63), sign),
        _ => (significand, sign | (0x3fe0 + r.below(0x50) as u16)),
    }
}
