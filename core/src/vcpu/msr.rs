//! Model-specific registers that are plain per-vCPU state. The APIC's live in `devices::lapic`.

/// MSR values (SDM vol. 4). RDMSR and WRMSR, with their checks, are in `isa::system`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Msrs {
    pub efer: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub tsc_aux: u64,
    /// Added to guest time (in TSC ticks) to give the TSC; IA32_TSC and IA32_TSC_ADJUST writes change it.
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    pub apic_base: u64,
    pub mtrr_def_type: u64,
    /// Eight pairs of IA32_MTRR_PHYSBASEn, IA32_MTRR_PHYSMASKn.
    pub mtrr_var: [u64; 16],
    /// FIX64K_00000, FIX16K_80000, FIX16K_A0000, FIX4K_C0000..F8000.
    pub mtrr_fix: [u64; 11],
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    pub bios_sign_id: u64,
    pub debugctl: u64,
    pub xss: u64,
}

impl Msrs {
    /// Reset values for vCPU `index`.
    pub const fn new(index: u8) -> Self {
        let bsp = if index == 0 { 1 << 8 } else { 0 };
        Self {
            efer: 0,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            misc_enable: 1,
            tsc_aux: 0,
            tsc_offset: 0,
            tsc_adjust: 0,
            apic_base: 0xfee0_0000 | 1 << 11 | bsp,
            mtrr_def_type: 0,
            mtrr_var: [0; 16],
            mtrr_fix: [0; 11],
            mcg_status: 0,
            mcg_ctl: 0,
            bios_sign_id: 0,
            debugctl: 0,
            xss: 0,
        }
    }
}

crate::impl_field!(Msrs {
    efer,
    star,
    lstar,
    cstar,
    sfmask,
    kernel_gs_base,
    sysenter_cs,
    sysenter_esp,
    sysenter_eip,
    pat,
    misc_enable,
    tsc_aux,
    tsc_offset,
    tsc_adjust,
    apic_base,
    mtrr_def_type,
    mtrr_var,
    mtrr_fix,
    mcg_status,
    mcg_ctl,
    bios_sign_id,
    debugctl,
    xss,
});
