//! Numbers and byte strings inside frames: LEB128, zigzag, and a cursor that never reads past its slice.

/// What a decoder found where something else belongs; a short phrase for an error message.
pub type Malformed = &'static str;

/// Appends `n` as LEB128: seven bits a byte, least significant first, bit 7 set on all but the last.
pub fn put(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends a signed difference as zigzag LEB128: 0, -1, 1, -2 ... become 0, 1, 2, 3 ...
pub fn put_signed(out: &mut Vec<u8>, n: i64) {
    put(out, ((n << 1) ^ (n >> 63)) as u64)
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A reading position in a byte slice.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes `n` bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (a, b) = self.rest.split_at_checked(n).ok_or("it ends early")?;
        self.rest = b;
        Ok(a)
    }

    /// Takes `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut a = [0; N];
        a.copy_from_slice(self.take(N)?);
        Ok(a)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub fn u128(&mut self) -> Result<u128, Malformed> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// Takes a LEB128 number.
    pub fn number(&mut self) -> Result<u64, Malformed> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8()?;
            let bits = u64::from(b & 0x7f);
            if shift == 63 && bits > 1 {
                return Err("a number is too large");
            }
            n |= bits << shift;
            if b < 0x80 {
                return Ok(n);
            }
        }
        Err("a number is too long")
    }

    /// Takes a zigzag LEB128 number.
    pub fn signed(&mut self) -> Result<i64, Malformed> {
        let n = self.number()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// Takes a length of at most `max` and that many bytes.
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let n = self.number()?;
        match usize::try_from(n) {
            Ok(n) if n <= max => self.take(n),
            _ => Err("a length is too large"),
        }
    }

    /// Takes a UTF-8 string of at most `max` bytes.
    pub fn string(&mut self, max: usize) -> Result<String, Malformed> {
        let bytes = self.bytes(max)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a string is not UTF-8")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn test_numbers_round_trip() {
        let cases = [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        let mut out = Vec::new();
        for n in cases {
            put(&mut out, n);
            put_signed(&mut out, n as i64);
            put_signed(&mut out, (n as i64).wrapping_neg());
        }
        let mut c = Cursor::new(&out);
        for n in cases {
            assert_eq!(c.number().unwrap(), n);
            assert_eq!(c.signed().unwrap(), n as i64);
            assert_eq!(c.signed().unwrap(), (n as i64).wrapping_neg());
        }
        assert!(c.is_empty());
    }

    #[test]
    fn test_number_invalid_is_an_error() {
        assert!(Cursor::new(&[0x80; 3]).number().is_err());
        assert!(Cursor::new(&[0xff; 10]).number().is_err());
        assert!(Cursor::new(&[0x80; 11]).number().is_err());
    }

    #[test]
    fn test_bytes_longer_than_max_or_input_returns_error() {
        let mut out = Vec::new();
        put_bytes(&mut out, b"hello");
        assert_eq!(Cursor::new(&out).bytes(5).unwrap(), b"hello");
        assert!(Cursor::new(&out).bytes(4).is_err());
        assert!(Cursor::new(&out[..5]).bytes(5).is_err());
        let mut huge = Vec::new();
        put(&mut huge, u64::MAX);
        assert!(Cursor::new(&huge).bytes(usize::MAX).is_err());
    }
}
