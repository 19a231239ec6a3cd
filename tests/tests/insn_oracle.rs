//! Every user-level instruction form against the host CPU: random operands, same registers, flags and memory after.
//!
//! `RETROVISOR_ORACLE_CASES` cases a form (200), from `RETROVISOR_ORACLE_SEED` (1), of the forms whose name contains
//! `RETROVISOR_ORACLE_ROW`. A failure prints the seed of its case.
#![allow(clippy::expect_used)]

use iced_x86::{
    Code, CpuidFeature as F, Instruction, Mnemonic as M, OpCodeOperandKind as K, RflagsBits as R,
};
use retrovisor_core::isa;
use retrovisor_tests::native::Native;
use retrovisor_tests::random::{Case, Rng, case};
use retrovisor_tests::small::{CodeSize, Small};
use retrovisor_tests::{Outcome, State};
use std::collections::BTreeMap;

/// Why a form is not compared with the host.
fn excluded(code: Code, bits: u32) -> Option<&'static str> {
    let op = code.op_code();
    let far = |k| matches!(k, K::mem | K::farbr2_2 | K::farbr4_2);
    let segment = |k| matches!(k, K::seg_reg | K::cs | K::ss | K::ds | K::es | K::fs | K::gs);
    Some(match code.mnemonic() {
        _ if bits == 64 && !op.mode64() => "not in 64-bit mode",
        _ if bits == 32 && !op.mode32() => "not in 32-bit mode",
        M::Jmp | M::Call if far(op.op_kind(0)) => "segments",
        _ if (0..op.op_count()).any(|n| segment(op.op_kind(n))) => "segments",
        M::Jmp | M::Call | M::Ret if bits == 32 && op.operand_size() == 16 => {
            "branches to below 64 KiB (see tests/insn)"
        }
        _ if op.is_privileged() => "privileged",
        M::Syscall
        | M::Sysenter
        | M::Sysexit
        | M::Sysret
        | M::Int
        | M::Int1
        | M::Int3
        | M::Into
        | M::Iret
        | M::Iretd
        | M::Iretq => "enters the host's kernel",
        M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rdrand | M::Rdseed | M::Xgetbv | M::Rdpid => {
            "the answer is the machine's, not the instruction's"
        }
        M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => "port I/O",
        M::Pushf | M::Pushfd | M::Pushfq | M::Popf | M::Popfd | M::Popfq => "system flags",
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw | M::Arpl => {
            "system tables"
        }
        M::Retf
        | M::Rdfsbase
        | M::Rdgsbase
        | M::Wrfsbase
        | M::Wrgsbase
        | M::Lfs
        | M::Lgs
        | M::Lss
        | M::Lds
        | M::Les => "segments",
        M::Fxsave
        | M::Fxsave64
        | M::Fxrstor
        | M::Fxrstor64
        | M::Xsave
        | M::Xsave64
        | M::Xsaveopt
        | M::Xsaveopt64
        | M::Xsavec
        | M::Xsavec64
        | M::Xrstor
        | M::Xrstor64
        | M::Fnsave
        | M::Frstor
        | M::Fnstenv
        | M::Fldenv => "saves more state than is compared, at places in memory that differ",
        M::F2xm1
        | M::Fyl2x
        | M::Fyl2xp1
        | M::Fptan
        | M::Fpatan
        | M::Fsin
        | M::Fcos
        | M::Fsincos
        | M::Rcpps
        | M::Rcpss
        | M::Rsqrtps
        | M::Rsqrtss => "differs between host models by definition; computed in software",
        M::Clac | M::Stac | M::Swapgs | M::Monitor | M::Mwait | M::Xsetbv => "system",
        _ => return None,
    })
}

/// The first feature the host lacks, if any, among those the form needs.
fn missing(code: Code) -> Option<F> {
    code.cpuid_features().iter().copied().find(|f| !match f {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::CMOV
        | F::CX8
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::MMX
        | F::SSE
        | F::SSE2
        | F::MULTIBYTENOP
        | F::PAUSE
        | F::CLFSH
        | F::FXSR
        | F::PREFETCHW
        | F::CET_IBT
        | F::CLDEMOTE => true, // what is missing there is a NOP
        F::CLFLUSHOPT => std::arch::x86_64::__cpuid_count(7, 0).ebx & 1 << 23 != 0,
        F::SSE3 => is_x86_feature_detected!("sse3"),
        F::SSSE3 => is_x86_feature_detected!("ssse3"),
        F::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::POPCNT => is_x86_feature_detected!("popcnt"),
        F::LZCNT => is_x86_feature_detected!("lzcnt"),
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::MOVBE => is_x86_feature_detected!("movbe"),
        F::ADX => is_x86_feature_detected!("adx"),
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        F::CMPXCHG16B => is_x86_feature_detected!("cmpxchg16b"),
        _ => false,
    })
}

/// Is the host of a model whose undefined flags and results are the ones Retrovisor defines?
fn is_reference_host() -> bool {
    let id = std::arch::x86_64::__cpuid(0);
    let eax = std::arch::x86_64::__cpuid(1).eax;
    let (family, model) = ((eax >> 8) & 15, ((eax >> 4) & 15) | ((eax >> 12) & 0xf0));
    // "GenuineIntel", Sapphire Rapids, Emerald Rapids, Granite Rapids.
    id.ebx == 0x756e_6547 && family == 6 && [0x8f, 0xcf, 0xad].contains(&model)
}

/// RFLAGS bits the manual leaves undefined after `i`.
fn undefined_flags(i: &Instruction) -> u64 {
    let u = i.rflags_undefined();
    [(R::CF, 0), (R::PF, 2), (R::AF, 4), (R::ZF, 6), (R::SF, 7), (R::OF, 11)]
        .into_iter()
        .filter(|(bit, _)| u & bit != 0)
        .fold(0, |m, (_, at)| m | 1 << at)
}

/// Is the whole result of this case undefined by the manual?
fn undefined_result(c: &Case) -> bool {
    match c.insn.mnemonic() {
        M::Bsf | M::Bsr => true,
        M::Bswap => c.insn.op0_register().size() == 2,
        M::Shld | M::Shrd => c.insn.op1_register().size() == 2,
        _ => false,
    }
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn seed_of(seed: u64, code: Code, n: u64) -> u64 {
    Rng(seed ^ (code as u64) << 40 ^ n << 8).bits()
}

/// The lines by which two states differ.
fn differences(host: &State, ours: &State, flags: u64, fsw: u16) -> Vec<String> {
    let mut out = Vec::new();
    let mut line = |name: String, h: u128, o: u128| {
        if h != o {
            out.push(format!("    {name}: host {h:#x}, ours {o:#x}"));
        }
    };
    for n in 0..16 {
        line(format!("gpr {n}"), host.gpr[n].into(), ours.gpr[n].into());
        line(format!("xmm {n}"), host.xmm[n], ours.xmm[n]);
    }
    line("rip".into(), host.rip.into(), ours.rip.into());
    line("flags".into(), (host.flags & flags).into(), (ours.flags & flags).into());
    line("mxcsr".into(), host.mxcsr.into(), ours.mxcsr.into());
    line("fcw".into(), host.fcw.into(), ours.fcw.into());
    line("fsw".into(), (host.fsw & fsw).into(), (ours.fsw & fsw).into());
    line("ftw".into(), host.ftw.into(), ours.ftw.into());
    for n in 0..8 {
        let wide = |(s, e): (u64, u16)| u128::from(e) << 64 | u128::from(s);
        line(format!("st({n})"), wide(host.st[n]), wide(ours.st[n]));
    }
    out
}

/// Runs one case both ways; `Err` describes the difference.
fn compare(
    c: &Case,
    bits: u32,
    native: &mut Native,
    small: &mut Small,
    reference: bool,
) -> Result<(), String> {
    let flags = if reference { u64::MAX } else { !undefined_flags(&c.insn) };
    if !reference && undefined_result(c) {
        return Ok(());
    }
    // C0 to C3 are undefined after most x87 instructions.
    let fsw = if reference { u16::MAX } else { !0x4700 };
    let (mut host, mut host_data) = (c.state, c.data);
    let (mut ours, mut our_data) = (c.state, c.data);
    let h = match bits {
        64 => native.run(&c.bytes, &mut host, &mut host_data),
        _ => native.run32(&c.bytes, &mut host, &mut host_data),
    };
    let (o, exception) = small.run(&c.bytes, &mut ours, &mut our_data);
    let mut lines = Vec::new();
    if h != o {
        lines.push(format!("    outcome: host {h:?}, ours {o:?} {exception:?}"));
    } else if !rep_fault(c, o) {
        lines = differences(&host, &ours, flags, fsw);
        if let Some(at) = (0..host_data.len()).find(|&n| host_data[n] != our_data[n]) {
            let bytes = |d: &[u8]| format!("{:02x?}", &d[at..(at + 16).min(d.len())]);
            lines.push(format!("    data +{at:#x}: host {}, ours {}", bytes(&host_data), bytes(&our_data)));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}  [{:02x?}]\n    before: gpr {:x?} flags {:#x}\n{}",
        c.insn,
        c.bytes,
        c.state.gpr,
        c.state.flags,
        lines.join("\n")
    ))
}

/// A repeated instruction that faulted on the host stopped where the host chose.
fn rep_fault(c: &Case, o: Outcome) -> bool {
    o != Outcome::Retired && (c.insn.has_rep_prefix() || c.insn.has_repne_prefix())
}

/// Compares every row in `bits`-bit code; panics with all that differ.
fn sweep(bits: u32, size: CodeSize) {
    let cases = env("RETROVISOR_ORACLE_CASES", 200);
    let seed = env("RETROVISOR_ORACLE_SEED", 1);
    let only = std::env::var("RETROVISOR_ORACLE_ROW").unwrap_or_default();
    let mut native = Native::new().expect("host set-up");
    if bits == 32 && !native.has_32_bit_code() {
        println!("skipped: this kernel does not run 32-bit code");
        return;
    }
    let mut small = Small::new(size).expect("memory");
    let reference = is_reference_host();
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    let (mut compared, mut failures) = (0, Vec::new());
    for row in isa::rows().filter(|r| format!("{:?}", r.code).contains(&only)) {
        let reason = excluded(row.code, bits)
            .map(str::to_string)
            .or_else(|| missing(row.code).map(|f| format!("the host is not known to have {f:?}")));
        if let Some(reason) = reason {
            *skipped.entry(reason).or_default() += 1;
            continue;
        }
        let mut made = 0;
        for n in 0..cases {
            let s = seed_of(seed, row.code, n);
            match case(row.code, bits, &mut Rng(s)) {
                Ok(c) => {
                    made += 1;
                    if let Err(e) = compare(&c, bits, &mut native, &mut small, reference) {
                        failures.push(format!("{:?}, case {n} of seed {seed}:\n    {e}", row.code));
                        break;
                    }
                }
                Err(why) => {
                    *skipped.entry(why).or_default() += 1;
                    break;
                }
            }
        }
        compared += usize::from(made > 0);
    }
    drop(native);
    println!("{bits}-bit code: {compared} forms compared, {cases} cases each; reference host: {reference}");
    for (reason, n) in &skipped {
        println!("  {n} not compared: {reason}");
    }
    assert!(failures.is_empty(), "{} forms differ:\n{}", failures.len(), failures.join("\n"));
    assert!(compared > 0 || !only.is_empty(), "nothing was compared");
}

#[test]
fn test_every_user_level_row_agrees_with_the_host_in_64_bit_code() {
    sweep(64, CodeSize::Bits64)
}

#[test]
fn test_every_user_level_row_agrees_with_the_host_in_32_bit_code() {
    sweep(32, CodeSize::Bits32)
}
