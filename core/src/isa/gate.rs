//! Which CPU model brought an instruction form: older models raise #UD on it.

use crate::vcpu::cpuid::CpuModel;
use iced_x86::{Code, CpuidFeature as F, Mnemonic};
use std::sync::LazyLock;

static FIRST: LazyLock<Vec<CpuModel>> = LazyLock::new(|| Code::values().map(compute).collect());

/// Does `model` have this form?
pub fn has(model: CpuModel, code: Code) -> bool {
    FIRST[code as usize] as u8 <= model as u8
}

fn compute(code: Code) -> CpuModel {
    match code.mnemonic() {
        // Older models ignore the prefix and execute BSR, BSF, NOP.
        Mnemonic::Lzcnt | Mnemonic::Tzcnt | Mnemonic::Pause => CpuModel::I486,
        // Reserved NOPs since the Pentium Pro.
        Mnemonic::Endbr32 | Mnemonic::Endbr64 => CpuModel::Pentium3,
        _ => {
            code.cpuid_features().iter().map(|f| first(*f)).max_by_key(|m| *m as u8).unwrap_or(CpuModel::I486)
        }
    }
}

/// The first of our models with a feature.
fn first(feature: F) -> CpuModel {
    match feature {
        F::INTEL8086
        | F::INTEL8086_ONLY
        | F::INTEL186
        | F::INTEL286
        | F::INTEL286_ONLY
        | F::INTEL386
        | F::INTEL386_ONLY
        | F::INTEL386_A0_ONLY
        | F::INTEL486
        | F::INTEL486_A_ONLY
        | F::CPUID
        | F::FPU
        | F::FPU287
        | F::FPU287XL_ONLY
        | F::FPU387
        | F::FPU387SL_ONLY
        | F::SMM => CpuModel::I486,
        F::CX8 | F::TSC | F::MSR => CpuModel::Pentium,
        F::CMOV | F::MMX | F::SSE | F::FXSR | F::SEP | F::RDPMC | F::MULTIBYTENOP => CpuModel::Pentium3,
        _ => CpuModel::X86_64V2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_appear_with_their_model() {
        let cases = [
            (Code::Add_rm32_r32, CpuModel::I486),
            (Code::Cmpxchg_rm32_r32, CpuModel::I486),
            (Code::Fadd_m64fp, CpuModel::I486),
            (Code::Cpuid, CpuModel::I486),
            (Code::Lzcnt_r32_rm32, CpuModel::I486),
            (Code::Nopd, CpuModel::I486),
            (Code::Cmpxchg8b_m64, CpuModel::Pentium),
            (Code::Rdtsc, CpuModel::Pentium),
            (Code::Wrmsr, CpuModel::Pentium),
            (Code::Cmove_r32_rm32, CpuModel::Pentium3),
            (Code::Fcmove_st0_sti, CpuModel::Pentium3),
            (Code::Fcomi_st0_sti, CpuModel::Pentium3),
            (Code::Paddb_mm_mmm64, CpuModel::Pentium3),
            (Code::Movaps_xmm_xmmm128, CpuModel::Pentium3),
            (Code::Sysenter, CpuModel::Pentium3),
            (Code::Nop_rm32, CpuModel::Pentium3),
            (Code::Movapd_xmm_xmmm128, CpuModel::X86_64V2),
            (Code::Popcnt_r32_rm32, CpuModel::X86_64V2),
            (Code::VEX_Andn_r32_r32_rm32, CpuModel::X86_64V2),
        ];
        for (code, first) in cases {
            let models = [CpuModel::I486, CpuModel::Pentium, CpuModel::Pentium3, CpuModel::X86_64V2];
            for m in models {
                assert_eq!(has(m, code), m as u8 >= first as u8, "{code:?} on {m:?}");
            }
        }
    }
}
