//! `stats` and `blocks`: what executes the guest, how much of what it did, and what guest code became.

use super::{Context, Error, Output, args, no_arguments};
use retrovisor_core::addr::PAGE_SIZE;
use retrovisor_core::engine::Engine;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::translate::Translator;
use retrovisor_core::translate::cache::Block;
use retrovisor_core::translate::mode::ModeKey;
use retrovisor_core::vcpu::Vcpu;
use std::collections::BTreeMap;

/// Blocks listed by `blocks`.
const LARGEST: usize = 10;

/// `stats`
pub fn stats(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    no_arguments(args)?;
    let vm = ctx.machine.vm();
    let mut text = String::new();
    for (n, cpu) in vm.vcpus.iter().enumerate() {
        text += &format!("vCPU {n}: {} code, on {}\n", super::mode_name(cpu), executes(vm.engine, cpu));
    }
    text += &match vm.translator() {
        Some(t) => translator(t),
        None => "translator: not used so far\n".into(),
    };
    let i = vm.cache.stats;
    text += &format!(
        "interpreter: {} blocks decoded, {} written over, {} times all dropped\n",
        i.built, i.invalidated, i.flushes
    );
    Ok(text + &mmu(vm))
}

/// What executes a vCPU's present code.
fn executes(engine: Engine, cpu: &Vcpu) -> &'static str {
    match (engine, ModeKey::of(cpu)) {
        (Engine::Interp, _) => "the interpreter",
        (Engine::Jit, Some(_)) => "the translator",
        (Engine::Jit, None) => "the interpreter (not translated in this mode)",
    }
}

fn translator(t: &Translator) -> String {
    let s = t.stats;
    let (alive, bytes) = t.blocks().fold((0, 0), |(n, bytes), (_, b)| (n + 1, bytes + b.code_len as u64));
    let share = |n| percent(n, s.identical + s.emitted + s.called);
    format!(
        "translator: {alive} blocks alive with {bytes} bytes of host code; {} translated so far\n\
         \x20 instructions translated: {}, {} bytes of host code each\n\
         \x20 of them identical {}, emitted {}, called {}\n\
         \x20 blocks killed: {} written over, {} for breakpoints, {} evicted, {} adapted\n\
         \x20 links made: {}, entries from outside: {}\n",
        s.translated,
        s.insns,
        ratio(s.bytes, s.insns),
        share(s.identical),
        share(s.emitted),
        share(s.called),
        s.written,
        s.breakpoints,
        s.evicted,
        s.adapted,
        s.links,
        s.entries
    )
}

fn mmu(vm: &Vm) -> String {
    let (c, u) = (vm.sys.mmu.counters, vm.sys.mmu.usage());
    format!(
        "MMU: {} TLB misses, {} shadow hits, {} walks, {} fills, {} faults, {} ASIDs recycled\n\
         \x20 in use: {} ASIDs, {} shadow tables, {} traced pages\n",
        c.misses, c.shadow_hits, c.walks, c.fills, c.faults, c.recycled, u.asids, u.nodes, u.traced_pages
    )
}

/// `n` of `all` in per cent, with one decimal.
fn percent(n: u64, all: u64) -> String {
    format!("{}%", ratio(n.saturating_mul(100), all))
}

/// A quotient with one decimal.
fn ratio(n: u64, of: u64) -> String {
    let tenths = n.saturating_mul(10).checked_div(of).unwrap_or(0);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// `blocks [ADDR]`
pub fn blocks(ctx: &mut Context<'_, '_>, args: &[&str]) -> Output {
    match args {
        [] => overview(ctx),
        [text] => around(ctx, text),
        _ => Err("one address at most".into()),
    }
}

fn used<'a>(ctx: &'a Context<'_, '_>) -> Result<&'a Translator, Error> {
    ctx.machine.vm().translator().ok_or_else(|| Error::Nothing("the translator was not used so far".into()))
}

fn overview(ctx: &Context<'_, '_>) -> Output {
    let t = used(ctx)?;
    let mut modes: BTreeMap<ModeKey, u64> = BTreeMap::new();
    t.blocks().for_each(|(_, b)| *modes.entry(b.key.mode).or_default() += 1);
    let mut text: String = modes.iter().map(|(mode, n)| format!("{n} blocks, {}\n", mode.name())).collect();
    let mut all: Vec<&Block> = t.blocks().map(|(_, b)| b).collect();
    all.sort_by_key(|b| (std::cmp::Reverse(b.code_len), b.key.rip, b.key.gpa.0));
    for b in all.iter().take(LARGEST) {
        text += &format!("{}\n", b.summary());
    }
    Ok(if text.is_empty() { "no block is alive\n".into() } else { text })
}

/// The blocks with the byte at a linear address, by the present page tables.
fn around(ctx: &mut Context<'_, '_>, text: &str) -> Output {
    let at = args::linear(ctx, text)?;
    let gpa = ctx.machine.translate(ctx.vcpu, at);
    let vm = ctx.machine.vm();
    let t = used(ctx)?;
    let is_here = |b: &Block| {
        let behind = at.0.wrapping_sub(b.key.rip);
        let first = PAGE_SIZE - b.key.gpa.offset();
        // Page tables may say that other code is there now.
        let placed = match gpa {
            Some(g) if behind < first => g.0 == b.key.gpa.0.wrapping_add(behind),
            Some(g) => b.second.is_some_and(|s| s.page() == g.page()),
            None => false,
        };
        b.contains(at.0) && placed
    };
    let found = t.blocks().filter(|(_, b)| is_here(b));
    let text: Vec<String> = found.filter_map(|(id, _)| t.listing(id, &vm.sys.mem)).collect();
    match text.is_empty() {
        true => Err(Error::Nothing(format!("no translated block contains {:#x}", at.0))),
        false => Ok(text.join("\n")),
    }
}
