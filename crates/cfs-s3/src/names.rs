//! Keys as names in directories, and back.
//!
//! The components of a key, between its slashes, are names in the bucket's directory: all but the last of directories,
//! the last of a file. Most components are their own names. What no name can be is escaped:
//!
//! | escaped | stands for |
//! | --- | --- |
//! | `.s3~TEXT` | a file whose component is TEXT decoded |
//! | `.s3=TEXT` | a directory whose component is TEXT decoded |
//! | `.s3+TEXT` | a directory in which the component goes on that begins with TEXT decoded |
//!
//! What begins with `.s3!` is a directory of our own, and stands for nothing.
//!
//! Escaped are the empty component, `.`, `..`, `.snapshots`, those with a zero byte or longer than 255 bytes, those
//! that begin like an escaped name, and a file's that is also a directory's (`a` beside `a/b`). In TEXT a byte up to `%` is written as
//! `%` and two hexadecimal digits, in capitals; all others stand for themselves. Since `%` is the largest byte that is
//! written so, escaped names are in the order of what they stand for.
//!
//! # Invariants
//! - Every component has one escaped form, and only that is decoded.
//! - A component that does not fit into one name is cut so that each piece but the last could not be longer. So no
//!   escaped file or directory lies in order between the keys below one `.s3+` directory.

use cfs_fs::NAME_BYTES_MAX;

/// The largest byte that is written as a number.
const LAST_ESCAPED: u8 = b'%';
/// Bytes of every mark.
const MARK_BYTES: usize = 4;
/// Longest encoded text in a name, bytes.
const TEXT_BYTES_MAX: usize = NAME_BYTES_MAX - MARK_BYTES;

/// How a name stands for a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// By itself.
    Plain,
    /// None: it is a directory of our own.
    System,
    /// The beginning of a component that goes on in this directory.
    Continued,
    /// An escaped directory.
    Directory,
    /// An escaped file.
    File,
}

impl Form {
    /// What an escaped name of this form begins with; nothing for a plain one.
    pub(crate) fn mark(self) -> &'static [u8] {
        match self {
            Self::Plain => b"",
            Self::System => b".s3!",
            Self::Continued => b".s3+",
            Self::Directory => b".s3=",
            Self::File => b".s3~",
        }
    }

    /// The form that a name has.
    pub(crate) fn of(name: &[u8]) -> Self {
        match name.get(..MARK_BYTES) {
            Some(b".s3!") => Self::System,
            Some(b".s3+") => Self::Continued,
            Some(b".s3=") => Self::Directory,
            Some(b".s3~") => Self::File,
            _ => Self::Plain,
        }
    }
}

/// Whether a component is its own name.
pub(crate) fn is_plain(component: &[u8]) -> bool {
    !matches!(component, b"" | b"." | b".." | cfs_fs::SNAPSHOTS_NAME)
        && component.len() <= NAME_BYTES_MAX
        && !component.contains(&0)
        && Form::of(component) == Form::Plain
}

/// The text of an escaped name.
pub(crate) fn encode(raw: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(raw.len());
    for byte in raw {
        if *byte <= LAST_ESCAPED {
            text.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            text.push(*byte);
        }
    }
    text
}

/// What an escaped name's text stands for; none if it is not as [`encode`] writes it.
pub(crate) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    };
    let mut raw = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte == LAST_ESCAPED {
            let byte = digit(*rest.next()?)? * 16 + digit(*rest.next()?)?;
            if byte > LAST_ESCAPED {
                return None;
            }
            raw.push(byte);
        } else if *byte < LAST_ESCAPED {
            return None;
        } else {
            raw.push(*byte);
        }
    }
    Some(raw)
}

/// How many bytes of a component the first of several escaped names takes; none if one name is enough.
fn first_piece(component: &[u8]) -> Option<usize> {
    let mut text_bytes = 0;
    component.iter().position(|byte| {
        text_bytes += if *byte <= LAST_ESCAPED { 3 } else { 1 };
        text_bytes > TEXT_BYTES_MAX
    })
}

/// The names, each in the one before, of an escaped component.
fn escaped(component: &[u8], last: Form) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut rest = component;
    while let Some(bytes) = first_piece(rest) {
        names.push([Form::Continued.mark(), &encode(&rest[..bytes])].concat());
        rest = &rest[bytes..];
    }
    names.push([last.mark(), &encode(rest)].concat());
    names
}

/// The names, each in the one before, of a component that is a directory's.
pub(crate) fn directory_names(component: &[u8]) -> Vec<Vec<u8>> {
    match is_plain(component) {
        true => vec![component.to_vec()],
        false => escaped(component, Form::Directory),
    }
}

/// The names, each in the one before, of a file whose plain name is taken or cannot be.
pub(crate) fn escaped_file_names(component: &[u8]) -> Vec<Vec<u8>> {
    escaped(component, Form::File)
}

/// What a name adds to the key; none if it is no name that stands for something.
pub(crate) fn component(name: &[u8]) -> Option<(Form, Vec<u8>)> {
    let form = Form::of(name);
    let raw = match form {
        Form::Plain => return Some((form, name.to_vec())),
        Form::System => return None,
        _ => decode(&name[MARK_BYTES..])?,
    };
    Some((form, raw))
}

/// The directories' components of a key, and the file's.
pub(crate) fn split(key: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut components: Vec<&[u8]> = key.split(|byte| *byte == b'/').collect();
    let last = components.pop().expect("splitting gives at least one part");
    (components, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_name_can_be_is_escaped() {
        let file = |component: &[u8]| String::from_utf8(escaped_file_names(component).concat());
        assert_eq!(file(b"").as_deref(), Ok(".s3~"));
        assert_eq!(file(b"..").as_deref(), Ok(".s3~.."));
        assert_eq!(file(b"a b%\0").as_deref(), Ok(".s3~a%20b%25%00"));
        assert_eq!(directory_names(b"."), [b".s3=.".to_vec()]);
        assert_eq!(directory_names(b"plain"), [b"plain".to_vec()]);
        assert_eq!(directory_names(b".s3~x"), [b".s3=.s3~x".to_vec()]);
        let long = vec![b'x'; 600];
        let names = escaped_file_names(&long);
        assert_eq!(
            names.iter().map(Vec::len).collect::<Vec<_>>(),
            [255, 255, 102]
        );
        let parts: Vec<_> = names
            .iter()
            .map(|name| component(name).expect("ours"))
            .collect();
        let raw: Vec<u8> = parts.iter().flat_map(|(_, raw)| raw.clone()).collect();
        assert_eq!(raw, long);
        assert_eq!(parts[0].0, Form::Continued);
        assert_eq!(parts[2].0, Form::File);
    }

    #[test]
    fn only_one_form_is_decoded() {
        for text in [&b"%2"[..], b"%2a", b"%41", b"%ZZ", b" ", b"%26", b"\0"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
        for byte in 0..=255 {
            assert_eq!(decode(&encode(&[byte])), Some(vec![byte]));
        }
    }

    #[test]
    fn escaped_names_keep_the_order() {
        let mut raw: Vec<Vec<u8>> = Vec::new();
        for left in 0..=255 {
            raw.push(vec![left]);
            for right in [0, 1, b'$', b'%', b'&', b'0', 255] {
                raw.push(vec![left, right]);
            }
        }
        raw.sort();
        let encoded: Vec<_> = raw.iter().map(|raw| encode(raw)).collect();
        assert!(encoded.is_sorted());
    }
}
