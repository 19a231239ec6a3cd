//! Guest faults as values. Owns the vector numbers and the shape of an exception on its way to delivery.
//! Source: Intel SDM vol. 3A, chapter 6.

/// Result of executing one guest instruction.
pub type Exec = Result<(), Exception>;

/// Exception vectors (SDM vol. 3A, table 6-1).
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// A guest exception: vector, optional error code, and for #PF the faulting linear address (goes to CR2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    pub vector: u8,
    pub has_error: bool,
    pub error: u32,
    /// #PF: the faulting linear address. #DB: the DR6 bits of its causes. Else 0.
    pub addr: u64,
}

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, has_error: false, error: 0, addr: 0 }
    }
    /// An exception with an error code.
    pub const fn with_error(vector: u8, error: u32) -> Self {
        Self { vector, has_error: true, error, addr: 0 }
    }
    /// #DB with the DR6 bits that tell its causes.
    pub const fn db(dr6: u64) -> Self {
        Self { vector: vector::DB, has_error: false, error: 0, addr: dr6 }
    }
    pub const fn de() -> Self {
        Self::plain(vector::DE)
    }
    pub const fn ud() -> Self {
        Self::plain(vector::UD)
    }
    pub const fn nm() -> Self {
        Self::plain(vector::NM)
    }
    pub const fn gp(error: u32) -> Self {
        Self::with_error(vector::GP, error)
    }
    pub const fn ss(error: u32) -> Self {
        Self::with_error(vector::SS, error)
    }
    pub const fn np(error: u32) -> Self {
        Self::with_error(vector::NP, error)
    }
    pub const fn ts(error: u32) -> Self {
        Self::with_error(vector::TS, error)
    }
    /// #PF at linear address `addr` with the architectural error code `error`.
    pub const fn pf(addr: u64, error: u32) -> Self {
        Self { vector: vector::PF, has_error: true, error, addr }
    }
}

/// Mnemonic of an exception vector ("#PF"), or "vector" for vectors 32 and above.
pub const fn name(v: u8) -> &'static str {
    match v {
        0 => "#DE",
        1 => "#DB",
        2 => "NMI",
        3 => "#BP",
        4 => "#OF",
        5 => "#BR",
        6 => "#UD",
        7 => "#NM",
        8 => "#DF",
        10 => "#TS",
        11 => "#NP",
        12 => "#SS",
        13 => "#GP",
        14 => "#PF",
        16 => "#MF",
        17 => "#AC",
        18 => "#MC",
        19 => "#XM",
        _ => "vector",
    }
}
