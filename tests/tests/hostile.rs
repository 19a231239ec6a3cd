//! Hostile guests: random code over random descriptor tables and page tables, in every mode. Nothing the guest does may
//! panic, hang, or differ between two runs. A failure prints its seed.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retrovisor_core::Icount;
use retrovisor_core::addr::GuestTime;
use retrovisor_core::input::{Idle, InputPort, NoInput, Poll, Query, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::vcpu::segment::{Segment, TableReg, attr};
use retrovisor_core::vcpu::{cr0, cr4, efer};
use retrovisor_tests::asm;
use retrovisor_tests::random::Rng;

const MEMORY: u64 = 2 << 20;
const CODE: u64 = 0x8000;
const GDT: u64 = 0x2000;
const IDT: u64 = 0x3000;
const TSS: u64 = 0x4000;
const TABLES: u64 = 0x10_0000;

/// Instructions or deliveries each guest may use.
const BUDGET: u64 = 4_000;
/// Guest time each guest may wait. One that halts while a timer ticks whose interrupt is masked waits for ever, which
/// takes no instructions.
const PATIENCE: GuestTime = GuestTime(1_000_000_000);

/// No inputs, and an end to waiting.
struct Impatient(NoInput);

impl InputPort for Impatient {
    fn poll(&mut self, now: When) -> Poll {
        self.0.poll(now)
    }
    fn next_poll(&self) -> Option<Icount> {
        self.0.next_poll()
    }
    fn answer(&mut self, now: When, query: Query) -> u64 {
        self.0.answer(now, query)
    }
    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        if now.time > PATIENCE { Idle::End } else { self.0.idle(now, deadline) }
    }
}

/// Cases in a normal run; `RETROVISOR_HOSTILE_CASES` asks for more.
fn cases() -> u64 {
    std::env::var("RETROVISOR_HOSTILE_CASES").ok().and_then(|v| v.parse().ok()).unwrap_or(600)
}

/// Opcode bytes worth more than their share: prefixes, system and far-transfer opcodes, string and port instructions.
const SPICE: &[u8] = &[
    0x0f, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x64, 0x48, 0x9a, 0xea, 0xcb, 0xcf, 0xcd, 0xcc, 0xce, 0xff,
    0x8e, 0x9d, 0xfa, 0xfb, 0xf4, 0xe4, 0xe6, 0xec, 0xee, 0x6c, 0x6e, 0xa4, 0xaa, 0xa6, 0xd8, 0xdb, 0xdf,
    0x9b, 0xc8, 0x60, 0x62, 0xf1,
];

fn fill(vm: &mut Vm, r: &mut Rng) {
    let mut page = vec![0u8; 0x4000];
    page.iter_mut().for_each(|b| {
        *b = if r.below(3) == 0 { SPICE[r.below(SPICE.len() as u64) as usize] } else { r.bits() as u8 }
    });
    vm.sys.mem.write_phys(retrovisor_core::Gpa(CODE), &page);
    let mut tables = Vec::new();
    for n in 0..0x200u64 {
        // Flat code and data first, anything behind them: every type, every DPL, wild bases and limits.
        let d = match n {
            1 => 0x00cf_9a00_0000_ffff,
            2 => 0x00cf_9200_0000_ffff,
            3 => 0x00af_9a00_0000_ffff,
            4 => (TSS & 0xffff) << 16 | 0x0000_8900_0000_0fff,
            _ => r.bits() & 0x00ff_ffff_ffff_ffff | r.bits() & 0x8000_0000_0000,
        };
        tables.extend_from_slice(&d.to_le_bytes());
    }
    for n in 0..0x200u64 {
        let handler = CODE + r.below(0x4000);
        let kind = [0x8e00u64, 0x8f00, 0xee00, 0x8600, 0x8500][r.below(5) as usize];
        let selector = [8u64, 8, 24, r.below(0x400)][r.below(4) as usize];
        let gate = handler & 0xffff | selector << 16 | kind << 32 | (handler >> 16) << 48;
        tables.extend_from_slice(&(if n % 5 == 4 { r.bits() } else { gate }).to_le_bytes());
    }
    vm.sys.mem.write_phys(retrovisor_core::Gpa(GDT), &tables);
    for page in 0..8u64 {
        for n in 0..512u64 {
            let target =
                if r.below(2) == 0 { TABLES + r.below(8) * 4096 } else { r.below(MEMORY >> 12) << 12 };
            let odd = if r.below(40) == 0 { r.bits() & 0xfff0_0000_0000_0fff } else { 0 };
            let entry = target | (r.bits() & 0x87) | (u64::from(r.below(4) > 0) * 7) | odd;
            vm.sys.mem.write_phys(retrovisor_core::Gpa(TABLES + page * 4096 + n * 8), &entry.to_le_bytes());
        }
    }
}

/// Puts vCPU 0 into a mode a guest could have reached.
fn enter(vm: &mut Vm, r: &mut Rng) {
    let cpu = &mut vm.vcpus[0];
    cpu.gdtr = TableReg { base: GDT, limit: 0xfff };
    cpu.idtr = TableReg { base: IDT, limit: 0xfff };
    cpu.gpr[..16].iter_mut().for_each(|g| *g = if r.below(2) == 0 { r.below(MEMORY) } else { r.bits() });
    cpu.gpr[4] = 0x9000 - r.below(64) * 8;
    cpu.rip = CODE + r.below(0x3000);
    cpu.cr3 = TABLES;
    let p = attr::P | attr::S | attr::ACCESSED | attr::RW;
    let seg = |selector, a, limit| Segment { selector, base: 0, limit, attr: a, lin_base: 0, fast: 0 };
    cpu.seg = [seg(16, p | attr::DB | attr::G, u32::MAX); 6];
    cpu.seg[1] = seg(8, p | attr::CODE | attr::DB | attr::G, u32::MAX);
    cpu.tr = Segment { selector: 32, base: TSS, limit: 0xfff, attr: 0x8b, lin_base: TSS, fast: 0 };
    cpu.cr0 = cr0::ET | cr0::NE | cr0::PE;
    cpu.cr4 = r.bits()
        & (cr4::PSE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::DE | cr4::VME | cr4::SMEP | cr4::FSGSBASE);
    match r.below(5) {
        0 => {
            cpu.cr0 &= !cr0::PE;
            (cpu.seg, cpu.rip) = ([Segment::real(0); 6], cpu.rip & 0xffff);
        }
        1 => {}
        2 => cpu.cr0 |= cr0::PG | cr0::WP,
        3 => {
            cpu.flags.0 |= 1 << 17 | 3 << 12;
            (cpu.seg, cpu.rip) = ([Segment::real(0); 6], cpu.rip & 0xffff);
            cpu.seg.iter_mut().for_each(|s| s.attr |= 3 << 5);
        }
        _ => {
            cpu.cr0 |= cr0::PG | cr0::WP;
            cpu.cr4 |= cr4::PAE;
            cpu.msr.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
            cpu.seg[1] = seg(24, p | attr::CODE | attr::L | attr::G, u32::MAX);
        }
    }
    cpu.flags.0 |= r.bits() & 0xcd5;
    if r.below(8) == 0 {
        cpu.flags.0 |= 1 << 8;
    }
    cpu.refresh();
    vm.ctx(0).unwrap().mmu_switch();
    vm.ctx(0).unwrap().refresh_debug_regs();
}

fn run(seed: u64) -> (VmExit, Icount, retrovisor_core::hash::StateHash) {
    let mut r = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let images = Images { kernel: Some(asm::multiboot(|a| a.nop().unwrap())), ..Images::default() };
    let config = MachineConfig {
        memory: MEMORY,
        debug_exit: Some((0xf4, 4)),
        testdev: true,
        ..MachineConfig::default()
    };
    let mut vm = Vm::new(config, images, Box::new(Impatient(NoInput)), Box::new(NullSink)).unwrap();
    vm.hooks.stop_triple_fault = true;
    fill(&mut vm, &mut r);
    enter(&mut vm, &mut r);
    let exit = vm.run(Some(Icount(BUDGET)));
    (exit, vm.when().icount, vm.state_hash())
}

#[test]
fn test_random_guests_never_panic_and_repeat_exactly() {
    let mut ends = std::collections::BTreeMap::new();
    for seed in 0..cases() {
        let one = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("seed {seed} panics"));
        assert_eq!(one, run(seed), "seed {seed}: two runs differ");
        let kind = format!("{:?}", one.0);
        *ends.entry(kind.split('(').next().unwrap_or("").to_owned()).or_insert(0u32) += 1;
    }
    println!("{ends:?}");
    assert!(ends.len() >= 3, "the guests all end alike: {ends:?}");
}
