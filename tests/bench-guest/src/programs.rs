//! The table of programs: name, group, code, and how much of it is scale 100 (about a tenth of a second on a host of
//! the 2020s).

use crate::console::Console;
use crate::{control, float, grow, integer, memory, os, simd, smc, x87};

/// A program: does `n` units of its work and returns a checksum of the results.
pub struct Program {
    pub name: &'static str,
    pub group: &'static str,
    run: fn(u64) -> u64,
    /// Units at scale 100.
    units: u64,
}

const fn p(group: &'static str, name: &'static str, units: u64, run: fn(u64) -> u64) -> Program {
    Program { name, group, run, units }
}

/// Every program of the suite, by group.
pub const PROGRAMS: &[Program] = &[
    p("integer", "sort", 400, integer::sort),
    p("integer", "sieve", 400, integer::sieve),
    p("integer", "crc", 2500, integer::crc),
    p("integer", "sha256", 6000, integer::sha256),
    p("integer", "lz", 550, integer::lz),
    p("integer", "matrix", 1800, integer::matrix),
    p("integer", "list", 40_000, integer::list),
    p("integer", "mix", 26_000, integer::mix),
    p("integer", "chase", 60_000, memory::chase),
    p("control", "interp", 2400, control::interp),
    p("control", "virtual", 8000, control::virtual_calls),
    p("control", "fib", 1100, control::fib),
    p("double", "nbody", 1000, float::nbody),
    p("double", "mandel", 300, float::mandel),
    p("sse2", "sse-int", 160_000, simd::integer),
    p("sse2", "sse-dbl", 120_000, simd::double),
    p("x87", "x87-arith", 4000, x87::arith),
    p("x87", "x87-mem", 400_000, x87::mem),
    p("copy", "copy", 2000, memory::copy),
    p("copy", "fill", 2000, memory::fill),
    p("rep", "movsb", 2000, memory::movsb),
    p("rep", "movsq", 2000, memory::movsq),
    p("rep", "stosb", 2000, memory::stosb),
    p("rep", "scasb", 1000, memory::scasb),
    p("smc", "smc-call", 100, smc::call),
    p("smc", "smc-next", 150, smc::next),
    p("os", "getpid", 8000, os::getpid),
    p("os", "pipe", 20_000, os::pipe),
    p("os", "mmap", 500, os::mmap),
    p("os", "fork", 1000, os::fork),
    p("os", "exec", 100, os::exec),
    p("os", "signal", 100_000, os::signal),
    p("os", "mprotect", 15_000, os::mprotect),
    p("os", "file", 6000, os::file),
];

/// A program to run, with its parameter if it has one (`ring:20`).
pub struct Task {
    name: String,
    parameter: u64,
    pub run: fn(&mut Context<'_>),
    program: Option<&'static Program>,
}

/// What a task needs to run and to report.
pub struct Context<'a> {
    pub name: &'a str,
    pub parameter: u64,
    /// Percent of the usual work.
    pub scale: u64,
    console: &'a Console,
    program: Option<&'static Program>,
}

impl Context<'_> {
    /// Runs `body` between the two lines that are timed.
    pub fn timed(&self, name: &str, body: impl FnOnce() -> u64) {
        self.console.line(&format!("start {name}"));
        let (checksum, nanos) = self.console.clocked(body);
        let own = nanos.map_or(String::new(), |n| format!(" {n}"));
        self.console.line(&format!("end {name} {checksum:x}{own}"));
    }

    /// `units` of scale 100 at this run's scale; at least one.
    pub fn scaled(&self, units: u64) -> u64 {
        (units * self.scale / 100).max(1)
    }
}

impl Task {
    pub fn context<'a>(&'a self, scale: u64, console: &'a Console) -> Context<'a> {
        Context { name: &self.name, parameter: self.parameter, scale, console, program: self.program }
    }
}

/// The suite, in order.
pub fn all() -> Vec<Task> {
    PROGRAMS.iter().map(task).collect()
}

fn task(program: &'static Program) -> Task {
    Task { name: program.name.to_owned(), parameter: 0, run: run_program, program: Some(program) }
}

fn run_program(c: &mut Context<'_>) {
    if let Some(p) = c.program {
        c.timed(c.name, || (p.run)(c.scaled(p.units)));
    }
}

/// A program of the suite, or one with a parameter: `ring:PROCESSES`, `code:KIB`.
pub fn find(name: &str) -> Option<Task> {
    let Some((kind, parameter)) = name.split_once(':') else {
        return PROGRAMS.iter().find(|p| p.name == name).map(task);
    };
    let run = match kind {
        "ring" => grow::ring,
        "code" => grow::code,
        _ => return None,
    };
    Some(Task { name: name.to_owned(), parameter: parameter.parse().ok()?, run, program: None })
}
