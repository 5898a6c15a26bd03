//! Signatures of version 2, in headers and in links: HMAC-SHA-1 over what the request says of itself.
//!
//! `s3s` checks them too, but compares byte by byte until two differ; what comes to it has passed here, where the time that
//! a comparison takes tells nothing. Forms have theirs over a policy that the client holds itself.

use std::collections::HashMap;

use http::{HeaderMap, Method, Uri};
use s3s::crypto::{Checksum as _, Sha1};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use crate::users::Users;

/// How far the clocks of client and server may be apart, seconds; S3's own limit.
const SKEW_SECONDS: i64 = 900;
/// Bytes that SHA-1 takes at a time.
const BLOCK: usize = 64;

/// Parameters of a query that are signed, in their order.
const SIGNED: [&str; 35] = [
    "accelerate",
    "acl",
    "analytics",
    "cors",
    "defaultObjectAcl",
    "delete",
    "inventory",
    "lifecycle",
    "location",
    "logging",
    "metrics",
    "notification",
    "object-lock",
    "partNumber",
    "policy",
    "replication",
    "requestPayment",
    "response-cache-control",
    "response-content-disposition",
    "response-content-encoding",
    "response-content-language",
    "response-content-type",
    "response-expires",
    "restore",
    "select",
    "select-type",
    "storageClass",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versionId",
    "versioning",
    "versions",
    "website",
];

/// Parameters of a query that make another operation of a request, and that clients of this version do not sign.
const UNSIGNED: [&str; 11] = [
    "attributes",
    "encryption",
    "id",
    "intelligent-tiering",
    "legal-hold",
    "metadataTable",
    "ownershipControls",
    "policyStatus",
    "publicAccessBlock",
    "retention",
    "session",
];

/// HMAC-SHA-1 (RFC 2104).
fn hmac(key: &[u8], text: &[u8]) -> [u8; 20] {
    let mut block = [0; BLOCK];
    match key.len() > BLOCK {
        true => block[..20].copy_from_slice(&Sha1::checksum(key)),
        false => block[..key.len()].copy_from_slice(key),
    }
    let inner = [&block.map(|byte| byte ^ 0x36)[..], text].concat();
    let outer = [&block.map(|byte| byte ^ 0x5c)[..], &Sha1::checksum(&inner)].concat();
    Sha1::checksum(&outer)
}

/// Whether a signature is the right one; how long that takes depends on its length alone.
pub(crate) fn is_equal(given: &str, right: &str) -> bool {
    let differing = given.bytes().zip(right.bytes());
    let sum = differing.fold(0, |sum, (left, right)| sum | (left ^ right));
    given.len() == right.len() && sum == 0
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What is signed; `date` is that of the header, or the end of a link. A bucket that the host names is signed as if it
/// were in the path.
fn string_to_sign(
    method: &Method,
    host_bucket: Option<&str>,
    path: &str,
    query: &HashMap<String, String>,
    headers: &HeaderMap,
    date: &str,
) -> String {
    let text = |name| header(headers, name).unwrap_or_default();
    let mut string = format!(
        "{method}\n{}\n{}\n{date}\n",
        text("content-md5"),
        text("content-type")
    );
    let mut names: Vec<_> = headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(|name| name.starts_with("x-amz-"))
        .collect();
    names.sort_unstable();
    for name in names {
        let values: Vec<_> = headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
            .collect();
        string += &format!("{name}:{}\n", values.join(","));
    }
    if let Some(bucket) = host_bucket {
        string.push('/');
        string += bucket;
    }
    string += path;
    let mut mark = '?';
    for name in SIGNED {
        if let Some(value) = query.get(name) {
            string.push(mark);
            string += name;
            if !value.is_empty() {
                string.push('=');
                string += value;
            }
            mark = '&';
        }
    }
    string
}

fn wrong() -> S3Error {
    S3ErrorCode::SignatureDoesNotMatch.into()
}

/// A time as a header of HTTP has it.
pub(crate) fn http_time(text: &str) -> Option<time::OffsetDateTime> {
    // Time zones that are no names, as older clients write them.
    let text = text.trim().replace("+0000", "GMT").replace("-0000", "GMT");
    let time = Timestamp::parse(TimestampFormat::HttpDate, &text).ok()?;
    Some(time::OffsetDateTime::from(time))
}

/// The time of a request that is signed in a header, seconds since 1970.
fn time_of(headers: &HeaderMap) -> Option<i64> {
    let text = header(headers, "x-amz-date").or_else(|| header(headers, "date"))?;
    Some(http_time(text)?.unix_timestamp())
}

/// Checks the signature of version 2 that a request has, if it has one. Its host may name a bucket. Returns the header with the
/// signature as `s3s` will have it, where that is another.
///
/// # Errors
/// `SignatureDoesNotMatch`, `InvalidAccessKeyId`, `RequestTimeTooSkewed`, `AccessDenied`, `InvalidArgument`.
pub(crate) fn check(
    users: &Users,
    now_seconds: i64,
    host_bucket: Option<&str>,
    (method, uri, headers): (&Method, &Uri, &HeaderMap),
) -> S3Result<Option<String>> {
    let query = uri.query().unwrap_or_default();
    let query: HashMap<String, String> = serde_urlencoded::from_str(query).unwrap_or_default();
    let authorization = header(headers, "authorization").and_then(|text| text.strip_prefix("AWS "));
    let (access_key, given, date) = if let Some(text) = authorization {
        let (access_key, signature) = text.split_once(':').ok_or_else(|| {
            s3_error!(
                InvalidArgument,
                "the header authorization is AWS and a key with a signature"
            )
        })?;
        let Some(time) = time_of(headers) else {
            return Err(s3_error!(AccessDenied, "a signed request has a date"));
        };
        if time < 0 {
            return Err(s3_error!(
                AccessDenied,
                "there were no requests before 1970"
            ));
        }
        if (time - now_seconds).abs() > SKEW_SECONDS {
            return Err(S3ErrorCode::RequestTimeTooSkewed.into());
        }
        // A date of Amazon's own is among the other headers.
        let date = match headers.contains_key("x-amz-date") {
            true => "",
            false => header(headers, "date").unwrap_or_default(),
        };
        (access_key.to_owned(), signature.to_owned(), date.to_owned())
    } else if let (Some(access_key), Some(signature)) =
        (query.get("AWSAccessKeyId"), query.get("Signature"))
    {
        let ends = query.get("Expires").cloned().unwrap_or_default();
        match ends.parse::<i64>() {
            Ok(seconds) if seconds > now_seconds => {}
            _ => return Err(s3_error!(AccessDenied, "the link has ended")),
        }
        (access_key.clone(), signature.clone(), ends)
    } else {
        return Ok(None);
    };
    // Who passes a link on could add them.
    if let Some(name) = UNSIGNED.iter().find(|name| query.contains_key(**name)) {
        return Err(s3_error!(
            AccessDenied,
            "a signature of version 2 does not cover ?{name}; sign with version 4"
        ));
    }
    let (_, secret) = users
        .by_access_key(&access_key)
        .ok_or(S3ErrorCode::InvalidAccessKeyId)?;
    let signature = |path: &str| {
        let string = string_to_sign(method, host_bucket, path, &query, headers, &date);
        base64_simd::STANDARD.encode_to_string(hmac(secret.as_bytes(), string.as_bytes()))
    };
    let (path, right) = (uri.path(), signature(uri.path()));
    if is_equal(&given, &right) {
        return Ok(None);
    }
    // Some clients sign a bucket as it is named where there is a key after it.
    let is_bucket = host_bucket.is_none() && path.len() > 1 && !path[1..].contains('/');
    match is_bucket && is_equal(&given, &signature(&format!("{path}/"))) {
        true if authorization.is_some() => Ok(Some(format!("AWS {access_key}:{right}"))),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 2202, and the example of S3's own documentation.
    #[test]
    fn known_signatures() {
        let digest = hmac(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(
            crate::objects::hex(&digest),
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
        );
        let digest = hmac(
            &[0xaa; 80],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
        );
        assert_eq!(
            crate::objects::hex(&digest),
            "aa4ae5e15272d00e95705637ce8a3b55ed402112"
        );
        let mut headers = HeaderMap::new();
        let date = "Tue, 27 Mar 2007 19:36:42 +0000";
        headers.insert("date", date.parse().expect("a header"));
        assert_eq!(time_of(&headers), Some(1_175_024_202));
        let path = "/awsexamplebucket1/photos/puppy.jpg";
        let string = string_to_sign(&Method::GET, None, path, &HashMap::new(), &headers, date);
        let (host, path) = (Some("awsexamplebucket1"), "/photos/puppy.jpg");
        assert_eq!(
            string,
            string_to_sign(&Method::GET, host, path, &HashMap::new(), &headers, date)
        );
        assert_eq!(
            string,
            format!("GET\n\n\n{date}\n/awsexamplebucket1/photos/puppy.jpg")
        );
        let secret = b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        let signature = base64_simd::STANDARD.encode_to_string(hmac(secret, string.as_bytes()));
        assert_eq!(signature, "qgk2+6Sv9/oM7G3qLEjTH1a1l1g=");
        assert!(is_equal(&signature, "qgk2+6Sv9/oM7G3qLEjTH1a1l1g="));
        assert!(!is_equal(&signature, "qgk2+6Sv9/oM7G3qLEjTH1a1l1g"));
        assert!(!is_equal(&signature, "qgk2+6Sv9/oM7G3qLEjTH1a1l1h="));
    }
}
