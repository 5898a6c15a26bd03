//! Roles for who comes with a token of an identity provider, and with no key of this pool.

use http::StatusCode;

use super::roles::NAME_CHARACTERS_MAX;
use super::shown::Shown;
use super::{Done, Form, Refused, denied, invalid, refused};
use crate::issuers::{Claims, TokenError};
use crate::policy::{Asked, Policy, Scope, Verdict, Who};
use crate::users::{Provider, Role, UserError};

/// Bytes of the name of a role at most.
const ARN_BYTES_MAX: usize = 2048;
/// Characters of a subject that are logged.
const SUBJECT_LOGGED_MAX: usize = 256;
/// What tags of a session need to be allowed beside.
const TAG_SESSION: &str = "sts:TagSession";

fn wrong_token(why: &str) -> Refused {
    refused(StatusCode::BAD_REQUEST, "InvalidIdentityToken", why)
}

impl From<TokenError> for Refused {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Invalid(why) => wrong_token(why),
            TokenError::Expired => refused(
                StatusCode::BAD_REQUEST,
                "ExpiredTokenException",
                "the identity token has ended",
            ),
        }
    }
}

/// Whether the role's own document lets in who has come with a token.
fn is_let_in(form: &Form, role: &Role, provider: &Provider, claims: &Claims) -> bool {
    let Ok(trust) = Policy::parse(&role.trust, Scope::Trust) else {
        return false;
    };
    let may = |action: &str| {
        let decided = trust.decide(&Asked {
            who: Who::Federated(provider, claims),
            action,
            resource: &role.arn(),
            facts: &form.facts,
            tags: &[],
        });
        // Providers are let in by name alone.
        decided.verdict == Verdict::Allow && !decided.is_for_all
    };
    may(&form.action) && (claims.tags.is_empty() || may(TAG_SESSION))
}

/// Takes a role on. The token must be of an issuer whose keys the administrator has given, which the role's account has for a
/// provider, and for a client of that; and the role's own document must let it in.
///
/// Who comes with no such token is not told which roles there are, nor whom they let in.
pub(super) fn assume(form: &Form) -> Done {
    let arn = form.must("RoleArn")?;
    if arn.len() > ARN_BYTES_MAX {
        return Err(invalid(format!(
            "RoleArn has more than {ARN_BYTES_MAX} characters"
        )));
    }
    let name = form.name("RoleSessionName", NAME_CHARACTERS_MAX)?;
    let users = &form.face.users;
    let claims = users
        // Clients send what is in a file, to its last line's end.
        .verified(form.must("WebIdentityToken")?.trim_ascii_end())
        .map_err(UserError::Fs)??;
    let refuse = |why: &str| {
        let subject: String = claims.subject.chars().take(SUBJECT_LOGGED_MAX).collect();
        let issuer = &claims.issuer;
        tracing::info!("{subject:?} of {issuer} does not get {arn:?}: {why}");
        denied()
    };
    let role = users.role(|role| role.arn() == arn);
    let role = role.ok_or_else(|| refuse("there is no such role"))?;
    let provider = users.provider_of(&role.account, &claims.issuer);
    let provider = provider.ok_or_else(|| refuse("its account has no such provider"))?;
    let wanted = match provider.client_ids.is_empty() {
        true => &claims.usual_audiences,
        false => &provider.client_ids,
    };
    let audience = claims.audiences.iter().find(|it| wanted.contains(it));
    let audience = audience.ok_or_else(|| refuse("the token is for others"))?;
    if !is_let_in(form, &role, &provider, &claims) {
        return Err(refuse("the role's document does not let it in"));
    }
    let session = form.take_on(&role, name, claims.tags.clone())?;
    let mut shown = Shown::default();
    shown
        .taken_on(&session, &role, name)
        .leaf("SubjectFromWebIdentityToken", &claims.subject)
        .leaf("Provider", &claims.issuer)
        .leaf("Audience", audience);
    Ok(shown)
}
