//! JSON with lines. `serde_json` says whether a text is JSON and decodes what is hard; where the values stand is found
//! by going over the text again, which can rely on that.

use config::{Map, Value, ValueKind};

use super::{DEPTH_MAX, Lines, Malformed};

pub(super) fn parse(text: &str, file: &str) -> Result<Map<String, Value>, Malformed> {
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map_err(|error| Malformed::at(error.line().max(1), error.to_string()))?;
    let mut reader = Reader { text, at: 0, lines: Lines::new(text, file) };
    match reader.value(0)?.kind {
        ValueKind::Table(table) => Ok(table),
        _ => Err(Malformed::at(1, "it must begin with {")),
    }
}

struct Reader<'a> {
    text: &'a str,
    /// Offset of what is read next.
    at: usize,
    lines: Lines<'a>,
}

impl<'a> Reader<'a> {
    fn bad(&self, problem: &str) -> Malformed {
        Malformed::at(self.lines.line(self.at), problem)
    }

    /// The byte that comes next behind white space; 0 at the end.
    fn next(&mut self) -> u8 {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        self.at += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.text.as_bytes().get(self.at).copied().unwrap_or_default()
    }

    /// Steps over `byte` if it comes next.
    fn skip(&mut self, byte: u8) -> bool {
        let there = self.next() == byte;
        self.at += usize::from(there);
        there
    }

    /// The text of a number, a word or a string, quotation marks among it.
    fn token(&mut self) -> &'a str {
        let start = self.at;
        let bytes = self.text.as_bytes();
        if bytes.get(start) == Some(&b'"') {
            self.at += 1;
            while let Some(byte) = bytes.get(self.at) {
                self.at += if *byte == b'\\' { 2 } else { 1 };
                if *byte == b'"' {
                    break;
                }
            }
        } else {
            let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}' | b':') || byte.is_ascii_whitespace();
            self.at += bytes.iter().skip(start).take_while(|byte| !ends(byte)).count();
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn string(&mut self) -> Result<String, Malformed> {
        let token = self.token();
        serde_json::from_str(token).map_err(|error| self.bad(&error.to_string()))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth > DEPTH_MAX {
            return Err(self.bad("is nested too deeply"));
        }
        let first = self.next();
        let start = self.at;
        let kind = match first {
            b'{' => {
                self.at += 1;
                let mut table = Map::new();
                while !self.skip(b'}') {
                    self.next();
                    let line = self.lines.line(self.at);
                    let key = self.string()?;
                    self.skip(b':');
                    let value = self.value(depth + 1)?;
                    if table.insert(key.clone(), value).is_some() {
                        return Err(Malformed::at(line, format!("{key:?} is written twice")));
                    }
                    self.skip(b',');
                }
                ValueKind::Table(table)
            }
            b'[' => {
                self.at += 1;
                let mut values = Vec::new();
                while !self.skip(b']') {
                    values.push(self.value(depth + 1)?);
                    self.skip(b',');
                }
                ValueKind::Array(values)
            }
            b'"' => ValueKind::String(self.string()?),
            _ => match self.token() {
                "null" => ValueKind::Nil,
                "true" => ValueKind::Boolean(true),
                "false" => ValueKind::Boolean(false),
                // Never without progress, whatever the text.
                "" => return Err(self.bad("a value is missing")),
                number => match (number.parse(), number.parse(), number.parse()) {
                    (Ok(number), _, _) => ValueKind::I64(number),
                    (_, Ok(number), _) => ValueKind::U64(number),
                    (_, _, Ok(number)) => ValueKind::Float(number),
                    _ => return Err(self.bad(&format!("{number} is no number"))),
                },
            },
        };
        Ok(self.lines.value(start, kind))
    }
}
