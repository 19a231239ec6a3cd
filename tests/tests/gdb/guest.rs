//! A tiny 64-bit guest for debuggers: a loop that calls a function and counts, assembled here.
//!
//! It starts in long mode with the first 16 MiB mapped one to one by 4 KiB and 2 MiB pages; everything above is
//! unmapped.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use retrovisor_core::clock::ClockKind;
use retrovisor_core::input::InputPort;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::output::NullSink;
use retrovisor_core::vcpu::segment::{Segment, attr};
use retrovisor_core::vcpu::{Seg, cr0, cr4, efer, gpr};
use retrovisor_core::{Ctx, Gpa};

/// Where the code is.
pub const CODE: u64 = 0x10_0000;
/// Where the guest copies [`copied`] to before it runs it: nothing is there at first.
pub const COPY: u64 = 0x40_0000;
/// The 64-bit counter the loop increments.
pub const COUNTER: u64 = 0x20_0000;
/// A word that is read in each round, and never written.
pub const INPUT: u64 = 0x20_1000;
const STACK_TOP: u64 = 0x30_0000;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
/// First address that is not mapped.
pub const UNMAPPED: u64 = 16 << 20;

/// The guest's code and the addresses in it.
#[derive(Clone, Debug)]
pub struct Program {
    pub code: Vec<u8>,
    /// Head of the loop.
    pub main_loop: u64,
    /// The instruction after the call in the loop.
    pub after_call: u64,
    /// The function called: pushes RBP and has a frame.
    pub work: u64,
    /// The store to [`COUNTER`].
    pub store: u64,
    /// Jumps to [`COPY`] (never reached by the loop: a debugger has to set RIP).
    pub install: u64,
    /// An undefined instruction; there is no IDT, so it is a triple fault.
    pub crash: u64,
    /// Writes 0x10 to isa-debug-exit.
    pub exit: u64,
}

/// Assembles the program.
pub fn program() -> Result<Program, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut main_loop, mut after_call, mut work) = (a.create_label(), a.create_label(), a.create_label());
    let (mut store, mut install) = (a.create_label(), a.create_label());
    let (mut crash, mut exit) = (a.create_label(), a.create_label());
    a.xor(ebx, ebx)?;
    a.set_label(&mut main_loop)?;
    a.call(work)?;
    a.set_label(&mut after_call)?;
    a.inc(rbx)?;
    a.set_label(&mut store)?;
    a.mov(qword_ptr(COUNTER), rbx)?;
    a.mov(rcx, qword_ptr(INPUT))?;
    a.jmp(main_loop)?;

    a.set_label(&mut work)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.lea(rax, qword_ptr(rbx * 2 + 1))?;
    a.mov(rdx, rax)?;
    a.pop(rbp)?;
    a.ret()?;

    // mov eax, 0x12345678; jmp $
    a.set_label(&mut install)?;
    a.mov(rdi, COPY)?;
    a.mov(rax, 0x00fe_eb12_3456_78b8u64)?;
    a.mov(qword_ptr(rdi), rax)?;
    a.jmp(rdi)?;

    a.set_label(&mut crash)?;
    a.ud2()?;

    a.set_label(&mut exit)?;
    a.mov(eax, 0x10)?;
    a.out(0xf4, al)?;

    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let done = a.assemble_options(CODE, options)?;
    Ok(Program {
        main_loop: done.label_ip(&main_loop)?,
        after_call: done.label_ip(&after_call)?,
        work: done.label_ip(&work)?,
        store: done.label_ip(&store)?,
        install: done.label_ip(&install)?,
        crash: done.label_ip(&crash)?,
        exit: done.label_ip(&exit)?,
        code: done.inner.code_buffer,
    })
}

/// The machine's description.
pub fn config() -> MachineConfig {
    MachineConfig {
        memory: 32 << 20,
        clock: ClockKind::Virtual,
        no_reboot: true,
        debug_exit: Some((0xf4, 4)),
        ..Default::default()
    }
}

/// A machine about to run the program.
pub fn machine(program: &Program, input: Box<dyn InputPort>) -> Vm {
    let config = config();
    let images = Images { kernel: Some(multiboot(&program.code)), ..Default::default() };
    let mut vm = Vm::new(config, images, input, Box::new(NullSink)).expect("the image loads");
    enter_long_mode(&mut vm);
    vm
}

/// The code as a multiboot image that says where to load itself (flag 16), at [`CODE`].
fn multiboot(code: &[u8]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16;
    // The header follows the code, on a 4-byte boundary.
    let mut image = code.to_vec();
    image.resize(image.len().next_multiple_of(4), 0x90);
    let header = CODE as u32 + image.len() as u32;
    let end = header + 32;
    let sum = MAGIC.wrapping_add(FLAGS).wrapping_neg();
    for word in [MAGIC, FLAGS, sum, header, CODE as u32, end, end, CODE as u32] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image
}

/// Page tables, and the vCPU as a boot loader would leave it in 64-bit mode.
fn enter_long_mode(vm: &mut Vm) {
    let mut write = |at: u64, entry: u64| assert!(vm.sys.mem.write_phys(Gpa(at), &entry.to_le_bytes()));
    write(PML4, PDPT | 3);
    write(PDPT, PD | 3);
    write(PD, PT | 3);
    for i in 1..8 {
        write(PD + 8 * i, i << 21 | 0x83);
    }
    for i in 0..512 {
        write(PT + 8 * i, i << 12 | 3);
    }
    let cpu = &mut vm.vcpus[0];
    cpu.cr3 = PML4;
    cpu.cr4 = cr4::PAE | cr4::OSFXSR;
    cpu.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP;
    cpu.msr.efer = efer::LME | efer::LMA;
    let data = attr::P | attr::S | attr::RW | attr::ACCESSED | attr::G;
    let flat = |selector, attr| Segment { selector, limit: u32::MAX, attr, base: 0, ..Segment::real(0) };
    cpu.seg = [flat(16, data | attr::DB); 6];
    cpu.seg[Seg::Cs as usize] = flat(8, data | attr::CODE | attr::L);
    cpu.idtr.limit = 0;
    cpu.gpr[gpr::RSP] = STACK_TOP;
    cpu.rip = CODE;
    cpu.refresh();
    Ctx { cpu, sys: &mut vm.sys }.mmu_switch();
}

/// An ELF file with the program's symbols (for gdb, not for the guest).
pub fn symbol_file(program: &Program) -> Vec<u8> {
    let symbols = [
        ("start", CODE, program.main_loop - CODE),
        ("main_loop", program.main_loop, program.work - program.main_loop),
        ("work", program.work, program.install - program.work),
        ("install", program.install, program.crash - program.install),
        ("copied", COPY, 7),
    ];
    let (mut names, mut table) = (vec![0u8], vec![0u8; 24]);
    for (name, value, size) in symbols {
        table.extend_from_slice(&(names.len() as u32).to_le_bytes());
        table.extend_from_slice(&[0x12, 0, 1, 0]); // global function, section 1
        table.extend_from_slice(&value.to_le_bytes());
        table.extend_from_slice(&size.to_le_bytes());
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    let sections = b"\0.text\0.symtab\0.strtab\0";
    let mut file = vec![0; 64];
    let mut place = |bytes: &[u8]| {
        let at = file.len();
        file.extend_from_slice(bytes);
        (at as u64, bytes.len() as u64)
    };
    let (code, table, names) = (place(&program.code), place(&table), place(&names));
    let section_names = place(sections);
    let headers_at = file.len() as u64;
    // name, type, flags, address, (offset, size), link, info, alignment, entry size
    let mut section = |n: [u64; 4], (at, len): (u64, u64), link: u32, info: u32, align: u64, entry: u64| {
        file.extend_from_slice(&(n[0] as u32).to_le_bytes());
        file.extend_from_slice(&(n[1] as u32).to_le_bytes());
        [n[2], n[3], at, len].iter().for_each(|v| file.extend_from_slice(&v.to_le_bytes()));
        [link, info].iter().for_each(|v| file.extend_from_slice(&v.to_le_bytes()));
        [align, entry].iter().for_each(|v| file.extend_from_slice(&v.to_le_bytes()));
    };
    section([0, 0, 0, 0], (0, 0), 0, 0, 0, 0);
    section([1, 1, 6, CODE], code, 0, 0, 1, 0);
    section([7, 2, 0, 0], table, 3, 1, 8, 24);
    section([15, 3, 0, 0], names, 0, 0, 1, 0);
    section([15, 3, 0, 0], section_names, 0, 0, 1, 0);
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    head.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
    [CODE, 0, headers_at].iter().for_each(|v| head.extend_from_slice(&v.to_le_bytes()));
    head.extend_from_slice(&[0; 4]);
    [64u16, 56, 0, 64, 5, 4].iter().for_each(|v| head.extend_from_slice(&v.to_le_bytes()));
    file[..64].copy_from_slice(&head);
    file
}
