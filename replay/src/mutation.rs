//! Something made to go wrong in a replay: one bit, flipped as if an instruction had got it wrong. A self-test of what finds
//! and narrows down divergences.

use retrovisor_core::machine::vm::Vm;
use retrovisor_core::vcpu::regs::{num, read_reg, write_reg};
use retrovisor_core::{Gpa, Icount};
use std::fmt;
use std::str::FromStr;

/// Which bit is flipped: the lowest of...
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victim {
    /// ...a register (numbered as debuggers' writes are) of the vCPU that executes.
    Register(u16),
    /// ...a byte of memory.
    Memory(Gpa),
}

/// One wrong bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mutation {
    /// The instruction that gets it wrong.
    pub at: Icount,
    pub victim: Victim,
}

/// A register that hardly any code writes, so that a wrong bit in it stays and is seen.
const LASTING: u16 = num::XMM + 15;

const GPR: [&str; 16] =
    ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di", "8", "9", "10", "11", "12", "13", "14", "15"];

/// A register's number by name.
fn register(name: &str) -> Option<u16> {
    let name = name.to_ascii_lowercase();
    let numbered = |prefix: &str, first: u16, count: u16| {
        let n: u16 = name.strip_prefix(prefix)?.parse().ok()?;
        (n < count).then_some(first + n)
    };
    let general = name.strip_prefix(['r', 'e']).and_then(|n| GPR.iter().position(|g| *g == n));
    match name.as_str() {
        "rip" | "eip" => Some(num::RIP),
        "rflags" | "eflags" => Some(num::RFLAGS),
        "cr2" => Some(num::CR2),
        "mxcsr" => Some(num::MXCSR),
        _ => general
            .and_then(|n| u16::try_from(n).ok())
            .or_else(|| numbered("xmm", num::XMM, 16))
            .or_else(|| numbered("dr", num::DR, 4)),
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

impl FromStr for Mutation {
    type Err = String;

    /// `ICOUNT`, `ICOUNT:REGISTER` or `ICOUNT:ADDRESS` (guest-physical).
    fn from_str(text: &str) -> Result<Self, String> {
        let (at, victim) = text.split_once(':').map_or((text, None), |(at, v)| (at, Some(v)));
        let at = number(at).filter(|n| *n < 1 << 62).ok_or_else(|| format!("`{at}` is no icount"))?;
        let victim = match victim {
            None => Victim::Register(LASTING),
            Some(v) => register(v)
                .map(Victim::Register)
                .or_else(|| number(v).map(|a| Victim::Memory(Gpa(a))))
                .ok_or_else(|| {
                    format!(
                        "`{v}` is no register (rax to r15, rip, rflags, cr2, dr0 to dr3, xmm0 to xmm15, mxcsr) and \
                         no address"
                    )
                })?,
        };
        Ok(Self { at: Icount(at), victim })
    }
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.victim {
            Victim::Register(n) if n < 16 => write!(f, "bit 0 of r{}", GPR[usize::from(n)])?,
            Victim::Register(num::RIP) => write!(f, "bit 0 of rip")?,
            Victim::Register(num::RFLAGS) => write!(f, "bit 0 of rflags")?,
            Victim::Register(num::CR2) => write!(f, "bit 0 of cr2")?,
            Victim::Register(num::MXCSR) => write!(f, "bit 0 of mxcsr")?,
            Victim::Register(n) if n >= num::DR => write!(f, "bit 0 of dr{}", n - num::DR)?,
            Victim::Register(n) => write!(f, "bit 0 of xmm{}", n.saturating_sub(num::XMM))?,
            Victim::Memory(gpa) => write!(f, "bit 0 of the byte at physical address {:#x}", gpa.0)?,
        }
        write!(f, " flipped by instruction {}", self.at)
    }
}

impl Mutation {
    /// The point on arrival at which the bit is wrong.
    pub(crate) fn seen(&self) -> Icount {
        self.at + 1
    }

    /// Flips the bit. Not an input: the machine's port hears nothing of it.
    pub(crate) fn make(&self, vm: &mut Vm) {
        match self.victim {
            Victim::Register(reg) => {
                let current = vm.current;
                let Some(mut ctx) = vm.ctx(current) else { return };
                let value = read_reg(ctx.cpu, reg);
                write_reg(ctx.cpu, reg, value ^ 1);
                ctx.mmu_switch();
                ctx.refresh_debug_regs();
            }
            Victim::Memory(gpa) => {
                let mut byte = [0];
                if vm.sys.mem.read_phys(gpa, &mut byte) {
                    vm.sys.mem.write_phys(gpa, &[byte[0] ^ 1]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_mutations_by_name() {
        let of = |s: &str| s.parse::<Mutation>();
        let mutation = |at, victim| Ok(Mutation { at: Icount(at), victim });
        assert_eq!(of("12"), mutation(12, Victim::Register(LASTING)));
        assert_eq!(of("12:rax"), mutation(12, Victim::Register(0)));
        assert_eq!(of("0:R15"), mutation(0, Victim::Register(15)));
        assert_eq!(of("7:edi"), mutation(7, Victim::Register(7)));
        assert_eq!(of("7:xmm3"), mutation(7, Victim::Register(num::XMM + 3)));
        assert_eq!(of("7:dr3"), mutation(7, Victim::Register(num::DR + 3)));
        assert_eq!(of("0x10:0x1000"), mutation(16, Victim::Memory(Gpa(0x1000))));
        for s in ["", "x", "1:", "1:xmm16", "1:r16", "1:dr4", "-1", "1:0xzz", "9223372036854775807"] {
            assert!(of(s).is_err(), "{s}");
        }
        let shown = |s: &str| of(s).unwrap().to_string();
        assert_eq!(shown("5:ecx"), "bit 0 of rcx flipped by instruction 5");
        assert_eq!(shown("5"), "bit 0 of xmm15 flipped by instruction 5");
        assert!(shown("5:0xff").contains("physical address 0xff"));
    }
}
