//! Paths in a pool, as the command line gives them: absolute or not, they start at the root; `.` is skipped, `..` and
//! symbolic links are refused.

use std::path::Path;

use cfs_format::Ino;
use cfs_fs::{Attr, Caller, Fs, FsError};

use crate::failure::{Code, Failure, Result};

/// A parsed path.
pub struct PoolPath {
    components: Vec<Vec<u8>>,
    /// It ended with `/` or `/.`: a directory is meant, and where it is a source, its content.
    pub names_content: bool,
    /// It ended with `/`.
    pub trailing_slash: bool,
}

impl PoolPath {
    /// The path with these bytes.
    ///
    /// # Errors
    /// [`Code::Usage`] for `..` and for a zero byte.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut components = Vec::new();
        for component in bytes.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    return Err(Failure::new(
                        Code::Usage,
                        format!("{}: '..' in a path of the pool", show(bytes)),
                    )
                    .hint("write the path from the pool's root"));
                }
                _ if component.contains(&0) => {
                    return Err(Failure::new(
                        Code::Usage,
                        format!("{}: no path has a zero byte", show(bytes)),
                    ));
                }
                _ => components.push(component.to_vec()),
            }
        }
        Ok(Self {
            names_content: components.is_empty() || bytes.ends_with(b"/."),
            trailing_slash: bytes.ends_with(b"/"),
            components,
        })
    }

    /// The last component; none for the root.
    pub fn name(&self) -> Option<&[u8]> {
        self.components.last().map(Vec::as_slice)
    }

    /// The path for people.
    pub fn show(&self) -> String {
        self.shown_up_to(self.components.len())
    }

    fn shown_up_to(&self, count: usize) -> String {
        format!("/{}", show(&self.components[..count].join(&b'/')))
    }

    /// What is there; `None` when the last component, or a directory before it, is not.
    ///
    /// # Errors
    /// [`Code::Usage`] when the path passes through something that is no directory; [`Code::Failed`] when the pool
    /// cannot be read.
    pub fn find(&self, fs: &Fs) -> Result<Option<Attr>> {
        let mut at = fs.getattr(Ino::ROOT).map_err(|e| unreadable("/", &e))?;
        for (depth, component) in self.components.iter().enumerate() {
            if at.kind() != libc::S_IFDIR {
                return Err(self.no_directory(depth));
            }
            at = match fs.lookup(at.ino, component) {
                Ok(attr) => attr,
                Err(FsError::NotFound) => return Ok(None),
                Err(error) => return Err(unreadable(&self.shown_up_to(depth + 1), &error)),
            };
        }
        Ok(Some(at))
    }

    /// The directory that holds the last component, made with its parents where they are missing.
    ///
    /// # Errors
    /// As for [`PoolPath::find`], and what making a directory meets; those made before stay.
    pub fn make_parent(&self, fs: &Fs, caller: &Caller) -> Result<Ino> {
        let mut at = Ino::ROOT;
        let parents = self.components.len().saturating_sub(1);
        for (depth, component) in self.components[..parents].iter().enumerate() {
            let attr = match fs.lookup(at, component) {
                Err(FsError::NotFound) => fs.mkdir(at, component, 0o755, caller),
                result => result,
            };
            let attr = attr.map_err(|e| unreadable(&self.shown_up_to(depth + 1), &e))?;
            if attr.kind() != libc::S_IFDIR {
                return Err(self.no_directory(depth + 1));
            }
            at = attr.ino;
        }
        Ok(at)
    }

    fn no_directory(&self, count: usize) -> Failure {
        Failure::new(
            Code::Usage,
            format!("{} in the pool is not a directory", self.shown_up_to(count)),
        )
        .hint("symbolic links are not followed; give the path that they stand for")
    }
}

fn unreadable(path: &str, error: &FsError) -> Failure {
    Failure::new(Code::Failed, format!("{path} in the pool: {error}"))
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The path of the pool's file `name` in the directory `parent`, for messages.
pub fn join(parent: &str, name: &[u8]) -> String {
    Path::new(parent)
        .join(show(name))
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_parsed() {
        for (text, shown, content) in [
            ("/", "/", true),
            ("", "/", true),
            ("/a//b/", "/a/b", false),
            ("a/./b/.", "/a/b", true),
        ] {
            let path = PoolPath::parse(text.as_bytes()).expect("valid");
            assert_eq!((path.show().as_str(), path.names_content), (shown, content));
        }
        assert!(PoolPath::parse(b"/a/../b").is_err());
        assert!(PoolPath::parse(b"/a\0b").is_err());
    }
}
