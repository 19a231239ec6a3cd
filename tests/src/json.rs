//! A JSON reader, strict, to check what the program prints for other programs.

/// A JSON value; numbers as they are written.
#[derive(Clone, PartialEq, Debug)]
pub enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads one value and nothing else.
    ///
    /// # Errors
    /// Where the text is no JSON.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut p = Parser { rest: text };
        let value = p.value()?;
        p.space();
        if p.rest.is_empty() { Ok(value) } else { Err(p.wrong("the end")) }
    }

    /// A field of an object.
    pub fn get(&self, name: &str) -> Option<&Json> {
        match self {
            Json::Object(fields) => fields.iter().find(|f| f.0 == name).map(|f| &f.1),
            _ => None,
        }
    }

    /// The field `name` as text: a string's contents, anything else as written.
    #[track_caller]
    pub fn text(&self, name: &str) -> String {
        match self.get(name) {
            Some(Json::Text(s) | Json::Number(s)) => s.clone(),
            Some(Json::Bool(b)) => b.to_string(),
            Some(Json::Null) => "null".into(),
            other => panic!("{name} is {other:?} in {self:?}"),
        }
    }

    /// The elements of an array, or nothing.
    pub fn items(&self) -> &[Json] {
        match self {
            Json::Array(items) => items,
            _ => &[],
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn wrong(&self, expected: &str) -> String {
        format!("expected {expected} before: {:?}", self.rest.chars().take(60).collect::<String>())
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn eat(&mut self, token: &str) -> bool {
        self.space();
        let found = self.rest.strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn need(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(self.wrong(token)) }
    }

    fn value(&mut self) -> Result<Json, String> {
        for (token, value) in [("null", Json::Null), ("true", Json::Bool(true)), ("false", Json::Bool(false))]
        {
            if self.eat(token) {
                return Ok(value);
            }
        }
        match self.rest.chars().next() {
            Some('"') => Ok(Json::Text(self.string()?)),
            Some('[') => self.list("[", "]", Self::value).map(Json::Array),
            Some('{') => self.list("{", "}", Self::field).map(Json::Object),
            _ => self.number(),
        }
    }

    fn field(&mut self) -> Result<(String, Json), String> {
        self.space();
        let name = self.string()?;
        self.need(":")?;
        Ok((name, self.value()?))
    }

    fn list<T>(
        &mut self,
        open: &str,
        close: &str,
        item: fn(&mut Self) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        self.need(open)?;
        let mut items = Vec::new();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close) {
                return Ok(items);
            }
            self.need(",")?;
        }
    }

    fn string(&mut self) -> Result<String, String> {
        self.need("\"")?;
        let mut out = String::new();
        loop {
            let c = self.next().ok_or("a string ends early")?;
            match c {
                '"' => return Ok(out),
                '\\' => out.push(self.escape()?),
                c if (c as u32) < 0x20 => return Err(self.wrong("no control character")),
                c => out.push(c),
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next();
        self.rest = chars.as_str();
        c
    }

    fn escape(&mut self) -> Result<char, String> {
        Ok(match self.next() {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let digits: String = (0..4).filter_map(|_| self.next()).collect();
                let code = u32::from_str_radix(&digits, 16).map_err(|e| e.to_string())?;
                char::from_u32(code).ok_or("half of a surrogate pair")?
            }
            _ => return Err(self.wrong("an escape")),
        })
    }

    fn number(&mut self) -> Result<Json, String> {
        let end = self.rest.find(|c: char| !matches!(c, '0'..='9' | '-' | '.')).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        let whole = digits.trim_start_matches('-').split('.').next().unwrap_or("");
        let leading = whole.len() > 1 && whole.starts_with('0');
        if whole.is_empty() || leading || digits.ends_with('.') || digits.parse::<f64>().is_err() {
            return Err(self.wrong("a value"));
        }
        self.rest = rest;
        Ok(Json::Number(digits.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_json_is_read_strictly() {
        let value = Json::parse(r#" {"a": [1, -2.50, "x\"\u0041\n", null], "b": {}, "c": true} "#).unwrap();
        assert_eq!(value.get("a").unwrap().items().len(), 4);
        assert_eq!(value.get("a").unwrap().items()[2], Json::Text("x\"A\n".into()));
        assert_eq!((value.text("c"), value.get("b")), ("true".into(), Some(&Json::Object(vec![]))));
        for bad in ["", "{", "[1,]", "{\"a\":}", "01", "1.", "\"\n\"", "[1] 2", "nul", "{a:1}", "\"\\x\""] {
            assert!(Json::parse(bad).is_err(), "{bad}");
        }
    }
}
