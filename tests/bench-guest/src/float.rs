//! Scalar double precision, as compilers make it for plain x86-64: ADDSD, MULSD, DIVSD, SQRTSD, UCOMISD.

use crate::integer::fold;
use std::hint::black_box;

#[derive(Clone, Copy)]
struct Body {
    at: [f64; 3],
    speed: [f64; 3],
    mass: f64,
}

/// Five bodies on made-up orbits.
fn bodies() -> [Body; 5] {
    std::array::from_fn(|i| {
        let x = i as f64;
        let far = 1.0 + 2.5 * x;
        Body {
            at: [far, 0.3 * x, -0.1 * x],
            speed: [0.01 * x, if i == 0 { 0.0 } else { 1.0 / far.sqrt() }, 0.002 * x],
            mass: if i == 0 { 1.0 } else { 0.001 / far },
        }
    })
}

fn advance(b: &mut [Body; 5], dt: f64) {
    for i in 0..5 {
        for j in i + 1..5 {
            let d: [f64; 3] = std::array::from_fn(|k| b[i].at[k] - b[j].at[k]);
            let square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2] + 1e-9;
            let pull = dt / (square * square.sqrt());
            let (pull_i, pull_j) = (b[j].mass * pull, b[i].mass * pull);
            for (k, d) in d.iter().enumerate() {
                b[i].speed[k] -= d * pull_i;
                b[j].speed[k] += d * pull_j;
            }
        }
    }
    for body in b {
        for k in 0..3 {
            body.at[k] += dt * body.speed[k];
        }
    }
}

/// 1000 steps of five bodies, a unit.
pub fn nbody(n: u64) -> u64 {
    let mut b = bodies();
    for _ in 0..n * 1000 {
        advance(black_box(&mut b), 0.001);
    }
    b.iter().flat_map(|b| b.at).fold(0, |s, x| fold(s, x.to_bits()))
}

fn escape(cx: f64, cy: f64) -> u64 {
    let (mut x, mut y) = (0.0, 0.0);
    for i in 0..200 {
        let (xx, yy) = (x * x, y * y);
        if xx + yy > 4.0 {
            return i;
        }
        y = 2.0 * x * y + cy;
        x = xx - yy + cx;
    }
    200
}

/// The Mandelbrot set on 48 by 48 points, a unit.
pub fn mandel(n: u64) -> u64 {
    let mut sum = 0;
    for unit in 0..n {
        let shift = unit as f64 * 1e-4;
        for row in 0..48 {
            for column in 0..48 {
                let inside = escape(f64::from(column) / 16.0 - 2.2 + shift, f64::from(row) / 20.0 - 1.2);
                sum = fold(sum, inside);
            }
        }
    }
    sum
}
