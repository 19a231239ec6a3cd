//! Tests of what surrounds natively executed SIMD instructions.

#![allow(clippy::unwrap_used)]

use super::native::mxcsr;
use super::testing::{DATA, Machine};
use crate::exception::{Exception, vector};
use crate::isa::{lookup, rows};
use crate::vcpu::{cr0, cr4, flags::bit, gpr};
use iced_x86::code_asm::*;
use iced_x86::{Code, EncodingKind};

fn f64s(a: f64, b: f64) -> u128 {
    u128::from(a.to_bits()) | u128::from(b.to_bits()) << 64
}
fn f32s(v: [f32; 4]) -> u128 {
    v.iter().rev().fold(0, |r, x| r << 32 | u128::from(x.to_bits()))
}

/// Every legacy-encoded form of the extensions we show has a row.
#[test]
fn no_form_is_missing() {
    let ours = [
        "MMX",
        "SSE",
        "SSE2",
        "SSE3",
        "SSSE3",
        "SSE4_1",
        "SSE4_2",
        "AES",
        "PCLMULQDQ",
        "FPU",
        "FPU387",
        "FXSR",
    ];
    let mut missing = Vec::new();
    for c in Code::values() {
        let op = c.op_code();
        let name = format!("{c:?}");
        // FSTENV and the like are FWAIT and the FN form; the fences, PREFETCH, MOVNTI, CRC32 are integer rows.
        let elsewhere = [
            "fence", "Prefetch", "Movnti", "Crc32", "Fst", "Fsave", "Fclex", "Finit", "Fsetpm", "Feni",
            "Fdisi",
        ]
        .iter()
        .any(|p| name.contains(p))
            && !name.starts_with("Fst_")
            && !name.starts_with("Fstp")
            || name.starts_with("Fstpnce");
        let features = c.cpuid_features();
        let mine = features.iter().any(|f| ours.contains(&format!("{f:?}").as_str()));
        if op.encoding() == EncodingKind::Legacy && mine && !elsewhere && lookup(c).is_none() {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

/// Every row executes in its register form with default state: thunks assemble and no form is refused.
#[test]
fn every_register_form_executes() {
    let mut done = 0;
    for r in rows() {
        let op = r.code.op_code();
        let family = r.code.cpuid_features().iter().any(|f| {
            matches!(
                format!("{f:?}").as_str(),
                "MMX" | "SSE" | "SSE2" | "SSE3" | "SSSE3" | "SSE4_1" | "SSE4_2" | "AES" | "PCLMULQDQ"
            )
        });
        let memory_only =
            (0..op.op_count()).any(|n| matches!(op.op_kind(n), iced_x86::OpCodeOperandKind::mem));
        if !family
            || memory_only
            || op.op_count() < 2
            || !op.mode32()
            || format!("{:?}", r.code).contains("Crc32")
        {
            continue;
        }
        let mut m = Machine::new();
        m.cpu.fpu.xmm = [0x3f80_0000_3f80_0000_3ff0_0000_0000_0000; 16];
        let mut i = iced_x86::Instruction::default();
        i.set_code(r.code);
        for n in 0..op.op_count() {
            use iced_x86::{OpCodeOperandKind as K, OpKind, Register};
            let reg = match op.op_kind(n) {
                K::xmm_reg | K::xmm_or_mem | K::xmm_rm => Register::XMM3,
                K::mm_reg | K::mm_or_mem | K::mm_rm => Register::MM3,
                K::imm8 => {
                    i.set_op_kind(n, OpKind::Immediate8);
                    i.set_immediate8(1);
                    continue;
                }
                K::seg_rDI => {
                    i.set_op_kind(n, OpKind::MemorySegEDI);
                    continue;
                }
                _ => Register::EDX,
            };
            i.set_op_kind(n, OpKind::Register);
            i.set_op_register(n, reg);
        }
        let r2 = m.run(|a| a.add_instruction(i).unwrap());
        assert_eq!(r2, Ok(()), "{:?}", r.code);
        done += 1;
    }
    assert!(done > 250, "{done}");
}

#[test]
fn scalar_arithmetic_merges_and_sets_sticky_flags() {
    let mut m = Machine::new();
    m.cpu.fpu.xmm[1] = f64s(1.0, 42.0);
    m.cpu.fpu.xmm[2] = f64s(3.0, 7.0);
    m.run(|a| a.divsd(xmm1, xmm2).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.xmm[1], f64s(1.0 / 3.0, 42.0));
    assert_eq!(m.cpu.fpu.mxcsr, 0x1f80 | mxcsr::PE);
    // Sticky: an exact operation keeps it.
    m.run(|a| a.addsd(xmm2, xmm2).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.mxcsr, 0x1f80 | mxcsr::PE);
    // LDMXCSR clears it, and clean operations leave it clear.
    m.write(DATA, &0x1f80u32.to_le_bytes());
    m.run(|a| {
        a.ldmxcsr(dword_ptr(DATA)).unwrap();
        a.addsd(xmm2, xmm2).unwrap();
    })
    .unwrap();
    assert_eq!(m.cpu.fpu.mxcsr, 0x1f80);
}

#[test]
fn rounding_control_applies_and_does_not_leak() {
    let mut m = Machine::new();
    m.cpu.fpu.mxcsr = 0x1f80 | 0x4000; // round up
    m.cpu.fpu.xmm[1] = f64s(1.0, 0.0);
    m.cpu.fpu.xmm[2] = f64s(1e-30, 0.0);
    m.run(|a| a.addsd(xmm1, xmm2).unwrap()).unwrap();
    assert_eq!(f64::from_bits(m.cpu.fpu.xmm[1] as u64), 1.0 + f64::EPSILON);
    assert_eq!(std::hint::black_box(1.0) + std::hint::black_box(1e-30), 1.0);
}

#[test]
fn unmasked_exception_is_xm_and_writes_no_result() {
    let mut m = Machine::new();
    m.cpu.fpu.mxcsr = 0x1f80 & !(mxcsr::ZE << 7);
    m.cpu.fpu.xmm[1] = f64s(1.0, 2.0);
    let before = m.cpu.fpu.xmm[1];
    assert_eq!(m.run(|a| a.divsd(xmm1, xmm0).unwrap()), Err(Exception::plain(vector::XM)));
    assert_eq!(m.cpu.fpu.xmm[1], before);
    assert_eq!(m.cpu.fpu.mxcsr & mxcsr::FLAGS, mxcsr::ZE);
    m.cpu.cr4 &= !cr4::OSXMMEXCPT;
    assert_eq!(m.run(|a| a.divsd(xmm1, xmm0).unwrap()), Err(Exception::ud()));
}

#[test]
fn precomputation_exceptions_stop_the_later_ones() {
    let mut m = Machine::new();
    // Lane 0 divides by zero (unmasked), lane 1 is inexact.
    m.cpu.fpu.mxcsr = 0x1f80 & !(mxcsr::ZE << 7);
    m.cpu.fpu.xmm[1] = f64s(1.0, 1.0);
    m.cpu.fpu.xmm[2] = f64s(0.0, 3.0);
    assert!(m.run(|a| a.divpd(xmm1, xmm2).unwrap()).is_err());
    assert_eq!(m.cpu.fpu.mxcsr & mxcsr::FLAGS, mxcsr::ZE);
    // Masked again, both are reported.
    m.cpu.fpu.mxcsr = 0x1f80;
    m.run(|a| a.divpd(xmm1, xmm2).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.mxcsr & mxcsr::FLAGS, mxcsr::ZE | mxcsr::PE);
}

#[test]
fn unmasked_underflow_is_signalled_for_exact_tiny_results() {
    let tiny = f64::from_bits(0x0010_0000_0000_0000);
    for (masked, expect) in [(true, Ok(())), (false, Err(Exception::plain(vector::XM)))] {
        let mut m = Machine::new();
        m.cpu.fpu.mxcsr = if masked { 0x1f80 } else { 0x1f80 & !mxcsr::UM };
        m.cpu.fpu.xmm[1] = f64s(tiny, 0.0);
        m.cpu.fpu.xmm[2] = f64s(0.5, 0.0);
        assert_eq!(m.run(|a| a.mulsd(xmm1, xmm2).unwrap()), expect);
        assert_eq!(m.cpu.fpu.mxcsr & mxcsr::FLAGS, if masked { 0 } else { mxcsr::UE });
    }
}

#[test]
fn availability() {
    let mut m = Machine::new();
    m.cpu.cr0 |= cr0::TS;
    assert_eq!(m.run(|a| a.movaps(xmm1, xmm2).unwrap()), Err(Exception::nm()));
    assert_eq!(m.run(|a| a.paddb(mm1, mm2).unwrap()), Err(Exception::nm()));
    m.cpu.cr0 |= cr0::EM;
    assert_eq!(m.run(|a| a.movaps(xmm1, xmm2).unwrap()), Err(Exception::ud()));
    assert_eq!(m.run(|a| a.paddb(mm1, mm2).unwrap()), Err(Exception::ud()));
    m.cpu.cr0 &= !(cr0::EM | cr0::TS);
    m.cpu.cr4 &= !cr4::OSFXSR;
    assert_eq!(m.run(|a| a.movaps(xmm1, xmm2).unwrap()), Err(Exception::ud()));
    assert_eq!(m.run(|a| a.paddb(mm1, mm2).unwrap()), Ok(()));
}

#[test]
fn alignment() {
    let mut m = Machine::new();
    let at = DATA + 8;
    m.write(at, &[0x11; 16]);
    let gp = Err(Exception::gp(0));
    assert_eq!(m.run(|a| a.movaps(xmm1, xmmword_ptr(at)).unwrap()), gp);
    assert_eq!(m.run(|a| a.movaps(xmmword_ptr(at), xmm1).unwrap()), gp);
    assert_eq!(m.run(|a| a.paddb(xmm1, xmmword_ptr(at)).unwrap()), gp);
    assert_eq!(m.run(|a| a.addps(xmm1, xmmword_ptr(at)).unwrap()), gp);
    assert_eq!(m.run(|a| a.aesenc(xmm1, xmmword_ptr(at)).unwrap()), gp);
    assert_eq!(m.cpu.fpu.xmm[1], 0);
    m.run(|a| {
        a.movups(xmm1, xmmword_ptr(at)).unwrap();
        a.lddqu(xmm2, xmmword_ptr(at)).unwrap();
        a.pcmpistri(xmm1, xmmword_ptr(at), 0).unwrap();
        a.addsd(xmm3, qword_ptr(at + 1)).unwrap();
    })
    .unwrap();
    assert_eq!(m.cpu.fpu.xmm[1], u128::from_le_bytes([0x11; 16]));
}

#[test]
fn loads_and_moves_merge_as_documented() {
    let mut m = Machine::new();
    m.write(DATA, &f64s(5.0, 6.0).to_le_bytes());
    m.cpu.fpu.xmm = [u128::MAX; 16];
    m.cpu.fpu.xmm[7] = 0;
    m.run(|a| {
        a.movsd_2(xmm0, qword_ptr(DATA)).unwrap();
        a.movsd_2(xmm1, xmm7).unwrap();
        a.movss(xmm2, xmm7).unwrap();
        a.movhps(xmm3, qword_ptr(DATA)).unwrap();
        a.movlhps(xmm7, xmm3).unwrap();
        a.movhlps(xmm4, xmm0).unwrap();
        a.movq(xmm5, xmm5).unwrap();
    })
    .unwrap();
    let x = &m.cpu.fpu.xmm;
    assert_eq!(x[0], u128::from(5f64.to_bits()));
    assert_eq!(x[1], u128::MAX << 64);
    assert_eq!(x[2], u128::MAX << 32);
    assert_eq!(x[3], u128::from(5f64.to_bits()) << 64 | u128::from(u64::MAX));
    assert_eq!(x[7], u128::from(u64::MAX) << 64);
    assert_eq!(x[4], u128::MAX << 64);
    assert_eq!(x[5], u128::from(u64::MAX));
}

#[test]
fn comparisons_set_flags() {
    let mut m = Machine::new();
    m.cpu.fpu.xmm[1] = f64s(1.0, 0.0);
    m.cpu.fpu.xmm[2] = f64s(2.0, 0.0);
    m.cpu.fpu.xmm[3] = f64s(f64::NAN, 0.0);
    m.cpu.flags.0 |= bit::OF | bit::SF | bit::AF;
    m.run(|a| a.comisd(xmm1, xmm2).unwrap()).unwrap();
    assert_eq!(m.cpu.flags.0 & bit::ARITH, bit::CF);
    m.run(|a| a.ucomisd(xmm1, xmm3).unwrap()).unwrap();
    assert_eq!(m.cpu.flags.0 & bit::ARITH, bit::CF | bit::ZF | bit::PF);
    assert_eq!(m.cpu.fpu.mxcsr & mxcsr::FLAGS, 0);
    m.run(|a| a.comisd(xmm1, xmm3).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.mxcsr & mxcsr::FLAGS, mxcsr::IE);
    m.cpu.fpu.xmm[4] = 0;
    m.run(|a| a.ptest(xmm1, xmm4).unwrap()).unwrap();
    assert_eq!(m.cpu.flags.0 & bit::ARITH, bit::ZF | bit::CF);
}

#[test]
fn conversions_to_and_from_general_registers() {
    let mut m = Machine::new();
    m.cpu.gpr[gpr::RCX] = (-7i32) as u32 as u64;
    m.cpu.fpu.xmm[2] = f64s(-2.7, 0.0);
    m.run(|a| {
        a.cvtsi2sd(xmm1, ecx).unwrap();
        a.cvttsd2si(eax, xmm2).unwrap();
        a.cvtsd2si(edx, xmm2).unwrap();
    })
    .unwrap();
    assert_eq!(f64::from_bits(m.cpu.fpu.xmm[1] as u64), -7.0);
    assert_eq!(m.cpu.gpr[gpr::RAX] as u32 as i32, -2);
    assert_eq!(m.cpu.gpr[gpr::RDX] as u32 as i32, -3);
    assert_eq!(m.cpu.gpr[gpr::RDX] >> 32, 0);
}

#[test]
fn string_comparison_finds_a_zero() {
    let mut m = Machine::new();
    m.cpu.fpu.xmm[1] = u128::from_le_bytes(*b"abcdefg\0hijklmno");
    // Equal-each against itself, negated: no difference.
    m.run(|a| a.pcmpistri(xmm1, xmm1, 0b01_1000).unwrap()).unwrap();
    assert_eq!(m.cpu.gpr[gpr::RCX], 16);
    assert!(m.cpu.flags.has(bit::ZF) && m.cpu.flags.has(bit::SF));
    m.cpu.gpr[gpr::RAX] = 16;
    m.cpu.gpr[gpr::RDX] = 3;
    m.run(|a| a.pcmpestrm(xmm1, xmm1, 0b00_0000).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.xmm[0], 0b111);
}

#[test]
fn insertps_from_memory_ignores_the_source_selector() {
    let mut m = Machine::new();
    m.write(DATA, &f32s([9.0, 8.0, 7.0, 6.0]).to_le_bytes());
    m.run(|a| a.insertps(xmm1, dword_ptr(DATA), 0b1101_0000).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.xmm[1], f32s([0.0, 9.0, 0.0, 0.0]));
}

#[test]
fn element_access_and_blends() {
    let mut m = Machine::new();
    m.cpu.fpu.xmm[1] = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
    m.cpu.gpr[gpr::RCX] = 0xffff_fff5;
    m.run(|a| {
        a.pextrb(eax, xmm1, 14).unwrap();
        a.pextrw(edx, xmm1, 9).unwrap();
        a.pinsrb(xmm1, ecx, 1).unwrap();
        a.pextrd(dword_ptr(DATA), xmm1, 0).unwrap();
        a.pshufd(xmm2, xmm1, 0x1b).unwrap();
    })
    .unwrap();
    assert_eq!(m.cpu.gpr[gpr::RAX], 14);
    assert_eq!(m.cpu.gpr[gpr::RDX], 0x0302);
    assert_eq!(m.read::<4>(DATA), 0x0302_f500u32.to_le_bytes());
    assert_eq!(m.cpu.fpu.xmm[2], 0x0302_f500_0706_0504_0b0a_0908_0f0e_0d0c);
    m.cpu.fpu.xmm[0] = 0x80;
    m.cpu.fpu.xmm[3] = 0;
    m.run(|a| a.pblendvb(xmm3, xmm1).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.xmm[3], 0);
    m.cpu.fpu.xmm[0] = 0x8000;
    m.run(|a| a.pblendvb(xmm3, xmm1).unwrap()).unwrap();
    assert_eq!(m.cpu.fpu.xmm[3], 0xf500);
}

#[test]
fn masked_store_writes_selected_bytes_only() {
    let mut m = Machine::new();
    m.write(DATA, &[0xee; 16]);
    m.cpu.gpr[gpr::RDI] = DATA;
    m.cpu.fpu.xmm[1] = u128::from_le_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    m.cpu.fpu.xmm[2] = 0x80 << 8 | 0x80 << 120 | 0x7f;
    m.run(|a| a.maskmovdqu(xmm1, xmm2).unwrap()).unwrap();
    let mut expect = [0xee; 16];
    (expect[1], expect[15]) = (2, 16);
    assert_eq!(m.read::<16>(DATA), expect);
}

#[test]
fn ldmxcsr_rejects_reserved_bits() {
    let mut m = Machine::new();
    m.write(DATA, &0x1_1f80u32.to_le_bytes());
    assert_eq!(m.run(|a| a.ldmxcsr(dword_ptr(DATA)).unwrap()), Err(Exception::gp(0)));
    assert_eq!(m.cpu.fpu.mxcsr, 0x1f80);
}

/// The plain Rust lane operations against the host's instruction.
#[test]
fn lane_operations_agree_with_the_host() {
    use crate::jit::entry::{Uses, simd, simd_imm};
    use crate::jit::thunk::Operands;
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for r in super::lanes::ROWS {
        for round in 0..40u32 {
            let mut m = Machine::new();
            let mut value = || u128::from(next()) << 64 | u128::from(next());
            let (a, b) = (value(), if round % 4 == 0 { 0 } else { value() });
            let b = if round % 5 == 0 { a } else { b };
            let imm = (round % 36) as u8 * 2;
            (m.cpu.fpu.xmm[1], m.cpu.fpu.xmm[2]) = (a, b);
            let mut o = Operands { reg: a, rm: b, ..Operands::default() };
            let op = r.code.op_code();
            let with_imm = op.op_kind(op.op_count() - 1) == iced_x86::OpCodeOperandKind::imm8;
            if with_imm {
                simd_imm(r.code as u16, imm, Uses::Nothing, &mut o)
            } else {
                simd(r.code as u16, Uses::Nothing, &mut o)
            }
            let regs = [iced_x86::Register::XMM1, iced_x86::Register::XMM2];
            let i = match (op.op_count(), with_imm) {
                (2, true) => iced_x86::Instruction::with2(r.code, regs[1], u32::from(imm)),
                (3, true) => iced_x86::Instruction::with3(r.code, regs[0], regs[1], u32::from(imm)),
                _ => iced_x86::Instruction::with2(r.code, regs[0], regs[1]),
            };
            m.run(|asm| asm.add_instruction(i.unwrap()).unwrap()).unwrap();
            assert_eq!(
                (m.cpu.fpu.xmm[1], m.cpu.fpu.xmm[2]),
                (o.reg, o.rm),
                "{:?} {a:#x} {b:#x} {imm}",
                r.code
            );
        }
    }
}
