//! Register numbers of [`crate::input::InputEvent::WriteReg`]: how debuggers name registers, stable in traces.

/// Register numbers: 0-15 general, then these.
pub mod num {
    pub const RIP: u16 = 16;
    pub const RFLAGS: u16 = 17;
    /// ES, CS, SS, DS, FS, GS selectors: SEG + n.
    pub const SEG: u16 = 18;
    pub const FS_BASE: u16 = 24;
    pub const GS_BASE: u16 = 25;
    pub const CR0: u16 = 26;
    pub const CR2: u16 = 27;
    pub const CR3: u16 = 28;
    pub const CR4: u16 = 29;
    pub const EFER: u16 = 30;
    /// ST(0)..ST(7): 80 bits.
    pub const ST: u16 = 32;
    /// FCW, FSW, FTW, FCS, FIP, FDS, FDP, FOP.
    pub const FCTRL: u16 = 40;
    pub const XMM: u16 = 48;
    pub const MXCSR: u16 = 64;
    /// DR0..DR3, DR6, DR7 as DR + n.
    pub const DR: u16 = 72;
    pub const KERNEL_GS_BASE: u16 = 80;
}
