//! The objects below a directory in the byte order of their keys, read as far as somebody wants to know.
//!
//! Entries of a directory are ordered by name, objects by key: `a-b` comes before `a/c`, although `a` comes before
//! `a-b`. So what has been found and is not yet due waits in a heap: files under their keys, directories under the
//! smallest key that can be in them, and cursors, which are directories read in part, under the smallest key that
//! they can still bring.
//!
//! # Invariants
//! - Nothing that is not in the heap lies, in order, before what comes out of it.
//! - What lies before `lower` is not looked at: cursors seek over it, so that skipping costs nothing per key.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use cfs_format::Ino;
use cfs_fs::{Fs, NamedEntry, Result};

use crate::names::{self, Form};

/// Entries that are read of a directory at first; each further time four times as many, up to a bound.
const BATCH_MIN: usize = 8;
const BATCH_MAX: usize = 512;

/// The first name that is after all of a mark.
fn after_mark(form: Form) -> Vec<u8> {
    let mut name = form.mark().to_vec();
    if let Some(last) = name.last_mut() {
        *last += 1;
    }
    name
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Cursor(Cursor),
    /// Of two names for one key the plain one comes first, as it counts.
    File(Form, Ino),
    Directory(Ino),
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    directory: Ino,
    /// The key up to this directory.
    base: Vec<u8>,
    form: Form,
    /// The next name to read.
    from: Vec<u8>,
    batch: usize,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Node {
    key: Vec<u8>,
    what: What,
}

/// A walk in progress.
pub(crate) struct Walk<'a> {
    fs: &'a Fs,
    heap: BinaryHeap<Reverse<Node>>,
    /// Keys before this are passed over.
    lower: Vec<u8>,
    /// The walk ends at the first key that lies after all that begin so.
    prefix: Vec<u8>,
}

impl<'a> Walk<'a> {
    /// The objects in a bucket's directory whose keys begin with `prefix` and are not before `lower`.
    ///
    /// # Errors
    /// What reading the directories of the prefix failed with.
    pub(crate) fn new(fs: &'a Fs, bucket: Ino, prefix: &[u8], lower: &[u8]) -> Result<Self> {
        let mut walk = Self {
            fs,
            heap: BinaryHeap::new(),
            lower: prefix.max(lower).to_vec(),
            prefix: prefix.to_vec(),
        };
        let (directories, last) = names::split(prefix);
        let mut at = bucket;
        for component in directories {
            match directory_in(fs, at, component)? {
                Some(ino) => at = ino,
                None => return Ok(walk),
            }
        }
        let key = prefix[..prefix.len() - last.len()].to_vec();
        walk.push(key, What::Directory(at));
        Ok(walk)
    }

    /// Passes over all keys before `lower`.
    pub(crate) fn skip_to(&mut self, lower: Vec<u8>) {
        if lower > self.lower {
            self.lower = lower;
        }
    }

    /// The next object: its key and its inode.
    ///
    /// # Errors
    /// What reading a directory failed with.
    pub(crate) fn next(&mut self) -> Result<Option<(Vec<u8>, Ino)>> {
        while let Some(Reverse(node)) = self.heap.pop() {
            if node.key > self.prefix && !node.key.starts_with(&self.prefix) {
                break;
            }
            match node.what {
                What::File(..) if node.key < self.lower => {}
                What::File(_, ino) => {
                    // Two names may stand for one key; the second is passed over.
                    self.lower.clone_from(&node.key);
                    self.lower.push(0);
                    return Ok(Some((node.key, ino)));
                }
                What::Directory(ino) => self.expand(ino, node.key)?,
                What::Cursor(cursor) => self.read(cursor)?,
            }
        }
        self.heap.clear();
        Ok(None)
    }

    fn push(&mut self, key: Vec<u8>, what: What) {
        self.heap.push(Reverse(Node { key, what }));
    }

    /// What is left of `lower` below a directory with the key `base`; none if all that is there lies before it.
    fn rest_below<'b>(&'b self, base: &[u8]) -> Option<&'b [u8]> {
        match self.lower.strip_prefix(base) {
            Some(rest) => Some(rest),
            None if *self.lower <= *base => Some(&[]),
            None => None,
        }
    }

    fn expand(&mut self, directory: Ino, base: Vec<u8>) -> Result<()> {
        let Some(rest) = self.rest_below(&base) else {
            return Ok(());
        };
        let component = rest
            .split(|byte| *byte == b'/')
            .next()
            .unwrap_or_default()
            .to_vec();
        let mut forms = vec![Form::Plain];
        let first = self.fs.names_from(directory, Form::Continued.mark(), 1)?;
        if first
            .first()
            .is_some_and(|entry| entry.name < after_mark(Form::File))
        {
            forms.extend([Form::Continued, Form::Directory, Form::File]);
        }
        for form in forms {
            let text = match form {
                Form::Plain => component.clone(),
                _ => names::encode(&component),
            };
            if matches!(form, Form::Plain | Form::Directory) {
                self.find_shorter(directory, &base, form, &component)?;
            }
            let mut from = [form.mark(), &text].concat();
            if form == Form::Continued {
                // A piece that the component begins with is nearly as long as names are.
                from.truncate(cfs_fs::NAME_BYTES_MAX - 3);
                while !from.is_empty() && names::component(&from).is_none() {
                    from.pop();
                }
            }
            let cursor = Cursor {
                directory,
                base: base.clone(),
                form,
                from,
                batch: BATCH_MIN,
            };
            self.read(cursor)?;
        }
        Ok(())
    }

    /// Finds the directories whose names are the beginning of `component`, and so before it in the order of names, but
    /// whose keys come after it, since what follows is before a slash.
    fn find_shorter(
        &mut self,
        directory: Ino,
        base: &[u8],
        form: Form,
        component: &[u8],
    ) -> Result<()> {
        // The empty component is a directory's only where it is escaped.
        let first = usize::from(form == Form::Plain);
        for len in first..component.len() {
            if component[len] >= b'/' {
                continue;
            }
            let shorter = &component[..len];
            if !names::is_one_of_ours(begun(base), form, shorter) {
                continue;
            }
            let name = match form {
                Form::Plain => shorter.to_vec(),
                _ => [form.mark(), &names::encode(shorter)].concat(),
            };
            if name.len() > cfs_fs::NAME_BYTES_MAX {
                break;
            }
            if let Some(entry) = self.fs.find_name(directory, &name)?
                && entry.kind == libc::S_IFDIR
            {
                self.push([base, shorter, b"/"].concat(), What::Directory(entry.ino));
            }
        }
        Ok(())
    }

    /// Reads on in a directory.
    fn read(&mut self, mut cursor: Cursor) -> Result<()> {
        let Some(rest) = self.rest_below(&cursor.base) else {
            return Ok(());
        };
        let component = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
        let sought = match cursor.form {
            Form::Plain => component.to_vec(),
            Form::Continued => Vec::new(),
            form => [form.mark(), &names::encode(component)].concat(),
        };
        if sought > cursor.from {
            cursor.from = sought;
        }
        let form = cursor.form;
        let entries = self
            .fs
            .names_from(cursor.directory, &cursor.from, cursor.batch)?;
        let mut ended = entries.len() < cursor.batch;
        let mut last = None;
        for entry in entries {
            let found = Form::of(&entry.name);
            if found != form {
                if form == Form::Plain {
                    // Escaped names lie between plain ones, and have cursors of their own.
                    cursor.from = after_mark(found);
                    ended = false;
                    if last.is_none() {
                        last = Some(Vec::new());
                    }
                } else {
                    ended = true;
                }
                break;
            }
            cursor.from.clone_from(&entry.name);
            cursor.from.push(0);
            last = Some(
                self.found(&cursor.base, entry)
                    .unwrap_or_else(|| last.unwrap_or_default()),
            );
        }
        if !ended && let Some(last) = last {
            cursor.batch = (cursor.batch * 4).min(BATCH_MAX);
            let key = [&*cursor.base, &last].concat();
            self.push(key, What::Cursor(cursor));
        }
        Ok(())
    }

    /// Puts an entry where it is due; returns its component.
    fn found(&mut self, base: &[u8], entry: NamedEntry) -> Option<Vec<u8>> {
        let (form, component) = names::component(&entry.name)?;
        if !names::is_one_of_ours(begun(base), form, &component) {
            return Some(component);
        }
        let mut key = [base, &component].concat();
        match (form, entry.kind) {
            (Form::Plain | Form::File, libc::S_IFREG) => {
                self.push(key, What::File(form, entry.ino));
            }
            (Form::Plain | Form::Directory, libc::S_IFDIR) => {
                key.push(b'/');
                self.push(key, What::Directory(entry.ino));
            }
            (Form::Continued, libc::S_IFDIR) => self.push(key, What::Directory(entry.ino)),
            _ => {}
        }
        Some(component)
    }
}

/// What a component has begun with that goes on in the directory with the key `base`.
fn begun(base: &[u8]) -> &[u8] {
    let last = base.rsplit(|byte| *byte == b'/').next();
    last.expect("splitting gives at least one part")
}

/// The directory that a component stands for.
pub(crate) fn directory_in(fs: &Fs, parent: Ino, component: &[u8]) -> Result<Option<Ino>> {
    let mut at = parent;
    for name in names::directory_names(component) {
        match fs.find_name(at, &name)? {
            Some(entry) if entry.kind == libc::S_IFDIR => at = entry.ino,
            _ => return Ok(None),
        }
    }
    Ok(Some(at))
}
