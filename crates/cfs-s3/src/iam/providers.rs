//! Identity providers of an account (OpenID Connect): whose tokens its roles may be taken on with.

use std::sync::Arc;

use http::StatusCode;

use super::people::too_many;
use super::shown::Shown;
use super::{Call, Done, Form, Refused, exists, invalid, missing, refused};
use crate::issuers::{AUDIENCES_MAX, bare_url, is_audience};
use crate::users::Provider;

/// Providers of an account.
const PROVIDERS_MAX: usize = 100;
/// Thumbprints of a provider, and the length of each, characters.
const THUMBPRINTS_MAX: usize = 5;
const THUMBPRINT_CHARACTERS: usize = 40;

impl Form {
    fn client_ids(&self) -> Result<Vec<String>, Refused> {
        let ids = self.list("ClientIDList", AUDIENCES_MAX)?;
        match ids.iter().all(|id| is_audience(id)) {
            true => Ok(ids),
            false => Err(invalid("a client's identifier has 1 to 255 characters")),
        }
    }

    /// Thumbprints are kept and shown, as clients insist on them. They are of connections to the provider, of which none is made.
    fn thumbprints(&self) -> Result<Vec<String>, Refused> {
        let thumbprints = self.list("ThumbprintList", THUMBPRINTS_MAX)?;
        let is_fit = |text: &String| {
            text.len() == THUMBPRINT_CHARACTERS
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        match thumbprints.iter().all(is_fit) {
            true => Ok(thumbprints),
            false => Err(invalid("a thumbprint has 40 letters and digits")),
        }
    }
}

impl Call {
    /// The provider that is meant, if who asks may do this with it.
    fn provider(&self) -> Result<Arc<Provider>, Refused> {
        let arn = self.must("OpenIDConnectProviderArn")?;
        self.authorize(self.account_id(), arn)?;
        let all = self.face.users.providers_in(self.account_id());
        let found = all.into_iter().find(|provider| provider.arn() == arn);
        found.ok_or_else(|| missing("identity provider", arn))
    }

    /// Changes a provider.
    fn change_provider(&self, change: impl FnOnce(&mut Provider) -> Result<(), Refused>) -> Done {
        let _changing = self.face.users.changing.lock();
        let mut provider = Provider::clone(&*self.provider()?);
        change(&mut provider)?;
        self.face.users.store_provider(provider)?;
        Ok(Shown::default())
    }
}

pub(super) fn create(call: &Call) -> Done {
    let users = &call.face.users;
    let url = call.must("Url")?;
    let bare = bare_url(url).ok_or_else(|| {
        invalid("the URL of a provider is https://HOST/PATH, without ? and #, as in its tokens")
    })?;
    let provider = Provider {
        id: call.new_id(),
        account: call.account_id().to_owned(),
        url: url.to_owned(),
        created: users.now(),
        client_ids: call.client_ids()?,
        thumbprints: call.thumbprints()?,
    };
    call.authorize(call.account_id(), &provider.arn())?;
    let _changing = users.changing.lock();
    if users.provider_in(call.account_id(), bare).is_some() {
        return Err(exists("identity provider", bare));
    }
    if users.providers_in(call.account_id()).len() >= PROVIDERS_MAX {
        return Err(too_many(PROVIDERS_MAX));
    }
    let provider = users.store_provider(provider)?;
    let mut shown = Shown::default();
    shown.leaf("OpenIDConnectProviderArn", &provider.arn());
    Ok(shown)
}

pub(super) fn get(call: &Call) -> Done {
    let provider = call.provider()?;
    let mut shown = Shown::default();
    shown
        .leaf("Url", &provider.url)
        .time("CreateDate", provider.created)
        .texts("ClientIDList", &provider.client_ids)
        .texts("ThumbprintList", &provider.thumbprints);
    Ok(shown)
}

pub(super) fn list(call: &Call) -> Done {
    call.authorize(call.account_id(), "*")?;
    let providers = call.face.users.providers_in(call.account_id());
    let mut shown = Shown::default();
    shown.list(
        "OpenIDConnectProviderList",
        &providers,
        |shown, provider| {
            shown.leaf("Arn", &provider.arn());
        },
    );
    Ok(shown)
}

pub(super) fn delete(call: &Call) -> Done {
    let _changing = call.face.users.changing.lock();
    let provider = call.provider()?;
    call.face.users.remove_provider(&provider)?;
    Ok(Shown::default())
}

pub(super) fn add_client(call: &Call) -> Done {
    let id = call.must("ClientID")?.to_owned();
    if !is_audience(&id) {
        return Err(invalid("a client's identifier has 1 to 255 characters"));
    }
    call.change_provider(|provider| {
        if provider.client_ids.contains(&id) {
            return Ok(());
        }
        if provider.client_ids.len() >= AUDIENCES_MAX {
            return Err(refused(
                StatusCode::CONFLICT,
                "LimitExceeded",
                format!("a provider has {AUDIENCES_MAX} clients"),
            ));
        }
        provider.client_ids.push(id);
        Ok(())
    })
}

/// Takes a client away; also one that is not there, as IAM does.
pub(super) fn remove_client(call: &Call) -> Done {
    let id = call.must("ClientID")?;
    call.change_provider(|provider| {
        // Without any, those would do that the administrator has given with the keys.
        if provider.client_ids.len() == 1 && provider.client_ids[0] == id {
            return Err(invalid(
                "a provider keeps the last of its clients; delete the provider instead",
            ));
        }
        provider.client_ids.retain(|other| other != id);
        Ok(())
    })
}

pub(super) fn update_thumbprints(call: &Call) -> Done {
    let thumbprints = call.thumbprints()?;
    call.change_provider(|provider| {
        provider.thumbprints = thumbprints;
        Ok(())
    })
}
