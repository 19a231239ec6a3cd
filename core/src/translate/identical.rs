//! Identical translation: the guest's instruction, re-encoded with host registers for the guest's and R15 for its memory
//! operand. Guest registers that live in the frame pass through RAX (and R15).

use super::emit::{Emitter, Unsupported, host};
use super::host;
use super::recipe::{Operand, Producer, Recipe, Step};
use super::unit::Item;
use super::window::{Place, gpr64};
use super::x87::Use;
use crate::jit::frame::Frame;
use crate::vcpu::gpr::RAX;
use dynasmrt::DynasmApi;
use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind, OpKind, Register};

/// A guest register of an instruction that has no host register, or not one with its high byte.
struct Passenger {
    guest: u8,
    /// Host register it passes through.
    through: u8,
}

impl Emitter<'_> {
    /// Appends an instruction to the code.
    pub(crate) fn encode(&mut self, i: &Instruction) -> Result<(), Unsupported> {
        // The host address matters only to RIP-relative operands, which translated code has none of.
        self.encoder.encode(i, 0x1000).map_err(|_| Unsupported)?;
        let mut bytes = self.encoder.take_buffer();
        self.a.extend(&bytes);
        bytes.clear();
        self.encoder.set_buffer(bytes);
        Ok(())
    }

    /// Translates the current instruction identically.
    pub(super) fn identical(&mut self, it: &Item) -> Result<(), Unsupported> {
        if it.x87 != Use::No {
            self.enter_x87(it)?;
        }
        let place = it.mem.as_ref().map(|m| self.access(m)).transpose()?;
        self.identical_at(it, place)
    }

    /// The same, with the memory operand looked up already.
    pub(crate) fn identical_at(&mut self, it: &Item, place: Option<Place>) -> Result<(), Unsupported> {
        let partial = it.writes != 0 && !it.full;
        if it.reads != 0 || partial && !self.unobserved(self.k) {
            match it.i.mnemonic() {
                // They overwrite all other flags.
                Mnemonic::Inc | Mnemonic::Dec | Mnemonic::Adc | Mnemonic::Sbb => self.need_carry(),
                _ => self.need_host(),
            }
        }
        let mut i = generic(&it.i);
        strip_prefixes(&mut i);
        if let Some(p) = place {
            redirect(&mut i, &p);
        }
        let passengers = self.rename(it, &mut i, place.is_some())?;
        for p in passengers.iter().filter(|p| it.gpr_operand & (1 << p.guest) != 0) {
            self.board(p);
        }
        self.encode(&i)?;
        for p in passengers.iter().filter(|p| it.gpr_written & (1 << p.guest) != 0) {
            self.alight(p);
        }
        if it.writes != 0 {
            self.flags_written(recipe(it, self.flags.recipe));
        }
        self.note_x87(it);
        self.move_window(it);
        Ok(())
    }

    /// The guest's value into the host register it passes through.
    fn board(&mut self, p: &Passenger) {
        match host(p.guest) {
            Some(h) => dynasmrt::dynasm!(self.a ; .arch x64 ; mov Rq(p.through), Rq(h)),
            None => self.load_frame(p.through, p.guest),
        }
    }

    /// And back.
    fn alight(&mut self, p: &Passenger) {
        match host(p.guest) {
            Some(h) => dynasmrt::dynasm!(self.a ; .arch x64 ; mov Rq(h), Rq(p.through)),
            None => self.store_frame(p.through, p.guest),
        }
    }

    /// Replaces the guest's registers by the host's.
    fn rename(
        &mut self,
        it: &Item,
        i: &mut Instruction,
        memory: bool,
    ) -> Result<Vec<Passenger>, Unsupported> {
        let mut passengers: Vec<Passenger> = Vec::new();
        for n in 0..i.op_count() {
            if i.op_kind(n) != OpKind::Register {
                continue;
            }
            let r = i.op_register(n);
            if !r.is_gpr() {
                if r.is_xmm() || r.is_mm() || r.is_st() {
                    continue;
                }
                return Err(Unsupported);
            }
            let guest = guest_register(r);
            let h = match host(guest) {
                Some(h) if !(is_high(r) && usize::from(guest) == RAX) => h,
                None if !memory && in_memory(it, i, n) => {
                    from_frame(i, n, guest);
                    continue;
                }
                _ => self.passage(&mut passengers, guest, memory)?,
            };
            i.set_op_register(n, like(r, h)?);
        }
        Ok(passengers)
    }

    /// The host register a guest register passes through.
    fn passage(&mut self, all: &mut Vec<Passenger>, guest: u8, memory: bool) -> Result<u8, Unsupported> {
        if let Some(p) = all.iter().find(|p| p.guest == guest) {
            return Ok(p.through);
        }
        let through = match all.len() {
            0 => 0,
            1 if !memory => {
                self.lose_r15();
                15
            }
            _ => return Err(Unsupported),
        };
        all.push(Passenger { guest, through });
        Ok(through)
    }
}

/// Can operand `n`, a register, be replaced by its image in the frame? Not if it is written with 32 bits: the upper half
/// would stay; not if its memory form writes less (PEXTRB), leaves other flags (ROL), or is a bit string; and not if it is
/// there twice.
fn in_memory(it: &Item, i: &Instruction, n: u32) -> bool {
    let rm = matches!(
        i.code().op_code().op_kind(n),
        OpCodeOperandKind::r8_or_mem
            | OpCodeOperandKind::r16_or_mem
            | OpCodeOperandKind::r32_or_mem
            | OpCodeOperandKind::r64_or_mem
    );
    let r = i.op_register(n);
    let written = it.gpr_written & (1 << r.full_register().number()) != 0;
    let bit_string = matches!(it.i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && it.i.op1_kind() == OpKind::Register;
    let same =
        |o: u32| i.op_kind(o) == OpKind::Register && it.i.op_register(o).full_register() == r.full_register();
    let alone = (0..i.op_count()).filter(|o| same(*o)).count() == 1;
    let whole = r.size() == 8 && i.memory_size().size() == 8;
    rm && alone && !bit_string && host::agrees_in_memory(it.i.code()) && (!written || whole)
}

/// Replaces operand `n` by guest register `guest` in the frame.
fn from_frame(i: &mut Instruction, n: u32, guest: u8) {
    i.set_op_kind(n, OpKind::Memory);
    let at = Frame::high_offset(guest).into();
    set_memory(i, &MemoryOperand::with_base_displ_size(Register::RSP, at, 1));
}

/// Is it AH, CH, DH or BH?
pub(super) fn is_high(r: Register) -> bool {
    matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Number of the general register `r` is, or is a part of.
pub(super) fn guest_register(r: Register) -> u8 {
    r.full_register().number() as u8
}

/// Without LOCK (one thread runs all vCPUs) and the REP prefixes that mean nothing here.
pub(super) fn strip_prefixes(i: &mut Instruction) {
    i.set_has_lock_prefix(false);
    i.set_has_rep_prefix(false);
    i.set_has_repne_prefix(false);
}

/// Host register `h` in the size (and for RAX to RBX the byte) of `r`.
pub(super) fn like(r: Register, h: u8) -> Result<Register, Unsupported> {
    let n = u32::from(h);
    Ok(match (r.size(), r) {
        (8, _) => gpr64(h),
        (4, _) => Register::EAX + n,
        (2, _) => Register::AX + n,
        _ if is_high(r) && h < 4 => Register::AH + n,
        _ if is_high(r) => return Err(Unsupported),
        // AL, CL, DL, BL; then SPL, BPL, SIL, DIL, R8L to R15L behind the four high bytes.
        _ if h < 4 => Register::AL + n,
        _ => Register::SPL + (n - 4),
    })
}

/// Replaces the memory operand.
pub(super) fn redirect(i: &mut Instruction, p: &Place) {
    set_memory(i, &p.operand());
}

fn set_memory(i: &mut Instruction, m: &MemoryOperand) {
    i.set_segment_prefix(Register::None);
    i.set_memory_base(m.base);
    i.set_memory_index(m.index);
    i.set_memory_index_scale(m.scale);
    i.set_memory_displacement64(m.displacement as u64);
    i.set_memory_displ_size(m.displ_size);
}

/// The same instruction in a form that any register fits and that exists in 64-bit code.
fn generic(i: &Instruction) -> Instruction {
    use Code as C;
    let code = match i.code() {
        C::Add_AL_imm8 | C::Add_rm8_imm8_82 => C::Add_rm8_imm8,
        C::Add_AX_imm16 => C::Add_rm16_imm16,
        C::Add_EAX_imm32 => C::Add_rm32_imm32,
        C::Add_RAX_imm32 => C::Add_rm64_imm32,
        C::Or_AL_imm8 | C::Or_rm8_imm8_82 => C::Or_rm8_imm8,
        C::Or_AX_imm16 => C::Or_rm16_imm16,
        C::Or_EAX_imm32 => C::Or_rm32_imm32,
        C::Or_RAX_imm32 => C::Or_rm64_imm32,
        C::Adc_AL_imm8 | C::Adc_rm8_imm8_82 => C::Adc_rm8_imm8,
        C::Adc_AX_imm16 => C::Adc_rm16_imm16,
        C::Adc_EAX_imm32 => C::Adc_rm32_imm32,
        C::Adc_RAX_imm32 => C::Adc_rm64_imm32,
        C::Sbb_AL_imm8 | C::Sbb_rm8_imm8_82 => C::Sbb_rm8_imm8,
        C::Sbb_AX_imm16 => C::Sbb_rm16_imm16,
        C::Sbb_EAX_imm32 => C::Sbb_rm32_imm32,
        C::Sbb_RAX_imm32 => C::Sbb_rm64_imm32,
        C::And_AL_imm8 | C::And_rm8_imm8_82 => C::And_rm8_imm8,
        C::And_AX_imm16 => C::And_rm16_imm16,
        C::And_EAX_imm32 => C::And_rm32_imm32,
        C::And_RAX_imm32 => C::And_rm64_imm32,
        C::Sub_AL_imm8 | C::Sub_rm8_imm8_82 => C::Sub_rm8_imm8,
        C::Sub_AX_imm16 => C::Sub_rm16_imm16,
        C::Sub_EAX_imm32 => C::Sub_rm32_imm32,
        C::Sub_RAX_imm32 => C::Sub_rm64_imm32,
        C::Xor_AL_imm8 | C::Xor_rm8_imm8_82 => C::Xor_rm8_imm8,
        C::Xor_AX_imm16 => C::Xor_rm16_imm16,
        C::Xor_EAX_imm32 => C::Xor_rm32_imm32,
        C::Xor_RAX_imm32 => C::Xor_rm64_imm32,
        C::Cmp_AL_imm8 | C::Cmp_rm8_imm8_82 => C::Cmp_rm8_imm8,
        C::Cmp_AX_imm16 => C::Cmp_rm16_imm16,
        C::Cmp_EAX_imm32 => C::Cmp_rm32_imm32,
        C::Cmp_RAX_imm32 => C::Cmp_rm64_imm32,
        C::Test_AL_imm8 | C::Test_rm8_imm8_F6r1 => C::Test_rm8_imm8,
        C::Test_AX_imm16 | C::Test_rm16_imm16_F7r1 => C::Test_rm16_imm16,
        C::Test_EAX_imm32 | C::Test_rm32_imm32_F7r1 => C::Test_rm32_imm32,
        C::Test_RAX_imm32 | C::Test_rm64_imm32_F7r1 => C::Test_rm64_imm32,
        C::Xchg_r16_AX => C::Xchg_rm16_r16,
        C::Xchg_r32_EAX => C::Xchg_rm32_r32,
        C::Xchg_r64_RAX => C::Xchg_rm64_r64,
        C::Inc_r16 => C::Inc_rm16,
        C::Inc_r32 => C::Inc_rm32,
        C::Dec_r16 => C::Dec_rm16,
        C::Dec_r32 => C::Dec_rm32,
        C::Mov_AL_moffs8 => C::Mov_r8_rm8,
        C::Mov_AX_moffs16 => C::Mov_r16_rm16,
        C::Mov_EAX_moffs32 => C::Mov_r32_rm32,
        C::Mov_RAX_moffs64 => C::Mov_r64_rm64,
        C::Mov_moffs8_AL => C::Mov_rm8_r8,
        C::Mov_moffs16_AX => C::Mov_rm16_r16,
        C::Mov_moffs32_EAX => C::Mov_rm32_r32,
        C::Mov_moffs64_RAX => C::Mov_rm64_r64,
        other => other,
    };
    let mut out = *i;
    out.set_code(code);
    out
}

/// How the flags of an instruction follow from what it leaves in the registers; `before`: and those before it.
pub(super) fn recipe(it: &Item, before: Option<Recipe>) -> Option<Recipe> {
    let producer = match it.i.mnemonic() {
        Mnemonic::Cmp => Producer::Cmp,
        Mnemonic::Test => Producer::Test,
        Mnemonic::Add => Producer::Add,
        Mnemonic::Sub => Producer::Sub,
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => Producer::Logic,
        Mnemonic::Neg => Producer::Neg,
        Mnemonic::Inc => Producer::Inc,
        Mnemonic::Dec => Producer::Dec,
        _ => return None,
    };
    let plain = |n| match it.i.op_kind(n) {
        OpKind::Register => {
            let r = it.i.op_register(n);
            (!is_high(r)).then(|| guest_register(r))
        }
        _ => None,
    };
    let a = plain(0)?;
    let b = match (producer, plain(1)) {
        (Producer::Neg | Producer::Inc | Producer::Dec, _) => Operand::Imm(0),
        // The result is all the flags depend on: a memory operand does no harm.
        (Producer::Logic, _) => Operand::Imm(0),
        (Producer::Add | Producer::Sub, Some(b)) if a == b => return None,
        (_, Some(b)) => Operand::Reg(b),
        (_, None) if it.mem.is_none() => Operand::Imm(it.i.try_immediate(1).ok()?),
        _ => return None,
    };
    let last = Step { producer, size: it.i.op0_register().size() as u8, a, b };
    Recipe::after(last, before, it.gpr_written)
}
