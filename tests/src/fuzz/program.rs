//! Random programs: instructions drawn from the rows, and pieces that bring about what random instructions rarely do:
//! branches, calls, indirect jumps, self-modification, changes of mappings, of address space and of privilege.

use super::handlers::record;
use super::layout::{
    CODE_PAGES, DATA, LEAVES, RECORD, RECORDS, SPACE, SPACES, STACK_PAGES, TABLES, TOP, WINDOW, leaf, sel,
};
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
fn excluded(code: Code) -> Option<&'static str> {
    let op = code.op_code();
    let target = |k| matches!(k, K::farbr2_2 | K::farbr4_2 | K::br64_1 | K::br64_4 | K::br32_1 | K::br32_4);
    Some(match code.mnemonic() {
        _ if !op.mode64() => "not in 64-bit mode",
        _ if (0..op.op_count()).any(|n| target(op.op_kind(n))) => "a branch: a piece of its own",
        _ if (0..op.op_count()).any(|n| matches!(op.op_kind(n), K::cr_reg | K::dr_reg)) => {
            "control registers: pieces"
        }
        M::Hlt | M::Mwait | M::Monitor => "waits: a piece of its own",
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => "could end the run",
        M::Lgdt | M::Lidt | M::Lldt | M::Ltr | M::Lmsw | M::Wrmsr | M::Xsetbv => {
            "would take the handlers away"
        }
        _ => return None,
    })
}

/// The forms that are drawn, by what they are.
pub struct Forms {
    integer: Vec<Code>,
    sse: Vec<Code>,
    x87: Vec<Code>,
    system: Vec<Code>,
    /// Forms left out, with the reason.
    pub excluded: Vec<(Code, String)>,
}

impl Forms {
    /// All rows that can be made.
    pub fn new() -> Self {
        let mut f = Self { integer: vec![], sse: vec![], x87: vec![], system: vec![], excluded: vec![] };
        for row in isa::rows() {
            let made = match excluded(row.code) {
                Some(why) => Err(why.to_owned()),
                None => random::live(row.code, 64, WINDOW, &mut Rng(1)).map(|_| ()),
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
            if let Ok(insn) = random::live(code, 64, WINDOW, rng) {
                return insn;
            }
        }
    }
}

impl Default for Forms {
    fn default() -> Self {
        Self::new()
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
fn place(rng: &mut Rng) -> u64 {
    let page = WINDOW + 0x1000 * (DATA.0 + rng.below(DATA.1 - DATA.0));
    page + match rng.below(8) {
        0 => 0xff0 + rng.below(16),
        1 => rng.below(0x1000),
        2 => 0x1000 - 8 * (1 + rng.below(4)),
        _ => 16 * rng.below(0xe0),
    }
}

/// A pointer: mostly a place in the data pages.
fn pointer(rng: &mut Rng) -> u64 {
    match rng.below(40) {
        0 => 1 << 47 | rng.below(0x1000),
        1 => 0x8000_0000_0000 - 4,
        2 => !0xfff & rng.bits() << 20 | 0xffff_8000_0000_0000,
        3 => WINDOW + 0x1000 * (STACK_PAGES.0 + rng.below(3)),
        4 => WINDOW + rng.below(0x1000 * CODE_PAGES),
        _ => place(rng),
    }
}

/// RFLAGS for the program: interrupts mostly on, sometimes AC, TF, DF, NT.
fn flags(rng: &mut Rng) -> u64 {
    let arithmetic = rng.bits() & 0x8d5;
    let rare = [(0x400, 6), (0x4_0000, 6), (0x100, 24), (0x4000, 16), (0x20_0000, 4), (0x3000, 8)];
    let rare = rare.iter().fold(0, |f, (bit, once)| if rng.once_in(*once) { f | bit } else { f });
    arithmetic | rare | 2 | if rng.once_in(8) { 0 } else { 0x200 }
}

fn mxcsr(rng: &mut Rng) -> u32 {
    let masks = if rng.once_in(2) { 0x1f80 } else { rng.bits() as u32 & 0x1f80 };
    masks | rng.bits() as u32 & if rng.once_in(2) { 0xe040 } else { 0x6000 }
}

fn fcw(rng: &mut Rng) -> u16 {
    let masks = if rng.once_in(2) { 0x3f } else { rng.bits() as u16 & 0x3f };
    masks | 0x40 | rng.bits() as u16 & 0xf00
}

type Done = Result<(), IcedError>;

/// Writes one program.
struct Writer<'a> {
    a: CodeAssembler,
    forms: &'a Forms,
    rng: &'a mut Rng,
    /// Labels ahead that are still to be placed.
    ahead: Vec<CodeLabel>,
    /// Starts of pieces.
    starts: Vec<CodeLabel>,
}

impl<'a> Writer<'a> {
    fn new(forms: &'a Forms, rng: &'a mut Rng) -> Result<Self, IcedError> {
        Ok(Self { a: CodeAssembler::new(64)?, forms, rng, ahead: Vec::new(), starts: Vec::new() })
    }

    fn write(mut self) -> Result<Program, IcedError> {
        let mut top = self.a.create_label();
        self.a.set_label(&mut top)?;
        self.pointers()?;
        for n in 0..PIECES {
            let mut start = self.a.create_label();
            self.a.set_label(&mut start)?;
            self.a.zero_bytes()?;
            self.starts.push(start);
            self.place_labels(n + 1 == PIECES)?;
            self.piece()?;
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
            let user = self.rng.once_in(3);
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
            let pointers = (0..6).map(|n| (record::POINTERS + 8 * n, pointer(self.rng)));
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
    fn forward(&mut self) -> CodeLabel {
        if self.rng.once_in(3)
            && let Some(l) = self.ahead.last()
        {
            return *l;
        }
        let l = self.a.create_label();
        self.ahead.push(l);
        l
    }

    fn random(&mut self, n: u64) -> Done {
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

    /// One piece.
    fn piece(&mut self) -> Done {
        match self.rng.below(48) {
            0..22 => {
                let n = 1 + self.rng.below(6);
                self.random(n)
            }
            22..25 => self.pointers(),
            25..29 => self.conditional(),
            29..31 => self.counted_loop(),
            31 | 32 => self.call(),
            33 => self.indirect(),
            34 | 35 => self.frame(),
            36 => self.fields(),
            37 | 38 => self.modify_code(),
            39 => self.map(),
            40 => self.space(),
            41 => self.privilege(),
            42 => self.control(),
            43 | 44 => self.flag_bits(),
            45 => self.float_control(),
            46 => self.divide(),
            _ => self.oddity(),
        }
    }

    /// New values for some pointers.
    fn pointers(&mut self) -> Done {
        for r in [rbx, rbp, rsi, rdi, r12, r13] {
            if self.rng.once_in(2) {
                self.a.mov(r, pointer(self.rng))?;
            }
        }
        Ok(())
    }

    /// A jump ahead on a flag, or on RCX.
    fn conditional(&mut self) -> Done {
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
                a.jrcxz(near)?;
                a.nop()?;
                a.set_label(&mut near)?;
                a.zero_bytes()
            }
            _ => a.jmp(to),
        }
    }

    /// A few instructions some times; they may well change the counter.
    fn counted_loop(&mut self) -> Done {
        let mut top = self.a.create_label();
        let times = 2 + self.rng.below(12) as i32;
        let way = self.rng.below(3);
        match way {
            0 => self.a.mov(ecx, times)?,
            _ => self.a.mov(r15d, times)?,
        }
        self.a.set_label(&mut top)?;
        let n = 1 + self.rng.below(4);
        self.random(n)?;
        match way {
            // LOOP reaches back 128 bytes; four instructions have less.
            0 => self.a.loop_(top),
            1 => {
                self.a.dec(r15d)?;
                self.a.jnz(top)
            }
            _ => {
                self.a.sub(r15d, 1)?;
                self.a.jg(top)
            }
        }
    }

    /// A call of a few instructions, over which a jump leads.
    fn call(&mut self) -> Done {
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

    /// An indirect jump or call, through a register or memory, sometimes to nowhere.
    fn indirect(&mut self) -> Done {
        let to = self.forward();
        self.a.lea(rax, ptr(to))?;
        match self.rng.below(8) {
            0 => {
                // Non-canonical, or not mapped.
                let at = if self.rng.once_in(2) { 0x8000_0000_0000 } else { WINDOW - 8 };
                self.a.mov(rax, at)?;
            }
            1 => self.a.inc(rax)?,
            2 => {
                // Just before a page that is not there.
                self.a.mov(rax, WINDOW + 0x1000 * CODE_PAGES - 1 - self.rng.below(4))?;
            }
            _ => {}
        }
        match self.rng.below(4) {
            0 => self.a.jmp(rax),
            1 => self.a.call(rax),
            2 => {
                self.a.mov(qword_ptr(rsp - 64), rax)?;
                self.a.jmp(qword_ptr(rsp - 64))
            }
            _ => {
                self.a.push(rax)?;
                self.a.ret()
            }
        }
    }

    /// A stack frame with some accesses off RSP and RBP.
    fn frame(&mut self) -> Done {
        self.a.push(rbp)?;
        self.a.mov(rbp, rsp)?;
        self.a.sub(rsp, 0x40)?;
        for _ in 0..self.rng.below(5) {
            let at = self.rng.below(8) as i32 * 8;
            match self.rng.below(5) {
                0 => self.a.mov(qword_ptr(rsp + at), r8)?,
                1 => self.a.mov(rax, qword_ptr(rbp - at - 8))?,
                2 => self.a.add(dword_ptr(rsp + at), 7)?,
                3 => self.a.push(qword_ptr(rbp - at))?,
                _ => self.a.cmp(byte_ptr(rsp + at), 3)?,
            }
        }
        match self.rng.below(2) {
            0 => self.a.leave(),
            _ => {
                self.a.mov(rsp, rbp)?;
                self.a.pop(rbp)
            }
        }
    }

    /// Several accesses off one pointer, which may lie on two pages.
    fn fields(&mut self) -> Done {
        let p = [rbx, rbp, rsi, rdi, r12, r13][self.rng.below(6) as usize];
        for _ in 0..2 + self.rng.below(5) {
            let at = self.rng.below(24) as i32 * 4;
            match self.rng.below(6) {
                0 => self.a.mov(rax, qword_ptr(p + at))?,
                1 => self.a.mov(qword_ptr(p + at), r9)?,
                2 => self.a.xor(dword_ptr(p + at), r10d)?,
                3 => self.a.movups(xmm1, xmmword_ptr(p + at))?,
                4 => self.a.movups(xmmword_ptr(p - at), xmm2)?,
                _ => self.a.movzx(ecx, byte_ptr(p + at))?,
            }
        }
        Ok(())
    }

    /// A store into code: the immediate of an instruction ahead in the same block, or any byte of the code.
    fn modify_code(&mut self) -> Done {
        match self.rng.below(6) {
            0 => {
                let at = WINDOW + self.rng.below(0x1000 * CODE_PAGES);
                self.a.mov(byte_ptr(at), self.rng.bits() as i8 as i32)
            }
            1 => {
                let at = WINDOW + self.rng.below(0x1000 * CODE_PAGES);
                self.a.or(dword_ptr(at), 0)
            }
            way => {
                let mut target = self.a.create_label();
                self.a.lea(rax, ptr(target))?;
                if way == 2 {
                    self.a.add(dword_ptr(rax + 1), r8d)?;
                } else {
                    self.a.mov(dword_ptr(rax + 1), self.rng.bits() as i32)?;
                }
                let n = self.rng.below(3);
                self.random(n)?;
                self.a.set_label(&mut target)?;
                self.a.add(eax, 0x1234_5678)
            }
        }
    }

    /// A change of the mapping of a page, in this space or another, perhaps with INVLPG.
    fn map(&mut self) -> Done {
        let k = self.rng.below(SPACES);
        let n = match self.rng.below(12) {
            0 => self.rng.below(CODE_PAGES),
            1 => STACK_PAGES.0,
            _ => DATA.0 + self.rng.below(DATA.1 - DATA.0),
        };
        let at = TABLES + k * SPACE + LEAVES + 8 * n;
        match self.rng.below(4) {
            0 => self.a.and(byte_ptr(at), !0x60i32)?,
            1 => self.a.xor(byte_ptr(at), 1 << self.rng.below(3))?,
            _ if n < CODE_PAGES => self.a.or(byte_ptr(at), 7)?,
            _ => {
                self.a.mov(rax, leaf(n, self.rng))?;
                self.a.mov(qword_ptr(at), rax)?;
            }
        }
        if self.rng.once_in(2) {
            self.a.invlpg(ptr(WINDOW + 0x1000 * n))?;
        }
        Ok(())
    }

    /// Another address space, or the same again.
    fn space(&mut self) -> Done {
        self.a.mov(rax, TABLES + self.rng.below(SPACES) * SPACE)?;
        self.a.mov(cr3, rax)
    }

    /// To CPL 3 by IRET or SYSRET, to CPL 0 by a gate or SYSCALL.
    fn privilege(&mut self) -> Done {
        let mut to = self.a.create_label();
        match self.rng.below(4) {
            0 => self.a.int(super::handlers::TO_CPL0 as i32)?,
            1 => self.a.syscall()?,
            2 => {
                self.a.lea(rcx, ptr(to))?;
                self.a.mov(r11d, flags(self.rng) as i32 & !0x100)?;
                self.a.sysretq()?;
            }
            _ => {
                self.a.mov(rdx, rsp)?;
                self.a.lea(rax, ptr(to))?;
                self.a.push(i32::from(sel::DATA3))?;
                self.a.push(rdx)?;
                self.a.push(flags(self.rng) as i32)?;
                self.a.push(i32::from(sel::CODE3))?;
                self.a.push(rax)?;
                self.a.iretq()?;
            }
        }
        self.a.set_label(&mut to)?;
        self.a.zero_bytes()
    }

    /// CR0.TS, CR0.AM, CR0.WP, CLTS; reads of control registers.
    fn control(&mut self) -> Done {
        let bit = [3, 3, 18, 16][self.rng.below(4) as usize];
        self.a.mov(rax, cr0)?;
        match self.rng.below(4) {
            0 => self.a.clts(),
            1 => self.a.mov(rax, cr2),
            _ => {
                self.a.btc(eax, bit)?;
                self.a.mov(cr0, rax)
            }
        }
    }

    fn flag_bits(&mut self) -> Done {
        match self.rng.below(8) {
            0 => self.a.cli(),
            1 | 2 => self.a.sti(),
            3 => {
                self.a.pushfq()?;
                self.a.or(dword_ptr(rsp), 0x4_0000)?;
                self.a.popfq()
            }
            4 => {
                self.a.pushfq()?;
                self.a.pop(rax)
            }
            5 => {
                self.a.lahf()?;
                self.a.setbe(cl)
            }
            _ => {
                self.a.push(flags(self.rng) as i32)?;
                self.a.popfq()
            }
        }
    }

    /// MXCSR and the x87 control word.
    fn float_control(&mut self) -> Done {
        if self.rng.once_in(2) {
            self.a.push(mxcsr(self.rng) as i32)?;
            self.a.ldmxcsr(dword_ptr(rsp))?;
        } else {
            self.a.push(i32::from(fcw(self.rng)))?;
            match self.rng.below(3) {
                0 => self.a.fninit()?,
                1 => self.a.fnclex()?,
                _ => {}
            }
            self.a.fldcw(word_ptr(rsp))?;
        }
        self.a.pop(rax)
    }

    /// A division that may fail.
    fn divide(&mut self) -> Done {
        self.a.mov(ecx, self.rng.below(3) as i32)?;
        match self.rng.below(4) {
            0 => self.a.div(ecx),
            1 => self.a.idiv(rcx),
            2 => {
                self.a.xor(edx, edx)?;
                self.a.div(cl)
            }
            _ => {
                self.a.cdq()?;
                self.a.idiv(ecx)
            }
        }
    }

    /// What is rare: bad selectors, undefined instructions, waiting, bytes that are no instruction.
    fn oddity(&mut self) -> Done {
        match self.rng.below(8) {
            0 => {
                self.a.mov(eax, i32::from(sel::ABSENT))?;
                self.a.mov(ds, eax)
            }
            1 => {
                self.a.mov(eax, 0x1000)?;
                self.a.mov(es, eax)
            }
            2 => self.a.ud2(),
            3 => {
                self.a.sti()?;
                self.a.hlt()
            }
            4 => {
                let bytes: Vec<u8> = (0..1 + self.rng.below(8)).map(|_| self.rng.bits() as u8).collect();
                self.a.db(&bytes)
            }
            5 => {
                self.a.mov(eax, i32::from(sel::DATA0))?;
                self.a.mov(ss, eax)
            }
            6 => {
                // A stack pointer that is not canonical: #SS.
                self.a.bts(rsp, 50)?;
                self.a.push(rax)
            }
            _ => {
                self.a.mov(rbp, 0x9000_0000_0000u64)?;
                self.a.mov(rax, qword_ptr(rbp))
            }
        }
    }
}
