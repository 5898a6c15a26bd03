//! Finding versions: the current one, those in the tree, and the file that another of its key hides.

use cfs_fs::FsError;
use http::{HeaderMap, HeaderValue};
use s3s::{S3Error, S3ErrorCode, S3Result};

use super::{NULL_SUFFIX, Older, Version, in_tree, split_path};
use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::Face;
use crate::objects::Place;
use crate::ops::NULL_VERSION;
use crate::walk::Walk;

impl Face {
    /// The newest version of a key in the tree.
    pub(super) fn older(&self, bucket: &BucketAt, key: &str) -> Result<Option<Older>, FsError> {
        self.older_but(bucket, key, None)
    }

    /// The newest version of a key in the tree, but for one.
    pub(super) fn older_but(
        &self,
        bucket: &BucketAt,
        key: &str,
        but: Option<&str>,
    ) -> Result<Option<Older>, FsError> {
        let Some(tree) = self.versions_tree(bucket)? else {
            return Ok(None);
        };
        let prefix = in_tree(key, "");
        let mut walk = Walk::new(&self.fs, tree, prefix.as_bytes(), b"")?;
        while let Some((path, ino)) = walk.next()? {
            if let Ok(path) = String::from_utf8(path)
                && but != Some(path.as_str())
                && let Some((_, id)) = split_path(&path)
            {
                let id = id.to_owned();
                return Ok(Some(Older { ino, path, id }));
            }
        }
        Ok(None)
    }

    /// The files in the tree that are the version `null` of a key, the newest first: more than one where a snapshot that was
    /// restored has brought it back before the key was put.
    fn older_nulls(&self, bucket: &BucketAt, key: &str) -> Result<Vec<Older>, FsError> {
        let mut found = Vec::new();
        let Some(tree) = self.versions_tree(bucket)? else {
            return Ok(found);
        };
        let prefix = in_tree(key, "");
        let mut walk = Walk::new(&self.fs, tree, prefix.as_bytes(), b"")?;
        while let Some((path, ino)) = walk.next()? {
            if path.ends_with(NULL_SUFFIX.as_bytes())
                && let Ok(path) = String::from_utf8(path)
            {
                let id = NULL_VERSION.to_owned();
                found.push(Older { ino, path, id });
            }
        }
        Ok(found)
    }

    /// The same as the places that they have, with their keys in the tree.
    pub(super) fn null_places(
        &self,
        bucket: &BucketAt,
        key: &str,
    ) -> Result<Vec<(Place, Option<String>)>, FsError> {
        let mut places = Vec::new();
        if let Some(tree) = self.versions_tree(bucket)? {
            for older in self.older_nulls(bucket, key)? {
                let place = self.find(tree, &older.path)?;
                places.extend(place.map(|place| (place, Some(older.path))));
            }
        }
        Ok(places)
    }

    /// A version in the tree.
    pub(super) fn find_older(
        &self,
        bucket: &BucketAt,
        key: &str,
        id: &str,
    ) -> Result<Option<Older>, FsError> {
        if id == NULL_VERSION {
            return Ok(self.older_nulls(bucket, key)?.into_iter().next());
        }
        let Some(tree) = self.versions_tree(bucket)? else {
            return Ok(None);
        };
        let path = in_tree(key, id);
        Ok(self.find(tree, &path)?.map(|place| Older {
            ino: place.ino,
            path,
            id: id.to_owned(),
        }))
    }

    /// Where in the tree a marker goes on after this version: the version's key in the tree.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn path_of(
        &self,
        bucket: &BucketAt,
        key: &str,
        id: &str,
    ) -> S3Result<Option<String>> {
        let older = self.find_older(bucket, key, id).map_err(from_fs)?;
        Ok(older.map(|older| older.path))
    }

    /// A version of an object: the current one, if none is named.
    ///
    /// # Errors
    /// `NoSuchKey`, `NoSuchVersion`; `MethodNotAllowed` for a delete marker.
    pub(crate) fn find_version(
        &self,
        bucket: &BucketAt,
        key: &str,
        wanted: Option<&String>,
    ) -> S3Result<Version> {
        let find = || -> Result<S3Result<Version>, FsError> {
            let current = match self.find(bucket.ino(), key)? {
                Some(place) => Some(Version {
                    ino: place.ino,
                    id: self.version_of(place.ino)?,
                }),
                None => None,
            };
            let Some(wanted) = wanted else {
                return Ok(match current {
                    Some(version) => Ok(version),
                    None => match self.older(bucket, key)? {
                        Some(older) if self.is_marker(older.ino)? => {
                            Err(marked(S3ErrorCode::NoSuchKey, &older.id))
                        }
                        _ => Err(S3ErrorCode::NoSuchKey.into()),
                    },
                });
            };
            if let Some(version) = current
                && version.id == *wanted
            {
                return Ok(Ok(version));
            }
            Ok(match self.find_older(bucket, key, wanted)? {
                Some(older) if self.is_marker(older.ino)? => {
                    Err(marked(S3ErrorCode::MethodNotAllowed, &older.id))
                }
                Some(older) => Ok(Version {
                    ino: older.ino,
                    id: older.id,
                }),
                None => match self.shadowed(bucket, key, wanted)? {
                    Some(place) => Ok(Version {
                        ino: place.ino,
                        id: wanted.clone(),
                    }),
                    None => Err(S3ErrorCode::NoSuchVersion.into()),
                },
            })
        };
        find().map_err(from_fs)?
    }

    /// A version that is hidden by a file of the mount with the plain name of its key.
    fn shadowed(&self, bucket: &BucketAt, key: &str, id: &str) -> Result<Option<Place>, FsError> {
        match self.find_shadowed(bucket.ino(), key)? {
            Some(place) if self.version_of(place.ino)? == id => Ok(Some(place)),
            _ => Ok(None),
        }
    }
}

/// An error that tells of a delete marker.
fn marked(code: S3ErrorCode, id: &str) -> S3Error {
    let mut error = S3Error::new(code);
    let mut headers = HeaderMap::new();
    headers.insert("x-amz-delete-marker", HeaderValue::from_static("true"));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert("x-amz-version-id", id);
    }
    error.set_headers(headers);
    error
}
