//! Cross-origin resource sharing (the Fetch standard): which pages may use a bucket from a browser.

use std::sync::Arc;

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use s3s::dto::{CORSConfiguration, CORSRule};
use s3s::{S3ErrorCode, S3Result, s3_error};

use crate::face::{Face, blocking};
use crate::records::name;

/// What a browser asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    bucket: String,
    origin: String,
    method: String,
    headers: Vec<String>,
    is_preflight: bool,
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

/// What a browser asks for with a request; none when it is no page that asks.
/// The bucket is that of the host's name, or the first part of the path.
pub(crate) fn wish<B>(request: &Request<B>, host_bucket: Option<String>) -> Option<Wish> {
    let (method, headers) = (request.method(), request.headers());
    let origin = text(headers, ORIGIN)?;
    let first = request.uri().path().split('/').nth(1);
    let bucket = host_bucket
        .or_else(|| first.map(str::to_owned))
        .filter(|name| !name.is_empty())?;
    let is_preflight = method == Method::OPTIONS;
    let listed = match is_preflight {
        true => text(headers, ACCESS_CONTROL_REQUEST_HEADERS).unwrap_or_default(),
        false => String::new(),
    };
    // Who names a method in a request that is no preflight is told of that one, as S3 does.
    let method = match text(headers, ACCESS_CONTROL_REQUEST_METHOD) {
        None if is_preflight => String::new(),
        None => method.as_str().to_owned(),
        Some(named) => named,
    };
    let headers = listed
        .split(',')
        .map(|name| name.trim().to_ascii_lowercase());
    Some(Wish {
        bucket,
        origin,
        method,
        headers: headers.filter(|name| !name.is_empty()).collect(),
        is_preflight,
    })
}

/// Whether a text fits a pattern with at most one star.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => {
            text.len() >= head.len() + tail.len() && text.starts_with(head) && text.ends_with(tail)
        }
    }
}

impl Wish {
    pub(crate) fn is_granted_by(&self, rule: &CORSRule) -> bool {
        let allowed = rule.allowed_headers.as_deref().unwrap_or_default();
        rule.allowed_origins
            .iter()
            .any(|pattern| fits(pattern, &self.origin))
            && rule.allowed_methods.contains(&self.method)
            && self.headers.iter().all(|name| {
                allowed
                    .iter()
                    .any(|pattern| fits(&pattern.to_ascii_lowercase(), name))
            })
    }
}

/// The headers that grant a wish; none when nothing does.
///
/// # Errors
/// What reading the configuration failed with; for a preflight `AccessForbidden`, and `BadRequest` without a method.
pub(crate) async fn answer(face: &Arc<Face>, wish: Wish) -> S3Result<Option<HeaderMap>> {
    if wish.is_preflight && wish.method.is_empty() {
        return Err(s3_error!(
            InvalidRequest,
            "a preflight names the method that it is for"
        ));
    }
    let face = Arc::clone(face);
    blocking(move || {
        let config: Option<CORSConfiguration> = match face.find_bucket(&wish.bucket)? {
            Some(bucket) => face.config(&bucket, name::CORS)?,
            None => None,
        };
        let rules = config.map(|config| config.cors_rules).unwrap_or_default();
        match rules.iter().find(|rule| wish.is_granted_by(rule)) {
            Some(rule) => Ok(Some(headers(rule, &wish))),
            None if wish.is_preflight => {
                let mut error = s3s::S3Error::with_message(
                    S3ErrorCode::Custom("AccessForbidden".into()),
                    "the bucket does not let this page in",
                );
                error.set_status_code(http::StatusCode::FORBIDDEN);
                Err(error)
            }
            None => Ok(None),
        }
    })
    .await
}

pub(crate) fn headers(rule: &CORSRule, wish: &Wish) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    let for_all = rule.allowed_origins.iter().any(|origin| origin == "*");
    set(
        ACCESS_CONTROL_ALLOW_ORIGIN,
        if for_all { "*" } else { &wish.origin },
    );
    set(
        ACCESS_CONTROL_ALLOW_METHODS,
        &rule.allowed_methods.join(", "),
    );
    set(VARY, "Origin");
    if let Some(exposed) = &rule.expose_headers {
        set(ACCESS_CONTROL_EXPOSE_HEADERS, &exposed.join(", "));
    }
    if wish.is_preflight {
        if !wish.headers.is_empty() {
            set(ACCESS_CONTROL_ALLOW_HEADERS, &wish.headers.join(", "));
        }
        if let Some(seconds) = rule.max_age_seconds {
            set(ACCESS_CONTROL_MAX_AGE, &seconds.to_string());
        }
    }
    headers
}
