//! What was typed: the command line as a type, with its help texts. What it means is `config`.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes:
  0          the guest switched the machine off, or the command did what it was asked
  odd        the guest left through isa-debug-exit with value v: (v << 1) | 1
  2          bad input: a flag, file, image or trace that cannot be used (one line on stderr says which and why)
  4          divergence: a replay or verification did not match its recording
  6          the guest triple-faulted or asked for a reset, and --no-reboot was given
  8          every vCPU is halted and nothing can wake it: interrupts are off, or no timer is armed and input has ended
  70         an internal bug of Retrovisor
  130        ended by Ctrl-C";

const RUN_EXAMPLES: &str = "\
Examples:
  retrovisor run -k vmlinuz --initrd initramfs.cpio -a 'console=ttyS0' --record session.rvt
  retrovisor run -k vmlinuz -a 'console=ttyS0 nokaslr' --gdb --freeze
  retrovisor run -k kernel.elf --isa-debug-exit --no-reboot --serial file:out.txt
On the console, Ctrl-A x ends the run and Ctrl-A h lists the other keys.";

/// A virtual machine monitor for people who write and debug x86 kernels, hypervisors and boot loaders.
///
/// Runs unmodified guests without KVM, records every nondeterministic input, replays runs exactly, and serves gdb.
#[derive(Parser, Debug)]
#[command(name = "retrovisor", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs the built-in guest: record it, verify the replay, and find its planted bug by going backwards
    Demo(DemoArgs),
    /// Runs a guest
    Run(Box<RunArgs>),
    /// Replays a recorded run
    Replay(ReplayArgs),
    /// Checks that traces replay with every state hash equal; one that does not is narrowed down to the instruction
    Verify(VerifyArgs),
    /// Shows what is in a trace
    #[command(subcommand)]
    Trace(TraceCommand),
}

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Keeps the demo's recording in this file
    #[arg(long, value_name = "FILE.rvt")]
    pub save: Option<PathBuf>,
    /// Writes the demo guest, with its symbols, to this file for gdb
    #[arg(long, value_name = "FILE")]
    pub elf: Option<PathBuf>,
}

/// The machine: what to boot, and on what.
#[derive(Args, Debug)]
#[command(next_help_heading = "Machine")]
pub struct MachineArgs {
    /// Kernel: Linux bzImage, ELF, multiboot 1 or 2, PVH (detected)
    #[arg(short = 'k', long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial ramdisk for Linux, or the module of a multiboot kernel
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(short = 'a', long, value_name = "STRING", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Firmware image, mapped below 4 GiB and below 1 MiB
    #[arg(long, value_name = "FILE")]
    pub bios: Option<PathBuf>,
    /// Guest memory: a number with K, M, G (M if none)
    #[arg(short = 'm', long, value_name = "SIZE", default_value = "256M")]
    pub memory: String,
    /// Number of vCPUs; they take turns on one host thread, deterministically
    #[arg(long, value_name = "N", default_value = "1")]
    pub smp: String,
    /// CPU model the guest sees
    #[arg(long, value_enum, default_value_t = CpuArg::X86_64V2)]
    pub cpu: CpuArg,
    /// What guest time follows: virtual (instructions executed; runs repeat exactly even without a trace) or host
    #[arg(long, value_enum, default_value_t = ClockArg::Virtual)]
    pub clock: ClockArg,
    /// Seed of everything pseudo-random in the machine
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Ends the run when the guest resets or triple-faults, instead of rebooting it
    #[arg(long)]
    pub no_reboot: bool,
    /// Adds an isa-debug-exit port: a guest write of v ends the run with exit code (v << 1) | 1
    #[arg(long, value_name = "IOBASE[,IOSIZE]", num_args = 0..=1, default_missing_value = "0xf4,0x4")]
    pub isa_debug_exit: Option<String>,
    /// Adds the test device kvm-unit-tests expects (ports 0xE0-0xEB and 0x2000, memory at 0xFF000000)
    #[arg(long)]
    pub testdev: bool,
}

/// What executes the guest. No choice changes what the guest does, only how fast.
#[derive(Args, Debug)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// What executes the guest: jit (the binary translator), interp (the interpreter, the reference), or lockstep
    /// (both, step by step; the first difference ends the run with a report)
    #[arg(long, value_name = "NAME", default_value = "jit")]
    pub engine: String,
    /// Switches fast paths of the translator off, to find the one at fault: a comma-separated list of no-chain,
    /// no-jump-cache, no-inline-tlb, no-windows, no-lazy-flags, no-identical, no-host-undefined, no-sse, no-x87, no-system,
    /// no-rep, no-adapt, no-sample, no-loops, no-remember
    #[arg(long, value_name = "no-NAME,..")]
    pub jit_opt: Vec<String>,
    /// Lockstep: compares after so many blocks of the translator, 1 if not given
    #[arg(long, value_name = "N", conflicts_with = "step_insns", value_parser = clap::value_parser!(u32).range(1..))]
    pub step_blocks: Option<u32>,
    /// Lockstep: compares after so many instructions, and lets the translator run on across blocks in between
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub step_insns: Option<u64>,
}

/// How a debugger attaches.
#[derive(Args, Debug)]
#[command(next_help_heading = "Debugging")]
pub struct DebugArgs {
    /// Serves gdb here; alone: 127.0.0.1:1234 (`:PORT` binds loopback only)
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "127.0.0.1:1234")]
    pub gdb: Option<String>,
    /// Waits for a debugger before the first instruction
    #[arg(long)]
    pub freeze: bool,
    /// Memory the history may take, for going backwards; 0 keeps none
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub history: String,
}

#[derive(Args, Debug)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Keeps the run's history in this file, to replay later
    #[arg(long, value_name = "FILE.rvt")]
    pub record: Option<PathBuf>,
    /// Stores a checkpoint in the recording every so many instructions (K, M, G: powers of 1000), so that a replay can
    /// begin anywhere at once; 128M if no number is given
    #[arg(
        long,
        value_name = "EVERY",
        num_args = 0..=1,
        default_missing_value = "128M",
        requires = "record"
    )]
    pub checkpoints: Option<String>,
    /// Serial port COM1: stdio, null, or file:PATH
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub serial: String,
    /// Prints the final icount and state hash on stderr when the run ends
    #[arg(long)]
    pub hash: bool,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub debug: DebugArgs,
}

#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The trace
    #[arg(value_name = "FILE.rvt")]
    pub trace: PathBuf,
    /// Stops before the instruction with this icount
    #[arg(long, value_name = "ICOUNT")]
    pub to: Option<u64>,
    /// Shows what the guest wrote to its serial port
    #[arg(long)]
    pub show: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub debug: DebugArgs,
}

#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Traces to verify
    #[arg(value_name = "FILE.rvt", required = true)]
    pub traces: Vec<PathBuf>,
    /// Threads, 0: one a CPU. Each verifies a trace, or, if there are more threads than traces, a part of one between
    /// checkpoints
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub jobs: usize,
    /// A self-test: lets the replay go wrong, so that the divergence must be found and named. The instruction with this
    /// icount leaves bit 0 of a register (rax to r15, rip, rflags, cr2, dr0 to dr3, mxcsr, xmm0 to xmm15; xmm15 if none is
    /// given) or of a byte at a physical address flipped
    #[arg(long, value_name = "ICOUNT[:REG|:ADDR]")]
    pub mutate: Option<String>,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Subcommand, Debug)]
pub enum TraceCommand {
    /// Header, images, sizes, length, how it ends
    Info {
        #[arg(value_name = "FILE.rvt")]
        trace: PathBuf,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// One line a record: icount, guest time, what
    Events {
        #[arg(value_name = "FILE.rvt")]
        trace: PathBuf,
        /// As JSON lines
        #[arg(long)]
        json: bool,
        /// First point of interest: an icount, or a guest time such as 1.5s or 20ms
        #[arg(long, value_name = "POINT")]
        from: Option<String>,
        /// Last point of interest
        #[arg(long, value_name = "POINT")]
        to: Option<String>,
        /// Only these kinds: a comma-separated list of serial, key, power-button, reset, nmi, tick, write-memory,
        /// write-register, host-time, boot-wall-time, random, hash; or all. If not given: all but hash
        #[arg(long, value_name = "KIND,..", value_delimiter = ',')]
        kind: Vec<String>,
    },
    /// The whole trace for other programs (docs/trace-export.md describes the fields)
    Export {
        #[arg(value_name = "FILE.rvt")]
        trace: PathBuf,
        /// jsonl: a JSON object a line; perfetto: a timeline for ui.perfetto.dev or chrome://tracing
        #[arg(long, value_enum, default_value_t = ExportFormat::Jsonl)]
        format: ExportFormat,
        /// Writes to this file instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// The same trace in fewer bytes: recompressed as well as possible, small frames merged
    Pack {
        #[arg(value_name = "FILE.rvt")]
        trace: PathBuf,
        /// The packed trace; may be the same file
        #[arg(short, long, value_name = "FILE.rvt")]
        output: PathBuf,
    },
    /// The same trace with checkpoints, so that a replay can begin anywhere at once; replays it once
    Checkpoint {
        #[arg(value_name = "FILE.rvt")]
        trace: PathBuf,
        /// Instructions between two checkpoints (K, M, G: powers of 1000), rounded up to hash points
        #[arg(long, value_name = "N", default_value = "128M")]
        every: String,
        /// Writes to this file instead of replacing the trace
        #[arg(short, long, value_name = "FILE.rvt")]
        output: Option<PathBuf>,
    },
    /// A part of the trace as a trace of its own, which begins at a checkpoint; instructions keep their numbers
    Trim {
        #[arg(value_name = "FILE.rvt")]
        trace: PathBuf,
        /// First point needed: an icount (the new trace begins at the last hash point up to there), or a guest time such
        /// as 1.5s or 20ms; if not given, the beginning
        #[arg(long, value_name = "POINT")]
        from: Option<String>,
        /// Last point needed; if not given, the end
        #[arg(long, value_name = "POINT")]
        to: Option<String>,
        /// The new trace; may be the same file
        #[arg(short, long, value_name = "FILE.rvt")]
        output: PathBuf,
    },
    /// The trace as plain files: header as JSON, images, records as JSON lines
    Unpack {
        #[arg(value_name = "FILE.rvt")]
        trace: PathBuf,
        /// A folder that is new or empty
        #[arg(short, long, value_name = "FOLDER")]
        output: PathBuf,
    },
}

/// What `trace export` writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ExportFormat {
    Jsonl,
    Perfetto,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ClockArg {
    Virtual,
    Host,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum CpuArg {
    #[value(name = "i486")]
    I486,
    Pentium,
    Pentium3,
    #[value(name = "x86-64-v2")]
    X86_64V2,
}
