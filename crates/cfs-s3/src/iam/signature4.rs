//! Signatures of version 4 (AWS4-HMAC-SHA256) of requests to IAM and STS, whose bodies are short and signed as a whole.

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderMap, Method, Uri};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3ErrorCode, S3Result, s3_error};
use sha2::{Digest as _, Sha256};

use crate::objects::hex;
use crate::users::Users;

/// How far the clocks of client and server may be apart, seconds.
const SKEW_SECONDS: i64 = 900;

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length will do");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// What a header says of a signature.
struct Given<'a> {
    access_key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    headers: Vec<&'a str>,
    signature: &'a str,
}

fn given(text: &str) -> Option<Given<'_>> {
    let fields = text.strip_prefix("AWS4-HMAC-SHA256")?;
    let (mut credential, mut headers, mut signature) = (None, None, None);
    for field in fields.split(',') {
        match field.trim().split_once('=')? {
            ("Credential", value) => credential = Some(value),
            ("SignedHeaders", value) => headers = Some(value),
            ("Signature", value) => signature = Some(value),
            _ => return None,
        }
    }
    let mut parts = credential?.split('/');
    let given = Given {
        access_key_id: parts.next()?,
        date: parts.next()?,
        region: parts.next()?,
        service: parts.next()?,
        headers: headers?.split(';').collect(),
        signature: signature?,
    };
    let is_whole = parts.next() == Some("aws4_request") && parts.next().is_none();
    is_whole.then_some(given)
}

/// Whose access key has signed a request, which is proven then.
///
/// # Errors
/// `AccessDenied` without a signature, `SignatureDoesNotMatch`, `InvalidAccessKeyId`, `RequestTimeTooSkewed`.
pub(super) fn check(
    users: &Users,
    now_seconds: i64,
    (method, uri, headers): (&Method, &Uri, &HeaderMap),
    body: &[u8],
) -> S3Result<String> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let unsigned = || {
        s3_error!(
            AccessDenied,
            "requests to IAM and STS are signed with version 4"
        )
    };
    let authorization = header("authorization").ok_or_else(unsigned)?;
    let given = given(authorization).ok_or_else(unsigned)?;
    let wrong = || s3s::S3Error::new(S3ErrorCode::SignatureDoesNotMatch);
    if !matches!(given.service, "iam" | "sts") {
        return Err(s3_error!(
            AccessDenied,
            "the signature is for another service"
        ));
    }
    let date = header("x-amz-date").unwrap_or_default();
    let time = seconds_of(date).ok_or_else(wrong)?;
    if !date.starts_with(given.date) {
        return Err(wrong());
    }
    if (time - now_seconds).abs() > SKEW_SECONDS {
        return Err(S3ErrorCode::RequestTimeTooSkewed.into());
    }
    // What is not signed could be another's words.
    if !["host", "x-amz-date"]
        .iter()
        .all(|name| given.headers.contains(name))
    {
        return Err(wrong());
    }
    let digest = hex(&Sha256::digest(body));
    match header("x-amz-content-sha256") {
        Some(said) if said != digest => return Err(wrong()),
        _ => {}
    }
    let mut lines = String::new();
    for name in &given.headers {
        let values: Vec<String> = headers
            .get_all(*name)
            .iter()
            .map(|value| {
                let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            })
            .collect();
        if values.is_empty() {
            return Err(wrong());
        }
        lines += &format!("{name}:{}\n", values.join(","));
    }
    let names = given.headers.join(";");
    let mut query: Vec<&str> = uri.query().unwrap_or_default().split('&').collect();
    query.sort_unstable();
    let canonical = format!(
        "{method}\n{}\n{}\n{lines}\n{names}\n{digest}",
        uri.path(),
        query.join("&")
    );
    let scope = format!(
        "{}/{}/{}/aws4_request",
        given.date, given.region, given.service
    );
    let text = format!(
        "AWS4-HMAC-SHA256\n{date}\n{scope}\n{}",
        hex(&Sha256::digest(canonical.as_bytes()))
    );
    let secret = users
        .secret_of(given.access_key_id)
        .ok_or(S3ErrorCode::InvalidAccessKeyId)?;
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part);
    }
    let right = hex(&hmac(&key, &text));
    match crate::signature2::is_equal(given.signature, &right) {
        true => Ok(given.access_key_id.to_owned()),
        false => Err(wrong()),
    }
}

/// Seconds since 1970 of a time as `YYYYMMDDTHHMMSSZ`.
fn seconds_of(date: &str) -> Option<i64> {
    let is_right = date.is_ascii() && date.len() == 16;
    let (day, time) = date.split_once('T').filter(|_| is_right)?;
    let (day, time) = (day.as_bytes(), time.as_bytes());
    if day.len() != 8 {
        return None;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let iso = format!(
        "{}-{}-{}T{}:{}:{}Z",
        text(&day[..4]),
        text(&day[4..6]),
        text(&day[6..]),
        text(&time[..2]),
        text(&time[2..4]),
        text(&time[4..6])
    );
    let time = Timestamp::parse(TimestampFormat::DateTime, &iso).ok()?;
    Some(time::OffsetDateTime::from(time).unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_headers_are_taken_apart() {
        assert_eq!(seconds_of("20150830T123600Z"), Some(1_440_938_160));
        for wrong in [
            "",
            "20150830T12360Z",
            "2015083T1236000Z",
            "20150830T1236xxZ",
        ] {
            assert_eq!(seconds_of(wrong), None, "{wrong}");
        }
        let text = "AWS4-HMAC-SHA256 Credential=K/20150830//iam/aws4_request, SignedHeaders=host;x-amz-date, Signature=ab";
        let it = given(text).expect("it is right");
        assert_eq!((it.access_key_id, it.region, it.service), ("K", "", "iam"));
        assert_eq!(it.headers, ["host", "x-amz-date"]);
        assert!(
            given("AWS4-HMAC-SHA256 Credential=K/1/2/iam, SignedHeaders=a, Signature=b").is_none()
        );
    }
}
