//! The guest benchmark of `cargo xtask bench`: one static program that runs as the init of a Linux kernel and, the very
//! same file, as a normal process of the host.
//!
//! As init it measures nothing itself, because a guest's clock need not follow the host's. Before and after each program
//! it prints a line (`start NAME`, `end NAME CHECKSUM`), and whoever started the machine takes the time as the lines come
//! in. A process of the host appends the nanoseconds it took, which no reader's delay blurs.
//! The checksum is a function of program and scale alone, so it also tells whether the machine computed correctly.
//!
//! Arguments: `list`, or `scale=PERCENT reps=N run=NAME,NAME,... [clock=cpu]`.
#![allow(
    unsafe_code,
    reason = "guest code, no part of the product: system calls, inline assembly and code written at run time are what it measures"
)]

mod code;
mod console;
mod control;
mod float;
mod grow;
mod integer;
mod memory;
mod os;
mod programs;
mod simd;
mod smc;
mod sys;
mod x87;

use console::Console;
use programs::Task;

/// What the command line asked for.
struct Options {
    scale: u64,
    reps: u64,
    tasks: Vec<Task>,
}

fn options(args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut o = Options { scale: 100, reps: 1, tasks: programs::all() };
    for arg in args {
        let (key, value) = arg.split_once('=').unwrap_or((&arg, ""));
        let number = || value.parse().map_err(|_| format!("`{arg}`: no number"));
        match key {
            "scale" => o.scale = number()?,
            "reps" => o.reps = number()?,
            "run" => {
                let find = |n: &str| programs::find(n).ok_or_else(|| format!("no program `{n}`"));
                o.tasks = value.split(',').map(find).collect::<Result<_, _>>()?;
            }
            // The kernel hands init whatever of its own command line it does not know.
            _ => {}
        }
    }
    Ok(o)
}

fn main() {
    let mut args = std::env::args().skip(1).peekable();
    match args.peek().map(String::as_str) {
        Some(os::NOTHING) => return,
        Some("list") => {
            programs::PROGRAMS.iter().for_each(|p| println!("{} {}", p.name, p.group));
            return;
        }
        _ => {}
    }
    let init = std::process::id() == 1;
    let console = if init {
        sys::mount_tmpfs(os::scratch());
        Console::Port
    } else {
        sys::pin_to_one_cpu();
        if std::env::args().any(|a| a == "clock=cpu") { Console::StdoutCpu } else { Console::Stdout }
    };
    match options(args) {
        Ok(o) => run(&o, &console),
        Err(e) => console.line(&format!("error {e}")),
    }
    if init {
        sys::power_off();
    }
}

fn run(o: &Options, console: &Console) {
    console.line("ready");
    for _ in 0..o.reps {
        for task in &o.tasks {
            (task.run)(&mut task.context(o.scale, console));
        }
    }
    console.line("done");
}
