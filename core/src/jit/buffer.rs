//! Memory for generated code: one memfd mapped twice, a writable view and an executable view.
//! Owns the rule that no view is ever both. Code is appended and never moved or freed while the buffer lives.

#![allow(unsafe_code)]

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ptr::NonNull;

/// An append-only code buffer.
pub struct CodeBuffer {
    rw: NonNull<u8>,
    rx: NonNull<u8>,
    len: usize,
    used: usize,
}

// SAFETY: the two mappings belong to this value alone, are valid in every thread of the process, and are written
// only through `&mut self`.
unsafe impl Send for CodeBuffer {}

impl CodeBuffer {
    /// Reserves `len` bytes (a multiple of the page size); pages are backed when first written.
    pub fn new(len: usize) -> std::io::Result<Self> {
        let fd = memfd_create("retrovisor-code", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, len as u64)?;
        let map = |prot| {
            // SAFETY: a fresh shared mapping of our own memfd at an address of the kernel's choice aliases no Rust
            // object; both views are only used through raw pointers.
            let p = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }?;
            NonNull::new(p.cast::<u8>()).ok_or_else(|| std::io::Error::other("mmap returned address 0"))
        };
        let rw = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let rx = match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(rx) => rx,
            Err(e) => {
                // SAFETY: `rw` is the mapping of `len` bytes made above; nobody else has its address.
                let _ = unsafe { munmap(rw.as_ptr().cast(), len) };
                return Err(e);
            }
        };
        Ok(Self { rw, rx, len, used: 0 })
    }

    /// Bytes left.
    pub fn room(&self) -> usize {
        self.len - self.used
    }

    /// Address the next [`CodeBuffer::publish`] will return: position-dependent code is assembled for it.
    pub fn next_address(&self) -> u64 {
        self.rx.as_ptr() as u64 + self.used as u64
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Executable address of offset `at`.
    pub fn address(&self, at: usize) -> u64 {
        self.rx.as_ptr() as u64 + at as u64
    }

    /// Writes `bytes` at offset `at`, which whoever uses this instead of [`CodeBuffer::publish`] manages; false if they
    /// do not fit. Code that runs now must not be overwritten.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> bool {
        if at.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: the range lies in the writable view, and `bytes` cannot overlap the mapping, whose memory is never lent
        // out as a slice.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.rw.as_ptr().add(at), bytes.len()) };
        true
    }

    /// A copy of `len` bytes at offset `at`, as far as there are any.
    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let at = at.min(self.len);
        let mut out = vec![0; len.min(self.len - at)];
        // SAFETY: the range lies in the writable view, and `out` is memory of its own.
        unsafe { std::ptr::copy_nonoverlapping(self.rw.as_ptr().add(at), out.as_mut_ptr(), out.len()) };
        out
    }

    /// Copies `code` behind what is there and returns its executable address; `None` if it does not fit.
    pub fn publish(&mut self, code: &[u8]) -> Option<*const u8> {
        if code.len() > self.room() {
            return None;
        }
        let at = self.used;
        // SAFETY: `at + code.len() <= len`, both views have `len` bytes, and `code` cannot overlap the mapping, whose
        // memory is never lent out as a slice.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.rw.as_ptr().add(at), code.len()) };
        self.used = (at + code.len()).next_multiple_of(16).min(self.len);
        // SAFETY: `at < len` or the code is empty and `at <= len`: inside the mapping or one past it.
        Some(unsafe { self.rx.as_ptr().add(at) })
    }
}

impl Drop for CodeBuffer {
    fn drop(&mut self) {
        for view in [self.rw, self.rx] {
            // SAFETY: both were mapped by `new` with this length; published addresses are not used after the buffer
            // is dropped (the only long-lived buffer is in a static).
            let _ = unsafe { munmap(view.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn code_is_appended_aligned_until_full() {
        let mut b = CodeBuffer::new(4096).unwrap();
        let a = b.publish(&[0xc3]).unwrap();
        assert_eq!(b.next_address(), a as u64 + 16);
        assert_eq!(b.room(), 4080);
        assert!(b.publish(&[0x90; 4081]).is_none());
        assert!(b.publish(&[0x90; 4080]).is_some());
        assert!(b.publish(&[0x90]).is_none());
        // SAFETY: the byte was just published there.
        assert_eq!(unsafe { *a }, 0xc3);
    }
}
