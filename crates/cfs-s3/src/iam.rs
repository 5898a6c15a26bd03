//! IAM and STS: users, groups, roles and policies of an account, and credentials for a while.
//!
//! A request is a form that is posted to `/`, signed as S3's are for the services `iam` and `sts`. It is about the account
//! of who asks, but that a user at the head of its own, who names itself, means the user that root gives policies to. What
//! changes something holds [`Users::changing`](crate::users::Users) from the first look to the end.

mod federation;
mod groups;
mod people;
mod policies;
mod providers;
mod roles;
mod sessions;
pub(crate) mod shown;
mod signature4;

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use s3s::{Body, S3Error, S3ErrorCode};

use self::shown::{Shown, escaped};
use crate::access::{Peer, TOKEN_HEADER, facts_of_request};
use crate::answer::From;
use crate::errors;
use crate::face::{Face, blocking};
use crate::policy::{Asked, Facts, Verdict, Who};
use crate::principal::Principal;
use crate::stats::Operation;
use crate::users::{ROOT_ID, UserError};

/// Longest form, bytes.
const FORM_BYTES_MAX: usize = 256 << 10;
/// How long a form may take to arrive.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// Users, groups and roles that an account can have of each.
const OF_A_KIND_MAX: usize = 5000;
/// Entries of an answer, where the request does not say.
const ENTRIES: usize = 100;

/// Why something is refused. Nothing changed.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    code: &'static str,
    message: String,
}

fn refused(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refused {
    Refused {
        status,
        code,
        message: message.into(),
    }
}

fn missing(what: &str, name: &str) -> Refused {
    refused(
        StatusCode::NOT_FOUND,
        "NoSuchEntity",
        format!("there is no {what} {name}"),
    )
}

fn exists(what: &str, name: &str) -> Refused {
    refused(
        StatusCode::CONFLICT,
        "EntityAlreadyExists",
        format!("there is a {what} {name} already"),
    )
}

fn in_use(why: &str) -> Refused {
    refused(StatusCode::CONFLICT, "DeleteConflict", why)
}

fn invalid(why: impl Into<String>) -> Refused {
    refused(StatusCode::BAD_REQUEST, "ValidationError", why)
}

fn denied() -> Refused {
    refused(
        StatusCode::FORBIDDEN,
        "AccessDenied",
        "no policy allows this, or one denies it",
    )
}

impl std::convert::From<UserError> for Refused {
    fn from(error: UserError) -> Self {
        let message = error.to_string();
        match error {
            UserError::TooManyKeys => refused(StatusCode::CONFLICT, "LimitExceeded", message),
            UserError::Fs(_) => {
                tracing::error!("a change of users failed: {message}");
                refused(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "ServiceFailure",
                    "see the server's log",
                )
            }
            _ => invalid(message),
        }
    }
}

impl std::convert::From<S3Error> for Refused {
    fn from(error: S3Error) -> Self {
        let status = error.status_code().unwrap_or(StatusCode::BAD_REQUEST);
        let message = errors::message(&error);
        let code = match error.code() {
            S3ErrorCode::InvalidAccessKeyId | S3ErrorCode::InvalidToken => "InvalidClientTokenId",
            S3ErrorCode::ExpiredToken => "ExpiredToken",
            S3ErrorCode::SignatureDoesNotMatch => "SignatureDoesNotMatch",
            S3ErrorCode::RequestTimeTooSkewed => "RequestExpired",
            S3ErrorCode::SlowDown => "Throttling",
            S3ErrorCode::EntityTooLarge => "RequestEntityTooLarge",
            S3ErrorCode::AccessDenied => "AccessDenied",
            _ => "ServiceFailure",
        };
        refused(status, code, message)
    }
}

type Done = Result<Shown, Refused>;

/// What a request says, whoever asks.
struct Form {
    face: Arc<Face>,
    facts: Facts,
    action: String,
    fields: HashMap<String, String>,
}

/// A request, once it is known who asks.
struct Call {
    form: Form,
    principal: Principal,
}

impl std::ops::Deref for Call {
    type Target = Form;

    fn deref(&self) -> &Form {
        &self.form
    }
}

/// What does an action.
#[derive(Clone, Copy)]
enum Act {
    /// For who has signed.
    Signed(fn(&Call) -> Done),
    /// For who shows something else in the form.
    Unsigned(fn(&Form) -> Done),
}

/// An action: its name, the parameters that it takes, and what does it.
struct Action {
    service: &'static str,
    name: &'static str,
    takes: &'static [&'static str],
    act: Act,
}

const fn iam(name: &'static str, takes: &'static [&'static str], act: fn(&Call) -> Done) -> Action {
    Action {
        service: "iam",
        name,
        takes,
        act: Act::Signed(act),
    }
}

const fn sts(name: &'static str, takes: &'static [&'static str], act: fn(&Call) -> Done) -> Action {
    Action {
        service: "sts",
        name,
        takes,
        act: Act::Signed(act),
    }
}

/// What names an identity provider.
const PROVIDER: &str = "OpenIDConnectProviderArn";
const PAGE: &[&str] = &["Marker", "MaxItems"];

const ACTIONS: &[Action] = &[
    iam("CreateUser", &["UserName", "Path"], people::create),
    iam("GetUser", &["UserName"], people::get),
    iam("ListUsers", &["PathPrefix"], people::list),
    iam(
        "UpdateUser",
        &["UserName", "NewUserName", "NewPath"],
        people::update,
    ),
    iam("DeleteUser", &["UserName"], people::delete),
    iam("CreateAccessKey", &["UserName"], people::create_key),
    iam("ListAccessKeys", &["UserName"], people::list_keys),
    iam(
        "UpdateAccessKey",
        &["UserName", "AccessKeyId", "Status"],
        people::update_key,
    ),
    iam(
        "DeleteAccessKey",
        &["UserName", "AccessKeyId"],
        people::delete_key,
    ),
    iam("GetAccountSummary", &[], people::summary),
    iam("CreateGroup", &["GroupName", "Path"], groups::create),
    iam("GetGroup", &["GroupName"], groups::get),
    iam("ListGroups", &["PathPrefix"], groups::list),
    iam(
        "UpdateGroup",
        &["GroupName", "NewGroupName", "NewPath"],
        groups::update,
    ),
    iam("DeleteGroup", &["GroupName"], groups::delete),
    iam(
        "AddUserToGroup",
        &["GroupName", "UserName"],
        groups::add_user,
    ),
    iam(
        "RemoveUserFromGroup",
        &["GroupName", "UserName"],
        groups::remove_user,
    ),
    iam("ListGroupsForUser", &["UserName"], groups::of_user),
    iam(
        "CreateRole",
        &[
            "RoleName",
            "Path",
            "AssumeRolePolicyDocument",
            "Description",
            "MaxSessionDuration",
        ],
        roles::create,
    ),
    iam("GetRole", &["RoleName"], roles::get),
    iam("ListRoles", &["PathPrefix"], roles::list),
    iam(
        "UpdateRole",
        &["RoleName", "Description", "MaxSessionDuration"],
        roles::update,
    ),
    iam(
        "UpdateAssumeRolePolicy",
        &["RoleName", "PolicyDocument"],
        roles::update_trust,
    ),
    iam("DeleteRole", &["RoleName"], roles::delete),
    iam(
        "PutUserPolicy",
        &["UserName", "PolicyName", "PolicyDocument"],
        policies::put,
    ),
    iam(
        "PutGroupPolicy",
        &["GroupName", "PolicyName", "PolicyDocument"],
        policies::put,
    ),
    iam(
        "PutRolePolicy",
        &["RoleName", "PolicyName", "PolicyDocument"],
        policies::put,
    ),
    iam("GetUserPolicy", &["UserName", "PolicyName"], policies::get),
    iam(
        "GetGroupPolicy",
        &["GroupName", "PolicyName"],
        policies::get,
    ),
    iam("GetRolePolicy", &["RoleName", "PolicyName"], policies::get),
    iam("ListUserPolicies", &["UserName"], policies::list),
    iam("ListGroupPolicies", &["GroupName"], policies::list),
    iam("ListRolePolicies", &["RoleName"], policies::list),
    iam(
        "DeleteUserPolicy",
        &["UserName", "PolicyName"],
        policies::delete,
    ),
    iam(
        "DeleteGroupPolicy",
        &["GroupName", "PolicyName"],
        policies::delete,
    ),
    iam(
        "DeleteRolePolicy",
        &["RoleName", "PolicyName"],
        policies::delete,
    ),
    iam(
        "AttachUserPolicy",
        &["UserName", "PolicyArn"],
        policies::attach,
    ),
    iam(
        "AttachGroupPolicy",
        &["GroupName", "PolicyArn"],
        policies::attach,
    ),
    iam(
        "AttachRolePolicy",
        &["RoleName", "PolicyArn"],
        policies::attach,
    ),
    iam(
        "DetachUserPolicy",
        &["UserName", "PolicyArn"],
        policies::detach,
    ),
    iam(
        "DetachGroupPolicy",
        &["GroupName", "PolicyArn"],
        policies::detach,
    ),
    iam(
        "DetachRolePolicy",
        &["RoleName", "PolicyArn"],
        policies::detach,
    ),
    iam(
        "ListAttachedUserPolicies",
        &["UserName", "PathPrefix"],
        policies::list_attached,
    ),
    iam(
        "ListAttachedGroupPolicies",
        &["GroupName", "PathPrefix"],
        policies::list_attached,
    ),
    iam(
        "ListAttachedRolePolicies",
        &["RoleName", "PathPrefix"],
        policies::list_attached,
    ),
    iam(
        "CreateOpenIDConnectProvider",
        &["Url", "ClientIDList.member", "ThumbprintList.member"],
        providers::create,
    ),
    iam("GetOpenIDConnectProvider", &[PROVIDER], providers::get),
    iam("ListOpenIDConnectProviders", &[], providers::list),
    iam(
        "DeleteOpenIDConnectProvider",
        &[PROVIDER],
        providers::delete,
    ),
    iam(
        "AddClientIDToOpenIDConnectProvider",
        &[PROVIDER, "ClientID"],
        providers::add_client,
    ),
    iam(
        "RemoveClientIDFromOpenIDConnectProvider",
        &[PROVIDER, "ClientID"],
        providers::remove_client,
    ),
    iam(
        "UpdateOpenIDConnectProviderThumbprint",
        &[PROVIDER, "ThumbprintList.member"],
        providers::update_thumbprints,
    ),
    sts(
        "AssumeRole",
        &["RoleArn", "RoleSessionName", "DurationSeconds", "Policy"],
        roles::assume,
    ),
    Action {
        service: "sts",
        name: "AssumeRoleWithWebIdentity",
        takes: &[
            "RoleArn",
            "RoleSessionName",
            "WebIdentityToken",
            "DurationSeconds",
            "Policy",
        ],
        act: Act::Unsigned(federation::assume),
    },
    sts(
        "GetSessionToken",
        &["DurationSeconds"],
        roles::session_token,
    ),
    sts("GetCallerIdentity", &[], roles::caller),
];

/// Whether a request is one to IAM or STS, if no bucket is named by its host.
pub(crate) fn is_meant<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    *request.method() == Method::POST
        && request.uri().path() == "/"
        && kind.is_some_and(|kind| {
            kind.as_bytes()
                .starts_with(b"application/x-www-form-urlencoded")
        })
}

/// Answers a request.
pub(crate) async fn answer(
    face: &Arc<Face>,
    from: From,
    request: Request<Incoming>,
    id: &str,
) -> Response<Body> {
    let answered = match perform(face, from, request).await {
        Ok((action, shown)) => {
            let space = match action.service {
                "sts" => "https://sts.amazonaws.com/doc/2011-06-15/",
                _ => "https://iam.amazonaws.com/doc/2010-05-08/",
            };
            let name = action.name;
            let result = shown.text();
            let text = format!(
                "<{name}Response xmlns=\"{space}\"><{name}Result>{result}</{name}Result>\
                 <ResponseMetadata><RequestId>{id}</RequestId></ResponseMetadata></{name}Response>"
            );
            (StatusCode::OK, text)
        }
        Err(refused) => {
            let kind = match refused.status.is_server_error() {
                true => "Receiver",
                false => "Sender",
            };
            let text = format!(
                "<ErrorResponse><Error><Type>{kind}</Type><Code>{}</Code><Message>{}</Message></Error>\
                 <RequestId>{id}</RequestId></ErrorResponse>",
                refused.code,
                escaped(&refused.message)
            );
            (refused.status, text)
        }
    };
    let (status, text) = answered;
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/xml");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

async fn perform(
    face: &Arc<Face>,
    from: From,
    request: Request<Incoming>,
) -> Result<(&'static Action, Shown), Refused> {
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(PATIENCE, Limited::new(body, FORM_BYTES_MAX).collect()).await;
    let body = match body {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) | Err(_) => {
            return Err(refused(
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                "the form is too long, or took too long",
            ));
        }
    };
    let fields = serde_urlencoded::from_bytes::<HashMap<String, String>>(&body);
    let name = fields.as_ref().ok().and_then(|fields| fields.get("Action"));
    let name = name.cloned().unwrap_or_default();
    let action = ACTIONS.iter().find(|action| action.name == name);
    let facts = facts_of_request(&head.headers, &head.uri, Some(Peer::of(from)));
    let principal = match action.map(|action| action.act) {
        Some(Act::Unsigned(_)) => None,
        // Who has not signed is told nothing of what there is.
        Some(Act::Signed(_)) | None => {
            let now_seconds = time::OffsetDateTime::now_utc().unix_timestamp();
            let told = (&head.method, &head.uri, &head.headers);
            crate::signature4::check(told)?;
            let access_key_id = signature4::check(&face.users, now_seconds, told, &body)?;
            let token = facts.headers.get(TOKEN_HEADER).map(String::as_str);
            Some(face.users.principal(&access_key_id, token)?)
        }
    };
    let mut fields = fields.map_err(|_| invalid("the body is no form"))?;
    fields.retain(|name, value| {
        // An empty list, as some clients send it, says nothing.
        !value.is_empty() && name != "Action" && name != "Version"
    });
    let action = action.ok_or_else(|| {
        refused(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            format!("not implemented: {name}"),
        )
    })?;
    let takes_page = action.name.starts_with("List") || action.name == "GetGroup";
    for field in fields.keys() {
        let name = match list_item(field) {
            Some((list, _)) => list,
            None => field.as_str(),
        };
        let is_taken = action.takes.contains(&name) || takes_page && PAGE.contains(&name);
        if !is_taken {
            return Err(refused(
                StatusCode::BAD_REQUEST,
                "InvalidParameterValue",
                format!("not implemented: {name} of {}", action.name),
            ));
        }
    }
    if let Some(operation) = head.extensions.get::<Operation>() {
        operation.set(action.name);
    }
    let form = Form {
        face: Arc::clone(face),
        facts,
        action: format!("{}:{}", action.service, action.name),
        fields,
    };
    let done = match (action.act, principal) {
        (Act::Signed(act), Some(principal)) => {
            let call = Call { form, principal };
            blocking(move || Ok(act(&call))).await??
        }
        (Act::Unsigned(act), _) => blocking(move || Ok(act(&form))).await??,
        (Act::Signed(_), None) => return Err(denied()),
    };
    Ok((action, done))
}

/// The list that a parameter is an item of, as `NAME.member`, and the item's number.
fn list_item(field: &str) -> Option<(&str, u32)> {
    let (list, number) = field.rsplit_once('.')?;
    let number = number.parse().ok()?;
    list.ends_with(".member").then_some((list, number))
}

impl Form {
    /// A parameter, if it is given.
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// A parameter that must be given.
    fn must(&self, name: &str) -> Result<&str, Refused> {
        self.field(name)
            .ok_or_else(|| invalid(format!("{name} is missing")))
    }

    /// A new name for something, of at most so many characters.
    fn name(&self, parameter: &str, characters_max: usize) -> Result<&str, Refused> {
        let name = self.must(parameter)?;
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
        match !name.is_empty() && name.len() <= characters_max && name.bytes().all(is_fit) {
            true => Ok(name),
            false => Err(invalid(format!(
                "{parameter} has 1 to {characters_max} of the characters a-z, A-Z, 0-9 and _+=,.@-"
            ))),
        }
    }

    /// A path, if it is given.
    fn path(&self, parameter: &str) -> Result<Option<String>, Refused> {
        let Some(path) = self.field(parameter) else {
            return Ok(None);
        };
        let is_right = path.starts_with('/')
            && path.ends_with('/')
            && path.len() <= 512
            && path.bytes().all(|byte| byte.is_ascii_graphic());
        match is_right {
            true => Ok(Some(path.to_owned())),
            false => Err(invalid("a path begins and ends with /")),
        }
    }

    /// The items of a list, in the order of their numbers.
    fn list(&self, name: &str, items_max: usize) -> Result<Vec<String>, Refused> {
        let mut items: Vec<(u32, &String)> = self
            .fields
            .iter()
            .filter_map(|(field, value)| {
                let (list, number) = list_item(field)?;
                let is_meant = list.strip_suffix(".member") == Some(name);
                is_meant.then_some((number, value))
            })
            .collect();
        if items.len() > items_max {
            return Err(invalid(format!("{name} has at most {items_max} items")));
        }
        items.sort_unstable();
        let mut texts: Vec<String> = Vec::new();
        for (_, item) in items {
            if !texts.contains(item) {
                texts.push(item.clone());
            }
        }
        Ok(texts)
    }
}

impl Call {
    /// Identifier of the account that the request is about.
    fn account_id(&self) -> &str {
        &self.principal.account.id
    }

    /// Refuses what may not be done with a resource of an account.
    fn authorize(&self, account: &str, resource: &str) -> Result<(), Refused> {
        if self.principal.is_root() {
            return Ok(());
        }
        let said = self.principal.decide(&self.asked(resource));
        let is_head = !self.principal.is_bound() && account == self.account_id();
        match said {
            Verdict::Allow => Ok(()),
            Verdict::Silent if is_head => Ok(()),
            Verdict::Silent | Verdict::Deny => Err(denied()),
        }
    }

    fn asked<'a>(&'a self, resource: &'a str) -> Asked<'a> {
        Asked {
            who: Who::Principal(&self.principal),
            action: &self.action,
            resource,
            facts: &self.facts,
            tags: &[],
        }
    }

    /// What a list is asked to show of what there is, which is in order; each with the text that the next page begins with.
    fn page<T>(
        &self,
        items: Vec<(String, T)>,
        show: impl FnOnce(&mut Shown, &[T]),
    ) -> Result<Shown, Refused> {
        let wanted = match self.field("MaxItems").map(str::parse::<usize>) {
            None => ENTRIES,
            Some(Ok(wanted)) if (1..=1000).contains(&wanted) => wanted,
            Some(_) => return Err(invalid("MaxItems is 1 to 1000")),
        };
        let from = self.field("Marker").unwrap_or_default();
        let mut left = items.into_iter().filter(|(at, _)| at.as_str() >= from);
        let page: Vec<T> = left.by_ref().take(wanted).map(|(_, item)| item).collect();
        let next = left.next();
        let mut shown = Shown::default();
        show(&mut shown, &page);
        shown.leaf("IsTruncated", &next.is_some().to_string());
        if let Some((marker, _)) = next {
            shown.leaf("Marker", &marker);
        }
        Ok(shown)
    }

    /// An identifier that nobody has.
    fn new_id(&self) -> String {
        let mut id = [0; 32];
        fill(&mut id);
        crate::objects::hex(&id)
    }

    /// The account and the name in it of a user: by default who asks. Who is at the head of an account and names itself, means
    /// the user in root's.
    fn user_named(&self) -> Result<(String, String), Refused> {
        let account = self.account_id();
        let Some(name) = self.field("UserName") else {
            let user = self
                .principal
                .user()
                .ok_or_else(|| invalid("a role names the user that it means"))?;
            return Ok(match user.account.as_str() {
                "" => (ROOT_ID.to_owned(), user.name.clone()),
                account => (account.to_owned(), user.name.clone()),
            });
        };
        let head = &self.principal.account;
        let is_itself = (name == head.id || name == head.name)
            && self.face.users.user_in(account, name).is_none();
        match is_itself {
            true => Ok((ROOT_ID.to_owned(), name.to_owned())),
            false => Ok((account.to_owned(), name.to_owned())),
        }
    }
}

/// Bytes that nobody can guess.
fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel gives random bytes once it has booted");
}

/// Of things with names, each with the text that it is found by in a list.
fn by_name<T>(items: Vec<T>, name: impl Fn(&T) -> &str) -> Vec<(String, T)> {
    let mut named: Vec<(String, T)> = items
        .into_iter()
        .map(|item| (name(&item).to_ascii_lowercase(), item))
        .collect();
    named.sort_by(|(left, _), (right, _)| left.cmp(right));
    named
}
