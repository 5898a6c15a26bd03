//! Who may see `/api/stats` and `/metrics`: who asks from this machine, and root.
//!
//! Root names itself with its key as HTTP's basic authentication has it (RFC 7617), as scrapers can do, over TLS or from
//! this machine. Others have to ask by a name of this machine, as a page of another name in a browser on it cannot. What
//! a proxy on this machine passes on comes from elsewhere, as far as its headers say so. Of one bucket only root is told.
//! A request that is signed as S3 has it is one for a bucket of that name.

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{Request, Response};
use s3s::{Body, S3Error, S3ErrorCode, S3Result};
use sha2::{Digest as _, Sha256};

use crate::answer::From;
use crate::face::Face;
use crate::hosts::Hosts;
use crate::stats;

/// The answer, if statistics are asked for.
pub(crate) async fn answer<B>(
    face: &Arc<Face>,
    hosts: &Hosts,
    from: From,
    request: &Request<B>,
) -> Option<S3Result<Response<Body>>> {
    let headers = request.headers();
    let is_told = matches!(request.uri().path(), "/api/stats" | "/metrics");
    if !is_told || is_signed(headers) {
        return None;
    }
    let query = request.uri().query().unwrap_or_default();
    let mut fields: HashMap<String, String> = serde_urlencoded::from_str(query).unwrap_or_default();
    let bucket = fields.remove("bucket");
    let is_here = from.peer.ip().is_loopback();
    let is_for_all_here =
        is_here && !is_passed_on(headers) && hosts.are_asked_for(headers) && bucket.is_none();
    let is_root = || (from.is_encrypted || is_here) && names_root(face, headers);
    if !is_for_all_here && !is_root() {
        return Some(refused());
    }
    let (told, kind) = match request.uri().path() {
        "/metrics" => (stats::metrics(face).await, "text/plain; version=0.0.4"),
        _ => {
            let told = match bucket {
                Some(bucket) => stats::bucket_report(face, bucket).await,
                None => stats::report(face).await,
            };
            (told, "application/json")
        }
    };
    Some(told.map(|text| {
        let mut response = Response::new(Body::from(text));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }))
}

/// Whether a proxy says that it asks for somebody else (RFC 7239, RFC 9110 section 7.6.3, and what came before them).
fn is_passed_on(headers: &HeaderMap) -> bool {
    let names = [
        "forwarded",
        "via",
        "x-real-ip",
        "x-client-ip",
        "true-client-ip",
        "cf-connecting-ip",
    ];
    headers
        .keys()
        .any(|name| names.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded"))
}

fn is_signed(headers: &HeaderMap) -> bool {
    let header = headers.get(AUTHORIZATION);
    header.is_some_and(|value| value.as_bytes().starts_with(b"AWS4-"))
}

fn refused() -> S3Result<Response<Body>> {
    let text = "statistics are for this machine, asked as localhost, and over TLS, or of one bucket, for the user root: its key as name and password";
    let error = S3Error::with_message(S3ErrorCode::AccessDenied, text);
    let mut response = error.to_http_response()?;
    *response.status_mut() = http::StatusCode::UNAUTHORIZED;
    let scheme = HeaderValue::from_static("Basic realm=\"cfs\"");
    response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
    Ok(response)
}

/// Whether there is a key of root.
fn names_root(face: &Face, headers: &HeaderMap) -> bool {
    let Some(given) = credentials(headers) else {
        return false;
    };
    let Some((access_key_id, secret)) = given.split_once(':') else {
        return false;
    };
    match face.users.by_access_key(access_key_id) {
        // Of digests, how long a comparison takes tells nothing about what was compared.
        Some((user, wanted)) => {
            user.is_root() && Sha256::digest(secret) == Sha256::digest(wanted.as_bytes())
        }
        None => false,
    }
}

fn credentials(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let text = value.strip_prefix("Basic ")?.trim();
    let bytes = base64_simd::STANDARD.decode_to_vec(text).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_credentials_are_taken_apart() {
        let check = |value: &str, wanted: Option<&str>| {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_str(value).expect("a value");
            headers.insert(AUTHORIZATION, value);
            assert_eq!(credentials(&headers).as_deref(), wanted);
        };
        check(
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            Some("Aladdin:open sesame"),
        );
        check("Basic !", None);
        check("Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==", None);
    }
}
