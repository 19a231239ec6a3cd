//! Tests of the x87's own machinery: stack faults, masks, pending exceptions, environments, classes.

#![allow(clippy::unwrap_used)]

use crate::exception::{Exception, vector};
use crate::isa::sse::testing::{CODE, DATA, Machine};
use crate::vcpu::fpu::{INDEFINITE, Raw80, sw};
use crate::vcpu::{cr0, flags::bit, gpr};
use iced_x86::code_asm::*;

const ONE: Raw80 = (1 << 63, 0x3fff);
const TWO: Raw80 = (1 << 63, 0x4000);
const THREE: Raw80 = (3 << 62, 0x4000);
const INF: Raw80 = (1 << 63, 0x7fff);
const MF: Result<(), Exception> = Err(Exception::plain(vector::MF));

fn with(values: &[Raw80]) -> Machine {
    let mut m = Machine::new();
    values.iter().rev().for_each(|v| m.cpu.fpu.push(*v));
    m
}

fn flags(m: &Machine) -> u16 {
    m.cpu.fpu.fsw & (sw::FLAGS | sw::SF)
}

#[test]
fn register_arithmetic_in_every_direction() {
    type Case = (fn(&mut CodeAssembler), Raw80, u8);
    let cases: [Case; 8] = [
        (|a| a.fsub_2(st0, st1).unwrap(), ONE, 0),
        (|a| a.fsubr_2(st0, st1).unwrap(), (ONE.0, 0xbfff), 0),
        (|a| a.fsub_2(st1, st0).unwrap(), (ONE.0, 0xbfff), 1),
        (|a| a.fsubr_2(st1, st0).unwrap(), ONE, 1),
        (|a| a.fsubp(st1, st0).unwrap(), (ONE.0, 0xbfff), 0),
        (|a| a.fsubrp(st1, st0).unwrap(), ONE, 0),
        (|a| a.fdiv_2(st0, st1).unwrap(), (3 << 62, 0x3fff), 0),
        (|a| a.fmulp(st1, st0).unwrap(), (3 << 62, 0x4001), 0),
    ];
    for (n, (emit, expect, at)) in cases.into_iter().enumerate() {
        let mut m = with(&[THREE, TWO]);
        m.run(emit).unwrap();
        assert_eq!((m.cpu.fpu.st(at), flags(&m)), (expect, 0), "case {n}");
    }
}

#[test]
fn memory_operands_of_every_type() {
    let mut m = with(&[THREE]);
    m.write(DATA, &0.5f32.to_le_bytes());
    m.write(DATA + 8, &0.25f64.to_le_bytes());
    m.write(DATA + 16, &(-2i16).to_le_bytes());
    m.write(DATA + 24, &100i32.to_le_bytes());
    m.run(|a| {
        a.fadd(dword_ptr(DATA)).unwrap(); // 3.5
        a.fmul(qword_ptr(DATA + 8)).unwrap(); // 0.875
        a.fiadd(word_ptr(DATA + 16)).unwrap(); // -1.125
        a.fimul(dword_ptr(DATA + 24)).unwrap(); // -112.5
        a.fistp(qword_ptr(DATA + 32)).unwrap();
    })
    .unwrap();
    assert_eq!(i64::from_le_bytes(m.read(DATA + 32)), -112);
    assert_eq!((flags(&m), m.cpu.fpu.ftw), (sw::PE, 0));
    assert_eq!((m.cpu.fpu.fdp, m.cpu.fpu.fds), (DATA + 32, m.cpu.seg[3].selector));
}

#[test]
fn precision_and_rounding_control() {
    let mut m = with(&[ONE, THREE]);
    m.cpu.fpu.fcw = 0x07f; // single precision, nearest
    m.run(|a| a.fdiv_2(st0, st1).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.st(0), (0xaaaa_ab00_0000_0000, 0x3ffd));
    assert_ne!(m.cpu.fpu.fsw & sw::C1, 0);
    let mut m = with(&[ONE, THREE]);
    m.cpu.fpu.fcw = 0xf7f; // toward zero
    m.run(|a| a.fdiv_2(st0, st1).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.st(0), (0xaaaa_aaaa_aaaa_aaaa, 0x3ffd));
    assert_eq!(m.cpu.fpu.fsw & sw::C1, 0);
}

#[test]
fn stack_underflow_masked_and_unmasked() {
    let mut m = with(&[ONE]);
    m.run(|a| a.fadd_2(st0, st3).unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), flags(&m)), (INDEFINITE, sw::IE | sw::SF));
    assert_eq!(m.cpu.fpu.fsw & (sw::C1 | sw::ES), 0);

    let mut m = with(&[ONE]);
    m.cpu.fpu.fcw &= !sw::IE;
    m.run(|a| a.faddp(st3, st0).unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.top()), (ONE, 7));
    assert_eq!(m.cpu.fpu.fsw & (sw::ES | sw::B), sw::ES | sw::B);
}

#[test]
fn stack_overflow_masked_and_unmasked() {
    let mut m = with(&[ONE; 8]);
    m.run(|a| a.fldz().unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.top()), (INDEFINITE, 7));
    assert_eq!((flags(&m), m.cpu.fpu.fsw & sw::C1), (sw::IE | sw::SF, sw::C1));

    let mut m = with(&[ONE; 8]);
    m.cpu.fpu.fcw &= !sw::IE;
    m.run(|a| a.fld1().unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.top()), (ONE, 0));
}

#[test]
fn underflowing_stores_write_the_indefinite_if_masked() {
    let mut m = Machine::new();
    m.run(|a| {
        a.fstp(qword_ptr(DATA)).unwrap();
        a.fistp(dword_ptr(DATA + 8)).unwrap();
        a.fbstp(tbyte_ptr(DATA + 16)).unwrap();
    })
    .unwrap();
    assert_eq!(u64::from_le_bytes(m.read(DATA)), 0xfff8_0000_0000_0000);
    assert_eq!(i32::from_le_bytes(m.read(DATA + 8)), i32::MIN);
    assert_eq!(m.read::<10>(DATA + 16), [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]);
    assert_eq!(m.cpu.fpu.top(), 3);

    let mut m = Machine::new();
    m.cpu.fpu.fcw &= !sw::IE;
    m.run(|a| a.fstp(qword_ptr(DATA)).unwrap()).unwrap();
    assert_eq!((u64::from_le_bytes(m.read(DATA)), m.cpu.fpu.top()), (0, 0));
}

#[test]
fn unmasked_exception_faults_at_the_next_waiting_instruction() {
    let mut m = with(&[ONE, (0, 0)]);
    m.cpu.fpu.fcw &= !sw::ZE;
    m.run(|a| a.fdiv_2(st0, st1).unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), flags(&m)), (ONE, sw::ZE));
    assert_eq!(m.cpu.fpu.fip, CODE);
    assert_eq!(m.cpu.fpu.fop, 0x0f1);
    assert_eq!(m.run(|a| a.fld1().unwrap()), MF);
    assert_eq!(m.run(|a| a.wait().unwrap()), MF);
    assert_eq!(m.run(|a| a.fldcw(word_ptr(DATA)).unwrap()), MF);
    assert_eq!(m.run(|a| a.paddb(mm0, mm1).unwrap()), MF);
    assert_eq!(m.run(|a| a.emms().unwrap()), MF);
    // Non-waiting instructions look at it and clear it. SSE does not care.
    m.run(|a| {
        a.addps(xmm0, xmm1).unwrap();
        a.fnstsw(ax).unwrap();
        a.fnstcw(word_ptr(DATA)).unwrap();
        a.fnclex().unwrap();
        a.fld1().unwrap();
    })
    .unwrap();
    assert_eq!(m.cpu.gpr[gpr::RAX] as u16 & (sw::ES | sw::ZE), sw::ES | sw::ZE);
}

#[test]
fn without_ne_a_pending_exception_does_not_fault() {
    let mut m = with(&[ONE, (0, 0)]);
    m.cpu.cr0 &= !cr0::NE;
    m.cpu.fpu.fcw &= !sw::ZE;
    m.run(|a| {
        a.fdiv_2(st0, st1).unwrap();
        a.fld1().unwrap();
    })
    .unwrap();
    assert_ne!(m.cpu.fpu.fsw & sw::ES, 0);
}

#[test]
fn fldcw_unmasks_a_sticky_exception() {
    let mut m = with(&[ONE, THREE]);
    m.write(DATA, &0x35fu16.to_le_bytes());
    m.run(|a| {
        a.fdiv_2(st0, st1).unwrap();
        a.fldcw(word_ptr(DATA)).unwrap();
    })
    .unwrap();
    assert_eq!(m.cpu.fpu.fsw & (sw::PE | sw::ES | sw::B), sw::PE | sw::ES | sw::B);
    assert_eq!(m.run(|a| a.fnop().unwrap()), MF);
}

#[test]
fn unmasked_overflow_wraps_in_registers_and_suppresses_stores() {
    let huge = (1 << 63, 0x7ffe);
    let mut m = with(&[huge, huge]);
    m.cpu.fpu.fcw &= !sw::OE;
    m.run(|a| a.fmul_2(st0, st1).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.st(0), (1 << 63, (0x7ffe + 0x3fff - 24576) as u16));
    assert_eq!(flags(&m), sw::OE);

    let mut m = with(&[huge]);
    m.cpu.fpu.fcw &= !sw::OE;
    m.write(DATA, &[0x55; 8]);
    m.run(|a| a.fstp(qword_ptr(DATA)).unwrap()).unwrap();
    assert_eq!((m.read::<8>(DATA), m.cpu.fpu.top()), ([0x55; 8], 7));
    // Masked: infinity is stored.
    let mut m = with(&[huge]);
    m.run(|a| a.fstp(qword_ptr(DATA)).unwrap()).unwrap();
    assert_eq!((f64::from_le_bytes(m.read(DATA)), flags(&m)), (f64::INFINITY, sw::OE | sw::PE));
}

#[test]
fn availability() {
    let nm = Err(Exception::nm());
    let mut m = with(&[ONE]);
    m.cpu.cr0 = cr0::PE | cr0::NE | cr0::TS;
    assert_eq!(m.run(|a| a.fld1().unwrap()), nm);
    assert_eq!(m.run(|a| a.fninit().unwrap()), nm);
    assert_eq!(m.run(|a| a.wait().unwrap()), Ok(()));
    m.cpu.cr0 |= cr0::MP;
    assert_eq!(m.run(|a| a.wait().unwrap()), nm);
    m.cpu.cr0 = cr0::PE | cr0::NE | cr0::EM | cr0::MP;
    assert_eq!(m.run(|a| a.fnstsw(ax).unwrap()), nm);
    assert_eq!(m.run(|a| a.wait().unwrap()), Ok(()));
}

#[test]
fn fxam_classes() {
    let c = |v: u16| v & sw::CC;
    for (v, expect) in [
        (ONE, sw::C2),
        ((ONE.0, 0xbfff), sw::C2 | sw::C1),
        ((0, 0), sw::C3),
        ((0, 0x8000), sw::C3 | sw::C1),
        (INF, sw::C2 | sw::C0),
        (INDEFINITE, sw::C0 | sw::C1),
        ((1, 0), sw::C3 | sw::C2),
        ((1, 0x3fff), 0),
        ((1, 0x7fff), 0),
    ] {
        let mut m = with(&[v]);
        m.run(|a| a.fxam().unwrap()).unwrap();
        assert_eq!(c(m.cpu.fpu.fsw), expect, "{v:x?}");
    }
    let mut m = Machine::new();
    m.run(|a| a.fxam().unwrap()).unwrap();
    assert_eq!(c(m.cpu.fpu.fsw), sw::C3 | sw::C0);
}

#[test]
fn comparisons() {
    let nan = (3 << 62, 0x7fff);
    for (a0, a1, codes, eflags) in [
        (TWO, ONE, 0, 0),
        (ONE, TWO, sw::C0, bit::CF),
        (TWO, TWO, sw::C3, bit::ZF),
        (nan, ONE, sw::C0 | sw::C2 | sw::C3, bit::CF | bit::PF | bit::ZF),
    ] {
        let mut m = with(&[a0, a1]);
        m.run(|a| a.fcomp_2(st0, st1).unwrap()).unwrap();
        assert_eq!((m.cpu.fpu.fsw & sw::CC, m.cpu.fpu.top()), (codes, 7));
        assert_eq!(flags(&m), if a0 == nan { sw::IE } else { 0 });
        let mut m = with(&[a0, a1]);
        m.cpu.flags.0 |= bit::OF;
        m.run(|a| a.fucomi(st0, st1).unwrap()).unwrap();
        assert_eq!((m.cpu.flags.0 & bit::ARITH, flags(&m)), (eflags, 0));
        let mut m = with(&[a0, a1]);
        m.run(|a| a.fucompp().unwrap()).unwrap();
        assert_eq!((m.cpu.fpu.fsw & sw::CC, m.cpu.fpu.ftw), (codes, 0));
    }
    // An unmasked invalid comparison leaves codes and stack alone.
    let mut m = with(&[nan, ONE]);
    m.cpu.fpu.fcw &= !sw::IE;
    m.run(|a| a.fcompp().unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.fsw & sw::CC, m.cpu.fpu.top()), (0, 6));
    let mut m = with(&[(ONE.0, 0xbfff)]);
    m.run(|a| a.ftst().unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.fsw & sw::CC, sw::C0);
}

#[test]
fn stack_moves() {
    let mut m = with(&[ONE, TWO, THREE]);
    m.run(|a| {
        a.fxch(st0, st2).unwrap();
        a.fld(st1).unwrap();
        a.fstp(st3).unwrap();
    })
    .unwrap();
    assert_eq!([m.cpu.fpu.st(0), m.cpu.fpu.st(1), m.cpu.fpu.st(2)], [THREE, TWO, TWO]);
    m.cpu.flags.0 |= bit::ZF;
    m.run(|a| {
        a.fcmove(st0, st1).unwrap();
        a.fcmovne(st0, st2).unwrap();
        a.fdecstp().unwrap();
        a.fincstp().unwrap();
        a.ffree(st2).unwrap();
    })
    .unwrap();
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.is_empty(2), m.cpu.fpu.top()), (TWO, true, 5));
    // FXCH with an empty register: the indefinite moves.
    m.run(|a| a.fxch(st0, st2).unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.st(2), flags(&m)), (INDEFINITE, TWO, sw::IE | sw::SF));
}

#[test]
fn packed_decimal_round_trip() {
    let digits = [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0x90, 0x12, 0x80];
    let mut m = Machine::new();
    m.write(DATA, &digits);
    m.run(|a| {
        a.fbld(tbyte_ptr(DATA)).unwrap();
        a.fld(st0).unwrap();
        a.fbstp(tbyte_ptr(DATA + 16)).unwrap();
        a.fistp(qword_ptr(DATA + 32)).unwrap();
    })
    .unwrap();
    assert_eq!(m.read::<10>(DATA + 16), digits);
    assert_eq!(i64::from_le_bytes(m.read(DATA + 32)), -129_000_000_012_345_678);
}

#[test]
fn integer_stores() {
    let mut m = with(&[(0xb000_0000_0000_0000, 0x4000), (ONE.0, 0x4020), ONE]); // 2.75, 2^33
    m.run(|a| {
        a.fist(word_ptr(DATA)).unwrap();
        a.fisttp(dword_ptr(DATA + 8)).unwrap();
        a.fistp(dword_ptr(DATA + 16)).unwrap();
    })
    .unwrap();
    assert_eq!(i16::from_le_bytes(m.read(DATA)), 3);
    assert_eq!(i32::from_le_bytes(m.read(DATA + 8)), 2);
    assert_eq!(i32::from_le_bytes(m.read(DATA + 16)), i32::MIN);
    assert_eq!(flags(&m), sw::PE | sw::IE);
}

#[test]
fn environment_in_protected_mode() {
    let mut m = with(&[ONE, (0, 0)]);
    m.write(DATA + 64, &2f32.to_le_bytes());
    m.run(|a| {
        a.fadd(dword_ptr(DATA + 64)).unwrap();
        a.fnstenv(ptr(DATA)).unwrap();
    })
    .unwrap();
    let w = |m: &Machine, n: u64| u32::from_le_bytes(m.read(DATA + 4 * n));
    assert_eq!(w(&m, 0), 0xffff_037f);
    assert_eq!(w(&m, 1), 0xffff_3000);
    assert_eq!(w(&m, 2), 0xffff_4fff);
    assert_eq!(w(&m, 3), CODE as u32);
    assert_eq!(w(&m, 4) & 0xffff, u32::from(m.cpu.seg[1].selector));
    assert_eq!(w(&m, 5), DATA as u32 + 64);
    assert_eq!(w(&m, 6), 0xffff_0000 | u32::from(m.cpu.seg[3].selector));
    // It masks everything.
    m.cpu.fpu.fcw = 0x340;
    m.run(|a| a.fnstenv(ptr(DATA)).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.fcw, 0x37f);
    let before = m.cpu.fpu;
    m.run(|a| {
        a.fninit().unwrap();
        a.fldenv(ptr(DATA)).unwrap();
    })
    .unwrap();
    assert_eq!((m.cpu.fpu.fcw, m.cpu.fpu.ftw, m.cpu.fpu.fip), (0x340, before.ftw, before.fip));
}

#[test]
fn environment_in_16_bit_and_real_layouts() {
    let mut m = Machine::new();
    let f = &mut m.cpu.fpu;
    (f.fip, f.fcs, f.fdp, f.fds, f.fop) = (0x1234, 0xf000, 0x5678, 0x1000, 0x7a5);
    m.run(|a| a.fnstenv(ptr(DATA)).unwrap()).unwrap();
    // 66h selects the 14-byte layout.
    m.bytes(&[0x66, 0xd9, 0x35, 0x00, 0x40, 0, 0]).unwrap();
    assert_eq!(m.read::<14>(DATA), [0x7f, 3, 0, 0, 0xff, 0xff, 0x34, 0x12, 0, 0xf0, 0x78, 0x56, 0, 0x10]);
    // The same state as real mode shows it: linear addresses and the opcode.
    m.cpu.mode.protected = false;
    m.bytes(&[0x66, 0xd9, 0x35, 0x00, 0x40, 0, 0]).unwrap();
    assert_eq!(m.read::<14>(DATA)[6..], [0x34, 0x12, 0xa5, 0xf7, 0x78, 0x56, 0, 0x10]);
    m.run(|a| a.fnstenv(ptr(DATA)).unwrap()).unwrap();
    assert_eq!(m.read::<28>(DATA)[12..20], [0x34, 0x12, 0, 0, 0xa5, 0xf7, 0, 0]);
}

#[test]
fn fnsave_and_frstor() {
    let mut m = with(&[ONE, TWO, INDEFINITE]);
    m.cpu.fpu.fcw = 0x27f;
    let before = m.cpu.fpu;
    m.run(|a| a.fnsave(ptr(DATA)).unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.fcw, m.cpu.fpu.fsw, m.cpu.fpu.ftw), (0x37f, 0, 0));
    assert_eq!(m.read::<10>(DATA + 28), [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    assert_eq!(m.read::<10>(DATA + 38)[7..], [0x80, 0, 0x40]);
    m.cpu.fpu.r = [(9, 9); 8];
    m.run(|a| a.frstor(ptr(DATA)).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu, before);
}

#[test]
fn mmx_aliases_and_tags() {
    let mut m = with(&[ONE, TWO]);
    m.cpu.gpr[gpr::RAX] = 0x0102_0304;
    m.run(|a| {
        a.movd(mm3, eax).unwrap();
        a.punpcklbw(mm3, mm3).unwrap();
        a.pshufw(mm4, mm3, 0x1b).unwrap();
        a.psrlq(mm3, 8).unwrap();
        a.movq(qword_ptr(DATA), mm3).unwrap();
    })
    .unwrap();
    assert_eq!((m.cpu.fpu.top(), m.cpu.fpu.ftw), (0, 0xff));
    assert_eq!(m.cpu.fpu.r[3], (0x0001_0102_0203_0304, 0xffff));
    assert_eq!(m.cpu.fpu.r[4].0, 0x0404_0303_0202_0101);
    assert_eq!(u64::from_le_bytes(m.read(DATA)), 0x0001_0102_0203_0304);
    m.run(|a| a.emms().unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.ftw, 0);
}

#[test]
fn remainder_codes() {
    let mut m = with(&[(0xc800_0000_0000_0000, 0x4004), (0xe000_0000_0000_0000, 0x4001)]); // 50, 7
    m.run(|a| a.fprem().unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.st(0), ONE);
    assert_eq!(m.cpu.fpu.fsw & sw::CC, sw::C0 | sw::C3 | sw::C1); // quotient 7
    let mut m = with(&[(1 << 63, 0x3fff + 200), THREE]);
    let mut rounds = 0;
    loop {
        m.run(|a| a.fprem().unwrap()).unwrap();
        rounds += 1;
        if m.cpu.fpu.fsw & sw::C2 == 0 {
            break;
        }
    }
    assert_eq!((m.cpu.fpu.st(0), rounds > 2), (ONE, true)); // 2^200 mod 3
    let mut m = with(&[INF, ONE]);
    m.run(|a| a.fprem1().unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), flags(&m)), (INDEFINITE, sw::IE));
}

#[test]
fn extraction() {
    let mut m = with(&[(0xc000_0000_0000_0000, 0xc009)]); // -1.5 * 2^10
    m.run(|a| a.fxtract().unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.st(0), (0xc000_0000_0000_0000, 0xbfff));
    assert_eq!(m.cpu.fpu.st(1), (0xa000_0000_0000_0000, 0x4002));
    let mut m = with(&[(0, 0x8000)]);
    m.run(|a| a.fxtract().unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), m.cpu.fpu.st(1), flags(&m)), ((0, 0x8000), (INF.0, 0xffff), sw::ZE));
}

#[test]
fn constants_follow_rounding_control() {
    for (rc, low) in [(0u16, 0x35u64), (1, 0x34), (2, 0x35), (3, 0x34)] {
        let mut m = Machine::new();
        m.cpu.fpu.fcw = 0x37f | rc << 10;
        m.run(|a| a.fldpi().unwrap()).unwrap();
        assert_eq!(m.cpu.fpu.st(0), (0xc90f_daa2_2168_c200 | low, 0x4000));
    }
}

#[test]
fn a_faulting_operand_changes_nothing() {
    let mut m = with(&[THREE]);
    m.cpu.seg[3].limit = 0xfff;
    m.cpu.refresh();
    let before = m.cpu.fpu;
    let r = m.run(|a| a.fstp(qword_ptr(DATA)).unwrap());
    if r.is_err() {
        assert_eq!(m.cpu.fpu, before);
    }
}

/// Exact square root, rounding and scaling, and C1 of rounding up.
#[test]
fn unary_functions() {
    let mut m = with(&[(0x9000_0000_0000_0000, 0x4002)]); // 9
    m.run(|a| a.fsqrt().unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), flags(&m)), (THREE, 0));
    let mut m = with(&[(0xe000_0000_0000_0000, 0x3fff)]); // 1.75
    m.run(|a| a.frndint().unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), flags(&m), m.cpu.fpu.fsw & sw::C1), (TWO, sw::PE, sw::C1));
    let mut m = with(&[THREE, TWO]);
    m.run(|a| {
        a.fscale().unwrap();
        a.fchs().unwrap();
        a.fabs().unwrap();
    })
    .unwrap();
    assert_eq!(m.cpu.fpu.st(0), (3 << 62, 0x4002));
    let mut m = with(&[(ONE.0, 0xbfff)]);
    m.run(|a| a.fsqrt().unwrap()).unwrap();
    assert_eq!((m.cpu.fpu.st(0), flags(&m)), (INDEFINITE, sw::IE));
}
