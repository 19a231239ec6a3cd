//! Text commands about the machine (gdb's `monitor`, the terminal UI's prompt): a table of name, usage, help and
//! function. Commands only look; they get a read-only view and give text back.

mod args;
mod examine;

use crate::inspect::Inspect;
use crate::pagewalk;
use crate::registers::{self, Group, REGISTERS};
use retrovisor_core::exception;

pub use args::{Format, address};

/// What a command works on.
pub struct Context<'a, 'vm> {
    pub machine: &'a mut Inspect<'vm>,
    /// The vCPU selected by the client.
    pub vcpu: usize,
}

/// Why a command has no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// It was called wrongly; its usage is shown too.
    Usage(String),
    /// There is nothing to show.
    Nothing(String),
}

impl From<String> for Error {
    fn from(why: String) -> Self {
        Error::Usage(why)
    }
}
impl From<&str> for Error {
    fn from(why: &str) -> Self {
        Error::Usage(why.into())
    }
}

/// A command's text.
pub type Output = Result<String, Error>;

/// One command.
pub struct Command {
    pub name: &'static str,
    pub usage: &'static str,
    pub help: &'static str,
    /// Further lines of its own help.
    pub more: &'static str,
    pub run: fn(&mut Context<'_, '_>, &[&str]) -> Output,
}

/// All commands.
#[rustfmt::skip]
pub const COMMANDS: &[Command] = &[
    Command { name: "help", usage: "help [COMMAND]", help: "list commands, or explain one", more: "", run: help },
    Command { name: "when", usage: "when", help: "instructions retired and guest time", more: "", run: when },
    Command { name: "pt", usage: "pt ADDR", help: "walk the page tables for a linear address", more: PT_MORE, run: pt },
    Command { name: "xp", usage: "xp [/FMT] ADDR", help: "examine physical memory", more: FMT_MORE, run: examine::xp },
    Command { name: "xl", usage: "xl [/FMT] ADDR", help: "examine memory at a linear address", more: FMT_MORE, run: examine::xl },
    Command { name: "dis", usage: "dis [ADDR [COUNT]]", help: "disassemble at a linear address", more: DIS_MORE, run: examine::dis },
    Command { name: "regs", usage: "regs", help: "all registers of the selected vCPU", more: "", run: regs },
    Command { name: "cpus", usage: "cpus", help: "what each vCPU is doing", more: "", run: cpus },
];

const PT_MORE: &str = "Shows each level's entry and its flags; sets no accessed or dirty bit.\n";
const FMT_MORE: &str = "FMT as of gdb's x: a count, a format (x d u o t c a s i) and a size (b h w g).\n";
const DIS_MORE: &str =
    "Decodes in the present code size; without ADDR at CS:RIP, also where CS has a base.\n";

/// Runs a command line.
pub fn run(ctx: &mut Context<'_, '_>, line: &str) -> Result<String, String> {
    let mut words = line.split_whitespace();
    let Some(name) = words.next() else { return Ok(list()) };
    // `xp/8xb ADDR`, as people type it in gdb, is `xp /8xb ADDR`.
    let (name, glued) = match name.split_once('/') {
        Some((name, format)) => (name, Some(format!("/{format}"))),
        None => (name, None),
    };
    let args: Vec<&str> = glued.as_deref().into_iter().chain(words).collect();
    match COMMANDS.iter().find(|c| c.name == name) {
        Some(command) => (command.run)(ctx, &args).map_err(|e| match e {
            Error::Usage(why) => format!("{why}\nusage: {}", command.usage),
            Error::Nothing(why) => why,
        }),
        None => Err(format!("there is no command `{name}`: `help` lists them")),
    }
}

fn list() -> String {
    let line = |c: &Command| format!("{:<22} {}\n", c.usage, c.help);
    let mut text: String = COMMANDS.iter().map(line).collect();
    text += "ADDR: a number (0x.. or decimal) or a $register, with + and -.\n\
             gdb's breakpoints and memory commands take linear addresses, but $rip is the\n\
             offset in CS. Where CS has a base (real mode) the next instruction is at\n\
             $cs_base+$rip: use `dis`, or x/i $cs_base+$rip.\n\
             A 32-bit symbol file needs `set architecture i386:x86-64` before connecting.\n";
    text
}

fn help(_ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    match args {
        [] => Ok(list()),
        [name] => match COMMANDS.iter().find(|c| c.name == *name) {
            Some(c) => Ok(format!("usage: {}\n{}\n{}", c.usage, c.help, c.more)),
            None => Err(format!("there is no command `{name}`").into()),
        },
        _ => Err("one command name at most".into()),
    }
}

fn no_arguments(args: &[&str]) -> Result<(), String> {
    if args.is_empty() { Ok(()) } else { Err("this command takes no arguments".into()) }
}

fn when(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    no_arguments(args)?;
    let when = ctx.machine.when();
    let ns = when.time.0;
    Ok(format!("icount {}, guest time {}.{:09} s\n", when.icount, ns / 1_000_000_000, ns % 1_000_000_000))
}

fn pt(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let [text] = args else { return Err("one address is needed".into()) };
    let at = args::linear(ctx, text)?;
    let cpu = ctx.machine.vcpu(ctx.vcpu).ok_or("there is no such vCPU")?;
    Ok(format!("{}\n", pagewalk::walk(ctx.machine, cpu, at)))
}

fn regs(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    no_arguments(args)?;
    let cr8 = ctx.machine.cr8(ctx.vcpu);
    let cpu = ctx.machine.vcpu(ctx.vcpu).ok_or("there is no such vCPU")?;
    let mut text = String::new();
    let mut group: Option<Group> = None;
    let mut column = 0;
    for r in REGISTERS {
        if group != Some(r.group) || column == 4 || r.bits > 64 {
            if group.is_some() {
                text.push('\n');
            }
            column = 0;
        }
        group = Some(r.group);
        column += 1;
        let value = registers::read(cpu, cr8, r.source);
        text += &format!("{:>10} {value:0digits$x}", r.name, digits = r.bytes() * 2);
    }
    text.push('\n');
    Ok(text)
}

fn cpus(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    no_arguments(args)?;
    let current = ctx.machine.current();
    let line = |(i, cpu): (usize, &retrovisor_core::vcpu::Vcpu)| {
        let mark = if i == current { '*' } else { ' ' };
        let pc = ctx.machine.pc(i);
        format!("{mark}vCPU {i}: {}, {} code at {pc}\n", activity(cpu), mode_name(cpu))
    };
    Ok(ctx.machine.vm().vcpus.iter().enumerate().map(line).collect())
}

/// What a vCPU is doing, in words.
pub fn activity(cpu: &retrovisor_core::vcpu::Vcpu) -> &'static str {
    use retrovisor_core::vcpu::Activity;
    match cpu.activity {
        Activity::Running => "running",
        Activity::Halted => "halted",
        Activity::WaitForSipi => "waiting for SIPI",
        Activity::Shutdown => "shut down",
    }
}

/// The execution mode of a vCPU, in words.
pub fn mode_name(cpu: &retrovisor_core::vcpu::Vcpu) -> String {
    let mode = &cpu.mode;
    match () {
        _ if mode.real() => "real-mode".into(),
        _ if mode.v86 => "virtual-8086".into(),
        _ if mode.long && mode.bits != 64 => format!("{}-bit compatibility ring {}", mode.bits, mode.cpl),
        _ => format!("{}-bit ring {}", mode.bits, mode.cpl),
    }
}

/// Vector of an exception given by number or mnemonic ("14", "#PF", "pf").
pub fn vector(text: &str) -> Option<u8> {
    if let Ok(n) = text.parse::<u8>() {
        return (n < 32).then_some(n);
    }
    let wanted = text.trim_start_matches('#');
    (0..32).find(|v| exception::name(*v).trim_start_matches('#').eq_ignore_ascii_case(wanted))
}
