//! Looking at a machine by the names a test uses; changes nothing.

use super::place::Address;
use super::{Error, Guest, GuestTime, Icount, Place, Symbols};
use crate::inspect::Inspect;
use crate::registers;
use retrovisor_core::machine::vm::Vm;
use retrovisor_core::{Gpa, Gva};

/// A little-endian number in memory.
pub trait Scalar: Sized {
    const SIZE: usize;
    /// The number in the first [`Scalar::SIZE`] bytes.
    fn of(bytes: &[u8; 8]) -> Self;
}

macro_rules! scalars {
    ($($t:ty),*) => {$(
        impl Scalar for $t {
            const SIZE: usize = size_of::<$t>();
            fn of(bytes: &[u8; 8]) -> Self {
                u64::from_le_bytes(*bytes) as $t
            }
        }
    )*};
}
scalars!(u8, u16, u32, u64, i8, i16, i32, i64);

/// A machine at one point of its run. Given to the predicates of [`super::History`].
pub struct Look<'a> {
    vm: Inspect<'a>,
    symbols: &'a Symbols,
    vcpu: usize,
}

impl<'a> Look<'a> {
    /// Looks at the machine through the vCPU whose turn it is.
    pub(super) fn new(vm: &'a mut Vm, symbols: &'a Symbols) -> Self {
        let vcpu = vm.current;
        Self { vm: Inspect::new(vm), symbols, vcpu }
    }

    /// Looks through another vCPU.
    ///
    /// # Errors
    /// If there is none with this number.
    pub fn vcpu(mut self, n: usize) -> Result<Self, Error> {
        self.vm.vcpu(n).ok_or(Error::NoVcpu(n))?;
        self.vcpu = n;
        Ok(self)
    }

    pub fn icount(&self) -> Icount {
        self.vm.icount()
    }

    /// A register by gdb's name for it: `rax`, `rip`, `eflags`, `cs`, `cr3`, `gs_base`, ... 32-bit names read the low half.
    ///
    /// # Errors
    /// If there is no such register.
    pub fn reg(&self, name: &str) -> Result<u64, Error> {
        self.wide(name).map(|v| v as u64)
    }

    /// The same for registers of up to 128 bits: `xmm0`, `st0`.
    ///
    /// # Errors
    /// If there is no such register.
    pub fn wide(&self, name: &str) -> Result<u128, Error> {
        let lower = name.to_ascii_lowercase();
        let (row, mask) = match registers::by_name(&lower) {
            Some(row) => (Some(row), u128::MAX),
            None => match lower.strip_prefix('e') {
                Some(rest) => (registers::by_name(&format!("r{rest}")), u128::from(u32::MAX)),
                None => (None, 0),
            },
        };
        let cpu = self.vm.vcpu(self.vcpu).ok_or(Error::NoVcpu(self.vcpu))?;
        let row = row.ok_or_else(|| Error::NoRegister(name.into()))?;
        Ok(registers::read(cpu, self.vm.cr8(self.vcpu), row.source) & mask)
    }

    /// Linear address of the instruction to execute next.
    pub fn pc(&self) -> Gva {
        self.vm.pc(self.vcpu)
    }

    /// May interrupts be delivered (RFLAGS.IF)?
    pub fn interrupts_on(&self) -> bool {
        self.reg("eflags").is_ok_and(|f| f & retrovisor_core::vcpu::flags::bit::IF != 0)
    }

    /// Current privilege level.
    pub fn cpl(&self) -> u8 {
        self.vm.vcpu(self.vcpu).map_or(0, |c| c.mode.cpl)
    }

    /// A number in memory.
    ///
    /// # Errors
    /// If it is not all in memory, or there is no such symbol.
    pub fn read<T: Scalar>(&mut self, at: impl Into<Place>) -> Result<T, Error> {
        let mut bytes = [0; 8];
        self.bytes_into(&at.into(), &mut bytes[..T::SIZE])?;
        Ok(T::of(&bytes))
    }

    /// Bytes in memory.
    ///
    /// # Errors
    /// As [`Look::read`].
    pub fn bytes(&mut self, at: impl Into<Place>, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        self.bytes_into(&at.into(), &mut bytes)?;
        Ok(bytes)
    }

    fn bytes_into(&mut self, place: &Place, out: &mut [u8]) -> Result<(), Error> {
        let got = match place.resolve(self.symbols)? {
            Address::Virtual(at) => self.vm.read_virtual(self.vcpu, at, out),
            Address::Physical(at) => self.vm.read_physical(at, out),
        };
        if got == out.len() {
            return Ok(());
        }
        Err(Error::NotMapped { place: place.clone(), at: self.icount() })
    }

    /// The physical address of `len` bytes that are contiguous there.
    ///
    /// # Errors
    /// If they are not, or are not mapped to memory.
    pub fn physical(&mut self, at: impl Into<Place>, len: u64) -> Result<Gpa, Error> {
        let place = at.into();
        let at = match place.resolve(self.symbols)? {
            Address::Physical(at) => return Ok(at),
            Address::Virtual(at) => at,
        };
        let first = self.translate(&place, at)?;
        let mut next = (at.0 | 0xfff).wrapping_add(1);
        while next.wrapping_sub(at.0) < len {
            if self.translate(&place, Gva(next))?.0 != first.0.wrapping_add(next.wrapping_sub(at.0)) {
                return Err(Error::Scattered { place, len });
            }
            next = next.wrapping_add(0x1000);
        }
        Ok(first)
    }

    fn translate(&mut self, place: &Place, at: Gva) -> Result<Gpa, Error> {
        let gone = || Error::NotMapped { place: place.clone(), at: self.vm.icount() };
        let missing = gone();
        self.vm.translate(self.vcpu, at).ok_or(missing)
    }
}

impl Guest {
    /// The machine at the point it stands at, through the vCPU whose turn it is.
    pub fn look(&mut self) -> Look<'_> {
        Look::new(&mut self.machine, &self.symbols)
    }

    /// As [`Look::reg`].
    ///
    /// # Errors
    /// If there is no such register.
    pub fn reg(&mut self, name: &str) -> Result<u64, Error> {
        self.look().reg(name)
    }

    /// Linear address of the instruction to execute next.
    pub fn pc(&mut self) -> Gva {
        self.look().pc()
    }

    /// A number in memory; virtual addresses are those of the vCPU whose turn it is.
    ///
    /// # Errors
    /// As [`Look::read`].
    pub fn read<T: Scalar>(&mut self, at: impl Into<Place>) -> Result<T, Error> {
        self.look().read(at)
    }

    /// Bytes in memory.
    ///
    /// # Errors
    /// As [`Look::read`].
    pub fn bytes(&mut self, at: impl Into<Place>, len: usize) -> Result<Vec<u8>, Error> {
        self.look().bytes(at, len)
    }

    /// Instructions (REP iterations, deliveries) executed before this point.
    pub fn icount(&self) -> Icount {
        self.machine.when().icount
    }

    pub fn guest_time(&self) -> GuestTime {
        self.machine.when().time
    }

    /// What the guest has printed on COM1 before this point.
    pub fn console(&self) -> String {
        self.console.before(self.icount())
    }

    /// What it had printed before `icount`, which lies before the newest point.
    pub fn console_at(&self, icount: Icount) -> String {
        self.console.before(icount)
    }

    /// `name+0x12` for an address.
    pub fn describe(&self, at: Gva) -> String {
        self.symbols.describe(at.0)
    }
}
