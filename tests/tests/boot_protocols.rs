//! Tiny kernels of each boot protocol run: they check the magic number they are entered with, find the command line
//! in what they were given, and say it on the debug console.
#![allow(clippy::unwrap_used)]

use iced_x86::code_asm::*;
use retrovisor_core::input::{NoInput, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::{OutputPort, OutputSink};
use retrovisor_tests::asm::{multiboot, multiboot2, pvh};
use std::sync::{Arc, Mutex};

/// What the kernels write to isa-debug-exit: a good end, and a wrong magic number.
const GOOD: u32 = 7;
const BAD: u32 = 8;

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl OutputSink for Text {
    fn write(&mut self, _when: When, port: OutputPort, bytes: &[u8]) {
        assert_eq!(port, OutputPort::DebugCon);
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

fn leave(a: &mut CodeAssembler, value: u32) {
    a.mov(edx, 0xf4).unwrap();
    a.mov(eax, value).unwrap();
    a.out(dx, eax).unwrap();
}

/// Ends the run unless `eax` is `magic`.
fn demand(a: &mut CodeAssembler, magic: u32) {
    let mut good = a.create_label();
    a.cmp(eax, magic).unwrap();
    a.je(good).unwrap();
    leave(a, BAD);
    a.set_label(&mut good).unwrap();
}

/// Writes the string at ESI to the debug console and leaves.
fn say(a: &mut CodeAssembler) {
    let (mut next, mut end) = (a.create_label(), a.create_label());
    a.mov(edx, 0xe9).unwrap();
    a.set_label(&mut next).unwrap();
    a.lodsb().unwrap();
    a.test(al, al).unwrap();
    a.jz(end).unwrap();
    a.out(dx, al).unwrap();
    a.jmp(next).unwrap();
    a.set_label(&mut end).unwrap();
    leave(a, GOOD);
}

/// How `kernel` ended and what it said.
fn run(kernel: Vec<u8>) -> (VmExit, String) {
    let config = MachineConfig {
        memory: 16 << 20,
        debug_exit: Some((0xf4, 4)),
        no_reboot: true,
        ..MachineConfig::default()
    };
    let images = Images {
        kernel: Some(kernel),
        kernel_name: "tiny".into(),
        cmdline: "root=/dev/none".into(),
        ..Images::default()
    };
    let text = Text::default();
    let mut vm = Vm::new(config, images, Box::new(NoInput), Box::new(text.clone())).unwrap();
    let exit = vm.run(Some(retrovisor_core::Icount(100_000)));
    let said = String::from_utf8(text.0.lock().unwrap().clone()).unwrap();
    (exit, said)
}

#[test]
fn test_multiboot_kernel_finds_its_command_line() {
    let kernel = multiboot(|a| {
        demand(a, 0x2bad_b002);
        a.mov(esi, dword_ptr(ebx + 16)).unwrap();
        say(a);
    });
    assert_eq!(run(kernel), (VmExit::DebugExit(GOOD), "tiny root=/dev/none".into()));
}

#[test]
fn test_multiboot2_kernel_finds_its_command_line_among_the_tags() {
    let kernel = multiboot2(|a| {
        demand(a, 0x36d7_6289);
        let (mut next, mut found) = (a.create_label(), a.create_label());
        // The tags follow the total size; each begins with its type and size, on eight bytes.
        a.lea(esi, dword_ptr(ebx + 8)).unwrap();
        a.set_label(&mut next).unwrap();
        a.cmp(dword_ptr(esi), 1).unwrap();
        a.je(found).unwrap();
        a.mov(ecx, dword_ptr(esi + 4)).unwrap();
        a.lea(esi, dword_ptr(esi + ecx + 7)).unwrap();
        a.and(esi, -8).unwrap();
        a.jmp(next).unwrap();
        a.set_label(&mut found).unwrap();
        a.add(esi, 8).unwrap();
        say(a);
    });
    let (exit, said) = run(kernel);
    assert_eq!(exit, VmExit::DebugExit(GOOD));
    assert!(said.ends_with("root=/dev/none"), "{said}");
}

#[test]
fn test_pvh_kernel_finds_its_command_line() {
    let kernel = pvh(|a| {
        a.mov(eax, dword_ptr(ebx)).unwrap();
        demand(a, 0x336e_c578);
        a.mov(esi, dword_ptr(ebx + 24)).unwrap();
        say(a);
    });
    assert_eq!(run(kernel), (VmExit::DebugExit(GOOD), "root=/dev/none".into()));
}
