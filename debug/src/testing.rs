//! A machine for unit tests: 32-bit protected mode, no paging, a loop that counts in EAX and stores the count.

use crate::session::{Options, Session};
use retrovisor_core::clock::ClockKind;
use retrovisor_core::engine::Engine;
use retrovisor_core::input::InputPort;
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::output::NullSink;
use retrovisor_replay::{IdlePolicy, Live, Machine, Mailbox, Recording, Timeline};
use std::sync::Arc;

/// Where the loop begins: `inc eax`.
pub const LOOP: u64 = 0x10_0020;
/// The store after it: `mov [COUNTER], eax`.
pub const STORE: u64 = LOOP + 1;
/// The jump back: `jmp LOOP`.
pub const JUMP: u64 = LOOP + 6;
pub const COUNTER: u64 = 0x20_0000;

/// A multiboot image that loads itself at 1 MiB: a 32-byte header, then `code`.
fn multiboot(code: &[u8]) -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    let (magic, flags) = (0x1bad_b002_u32, 1u32 << 16);
    let end = BASE + 32 + code.len() as u32;
    let header = [magic, flags, magic.wrapping_add(flags).wrapping_neg(), BASE, BASE, end, end, BASE + 32];
    header.iter().flat_map(|w| w.to_le_bytes()).chain(code.iter().copied()).collect()
}

fn config() -> MachineConfig {
    MachineConfig { memory: 4 << 20, clock: ClockKind::Virtual, no_reboot: true, ..Default::default() }
}

/// The machine, with any code at [`LOOP`].
pub fn machine(code: &[u8], input: Box<dyn InputPort>) -> Vm {
    let config = config();
    let images = Images { kernel: Some(multiboot(code)), ..Default::default() };
    match Vm::new(config, images, input, Box::new(NullSink)) {
        Ok(mut vm) => {
            vm.vcpus[0].gpr[0] = 0;
            vm
        }
        Err(e) => panic!("the test image does not load: {e}"),
    }
}

/// `inc eax; mov [COUNTER], eax; jmp LOOP`
pub const COUNT: &[u8] = &[0x40, 0xa3, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf8];

/// A session on a live machine running `code`.
pub fn session(code: &[u8], options: Options) -> Session {
    let mailbox = Mailbox::new();
    let input = Live::new(Arc::clone(&mailbox), ClockKind::Virtual, IdlePolicy::Skip);
    match Session::spawn(machine(code, Box::new(input)), move || mailbox.interrupt(), options) {
        Ok(session) => session,
        Err(e) => panic!("the session does not start: {e}"),
    }
}

/// A frozen session on the counting loop.
pub fn frozen() -> Session {
    session(COUNT, Options { freeze: true, read_only: false })
}

/// A frozen session on a live machine running `code`, with a history.
pub fn travelling(code: &[u8], engine: Engine) -> Session {
    let mailbox = Mailbox::new();
    let input = Live::new(Arc::clone(&mailbox), ClockKind::Virtual, IdlePolicy::Skip);
    let recording = Recording::unwritten(&config());
    let mut vm = machine(code, Box::new(recording.port(input)));
    vm.sys.output = Box::new(recording.output(NullSink));
    vm.engine = engine;
    let mailbox2 = Arc::clone(&mailbox);
    let vm = Machine::from(vm).with_timeline(|vm| Timeline::live(vm, recording, mailbox2, 64 << 20));
    match Session::spawn(vm, move || mailbox.interrupt(), Options { freeze: true, read_only: false }) {
        Ok(session) => session,
        Err(e) => panic!("the session does not start: {e}"),
    }
}
