//! The cached path against a plain walk: two machines get the same random operations; one drops everything derived
//! before each of them. Results, faults and memory must stay the same.

use super::*;
use crate::addr::Gva;
use crate::engine::hooks::{Watch, WatchAddr, WatchKind};
use crate::mem::{Written, page};
use crate::mmu::View;
use crate::vcpu::flags::bit;

/// Pages that serve as tables and as data at once.
const POOL: u64 = 0x10_0000;
const PAGES: u64 = 24;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// One random operation, the same on both machines.
#[derive(Clone, Copy, Debug)]
enum Op {
    Poke(u64, u64),
    Read(u64, u8),
    Write(u64, u8, u64),
    Rmw(u64),
    Fetch(u64),
    System(u64),
    Bulk(u64),
    Root(u64),
    Pdpte(usize, u64),
    Cpl(u32),
    Controls(u64),
    TakeDirty,
    Flag(usize),
    /// Another vCPU with the same registers.
    Vcpu(u8),
    Format(Format),
    Watch(Option<Watch>),
}

fn entry(g: &mut Rng, format: Format) -> u64 {
    let mut e = POOL + g.below(PAGES) * 0x1000;
    for (bit, percent) in [(P, 97), (W, 80), (U, 75), (A, 30), (D, 30)] {
        if g.chance(percent) {
            e |= bit;
        }
    }
    if g.chance(8) && format != Format::Legacy {
        e = e & 0xfff | PS | g.below(3) << 22;
    }
    if matches!(format, Format::Pae | Format::Long) {
        if g.chance(8) {
            e |= NX;
        }
        if g.chance(2) {
            e |= 1 << 45;
        }
    }
    e
}

fn linear(g: &mut Rng, format: Format) -> u64 {
    let mut lin = 0;
    // Half of the addresses come from a few pages, so that TLB entries are used before they go.
    let few = g.chance(50);
    for level in 1..=format.top() {
        lin |= g.below(if few && level > 1 { 1 } else { 3 }) << format.shift(level);
    }
    if format == Format::Pae && !few {
        lin |= g.below(2) << 30;
    }
    // Mostly entries that are in use, often the last bytes of a page.
    lin | if g.chance(20) { 0xff9 + g.below(7) } else { g.below(4) * 8 }
}

fn watch(g: &mut Rng, lin: u64) -> Option<Watch> {
    let kind = [WatchKind::Read, WatchKind::Write, WatchKind::Access][g.below(3) as usize];
    let addr = match g.chance(50) {
        true => WatchAddr::Virtual(Gva(lin)),
        false => WatchAddr::Physical(Gpa(POOL + g.below(PAGES) * 0x1000 + g.below(8) * 4)),
    };
    g.chance(70).then_some(Watch { addr, len: 1 + g.below(16), kind })
}

fn op(g: &mut Rng, format: Format, mixed: bool) -> Op {
    let lin = linear(g, format);
    match g.below(100) {
        0..3 => {
            let e = entry(g, format);
            Op::Poke(POOL + g.below(PAGES) * 0x1000 + (g.below(4) << format.entry_shift()), e)
        }
        3..40 => Op::Read(lin, 1 << g.below(5)),
        // Garbage mostly beside the entries in use.
        40..52 => Op::Write(if g.chance(90) { lin | 0x100 } else { lin }, 1 << g.below(5), g.next()),
        52..65 => Op::Write(lin & !7, 8, entry(g, format)),
        65..70 => Op::Rmw(lin),
        70..78 => Op::Fetch(lin),
        78..82 => Op::System(lin),
        82..88 => Op::Bulk(lin),
        88..90 => Op::Root(POOL + g.below(PAGES) * 0x1000),
        90..91 => Op::Pdpte(g.below(4) as usize, (POOL + g.below(PAGES) * 0x1000) | u64::from(g.chance(90))),
        91..94 => Op::Cpl(if g.chance(50) { 3 } else { 0 }),
        94..95 => Op::Read(lin, 1),
        95..96 => Op::Controls(g.next()),
        96..98 => match g.below(4) {
            0 => Op::Vcpu(g.below(3) as u8),
            1 => Op::Watch(watch(g, lin)),
            2 if mixed => Op::Format(PAGED[g.below(4) as usize]),
            _ => Op::TakeDirty,
        },
        98 => Op::Fetch(lin),
        _ => Op::Flag((POOL >> 12) as usize + g.below(PAGES) as usize),
    }
}

fn read(r: &mut Rig, lin: u64, size: u8) -> Result<u128, Exception> {
    Ok(match size {
        1 => r.read::<u8>(lin)?.into(),
        2 => r.read::<u16>(lin)?.into(),
        4 => r.read::<u32>(lin)?.into(),
        8 => r.read::<u64>(lin)?.into(),
        _ => r.read::<u128>(lin)?,
    })
}

fn apply(r: &mut Rig, op: Op) -> Result<u128, Exception> {
    match op {
        Op::Poke(at, e) => r.poke(at, e),
        Op::Read(lin, size) => return read(r, lin, size),
        Op::Write(lin, 1, v) => r.write(lin, v as u8)?,
        Op::Write(lin, 2, v) => r.write(lin, v as u16)?,
        Op::Write(lin, 4, v) => r.write(lin, v as u32)?,
        Op::Write(lin, 8, v) => r.write(lin, v)?,
        Op::Write(lin, _, v) => r.write(lin, u128::from(v) << 60 | u128::from(v))?,
        Op::Rmw(lin) => {
            let v = r.ctx().load_rmw::<u32>(3, lin)?;
            r.write(lin, v ^ 0x40).map_err(|_| Exception::de())?;
        }
        Op::Fetch(lin) => return r.fetch(lin).map(u128::from),
        Op::System(lin) => return r.read_system(lin).map(u128::from),
        Op::Bulk(lin) => {
            let w = r.ctx().bulk_page(lin, Access::Read, Privilege::Current);
            return Ok(w.map_or(u128::MAX, |(off, n)| (off as u128) << 16 | n as u128));
        }
        Op::Root(root) => r.cpu.cr3 = root,
        Op::Pdpte(i, e) => r.cpu.pdpte[i] = e,
        Op::Cpl(cpl) => r.set_cpl(cpl),
        Op::Controls(v) => {
            let on = |n: u32, b: u64| if v >> n & 1 != 0 { b } else { 0 };
            r.cpu.cr0 = r.cpu.cr0 & !(cr0::WP | cr0::AM) | on(0, cr0::WP) | on(5, cr0::AM) & on(6, cr0::AM);
            r.cpu.cr4 = r.cpu.cr4 & !(cr4::SMEP | cr4::SMAP) | on(1, cr4::SMEP) | on(2, cr4::SMAP);
            r.cpu.flags.put(bit::AC, v >> 3 & 1 != 0);
            if matches!(r.format(), Format::Pae | Format::Long) {
                r.cpu.msr.efer = r.cpu.msr.efer & !efer::NXE | if v >> 8 & 7 != 0 { efer::NXE } else { 0 };
            }
        }
        Op::Vcpu(i) => r.cpu.index = i,
        Op::Format(f) => r.set_format(f),
        Op::Watch(w) => r.sys.mmu.set_watches(&mut r.sys.mem, w.as_slice()),
        Op::TakeDirty => drop(r.sys.mem.take_dirty(Written::ToHash)),
        Op::Flag(p) => match r.sys.mem.flags[p] & page::CODE {
            0 => r.sys.mem.mark_code(p, 0, 0x800),
            _ => r.sys.mem.unmark_code(p),
        },
    }
    if matches!(op, Op::Root(_) | Op::Pdpte(..) | Op::Controls(_) | Op::Vcpu(_)) {
        r.ctx().mmu_switch();
    }
    Ok(0)
}

/// Translations the machine has used, which hold as long as the epoch stays.
#[derive(Default)]
struct Seen {
    epoch: u64,
    list: Vec<(u32, u64, Access, usize)>,
    /// Checks of translations whose entries had been replaced meanwhile.
    outlived: u64,
}

impl Seen {
    /// Notes what the TLB says of `lin`, and checks all that was noted in this epoch against the tables in memory.
    fn look(&mut self, r: &Rig, lin: u64) {
        let (tlb, array) = (&r.sys.mem.tlb, r.cpu.tlb.0);
        if tlb.epoch() != self.epoch {
            self.epoch = tlb.epoch();
            self.list.clear();
        }
        let lin = lin & !0xfff;
        let hit = |lin: u64, kind: Access| match kind {
            Access::Read => tlb.read_hit(array, lin, 1),
            Access::Write => tlb.write_hit(array, lin, 1),
            Access::Exec => tlb.exec_hit(array, lin).map(|(_, at)| at),
        };
        for kind in [Access::Read, Access::Write, Access::Exec] {
            self.list.extend(hit(lin, kind).map(|at| (array, lin, kind, at)));
        }
        let paging = crate::mmu::Paging::of(&r.cpu);
        let view = [View::Supervisor, View::User, View::SupervisorAc, View::UserAligned][array as usize & 3];
        for &(_, lin, kind, at) in self.list.iter().filter(|s| s.0 == array) {
            let w = crate::mmu::walk::walk(&r.sys.mem, &paging, lin).unwrap();
            assert!(paging.allows(w.rights, kind, view) && w.gpa == Gpa(at as u64), "{kind:?} {lin:#x}");
            if kind == Access::Write {
                let flags = r.sys.mem.flags[at >> 12];
                assert!(w.dirty() && flags & (page::SLOW | page::DIRTY) == page::DIRTY, "{lin:#x}");
            }
            self.outlived += u64::from(hit(lin, kind).is_none());
        }
    }
}

fn run(mut format: Format, seed: u64, steps: u32, mixed: bool) {
    let mut g = Rng(seed);
    let mut cached = Rig::new(format);
    let mut plain = Rig::new(format);
    for r in [&mut cached, &mut plain] {
        let mut g = Rng(seed ^ 1);
        for page in 0..PAGES {
            for i in 0..4 {
                let e = entry(&mut g, format);
                r.poke(POOL + page * 0x1000 + (i << format.entry_shift()), e);
            }
        }
    }
    let mut seen = Seen::default();
    for step in 0..steps {
        let o = op(&mut g, format, mixed);
        if let Op::Format(f) = o {
            format = f;
        }
        plain.sys.mmu.reset(&mut plain.sys.mem);
        plain.ctx().mmu_switch();
        let (a, b) = (apply(&mut cached, o), apply(&mut plain, o));
        assert_eq!(a, b, "{format:?} seed {seed} step {step}: {o:?}");
        if let Op::Read(lin, _) | Op::Write(lin, ..) | Op::Rmw(lin) | Op::Fetch(lin) = o {
            seen.look(&cached, lin);
        }
        let hit = |r: &mut Rig| r.sys.mmu.take_watch_hit(&mut r.sys.mem);
        assert_eq!(hit(&mut cached), hit(&mut plain), "{format:?} seed {seed} step {step}: {o:?}");
        let (a, b) = (&cached.sys.mem.code_writes, &plain.sys.mem.code_writes);
        assert_eq!(a, b, "{format:?} seed {seed} step {step}: {o:?}");
        if step % 16 == 0 {
            let range = POOL as usize..(POOL + PAGES * 0x1000) as usize;
            let (a, b) =
                (&cached.sys.mem.ram.as_slice()[range.clone()], &plain.sys.mem.ram.as_slice()[range]);
            if let Some(i) = (0..a.len()).find(|i| a[*i] != b[*i]) {
                panic!("{format:?} seed {seed} step {step}: memory differs at {:#x}", POOL + i as u64);
            }
            cached.sys.mem.code_writes.clear();
            plain.sys.mem.code_writes.clear();
        }
    }
    let c = cached.sys.mmu.counters;
    // Two levels of tables do not reach far enough apart for that here.
    assert!(seen.outlived > 0 || format.top() == 2, "no entry of a valid translation was ever replaced");
    assert!(c.shadow_hits > 0 && c.fills > 0 && c.walks < plain.sys.mmu.counters.walks);
}

#[test]
fn cached_and_plain_agree_on_random_operations() {
    for format in PAGED {
        for seed in 0..6 {
            run(format, seed, 6000, false);
            run(format, seed + 100, 3000, true);
        }
    }
}
