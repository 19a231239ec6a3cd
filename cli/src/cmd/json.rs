//! JSON as text: what the few things printed as JSON are made of.

use std::fmt::Write as _;

/// A JSON string.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A JSON string of bytes, two hexadecimal digits each.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2 + 2);
    out.push('"');
    for b in bytes {
        let _ = write!(out, "{b:02x}");
    }
    out.push('"');
    out
}

/// Names and values that are JSON already, in order.
pub type Fields = Vec<(&'static str, String)>;

/// A JSON object from names and values that are JSON already.
pub fn object<N: AsRef<str>>(fields: impl IntoIterator<Item = (N, String)>) -> String {
    let fields: Vec<_> = fields.into_iter().map(|(n, v)| format!("{}:{v}", quoted(n.as_ref()))).collect();
    format!("{{{}}}", fields.join(","))
}

/// A JSON array of values that are JSON already.
pub fn array(values: impl IntoIterator<Item = String>) -> String {
    let values: Vec<_> = values.into_iter().collect();
    format!("[{}]", values.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_strings_are_escaped() {
        assert_eq!(quoted("a \"b\"\\\n\u{1}ü"), r#""a \"b\"\\\u000a\u0001ü""#);
        assert_eq!(hex(&[0, 0xab]), r#""00ab""#);
        assert_eq!(object([("a", array(["1".to_owned(), quoted("x")]))]), r#"{"a":[1,"x"]}"#);
    }
}
