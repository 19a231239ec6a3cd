//! The virtual machine: vCPUs, memory and board as one value that runs, stops exactly, saves and restores.
//! How it runs is `engine`; this file owns its construction, reset, inputs, state and hash.

use super::board::Board;
use super::config::MachineConfig;
use super::{firmware, tables};
use crate::addr::{Gpa, Gva};
use crate::clock::{Clock, ClockKind};
use crate::ctx::{Ctx, System};
use crate::engine::filter::AddressFilter;
use crate::engine::hooks::{Hooks, WatchHit};
use crate::engine::hooks::{Observer, Occurrence};
use crate::engine::interrupts::InterruptWatch;
use crate::engine::{Engine, JitOptions};
use crate::exception::Exception;
use crate::hash::{MemoryHash, StateHash};
use crate::input::{InputEvent, InputPort, Query, When};
use crate::interp::BlockCache;
use crate::loader::{self, Images, LoadError};
use crate::mem::{Footprint, Memory, Traced, Written};
use crate::mmu::Mmu;
use crate::output::OutputSink;
use crate::state::{Field, Reader, State, StateError, Writer};
use crate::translate::Translator;
use crate::vcpu::{Vcpu, regs};

/// Why [`Vm::run`] returned. The VM is at an instruction boundary and can be run again after any of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmExit {
    /// The icount asked for was reached.
    Reached,
    /// The instruction at this linear address is about to execute.
    Breakpoint(Gva),
    /// The instruction just executed touched a watched place.
    Watchpoint(WatchHit),
    /// The instruction or delivery just made did this (see `Hooks::wanted`).
    Occurred(Occurrence),
    /// The vCPU is about to deliver this exception (see `Hooks::stop_exceptions`).
    Exception(Exception),
    /// A vCPU triple-faulted (with `no_reboot`, or before the reset if `Hooks::stop_triple_fault`).
    TripleFault,
    /// The guest asked for a reset and `no_reboot` is set.
    Reset,
    /// The guest switched the machine off.
    PowerOff,
    /// isa-debug-exit: the exit code is `(value << 1) | 1`.
    DebugExit(u32),
    /// The input port wants the VM thread.
    Interrupted,
    /// The trace being replayed ends here.
    InputEnded,
    /// Every vCPU is halted with interrupts disabled: nothing can wake the machine.
    Dead,
    /// The state hash differs from the recorded one.
    Diverged,
}

/// A virtual machine.
pub struct Vm {
    pub config: MachineConfig,
    pub images: Images,
    pub vcpus: Vec<Vcpu>,
    /// Index of the vCPU whose turn it is.
    pub current: usize,
    pub sys: System,
    pub hooks: Hooks,
    pub cache: BlockCache,
    /// What executes the guest; may be changed between two runs.
    pub engine: Engine,
    /// The translator's switches and the size of its code cache in bytes; may be changed before the first run.
    pub jit_options: JitOptions,
    pub jit_buffer: usize,
    /// Made by the first run on [`Engine::Jit`].
    pub(crate) translator: Option<Box<Translator>>,
    /// SMP: icount at which the current vCPU's time slice ends.
    pub(crate) slice_end: u64,
    /// icount of the next state hash.
    pub(crate) next_hash: u64,
    /// icount of the next look at a live input port.
    pub(crate) next_poll: u64,
    pub(crate) filter: AddressFilter,
    /// Leave translated code after each block.
    pub(crate) one_block: bool,
    /// icount of the exception the debugger was stopped before last.
    pub(crate) shown_exception: Option<u64>,
    memory_hash: MemoryHash,
}

impl Vm {
    /// Builds the machine, loads the images, and stands before the first instruction.
    pub fn new(
        mut config: MachineConfig,
        images: Images,
        mut input: Box<dyn InputPort>,
        output: Box<dyn OutputSink>,
    ) -> Result<Self, LoadError> {
        crate::jit::host_support(config.cpu).map_err(LoadError::HostCpu)?;
        if config.clock == ClockKind::Host {
            config.wall_time = input.answer(When::default(), Query::BootWallTime);
        }
        let mem = Memory::new(config.memory, loader::rom_pages(&images))
            .map_err(|e| LoadError::Host(format!("{} bytes: {e}", config.memory)))?;
        let mut clock = Clock::new(config.clock);
        clock.ns_per_insn = config.ns_per_insn.max(1);
        let sys = System {
            icount: 0,
            asked: 0,
            limit: 0,
            mem,
            mmu: Mmu::new(),
            board: Board::new(&config),
            clock,
            input,
            output,
            interrupts: InterruptWatch::default(),
            observer: Observer::default(),
        };
        let mut vm = Self {
            vcpus: Vec::new(),
            current: 0,
            sys,
            hooks: Hooks::default(),
            cache: BlockCache::new(config.cpu),
            engine: Engine::default(),
            jit_options: JitOptions::default(),
            jit_buffer: crate::translate::cache::BUFFER,
            translator: None,
            slice_end: config.slice,
            next_hash: config.hash_interval.max(1),
            next_poll: 0,
            filter: AddressFilter::default(),
            one_block: false,
            shown_exception: None,
            memory_hash: MemoryHash::default(),
            config,
            images,
        };
        vm.reset()?;
        Ok(vm)
    }

    /// Power-on: devices reset, images loaded again, vCPUs in their boot state. RAM the images do not cover keeps
    /// its contents, as on hardware.
    pub fn reset(&mut self) -> Result<(), LoadError> {
        self.vcpus = (0..self.config.vcpus).map(|n| Vcpu::new(n, self.config.cpu)).collect();
        self.vcpus.iter_mut().for_each(|c| c.count = self.config.vcpus);
        self.current = 0;
        self.sys.board.reset();
        let rsdp = tables::install(&mut self.sys.mem, &self.config);
        if self.images.bios.is_none() {
            firmware::install_vectors(&mut self.sys.mem);
            self.sys.board.program_as_firmware(self.sys.when().time);
        }
        loader::load(&self.images, &self.config, &mut self.sys.mem, &mut self.vcpus[0], rsdp)?;
        self.sys.mem.code_writes.clear();
        self.cache.flush(&mut self.sys.mem);
        if let Some(t) = &mut self.translator {
            t.flush(&mut self.sys.mem);
        }
        self.drop_derived();
        self.note_interrupts();
        Ok(())
    }

    /// Drops what is derived from the architectural state, but for decoded and translated blocks, which know what they were
    /// made from.
    fn drop_derived(&mut self) {
        self.shown_exception = None;
        self.sys.mem.table_writes.clear();
        self.sys.mmu.reset(&mut self.sys.mem);
        for cpu in &mut self.vcpus {
            cpu.refresh();
            let mut ctx = Ctx { cpu, sys: &mut self.sys };
            ctx.mmu_switch();
            ctx.refresh_debug_regs();
        }
        self.observe();
    }

    /// Looks out for what the debugger wants from the present state on.
    pub(crate) fn observe(&mut self) {
        let spaces = self.vcpus.iter().map(|c| (c.cr3, c.mode.cpl));
        self.sys.observer.begin(&self.hooks.wanted, spaces);
    }

    /// Applies an input at the current boundary on behalf of the VM's owner (a debugger's write) and logs it.
    pub fn inject(&mut self, event: &InputEvent) {
        self.arrive();
        let when = self.when();
        self.sys.input.inject(when, event);
        self.apply(event);
    }

    /// Applies an input.
    pub(crate) fn apply(&mut self, event: &InputEvent) {
        match event {
            InputEvent::Tick { time } => {
                self.sys.clock.advance_to(self.sys.icount, *time);
                self.expire_timers();
                self.settle();
            }
            InputEvent::WritePhys { gpa, bytes } => {
                self.sys.mem.write_phys(Gpa(*gpa), bytes);
                self.settle();
            }
            InputEvent::WriteReg { vcpu, reg, value } => {
                if let Some(cpu) = self.vcpus.get_mut(usize::from(*vcpu)) {
                    regs::write_reg(cpu, *reg, *value);
                    let mut ctx = Ctx { cpu, sys: &mut self.sys };
                    ctx.mmu_switch();
                    ctx.refresh_debug_regs();
                }
            }
            InputEvent::Serial { .. }
            | InputEvent::Key { .. }
            | InputEvent::PowerButton
            | InputEvent::Nmi
            | InputEvent::Reset => {
                let (board, mut bus) = self.sys.bus();
                board.input(event, &mut bus);
            }
        }
        self.note_interrupts();
    }

    /// The current point.
    pub fn when(&self) -> When {
        self.sys.when()
    }

    /// The vCPU whose turn it is, ready to be looked at through guest-virtual addresses.
    pub fn ctx(&mut self, vcpu: usize) -> Option<Ctx<'_>> {
        Some(Ctx { cpu: self.vcpus.get_mut(vcpu)?, sys: &mut self.sys })
    }

    /// Digest of the guest-visible state: vCPUs, clock, devices and memory.
    pub fn state_hash(&mut self) -> StateHash {
        let dirty = self.sys.mem.take_dirty(Written::ToHash);
        self.memory_hash.update(&self.sys.mem, &dirty);
        StateHash(xxhash_rust::xxh3::xxh3_128(&self.save_state()) ^ self.memory_hash.value().rotate_left(1))
    }

    /// vCPUs, clock and devices (not memory) as bytes.
    pub fn save_state(&self) -> Vec<u8> {
        let mut w = Writer::default();
        self.sys.icount.put(&mut w);
        self.current.put(&mut w);
        self.slice_end.put(&mut w);
        self.sys.mem.a20_mask.put(&mut w);
        self.sys.clock.save(&mut w);
        for cpu in &self.vcpus {
            cpu.save(&mut w);
        }
        self.sys.board.save(&mut w);
        w.bytes
    }

    /// The slab pages (4 KiB each) whose contents may have changed since the last call, ascending; at first those that are
    /// not zero. What a checkpoint has to keep beside [`Vm::save_state`].
    pub fn take_written(&mut self) -> Vec<usize> {
        self.sys.mem.take_dirty(Written::ToSave)
    }

    /// What the guest touched since the last call; empty at the first.
    pub fn take_footprint(&mut self) -> Footprint {
        self.sys.mmu.take_footprint(&mut self.sys.mem)
    }

    /// Restores the contents of a slab page; [`Vm::load_state`] follows before the machine runs.
    pub fn restore_page(&mut self, page: usize, bytes: &[u8; 4096]) {
        self.sys.mem.restore_page(page, bytes);
    }

    /// Restores what [`Vm::save_state`] gave, into a machine of the same description, at whose point nothing has happened
    /// yet: a hash is due if it is a hash point. Keeps the blocks of both engines that were made from what memory holds now.
    /// After an error the machine is partly restored: restore something else before it runs.
    ///
    /// # Errors
    /// If the bytes are not the state of a machine of this description.
    pub fn load_state(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let loaded = self.load_parts(bytes);
        let writes = std::mem::take(&mut self.sys.mem.code_writes);
        self.invalidate(&writes);
        self.drop_derived();
        loaded
    }

    /// Kills the blocks made from what was written.
    pub(crate) fn invalidate(&mut self, writes: &[Traced]) {
        self.cache.invalidate(writes, &mut self.sys.mem);
        if let Some(t) = &mut self.translator {
            t.invalidate(writes, &mut self.sys.mem);
        }
    }

    fn load_parts(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        let mut r = Reader::new(bytes);
        self.sys.icount = u64::get(&mut r)?;
        self.current = usize::get(&mut r)?;
        if self.current >= self.vcpus.len() {
            return Err(r.invalid());
        }
        self.slice_end = u64::get(&mut r)?;
        self.sys.mem.a20_mask = u64::get(&mut r)?;
        self.sys.clock.load(&mut r)?;
        for cpu in &mut self.vcpus {
            cpu.load(&mut r)?;
        }
        self.sys.board.load(&mut r)?;
        self.sys.mem.set_shadow(&self.sys.board.pci.shadow());
        let interval = self.config.hash_interval.max(1);
        self.next_hash = self.sys.icount.div_ceil(interval).max(1) * interval;
        self.next_poll = self.sys.icount;
        if r.is_empty() { Ok(()) } else { Err(r.invalid()) }
    }
}
