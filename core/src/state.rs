//! Saved state: named, versioned, little-endian. Owns the byte format and the `impl_state!` macro that makes save
//! and load from one list of fields, so that neither can forget one.
//!
//! A part is `name (u8 length + bytes), version (u16), length (u32), fields`. Unknown names or versions are refused.

use thiserror::Error;

/// Why saved state could not be loaded.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum StateError {
    #[error("saved state ends early in `{0}`")]
    Short(&'static str),
    #[error("saved state has part `{found}` where `{expected}` belongs")]
    WrongPart { expected: &'static str, found: String },
    #[error("saved state of `{name}` has version {found}, this build reads version {expected}")]
    Version { name: &'static str, expected: u16, found: u16 },
    #[error("saved state of `{0}` has an invalid value")]
    Invalid(&'static str),
}

/// Appends fields to a byte vector.
#[derive(Debug, Default)]
pub struct Writer {
    pub bytes: Vec<u8>,
}

/// Reads fields from a byte slice; never reads past it.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    part: &'static str,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, part: "state" }
    }
    /// Takes `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], StateError> {
        if self.bytes.len() < n {
            return Err(StateError::Short(self.part));
        }
        let (a, b) = self.bytes.split_at(n);
        self.bytes = b;
        Ok(a)
    }
    /// True when everything was read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
    /// Error for a value out of range in the current part.
    pub fn invalid(&self) -> StateError {
        StateError::Invalid(self.part)
    }
}

/// A value that can be a field of saved state.
pub trait Field: Sized {
    fn put(&self, w: &mut Writer);
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError>;
}

/// A named, versioned part of the machine. Implement with [`impl_state!`]; there are no default bodies.
pub trait State {
    const NAME: &'static str;
    const VERSION: u16;
    fn save_fields(&self, w: &mut Writer);
    fn load_fields(&mut self, r: &mut Reader<'_>) -> Result<(), StateError>;

    /// Appends this part with its header.
    fn save(&self, w: &mut Writer) {
        w.bytes.push(Self::NAME.len() as u8);
        w.bytes.extend_from_slice(Self::NAME.as_bytes());
        Self::VERSION.put(w);
        let at = w.bytes.len();
        0u32.put(w);
        self.save_fields(w);
        let len = (w.bytes.len() - at - 4) as u32;
        w.bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// Reads this part back, header included. Raises no edges: lines are restored, not changed.
    fn load(&mut self, r: &mut Reader<'_>) -> Result<(), StateError> {
        r.part = Self::NAME;
        let n = u8::get(r)? as usize;
        let name = r.take(n)?;
        if name != Self::NAME.as_bytes() {
            let found = String::from_utf8_lossy(name).into_owned();
            return Err(StateError::WrongPart { expected: Self::NAME, found });
        }
        let found = u16::get(r)?;
        if found != Self::VERSION {
            return Err(StateError::Version { name: Self::NAME, expected: Self::VERSION, found });
        }
        let len = u32::get(r)? as usize;
        let mut part = Reader { bytes: r.take(len)?, part: Self::NAME };
        self.load_fields(&mut part)?;
        if part.is_empty() { Ok(()) } else { Err(StateError::Invalid(Self::NAME)) }
    }
}

macro_rules! int_field {
    ($($t:ty),*) => {$(
        impl Field for $t {
            fn put(&self, w: &mut Writer) { w.bytes.extend_from_slice(&self.to_le_bytes()); }
            fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
                let mut b = [0u8; size_of::<$t>()];
                b.copy_from_slice(r.take(size_of::<$t>())?);
                Ok(<$t>::from_le_bytes(b))
            }
        }
    )*};
}
int_field!(u8, u16, u32, u64, u128, i8, i16, i32, i64);

impl Field for usize {
    fn put(&self, w: &mut Writer) {
        (*self as u64).put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        usize::try_from(u64::get(r)?).map_err(|_| r.invalid())
    }
}

impl Field for bool {
    fn put(&self, w: &mut Writer) {
        w.bytes.push(u8::from(*self));
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        match u8::get(r)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(r.invalid()),
        }
    }
}

impl<T: Field> Field for Option<T> {
    fn put(&self, w: &mut Writer) {
        self.is_some().put(w);
        if let Some(v) = self {
            v.put(w);
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        if bool::get(r)? { Ok(Some(T::get(r)?)) } else { Ok(None) }
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    fn put(&self, w: &mut Writer) {
        for v in self {
            v.put(w);
        }
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        let v = (0..N).map(|_| T::get(r)).collect::<Result<Vec<T>, _>>()?;
        v.try_into().map_err(|_| r.invalid())
    }
}

impl<T: Field> Field for std::collections::VecDeque<T> {
    fn put(&self, w: &mut Writer) {
        put_seq(self.len(), self.iter(), w)
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        get_seq(r)
    }
}

impl<T: Field> Field for Vec<T> {
    fn put(&self, w: &mut Writer) {
        put_seq(self.len(), self.iter(), w)
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        get_seq(r)
    }
}

fn put_seq<'a, T: Field + 'a>(len: usize, items: impl Iterator<Item = &'a T>, w: &mut Writer) {
    (len as u32).put(w);
    items.for_each(|v| v.put(w));
}

fn get_seq<T: Field, C: FromIterator<T>>(r: &mut Reader<'_>) -> Result<C, StateError> {
    // `collect` over a fallible iterator does not reserve, so a huge claimed length cannot allocate much.
    let n = u32::get(r)?;
    (0..n).map(|_| T::get(r)).collect()
}

impl<A: Field, B: Field> Field for (A, B) {
    fn put(&self, w: &mut Writer) {
        self.0.put(w);
        self.1.put(w);
    }
    fn get(r: &mut Reader<'_>) -> Result<Self, StateError> {
        Ok((A::get(r)?, B::get(r)?))
    }
}

/// Implements [`State`] (top-level part, with header) for a struct from its list of fields. `skip` names
/// configuration and derived fields that are not state; every field must be in one of the two lists.
#[macro_export]
macro_rules! impl_state {
    ($ty:ty, $name:literal, $version:literal, { $($f:ident),* $(,)? } $(skip { $($s:ident),* $(,)? })?) => {
        impl $crate::state::State for $ty {
            const NAME: &'static str = $name;
            const VERSION: u16 = $version;
            fn save_fields(&self, w: &mut $crate::state::Writer) {
                let Self { $($f,)* $($($s: _,)*)? } = self;
                $($crate::state::Field::put($f, w);)*
                let _ = w;
            }
            fn load_fields(&mut self, r: &mut $crate::state::Reader<'_>) -> Result<(), $crate::state::StateError> {
                let Self { $($f,)* $($($s: _,)*)? } = self;
                $(*$f = $crate::state::Field::get(r)?;)*
                let _ = r;
                Ok(())
            }
        }
    };
}

/// Implements [`Field`](crate::state::Field) for a plain struct (no header) that is `Default`-free: all fields listed.
#[macro_export]
macro_rules! impl_field {
    ($ty:ident { $($f:ident),* $(,)? }) => {
        impl $crate::state::Field for $ty {
            fn put(&self, w: &mut $crate::state::Writer) {
                let Self { $($f),* } = self;
                $($crate::state::Field::put($f, w);)*
            }
            fn get(r: &mut $crate::state::Reader<'_>) -> Result<Self, $crate::state::StateError> {
                Ok(Self { $($f: $crate::state::Field::get(r)?),* })
            }
        }
    };
}
