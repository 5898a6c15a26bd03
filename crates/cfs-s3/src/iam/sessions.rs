//! Credentials for a while (STS): whose they are and until when stands in the token that comes with them, which only this
//! pool can make. Nothing is kept of them, and they outlive a restart.
//!
//! The secret and the token's seal are made of the access key's name with a key of the pool (HMAC-SHA-256), so that who has
//! one token cannot make another. They end with the user or the role that they are of.

use hmac::{Hmac, KeyInit as _, Mac as _};
use s3s::{S3ErrorCode, S3Result, s3_error};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::issuers::SessionTags;
use crate::policy::{Policy, Scope};
use crate::principal::{Kind, Principal};
use crate::users::{ROOT_ID, SESSION_PREFIX, UserError, Users};

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    /// The name of the access key that it belongs to.
    key: String,
    /// Identifier of the user whose credentials they are, if they are of none that took on a role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// Identifier of the role, and the name that it was taken on under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<(String, String)>,
    /// Seconds since 1970.
    end: u64,
    /// The document that they are limited to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<String>,
    /// Tags of the session.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tags: SessionTags,
}

/// Whose credentials are to be made.
pub(crate) enum Of<'a> {
    /// A user's, of this identifier.
    User(&'a str),
    /// Of a role, by its identifier, under a name.
    Role(&'a str, &'a str),
}

/// Credentials.
pub(crate) struct Session {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    pub(crate) token: String,
    /// Seconds since 1970.
    pub(crate) end: u64,
}

fn mac(key: &[u8; 32], purpose: &str, text: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length will do");
    mac.update(purpose.as_bytes());
    mac.update(&[0]);
    mac.update(text.as_bytes());
    mac
}

fn secret(key: &[u8; 32], access_key_id: &str) -> String {
    let secret = mac(key, "secret", access_key_id).finalize().into_bytes();
    base64_simd::STANDARD.encode_to_string(&secret[..30])
}

fn sealed(key: &[u8; 32], token: &Token) -> String {
    let text = serde_json::to_string(token).expect("text keys and no failing parts");
    let seal = mac(key, "token", &text).finalize().into_bytes();
    let encode = |bytes: &[u8]| base64_simd::STANDARD.encode_to_string(bytes);
    format!("{}.{}", encode(text.as_bytes()), encode(&seal))
}

/// What a token says, if this pool has made it.
fn opened(key: &[u8; 32], token: &str) -> Option<Token> {
    let (text, seal) = token.split_once('.')?;
    let decode = |part: &str| base64_simd::STANDARD.decode_to_vec(part).ok();
    let (text, seal) = (String::from_utf8(decode(text)?).ok()?, decode(seal)?);
    mac(key, "token", &text).verify_slice(&seal).ok()?;
    serde_json::from_str(&text).ok()
}

impl Users {
    /// Makes credentials for a while.
    ///
    /// # Errors
    /// What writing the pool's key failed with, when they are the first.
    pub(crate) fn make_session(
        &self,
        of: Of<'_>,
        seconds: u64,
        limit: Option<String>,
        tags: SessionTags,
    ) -> Result<Session, UserError> {
        let mut random = [0; 48];
        getrandom::fill(&mut random).expect("the kernel gives random bytes once it has booted");
        let (fresh, name) = random.split_at(32);
        let key = {
            let _changing = self.changing.lock();
            match self.session_key.get() {
                Some(key) => *key,
                None => {
                    let key = fresh.try_into().expect("it was split there");
                    self.store_session_key(key)?;
                    key
                }
            }
        };
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let name: String = name
            .iter()
            .map(|byte| char::from(letters[usize::from(byte % 32)]))
            .collect();
        let access_key_id = format!("{SESSION_PREFIX}{name}");
        let end = self.now() + seconds;
        let token = Token {
            key: access_key_id.clone(),
            user: match of {
                Of::User(id) => Some(id.to_owned()),
                Of::Role(..) => None,
            },
            role: match of {
                Of::User(_) => None,
                Of::Role(id, name) => Some((id.to_owned(), name.to_owned())),
            },
            end,
            limit,
            tags,
        };
        Ok(Session {
            secret_access_key: secret(&key, &access_key_id),
            token: sealed(&key, &token),
            access_key_id,
            end,
        })
    }

    /// What signs with an access key, whether of a user or for a while. That such a one is of anybody, its token has to say.
    pub(crate) fn secret_of(&self, access_key_id: &str) -> Option<String> {
        if let Some((_, secret)) = self.by_access_key(access_key_id) {
            return Some(secret);
        }
        let key = self.session_key.get()?;
        access_key_id
            .starts_with(SESSION_PREFIX)
            .then(|| secret(key, access_key_id))
    }

    /// Who asks with an access key, and with a token if there is one.
    ///
    /// # Errors
    /// `InvalidAccessKeyId`; `InvalidToken`, `ExpiredToken`.
    pub(crate) fn principal(
        &self,
        access_key_id: &str,
        token: Option<&str>,
    ) -> S3Result<Principal> {
        if let Some((user, _)) = self.by_access_key(access_key_id) {
            return match token {
                None => self.principal_of(&user.id, false),
                Some(_) => Err(wrong_token()),
            };
        }
        let (Some(key), Some(token)) = (self.session_key.get(), token) else {
            return Err(S3ErrorCode::InvalidAccessKeyId.into());
        };
        let token = opened(key, token).filter(|token| token.key == access_key_id);
        let token = token.ok_or_else(wrong_token)?;
        if token.end <= self.now() {
            return Err(s3_error!(ExpiredToken, "the credentials have ended"));
        }
        let mut principal = match (&token.user, token.role) {
            (Some(user), None) => self.principal_of(user, true)?,
            (None, Some((id, name))) => {
                let role = self.role(|role| role.id == id).ok_or_else(wrong_token)?;
                let account = self.by_id(&role.account).ok_or_else(wrong_token)?;
                Principal {
                    account,
                    policies: role.policies.parsed(),
                    kind: Kind::Role(role, name),
                    limit: None,
                    is_session: true,
                    tags: token.tags,
                }
            }
            _ => return Err(wrong_token()),
        };
        if let Some(text) = token.limit {
            let limit = Policy::parse(&text, Scope::Identity);
            principal.limit = Some(limit.unwrap_or_else(|_| Policy::deny_all()));
        }
        Ok(principal)
    }

    fn principal_of(&self, id: &str, is_session: bool) -> S3Result<Principal> {
        let gone = || s3s::S3Error::new(S3ErrorCode::InvalidAccessKeyId);
        let user = self.by_id(id).ok_or_else(gone)?;
        let account = self.by_id(user.account_id()).ok_or_else(gone)?;
        let mut policies = user.policies.parsed();
        let groups = match user.account.as_str() {
            "" => self.groups_in(ROOT_ID),
            account => self.groups_in(account),
        };
        for group in groups {
            if group.members.contains(id) {
                policies.extend(group.policies.parsed());
            }
        }
        Ok(Principal {
            kind: match user.account.is_empty() {
                true => Kind::Head,
                false => Kind::Member(user),
            },
            account,
            policies,
            limit: None,
            is_session,
            tags: SessionTags::new(),
        })
    }
}

fn wrong_token() -> s3s::S3Error {
    s3_error!(
        InvalidToken,
        "the security token is not of these credentials"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_pool_makes_tokens() {
        let token = Token {
            key: "ASIAX".to_owned(),
            user: Some("u".to_owned()),
            role: None,
            end: 7,
            limit: None,
            tags: SessionTags::new(),
        };
        let key = [3; 32];
        let text = sealed(&key, &token);
        assert_eq!(opened(&key, &text).expect("it is right").end, 7);
        assert!(opened(&[4; 32], &text).is_none());
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).expect("letters");
            assert!(opened(&key, &changed).is_none(), "{at}");
        }
        assert_ne!(secret(&key, "ASIAX"), secret(&key, "ASIAY"));
    }
}
