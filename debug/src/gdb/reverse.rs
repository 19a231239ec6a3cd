//! gdb's reverse execution: `bs` and `bc` as resumptions of the session.

use super::target::Debuggee;
use crate::session::{Resume, SessionError};
use gdbstub::common::Tid;
use gdbstub::target::ext::base::reverse_exec::{ReverseCont, ReverseStep};

impl ReverseCont<Tid> for Debuggee {
    fn reverse_cont(&mut self) -> Result<(), SessionError> {
        self.start(Resume::ReverseContinue)
    }
}

impl ReverseStep<Tid> for Debuggee {
    fn reverse_step(&mut self, tid: Tid) -> Result<(), SessionError> {
        let vcpu = if self.any_thread { self.stopped } else { self.existing(tid) };
        self.start(Resume::ReverseStep { vcpu })
    }
}

/// What an `Hc` packet says: `None` if it is none, else whether it leaves the thread open (0: any, -1: all).
pub fn continue_thread(body: &[u8]) -> Option<bool> {
    let text = std::str::from_utf8(body.strip_prefix(b"Hc")?).ok()?;
    let thread = text.rsplit_once('.').map_or(text, |(_, thread)| thread);
    Some(matches!(thread, "0" | "-1"))
}

#[cfg(test)]
mod tests {
    use super::continue_thread;

    #[test]
    fn continue_threads_are_told_from_other_packets() {
        for (body, any) in [("Hc0", true), ("Hc-1", true), ("Hcp1.-1", true), ("Hcp01.0", true)] {
            assert_eq!(continue_thread(body.as_bytes()), Some(any), "{body}");
        }
        assert_eq!([continue_thread(b"Hc2"), continue_thread(b"Hcp1.1")], [Some(false); 2]);
        assert_eq!([continue_thread(b"Hg0"), continue_thread(b"bc"), continue_thread(b"")], [None; 3]);
    }
}
