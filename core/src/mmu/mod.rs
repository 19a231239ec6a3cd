//! The memory-management unit: guest-virtual to guest-physical to host. Owns the page walk, the ASID pool, the
//! software TLBs and the shadow page tables; `access` is the only guest load/store path of both engines.

pub mod access;
mod quiet;
mod slow;
pub mod walk;

pub use walk::{MAXPHYADDR, PAGE_1G, Paging};

/// Which TLB array a vCPU's accesses use now. Derived from (ASID, privilege); never saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TlbRef(pub u32);

/// What an access wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    Exec,
}

/// On whose behalf an access is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// The current CPL decides.
    Current,
    /// Implicit supervisor access: descriptor tables, TSS, IDT, interrupt stack pushes at CPL < 3
    /// (SDM vol. 3A, 4.6.1). Never subject to AC override of SMAP.
    System,
    /// A user access whatever the CPL (pushes onto a user stack, WRUSS-like).
    User,
}

/// The privilege an access is checked with: each ASID has a TLB array for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum View {
    /// Supervisor access under SMAP.
    Supervisor = 0,
    User = 1,
    /// Supervisor access with EFLAGS.AC overriding SMAP.
    SupervisorAc = 2,
    /// User access with alignment checks (CR0.AM and EFLAGS.AC): its array holds no data entries, so that every
    /// access takes the slow path, which checks alignment.
    UserAligned = 3,
}

impl View {
    /// Is this a user-mode access in the sense of the page-fault error code?
    pub const fn is_user(self) -> bool { matches!(self, View::User | View::UserAligned) }
}

/// The VM's MMU state: all derived, never saved, dropped on restore.
pub struct Mmu {}

impl Mmu {
    pub fn new() -> Self { Self {} }
}

impl Default for Mmu {
    fn default() -> Self { Self::new() }
}
