//! Listing the objects of a bucket, with prefixes, delimiters and markers.

use cfs_format::Ino;
use cfs_fs::{Attr, FsError};
use s3s::S3Result;

use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::Face;
use crate::objects::hex;
use crate::records::{self, Content, Headers, name};
use crate::walk::Walk;

/// Entries in one answer at most; S3's own limit.
pub(crate) const KEYS_MAX: i32 = 1000;
/// Bytes of content that one listing reads at most to compute digests that are not known.
const DIGEST_BYTES_MAX: u64 = 16 << 20;
/// Longest key, bytes; S3's own limit. What lies deeper in the mount is not shown.
const KEY_BYTES_MAX: usize = 1024;

/// What to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) prefix: String,
    pub(crate) delimiter: Option<String>,
    /// Begin with the first key that is not before this.
    pub(crate) from: Vec<u8>,
    pub(crate) keys_max: usize,
    /// Read the owners too.
    pub(crate) with_owner: bool,
}

/// An object in a listing.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) key: String,
    pub(crate) attr: Attr,
    pub(crate) content: Content,
    /// Identifier of the user who put it, if not the bucket's owner.
    pub(crate) owner: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    pub(crate) objects: Vec<Listed>,
    pub(crate) prefixes: Vec<String>,
    /// Where to go on, and the last key or prefix of this answer.
    pub(crate) next: Option<(Vec<u8>, String)>,
}

/// The first key after all that begin with `prefix`.
pub(crate) fn after_prefix(prefix: &str) -> Vec<u8> {
    let mut bytes = prefix.as_bytes().to_vec();
    while let Some(last) = bytes.pop() {
        if last < u8::MAX {
            bytes.push(last + 1);
            break;
        }
    }
    bytes
}

impl Query {
    /// The prefix up to and with the first delimiter after the query's prefix, if a key has one.
    fn group<'k>(&self, key: &'k str) -> Option<&'k str> {
        let delimiter = self.delimiter.as_deref().filter(|text| !text.is_empty())?;
        let rest = key.get(self.prefix.len()..)?;
        let at = rest.find(delimiter)?;
        Some(&key[..self.prefix.len() + at + delimiter.len()])
    }

    /// Begin after a marker, which may be a prefix that an earlier answer ended with.
    pub(crate) fn start_after(&mut self, marker: &str) {
        let is_group = marker.starts_with(&self.prefix) && self.group(marker) == Some(marker);
        self.from = match is_group {
            true => after_prefix(marker),
            false => [marker.as_bytes(), b"\0"].concat(),
        };
    }
}

impl Face {
    /// Lists objects.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn list(&self, bucket: Ino, query: &Query) -> S3Result<Listing> {
        let mut listing = Listing::default();
        if query.keys_max == 0 {
            return Ok(listing);
        }
        let mut digest_bytes = DIGEST_BYTES_MAX;
        let mut last = (Vec::new(), String::new());
        let mut walk =
            Walk::new(&self.fs, bucket, query.prefix.as_bytes(), &query.from).map_err(from_fs)?;
        while let Some((key, ino)) = walk.next().map_err(from_fs)? {
            // Names that are no text have no key.
            let Ok(key) = String::from_utf8(key) else {
                continue;
            };
            if key.len() > KEY_BYTES_MAX {
                continue;
            }
            let is_full = listing.objects.len() + listing.prefixes.len() >= query.keys_max;
            if let Some(group) = query.group(&key) {
                if is_full {
                    listing.next = Some(last);
                    break;
                }
                let after = after_prefix(group);
                listing.prefixes.push(group.to_owned());
                last = (after.clone(), group.to_owned());
                walk.skip_to(after);
                continue;
            }
            if is_full {
                listing.next = Some(last);
                break;
            }
            match self.listed(key, ino, query.with_owner, &mut digest_bytes) {
                Ok(listed) => {
                    last = ([listed.key.as_bytes(), b"\0"].concat(), listed.key.clone());
                    listing.objects.push(listed);
                }
                // It went meanwhile.
                Err(FsError::NotFound) => {}
                Err(error) => return Err(from_fs(error)),
            }
        }
        Ok(listing)
    }

    fn listed(
        &self,
        key: String,
        ino: Ino,
        with_owner: bool,
        digest_bytes: &mut u64,
    ) -> Result<Listed, FsError> {
        let (mut attr, content) = self.known_object(ino)?;
        let content = match content {
            Some(content) => content,
            None if attr.size <= *digest_bytes => {
                *digest_bytes -= attr.size;
                let object = self.object(ino)?;
                attr = object.attr;
                object.content
            }
            // Not an MD5, as the dash says; the first look at the object itself computes it.
            None => Content {
                etag: format!("{}-0", hex(&stamp(&attr))),
                ..Content::default()
            },
        };
        let owner = match with_owner {
            true => records::get::<Headers>(&self.fs, ino, name::HEADERS)?
                .and_then(|headers| headers.owner),
            false => None,
        };
        Ok(Listed {
            key,
            attr,
            content,
            owner,
        })
    }
}

/// Sixteen bytes that differ when the content does.
fn stamp(attr: &Attr) -> [u8; 16] {
    let mut stamp = [0; 16];
    stamp[..8].copy_from_slice(&attr.ino.0.to_be_bytes());
    stamp[8..].copy_from_slice(
        &(attr.ctime.seconds as u64 ^ u64::from(attr.ctime.nanos) << 32).to_be_bytes(),
    );
    stamp
}

/// A version in a listing, or a delete marker.
#[derive(Clone, Debug)]
pub(crate) struct ListedVersion {
    pub(crate) listed: Listed,
    pub(crate) id: String,
    pub(crate) is_latest: bool,
    pub(crate) is_marker: bool,
}

/// What was found of versions.
#[derive(Clone, Debug, Default)]
pub(crate) struct VersionListing {
    pub(crate) versions: Vec<ListedVersion>,
    pub(crate) prefixes: Vec<String>,
    /// Key and identifier of the last version of this answer, if there are more.
    pub(crate) next: Option<(String, Option<String>)>,
}

/// Key, identifier and inode of the next version of one of the two trees.
pub(crate) struct Peeked {
    pub(crate) key: String,
    pub(crate) id: String,
    pub(crate) ino: Ino,
}

impl Face {
    /// Lists versions after a key, or after one of its versions.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn list_versions(
        &self,
        bucket: &BucketAt,
        query: &Query,
        after: Option<(&str, &str)>,
    ) -> S3Result<VersionListing> {
        let mut listing = VersionListing::default();
        if query.keys_max == 0 {
            return Ok(listing);
        }
        let mut last_key = String::new();
        let mut tree_from = query.from.clone();
        if let [key @ .., 0] = tree_from.as_slice() {
            // In the tree a zero byte follows the key of a version, and all of the key's versions are passed over.
            tree_from = [key, b"\x01"].concat();
        }
        if let Some((key, id)) = after {
            key.clone_into(&mut last_key);
            tree_from = match self.path_of(bucket, key, id)? {
                Some(path) => [path.as_bytes(), b"\0"].concat(),
                None => [key.as_bytes(), b"\0"].concat(),
            };
        }
        let tree = self.versions_tree(bucket).map_err(from_fs)?;
        let prefix = query.prefix.as_bytes();
        let mut current =
            Walk::new(&self.fs, bucket.ino(), prefix, &query.from).map_err(from_fs)?;
        let mut older = match tree {
            Some(tree) => Some(Walk::new(&self.fs, tree, prefix, &tree_from).map_err(from_fs)?),
            None => None,
        };
        let mut digest_bytes = DIGEST_BYTES_MAX;
        let mut last = (String::new(), None);
        let (mut left, mut right) = (None, None);
        let mut skip_to = Vec::new();
        loop {
            if left.is_none() {
                left = self.peek_current(&mut current)?;
            }
            if right.is_none() {
                right = peek_older(older.as_mut())?;
            }
            let from_tree = match (&left, &right) {
                (None, None) => break,
                (Some(_), None) => false,
                (None, Some(_)) => true,
                (Some(left), Some(right)) => right.key < left.key,
            };
            let side = if from_tree { &mut right } else { &mut left };
            let found: Peeked = side.take().expect("this side has one");
            if found.key.as_bytes() < skip_to.as_slice() || found.key.len() > KEY_BYTES_MAX {
                continue;
            }
            let is_full = listing.versions.len() + listing.prefixes.len() >= query.keys_max;
            if is_full {
                listing.next = Some(last);
                break;
            }
            if let Some(group) = query.group(&found.key) {
                skip_to = after_prefix(group);
                current.skip_to(skip_to.clone());
                if let Some(older) = &mut older {
                    older.skip_to(skip_to.clone());
                }
                listing.prefixes.push(group.to_owned());
                last = (group.to_owned(), None);
                continue;
            }
            let is_latest = found.key != last_key;
            last_key.clone_from(&found.key);
            let is_marker = from_tree && self.is_marker(found.ino).map_err(from_fs)?;
            match self.listed(found.key, found.ino, true, &mut digest_bytes) {
                Ok(listed) => {
                    last = (listed.key.clone(), Some(found.id.clone()));
                    listing.versions.push(ListedVersion {
                        listed,
                        id: found.id,
                        is_latest,
                        is_marker,
                    });
                }
                // It went meanwhile.
                Err(FsError::NotFound) => {}
                Err(error) => return Err(from_fs(error)),
            }
        }
        Ok(listing)
    }

    /// The next current version.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn peek_current(&self, walk: &mut Walk<'_>) -> S3Result<Option<Peeked>> {
        while let Some((key, ino)) = walk.next().map_err(from_fs)? {
            if let Ok(key) = String::from_utf8(key) {
                let id = self.version_of(ino).map_err(from_fs)?;
                return Ok(Some(Peeked { key, id, ino }));
            }
        }
        Ok(None)
    }
}

/// The next version of the tree.
///
/// # Errors
/// What reading failed with.
pub(crate) fn peek_older(walk: Option<&mut Walk<'_>>) -> S3Result<Option<Peeked>> {
    let Some(walk) = walk else {
        return Ok(None);
    };
    while let Some((path, ino)) = walk.next().map_err(from_fs)? {
        if let Ok(path) = String::from_utf8(path)
            && let Some((key, id)) = crate::versions::split_path(&path)
        {
            let (key, id) = (key.to_owned(), id.to_owned());
            return Ok(Some(Peeked { key, id, ino }));
        }
    }
    Ok(None)
}
