//! `retrovisor demo`: records the built-in guest, verifies the replay, and finds its planted bug by looking back.
//!
//! Nothing here knows what the bug is. `crash` works out from the machine's state which word in memory led to the
//! crash, `hunt` replays the recording with a watchpoint on that word, and `symbols` puts names to addresses. All
//! three work on any guest with an ELF symbol table.

pub mod crash;
pub mod hunt;
pub mod symbols;

use anyhow::{Context, Result, bail};
use crash::Crash;
use hunt::Write as WordWrite;
use retrovisor_core::Icount;
use retrovisor_core::input::{NoInput, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::{OutputPort, OutputSink};
use retrovisor_replay::record::MemoryFile;
use retrovisor_replay::{ExitReason, Recording, Replay, Trace, VerifyOptions, verify};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use symbols::Symbols;

/// The guest, assembled by the build script from `cli/guest`.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rearview.elf"));
const GUEST_NAME: &str = "rearview.elf";

/// Guest memory in bytes.
const MEMORY: u64 = 32 << 20;
/// isa-debug-exit: I/O base and size.
const DEBUG_EXIT: (u16, u16) = (0xf4, 4);
/// What the guest's panic writes to it.
const PANIC: u32 = 0x2a;
/// Instructions between two state hashes.
const HASH_INTERVAL: u64 = 1 << 22;
/// Instructions between two looks at what the guest printed.
const SLICE: u64 = 1 << 19;
/// The guest is done long before this many instructions.
const LIMIT: u64 = 1_000_000_000;

/// What the recorded run left.
struct Recorded {
    trace: Arc<Trace>,
    crash: Crash,
    end: When,
}

/// Runs the demo and tells its story on `out`. `save` keeps the recording, `elf` the guest with its symbols.
///
/// # Errors
/// If a file cannot be written, or the machine does not do what this guest is known to do.
pub fn demo(save: Option<&Path>, elf: Option<&Path>, out: &mut dyn Write) -> Result<()> {
    let symbols = Symbols::of(GUEST)?;
    if let Some(path) = elf {
        std::fs::write(path, GUEST).with_context(|| format!("--elf {}", path.display()))?;
    }
    writeln!(out, "Retrovisor demo: a small kernel crashes, long after the instruction that is to blame.\n")?;
    let recorded = record(save, &symbols, out)?;
    replay(&recorded, out)?;
    recorded.crash.print(&symbols, out)?;
    hunt(&recorded, &symbols, out)?;
    how_to_attach(&recorded.crash, save, elf, out)?;
    Ok(())
}

/// The machine the guest runs on.
fn machine() -> (MachineConfig, Images) {
    let config = MachineConfig {
        memory: MEMORY,
        no_reboot: true,
        debug_exit: Some(DEBUG_EXIT),
        hash_interval: HASH_INTERVAL,
        ..MachineConfig::default()
    };
    let images = Images { kernel: Some(GUEST.to_vec()), kernel_name: GUEST_NAME.into(), ..Images::default() };
    (config, images)
}

/// Runs the guest to its end, recording, and looks at the crash as it happens.
fn record(save: Option<&Path>, symbols: &Symbols<'_>, out: &mut dyn Write) -> Result<Recorded> {
    writeln!(out, "1. Run it. Recording is always on.\n")?;
    let (config, images) = machine();
    let (recording, memory) = match save {
        Some(path) => (Recording::create(path, &config, &images, Box::new(|_| ()))?, None),
        None => {
            let (recording, memory) = Recording::in_memory(&config, &images)?;
            (recording, Some(memory))
        }
    };
    let console = Console::default();
    let port = Box::new(recording.port(NoInput));
    let mut vm = Vm::new(config, images, port, Box::new(recording.output(console.clone())))?;
    vm.hooks.stop_exceptions = crash::FAULTS;
    let began = Instant::now();
    let (exit, crash) = run_to_end(&mut vm, symbols, &console, out)?;
    let (end, hash) = (vm.when(), vm.state_hash());
    recording.finish(end, ExitReason::from_exit(exit), hash)?;
    if exit != VmExit::DebugExit(PANIC) {
        bail!("the demo guest did not crash as it should: {exit:?} at instruction {}", end.icount);
    }
    let crash = crash.context("the demo guest panicked without a fault")?;
    let (instructions, ms) = (grouped(end.icount.0), end.time.0 / 1_000_000);
    let seconds = began.elapsed().as_secs_f64();
    writeln!(out, "\n   {instructions} instructions, {ms} ms of guest time, in {seconds:.1} s.")?;
    writeln!(
        out,
        "   The recording has {} bytes, the guest's image included.\n",
        grouped(recording.bytes())
    )?;
    Ok(Recorded { trace: open(save, memory)?, crash, end })
}

fn open(save: Option<&Path>, memory: Option<MemoryFile>) -> Result<Arc<Trace>> {
    Ok(match (save, memory) {
        (Some(path), _) => Trace::open(path)?,
        (None, memory) => Trace::from_bytes("the demo's recording", memory.unwrap_or_default().bytes())?,
    })
}

/// Runs until the machine ends, showing what it prints; keeps the first fault taken in the kernel.
fn run_to_end(
    vm: &mut Vm,
    symbols: &Symbols<'_>,
    console: &Console,
    out: &mut dyn Write,
) -> Result<(VmExit, Option<Crash>)> {
    let mut crash = None;
    loop {
        let exit = vm.run(Some(vm.when().icount + SLICE));
        console.show(out)?;
        match exit {
            VmExit::Reached if vm.when().icount < Icount(LIMIT) => {}
            VmExit::Exception(e) if crash.is_none() => crash = Crash::look(vm, &e, symbols),
            VmExit::Exception(_) => {}
            _ => return Ok((exit, crash)),
        }
    }
}

fn replay(recorded: &Recorded, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "2. Replay it, and compare the whole machine's state along the way.\n")?;
    let began = Instant::now();
    let report = verify(&recorded.trace, VerifyOptions::default(), &mut |_| ())?;
    if report.when != recorded.end {
        bail!("the replay ended at instruction {}, the run at {}", report.when.icount, recorded.end.icount);
    }
    let seconds = began.elapsed().as_secs_f64();
    writeln!(out, "   {} state hashes and the final one are equal. ({seconds:.1} s)", report.hashes)?;
    writeln!(out, "   Final state {}\n", report.hash)?;
    Ok(())
}

/// Replays up to the crash with a watchpoint on the word that led to it.
fn hunt(recorded: &Recorded, symbols: &Symbols<'_>, out: &mut dyn Write) -> Result<()> {
    let Some(suspect) = &recorded.crash.suspect else {
        bail!("the crash does not show which word in memory led to it");
    };
    writeln!(out, "4. Who wrote that? Replay again, watching these {} bytes.\n", suspect.len)?;
    let sink = Box::new(retrovisor_core::output::NullSink);
    let mut replay = Replay::new(&recorded.trace, VerifyOptions::default(), sink)?;
    let writes = hunt::writes_to(&mut replay.vm, symbols, suspect.gpa, suspect.len, recorded.crash.icount)?;
    for write in &writes {
        writeln!(out, "   {}", write.line(symbols))?;
    }
    let Some(guilty) = writes.last() else {
        bail!("nothing wrote the {} bytes at {} before the crash", suspect.len, suspect.gpa);
    };
    let distance = recorded.crash.icount.0.saturating_sub(guilty.icount.0);
    writeln!(out, "\n   The last of them is guilty, {} instructions before the crash:\n", grouped(distance))?;
    print_guilty(guilty, symbols, out)
}

fn print_guilty(guilty: &WordWrite, symbols: &Symbols<'_>, out: &mut dyn Write) -> Result<()> {
    for line in &guilty.listing {
        let mark = if line.ip == guilty.rip.0 { ">" } else { " " };
        writeln!(out, "   {mark} {:<22} {}", symbols.describe(line.ip), line.text)?;
    }
    writeln!(out, "\n   with {}", guilty.registers)?;
    for caller in &guilty.callers {
        writeln!(out, "   called from {}", symbols.describe(caller.0))?;
    }
    writeln!(out)?;
    Ok(())
}

/// How to look at the same crash in gdb.
fn how_to_attach(crash: &Crash, save: Option<&Path>, elf: Option<&Path>, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "5. See for yourself, in gdb:\n")?;
    let trace = save.map_or("demo.rvt".into(), |p| p.display().to_string());
    let symbols = elf.map_or(GUEST_NAME.into(), |p| p.display().to_string());
    if save.is_none() || elf.is_none() {
        writeln!(out, "   retrovisor demo --save {trace} --elf {symbols}")?;
    }
    writeln!(out, "   retrovisor replay {trace} --gdb --freeze &")?;
    let watch = match &crash.suspect {
        Some(s) => format!(" -ex 'watch *(unsigned long *) {:#x}'", s.gva.0),
        None => String::new(),
    };
    writeln!(out, "   gdb -nx {symbols} -ex 'target remote :1234'{watch} -ex continue")?;
    Ok(())
}

/// What the guest printed and nobody has shown yet.
#[derive(Clone, Default)]
struct Console {
    pending: Arc<Mutex<Vec<u8>>>,
}

impl Console {
    /// Shows the complete lines, indented.
    fn show(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(end) = pending.iter().rposition(|&b| b == b'\n') else { return Ok(()) };
        let text: Vec<u8> = pending.drain(..=end).collect();
        for line in String::from_utf8_lossy(&text).lines() {
            writeln!(out, "   | {}", line.trim_end())?;
        }
        out.flush()
    }
}

impl OutputSink for Console {
    fn write(&mut self, _when: When, port: OutputPort, bytes: &[u8]) {
        if port == OutputPort::Serial(0) {
            self.pending.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        }
    }
}

/// A number with its digits in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(d);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use retrovisor_core::loader::Elf;

    #[test]
    fn guest_is_a_well_formed_elf_with_symbols() {
        assert_eq!(Elf::parse(GUEST).unwrap().entry, 0x10_0020);
        let symbols = Symbols::of(GUEST).unwrap();
        for name in ["_start", "kernel_main", "klog_put", "timer_tick", "user_primes", "housekeeping_hook"] {
            let address = symbols.address(name).unwrap();
            assert_eq!(symbols.describe(address), name);
        }
        let hook = symbols.address("housekeeping_hook").unwrap();
        assert_eq!(symbols.address("klog_ring").unwrap() + 16 * 8, hook, "the bug needs them side by side");
    }

    #[test]
    fn grouped_digits() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn demo_finds_the_planted_bug() {
        let mut out = Vec::new();
        demo(None, None, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "*** kernel panic: page fault",
            "are equal",
            "timer_tick+",
            "housekeeping_hook",
            "called from sys_report+",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
        let guilty = text.lines().rfind(|l| l.contains(" -> ")).unwrap();
        assert!(guilty.contains("klog_put+") && guilty.contains("housekeeping ->"), "{guilty}");
    }
}
