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

/// A command's text, or what is wrong with how it was called.
pub type Output = Result<String, String>;

/// One command.
pub struct Command {
    pub name: &'static str,
    pub usage: &'static str,
    pub help: &'static str,
    pub run: fn(&mut Context<'_, '_>, &[&str]) -> Output,
}

/// All commands.
#[rustfmt::skip]
pub const COMMANDS: &[Command] = &[
    Command { name: "help", usage: "help [COMMAND]", help: "list commands, or explain one", run: help },
    Command { name: "when", usage: "when", help: "the present point: instructions retired and guest time", run: when },
    Command { name: "pt", usage: "pt ADDR", help: "walk the page tables for a linear address", run: pt },
    Command { name: "xp", usage: "xp [/FMT] ADDR", help: "examine physical memory; FMT as of gdb's x: count, then x d u o t c a s i, then b h w g", run: examine::xp },
    Command { name: "xl", usage: "xl [/FMT] ADDR", help: "examine memory at a linear address (gdb's x does the same)", run: examine::xl },
    Command { name: "dis", usage: "dis [ADDR [COUNT]]", help: "disassemble at a linear address in the vCPU's present code size; without ADDR at CS:RIP, also where CS has a base", run: examine::dis },
    Command { name: "regs", usage: "regs", help: "all registers of the selected vCPU, hidden parts included", run: regs },
    Command { name: "cpus", usage: "cpus", help: "what each vCPU is doing", run: cpus },
];

/// Runs a command line.
pub fn run(ctx: &mut Context<'_, '_>, line: &str) -> Output {
    let mut words = line.split_whitespace();
    let Some(name) = words.next() else { return help(ctx, &[]) };
    // `xp/8xb ADDR`, as people type it in gdb, is `xp /8xb ADDR`.
    let (name, glued) = match name.split_once('/') {
        Some((name, format)) => (name, Some(format!("/{format}"))),
        None => (name, None),
    };
    let args: Vec<&str> = glued.as_deref().into_iter().chain(words).collect();
    match COMMANDS.iter().find(|c| c.name == name) {
        Some(command) => (command.run)(ctx, &args).map_err(|why| format!("{why}\nusage: {}", command.usage)),
        None => Err(format!("there is no command `{name}`: `help` lists them")),
    }
}

fn help(_ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let line = |c: &Command| format!("{:<20} {}\n", c.usage, c.help);
    match args {
        [] => {
            let mut text: String = COMMANDS.iter().map(line).collect();
            text += "Addresses: a number (0x.. or decimal) or $register, with + and -.\n\
                     Breakpoint addresses and gdb's memory commands are linear; $rip is the offset in CS, so where CS \
                     has a base\n(real mode) the next instruction is at $cs_base+$rip: use `dis`, or x/i \
                     $cs_base+$rip.\n";
            Ok(text)
        }
        [name] => match COMMANDS.iter().find(|c| c.name == *name) {
            Some(c) => Ok(format!("usage: {}\n{}\n", c.usage, c.help)),
            None => Err(format!("there is no command `{name}`")),
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
    let cpu = ctx.machine.vcpu(ctx.vcpu).ok_or("no such vCPU")?;
    Ok(format!("{}\n", pagewalk::walk(ctx.machine, cpu, at)))
}

fn regs(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    no_arguments(args)?;
    let cr8 = ctx.machine.cr8(ctx.vcpu);
    let cpu = ctx.machine.vcpu(ctx.vcpu).ok_or("no such vCPU")?;
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
