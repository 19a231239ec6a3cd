//! Text commands about the machine (gdb's `monitor`, the terminal UI's prompt): a table of name, usage, help and
//! function. Commands look and give text back; to move the machine in its history they say where to.

mod args;
mod branch;
mod examine;
mod stats;
mod time;

use crate::inspect::Inspect;
use crate::pagewalk;
use crate::registers::{self, Group, REGISTERS};
use crate::session::Resume;
use crate::travel::Marks;
use retrovisor_core::exception;
use retrovisor_replay::Timeline;

pub use args::{Format, address};
pub use time::point;

/// What a command works on.
pub struct Context<'a, 'vm> {
    pub machine: &'a mut Inspect<'vm>,
    /// The vCPU selected by the client.
    pub vcpu: usize,
    /// Exceptions the client stops at, a bit a vector; `catch` changes it.
    pub exceptions: &'a mut u32,
    /// The machine's history, if one is kept.
    pub timeline: Option<&'a mut Timeline>,
    pub marks: &'a mut Marks,
    /// Where the command wants the machine to go.
    pub go: Option<Resume>,
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
    Command { name: "when", usage: "when", help: "instructions retired, guest time, place in the history", more: "", run: time::when },
    Command { name: "seek", usage: "seek TO", help: "go to a point of the history", more: time::SEEK_MORE, run: time::seek },
    Command { name: "back", usage: "back WHAT", help: "go back to before the last exception, interrupt, ...", more: time::SEARCH_MORE, run: time::back },
    Command { name: "next", usage: "next WHAT", help: "run to the next exception, interrupt, ...", more: time::SEARCH_MORE, run: time::next },
    Command { name: "mark", usage: "mark NAME [TO]", help: "name a point", more: time::MARK_MORE, run: time::mark },
    Command { name: "marks", usage: "marks", help: "list the marks", more: "", run: time::marks },
    Command { name: "unmark", usage: "unmark NAME", help: "forget a mark", more: "", run: time::unmark },
    Command { name: "goto", usage: "goto NAME", help: "go to a mark", more: "", run: time::goto },
    Command { name: "branch", usage: "branch [N]", help: "go on by itself from here, or go to branch N", more: branch::MORE, run: branch::branch },
    Command { name: "branches", usage: "branches", help: "list the branches", more: "", run: branch::branches },
    Command { name: "unbranch", usage: "unbranch N", help: "forget a branch", more: "", run: branch::unbranch },
    Command { name: "save", usage: "save FILE.rvt", help: "keep this run as a trace", more: branch::SAVE_MORE, run: branch::save },
    Command { name: "lastwrite", usage: "lastwrite [/p] ADDR [LEN]", help: "who wrote there last", more: time::LASTWRITE_MORE, run: time::lastwrite },
    Command { name: "events", usage: "events [N] [KIND...]", help: "the inputs around this point", more: time::EVENTS_MORE, run: time::events },
    Command { name: "history", usage: "history", help: "how far back, checkpoints, memory", more: "", run: time::history },
    Command { name: "pt", usage: "pt ADDR", help: "walk the page tables for a linear address", more: PT_MORE, run: pt },
    Command { name: "xp", usage: "xp [/FMT] ADDR", help: "examine physical memory", more: FMT_MORE, run: examine::xp },
    Command { name: "xl", usage: "xl [/FMT] ADDR", help: "examine memory at a linear address", more: FMT_MORE, run: examine::xl },
    Command { name: "dis", usage: "dis [ADDR [COUNT]]", help: "disassemble at a linear address", more: DIS_MORE, run: examine::dis },
    Command { name: "regs", usage: "regs", help: "all registers of the selected vCPU", more: "", run: regs },
    Command { name: "cpus", usage: "cpus", help: "what each vCPU is doing", more: "", run: cpus },
    Command { name: "catch", usage: "catch [VECTOR...|off]", help: "stop before exceptions are delivered", more: CATCH_MORE, run: catch },
    Command { name: "stats", usage: "stats", help: "the engine, translator and MMU in numbers", more: STATS_MORE, run: stats::stats },
    Command { name: "blocks", usage: "blocks [ADDR]", help: "translated blocks, or those at an address", more: BLOCKS_MORE, run: stats::blocks },
];

const PT_MORE: &str = "Shows each level's entry and its flags; sets no accessed or dirty bit.\n";
const FMT_MORE: &str = "FMT as of gdb's x: a count, a format (x d u o t c a s i) and a size (b h w g).\n";
const CATCH_MORE: &str =
    "VECTOR is a number below 32 or a mnemonic (#PF, pf); without any, lists the present ones.\n";
const STATS_MORE: &str = "Instructions become host instructions as they are (identical), sequences of the translator's own\n\
     (emitted), or calls of the interpreter (called). Counts begin with this process, not with the guest.\n";
const BLOCKS_MORE: &str = "Without ADDR their number by mode, and the largest. With ADDR the host code of each block there,\n\
     guest instruction by guest instruction; host addresses are offsets in the code cache.\n";
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
    let line = |c: &Command| format!("{:<25} {}\n", c.usage, c.help);
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

fn catch(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let mut mask = *ctx.exceptions;
    for arg in args {
        mask = match (*arg, vector(arg)) {
            ("off", _) => 0,
            (_, Some(v)) => mask | 1 << v,
            (other, None) => return Err(format!("`{other}` is no exception").into()),
        };
    }
    *ctx.exceptions = mask;
    let caught = (0..32).filter(|v| mask >> v & 1 != 0).map(|v| format!("{} ({v})", exception::name(v)));
    let list = caught.collect::<Vec<_>>().join(", ");
    Ok(format!("stopping before: {}\n", if list.is_empty() { "nothing" } else { &list }))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{COUNT, machine};
    use retrovisor_core::input::NoInput;
    use retrovisor_core::machine::vm::Vm;

    fn ask_with(vm: &mut Vm, exceptions: &mut u32, line: &str) -> Result<String, String> {
        let (machine, marks) = (&mut Inspect::new(vm), &mut Marks::new());
        run(&mut Context { machine, vcpu: 0, exceptions, timeline: None, marks, go: None }, line)
    }

    /// Runs the lines on one machine; the last one's answer.
    fn ask(lines: &[&str]) -> Result<String, String> {
        let mut vm = machine(COUNT, Box::new(NoInput));
        let mut exceptions = 0;
        let mut answer = Ok(String::new());
        for line in lines {
            answer = ask_with(&mut vm, &mut exceptions, line);
        }
        answer
    }

    #[test]
    fn every_command_is_in_the_list_and_explains_itself() {
        let list = ask(&["help"]).unwrap();
        for c in COMMANDS {
            assert!(list.contains(c.usage), "{}", c.name);
            assert!(ask(&[&format!("help {}", c.name)]).unwrap().contains(c.help));
        }
        assert!(list.lines().all(|line| line.len() <= 80), "the list fits 80 columns");
        assert_eq!(ask(&[""]).unwrap(), list);
    }

    #[test]
    fn memory_is_shown_in_the_format_asked_for() {
        assert_eq!(ask(&["xp/2xb 0x100020"]).unwrap(), "0x100020:\t0x40\t0xa3\n");
        assert_eq!(ask(&["xp /1xw 0x100000"]).unwrap(), "0x100000:\t0x1badb002\n");
        assert_eq!(ask(&["xl/1uh $rip+1-1"]).unwrap(), "0x100020:\t41792\n");
        let dis = ask(&["dis"]).unwrap();
        assert!(dis.lines().next().unwrap().ends_with("inc eax"), "{dis}");
        assert_eq!(ask(&["dis $rip 2"]).unwrap().lines().count(), 2);
        assert_eq!(ask(&["xp/2i 0x100020"]).unwrap(), ask(&["dis 0x100020 2"]).unwrap());
        // Memory ends at 4 MiB: what is there is shown, and what is not is said.
        let edge = ask(&["xp/2xw 0x3ffffc"]).unwrap();
        assert_eq!(edge, "0x3ffffc:\t0x00000000\nphysical address 0x400000 is neither RAM nor ROM\n");
    }

    #[test]
    fn errors_explain_themselves() {
        for (line, why) in [
            ("frob", "there is no command `frob`"),
            ("pt", "one address is needed\nusage: pt ADDR"),
            ("pt 0xzz", "neither a number"),
            ("xp $foo", "there is no register $foo"),
            ("xp/q 0", "no format letter"),
            ("xp 0x400000", "neither RAM nor ROM"),
            ("when now", "takes no arguments"),
            ("catch 32", "`32` is no exception"),
        ] {
            let error = ask(&[line]).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn catch_keeps_its_list_until_off() {
        assert_eq!(
            ask(&["catch #pf 6", "catch GP", "catch"]).unwrap(),
            "stopping before: #UD (6), #GP (13), #PF (14)\n"
        );
        assert_eq!(ask(&["catch 14", "catch off"]).unwrap(), "stopping before: nothing\n");
    }

    /// Runs the counting loop on `engine`, then asks.
    fn after_running(engine: retrovisor_core::engine::Engine, line: &str) -> Result<String, String> {
        let mut vm = machine(COUNT, Box::new(NoInput));
        vm.engine = engine;
        vm.run(Some(retrovisor_core::Icount(3000)));
        ask_with(&mut vm, &mut 0, line)
    }

    #[test]
    fn stats_tell_which_engine_did_what() {
        use retrovisor_core::engine::Engine;
        assert!(ask(&["stats"]).unwrap().contains("translator: not used so far"));
        let interp = after_running(Engine::Interp, "stats").unwrap();
        assert!(interp.contains("vCPU 0: 32-bit ring 0 code, on the interpreter\n"), "{interp}");
        assert!(interp.contains("translator: not used so far"), "{interp}");
        let jit = after_running(Engine::Jit, "stats").unwrap();
        for part in [
            "vCPU 0: 32-bit ring 0 code, on the translator\n",
            "blocks alive",
            "bytes of host code each",
            "called 0.0%",
            "0 written over, 0 for breakpoints, 0 evicted",
            "links made: 1, ",
            "TLB misses",
            "1 ASIDs",
            "0 traced pages",
        ] {
            assert!(jit.contains(part), "{part} is missing:\n{jit}");
        }
    }

    #[test]
    fn blocks_are_counted_and_shown_with_their_host_code() {
        use retrovisor_core::engine::Engine;
        assert_eq!(ask(&["blocks"]).unwrap_err(), "the translator was not used so far");
        let all = after_running(Engine::Jit, "blocks").unwrap();
        // The loop's first miss is served in its middle: nothing is entered there.
        assert!(all.starts_with("1 blocks, 32-bit, CPL 0, fast es ss ds fs gs\n"), "{all}");
        assert!(all.contains("block at 0x100020, gpa 0x100020 ("), "{all}");
        // The address of the store leads to the block it is in the middle of.
        let one = after_running(Engine::Jit, "blocks 0x100021").unwrap();
        let guest: Vec<&str> = one.lines().filter(|l| l.starts_with("  0x")).collect();
        assert_eq!(guest.len(), 3, "{one}");
        for (line, insn) in guest.iter().zip(["inc eax", "mov [0x200000], eax", "jmp"]) {
            assert!(line.contains(insn), "{one}");
        }
        // Guest EAX is host R14D; the increment is below its instruction and before the next.
        let inc = one.lines().skip_while(|l| !l.contains("inc eax")).skip(1);
        let mut inc = inc.take_while(|l| l.starts_with("      0x"));
        assert!(inc.any(|l| l.ends_with("inc r14d")), "{one}");
        assert!(one.contains("off the straight path:"), "{one}");
        let none = after_running(Engine::Jit, "blocks 0x100028").unwrap_err();
        assert_eq!(none, "no translated block contains 0x100028");
        assert!(after_running(Engine::Jit, "blocks 1 2").unwrap_err().contains("one address at most"));
    }

    #[test]
    fn a_block_that_straddles_two_pages_is_found_from_both() {
        // At 0x100020 a jump to 0x100ffe, where `mov eax, 0x11223344; jmp 0x100020` is.
        let mut code = vec![0xe9, 0xd9, 0x0f, 0, 0];
        code.resize(0xfde, 0x90);
        code.extend([0xb8, 0x44, 0x33, 0x22, 0x11, 0xe9, 0x18, 0xf0, 0xff, 0xff]);
        for at in ["0x100fff", "0x101002"] {
            let mut vm = machine(&code, Box::new(NoInput));
            vm.run(Some(retrovisor_core::Icount(3000)));
            assert_eq!(vm.vcpus[0].gpr[0], 0x1122_3344);
            let one = ask_with(&mut vm, &mut 0, &format!("blocks {at}")).unwrap();
            assert!(one.starts_with("block at 0x100ffe, ") && one.matches("block at").count() == 1, "{one}");
            assert!(
                one.contains(": 1 instructions in 5 bytes") && one.contains("mov eax, 0x11223344"),
                "{one}"
            );
        }
    }

    #[test]
    fn registers_and_vcpus_are_listed() {
        let regs = ask(&["regs"]).unwrap();
        assert!(regs.contains("rip 0000000000100020") && regs.contains("idtr_limit"), "{regs}");
        assert_eq!(ask(&["cpus"]).unwrap(), "*vCPU 0: running, 32-bit ring 0 code at 0x100020\n");
        assert_eq!(ask(&["when"]).unwrap(), "icount 0, guest time 0.000000000 s\n");
    }
}
