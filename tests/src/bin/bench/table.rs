//! How figures are written.

/// A geometric mean; `None` of nothing.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    (n > 0.0).then(|| (values.iter().map(|v| v.ln()).sum::<f64>() / n).exp())
}

/// Three digits that matter.
pub fn short(v: Option<f64>) -> String {
    match v {
        None => "-".into(),
        Some(v) if v >= 100.0 => format!("{v:.0}"),
        Some(v) if v >= 10.0 => format!("{v:.1}"),
        Some(v) => format!("{v:.2}"),
    }
}

/// A row: a name and right-aligned cells.
pub fn row(name: &str, cells: impl IntoIterator<Item = String>) {
    let cells: String = cells.into_iter().map(|c| format!(" {c:>10}")).collect();
    println!("{name:<22}{cells}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_digits() {
        assert_eq!(geometric_mean(&[]), None);
        assert!((geometric_mean(&[2.0, 8.0]).unwrap() - 4.0).abs() < 1e-9);
        assert_eq!([Some(1.234), Some(12.34), Some(123.4), None].map(short), ["1.23", "12.3", "123", "-"]);
    }
}
