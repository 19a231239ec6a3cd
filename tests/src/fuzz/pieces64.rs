//! The pieces of 64-bit programs: branches, self-modification, changes of mappings, of address space and of privilege.

use super::layout::{CODE_PAGES, DATA, LEAVES, SPACE, SPACES, STACK_PAGES, TABLES, WINDOW, leaf, sel};
use super::program::{Done, Writer, fcw, flags, mxcsr};
use iced_x86::code_asm::*;

impl Writer<'_> {
    /// One piece.
    pub fn piece64(&mut self) -> Done {
        match self.rng.below(48) {
            0..22 => {
                let n = 1 + self.rng.below(6);
                self.random(n)
            }
            22..25 => self.pointers64(),
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
    pub fn pointers64(&mut self) -> Done {
        for r in [rbx, rbp, rsi, rdi, r12, r13] {
            if self.rng.once_in(2) {
                let to = self.pointer();
                self.a.mov(r, to)?;
            }
        }
        Ok(())
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
}
