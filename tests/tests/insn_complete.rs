//! Completeness of the row table: every encoding of every user-level integer instruction has a row, and is
//! undefined on CPU models that did not have it.

use iced_x86::{Code, Mnemonic as M, OpCodeOperandKind as K};
use retrovisor_core::addr::Gpa;
use retrovisor_core::exception::Exception;
use retrovisor_core::isa;
use retrovisor_core::vcpu::cpuid::CpuModel;
use retrovisor_tests::small::{CodeSize, Small};

/// The user-level integer instructions of an x86-64-v2 processor with BMI1, BMI2, ADX and MOVBE.
#[rustfmt::skip]
const INTEGER: &[M] = &[
    M::Add, M::Or, M::Adc, M::Sbb, M::And, M::Sub, M::Xor, M::Cmp, M::Inc, M::Dec, M::Neg, M::Not, M::Test, M::Adcx,
    M::Adox, M::Rol, M::Ror, M::Rcl, M::Rcr, M::Shl, M::Sal, M::Shr, M::Sar, M::Shld, M::Shrd, M::Mul, M::Imul, M::Div,
    M::Idiv, M::Aaa, M::Aas, M::Aam, M::Aad, M::Daa, M::Das, M::Salc, M::Bt, M::Bts, M::Btr, M::Btc, M::Bsf, M::Bsr,
    M::Popcnt, M::Lzcnt, M::Tzcnt, M::Bswap, M::Mov, M::Movzx, M::Movsx, M::Movsxd, M::Movbe, M::Movnti, M::Xchg,
    M::Cmpxchg, M::Cmpxchg8b, M::Cmpxchg16b, M::Xadd, M::Lea, M::Xlatb, M::Cbw, M::Cwde, M::Cdqe, M::Cwd, M::Cdq, M::Cqo,
    M::Lahf, M::Sahf, M::Clc, M::Stc, M::Cmc, M::Cld, M::Std, M::Nop, M::Reservednop, M::Pause, M::Endbr32, M::Endbr64,
    M::Prefetch, M::Prefetchw, M::Prefetchnta, M::Prefetcht0, M::Prefetcht1, M::Prefetcht2, M::Lfence, M::Mfence,
    M::Sfence, M::Clflush, M::Clflushopt, M::Ud0, M::Ud1, M::Ud2, M::Push, M::Pop, M::Pusha, M::Pushad, M::Popa,
    M::Popad, M::Enter, M::Leave, M::Jmp, M::Call, M::Ret, M::Loop, M::Loope, M::Loopne, M::Jcxz, M::Jecxz, M::Jrcxz,
    M::Jo, M::Jno, M::Jb, M::Jae, M::Je, M::Jne, M::Jbe, M::Ja, M::Js, M::Jns, M::Jp, M::Jnp, M::Jl, M::Jge, M::Jle,
    M::Jg, M::Cmovo, M::Cmovno, M::Cmovb, M::Cmovae, M::Cmove, M::Cmovne, M::Cmovbe, M::Cmova, M::Cmovs, M::Cmovns,
    M::Cmovp, M::Cmovnp, M::Cmovl, M::Cmovge, M::Cmovle, M::Cmovg, M::Seto, M::Setno, M::Setb, M::Setae, M::Sete,
    M::Setne, M::Setbe, M::Seta, M::Sets, M::Setns, M::Setp, M::Setnp, M::Setl, M::Setge, M::Setle, M::Setg, M::Bound,
    M::Movsb, M::Movsw, M::Movsd, M::Movsq, M::Stosb, M::Stosw, M::Stosd, M::Stosq, M::Lodsb, M::Lodsw, M::Lodsd,
    M::Lodsq, M::Scasb, M::Scasw, M::Scasd, M::Scasq, M::Cmpsb, M::Cmpsw, M::Cmpsd, M::Cmpsq, M::Crc32, M::Andn,
    M::Bextr, M::Blsi, M::Blsmsk, M::Blsr, M::Bzhi, M::Mulx, M::Pdep, M::Pext, M::Rorx, M::Sarx, M::Shlx, M::Shrx,
];

/// Not integer, not user level, or not of a processor that Retrovisor models.
fn elsewhere(code: Code) -> bool {
    let op = code.op_code();
    let system = (0..op.op_count()).any(|n| {
        use K::*;
        matches!(
            op.op_kind(n),
            seg_reg
                | cr_reg
                | dr_reg
                | tr_reg
                | es
                | cs
                | ss
                | ds
                | fs
                | gs
                | farbr2_2
                | farbr4_2
                | xmm_reg
                | xmm_or_mem
                | mem_vsib32x
        )
    });
    let far_indirect = matches!(code.mnemonic(), M::Jmp | M::Call) && op.op_kind(0) == K::mem;
    // Encodings of single early steppings, decoded only on request.
    let stepping = format!("{code:?}").starts_with("Cmpxchg486");
    // AMD's XOP and Intel's APX and KNC forms are not modelled.
    let other = !matches!(op.encoding(), iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX)
        || format!("{code:?}").starts_with("VEX_KNC");
    system || far_indirect || stepping || other
}

#[test]
fn test_every_integer_encoding_has_a_row() {
    let missing: Vec<Code> = Code::values()
        .filter(|c| INTEGER.contains(&c.mnemonic()) && !elsewhere(*c) && isa::lookup(*c).is_none())
        .collect();
    assert!(missing.is_empty(), "no row: {missing:?}");
}

#[test]
fn test_lockable_rows_are_exactly_those_the_decoder_accepts() {
    for row in isa::rows().filter(|r| INTEGER.contains(&r.code.mnemonic()) && !elsewhere(r.code)) {
        let accepts = row.code.op_code().can_use_lock_prefix();
        assert_eq!(row.attrs & isa::LOCKABLE != 0, accepts, "{:?}", row.code);
    }
}

/// Executes 32-bit `code` with EAX = `eax` on `model`: EAX after, or the fault.
fn eax_after(model: CpuModel, code: &[u8], eax: u64) -> Result<u64, Exception> {
    let mut m = Small::new(CodeSize::Bits32).map_err(|_| Exception::nm())?;
    m.cpu.model = model;
    m.sys.mem.write_phys(Gpa(0x1000), code);
    (m.cpu.rip, m.cpu.gpr[0], m.cpu.gpr[3]) = (0x1000, eax, 0x2000);
    m.step().map(|()| m.cpu.gpr[0])
}

#[test]
fn test_models_before_an_instruction_do_not_have_it() {
    use CpuModel::*;
    let undefined = Err(Exception::ud());
    let table: &[(&[u8], CpuModel, CpuModel)] = &[
        (&[0x0f, 0x44, 0xc0], Pentium, Pentium3),        // cmove eax, eax
        (&[0x0f, 0xc7, 0x0b], I486, Pentium),            // cmpxchg8b [ebx]
        (&[0xf3, 0x0f, 0xb8, 0xc0], Pentium3, X86_64V2), // popcnt eax, eax
        (&[0x0f, 0x38, 0xf0, 0x03], Pentium3, X86_64V2), // movbe eax, [ebx]
        (&[0xf2, 0x0f, 0x38, 0xf1, 0xc0], Pentium3, X86_64V2), // crc32 eax, eax
        (&[0x66, 0x0f, 0x38, 0xf6, 0xc0], Pentium3, X86_64V2), // adcx eax, eax
        (&[0xc4, 0xe2, 0x78, 0xf2, 0xc0], Pentium3, X86_64V2), // andn eax, eax, eax
    ];
    for (code, before, since) in table {
        assert_eq!(eax_after(*before, code, 1), undefined, "{code:02x?} on {before:?}");
        assert!(eax_after(*since, code, 1).is_ok(), "{code:02x?} on {since:?}");
    }
    // LZCNT was BSR, TZCNT was BSF.
    assert_eq!(eax_after(Pentium3, &[0xf3, 0x0f, 0xbd, 0xc0], 0x10), Ok(4));
    assert_eq!(eax_after(X86_64V2, &[0xf3, 0x0f, 0xbd, 0xc0], 0x10), Ok(27));
    assert_eq!(eax_after(X86_64V2, &[0xf3, 0x0f, 0xbc, 0xc0], 0), Ok(32));
}
