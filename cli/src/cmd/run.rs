//! `retrovisor run`: a live machine, recorded if asked, with a console and a debugger.

use super::live::{self, Around, Ended};
use crate::args::RunArgs;
use crate::config;
use crate::console::{Serial, SerialSink};
use crate::exit;
use anyhow::{Context, Result, anyhow};
use retrovisor_core::input::NoInput;
use retrovisor_core::loader::LoadError;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::output::{NullSink, OutputSink};
use retrovisor_debug::{Exit, Options};
use retrovisor_replay::{ExitReason, IdlePolicy, Live, Machine, Mailbox, Recording, Timeline, TimelineError};

/// Runs a guest; the process's exit code.
///
/// # Errors
/// Bad flags, files that cannot be used, images that cannot be booted: one line each.
pub fn run(a: &RunArgs) -> Result<u8> {
    let machine = config::machine(&a.machine)?;
    let engine = config::engine(&a.engine)?;
    let history = config::history(&a.debug.history)?;
    let serial: Serial = a.serial.parse().map_err(|e: String| anyhow!("--serial: {e}"))?;
    let images = config::images(&a.machine)?;
    let server = live::bind(a.debug.gdb.as_deref())?;
    let sink: Box<dyn OutputSink> =
        match SerialSink::open(&serial).with_context(|| format!("--serial {}", a.serial))? {
            Some(s) => Box::new(s),
            None => Box::new(NullSink),
        };
    let mailbox = Mailbox::new();
    let port = Live::new(mailbox.clone(), machine.clock, IdlePolicy::RealTime);
    let recording = match &a.record {
        None => Recording::unwritten(&machine),
        Some(path) => {
            // Images that do not boot are refused before a trace file is created.
            Vm::new(machine.clone(), images.clone(), Box::new(NoInput), Box::new(NullSink))
                .map_err(|e| name_file(e, a))?;
            let on_error = |e: &retrovisor_replay::RecordError| eprintln!("retrovisor: {e}");
            Recording::create(path, &machine, &images, Box::new(on_error))?
        }
    };
    let (input, output) = (Box::new(recording.port(port)), Box::new(recording.output(sink)));
    let mut vm = Machine::live(machine, images, engine, input, output).map_err(|e| name_file(e, a))?;
    if history > 0 {
        vm = vm.with_timeline(|vm| Timeline::live(vm, recording.clone(), mailbox.clone(), history));
    }
    let around = Around {
        options: Options { freeze: a.debug.freeze, read_only: false },
        console: serial == Serial::Stdio,
    };
    let mut ended = live::session(vm, &mailbox, server, &around)?;
    finish(&mut ended, &recording, a)
}

/// Puts the kernel's file before an error that does not name a flag itself.
fn name_file(e: LoadError, a: &RunArgs) -> anyhow::Error {
    match &a.machine.kernel {
        Some(path) if matches!(e, LoadError::Invalid { what, .. } if !what.starts_with("--")) => {
            anyhow!("--kernel {}: {e}", path.display())
        }
        _ => e.into(),
    }
}

/// Completes the recording and says how the run ended.
fn finish(ended: &mut Ended, recording: &Recording, a: &RunArgs) -> Result<u8> {
    let (mut code, line) = match ended.exit {
        // A live run has no trace to end: no timer is armed, and standard input, which could wake the guest, is closed.
        Exit::TraceEnded if ended.quit.is_none() => (
            exit::DEAD,
            Some("the guest waits for ever: no timer is armed and its input has ended".to_owned()),
        ),
        _ => live::exit_code(ended),
    };
    if let Some(vm) = &mut ended.vm {
        if let Some(mismatch) = vm.mismatch() {
            eprintln!("retrovisor: {mismatch}");
        }
        // What is recorded ends at the newest point, wherever the debugger left the machine.
        let done = match vm.travel() {
            Ok((timeline, vm)) => timeline.finish(vm, reason(ended.exit)),
            Err(_) => recording.finish_vm(vm, reason(ended.exit)).map_err(TimelineError::from),
        };
        // Said again if it stopped early: the line may be far up by now. A code of the guest's is worth more.
        if let Err(e) = done {
            eprintln!("retrovisor: {e}");
            code = if code == 0 { exit::BAD_INPUT } else { code };
        }
        let (when, hash) = (vm.when(), vm.state_hash());
        if a.hash {
            eprintln!("retrovisor: ended at instruction {}, state {hash}", when.icount);
        }
    }
    if let Some(line) = line {
        eprintln!("retrovisor: {line}");
    }
    Ok(code)
}

fn reason(exit: Exit) -> ExitReason {
    match exit {
        Exit::PowerOff => ExitReason::PowerOff,
        Exit::Reset => ExitReason::Reset,
        Exit::DebugExit(v) => ExitReason::DebugExit(v),
        Exit::TripleFault => ExitReason::TripleFault,
        Exit::Dead => ExitReason::Dead,
        Exit::TraceEnded | Exit::Diverged | Exit::Killed | Exit::Bug => ExitReason::Quit,
    }
}
