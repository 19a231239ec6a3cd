//! Random programs: instructions drawn from the rows, and pieces that bring about what random instructions rarely do.
//! Here is what both code sizes share; the rest of the pieces is in `pieces64` and `pieces32`.

use super::handlers::record;
use super::layout::{CODE_PAGES, DATA, RECORD, RECORDS, STACK_PAGES, TOP, WINDOW, sel};
use crate::random::{self, Rng};
use iced_x86::code_asm::*;
use iced_x86::{Code, CpuidFeature as F, IcedError, Instruction, Mnemonic as M, OpCodeOperandKind as K};
use retrovisor_core::isa;

/// Pieces of a program: with their mean size they fill the code pages and a little more.
const PIECES: usize = CODE_PAGES as usize * 0x1000 / 30;

/// A program and how it goes on after faults.
pub struct Program {
    pub code: Vec<u8>,
    /// Records for the handlers, see [`record`].
    pub resume: Vec<u8>,
}

/// Why a row is not drawn by itself.
fn excluded(code: Code, bits: u32) -> Option<&'static str> {
    let op = code.op_code();
    let target = |k| matches!(k, K::farbr2_2 | K::farbr4_2 | K::br64_1 | K::br64_4 | K::br32_1 | K::br32_4);
    Some(match code.mnemonic() {
        _ if bits == 64 && !op.mode64() => "not in 64-bit mode",
        _ if bits == 32 && !op.mode32() => "not in 32-bit mode",
        _ if (0..op.op_count()).any(|n| target(op.op_kind(n))) => "a branch: a piece of its own",
        _ if (0..op.op_count()).any(|n| matches!(op.op_kind(n), K::cr_reg | K::dr_reg)) => {
            "control registers: pieces"
        }
        M::Hlt | M::Mwait | M::Monitor => "waits: a piece of its own",
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => "could end the run",
        M::Call | M::Jmp if bits == 32 && op.operand_size() == 16 => "goes below 64 KiB: the program is lost",
        M::Lgdt | M::Lidt | M::Lldt | M::Ltr | M::Lmsw | M::Wrmsr | M::Xsetbv => {
            "would take the handlers away"
        }
        _ => return None,
    })
}

/// The forms that are drawn, by what they are.
pub struct Forms {
    /// 32 or 64.
    pub bits: u32,
    integer: Vec<Code>,
    sse: Vec<Code>,
    x87: Vec<Code>,
    system: Vec<Code>,
    /// Forms left out, with the reason.
    pub excluded: Vec<(Code, String)>,
}

impl Forms {
    /// All rows that can be made for `bits`-bit code.
    pub fn new(bits: u32) -> Self {
        let mut f =
            Self { bits, integer: vec![], sse: vec![], x87: vec![], system: vec![], excluded: vec![] };
        for row in isa::rows() {
            let made = match excluded(row.code, bits) {
                Some(why) => Err(why.to_owned()),
                None => random::live(row.code, bits, WINDOW, &mut Rng(1)).map(|_| ()),
            };
            match made {
                Err(why) => f.excluded.push((row.code, why)),
                Ok(()) => f.list(row.code).push(row.code),
            }
        }
        f
    }

    fn list(&mut self, code: Code) -> &mut Vec<Code> {
        let op = code.op_code();
        let has = |list: &[F]| code.cpuid_features().iter().any(|f| list.contains(f));
        match () {
            _ if has(&[F::FPU, F::FPU287, F::FPU387]) => &mut self.x87,
            _ if has(&[
                F::MMX,
                F::SSE,
                F::SSE2,
                F::SSE3,
                F::SSSE3,
                F::SSE4_1,
                F::SSE4_2,
                F::AES,
                F::PCLMULQDQ,
            ]) =>
            {
                &mut self.sse
            }
            _ if op.is_privileged() || has(&[F::XSAVE, F::FXSR, F::FSGSBASE]) => &mut self.system,
            _ => &mut self.integer,
        }
    }

    /// A random instruction.
    fn draw(&self, rng: &mut Rng) -> Instruction {
        loop {
            let list = match rng.below(64) {
                0 => &self.system,
                1..10 => &self.x87,
                10..24 => &self.sse,
                _ => &self.integer,
            };
            let code = list[rng.below(list.len() as u64) as usize];
            if let Ok(insn) = random::live(code, self.bits, WINDOW, rng) {
                return insn;
            }
        }
    }
}

/// A program of one seed.
pub fn program(forms: &Forms, rng: &mut Rng) -> Program {
    loop {
        // A branch may come out too far for its form, in one program of thousands.
        if let Ok(p) = Writer::new(forms, rng).and_then(Writer::write) {
            return p;
        }
    }
}

/// A place in the data pages: anywhere, aligned, or close to the end of a page.
pub(super) fn place(rng: &mut Rng) -> u64 {
    let page = WINDOW + 0x1000 * (DATA.0 + rng.below(DATA.1 - DATA.0));
    page + match rng.below(8) {
        0 => 0xff0 + rng.below(16),
        1 => rng.below(0x1000),
        2 => 0x1000 - 8 * (1 + rng.below(4)),
        _ => 16 * rng.below(0xe0),
    }
}

/// RFLAGS for the program: interrupts mostly on, sometimes AC, TF, DF, NT.
pub(super) fn flags(rng: &mut Rng) -> u64 {
    let arithmetic = rng.bits() & 0x8d5;
    let rare = [(0x400, 6), (0x4_0000, 6), (0x100, 24), (0x4000, 16), (0x20_0000, 4), (0x3000, 8)];
    let rare = rare.iter().fold(0, |f, (bit, once)| if rng.once_in(*once) { f | bit } else { f });
    arithmetic | rare | 2 | if rng.once_in(8) { 0 } else { 0x200 }
}

pub(super) fn mxcsr(rng: &mut Rng) -> u32 {
    let masks = if rng.once_in(2) { 0x1f80 } else { rng.bits() as u32 & 0x1f80 };
    masks | rng.bits() as u32 & if rng.once_in(2) { 0xe040 } else { 0x6000 }
}

pub(super) fn fcw(rng: &mut Rng) -> u16 {
    let masks = if rng.once_in(2) { 0x3f } else { rng.bits() as u16 & 0x3f };
    masks | 0x40 | rng.bits() as u16 & 0xf00
}

pub(super) type Done = Result<(), IcedError>;

/// Writes one program.
pub(super) struct Writer<'a> {
    pub a: CodeAssembler,
    forms: &'a Forms,
    pub rng: &'a mut Rng,
    /// Labels ahead that are still to be placed.
    ahead: Vec<CodeLabel>,
    /// Starts of pieces.
    starts: Vec<CodeLabel>,
}

impl<'a> Writer<'a> {
    fn new(forms: &'a Forms, rng: &'a mut Rng) -> Result<Self, IcedError> {
        Ok(Self { a: CodeAssembler::new(forms.bits)?, forms, rng, ahead: Vec::new(), starts: Vec::new() })
    }

    fn write(mut self) -> Result<Program, IcedError> {
        let mut top = self.a.create_label();
        self.a.set_label(&mut top)?;
        match self.forms.bits {
            64 => self.pointers64()?,
            _ => self.pointers32()?,
        }
        for n in 0..PIECES {
            let mut start = self.a.create_label();
            self.a.set_label(&mut start)?;
            self.a.zero_bytes()?;
            self.starts.push(start);
            self.place_labels(n + 1 == PIECES)?;
            match self.forms.bits {
                64 => self.piece64()?,
                _ => self.piece32()?,
            }
        }
        self.place_labels(true)?;
        self.a.jmp(top)?;
        self.finish()
    }

    fn finish(mut self) -> Result<Program, IcedError> {
        let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let done = self.a.assemble_options(WINDOW, options)?;
        let starts: Vec<u64> = self.starts.iter().map(|l| done.label_ip(l)).collect::<Result<_, _>>()?;
        let mut resume = vec![0; RECORDS * RECORD];
        for r in resume.chunks_exact_mut(RECORD) {
            let user = self.forms.bits == 32 || self.rng.once_in(3);
            let rip = starts[self.rng.below(starts.len() as u64) as usize];
            let stack = TOP - 8 * self.rng.below(200) - if self.rng.once_in(16) { 4 } else { 0 };
            let (code_sel, stack_sel) =
                if user { (sel::CODE3, sel::DATA3) } else { (sel::CODE0, sel::DATA0) };
            let words = [
                (record::RIP, rip),
                (record::RSP, stack),
                (record::FLAGS, flags(self.rng)),
                (record::CS, code_sel.into()),
                (record::SS, stack_sel.into()),
                (record::MXCSR, u64::from(mxcsr(self.rng)) | u64::from(fcw(self.rng)) << 32),
            ];
            let pointers = (0..6).map(|n| (record::POINTERS + 8 * n, self.pointer()));
            for (at, v) in words.into_iter().chain(pointers.collect::<Vec<_>>()) {
                r[at..at + 8].copy_from_slice(&v.to_le_bytes());
            }
        }
        let mut code = done.inner.code_buffer;
        code.truncate((CODE_PAGES * 0x1000) as usize);
        Ok(Program { code, resume })
    }

    /// Places some of the labels ahead here.
    fn place_labels(&mut self, all: bool) -> Done {
        let mut rest = Vec::new();
        for mut l in std::mem::take(&mut self.ahead) {
            if all || self.rng.once_in(3) {
                self.a.set_label(&mut l)?;
                self.a.zero_bytes()?;
            } else {
                rest.push(l);
            }
        }
        self.ahead = rest;
        Ok(())
    }

    /// A label somewhere ahead.
    pub fn forward(&mut self) -> CodeLabel {
        if self.rng.once_in(3)
            && let Some(l) = self.ahead.last()
        {
            return *l;
        }
        let l = self.a.create_label();
        self.ahead.push(l);
        l
    }

    pub fn random(&mut self, n: u64) -> Done {
        for _ in 0..n {
            let insn = self.forms.draw(self.rng);
            if insn.has_rep_prefix() || insn.has_repne_prefix() {
                match self.rng.below(16) {
                    0 => {}
                    1 => self.a.mov(ecx, 3000 + self.rng.below(3000) as i32)?,
                    _ => self.a.mov(ecx, self.rng.below(40) as i32)?,
                }
            }
            self.a.add_instruction(insn)?;
        }
        Ok(())
    }

    /// A pointer: mostly a place in the data pages.
    pub fn pointer(&mut self) -> u64 {
        let rng = &mut *self.rng;
        let odd = match rng.below(40) {
            0 => 1 << 47 | rng.below(0x1000),
            1 => 0x8000_0000_0000 - 4,
            2 => !0xfff & rng.bits() << 20 | 0xffff_8000_0000_0000,
            3 => WINDOW + 0x1000 * (STACK_PAGES.0 + rng.below(3)),
            4 => WINDOW + rng.below(0x1000 * CODE_PAGES),
            _ => return place(rng),
        };
        if self.forms.bits == 32 { odd & 0xffff_ffff } else { odd }
    }

    /// A jump ahead on a flag, or on RCX.
    pub fn conditional(&mut self) -> Done {
        let n = self.rng.below(3);
        self.random(n)?;
        let to = self.forward();
        let a = &mut self.a;
        match self.rng.below(20) {
            0 => a.jo(to),
            1 => a.jno(to),
            2 => a.jb(to),
            3 => a.jae(to),
            4 => a.je(to),
            5 => a.jne(to),
            6 => a.jbe(to),
            7 => a.ja(to),
            8 => a.js(to),
            9 => a.jns(to),
            10 => a.jp(to),
            11 => a.jnp(to),
            12 => a.jl(to),
            13 => a.jge(to),
            14 => a.jle(to),
            15 => a.jg(to),
            16 => {
                // JRCXZ and the LOOPs reach 127 bytes: to the next instruction but one.
                let mut near = a.create_label();
                if self.forms.bits == 64 {
                    a.jrcxz(near)?
                } else {
                    a.jecxz(near)?
                }
                a.nop()?;
                a.set_label(&mut near)?;
                a.zero_bytes()
            }
            _ => a.jmp(to),
        }
    }

    /// A call of a few instructions, over which a jump leads.
    pub fn call(&mut self) -> Done {
        let (mut f, mut past) = (self.a.create_label(), self.a.create_label());
        self.a.jmp(past)?;
        self.a.set_label(&mut f)?;
        let n = 1 + self.rng.below(3);
        self.random(n)?;
        match self.rng.below(6) {
            0 => self.a.ret_1(8)?,
            _ => self.a.ret()?,
        }
        self.a.set_label(&mut past)?;
        for _ in 0..1 + self.rng.below(3) {
            self.a.call(f)?;
        }
        Ok(())
    }
}
