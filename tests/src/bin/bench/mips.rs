//! How many guest instructions a second the interpreter executes: compute loops on the bare machine.

use iced_x86::code_asm::*;
use retrovisor_core::input::NoInput;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_tests::asm;
use std::time::Instant;

type Build = fn(&mut CodeAssembler);

/// Sieve of Eratosthenes over 64 KiB: byte stores and compares, short blocks.
fn sieve(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut outer, mut fill, mut next, mut mark, mut skip) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut outer)?;
    a.mov(edi, 0x20_0000)?;
    a.set_label(&mut fill)?;
    a.mov(byte_ptr(edi), 1)?;
    a.inc(edi)?;
    a.cmp(edi, 0x21_0000)?;
    a.jb(fill)?;
    a.mov(ecx, 2)?;
    a.set_label(&mut next)?;
    a.cmp(byte_ptr(ecx + 0x20_0000), 0)?;
    a.je(skip)?;
    a.lea(edx, ptr(ecx + ecx))?;
    a.set_label(&mut mark)?;
    a.mov(byte_ptr(edx + 0x20_0000), 0)?;
    a.add(edx, ecx)?;
    a.cmp(edx, 0x1_0000)?;
    a.jb(mark)?;
    a.set_label(&mut skip)?;
    a.inc(ecx)?;
    a.cmp(ecx, 0x100)?;
    a.jb(next)?;
    a.jmp(outer)
}

/// A register-only mix: shifts, multiplies, additions, a data-dependent branch.
fn mix(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut odd) = (a.create_label(), a.create_label());
    a.mov(eax, 12345)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut top)?;
    a.imul_3(eax, eax, 1_103_515_245)?;
    a.add(eax, 12345)?;
    a.mov(edx, eax)?;
    a.shr(edx, 16)?;
    a.test(edx, 1)?;
    a.jne(odd)?;
    a.xor(ebx, edx)?;
    a.rol(ebx, 5)?;
    a.set_label(&mut odd)?;
    a.add(ebx, edx)?;
    a.adc(ecx, ebx)?;
    a.jmp(top)
}

/// Calls and returns: a recursive Fibonacci.
fn fib(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut f, mut base) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(esp, 0x30_0000)?;
    a.set_label(&mut top)?;
    a.mov(eax, 20)?;
    a.call(f)?;
    a.jmp(top)?;
    a.set_label(&mut f)?;
    a.cmp(eax, 2)?;
    a.jb(base)?;
    a.push(eax)?;
    a.dec(eax)?;
    a.call(f)?;
    a.pop(ecx)?;
    a.push(eax)?;
    a.lea(eax, ptr(ecx - 2))?;
    a.call(f)?;
    a.pop(ecx)?;
    a.add(eax, ecx)?;
    a.set_label(&mut base)?;
    a.ret()
}

pub fn mips() {
    println!("{:<34} {:>10}", "interpreter", "M insn/s");
    let programs: [(&str, Build); 3] = [
        ("sieve (byte loads and stores)", |a| sieve(a).expect("assembles")),
        ("integer mix (registers)", |a| mix(a).expect("assembles")),
        ("recursive fib (calls, stack)", |a| fib(a).expect("assembles")),
    ];
    for (name, build) in programs {
        let mut rates: Vec<f64> = (0..5).map(|_| rate(build)).collect();
        rates.sort_by(f64::total_cmp);
        println!("{name:<34} {:>10.1}", rates[2]);
    }
}

fn rate(build: Build) -> f64 {
    const INSNS: u64 = 60_000_000;
    let images =
        Images { kernel: Some(asm::multiboot(build)), kernel_name: "bench".into(), ..Images::default() };
    let mut vm =
        Vm::new(MachineConfig::default(), images, Box::new(NoInput), Box::new(NullSink)).expect("machine");
    let _ = vm.run(Some(retrovisor_core::Icount(1_000_000)));
    let t = Instant::now();
    let exit = vm.run(Some(retrovisor_core::Icount(1_000_000 + INSNS)));
    assert_eq!(exit, VmExit::Reached);
    INSNS as f64 / t.elapsed().as_secs_f64() / 1e6
}
