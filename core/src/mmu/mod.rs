//! The memory-management unit: guest-virtual to guest-physical to host. Owns the page walk, the ASID pool, the
//! software TLBs and the shadow page tables; `access` is the only guest load/store path of both engines.

pub mod access;

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

/// The VM's MMU state: all derived, never saved, dropped on restore.
pub struct Mmu {}

impl Mmu {
    pub fn new() -> Self { Self {} }
}

impl Default for Mmu {
    fn default() -> Self { Self::new() }
}
