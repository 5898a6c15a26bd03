//! What signatures of version 4 must cover. Whether they are right, `s3s` finds out; but it obeys headers that are not
//! among those signed, which who passes a link or a request on could add.
//!
//! # Invariants
//! - No header of S3's own is obeyed that who signed the request did not sign.
//! - The lists of signed headers that are looked at here are those that `s3s` computes the signature over.

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Uri};
use s3s::{S3Error, S3ErrorCode, S3Result};

/// What headers of S3's own begin with.
const PREFIX: &str = "x-amz-";
/// Headers that need no signature: one says what the body is that the signature covers in its place, or in a link what the
/// body must be; the other has no meaning, and clients leave it out of links.
const FREE: [&str; 2] = ["x-amz-content-sha256", "x-amz-user-agent"];

/// The list of signed headers in an authorization. None when there is not exactly one that starts a field, as what starts
/// none is part of another field's text.
fn of_authorization(text: &str) -> Option<&str> {
    let fields = text.split(',').map(str::trim_start);
    let mut lists = fields.filter_map(|field| field.strip_prefix("SignedHeaders="));
    let list = lists.next()?;
    lists.next().is_none().then_some(list)
}

fn unsigned<'a>(names: impl Iterator<Item = &'a str>) -> S3Error {
    let names: Vec<_> = names.collect();
    let text = format!(
        "There were headers present in the request which were not signed: {}",
        names.join(", ")
    );
    S3Error::with_message(S3ErrorCode::AccessDenied, text)
}

/// Refuses headers that a list of signed ones leaves out.
fn covers(list: &str, headers: &HeaderMap) -> S3Result<()> {
    let is_signed = |name: &str| list.split(';').any(|signed| signed == name);
    let is_left_out = |name: &&str| {
        let is_ours = name.starts_with(PREFIX) && !FREE.contains(name);
        // A header that is no text is not among what is signed, whatever the list says.
        let is_text = || {
            let mut values = headers.get_all(*name).iter();
            values.all(|value| str::from_utf8(value.as_bytes()).is_ok())
        };
        is_ours && !(is_signed(name) && is_text())
    };
    let mut left_out = headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(is_left_out)
        .peekable();
    if left_out.peek().is_some() {
        return Err(unsigned(left_out));
    }
    // A host may name the bucket.
    match is_signed("host") {
        true => Ok(()),
        false => Err(unsigned(["host"].into_iter())),
    }
}

pub(crate) fn is_form(method: &Method, headers: &HeaderMap) -> bool {
    let form = "multipart/form-data";
    method == Method::POST
        && headers.get_all(CONTENT_TYPE).iter().any(|value| {
            let start = value.as_bytes().get(..form.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(form.as_bytes()))
        })
}

/// Checks that the signature of version 4 which a request has, if it has one, covers what it must.
///
/// # Errors
/// `AccessDenied`; `InvalidArgument` for an authorization without a list of signed headers.
pub(crate) fn check((method, uri, headers): (&Method, &Uri, &HeaderMap)) -> S3Result<()> {
    if is_form(method, headers) {
        // It is signed in its fields, and says in them what others say in headers.
        return covers("host", headers);
    }
    for value in headers.get_all(AUTHORIZATION) {
        if !value.as_bytes().starts_with(b"AWS4-") {
            continue;
        }
        let list = value.to_str().ok().and_then(of_authorization);
        let list = list.ok_or_else(|| {
            let text = "the header authorization has one list SignedHeaders";
            S3Error::with_message(S3ErrorCode::InvalidArgument, text)
        })?;
        covers(list, headers)?;
    }
    let query = uri.query().unwrap_or_default();
    // What cannot be decoded is refused by who looks at the signature.
    let fields: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap_or_default();
    let mut lists = fields
        .iter()
        .filter(|(name, _)| name == "X-Amz-SignedHeaders");
    lists.try_for_each(|(_, list)| covers(list, headers))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const GRANT: (&str, &[u8]) = ("x-amz-acl", b"public-read");

    fn check_with(authorization: &str, query: &str, added: &[(&str, &[u8])]) -> bool {
        let mut headers = HeaderMap::new();
        if !authorization.is_empty() {
            let value = HeaderValue::from_str(authorization).expect("a value");
            headers.insert(AUTHORIZATION, value);
        }
        for (name, value) in added {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            let value = HeaderValue::from_bytes(value).expect("a value");
            headers.append(name, value);
        }
        let uri: Uri = format!("/bucket/k?{query}").parse().expect("a path");
        check((&Method::PUT, &uri, &headers)).is_ok()
    }

    #[test]
    fn headers_that_are_not_signed_are_refused() {
        let header = |list: &str| {
            format!(
                "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, \
                 SignedHeaders={list}, Signature=00"
            )
        };
        let date: (&str, &[u8]) = ("x-amz-date", b"20260101T000000Z");
        let good = header("host;x-amz-date");
        assert!(check_with(&good, "", &[date]));
        assert!(check_with(&good, "", &[date, ("range", b"bytes=0-1")]));
        assert!(check_with(&good, "", &[date, ("x-amz-user-agent", b"x")]));
        assert!(check_with(&good, "", &[date, (FREE[0], b"x")]));
        assert!(check_with(&good, "", &[date, ("x-amzn-trace-id", b"x")]));
        assert!(!check_with(&good, "", &[date, GRANT]));
        assert!(!check_with(&header("x-amz-date"), "", &[date]));
        assert!(check_with(&header("host;x-amz-acl"), "", &[GRANT]));
        // What is signed under another name is not signed.
        assert!(!check_with(&header("host;X-Amz-Acl"), "", &[GRANT]));
        assert!(!check_with(&header("host;x-amz-acl "), "", &[GRANT]));
        let none: (&str, &[u8]) = ("x-amz-acl", b"\xff");
        assert!(!check_with(&header("host;x-amz-acl"), "", &[none]));
        assert!(!check_with(&header("host;x-amz-acl"), "", &[GRANT, none]));
        // One list counts, and it cannot be hidden in another field.
        let twice = header("host, SignedHeaders=host;x-amz-acl");
        assert!(!check_with(&twice, "", &[GRANT]));
        let within = header("host;SignedHeaders=x-amz-acl");
        assert!(!check_with(&within, "", &[GRANT]));
        assert!(!check_with("AWS4-HMAC-SHA256 Credential=k", "", &[]));
    }

    #[test]
    fn links_cover_what_they_name() {
        let link = "X-Amz-SignedHeaders=host&X-Amz-Signature=00";
        assert!(check_with("", link, &[]));
        assert!(check_with("", link, &[("content-type", b"text/plain")]));
        assert!(!check_with("", link, &[GRANT]));
        let link = "X-Amz-SignedHeaders=host%3Bx-amz-acl&X-Amz-Signature=00";
        assert!(check_with("", link, &[GRANT]));
        // Without a signature there is nothing that could be added to.
        assert!(check_with("", "", &[GRANT]));
    }
}
