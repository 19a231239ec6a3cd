//! Where things are in the fuzzing guest, and the machine put there: descriptor tables, page tables of three address
//! spaces, the programmable timer, the registers.

use super::Guest;
use crate::random::Rng;
use retrovisor_core::Gpa;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::vcpu::segment::{Segment, TableReg, attr};
use retrovisor_core::vcpu::{Seg, cr0, cr4, efer, gpr};

pub const GDT: u64 = 0x5000;
pub const IDT: u64 = 0x5800;
pub const TSS: u64 = 0x6800;
/// What the handlers count: an event of vector v at COUNTS + 8 v; then their variables.
pub const COUNTS: u64 = 0x7000;
pub const CURSOR: u64 = COUNTS + 0x900;
pub const TURN: u64 = COUNTS + 0x908;
pub const LAST_RIP: u64 = COUNTS + 0x910;
pub const LAST_CR2: u64 = COUNTS + 0x918;
/// Top of the handlers' stack.
pub const STACK: u64 = 0x9000;
/// How the program goes on after a fault: records of 128 bytes, see [`super::handlers`].
pub const RESUME: u64 = 0xa000;
pub const RECORDS: usize = 32;
pub const RECORD: usize = 128;
pub const HANDLERS: u64 = 0xc000;
/// Page tables: four pages an address space.
pub const TABLES: u64 = 0x1_0000;
pub const SPACE: u64 = 0x4000;
pub const SPACES: u64 = 3;
/// Offset of the table of the window's pages in a space's tables.
pub const LEAVES: u64 = 0x3000;
/// Offset of the root of 32-bit programs: PAE paging has a level less.
pub const ROOT32: u64 = 0x1000;
/// The program and its data, at this linear address; its frames are at the same physical address.
pub const WINDOW: u64 = 0x20_0000;
pub const CODE_PAGES: u64 = 4;
/// The window's first and last data page.
pub const DATA: (u64, u64) = (16, 48);
/// The program's stack: two pages, with nothing mapped around them.
pub const STACK_PAGES: (u64, u64) = (52, 54);
/// Where the program's stack begins.
pub const TOP: u64 = WINDOW + 0x1000 * STACK_PAGES.1 - 0x200;

pub mod sel {
    pub const CODE0: u16 = 0x08;
    pub const DATA0: u16 = 0x10;
    pub const DATA3: u16 = 0x23;
    pub const CODE3: u16 = 0x2b;
    pub const TSS: u16 = 0x30;
    /// A data segment that is not present.
    pub const ABSENT: u16 = 0x43;
}

/// Bits of a page-table entry.
pub mod pte {
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const U: u64 = 4;
    pub const NX: u64 = 1 << 63;
}

/// A leaf for page `n` of the window: its own frame with random rights, another's, or none.
pub fn leaf(n: u64, rng: &mut Rng) -> u64 {
    use pte::{NX, P, U, W};
    let data = |rng: &mut Rng| DATA.0 + rng.below(DATA.1 - DATA.0);
    let frame = |n: u64| WINDOW + 0x1000 * n;
    match rng.below(24) {
        0..3 => 0,
        3..6 => frame(n) | P | U,
        6..8 => frame(n) | P | W,
        8 | 9 => frame(n) | P | W | U | NX,
        10..13 => frame(data(rng)) | P | W | U,
        13 => frame(rng.below(CODE_PAGES)) | P | W | U,
        14 => frame(n) | P | W | U | 1 << 51,
        _ => frame(n) | P | W | U,
    }
}

/// Writes 64-bit values one after another.
fn words(vm: &mut Vm, at: u64, values: &[u64]) {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert!(vm.sys.mem.write_phys(Gpa(at), &bytes), "RAM at {at:#x}");
}

/// The page tables of space `k`.
fn tables(vm: &mut Vm, k: u64, bits: u32, rng: &mut Rng) {
    use pte::{P, U, W};
    let root = TABLES + k * SPACE;
    words(vm, root, &[(root + 0x1000) | P | W | U]);
    // A page-directory-pointer entry of PAE paging has no rights.
    words(vm, root + 0x1000, &[(root + 0x2000) | P | if bits == 64 { W | U } else { 0 }]);
    // The first 2 MiB have a table of their own, shared by all spaces: the handlers must always be there.
    let low = TABLES + SPACES * SPACE;
    words(vm, root + 0x2000, &[low | P | W | U, (root + LEAVES) | P | W | U]);
    let writable =
        |n: u64| (COUNTS >> 12..STACK >> 12).contains(&n) || (TABLES >> 12..(low >> 12) + 1).contains(&n);
    let pages: Vec<u64> = (0..512u64).map(|n| n << 12 | P | if writable(n) { W } else { 0 }).collect();
    words(vm, low, &pages);
    let leaves: Vec<u64> = (0..64)
        .map(|n| match n {
            n if n < CODE_PAGES => (WINDOW + 0x1000 * n) | P | W | U,
            n if (DATA.0..DATA.1).contains(&n) => leaf(n, rng),
            n if (STACK_PAGES.0..STACK_PAGES.1).contains(&n) => (WINDOW + 0x1000 * n) | P | W | U,
            _ => 0,
        })
        .collect();
    words(vm, root + LEAVES, &leaves);
}

/// The value of a descriptor of a flat segment.
const fn descriptor(attr: u64) -> u64 {
    (attr & 0xff) << 40 | (attr >> 12 & 0xf) << 52 | 0xf << 48 | 0xffff
}

/// Attributes of a code segment of DPL 0.
const fn code_attr(bits: u32) -> u32 {
    let size = if bits == 64 { attr::L } else { attr::DB };
    attr::P | attr::S | attr::CODE | attr::RW | attr::ACCESSED | attr::G | size
}

/// Attributes of a data segment of DPL 0.
const DATA_ATTR: u32 = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::G | attr::DB;

fn descriptor_tables(vm: &mut Vm, bits: u32, handlers: &[u64]) {
    let code = u64::from(code_attr(bits));
    let data = u64::from(DATA_ATTR);
    let user = 3 << 5;
    let tss = 0x67 | (TSS & 0xff_ffff) << 16 | 0x8b << 40;
    let absent = descriptor((data | user) & !u64::from(attr::P));
    let gdt = [
        0,
        descriptor(code),
        descriptor(data),
        0,
        descriptor(data | user),
        descriptor(code | user),
        tss,
        0,
        absent,
    ];
    words(vm, GDT, &gdt);
    // RSP0 and IST1 are at 4 and 0x24, ESP0 and SS0 at 4 and 8.
    let mut image = vec![0u8; 0x68];
    image[4..12].copy_from_slice(&STACK.to_le_bytes());
    if bits == 64 {
        image[0x24..0x2c].copy_from_slice(&STACK.to_le_bytes());
    } else {
        image[8..10].copy_from_slice(&sel::DATA0.to_le_bytes());
    }
    assert!(vm.sys.mem.write_phys(Gpa(TSS), &image), "RAM");
    let gates = handlers.iter().enumerate();
    let gates: Vec<u64> = match bits {
        64 => gates.flat_map(|(v, h)| gate(v, *h)).collect(),
        _ => gates.map(|(v, h)| gate(v, *h)[0] & !(7 << 32)).collect(),
    };
    words(vm, IDT, &gates);
}

/// A 64-bit interrupt gate on IST1; its first half, without the IST, is a 32-bit one. INT3, INTO and the system call may be used at CPL 3.
fn gate(vector: usize, handler: u64) -> [u64; 2] {
    let dpl = if [3, 4, 0x80].contains(&vector) { 3 } else { 0 };
    let low = handler & 0xffff | u64::from(sel::CODE0) << 16 | 1 << 32 | (0x8e | dpl << 5) << 40;
    [if handler == 0 { 0 } else { low | (handler >> 16 & 0xffff) << 48 }, handler >> 32]
}

/// The PICs at vector 0x20 with only the timer open, and the timer at `divisor`.
fn timer(vm: &mut Vm, divisor: u16) {
    let (low, high) = (u32::from(divisor & 0xff), u32::from(divisor >> 8));
    let writes = [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
        (0x21, 0xfe),
        (0xa1, 0xff),
        (0x43, 0x34),
        (0x40, low),
        (0x40, high),
    ];
    for (port, value) in writes {
        let (board, mut bus) = vm.sys.bus();
        board.pio_write(0, port, 1, value, &mut bus);
    }
}

fn segment(selector: u16, attr: u32) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attr, lin_base: 0, fast: 0 }
}

/// Puts the machine before the first instruction of `guest`'s program.
pub fn install(vm: &mut Vm, guest: &Guest) {
    let mut rng = Rng(guest.seed ^ 0x5eed);
    (0..SPACES).for_each(|k| tables(vm, k, guest.bits, &mut rng));
    descriptor_tables(vm, guest.bits, &guest.handlers.entries);
    for (at, bytes) in
        [(HANDLERS, &guest.handlers.code), (WINDOW, &guest.program.code), (RESUME, &guest.program.resume)]
    {
        assert!(vm.sys.mem.write_phys(Gpa(at), bytes), "RAM");
    }
    let data: Vec<u8> = (0..(DATA.1 - DATA.0) * 256).flat_map(|_| rng.vector().to_le_bytes()).collect();
    assert!(vm.sys.mem.write_phys(Gpa(WINDOW + 0x1000 * DATA.0), &data), "RAM");
    timer(vm, guest.timer);
    registers(vm, guest, &mut rng);
    if let Some(mut ctx) = vm.ctx(0) {
        ctx.mmu_switch();
    }
}

fn registers(vm: &mut Vm, guest: &Guest, rng: &mut Rng) {
    let pdpte = vm.sys.mem.ram.read::<u64>((TABLES + ROOT32) as usize);
    let cpu = &mut vm.vcpus[0];
    let long = guest.bits == 64;
    cpu.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    cpu.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    cpu.cr3 = if long { TABLES } else { TABLES + ROOT32 };
    cpu.pdpte = if long { [0; 4] } else { [pdpte, 0, 0, 0] };
    cpu.msr.efer = efer::NXE | if long { efer::SCE | efer::LME | efer::LMA } else { 0 };
    cpu.msr.star = u64::from(sel::CODE0) << 32 | 0x1b << 48;
    cpu.msr.lstar = guest.handlers.syscall;
    cpu.msr.sfmask = 0x4_7700;
    let gates = guest.handlers.entries.len() as u16;
    cpu.gdtr = TableReg { base: GDT, limit: 0x47 };
    cpu.idtr = TableReg { base: IDT, limit: gates * if long { 16 } else { 8 } - 1 };
    // 32-bit programs begin at CPL 3.
    let (code, data, dpl) = match long {
        true => (sel::CODE0, sel::DATA0, 0),
        false => (sel::CODE3, sel::DATA3, attr::DPL),
    };
    cpu.seg = [segment(data, DATA_ATTR | dpl); 6];
    cpu.seg[Seg::Cs as usize] = segment(code, code_attr(guest.bits) | dpl);
    cpu.seg[Seg::Fs as usize].base = 0x1000;
    cpu.seg[Seg::Gs as usize].base = 0u64.wrapping_sub(0x800) & if long { u64::MAX } else { 0xffff_ffff };
    cpu.tr = Segment { base: TSS, limit: 0x67, ..segment(sel::TSS, 0x8b) };
    cpu.ldtr = segment(0, attr::UNUSABLE);
    for r in &mut cpu.gpr[..if long { 16 } else { 8 }] {
        *r = rng.value() & if long { u64::MAX } else { 0xffff_ffff };
    }
    cpu.gpr[gpr::RSP] = TOP;
    cpu.fpu.xmm = std::array::from_fn(|n| if long || n < 8 { rng.vector() } else { 0 });
    cpu.fpu.init();
    (cpu.rip, cpu.insn_rip) = (WINDOW, WINDOW);
    cpu.flags.0 = if long { 2 } else { 0x202 };
    cpu.refresh();
}
