//! Fixed CPUID models. Never the host's CPUID: a trace replays on any host. Source: SDM vol. 2A, "CPUID".

/// A CPU model the guest sees. Later models have everything earlier ones have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum CpuModel {
    I486,
    Pentium,
    Pentium3,
    /// x86-64-v2 with the extensions listed in docs/conformance.md.
    #[default]
    X86_64V2,
}

/// What CPUID says besides the model: values that depend on the vCPU's state and place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuidState {
    /// Initial APIC ID.
    pub apic_id: u8,
    /// vCPUs in the machine.
    pub vcpus: u8,
    /// IA32_APIC_BASE.EN: the APIC bit follows it.
    pub apic_enabled: bool,
    /// CR4.OSXSAVE.
    pub osxsave: bool,
}

/// Where a feature bit is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Edx1,
    Ecx1,
    Ebx7,
    Ecx7,
    Edx7,
    EdxExt1,
    EcxExt1,
    EdxExt7,
}

macro_rules! features {
    ($($name:ident $model:ident $place:ident $bit:literal),* $(,)?) => {
        /// A CPU feature, as CPUID names them.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Feature { $($name),* }

        /// Feature, the first model that has it, and its CPUID bit.
        const FEATURES: &[(Feature, CpuModel, Place, u32)] =
            &[$((Feature::$name, CpuModel::$model, Place::$place, $bit)),*];

        impl CpuModel {
            /// Does this model have `feature`?
            pub const fn has(self, feature: Feature) -> bool {
                match feature { $(Feature::$name => self as u8 >= CpuModel::$model as u8),* }
            }
        }
    };
}

#[rustfmt::skip]
features! {
    Fpu I486 Edx1 0, Vme Pentium Edx1 1, De Pentium Edx1 2, Pse Pentium Edx1 3,
    Tsc Pentium Edx1 4, Msr Pentium Edx1 5, Pae Pentium3 Edx1 6, Mce Pentium Edx1 7,
    Cx8 Pentium Edx1 8, Apic Pentium Edx1 9, Sep Pentium3 Edx1 11, Mtrr Pentium3 Edx1 12,
    Pge Pentium3 Edx1 13, Mca Pentium3 Edx1 14, Cmov Pentium3 Edx1 15, Pat Pentium3 Edx1 16,
    Pse36 Pentium3 Edx1 17, Clflush X86_64V2 Edx1 19, Mmx Pentium3 Edx1 23, Fxsr Pentium3 Edx1 24,
    Sse Pentium3 Edx1 25, Sse2 X86_64V2 Edx1 26,
    Sse3 X86_64V2 Ecx1 0, Pclmul X86_64V2 Ecx1 1, Ssse3 X86_64V2 Ecx1 9, Cx16 X86_64V2 Ecx1 13,
    Pcid X86_64V2 Ecx1 17, Sse41 X86_64V2 Ecx1 19, Sse42 X86_64V2 Ecx1 20, X2apic X86_64V2 Ecx1 21,
    Movbe X86_64V2 Ecx1 22, Popcnt X86_64V2 Ecx1 23, TscDeadline X86_64V2 Ecx1 24, Aes X86_64V2 Ecx1 25,
    Xsave X86_64V2 Ecx1 26, Hypervisor X86_64V2 Ecx1 31,
    Fsgsbase X86_64V2 Ebx7 0, TscAdjust X86_64V2 Ebx7 1, Bmi1 X86_64V2 Ebx7 3, Smep X86_64V2 Ebx7 7,
    Bmi2 X86_64V2 Ebx7 8, Erms X86_64V2 Ebx7 9, Invpcid X86_64V2 Ebx7 10, Adx X86_64V2 Ebx7 19,
    Smap X86_64V2 Ebx7 20, Clflushopt X86_64V2 Ebx7 23,
    Umip X86_64V2 Ecx7 2, Fsrm X86_64V2 Edx7 4, ArchCapabilities X86_64V2 Edx7 29,
    Syscall X86_64V2 EdxExt1 11, Nx X86_64V2 EdxExt1 20, Page1g X86_64V2 EdxExt1 26,
    Rdtscp X86_64V2 EdxExt1 27, Lm X86_64V2 EdxExt1 29,
    Lahf64 X86_64V2 EcxExt1 0, Lzcnt X86_64V2 EcxExt1 5,
    InvariantTsc X86_64V2 EdxExt7 8,
}

/// MHz the TSC and the core are said to run at.
const TSC_MHZ: u32 = 1000;
/// Core crystal clock in Hz (leaf 0x15). The APIC timer counts it, so it is the LAPIC's 1 ns bus cycle; the TSC runs
/// at the same rate.
const CRYSTAL_HZ: u32 = 1_000_000_000;
/// Hypervisor leaf 0x4000_0000.
const HYPERVISOR: &[u8; 12] = b"Retrovisor  ";
const BRAND: &[u8; 48] = b"Retrovisor x86-64-v2 Processor @ 1.00GHz\0\0\0\0\0\0\0\0";

impl CpuModel {
    /// Family/model/stepping as in CPUID.1:EAX and in EDX after reset.
    pub const fn signature(self) -> u32 {
        match self {
            CpuModel::I486 => 0x0000_0480,
            CpuModel::Pentium => 0x0000_0543,
            CpuModel::Pentium3 => 0x0000_0673,
            CpuModel::X86_64V2 => 0x000a_0652,
        }
    }

    /// Width of physical addresses in bits.
    pub const fn physical_bits(self) -> u32 {
        match self {
            CpuModel::I486 | CpuModel::Pentium => 32,
            CpuModel::Pentium3 => 36,
            CpuModel::X86_64V2 => 39,
        }
    }

    const fn max_basic(self) -> u32 {
        match self {
            CpuModel::I486 | CpuModel::Pentium => 1,
            CpuModel::Pentium3 => 2,
            CpuModel::X86_64V2 => 0x16,
        }
    }

    const fn max_extended(self) -> u32 {
        match self {
            CpuModel::X86_64V2 => 0x8000_0008,
            _ => 0,
        }
    }

    fn bits(self, place: Place) -> u32 {
        FEATURES.iter().filter(|f| f.1 <= self && f.2 == place).fold(0, |bits, f| bits | 1 << f.3)
    }

    /// CPUID: EAX, EBX, ECX, EDX for `leaf` and `sub`-leaf. A leaf above the maximum answers as the highest basic leaf.
    pub fn cpuid(self, leaf: u32, sub: u32, state: &CpuidState) -> [u32; 4] {
        let hypervisor = self.has(Feature::Hypervisor);
        match leaf {
            0x4000_0000..=0x4fff_ffff if hypervisor => hypervisor_leaf(leaf),
            0x8000_0000.. if leaf <= self.max_extended() => self.extended(leaf),
            _ => self.basic(leaf.min(self.max_basic()), sub, state),
        }
    }

    fn basic(self, leaf: u32, sub: u32, state: &CpuidState) -> [u32; 4] {
        match leaf {
            0 => {
                let v = words(b"GenuntelineI");
                [self.max_basic(), v[0], v[1], v[2]]
            }
            1 => self.leaf1(state),
            2 if self == CpuModel::X86_64V2 => [0x0000_ff01, 0, 0, 0],
            // 32 KiB L1 code and data, 256 KiB L2, 4 KiB and 4 MiB TLBs.
            2 => [0x0302_0101, 0, 0, 0x0c04_0842],
            4 => cache_leaf(sub, state.vcpus),
            // ARAT: the APIC timer never stops.
            6 => [4, 0, 0, 0],
            7 if sub == 0 => [0, self.bits(Place::Ebx7), self.bits(Place::Ecx7), self.bits(Place::Edx7)],
            0xb => topology_leaf(sub, state),
            // x87 and SSE state, 512 + 64 bytes.
            0xd if sub == 0 => [3, 576, 576, 0],
            0x15 => [1, TSC_MHZ * 1_000_000 / CRYSTAL_HZ, CRYSTAL_HZ, 0],
            0x16 => [TSC_MHZ, TSC_MHZ, 100, 0],
            _ => [0; 4],
        }
    }

    fn leaf1(self, state: &CpuidState) -> [u32; 4] {
        let clflush = if self.has(Feature::Clflush) { 8 << 8 } else { 0 };
        let ebx = u32::from(state.apic_id) << 24 | u32::from(state.vcpus.max(1)) << 16 | clflush;
        let (mut ecx, mut edx) = (self.bits(Place::Ecx1), self.bits(Place::Edx1));
        if state.osxsave {
            ecx |= 1 << 27;
        }
        if !state.apic_enabled {
            edx &= !(1 << 9);
        }
        if state.vcpus > 1 && self.has(Feature::Apic) {
            edx |= 1 << 28;
        }
        [self.signature(), ebx, ecx, edx]
    }

    fn extended(self, leaf: u32) -> [u32; 4] {
        match leaf {
            0x8000_0000 => [self.max_extended(), 0, 0, 0],
            0x8000_0001 => [0, 0, self.bits(Place::EcxExt1), self.bits(Place::EdxExt1)],
            0x8000_0002..=0x8000_0004 => {
                let at = 16 * (leaf - 0x8000_0002) as usize;
                words(&BRAND[at..at + 16])
            }
            // L2: 1 MiB, 16 ways, 64-byte lines.
            0x8000_0006 => [0, 0, 1024 << 16 | 8 << 12 | 64, 0],
            0x8000_0007 => [0, 0, 0, self.bits(Place::EdxExt7)],
            0x8000_0008 => [48 << 8 | self.physical_bits(), 0, 0, 0],
            _ => [0; 4],
        }
    }
}

/// Up to sixteen bytes as little-endian words.
fn words(bytes: &[u8]) -> [u32; 4] {
    let mut out = [0; 4];
    for (n, b) in bytes.iter().take(16).enumerate() {
        out[n / 4] |= u32::from(*b) << (8 * (n % 4));
    }
    out
}

fn hypervisor_leaf(leaf: u32) -> [u32; 4] {
    if leaf != 0x4000_0000 {
        return [0; 4];
    }
    let v = words(HYPERVISOR);
    [leaf, v[0], v[1], v[2]]
}

/// Deterministic cache parameters: L1D 32 KiB, L1I 32 KiB, L2 1 MiB, private to each vCPU.
fn cache_leaf(sub: u32, vcpus: u8) -> [u32; 4] {
    let (kind, level, ways, sets) = match sub {
        0 => (1, 1, 8, 64),
        1 => (2, 1, 8, 64),
        2 => (3, 2, 16, 1024),
        _ => return [0; 4],
    };
    let cores = u32::from(vcpus.max(1)).next_power_of_two() - 1;
    [kind | level << 5 | 1 << 8 | cores << 26, (ways - 1) << 22 | 63, sets - 1, 0]
}

/// Extended topology: one thread a core, every vCPU a core of one package.
fn topology_leaf(sub: u32, state: &CpuidState) -> [u32; 4] {
    let vcpus = u32::from(state.vcpus.max(1));
    let id = u32::from(state.apic_id);
    match sub {
        0 => [0, 1, 0x100, id],
        1 => [vcpus.next_power_of_two().trailing_zeros(), vcpus, 0x201, id],
        _ => [0, 0, sub & 0xff, id],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: CpuidState = CpuidState { apic_id: 2, vcpus: 4, apic_enabled: true, osxsave: false };

    #[test]
    fn test_vendor_reads_genuine_intel() {
        let [_, b, c, d] = CpuModel::X86_64V2.cpuid(0, 0, &STATE);
        let text: Vec<u8> = [b, d, c].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(text, b"GenuineIntel");
    }

    #[test]
    fn test_models_show_only_their_features() {
        assert_eq!(CpuModel::I486.cpuid(1, 0, &STATE)[3], 1);
        assert!(!CpuModel::Pentium3.has(Feature::Sse2) && CpuModel::Pentium3.has(Feature::Pae));
        assert_eq!(CpuModel::Pentium3.cpuid(0x8000_0001, 0, &STATE), CpuModel::Pentium3.cpuid(2, 0, &STATE));
        let ext = CpuModel::X86_64V2.cpuid(0x8000_0001, 0, &STATE);
        assert_eq!(ext[3], 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29);
    }

    #[test]
    fn test_dynamic_bits_follow_state() {
        let on = CpuModel::X86_64V2.cpuid(1, 0, &STATE);
        let off = CpuModel::X86_64V2.cpuid(1, 0, &CpuidState { osxsave: true, apic_enabled: false, ..STATE });
        assert_eq!(on[2] ^ off[2], 1 << 27);
        assert_eq!(on[3] ^ off[3], 1 << 9);
        assert_eq!(on[1] >> 24, 2);
    }

    #[test]
    fn test_tsc_leaf_gives_one_gigahertz() {
        let [den, num, crystal, _] = CpuModel::X86_64V2.cpuid(0x15, 0, &STATE);
        assert_eq!(u64::from(crystal) * u64::from(num) / u64::from(den), 1_000_000_000);
    }

    #[test]
    fn test_leaf_above_maximum_is_highest_basic() {
        assert_eq!(CpuModel::X86_64V2.cpuid(0x77, 0, &STATE), CpuModel::X86_64V2.cpuid(0x16, 0, &STATE));
    }
}
