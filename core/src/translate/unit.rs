//! What a block is translated from: its instructions, decoded and analysed. Owns the facts about each instruction the
//! emitter decides by: flags read and written, registers written, the memory operand.

use super::host;
use super::mode::ModeKey;
use super::rep;
use super::system;
use super::x87::{self, Use};
use crate::addr::Gpa;
use crate::isa::insn::{Insn, MEM};
use crate::isa::{self, Translate};
use crate::vcpu::cpuid::CpuModel;
use crate::vcpu::gpr::{RBP, RSP};
use crate::vcpu::{Seg, ZERO};
use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpCodeOperandKind as K,
    OpKind, Register, RflagsBits,
};

/// The six arithmetic flags, as iced-x86 numbers them.
pub const ARITH: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// What makes a block unique.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Key {
    pub gpa: Gpa,
    pub rip: u64,
    pub mode: ModeKey,
}

/// A memory operand whose address generated code can compute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemRef {
    pub seg: u8,
    /// Guest registers, or [`ZERO`].
    pub base: u8,
    pub index: u8,
    /// log2 of the scale.
    pub scale: u8,
    pub disp: i64,
    /// Bytes accessed.
    pub size: u16,
    pub write: bool,
    /// The linear address must be a multiple of 16.
    pub aligned: bool,
}

impl MemRef {
    /// The same registers and segment: only displacement and size may differ.
    pub fn same_base(&self, o: &Self) -> bool {
        (self.seg, self.base, self.index, self.scale) == (o.seg, o.base, o.index, o.scale)
    }

    /// Guest registers in the address.
    pub fn registers(&self) -> u16 {
        [self.base, self.index].into_iter().filter(|r| *r != ZERO).fold(0, |m, r| m | 1 << r)
    }
}

/// One instruction of a block.
#[derive(Clone, Debug)]
pub struct Item {
    pub i: Instruction,
    pub insn: Insn,
    pub translate: Translate,
    /// Row attributes.
    pub attrs: u8,
    /// Ends the block.
    pub end: bool,
    pub rip: u64,
    /// Arithmetic flags it reads, and those it may write.
    pub reads: u32,
    pub writes: u32,
    /// Overwrites all six flags, whatever the operands.
    pub full: bool,
    /// General registers it writes.
    pub gpr_written: u16,
    /// And those whose old value matters: read, or written in part or on a condition.
    pub gpr_read: u16,
    /// Of those, the ones that are operands, not only part of an address.
    pub gpr_operand: u16,
    /// The memory access generated code makes for it.
    pub mem: Option<MemRef>,
    /// Uses SSE registers or MXCSR.
    pub sse: bool,
    /// The guest's SSE state is loaded before it (see [`Unit::place_sse`]).
    pub enters_sse: bool,
    /// What it does with the x87 state.
    pub x87: Use,
    /// May call out besides for its memory operand.
    pub faults: bool,
    /// What was looked up before it is of no use behind it.
    pub barrier: bool,
    /// Translated by `system`.
    pub system: bool,
}

impl Item {
    /// RIP of the instruction behind it.
    pub fn next(&self, mode: ModeKey) -> u64 {
        let n = self.rip.wrapping_add(u64::from(self.insn.len));
        if mode.is64() { n } else { n & 0xffff_ffff }
    }

    /// Lets the interpreter execute it.
    pub fn make_call(&mut self) {
        self.translate = Translate::Call;
        (self.reads, self.writes, self.full) = (ARITH, ARITH, false);
        (self.gpr_written, self.gpr_read, self.gpr_operand) = (u16::MAX, u16::MAX, u16::MAX);
        self.mem = None;
        self.sse = false;
        (self.faults, self.barrier) = (false, false);
    }

    /// Is it executed by a call?
    pub fn is_call(&self) -> bool {
        matches!(self.translate, Translate::Call)
    }

    /// Does it run on the host's x87?
    pub fn x87_native(&self) -> bool {
        self.x87 != Use::No && !self.is_call()
    }

    /// May it be left in the middle of the block? Then its flags can be seen.
    pub fn is_site(&self) -> bool {
        self.mem.is_some() || self.is_call() || self.enters_sse || self.x87_native() || self.faults
    }

    /// What it adds to register `r`, if that is all it does to it.
    pub fn adds(&self, r: u8) -> Option<i64> {
        let to_r = |n| {
            self.i.op_kind(n) == OpKind::Register
                && self.i.op_register(n).is_gpr()
                && self.i.op_register(n).size() >= 4
                && self.i.op_register(n).full_register().number() == usize::from(r)
        };
        let full_width = self.insn.bits != 64 || self.i.op_count() > 0 && self.i.op0_register().size() == 8;
        let stack = i64::from(self.insn.bits / 8);
        match self.i.mnemonic() {
            Mnemonic::Push if usize::from(r) == RSP => Some(-stack),
            Mnemonic::Pop if usize::from(r) == RSP && !to_r(0) => Some(stack),
            Mnemonic::Add if to_r(0) && full_width && is_imm(&self.i) => Some(self.i.immediate(1) as i64),
            Mnemonic::Sub if to_r(0) && full_width && is_imm(&self.i) => {
                Some((self.i.immediate(1) as i64).wrapping_neg())
            }
            Mnemonic::Lea
                if to_r(0)
                    && full_width
                    && self.insn.base == r
                    && self.insn.index == ZERO
                    && self.insn.addr_mask == if self.insn.bits == 64 { u64::MAX } else { 0xffff_ffff } =>
            {
                Some(self.insn.disp as i64)
            }
            _ => None,
        }
    }
}

fn is_imm(i: &Instruction) -> bool {
    matches!(
        i.op1_kind(),
        OpKind::Immediate8to32 | OpKind::Immediate8to64 | OpKind::Immediate32to64 | OpKind::Immediate32
    )
}

/// A block's worth of decoded instructions.
#[derive(Debug)]
pub struct Unit {
    pub key: Key,
    pub items: Vec<Item>,
    /// Bytes.
    pub len: u32,
    /// Frame of the second page, if its one instruction straddles two.
    pub second: Option<Gpa>,
}

impl Unit {
    /// Decides where the guest's SSE state is loaded into the host's registers: where the block can be left anyway, before
    /// the first instruction that uses it but after whatever is called or branches before that. If SSE cannot be used the rest of the
    /// block is interpreted from there, so it does no harm that this may be early. `early`: at the very start, if nothing is called before.
    pub fn place_sse(&mut self, early: bool) {
        self.items.iter_mut().for_each(|it| it.enters_sse = false);
        let Some(first) = self.items.iter().position(|it| it.sse) else { return };
        if early && !self.items[..first].iter().any(Item::is_call) {
            self.items[0].enters_sse = true;
            return;
        }
        let leaves = |it: &Item| it.is_call() || it.i.is_jcc_short_or_near();
        let from = self.items[..first].iter().rposition(leaves).map_or(0, |k| k + 1);
        let at = (from..first).find(|k| self.items[*k].is_site()).unwrap_or(first);
        self.items[at].enters_sse = true;
    }
}

/// Decodes and analyses instructions; one a machine.
pub struct Analyser {
    pub model: CpuModel,
    undefined: bool,
    factory: InstructionInfoFactory,
}

impl std::fmt::Debug for Analyser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Analyser({:?})", self.model)
    }
}

impl Analyser {
    /// `undefined`: see [`crate::engine::JitOptions::host_undefined`].
    pub fn new(model: CpuModel, undefined: bool) -> Self {
        Self { model, undefined, factory: InstructionInfoFactory::new() }
    }

    /// Decodes up to the first block-ending instruction, the end of `bytes`, [`super::MAX_INSNS`] instructions, or the
    /// first instruction (but the very first) `stop` holds for. No instruction: the first does not fit into `bytes`.
    pub fn unit(&mut self, key: Key, bytes: &[u8], side_exits: usize, stop: &dyn Fn(u64) -> bool) -> Unit {
        let mut unit = Unit { key, items: Vec::with_capacity(8), len: 0, second: None };
        let (mut at, mut sides) = (0usize, 0);
        while unit.items.len() < super::MAX_INSNS {
            let rip = key.rip.wrapping_add(at as u64);
            // Outside 64-bit mode the instruction pointer wraps at 4 GiB: leave that to the interpreter.
            if !key.mode.is64() && rip > u64::from(u32::MAX) - 15 || !unit.items.is_empty() && stop(rip) {
                break;
            }
            let Some((d, i)) = isa::decode_full(&bytes[at..], key.mode.bits(), rip, self.model) else {
                break;
            };
            let undefined = d.insn.code == 0;
            let mut item = self.item(i, d.insn, d.translate, d.attrs, rip, key.mode);
            // Loops are better closed at their branch back.
            if i.is_jcc_short_or_near() && d.insn.imm > rip && sides < side_exits && !item.is_call() {
                sides += 1;
                item.end = false;
            }
            let end = item.end;
            unit.items.push(item);
            at += if undefined { (bytes.len() - at).min(15) } else { usize::from(d.insn.len) };
            if end {
                break;
            }
        }
        unit.len = at as u32;
        system::settle(&mut unit);
        unit
    }

    fn item(
        &mut self,
        i: Instruction,
        insn: Insn,
        translate: Translate,
        attrs: u8,
        rip: u64,
        mode: ModeKey,
    ) -> Item {
        let mut it = Item {
            i,
            insn,
            translate,
            attrs,
            end: attrs & isa::END != 0,
            rip,
            reads: ARITH,
            writes: ARITH,
            full: false,
            gpr_written: u16::MAX,
            gpr_read: u16::MAX,
            gpr_operand: u16::MAX,
            mem: None,
            sse: false,
            enters_sse: false,
            x87: x87::of(i.code()),
            faults: false,
            barrier: false,
            system: false,
        };
        let code = i.code();
        let as_host = host::agrees(code, self.model) && (self.undefined || !host::is_undefined(code));
        if it.is_call() || !as_host {
            it.make_call();
            return it;
        }
        it.reads = i.rflags_read() & ARITH;
        it.writes = i.rflags_modified() & ARITH;
        it.full = it.writes == ARITH && !by_cl(&i);
        if matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) {
            // Division changes no flag (see `isa::muldiv`).
            (it.reads, it.writes, it.full, it.faults) = (0, 0, false, true);
        }
        self.registers(&mut it);
        it.sse = uses_sse(&i);
        match memory(&it, mode) {
            Ok(m) => {
                it.mem = m;
                it.faults |= bit_string(&it);
            }
            Err(Untranslatable) => it.make_call(),
        }
        if matches!(translate, Translate::Emit(_)) && !it.is_call() {
            system::analyse(&mut it, mode, self.model);
            rep::analyse(&mut it, mode);
        }
        it
    }

    fn registers(&mut self, it: &mut Item) {
        let info = self.factory.info_options(&it.i, InstructionInfoOptions::NO_MEMORY_USAGE);
        (it.gpr_written, it.gpr_read, it.gpr_operand) = (0, 0, 0);
        for n in (0..it.i.op_count()).filter(|n| it.i.op_kind(*n) == OpKind::Register) {
            let r = it.i.op_register(n);
            if r.is_gpr() && (info.op_access(n) != OpAccess::Write || r.size() < 4) {
                it.gpr_operand |= 1 << r.full_register().number();
            }
        }
        for u in info.used_registers() {
            if !u.register().is_gpr() {
                continue;
            }
            let bit = 1 << u.register().full_register().number();
            if u.access() != OpAccess::Write || u.register().size() < 4 {
                it.gpr_read |= bit;
            }
            if matches!(
                u.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            ) {
                it.gpr_written |= bit;
            }
        }
    }
}

/// Does it use an XMM register, or MXCSR, as the conversions of a memory operand to a general register do?
fn uses_sse(i: &Instruction) -> bool {
    let op = i.op_code();
    let xmm = |k| matches!(k, K::xmm_reg | K::xmm_or_mem | K::xmm_rm);
    matches!(i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr)
        || (0..op.op_count()).any(|n| xmm(op.op_kind(n)))
}

/// Shifts by CL write no flag if the count is zero.
fn by_cl(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n) == Register::CL)
        && matches!(
            i.mnemonic(),
            Mnemonic::Shl
                | Mnemonic::Sal
                | Mnemonic::Shr
                | Mnemonic::Sar
                | Mnemonic::Rol
                | Mnemonic::Ror
                | Mnemonic::Rcl
                | Mnemonic::Rcr
                | Mnemonic::Shld
                | Mnemonic::Shrd
        )
}

/// The access cannot be made by generated code.
struct Untranslatable;

/// Is it a bit instruction whose bit offset, in a register, reaches beyond its memory operand?
fn bit_string(it: &Item) -> bool {
    it.i.op0_kind() == OpKind::Memory
        && it.i.op1_kind() == OpKind::Register
        && matches!(it.i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
}

/// The memory access of an instruction.
fn memory(it: &Item, mode: ModeKey) -> Result<Option<MemRef>, Untranslatable> {
    let word = u16::from(mode.bits() / 8);
    let stack = |base: usize, disp: i64, write: bool| MemRef {
        seg: Seg::Ss as u8,
        base: base as u8,
        index: ZERO,
        scale: 0,
        disp,
        size: word,
        write,
        aligned: false,
    };
    let explicit = it.insn.rm == MEM && it.i.mnemonic() != Mnemonic::Lea && it.attrs & isa::NO_ACCESS == 0;
    let m = match it.i.mnemonic() {
        Mnemonic::Push if explicit => operand(it),
        Mnemonic::Pop if explicit => return Err(Untranslatable),
        Mnemonic::Push | Mnemonic::Pushfq | Mnemonic::Pushfd => stack(RSP, -i64::from(word), true),
        Mnemonic::Pop | Mnemonic::Ret => stack(RSP, 0, false),
        Mnemonic::Leave => stack(RBP, 0, false),
        Mnemonic::Call if !explicit => stack(RSP, -i64::from(word), true),
        _ if !explicit => return Ok(None),
        _ => operand(it),
    };
    let address_size = it.insn.addr_mask == if mode.is64() { u64::MAX } else { 0xffff_ffff };
    if !address_size || !mode.fast_segment(m.seg) || m.size == 0 || m.size > 16 {
        return Err(Untranslatable);
    }
    Ok(if bit_string(it) { None } else { Some(m) })
}

/// The ModRM memory operand.
pub(super) fn operand(it: &Item) -> MemRef {
    let insn = &it.insn;
    let write = match it.i.mnemonic() {
        Mnemonic::Cmp
        | Mnemonic::Test
        | Mnemonic::Bt
        | Mnemonic::Call
        | Mnemonic::Jmp
        | Mnemonic::Push
        | Mnemonic::Ldmxcsr => false,
        _ if it.x87 == Use::Notes || it.i.mnemonic() == Mnemonic::Fldcw => x87::stores(it.i.mnemonic()),
        _ => it.i.op0_kind() == OpKind::Memory || it.i.mnemonic() == Mnemonic::Xchg,
    };
    let read_only =
        matches!(it.i.mnemonic(), Mnemonic::Mul | Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Imul);
    MemRef {
        seg: insn.seg,
        base: insn.base,
        index: insn.index,
        scale: insn.scale,
        disp: insn.disp as i64,
        size: it.i.memory_size().size() as u16,
        write: write && !read_only,
        aligned: it.attrs & isa::ALIGNED != 0,
    }
}
