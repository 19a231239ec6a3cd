//! A person at the serial console, as a script: when the guest has printed what a step waits for, the step's line is
//! typed. Everything happens on the VM thread and depends on the guest alone, so a scripted session repeats exactly.

use retrovisor_core::clock::ClockKind;
use retrovisor_core::hash::StateHash;
use retrovisor_core::input::{Idle, InputEvent, InputPort, NoInput, Poll, Query, When};
use retrovisor_core::loader::Images;
use retrovisor_core::machine::config::MachineConfig;
use retrovisor_core::machine::vm::{Vm, VmExit};
use retrovisor_core::output::{OutputPort, OutputSink};
use retrovisor_core::{GuestTime, Icount};
use retrovisor_replay::{ExitReason, IdlePolicy, Live, Mailbox, Recording};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Wait for a text, then type a line.
pub type Step = (&'static str, &'static str);

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// Where the search for the next prompt begins: what stands before was printed before the last line was typed.
    from: usize,
}

/// What the guest has printed on COM1. Clones share it.
#[derive(Clone, Default)]
pub struct Screen {
    text: Arc<Mutex<Text>>,
}

impl Screen {
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().bytes).into_owned()
    }

    fn shows(&self, prompt: &str) -> bool {
        let text = self.lock();
        text.bytes[text.from..].windows(prompt.len()).any(|w| w == prompt.as_bytes())
    }

    /// Later prompts are looked for in what is printed from now on.
    fn mark(&self) {
        let mut text = self.lock();
        text.from = text.bytes.len();
    }
}

impl OutputSink for Screen {
    fn write(&mut self, _when: When, port: OutputPort, bytes: &[u8]) {
        if port == OutputPort::Serial(0) {
            self.lock().bytes.extend_from_slice(bytes);
        }
    }
}

/// The port that types; everything else is `P`'s.
pub struct Script<P> {
    inner: P,
    steps: VecDeque<Step>,
    screen: Screen,
}

impl<P: InputPort> Script<P> {
    pub fn new(inner: P, steps: &[Step], screen: Screen) -> Self {
        Self { inner, steps: steps.iter().copied().collect(), screen }
    }

    fn due(&self) -> bool {
        self.steps.front().is_some_and(|(prompt, _)| self.screen.shows(prompt))
    }
}

impl<P: InputPort> InputPort for Script<P> {
    fn poll(&mut self, now: When) -> Poll {
        if self.due()
            && let Some((_, line)) = self.steps.pop_front()
        {
            self.screen.mark();
            return Poll::Event(InputEvent::Serial { port: 0, bytes: line.as_bytes().to_vec() });
        }
        self.inner.poll(now)
    }

    fn next_poll(&self) -> Option<Icount> {
        self.inner.next_poll()
    }
    fn answer(&mut self, now: When, query: Query) -> u64 {
        self.inner.answer(now, query)
    }
    fn set_deadline(&mut self, deadline: Option<GuestTime>) {
        self.inner.set_deadline(deadline)
    }
    fn resume(&mut self, now: When) {
        self.inner.resume(now)
    }
    fn inject(&mut self, now: When, event: &InputEvent) {
        self.inner.inject(now, event)
    }
    fn check(&mut self, now: When, hash: StateHash) -> bool {
        self.inner.check(now, hash)
    }

    fn idle(&mut self, now: When, deadline: Option<GuestTime>) -> Idle {
        let next = GuestTime(now.time.0 + 1);
        if self.due() && deadline.is_none_or(|d| next < d) {
            return Idle::Input(next);
        }
        self.inner.idle(now, deadline)
    }
}

/// A machine with a script and, around it, a recording in memory.
pub struct Session {
    pub vm: Vm,
    pub screen: Screen,
    recording: Recording,
    file: retrovisor_replay::record::MemoryFile,
}

/// What is left of a session.
pub struct Recorded {
    pub exit: VmExit,
    pub screen: String,
    pub trace: Vec<u8>,
    pub hash: StateHash,
    pub when: When,
}

impl Session {
    pub fn new(config: MachineConfig, images: Images, steps: &[Step]) -> Self {
        let (recording, file) = Recording::in_memory(&config, &images).expect("a recording in memory starts");
        let screen = Screen::default();
        let port: Box<dyn InputPort> = match config.clock {
            ClockKind::Virtual => Box::new(recording.port(Script::new(NoInput, steps, screen.clone()))),
            ClockKind::Host => {
                let live = Live::new(Mailbox::new(), ClockKind::Host, IdlePolicy::RealTime);
                Box::new(recording.port(Script::new(live, steps, screen.clone())))
            }
        };
        let output = Box::new(recording.output(screen.clone()));
        let vm = Vm::new(config, images, port, output).expect("the images load");
        Self { vm, screen, recording, file }
    }

    /// Runs to the guest's end, or to `limit` if it does not end.
    pub fn run(mut self, limit: Icount) -> Recorded {
        let exit = self.vm.run(Some(limit));
        self.recording
            .finish_vm(&mut self.vm, ExitReason::from_exit(exit))
            .expect("the recording is complete");
        Recorded {
            exit,
            screen: self.screen.text(),
            trace: self.file.bytes(),
            hash: self.vm.state_hash(),
            when: self.vm.when(),
        }
    }
}
