//! Making a guest: the machine it runs on and what it boots, or the trace it replays.

use super::{ClockKind, Console, CpuModel, Engine, Error, Guest, Symbols, failure};
use retrovisor_core::input::{InputPort, NoInput};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::Vm;
use retrovisor_replay::{
    IdlePolicy, Live, Machine, Mailbox, Recording, Replay, Timeline, Trace, VerifyOptions,
};
use std::path::Path;
use std::sync::Arc;

/// Bytes the history may take.
const HISTORY: u64 = 512 << 20;
/// Instructions a run without a limit of its own may take.
const LIMIT: u64 = 50_000_000_000;

/// A guest to be booted; ends in [`Builder::boot`] or [`Builder::open`].
#[derive(Clone, Debug)]
pub struct Builder {
    config: MachineConfig,
    images: Images,
    engine: Engine,
    symbols: Symbols,
    history: u64,
    limit: u64,
    name: Option<String>,
    error: Option<Error>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            config: MachineConfig { no_reboot: true, ..MachineConfig::default() },
            images: Images::default(),
            engine: Engine::default(),
            symbols: Symbols::default(),
            history: HISTORY,
            limit: LIMIT,
            name: None,
            error: None,
        }
    }
}

impl Builder {
    /// The kernel: a bzImage, multiboot, PVH or ELF image. Symbols it carries are taken over.
    pub fn kernel(mut self, image: impl Into<Vec<u8>>) -> Self {
        let image = image.into();
        // A kernel that makes no sense is refused when it is booted.
        let _ = self.symbols.add_if_elf(&image);
        self.images.kernel = Some(image);
        self
    }

    /// The same, from a file.
    pub fn kernel_file(mut self, path: impl AsRef<Path>) -> Self {
        let name = path.as_ref().file_name().map(|n| n.to_string_lossy().into_owned());
        self.images.kernel_name = name.unwrap_or_default();
        match read(path.as_ref()) {
            Ok(image) => self.kernel(image),
            Err(e) => self.fail(e),
        }
    }

    /// The initial RAM disk.
    pub fn initrd(mut self, image: impl Into<Vec<u8>>) -> Self {
        self.images.initrd = Some(image.into());
        self
    }

    /// The same, from a file.
    pub fn initrd_file(self, path: impl AsRef<Path>) -> Self {
        match read(path.as_ref()) {
            Ok(image) => self.initrd(image),
            Err(e) => self.fail(e),
        }
    }

    /// The kernel's command line.
    pub fn append(mut self, cmdline: &str) -> Self {
        self.images.cmdline = cmdline.into();
        self
    }

    /// Firmware to boot instead of a kernel.
    pub fn bios(mut self, image: impl Into<Vec<u8>>) -> Self {
        self.images.bios = Some(image.into());
        self
    }

    /// Symbols: an ELF file, or lines as in `System.map` and `/proc/kallsyms`.
    pub fn symbols(mut self, file: &[u8]) -> Self {
        match self.symbols.add(file) {
            Ok(()) => self,
            Err(e) => self.fail(e),
        }
    }

    /// Memory in MiB; 256 if nothing is said.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.config.memory = mib.saturating_mul(1 << 20);
        self
    }

    /// Number of vCPUs, 1 to 16; 1 if nothing is said.
    pub fn smp(mut self, vcpus: u8) -> Self {
        self.config.vcpus = vcpus.clamp(1, 16);
        self
    }

    pub fn cpu(mut self, model: CpuModel) -> Self {
        self.config.cpu = model;
        self
    }

    /// The clock. With [`ClockKind::Host`] two runs differ, and idle time takes its time.
    pub fn clock(mut self, clock: ClockKind) -> Self {
        self.config.clock = clock;
        self
    }

    /// What executes the guest; every engine gives the same run.
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Adds isa-debug-exit at this port: what the guest writes there ends the run.
    pub fn debug_exit(mut self, port: u16) -> Self {
        self.config.debug_exit = Some((port, 4));
        self
    }

    /// A reset restarts the machine instead of ending the run.
    pub fn reboot(mut self) -> Self {
        self.config.no_reboot = false;
        self
    }

    /// The rest of the machine description.
    pub fn configure(mut self, change: impl FnOnce(&mut MachineConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Bytes the history may take; 512 MiB if nothing is said.
    pub fn history(mut self, bytes: u64) -> Self {
        self.history = bytes.max(1);
        self
    }

    /// Instructions a run without a limit of its own may take.
    pub fn limit(mut self, insns: u64) -> Self {
        self.limit = insns;
        self
    }

    /// What the trace of a failed test is called; the test's name if nothing is said.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    fn fail(mut self, e: Error) -> Self {
        self.error.get_or_insert(e);
        self
    }

    /// Builds the machine; it stands before its first instruction.
    ///
    /// # Errors
    /// If a file could not be read, or the images cannot be booted.
    pub fn boot(self) -> Result<Guest, Error> {
        if let Some(e) = self.error {
            return Err(e);
        }
        let (config, console, mailbox) = (self.config, Console::default(), Mailbox::new());
        let recording = Recording::unwritten(&config);
        let inner: Box<dyn InputPort> = match config.clock {
            ClockKind::Virtual => Box::new(NoInput),
            ClockKind::Host => {
                Box::new(Live::new(Arc::clone(&mailbox), ClockKind::Host, IdlePolicy::RealTime))
            }
        };
        let port = recording.port(console.port(inner));
        let output = recording.output(console.clone());
        let mut vm = Vm::new(config, self.images, Box::new(port), Box::new(output))?;
        vm.engine = self.engine;
        let machine = Machine::from(vm)
            .with_timeline(|vm| Timeline::live(vm, recording.clone(), mailbox, self.history));
        Ok(Guest {
            machine,
            console,
            symbols: self.symbols,
            limit: self.limit,
            ended: None,
            name: self.name.unwrap_or_else(failure::test_name),
            trace: None,
        })
    }

    /// Replays a trace instead: of what was set, the engine, symbols, history and limit count.
    ///
    /// # Errors
    /// If the file cannot be read or is not a trace, or its machine cannot be built.
    pub fn open(mut self, path: impl AsRef<Path>) -> Result<Guest, Error> {
        if let Some(e) = self.error {
            return Err(e);
        }
        let (trace, console) = (Trace::open(path.as_ref())?, Console::default());
        let options = VerifyOptions { engine: self.engine, ..VerifyOptions::default() };
        let replay = Replay::new(&trace, options, Box::new(console.clone()))?.with_history(self.history);
        if let Some(kernel) = &replay.vm.images.kernel {
            self.symbols.add_if_elf(kernel)?;
        }
        Ok(Guest {
            machine: replay.vm,
            console,
            symbols: self.symbols,
            limit: self.limit,
            ended: None,
            name: self.name.unwrap_or_else(failure::test_name),
            trace: Some(path.as_ref().to_owned()),
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|e| Error::File { file: path.display().to_string(), why: e.to_string() })
}
