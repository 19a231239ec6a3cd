//! The board: which device answers which port and address, and how their lines reach the interrupt controllers.
//!
//! Owns the devices and nothing of their insides. `pio` and `mmio` dispatch accesses, `irq` carries lines and
//! interrupt messages, `timers` runs deadlines, `snapshot` saves and restores.

mod irq;
mod mmio;
mod pio;
mod snapshot;
mod timers;

pub use mmio::IOAPIC_BASE;

use super::config::MachineConfig;
use crate::addr::GuestTime;
use crate::clock::Clock;
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::dma8237::Dma;
use crate::devices::fw_cfg::FwCfg;
use crate::devices::i8042::I8042;
use crate::devices::i8259::PicPair;
use crate::devices::ioapic::IoApic;
use crate::devices::lapic::Lapic;
use crate::devices::pci::Pci;
use crate::devices::pit::Pit;
use crate::devices::rtc::{Initial, Rtc};
use crate::devices::sysctl::SysCtl;
use crate::devices::testdev::TestDev;
use crate::devices::uart::Uart;
use crate::devices::vga::Vga;
use crate::input::{InputEvent, InputPort, When};
use crate::mem::Memory;
use crate::mem::map::LOW_RAM_END;
use crate::output::OutputSink;

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
    pub fn now(&mut self) -> GuestTime {
        self.clock.read(self.when, self.input)
    }
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
    /// The A20 gate changed since the engine last cleared this: translations made before are stale.
    pub a20_changed: bool,
    /// isa-debug-exit's ports (configuration).
    debug_exit: Option<(u16, u16)>,
    pub pic: PicPair,
    pub ioapic: IoApic,
    pub lapics: Vec<Lapic>,
    pub pit: Pit,
    pub rtc: Rtc,
    pub uart: Uart,
    pub i8042: I8042,
    pub pci: Pci,
    pub pm: AcpiPm,
    pub fw_cfg: FwCfg,
    pub vga: Vga,
    pub dma: Dma,
    pub sysctl: SysCtl,
    pub testdev: Option<TestDev>,
    lines: irq::Lines,
    /// Derived, per vCPU: a maskable interrupt waits.
    intr: Vec<bool>,
    /// Derived: the earliest deadline of all timers.
    next: Option<GuestTime>,
    /// Derived: where the power-management block is decoded.
    pm_base: Option<u16>,
}

impl Board {
    /// The board of a machine, in its power-on state.
    pub fn new(config: &MachineConfig) -> Self {
        let vcpus = config.vcpus.max(1);
        let low = config.memory.min(LOW_RAM_END);
        let initial =
            Initial { wall_time: config.wall_time, low_memory: low, high_memory: config.memory - low, vcpus };
        let mut board = Self {
            events: Vec::new(),
            a20_changed: true,
            debug_exit: config.debug_exit,
            pic: PicPair::new(),
            ioapic: IoApic::new(),
            lapics: (0..vcpus).map(Lapic::new).collect(),
            pit: Pit::new(),
            rtc: Rtc::new(initial),
            uart: Uart::new(),
            i8042: I8042::new(),
            pci: Pci::new(),
            pm: AcpiPm::new(),
            fw_cfg: FwCfg::new(config.memory, low, vcpus),
            vga: Vga::new(),
            dma: Dma::new(),
            sysctl: SysCtl::new(),
            testdev: config.testdev.then(TestDev::new),
            lines: irq::Lines::new(),
            intr: vec![false; usize::from(vcpus)],
            next: None,
            pm_base: None,
        };
        board.rederive();
        board
    }

    /// Reset of every device. Time, the CMOS memory and serial input not yet received survive.
    pub fn reset(&mut self) {
        self.events.clear();
        self.pic.reset();
        self.ioapic.reset();
        self.lapics.iter_mut().for_each(Lapic::reset);
        self.pit.reset();
        self.rtc.reset();
        self.uart.reset();
        self.i8042.reset();
        self.pci.reset();
        self.pm.reset();
        self.fw_cfg.reset();
        self.vga.reset();
        self.dma.reset();
        self.sysctl.reset();
        if let Some(t) = &mut self.testdev {
            t.reset();
        }
        self.lines = irq::Lines::new();
        self.rederive();
    }

    /// Recomputes everything derived after a reset or a load.
    pub(super) fn rederive(&mut self) {
        self.a20_changed = true;
        self.pm_base = self.pci.pm_base();
        self.refresh_intr();
        self.schedule();
    }

    /// AND-mask of physical addresses the A20 gate makes now: what `Memory::a20_mask` has to be.
    pub fn a20_mask(&self) -> u64 {
        if self.sysctl.a20 { u64::MAX } else { !(1 << 20) }
    }

    /// Drives the A20 gate, and memory with it.
    fn set_a20(&mut self, on: bool, bus: &mut BusCtx<'_>) {
        self.sysctl.a20 = on;
        let mask = self.a20_mask();
        if bus.mem.a20_mask != mask {
            bus.mem.set_a20(on);
            self.a20_changed = true;
        }
    }

    /// Applies an asynchronous input that concerns a device (serial, keyboard, power button, NMI, reset).
    pub fn input(&mut self, event: &InputEvent, bus: &mut BusCtx<'_>) {
        match event {
            InputEvent::Serial { port: 0, bytes } => {
                self.uart.receive(bytes);
                self.update_uart();
            }
            InputEvent::Key { bytes } => {
                self.i8042.keys(bytes);
                self.update_i8042();
            }
            InputEvent::PowerButton => {
                self.pm.press_power_button();
                self.update_pm();
            }
            InputEvent::Reset => self.events.push(BoardEvent::Reset),
            InputEvent::Nmi => self.send_nmi(),
            InputEvent::Tick { .. } => self.advance(bus),
            InputEvent::Serial { .. } | InputEvent::WritePhys { .. } | InputEvent::WriteReg { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests;
