//! Integer programs as compilers make them: loads, stores, compares, shifts, short branches. No library calls in the
//! inner loops, so that every machine runs the same instructions.

use std::hint::black_box;

/// A small generator of pseudo-random numbers (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Order-dependent sum for checksums.
pub fn fold(sum: u64, value: u64) -> u64 {
    sum.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ value
}

/// Quicksort of 4096 words, a unit.
pub fn sort(n: u64) -> u64 {
    let mut random = Random(1);
    let mut v = vec![0u32; 4096];
    let mut sum = 0;
    for _ in 0..n {
        v.iter_mut().for_each(|x| *x = random.next() as u32);
        quicksort(&mut v);
        sum = fold(sum, u64::from(v[17]) ^ u64::from(v[4000]));
    }
    assert!(v.is_sorted());
    sum
}

fn quicksort(mut v: &mut [u32]) {
    while v.len() > 12 {
        let pivot = v[v.len() / 2];
        let (mut i, mut j) = (0, v.len() - 1);
        loop {
            while v[i] < pivot {
                i += 1;
            }
            while v[j] > pivot {
                j -= 1;
            }
            if i >= j {
                break;
            }
            v.swap(i, j);
            i += 1;
            j -= 1;
        }
        let (low, high) = v.split_at_mut(j + 1);
        quicksort(low);
        v = high;
    }
    insertion_sort(v);
}

fn insertion_sort(v: &mut [u32]) {
    for i in 1..v.len() {
        let x = v[i];
        let mut j = i;
        while j > 0 && v[j - 1] > x {
            v[j] = v[j - 1];
            j -= 1;
        }
        v[j] = x;
    }
}

/// Sieve of Eratosthenes up to 2^17, a unit.
pub fn sieve(n: u64) -> u64 {
    const LIMIT: usize = 1 << 17;
    let mut composite = vec![0u8; LIMIT];
    let mut sum = 0;
    for _ in 0..n {
        black_box(&mut composite).iter_mut().for_each(|c| *c = 0);
        let mut count = 0;
        for i in 2..LIMIT {
            if composite[i] != 0 {
                continue;
            }
            count += 1;
            let mut m = i * i;
            while m < LIMIT {
                composite[m] = 1;
                m += i;
            }
        }
        sum = fold(sum, count);
    }
    sum
}

/// CRC-32 by table over 16 KiB, a unit.
pub fn crc(n: u64) -> u64 {
    let table: Vec<u32> = (0..256u32)
        .map(|i| (0..8).fold(i, |c, _| if c & 1 != 0 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 }))
        .collect();
    let mut random = Random(2);
    let data: Vec<u8> = (0..16 << 10).map(|_| random.next() as u8).collect();
    let mut crc = !0u32;
    for _ in 0..n {
        for b in black_box(&data) {
            crc = table[usize::from(crc as u8 ^ b)] ^ (crc >> 8);
        }
    }
    u64::from(!crc)
}

/// The first 32 bits of the fraction of a prime's root: SHA-256's constants (FIPS 180-4, 4.2.2 and 5.3.3).
fn root_fraction(prime: u64, power: u32) -> u32 {
    let target = u128::from(prime) << (32 * power);
    let (mut low, mut high) = (0u128, 1 << 40);
    while high - low > 1 {
        let mid = u128::midpoint(low, high);
        if mid.pow(power) <= target { low = mid } else { high = mid }
    }
    low as u32
}

fn primes() -> impl Iterator<Item = u64> {
    (2u64..).filter(|n| (2..*n).all(|d| n % d != 0))
}

fn compress(h: &mut [u32; 8], k: &[u32; 64], block: &[u32; 16]) {
    let mut w = [0u32; 64];
    for i in 0..64 {
        w[i] = if i < 16 {
            block[i]
        } else {
            let (a, b) = (w[i - 15], w[i - 2]);
            let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
            let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
            w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1)
        };
    }
    let mut v = *h;
    for i in 0..64 {
        let [a, b, c, d, e, f, g, last] = v;
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let t1 = last.wrapping_add(s1).wrapping_add((e & f) ^ (!e & g)).wrapping_add(k[i]).wrapping_add(w[i]);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
        v = [t1.wrapping_add(t2), a, b, c, d.wrapping_add(t1), e, f, g];
    }
    h.iter_mut().zip(v).for_each(|(h, v)| *h = h.wrapping_add(v));
}

fn sha256_constants() -> ([u32; 8], [u32; 64]) {
    let (mut h, mut k) = ([0; 8], [0; 64]);
    h.iter_mut().zip(primes()).for_each(|(h, p)| *h = root_fraction(p, 2));
    k.iter_mut().zip(primes()).for_each(|(k, p)| *k = root_fraction(p, 3));
    (h, k)
}

/// SHA-256's compression of 4 KiB, a unit.
pub fn sha256(n: u64) -> u64 {
    let (mut h, k) = sha256_constants();
    let mut random = Random(3);
    let mut block = [0u32; 16];
    block.iter_mut().for_each(|w| *w = random.next() as u32);
    for _ in 0..n {
        for _ in 0..64 {
            compress(&mut h, &k, &block);
            block[0] = block[0].wrapping_add(1);
        }
    }
    (u64::from(h[0]) << 32) | u64::from(h[7])
}

/// Text-like bytes: words of a small vocabulary.
fn text(len: usize) -> Vec<u8> {
    let mut random = Random(4);
    let words: Vec<Vec<u8>> = (0..200)
        .map(|_| (0..2 + random.next() % 9).map(|_| b'a' + (random.next() % 20) as u8).collect())
        .collect();
    let mut out = Vec::new();
    while out.len() < len {
        out.extend_from_slice(&words[(random.next() % 200) as usize]);
        out.push(b' ');
    }
    out.truncate(len);
    out
}

/// LZ77 with a hash table of four-byte strings: tokens of (length, distance) or (0, literal).
fn lz_pack(data: &[u8], table: &mut [u32], out: &mut Vec<(u16, u16)>) {
    table.fill(u32::MAX);
    out.clear();
    let mut at = 0;
    while at + 4 <= data.len() {
        let word = u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
        let slot = (word.wrapping_mul(0x9e37_79b1) >> 20) as usize;
        let seen = std::mem::replace(&mut table[slot], at as u32) as usize;
        let mut len = 0;
        if seen < at {
            while at + len < data.len() && data[seen + len] == data[at + len] && len < 255 {
                len += 1;
            }
        }
        if len >= 4 {
            out.push((len as u16, (at - seen) as u16));
            at += len;
        } else {
            out.push((0, u16::from(data[at])));
            at += 1;
        }
    }
    data[at..].iter().for_each(|b| out.push((0, u16::from(*b))));
}

fn lz_unpack(tokens: &[(u16, u16)], out: &mut [u8]) {
    let mut at = 0;
    for &(len, value) in tokens {
        if len == 0 {
            out[at] = value as u8;
            at += 1;
        } else {
            for _ in 0..len {
                out[at] = out[at - usize::from(value)];
                at += 1;
            }
        }
    }
}

/// LZ compression and decompression of 32 KiB of text, a unit.
pub fn lz(n: u64) -> u64 {
    let mut data = text(32 << 10);
    let (mut table, mut tokens) = (vec![0; 4096], Vec::new());
    let mut back = vec![0; data.len()];
    let mut sum = 0;
    for i in 0..n {
        data[(i * 37 % (32 << 10)) as usize] ^= 1;
        lz_pack(&data, &mut table, &mut tokens);
        lz_unpack(&tokens, &mut back);
        sum = fold(sum, tokens.len() as u64);
    }
    assert!(back == data);
    sum
}

/// Product of two 48 by 48 matrices of 64-bit integers, a unit.
pub fn matrix(n: u64) -> u64 {
    const N: usize = 48;
    let mut random = Random(5);
    let mut a: Vec<u64> = (0..N * N).map(|_| random.next()).collect();
    let b: Vec<u64> = (0..N * N).map(|_| random.next()).collect();
    let mut c = vec![0u64; N * N];
    for _ in 0..n {
        for i in 0..N {
            for j in 0..N {
                c[i * N + j] =
                    (0..N).fold(0u64, |s, k| s.wrapping_add(a[i * N + k].wrapping_mul(b[k * N + j])));
            }
        }
        std::mem::swap(&mut a, &mut c);
    }
    a.iter().fold(0, |s, x| fold(s, *x))
}

/// A linked list of 1024 nodes in shuffled places: reversed, then searched, a unit.
pub fn list(n: u64) -> u64 {
    const END: u32 = u32::MAX;
    const N: usize = 1024;
    let mut random = Random(6);
    let mut order: Vec<u32> = (0..N as u32).collect();
    (1..N).rev().for_each(|i| order.swap(i, (random.next() % (i as u64 + 1)) as usize));
    let mut next = vec![END; N];
    order.windows(2).for_each(|w| next[w[0] as usize] = w[1]);
    let values: Vec<u32> = (0..N).map(|_| random.next() as u32).collect();
    let (mut head, mut sum) = (order[0], 0u64);
    for i in 0..n {
        let mut reversed = END;
        while head != END {
            let after = next[head as usize];
            next[head as usize] = reversed;
            reversed = head;
            head = after;
        }
        head = reversed;
        let (mut at, mut steps) = (head, 0);
        while at != END && values[at as usize] != values[(i * 7 % N as u64) as usize] {
            at = next[at as usize];
            steps += 1;
        }
        sum = fold(sum, steps);
    }
    sum
}

/// A state machine that tells the kinds of numbers in 2 KiB of text apart, and a bitwise CRC-16 of its visits: a unit.
pub fn mix(n: u64) -> u64 {
    const PARTS: [&str; 8] = ["512,", "-12,", "+3.25,", "1e7,", "7.5e-3,", "x9,", "0,", "-8e+2,"];
    let mut random = Random(7);
    let mut input = Vec::new();
    while input.len() < 2048 {
        input.extend_from_slice(PARTS[(random.next() % 8) as usize].as_bytes());
    }
    let mut crc = 0u16;
    for i in 0..n {
        let mut visits = [0u32; 8];
        let mut state = 0;
        for &b in black_box(&input) {
            state = step(state, b);
            visits[state] += 1;
        }
        for v in visits {
            crc = crc16(crc, v as u16 ^ i as u16);
        }
    }
    u64::from(crc)
}

/// States: 0 start, 1 sign, 2 integer, 3 fraction, 4 exponent mark, 5 exponent sign, 6 exponent, 7 no number.
fn step(state: usize, b: u8) -> usize {
    if b == b',' {
        return 0;
    }
    match (state, b) {
        (0, b'+' | b'-') => 1,
        (0..=2, b'0'..=b'9') => 2,
        (0..=2, b'.') => 3,
        (3, b'0'..=b'9') => 3,
        (2 | 3, b'e') => 4,
        (4, b'+' | b'-') => 5,
        (4..=6, b'0'..=b'9') => 6,
        _ => 7,
    }
}

fn crc16(mut crc: u16, value: u16) -> u16 {
    for bit in 0..16 {
        let odd = (crc ^ (value >> bit)) & 1 != 0;
        crc >>= 1;
        if odd {
            crc ^= 0xa001;
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_of_abc() {
        let (mut h, k) = sha256_constants();
        let mut block = [0; 16];
        block[0] = u32::from_be_bytes(*b"abc\x80");
        block[15] = 24;
        compress(&mut h, &k, &block);
        assert_eq!((h[0], h[7]), (0xba78_16bf, 0xf200_15ad));
    }

    #[test]
    fn primes_below_2_17() {
        assert_eq!(sieve(1), fold(0, 12_251));
    }

    #[test]
    fn sorting_and_packing_check_themselves() {
        assert_ne!(sort(2), 0);
        assert_ne!(lz(2), 0);
    }
}
