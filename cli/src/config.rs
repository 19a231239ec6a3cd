//! What the command line means: sizes, numbers, addresses and files, checked. Owns the one-line errors for them.

use crate::args::{ClockArg, CpuArg, EngineArgs, MachineArgs};
use anyhow::{Context, Result, anyhow, bail};
use retrovisor_core::clock::ClockKind;
use retrovisor_core::engine::{Engine, JitOptions};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::vcpu::cpuid::CpuModel;
use retrovisor_replay::{Stride, VerifyOptions};
use std::path::Path;

/// Smallest and largest guest memory.
const MEMORY_RANGE: std::ops::RangeInclusive<u64> = (1 << 20)..=(64 << 30);
/// Largest image file that is read.
const MAX_IMAGE: u64 = 2 << 30;

/// The machine description the flags ask for.
pub fn machine(a: &MachineArgs) -> Result<MachineConfig> {
    Ok(MachineConfig {
        memory: memory(&a.memory)?,
        vcpus: vcpus(&a.smp)?,
        cpu: match a.cpu {
            CpuArg::I486 => CpuModel::I486,
            CpuArg::Pentium => CpuModel::Pentium,
            CpuArg::Pentium3 => CpuModel::Pentium3,
            CpuArg::X86_64V2 => CpuModel::X86_64V2,
        },
        clock: match a.clock {
            ClockArg::Virtual => ClockKind::Virtual,
            ClockArg::Host => ClockKind::Host,
        },
        seed: a.seed,
        no_reboot: a.no_reboot,
        debug_exit: a.isa_debug_exit.as_deref().map(debug_exit).transpose()?,
        testdev: a.testdev,
        ..MachineConfig::default()
    })
}

/// The engine the flags ask for.
pub fn engine(a: &EngineArgs) -> Result<VerifyOptions> {
    let jit: JitOptions = a.jit_opt.join(",").parse().map_err(|e: String| anyhow!("--jit-opt: {e}"))?;
    let stride = match (a.step_blocks, a.step_insns) {
        (_, Some(n)) => Stride::Instructions(n),
        (n, None) => Stride::Blocks(n.unwrap_or(1)),
    };
    if a.engine == "lockstep" {
        return Ok(VerifyOptions { engine: Engine::Jit, jit, lockstep: Some(stride) });
    }
    if a.step_blocks.is_some() || a.step_insns.is_some() {
        bail!(
            "--step-blocks and --step-insns say how often --engine lockstep compares; --engine is {}",
            a.engine
        );
    }
    let engine = a.engine.parse().map_err(|e: String| anyhow!("--engine: {e}, or lockstep"))?;
    Ok(VerifyOptions { engine, jit, lockstep: None })
}

/// Reads the images the flags name.
pub fn images(a: &MachineArgs) -> Result<Images> {
    if a.kernel.is_none() && a.bios.is_none() {
        bail!("nothing to boot: give --kernel FILE (or --bios FILE); `retrovisor demo` needs neither");
    }
    let name = a.kernel.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    Ok(Images {
        kernel: a.kernel.as_deref().map(|p| read_image("--kernel", p)).transpose()?,
        initrd: a.initrd.as_deref().map(|p| read_image("--initrd", p)).transpose()?,
        bios: a.bios.as_deref().map(|p| read_image("--bios", p)).transpose()?,
        cmdline: a.append.clone(),
        kernel_name: name.unwrap_or_default(),
    })
}

fn read_image(flag: &str, path: &Path) -> Result<Vec<u8>> {
    let what = || format!("{flag} {}", path.display());
    let meta = std::fs::metadata(path).with_context(what)?;
    if meta.is_dir() {
        bail!("{}: is a directory, not an image", what());
    }
    if meta.len() > MAX_IMAGE {
        bail!("{}: {} bytes is more than an image may have ({MAX_IMAGE})", what(), meta.len());
    }
    let bytes = std::fs::read(path).with_context(what)?;
    if bytes.is_empty() {
        bail!("{}: the file is empty", what());
    }
    Ok(bytes)
}

fn memory(s: &str) -> Result<u64> {
    let bytes = size(s).with_context(|| {
        format!("--memory {s}: not a size; give a number with an optional K, M or G, for instance 256M")
    })?;
    if !MEMORY_RANGE.contains(&bytes) {
        bail!("--memory {s}: must be between 1M and 64G");
    }
    Ok(bytes & !0xfff)
}

/// Bytes the history may take; 0: none is kept.
pub fn history(s: &str) -> Result<u64> {
    size(s).with_context(|| {
        format!(
            "--history {s}: not a size; give a number with an optional K, M or G, for instance 512M, or 0"
        )
    })
}

/// A number with an optional K, M, G, T suffix; megabytes without one. `None` if it is not that or overflows.
fn size(s: &str) -> Option<u64> {
    let s = s.trim();
    let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let n: u64 = s[..digits].parse().ok()?;
    let shift = match s[digits..].trim_end_matches(['B', 'b', 'i']).to_ascii_uppercase().as_str() {
        "K" => 10,
        "" | "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    n.checked_mul(1 << shift)
}

fn vcpus(s: &str) -> Result<u8> {
    match s.parse() {
        Ok(n @ 1..=16) => Ok(n),
        _ => bail!("--smp {s}: give a number of vCPUs from 1 to 16"),
    }
}

fn debug_exit(s: &str) -> Result<(u16, u16)> {
    let parse = |v: &str| {
        let v = v.trim();
        let v = v.strip_prefix("iobase=").or(v.strip_prefix("iosize=")).unwrap_or(v);
        match v.strip_prefix("0x") {
            Some(h) => u16::from_str_radix(h, 16).ok(),
            None => v.parse().ok(),
        }
    };
    let (base, len) = s.split_once(',').unwrap_or((s, "4"));
    match (parse(base), parse(len)) {
        (Some(b), Some(l @ 1..=8)) => Ok((b, l)),
        _ => bail!("--isa-debug-exit {s}: give IOBASE[,IOSIZE], for instance 0xf4,0x4 (size 1 to 8)"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn memory_accepts_sizes() {
        assert_eq!(memory("256M").unwrap(), 256 << 20);
        assert_eq!(memory("256").unwrap(), 256 << 20);
        assert_eq!(memory("2G").unwrap(), 2 << 30);
        assert_eq!(memory("1024k").unwrap(), 1 << 20);
    }

    #[test]
    fn memory_invalid_is_refused() {
        for s in ["0", "1T", "abc", "", "-1", "99999999999999999999", "18446744073709551615G", "12Q"] {
            let e = format!("{:#}", memory(s).unwrap_err());
            assert!(e.contains("--memory"), "{s}: {e}");
        }
    }

    #[test]
    fn engine_and_its_switches() {
        let of = |name: &str, switches: &[&str]| {
            let jit_opt = switches.iter().map(|s| (*s).to_owned()).collect();
            engine(&EngineArgs { engine: name.into(), jit_opt, step_blocks: None, step_insns: None })
        };
        assert_eq!(of("jit", &[]).unwrap(), VerifyOptions::default());
        let jit = JitOptions { chain: false, sse: false, x87: false, ..JitOptions::default() };
        let options = VerifyOptions { engine: Engine::Interp, jit, lockstep: None };
        assert_eq!(of("interp", &["no-chain,no-sse", "no-x87"]).unwrap(), options);
        assert_eq!(of("lockstep", &[]).unwrap().lockstep, Some(Stride::Blocks(1)));
        assert!(of("tcg", &[]).unwrap_err().to_string().starts_with("--engine: "));
        assert!(of("jit", &["no-sse,chain"]).unwrap_err().to_string().starts_with("--jit-opt: "));
    }

    #[test]
    fn the_help_names_every_switch() {
        use clap::CommandFactory;
        let help = crate::args::Cli::command().find_subcommand_mut("run").unwrap().render_help().to_string();
        for name in JitOptions::NAMES {
            assert!(help.contains(&format!("no-{name}")), "{name} is missing in: {help}");
        }
    }

    #[test]
    fn debug_exit_forms() {
        assert_eq!(debug_exit("0xf4").unwrap(), (0xf4, 4));
        assert_eq!(debug_exit("0xf4,0x04").unwrap(), (0xf4, 4));
        assert_eq!(debug_exit("iobase=0x501,iosize=2").unwrap(), (0x501, 2));
        assert!(debug_exit("zz").is_err());
        assert!(debug_exit("0xf4,0").is_err());
    }
}
