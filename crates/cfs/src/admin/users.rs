//! Users of the S3 face and their keys, and issuers of identity tokens.

use cfs_s3::{Key, NewUser, User, UserError, Users};
use cfs_store::Host;

use super::protocol::{GivenKey, ShownIssuer, ShownKey, ShownUser, UserRequest};
use crate::failure::{Code, Failure, Result};
use crate::host::System;

impl From<GivenKey> for Key {
    fn from(given: GivenKey) -> Self {
        Self {
            access_key_id: given.access_key_id,
            secret_access_key: given.secret_access_key,
            is_inactive: false,
            created: 0,
        }
    }
}

/// What came of it.
pub enum UserAnswer {
    /// A key.
    Key(ShownKey),
    /// Users.
    Users(Vec<ShownUser>),
    /// Names of keys.
    Names(Vec<String>),
    /// Issuers.
    Issuers(Vec<ShownIssuer>),
    /// Nothing to show.
    Nothing,
}

/// Does what is asked.
///
/// # Errors
/// What the change is refused for.
pub fn perform(users: &Users, request: UserRequest) -> Result<UserAnswer> {
    let mut random = |bytes: &mut [u8]| System.fill_random(bytes);
    let shown = |user: &User, key: &Key| ShownKey {
        name: user.name.clone(),
        id: user.id.clone(),
        access_key_id: key.access_key_id.clone(),
        secret_access_key: key.secret_access_key.clone(),
    };
    let answer = match request {
        UserRequest::Add {
            name,
            key,
            email,
            own_domain,
        } => {
            let new = NewUser {
                name,
                key: key.map(Key::from),
                email,
                own_domain,
            };
            let user = users.add(new, &mut random).map_err(refused)?;
            UserAnswer::Key(shown(&user, &user.keys[0]))
        }
        UserRequest::List => {
            let shown = |user: &User| ShownUser {
                name: user.name.clone(),
                id: user.id.clone(),
                access_key_ids: user
                    .keys
                    .iter()
                    .map(|key| key.access_key_id.clone())
                    .collect(),
                domain: user.domain().map(|domain| domain.0),
            };
            UserAnswer::Users(users.list().iter().map(|user| shown(user)).collect())
        }
        UserRequest::Remove { name } => {
            users.remove(&name).map_err(refused)?;
            UserAnswer::Nothing
        }
        UserRequest::CreateKey { name, key } => {
            let (user, key) = users
                .create_key(&name, key.map(Key::from), &mut random)
                .map_err(refused)?;
            UserAnswer::Key(shown(&user, &key))
        }
        UserRequest::RevokeKey { access_key_id } => {
            users.revoke_key(&access_key_id).map_err(refused)?;
            UserAnswer::Nothing
        }
        UserRequest::AddKeptKey { name } => {
            users.add_kept_key(&name, &mut random).map_err(refused)?;
            UserAnswer::Nothing
        }
        UserRequest::SetIssuer {
            url,
            keys,
            audiences,
        } => {
            users.set_issuer(&url, &keys, audiences).map_err(refused)?;
            UserAnswer::Nothing
        }
        UserRequest::Issuers => {
            let issuers = users.issuers().map_err(refused)?;
            let shown = |issuer: cfs_s3::ShownIssuer| ShownIssuer {
                url: issuer.url,
                key_ids: issuer.key_ids,
                audiences: issuer.audiences,
            };
            UserAnswer::Issuers(issuers.into_iter().map(shown).collect())
        }
        UserRequest::RemoveIssuer { url } => {
            users.remove_issuer(&url).map_err(refused)?;
            UserAnswer::Nothing
        }
        UserRequest::KeptKeys => UserAnswer::Names(users.kept_keys().map_err(refused)?),
    };
    Ok(answer)
}

fn refused(error: UserError) -> Failure {
    let code = match error {
        UserError::Fs(_) => Code::Failed,
        _ => Code::Usage,
    };
    Failure::new(code, error.to_string())
}

/// Lines that show users.
pub fn user_lines(users: &[ShownUser]) -> Vec<String> {
    use super::report::{Align, table};
    let head = ["NAME", "ACCESS KEYS", "DOMAIN", "ID"].map(str::to_owned);
    let row = |user: &ShownUser| {
        [
            user.name.clone(),
            user.access_key_ids.join(","),
            user.domain.map_or("-".to_owned(), |it| it.to_string()),
            user.id.clone(),
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(users.iter().map(row)).collect();
    table(
        &rows,
        &[Align::Left, Align::Left, Align::Right, Align::Left],
    )
}

/// Lines that show issuers.
pub fn issuer_lines(issuers: &[ShownIssuer]) -> Vec<String> {
    use super::report::{Align, table};
    let head = ["ISSUER", "KEYS", "AUDIENCES"].map(str::to_owned);
    let row = |issuer: &ShownIssuer| {
        let named = |key: &String| match key.as_str() {
            "" => "(no name)".to_owned(),
            name => name.to_owned(),
        };
        let keys: Vec<String> = issuer.key_ids.iter().map(named).collect();
        [
            issuer.url.clone(),
            keys.join(","),
            issuer.audiences.join(","),
        ]
    };
    let rows: Vec<_> = std::iter::once(head)
        .chain(issuers.iter().map(row))
        .collect();
    table(&rows, &[Align::Left, Align::Left, Align::Left])
}

/// Lines that show a key.
pub fn key_lines(key: &ShownKey) -> Vec<String> {
    vec![
        format!("user              {}", key.name),
        format!("access_key_id     {}", key.access_key_id),
        format!("secret_access_key {}", key.secret_access_key),
    ]
}
