//! Does the host's x87 do what the interpreter says where the manuals leave it open? Condition codes that are "undefined"
//! after most instructions, RFLAGS after FCOMI, the contents of empty registers. Tried once a process, when the first x87
//! instruction is translated; forms this host does differently stay calls.

use super::entry::{self, Trial};
use super::x87_image::Image;
use crate::vcpu::flags::bit::{ARITH, CF};
use crate::vcpu::fpu::{Fpu, sw};
use iced_x86::Mnemonic as M;
use iced_x86::code_asm::{CodeAssembler, IcedError, dword_ptr, mm0, mm1, qword_ptr, rax, rdi, st0, st1, st5};
use std::sync::OnceLock;

/// Is `m` an instruction this host executes in another way?
pub fn differs(m: M) -> bool {
    static DIFFERENT: OnceLock<Vec<M>> = OnceLock::new();
    let all =
        DIFFERENT.get_or_init(|| CASES.iter().filter(|c| !c.agrees()).flat_map(|c| c.of).copied().collect());
    !all.is_empty() && all.contains(&m)
}

/// One form: how to write it, which condition codes it keeps, which of the others it sets, what else must hold.
struct Case {
    /// The instructions it stands for. Those of the MMX: PADDD.
    of: &'static [M],
    write: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    keeps: u16,
    sets: u16,
    also: Also,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Also {
    Nothing,
    /// Both operands are where they were, popped or not.
    Contents,
    /// RFLAGS tell that 1 is below 2.
    Below,
    /// Stack underflow.
    Underflow,
    /// MMX mode.
    AllValid,
    /// All registers empty.
    AllEmpty,
}

/// All but C1.
const OTHERS: u16 = sw::CC & !sw::C1;

/// ST(0) is 1, ST(1) is 2, all others are empty; every exception is masked.
#[rustfmt::skip]
const CASES: &[Case] = {
    const fn case(
        of: &'static [M], write: fn(&mut CodeAssembler) -> Result<(), IcedError>, keeps: u16, sets: u16, also: Also,
    ) -> Case {
        Case { of, write, keeps, sets, also }
    }
    use Also as A;
    &[
        case(&[M::Fadd, M::Faddp, M::Fiadd], |a| a.fadd_2(st0, st1), OTHERS, 0, A::Nothing),
        case(&[M::Fsub, M::Fsubp, M::Fisub, M::Fsubr, M::Fsubrp, M::Fisubr], |a| a.fsub_2(st1, st0), OTHERS, 0, A::Nothing),
        case(&[M::Fmul, M::Fmulp, M::Fimul], |a| a.fmulp(st1, st0), OTHERS, 0, A::Nothing),
        case(&[M::Fdiv, M::Fdivp, M::Fidiv, M::Fdivr, M::Fdivrp, M::Fidivr], |a| a.fdiv_2(st0, st1), OTHERS, 0, A::Nothing),
        case(&[M::Fadd, M::Faddp, M::Fiadd], |a| a.fadd_2(st0, st5), OTHERS, 0, A::Underflow),
        case(&[M::Fsqrt], |a| a.fsqrt(), OTHERS, 0, A::Nothing),
        case(&[M::Frndint], |a| a.frndint(), OTHERS, 0, A::Nothing),
        case(&[M::Fscale], |a| a.fscale(), OTHERS, 0, A::Nothing),
        case(&[M::Fabs], |a| a.fabs(), OTHERS, 0, A::Contents),
        case(&[M::Fchs], |a| a.fchs(), OTHERS, 0, A::Nothing),
        case(&[M::Fxch], |a| a.fxch(st0, st1), OTHERS, 0, A::Nothing),
        case(&[M::Fld], |a| a.fld(st1), OTHERS, 0, A::Contents),
        case(&[M::Fst], |a| a.fst(st0), OTHERS, 0, A::Contents),
        case(&[M::Fstp], |a| a.fstp(st0), OTHERS, 0, A::Contents),
        case(&[M::Fld1, M::Fldz], |a| a.fld1(), OTHERS, 0, A::Contents),
        case(&[M::Fldpi, M::Fldl2t, M::Fldl2e, M::Fldlg2, M::Fldln2], |a| a.fldpi(), OTHERS, 0, A::Contents),
        case(&[M::Fld], |a| a.fld(qword_ptr(rdi + MEMORY)), OTHERS, 0, A::Contents),
        case(&[M::Fild], |a| a.fild(dword_ptr(rdi + MEMORY)), OTHERS, 0, A::Contents),
        case(&[M::Fst, M::Fstp], |a| a.fstp(qword_ptr(rdi + MEMORY + 8)), OTHERS, 0, A::Contents),
        case(&[M::Fist, M::Fistp, M::Fisttp, M::Fbstp], |a| a.fistp(dword_ptr(rdi + MEMORY + 8)), OTHERS, 0, A::Contents),
        case(&[M::Ffree], |a| a.ffree(st0), OTHERS, 0, A::Contents),
        case(&[M::Fincstp], |a| a.fincstp(), OTHERS, 0, A::Contents),
        case(&[M::Fdecstp], |a| a.fdecstp(), OTHERS, 0, A::Contents),
        case(&[M::Fnop], |a| a.fnop(), sw::CC, 0, A::Contents),
        case(&[M::Fnclex], |a| a.fnclex(), sw::CC, 0, A::Contents),
        case(&[M::Fcmovb, M::Fcmove, M::Fcmovbe, M::Fcmovu, M::Fcmovnb, M::Fcmovne, M::Fcmovnbe, M::Fcmovnu], |a| a.fcmovb(st0, st1), sw::CC, 0, A::Nothing),
        case(&[M::Fcom, M::Fcomp, M::Ficom, M::Ficomp], |a| a.fcom_2(st0, st1), 0, sw::C0, A::Contents),
        case(&[M::Fcompp, M::Fucompp], |a| a.fcompp(), 0, sw::C0, A::Contents),
        case(&[M::Fucom, M::Fucomp], |a| a.fucom(st0, st1), 0, sw::C0, A::Contents),
        case(&[M::Fcomi, M::Fcomip], |a| a.fcomi(st0, st1), sw::CC, 0, A::Below),
        case(&[M::Fucomi, M::Fucomip], |a| a.fucomi(st0, st1), sw::CC, 0, A::Below),
        case(&[M::Ftst], |a| a.ftst(), 0, 0, A::Contents),
        case(&[M::Fxam], |a| a.fxam(), 0, sw::C2, A::Contents),
        case(&[M::Paddd], |a| a.paddd(mm0, mm1), sw::CC, 0, A::AllValid),
        case(&[M::Emms], |a| a.emms(), sw::CC, 0, A::AllEmpty),
    ]
};

const MEMORY: i32 = std::mem::offset_of!(Trial, memory) as i32;
const FLAGS: i32 = std::mem::offset_of!(Trial, flags) as i32;
const _: () = assert!(std::mem::offset_of!(Trial, image) == 0);

impl Case {
    /// Does the host do what is expected, whatever the condition codes were?
    fn agrees(&self) -> bool {
        let Ok(code) = self.sequence() else { return false };
        [0, sw::CC].into_iter().all(|codes| {
            let before = initial(codes);
            let mut t = Trial { image: Image::default(), memory: [1f64.to_bits(), 0], flags: 0 };
            t.image.set(&before);
            entry::x87_trial(&code, &mut t);
            let mut after = before;
            t.image.get(&mut after);
            self.holds(&before, &after, t.flags)
        })
    }

    /// The instruction between loading and saving the state, with every arithmetic flag set.
    fn sequence(&self) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        a.frstor(dword_ptr(rdi))?;
        a.mov(rax, ARITH | 0x202)?;
        a.push(rax)?;
        a.popfq()?;
        (self.write)(&mut a)?;
        a.pushfq()?;
        a.pop(rax)?;
        a.mov(qword_ptr(rdi + FLAGS), rax)?;
        a.fnsave(dword_ptr(rdi))?;
        a.cld()?;
        a.ret()?;
        a.assemble(0)
    }

    fn holds(&self, before: &Fpu, after: &Fpu, flags: u64) -> bool {
        let codes = before.fsw & self.keeps | self.sets;
        let raised = if self.also == Also::Underflow { sw::IE | sw::SF } else { 0 };
        let flags_now = if self.also == Also::Below { CF } else { ARITH };
        let also = match self.also {
            Also::Contents => after.r[..2] == before.r[..2],
            Also::AllValid => after.ftw == 0xff && after.top() == 0,
            Also::AllEmpty => after.ftw == 0 && after.top() == 0,
            Also::Nothing | Also::Below | Also::Underflow => true,
        };
        after.fsw & (sw::CC | sw::FLAGS | sw::SF | sw::ES) == codes | raised
            && flags & ARITH == flags_now
            && after.r[2..7] == before.r[2..7]
            && after.fcw == before.fcw
            && also
    }
}

/// ST(0) is 1, ST(1) is 2, all others are empty but not zero; TOP is 0.
fn initial(codes: u16) -> Fpu {
    let mut f = Fpu::new();
    f.init();
    (f.fsw, f.ftw) = (codes, 0b11);
    for (n, r) in (0..).zip(&mut f.r) {
        *r = (1 << 63 | n << 20, 0x4005);
    }
    (f.r[0], f.r[1]) = ((1 << 63, 0x3fff), (1 << 63, 0x4000));
    f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_cases_notice_a_difference() {
        let before = initial(sw::CC);
        let case = CASES.iter().find(|c| c.of == [M::Fnop]).unwrap();
        assert!(case.holds(&before, &before, ARITH));
        assert!(!case.holds(&before, &before, 0));
        let mut after = before;
        after.fsw &= !sw::C2;
        assert!(!case.holds(&before, &after, ARITH));
        after = before;
        after.r[4].0 = 0;
        assert!(!case.holds(&before, &after, ARITH));
    }

    #[test]
    fn test_every_native_form_is_probed() {
        use crate::isa::{self, Translate};
        let rows =
            [isa::x87::arith::ROWS, isa::x87::compare::ROWS, isa::x87::convert::ROWS, isa::x87::stack::ROWS];
        for r in rows.into_iter().flatten().filter(|r| matches!(r.translate, Translate::Identical)) {
            let m = r.code.mnemonic();
            assert!(CASES.iter().any(|c| c.of.contains(&m)), "{m:?}");
        }
    }
}
