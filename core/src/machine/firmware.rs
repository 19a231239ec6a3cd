//! What a PC's firmware leaves behind, for kernels loaded without one: interrupt controllers in virtual wire mode,
//! the system timer, and real-mode interrupt vectors. Owns no table a kernel parses (those are `tables`).
//! Sources: IBM PC/AT Technical Reference, "BIOS"; Intel MultiProcessor Specification 1.4, 3.6.2.2.
//!
//! A kernel that enables interrupts before it has programmed the 8259s finds IRQ 0-7 at vectors 8-15, and 18.2 ticks
//! a second, as on every PC.

use super::board::Board;
use crate::addr::{Gpa, GuestTime};
use crate::devices::lapic::reg;
use crate::mem::Memory;

/// Segment of the handlers.
const SEGMENT: u16 = 0xf000;
/// Offsets of the handlers. Those of the timer and of unused vectors are where the AT BIOS has them.
const TIMER: u16 = 0xfea5;
const MASTER: u16 = 0xfec0;
const SLAVE: u16 = 0xfed0;
const DUMMY: u16 = 0xff53;

/// INT 8: `push ds; push ax; mov ax, 40h; mov ds, ax; inc dword [6Ch]; mov al, 20h; out 20h, al; pop ax; pop ds; iret`.
const TIMER_CODE: &[u8] = &[
    0x1e, 0x50, 0xb8, 0x40, 0x00, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x6c, 0x00, 0xb0, 0x20, 0xe6, 0x20, 0x58,
    0x1f, 0xcf,
];
/// `push ax; mov al, 20h; out 20h, al; pop ax; iret`.
const MASTER_CODE: &[u8] = &[0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf];
/// `push ax; mov al, 20h; out 0A0h, al; out 20h, al; pop ax; iret`.
const SLAVE_CODE: &[u8] = &[0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf];
/// `iret`.
const DUMMY_CODE: &[u8] = &[0xcf];

/// First vectors of the two 8259s.
const MASTER_BASE: u8 = 0x08;
const SLAVE_BASE: u8 = 0x70;

/// Writes the real-mode vector table and the handlers it points to.
pub fn install_vectors(mem: &mut Memory) {
    for (at, code) in [(TIMER, TIMER_CODE), (MASTER, MASTER_CODE), (SLAVE, SLAVE_CODE), (DUMMY, DUMMY_CODE)] {
        mem.write_phys(Gpa(u64::from(SEGMENT) * 16 + u64::from(at)), code);
    }
    for vector in 0..=255u8 {
        let handler = match vector {
            MASTER_BASE => TIMER,
            0x09..=0x0f => MASTER,
            0x70..=0x77 => SLAVE,
            _ => DUMMY,
        };
        let entry = u32::from(SEGMENT) << 16 | u32::from(handler);
        mem.write_phys(Gpa(u64::from(vector) * 4), &entry.to_le_bytes());
    }
}

impl Board {
    /// Programs the 8259s, the 8254's counter 0 and the local APIC of vCPU 0 as firmware leaves them. The timer,
    /// the keyboard and the cascade are unmasked.
    pub fn program_as_firmware(&mut self, now: GuestTime) {
        for (port, base, wiring, mask) in [(0x20, MASTER_BASE, 4, 0xf8), (0xa0, SLAVE_BASE, 2, 0xff)] {
            self.pic.write(port, 0x11);
            for v in [base, wiring, 1, mask] {
                self.pic.write(port + 1, v);
            }
        }
        // Mode 2, 65536 ticks of 1.193182 MHz.
        for (counter, v) in [(3, 0x34), (0, 0), (0, 0)] {
            self.pit.write(counter, v, now);
        }
        // Enabled, spurious vector 0xff; LINT0 is ExtINT, LINT1 is NMI.
        if let Some(bsp) = self.lapics.first_mut() {
            for (r, v) in [(reg::SVR, 0x1ff), (reg::LVT_LINT0, 0x700), (reg::LVT_LINT1, 0x400)] {
                bsp.mmio_write(r, v, now);
            }
        }
        self.rederive();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::addr::{Gpa, Icount};
    use crate::input::NoInput;
    use crate::loader::Images;
    use crate::machine::config::MachineConfig;
    use crate::machine::vm::{Vm, VmExit};
    use crate::output::NullSink;
    use crate::vcpu::{Seg, Vcpu};

    /// A machine as a direct boot leaves it, but with vCPU 0 in real mode at `code`.
    fn real_mode(code: &[u8]) -> Vm {
        let header = [0x1bad_b002u32, 0x1_0000, 0u32.wrapping_sub(0x1bad_b002 + 0x1_0000)];
        let fields = header.into_iter().chain([0x10_0000, 0x10_0000, 0, 0, 0x10_0000]);
        let images =
            Images { kernel: Some(fields.flat_map(u32::to_le_bytes).collect()), ..Images::default() };
        let config = MachineConfig { memory: 4 << 20, no_reboot: true, ..MachineConfig::default() };
        let mut vm = Vm::new(config, images, Box::new(NoInput), Box::new(NullSink)).unwrap();
        let mut cpu = Vcpu::new(0, vm.config.cpu);
        let cs = &mut cpu.seg[Seg::Cs as usize];
        (cs.selector, cs.base) = (0, 0);
        cpu.rip = 0x600;
        cpu.gpr[crate::vcpu::gpr::RSP] = 0x600;
        cpu.refresh();
        vm.vcpus[0] = cpu;
        vm.sys.mem.write_phys(Gpa(0x600), code);
        vm
    }

    #[test]
    fn timer_ticks_in_the_bios_data_area() {
        // sti; again: hlt; jmp again
        let mut vm = real_mode(&[0xfb, 0xf4, 0xeb, 0xfd]);
        assert_eq!(vm.run(Some(Icount(100))), VmExit::Reached);
        let mut ticks = [0; 4];
        assert!(vm.sys.mem.read_phys(Gpa(0x46c), &mut ticks));
        // Twelve steps a tick: the delivery, nine instructions of the handler, HLT and JMP.
        assert_eq!(u32::from_le_bytes(ticks), 8);
        let expected = 8 * 65536 * 1_000_000_000 / 1_193_182;
        assert!(vm.when().time.0.abs_diff(expected) < 65536 * 1_000);
    }

    #[test]
    fn software_interrupts_return() {
        // int 13h; int 77h; cli; hlt
        let mut vm = real_mode(&[0xcd, 0x13, 0xcd, 0x77, 0xfa, 0xf4]);
        assert_eq!(vm.run(Some(Icount(1000))), VmExit::Dead);
        assert_eq!((vm.vcpus[0].rip, vm.vcpus[0].gpr[crate::vcpu::gpr::RSP]), (0x606, 0x600));
    }
}
