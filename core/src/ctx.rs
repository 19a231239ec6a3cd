//! What an instruction executes against: one vCPU and the system it shares with the others.

use crate::addr::{GuestTime, Icount};
use crate::clock::Clock;
use crate::engine::hooks::{Observer, Occurrence};
use crate::engine::interrupts::InterruptWatch;
use crate::input::{InputPort, When};
use crate::machine::board::{Board, BusCtx};
use crate::mem::Memory;
use crate::mmu::Mmu;
use crate::output::OutputSink;
use crate::vcpu::{Activity, Vcpu, flags};

/// What the engine's attention is asked for.
pub mod asked {
    /// The next instruction must be fetched anew.
    pub const REFETCH: u8 = 1;
    /// RFLAGS.RF is set, and nothing else is to be minded.
    pub const RESUME_FLAG: u8 = 2;
    /// Whatever the engine looks at between two instructions.
    pub const ANYTHING: u8 = 4;
}

/// Everything the vCPUs share.
pub struct System {
    /// Instructions retired so far by the whole VM.
    pub icount: u64,
    /// The engine leaves its instruction loop at the first boundary with `icount >= limit`. Slow paths that need
    /// the engine's attention (an interrupt line changed, a store hit translated code) call [`System::end_block`].
    pub limit: u64,
    /// What for: see [`asked`]. Cleared by whoever looks at it.
    pub asked: u8,
    pub mem: Memory,
    pub mmu: Mmu,
    pub board: Board,
    pub clock: Clock,
    pub input: Box<dyn InputPort>,
    pub output: Box<dyn OutputSink>,
    /// How long interrupts are off, while somebody asks.
    pub interrupts: InterruptWatch,
    /// What the debugger looks out for.
    pub observer: Observer,
}

impl System {
    /// Makes the engine return to its dispatcher after the current instruction.
    #[inline]
    pub fn end_block(&mut self) {
        (self.limit, self.asked) = (0, self.asked | asked::ANYTHING);
    }

    /// The same, only because the next instruction must be fetched anew: a mapping has gone, or the mode may be another.
    #[inline]
    pub fn refetch(&mut self) {
        (self.limit, self.asked) = (0, self.asked | asked::REFETCH);
    }

    /// Tells the debugger of something that just happened, if it asked for that.
    #[inline]
    pub fn occurred(&mut self, what: impl FnOnce() -> Occurrence) {
        if self.observer.active() && self.observer.note(what()) {
            self.end_block();
        }
    }

    /// Current point on the run's axis.
    pub fn when(&self) -> When {
        When { icount: Icount(self.icount), time: self.clock.now(self.icount) }
    }

    /// The time a timer register read sees. Under `--clock host` this is a logged input.
    pub fn read_time(&mut self) -> GuestTime {
        let when = self.when();
        self.clock.read(when, &mut *self.input)
    }

    /// Splits the system into the board and what devices may touch during an access.
    pub fn bus(&mut self) -> (&mut Board, BusCtx<'_>) {
        let when = self.when();
        let bus = BusCtx {
            when,
            clock: &mut self.clock,
            mem: &mut self.mem,
            input: &mut *self.input,
            output: &mut *self.output,
        };
        (&mut self.board, bus)
    }
}

impl Ctx<'_> {
    /// Makes the engine look around at the boundary after the current instruction if it has anything to do there: an
    /// interrupt or NMI to deliver, a trap or shadow to mind.
    #[inline]
    pub fn attend(&mut self) {
        let c = &self.cpu;
        let interrupt = c.flags.has(flags::bit::IF) && self.sys.board.intr(c.index);
        if interrupt || c.nmi_pending || c.is_followed() || c.activity != Activity::Running {
            self.sys.end_block();
        } else if c.flags.has(flags::bit::RF) {
            (self.sys.limit, self.sys.asked) = (0, self.sys.asked | asked::RESUME_FLAG);
        }
    }
}

/// One vCPU about to execute, and the system around it. All of `isa` is written against this.
pub struct Ctx<'a> {
    pub cpu: &'a mut Vcpu,
    pub sys: &'a mut System,
}
