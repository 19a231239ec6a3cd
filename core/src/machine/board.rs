//! The board: which device answers which port and address, and how their lines reach the interrupt controllers.

use super::config::MachineConfig;
use crate::addr::{Gpa, GuestTime};
use crate::clock::Clock;
use crate::input::{InputEvent, InputPort, When};
use crate::mem::Memory;
use crate::output::OutputSink;
use crate::state::{Reader, StateError, Writer};

/// What a device may touch during an access: time, memory (DMA), inputs and outputs.
pub struct BusCtx<'a> {
    /// The current point; `when.time` is guest time without asking anybody.
    pub when: When,
    pub clock: &'a mut Clock,
    pub mem: &'a mut Memory,
    pub input: &'a mut dyn InputPort,
    pub output: &'a mut dyn OutputSink,
}

impl BusCtx<'_> {
    /// The time a timer register shows now (under `--clock host` a logged input).
    pub fn now(&mut self) -> GuestTime { self.clock.read(self.when, self.input) }
}

/// What devices ask of the VM or of a vCPU; taken by the engine after each access and each timer expiry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BoardEvent {
    /// INIT for vCPU n.
    Init(u8),
    /// Start-up IPI for vCPU n with its vector.
    Sipi(u8, u8),
    Nmi(u8),
    /// System reset (8042, port 0xCF9, port 92, fast init).
    Reset,
    /// ACPI S5.
    PowerOff,
    /// isa-debug-exit: the value written.
    DebugExit(u32),
}

/// The PC board.
pub struct Board {
    /// Requests for the engine, in order.
    pub events: Vec<BoardEvent>,
}

impl Board {
    pub fn new(config: &MachineConfig) -> Self {
        let _ = config;
        Self { events: Vec::new() }
    }
    /// Power-on reset of every device.
    pub fn reset(&mut self) {}
    /// Port read of 1, 2 or 4 bytes by vCPU `cpu`; unclaimed ports read as all ones.
    pub fn pio_read(&mut self, cpu: u8, port: u16, size: u8, bus: &mut BusCtx<'_>) -> u32 {
        let _ = (cpu, port, size, bus);
        u32::MAX
    }
    pub fn pio_write(&mut self, cpu: u8, port: u16, size: u8, value: u32, bus: &mut BusCtx<'_>) {
        let _ = (cpu, port, size, value, bus);
    }
    /// Device-memory read of 1, 2, 4 or 8 bytes by vCPU `cpu`; unclaimed addresses read as all ones.
    pub fn mmio_read(&mut self, cpu: u8, gpa: Gpa, size: u8, bus: &mut BusCtx<'_>) -> u64 {
        let _ = (cpu, gpa, size, bus);
        u64::MAX
    }
    pub fn mmio_write(&mut self, cpu: u8, gpa: Gpa, size: u8, value: u64, bus: &mut BusCtx<'_>) {
        let _ = (cpu, gpa, size, value, bus);
    }
    /// The next guest time at which a timer has something to do.
    pub fn deadline(&self) -> Option<GuestTime> { None }
    /// Lets every timer whose deadline is not after `bus.when.time` expire.
    pub fn advance(&mut self, bus: &mut BusCtx<'_>) { let _ = bus; }
    /// Applies an asynchronous input that concerns a device (serial, keyboard, power button).
    pub fn input(&mut self, event: &InputEvent, bus: &mut BusCtx<'_>) { let _ = (event, bus); }
    /// Is a maskable interrupt waiting for vCPU `cpu` (above its task priority)?
    pub fn intr(&self, cpu: u8) -> bool {
        let _ = cpu;
        false
    }
    /// Acknowledges the waiting interrupt and returns its vector.
    pub fn ack(&mut self, cpu: u8) -> u8 {
        let _ = cpu;
        0xff
    }
    /// APIC MSRs: IA32_APIC_BASE is in `Vcpu::msr`; the board is told of its changes.
    pub fn set_apic_base(&mut self, cpu: u8, value: u64) { let _ = (cpu, value); }
    /// x2APIC MSR 0x800 + `reg`; `None`: #GP.
    pub fn x2apic_read(&mut self, cpu: u8, reg: u8, bus: &mut BusCtx<'_>) -> Option<u64> {
        let _ = (cpu, reg, bus);
        None
    }
    /// x2APIC MSR write; false: #GP.
    pub fn x2apic_write(&mut self, cpu: u8, reg: u8, value: u64, bus: &mut BusCtx<'_>) -> bool {
        let _ = (cpu, reg, value, bus);
        false
    }
    /// CR8: bits 7:4 of the task-priority register.
    pub fn cr8(&self, cpu: u8) -> u8 {
        let _ = cpu;
        0
    }
    pub fn set_cr8(&mut self, cpu: u8, value: u8) { let _ = (cpu, value); }
    /// IA32_TSC_DEADLINE. `tsc_to_time` converts a TSC value of this vCPU to guest time.
    pub fn tsc_deadline(&self, cpu: u8) -> u64 {
        let _ = cpu;
        0
    }
    /// Arms (or with 0 disarms) the TSC-deadline timer: `tsc` is the MSR value, `at` the guest time it stands for.
    pub fn set_tsc_deadline(&mut self, cpu: u8, tsc: u64, at: GuestTime) { let _ = (cpu, tsc, at); }

    /// Saves every device.
    pub fn save(&self, w: &mut Writer) { let _ = w; }
    /// Restores every device; raises no edges.
    pub fn load(&mut self, r: &mut Reader<'_>) -> Result<(), StateError> {
        let _ = r;
        Ok(())
    }
}
