//! The pieces of 32-bit programs. They run at CPL 3; what needs CPL 0 they ask of the handlers by [`SERVICE`].

use super::handlers32::{SERVICE, service};
use super::layout::{CODE_PAGES, DATA, STACK_PAGES, WINDOW, leaf, sel};
use super::program::{Done, Writer, fcw, flags, mxcsr};
use iced_x86::code_asm::*;
use iced_x86::{Code, Instruction};

impl Writer<'_> {
    /// One piece.
    pub fn piece32(&mut self) -> Done {
        match self.rng.below(44) {
            0..22 => {
                let n = 1 + self.rng.below(6);
                self.random(n)
            }
            22..25 => self.pointers32(),
            25..29 => self.conditional(),
            29 | 30 => self.counted_loop32(),
            31 | 32 => self.call(),
            33 => self.indirect32(),
            34 | 35 => self.frame32(),
            36 => self.fields32(),
            37 | 38 => self.modify_code32(),
            39 | 40 => self.service(),
            41 => self.flag_bits32(),
            42 => self.float_control32(),
            _ => self.oddity32(),
        }
    }

    /// New values for some pointers.
    pub fn pointers32(&mut self) -> Done {
        for r in [ebx, ebp, esi, edi] {
            if self.rng.once_in(2) {
                let to = self.pointer();
                self.a.mov(r, to as u32)?;
            }
        }
        Ok(())
    }

    fn counted_loop32(&mut self) -> Done {
        let mut top = self.a.create_label();
        self.a.mov(ecx, 2 + self.rng.below(12) as i32)?;
        self.a.set_label(&mut top)?;
        let n = 1 + self.rng.below(4);
        self.random(n)?;
        match self.rng.below(2) {
            // LOOP reaches back 128 bytes; four instructions have less.
            0 => self.a.loop_(top),
            _ => {
                self.a.dec(ecx)?;
                self.a.jg(top)
            }
        }
    }

    /// EAX becomes the address of the instruction that follows.
    fn here(&mut self) -> Done {
        let mut next = self.a.create_label();
        self.a.call(next)?;
        self.a.set_label(&mut next)?;
        self.a.pop(eax)
    }

    /// An indirect jump or call a little ahead, sometimes into the middle of an instruction or to nowhere.
    fn indirect32(&mut self) -> Done {
        self.here()?;
        let ahead = 8 + self.rng.below(24) as i32;
        match self.rng.below(8) {
            0 => self.a.mov(eax, WINDOW as u32 - 8)?,
            1 => self.a.mov(eax, (WINDOW + 0x1000 * CODE_PAGES) as u32 - 1 - self.rng.below(4) as u32)?,
            _ => self.a.add(eax, ahead)?,
        }
        match self.rng.below(4) {
            0 => self.a.jmp(eax),
            1 => self.a.call(eax),
            2 => {
                self.a.mov(dword_ptr(esp - 64), eax)?;
                self.a.jmp(dword_ptr(esp - 64))
            }
            _ => {
                self.a.push(eax)?;
                self.a.ret()
            }
        }
    }

    /// A stack frame with some accesses off ESP and EBP.
    fn frame32(&mut self) -> Done {
        self.a.push(ebp)?;
        self.a.mov(ebp, esp)?;
        self.a.sub(esp, 0x40)?;
        for _ in 0..self.rng.below(5) {
            let at = self.rng.below(12) as i32 * 4;
            match self.rng.below(5) {
                0 => self.a.mov(dword_ptr(esp + at), edx)?,
                1 => self.a.mov(eax, dword_ptr(ebp - at - 4))?,
                2 => self.a.add(dword_ptr(esp + at), 7)?,
                3 => self.a.push(dword_ptr(ebp - at))?,
                _ => self.a.cmp(byte_ptr(esp + at), 3)?,
            }
        }
        match self.rng.below(3) {
            0 => {
                self.a.mov(esp, ebp)?;
                self.a.pop(ebp)
            }
            1 => {
                self.a.pushad()?;
                self.a.popad()?;
                self.a.leave()
            }
            _ => self.a.leave(),
        }
    }

    /// Several accesses off one pointer, which may lie on two pages.
    fn fields32(&mut self) -> Done {
        let p = [ebx, ebp, esi, edi][self.rng.below(4) as usize];
        for _ in 0..2 + self.rng.below(5) {
            let at = self.rng.below(24) as i32 * 4;
            match self.rng.below(6) {
                0 => self.a.mov(eax, dword_ptr(p + at))?,
                1 => self.a.mov(dword_ptr(p + at), edx)?,
                2 => self.a.xor(dword_ptr(p + at), ecx)?,
                3 => self.a.movups(xmm1, xmmword_ptr(p + at))?,
                4 => self.a.movups(xmmword_ptr(p - at), xmm2)?,
                _ => self.a.movzx(ecx, byte_ptr(p + at))?,
            }
        }
        Ok(())
    }

    /// A store into code: the immediate of the instruction right behind it, or any byte of the code.
    fn modify_code32(&mut self) -> Done {
        let at = (WINDOW + self.rng.below(0x1000 * CODE_PAGES)) as u32;
        match self.rng.below(6) {
            0 => self.a.mov(byte_ptr(at), self.rng.bits() as i8 as i32),
            1 => self.a.or(dword_ptr(at), 0),
            _ => {
                self.here()?;
                // POP has one byte, MOV seven, ADD's immediate follows one.
                self.a.mov(dword_ptr(eax + 9), self.rng.bits() as i32)?;
                self.a.add(eax, 0x1234_5678)
            }
        }
    }

    /// Asks for another address space, another mapping, CR0.TS, or INVLPG.
    fn service(&mut self) -> Done {
        let n = DATA.0 + self.rng.below(DATA.1 - DATA.0);
        match self.rng.below(4) {
            0 => self.a.mov(eax, service::SPACE | (self.rng.below(3) as i32) << 8)?,
            1 => self.a.mov(eax, service::TASK_SWITCHED)?,
            2 => {
                self.a.mov(eax, service::INVLPG)?;
                self.a.mov(edx, (WINDOW + 0x1000 * n) as u32)?;
            }
            _ => {
                self.a.mov(eax, service::MAP | (n as i32) << 8)?;
                self.a.mov(ecx, leaf(n, self.rng) as u32)?;
            }
        }
        self.a.int(SERVICE as i32)
    }

    fn flag_bits32(&mut self) -> Done {
        match self.rng.below(8) {
            0 => self.a.cli(),
            1 => self.a.sti(),
            2 => {
                self.a.pushfd()?;
                self.a.or(dword_ptr(esp), 0x4_0000)?;
                self.a.popfd()
            }
            3 => {
                self.a.pushfd()?;
                self.a.pop(eax)
            }
            4 => self.a.add_instruction(Instruction::with(Code::Into)),
            5 => {
                self.a.lahf()?;
                self.a.setbe(cl)
            }
            _ => {
                self.a.push(flags(self.rng) as i32)?;
                self.a.popfd()
            }
        }
    }

    fn float_control32(&mut self) -> Done {
        if self.rng.once_in(2) {
            self.a.push(mxcsr(self.rng) as i32)?;
            self.a.ldmxcsr(dword_ptr(esp))?;
        } else {
            self.a.push(i32::from(fcw(self.rng)))?;
            if self.rng.once_in(3) {
                self.a.fninit()?;
            }
            self.a.fldcw(word_ptr(esp))?;
        }
        self.a.pop(eax)
    }

    /// What is rare: bad and good selectors, a failing division, undefined instructions, bytes that are no instruction.
    fn oddity32(&mut self) -> Done {
        let selectors = [i32::from(sel::ABSENT), 0x1000, i32::from(sel::DATA3), 0, i32::from(sel::CODE3)];
        match self.rng.below(8) {
            0..3 => {
                self.a.mov(eax, selectors[self.rng.below(5) as usize])?;
                match self.rng.below(4) {
                    0 => self.a.mov(ss, eax),
                    1 => self.a.mov(es, eax),
                    2 => self.a.mov(fs, eax),
                    _ => self.a.mov(ds, eax),
                }
            }
            3 => self.a.ud2(),
            4 => {
                let bytes: Vec<u8> = (0..1 + self.rng.below(8)).map(|_| self.rng.bits() as u8).collect();
                self.a.db(&bytes)
            }
            5 => self.a.mov(esp, (WINDOW + 0x1000 * STACK_PAGES.1) as u32),
            _ => {
                self.a.mov(ecx, self.rng.below(3) as i32)?;
                self.a.idiv(ecx)
            }
        }
    }
}
