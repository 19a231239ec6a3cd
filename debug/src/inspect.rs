//! Looking at a machine without touching it: no accessed or dirty bits, no faults, no device-register reads.

use retrovisor_core::input::When;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::mem::Target;
use retrovisor_core::vcpu::{Seg, Vcpu};
use retrovisor_core::{Ctx, Gpa, Gva, Icount};

/// Bytes up to the next 4 KiB boundary after `addr`.
fn left_in_page(addr: u64) -> usize {
    (4096 - (addr & 4095)) as usize
}

/// A read-only view of the machine at an instruction boundary.
pub struct Inspect<'a> {
    vm: &'a mut Vm,
}

impl<'a> Inspect<'a> {
    /// Views `vm`. The reference is exclusive because translation borrows a vCPU together with the system; nothing
    /// is changed through it.
    pub fn new(vm: &'a mut Vm) -> Self {
        Self { vm }
    }

    /// The whole machine, read-only.
    pub fn vm(&self) -> &Vm {
        self.vm
    }

    /// The machine, for those who move it in its history.
    pub(crate) fn vm_mut(&mut self) -> &mut Vm {
        self.vm
    }

    /// The current point of the run.
    pub fn when(&self) -> When {
        self.vm.when()
    }

    /// Index of the vCPU whose turn it is.
    pub fn current(&self) -> usize {
        self.vm.current
    }

    /// A vCPU.
    pub fn vcpu(&self, index: usize) -> Option<&Vcpu> {
        self.vm.vcpus.get(index)
    }

    /// CR8 (the task-priority class) of a vCPU.
    pub fn cr8(&self, index: usize) -> u8 {
        u8::try_from(index).map_or(0, |cpu| self.vm.sys.board.cr8(cpu))
    }

    /// Linear address of the instruction vCPU `index` executes next.
    pub fn pc(&self, index: usize) -> Gva {
        self.vcpu(index).map_or(Gva(0), linear_pc)
    }

    /// Guest-physical address a linear address of vCPU `index` leads to, if it is mapped.
    pub fn translate(&mut self, index: usize, gva: Gva) -> Option<Gpa> {
        let cpu = self.vm.vcpus.get_mut(index)?;
        let lin = Gva(gva.0 & cpu.mode.lin_mask);
        Ctx { cpu, sys: &mut self.vm.sys }.translate_quiet(lin)
    }

    /// True if a physical address is RAM or ROM (not a device or nothing).
    pub fn is_memory(&self, gpa: Gpa) -> bool {
        !matches!(self.vm.sys.mem.map.lookup(gpa), Target::Mmio)
    }

    /// True if a physical address is RAM.
    pub fn is_ram(&self, gpa: Gpa) -> bool {
        matches!(self.vm.sys.mem.map.lookup(gpa), Target::Ram(_))
    }

    /// Reads RAM or ROM; returns how many bytes could be read before the first that is neither.
    pub fn read_physical(&self, gpa: Gpa, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let Some(at) = gpa.0.checked_add(done as u64) else { break };
            let n = (buf.len() - done).min(left_in_page(at));
            if !self.is_memory(Gpa(at)) || !self.vm.sys.mem.read_phys(Gpa(at), &mut buf[done..done + n]) {
                break;
            }
            done += n;
        }
        done
    }

    /// Reads memory at a linear address of vCPU `index`; returns how many bytes could be read before the first page
    /// that is unmapped or not memory.
    pub fn read_virtual(&mut self, index: usize, gva: Gva, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let at = Gva(gva.0.wrapping_add(done as u64));
            let n = (buf.len() - done).min(left_in_page(at.0));
            let Some(gpa) = self.translate(index, at) else { break };
            let got = self.read_physical(gpa, &mut buf[done..done + n]);
            done += got;
            if got < n {
                break;
            }
        }
        done
    }

    /// Splits a write of `bytes` at a linear address into physical pieces; `Err` is the first linear address that is
    /// unmapped or not RAM, and then nothing may be written.
    pub fn plan_write<'b>(
        &mut self,
        index: usize,
        gva: Gva,
        bytes: &'b [u8],
    ) -> Result<Vec<(Gpa, &'b [u8])>, Gva> {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < bytes.len() {
            let at = Gva(gva.0.wrapping_add(done as u64));
            let n = (bytes.len() - done).min(left_in_page(at.0));
            match self.translate(index, at) {
                Some(gpa) if self.is_ram(gpa) => pieces.push((gpa, &bytes[done..done + n])),
                _ => return Err(at),
            }
            done += n;
        }
        Ok(pieces)
    }

    /// The current icount.
    pub fn icount(&self) -> Icount {
        self.when().icount
    }
}

/// Linear address of the instruction `cpu` executes next.
pub fn linear_pc(cpu: &Vcpu) -> Gva {
    Gva(cpu.seg[Seg::Cs as usize].lin_base.wrapping_add(cpu.rip) & cpu.mode.lin_mask)
}
