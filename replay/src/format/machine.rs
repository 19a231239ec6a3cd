//! The machine description in a trace's header. Explicit fields with a version of their own; hostile values are
//! refused here, so that nothing behind this door sees one.

use super::varint::{Cursor, Malformed, put};
use retrovisor_core::clock::ClockKind;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::vcpu::cpuid::CpuModel;

/// Version of the list of fields below.
const MACHINE_VERSION: u64 = 1;
/// Largest RAM a trace may ask for: 64 GiB.
const MAX_MEMORY: u64 = 64 << 30;
/// Most nanoseconds an instruction may take: 1 ms.
const MAX_NS_PER_INSN: u64 = 1_000_000;

const CPU_MODELS: [(u8, CpuModel); 4] =
    [(0, CpuModel::I486), (1, CpuModel::Pentium), (2, CpuModel::Pentium3), (3, CpuModel::X86_64V2)];

/// The stable number of a CPU model. Exhaustive, so that a new model cannot be forgotten.
const fn cpu_code(model: CpuModel) -> u8 {
    match model {
        CpuModel::I486 => 0,
        CpuModel::Pentium => 1,
        CpuModel::Pentium3 => 2,
        CpuModel::X86_64V2 => 3,
    }
}

/// The name of a CPU model as the command line spells it.
pub const fn cpu_name(model: CpuModel) -> &'static str {
    match model {
        CpuModel::I486 => "i486",
        CpuModel::Pentium => "pentium",
        CpuModel::Pentium3 => "pentium3",
        CpuModel::X86_64V2 => "x86-64-v2",
    }
}

/// Appends a machine description.
pub fn put_machine(out: &mut Vec<u8>, config: &MachineConfig) {
    let MachineConfig {
        memory,
        vcpus,
        cpu,
        clock,
        ns_per_insn,
        wall_time,
        seed,
        no_reboot,
        debug_exit,
        testdev,
        hash_interval,
        slice,
    } = config;
    put(out, MACHINE_VERSION);
    put(out, *memory);
    out.push(*vcpus);
    out.push(cpu_code(*cpu));
    out.push(match clock {
        ClockKind::Virtual => 0,
        ClockKind::Host => 1,
    });
    put(out, *ns_per_insn);
    put(out, *wall_time);
    out.extend_from_slice(&seed.to_le_bytes());
    let flags = u8::from(*no_reboot) | u8::from(*testdev) << 1 | u8::from(debug_exit.is_some()) << 2;
    out.push(flags);
    if let Some((base, size)) = debug_exit {
        out.extend_from_slice(&base.to_le_bytes());
        out.extend_from_slice(&size.to_le_bytes());
    }
    put(out, *hash_interval);
    put(out, *slice);
}

/// Reads a machine description and checks every value.
pub fn get_machine(c: &mut Cursor<'_>) -> Result<MachineConfig, Malformed> {
    if c.number()? != MACHINE_VERSION {
        return Err("its machine description has an unknown version");
    }
    let memory = c.number()?;
    let vcpus = c.u8()?;
    let code = c.u8()?;
    let cpu = CPU_MODELS.iter().find(|m| m.0 == code).ok_or("its CPU model is unknown")?.1;
    let clock = match c.u8()? {
        0 => ClockKind::Virtual,
        1 => ClockKind::Host,
        _ => return Err("its clock is unknown"),
    };
    let ns_per_insn = c.number()?;
    let wall_time = c.number()?;
    let seed = c.u64()?;
    let flags = c.u8()?;
    if flags & !7 != 0 {
        return Err("its machine flags are unknown");
    }
    let debug_exit = if flags & 4 != 0 { Some((c.u16()?, c.u16()?)) } else { None };
    let config = MachineConfig {
        memory,
        vcpus,
        cpu,
        clock,
        ns_per_insn,
        wall_time,
        seed,
        no_reboot: flags & 1 != 0,
        debug_exit,
        testdev: flags & 2 != 0,
        hash_interval: c.number()?,
        slice: c.number()?,
    };
    validate(&config)?;
    Ok(config)
}

/// Refuses descriptions no command line can produce.
fn validate(config: &MachineConfig) -> Result<(), Malformed> {
    let checks = [
        ((4096..=MAX_MEMORY).contains(&config.memory), "its memory size is out of range"),
        (config.memory.is_multiple_of(4096), "its memory size is not a multiple of 4 KiB"),
        ((1..=64).contains(&config.vcpus), "its number of vCPUs is out of range"),
        ((1..=MAX_NS_PER_INSN).contains(&config.ns_per_insn), "its clock rate is out of range"),
        // The last second of the year 9999.
        (config.wall_time <= 253_402_300_799, "its wall-clock time is out of range"),
        ((1..=1 << 36).contains(&config.hash_interval), "its hash interval is out of range"),
        ((1..=1 << 32).contains(&config.slice), "its time slice is out of range"),
    ];
    match checks.iter().find(|c| !c.0) {
        Some(c) => Err(c.1),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn unusual() -> MachineConfig {
        MachineConfig {
            memory: 96 << 20,
            vcpus: 7,
            cpu: CpuModel::Pentium3,
            clock: ClockKind::Host,
            ns_per_insn: 3,
            wall_time: 99,
            seed: u64::MAX - 3,
            no_reboot: true,
            debug_exit: Some((0xf4, 4)),
            testdev: true,
            hash_interval: 12345,
            slice: 77,
        }
    }

    #[test]
    fn test_machine_round_trips() {
        let mut other = unusual();
        (other.no_reboot, other.debug_exit, other.cpu) = (false, None, CpuModel::I486);
        for config in [MachineConfig::default(), unusual(), other] {
            let mut out = Vec::new();
            put_machine(&mut out, &config);
            let mut c = Cursor::new(&out);
            assert_eq!(get_machine(&mut c).unwrap(), config);
            assert!(c.is_empty());
            for n in 0..out.len() {
                assert!(get_machine(&mut Cursor::new(&out[..n])).is_err());
            }
        }
    }

    #[test]
    fn test_cpu_codes_agree() {
        for (code, model) in CPU_MODELS {
            assert_eq!(cpu_code(model), code);
        }
    }

    #[test]
    fn test_machine_hostile_value_returns_error() {
        type Edit = fn(&mut MachineConfig);
        let edits: [Edit; 9] = [
            |c| c.memory = 0,
            |c| c.memory = 1 << 40,
            |c| c.memory = 4097,
            |c| c.vcpus = 0,
            |c| c.vcpus = 65,
            |c| c.ns_per_insn = 0,
            |c| c.wall_time = u64::MAX,
            |c| c.hash_interval = 0,
            |c| c.slice = 0,
        ];
        for edit in edits {
            let mut config = MachineConfig::default();
            edit(&mut config);
            let mut out = Vec::new();
            put_machine(&mut out, &config);
            assert!(get_machine(&mut Cursor::new(&out)).is_err(), "{config:?}");
        }
    }
}
