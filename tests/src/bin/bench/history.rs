//! Going backwards in a long run: a boot of Debian's amd64 kernel and a busy shell session, kept as history, then looked at
//! from its end and from points anywhere. What keeping it costs, and how long each way back takes.

use crate::options::Options;
use retrovisor_core::engine::hooks::{self, Hooks, WatchAddr, WatchKind};
use retrovisor_core::input::NoInput;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::{Gpa, Gva, Icount};
use retrovisor_replay::{Mailbox, Recording, Timeline};
use retrovisor_tests::guests::{self, Kernel};
use retrovisor_tests::initramfs;
use retrovisor_tests::script::{Screen, Script};
use retrovisor_tests::ticker::Random;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Points looked at for each figure.
const POINTS: usize = 50;

/// The session: what is wanted of /proc/kallsyms, then work until there are instructions enough.
fn init(scale: u64) -> String {
    format!(
        "#!/bin/sh\nmount -t proc proc /proc\n\
         grep -wF -e start_kernel -e boot_command_line -e jiffies_64 -e saved_command_line /proc/kallsyms\n\
         i=0; while [ $i -lt {scale} ]; do i=$((i+1)); ls -lR /proc/self >/dev/null 2>&1; ps >/dev/null\n\
         dd if=/dev/zero bs=1k count=2048 2>/dev/null | sha256sum >/dev/null; (echo $i); done\n\
         echo the-end; while true; do sleep 1; done\n"
    )
}

/// A machine with the session, and what it prints.
struct Guest {
    config: MachineConfig,
    images: Images,
}

impl Guest {
    fn vm(&self, recording: Option<&Recording>) -> (Vm, Screen) {
        let screen = Screen::default();
        let script = Script::new(NoInput, &[], screen.clone());
        let (config, images) = (self.config.clone(), self.images.clone());
        let vm = match recording {
            None => Vm::new(config, images, Box::new(script), Box::new(screen.clone())),
            Some(r) => Vm::new(config, images, Box::new(r.port(script)), Box::new(r.output(screen.clone()))),
        };
        (vm.expect("the kernel loads"), screen)
    }
}

/// Runs until the session is over.
fn to_end(
    watch: Watch,
    screen: &Screen,
    run: &mut dyn FnMut(Option<Icount>) -> VmExit,
) -> Result<Duration, String> {
    let began = watch.now();
    let mut at = 0;
    while !screen.text().contains("the-end") {
        at += 50_000_000;
        match run(Some(Icount(at))) {
            VmExit::Reached => {}
            other => return Err(format!("the guest ended: {other:?}\n{}", screen.text())),
        }
    }
    Ok(watch.now() - began)
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

/// Times what it is given: by a clock on the wall, or by what this thread computes.
#[derive(Clone, Copy)]
struct Watch {
    cpu: bool,
}

impl Watch {
    fn now(self) -> Duration {
        let clock = if self.cpu { ClockId::ThreadCPUTime } else { ClockId::Monotonic };
        let t = clock_gettime(clock);
        Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
    }

    fn time<T>(self, f: impl FnOnce() -> T) -> (Duration, T) {
        let began = self.now();
        let got = f();
        (self.now() - began, got)
    }
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |q: usize| times.get((times.len() * q / 100).min(times.len() - 1)).map_or(0.0, |d| ms(*d));
    println!("{what:<52} p50 {:>8.2} ms  p95 {:>8.2} ms  most {:>8.2} ms", at(50), at(95), at(100));
}

/// Measures and prints. False if something went wrong.
pub fn history(o: &Options) -> Result<bool, String> {
    let missing = |e: guests::Missing| e.to_string();
    let kernel = Kernel::Amd64;
    let busybox = guests::busybox(kernel.arch()).map_err(missing)?;
    let images = Images {
        kernel: Some(guests::bzimage(kernel).map_err(missing)?),
        initrd: Some(initramfs::with_init(&busybox, &init(o.scale))),
        cmdline: "console=ttyS0 nokaslr quiet".into(),
        ..Images::default()
    };
    let guest = Guest { config: MachineConfig::default(), images };
    let w = Watch { cpu: o.cpu_time };
    let plain = {
        let (mut vm, screen) = guest.vm(None);
        let took = to_end(w, &screen, &mut |until| vm.run(until))?;
        println!("without history: {:.1} s for {} instructions", took.as_secs_f64(), vm.when().icount);
        took
    };
    let recording = Recording::unwritten(&guest.config);
    let (mut vm, screen) = guest.vm(Some(&recording));
    let (began, mut t) = w.time(|| Timeline::live(&mut vm, recording, Mailbox::new(), o.history << 20));
    let took = to_end(w, &screen, &mut |until| t.run(&mut vm, until))? + began;
    println!(
        "with history:    {:.1} s, {:.3} times; {} checkpoints in {} MiB",
        took.as_secs_f64(),
        took.as_secs_f64() / plain.as_secs_f64(),
        t.history().len(),
        t.history().bytes() >> 20,
    );
    let text = screen.text();
    let address = |name: &str| {
        let line = text.lines().find(|l| l.split_whitespace().nth(2) == Some(name));
        let address = line.and_then(|l| u64::from_str_radix(l.split_whitespace().next()?, 16).ok());
        address.ok_or_else(|| format!("no {name} in the guest's kallsyms"))
    };
    backwards(w, &mut vm, &mut t)?;
    searches(w, &mut vm, &mut t, &address)?;
    Ok(true)
}

fn backwards(w: Watch, vm: &mut Vm, t: &mut Timeline) -> Result<(), String> {
    let fail = |e: retrovisor_replay::TimelineError| e.to_string();
    let end = vm.when().icount;
    let (first, done) = w.time(|| t.reverse_step(vm, 0));
    done.map_err(fail)?;
    println!("{:<52} {:>12.2} ms", "reverse-stepi at the end, the first", ms(first));
    let mut steps = Vec::new();
    for _ in 0..POINTS {
        let (took, done) = w.time(|| t.reverse_step(vm, 0));
        done.map_err(fail)?;
        steps.push(took);
    }
    report("reverse-stepi at the end, the next", steps);
    let mut random = Random(0x5eed);
    let (mut seeks, mut steps) = (Vec::new(), Vec::new());
    for _ in 0..POINTS {
        let to = Icount(random.below(end.0));
        let (took, done) = w.time(|| t.seek(vm, to));
        done.map_err(fail)?;
        seeks.push(took);
        let (took, done) = w.time(|| t.reverse_step(vm, 0));
        done.map_err(fail)?;
        steps.push(took);
    }
    report("seek to anywhere", seeks);
    report("reverse-stepi there", steps);
    Ok(())
}

fn searches(
    w: Watch,
    vm: &mut Vm,
    t: &mut Timeline,
    address: &dyn Fn(&str) -> Result<u64, String>,
) -> Result<(), String> {
    let fail = |e: retrovisor_replay::TimelineError| e.to_string();
    let live = Icount(u64::MAX);
    t.seek(vm, live).map_err(fail)?;
    let breakpoint = Hooks { breakpoints: [address("start_kernel")?].into(), ..Hooks::default() };
    let watch = |name: &str| -> Result<Hooks, String> {
        let addr = WatchAddr::Virtual(Gva(address(name)?));
        Ok(Hooks { watches: vec![hooks::Watch { addr, len: 8, kind: WatchKind::Write }], ..Hooks::default() })
    };
    for (what, hooks) in [
        ("reverse-continue to start_kernel", breakpoint),
        ("reverse-continue to the last write of saved_command_line", watch("saved_command_line")?),
        ("reverse-continue to the last write of jiffies_64", watch("jiffies_64")?),
    ] {
        vm.hooks = hooks;
        let (took, found) = w.time(|| t.reverse_continue(vm));
        let found = found.map_err(fail)?;
        println!("{what:<60} {:>8.1} ms, at {}", ms(took), found.map_or(Icount(0), |h| h.at));
        vm.hooks = Hooks::default();
        let (took, done) = w.time(|| t.seek(vm, live));
        done.map_err(fail)?;
        println!("{:<60} {:>8.1} ms", "  and back to the head", ms(took));
    }
    for name in ["boot_command_line", "saved_command_line", "jiffies_64"] {
        let gva = Gva(address(name)?);
        let gpa = vm.ctx(0).and_then(|c| c.translate_quiet(gva)).unwrap_or(Gpa(0));
        let (took, found) = w.time(|| t.last_write(vm, gpa, 8));
        let at = found.map_err(fail)?.unwrap_or(Icount(0));
        println!("{:<60} {:>8.1} ms, at {at}", format!("lastwrite {name}"), ms(took));
    }
    Ok(())
}
