//! Commands about time: where the machine is in its history, ways to other points, marks, who wrote last, and the inputs
//! around. A command that moves the machine says where to in `Context::go`; the session goes there.

use super::args::{self, number};
use super::{Context, Error, Output, no_arguments};
use crate::inspect::Inspect;
use crate::session::Resume;
use crate::travel::{self, LastWrite, Sought, TimelineView};
use retrovisor_core::engine::hooks::Wanted;
use retrovisor_core::input::When;
use retrovisor_core::{Gpa, GuestTime, Gva, Icount};
use retrovisor_replay::format::describe::KINDS;
use retrovisor_replay::{Record, Timeline, What};

pub const SEEK_MORE: &str = "TO: an icount, +N or -N instructions from here, a share such as 50%, a guest time such as 1.5s,\n\
     20ms, 7us, 3ns, or start, end, live (the newest point).\n";
pub const MARK_MORE: &str = "Without TO (see `help seek`; no guest time here) this point.\n";
pub const LASTWRITE_MORE: &str = "LEN bytes (8 if not given). /p: ADDR is a physical address. Devices' writes and accessed and dirty bits\n\
     of page walks count, at the instruction that caused them. The machine stays where it is.\n";
pub const SEARCH_MORE: &str = "WHAT: exception [VECTOR], interrupt [VECTOR], io [PORT], mmio [PHYSICAL ADDRESS], cr3, cpl. VECTOR of an\n\
     exception is a number or a mnemonic (14, #PF). `back` ends before it happens, `next` after it, but before\n\
     an exception. Breakpoints do not count.\n";
pub const EVENTS_MORE: &str =
    "The N inputs (10 if not given) before this point and after it. KIND: as in `retrovisor trace events`.\n";

/// Bytes `lastwrite` looks at if not told otherwise, and at most.
const WORD: u64 = 8;
const MOST: u64 = 4096;

pub const NONE: &str = "no history is kept: it was switched off (--history 0, --engine lockstep)";

/// A point in words.
pub fn point(when: When) -> String {
    let ns = when.time.0;
    format!("icount {}, guest time {}.{:09} s", when.icount, ns / 1_000_000_000, ns % 1_000_000_000)
}

fn view(ctx: &Context<'_, '_>) -> Result<TimelineView, Error> {
    let timeline = ctx.timeline.as_deref().ok_or_else(|| Error::Nothing(NONE.into()))?;
    Ok(TimelineView::of(timeline, ctx.machine.vm(), ctx.marks))
}

/// `when`
pub fn when(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    no_arguments(args)?;
    let mut text = format!("{}\n", point(ctx.machine.when()));
    if let Ok(v) = view(ctx) {
        let at = v.thousandths(v.here.icount);
        let place = match v.in_past {
            false => "at the newest point".to_owned(),
            true => format!("in the past, {} instructions before the newest point", ahead(&v)),
        };
        text += &format!("{place}; {}.{}% of the history\n", at / 10, at % 10);
        let here = v.marks.iter().filter(|(_, at)| **at == v.here.icount);
        text += &here.map(|(name, _)| format!("mark `{name}`\n")).collect::<String>();
    }
    Ok(text)
}

fn ahead(v: &TimelineView) -> u64 {
    v.end.icount.0.saturating_sub(v.here.icount.0)
}

/// `seek TO`
pub fn seek(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let [text] = args else { return Err("one point is needed".into()) };
    let v = view(ctx)?;
    ctx.go = Some(match destination(&v, text)? {
        To::Icount(to) => Resume::Seek { to },
        To::Time(to) => Resume::SeekTime { to },
    });
    Ok(String::new())
}

/// A point somebody names.
enum To {
    Icount(Icount),
    Time(GuestTime),
}

fn destination(v: &TimelineView, text: &str) -> Result<To, String> {
    let wrong =
        || format!("`{text}` is no point: an icount, +N, -N, N%, a time (1.5s, 20ms), start, end or live");
    let here = v.here.icount.0;
    Ok(To::Icount(Icount(match text {
        "start" => v.start.unwrap_or(v.here.icount).0,
        "end" | "live" => u64::MAX,
        _ => match text.split_at_checked(1) {
            Some(("+", n)) => here.saturating_add(number(n).ok_or_else(wrong)?),
            Some(("-", n)) => here.saturating_sub(number(n).ok_or_else(wrong)?),
            _ => match text.strip_suffix('%') {
                Some(share) => v.portion(args::scaled(share, 10_000).ok_or_else(wrong)?).0,
                None => match number(text) {
                    Some(n) => n,
                    None => return args::time(text).map(To::Time).ok_or_else(wrong),
                },
            },
        },
    })))
}

/// `mark NAME [TO]`
pub fn mark(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let here = ctx.machine.icount();
    let (name, at) = match args {
        [name] => (*name, here),
        [name, to] => match destination(&view(ctx)?, to)? {
            To::Icount(at) => (*name, at.min(view(ctx)?.end.icount)),
            To::Time(_) => return Err("a mark is put at an icount: `seek` there first".into()),
        },
        _ => return Err("a name is needed".into()),
    };
    let moved = ctx.marks.insert(name.to_owned(), at);
    let was = moved.map_or_else(String::new, |old| format!(" (it was at {old})"));
    Ok(format!("mark `{name}` at icount {at}{was}\n"))
}

/// `unmark NAME`
pub fn unmark(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let [name] = args else { return Err("a name is needed".into()) };
    match ctx.marks.remove(*name) {
        Some(at) => Ok(format!("mark `{name}` at icount {at} is gone\n")),
        None => Err(Error::Nothing(format!("there is no mark `{name}`: `marks` lists them"))),
    }
}

/// `marks`
pub fn marks(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    no_arguments(args)?;
    let here = ctx.machine.icount();
    let mut all: Vec<_> = ctx.marks.iter().map(|(name, at)| (*at, name)).collect();
    all.sort_unstable();
    let line = |(at, name): &(Icount, &String)| format!("{:>16}  {name}  ({})\n", at.0, distance(here, *at));
    match all.is_empty() {
        true => Err(Error::Nothing("there are no marks: `mark NAME` sets one".into())),
        false => Ok(all.iter().map(line).collect()),
    }
}

fn distance(here: Icount, at: Icount) -> String {
    match at.0.abs_diff(here.0) {
        0 => "here".into(),
        n if at < here => format!("{n} back"),
        n => format!("{n} ahead"),
    }
}

/// `goto NAME`
pub fn goto(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let [name] = args else { return Err("a mark's name is needed".into()) };
    view(ctx)?;
    let to = ctx.marks.get(*name).copied();
    let to = to.ok_or_else(|| Error::Nothing(format!("there is no mark `{name}`: `marks` lists them")))?;
    ctx.go = Some(Resume::Seek { to });
    Ok(String::new())
}

/// `back WHAT`
pub fn back(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    search(ctx, args, true)
}

/// `next WHAT`
pub fn next(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    search(ctx, args, false)
}

fn search(ctx: &mut Context<'_, '_>, args: &[&str], back: bool) -> Output {
    let what = sought(ctx, args)?;
    if back {
        view(ctx)?;
    }
    ctx.go = Some(Resume::Search { what, back });
    Ok(String::new())
}

fn sought(ctx: &mut Context<'_, '_>, args: &[&str]) -> Result<Sought, String> {
    let (what, which) = match args {
        [what] => (*what, None),
        [what, which] => (*what, Some(*which)),
        _ => return Err("what to look for is needed".into()),
    };
    let among = |n: u64, name: &str, count: u64| match n {
        n if n < count => Ok(n),
        n => Err(format!("{n:#x} is no {name}: there are {count}")),
    };
    Ok(match (what, which) {
        ("exception", None) => Sought::Exception(None),
        ("exception", Some(text)) => {
            Sought::Exception(Some(super::vector(text).ok_or_else(|| format!("`{text}` is no exception"))?))
        }
        ("interrupt", text) => {
            let n = text.map(|t| args::address(ctx, t)).transpose()?;
            let vector = n.map(|n| among(n, "vector", 256)).transpose()?;
            Sought::Occurrence(Wanted::Interrupt(vector.map(|v| v as u8)))
        }
        ("io", text) => {
            let n = text.map(|t| args::address(ctx, t)).transpose()?;
            let port = n.map(|n| among(n, "port", 0x1_0000)).transpose()?;
            Sought::Occurrence(Wanted::Port(port.map(|p| p as u16)))
        }
        ("mmio", text) => Sought::Occurrence(Wanted::Mmio(text.map(|t| args::physical(ctx, t)).transpose()?)),
        ("cr3", None) => Sought::Occurrence(Wanted::Cr3),
        ("cpl", None) => Sought::Occurrence(Wanted::Cpl),
        ("cr3" | "cpl", Some(_)) => return Err(format!("`{what}` takes no value")),
        _ => {
            return Err(format!(
                "`{what}` cannot be looked for: exception, interrupt, io, mmio, cr3, cpl can"
            ));
        }
    })
}

/// `lastwrite [/p] ADDR [LEN]`
pub fn lastwrite(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let (is_physical, rest) = match args {
        ["/p", rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (text, len) = match rest {
        [text] => (text, WORD),
        [text, len] => (text, args::address(ctx, len)?),
        _ => return Err("one address is needed".into()),
    };
    if len == 0 || len > MOST {
        return Err(format!("the length must be 1 to {MOST}").into());
    }
    let at = args::address(ctx, text)?;
    let pieces = pieces(ctx, at, len, is_physical).map_err(Error::Nothing)?;
    let here = ctx.machine.icount();
    let timeline = ctx.timeline.as_deref_mut().ok_or_else(|| Error::Nothing(NONE.into()))?;
    let found = travel::last_write(timeline, ctx.machine.vm_mut(), &pieces);
    let start = timeline.history().start().unwrap_or(here);
    match found.map_err(|e| Error::Nothing(e.to_string()))? {
        Some(write) => Ok(written(&write, here, ctx.machine.vm().vcpus.len())),
        None => Err(Error::Nothing(format!("not written since icount {start}, where the history begins"))),
    }
}

/// The physical memory behind `len` bytes.
fn pieces(
    ctx: &mut Context<'_, '_>,
    at: u64,
    len: u64,
    is_physical: bool,
) -> Result<Vec<(Gpa, u64)>, String> {
    if is_physical {
        return match ctx.machine.is_ram(Gpa(at)) {
            true => Ok(vec![(Gpa(at), len)]),
            false => Err(format!("physical address {at:#x} is not RAM")),
        };
    }
    let mut pieces = Vec::new();
    let mut done = 0;
    while done < len {
        let lin = at.wrapping_add(done);
        let n = (len - done).min(0x1000 - (lin & 0xfff));
        match ctx.machine.translate(ctx.vcpu, Gva(lin)) {
            Some(gpa) if ctx.machine.is_ram(gpa) => pieces.push((gpa, n)),
            _ => return Err(format!("linear address {lin:#x} is not mapped to RAM")),
        }
        done += n;
    }
    Ok(pieces)
}

fn written(w: &LastWrite, here: Icount, vcpus: usize) -> String {
    let back = here.0.saturating_sub(w.at.icount.0);
    let cpu = if vcpus > 1 { format!(" (vCPU {})", w.vcpu) } else { String::new() };
    let (old, new) = (value(&w.old), value(&w.new));
    format!("{}, {back} instructions back\n  {:#x}  {}{cpu}\n  {old} -> {new}\n", point(w.at), w.pc.0, w.insn)
}

/// Bytes as a number if they are as many as one has, else in their order.
fn value(bytes: &[u8]) -> String {
    let digits = |bytes: &mut dyn Iterator<Item = &u8>| bytes.map(|b| format!("{b:02x}")).collect::<String>();
    match bytes.len() {
        1 | 2 | 4 | 8 => format!("0x{}", digits(&mut bytes.iter().rev())),
        0..=32 => digits(&mut bytes.iter()),
        n => format!("{}... ({n} bytes)", digits(&mut bytes.iter().take(32))),
    }
}

/// `history`
pub fn history(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    no_arguments(args)?;
    let v = view(ctx)?;
    let start = v.start.ok_or_else(|| Error::Nothing("nothing of the run could be kept so far".into()))?;
    let steady: Vec<u64> = v.checkpoints.iter().filter(|c| !c.dense).map(|c| c.at.icount.0).collect();
    let gaps: Vec<u64> = steady.windows(2).map(|w| w[1] - w[0]).collect();
    let mib = |bytes: u64| format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20);
    let mut text = format!("from icount {start} to {}\n", point(v.end));
    text += &format!(
        "checkpoints: {}, and {} around the points looked at\n",
        steady.len(),
        v.checkpoints.len() - steady.len()
    );
    if let (Some(least), Some(most)) = (gaps.iter().min(), gaps.iter().max()) {
        text += &format!("{least} to {most} instructions apart\n");
    }
    Ok(text + &format!("{} of {} in use\n", mib(v.bytes), mib(v.budget)))
}

/// `events [N] [KIND...]`
pub fn events(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    let (count, kinds) = match args {
        [n, kinds @ ..] if number(n).is_some() => (number(n).unwrap_or(0).clamp(1, 1000) as usize, kinds),
        kinds => (10, kinds),
    };
    if let Some(unknown) = kinds.iter().find(|k| **k != "all" && !KINDS.contains(k)) {
        return Err(format!("`{unknown}` is no kind: {}, all", KINDS.join(", ")).into());
    }
    let wanted = |what: &What| match kinds {
        [] => !matches!(what, What::Hash { .. }),
        kinds => kinds.iter().any(|k| *k == "all" || *k == what.kind()),
    };
    let here = ctx.machine.when();
    let timeline = ctx.timeline.as_deref_mut().ok_or_else(|| Error::Nothing(NONE.into()))?;
    let (before, after) = around(timeline, ctx.machine, count, &wanted).map_err(Error::Nothing)?;
    if before.is_empty() && after.is_empty() {
        return Err(Error::Nothing("there are no such inputs".into()));
    }
    let lines = |records: Vec<Record>| records.iter().map(|r| format!("  {r}\n")).collect::<String>();
    Ok(format!("{}> here: {}\n{}", lines(before), point(here), lines(after)))
}

type Sides = (Vec<Record>, Vec<Record>);

/// Up to `count` wanted records before the machine's point, and as many from it on.
fn around(
    timeline: &Timeline,
    machine: &mut Inspect<'_>,
    count: usize,
    wanted: &dyn Fn(&What) -> bool,
) -> Result<Sides, String> {
    let here = machine.icount();
    let log = timeline.log_to_here(machine.vm_mut());
    let middle = log.frame_at(here).map_err(|e| e.to_string())?;
    let frame = |n: usize| -> Result<Vec<Record>, String> {
        let frame = log.frame(n).map_err(|e| e.to_string())?;
        Ok(frame.map_or_else(Vec::new, |f| f.records).into_iter().filter(|r| wanted(&r.what)).collect())
    };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for n in (0..=middle).rev() {
        before
            .extend(frame(n)?.into_iter().rev().filter(|r| r.when.icount < here).take(count - before.len()));
        if before.len() == count {
            break;
        }
    }
    for n in middle..log.frames() {
        after.extend(frame(n)?.into_iter().filter(|r| r.when.icount >= here).take(count - after.len()));
        if after.len() == count {
            break;
        }
    }
    before.reverse();
    Ok((before, after))
}
