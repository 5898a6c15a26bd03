//! Answers of IAM and STS: XML, as their query interface has it.

use s3s::dto::{Timestamp, TimestampFormat};

/// XML that is being written.
#[derive(Default)]
pub(crate) struct Shown(String);

impl Shown {
    /// An element with a text.
    pub(super) fn leaf(&mut self, name: &str, text: &str) -> &mut Self {
        self.0 += &format!("<{name}>{}</{name}>", escaped(text));
        self
    }

    /// A time, of seconds since 1970.
    pub(super) fn time(&mut self, name: &str, seconds: u64) -> &mut Self {
        self.leaf(name, &time_text(seconds))
    }

    /// An element with others in it.
    pub(super) fn within(&mut self, name: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.0 += &format!("<{name}>");
        fill(self);
        self.0 += &format!("</{name}>");
        self
    }

    /// A list, of an element `member` for each item.
    pub(super) fn list<T>(
        &mut self,
        name: &str,
        items: &[T],
        show: impl Fn(&mut Self, &T),
    ) -> &mut Self {
        self.within(name, |shown| {
            for item in items {
                shown.within("member", |shown| show(shown, item));
            }
        })
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, name: &str, texts: &[String]) -> &mut Self {
        self.within(name, |shown| {
            for text in texts {
                shown.leaf("member", text);
            }
        })
    }

    pub(crate) fn text(self) -> String {
        self.0
    }
}

fn time_text(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let time = time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let mut text = Vec::new();
    Timestamp::from(time)
        .format(TimestampFormat::DateTime, &mut text)
        .expect("memory takes any text");
    String::from_utf8_lossy(&text).into_owned()
}

/// A text between tags.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// A document as answers hold it: with all but unreserved characters in hexadecimal (RFC 3986).
pub(super) fn document(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => write!(encoded, "%{byte:02X}").expect("a string takes any text"),
        }
    }
    encoded
}
