//! Access control lists of buckets and objects.

use s3s::dto::{AccessControlPolicy, Grant, Grantee as ShownGrantee, Permission, Type};
use s3s::{S3ErrorCode, S3Result, s3_error};
use serde::{Deserialize, Serialize};

use crate::buckets::BucketAt;
use crate::errors::from_fs;
use crate::face::Face;
use crate::records::{self, name};
use crate::users::User;

const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";
const AUTHENTICATED_USERS: &str = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers";
/// Grants in a list at most; S3's own limit.
const GRANTS_MAX: usize = 100;

/// Who is granted something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Grantee {
    /// The user with this identifier.
    User(String),
    /// Everybody, without a signature too.
    All,
    /// Everybody who has a key.
    Authenticated,
}

/// What is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Right {
    FullControl,
    Read,
    Write,
    ReadAcp,
    WriteAcp,
}

impl Right {
    fn name(self) -> &'static str {
        match self {
            Self::FullControl => Permission::FULL_CONTROL,
            Self::Read => Permission::READ,
            Self::Write => Permission::WRITE,
            Self::ReadAcp => Permission::READ_ACP,
            Self::WriteAcp => Permission::WRITE_ACP,
        }
    }

    fn of(name: &str) -> Option<Self> {
        [
            Self::FullControl,
            Self::Read,
            Self::Write,
            Self::ReadAcp,
            Self::WriteAcp,
        ]
        .into_iter()
        .find(|right| right.name() == name)
    }
}

/// A list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Acl {
    /// Identifier of the owner.
    pub(crate) owner: String,
    pub(crate) grants: Vec<(Grantee, Right)>,
}

/// A list as the headers of a request give it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub(crate) canned: Option<String>,
    pub(crate) full_control: Option<String>,
    pub(crate) read: Option<String>,
    pub(crate) read_acp: Option<String>,
    pub(crate) write: Option<String>,
    pub(crate) write_acp: Option<String>,
}

impl Acl {
    /// The list of what only its owner may use.
    pub(crate) fn private(owner: &str) -> Self {
        Self {
            owner: owner.to_owned(),
            grants: vec![(Grantee::User(owner.to_owned()), Right::FullControl)],
        }
    }

    fn canned(name: &str, owner: &str, bucket_owner: &str) -> S3Result<Self> {
        let mut acl = Self::private(owner);
        let bucket_owner = || Grantee::User(bucket_owner.to_owned());
        match name {
            "private" => {}
            "public-read" => acl.grants.push((Grantee::All, Right::Read)),
            "public-read-write" => acl
                .grants
                .extend([(Grantee::All, Right::Read), (Grantee::All, Right::Write)]),
            "authenticated-read" => acl.grants.push((Grantee::Authenticated, Right::Read)),
            "bucket-owner-read" => acl.grants.push((bucket_owner(), Right::Read)),
            "bucket-owner-full-control" => acl.grants.push((bucket_owner(), Right::FullControl)),
            _ => return Err(s3_error!(InvalidArgument, "there is no canned list {name}")),
        }
        acl.grants.dedup();
        Ok(acl)
    }

    /// Whether the list grants a right to somebody.
    pub(crate) fn allows(&self, user: Option<&User>, right: Right, ignore_public: bool) -> bool {
        self.grants.iter().any(|(grantee, granted)| {
            let is_meant = match grantee {
                Grantee::User(id) => user.is_some_and(|user| user.id == *id),
                Grantee::All => !ignore_public,
                Grantee::Authenticated => !ignore_public && user.is_some(),
            };
            is_meant && (*granted == right || *granted == Right::FullControl)
        })
    }

    /// Whether it grants anything to everybody.
    pub(crate) fn is_public(&self) -> bool {
        self.grants
            .iter()
            .any(|(grantee, _)| !matches!(grantee, Grantee::User(_)))
    }
}

impl Given {
    fn is_empty(&self) -> bool {
        self.canned.is_none() && !self.has_grants()
    }

    fn has_grants(&self) -> bool {
        self.headers().iter().any(|(header, _)| header.is_some())
    }

    fn headers(&self) -> [(Option<&String>, Right); 5] {
        [
            (self.read.as_ref(), Right::Read),
            (self.write.as_ref(), Right::Write),
            (self.read_acp.as_ref(), Right::ReadAcp),
            (self.write_acp.as_ref(), Right::WriteAcp),
            (self.full_control.as_ref(), Right::FullControl),
        ]
    }
}

impl Face {
    fn known_grantee(&self, id: &str) -> S3Result<Grantee> {
        match self.users.by_id(id) {
            Some(_) => Ok(Grantee::User(id.to_owned())),
            None => Err(s3_error!(
                InvalidArgument,
                "there is no user with the identifier {id}"
            )),
        }
    }

    fn grantee_at(&self, email: &str) -> S3Result<Grantee> {
        match self.users.by_email(email) {
            Some(user) => Ok(Grantee::User(user.id.clone())),
            None => Err(S3ErrorCode::UnresolvableGrantByEmailAddress.into()),
        }
    }

    fn group(uri: &str) -> S3Result<Grantee> {
        match uri {
            ALL_USERS => Ok(Grantee::All),
            AUTHENTICATED_USERS => Ok(Grantee::Authenticated),
            _ => Err(s3_error!(InvalidArgument, "there is no group {uri}")),
        }
    }

    /// The list that a request's headers give; none if they give none.
    ///
    /// # Errors
    /// `InvalidArgument`, `InvalidRequest`, `UnresolvableGrantByEmailAddress`.
    fn given_acl(&self, given: &Given, owner: &str, bucket_owner: &str) -> S3Result<Option<Acl>> {
        if given.is_empty() {
            return Ok(None);
        }
        if let Some(canned) = &given.canned {
            if given.has_grants() {
                return Err(s3_error!(
                    InvalidRequest,
                    "a canned list and grants are given at once"
                ));
            }
            return Acl::canned(canned, owner, bucket_owner).map(Some);
        }
        let mut grants = Vec::new();
        for (header, right) in given.headers() {
            for part in header.map(String::as_str).unwrap_or_default().split(',') {
                let part = part.trim();
                if part.is_empty() {
                    continue;
                }
                let (kind, value) = part
                    .split_once('=')
                    .ok_or_else(|| s3_error!(InvalidArgument, "a grant is KIND=\"VALUE\""))?;
                let value = value.trim().trim_matches('"');
                let grantee = match kind.trim() {
                    "id" => self.known_grantee(value)?,
                    "uri" => Self::group(value)?,
                    "emailAddress" => self.grantee_at(value)?,
                    _ => return Err(s3_error!(InvalidArgument, "a grant is to an id or a uri")),
                };
                grants.push((grantee, right));
            }
        }
        Ok(Some(Acl {
            owner: owner.to_owned(),
            grants,
        }))
    }

    /// The list that a request's body gives.
    ///
    /// # Errors
    /// `MalformedACLError`, `InvalidArgument`, `AccessDenied` for another owner than now.
    fn body_acl(&self, policy: AccessControlPolicy, owner: &str) -> S3Result<Acl> {
        let malformed = || s3s::S3Error::new(S3ErrorCode::MalformedACLError);
        let grants = policy.grants.unwrap_or_default();
        if grants.len() > GRANTS_MAX {
            return Err(malformed());
        }
        if policy
            .owner
            .and_then(|owner| owner.id)
            .is_some_and(|id| id != owner)
        {
            return Err(S3ErrorCode::AccessDenied.into());
        }
        let mut list = Vec::new();
        for grant in grants {
            let right = grant
                .permission
                .and_then(|name| Right::of(name.as_str()))
                .ok_or_else(malformed)?;
            let grantee = grant.grantee.ok_or_else(malformed)?;
            let grantee = match (&grantee.id, &grantee.uri, &grantee.email_address) {
                (Some(id), _, _) => self.known_grantee(id)?,
                (None, Some(uri), _) => Self::group(uri)?,
                (None, None, Some(email)) => self.grantee_at(email)?,
                _ => return Err(malformed()),
            };
            list.push((grantee, right));
        }
        Ok(Acl {
            owner: owner.to_owned(),
            grants: list,
        })
    }

    /// Whether a list may be given to something in a bucket, or to the bucket.
    fn admit_acl(&self, bucket: &BucketAt, acl: &Acl, canned: Option<&str>) -> S3Result<()> {
        if self.ownership(bucket)?.as_deref() == Some("BucketOwnerEnforced")
            && (acl.grants != Acl::private(bucket.owner()).grants
                || canned.is_some_and(|name| name != "bucket-owner-full-control"))
        {
            return Err(crate::errors::custom(
                "AccessControlListNotSupported",
                http::StatusCode::BAD_REQUEST,
                "the bucket does not take access control lists",
            ));
        }
        match acl.is_public() && self.public_access(bucket)?.block_public_acls == Some(true) {
            true => Err(s3_error!(
                AccessDenied,
                "the bucket refuses public access control lists"
            )),
            false => Ok(()),
        }
    }

    /// Identifier of who is to own a new object, if not the bucket's owner.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn new_owner(
        &self,
        bucket: &BucketAt,
        user: Option<&User>,
        given: &Given,
    ) -> S3Result<Option<String>> {
        let is_left = match self.ownership(bucket)?.as_deref() {
            Some("BucketOwnerEnforced") => true,
            Some("BucketOwnerPreferred") => {
                given.canned.as_deref() == Some("bucket-owner-full-control")
            }
            _ => false,
        };
        Ok(user
            .filter(|user| !is_left && user.id != bucket.owner())
            .map(|user| user.id.clone()))
    }

    /// The row with the list of a new object, if it has one of its own.
    ///
    /// # Errors
    /// What the headers are refused for.
    pub(crate) fn acl_row(
        &self,
        given: &Given,
        bucket: &BucketAt,
        user: Option<&User>,
    ) -> S3Result<Option<(Vec<u8>, Vec<u8>)>> {
        let owner = self.new_owner(bucket, user, given)?;
        let owner = owner.as_deref().unwrap_or(bucket.owner());
        let Some(acl) = self.given_acl(given, owner, bucket.owner())? else {
            return Ok(None);
        };
        self.admit_acl(bucket, &acl, given.canned.as_deref())?;
        Ok(Some((name::ACL.to_vec(), records::encode(&acl))))
    }

    /// The row with the list of a new bucket, if it has one of its own.
    ///
    /// # Errors
    /// What the headers are refused for.
    pub(crate) fn new_bucket_acl(
        &self,
        given: &Given,
        owner: &User,
    ) -> S3Result<Option<(Vec<u8>, Vec<u8>)>> {
        let acl = self.given_acl(given, &owner.id, &owner.id)?;
        Ok(acl.map(|acl| (name::ACL.to_vec(), records::encode(&acl))))
    }

    /// The list of a bucket.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn bucket_acl(&self, bucket: &BucketAt) -> S3Result<Acl> {
        let acl = records::get(&self.fs, bucket.ino(), name::ACL).map_err(from_fs)?;
        Ok(acl.unwrap_or_else(|| Acl::private(bucket.owner())))
    }

    /// The list of an object.
    ///
    /// # Errors
    /// What reading failed with.
    pub(crate) fn object_acl(&self, bucket: &BucketAt, ino: cfs_format::Ino) -> S3Result<Acl> {
        if let Some(acl) = records::get(&self.fs, ino, name::ACL).map_err(from_fs)? {
            return Ok(acl);
        }
        let headers =
            records::get::<records::Headers>(&self.fs, ino, name::HEADERS).map_err(from_fs)?;
        let owner = headers.and_then(|headers| headers.owner);
        Ok(Acl::private(owner.as_deref().unwrap_or(bucket.owner())))
    }

    /// The list that a request is to set, given what is there now.
    ///
    /// # Errors
    /// What it is refused for; `MissingSecurityHeader` when it gives none.
    pub(crate) fn new_acl(
        &self,
        bucket: &BucketAt,
        now: &Acl,
        given: &Given,
        body: Option<AccessControlPolicy>,
    ) -> S3Result<Acl> {
        let acl = match (self.given_acl(given, &now.owner, bucket.owner())?, body) {
            (Some(_), Some(body)) if body.grants.is_some() || body.owner.is_some() => {
                return Err(s3_error!(
                    UnexpectedContent,
                    "a list is given in headers and body"
                ));
            }
            (Some(acl), _) => acl,
            (None, Some(body)) => self.body_acl(body, &now.owner)?,
            (None, None) => return Err(S3ErrorCode::MissingSecurityHeader.into()),
        };
        self.admit_acl(bucket, &acl, given.canned.as_deref())?;
        Ok(acl)
    }

    /// As [`shown_grants`], with the names that users have.
    pub(crate) fn shown_grants(&self, acl: &Acl) -> Vec<Grant> {
        shown_grants(acl, &|id| {
            self.users.by_id(id).map(|user| user.name.clone())
        })
    }
}

/// The grants of a list as answers show them: those to groups first.
pub(crate) fn shown_grants(acl: &Acl, name_of: &dyn Fn(&str) -> Option<String>) -> Vec<Grant> {
    let shown = |(grantee, right): &(Grantee, Right)| {
        let mut shown = ShownGrantee {
            display_name: None,
            email_address: None,
            id: None,
            type_: Type::from_static(Type::GROUP),
            uri: None,
        };
        match grantee {
            Grantee::User(id) => {
                shown.type_ = Type::from_static(Type::CANONICAL_USER);
                shown.display_name = name_of(id);
                shown.id = Some(id.clone());
            }
            Grantee::All => shown.uri = Some(ALL_USERS.to_owned()),
            Grantee::Authenticated => shown.uri = Some(AUTHENTICATED_USERS.to_owned()),
        }
        Grant {
            grantee: Some(shown),
            permission: Some(Permission::from_static(right.name())),
        }
    };
    let (users, groups): (Vec<_>, Vec<_>) = acl
        .grants
        .iter()
        .partition(|(grantee, _)| matches!(grantee, Grantee::User(_)));
    groups.into_iter().chain(users).map(shown).collect()
}
