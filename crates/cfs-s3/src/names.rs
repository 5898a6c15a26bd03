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

pub(crate) use cfs_fs::escaped::{Form, decode, encode, is_plain};
use cfs_fs::escaped::{MARK_BYTES, is_cut_at, names_of};

/// The names, each in the one before, of a component that is a directory's.
pub(crate) fn directory_names(component: &[u8]) -> Vec<Vec<u8>> {
    match is_plain(component) {
        true => vec![component.to_vec()],
        false => names_of(component, Form::Directory),
    }
}

/// The names, each in the one before, of a file whose plain name is taken or cannot be.
pub(crate) fn escaped_file_names(component: &[u8]) -> Vec<Vec<u8>> {
    names_of(component, Form::File)
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

/// Whether a name stands for something where a component has begun with `begun`: it is how S3 would write it. A mount can make
/// others, which nobody would find under the key that they seem to have.
pub(crate) fn is_one_of_ours(begun: &[u8], form: Form, component: &[u8]) -> bool {
    if begun.is_empty() {
        return form != Form::Directory || !is_plain(component);
    }
    let whole = [begun, component].concat();
    form != Form::Plain
        && is_cut_at(&whole, begun.len())
        && !(form == Form::Directory && is_plain(&whole))
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
