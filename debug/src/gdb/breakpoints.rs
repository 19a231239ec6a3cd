//! gdb's breakpoints and watchpoints as points of the session. Software and hardware breakpoints are the same thing
//! here; which kind gdb asked for is remembered only to report a hit in the words gdb expects.

use super::target::Debuggee;
use crate::breakpoints::Point;
use gdbstub::target::TargetResult;
use gdbstub::target::ext::breakpoints as ext;
use retrovisor_core::Gva;
use retrovisor_core::engine::hooks::{Watch, WatchAddr, WatchKind};

impl ext::Breakpoints for Debuggee {
    fn support_sw_breakpoint(&mut self) -> Option<ext::SwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_breakpoint(&mut self) -> Option<ext::HwBreakpointOps<'_, Self>> {
        Some(self)
    }
    fn support_hw_watchpoint(&mut self) -> Option<ext::HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl ext::SwBreakpoint for Debuggee {
    fn add_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.software.insert(addr);
        self.insert(Point::Break(Gva(addr)))
    }
    fn remove_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.software.remove(&addr);
        self.remove(Point::Break(Gva(addr)))
    }
}

impl ext::HwBreakpoint for Debuggee {
    fn add_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.hardware.insert(addr);
        self.insert(Point::Break(Gva(addr)))
    }
    fn remove_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.hardware.remove(&addr);
        self.remove(Point::Break(Gva(addr)))
    }
}

impl ext::HwWatchpoint for Debuggee {
    fn add_hw_watchpoint(&mut self, addr: u64, len: u64, kind: ext::WatchKind) -> TargetResult<bool, Self> {
        match watch(addr, len, kind) {
            Some(point) => self.insert(point),
            None => Ok(false),
        }
    }
    fn remove_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: ext::WatchKind,
    ) -> TargetResult<bool, Self> {
        match watch(addr, len, kind) {
            Some(point) => self.remove(point),
            None => Ok(false),
        }
    }
}

/// `None` for a range that is empty or leaves the address space.
fn watch(addr: u64, len: u64, kind: ext::WatchKind) -> Option<Point> {
    addr.checked_add(len.checked_sub(1)?)?;
    let kind = match kind {
        ext::WatchKind::Read => WatchKind::Read,
        ext::WatchKind::Write => WatchKind::Write,
        ext::WatchKind::ReadWrite => WatchKind::Access,
    };
    Some(Point::Watch(Watch { addr: WatchAddr::Virtual(Gva(addr)), len, kind }))
}
