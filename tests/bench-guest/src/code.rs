//! Code written at run time: memory that may be written and executed, and calls into it. The one place that knows the
//! machine code of the generated functions.

use std::ptr;

/// Writable and executable memory.
pub struct Code {
    base: *mut u8,
    len: usize,
}

impl Code {
    pub fn new(len: usize) -> Self {
        let (prot, flags) =
            (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address the kernel chooses aliases nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, -1, 0) };
        assert!(base != libc::MAP_FAILED, "no memory for code");
        Self { base: base.cast(), len }
    }

    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: the range was just checked to lie in our mapping, which no reference covers.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at), bytes.len()) }
    }

    /// Calls the function at `at`, one of those the functions below have made.
    pub fn call(&self, at: usize, argument: u32) -> u32 {
        assert!(at < self.len);
        // SAFETY: this module's generators make whole functions of this signature that touch registers they may and
        // nothing else (or, in `store_next`, their own code), and their users write one at `at` before they call it.
        unsafe {
            let f: extern "sysv64" fn(u32) -> u32 = std::mem::transmute(self.base.add(at));
            f(argument)
        }
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unused from here on.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}

fn with_word(template: &[u8], word: u32) -> Vec<u8> {
    [template, &word.to_le_bytes()].concat()
}

/// `add edi, value; mov eax, edi; ret`.
pub fn add(value: u32) -> Vec<u8> {
    let mut code = with_word(&[0x81, 0xc7], value);
    code.extend([0x89, 0xf8, 0xc3]);
    code
}

/// `mov [next + 1], edi; next: mov eax, 0; ret`: the store changes the very next instruction.
pub fn store_next() -> Vec<u8> {
    vec![0x89, 0x3d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xc3]
}

/// Bytes of a function of [`mixer`].
pub const MIXER: usize = 64;

/// A function of its own for each `seed`: a dozen operations with a branch in the middle.
pub fn mixer(seed: u32) -> [u8; MIXER] {
    let mut code = vec![0x89, 0xf8]; // mov eax, edi
    code.extend(with_word(&[0x69, 0xc0], seed | 1)); // imul eax, eax, seed
    code.extend(with_word(&[0x05], seed.rotate_left(9))); // add eax, ...
    code.extend([0xc1, 0xc8, 1 + (seed % 30) as u8]); // ror eax, n
    code.extend([0xa8, 0x01, 0x74, 0x05]); // test al, 1; jz over the next
    code.extend(with_word(&[0x35], !seed)); // xor eax, ...
    code.extend([0x89, 0xc2, 0xc1, 0xea, 0x07]); // mov edx, eax; shr edx, 7
    code.extend([0x01, 0xd0, 0x31, 0xf8]); // add eax, edx; xor eax, edi
    code.extend(with_word(&[0x2d], seed.swap_bytes())); // sub eax, ...
    code.extend([0x8d, 0x04, 0x40, 0xc3]); // lea eax, [rax + rax * 2]; ret
    code.resize(MIXER, 0xcc);
    std::array::from_fn(|i| code[i])
}
