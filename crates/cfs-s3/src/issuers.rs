//! Issuers of identity tokens (OpenID Connect): the keys that the administrator gives for each, and what a token says that
//! one of them has signed (RFC 7515, RFC 7517, RFC 7518, RFC 7519).
//!
//! The pool asks no issuer for anything: whoever names a provider would otherwise say what the server connects to.
//!
//! # Invariants
//! - What is read from a token before its signature is known to be right says only which key is to verify it.
//! - A key verifies what is signed in the way that the key is for, and only with public keys: a token never says how it is to be
//!   trusted.

use std::collections::BTreeSet;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use cfs_format::Ino;
use cfs_fs::{FsError, RecordChange};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::records::{self, name};
use crate::users::{UserError, Users};

/// Longest set of keys, bytes.
const SET_BYTES_MAX: usize = 32 << 10;
/// Keys of an issuer.
const KEYS_MAX: usize = 64;
/// Longest URL of an issuer, and longest audience, bytes.
pub(crate) const URL_BYTES_MAX: usize = 240;
pub(crate) const AUDIENCE_BYTES_MAX: usize = 255;
/// Audiences of an issuer or a provider.
pub(crate) const AUDIENCES_MAX: usize = 100;
/// Longest token, bytes; that of STS.
const TOKEN_BYTES_MAX: usize = 20_000;
/// Bits of an RSA key.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// How far the issuer's clock may be ahead, seconds.
const SKEW_SECONDS: f64 = 60.0;
/// The claim with tags of a session, as STS has it.
const TAGS_CLAIM: &str = "https://aws.amazon.com/tags";
/// Tags of a session.
const TAGS_MAX: usize = 50;
/// Keys and values of all tags, bytes. They come back with each request in the token of the credentials.
const TAGS_BYTES_MAX: usize = 4096;

/// Tags of a session: keys, each with its values.
pub(crate) type SessionTags = Vec<(String, Vec<String>)>;

/// A key, in Base64 without padding, as it is among others in a set (JWK).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kty")]
enum Material {
    #[serde(rename = "RSA")]
    Rsa { n: String, e: String },
    #[serde(rename = "EC")]
    Curve { crv: String, x: String, y: String },
}

/// A key of an issuer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct IssuerKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    /// The only way of signing that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    #[serde(flatten)]
    material: Material,
}

/// An issuer, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Issuer {
    url: String,
    keys: Vec<IssuerKey>,
    /// Whom its tokens are for, where a provider does not say.
    #[serde(default)]
    audiences: Vec<String>,
}

/// Why keys of an issuer are refused. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// Not the URL of an issuer.
    #[error(
        "an issuer is named as its tokens name it: https://HOST/PATH or http://HOST/PATH, of up to {URL_BYTES_MAX} printable characters"
    )]
    Url,
    /// Not an audience, or too many.
    #[error(
        "there are up to {AUDIENCES_MAX} audiences, each of 1 to {AUDIENCE_BYTES_MAX} characters"
    )]
    Audience,
    /// Not a set of keys.
    #[error("these are not the keys of an issuer, a JSON Web Key Set of up to 32 KiB: {0}")]
    Set(String),
    /// Who gave it should keep it.
    #[error("there is a secret key in this set, which an issuer keeps to itself")]
    Private,
    /// None that verifies anything here.
    #[error(
        "none of these keys is for signatures, and of RSA with 2,048 to 8,192 bits or of the curves P-256 and P-384"
    )]
    Useless,
    /// No such issuer.
    #[error("there are no keys of {0}")]
    Missing(String),
}

/// An issuer, and what is to be known of it.
#[derive(Clone, Debug)]
pub struct ShownIssuer {
    /// Its URL.
    pub url: String,
    /// What names its keys; empty for those without a name.
    pub key_ids: Vec<String>,
    /// Whom its tokens are for, where a provider does not say.
    pub audiences: Vec<String>,
}

/// Why a token is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TokenError {
    /// It is none, or not one of an issuer that is known here.
    Invalid(&'static str),
    /// Its time is over.
    Expired,
}

/// What a token says, which an issuer has signed, and whose time it is.
#[derive(Debug)]
pub(crate) struct Claims {
    pub(crate) issuer: String,
    pub(crate) subject: String,
    /// Whom it is for.
    pub(crate) audiences: Vec<String>,
    /// Whom tokens of the issuer are for, where a provider does not say.
    pub(crate) usual_audiences: Vec<String>,
    pub(crate) tags: SessionTags,
    pub(crate) all: Map<String, Value>,
}

/// What the head of a token says.
#[derive(Deserialize)]
struct Head {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood, of which there are none here.
    #[serde(default)]
    crit: Option<Value>,
}

fn decode(text: &str) -> Option<Vec<u8>> {
    base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).ok()
}

/// A URL without its scheme, if it can be an issuer's.
pub(crate) fn bare_url(url: &str) -> Option<&str> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"))?;
    let is_right = url.len() <= URL_BYTES_MAX
        && !rest.is_empty()
        && !rest.starts_with('/')
        && rest.bytes().all(|byte| byte.is_ascii_graphic())
        && !rest.contains(['?', '#', '*', '"', '<', '>', '\\', '@']);
    is_right.then_some(rest)
}

fn row(url: &str) -> Vec<u8> {
    [name::ISSUER, url.as_bytes()].concat()
}

impl Material {
    /// Whether it can verify anything.
    fn is_fit(&self) -> bool {
        match self {
            Self::Rsa { n, e } => {
                let (Some(n), Some(e)) = (decode(n), decode(e)) else {
                    return false;
                };
                let n: &[u8] = &n[n.iter().take_while(|byte| **byte == 0).count()..];
                let unused = n.first().map_or(0, |byte| byte.leading_zeros() as usize);
                RSA_BITS.contains(&(n.len() * 8 - unused)) && !e.is_empty() && e.len() <= 8
            }
            Self::Curve { crv, x, y } => {
                let bytes = match crv.as_str() {
                    "P-256" => 32,
                    "P-384" => 48,
                    _ => return false,
                };
                [x, y]
                    .iter()
                    .all(|part| decode(part).is_some_and(|part| part.len() == bytes))
            }
        }
    }

    /// Whether a signature of this kind is right.
    fn verifies(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        match (self, algorithm) {
            (Self::Rsa { n, e }, "RS256" | "RS384" | "RS512") => {
                let parameters: &RsaParameters = match algorithm {
                    "RS256" => &RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &RSA_PKCS1_2048_8192_SHA384,
                    _ => &RSA_PKCS1_2048_8192_SHA512,
                };
                let (Some(n), Some(e)) = (decode(n), decode(e)) else {
                    return false;
                };
                RsaPublicKeyComponents { n, e }
                    .verify(parameters, message, signature)
                    .is_ok()
            }
            (Self::Curve { crv, x, y }, "ES256" | "ES384") => {
                let algorithm = match (crv.as_str(), algorithm) {
                    ("P-256", "ES256") => &ECDSA_P256_SHA256_FIXED,
                    ("P-384", "ES384") => &ECDSA_P384_SHA384_FIXED,
                    _ => return false,
                };
                let (Some(x), Some(y)) = (decode(x), decode(y)) else {
                    return false;
                };
                // An uncompressed point (SEC 1, 2.3.3).
                let point = [&[4], &x[..], &y[..]].concat();
                UnparsedPublicKey::new(algorithm, point)
                    .verify(message, signature)
                    .is_ok()
            }
            _ => false,
        }
    }
}

/// The keys of a set that verify signatures.
fn parse_set(text: &str) -> Result<Vec<IssuerKey>, IssuerError> {
    let malformed = |why: &str| IssuerError::Set(why.to_owned());
    if text.len() > SET_BYTES_MAX {
        return Err(malformed("it is too long"));
    }
    let set: Value =
        serde_json::from_str(text).map_err(|error| IssuerError::Set(error.to_string()))?;
    let listed = set.get("keys").and_then(Value::as_array);
    let listed = listed.ok_or_else(|| malformed("there is no list \"keys\" in it"))?;
    let mut keys = Vec::new();
    for key in listed {
        // Of RSA and curves the private part; a key that is the same for both is no issuer's at all.
        if key.get("d").is_some() || key.get("k").is_some() {
            return Err(IssuerError::Private);
        }
        let is_for_signatures = key.get("use").is_none_or(|it| it == "sig");
        let verifies = key.get("key_ops").is_none_or(|operations| {
            let operations = operations.as_array().map_or(&[][..], Vec::as_slice);
            operations.iter().any(|operation| operation == "verify")
        });
        // What is of a kind that is not known here is for others.
        if let Ok(key) = IssuerKey::deserialize(key)
            && is_for_signatures
            && verifies
            && key.material.is_fit()
        {
            keys.push(key);
        }
    }
    match keys.len() {
        0 => Err(IssuerError::Useless),
        1..=KEYS_MAX => Ok(keys),
        _ => Err(malformed("there are too many keys in it")),
    }
}

impl Users {
    /// Sets the keys of an issuer, instead of those that it had, and whom its tokens are for where a provider does not say;
    /// durably.
    ///
    /// # Errors
    /// [`UserError::Issuer`], [`UserError::Fs`]. Nothing changed.
    pub fn set_issuer(
        &self,
        url: &str,
        keys: &str,
        audiences: Vec<String>,
    ) -> Result<(), UserError> {
        bare_url(url).ok_or(IssuerError::Url)?;
        if audiences.len() > AUDIENCES_MAX || !audiences.iter().all(|it| is_audience(it)) {
            return Err(IssuerError::Audience.into());
        }
        let issuer = Issuer {
            url: url.to_owned(),
            keys: parse_set(keys)?,
            audiences,
        };
        let _changing = self.changing.lock();
        self.write(RecordChange {
            put: vec![(row(url), records::encode(&issuer))],
            ..RecordChange::default()
        })
    }

    /// Forgets the keys of an issuer, durably. Its tokens are refused from now on; credentials that were given for one go on until
    /// they end.
    ///
    /// # Errors
    /// [`UserError::Issuer`], [`UserError::Fs`]. Nothing changed.
    pub fn remove_issuer(&self, url: &str) -> Result<(), UserError> {
        let _changing = self.changing.lock();
        if self.issuer(url)?.is_none() {
            return Err(IssuerError::Missing(url.to_owned()).into());
        }
        self.write(RecordChange {
            delete: vec![row(url)],
            ..RecordChange::default()
        })
    }

    /// All issuers whose keys are known, by URL.
    ///
    /// # Errors
    /// [`UserError::Fs`].
    pub fn issuers(&self) -> Result<Vec<ShownIssuer>, UserError> {
        let mut issuers = Vec::new();
        for (_, bytes) in self.fs.records(Ino::ROOT, name::ISSUER)? {
            let issuer: Issuer = records::decode(&bytes)?;
            issuers.push(ShownIssuer {
                url: issuer.url,
                key_ids: issuer
                    .keys
                    .into_iter()
                    .map(|key| key.kid.unwrap_or_default())
                    .collect(),
                audiences: issuer.audiences,
            });
        }
        Ok(issuers)
    }

    fn issuer(&self, url: &str) -> Result<Option<Issuer>, FsError> {
        match bare_url(url) {
            Some(_) => records::get(&self.fs, Ino::ROOT, &row(url)),
            None => Ok(None),
        }
    }

    /// What a token says, if an issuer that is known has signed it, and its time has come and is not over. Whom it is for is
    /// still to be looked at.
    ///
    /// # Errors
    /// What reading failed with; inside, why it is refused.
    pub(crate) fn verified(&self, token: &str) -> Result<Result<Claims, TokenError>, FsError> {
        let unsigned = match Unverified::parse(token) {
            Ok(unsigned) => unsigned,
            Err(error) => return Ok(Err(error)),
        };
        let Some(issuer) = self.issuer(&unsigned.issuer)? else {
            return Ok(Err(TokenError::Invalid(
                "the pool has no keys of the token's issuer; `cfs admin issuer set` gives it some",
            )));
        };
        Ok(unsigned.verified(&issuer, self.now()))
    }
}

pub(crate) fn is_audience(text: &str) -> bool {
    (1..=AUDIENCE_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// A token whose signature has not been looked at.
pub(crate) struct Unverified<'a> {
    head: Head,
    issuer: String,
    message: &'a str,
    signature: Vec<u8>,
    payload: Map<String, Value>,
}

impl<'a> Unverified<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<Self, TokenError> {
        let malformed = TokenError::Invalid("this is no token: HEAD.PAYLOAD.SIGNATURE (RFC 7515)");
        let parts = || {
            if token.len() > TOKEN_BYTES_MAX {
                return None;
            }
            let (message, signature) = token.rsplit_once('.')?;
            let (head, payload) = message.split_once('.')?;
            let payload: Map<String, Value> = serde_json::from_slice(&decode(payload)?).ok()?;
            Some(Self {
                head: serde_json::from_slice(&decode(head)?).ok()?,
                issuer: payload.get("iss")?.as_str()?.to_owned(),
                message,
                signature: decode(signature)?,
                payload,
            })
        };
        parts().ok_or(malformed)
    }

    pub(crate) fn verified(self, issuer: &Issuer, now_seconds: u64) -> Result<Claims, TokenError> {
        if self.head.crit.is_some() {
            return Err(TokenError::Invalid(
                "the token wants extensions to be understood that are not known here",
            ));
        }
        let algorithm = self.head.alg.as_str();
        let is_named = |key: &&IssuerKey| match (&self.head.kid, &key.kid) {
            (Some(wanted), Some(name)) => wanted == name,
            (Some(_), None) => false,
            // Who has one key need not name it.
            (None, _) => issuer.keys.len() == 1,
        };
        let is_for_it =
            |key: &&IssuerKey| key.alg.as_ref().is_none_or(|allowed| allowed == algorithm);
        let message = self.message.as_bytes();
        let mut keys = issuer.keys.iter().filter(is_named).filter(is_for_it);
        if !keys.any(|key| key.material.verifies(algorithm, message, &self.signature)) {
            return Err(TokenError::Invalid(
                "the token is not signed with a key of its issuer that is known here",
            ));
        }
        claims(self.payload, issuer, now_seconds)
    }
}

/// What the payload of a token says, whose signature is right.
pub(crate) fn claims(
    payload: Map<String, Value>,
    issuer: &Issuer,
    now_seconds: u64,
) -> Result<Claims, TokenError> {
    let time = |name: &str| match payload.get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(TokenError::Invalid("a time in the token is no number")),
        },
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds since 1970 have 31 bits"
    )]
    let now = now_seconds as f64;
    let end = time("exp")?.ok_or(TokenError::Invalid("the token does not say when it ends"))?;
    if end <= now {
        return Err(TokenError::Expired);
    }
    for name in ["nbf", "iat"] {
        if time(name)?.is_some_and(|from| from > now + SKEW_SECONDS) {
            return Err(TokenError::Invalid("the token's time has not come"));
        }
    }
    // Keys of conditions are the same in whatever case: which of two such claims is meant nobody can tell.
    let mut names = BTreeSet::new();
    if !payload
        .keys()
        .all(|name| names.insert(name.to_ascii_lowercase()))
    {
        return Err(TokenError::Invalid(
            "two claims of the token differ in case alone",
        ));
    }
    let subject = payload.get("sub").and_then(Value::as_str);
    let subject = subject.filter(|subject| !subject.is_empty());
    let subject = subject.ok_or(TokenError::Invalid("the token is of nobody"))?;
    let audiences = match payload.get("aud") {
        Some(Value::String(audience)) => Some(vec![audience.clone()]),
        Some(Value::Array(audiences)) => audiences
            .iter()
            .map(|audience| audience.as_str().map(str::to_owned))
            .collect(),
        _ => None,
    };
    let audiences = audiences.ok_or(TokenError::Invalid("the token is for nobody"))?;
    let tags = match payload.get(TAGS_CLAIM) {
        None => SessionTags::new(),
        Some(claim) => {
            tags(claim).ok_or(TokenError::Invalid("the tags in the token are no tags"))?
        }
    };
    Ok(Claims {
        issuer: issuer.url.clone(),
        subject: subject.to_owned(),
        audiences,
        usual_audiences: issuer.audiences.clone(),
        tags,
        all: payload,
    })
}

/// The tags of a session that a claim gives. None if it is no such claim, or there are too many of them.
fn tags(claim: &Value) -> Option<SessionTags> {
    let given = match claim.get("principal_tags") {
        None => return Some(SessionTags::new()),
        Some(given) => given.as_object()?,
    };
    let mut tags = SessionTags::new();
    let mut bytes = 0;
    for (key, values) in given {
        let values = match values {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let values: Option<Vec<String>> = values
            .iter()
            .map(|value| value.as_str().map(str::to_owned))
            .collect();
        let values = values?;
        bytes += key.len() + values.iter().map(String::len).sum::<usize>();
        let is_there = tags
            .iter()
            .any(|(other, _): &(String, _)| other.eq_ignore_ascii_case(key));
        if key.is_empty() || is_there {
            return None;
        }
        tags.push((key.clone(), values));
    }
    (tags.len() <= TAGS_MAX && bytes <= TAGS_BYTES_MAX).then_some(tags)
}
