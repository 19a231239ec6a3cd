//! Tiny guests for the program's tests, and a recording of one.
#![allow(dead_code)] // not every test file needs all of them

use iced_x86::code_asm::*;
use retrovisor_core::devices::{acpi_pm, pci};
use retrovisor_core::input::{NoInput, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::NullSink;
use retrovisor_core::{GuestTime, Icount};
use retrovisor_replay::format::PREAMBLE;
use retrovisor_replay::format::header::Header;
use retrovisor_replay::{ExitReason, Recording, Trace};
use retrovisor_tests::asm::multiboot;
use std::fs;

/// Files that go away with the test.
pub struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }
    pub fn dir(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir())
    }
    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }
}

fn out8(a: &mut CodeAssembler, port: u32, value: u32) {
    a.mov(edx, port).unwrap();
    a.mov(eax, value).unwrap();
    a.out(dx, al).unwrap();
}

fn print(a: &mut CodeAssembler, text: &str) {
    text.bytes().for_each(|b| out8(a, 0x3f8, u32::from(b)));
}

/// Leaves by isa-debug-exit with `value`.
pub fn exits(value: u32) -> Vec<u8> {
    multiboot(|a| {
        print(a, "hello\n");
        out8(a, 0xf4, value);
        a.hlt().unwrap();
    })
}

/// Enters ACPI S5, the way the DSDT says.
pub fn powers_off() -> Vec<u8> {
    multiboot(|a| {
        a.mov(edx, u32::from(pci::PM_BASE) + 4).unwrap();
        // SLP_EN and SLP_TYP.
        a.mov(eax, u32::from(1 << 13 | acpi_pm::S5 << 10)).unwrap();
        a.out(dx, ax).unwrap();
        a.hlt().unwrap();
    })
}

/// No IDT, then an exception.
pub fn triple_faults() -> Vec<u8> {
    multiboot(|a| {
        a.push(0).unwrap();
        a.push(0).unwrap();
        a.lidt(ptr(esp)).unwrap();
        a.ud2().unwrap();
    })
}

/// Asks the keyboard controller for a reset.
pub fn resets() -> Vec<u8> {
    multiboot(|a| {
        out8(a, 0x64, 0xfe);
        a.hlt().unwrap();
    })
}

/// Halts with interrupts off.
pub fn dies() -> Vec<u8> {
    multiboot(|a| {
        a.cli().unwrap();
        a.hlt().unwrap();
    })
}

/// Says hello and computes for ever.
pub fn loops() -> Vec<u8> {
    multiboot(|a| {
        print(a, "hello\n");
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.inc(ebx).unwrap();
        a.jmp(top).unwrap();
    })
}

/// Says hello and waits for interrupts that do not come.
pub fn sleeps() -> Vec<u8> {
    multiboot(|a| {
        print(a, "hello\n");
        out8(a, 0x21, 0xff);
        out8(a, 0xa1, 0xff);
        let mut top = a.create_label();
        a.sti().unwrap();
        a.set_label(&mut top).unwrap();
        a.hlt().unwrap();
        a.jmp(top).unwrap();
    })
}

/// Reads the time all along, then leaves.
fn clocked() -> Vec<u8> {
    multiboot(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 50_000).unwrap();
        a.set_label(&mut top).unwrap();
        a.rdtsc().unwrap();
        a.add(esi, eax).unwrap();
        a.mov(dword_ptr(0x30_0000), esi).unwrap();
        a.dec(ecx).unwrap();
        a.jnz(top).unwrap();
        out8(a, 0xf4, 3);
        a.hlt().unwrap();
    })
}

/// A recording of a guest that reads the time and leaves by itself.
pub fn trace() -> Vec<u8> {
    let config = MachineConfig {
        memory: 4 << 20,
        debug_exit: Some((0xf4, 4)),
        hash_interval: 1 << 14,
        ..MachineConfig::default()
    };
    let images = Images { kernel: Some(clocked()), kernel_name: "guest".into(), ..Images::default() };
    let (recording, file) = Recording::in_memory(&config, &images).unwrap();
    let (port, output) = (recording.port(NoInput), recording.output(NullSink));
    let mut vm = Vm::new(config, images, Box::new(port), Box::new(output)).unwrap();
    let exit = loop {
        match vm.run(Some(vm.when().icount + (1 << 16))) {
            // Frames all along, as a slower guest would have.
            VmExit::Reached => recording.flush(vm.when()),
            exit => break exit,
        }
    };
    assert_eq!(exit, VmExit::DebugExit(3));
    recording.finish_vm(&mut vm, ExitReason::from_exit(exit)).unwrap();
    file.bytes()
}

/// A recording that says it takes hours to replay: the guest of it loops, and only its length is recorded.
pub fn long_trace() -> Vec<u8> {
    let config = MachineConfig { memory: 4 << 20, hash_interval: 1 << 36, ..MachineConfig::default() };
    let images = Images { kernel: Some(loops()), kernel_name: "guest".into(), ..Images::default() };
    let (recording, file) = Recording::in_memory(&config, &images).unwrap();
    recording.flush(When { icount: Icount(1 << 50), time: GuestTime(1 << 50) });
    file.bytes()
}

/// `trace` with another header.
pub fn with_header(trace: &[u8], change: impl Fn(&mut Header)) -> Vec<u8> {
    let whole = Trace::from_bytes("good.rvt", trace.to_vec()).unwrap();
    let mut header = whole.header().clone();
    change(&mut header);
    let len = PREAMBLE as usize + u32::from_le_bytes(trace[8..12].try_into().unwrap()) as usize;
    [header.to_bytes(), trace[len..].to_vec()].concat()
}
